"""Further measurements of the stream: the time to resume, and speed and memory over a long time."""

import os
import time
from contextlib import closing

import numpy as np

from jobs.bench.loader_ways import Pass, order_of, plan_of
from jobs.terminal import command
from pipeline.core.processes import tree_megabytes
from pipeline.dataset import manifest


def resume(one: Pass) -> None:
    """Prints the time and the bytes read to start at 90 % of an epoch, and to skip all batches before that step."""
    from pipeline.dataset.row_reader import load_index
    from pipeline.loader.streaming.threads import thread_source

    order = order_of(one)
    step = round(0.9 * order.steps_per_epoch)
    index = load_index(one.data, manifest.load(one.data).split("train"))

    rows = []
    for name, first, skipped in (("from the step on", step, 0), ("skipping up to it", 0, step)):
        start, num_bytes = time.perf_counter(), 0
        with closing(thread_source(plan_of(one, first))(lambda: False)) as stream:
            for number in range(skipped + 1):
                batch = next(stream)
                num_bytes += int(index.length[batch.rows].sum())
                seconds = time.perf_counter() - start
                if number == skipped:
                    break
        assert np.array_equal(batch.rows, order.rows(step))
        rows.append((name, f"first batch after {seconds:6.1f} s, {num_bytes / 1e6:9,.1f} MB read up to its end"))
    command.print_table(f"\nstep {step} of {order.steps_per_epoch}, {order.num_rows:,} rows", rows)


def soak(one: Pass, minutes: float) -> None:
    """Prints speed and memory of one stream, ten times in `minutes`, after the stream has run for a minute."""
    from pipeline.loader.streaming.threads import thread_source

    with closing(thread_source(plan_of(one, 0))(lambda: False)) as stream:
        start = time.perf_counter()
        while time.perf_counter() < start + min(60, minutes * 6):
            next(stream)
        rates, memory = [], []
        for number in range(10):
            start, count = time.perf_counter(), 0
            while time.perf_counter() < start + minutes * 6:
                count += len(next(stream).images)
            rates.append(count / (time.perf_counter() - start))
            memory.append(tree_megabytes(os.getpid()))
            command.console.print(f"{number + 1:3}/10  {rates[-1]:,.0f} images/s  {memory[-1]:,.0f} MB")
    title = f"\none stream for {minutes:g} minutes"
    change = f"{rates[0]:,.0f} -> {rates[-1]:,.0f} images/s, {memory[0]:,.0f} -> {memory[-1]:,.0f} MB"
    command.print_table(title, [("first and last tenth", change), ("most memory", f"{max(memory):,.0f} MB")])
