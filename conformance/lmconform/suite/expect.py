"""What a test may say, kind by kind.

- On anything discrete (``words``): `bites`, `undecided`, `same`, `holds`, `in_vocabulary`, `refuses`, `on`.
- On whole scores (``whole_scores``): `shows`, `agrees`, `differs`, `close`, `tokens`.
- On what an instrument reads from them (``gauge``): `reading`, which says `agrees`, `close`, `signs`.
- On the attention weights of a scope (``attention_weights``): `reads`, `sees`, `zero`.
- On named numbers of an instrument (``meters``): `weighs`.
- On the lines of a data sheet (``sheets``): `measures`.
- On draws (``draws``): `follows`, `sums_to_one`.

A test never writes a tolerance. Budgets come from ``judging``; an exceedance carries a Finding for the failure card.
"""

from __future__ import annotations

from lmconform.suite.attention_weights import WeightWords
from lmconform.suite.draws import DrawWords
from lmconform.suite.gauge import ReadingWords
from lmconform.suite.meters import MeterWords
from lmconform.suite.sheets import SheetWords
from lmconform.suite.whole_scores import ScoreWords


class Expect(ScoreWords, ReadingWords, WeightWords, MeterWords, SheetWords, DrawWords):
    """All words, bound to one model and one example."""
