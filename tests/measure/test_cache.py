"""The section on the cache: what a token costs, in caches that grow by tokens, by pages, unevenly or not at all."""

import pytest
from sheets import differing, outcomes, sheet

from lmconform.engines.reference import Reference, ReferenceSession
from lmconform.measure.cache import cache
from lmconform.measure.sheet import Outcome

ONE_SLOT_MORE = 1  # the reference writes padding to a slot of its own


class _Session(ReferenceSession):
    """Counts the slots that another kind of cache would have allocated."""

    def slots(self, length: int) -> int:
        raise NotImplementedError

    def cache_bytes(self) -> int:
        held = self._open()
        return held.nbytes // (held.capacity + ONE_SLOT_MORE) * self.slots(held.lengths[0])


class _ByPages(_Session):
    def slots(self, length: int) -> int:
        return -(-length // 32) * 32


class _ByDoubling(_Session):
    def slots(self, length: int) -> int:
        return 1 << (length - 1).bit_length()


class Paged(Reference):
    """Pages of 32 tokens."""

    session_class = _ByPages


class Doubling(Reference):
    """A cache that doubles when it is full."""

    session_class = _ByDoubling


@pytest.mark.parametrize(
    ("engine", "options", "cost", "growth"),
    [
        ("reference", {}, "1024", "constant, room for 137 tokens"),
        ("reference", {"dtype": "bfloat16"}, "512", "constant, room for 137 tokens"),
        ("transformers", {}, "1024", "token by token"),
        (f"{__name__}:Paged", {}, "1024", "by pages of 32 tokens"),
    ],
)
def test_a_token_costs_its_keys_and_values(engine: str, options: dict[str, str], cost: str, growth: str) -> None:
    lines = sheet(cache, "stop-tape", engine, **options)
    assert outcomes(lines) == {Outcome.EQUAL}
    assert (lines["bytes a token"].measured, lines["growth"].measured) == (cost, growth)
    assert lines["bytes a token"].uncertainty == "0.5"


def test_a_static_cache_costs_what_follows_its_room() -> None:
    lines = sheet(cache, "stop-tape", "transformers", cache="static")
    assert lines["bytes a token"].outcome is Outcome.EQUAL
    assert lines["growth"].measured == "constant, room for 136 tokens"
    assert lines["truncate to half"].outcome is Outcome.NOT_OFFERED


def test_a_cache_that_doubles_has_no_cost_a_token() -> None:
    lines = sheet(cache, "stop-tape", f"{__name__}:Doubling")
    assert lines["bytes a token"].outcome is Outcome.NOT_RESOLVABLE
    assert lines["growth"].measured == "unevenly, at 2, 3, 5, 9, 17, 33 tokens"


def test_a_cache_of_all_query_heads_is_named_by_its_size() -> None:
    lines = sheet(cache, "stop-tape", "lmconform.faults.grouped_query_attention:CachesRepeatedHeads")
    assert differing(lines) == {"bytes a token": "2048"}
    assert "2 times the keys and values of 2 KV heads" in lines["bytes a token"].note
