"""The data of one training worker: its share of training and validation batches, from memory or as streams."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.cluster.resources import this_node
from pipeline.core.progress import Progress, message
from pipeline.dataset.manifest import Manifest, Split
from pipeline.evaluation.distributed import gather_objects
from pipeline.evaluation.predictions import UNIT_ROWS
from pipeline.loader.batch import Batch
from pipeline.loader.device.copy_ahead import copied_ahead
from pipeline.loader.resident import ResidentSplit, load_resident, resident_batches
from pipeline.loader.sample_order import training_order
from pipeline.loader.samplers import EvaluationSampler, Sampler, TrainSampler, training_split
from pipeline.loader.sampling.selection import Selection
from pipeline.loader.streaming.carrier import carrier_line, stream_source
from pipeline.loader.streaming.plan import StreamPlan
from pipeline.loader.streaming.threads import sample_images
from pipeline.loader.transform import Transform, evaluation_transform, training_transform
from pipeline.training.job import TrainJob

_WHITENING_IMAGES = 5000
_PIXELS_ON_GPU = 2000 * 32 * 32  # of a batch of evaluation; 2,000 images of CIFAR-10


def rows_on_gpu(rows: int, size_px: int, world_size: int) -> int:
    """Returns the rows of a batch in which a run on a GPU evaluates resident images: up to 2,000, a multiple of 250.

    A GPU is idle between batches of 250 small images. Fewer than 2,000 where the images are larger, whose activations
    need memory, or where some ranks would get none. A run evaluates its network for itself, before and at its end; an
    evaluation that is certified (`pipeline/evaluation/runner.py`) always has batches of `UNIT_ROWS`.
    """
    most = min(2000, _PIXELS_ON_GPU // size_px**2, rows // world_size)
    return max(1, most // UNIT_ROWS) * UNIT_ROWS


class Batches:
    """Training and validation batches of one worker.

    The recipe's `residency` decides whether the decoded splits are kept in memory, on the worker's device, or streamed.
    """

    def __init__(
        self, job: TrainJob, data: Manifest, world_size: int, rank: int, device: torch.device, progress: Progress
    ) -> None:
        recipe = job.recipe
        self.job, self.data, self.world_size, self.rank, self.device = job, data, world_size, rank, device
        self.parts = training_split(job.dataset, data, recipe, job.hold_out)
        self.order = training_order(recipe, self.parts.train_row_groups, job.seed, self.parts.expected)
        self.train_transform = training_transform(recipe, job.seed, job.decoder)
        self._val_transform = evaluation_transform(recipe, job.decoder)
        self._corrupt: set[tuple[str, int]] = set()
        self._resident: dict[str, ResidentSplit] = {}
        self._tell = partial(message, progress)
        if recipe.residency == "resident":
            splits = {"train": ("train", self.train_transform), "val": (self.parts.split, self._val_transform)}
            for name, (split, transform) in splits.items():
                whole = load_resident(job.dataset, data.split(split), transform, progress, job.on_corrupt)
                self._resident[name] = whole.to(device)
        else:
            nodes = gather_objects(here := this_node(), world_size)
            self._rank_nodes = frozenset(nodes)
            self._node_ranks = tuple(rank for rank, node in enumerate(nodes) if node == here)
            message(progress, carrier_line(job.dataset, self._rank_nodes, world_size))

    def training(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yields this rank's part of each global batch, from step `first_step` up to step `num_steps`."""
        sampler = TrainSampler(self.order, num_steps, first_step, self.world_size, self.rank)
        if self._resident:
            batches = resident_batches(self._resident["train"], sampler, self.train_transform)
        else:
            batches = self._streamed(self.data.split("train"), sampler, self.train_transform)
        return self._noting_corrupt("train", batches)

    def candidates(self, num_steps: int) -> Iterator[Batch]:
        """Yields the whole of each global batch of resident images, on whichever rank asks, and without a selection."""
        sampler = TrainSampler(replace(self.order, selection=None), num_steps)
        return resident_batches(self._resident["train"], sampler, self.train_transform)

    def without_repeats(self) -> "Batches":
        """Returns batches that hold each image of an epoch once, in the same order, whatever the recipe's `repeats`."""
        again = copy.copy(self)
        again.order = replace(self.order, repeats=1)
        return again

    def selected(self, selection: Selection) -> "Batches":
        """Returns batches of those training rows alone that a selection keeps, from the same images."""
        # Corrupt rows are never selected, so no batch would name them.
        corrupt = np.flatnonzero(self._resident["train"].corrupt)
        for epoch in range(self.job.recipe.epochs if len(corrupt) else 0):
            rows = np.intersect1d(corrupt, self.order.epoch_rows(epoch))
            self._corrupt.update(("train", row) for row in rows.tolist())
        again = copy.copy(self)
        again.order = replace(self.order, selection=selection)
        return again

    def validation(self, progress: Progress) -> Iterator[Batch]:
        """Yields this rank's part of the validation rows, on its device."""
        split, first, rows = self.parts.split, self.parts.first_row, self.parts.rows
        on_gpu = bool(self._resident) and self.device.type == "cuda"
        batch_rows = rows_on_gpu(rows, self._val_transform.size_px, self.world_size) if on_gpu else UNIT_ROWS
        sampler = EvaluationSampler(rows, batch_rows, self.world_size, self.rank, first)
        if self._resident:
            batches = resident_batches(self._resident["val"], sampler, self._val_transform)
        else:
            batches = self._streamed(self.data.split(split), sampler, self._val_transform)
        for batch in self._noting_corrupt(split, batches):
            yield batch.to(self.device)
            progress("evaluate", batch.index + 1, len(sampler))

    def _streamed(self, split: Split, sampler: Sampler, transform: Transform) -> Iterator[Batch]:
        """Yields batches that are on the device, or on their way to it, before they are asked for."""
        job = self.job
        plan = StreamPlan(job.dataset, split, sampler, transform, job.on_corrupt, job.cache, self._node_ranks)
        return copied_ahead(stream_source(plan, self.device, self._rank_nodes, self._tell), self.device)

    def _noting_corrupt(self, split: str, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._corrupt.update((split, row) for row in batch.corrupt.tolist())
            yield batch

    def quarantined(self, before: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Returns (split, row), sorted, of the images that any worker left out so far, and those of `before`.

        All ranks together.
        """
        # Nothing is exchanged where a corrupt image ends the run: there is nothing to exchange.
        parts = gather_objects(self._corrupt, self.world_size if self.job.on_corrupt == "quarantine" else 1)
        return sorted({(split, row) for split, row in before}.union(*parts))

    def whitening_images(self) -> Tensor:
        """Returns uint8 [<=5000, 3, S, S]: images of the training split, the same on every rank."""
        if self._resident:
            return self._resident["train"].images[:_WHITENING_IMAGES]
        return sample_images(self.job.dataset, self.data, "train", _WHITENING_IMAGES, self._val_transform)
