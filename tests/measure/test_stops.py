"""The section on stops: right engines are all equal, and each planted fault is named; nothing here rests on chance."""

from pathlib import Path

import pytest
from sheets import differing, outcomes, sheet

from lmconform.measure.sheet import Outcome
from lmconform.measure.stops import stops

FAULTS = "lmconform.faults."
ENGINES = Path(__file__).parents[1] / "suite" / "stop_engines.py"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_stops_of_the_reference_are_equal_in_every_line(dtype: str) -> None:
    assert outcomes(sheet(stops, "stop-tape", dtype=dtype)) == {Outcome.EQUAL}


def test_the_stops_of_transformers_are_equal_in_every_line_but_one() -> None:
    """Its text holds the stop string, so that no one can say where it would be cut."""
    lines = sheet(stops, "stop-tape", "transformers")
    assert [name for name, line in lines.items() if line.outcome is not Outcome.EQUAL] == ["text is cut at"]
    assert lines["text is cut at"].outcome is Outcome.NOT_OFFERED


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("stop_conditions:KeepsOneEosId", {"EOS ids of a list that end a row": "1 of 3"}),
        ("stop_conditions:ReadsConfigJsonOnly", {"EOS ids are read from": "config.json"}),
        ("stop_conditions:StopsAtEosUnasked", {"EOS id that was not asked for": "token 4"}),
        ("stop_minimum:StopsATokenTooEarly", {"first stop id after min_new_tokens 4": "token 4"}),
        ("stop_minimum:StopsATokenTooLate", {"first stop id after min_new_tokens 4": "token 6"}),
        ("stop_conditions:GivesOneTokenTooMany", {"max_new_tokens 1, 7, 19": "2, 8, 20"}),
        ("stop_conditions:DrawsBeforeItCounts", {"max_new_tokens 0": "1 new"}),
        ("stop_conditions:MatchesSequencesInAnyOrder", {"stop sequence": "token 2"}),
        ("stop_conditions:SequencesBeginInThePrompt", {"stop sequence from the prompt on": "token 1"}),
        ("stop_conditions:StringsBeginInThePrompt", {"stop string from the prompt on": "token 1"}),
        ("stop_conditions:ChecksTheLimitFirst", {"stop with the last token": "length"}),
        (
            "stop_strings:LooksAtSinglePieces",
            {"stop string across 2 tokens": "goes on", "stop string across 3 tokens": "goes on"},
        ),
        ("stop_strings:LeaksTheStopString", {"stop string in the text": "returned"}),
        ("stop_strings:CutsAtTheFirstOfTheList", {"text is cut at": "the first string of the list"}),
        ("stop_rows:FillsEndedRows", {"rows of a batch end after": "8, 8, 8, 8"}),
        (
            "stop_rows:ReturnsADroppedStop",
            {"stop id in the tokens": "returned", "stop sequence in the tokens": "returned"},
        ),
    ],
)
def test_a_fault_of_stops_is_named_and_nothing_else(fault: str, found: dict[str, str]) -> None:
    assert differing(sheet(stops, "stop-tape", FAULTS + fault)) == found


def test_an_ignored_eos_id_is_named_by_its_place_in_the_list() -> None:
    line = sheet(stops, "stop-tape", FAULTS + "stop_conditions:KeepsOneEosId")["EOS ids of a list that end a row"]
    assert line.note == "not at place 2 (goes on), 3 (goes on)"


@pytest.mark.parametrize("engine", ["Silent", "Dropping", "Returning"])
def test_engines_that_choose_otherwise_are_equal_too(engine: str) -> None:
    assert Outcome.DIFFERS not in outcomes(sheet(stops, "stop-tape", f"{ENGINES}:{engine}"))
