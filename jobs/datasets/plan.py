"""Computes what training will read from object storage before anything runs: requests, bytes, cache hits and dollars.

The figures come from the code that decides in the run, for one node; those of the cluster are that times the nodes.

Examples:
    uv run jobs/datasets/plan.py --data s3://bucket/imagenet --recipe resnet50 --cache-size 0 15GB 200GB
    uv run jobs/datasets/plan.py --data data/photos --recipe resnet50 --nodes 4 --workers-per-node 8 --window 16 32 all
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated

from rich.table import Table

from jobs.arguments.flags import group
from jobs.arguments.recipe import RecipeArgs
from jobs.terminal import command
from pipeline.config.recipe import Recipe, check_batch
from pipeline.core.errors import RecipeError
from pipeline.dataset.cache_folder import parse_size
from pipeline.dataset.manifest import load
from pipeline.dataset.row_reader import load_index
from pipeline.ingestion.cost import Prices
from pipeline.loader.row_groups.estimate import EpochReads, meeting_again, simulate
from pipeline.loader.row_groups.visits import NodeReads
from pipeline.loader.sample_order import training_order
from pipeline.loader.samplers import training_split
from pipeline.storage import files

_DEFAULT = "imagenette-5"
_EPOCHS = 3  # that are simulated: the last of them stands for all later ones
NOTE = (
    "\nhits: share of the row groups that later epochs find in the cache; disk: what a node's cache holds at most;\n"
    "meet: share of the pairs of rows of one batch that are in one batch of the next epoch, too. Traffic within a\n"
    "region is free, and isn't counted"
)


@dataclass(frozen=True)
class Case:
    """A line of the table: a window of row groups, as text, what the first node reads, and its cache; None for all."""

    window: str
    reads: NodeReads
    cache_bytes: int | None


@dataclass(frozen=True)
class Args:
    """Flags of the command. Sizes and windows may be several: each pair is a line of the table."""

    data: Annotated[str, command.option("a data set that ingest wrote, also one that isn't in a bucket yet", "URI")]
    cache_size: Annotated[
        tuple[str, ...],
        command.option("sizes of a node's cache: 20GB, 0 for none, or all", "SIZE ...", "0 all"),
    ] = ("0", "all")
    window: Annotated[
        tuple[str, ...], command.option("row groups that are shuffled together, or all", "N ...", "the recipe's")
    ] = ()
    nodes: Annotated[int, command.option("nodes that train", "N", "1")] = 1
    workers_per_node: Annotated[int, command.option("training processes on each", "N", "1")] = 1
    seed: Annotated[int, command.option("of the run", "N", "0")] = 0
    hold_out: Annotated[float, command.option("share of train that isn't trained on", "X", "0")] = 0.0
    recipe: Annotated[RecipeArgs, group("recipe")] = field(default_factory=RecipeArgs)


def main(args: Args) -> None:
    """Prints the table. Raises RecipeError for values that can't work."""
    if args.nodes < 1 or args.workers_per_node < 1:
        raise RecipeError(f"nodes={args.nodes}, workers-per-node={args.workers_per_node}: give 1 or more of each")
    recipe = args.recipe.make(_DEFAULT)
    if recipe.residency == "resident":
        raise RecipeError(
            f"recipe={recipe.name} reads all images into memory once, before the first step; --set residency=stream "
            "reads them in every epoch"
        )
    title = (
        f"\n{args.data}, {recipe.name}, batches of {recipe.global_batch_size}, "
        f"nodes x workers: {args.nodes} x {args.workers_per_node}"
    )
    command.console.print(table_of(title, _cases(args, recipe), args.nodes, recipe.epochs))
    command.console.print(NOTE)


def _cases(args: Args, recipe: Recipe) -> Iterator[Case]:
    sizes = [None if size == "all" else parse_size(size) for size in args.cache_size]
    uri = files.absolute(args.data)
    data = load(uri)
    parts, index = training_split(uri, data, recipe, args.hold_out), load_index(uri, data.split("train"))
    world_size = args.nodes * args.workers_per_node
    check_batch(recipe, world_size, parts.epoch_rows)
    for window in args.window or (str(recipe.shuffle_window_row_groups or "all"),):
        changed = replace(recipe, shuffle_window_row_groups=_window(window))
        order = training_order(changed, parts.train_row_groups, args.seed, parts.expected)
        reads = NodeReads(order, index, world_size, tuple(range(args.workers_per_node)))
        for size in sizes:
            yield Case(window, reads, size)


def _window(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise RecipeError(f"window={text}: no such number of row groups; give 1 or more, or all")
    return int(text)


def table_of(title: str, cases: Iterable[Case], nodes: int, num_epochs: float) -> Table:
    """Returns a table with a line for each case; figures are of all nodes together, but for the disk."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    of_epochs = "GETs, epoch 1", "later", "GB, epoch 1", "later", "hits", "$, epoch 1", "later", "run"
    for name in ("window", "cache", *of_epochs, "disk", "meet"):
        table.add_column(name, justify="right")
    meeting: dict[str, str] = {}
    for case in cases:
        epochs = list(itertools.islice(simulate(case.reads, case.cache_bytes), _EPOCHS))
        if case.window not in meeting:
            meeting[case.window] = f"{meeting_again(case.reads.order):.2%}"
        size = "all" if case.cache_bytes is None else f"{case.cache_bytes / 1e9:,.4g} GB"
        table.add_row(case.window, size, *_cells(epochs, nodes, num_epochs), meeting[case.window])
    return table


def _cells(epochs: list[EpochReads], nodes: int, num_epochs: float) -> list[str]:
    first, later = epochs[0], epochs[-1]
    price = Prices().per_1000_get / 1000 * nodes
    run = first.requests + max(0, num_epochs - 1) * later.requests
    return [
        f"{nodes * first.requests:,}",
        f"{nodes * later.requests:,}",
        f"{nodes * first.bytes_read / 1e9:,.4g}",
        f"{nodes * later.bytes_read / 1e9:,.4g}",
        f"{later.hits:.0%}",
        *(_dollars(price * requests) for requests in (first.requests, later.requests, run)),
        f"{max(each.cached_bytes for each in epochs) / 1e9:,.4g} GB",
    ]


def _dollars(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 0.005 or not amount else "<0.01"


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
