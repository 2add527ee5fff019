"""A registry of models: what is in it, what is live, and who said so.

uv run jobs/registry.py list --registry URI
uv run jobs/registry.py add --registry URI --checkpoint RUN --evaluation OUT
uv run jobs/registry.py promote VERSION --registry URI --reason "why"
"""

import time
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.table import Table

from jobs import command
from pipeline.core.errors import RegistryError
from pipeline.storage import files

Action = Literal["list", "show", "add", "promote", "rollback", "verify"]


@dataclass(frozen=True)
class Args:
    """Flags. A version is named by its ID, the beginning of one, or an alias."""

    action: tyro.conf.Positional[Action]
    version: Annotated[tyro.conf.Positional[str], command.option("for show and promote", "VERSION", "champion")] = ""
    registry: Annotated[str | None, command.option("a folder, or a prefix of a bucket", "URI")] = None
    checkpoint: Annotated[str | None, command.option("for add: a finished run", "URI")] = None
    evaluation: Annotated[str | None, command.option("for add: what jobs/evaluate.py made of it", "URI")] = None
    parent: Annotated[str, command.option("for add: the version that it was trained from", "VERSION", "none")] = ""
    alias: Annotated[str, command.option("that is moved", "NAME", "champion")] = "champion"
    reason: Annotated[str, command.option("for the history", "TEXT")] = ""
    mlflow: Annotated[str | None, command.option("brings an MLflow registry up to date, after that", "URI", "none")] = (
        None
    )


def main(args: Args) -> None:
    """Does what is asked for."""
    if args.registry is None:
        raise RegistryError("registry is missing; give --registry URI, a folder or a prefix of a bucket")
    place = files.absolute(args.registry)
    {"list": _list, "show": _show, "add": _add, "promote": _promote, "rollback": _rollback, "verify": _verify}[
        args.action
    ](args, place)
    if args.mlflow:
        from pipeline.retraining.mlflow_mirror import MODEL_NAME, mirror

        command.console.print(
            f"MLflow's model {MODEL_NAME}: {mirror(place, args.mlflow)} version(s) added, aliases as here"
        )


def _list(args: Args, place: str) -> None:
    from pipeline.retraining import registry

    named = registry.aliases(place)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("version", "created", "recipe", "top-1", "images", "parent", "aliases"):
        table.add_column(name)
    for each in registry.versions(place):
        mine = ", ".join(alias for alias, version in named.items() if version == each.id)
        table.add_row(
            each.id, _when(each.created), each.recipe, f"{each.top1:.4f}", f"{each.rows:,}", each.parent, mine
        )
    command.console.print(table)
    command.console.print(f"{table.row_count} version(s) in {place}")


def _show(args: Args, place: str) -> None:
    from pipeline.retraining import registry

    each = registry.get(place, args.version or args.alias)
    lines = [
        ("recipe", each.recipe),
        ("top-1", f"{each.top1:.4f} of {each.rows:,} images"),
        ("data set", each.dataset_digest[:16]),
        ("parent", each.parent or "none"),
        ("created", _when(each.created)),
        ("certificate", each.certificate[:16]),
        ("model", f"{registry.version_uri(place, each.id)}  (takes the place of a run: --checkpoint, --teacher)"),
    ]
    for alias in registry.aliases(place):
        for move in registry.history(place, alias):
            if move.version == each.id:
                lines.append((f"{alias}, move {move.number}", f"{_when(move.time)}  {move.reason}"))
    command.print_table(f"\nversion {each.id}", lines)


def _add(args: Args, place: str) -> None:
    from pipeline.retraining import registry

    if args.checkpoint is None or args.evaluation is None:
        raise RegistryError("add needs --checkpoint RUN and --evaluation OUT, a folder that jobs/evaluate.py wrote")
    parent = registry.get(place, args.parent).id if args.parent else ""
    run, evaluation = (files.absolute(uri).rstrip("/") for uri in (args.checkpoint, args.evaluation))
    added = registry.add(place, run, evaluation, parent)
    command.console.print(
        f"version {added.id}: {added.recipe}, top-1 {added.top1:.4f}; promote {added.id} makes it live"
    )


def _promote(args: Args, place: str) -> None:
    from pipeline.retraining import registry

    if not args.version or not args.reason:
        raise RegistryError("promote needs a version and --reason TEXT, which stays in the history")
    now = registry.current(place, args.alias)
    done = registry.move(place, args.alias, registry.get(place, args.version).id, args.reason, now)
    command.console.print(f"{args.alias} is {done.version} (move {done.number}); rollback undoes it")


def _rollback(args: Args, place: str) -> None:
    from pipeline.retraining import registry

    done = registry.rollback(place, args.alias, args.reason or "rolled back by hand")
    command.console.print(f"{args.alias} is {done.version} again (move {done.number})")


def _verify(args: Args, place: str) -> None:
    from pipeline.retraining import registry
    from pipeline.retraining.registry_check import verify

    problems = verify(place)
    if problems:
        raise RegistryError(f"{place}: {len(problems)} problem(s): {'; '.join(problems[:5])}")
    count = len(registry.versions(place))
    command.console.print(f"{place}: {count} version(s) and every alias's history hold, every file has its checksum")


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
