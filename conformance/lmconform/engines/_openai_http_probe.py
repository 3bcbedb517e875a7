"""Finding out what a server offers: by asking it, one question after the other, and looking at what it does.

Servers ignore fields that they do not know, so that an answer alone says little. What counts is the effect: a stop id
that ends the row, a filter that leaves one id, a seed that repeats itself. The questions are asked on a stop tape, a
checkpoint of this suite whose greedy continuation is known and whose ids have texts of their own; where the weights
are fixed, on whatever the server continues a prompt with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from lmconform.adapter import Completion, NotOffered, Refused, Request
from lmconform.checkpoints.eos import CONFIG, EOS, EOS_EDITS, GENERATION, TOKENIZER
from lmconform.checkpoints.gguf import SUFFIX, write_gguf
from lmconform.checkpoints.tape import stop_tape
from lmconform.engines._openai_http_client import ServerFault
from lmconform.engines._openai_http_offer import NO_LIMIT, Form, Ids, Offer, Prompt

STEPS = 6
HOT = 2.0
"""The highest temperature that OpenAI's interface has, and vLLM takes."""
QUIET = 1 / 32
"""Of the tape's head: at ``HOT`` its ids are nearly equally probable, so that only a filter leaves the greedy one."""
WIDTHS = (101, 20, 5, 1)
"""Log-probabilities a step that are asked for in turn: the whole vocabulary of the tape, and usual limits."""
FEW = 64
"""Ids that fixed weights surely have: prompts are made of lower ones."""

Ask = Callable[[Offer, Request], list[Completion]]
"""Sends one request in the words of an offer. Raises Refused, NotOffered or a ServerFault."""
Score = Callable[[Offer, Sequence[int]], Any]
"""Asks for the scores [T, V] of a prompt. Raises as ``Ask``, and NotOffered where an id has none."""


@dataclass(frozen=True)
class Ground:
    """The checkpoint that the questions are asked on."""

    prompt: tuple[int, ...]
    eos_prompts: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    """A file of the checkpoint, the EOS id that it alone names, and a prompt after which this id comes second."""


def tape_checkpoint(folder: Path, form: Literal["hf", "gguf"]) -> tuple[Path, Ground]:
    """Write the stop tape of the questions, each of whose files names another EOS id, and say what to ask on it."""
    tape = stop_tape()
    checkpoint = EOS_EDITS["eos-apart"](tape.checkpoint)
    head = {"lm_head.weight": np.float32(QUIET) * checkpoint.weights["lm_head.weight"]}
    checkpoint = replace(checkpoint, weights={**checkpoint.weights, **head})
    files = ((GENERATION, EOS[0]), (CONFIG, EOS[1]), (TOKENIZER, EOS[2]))
    starts = tuple((name, token, (tape.before(token, 2),)) for name, token in files)
    free = next(
        last
        for last in range(50, tape.checkpoint.vocab_size)  # each of these and of what follows is one character
        if not {*EOS} & {last, *tape.play(last, 2 * STEPS)}
    )
    path = folder / ("tape" + SUFFIX) if form == "gguf" else folder / "tape"
    written = write_gguf(checkpoint, path) if form == "gguf" else checkpoint.write(path)
    return written, Ground((free,), starts)


def fixed_ground() -> Ground:
    """What to ask where the weights are whatever the server has."""
    return Ground(tuple(range(7, FEW, 9)))


