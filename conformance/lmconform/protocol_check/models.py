"""Rules of checkpoints, scores and generation."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lmconform.protocol_check.rules import Broken, NotExercised
from lmconform.protocol_check.talk import NEEDS, Talk
from lmconform.transport import checks, protocol
from lmconform.transport.checks import Malformed

TOKENS = [5, 3, 8, 2, 2]
NEAR = 0.5
"""Beside the spread of the scores: what is farther away is not the same array."""
NOWHERE = 2**31 + 7
"""A handle that was not given out."""


def accepts(talk: Talk) -> None:
    """accepts gives a reason, or null, for any config.json."""
    if "accepts" not in talk.greeting.get("offers", ()):
        raise NotExercised("the program offers no accepts")
    talk.ask("accepts", config=talk.material().fields).result()
    for odd in ({}, {"model_type": "no-such-model"}, {"model_type": 3}):
        if talk.ask("accepts", config=odd).result()["reason"] is None:
            raise Broken(f"a reason against the config {odd}", "null")


def load(talk: Talk) -> None:
    """load gives a handle and the checkpoint's vocabulary."""
    given, wanted = talk.loaded(), talk.material().fields["vocab_size"]
    if given["vocab_size"] != wanted:
        raise Broken(f"vocab_size {wanted}", str(given["vocab_size"]))


def load_nothing(talk: Talk) -> None:
    """A checkpoint that is not there, or is cut off, is refused, and loading goes on after it."""
    talk.loaded()
    with tempfile.TemporaryDirectory() as folder:
        talk.ask("load", checkpoint=str(Path(folder) / "nowhere"), needs=NEEDS).error("refused")
        talk.ask("load", checkpoint=str(_cut_off(talk.material().path, Path(folder))), needs=NEEDS).error("refused")
    talk.ask("load", checkpoint=str(talk.material().path), needs=NEEDS).result()


def load_without_needs(talk: Talk) -> None:
    """needs may leave out any of its fields."""
    talk.loaded()
    talk.ask("load", checkpoint=str(talk.material().path), needs={}).result()


def handles(talk: Talk) -> None:
    """Each model and each session has a handle of its own, also after others were closed."""
    first, path = talk.model(), str(talk.material().path)
    seen = [first]
    for _ in range(2):
        seen.append(talk.ask("load", checkpoint=path, needs=NEEDS).result()["model"])
        if len(set(seen)) < len(seen):
            raise Broken("a handle that was not given out before", str(seen[-1]))
        talk.ask("close", model=seen[-1]).result()


def closed_model(talk: Talk) -> None:
    """The handle of a closed model names nothing: a protocol error."""
    model = talk.ask("load", checkpoint=str(talk.material().path), needs=NEEDS).result() if talk.loaded() else {}
    session = talk.ask("open", model=model["model"]).result() if "open" in model["offers"] else None
    talk.ask("close", model=model["model"]).result()
    if "score" in model["offers"]:
        talk.ask("score", model=model["model"], tokens=TOKENS).error("protocol")
    talk.ask("close", model=model["model"]).error("protocol")
    if session is not None:
        talk.ask("extend", session=session["session"], tokens=TOKENS).error("protocol")


def unknown_handle(talk: Talk) -> None:
    """A handle that was not given out is a protocol error."""
    for call, arguments in talk.legal().items():
        for name in ("model", "session"):
            if name in arguments:
                talk.ask(call, **{**arguments, name: NOWHERE}).error("protocol")
                talk.ask(call, **{**arguments, name: 0}).error("protocol")


def close_one(talk: Talk) -> None:
    """close names either a model or a session."""
    model = talk.model()
    talk.ask("close").error("protocol")
    talk.ask("close", model=model, session=model).error("protocol")


def scores(talk: Talk) -> None:
    """score gives a row for each token and a column for each id, finite or -inf."""
    model, V = talk.model("score"), talk.loaded()["vocab_size"]
    for tokens in (TOKENS, TOKENS[:1], [V - 1, 0]):
        got = talk.ask("score", model=model, tokens=tokens).result()["scores"]
        _sound(got, len(tokens), V)


