"""What a step of the fast path may not do: read back, move, change shape, compile again; counted, not timed."""

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ref_common import off, tokens
from torch import Tensor
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from refdecoder import CausalLM, FastGenerator, Request, Sampler, Stops, build, fused, generate, load
from refdecoder.config import DecoderConfig, Rope
from refdecoder.fast import prepare
from refdecoder.fast.draws import Kind
from refdecoder.generate import prefill

PROMPT = tokens(9)
KINDS = [
    Kind(sampled=False, filtered=False, masked=False, logprobs=None),
    Kind(sampled=True, filtered=False, masked=False, logprobs=0),
    Kind(sampled=True, filtered=True, masked=True, logprobs=3),
]


class Watch(TorchDispatchMode):
    """Notes every operator that runs, and the shapes that it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.shapes: list[tuple[str, tuple[int, ...]]] = []
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names[func.overloadpacket.__name__] += 1
        if isinstance(result, Tensor):
            self.shapes.append((func.overloadpacket.__name__, tuple(result.shape)))
            self.devices.add(result.device.type)
        return result


@contextmanager
def watched() -> Iterator[Watch]:
    with torch.inference_mode(), Watch() as watch:
        yield watch


@pytest.fixture(scope="module")
def model(llama: Path) -> CausalLM:
    return load(llama, torch.float64)


def meta_model() -> CausalLM:
    sizes = DecoderConfig(37, 24, 20, 2, 4, 2, 10, 64, 1e-6, Rope(), sliding_window=7)
    with torch.device("meta"):
        return build(sizes)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.sampled}-{kind.filtered}")
def test_a_step_reads_nothing_back(kind: Kind) -> None:
    """On the device "meta" there are no numbers, so that whatever asks for one fails; and nothing leaves the device."""
    generator = FastGenerator(meta_model(), 3, 40)
    step, _ = generator._prepare(kind)
    with watched() as watch:
        step(40, False)
        step(11, True)
    assert watch.devices == {"meta"}
    reading = {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal", "is_nonzero"}
    assert not reading & set(watch.names)
    assert watch.names["scaled_dot_product_attention"] == 2 * 2
    with pytest.raises(NotImplementedError):  # a step that did read would have failed
        generator.count.tolist()


def test_nothing_moves_and_no_shape_changes(model: CausalLM) -> None:
    """Over all steps of two batches of one kind: the addresses of the state, and the shapes of all that is computed."""
    generator = FastGenerator(model, 2, 40, whole=True)
    generator.generate([Request(PROMPT, 2), Request(PROMPT[:4], 3)])
    [(step, record)] = generator.steps.values()
    state = {
        **{name: getattr(generator, name) for name in ("tokens", "positions", "limits", "count")},
        **{f"layer {i}, {j}": held for i, pair in enumerate(generator.cache.layers) for j, held in enumerate(pair)},
        **{name: getattr(generator.draws, name) for name in ("settings", "greedy", "uniform", "least", "stop_ids")},
        "record": record.tokens,
    }
    places, shapes = {name: one.data_ptr() for name, one in state.items()}, []

    def counted(seen: int, aligned: bool) -> None:
        with watched() as watch:
            step(seen, aligned)
        shapes.append(watch.shapes)
        assert {name: one.data_ptr() for name, one in state.items()} == places

    generator.steps = dict.fromkeys(generator.steps, (counted, record))
    requests = [Request(PROMPT, 25), Request(PROMPT[:4], 11)]
    assert generator.generate(requests) == generate(model, requests)
    assert len(shapes) == 24
    assert all(one == shapes[0] for one in shapes)
    assert ("scaled_dot_product_attention", (2, 2, 2, 10)) in shapes[0]


def test_a_step_reads_no_more_than_is_in_use(model: CausalLM) -> None:
    """Without compilation or recording: rows that stand at one position need no mask, others one for all layers."""
    generator = FastGenerator(model, 2, 64)
    for lengths, masks in (((9, 9), 0), ((9, 4), 1)):
        requests = [Request(PROMPT[:n], 6) for n in lengths]
        with watched() as watch:
            generator.generate(requests)
        assert max(shape[2] for name, shape in watch.shapes if name == "slice" and len(shape) == 4) == 9 + 5
        # Of five steps, and the pass over prompts, which padding on the right gives no mask.
        assert watch.names["masked_fill"] == 5 * masks
        assert watch.names["scaled_dot_product_attention"] == 2 * 6


def test_a_window_is_masked_only_where_it_hides(save_phi3: Callable[..., Path]) -> None:
    model = load(save_phi3(sliding_window=12), torch.float64)
    with watched() as watch:
        FastGenerator(model, 1, 64).generate([Request(PROMPT, 6)])
    assert watch.names["masked_fill"] == 2  # positions 12 and 13 are the first that do not see position 0


def test_operators_of_a_layer(save: Callable[..., Path]) -> None:
    """Counted as the difference of two depths: a fused layer runs fewer than half of a plain one's."""
    counts: dict[tuple[str, int], Counter[str]] = {}
    for depth in (1, 2):
        model = load(save(num_hidden_layers=depth))
        for name, one in (("plain", model), ("fused", fused(model))):
            cache = one.new_cache(1, 20)
            prefill(one, cache, [PROMPT], None, "right")
            positions = cache.reserve([1])
            with watched() as watch:
                one(torch.tensor([[5]]), positions, cache, last=True)
            counts[name, depth] = watch.names
    plain, layer = (counts[name, 2] - counts[name, 1] for name in ("plain", "fused"))
    assert plain.total() >= 60
    assert layer.total() <= 32
    wanted = {"linear": 4, "rms_norm": 2, "index_put_": 2, "scaled_dot_product_attention": 1, "cat": 1}
    assert {name: layer[name] for name in wanted} == wanted
    assert not {"masked_fill", "arange", "clamp", "clone", "cos"} & set(layer)


