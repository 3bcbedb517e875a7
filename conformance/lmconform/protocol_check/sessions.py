"""Rules of sessions: chunks, copies, cuts, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmconform.protocol_check.models import NEAR, TOKENS
from lmconform.protocol_check.rules import Broken
from lmconform.protocol_check.talk import Talk


def chunks(talk: Talk) -> None:
    """extend gives a row for each token of its chunk, and the session goes on from there."""
    first, second = (talk.session() for _ in range(2))
    whole = _extend(talk, first, TOKENS)
    parts = [_extend(talk, second, chunk) for chunk in (TOKENS[:2], TOKENS[2:])]
    _same(np.concatenate(parts), whole, "in two chunks")


def chunk_parts(talk: Talk) -> None:
    """rows and columns of extend are a part of its chunk; a wrong one is a protocol error and extends nothing."""
    session, V = talk.session(), talk.loaded()["vocab_size"]
    whole = _extend(talk, talk.session(), TOKENS)
    talk.ask("extend", session=session, tokens=TOKENS[:2], rows=[2]).error("protocol")
    talk.ask("extend", session=session, tokens=TOKENS[:2], columns=[V]).error("protocol")
    _same(_extend(talk, session, TOKENS[:2], rows=[]), whole[:0], "with no rows")
    _same(_extend(talk, session, TOKENS[2:], rows=[2, 0]), whole[[4, 2]], "of some rows")
    _same(_extend(talk, talk.session(), TOKENS, columns=[1, 0]), whole[:, [1, 0]], "of some columns")


def refused_chunks(talk: Talk) -> None:
    """A refused chunk leaves the session as it was."""
    session, V = talk.session(), talk.loaded()["vocab_size"]
    whole = _extend(talk, talk.session(), TOKENS)
    _extend(talk, session, TOKENS[:3])
    for wrong in ([], [V], [1, -1], [1, 2**40]):
        talk.ask("extend", session=session, tokens=wrong).error("refused")
    _same(_extend(talk, session, TOKENS[3:]), whole[3:], "after refused ones")


def forks(talk: Talk) -> None:
    """A fork has a handle of its own, and neither of the two knows of the other."""
    session = talk.session("fork")
    whole = _extend(talk, talk.session(), TOKENS)
    _extend(talk, session, TOKENS[:3])
    copy = talk.ask("fork", session=session).result()["session"]
    if copy == session:
        raise Broken("another handle", str(copy))
    _extend(talk, session, [1])
    _same(_extend(talk, copy, TOKENS[3:]), whole[3:], "in a fork")


def truncation(talk: Talk) -> None:
    """A session that was cut goes on from there; to cut it to more than it holds is refused, and changes nothing."""
    session = talk.session("truncate")
    whole = _extend(talk, talk.session(), TOKENS)
    _extend(talk, session, [*TOKENS[:3], 1, 1])
    for wrong in (6, -1, 2**40):
        talk.ask("truncate", session=session, length=wrong).error("refused")
    talk.ask("truncate", session=session, length=3).result()
    _same(_extend(talk, session, TOKENS[3:]), whole[3:], "after a cut")
    talk.ask("truncate", session=session, length=0).result()
    _same(_extend(talk, session, TOKENS), whole, "after a cut to nothing")


def bytes_of_the_cache(talk: Talk) -> None:
    """cache_bytes is a number of bytes, more than none where there are tokens."""
    session = talk.session("cache_bytes")
    _extend(talk, session, TOKENS)
    if not talk.ask("cache_bytes", session=session).result()["cache_bytes"]:
        raise Broken("more than 0 bytes for 5 tokens", "0")


def closed_session(talk: Talk) -> None:
    """The handle of a closed session names nothing: a protocol error. Others stay open."""
    session, other = talk.session(), talk.session()
    talk.ask("close", session=session).result()
    talk.ask("extend", session=session, tokens=TOKENS).error("protocol")
    talk.ask("close", session=session).error("protocol")
    _extend(talk, other, TOKENS)
    if talk.session() == session:
        raise Broken("a handle that was not given out before", str(session))


def _extend(talk: Talk, session: int, tokens: list[int], **part: list[int]) -> Any:
    got = talk.ask("extend", session=session, tokens=tokens, **part).result()["scores"]
    shape = (len(part.get("rows", tokens)), len(part.get("columns", range(talk.loaded()["vocab_size"]))))
    if got.shape != shape:
        raise Broken(f"shape {list(shape)}", str(list(got.shape)))
    return got


def _same(got: Any, wanted: Any, what: str) -> None:
    if got.shape != wanted.shape or (got.size and not np.abs(got - wanted).max() <= NEAR * np.std(wanted)):
        raise Broken(f"the scores of one pass, {what}", f"others, first {got.ravel()[:3].tolist()}")
