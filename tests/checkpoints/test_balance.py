"""The balance and the ladder: what they read of the oracle, and of oracles that are wrong in one place."""

from dataclasses import replace

import numpy as np
import pytest

from lmconform.adapter import Precision
from lmconform.checkpoints.balance import HUGE, NORMS, PLAIN, POINTS, SHAPE, SKEWS, TELLING, balance
from lmconform.checkpoints.ladder import LAYERS, ladder
from lmconform.judging.budgets import Yardstick
from lmconform.spec import decoder as page
from lmconform.spec import pre_norm_residual
from lmconform.spec.categorical_output import log_softmax
from lmconform.spec.decoder import decoder, read_config

EPS = SHAPE.rms_norm_eps


def read(quantity, checkpoint=None, factor=1.0, logprobs=False):
    """The readings of the spec's decoder, from one quiet and one heavy prompt."""
    made = balance()
    checkpoint = checkpoint or made.checkpoint
    config = read_config(checkpoint.config)
    weights = {name: np.asarray(value, np.float64) for name, value in checkpoint.weights.items()}
    pair = made.pairs[0]
    rows = np.array([factor * decoder(config, weights, (token,) * 3)[-1] for token in pair])
    rows = log_softmax(rows) if logprobs else rows
    found = made.read(quantity, rows[:, made.columns], pair)[0]
    assert len(found) == len(made.names(quantity))
    return found


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize(
    ("quantity", "wanted"),
    [
        ("residual", 1),
        ("order", [0, 1, 0, 1, 1]),
        ("eps", EPS),
        ("mean", 0),
        ("weight", [*SKEWS, 1]),
        ("gate", [-1, 0, -1, 0]),
        ("embedding", 1),
        ("logits", 1),
    ],
)
def test_the_balance_reads_what_the_page_says(quantity, wanted, logprobs) -> None:
    found = read(quantity, logprobs=logprobs)
    assert found == pytest.approx(np.broadcast_to(wanted, found.shape), abs=1e-6)


def test_the_activation_is_read_at_both_sides_of_zero() -> None:
    load = 0.25
    n = load / np.sqrt(load**2 / 2 + EPS)
    curve = pre_norm_residual.silu(np.array(POINTS) * n) / n
    assert read("activation") == pytest.approx(np.tile(curve, 2), rel=0.01)  # the stream has grown a little


def test_every_quantity_is_decided_in_every_format() -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        precision = Precision(weights=dtype, compute=dtype, kv_cache=dtype, scores=dtype)
        for loads in ((), (PLAIN, HUGE)):
            made = balance(*loads)
            stick, pair = Yardstick(made.checkpoint, precision), made.pairs[0]
            places = [((token,), 0) for token in pair]
            for quantity in ["huge", "final", "activation"] if loads else set(TELLING) - {"final"}:
                _, budget = stick.budget(
                    places,
                    made.columns,
                    reading=lambda rows, made=made, quantity=quantity, pair=pair: made.read(
                        quantity, rows, pair
                    ).reshape(-1, 1),
                )
                assert (budget.reading <= made.telling(quantity) / 2).any(), (dtype, quantity, budget.reading)


def test_a_wrong_eps_is_read_as_a_number() -> None:
    made = balance().checkpoint
    assert read("eps", replace(made, config={**made.config, "rms_norm_eps": 1e-6})) == pytest.approx(1e-6, abs=1e-9)


def test_a_wrong_weight_is_named() -> None:
    made = balance()
    swapped = dict(made.checkpoint.weights)
    first, second = (f"model.{norm}.weight" for norm in NORMS[:2])
    swapped[first], swapped[second] = swapped[second], swapped[first]
    off = read("weight", replace(made.checkpoint, weights=swapped)) - [*SKEWS, 1]
    assert [name for name, error in zip(made.names("weight"), off, strict=True) if abs(error) > 0.1] == [
        f"weight of {norm}" for norm in NORMS[:2]
    ]


def test_factors_at_both_ends_are_told_apart() -> None:
    made = balance().checkpoint
    name = "model.embed_tokens.weight"
    louder = replace(made, weights={**made.weights, name: 3 * made.weights[name]})
    assert read("embedding", louder) == pytest.approx(3)
    assert read("logits", louder) == pytest.approx(1)
    assert read("eps", louder) == pytest.approx(EPS)
    assert read("logits", factor=3) == pytest.approx(3)
    assert read("embedding", factor=3) == pytest.approx(1)
    assert read("residual", factor=3) == pytest.approx(1)


@pytest.mark.parametrize(
    ("quantity", "wrong", "number", "value"),
    [
        ("residual", lambda x, w, eps, f: 2 * x + f(pre_norm_residual.rms_norm(x, w, eps)), 0, 4),
        ("residual", lambda x, w, eps, f: 2 * x + f(pre_norm_residual.rms_norm(x, w, eps)), 1, 4),
        ("order", lambda x, w, eps, f: x, 1, np.nan),
    ],
)
def test_a_wrong_residual_is_read(monkeypatch, quantity, wrong, number, value) -> None:
    monkeypatch.setattr(page, "pre_norm", wrong)
    assert read(quantity)[number] == pytest.approx(value, nan_ok=True)


def test_the_ladder_names_a_layer_that_was_left_out() -> None:
    made = ladder()
    config = read_config(made.checkpoint.config)
    weights = {name: np.asarray(value, np.float64) for name, value in made.checkpoint.weights.items()}
    marks = made.read("layers", decoder(config, weights, [0])[:, made.columns], (0,))[0]
    assert (marks > made.telling("layers")).all()
    assert (np.diff(marks) < -2 * made.slack("layers")).all()
    shorter = decoder(replace(config, num_hidden_layers=LAYERS - 1), weights, [0])
    assert made.read("layers", shorter[:, made.columns], (0,))[0, -1] == 0
