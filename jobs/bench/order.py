"""Measures the order of rows: the time of an epoch's first step, and of each step after it, sampled and not.

Examples:
    uv run jobs/bench/order.py
    uv run jobs/bench/order.py --row-groups 2000 --rows 128000
"""

import statistics
import time
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from jobs.terminal import command
from pipeline.core.partition import even_split
from pipeline.loader.sample_order import Order
from pipeline.loader.sampling.counts import whole_total

_STEPS = 200  # measured of an epoch
_CLASSES = 1000


@dataclass(frozen=True)
class Args:
    """Flags. The defaults are a data set of ImageNet's size, in many small row groups."""

    row_groups: Annotated[int, command.option("row groups of the data set", "N", "20,000")] = 20_000
    rows: Annotated[int, command.option("rows of the data set", "N", "1,280,000")] = 1_280_000
    global_batch_size: Annotated[int, command.option("rows of a step", "N", "1,024")] = 1024
    ranks: Annotated[int, command.option("ranks that share a step", "N", "8")] = 8
    rounds: Annotated[int, command.option("epochs measured, each from its first step on", "N", "3")] = 3


def main(args: Args) -> None:
    """Measures each kind of order and prints a table."""
    rows = []
    for name, order in orders(args).items():
        first, later = measure(order, args)
        rows.append((name, f"first step of an epoch {1000 * first:,.0f} ms, each later one {1e6 * later:.1f} us"))
    command.print_table(f"{args.rows:,} rows in {args.row_groups:,} row groups, rank 1 of {args.ranks}", rows)


def orders(args: Args) -> dict[str, Order]:
    """Returns the orders that are measured."""
    cuts = [even_split(args.rows, args.row_groups, number) for number in range(args.row_groups)]
    plain = Order(tuple(stop - start for start, stop in cuts), 0, args.global_batch_size, 32)
    drawn = np.random.default_rng(0)
    # Classes of very different sizes, as in the wild.
    labels = (np.sort(drawn.pareto(1.2, args.rows)) % _CLASSES).astype(np.int32)
    drawn.shuffle(labels)
    sizes = np.bincount(labels, minlength=_CLASSES)
    balanced = (args.rows / np.count_nonzero(sizes)) / np.maximum(sizes, 1)
    return {
        "every row once": plain,
        "a window over all": replace(plain, window_row_groups=None),
        "a tenth": replace(plain, expected=whole_total(np.full(args.rows, 0.1), labels)),
        "classes balanced": replace(plain, expected=whole_total(balanced[labels], labels)),
    }


def measure(order: Order, args: Args) -> tuple[float, float]:
    """Returns seconds of the first step of an epoch, and of a later one: rows and epochs, the median of each."""
    firsts, laters = [], []
    for epoch in range(args.rounds):
        start = epoch * order.steps_per_epoch
        seconds = []
        for step in range(start, start + min(_STEPS, order.steps_per_epoch)):
            before = time.perf_counter()
            order.rows(step, args.ranks, 1 % args.ranks)
            order.epochs(step, args.ranks, 1 % args.ranks)
            seconds.append(time.perf_counter() - before)
        firsts.append(seconds[0])
        laters += seconds[1:]
    return statistics.median(firsts), statistics.median(laters)


if __name__ == "__main__":
    command.run(main, Args, __doc__)
