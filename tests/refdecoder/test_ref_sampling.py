"""The sampler against filters written out with Python sets, and its draws against its probabilities."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from refdecoder import InputError, Request, Sampler, Stops, generate, load


def by_hand(logits: list[float], sampler: Sampler) -> np.ndarray:
    """Probabilities after all filters, id by id."""
    scaled = np.array(logits) / sampler.temperature
    p = {i: float(x) for i, x in enumerate(np.exp(scaled - scaled.max()))}

    def shared() -> dict[int, float]:
        return {i: x / sum(p.values()) for i, x in p.items()}

    p = shared()
    order = sorted(p, key=lambda i: (-p[i], i))
    if sampler.top_k is not None:
        p = {i: p[i] for i in order[: sampler.top_k]}
        p = shared()
    if sampler.top_p is not None and sampler.top_p < 1:
        kept, mass = [], 0.0
        for i in [i for i in order if i in p]:
            kept.append(i)
            mass += p[i]
            if mass >= sampler.top_p:
                break
        p = {i: p[i] for i in kept}
        p = shared()
    if sampler.min_p is not None:
        p = {i: x for i, x in p.items() if x >= sampler.min_p * max(p.values())}
        p = shared()
    return np.array([p.get(i, 0.0) for i in range(len(logits))])


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    logits=st.lists(st.sampled_from([-3.0, -1.5, 0.0, 0.25, 1.0, 2.0, 7.0]), min_size=1, max_size=12),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 2, 5, 100]),
    # Thresholds that no sum of these probabilities meets, so that rounding decides nothing.
    top_p=st.sampled_from([None, 0.0, 0.0917, 0.3141, 0.5772, 0.9173, 0.99937, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.01234, 0.2345, 0.876, 1.0]),
)
def test_filters_are_those_by_hand(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    sampler = Sampler(temperature, top_k, top_p, min_p)
    got = sampler.probabilities(torch.tensor(logits, dtype=torch.float32))
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), by_hand(logits, sampler), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("sampler", "kept"),
    [
        (Sampler(1.0, top_p=0.5), [0]),
        (Sampler(1.0, top_p=0.6), [0, 1]),
        (Sampler(1.0, top_p=0.0), [0]),
        (Sampler(1.0, top_k=2, top_p=0.6), [0]),  # top_k comes first: 0.5 of 0.75 reaches 0.6
        (Sampler(1.0, min_p=0.5), [0, 1]),
        (Sampler(1.0, top_k=3), [0, 1, 2]),  # ids 2 and 3 are equal: the lower stays
        (Sampler(0.5, top_p=0.7), [0]),  # temperature comes first: squares 1/4, 1/16, 1/64, 1/64 ...
    ],
)
def test_a_case_to_check_by_hand(sampler: Sampler, kept: list[int]) -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log2() * np.log(2)
    assert sampler.probabilities(logits).nonzero().flatten().tolist() == kept


def test_a_mass_of_one_keeps_the_tail() -> None:
    """exp(-60) vanishes beside 1 in any sum of float64, but top_p = 1 filters nothing."""
    p = Sampler(1.0, top_p=1.0).probabilities(torch.tensor([0.0, -60.0]))
    assert float(p[1]) == pytest.approx(np.exp(-60.0), rel=1e-9, abs=0)


def test_equals_keep_the_lower_ids_in_a_long_row() -> None:
    p = Sampler(1.0, top_k=10).probabilities(torch.zeros(50_000))
    assert p.nonzero().flatten().tolist() == list(range(10))


@pytest.mark.parametrize("temperature", [None, 0, 0.0])
def test_greedy_takes_the_first_of_the_greatest(temperature: float | None) -> None:
    logits = torch.tensor([1.0, 3.0, 3.0, 2.0])
    assert int(Sampler(temperature, top_k=3, top_p=0.1).draw(logits, torch.Generator())) == 1


def test_draws_follow_the_probabilities() -> None:
    sampler, logits, n = Sampler(1.3, top_k=4), torch.tensor([0.0, 1.0, 2.0, -1.0, -5.0]), 8_000
    generator = torch.Generator().manual_seed(7)
    counts = np.bincount([int(sampler.draw(logits, generator)) for _ in range(n)], minlength=5)
    p = sampler.probabilities(logits).numpy()
    assert counts[4] == 0
    # Five standard deviations: a false alarm once in some million seeds, and the seed is fixed.
    assert (np.abs(counts - n * p) <= 5 * np.sqrt(n * p * (1 - p))).all()


def test_rows_have_their_own_randomness(llama: object) -> None:
    model, sampler = load(str(llama), torch.float64), Sampler(1.0)
    alone = [generate(model, [Request([1, 2], 12, sampler, seed=seed)])[0].tokens for seed in (3, 4)]
    batch = generate(model, [Request([1, 2], 12, sampler, seed=seed) for seed in (3, 4, 3)])
    assert [one.tokens for one in batch] == [alone[0], alone[1], alone[0]]
    assert alone[0] != alone[1]
    free = [one.tokens for one in generate(model, [Request([1, 2], 12, sampler)] * 2)]
    assert free[0] != free[1]


def test_rows_may_differ_in_all_settings(llama: object) -> None:
    model = load(str(llama), torch.float64)
    requests = [
        Request([1, 2], 9, Sampler(5.0), seed=1),
        Request([1, 2], 9),
        Request([1, 2], 9, Sampler(5.0, top_k=1), seed=1),
        Request([1, 2], 9, Sampler(1.0, min_p=0.1), Stops(min_new_tokens=4), seed=2),
    ]
    batch = generate(model, requests)
    assert batch == [generate(model, [one])[0] for one in requests]
    assert batch[1].tokens == batch[2].tokens != batch[0].tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": -0.1}, "top_p is -0.1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
    ],
)
def test_unusable_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampler(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{"seed": -1}, {"seed": 2**64}, {"max_new_tokens": -1}, {"logprobs": -1}], ids=lambda c: next(iter(c))
)
def test_unusable_requests_are_refused(llama: object, changes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"seed is|must be 0 or more"):
        generate(load(str(llama)), [Request([1, 2], **changes)])  # type: ignore[arg-type]
