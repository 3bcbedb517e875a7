"""Starting an engine: targets, options, interpreters, commands, and what the host may import."""

import ast
import json
import os
import stat
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import transport_fakes as fakes

import lmconform
from lmconform.engines import UnknownEngine, known, resolve
from lmconform.transport.client import Connection, EngineDied, EngineSpec, EngineTimeout, StartError
from lmconform.transport.host import main

PACKAGE = Path(lmconform.__file__).parent
FAKES = Path(fakes.__file__)


def failure(spec):
    with pytest.raises(StartError) as caught:
        Connection.start(spec, 20.0, 20.0)
    return caught.value


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("Toi", {}, "has no 'Toi'. Did you mean 'Toy'? Adapters in it: Toy, Bare"),
        ("function", {}, "is a function, not a class. Adapters in it: Toy"),
        ("NotAnEngine", {}, "is not a subclass of lmconform.adapter.Engine"),
        ("Toy", {"devise": "cpu"}, "There is no option 'devise'. Did you mean 'device'? Toy takes: device, dtype."),
        ("Toy", {"zzz": "cpu"}, "There is no option 'zzz'. Toy takes: device, dtype."),
        ("Bare", {"device": "cpu"}, "There is no option 'device'. Bare takes no options."),
        ("Demanding", {}, "The option 'checkpoint_format' is required: --option checkpoint_format=VALUE"),
        ("Demanding", {"checkpoint_format": "x"}, "could not be constructed: it raised OSError: no such device"),
        ("Nameless", {}, "has no name. Set the attribute `name`"),
        ("Mistyped", {}, "precision must be a lmconform.adapter.Precision"),
    ],
)
@pytest.mark.parametrize("in_process", [False, True])
def test_what_cannot_be_constructed(name, options, why, in_process):
    error = failure(EngineSpec(f"{FAKES}:{name}", options=options, in_process=in_process))
    assert why in str(error)
    assert "Traceback" not in str(error)
    sys.modules.pop("lmconform_adapter_transport_fakes", None)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("nowhere.py:Engine", "There is no file nowhere.py (looked for from "),
        ("no_such_module:Engine", "There is no module 'no_such_module' in the environment of "),
        ("json.nothing:Engine", "There is no module 'json.nothing'"),
        ("json:", "does not name an adapter. Write module:Class or path/to/file.py:Class."),
        ("json:JSONDecoder", "is not a subclass of lmconform.adapter.Engine. It holds no subclass"),
        ("my_engine", "There is no engine 'my_engine'."),
    ],
)
def test_targets_that_do_not_exist(target, why):
    assert why in str(failure(EngineSpec(target)))


