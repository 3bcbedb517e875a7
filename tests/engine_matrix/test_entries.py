"""The list of engines: what may stand in it, and the one that comes with lmconform."""

from pathlib import Path

import pytest

from lmconform.engine_matrix.entries import OURS, Entry, Unusable, chosen, read
from lmconform.engines import known
from lmconform.report.known import Known


def written(tmp_path, text):
    path = tmp_path / "engines.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_files_and_folders_are_those_of_the_list(tmp_path) -> None:
    (tmp_path / "server.txt").write_text("one==1")
    (tmp_path / "known.toml").write_text('engine = "one"')
    path = written(
        tmp_path,
        '[one]\nengine = "openai-http"\nrequirements = ["server.txt"]\nknown = "known.toml"\n'
        "time_limit = 300\nminutes = 40\n"
        'options = { command = "{python} {here}/serve.py", servers = 2 }\n',
    )
    (entry,) = read(path).values()
    assert entry.requirements == [tmp_path / "server.txt"]
    assert entry.known == tmp_path / "known.toml"
    assert entry.options == {"command": "{python} {here}/serve.py", "servers": "2"}
    assert entry.serves, "so that the adapter runs beside the suite"
    command = f"command=/env/python {tmp_path}/serve.py"
    given = ["openai-http", "--time-limit", "300.0", "--option", command, "--option", "servers=2", "--minutes", "40"]
    assert entry.arguments(Path("/env/python")) == [*given, "--known", str(tmp_path / "known.toml")]


def test_an_adapter_is_hosted_in_its_environment_and_one_without_in_ours() -> None:
    assert Entry("one", "mlx").arguments(Path("/env/python")) == [
        "mlx",
        "--time-limit",
        "60.0",
        "--python",
        "/env/python",
    ]
    assert Entry("one", "mlx").arguments(None) == ["mlx", "--time-limit", "60.0"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no engine"),
        ("[one", "is no TOML"),
        ("one = 1", "one does not say its engine"),
        ("[one]\noptions = {}", "one does not say its engine"),
        ('["../one"]\nengine = "reference"', "cannot be the name of a folder"),
        ('[one]\nengine = "reference"\nrequirement = []', "a key 'requirement' that means nothing. Known are: engine,"),
        ('[one]\nengine = "reference"\noptions = "a=b"', "the options of one are no table"),
        ('[one]\nengine = "reference"\ntime_limit = "long"', "the time_limit of one is 'long'"),
        ('[one]\nengine = "reference"\ntime_limit = -1', "the time_limit of one is -1"),
        ('[one]\nengine = "reference"\nminutes = "many"', "the minutes of one is 'many'; a number of minutes"),
        ('[one]\nengine = "reference"\nrequirements = ["none.txt"]', "one names the file none.txt, and there is no"),
        ('[one]\nengine = "reference"\nknown = "none.toml"', "one names the file none.toml, and there is no"),
    ],
)
def test_a_list_that_cannot_be_used_says_why(tmp_path, text, told) -> None:
    with pytest.raises(Unusable) as caught:
        read(written(tmp_path, text))
    assert told in str(caught.value)


def test_a_list_that_is_not_there(tmp_path) -> None:
    with pytest.raises(Unusable, match="cannot be read: No such file"):
        read(tmp_path / "none.toml")


def test_a_wrong_name_is_told_with_the_nearest() -> None:
    with pytest.raises(Unusable, match=r"no entry 'lama-cpp'. Did you mean llama-cpp"):
        chosen(read(), ["lama-cpp"])
    assert [entry.name for entry in chosen(read(), ["mlx", "reference"])] == ["reference", "mlx"], "in its order"
    assert len(chosen(read(), [])) == len(read())


def test_the_list_that_comes_with_lmconform_names_each_engine_and_reasons() -> None:
    entries = read()
    assert {entry.engine for entry in entries.values()} == set(known())
    lists = {entry.known for entry in entries.values() if entry.known}
    assert lists == set((OURS.parent / "known").glob("*.toml"))
    for path in lists:
        assert Known.read(path).with_reasons().entries
    files = {file for entry in entries.values() for file in (*entry.requirements, *entry.without_dependencies)}
    assert files == set((OURS.parent / "requirements").glob("*.txt"))
