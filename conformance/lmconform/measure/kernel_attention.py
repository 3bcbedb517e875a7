"""What an attention kernel does, read off crafted q, k and v: values that are one-hot show its weights.

The lines are those of whole models (``measure/attention.py``), and what only a kernel shows: its mask, key by key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np

from lmconform.adapter import Array, Mask, NotOffered, Refused
from lmconform.judging.operators import AttentionCall
from lmconform.measure.attempt import attempt
from lmconform.measure.attention import LONG, SECTION, SHORT, kv_heads
from lmconform.measure.experiment import worst
from lmconform.measure.kernel import answers, named, value
from lmconform.measure.layouts import UNKNOWN
from lmconform.measure.sheet import Entry, Outcome
from lmconform.spec.causal_mask import causal_visible
from lmconform.suite.operators import Kernel, Sizes, equal_products, raised

H_Q, H_KV = 8, 4
KEYS = 16
"""Keys of a call, where nothing speaks for another number: a multiple of most blocks, and one for each channel."""
CHUNKS = ((KEYS, KEYS), (LONG, LONG), (5, KEYS), (17, LONG))
"""Numbers of queries and keys under a causal mask."""
LOUD = ((4.0, 0.0), (8.0, 1 / 2), (16.0, 3 / 4), (32.0, 7 / 8), (64.0, 15 / 16), (128.0, 31 / 32))
"""About the larger of two scores, and what part of it the smaller is: about 4 lie between them, and a format of 7 bits
holds the part."""
TAKEN = 0.5
"""A cap as large as the greatest score takes so much of a difference there, since tanh' 1 = 0.42."""
FITS = 0.03
"""How well a cap must explain all readings."""
MASKS: tuple[Mask, ...] = ("none", "causal")
SAID = {"none": "no mask", "causal": "causal mask"}
SEEN = 0.01
"""A key with so large a part of a row's largest weight is seen, where all scores are equal; a hidden one has none."""


def attention(kernel: Kernel) -> list[Entry]:
    """All lines of one attention kernel."""
    one = _Attention(kernel)
    todo: list[tuple[str, str, Callable[[], list[Entry]]]] = [
        *((f"scale, D = {D}", f"{D**-0.5:.4g}", partial(one.scale, D, KEYS)) for D in sorted(kernel.widths)),
        (one.far, f"{one.D**-0.5:.4g}", partial(one.scale, one.D, LONG)),
        ("soft cap", "none", one.soft_cap),
        ("weight of the only huge score", "1", one.huge),
        ("KV head of keys", one.heads, one.key_map),
        ("KV head of values", one.heads, one.value_map),
        *((f"sum of a row's weights, {m} keys", "1", partial(one.sum, m)) for m in (KEYS, SHORT, LONG)),
        *((one.counted(m, mask), f"{m}", partial(one.seen, m, mask)) for m, mask in product((SHORT, LONG), MASKS)),
        *((one.masked(n, m), _alignment(n, m), partial(one.mask, n, m)) for n, m in CHUNKS),
        *((f"weight on a future token, n = {n}, m = {m}", "0", partial(one.future, n, m)) for n, m in CHUNKS),
        *((f"own weight beside another, {m} keys", "1", partial(one.own, m)) for m in (KEYS, LONG)),
        ("given mask", "as given", one.given),
    ]
    return [line for quantity, wanted, read in todo for line in attempt(SECTION, quantity, wanted, read)]


