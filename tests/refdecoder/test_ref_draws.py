"""Draws of a whole batch on the device, against the sampler of one row."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.stats import chi2

from refdecoder import CausalLM, InputError, Request, Sampler, Stops, build
from refdecoder.config import DecoderConfig, Rope
from refdecoder.fast.draws import Draws, Kind
from refdecoder.generate import Row

CPU = torch.device("cpu")
SAMPLERS = st.builds(
    Sampler,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 2, 5, 100]),
    # Thresholds that no sum of these probabilities meets, so that rounding decides nothing.
    top_p=st.sampled_from([None, 0.0, 0.0917, 0.3141, 0.5772, 0.9173, 0.99937, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.01234, 0.2345, 0.876, 1.0]),
)


def model_of(vocab_size: int) -> CausalLM:
    """A model that is asked for its sizes alone."""
    sizes = DecoderConfig(vocab_size, 4, 4, 1, 1, 1, 4, 1_000_000, 1e-6, Rope())
    with torch.device("meta"):
        model = build(sizes)
    model.embed_tokens.to_empty(device="cpu")
    return model


def rows_of(vocab_size: int, requests: list[Request]) -> list[Row]:
    model = model_of(vocab_size)
    return [Row(model, index, request, None) for index, request in enumerate(requests)]


def made(vocab_size: int, requests: list[Request], spare: int = 0) -> tuple[Draws, Kind]:
    """The draws of ``requests``, and of some rows without one."""
    draws = Draws(len(requests) + spare, max(one.max_new_tokens for one in requests), vocab_size, CPU)
    return draws, draws.set(rows_of(vocab_size, requests))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    table=st.integers(1, 12).flatmap(
        lambda V: st.lists(
            st.tuples(
                st.lists(st.sampled_from([-3.0, -1.5, 0.0, 0.25, 1.0, 2.0, 7.0]), min_size=V, max_size=V), SAMPLERS
            ),
            min_size=1,
            max_size=4,
        )
    )
)
def test_filters_are_those_of_each_row(table: list[tuple[list[float], Sampler]]) -> None:
    logits = torch.tensor([row for row, _ in table], dtype=torch.float32)
    draws, _ = made(logits.shape[1], [Request([0], 1, sampler) for _, sampler in table])
    p, ids = draws.filtered(logits.double() / draws.settings[0])
    got = torch.zeros_like(p).scatter(1, ids, p / p.sum(dim=-1, keepdim=True))
    wanted = torch.stack([sampler.probabilities(row) for row, (_, sampler) in zip(logits, table, strict=True)])
    np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-12, atol=0)


def test_a_mass_of_one_keeps_the_tail() -> None:
    """exp(-60) vanishes beside 1 in any sum of float64, but top_p = 1 filters nothing."""
    draws, _ = made(2, [Request([0], 1, Sampler(1.0, top_p=1.0))])
    p, _ = draws.filtered(torch.tensor([[0.0, -60.0]], dtype=torch.float64) / draws.settings[0])
    assert float(p[0, 1]) == pytest.approx(np.exp(-60.0), rel=1e-9, abs=0)


def test_equals_keep_the_lower_ids_in_a_long_row() -> None:
    draws, _ = made(50_000, [Request([0], 1, Sampler(1.0, top_k=10))])
    p, ids = draws.filtered(torch.zeros(1, 50_000, dtype=torch.float64) / draws.settings[0])
    assert ids[p > 0].tolist() == list(range(10))


@pytest.mark.parametrize("filtered", [False, True])
def test_an_id_is_where_the_random_number_falls(filtered: bool) -> None:
    """Shares 1/2, 1/4, 1/8, 1/8 and one that is 0: both ends of each share, and numbers at the ends of their range."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125, 0.0]], dtype=torch.float64).log2() * np.log(2)
    sampler = Sampler(1.0, top_p=0.99999) if filtered else Sampler(1.0)
    draws, kind = made(5, [Request([0], 1, sampler)])
    assert kind == Kind(sampled=True, filtered=filtered, masked=False, logprobs=None)
    least = 2.0**-53
    cases = [(least, 0), (0.49999, 0), (0.50001, 1), (0.74999, 1), (0.75001, 2), (0.87501, 3), (1.0, 3)]
    for number, wanted in cases:
        draws.uniform.fill_(number)
        assert draws.draw(logits, torch.tensor([0]), kind).tolist() == [wanted]


def test_random_numbers_are_never_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *sizes, **options: torch.zeros(*sizes, dtype=options["dtype"]))
    draws, _ = made(5, [Request([0], 7, Sampler(1.0))])
    assert (draws.uniform == 1).all()


CASES = [
    Sampler(1.3),
    Sampler(1.3, top_k=4),
    Sampler(0.7, top_p=0.8),
    Sampler(2.0, min_p=0.2),
    Sampler(1.0, 5, 0.9, 0.05),
]


