"""The checkpoints that the suite makes: exact in every format, whole on disk, and loud or quiet as they say."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from lmconform.adapter import Precision
from lmconform.checkpoints.attention_scope import attention_scope
from lmconform.checkpoints.balance import HUGE, PLAIN, balance
from lmconform.checkpoints.edits import edited
from lmconform.checkpoints.eos import CONFIG, EOS, GENERATION, NAMED, TOKENIZER
from lmconform.checkpoints.ladder import ladder
from lmconform.checkpoints.layout import on_grid
from lmconform.checkpoints.random import FAMILIES, SHAPES, WINDOWED, random_checkpoint
from lmconform.checkpoints.scales import scales
from lmconform.checkpoints.split_tape import SPLIT, split_tape
from lmconform.checkpoints.tape import CYCLES, stop_tape
from lmconform.judging.budgets import Yardstick
from lmconform.spec.decoder import decoder, read_checkpoint

MADE = {
    "loud": lambda: random_checkpoint(SHAPES[0], "loud", 1),
    "quiet": lambda: random_checkpoint(SHAPES[1], "quiet", 2),
    "gpt2": lambda: random_checkpoint(FAMILIES[0], "loud", 3),
    "quiet gpt2": lambda: random_checkpoint(FAMILIES[0], "quiet", 4),
    "phi3": lambda: random_checkpoint(FAMILIES[1], "loud", 5),
    "windowed": lambda: random_checkpoint(WINDOWED, "quiet", 6),
    "stop tape": lambda: stop_tape().checkpoint,
    "split tape": lambda: split_tape().checkpoint,
    "scope": lambda: attention_scope("quiet").checkpoint,
    "loud scope": lambda: attention_scope("loud").checkpoint,
    "narrow loud scope": lambda: attention_scope("loud", narrow=True).checkpoint,
    "balance": lambda: balance().checkpoint,
    "huge balance": lambda: balance(PLAIN, HUGE).checkpoint,
    "scales": lambda: scales().checkpoint,
    "token scales": lambda: scales(levels=8).checkpoint,
    "ladder": lambda: ladder().checkpoint,
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_weights_are_exact_in_bfloat16_and_float16(make) -> None:
    for name, value in make().weights.items():
        for narrow in (ml_dtypes.bfloat16, np.float16):
            assert np.array_equal(value.astype(narrow).astype(np.float32), value), (name, narrow)


def test_the_grid_is_near_the_number_asked_for() -> None:
    values = np.random.default_rng(0).standard_normal(10_000) * 0.1
    error = np.abs(on_grid(values) - values)
    assert (error <= np.abs(values) * 2.0**-8 + 2.0**-18).all()
    assert len(np.unique(on_grid(values))) > 1000


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_is_written_is_what_the_oracle_reads(make, tmp_path) -> None:
    checkpoint = make()
    config, weights = read_checkpoint(checkpoint.write(tmp_path))
    assert config.vocab_size == checkpoint.vocab_size
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in checkpoint.weights.items()
    }
    assert all(np.array_equal(weights[name], value) for name, value in checkpoint.weights.items())


def test_files_agree_and_every_id_is_one_character(tmp_path) -> None:
    checkpoint = random_checkpoint(SHAPES[0], "loud", 1)
    checkpoint.write(tmp_path)
    general = json.loads((tmp_path / "config.json").read_text())
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert {name: general[name] for name in generation} == generation
    assert set(load_file(tmp_path / "model.safetensors")) == set(checkpoint.weights)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = list(range(checkpoint.vocab_size))
    text = tokenizer.decode(ids)
    assert len(text) == len(set(text)) == len(ids)
    assert text.isprintable()
    assert tokenizer.encode(text).ids == ids


def test_shapes_are_adversarial() -> None:
    groups = [(s.num_attention_heads, s.num_key_value_heads) for s in SHAPES]
    assert any(h != kv and kv != h // kv and h != h // kv and kv > 1 for h, kv in groups)
    assert any(h == kv for h, kv in groups)
    assert any(kv == 1 for _, kv in groups)
    assert any(s.head_dim != s.hidden_size / s.num_attention_heads for s in SHAPES)
    assert any(s.hidden_size % s.num_attention_heads == 0 for s in SHAPES)
    assert any(s.vocab_size % 2 for s in SHAPES)
    assert any(s.vocab_size % 64 for s in SHAPES)
    assert len({s.num_hidden_layers for s in SHAPES}) > 1


@pytest.mark.parametrize(
    "shape", [*SHAPES, *FAMILIES], ids=lambda shape: f"{shape.family}-{shape.num_attention_heads}x{shape.head_dim}"
)
def test_loud_attention_is_sharp(shape) -> None:
    _, weights = _weights(random_checkpoint(shape, "loud", 0), range(40))
    last = weights[:, -1]  # [L·H_q, T]
    assert np.median(last.max(axis=1)) > 4 / 40


def test_quiet_weights_expose_eps() -> None:
    checkpoint = random_checkpoint(SHAPES[0], "quiet", 0)
    other = type(checkpoint)("other", {**checkpoint.config, "rms_norm_eps": 1e-6}, checkpoint.weights)
    tokens = tuple(range(20))
    yardstick, changed = (Yardstick(one, Precision()) for one in (checkpoint, other))
    moved = changed.oracle(tokens) - yardstick.oracle(tokens)
    assert moved.std() > 0.02 * yardstick.oracle(tokens).std()


def test_a_stop_tape_plays_what_it_says() -> None:
    """The first id after each token, or the second and the third where those before may not be drawn."""
    made = stop_tape()
    tokens = tuple(range(made.checkpoint.vocab_size))
    scores = Yardstick(made.checkpoint, Precision()).oracle(tokens)
    assert np.array_equal(scores.argsort(axis=1)[:, :-4:-1], made.ranking)
    gaps = np.diff(-np.sort(-scores, axis=1)[:, :4], axis=1)
    assert (gaps < -10).all()
    first, second, third = made.ranking[9]
    assert made.play(9, 1) == (first,)
    assert made.play(9, 1, masked={first}, least=1) == (second,)
    assert made.play(9, 1, masked={first, second}, least=1) == (third,)
    assert made.play(9, 2, masked={first}, least=0) == (first, made.ranking[first][0])
    with pytest.raises(ValueError, match="all of them are masked"):
        made.play(9, 1, masked={first, second, third}, least=1)
    assert made.play(made.before(33, 4), 4)[-1] == 33


def test_a_stop_tape_repeats_itself_after_some_tokens() -> None:
    made = stop_tape()
    size = {token: made.play(token, 101).index(token) + 1 for token in range(101)}
    assert sorted(size.values()) == sorted(one for cycle in (*CYCLES, 62) for one in [cycle] * cycle)
    assert len(set(made.pieces)) == 101
    texts = made.text(range(101))
    assert {len(text) for token, text in enumerate(texts) if size[token] < 62} == {1, 2, 3}
    assert {len(text) for token, text in enumerate(texts) if size[token] == 62} == {1}


@pytest.mark.parametrize("edit", NAMED)
def test_eos_ids_stand_in_the_files_that_an_edit_says(edit, tmp_path) -> None:
    edited(stop_tape().checkpoint, edit).write(tmp_path)
    found = {}
    for name in (GENERATION, CONFIG):
        path = tmp_path / name
        ids = json.loads(path.read_text())["eos_token_id"] if path.exists() else None
        found[name] = tuple(ids) if isinstance(ids, list) else () if ids is None else (ids,)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    token = json.loads((tmp_path / TOKENIZER).read_text()).get("eos_token")
    found[TOKENIZER] = () if token is None else (tokenizer.token_to_id(token),)
    assert {name: ids for name, ids in found.items() if ids} == NAMED[edit]
    assert tokenizer.decode(list(range(101))) == "".join(stop_tape().text(range(101)))


def test_a_split_tape_splits_characters_of_two_three_and_four_bytes(tmp_path) -> None:
    """Its text, by both libraries that read tokenizer.json, is that of the bytes; and some of it is cut off."""
    made, plain = split_tape(), stop_tape()
    assert made.ranking == plain.ranking
    assert all(np.array_equal(made.checkpoint.weights[name], one) for name, one in plain.checkpoint.weights.items())
    assert len(set(made.pieces)) == 101
    start = made.before(made.pieces.index(SPLIT[0]), 1)
    script = made.play(start, len(SPLIT))
    assert tuple(made.pieces[token] for token in script) == SPLIT
    texts = made.text(script)
    assert "".join(texts) == b"".join(SPLIT).decode()
    sizes = {len(text[0].encode()) for n, text in enumerate(texts) if text and made.begun(script[:n])}
    assert sizes == {2, 3, 4}
    made.checkpoint.write(tmp_path)
    ours, theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), AutoTokenizer.from_pretrained(tmp_path)
    for n in range(1, len(SPLIT) + 1):
        whole, rest = "".join(made.text(script[:n])), "\N{REPLACEMENT CHARACTER}" * bool(made.begun(script[:n]))
        assert ours.decode(list(script[:n])) == theirs.decode(list(script[:n])) == whole + rest
    assert ours.encode("abcdef").ids == list(range(6))


def test_eos_ids_lie_apart_in_the_script() -> None:
    """So that a row which ends at one of them within 6 tokens has met no other."""
    made = stop_tape()
    for one in EOS:
        assert not {*EOS} - {one} & {*made.play(made.before(one, 6), 6)}


def _weights(checkpoint, tokens) -> tuple[np.ndarray, np.ndarray]:
    """Scores [T, V], and the attention weights of all layers and heads, [L·H_q, T, T], by the oracle."""
    yardstick = Yardstick(checkpoint, Precision())
    record: list[np.ndarray] = []
    scores = decoder(yardstick._config, yardstick._weights, list(tokens), record=record)
    return scores, np.concatenate(record)
