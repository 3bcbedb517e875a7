"""What is counted: by hand, against a model of known size, and against what two engines were seen to do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_common import TINY, lab

from benchmarks.asking import generation, step_products
from benchmarks.counting import Formats, body_parameters, decode_step, kv_bytes, norm_parameters, parameters, prefill
from benchmarks.roofline import Rates, balance_batch, floor, measured_balance
from benchmarks.shapes import LLAMA2_7B, SIZES, UnknownSize, multi_head, size_of
from benchmarks.tally import Products, distinct_bytes, tally
from lmconform.checkpoints.layout import Shape

# Small enough to multiply out on paper: 2 layers, 4 query heads on 2 KV heads of 8, hidden 16, inner 24, V 10.
SMALL = Shape(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=24,
    vocab_size=10,
    tie_word_embeddings=True,
)
FLOAT32, BFLOAT16 = Formats(4, 4), Formats(2, 2)


def test_a_step_by_hand() -> None:
    # A layer: q 16·32, k and v 16·16 each, o 32·16, three of 16·24: 512 + 256 + 256 + 512 + 1152 = 2688 numbers.
    assert body_parameters(SMALL) == 2 * 2688
    assert norm_parameters(SMALL) == 5 * 16
    step = decode_step(SMALL, 7, FLOAT32, batch=3)
    assert step.projection_flops == 3 * 2 * (5376 + 160)  # the head is 160 numbers, tied or not
    assert step.attention_flops == 3 * 2 * (2 * 4 * 8 * 7) * 2  # rows, layers, H_q·D·S twice, and 2 for multiply-add
    assert step.weight_bytes == 4 * (5376 + 160 + 80)  # once for all rows; the embedding's gather is left out
    assert step.kv_bytes == 3 * 2 * 2 * (2 * 8) * 4 * 7  # rows, layers, K and V, H_kv·D, bytes, tokens


def test_a_head_is_read_once_whether_it_is_tied_or_not() -> None:
    untied = replace(SMALL, tie_word_embeddings=False)
    assert decode_step(untied, 7, FLOAT32) == decode_step(SMALL, 7, FLOAT32)
    assert parameters(untied) == parameters(SMALL) + 160


def test_a_prefill_has_one_head_and_half_of_the_square() -> None:
    one, step = prefill(SMALL, 1, FLOAT32), decode_step(SMALL, 1, FLOAT32)
    assert (one.projection_flops, one.attention_flops) == (step.projection_flops, step.attention_flops)
    ten = prefill(SMALL, 10, FLOAT32)
    assert ten.projection_flops == 2 * (10 * 5376 + 160)
    assert ten.attention_flops == sum(decode_step(SMALL, t, FLOAT32).attention_flops for t in range(1, 11))


@pytest.mark.parametrize(("name", "numbers"), [("134M", 134_515_008), ("1B", 1_235_814_400), ("8B", 8_030_261_248)])
def test_sizes_are_those_of_the_models_they_are_named_after(name: str, numbers: int) -> None:
    assert parameters(SIZES[name].shape) == numbers


def test_llama_2_7b_balances_at_the_textbooks_batch() -> None:
    assert parameters(LLAMA2_7B) == 6_738_415_616
    a100 = Rates(bandwidth=2.0e12, products=312e12)
    assert balance_batch(LLAMA2_7B, a100, BFLOAT16) == pytest.approx(156, abs=0.1)
    # 2,048 tokens in each row are 1 GiB of keys and values: reading them takes longer than the row's products.
    assert kv_bytes(LLAMA2_7B, 2048, 2) == 2**30
    assert balance_batch(LLAMA2_7B, a100, BFLOAT16, length=2048) is None
    # With 32 tokens a row: 6.607 ms to read the weights, and 42.4 µs of products less 8.4 µs of reading a row.
    assert balance_batch(LLAMA2_7B, a100, BFLOAT16, length=32) == pytest.approx(6607 / (42.4 - 8.4), abs=0.5)


def test_the_balance_is_where_the_floor_changes_its_bound() -> None:
    rates, shape = Rates(10e9, 60e9), SIZES["8M"].shape
    batch = balance_batch(shape, rates, FLOAT32, 20)
    assert batch is not None
    assert floor(decode_step(shape, 20, FLOAT32, int(batch)), rates).bound == "memory"
    assert floor(decode_step(shape, 20, FLOAT32, int(batch) + 1), rates).bound == "compute"


def test_the_measured_balance_is_where_flat_and_slope_meet() -> None:
    steps = {batch: max(0.010, 0.001 * batch) for batch in (1, 2, 4, 8, 16, 32)}
    assert measured_balance(steps) == pytest.approx(10)


@pytest.mark.parametrize(("target", "options"), [("reference", {"attention": "sdpa"}), ("transformers", {})])
def test_a_step_does_what_the_rules_count(target: str, options: dict[str, str]) -> None:
    made = lab(target, **options)
    model = made.model(made.subject, TINY)
    seen, by_rule = step_products(made.subject, model, 16), decode_step(TINY.shape, 17, FLOAT32)
    made.close()
    assert seen is not None
    assert (seen.projection_flops, seen.attention_flops) == (by_rule.projection_flops, by_rule.attention_flops)
    assert seen.attention_bytes == by_rule.kv_bytes
    assert seen.projection_bytes == by_rule.weight_bytes - 4 * norm_parameters(TINY.shape)  # norms are no products


def test_eager_attention_is_seen_to_expand_the_heads() -> None:
    made = lab("reference", attention="eager")
    seen = step_products(made.subject, made.model(made.subject, TINY), 16)
    made.close()
    assert seen is not None
    assert seen.attention_bytes == decode_step(multi_head(TINY.shape), 17, FLOAT32).kv_bytes


def test_a_prefill_does_what_the_rules_count() -> None:
    made = lab("reference", attention="sdpa")
    seen = tally(generation(made.model(made.subject, TINY), 16, 1))
    made.close()
    by_rule = prefill(TINY.shape, 16, FLOAT32)
    assert seen.projection_flops == by_rule.projection_flops
    assert seen.attention_flops == 16 * decode_step(TINY.shape, 16, FLOAT32).attention_flops  # the masked half too


def products() -> dict[str, tuple[object, Products]]:
    a, b, v = torch.ones(3, 4), torch.ones(4, 5), torch.ones(4)
    q, k = torch.ones(2, 6, 3, 8), torch.ones(2, 6, 7, 8)
    return {
        "mm": (lambda: a @ b, Products(120, 80, 0, 0)),
        "linear": (lambda: torch.nn.functional.linear(a, b.T.contiguous()), Products(120, 80, 0, 0)),
        "addmm": (lambda: torch.addmm(torch.ones(5), a, b), Products(120, 80, 0, 0)),
        "mv": (lambda: torch.mv(a, v), Products(24, 48, 0, 0)),
        "addmv": (lambda: torch.addmv(torch.ones(3), a, v), Products(24, 48, 0, 0)),
        "dot": (lambda: torch.dot(v, v), Products(8, 16, 0, 0)),
        "bmm of one": (lambda: a[None] @ b[None], Products(120, 80, 0, 0)),
        "bmm": (lambda: torch.bmm(torch.ones(2, 3, 4), torch.ones(2, 4, 5)), Products(0, 0, 240, 160)),
        "baddbmm": (
            lambda: torch.baddbmm(torch.ones(1), torch.ones(2, 3, 4), torch.ones(2, 4, 5)),
            Products(0, 0, 240, 160),
        ),
        "einsum": (lambda: torch.einsum("hi,ho->io", a, torch.ones(3, 5)), Products(120, 60, 0, 0)),
        "attention": (
            lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k),
            Products(0, 0, 2 * 2 * 6 * 3 * 7 * 16, 2 * 2 * 6 * 7 * 8 * 4),
        ),
    }


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("name", products())
def test_every_kind_of_product_is_seen(name: str, inference: bool) -> None:
    call, wanted = products()[name]
    with torch.inference_mode(inference):
        assert tally(call) == wanted  # type: ignore[arg-type]


def test_compiled_code_is_counted_as_what_it_was_made_from() -> None:
    """torch compiles nothing while operators are watched, and fails where ``fullgraph`` says that it must."""
    call, wanted = products()["addmm"]
    compiled = torch.compile(call, fullgraph=True)  # type: ignore[call-overload]
    assert tally(compiled) == wanted


def test_an_expanded_dimension_counts_once() -> None:
    assert distinct_bytes(torch.ones(4, 1, 6).expand(4, 5, 6)) == 4 * 6 * 4


def test_a_size_of_your_own_is_a_config(tmp_path: Path) -> None:
    path = tmp_path / "mine" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(SIZES["1B"].shape.config()))
    assert (size_of(str(path)).name, size_of(str(path)).shape) == ("mine", SIZES["1B"].shape)
    path.write_text(json.dumps(SIZES["1B"].shape.config() | {"model_type": "gpt2"}))
    with pytest.raises(UnknownSize, match="model_type 'gpt2'; the benchmarks make llamas alone"):
        size_of(str(path))
    with pytest.raises(UnknownSize, match=r"no size '7B'. Known are: tiny, 8M, 134M, 1B, 8B"):
        size_of("7B")
    with pytest.raises(UnknownSize, match=r"no config\.json of a llama that can be read"):
        size_of(str(tmp_path / "config.json"))
