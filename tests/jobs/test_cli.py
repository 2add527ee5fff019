"""The command `image-pipeline`: its list of subcommands, and the help of each."""

import importlib
import os
import pstats
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
        "mix", "plan", "versions", "nights",
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


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
# A command that has loaded torch (a stand-in, as only its name in sys.modules counts): what it leaves for the end.
ENDING = """
import atexit, sys, threading, time, types
from concurrent.futures import ThreadPoolExecutor
from jobs.terminal.command import run_process
class Torn:
    def __del__(self): print("taken apart")
for name in {modules}:
    sys.modules[name] = types.ModuleType(name)
sys.modules["torch"].held = Torn()
atexit.register(lambda: print("called at the end"))
def late(text):
    time.sleep(0.2)
    print(text)
def main():
    print("done")
    threading.Thread(target=late, args=["a thread"]).start()
    ThreadPoolExecutor(1).submit(lambda: late("") or late("a pool"))
    return {status}
run_process(main)
"""


def ended(modules: list[str], status: int, shell: str = "") -> subprocess.CompletedProcess[str]:
    """Runs ENDING. shell: redirections."""
    line = shlex.join([sys.executable, "-c", ENDING.format(modules=modules, status=status)])
    return subprocess.run(f"{line} {shell}", shell=True, capture_output=True, text=True, cwd=ROOT, env=BUFFERED)


@pytest.mark.parametrize(("modules", "status"), [(["torch"], 0), (["torch"], 2), (["torch", "ray"], 0)])
def test_a_command_that_has_loaded_torch_ends_as_others_without_taking_it_apart(
    modules: list[str], status: int
) -> None:
    """Threads and pools end their work, and what is registered for the end is called, whatever the status is."""
    finished = ended(modules, status)
    lines = ["done", "a thread", "", "a pool", "called at the end"]
    assert sorted(finished.stdout.splitlines()) == sorted(lines)
    assert finished.stdout.endswith("a pool\ncalled at the end\n")
    assert (finished.returncode, finished.stderr) == (status, "")


def test_a_command_with_ray_that_fails_ends_at_once() -> None:
    finished = ended(["torch", "ray"], 2)
    assert (finished.returncode, finished.stdout, finished.stderr) == (2, "done\n", "")


@pytest.mark.parametrize("status", [0, 2])
def test_a_command_without_standard_error_has_its_status(status: int) -> None:
    finished = ended(["torch"], status, shell="2>&-")
    assert finished.returncode == status
    assert finished.stdout.endswith("called at the end\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(("status", "expected"), [(0, 1), (2, 2)])
def test_output_that_cannot_be_written_is_no_success(status: int, expected: int) -> None:
    finished = ended(["torch"], status, shell=">/dev/full")
    assert finished.returncode == expected
    assert finished.stderr == "error: the standard output can't be written: No space left on device\n"


def test_a_profiler_writes_its_file(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(ENDING.format(modules=["torch"], status=0))
    line = [sys.executable, "-m", "cProfile", "-o", str(tmp_path / "profile"), str(program)]
    subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, cwd=ROOT)
    assert "run_process" in {function for _, _, function in pstats.Stats(str(tmp_path / "profile")).stats}  # type: ignore[attr-defined]


@pytest.mark.parametrize("shell", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_program_runs_without_standard_streams(tmp_path: Path, shell: str) -> None:
    line = shlex.join([sys.executable, "jobs/registry.py", "list", "--registry", str(tmp_path)])
    finished = subprocess.run(f"{line} {shell}", shell=True, capture_output=True, text=True, cwd=ROOT)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert ("0 versions" in finished.stdout) == (shell == "2>&-")
