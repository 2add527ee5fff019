"""The command that goes on with an interrupted run, as it was typed and with the run's folder."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.terminal import continuation


@pytest.fixture(autouse=True)
def forgetting() -> Iterator[None]:
    yield
    continuation.forget()


@pytest.mark.parametrize(
    ("typed", "is_by_uv", "shown"),
    [
        (["/x/python", "jobs/cifar10.py", "--data", "my photos"], True,
         "uv run jobs/cifar10.py --data 'my photos' --run-dir 'runs/a b'"),
        ([".venv/bin/python", "jobs/cifar10.py"], False, ".venv/bin/python jobs/cifar10.py --run-dir 'runs/a b'"),
        ([".venv/bin/python", "jobs/cifar10.py", "--resume"], False,
         ".venv/bin/python jobs/cifar10.py --run-dir 'runs/a b'"),
        (["python", "-m", "jobs.cifar10", "--epochs", "2"], False,
         "python -m jobs.cifar10 --epochs 2 --run-dir 'runs/a b'"),
        (["python", "jobs/cifar10.py", "--run-dir", "other"], False, "python jobs/cifar10.py --run-dir other"),
        (["python", "jobs/cifar10.py", "--run-dir=other"], False, "python jobs/cifar10.py --run-dir=other"),
        (["python", "jobs/cifar10.py", "--run_dir", "other"], False, "python jobs/cifar10.py --run_dir other"),
        (["/x/python", "/x/.venv/bin/image-pipeline", "train"], True,
         "uv run image-pipeline train --run-dir 'runs/a b'"),
        (["/x/python", "/nowhere/image-pipeline", "train"], False,
         "/nowhere/image-pipeline train --run-dir 'runs/a b'"),
    ],
)  # fmt: skip
def test_the_command_is_as_it_was_typed_with_the_folder_of_the_run(
    monkeypatch: pytest.MonkeyPatch, typed: list[str], is_by_uv: bool, shown: str
) -> None:
    num_program = 3 if "-m" in typed else 2
    monkeypatch.setattr(sys, "orig_argv", typed)
    monkeypatch.setattr(sys, "argv", ["", *typed[num_program:]])
    monkeypatch.setattr(continuation, "_is_started_by_uv", lambda: is_by_uv)
    continuation.goes_on_with("--run-dir", "runs/a b")
    line = continuation.command_to_go_on()
    assert line == shown
    assert shlex.split(line)[-1].startswith(("runs/a b", "other", "--run-dir=other"))


@pytest.mark.parametrize(
    ("typed", "is_by_uv", "shown"),
    [
        (["/x/python", "jobs/tune.py", "--trials", "2"], True, "uv run jobs/cifar10.py --data 'a b'"),
        (["python", "/x/jobs/tune.py"], False, "python /x/jobs/cifar10.py --data 'a b'"),
        (["python", "-m", "jobs.tune", "--trials", "2"], False, "python -m jobs.cifar10 --data 'a b'"),
        (["python", "-m", "jobs.cli", "tune"], False, "python -m jobs.cli train --data 'a b'"),
        (["/x/python", "/x/.venv/bin/image-pipeline", "tune"], True, "uv run image-pipeline train --data 'a b'"),
        (["/x/python", "/nowhere/image-pipeline", "tune"], False, "/nowhere/image-pipeline train --data 'a b'"),
    ],
)
def test_another_command_is_started_as_this_one(
    monkeypatch: pytest.MonkeyPatch, typed: list[str], is_by_uv: bool, shown: str
) -> None:
    monkeypatch.setattr(sys, "orig_argv", typed)
    monkeypatch.setattr(sys, "argv", ["", *typed[3 if "-m" in typed else 2 :]])
    monkeypatch.setattr(continuation, "_is_started_by_uv", lambda: is_by_uv)
    assert continuation.command_of("cifar10", "train", ["--data", "a b"]) == shown


def test_without_a_run_the_command_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "jobs/ingest.py", "--source", "$HOME/x"])
    monkeypatch.setattr(sys, "argv", ["jobs/ingest.py", "--source", "$HOME/x"])
    monkeypatch.setattr(continuation, "_is_started_by_uv", lambda: False)
    assert continuation.command_to_go_on() == "python jobs/ingest.py --source '$HOME/x'"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--data", "./photos", "--run-dir", "runs/x"], "python jobs/cifar10.py --data {here}/photos --seed 7"),
        (["--data=./photos", "--run-dir=runs/x", "--resume"], "python jobs/cifar10.py --data={here}/photos --seed 7"),
        (["--seed", "3", "--data", "s3://b/c"], "python jobs/cifar10.py --seed 3 --data s3://b/c"),
    ],
)
def test_the_command_that_repeats_a_run_has_absolute_paths_and_the_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], shown: str
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "orig_argv", ["python", "jobs/cifar10.py", *words])
    monkeypatch.setattr(sys, "argv", ["jobs/cifar10.py", *words])
    monkeypatch.setattr(continuation, "_is_started_by_uv", lambda: False)
    assert continuation.command_to_repeat(7) == shown.format(here=tmp_path)
