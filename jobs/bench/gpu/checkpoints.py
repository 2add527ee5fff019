"""What checkpoints cost: seconds of a step without them, beside them while they are written, and waiting for them."""

import statistics
import tempfile
import time

import numpy as np

from jobs.bench.gpu.child import Bench
from jobs.bench.gpu.clock import now
from jobs.bench.gpu.steps import make_step, one_step, photo_batch, resnet_recipe
from pipeline.models.checkpoint_writer import CheckpointWriter
from pipeline.models.run_state import RunState, collect

_EVERY_STEPS = 10
_PERCENTILES = (50, 90, 99, 100)


def run(bench: Bench) -> None:
    """Measures each way in turn, with a checkpoint every ten steps to a local disk."""
    device = bench.device
    recipe = resnet_recipe(bench, 2 if bench.small else 128)
    batch = photo_batch(bench, recipe.global_batch_size, recipe.image_size_px).to(device)
    step, net, optimizers = make_step(recipe, batch)
    for _ in range(3):
        one_step(step, batch)
    tensors = collect(net, optimizers, None, RunState(1))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    bench.record("megabytes", size / 1e6, f"{size / 1e6:,.0f} MB a checkpoint")
    times: dict[str, list[float]] = {"without": [], "in the background": [], "waited for": []}
    rounds, seconds, every = (1, 0.2, 2) if bench.small else (2, 2.0, _EVERY_STEPS)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        writer, number = CheckpointWriter(folder), 0
        for _ in range(rounds):
            for mode, taken in times.items():
                if not bench.has(1.5 * seconds, f"checkpoints {mode}"):
                    continue
                end, least = time.perf_counter() + seconds, number + every
                while time.perf_counter() < end or number < least:
                    start, number = now(device), number + 1
                    one_step(step, batch)
                    now(device)
                    if mode != "without" and number % every == 0:
                        writer.save(number, tensors, {})
                        if mode == "waited for":
                            writer.wait()
                    taken.append(time.perf_counter() - start)
                writer.wait()
    for mode, taken in times.items():
        if taken:
            bench.record(f"checkpoints {mode}", _figures(taken), _line(taken))


def _figures(taken: list[float]) -> dict[str, float]:
    percentiles = {f"p{p}_ms": 1000 * float(np.percentile(taken, p)) for p in _PERCENTILES}
    return {**percentiles, "mean_ms": 1000 * statistics.fmean(taken), "steps": len(taken)}


def _line(taken: list[float]) -> str:
    percentiles = ", ".join(f"p{p} {1000 * np.percentile(taken, p):,.1f} ms" for p in _PERCENTILES)
    return f"step {percentiles}; mean {1000 * statistics.fmean(taken):,.1f} ms, {len(taken)} steps"
