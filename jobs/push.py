"""Pushes a finished run to the Hugging Face Hub: weights, configuration, metrics and a model card, as one commit.

The token is that of `hf auth login` or of HF_TOKEN. --dry-run writes the files into a folder and pushes nothing.

Examples:
    uv run jobs/push.py --checkpoint runs/photos --repo OWNER/photos --dry-run
    uv run jobs/push.py --checkpoint runs/photos --repo OWNER/photos --private --license apache-2.0
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
from dataclasses import dataclass
from typing import Annotated

from jobs.terminal import command
from pipeline.core.errors import RecipeError
from pipeline.storage import files

_DRY_RUN = "hub"


@dataclass(frozen=True, kw_only=True)
class DataArgs:
    """What is pushed."""

    checkpoint: Annotated[str, command.option("folder of a finished run", "RUN")]
    evaluation: Annotated[
        str | None, command.option("folder of an evaluation whose metrics and card are added", "DIR", "none")
    ] = None
    license: Annotated[
        str | None, command.option("its SPDX name, such as apache-2.0, for the card", "NAME", "none")
    ] = None


@dataclass(frozen=True, kw_only=True)
class OutputArgs:
    """Where it goes."""

    repo: Annotated[str, command.option("repository; made if there is none", "OWNER/NAME")]
    private: Annotated[bool, command.option("make the repository private, if it is made now", "")] = False
    message: Annotated[str, command.option("message of the commit", "TEXT", "Upload a model")] = "Upload a model"
    dry_run: Annotated[bool, command.option("write the files into --out, list them, and push nothing", "")] = False
    out: Annotated[str | None, command.option("folder of --dry-run", "DIR", "RUN/hub")] = None


@dataclass(frozen=True, kw_only=True)
class Args:
    """Flags of the command."""

    data: Annotated[DataArgs, command.group("data")]
    output: Annotated[OutputArgs, command.group("output")]


def main(args: Args) -> None:
    """Pushes a model, or writes what would be pushed."""
    with command.loading():
        from pipeline.evaluation.publish.hub import check_login, check_repository, push, write_folder
        from pipeline.evaluation.publish.model_files import model_files

    data, output = args.data, args.output
    check_repository(output.repo)
    if not output.dry_run:
        if output.out is not None:
            raise RecipeError(f"out={output.out}: only --dry-run writes a folder; add it, or leave --out out")
        check_login()
    run = files.absolute(data.checkpoint).rstrip("/")
    evaluation = files.absolute(data.evaluation).rstrip("/") if data.evaluation else None
    contents = model_files(run, output.repo, data.license, evaluation)
    lines = [(name, f"{len(content):,} bytes") for name, content in contents.items()]
    if output.dry_run:
        out = files.absolute(output.out) if output.out else files.join(run, _DRY_RUN)
        write_folder(contents, out)
        command.print_table(f"\nwould be pushed to {output.repo}", [*lines, ("folder", out)])
        return
    url = push(contents, output.repo, output.private, output.message)
    command.print_table(f"\npushed to {output.repo}", [*lines, ("commit", url)])


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
