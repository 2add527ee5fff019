"""How far the loader scales: what coordinating a block costs, measured here, and 8, 64 and 256 ranks, simulated.

uv run jobs/bench/scale.py
"""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from jobs import command
from pipeline.cluster.session import ray_session

_WARM_UP_SECONDS, _STEPS, _SPREAD = 3.0, 400, 0.35
_RANKS = (8, 64, 256)


@dataclass(frozen=True)
class Args:
    """Flags. The defaults are ResNet-50 at 224 px on GPUs that take 2,500 images a second, eight of them in a node."""

    coordinators: Annotated[tuple[int, ...], command.option("at work at a time, measured", "N ...", "1 2 4")] = (
        1,
        2,
        4,
    )
    seconds: Annotated[float, command.option("of each measurement", "S", "10")] = 10.0
    images_per_second: Annotated[float, command.option("that a GPU takes", "N", "2,500")] = 2500.0
    decode_ms: Annotated[float, command.option("of CPU for an image, from storage to batch", "MS", "0.9")] = 0.9
    cpus_per_gpu: Annotated[float, command.option("that make batches, over all nodes", "N", "4")] = 4.0
    image_px: Annotated[int, command.option("side of an image in a batch", "N", "224")] = 224
    stored_kb: Annotated[float, command.option("of an image in storage", "KB", "110")] = 110.0
    gpus_per_node: Annotated[int, command.option("that share a network card", "N", "8")] = 8


def main(args: Args) -> None:
    """Measures, then simulates."""
    with ray_session(max(args.coordinators)):
        measured = {count: measure(count, args.seconds) for count in args.coordinators}
    table = Table(title="measured: coordinators at work at a time", title_justify="left", box=None, pad_edge=False)
    for name in ("coordinators", "blocks/s each", "CPU ms a block"):
        table.add_column(name, justify="right")
    for count, (rate, cost) in measured.items():
        table.add_row(f"{count}", f"{rate:,.0f}", f"{1000 * cost:.2f}")
    command.console.print(table)
    cost = max(cost for _, cost in measured.values())
    command.console.print(f"\na coordinator's own work allows {1 / cost:,.0f} blocks/s; the simulation takes that\n")
    command.console.print(_ranks_table(args, cost))
    command.console.print(_blocks_table(args, cost))


# --- measured ----------------------------------------------------------------------------------------------------


def measure(count: int, seconds: float) -> tuple[float, float]:
    """Returns blocks a second of each of so many executions of Ray Data at a time, and the CPU seconds that a block
    takes in the process that coordinates them. The tasks do nothing."""
    import ray

    worker = ray.remote(num_cpus=0)(_coordinate)
    found = ray.get([worker.remote(seconds) for _ in range(count)])
    return float(np.mean([rate for rate, _ in found])), float(np.median([cost for _, cost in found]))


def _coordinate(seconds: float) -> tuple[float, float]:
    from pipeline.cluster.ray_tasks import TASK_CPUS, map_in_order
    from pipeline.loader.stream import BATCHES_PER_EXECUTION

    def blocks() -> Iterator[Any]:
        while True:
            run = map_in_order(
                range(BATCHES_PER_EXECUTION),
                lambda source: source.map_batches(_nothing, batch_size=1, num_cpus=TASK_CPUS),
            )
            with closing(run):
                yield from run

    count, began, cpu = 0, 0.0, 0.0
    first = time.monotonic()
    for _ in blocks():
        now = time.monotonic()
        if not began and now - first > _WARM_UP_SECONDS:
            began, cpu = now, time.process_time()
        elif began:
            count += 1
            if now - began > seconds:
                break
    taken = time.monotonic() - began
    return count / taken, (time.process_time() - cpu) / max(1, count)