def byte_order(talk: Talk) -> None:
    """Numbers are little-endian, and the last axis varies fastest."""
    model = talk.model("score")
    wanted = _centred(talk.material().scores(TOKENS))
    got = talk.ask("score", model=model, tokens=TOKENS).result()["scores"]
    if got.shape != wanted.shape:
        raise Broken(f"shape {list(wanted.shape)}", str(list(got.shape)))
    if _near(got, wanted):
        return
    turned = np.ascontiguousarray(got.ravel().reshape(got.shape[::-1]).T)
    for other, what in ((got.byteswap(), "big-endian numbers"), (turned, "the first axis varying fastest")):
        if _near(other, wanted):
            raise Broken("the scores of the checkpoint", f"them with {what}")
    raise NotExercised("the scores are not near those of the checkpoint, whichever way they are read")


def rows_and_columns(talk: Talk) -> None:
    """rows and columns name the part of the scores to return, in their order, repeats included."""
    model, V = talk.model("score"), talk.loaded()["vocab_size"]
    whole = talk.ask("score", model=model, tokens=TOKENS).result()["scores"]
    for rows, columns in (([4, 0], [1, 1, V - 1]), ([2, 2], None), (None, [3]), ([], [0]), ([0], [])):
        part = {name: one for name, one in (("rows", rows), ("columns", columns)) if one is not None}
        got = talk.ask("score", model=model, tokens=TOKENS, **part).result()["scores"]
        wanted = whole if rows is None else whole[rows]
        _same(got, wanted if columns is None else wanted[:, columns], whole, f"rows {rows}, columns {columns}")


def rows_beyond(talk: Talk) -> None:
    """A row or a column that the scores do not have is a protocol error."""
    model, V = talk.model("score"), talk.loaded()["vocab_size"]
    talk.ask("score", model=model, tokens=TOKENS, rows=[len(TOKENS)]).error("protocol")
    talk.ask("score", model=model, tokens=TOKENS, columns=[V]).error("protocol")
    talk.ask("score", model=model, tokens=TOKENS, rows=[-1]).error("protocol")


def refused_tokens(talk: Talk) -> None:
    """An id that the vocabulary does not have is refused, and so is no id at all unless empty_prompt says otherwise."""
    model, V = talk.model("score"), talk.loaded()["vocab_size"]
    for token in (V, -1, 2**40):
        talk.ask("score", model=model, tokens=[1, token]).error("refused")
    if talk.choices.empty_prompt == "refused":
        talk.ask("score", model=model, tokens=[]).error("refused")


def batch(talk: Talk) -> None:
    """score_batch gives an array for each sequence, with its own rows and the same columns."""
    model, V = talk.model("score_batch"), talk.loaded()["vocab_size"]
    sequences = [TOKENS, TOKENS[:2], TOKENS[1:]]
    whole = talk.ask("score_batch", model=model, sequences=sequences).result()["scores"]
    if len(whole) != len(sequences):
        raise Broken(f"{len(sequences)} arrays", str(len(whole)))
    for got, tokens in zip(whole, sequences, strict=True):
        _sound(got, len(tokens), V)
    rows, columns = [[4, 0], [], [1]], [2, 0]
    part = talk.ask("score_batch", model=model, sequences=sequences, rows=rows, columns=columns).result()["scores"]
    for got, all_of_it, some in zip(part, whole, rows, strict=True):
        _same(got, all_of_it[some][:, columns], all_of_it, f"rows {some}, columns {columns}")
    talk.ask("score_batch", model=model, sequences=sequences, rows=[[0]]).error("protocol")
    if talk.ask("score_batch", model=model, sequences=[]).result()["scores"]:
        raise Broken("no arrays for no sequences", "some")


def completions(talk: Talk) -> None:
    """generate gives n completions for each request, in their order, of ids of the vocabulary."""
    _generated(talk, [{"prompt": TOKENS, "max_new_tokens": 3}, {"prompt": [1], "max_new_tokens": 2}])
    _generated(talk, [{"prompt": [1], "max_new_tokens": 2, "n": 3}])
    if talk.ask("generate", model=talk.model(), requests=[]).result()["completions"]:
        raise Broken("no completions for no requests", "some")


