"""Functions of a user on samples and batches, each with a generator that depends on (seed, epoch, key) alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pipeline.core.errors import RecipeError
from pipeline.core.keyed_random import Epochs, Keys, Stream, bits, epochs_at
from pipeline.dataset.row_reader import RowIndex
from pipeline.loader.batch import Batch
from pipeline.loader.sample_order import Rows
from pipeline.loader.stage_times import Stopwatch
from pipeline.loader.transform import Pixels, Transform

SampleFunction = Callable[[Tensor, torch.Generator], Tensor]
"""Takes an image, uint8 [3, S, S], and a generator; returns an image of the same shape and type."""

BatchFunction = Callable[[Batch, torch.Generator], Batch]
"""Takes a batch and a generator on its device; returns a batch."""


@dataclass(frozen=True)
class MappedTransform(Transform):
    """A transform and, after it, functions of the user."""

    functions: tuple[SampleFunction, ...] = ()

    @staticmethod
    def of(transform: Transform, functions: Sequence[SampleFunction]) -> Transform:
        """Returns `transform` followed by `functions`."""
        if not functions:
            return transform
        values = {field.name: getattr(transform, field.name) for field in fields(transform)}
        return MappedTransform(**values, functions=tuple(functions))

    @property
    def needs_torch(self) -> bool:
        """Returns True: the functions are given tensors."""
        return True

    def load(
        self,
        index: RowIndex,
        rows: Rows,
        epoch: Epochs,
        corrupt: set[int] | None = None,
        watch: Stopwatch | None = None,
        out: Pixels | None = None,
    ) -> Pixels:
        """Returns what `Transform.load` does, changed by the functions; images that can't be used stay black."""
        watch = watch or Stopwatch()
        pixels = super().load(index, rows, epoch, corrupt, watch, out)
        with watch.stage("augment"):
            usable = [position for position in range(len(rows)) if not corrupt or position not in corrupt]
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            keys, epochs = index.key_hash[rows[usable]], epochs_at(epoch, usable)
            map_samples([images[position] for position in usable], self.functions, self.seed, epochs, keys)
        return pixels


def map_samples(
    images: Sequence[Tensor], functions: Sequence[SampleFunction], seed: int, epochs: Epochs, keys: Keys
) -> None:
    """Replaces each image, uint8 [3, S, S], by what the functions make of it, one after the other.

    Raises RecipeError if one of them returns another shape or type.
    """
    seeds = bits(seed, epochs, Stream.OWN_SAMPLE, keys, len(functions)) >> 1  # torch takes signed 64 bits
    for image, row in zip(images, seeds.tolist(), strict=True):
        changed = image
        for function, number in zip(functions, row, strict=True):
            changed = function(changed, torch.Generator().manual_seed(number))
            if changed.shape != image.shape or changed.dtype != torch.uint8:
                raise RecipeError(
                    f"map_samples: {_name(function)} returned {changed.dtype} {list(changed.shape)} for uint8 "
                    f"{list(image.shape)}; return the same shape and type, and change them in map_batches"
                )
        image.copy_(changed)


def map_batch(batch: Batch, functions: Sequence[BatchFunction], seed: int) -> Batch:
    """Returns what the functions make of a batch; their draws depend on the seed, and its first row's epoch and key.

    Raises RecipeError if one of them returns something else.
    """
    if not functions:
        return batch
    seeds = bits(seed, epochs_at(batch.epochs, slice(1)), Stream.OWN_BATCH, batch.keys[:1], len(functions)) >> 1
    for function, number in zip(functions, seeds[0].tolist(), strict=True):
        batch = function(batch, torch.Generator(batch.images.device).manual_seed(number))
        if not isinstance(batch, Batch):
            raise RecipeError(
                f"map_batches: {_name(function)} returned {type(batch).__name__}; return a batch, as by "
                "dataclasses.replace(batch, images=...)"
            )
    return batch


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__name__", type(function).__name__)