def _nothing(batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {"id": batch["id"], "node": np.array([os.getpid()])}


# --- simulated ---------------------------------------------------------------------------------------------------


def simulate(ranks: int, block_images: int, args: Args, cost: float, central: bool) -> float:
    """Returns the share of time that synchronous training waits for data.

    Every rank takes one block a step; all wait for the slowest. A rank's blocks are made by its share of the CPUs, a
    block's time is lognormal, they are handed over in order, and a coordinator (one for each rank, or one for all)
    spends `cost` seconds on each. At most twice as many blocks as there are CPUs are made ahead.
    """
    generator = np.random.default_rng(0)
    slots = max(1, round(args.cpus_per_gpu))
    mean = block_images * args.decode_ms / 1000 * slots / args.cpus_per_gpu
    work = generator.lognormal(np.log(mean) - _SPREAD**2 / 2, _SPREAD, (_STEPS, ranks))
    compute, ahead = block_images / args.images_per_second, 2 * slots
    free = np.zeros((slots, ranks))
    taken = np.zeros((_STEPS, ranks))
    busy, ended, waited = np.zeros(ranks), 0.0, 0.0
    everyone = np.arange(ranks)
    for step in range(_STEPS):
        slot = free.argmin(axis=0)
        may_begin = taken[step - ahead] if step >= ahead else np.zeros(ranks)
        made = np.maximum(free[slot, everyone], may_begin) + work[step]
        free[slot, everyone] = made
        if central:
            order = made.argsort()
            arrived = np.maximum(made[order], busy.max())
            busy[order] = np.maximum.accumulate(arrived - cost * everyone) + cost * (everyone + 1)
        else:
            busy = np.maximum(made, busy) + cost
        begins = max(ended, float(busy.max()))
        if step >= _STEPS // 4:
            waited += begins - ended
        else:
            start = begins
        ended = begins + compute
        taken[step] = ended
    return waited / (ended - start)


def gets_per_image(ranks: int, block_images: int, stored_kb: float, run_rows: int) -> float:
    """Returns the requests to storage that an image of a rank's block takes, mixed as in a recipe with such runs."""
    from pipeline.config.recipe import Recipe
    from pipeline.dataset.row_reader import RowIndex, coalesce_rows
    from pipeline.loader.sample_order import Order

    groups, rows = 5 * ranks + 3, 64  # which batches don't divide, as always
    order = Order((rows,) * groups, 0, ranks * block_images, Recipe.shuffle_window_row_groups, run_rows=run_rows)
    sizes = np.random.default_rng(0).lognormal(np.log(1000 * stored_kb), 0.5, groups * rows)
    length = sizes.astype(np.int32)
    none: Any = np.empty(0)  # what isn't asked for
    offset = np.cumsum(np.append(0, length[:-1] + 4), dtype=np.int64)
    shard = np.zeros(len(length), dtype=np.int32)
    index = RowIndex(("",), shard, offset, length, *[none] * 6)
    asked = [len(coalesce_rows(index, order.rows(0, ranks, rank))[0]) for rank in range(ranks)]
    return sum(asked) / order.batch_size(0)


def _ranks_table(args: Args, cost: float) -> Table:
    block = 128
    table = Table(title=f"simulated: blocks of {block} images", title_justify="left", box=None, pad_edge=False)
    names = ("ranks", "blocks/s", "one coordinator for all: waits", "one a rank (ours): waits", "GET/s, row by row")
    for name in (*names, "in runs of 8", "from storage", "CPUs that make batches", "into each node"):
        table.add_column(name, justify="right")
    batch_mb = args.image_px**2 * 3 / 1e6
    for ranks in _RANKS:
        rate = ranks * args.images_per_second
        table.add_row(
            f"{ranks}",
            f"{rate / block:,.0f}",
            f"{simulate(ranks, block, args, cost, central=True):.0%}",
            f"{simulate(ranks, block, args, cost, central=False):.0%}",
            f"{rate * gets_per_image(ranks, block, args.stored_kb, 1):,.0f}",
            f"{rate * gets_per_image(ranks, block, args.stored_kb, 8):,.0f}",
            f"{rate * args.stored_kb / 1e6:,.1f} GB/s",
            f"{rate * args.decode_ms / 1000:,.0f} busy of {ranks * args.cpus_per_gpu:,.0f}",
            f"{args.gpus_per_node * args.images_per_second * batch_mb * 8 / 1000:,.0f} Gbit/s",
        )
    return table


def _blocks_table(args: Args, cost: float) -> Table:
    table = Table(title="\nsimulated: 64 ranks, by block size", title_justify="left", box=None, pad_edge=False)
    for name in ("images a block", "MB", "coordinator busy", "waits"):
        table.add_column(name, justify="right")
    for block in (8, 16, 32, 64, 128, 256, 512):
        rate = args.images_per_second / block
        megabytes = block * args.image_px**2 * 3 / 1e6
        waits = simulate(64, block, args, cost, central=False)
        table.add_row(f"{block}", f"{megabytes:.0f}", f"{rate * cost:.0%}", f"{waits:.0%}")
    return table


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