def fields_off(talk: Talk) -> None:
    """A field of a request that is null is as if it were absent."""
    request = {"prompt": TOKENS, "max_new_tokens": 3}
    off = dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "seed", "logprobs"))
    first, second = (_generated(talk, [one])[0].tokens for one in (request, request | off))
    if first != second:
        raise Broken(f"the tokens {list(first)}", str(list(second)))


def logprobs(talk: Talk) -> None:
    """With logprobs a completion has the n most probable ids of each step, as pairs of an id and a number."""
    (done,) = _generated(talk, [{"prompt": TOKENS, "max_new_tokens": 2, "logprobs": 3}])
    for step in done.logprobs or ():
        if len(step) < 3 or sum(math.exp(value) for value in step.values()) > 1.01:
            raise Broken("three log-probabilities or more, of at most 1 together", str(dict(step)))


def streamed(talk: Talk) -> None:
    """With stream the pieces of a completion join to its tokens."""
    (done,) = _generated(talk, [{"prompt": TOKENS, "max_new_tokens": 3, "stream": True}])
    joined = [token for piece in done.pieces or () for token in piece]
    if joined != list(done.tokens):
        raise Broken(f"pieces that join to {list(done.tokens)}", str(joined))


def refused_requests(talk: Talk) -> None:
    """generate refuses a prompt with an id that the vocabulary does not have, and n = 0."""
    model, V = talk.model("generate"), talk.loaded()["vocab_size"]
    for wrong in ({"prompt": [V]}, {"prompt": [-1]}, {"prompt": [1], "n": 0}):
        talk.ask("generate", model=model, requests=[{"max_new_tokens": 1, **wrong}]).error("refused")


def _generated(talk: Talk, requests: list[dict[str, Any]]) -> Any:
    model, V = talk.model("generate"), talk.loaded()["vocab_size"]
    answer = talk.ask("generate", model=model, requests=requests)
    if answer.kind == "not-offered":
        raise NotExercised(f"not offered: {answer.message['error'].get('message')}")
    given = answer.result()["completions"]
    try:
        checks.completions(given, [protocol.request(request, "a request") for request in requests], V)
    except Malformed as error:
        raise Broken("completions of these requests", str(error)) from None
    owners = [request for request in requests for _ in range(request.get("n", 1))]
    for one, request in zip(given, owners, strict=True):
        if len(one.tokens) > request["max_new_tokens"]:
            raise Broken(f"at most {request['max_new_tokens']} new tokens", f"{list(one.tokens)}")
    return given


def _sound(got: Any, rows: int, columns: int) -> None:
    try:
        checks.score_values(checks.score_shape(got, rows, columns), None, None)
    except Malformed as error:
        raise Broken(f"finite scores of shape [{rows}, {columns}]", str(error)) from None


def _same(got: Any, wanted: Any, whole: Any, what: str) -> None:
    """Raise Broken unless two arrays hold the same, up to what another pass rounds."""
    if got.shape != wanted.shape:
        raise Broken(f"shape {list(wanted.shape)} for {what}", str(list(got.shape)))
    spread = float(np.std(whole[np.isfinite(whole)]))
    with np.errstate(invalid="ignore"):
        if wanted.size and not (np.abs(got - wanted) <= NEAR * spread).all():
            raise Broken(f"the part {what} of the scores", f"other numbers, first {got.ravel()[:3].tolist()}")


def _centred(values: Any) -> Any:
    with np.errstate(all="ignore"):
        wide = np.asarray(values, np.float64)
        return wide - wide.mean(axis=-1, keepdims=True)


def _near(got: Any, wanted: Any) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.std(_centred(got) - wanted) < NEAR * np.std(wanted))


def _cut_off(path: Path, folder: Path) -> Path:
    """A copy of a checkpoint whose weights end too early."""
    copy = folder / path.name
    if path.is_dir():
        shutil.copytree(path, copy)
    else:
        shutil.copy(path, copy)
    weights = copy / "model.safetensors" if copy.is_dir() else copy
    weights.write_bytes(weights.read_bytes()[:-100])
    return copy
