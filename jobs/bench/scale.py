"""Estimates how far the streaming loader scales: measures the cost of coordinating a block, simulates many ranks.

A block is the part of a global batch that one rank takes. Ray Data makes it in a task, and a process, the coordinator,
starts the tasks and hands the blocks over in order. The simulation takes the measured cost to 8, 64 and 256 ranks.

Examples:
    uv run jobs/bench/scale.py
    uv run jobs/bench/scale.py --images-per-second 1000 --cpus-per-gpu 8 --stored-kb 60
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

from jobs.terminal import command
from pipeline.cluster.session import ray_session

_WARM_UP_SECONDS, _STEPS = 3.0, 400
_BLOCKS_PER_EXECUTION = 1024
_SPREAD = 0.35  # standard deviation of the logarithm of a block's time: a guess, not measured
_RANKS = (8, 64, 256)


@dataclass(frozen=True)
class Args:
    """Flags. The defaults are ResNet-50 at 224 px on nodes of eight GPUs that take 2,500 images a second each."""

    coordinators: Annotated[
        tuple[int, ...], command.option("numbers of coordinators at work at a time", "N ...", "1 2 4")
    ] = (
        1,
        2,
        4,
    )
    seconds: Annotated[float, command.option("seconds of each measurement", "S", "10")] = 10.0
    images_per_second: Annotated[float, command.option("images that a GPU takes per second", "N", "2,500")] = 2500.0
    decode_ms: Annotated[float, command.option("CPU time of an image, from storage to batch", "MS", "0.9")] = 0.9
    cpus_per_gpu: Annotated[float, command.option("CPUs that make batches, for each GPU", "N", "4")] = 4.0
    image_px: Annotated[int, command.option("side of an image in a batch", "N", "224")] = 224
    stored_kb: Annotated[float, command.option("size of an image in storage", "KB", "110")] = 110.0
    gpus_per_node: Annotated[int, command.option("GPUs that share a network card", "N", "8")] = 8


def main(args: Args) -> None:
    """Measures, simulates, and prints tables."""
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
    """Returns the blocks per second of each of `count` concurrent executions of Ray Data, whose tasks do nothing, and
    the CPU seconds of a block in the coordinating process.
    """
    import ray

    worker = ray.remote(num_cpus=0)(_coordinate)
    found = ray.get([worker.remote(seconds) for _ in range(count)])
    return float(np.mean([rate for rate, _ in found])), float(np.median([cost for _, cost in found]))


def _coordinate(seconds: float) -> tuple[float, float]:
    from pipeline.cluster.ray_tasks import TASK_CPUS, map_in_order

    def blocks() -> Iterator[Any]:
        while True:
            run = map_in_order(
                range(_BLOCKS_PER_EXECUTION),
                lambda source: source.map_batches(_nothing, batch_size=1, num_cpus=TASK_CPUS),
            )
            with closing(run):
                yield from run

    count, start, cpu = 0, 0.0, 0.0
    warm_up_start = time.monotonic()
    for _ in blocks():
        now = time.monotonic()
        if not start and now - warm_up_start > _WARM_UP_SECONDS:
            start, cpu = now, time.process_time()
        elif start:
            count += 1
            if now - start > seconds:
                break
    elapsed = time.monotonic() - start
    return count / elapsed, (time.process_time() - cpu) / max(1, count)


def _nothing(batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {"id": batch["id"], "node": np.array([os.getpid()])}


# --- simulated ---------------------------------------------------------------------------------------------------


def simulate(ranks: int, block_images: int, args: Args, cost: float, central: bool) -> float:
    """Returns the share of time, in [0, 1], that synchronous training waits for data.

    Each rank takes one block in a step, and all ranks wait for the slowest. A rank's share of the CPUs makes its
    blocks; the time of a block is lognormal. Blocks are handed over in order, and a coordinator spends `cost` seconds
    on each: one coordinator for all ranks if `central`, else one for each. A rank has at most twice as many blocks
    ahead as it has CPUs.
    """
    generator = np.random.default_rng(0)
    slots = max(1, round(args.cpus_per_gpu))
    mean = block_images * args.decode_ms / 1000 * slots / args.cpus_per_gpu
    work = generator.lognormal(np.log(mean) - _SPREAD**2 / 2, _SPREAD, (_STEPS, ranks))
    compute, ahead = block_images / args.images_per_second, 2 * slots
    free = np.zeros((slots, ranks))
    taken = np.zeros((_STEPS, ranks))
    busy, end, waited = np.zeros(ranks), 0.0, 0.0
    all_ranks = np.arange(ranks)
    for step in range(_STEPS):
        slot = free.argmin(axis=0)
        may_start = taken[step - ahead] if step >= ahead else np.zeros(ranks)
        ready = np.maximum(free[slot, all_ranks], may_start) + work[step]
        free[slot, all_ranks] = ready
        if central:
            # A queue with one server: block k ends at max(arrival_k, end of k - 1) + cost, here without a loop.
            order = ready.argsort()
            arrived = np.maximum(ready[order], busy.max())
            busy[order] = np.maximum.accumulate(arrived - cost * all_ranks) + cost * (all_ranks + 1)
        else:
            busy = np.maximum(ready, busy) + cost
        begin = max(end, float(busy.max()))
        if step >= _STEPS // 4:
            waited += begin - end
        else:
            start = begin  # the first quarter fills the queues and doesn't count
        end = begin + compute
        taken[step] = end
    return waited / (end - start)


def gets_per_image(ranks: int, block_images: int, stored_kb: float, run_rows: int) -> float:
    """Returns the requests to object storage per image, when the order keeps runs of `run_rows` rows together."""
    from pipeline.config.recipe import Recipe
    from pipeline.dataset.row_reader import RowIndex, coalesce_rows
    from pipeline.loader.sample_order import Order

    groups, rows = 5 * ranks + 3, 64  # a number that batches don't divide, as in practice
    order = Order((rows,) * groups, 0, ranks * block_images, Recipe.shuffle_window_row_groups, run_rows=run_rows)
    sizes = np.random.default_rng(0).lognormal(np.log(1000 * stored_kb), 0.5, groups * rows)
    length = sizes.astype(np.int32)
    unused: Any = np.empty(0)
    offset = np.cumsum(np.append(0, length[:-1] + 4), dtype=np.int64)
    shard = np.zeros(len(length), dtype=np.int32)
    index = RowIndex(("",), shard, offset, length, *[unused] * 6)
    requests = [len(coalesce_rows(index, order.rows(0, ranks, rank))[0]) for rank in range(ranks)]
    return sum(requests) / order.batch_size(0)


def _ranks_table(args: Args, cost: float) -> Table:
    block = 128
    table = Table(title=f"simulated: blocks of {block} images", title_justify="left", box=None, pad_edge=False)
    names = ("ranks", "blocks/s", "one coordinator: waits", "one for each rank (ours): waits", "GET/s, row by row")
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