def test_a_module_that_fails_to_import(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("adapter_a.py").write_text("import no_such_library\n")
    Path("adapter_b.py").write_text("1 / 0\n")
    assert "adapter_a imports 'no_such_library', which is not installed" in str(failure(EngineSpec("adapter_a:E")))
    error = failure(EngineSpec("adapter_b:E"))
    assert "it raised ZeroDivisionError: division by zero" in str(error)
    assert "adapter_b.py" in error.detail


def test_a_module_of_the_current_folder_and_its_neighbours(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "neighbour.py").write_text("NAME = 'hue'\n")
    source = "import colorsys\nfrom lmconform.adapter import Engine\nimport neighbour\ncolorsys.rgb_to_hsv(0, 0, 0)\n"
    (tmp_path / "sub" / "colorsys.py").write_text(source + "class E(Engine):\n    name = neighbour.NAME\n")
    (tmp_path / "here.py").write_text("from lmconform.adapter import Engine\nclass E(Engine):\n    name = 'here'\n")
    monkeypatch.chdir(tmp_path)
    with Connection.start(EngineSpec("here:E")) as engine:
        assert engine.description.name == "here"
    with Connection.start(EngineSpec("sub/colorsys.py:E")) as engine:
        assert engine.description.name == "hue", "a file named like a library does not stand in for it"


def test_a_restart_looks_in_the_same_folder(tmp_path, monkeypatch):
    (tmp_path / "here.py").write_text(FAKES.read_text())
    monkeypatch.chdir(tmp_path)
    with Connection.start(EngineSpec("here.py:Toy"), 20.0, 20.0) as engine:
        monkeypatch.chdir("/")
        os.kill(int(engine.accepts({"question": "pid"})), 9)
        with pytest.raises(EngineDied):
            engine.accepts({})
        assert engine.load(tmp_path).vocab_size == fakes.V


def test_a_constructor_that_dies_or_hangs(start):
    with pytest.raises(StartError, match=r"could not be started.*died during hello: exit code 7") as caught:
        start("Faulty", fault="os_exit", at="start")
    assert "line 99" in caught.value.detail
    with pytest.raises(StartError, match="did not answer hello within 2 s") as caught:
        start("Faulty", fault="hang", at="start", load_limit=2.0)
    assert isinstance(caught.value.__cause__, EngineTimeout)


def test_a_command_that_speaks_the_protocol(tmp_path):
    host = [sys.executable, "-m", "lmconform.transport.host", f"{FAKES}:Toy"]
    with Connection.start(EngineSpec(command=host, options={"device": "a=b"}), 20.0, 20.0) as engine:
        assert engine.accepts({"question": "device"}) == "a=b"
        assert engine.load(tmp_path).score([1]).shape == (1, fakes.V)


def test_a_command_line_is_split_as_a_shell_would():
    spec = EngineSpec.named("", "./my\\ engine --model 'a b'", options=["dtype=float32"])
    assert spec.command == ("./my engine", "--model", "a b")
    assert spec.label == "'./my engine' --model 'a b'"
    assert EngineSpec.recorded(json.loads(json.dumps(spec.record())), None, False) == spec
    with pytest.raises(ValueError, match=r"--command .* cannot be split into words: No closing quotation"):
        EngineSpec.named("", "./engine 'a")


def test_a_record_without_a_command_is_an_adapter():
    record = {"target": "x:Y", "python": None, "options": {"a": "b"}}  # as older counterexamples have it
    assert EngineSpec.recorded(record, "python3", False) == EngineSpec("x:Y", "python3", {"a": "b"})


def test_a_program_of_the_folder_is_found_again_after_a_change_of_folder(tmp_path, monkeypatch):
    program = tmp_path / "engine"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -m lmconform.transport.host {FAKES}:Toy\n")
    program.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
    monkeypatch.chdir(tmp_path)
    with Connection.start(EngineSpec(command=["./engine"]), 20.0, 20.0) as engine:
        monkeypatch.chdir("/")
        os.kill(int(engine.accepts({"question": "pid"})), 9)
        with pytest.raises(EngineDied):
            engine.accepts({})
        assert engine.load(tmp_path).vocab_size == fakes.V


def test_commands_that_do_not():
    assert "The command no-such-program does not exist" in str(failure(EngineSpec(command=["no-such-program"])))
    assert "not a message of the protocol" in str(failure(EngineSpec(command=["sh", "-c", "echo Hello; sleep 60"])))
    other = """read x; echo '{"id": 1, "result": {"protocol": 2, "name": "x"}}'; sleep 60"""
    assert "speaks version 2 of the protocol" in str(failure(EngineSpec(command=["sh", "-c", other])))
    refusal = """read x; echo '{"id": 1, "error": {"kind": "refused", "message": "no GPU"}}'; sleep 60"""
    assert "cannot be used. no GPU" in str(failure(EngineSpec(command=["sh", "-c", refusal])))


def test_progress_bars_are_lines():
    error = failure(EngineSpec(command=["sh", "-c", r"printf 'Loading 1\rLoading 2\rfailed' >&2; exit 3"]))
    assert error.detail.split("\n")[1:] == ["Loading 1", "Loading 2", "failed"]


def test_a_line_without_an_end(monkeypatch):
    monkeypatch.setattr("lmconform.transport.protocol.MAX_LINE", 1000)
    error = failure(EngineSpec(command=["sh", "-c", "head -c 100000 /dev/zero; sleep 60"]))
    assert "bytes came without the end of a line" in str(error)


def test_a_spec_is_one_thing():
    with pytest.raises(ValueError, match="No engine is named"):
        EngineSpec()
    with pytest.raises(ValueError, match=r"the adapter x:Y and './my engine' -v: leave one out"):
        EngineSpec("x:Y", command=["./my engine", "-v"])
    with pytest.raises(ValueError, match="write the interpreter into the command"):
        EngineSpec(command=["x"], python="python")
    with pytest.raises(ValueError, match="leave out --python and --command"):
        EngineSpec(command=["x"], in_process=True)
    with pytest.raises(ValueError, match="in_process"):
        EngineSpec("x:Y", in_process=True, python="python")


def test_options_of_the_host(capsys):
    with pytest.raises(SystemExit):
        main(["x:Y", "--option", "device"])
    assert "--option 'device' is not of the form KEY=VALUE" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bare_environment(tmp_path_factory):
    """An interpreter whose environment holds nothing."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


def test_an_interpreter_that_does_not_exist():
    assert "The interpreter /no/python does not exist" in str(failure(EngineSpec("x:Y", python="/no/python")))


def test_an_interpreter_that_is_none(tmp_path):
    broken = tmp_path / "python"
    broken.write_text("not a program")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    assert "could not be started: " in str(failure(EngineSpec("x:Y", python=broken)))


def test_an_environment_without_numpy(bare_environment):
    error = failure(EngineSpec(f"{FAKES}:Toy", python=bare_environment))
    assert f"has no NumPy: {bare_environment} -m pip install numpy" in str(error)


def test_an_interpreter_that_is_too_old(tmp_path):
    """Stands for Python 3.8: runs the bootstrap with that version number."""
    old = tmp_path / "python3.8"
    old.write_text(
        f"#!{sys.executable}\nimport sys\ncode, sys.argv = sys.argv[2], ['-c', *sys.argv[3:]]\n"
        "sys.version_info = (3, 8, 0)\nexec(code)\n"
    )
    old.chmod(0o755)
    assert "is Python 3.8; lmconform's host needs 3.10 or newer" in str(failure(EngineSpec("x:Y", python=old)))


def test_pythonpath_reaches_our_own_interpreter_alone(tmp_path, monkeypatch, bare_environment):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "leaked.py").write_text("from lmconform.adapter import Engine\nclass E(Engine):\n    name = 'leaked'\n")
    (tmp_path / "numpy.py").write_text("raise SystemExit('PYTHONPATH leaked')\n")
    assert "no NumPy" in str(failure(EngineSpec("leaked:E", python=bare_environment)))
    (tmp_path / "numpy.py").unlink()
    with Connection.start(EngineSpec("leaked:E")) as engine:
        assert engine.description.name == "leaked"


@pytest.mark.slow
def test_an_environment_with_numpy_alone(tmp_path, monkeypatch):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = subprocess.run([python, "-m", "pip", "install", "-q", "numpy"], capture_output=True, text=True)
    if pip.returncode:
        pytest.skip(f"pip cannot install NumPy here: {pip.stderr[-200:]}")
    (tmp_path / "leaked.py").write_text("")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.py").write_text(FAKES.read_text() + IMPORTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path / "work")
    with Connection.start(EngineSpec("mine:Importing", python=python), 60.0, 60.0) as engine:
        assert engine.accepts({}) == "refdecoder jsonschema pytest torch leaked"
        path = {Path(folder).resolve() for folder in engine.accepts({"question": "path"}).split(os.pathsep)}
        assert PACKAGE.parent not in path
        assert engine.load(tmp_path).score([1, 2]).tolist() == fakes.toy_scores([1, 2]).tolist()


IMPORTS = """
class Importing(Toy):
    def accepts(self, config):
        missing = []
        for name in ("refdecoder", "jsonschema", "pytest", "torch", "leaked"):
            try:
                __import__(name)
            except ImportError:
                missing.append(name)
        return super().accepts(config) or " ".join(missing)
"""


def test_the_host_imports_the_standard_library_and_numpy_alone():
    code = (
        "import sys; before = set(sys.modules); import lmconform.transport.host;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == {"numpy", "lmconform"}


def test_the_client_loads_neither_torch_nor_pytest():
    code = "import sys, lmconform.transport.client; print(*{'torch', 'pytest', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_the_host_is_written_for_python_3_10():
    code = (
        "import sys, lmconform.transport.host; print(*(m.__file__ for n, m in sys.modules.items() if 'lmconform' in n))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    files = [Path(name) for name in run.stdout.split()]
    assert {"adapter.py", "host.py", "protocol.py"} <= {file.name for file in files}
    for file in files:
        ast.parse(file.read_text(), feature_version=(3, 10))


def test_engines_are_found_without_importing_them(tmp_path):
    body = "raise RuntimeError('imported')\n"
    (tmp_path / "alpha.py").write_text(
        f'"""First line.\n\nMore."""\n{body}class Helper: pass\nclass A(adapter.Engine): pass\n'
    )
    (tmp_path / "beta.py").write_text(f"{body}class B(Engine): pass\nclass C(Engine): pass\n")
    (tmp_path / "_private.py").write_text("class P(Engine): pass\n")
    (tmp_path / "helpers.py").write_text("class NotEngine(Model): pass\n")
    found = known(tmp_path)
    assert list(found) == ["alpha", "beta"]
    assert found["alpha"].summary == "First line."
    assert found["alpha"].target == "lmconform.engines.alpha:A"
    assert found["beta"].summary == ""
    assert resolve("beta", tmp_path) == "lmconform.engines.beta:B"
    assert resolve("some.module:Class") == "some.module:Class"
    with pytest.raises(UnknownEngine, match=r"no engine 'alfa'\. Did you mean 'alpha'\? Known are: alpha, beta\."):
        resolve("alfa", tmp_path)
