"""Lists, adds, promotes, rolls back, reviews and verifies the versions of a model registry.

`review` decides on the candidate and the champion by what they did in use. Exit status: 0 if the candidate was
promoted, or nothing happened; 3 if it was dropped; 5 if the champion went back to the version before; 2 for a user
error; 1 if a storage failed.

Examples:
    uv run jobs/registry.py list --registry work/registry
    uv run jobs/registry.py show champion --registry work/registry
    uv run jobs/registry.py add --registry work/registry --checkpoint runs/photos --evaluation runs/photos/evaluation
    uv run jobs/registry.py promote 3f9c0a --registry work/registry --reason "better on the new camera"
    uv run jobs/registry.py rollback --registry s3://bucket/work/registry
    uv run jobs/registry.py review --registry work/registry --labels labels.csv
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from rich.table import Table

from jobs.arguments.live import RETURNED, LiveArgs, review_lines
from jobs.terminal import command
from pipeline.core.errors import RegistryError
from pipeline.core.shares import counted
from pipeline.storage import files
from pipeline.storage.places import check_folder

Action = Literal["list", "show", "add", "promote", "rollback", "review", "verify"]
DROPPED = 3


@dataclass(frozen=True)
class AddArgs:
    """For `add`: the model, and the proof of its accuracy."""

    checkpoint: Annotated[str | None, command.option("finished training run", "URI")] = None
    evaluation: Annotated[str | None, command.option("folder of its evaluation, from jobs/evaluate.py", "URI")] = None
    parent: Annotated[
        str, command.option("version whose weights the training started from: ID or alias", "VERSION", "none")
    ] = ""


@dataclass(frozen=True)
class MoveArgs:
    """For `promote` and `rollback`: the alias, and the line in its history."""

    alias: Annotated[str, command.option("alias that is moved", "NAME", "champion")] = "champion"
    reason: Annotated[str, command.option("reason for the history; `promote` requires one", "TEXT", "none")] = ""


@dataclass(frozen=True)
class ReviewArgs:
    """For `review`: labels that came late, and who is told."""

    labels: Annotated[
        str | None, command.option("CSV of key and label, of images that were predicted; it is kept", "FILE", "none")
    ] = None
    webhook: Annotated[str | None, command.option("URL that gets each decision as JSON, by POST", "URL", "none")] = None
    webhook_secret_file: Annotated[
        str | None,
        command.option("file with the key of its signatures", "FILE", "the variable IMAGE_PIPELINE_WEBHOOK_SECRET"),
    ] = None


@dataclass(frozen=True)
class Args:
    """A version is named by its ID, a unique beginning of its ID, or an alias."""

    action: Annotated[
        tyro.conf.Positional[Action], command.option("list, show, add, promote, rollback, review or verify", "ACTION")
    ]
    version: Annotated[
        tyro.conf.Positional[str], command.option("version, for `show` and `promote`", "[VERSION]", "champion")
    ] = ""
    registry: Annotated[str | None, command.option("folder, or prefix of a bucket", "URI")] = None
    mlflow: Annotated[
        str | None, command.option("MLflow server; its mirror of the registry is updated afterwards", "URI", "none")
    ] = None
    add: Annotated[AddArgs, command.group("add")] = AddArgs()
    move: Annotated[MoveArgs, command.group("move")] = MoveArgs()
    review: Annotated[ReviewArgs, command.group("review")] = ReviewArgs()
    live: Annotated[LiveArgs, command.group("review")] = field(default_factory=LiveArgs)


def main(args: Args) -> None:
    """Carries out the action."""
    if args.registry is None:
        raise RegistryError("registry is missing; give --registry URI, a folder or a prefix of a bucket")
    place = files.absolute(args.registry)
    _check_place(args.action, place)
    actions = {
        "list": print_versions,
        "show": print_version,
        "add": add,
        "promote": promote,
        "rollback": rollback,
        "review": review,
        "verify": verify,
    }
    status = actions[args.action](args, place)
    if args.mlflow:
        from pipeline.retraining.mlflow_mirror import MODEL_NAME, mirror

        added = mirror(place, args.mlflow)
        command.console.print(f"MLflow's model {MODEL_NAME}: {counted(added, 'version')} added, aliases as here")
    if status:
        sys.exit(status)


def _check_place(action: Action, place: str) -> None:
    if action == "add":
        check_folder(place, "registry")
        return
    from pipeline.retraining.registry_check import check_place

    check_place(place)


def print_versions(args: Args, place: str) -> None:
    """Prints a table of all versions."""
    from pipeline.retraining import registry
    from pipeline.retraining.live.candidates import pending_candidate

    aliases = registry.aliases(place)
    if pending_candidate(place) is None:
        aliases.pop(registry.CANDIDATE, None)  # the last one was promoted or dropped
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("version", "created", "recipe", "top-1", "images", "parent", "aliases"):
        table.add_column(name)
    for each in registry.versions(place):
        names = ", ".join(alias for alias, version in aliases.items() if version == each.id)
        table.add_row(
            each.id, _local_time(each.created), each.recipe, f"{each.top1:.4f}", f"{each.rows:,}", each.parent, names
        )
    command.console.print(table)
    command.console.print(f"{counted(table.row_count, 'version')} in {place}")


def print_version(args: Args, place: str) -> None:
    """Prints a version, and the moves that made it live."""
    from pipeline.retraining import registry

    each = registry.get(place, args.version or args.move.alias)
    lines = [
        ("recipe", each.recipe),
        ("top-1", f"{each.top1:.4f} of {each.rows:,} images"),
        ("data set", each.dataset_digest[:16]),
        ("parent", each.parent or "none"),
        ("created", _local_time(each.created)),
        ("certificate", each.certificate[:16]),
        ("model", f"{registry.version_uri(place, each.id)}  (can be given as a run: --checkpoint, --teacher)"),
    ]
    for alias in registry.aliases(place):
        lines += [
            (f"{alias}, move {move.number}", f"{_local_time(move.time)}  {move.reason}")
            for move in registry.history(place, alias)
            if move.version == each.id
        ]
    command.print_table(f"\nversion {each.id}", lines)


def add(args: Args, place: str) -> None:
    """Adds a version and prints its ID."""
    from pipeline.retraining import registry

    if args.add.checkpoint is None or args.add.evaluation is None:
        made = registry.evaluation_command(args.add.checkpoint or "RUN")
        raise RegistryError(
            f"add needs --checkpoint RUN, a finished run, and --evaluation OUT, which is made by: {made}"
        )
    run, evaluation = (files.absolute(uri).rstrip("/") for uri in (args.add.checkpoint, args.add.evaluation))
    added = registry.add(place, run, evaluation, args.add.parent)
    command.console.print(
        f"version {added.id}: {added.recipe}, top-1 {added.top1:.4f}; promote {added.id} makes it live"
    )


def promote(args: Args, place: str) -> None:
    """Points the alias at a version."""
    from pipeline.retraining import registry

    if not args.version or not args.move.reason:
        raise RegistryError("promote needs a version and --reason TEXT, which stays in the history")
    _check_reason(args.move.reason)
    newest = registry.current(place, args.move.alias)
    version = registry.get(place, args.version).id
    if args.move.alias == registry.CANDIDATE:
        champion = registry.current(place, registry.CHAMPION)
        if champion is None:
            raise RegistryError("a candidate needs a champion to be compared with; promote one first")
        moved = registry.nominate(place, version, args.move.reason, champion)
    else:
        moved = registry.move(place, args.move.alias, version, args.move.reason, newest)
    command.console.print(f"{moved.alias} is {moved.version} (move {moved.number}); rollback undoes it")


def rollback(args: Args, place: str) -> None:
    """Points the alias at the version before."""
    from pipeline.retraining import registry

    _check_reason(args.move.reason)
    moved = registry.rollback(place, args.move.alias, args.move.reason or "rolled back by hand")
    command.console.print(f"{moved.alias} is {moved.version} again (move {moved.number})")


def _check_reason(reason: str) -> None:
    """Raises RegistryError for a reason that ends as those of programs do: reviews would take the move for theirs."""
    from pipeline.retraining.alias_file import mark_of

    if mark_of(reason)[0]:
        raise RegistryError(f"reason={reason!r} ends like one of a program; leave out the brackets at its end")


def review(args: Args, place: str) -> int:
    """Keeps the labels, reviews candidate and champion, and returns the exit status."""
    from pipeline.retraining.live import store
    from pipeline.retraining.live.labels import check_labels
    from pipeline.retraining.live.review import review as review_registry
    from pipeline.retraining.notices.notifier import teller
    from pipeline.retraining.notices.webhook import Webhook, read_secret

    rule, url = args.live.make(), args.review.webhook
    tell = teller(Webhook(url, read_secret(args.review.webhook_secret_file))) if url else None
    if args.review.labels is not None:
        store.add_labels(place, check_labels(files.absolute(args.review.labels)))
    done = review_registry(place, rule, tell)
    if done.unused:
        command.console.print(f"{place}: no candidate, and no stored answers; predict with --registry and --shadow")
        return 0
    labels = [("labels", done.labels.text())] if done.labels.lines else []
    command.print_table(f"\nreview of {place}", [*review_lines(done), *labels])
    return RETURNED if done.returned else DROPPED if done.dropped else 0


def verify(args: Args, place: str) -> None:
    """Checks every file, version and history. Raises RegistryError if anything is damaged."""
    from pipeline.retraining import registry, registry_check

    problems = registry_check.verify(place)
    if problems:
        raise RegistryError(f"{place}: {counted(len(problems), 'problem')}: {'; '.join(problems[:5])}")
    count = len(registry.versions(place))
    whole = f"all files of {counted(count, 'version')} match their checksums; all histories are complete"
    command.console.print(f"{place}: {whole}")


def _local_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
