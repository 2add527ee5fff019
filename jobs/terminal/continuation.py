"""The command that goes on with what was interrupted, as it can be pasted into the same shell."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

_OF_ONE_RUN = ("--run-dir", "--run-name")
_given: dict[str, str] = {}


def goes_on_with(flag: str, value: str) -> None:
    """Notes a flag that the command needs to go on with what it is doing: `--run-dir`, the folder that was made up."""
    _given[flag] = value


def forget() -> None:
    """Forgets the flags of the command before, in a process that runs several."""
    _given.clear()


def command_to_go_on(arguments: Sequence[str] | None = None) -> str:
    """Returns this process's command line with the flags of `goes_on_with`, quoted for a shell.

    arguments: of the program; None for this process's. A flag that was given stays as it is.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    added = [word for flag, value in _given.items() if not _has(words, flag) for word in (flag, value)]
    if _given:
        words = [word for word in words if word != "--resume"]  # the run is named now
    return shlex.join([*program(), *words, *added])


def command_to_repeat(seed: int) -> str:
    """Returns the command line of a new run of the same numbers: with absolute paths and the seed, and no folder."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") in _OF_ONE_RUN:
            if not equals:
                next(words, None)
        elif word != "--resume":
            kept.append(f"{flag}={_absolute(value)}" if equals else _absolute(word))
    return shlex.join([*program(), *kept, *([] if _has(kept, "--seed") else ["--seed", str(seed)])])


def command_of(job: str, subcommand: str, arguments: Sequence[str]) -> str:
    """Returns the command line of another job, started as this one: `uv run jobs/JOB.py` or `image-pipeline NAME`."""
    *before, script = program()
    if script.endswith(".py"):
        words = [str(Path(script).with_name(f"{job}.py"))]
    elif script.startswith("jobs.") and script != "jobs.cli":
        words = [f"jobs.{job}"]
    else:
        words = [script, subcommand]
    return shlex.join([*before, *words, *arguments])


def _absolute(word: str) -> str:
    """Returns a path that exists as an absolute one, and any other word as it is."""
    return os.path.abspath(word) if "/" in word and os.path.exists(word) else word


def _has(words: Sequence[str], flag: str) -> bool:
    names = (flag, flag.replace("-", "_").replace("__", "--", 1))
    return any(word == name or word.startswith(f"{name}=") for word in words for name in names)


def program() -> list[str]:
    """Returns the words before the arguments, as they were typed: `uv run jobs/cifar10.py`, `image-pipeline train`."""
    typed = list(sys.orig_argv)
    if (count := len(sys.argv) - 1) and typed[-count:] == sys.argv[1:]:
        typed = typed[:-count]
    script = typed[-1] if typed else sys.argv[0]
    if _is_started_by_uv():
        return ["uv", "run", *_of_script(script, typed)]
    if os.path.isabs(script) and Path(script).name == "image-pipeline":
        found = shutil.which("image-pipeline")
        return ["image-pipeline"] if found and os.path.realpath(found) == os.path.realpath(script) else [script]
    return typed


def _of_script(script: str, typed: list[str]) -> list[str]:
    """Returns what follows `uv run`: a script, an entry point of the environment, or python with its own words."""
    if Path(script).name == "image-pipeline":
        return ["image-pipeline"]
    return [script] if len(typed) == 2 and script.endswith(".py") else ["python", *typed[1:]]


def _is_started_by_uv() -> bool:
    try:
        parent = psutil.Process().parent()
        return parent is not None and re.fullmatch(r"uv(\.exe)?", parent.name()) is not None
    except psutil.Error:
        return False