class _Attention:
    """Crafted calls for one kernel, and what is read off the answers."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.D = 64 if 64 in kernel.widths else kernel.widths[0]
        self._H_q, self._H_kv = (H_Q, H_KV) if kernel.operator.grouped else (H_KV, H_KV)
        self._heads = [f"head {h}" for h in range(self._H_q)]
        self._square = False
        self._square = self._takes_only_squares()

    @property
    def far(self) -> str:
        return f"scale, D = {self.D}, {LONG} keys"

    @property
    def heads(self) -> str:
        return " ".join(str(h * self._H_kv // self._H_q) for h in range(self._H_q))

    def counted(self, m: int, mask: Mask) -> str:
        return f"positions seen of {m}, {SAID[mask]}"

    def masked(self, n: int, m: int) -> str:
        return f"causal mask, n = {n}, m = {m}"

    def scale(self, D: int, m: int) -> list[Entry]:
        """The first key has the product 0 with every query, the last one about 4 times the root of D."""
        share = 2.0 ** (2 - round(np.log2(D) / 2))
        signs = self._signs(D)
        k = np.zeros((self._H_kv, m, D))
        k[:, -1] = signs * share
        call = self._one(np.broadcast_to(signs, (self._H_q, D)), k, _one_hot(self._H_kv, m, D, [0, m - 1]))

        def scales(out: Array) -> Array:
            return np.asarray(np.log(out[:, -1, 1] / out[:, -1, 0]) / (D * share))  # [H_q]

        quantity = f"scale, D = {D}" if m == KEYS else self.far
        names = [f"{head}, {m} keys" for head in self._heads]
        return [worst(value(self._kernel, scales, [call]), SECTION, quantity, names, telling=0.2 / np.sqrt(D))]

    def soft_cap(self) -> list[Entry]:
        """Differences of large scores beside those of small ones: a cap c makes c tanh(s/c) of s."""
        signs, v = self._signs(self.D), _one_hot(self._H_kv, KEYS, self.D, [0, 1])
        calls, pairs = [], []
        for score, part in LOUD:
            share = 2.0 ** round(np.log2(score / np.sqrt(self.D) / 4))
            k = np.zeros((self._H_kv, KEYS, self.D))
            k[:, 0], k[:, 1] = signs * share, signs * share * part
            calls.append(self._one(np.broadcast_to(4 * signs, (self._H_q, self.D)), k, v))
            pairs.append(4 * share * np.sqrt(self.D) * np.array([1, part]))
        top, low = np.array(pairs).T  # the two scores of each call

        def ratios(*outputs: Array) -> Array:
            return _beside([np.log(out[:, -1, 0] / out[:, -1, 1]) for out in outputs], top - low)  # [scores, H_q]

        found = value(self._kernel, ratios, calls)
        names = [f"scores near {score:g}, {head}" for score in top[1:] for head in self._heads]
        line = worst(found, SECTION, "large scores beside small ones", names, telling=TAKEN)
        if line.outcome is Outcome.DIFFERS:
            caps = np.geomspace(4, 400, 2000)
            errors = [np.abs(found.got - np.repeat(_capped(cap, top, low), self._H_q)).max() for cap in caps]
            cap = f"{caps[np.argmin(errors)]:.2g}"  # NaN counts as the least and fits nothing
            named_cap = Entry(SECTION, "soft cap", cap, "none", Outcome.DIFFERS, note=line.note)
            return [named_cap if min(errors) < FITS else line]
        if line.outcome is not Outcome.EQUAL:
            return [line]
        square = (top**2 + top * low + low**2)[1:] / 3  # tanh x = x (1 - x^2 / 3): the difference loses square / c^2
        clear = found.bound <= TAKEN / 2
        reach = np.sqrt(np.repeat(square, self._H_q)[clear] / found.bound[clear]).max()
        return [Entry(SECTION, "soft cap", "none", "none", Outcome.EQUAL, note=f"one above {reach:.2g} cannot be seen")]

    def huge(self) -> list[Entry]:
        """One product near the limit of the format, all others as far below 0."""
        shape = Sizes(self._H_q, self._H_kv, 1, KEYS, self.D, False)
        q, k = equal_products(self._kernel, shape)
        k[:, 1:] *= -1
        call = self._one(q[:, 0], k, _one_hot(self._H_kv, KEYS, self.D, [0]))
        found = value(self._kernel, lambda out: out[:, -1, 0], [call])
        return [worst(found, SECTION, "weight of the only huge score", self._heads, telling=0.5)]

    def key_map(self) -> list[Entry]:
        """Key g is loud in KV head g alone."""
        q, k = np.zeros((self._H_q, self.D)), np.zeros((self._H_kv, KEYS, self.D))
        q[:, 0], k[range(self._H_kv), range(self._H_kv), 0] = 8, np.sqrt(self.D) // 1
        call = self._one(q, k, _one_hot(self._H_kv, KEYS, self.D, range(self._H_kv)))
        return [named(self._kernel, SECTION, "KV head of keys", self._map, [call])]

    def value_map(self) -> list[Entry]:
        """All values of KV head g are one-hot in channel g."""
        q, k, v = np.zeros((self._H_q, self.D)), *np.zeros((2, self._H_kv, KEYS, self.D))
        v[range(self._H_kv), :, range(self._H_kv)] = 1
        return [named(self._kernel, SECTION, "KV head of values", self._map, [self._one(q, k, v)])]

    def _map(self, out: Array) -> str:
        return kv_heads(out[:, -1, : self._H_kv].T[:, None])  # [H_kv, 1, H_q]

    def sum(self, m: int) -> list[Entry]:
        """All scores lie far below 0, the score of a key that is not there; all values are 1."""
        k = np.zeros((self._H_kv, m, self.D), np.float32)
        low = raised(AttentionCall(np.zeros((self._H_q, 1, self.D), np.float32), k, k), np.full(m, -8.0))
        call = self._one(low.q[:, 0], low.k, np.ones_like(k))
        found = value(self._kernel, lambda out: out[:, -1, 0], [call])
        return [worst(found, SECTION, f"sum of a row's weights, {m} keys", self._heads, telling=0.05)]

    def seen(self, m: int, mask: Mask) -> list[Entry]:
        """What one query, which stands at the last key, gives weight."""
        calls = self._showing(self._rows(m), m, mask)

        def count(*outputs: Array) -> str:
            each = _visible(outputs, m)[:, -1].sum(axis=-1).tolist()  # [H_q]
            return str(each[0]) if len(set(each)) == 1 else "by head " + " ".join(map(str, each))

        return [named(self._kernel, SECTION, self.counted(m, mask), count, calls)]

    def mask(self, n: int, m: int) -> list[Entry]:
        """Which keys each of n queries gives weight."""

        def pattern(*outputs: Array) -> str:
            each = {_pattern(one) for one in _visible(outputs, m)}
            return each.pop() if len(each) == 1 else f"differs between heads: {', '.join(sorted(each))}"

        return [named(self._kernel, SECTION, self.masked(n, m), pattern, self._showing(n, m, "causal"))]

    def future(self, n: int, m: int) -> list[Entry]:
        """The largest weight that a query gives a key beyond its own, all scores being equal."""
        hidden = ~causal_visible(n, m)

        def leaked(*outputs: Array) -> Array:
            weights = np.abs(_weights(outputs, m))
            return np.asarray(np.where(hidden, weights, 0).max(axis=(0, 2)))  # [n]

        names = [f"query {i}" for i in range(n)]
        found = value(self._kernel, leaked, self._showing(n, m, "causal"))
        return [worst(found, SECTION, f"weight on a future token, n = {n}, m = {m}", names, telling=0.05)]

    def own(self, m: int) -> list[Entry]:
        """The weight of each query's own key beside that of the first, all scores being equal."""
        at = np.arange(1, m)

        def beside(*outputs: Array) -> Array:
            weights = _weights(outputs, m)
            return np.asarray(weights[:, at, at] / weights[:, at, 0])  # [H_q, m - 1]

        names = [f"{head}, query {i}" for head in self._heads for i in at]
        found = value(self._kernel, beside, self._showing(m, m, "causal"))
        return [worst(found, SECTION, f"own weight beside another, {m} keys", names, telling=0.5)]

    def given(self) -> list[Entry]:
        """A random mask, of which each query sees the first key."""
        n, m = self._rows(SHORT, most=5), KEYS if not self._square else SHORT
        visible = np.random.default_rng(0).integers(2, size=(n, m)) == 1
        visible[:, 0] = True

        def compared(*outputs: Array) -> str:
            found = _visible(outputs, m)
            more, less = (found & ~visible).sum(), (~found & visible).sum()
            return f"{more} hidden keys seen, {less} shown ones not" if more or less else "as given"

        return [named(self._kernel, SECTION, "given mask", compared, self._showing(n, m, "given", visible))]

    def _signs(self, D: int) -> Array:
        """A direction that uses every entry."""
        return 2.0 * np.random.default_rng(D).integers(2, size=D) - 1

    def _rows(self, m: int, most: int = 1) -> int:
        """How many queries a call has of which the last one is read."""
        return m if self._square else min(most, self._kernel.operator.max_queries or most)

    def _one(self, q: Array, k: Array, v: Array) -> AttentionCall:
        """One query q [H_q, D] a head, which sees all keys."""
        mask = next(one for one in (*MASKS, "given") if one in self._kernel.operator.masks)
        m = k.shape[1]
        rows = np.repeat(q[:, None], self._rows(m), axis=1)  # [H_q, n, D]
        given = np.ones((rows.shape[1], m), bool) if mask == "given" else None
        rows, k, v = (one.astype(np.float32) for one in (rows, k, v))
        return AttentionCall(rows, k, v, mask == "causal", given)

    def _showing(self, n: int, m: int, mask: Mask, visible: Array | None = None) -> list[AttentionCall]:
        """Calls with equal scores that show the weight on every key, D keys a call."""
        operator = self._kernel.operator
        if mask not in operator.masks:
            raise NotOffered(f"attention with the mask '{mask}'")
        if n > (operator.max_queries or n):
            raise NotOffered(f"attention with {n} queries")
        q, k = np.zeros((self._H_q, n, self.D), np.float32), np.zeros((self._H_kv, m, self.D), np.float32)
        parts = [range(start, min(start + self.D, m)) for start in range(0, m, self.D)]
        values = (_one_hot(self._H_kv, m, self.D, part).astype(np.float32) for part in parts)
        return [AttentionCall(q, k, v, mask == "causal", visible) for v in values]

    def _takes_only_squares(self) -> bool:
        """Whether a single query is refused: then there are as many queries as keys, and the last one is read."""
        one = self._one(np.zeros((self._H_q, self.D)), *np.zeros((2, self._H_kv, KEYS, self.D)))
        try:
            answers(self._kernel, [one])
        except Refused:
            return self._kernel.operator.max_queries is None
        return False