@pytest.mark.parametrize("together", [False, True])
def test_draws_follow_the_distribution_of_the_sampler(together: bool) -> None:
    """A G test a row, with 2,000 draws each: false alarms at 1e-6 a row, and the seeds are fixed."""
    logits = torch.randn(len(CASES), 9, generator=torch.Generator().manual_seed(3)) * 1.5
    n, groups = 2_000, [list(range(len(CASES)))] if together else [[b] for b in range(len(CASES))]
    for group in groups:
        draws, kind = made(9, [Request([0], n, CASES[b], seed=17 + b) for b in group])
        drawn = torch.stack([draws.draw(logits[group], torch.tensor([i]), kind) for i in range(n)], dim=1)  # [B, n]
        for b, row in zip(group, drawn, strict=True):
            p = CASES[b].probabilities(logits[b]).numpy()
            counts = np.bincount(row.numpy(), minlength=9)
            assert counts[p == 0].sum() == 0
            kept = p > 0
            ratio = np.where(counts[kept] > 0, counts[kept] / (n * p[kept]), 1)
            G = 2 * (counts[kept] * np.log(ratio)).sum()
            assert n * p[kept].min() > 5  # so that the distribution of G is near its limit
            assert chi2.sf(G, kept.sum() - 1) > 1e-6
            pairs = np.bincount(row.numpy()[:-1] * 9 + row.numpy()[1:], minlength=81)  # each draw and the next
            both = np.outer(p, p).ravel()
            sure = both * n > 5
            assert (np.abs(pairs - n * both)[sure] <= 5 * np.sqrt(n * both * (1 - both))[sure]).all()


def test_rows_may_differ_in_all_settings() -> None:
    """Greedy rows, sampled ones, one that may not stop at first, and a row without a request."""
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]]).repeat(5, 1)
    requests = [
        Request([0], 3),
        Request([0], 3, Sampler(5.0, top_k=1)),
        Request([0], 3, Sampler(0.0, top_k=2), Stops(ids=(1, 77), min_new_tokens=2)),
        Request([0], 3, Sampler(0.01), Stops(ids=(1, 2), min_new_tokens=1), seed=1),
    ]
    draws, kind = made(4, requests, spare=1)
    assert kind == Kind(sampled=True, filtered=True, masked=True, logprobs=None)
    drawn = [draws.draw(logits, torch.tensor([count]), kind).tolist() for count in range(3)]
    assert drawn[0] == [1, 1, 2, 3, 1]
    assert drawn[1][:3] == [1, 1, 2]
    assert drawn[1][3] in (1, 2)
    assert drawn[2][:3] == [1, 1, 1]


@pytest.mark.parametrize(
    ("requests", "kind"),
    [
        ([Request([0]), Request([0], sampler=Sampler(0.0, 5, 0.5, 0.5))], Kind(False, False, False, None)),
        ([Request([0], logprobs=0), Request([0], logprobs=3)], Kind(False, False, False, 3)),
        ([Request([0]), Request([0], sampler=Sampler(1.0))], Kind(True, False, False, None)),
        ([Request([0], sampler=Sampler(1.0, top_p=0.0))], Kind(True, True, False, None)),
        ([Request([0], stops=Stops(min_new_tokens=1))], Kind(False, False, True, None)),
    ],
)
def test_what_no_row_asks_for_is_left_out(requests: list[Request], kind: Kind) -> None:
    assert made(5, requests)[1] == kind


def test_a_second_batch_keeps_nothing_of_the_first() -> None:
    draws, _ = made(5, [Request([0], 4, Sampler(1.0, 2, 0.5, 0.5), Stops((1,), min_new_tokens=2), seed=1)] * 2)
    draws.set(rows_of(5, [Request([0], 4)]))
    assert draws.greedy.tolist() == [True, True]
    kind = draws.set(rows_of(5, [Request([0], 4), Request([0], 4, Sampler(1.0), seed=2)]))
    assert kind == Kind(sampled=True, filtered=False, masked=False, logprobs=None)
    logits = torch.zeros(2, 5)
    p, ids = draws.filtered(logits.double() / draws.settings[0])
    assert torch.equal(p, torch.full_like(p, 0.2))
    assert torch.equal(ids, draws.ids.expand(2, 5))
    assert not draws.stop_ids.any()
    assert not draws.least.any()


def test_what_is_no_number_is_told() -> None:
    draws, kind = made(3, [Request([0], 1, Sampler(1.0)), Request([0], 1, Sampler(1.0)), Request([0], 1)])
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, float("nan"), 2.0], [0.0, float("nan"), 2.0]])
    got = draws.draw(logits, torch.tensor([0]), kind).tolist()
    assert got[1:] == [-1, 1]
    assert got[0] >= 0


def test_seeds_are_of_the_rows() -> None:
    requests = [Request([0], 50, Sampler(1.0), seed=seed) for seed in (3, 4, 3)]
    draws, _ = made(5, requests)
    assert torch.equal(draws.uniform[0], draws.uniform[2])
    assert not torch.equal(draws.uniform[0], draws.uniform[1])
    free, _ = made(5, [Request([0], 50, Sampler(1.0))] * 2)
    assert not torch.equal(free.uniform[0], free.uniform[1])


def test_nothing_left_to_draw_is_refused() -> None:
    with pytest.raises(InputError, match="All 3 ids are stop ids"):
        made(3, [Request([0], 4), Request([0], 4, stops=Stops((0, 1, 2), min_new_tokens=1))])
