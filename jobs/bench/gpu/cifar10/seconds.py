"""CIFAR-10 in seconds: the published method in plain PyTorch and `cifar10-94` in turn, seed by seed."""

import contextlib
import copy
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from jobs.bench.gpu.child import Bench
from jobs.bench.gpu.cifar10.airbench import Images, Method
from jobs.bench.gpu.clock import now
from jobs.bench.gpu.pictures import cifar, cifar_dataset, is_original_cifar
from jobs.bench.gpu.whole_loop import WithoutRay
from pipeline.config.presets import make_recipe
from pipeline.core.progress import silent
from pipeline.dataset import manifest
from pipeline.loader.sample_order import training_order
from pipeline.loader.transform import training_transform
from pipeline.models.small_networks import Whitened
from pipeline.training.job import TrainJob
from pipeline.training.loop import TrainingSchedule, run_steps
from pipeline.training.setup import Place, set_up
from pipeline.training.validation import scores_of, validate
from pipeline.training.worker_data import Batches

PUBLISHED, OURS = "published method", "cifar10-94"
_SEEDS = 10
_COMPILED_SEEDS = 3
_COMPILE_SECONDS = 60.0  # that compiling both networks takes, about; a guess for a fast machine
Run = Callable[[int], dict[str, float]]


def run(bench: Bench) -> None:
    """Trains with both in turn, and records seconds and top-1 of each seed."""
    device = bench.device
    original = is_original_cifar(bench.settings)
    bench.record("original_pixels", original, "CIFAR-10's own pixels" if original else "not CIFAR-10 in full")
    splits = {
        name: Images(torch.from_numpy(part.pixels).to(device), torch.from_numpy(part.labels).to(device))
        for name, part in cifar(bench.settings).items()
    }
    ours = Ours(bench, OURS)
    variants: dict[str, Run] = {PUBLISHED: Method(splits["train"], splits["val"]).run, OURS: ours.run}
    _in_turn(bench, variants, 1 if bench.small else _SEEDS, device)
    if device.type == "cuda" and bench.has(_COMPILE_SECONDS, "torch.compile"):
        with bench.part("torch.compile"):
            compiled: dict[str, Run] = {
                f"{PUBLISHED}, compiled": Method(splits["train"], splits["val"], compiled=True).run,
                f"{OURS}, compiled": Ours(bench, OURS, ours.batches, compiled=True).run,
            }
            _in_turn(bench, compiled, _COMPILED_SEEDS, device)


def _in_turn(bench: Bench, variants: dict[str, Run], num_seeds: int, device: torch.device) -> None:
    """Records the runs of all variants, after one run of each that doesn't count."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    start = now(device)
    if not bench.small:
        for variant in variants.values():
            variant(num_seeds)
    for seed in range(num_seeds):
        if not bench.has(1.1 * (now(device) - start) / (seed + 1), f"seed {seed} of {num_seeds}"):
            break
        for name, variant in variants.items():
            runs[name].append({"seed": seed, **variant(seed)})
        for name, done in runs.items():
            bench.record(name, summary(done), line(done))


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Returns median seconds and mean top-1 of runs, and the runs."""
    seconds = [run["train_seconds"] + run["evaluate_seconds"] for run in runs]
    return {
        "seconds": statistics.median(seconds),
        "train_seconds": statistics.median(run["train_seconds"] for run in runs),
        "top1": statistics.fmean(run["top1"] for run in runs),
        "seeds": len(runs),
        "runs": runs,
    }


def line(runs: list[dict[str, float]]) -> str:
    """Returns the figures of runs for people."""
    figures = summary(runs)
    return (
        f"{figures['seconds']:.3f} s ({figures['train_seconds']:.3f} s without the evaluation), "
        f"top-1 {100 * figures['top1']:.2f} %, {len(runs)} seeds"
    )


class Ours:
    """Runs of a recipe on images that are decoded once. batches: those of another one, to share its images."""

    def __init__(self, bench: Bench, recipe: str, batches: Batches | None = None, compiled: bool = False) -> None:
        self._device, self._compiled, self._recipe = bench.device, compiled, make_recipe(recipe)
        if bench.small:  # the generated pictures are few, and bfloat16 is slow on most CPUs
            epochs = 2 + int(self._recipe.warmup_epochs)
            self._recipe = replace(self._recipe, global_batch_size=10, epochs=epochs, precision="float32")
        self._dataset = cifar_dataset(bench.settings)
        self.batches = batches or self._load()

    def _load(self) -> Batches:
        job = TrainJob(self._dataset, "", self._recipe)
        return Batches(job, manifest.load(self._dataset), 1, 0, self._device, silent)

    def run(self, seed: int) -> dict[str, float]:
        """Returns the seconds of training and of evaluation, and top-1.

        The whitening counts, as in the published method, and so does the choice of images by a proxy network.
        """
        with contextlib.ExitStack() as exits:
            folder = exits.enter_context(tempfile.TemporaryDirectory(prefix="bench-gpu-", ignore_cleanup_errors=True))
            job = TrainJob(self._dataset, folder, self._recipe, seed=seed, compile=self._compiled)
            worker = set_up(job, exits, Place.alone(self._device), self._batches_of(job))
            start = now(self._device)
            net = worker.learner.net
            if isinstance(net, Whitened):  # again: it is part of a run's time, and gives the same weights
                net.fit_whitening(worker.learner.train_step.normalise(worker.batches.whitening_images()))
            run_steps(worker, WithoutRay(TrainingSchedule.of(worker), checkpoints=True))
            trained = now(self._device)
            scores = scores_of(validate(worker), worker.data.classes)
            ended = now(self._device)
            worker.writer.wait()
        seconds = trained - start + worker.state.seconds.get("select", 0.0)
        return {"train_seconds": seconds, "evaluate_seconds": ended - trained, "top1": scores["top1"]}

    def _batches_of(self, job: TrainJob) -> Batches:
        """Returns the same images in the order of the job's seed."""
        again = copy.copy(self.batches)
        again.job = job
        again.order = training_order(job.recipe, again.parts.train_row_groups, job.seed, again.parts.expected)
        again.train_transform = training_transform(job.recipe, job.seed, job.decoder)
        return again
