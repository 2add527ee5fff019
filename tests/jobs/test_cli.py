"""The command `image-pipeline`: its list of subcommands, and the help of each."""

import importlib
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import cli
from jobs.evaluate import recall_changes
from jobs.terminal import command
from tests.support.jobs import ROOT

# Scripts without a subcommand have the same help.
MODULES = {**{name: module for name, (module, _) in cli.SUBCOMMANDS.items()}, "": "jobs.imagenet_resnet"}


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Returns (exit status, standard output, standard error) of `image-pipeline ARGUMENTS`."""
    status = cli.main(arguments)
    return status, *capsys.readouterr()


def test_help_lists_every_subcommand_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = called(capsys, "--help")
    assert status == 0
    assert set(cli.SUBCOMMANDS) == {
        "train", "ingest", "evaluate", "predict", "export", "retrain", "registry", "push", "tune", "verify", "replay",
        "mix", "plan", "versions",
    }  # fmt: skip
    for name, (_, text) in cli.SUBCOMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", out, re.MULTILINE)
    assert called(capsys) == (2, out, "")


def test_help_appears_at_once_without_torch_and_ray() -> None:
    code = "import sys; from jobs import cli; print(cli.usage()); print({'torch', 'ray', 'numpy'} & set(sys.modules))"
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.endswith("set()\n")
    print(f"help after {time.perf_counter() - start:.2f} s")


@pytest.mark.parametrize(
    ("word", "remedy"), [("trian", "did you mean train?"), ("eval", "did you mean evaluate?"), ("zzz", "choose from ")]
)
def test_an_unknown_subcommand_is_one_line_with_the_nearest(
    word: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = called(capsys, word, "--data", "x")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {word}: no such subcommand; {remedy}")
    assert err.count("\n") == 1


def test_a_subcommand_is_the_job_and_leaves_its_process_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", object())  # for Ray's sake, only an entry point may end its process at once
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    status, _, err = called(capsys, "registry", "list")
    assert status == 2
    assert err == "error: registry is missing; give --registry URI, a folder or a prefix of a bucket\n"
    assert "0 versions" in called(capsys, "registry", "list", "--registry", str(tmp_path))[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("name", MODULES)
def test_help_of_a_command_is_grouped_shows_defaults_and_ends_with_two_examples(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    module = importlib.import_module(MODULES[name])
    program = f"image-pipeline {name}" if name else None
    with pytest.raises(SystemExit) as end:
        command.parse(module.Args, module.__doc__ or "", program, ["--help"])
    out = capsys.readouterr().out
    assert not end.value.code
    groups = re.findall(r"^\W*([a-z][a-z ]*) options\W*$", out, re.MULTILINE)
    assert len(groups) == len(set(groups))
    if name in ("train", "retrain", "tune", ""):
        known = ("data", "recipe", "hardware", "output", "advanced")
        assert [each for each in groups if each in known] == list(known)[: 4 if name == "tune" else 5]
    elif name not in ("verify", "export", "replay", "mix"):  # a handful of flags
        assert groups
    assert max(map(len, out.splitlines())) <= 80
    assert "(default: " in out or name in ("verify", "mix")
    head, _, examples = out.rpartition("\nexamples:\n")
    assert "Examples:" not in head
    assert len(examples.replace("\\\n", "").strip().splitlines()) >= 2
    assert not name or f"  {program} " in examples


@pytest.mark.parametrize("name", MODULES)
def test_the_flags_of_each_example_parse(name: str) -> None:
    module = importlib.import_module(MODULES[name])
    for line in command.examples(module.__doc__ or "", "PROGRAM"):
        words = shlex.split(line)
        if "python" in words:  # ray job submit ... -- python jobs/NAME.py
            words = words[words.index("python") + 1 :]
        assert isinstance(command.parse(module.Args, "", None, words[1:]), module.Args)


def completed(script: str, *words: str) -> set[str]:
    """Returns what bash offers for the last word of a command line."""
    line = " ".join(shlex.quote(word) for word in words)
    code = f'{script}\nCOMP_WORDS=({line}) COMP_CWORD={len(words) - 1}\n_image_pipeline\necho "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_subcommands_flags_and_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, script, _ = called(capsys, "--completion", "bash")
    assert status == 0
    assert completed(script, "image-pipeline", "tr") == {"train"}
    assert completed(script, "image-pipeline", "") == set(cli.SUBCOMMANDS)
    assert {"--epochs", "--set", "--help"} <= completed(script, "image-pipeline", "train", "--")
    assert completed(script, "image-pipeline", "train", "--learn") == {"--learning-rate"}
    assert completed(script, "image-pipeline", "train", "--recipe", "imagenette-") == {
        "imagenette-5", "imagenette-20", "imagenette-80",
    }  # fmt: skip
    assert completed(script, "image-pipeline", "train", "--device", "") >= {"auto", "gpu", "cpu"}
    assert completed(script, "image-pipeline", "train", "--set", "augment.mix") == {"augment.mixup_alpha="}
    (tmp_path / "photos").mkdir()
    assert completed(script, "image-pipeline", "train", "--data", f"{tmp_path}/ph") == {f"{tmp_path}/photos"}
    assert "list" in completed(script, "image-pipeline", "registry", "l")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_know_every_flag(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, script, _ = called(capsys, "--completion", shell)
    assert status == 0
    assert ("bashcompinit" in script) == (shell == "zsh")
    for name in ("epochs", "run-dir", "dry-run", "robustness"):
        assert (f"-l {name} " if shell == "fish" else f"--{name} ") in script


def test_a_shell_without_completion_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert called(capsys, "--completion", "tcsh") == (2, "", "error: --completion tcsh: give one of bash, zsh, fish\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    command_line = f"set -o pipefail; {sys.executable} -m jobs.cli --help | true"
    done = subprocess.run(["bash", "-c", command_line], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


def test_a_class_whose_recall_falls_does_not_rise() -> None:
    lines = [
        {"class": name, "change": b - a, "recall": (a, b)} for name, a, b in (("cat", 0.9, 0.5), ("dog", 0.5, 0.5))
    ]
    assert recall_changes(lines) == [("recall falls most", "cat 0.900 -> 0.500"), ("rises most", "none")]


def test_a_command_that_has_loaded_torch_ends_without_taking_it_apart() -> None:
    """What is registered for the end is called, also where the status is 0."""
    program = """
import atexit, sys, types
from jobs.terminal.command import run_process
class Torn:
    def __del__(self): print("taken apart")
sys.modules["torch"] = types.ModuleType("torch")
sys.modules["torch"].held = Torn()
atexit.register(lambda: print("called at the end"))
run_process(lambda: print("done") or 0)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\ncalled at the end\n", "")
