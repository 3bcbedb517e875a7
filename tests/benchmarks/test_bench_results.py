"""Files of results, their tables, plots and page."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from bench_common import results

from benchmarks import plots, report, tables
from benchmarks.compare import compare
from benchmarks.results import Record, Results, Unreadable, latest, read
from benchmarks.shapes import SIZES

HOSTILE = "<script>alert(1)</script>"


def measured() -> Results:
    """A run with every kind of benchmark, whose numbers are made up."""
    made = results({"share": [0.9] * 9}, {"bytes": 3e6})
    made.calibration = {
        "dtype": "float32",
        "stream": "sum",
        "product": "1024 x 1024",
        "bytes_per_second": 1e10,
        "flops_per_second": 1e11,
        "flops_per_byte": 10.0,
    }
    shape = dict(vars(SIZES["8M"].shape))
    about = {"size": "8M", "shape": shape, "weights": "float32", "kv_cache": "float32", "new": 33}
    made.records = []
    for kind, key, values in (("decode", "prompt", (16, 128)), ("batch", "batch", (1, 2, 16))):
        for value in values:
            times = {"subject": [0.5, 0.6], "subject first": [0.1, 0.1]}
            times |= {"transformers": [0.9, 1.0], "transformers first": [0.2, 0.2]}
            record = Record(f"{kind}[8M-{value}]", kind, {"prompt": 16, "batch": 1, **about, key: value}, times=times)
            record.roofline = {"bound": "memory", "floor": 0.01, "measured": 0.0125 * (1 + value / 8), "ratio": 0.8}
            made.records.append(record)
    cache = Record("cache[8M]", "cache", about | {"prompt": 16}, times={"subject": [1.0]})
    cache.figures = {
        "seconds of each token without the cache": [0.1, 0.2, 0.3, 0.4],
        "seconds with the cache by tokens": {"1": 0.1, "3": 0.2, "4": 0.3},
        "seconds without": 1.0,
    }
    made.records.append(cache)
    return made


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    wanted = measured()
    path = wanted.write(tmp_path / "new folder" / wanted.file_name())
    assert path.name == "20270131-142501-no-comm.json"
    assert read(path) == wanted
    assert [one.name for one in path.parent.iterdir()] == [path.name]  # no part of it is left behind


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"schema": 99, "records": []}', '{"schema": 1, "records": [{}]}']
)
def test_another_file_is_refused_with_the_way_out(tmp_path: Path, content: str) -> None:
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(Unreadable, match=r"odd.json holds no results of this version.*Run them again"):
        read(tmp_path / "odd.json")


def test_nothing_that_json_cannot_say_is_written(tmp_path: Path) -> None:
    made = measured()
    made.records[0].figures["seconds"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        made.write(tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_the_newest_file_is_found_and_counts_only_where_asked(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    timed, counts = measured(), measured()
    timed.created, counts.created = "2027-01-01T00:00:00+00:00", "2027-01-02T00:00:00+00:00"
    for record in counts.records:
        record.times = {}
    for one in (timed, counts):
        one.write(tmp_path / one.file_name())
    (tmp_path / "compared").mkdir()
    counts.write(tmp_path / "compared" / "30000101-000000-zzzzzzz.json")
    newest, newest_timed = latest(tmp_path, counts_only=True), latest(tmp_path)
    assert newest is not None
    assert newest_timed is not None
    assert newest.name == "20270102-000000-no-comm-counts.json"
    assert newest_timed.name == "20270101-000000-no-comm.json"


def test_tables_show_floor_measured_and_ratio_and_the_balance() -> None:
    told = "\n".join(tables.lines(measured()))
    assert "10 ms (memory)" in told
    assert "floor : measured" in told
    assert "calibration: stream (sum) 10 GB/s; product (1024 x 1024, float32) 100 GFLOP/s; 10 FLOP/byte" in told
    assert "8M: bandwidth and compute balance at a batch of" in told
    assert "[0.1" not in told  # a list is for plots


@pytest.mark.parametrize(("value", "text"), [(1.23e9, "1.23 G"), (2e15, "2 P"), (999.0, "999 "), (1234.0, "1.23 k")])
def test_prefixes(value: float, text: str) -> None:
    assert tables.si(value) == text


def test_plots_are_svg_and_the_same_each_time(tmp_path: Path) -> None:
    files = plots.draw(measured(), tmp_path / "a")
    assert [path.name for path in files] == ["decode-8M.svg", "cache-8M.svg", "batch-8M.svg"]
    again = plots.draw(measured(), tmp_path / "b")
    for one, other in zip(files, again, strict=True):
        assert ElementTree.parse(one).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert one.read_bytes() == other.read_bytes()
    assert "roofline" in files[2].read_text()
    assert "cache off" in files[1].read_text()


def test_a_party_is_plotted_where_it_was_timed(tmp_path: Path) -> None:
    made = measured()
    for name in ("transformers", "transformers first"):
        del made.records[1].times[name]  # beside the shortest prompt alone
        for record in made.records[2:5]:
            del record.times[name]  # beside no batch
    decode, _, batch = (path.read_text() for path in plots.draw(made, tmp_path))
    assert "transformers" in decode
    assert "transformers" not in batch


def test_a_page_holds_all_and_escapes_what_others_wrote(tmp_path: Path) -> None:
    made = measured()
    made.engine["name"] = made.baselines[0]["label"] = HOSTILE
    made.left_out[HOSTILE] = made.machine["processor"] = HOSTILE
    made.records[0].notes.append(HOSTILE)
    made.records[1].name = HOSTILE
    for record in made.records[:2]:
        record.times |= {HOSTILE: [0.9, 1.0], f"{HOSTILE} first": [0.2, 0.2]}
    old = results(counts={"bytes": 1.0}, name=HOSTILE)
    told = report.write(made, tmp_path, compare(old, made))
    page = (tmp_path / report.PAGE).read_text(encoding="utf-8")
    assert told == f"Wrote {tmp_path / report.PAGE}"
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 5
    assert page.count("<svg") == 3
    assert "compared with the stored run" in page.lower()


def test_without_matplotlib_the_page_has_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    told = report.write(measured(), tmp_path)
    assert 'python -m pip install -e ".[bench]"' in told
    assert "<svg" not in (tmp_path / report.PAGE).read_text(encoding="utf-8")
    assert "<table>" in (tmp_path / report.PAGE).read_text(encoding="utf-8")


def test_the_report_of_a_stored_run_is_made_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = measured().write(tmp_path / "run.json")
    assert report.main([str(path)]) == 0
    assert (tmp_path / "run" / report.PAGE).exists()
    path.write_text(json.dumps({"schema": 0}))
    assert report.main([str(path)]) == 2
    assert "holds no results" in capsys.readouterr().err