class Probe:
    """The questions to one server, and what they have shown so far."""

    def __init__(self, ask: Ask, score: Score, ground: Ground, max_length: int | None) -> None:
        self._ask, self._score, self._ground, self._max_length = ask, score, ground, max_length
        self.offer = Offer()
        self._script: tuple[int, ...] = ()

    def basics(self, prompt: Prompt) -> str | None:
        """Find how to ask at all, with prompts of this kind; return why it cannot be, or None."""
        reasons = []
        for form in get_args(Form):
            self.offer = Offer(prompt=prompt, form=form)
            try:
                self._ask(self.offer, self._request())
            except (Refused, NotOffered, ServerFault) as reason:
                reasons.append(f"settings as {form}: {reason}")
                continue
            return self._ids()
        return "; ".join(reasons)

    def details(self) -> Offer:
        """Ask everything else."""
        self._width()
        self._kept("stream", {"stream": True}, lambda got: got.tokens == self._script and got.pieces is not None)
        self._sampling()
        self._stops()
        self._eos()
        self._limits()
        self._scores()
        return self.offer

    def _request(self, **settings: Any) -> Request:
        return Request(**{"prompt": self._ground.prompt, "max_new_tokens": STEPS, **settings})

    def _ids(self) -> str | None:
        """Find where the new ids stand. The tape's greedy ids are known; of fixed weights, only that there are some."""
        reasons = []
        for way in get_args(Ids):
            offer = replace(self.offer, ids=cast(Ids, way), logprobs=1)
            if way == "chunks":
                offer = offer.having("stream")
            try:
                (done,) = self._ask(offer, self._request())
            except (Refused, NotOffered, ServerFault) as reason:
                reasons.append(str(reason))
                continue
            if done.tokens:
                self.offer, self._script = replace(offer, logprobs=0, abilities=frozenset()), done.tokens
                return None
        told = "the new ids cannot be told, not from token_ids, log-probabilities, or a stream of one token a chunk"
        return ": ".join([told, *reasons])

    def _width(self) -> None:
        """How many log-probabilities a step it gives, asked for 101, 20, 5 and 1."""
        reason = "it answers without any"
        for width in WIDTHS:
            trial = replace(self.offer, logprobs=width)
            try:
                (done,) = self._ask(trial, self._request(max_new_tokens=2, logprobs=width))
            except (Refused, NotOffered, ServerFault) as error:
                reason = str(error)
                continue
            least = min((len(step) for step in done.logprobs or ()), default=0)
            if least >= width:
                whole = self.offer.logprobs == 0 and width == WIDTHS[0]
                self.offer = replace(trial, logprobs=NO_LIMIT if whole else width)
                return
            reason = f"asked for {width} a step, it gives {least}"
        self.offer = replace(self.offer, missing={**self.offer.missing, "logprobs": reason})

    def _kept(self, ability: str, settings: dict[str, Any], shows: Callable[[Completion], bool]) -> Completion | None:
        """Ask with ``settings``; the server has the ability if what comes back ``shows`` it. Return that."""
        trial = self.offer.having(ability)
        try:
            done = self._ask(trial, self._request(**settings))
        except (Refused, NotOffered, ServerFault) as reason:
            self.offer = self.offer.lacking(ability, f"it was asked, and: {reason}")
            return None
        if not all(shows(one) for one in done):
            self.offer = self.offer.lacking(ability, "it was asked, and the answer does not show it")
            return None
        self.offer = trial
        return done[0]

    def _sampling(self) -> None:
        greedy = self._script
        hot: dict[str, Any] = {"temperature": HOT, "max_new_tokens": 2 * STEPS}
        self._kept("sampling", hot, lambda got: got.tokens[:STEPS] != greedy)
        if "sampling" not in self.offer:
            return
        for name, value in (("top_k", 1), ("top_p", 1e-6), ("min_p", 1.0)):
            self._kept(name, {"temperature": HOT, name: value}, lambda got: got.tokens == greedy)
        self._seed()
        self._kept("n", {"n": 2}, lambda got: got.tokens == greedy)
        self._stage()

    def _seed(self) -> None:
        first = self._kept("seed", {"temperature": HOT, "seed": 1}, lambda got: bool(got.tokens))
        if first is None:
            return
        again = [self._ask(self.offer, self._request(temperature=HOT, seed=seed))[0].tokens for seed in (1, 2)]
        same, other = (tokens == first.tokens for tokens in again)
        if not same or other:
            what = "the same seed gives other tokens" if not same else "another seed gives the same tokens"
            self.offer = self.offer.lacking("seed", f"it was asked, and {what}")

    def _stage(self) -> None:
        """Temperature 2 halves the lead of the first id over the second, if the log-probabilities are processed."""
        if self.offer.logprobs < 2:
            return
        try:
            (plain,), (warm,) = (
                self._ask(self.offer, self._request(max_new_tokens=1, logprobs=2, temperature=value))
                for value in (None, 2.0)
            )
        except (Refused, NotOffered, ServerFault):
            return
        one, other = (sorted((done.logprobs or ({},))[0].values())[-2:] for done in (plain, warm))
        if len(one) == len(other) == 2 and one[1] > one[0]:
            ratio = (other[1] - other[0]) / (one[1] - one[0])
            stage = "raw" if abs(ratio - 1) < 0.1 else "processed" if abs(ratio - 0.5) < 0.1 else "unspecified"
            self._choose(logprobs=stage)

    def _stops(self) -> None:
        script = self._script
        first = next((n for n in range(1, len(script)) if script[n] not in script[:n]), None)
        if first is None:
            for ability in ("stop_ids", "min_tokens", "stop_strings"):
                self.offer = self.offer.lacking(ability, "it continues the prompt of the question with one token alone")
            return
        ends = (script[: first + 1], script[:first])
        got = self._kept("stop_ids", {"stop_ids": (script[first],)}, lambda one: one.tokens in ends)
        if got is not None:
            self._choose(stop_token="returned" if got.tokens == ends[0] else "dropped")
            self._minimum()
        else:
            self.offer = self.offer.lacking("min_tokens", "it is asked with a stop id, which the server does not take")
        self._strings(first, got)

    def _minimum(self) -> None:
        """A stop id is asked for that comes at once, and a least number of tokens that is one more."""
        early = self._script[0]
        got = self._kept(
            "min_tokens",
            {"stop_ids": (early,), "min_new_tokens": 2, "max_new_tokens": 3},
            lambda one: len(one.tokens) == 3,
        )
        if got is not None:
            self._choose(min_tokens="ignore" if got.tokens[0] == early else "mask")

    def _strings(self, first: int, by_id: Completion | None) -> None:
        """The text of one token, so that nothing but the string can end the row there."""
        try:
            (before,), (after,) = (
                self._ask(self.offer, self._request(max_new_tokens=count)) for count in (first, first + 1)
            )
        except (Refused, NotOffered, ServerFault):
            return
        string = (after.text or "").removeprefix(before.text or "")
        self._string(string, before, after, by_id)

    def _string(self, string: str, before: Completion, after: Completion, by_id: Completion | None) -> None:
        """Ask for the stop string, and again in a stream if tokens are left out of the whole answer."""

        def shows(got: Completion) -> bool:
            return bool(string) and got.finish_reason == "stop" and got.text in (before.text, after.text)

        got = self._kept("stop_strings", {"stop_strings": (string,)}, shows)
        if got is not None and got.tokens != after.tokens and "stream" in self.offer:
            self.offer = replace(self.offer, streams_stops=True)
            got = self._kept("stop_strings", {"stop_strings": (string,)}, shows)
        if got is None:
            return
        if got.tokens != after.tokens:
            told = f"the tokens that complete one are not all returned: {len(got.tokens)} of {len(after.tokens)} came"
            self.offer = replace(self.offer.lacking("stop_strings", f"it was asked, and {told}"), streams_stops=False)
            return
        texts = {one.text == after.text for one in (got, by_id) if one is not None}
        if len(texts) == 1:
            self._choose(stop_text="returned" if texts.pop() else "dropped")

    def _eos(self) -> None:
        """Which file's EOS id ends a row, and whether rows can pass it."""
        if not self._ground.eos_prompts and self.offer.form == "fields":
            self.offer = self.offer.having("eos_off")  # fixed weights cannot show it: the field is sent, and trusted
        ended: list[str] = []
        for name, _, prompt in self._ground.eos_prompts:
            try:
                (got,) = self._ask(self.offer, Request(prompt, STEPS, eos=True))
                (passed,) = self._ask(self.offer, Request(prompt, STEPS))
            except (Refused, NotOffered, ServerFault):
                continue
            if len(got.tokens) <= 2:
                ended.append(name)
                if len(passed.tokens) != STEPS:
                    self.offer = self.offer.lacking("eos_off", "it was asked, and the row ends at the EOS id")
                elif "eos_off" not in self.offer.missing:
                    self.offer = self.offer.having("eos_off")
        if ended:
            self._choose(eos_files=tuple(ended))
        if "stop_ids" in self.offer and ended:
            self._eos_beside_ids(ended[0])

    def _eos_beside_ids(self, name: str) -> None:
        prompt = next(start for file, _, start in self._ground.eos_prompts if file == name)
        idle = self._ground.prompt[-1]
        self._kept(
            "eos_beside_ids",
            {"prompt": prompt, "eos": True, "stop_ids": (idle,)},
            lambda got: len(got.tokens) <= 2,
        )

    def _limits(self) -> None:
        """No tokens, a prompt that is too long, and a continuation that becomes it."""
        self._choose(zero_tokens=self._outcome(self._request(max_new_tokens=0), {0: "empty"}))
        if self._max_length is None:
            return
        most = self._max_length
        long = Request(self._ground.prompt * (most + 1), 1)
        self._choose(long_prompt=self._outcome(replace(long, prompt=long.prompt[: most + 1]), {0: "empty"}))
        near = replace(long, prompt=long.prompt[: most - 2], max_new_tokens=8)
        self._choose(long_continuation=self._outcome(near, {2: "stops", 3: "stops"}))

    def _outcome(self, request: Request, counts: dict[int, str]) -> str:
        """What becomes of the request: refused, or named by the number of tokens that come."""
        try:
            (got,) = self._ask(self.offer, request)
        except Refused:
            return "refused"
        except (NotOffered, ServerFault):
            return "unspecified"
        return counts.get(len(got.tokens), "unspecified")

    def _scores(self) -> None:
        """Scores of a prompt, for all ids, in one of two ways."""
        if not self.offer.logprobs:
            return
        for way in ("prompt_logprobs", "echo"):
            trial = replace(self.offer, score=way)
            try:
                self._score(trial, self._ground.prompt * 2)
            except (Refused, NotOffered, ServerFault) as reason:
                self.offer = replace(self.offer, missing={**self.offer.missing, f"scores by {way}": str(reason)})
                continue
            self.offer = replace(trial, choices=replace(trial.choices, scores="log-probabilities"))
            return

    def _choose(self, **choices: Any) -> None:
        self.offer = replace(self.offer, choices=replace(self.offer.choices, **choices))
