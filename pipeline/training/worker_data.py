"""The batches of one worker: of training and evaluation, from memory or as streams, by recipe."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.core.progress import Progress
from pipeline.dataset.manifest import Manifest, Split
from pipeline.evaluation import predictions
from pipeline.loader.batch import Batch
from pipeline.loader.local import sample_images
from pipeline.loader.resident import ResidentSplit, load_resident, resident_batches
from pipeline.loader.sample_order import training_order
from pipeline.loader.samplers import EvaluationSampler, Sampler, TrainSampler, train_eval_split
from pipeline.loader.stream import stream_batches
from pipeline.loader.transform import Transform, evaluation_transform, training_transform
from pipeline.training.job import TrainJob

_WHITENING_IMAGES = 5000


class Batches:
    """The batches of one worker, resident or streamed by recipe."""

    def __init__(
        self, job: TrainJob, data: Manifest, world_size: int, rank: int, device: torch.device, progress: Progress
    ) -> None:
        recipe = job.recipe
        self.job, self.data, self.world_size, self.rank, self.device = job, data, world_size, rank, device
        self.parts = train_eval_split(data, job.hold_out)
        self.train = data.split("train")
        self.order = training_order(recipe, self.parts.train_row_groups, job.seed)
        self._corrupt: set[tuple[str, int]] = set()
        self.val_view = evaluation_transform(recipe, job.decoder)
        self.train_view = training_transform(recipe, job.seed, job.decoder)
        self.resident: dict[str, ResidentSplit] = {}
        if recipe.residency == "resident":
            views = {"train": ("train", self.train_view), "evaluated": (self.parts.split, self.val_view)}
            for name, (split, view) in views.items():
                whole = load_resident(job.dataset, data.split(split), view, progress, job.on_corrupt)
                self.resident[name] = whole.to(device)

    def training(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yields this rank's batches of the steps from `first_step` to `num_steps`."""
        units = TrainSampler(self.order, num_steps, first_step, self.world_size, self.rank)
        if self.resident:
            batches = resident_batches(self.resident["train"], units, self.train_view)
        else:
            batches = self._streamed(self.train, units, self.train_view)
        return self._noting("train", batches)

    def validation(self, progress: Progress) -> Iterator[Batch]:
        """Yields this rank's part of what is evaluated."""
        name, first, rows = self.parts.split, self.parts.first_row, self.parts.rows
        units = EvaluationSampler(rows, predictions.UNIT_ROWS, self.world_size, self.rank, first)
        if self.resident:
            batches = resident_batches(self.resident["evaluated"], units, self.val_view)
        else:
            batches = self._streamed(self.data.split(name), units, self.val_view)
        for batch in self._noting(name, batches):
            yield batch
            progress("evaluate", batch.index + 1, len(units))

    def _streamed(self, split: Split, units: Sampler, view: Transform) -> Iterator[Batch]:
        return stream_batches(self.job.dataset, split, units, view, self.job.on_corrupt, self.job.cache)

    def _noting(self, split: str, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._corrupt.update((split, row) for row in batch.corrupt.tolist())
            yield batch

    def quarantined(self, before: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Returns (split, row) of all images that any worker left out, those of `before` too. All ranks together."""
        parts: list[Any] = [self._corrupt]
        if self.job.on_corrupt == "quarantine" and self.world_size > 1:
            parts = [None] * self.world_size
            torch.distributed.all_gather_object(parts, self._corrupt)
        return sorted({(split, row) for split, row in before}.union(*parts))

    def whitening_images(self) -> Tensor:
        """uint8 [<=5000, 3, S, S] of the train split, the same on every rank."""
        if self.resident:
            return self.resident["train"].images[:_WHITENING_IMAGES]
        return sample_images(self.job.dataset, self.data, "train", _WHITENING_IMAGES, self.val_view)