# --- compiled ---------------------------------------------------------------------------------------------------------


def in_cpp(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that has torch's C++ compiler make a step."""
    marks = [
        pytest.mark.slow,
        pytest.mark.filterwarnings(
            "ignore::DeprecationWarning"
        ),  # of torch's own modules, as its compiler imports them
        pytest.mark.skipif(prepare.missing_compiler(torch.device("cpu")) is not None, reason="no C++ compiler"),
    ]
    for mark in marks:
        test = mark(test)
    return test


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that torch.compile makes; a backend that runs them as they are stands in for the C++ compiler."""
    made: list[torch.fx.GraphModule] = []
    compile = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    @functools.wraps(compile)
    def recorded(step: Any, **settings: Any) -> Any:
        settings.pop("options")  # the C++ compiler's
        return compile(step, backend=backend, **settings)

    monkeypatch.setattr(torch, "compile", recorded)
    return made


def test_a_kind_of_step_is_compiled_once(model: CausalLM, graphs: list[torch.fx.GraphModule]) -> None:
    """One graph each, whole, for all steps of all batches, however the sequences grow."""
    generator = FastGenerator(model, 2, 64, compile=True)
    for _ in range(2):
        for requests in ([Request(PROMPT, 30), Request(PROMPT[:4], 40)], [Request(PROMPT[:1], 63)]):
            assert generator.generate(requests) == generate(model, requests)
    assert len(graphs) == 1
    softmax = next(node for node in graphs[0].graph.nodes if node.target == "softmax")
    B, H_kv, G, S = softmax.meta["example_value"].shape
    assert (B, H_kv, G) == (2, 2, 2)
    assert isinstance(S, torch.SymInt)  # slots in use, not all
    sampled = [Request(PROMPT, 30, Sampler(1.0, 5, 0.9, 0.1), Stops((3,), min_new_tokens=5), seed=1, logprobs=2)]
    first = generator.generate(sampled)
    assert first == generator.generate(sampled)
    assert len(graphs) == 2
    plain = FastGenerator(model, 2, 64, whole=True).generate(sampled)
    assert [one.tokens for one in first] == [one.tokens for one in plain]


def test_many_generators_do_not_use_up_a_limit(model: CausalLM, graphs: list[torch.fx.GraphModule]) -> None:
    for capacity in range(12, 22):
        generator = FastGenerator(model, 1, capacity, compile=True)
        assert generator.generate([Request(PROMPT, 3)]) == generate(model, [Request(PROMPT, 3)])
    assert len(graphs) == 10


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("biases", [False, True])
def test_products_of_one_row_are_compiled_as_sums(
    save: Callable[..., Path], graphs: list[torch.fx.GraphModule], rows: int, biases: bool
) -> None:
    """With more rows a library's product is the faster one. 37 ids leave the head with parts of two sizes."""
    model = load(save(attention_bias=biases, mlp_bias=biases, tie_word_embeddings=not biases), torch.float64)
    requests = [Request(PROMPT, 12, logprobs=4)] * rows
    found = FastGenerator(model, rows, 40, compile=True).generate(requests)
    for one, wanted in zip(found, generate(model, requests), strict=True):
        assert one.tokens == wanted.tokens
        for got, exact in zip(one.logprobs or (), wanted.logprobs or (), strict=True):
            assert got == pytest.approx(exact, abs=1e-12)
    called = Counter(getattr(node.target, "__name__", str(node.target)) for node in graphs[0].graph.nodes)
    assert called["linear"] == (0 if rows == 1 else 2 * 4 + 1)


@in_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_compiled_row_is_as_exact_as_the_plain_loop(llama: Path, dtype: torch.dtype) -> None:
    """In C++, and in the formats that are used: each against the plain loop in float64, up to the first other token."""
    model = load(llama, dtype)
    request = Request(PROMPT, 13, logprobs=37)
    [exact] = generate(copy.deepcopy(model).double(), [request])
    error = {}
    for name, [found] in (
        ("plain", generate(model, [request])),
        ("compiled", FastGenerator(model, 1, 40, compile=True).generate([request])),
    ):
        pairs = zip(found.tokens, exact.tokens, strict=True)
        same = next((i for i, (got, wanted) in enumerate(pairs) if got != wanted), 13)
        got, wanted = (
            torch.tensor([[one[j] for j in range(37)] for one in each.logprobs[:same]]) for each in (found, exact)
        )
        error[name] = off(got, wanted)
        assert same >= 3
    assert error["compiled"] < 3 * error["plain"]  # measured: 1.3 times in float32, 0.6 in bfloat16


@in_cpp
def test_the_compiled_step_copies_no_cache(save: Callable[..., Path]) -> None:
    """Nothing of the size of a layer's keys is allocated: they are written and read in place."""
    model = load(save(num_hidden_layers=1), torch.float64)
    generator, requests = FastGenerator(model, 2, 64, compile=True), [Request(PROMPT, 20), Request(PROMPT[:4], 9)]
    assert generator.generate(requests) == generate(model, requests)
    with torch.compiler.set_stance("fail_on_recompile"):  # 2 slots to 63
        longest = [Request(PROMPT[:1], 63)]
        assert generator.generate(longest) == generate(model, longest)
    [(step, _)] = generator.steps.values()
    with torch.inference_mode(), profile(profile_memory=True) as seen:
        generator.count.zero_()
        step(64, False)
    assert seen.profiler is not None
    events = seen.profiler.kineto_results.events()
    taken = [event.nbytes() for event in events if event.name() == "[memory]"]
    assert max(taken) > 0
    layer = 2 * 2 * 65 * 10 * 8  # bytes of a layer's keys
    assert max(taken) < layer / 2


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compile", [False, True])
def test_recorded_steps_on_cuda(llama: Path, compile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(llama, torch.float64, "cuda")
    generator = FastGenerator(model, 2, 64, compile=compile)
    requests = [Request(PROMPT, 30), Request(PROMPT[:4], 40, logprobs=2)]
    sampled = [Request(PROMPT, 30, Sampler(1.0, 5, 0.9, 0.1), Stops((3,), min_new_tokens=5), seed=1)]
    wanted = generator.generate(requests), generator.generate(sampled)
    assert [one.tokens for one in wanted[0]] == [one.tokens for one in generate(model, requests)]
    advance = generator._advance

    def unsynchronised(*arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            advance(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(generator, "_advance", unsynchronised)
    assert (generator.generate(requests), generator.generate(sampled)) == wanted
