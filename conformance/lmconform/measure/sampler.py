"""The data sheet of a sampler, from the tokens that it draws on the dice.

A right engine's section differs anywhere with a probability of at most 1e-6: see ``draws``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise, permutations
from math import ceil

import numpy as np

from lmconform.adapter import NotOffered, Request
from lmconform.checkpoints.dice import FAIR as FACES
from lmconform.checkpoints.dice import Dice
from lmconform.judging.statistics import interval
from lmconform.measure.attempt import attempt
from lmconform.measure.draws import LEVEL, SECTION, Kept, draws_that_show, fitting, temperature
from lmconform.measure.sheet import UNSPECIFIED, Entry, Outcome, choice, declared, missing, number
from lmconform.suite.findings import Unfit
from lmconform.suite.rolls import FAIR, ROWS, Rolls
from lmconform.suite.subject import MOST_LOGPROBS, Subject, Tokens

COINS = (("coin at 0.5", 0.5), ("coin at 2", 1.0), ("coin at 2", 2.0))
"""A die, and the temperature to ask for; with 1,900 draws it is known within 6 %, and that of 1 within 15 %."""
COIN_DRAWS = 60 * ROWS
CUTS: Mapping[str, float] = {"top_k": 4, "top_p": 0.81, "min_p": 0.2}
"""Each keeps four ids of the ladder. Its sums are 0.36, 0.60, 0.76, 0.86, its ratios 0.67, 0.44, 0.28, 0.17: the
thresholds stand in the middle of a gap."""
SMALLEST = 0.025
"""Share of an id that a kept set must show, whether a right engine keeps it or not."""
PAIRS: tuple[Mapping[str, float], ...] = (
    {"temperature": 2.0, "top_p": 0.65},
    {"temperature": 2.0, "min_p": 0.3},
    {"top_k": 3, "top_p": 0.68},
    {"top_p": 0.79, "min_p": 0.15},
)
"""On the ladder the two orders of each pair keep different ids. All other pairs commute."""
PAIR_DRAWS = 12 * ROWS
NAMES = ("temperature", "top_k", "top_p", "min_p")
STAGE_TEMPERATURE, STAGE_TOP_P = 2.0, 0.65
SEEDED = 4
"""Rows with seeds of their own: an engine may have to run each by itself."""


def sampler(model: Subject) -> list[Entry]:
    """All lines of the section; ``model`` is the dice. About 15,000 draws, in calls of 32 rows."""
    if "generate" not in model.doors:
        return [missing(SECTION, "draws", "", "the engine does not offer generate")]
    measured = _Sampler(model)
    return [entry for read in measured.readings for entry in read()]


class _Sampler:
    """The readings of one section; the order of the filters rests on what they do by themselves."""

    def __init__(self, model: Subject) -> None:
        self._model, self._dice = model, model.instrument(Dice)
        self._sound: set[str] = set()
        """Settings that by themselves do what they should."""
        self._dependent = False
        self.readings: tuple[Callable[[], list[Entry]], ...] = (
            self._equal_ids,
            *[partial(self._temperature, die, asked) for die, asked in COINS],
            *[partial(self._cut, name, value) for name, value in CUTS.items()],
            self._unasked,
            partial(self._try, "order", self._declared_order, self._order),
            partial(self._try, "greedy", "the most probable id", self._greedy),
            partial(self._try, "tie rule", model.choices.ties, self._ties),
            partial(self._try, "draws with equal seeds", "the same", self._seeds),
            partial(self._try, "stage of log-probabilities", model.choices.logprobs, self._stage),
        )

    def _try(self, quantity: str, wanted: str, read: Callable[[], Entry]) -> list[Entry]:
        return attempt(SECTION, quantity, wanted, lambda: [read()])

    def _rolls(self, die: str, settings: Mapping[str, float] | None = None) -> Rolls:
        """Draws whose counts are judged. Raises Unfit if they are not independent."""
        if self._dependent:
            raise Unfit("its draws are not independent, so that their counts mean nothing")
        return Rolls(self._model, die, settings)

    def _temperature(self, die: str, asked: float) -> list[Entry]:
        def read() -> Entry:
            return temperature(self._model, self._rolls(die, {"temperature": asked}), COIN_DRAWS)

        (entry,) = self._try(f"temperature {asked:g}", f"{asked:g}", read)
        if asked == 2 and entry.outcome is Outcome.EQUAL:  # the pairs use this one
            self._sound.add("temperature")
        return [entry]

    def _cut(self, name: str, value: float) -> list[Entry]:
        """What one filter keeps, and in what shares."""

        def read() -> list[Entry]:
            made = self._rolls("ladder", {name: value})
            kept = Kept(made, self._model, draws_that_show(SMALLEST, len(self._dice.ids["ladder"])))
            if kept.equal:
                self._sound.add(name)
            return [kept.entry(quantity), *kept.shares(f"shares under {name} {value:g}")]

        quantity = f"ids kept by {name} {value:g}"
        return attempt(SECTION, quantity, "4 ids, mass 0.86", read)

    def _unasked(self) -> list[Entry]:
        """A filter or a penalty that takes effect though it was not asked for: usual are top_p 0.95 and min_p 0.05."""
        quantity = "ids kept without a filter"

        def read() -> list[Entry]:
            made = self._rolls("ladder")
            kept = Kept(made, self._model, draws_that_show(float(made.wanted[made.wanted > LEVEL].min()), 8))
            return [kept.entry(quantity), *kept.shares("shares without a filter")]

        return attempt(SECTION, quantity, "8 ids, mass 1.00", read)

    def _equal_ids(self) -> list[Entry]:
        """Whether draws are independent, and whether a top_k takes effect that was not asked for: usual are 40 and 50.

        Where they are not, nothing that rests on their counts is judged.
        """
        quantity, wanted = "equal ids kept without a filter", f"{FACES} ids"

        def read() -> list[Entry]:
            rows = Rolls(self._model, FAIR).batch(ceil(draws_that_show(1 / FACES, FACES) / ROWS))
            beside = [pair for two in pairwise(rows) for pair in zip(*two, strict=False)]
            before = [pair for row in rows for pair in pairwise(row)]
            agreements = [_agreement("agreement of two rows", beside), _agreement("agreement of two steps", before)]
            self._dependent = any(one.outcome is Outcome.DIFFERS for one in agreements)
            drawn = {token for row in rows for token in row}
            return (
                agreements if self._dependent else [*agreements, choice(SECTION, quantity, f"{len(drawn)} ids", wanted)]
            )

        return attempt(SECTION, quantity, wanted, read)

    @property
    def _declared_order(self) -> str:
        order = self._model.choices.sampler_order
        return UNSPECIFIED if order is None else ", ".join(order)

    def _order(self) -> Entry:
        """Which orders of the filters fit the draws: each pair that does not commute is asked for.

        A filter that by itself does something else is left out, since no order could fit its draws.
        """
        names = [name for name in NAMES if name in self._sound]
        pairs = [pair for pair in PAIRS if set(pair) <= self._sound]
        if not pairs:
            found = ", ".join(names) or "none of them"
            raise Unfit(f"it takes two that do not commute; what it should by itself does {found}")
        orders = list(permutations(names))
        for pair in pairs:
            orders = self._fitting(pair, orders)
        return self._order_entry(names, orders, pairs)

    def _fitting(self, pair: Mapping[str, float], orders: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Those of ``orders`` whose distribution the draws under these settings may have."""
        made = self._rolls("ladder", pair)
        tokens = made(PAIR_DRAWS)
        fits = {turn: fitting(made, made.instead(order=turn), tokens) for turn in permutations(pair)}
        return [order for order in orders if fits[tuple(name for name in order if name in pair)]]

    def _order_entry(self, names: Sequence[str], orders: list[tuple[str, ...]], pairs: Sequence[object]) -> Entry:
        """Of orders that draw the same, the declared one is named, or else the first."""
        left = [name for name in NAMES if name not in names]
        note = f"without {' and '.join(left)}, which by itself is not offered or differs" if left else ""
        promised = self._model.choices.sampler_order
        if not orders:
            return Entry(SECTION, "order", "none fits", self._declared_order, Outcome.DIFFERS, note=note)
        own = tuple(name for name in promised if name in names) if promised is not None else orders[0]
        named = own if own in orders else orders[0]
        others = [", ".join(order) for order in orders if order != named]
        alike = f"draws the same as {' or '.join(others)}" if others else ""
        note = "; ".join(filter(None, (note, alike)))
        outcome = Outcome.EQUAL if promised is None or own in orders else Outcome.DIFFERS
        wanted = UNSPECIFIED if promised is None else ", ".join(own)
        return Entry(SECTION, "order", ", ".join(named), wanted, outcome, note=note)

    def _greedy(self) -> Entry:
        top = self._dice.ids["ladder"][0]
        tokens = [token for row in self._greedily("ladder", ROWS) for token in row]
        kinds = len(set(tokens))
        got = (
            "the most probable id" if set(tokens) == {top} else f"{kinds} different ids" if kinds > 1 else "another id"
        )
        return choice(SECTION, "greedy", got, "the most probable id", where=f"{len(tokens)} tokens without temperature")

    def _ties(self) -> Entry:
        """Of three ids with the same top score, in batches of different sizes and in each of their rows."""
        tied = sorted(self._dice.ids["tied"][:3])
        tokens = {token for rows in (1, 5, ROWS) for row in self._greedily("tied", rows) for token in row}
        if tokens == {tied[0]} or tokens == {tied[-1]}:
            got = "first" if tokens == {tied[0]} else "last"
        else:
            got = "random" if len(tokens) > 1 and tokens <= set(tied) else f"ids {sorted(tokens)}"
        return declared(SECTION, "tie rule", got, self._model.choices.ties, where=f"equal ids {tied}")

    def _greedily(self, die: str, rows: int) -> list[Tokens]:
        return self._model.new_tokens([(self._dice.start(die),)] * rows, 3)

    def _seeds(self) -> Entry:
        """Two calls with the same seeds; with others the draws must differ, or the seeds would mean nothing."""
        start = (self._dice.start(FAIR),)
        first, again, other = (
            [done.tokens for done in self._model.generate([self._seeded(start, seed) for seed in seeds])]
            for seeds in (range(SEEDED), range(SEEDED), range(SEEDED, 2 * SEEDED))
        )
        got = "the same" if again == first else "different"
        if other == first:
            got = "the same, whatever the seed"
        return choice(SECTION, "draws with equal seeds", got, "the same")

    @staticmethod
    def _seeded(prompt: Tokens, seed: int) -> Request:
        return Request(prompt, max_new_tokens=6, temperature=1.0, seed=seed)

    def _stage(self) -> Entry:
        """The log-probabilities of a step at temperature 2 under top-p, beside those of each stage."""
        ids, made = (
            list(self._dice.ids["ladder"]),
            Rolls(self._model, "ladder", {"temperature": STAGE_TEMPERATURE, "top_p": STAGE_TOP_P}),
        )
        stages = {
            "raw": made.instead(temperature=1.0, top_p=1.0),
            "after the temperature, before the filter": made.instead(top_p=1.0),
            "processed": made.wanted,
        }
        most = min(self._model.vocab_size, MOST_LOGPROBS)
        asked = Request(
            (self._dice.start("ladder"),), 1, temperature=STAGE_TEMPERATURE, top_p=STAGE_TOP_P, logprobs=most
        )
        (done,) = self._model.generate([asked])
        if not done.logprobs:
            raise NotOffered("log-probabilities of generate")
        got = np.exp([done.logprobs[0].get(token, -np.inf) for token in ids])
        far = {name: float(np.abs(got - stage[ids]).max()) for name, stage in stages.items()}
        nearest = min(far, key=lambda name: far[name])
        gaps = [np.abs(one[ids] - other[ids]).max() for one, other in permutations(stages.values(), 2)]
        found = nearest if far[nearest] < min(gaps) / 4 else "none that is known"
        return declared(SECTION, "stage of log-probabilities", found, self._model.choices.logprobs)


def _agreement(quantity: str, pairs: Sequence[tuple[int, int]]) -> Entry:
    """How often two draws of the fair die agree that should know nothing of each other: one time in 64."""
    if not pairs:
        raise NotOffered("draws to compare: generate returned too few tokens")
    count = sum(one == other for one, other in pairs)
    low, high = interval(count, len(pairs), LEVEL)
    got, wanted = count / len(pairs), 1 / FACES
    bound = got - low if wanted < got else high - got
    return number(SECTION, quantity, got, wanted, bound, where=f"{len(pairs)} pairs of draws")