def _beside(differences: Sequence[Array] | Array, nominal: Array) -> Array:
    """Differences of scores, in parts of what they should be, beside the first."""
    parts = [one / wanted for one, wanted in zip(differences, nominal, strict=True)]
    return np.array(parts[1:]) / parts[0]


def _capped(cap: float, top: Array, low: Array) -> Array:
    """What a cap makes of the above."""
    return _beside(cap * (np.tanh(top / cap) - np.tanh(low / cap)), top - low)


def _one_hot(H_kv: int, m: int, D: int, keys: Sequence[int]) -> Array:
    """Values [H_kv, m, D] whose channel c is 1 at key ``keys[c]``: the output is the weight on it."""
    v = np.zeros((H_kv, m, D))
    v[:, keys, range(len(keys))] = 1
    return v


def _weights(outputs: Sequence[Array], m: int) -> Array:
    """Weights [H_q, n, m] from the answers to calls that show D keys each."""
    return np.asarray(np.concatenate(outputs, axis=-1)[..., :m])


def _visible(outputs: Sequence[Array], m: int) -> Array:
    """Which keys have clearly weight, where all scores are equal, bool [H_q, n, m]."""
    weights = np.nan_to_num(_weights(outputs, m), nan=0.0, posinf=0.0)
    return np.asarray(weights > np.maximum(weights.max(axis=-1, keepdims=True), 0.0) * SEEN)


def _alignment(n: int, m: int) -> str:
    return "causal" if n == m else "lower right"


def _pattern(seen: Array) -> str:
    """The name of a mask [n, m]."""
    n, m = seen.shape
    causal, own = causal_visible(n, m), np.arange(m - n, m)[:, None]
    known = [(_alignment(n, m), causal), ("upper left", np.tri(n, m, dtype=bool)), ("all keys", np.ones((n, m), bool))]
    known += [(f"window of {W}", causal & (np.arange(m) > own - W)) for W in range(1, m)]
    known += [(f"{_alignment(n, m)}, {ahead} ahead", np.arange(m) <= own + ahead) for ahead in range(1, n - 1)]
    other = f"{UNKNOWN}: the last query sees {seen[-1].sum()} keys"
    return next((name for name, mask in known if (mask == seen).all()), other)
