"""Lists, compares, compacts and drops versions of a data set, and removes images from all of them for good.

Versions are made by jobs/ingest.py --onto. They lie side by side in one folder.

Examples:
    uv run jobs/datasets/versions.py list data/photos
    uv run jobs/datasets/versions.py compare data/photos/v1 data/photos/v2
    uv run jobs/datasets/versions.py drop data/photos/v1
    uv run jobs/datasets/versions.py compact data/photos/v7 --out data/photos/v8
    uv run jobs/datasets/versions.py forget data/photos --key train/ant/jane.jpg
    uv run jobs/datasets/versions.py sql data/photos/v2 > views.sql
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.table import Table

from jobs.arguments.flags import given_flags
from jobs.terminal import command
from pipeline.core.errors import PipelineError
from pipeline.core.shares import counted
from pipeline.dataset.manifest import load
from pipeline.storage import files
from pipeline.storage.places import nearest

Action = Literal["list", "compare", "drop", "compact", "forget", "sql"]
RESUME_HINT = "the same command continues where it stopped"
_GIVE = {
    "list": (1, "FOLDER, in which the versions lie"),
    "compare": (2, "OLD NEW, two data sets"),
    "drop": (1, "VERSION, the folder of one"),
    "compact": (1, "VERSION, the folder of one"),
    "forget": (1, "FOLDER, in which the versions lie"),
    "sql": (1, "VERSION, the folder of one"),
}


@dataclass(frozen=True)
class CompactArgs:
    """For `compact`."""

    out: Annotated[str | None, command.option("folder of the new data set, new or empty", "URI")] = None


@dataclass(frozen=True)
class ForgetArgs:
    """For `forget`: the images that are removed from all versions in the folder."""

    key: Annotated[tuple[str, ...], command.option("keys of images", "KEY ...", "none")] = ()
    keys: Annotated[str | None, command.option("a text file with a key on each line", "FILE", "none")] = None


@dataclass(frozen=True)
class Args:
    """Paths, or s3://bucket/key, gs://bucket/key."""

    action: Annotated[
        tyro.conf.Positional[Action], command.option("list, compare, drop, compact, forget or sql", "ACTION")
    ]
    places: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        command.option("a version, two to compare, or the folder of all for `list` and `forget`", "URI ..."),
    ] = ()
    compact: Annotated[CompactArgs, command.group("compact")] = CompactArgs()
    forget: Annotated[ForgetArgs, command.group("forget")] = ForgetArgs()


def main(args: Args) -> None:
    """Carries out the action."""
    count, wanted = _GIVE[args.action]
    if len(args.places) != count:
        raise PipelineError(f"{args.action}: {counted(len(args.places), 'place')} given; give {wanted}")
    _check_flags(args)
    places = [files.absolute(place).rstrip("/") for place in args.places]
    actions: dict[Action, Callable[..., None]] = {
        "list": print_versions,
        "compare": print_changes,
        "drop": drop,
        "compact": compact,
        "forget": forget,
        "sql": print_sql,
    }
    actions[args.action](args, *places)


def _check_flags(args: Args) -> None:
    """Raises PipelineError for a flag that belongs to another action."""
    groups: dict[Action, CompactArgs | ForgetArgs] = {"compact": args.compact, "forget": args.forget}
    for action, group in groups.items():
        given = given_flags(group, type(group)())
        if action != args.action and given:
            raise PipelineError(f"{args.action}: {given[0]} is for `{action}`; leave it out")


def print_versions(args: Args, folder: str) -> None:
    """Prints a table of the versions in a folder."""
    from pipeline.versions.listing import list_versions

    found = list_versions(folder)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("version", "rows", "+", "-", "relabelled", "own MB", "shared MB", "made from", "digest", "date"):
        table.add_column(name, justify="right" if name in ("rows", "+", "-", "relabelled") or "MB" in name else "left")
    for each in found:
        table.add_row(
            each.name,
            "dropped" if each.dropped else f"{each.rows:,}",
            *("" if each.dropped else _number(value) for value in (each.added, each.removed, each.relabelled)),
            f"{each.own_bytes / 1e6:,.1f}",
            f"{each.shared_bytes / 1e6:,.1f}",
            each.parent,
            each.digest[:12],
            time.strftime("%Y-%m-%d %H:%M", time.localtime(each.modified_ns / 1e9)),
        )
    command.console.print(table)
    num_bytes = sum(each.own_bytes for each in found)
    command.console.print(f"{counted(table.row_count, 'version')} in {folder}, {num_bytes / 1e6:,.1f} MB")


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def print_changes(args: Args, old: str, new: str) -> None:
    """Prints the differences between two data sets."""
    from pipeline.versions.compare import compare_datasets

    changes = compare_datasets(old, new)
    before, after = load(old), load(new)
    command.print_table(
        f"\n{before.name} {before.digest[:12]} -> {after.name} {after.digest[:12]}",
        [
            *((kind.replace("_", " "), _rows(keys)) for kind, keys in changes.by_kind().items()),
            ("classes", ", ".join(changes.classes) or "the same"),
        ],
    )


