"""Every command line in README and docs is one that the program's own parser accepts, with recipes that exist."""

import importlib
import itertools
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from jobs.cli import SUBCOMMANDS
from jobs.terminal import command
from pipeline.config.presets import recipes

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("infra/*.md"), *ROOT.glob("docs/**/*.md")])
_FENCED = re.compile(r"^ *```[a-z]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(
    r"(?:uv run (?:--\S+ (?:(?!jobs)\w+ )?)*|python )(?:-m )?(?P<script>jobs[/.][\w/.]+)(?P<flags>[^|;&]*)"
    r"|image-pipeline (?P<subcommand>[a-z]+)(?P<rest>[^|;&]*)"
)


def code_of(text: str) -> list[str]:
    """Returns the code of a page, line by line: fenced blocks with continued lines joined, and spans."""
    blocks = "\n".join(_FENCED.findall(text)).replace("\\\n", " ")
    spans = [" ".join(span.split()) for span in _SPAN.findall(_FENCED.sub("", text))]
    return [re.split(r" +#", line)[0] for line in blocks.splitlines()] + spans


def command_lines(text: str) -> list[tuple[str, str]]:
    """Returns (module, flags) of each command line in a page; one with "..." for a part that is left out isn't one."""
    found = []
    for line in code_of(text):
        for match in _COMMAND.finditer(line):
            flags = match["flags"] if match["script"] else match["rest"]
            if "..." in flags or not (match["script"] or match["subcommand"] in SUBCOMMANDS):
                continue
            script = match["script"] and match["script"].removesuffix(".py").replace("/", ".")
            found.append((script or SUBCOMMANDS[match["subcommand"]][0], flags))
    return found


COMMANDS = sorted({each for page in PAGES for each in command_lines(page.read_text())})


def parse(module: ModuleType, flags: str) -> None:
    """Raises SystemExit where the program itself would refuse the flags, or its recipe doesn't exist."""
    words = shlex.split(flags)
    try:
        command.parse(module.Args, module.__doc__ or "", arguments=words)
    except SystemExit as end:  # with 0 after --list-recipes and the like
        if end.code:
            raise
    for flag, value in itertools.pairwise(words):
        is_file = value.isupper() or value.endswith((".json", ".yaml"))
        if flag == "--recipe" and not is_file and value not in recipes:
            raise SystemExit(f"--recipe {value}: no such recipe")


def test_commands_are_found_and_a_wrong_flag_is_noticed() -> None:
    text = "```\nuv run jobs/verify.py \\\n    --dta x  # no\n```\n`image-pipeline verify --data x`, `image-pipeline`"
    assert command_lines(text) == [("jobs.verify", "      --dta x"), ("jobs.verify", " --data x")]
    module = importlib.import_module("jobs.verify")
    parse(module, " --data x")
    with pytest.raises(SystemExit):
        parse(module, " --dta x")


def test_the_pages_show_every_job() -> None:
    shown = {module for module, _ in COMMANDS}
    assert {module for module, _ in SUBCOMMANDS.values()} <= shown


@pytest.mark.parametrize(("name", "flags"), COMMANDS, ids=lambda value: value.strip())
def test_a_command_of_the_pages_is_accepted(name: str, flags: str) -> None:
    module = importlib.import_module(name)
    if flags.strip() and hasattr(module, "Args"):
        parse(module, flags)
