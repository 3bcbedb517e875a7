"""The command line, once as a process of its own and otherwise by its entry point."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ref_common import LETTERS

from refdecoder import FastGenerator, Request, Sampler, Stops, generate, load
from refdecoder.__main__ import main
from refdecoder.text import Text

PROMPT = "bcd"  # ids 1, 2, 3


def continuation(llama: Path, n: int, sampler: Sampler | None = None, seed: int | None = None) -> str:
    [done] = generate(load(llama), [Request([1, 2, 3], n, sampler or Sampler(), seed=seed)])
    return "".join(LETTERS[token] for token in done.tokens)


def test_as_a_process(llama: Path) -> None:
    command = [sys.executable, "-m", "refdecoder", "generate", str(llama), PROMPT, "--max-new-tokens", "9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == continuation(llama, 9) + "\n"
    assert "prefill 3 tokens" in done.stderr
    assert "decode 8 tokens" in done.stderr
    assert done.stderr.count("tokens/s") == 2
    command[4] = str(llama / "nowhere")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_ranks(llama: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "refdecoder", "generate", str(llama), PROMPT, "--max-new-tokens", "9"]
    drawn = [*command, "--temperature", "2", "--seed", "5"]
    done = subprocess.run(drawn, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == continuation(llama, 9, Sampler(2.0), 5) + "\n"
    assert done.stderr.count("tokens/s") == 2
    command[command.index(PROMPT)] = "a" * 65
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("refdecoder: A sequence of 65 tokens was given") == 1
    assert done.stderr.count("exitcode  : 2") == 1, "rank 0 says no, and the others end in peace"


@pytest.mark.parametrize("option", [["--path", "fast"], ["--compile"]])
def test_ranks_have_no_fast_path(
    llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "as torchrun says it")
    assert main(["generate", str(llama), PROMPT, *option]) == 2
    assert "The fast path is for one process" in capsys.readouterr().err


def test_options_reach_the_model(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filters = ["--temperature", "2", "--top-k", "30", "--top-p", "0.95", "--min-p", "0.01", "--seed", "5"]
    options = [*filters, "--max-new-tokens", "12", "--chunk", "2"]
    assert main(["generate", str(llama), PROMPT, *options, "--path", "plain", "--attention", "eager"]) == 0
    sampler = Sampler(2.0, 30, 0.95, 0.01)
    wanted = continuation(llama, 12, sampler, 5)
    assert capsys.readouterr().out == wanted + "\n"
    assert wanted != continuation(llama, 12)
    assert main(["generate", str(llama), PROMPT, *options]) == 0
    request = Request([1, 2, 3], 12, sampler, Stops(ids=(36,)), seed=5)  # 36 is the checkpoint's EOS
    [done] = FastGenerator(load(llama), 1, 15).generate([request], decode=Text(llama).decode)
    assert capsys.readouterr().out == done.text + "\n"
    assert done.text not in ("", wanted)  # a seed gives other draws on the fast path
    assert main(["generate", str(llama), PROMPT, "--max-new-tokens", "1", "--dtype", "bfloat16"]) == 0
    [done] = generate(load(llama, torch.bfloat16), [Request([1, 2, 3], 1)])
    assert capsys.readouterr().out == LETTERS[done.tokens[0]] + "\n"


def test_paths(llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast path is the default and compiles where it is told to; both give the same greedy text."""
    made: list[dict[str, object]] = []
    start = FastGenerator.__init__
    monkeypatch.setattr(
        FastGenerator, "__init__", lambda self, *sizes, **settings: made.append(settings) or start(self, *sizes)
    )
    for options, settings in (
        ([], [{"compile": False}]),
        (["--compile"], [{"compile": True}]),
        (["--path", "plain"], []),
    ):
        assert main(["generate", str(llama), PROMPT, "--max-new-tokens", "9", *options]) == 0
        assert capsys.readouterr().out == continuation(llama, 9) + "\n"
        assert made == settings
        made.clear()


def test_stop_strings_and_eos_end_it(broken: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    llama = broken()
    free = continuation(llama, 12)
    stop = free[3:5]
    assert main(["generate", str(llama), PROMPT, "--stop", "aKaK", "--stop", stop, "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == free[: free.index(stop)] + "\n"
    (llama / "generation_config.json").write_text(f'{{"eos_token_id": {LETTERS.index(free[2])}}}')
    assert main(["generate", str(llama), PROMPT, "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == free[: free.index(free[2])] + "\n"


def test_nothing_to_generate(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(llama), PROMPT, "--max-new-tokens", "0"]) == 0
    assert capsys.readouterr() == ("\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-p", "2"], "top_p is 2.0"),
        (["--device", "nonsense"], "Device 'nonsense' cannot be used here"),
        (["--device", "meta"], "Device 'meta' cannot be used here"),
        (["--chunk", "0"], "chunk is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--stop", ""], "empty"),
        (["--max-new-tokens", "-1"], "max_new_tokens"),
    ],
)
def test_bad_options(llama: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert main(["generate", str(llama), PROMPT, *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("refdecoder: ")
    assert err.count("\n") == 1


def test_bad_prompts_and_tokenizers(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(llama), ""]) == 2
    assert "0 tokens" in capsys.readouterr().err
    assert main(["generate", str(llama), "a" * 65]) == 2
    assert "65 tokens" in capsys.readouterr().err
    assert main(["generate", str(tmp_path), PROMPT]) == 2
    assert "tokenizer.json does not exist" in capsys.readouterr().err
    (tmp_path / "tokenizer.json").write_text("{}")
    assert main(["generate", str(tmp_path), PROMPT]) == 2
    assert "is not a tokenizer" in capsys.readouterr().err


def test_usage_errors_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", "somewhere", PROMPT, "--dtype", "int8"])
    assert ended.value.code == 2
    assert "invalid choice: 'int8'" in capsys.readouterr().err