def _rows(keys: tuple[str, ...]) -> str:
    return counted(len(keys), "row") + (f", first {keys[0]}" if keys else "")


def drop(args: Args, version: str) -> None:
    """Drops a version and prints what is left of it."""
    from pipeline.versions.drop import drop_version

    done = drop_version(version)
    command.console.print(
        f"{version}: dropped; {counted(done.deleted_files, 'file')} removed, {done.deleted_bytes / 1e6:,.1f} MB"
    )
    if done.unfinished:
        command.console.print(
            f"an ingest is unfinished in {', '.join(done.unfinished)}: all shards stay until it is finished, or its "
            "folder is deleted; then drop this version once more"
        )
    elif done.kept_shards:
        shards = counted(done.kept_shards, "shard of dropped versions stays", "shards of dropped versions stay")
        command.console.print(f"{shards}: {', '.join(done.needed_by)} {_refers(done.needed_by)} to them")


def _refers(names: tuple[str, ...]) -> str:
    return "refers" if len(names) == 1 else "refer"


def print_sql(args: Args, version: str) -> None:
    """Prints statements for DuckDB."""
    from pipeline.versions.sql import duckdb_views

    print(duckdb_views(version), end="")


def compact(args: Args, version: str) -> None:
    """Writes a version as a data set that stands alone."""
    from pipeline.versions.compaction import compact as write

    if args.compact.out is None:
        raise PipelineError("compact: --out is missing; give --out URI, the folder of the new data set")
    start = time.perf_counter()
    with command.Display() as display:
        data = write(version, files.absolute(args.compact.out), progress=display)
    shards = [shard for split in data.manifest.splits.values() for shard in split.shards]
    num_bytes, seconds = sum(shard.bytes for shard in shards), time.perf_counter() - start
    command.print_table(
        f"\n{data.uri} stands alone",
        [
            *((name, counted(split.rows, "row")) for name, split in data.manifest.splits.items()),
            ("shards", f"{len(shards):,}, {num_bytes / 1e6:,.1f} MB"),
            ("time", f"{seconds:.1f} s, {num_bytes / 1e6 / seconds:,.0f} MB/s"),
            ("digest", data.manifest.digest),
        ],
    )


def forget(args: Args, place: str) -> None:
    """Removes images for good."""
    from pipeline.versions.removal.run import forget as remove

    keys = [*args.forget.key, *(_keys_in(args.forget.keys) if args.forget.keys else ())]
    if not keys:
        raise PipelineError("forget: no image is named; give --key KEY, or --keys FILE with a key on each line")
    with command.Display() as display:
        done = remove(place, keys, progress=display)
    for name in done.rows:
        command.console.print(f"removed: {name}")
    command.print_table(
        f"\n{counted(len(done.rows), 'image')} removed for good",
        [
            *((f"{name}, new digest", digest) for name, digest in done.versions.items()),
            (
                "searched",
                f"{counted(done.searched_files, 'file')}, {done.searched_bytes / 1e6:,.1f} MB: nothing is left",
            ),
        ],
    )


def _keys_in(path: str) -> list[str]:
    place = files.absolute(path)
    if files.is_local(place) and os.path.isdir(place):
        raise PipelineError(f"keys={path}: is a folder; give a text file with a key on each line")
    try:
        text = files.read_bytes(place).decode("utf-8-sig")  # programs on Windows write a BOM
    except FileNotFoundError as error:
        raise PipelineError(f"keys={path}: no such file{nearest(path)}") from error
    except UnicodeDecodeError as error:
        raise PipelineError(f"keys={path}: no text ({error}); give a text file with a key on each line") from error
    # A key may hold what `splitlines` takes for the end of a line.
    return [line for line in (each.removesuffix("\r") for each in text.split("\n")) if line.strip()]


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
