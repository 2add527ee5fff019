"""From stored images to samples: read, decode, crop, resize and augment.

torch isn't imported before an augmentation needs it: it is most of the start-up time of a task's process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from pipeline.config.augment import Augment
from pipeline.config.recipe import Recipe, SizeRamp
from pipeline.core.keyed_random import COPY_EPOCHS, Epochs, Keys, Stream, epochs_at, uniform
from pipeline.dataset.row_reader import RowIndex, read_parts
from pipeline.loader.crops import crop_boxes, flips, padded_crops
from pipeline.loader.decode import CropGeometry, DecoderName, decode_batch
from pipeline.loader.sample_order import Rows
from pipeline.loader.stage_times import Stopwatch

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Transform:
    """How stored images become samples.

    size_px: side S of the samples. resize_px: length of the shorter side before the centre crop of evaluation.
    augment: None for evaluation. seed: of the augmentation's draws. decoder: see `pipeline.loader.decode`. ramp:
    smaller samples in the first epochs of training.
    """

    size_px: int
    resize_px: int
    augment: Augment | None = None
    seed: int = 0
    decoder: DecoderName = "simplejpeg"
    ramp: SizeRamp | None = None

    def size_at(self, epoch: Epochs) -> int:
        """Returns the side S of the samples of an epoch, in pixels; of several epochs in one batch, of the first."""
        if self.ramp is None or self.augment is None:
            return self.size_px
        return self.ramp.size_px(int(np.min(np.asarray(epoch) % COPY_EPOCHS)), self.size_px)

    def at(self, epoch: Epochs) -> "Transform":
        """Returns the transform of an epoch, which has one size."""
        return replace(self, size_px=self.size_at(epoch), ramp=None) if self.ramp else self

    @property
    def needs_torch(self) -> bool:
        """Whether an operation of the augmentation is torch's. Decoding, cropping and flipping need numpy alone."""
        left = self._after_decoding
        return left is not None and left.changes_samples and not _is_crop_and_flip(left)

    @property
    def _after_decoding(self) -> Augment | None:
        """What is left of the augmentation once `_geometry` has been decoded."""
        spec = self.augment
        if spec is None or spec.resized_crop_area is None:
            return spec
        if not spec.crop_padding_px:
            spec = replace(spec, flip_probability=0.0)
        return replace(spec, resized_crop_area=None)

    def load(
        self,
        index: RowIndex,
        rows: Rows,
        epoch: Epochs,
        corrupt: set[int] | None = None,
        watch: Stopwatch | None = None,
        out: Pixels | None = None,
    ) -> Pixels:
        """Returns uint8 [N, S, S, 3]: rows read, decoded and augmented, each independent of the others in the batch.

        corrupt: a set that receives the positions in `rows` of images that can't be used; those are black. Without it,
        DatasetError is raised for the first one. watch: receives the seconds of each stage. out: the array that is
        filled and returned, contiguous; None for a new one.
        """
        watch, fixed, spec = watch or Stopwatch(), self.at(epoch), self._after_decoding
        pixels = np.empty((len(rows), fixed.size_px, fixed.size_px, 3), dtype=np.uint8) if out is None else out
        with watch.stage("storage"):
            parts = read_parts(index, rows, corrupt)
        while True:
            with watch.stage("storage"):
                part, images = next(parts, (slice(0), []))
            if not images:
                break
            with watch.stage("decode"), _relative_to(part, corrupt) as unusable:
                geometry = fixed._geometry(index, rows[part], epochs_at(epoch, part))
                name = partial(_place, index, rows[part])
                decode_batch(images, geometry, name, self.decoder, unusable, pixels[part])
        if spec is None or not spec.changes_samples:
            return pixels
        with watch.stage("augment"):
            augmented = augment_pixels(pixels, spec, self.seed, epoch, index.key_hash[rows])
            if out is None:
                return augmented
            out[:] = augmented
            return out

    def _geometry(self, index: RowIndex, rows: Rows, epoch: Epochs) -> CropGeometry:
        """Returns which part of each image is decoded, and to what size."""
        sizes = np.stack([index.height[rows], index.width[rows]], axis=1)
        spec, keys, size = self.augment, index.key_hash[rows], self.size_px
        if spec is None or spec.resized_crop_area is None:
            return CropGeometry.centre_crops(size, self.resize_px if spec is None else size, sizes)
        boxes = crop_boxes(sizes[:, 0], sizes[:, 1], spec, uniform(self.seed, epoch, Stream.RESIZED_CROP, keys, 40))
        mirror = np.zeros(len(rows), dtype=np.bool_)
        if not spec.crop_padding_px:  # otherwise the padded crop and the flip are one gather, after decoding
            mirror = flips(spec, self.seed, epoch, keys)
        return CropGeometry.resized_crops(size, sizes, boxes, mirror.astype(np.int32))


def evaluation_transform(recipe: Recipe, decoder: DecoderName) -> Transform:
    """Returns the transform of images that a recipe's model is evaluated on."""
    return Transform(recipe.evaluate_size_px or recipe.image_size_px, recipe.evaluate_resize_px, decoder=decoder)


def training_transform(recipe: Recipe, seed: int, decoder: DecoderName) -> Transform:
    """Returns the transform of a recipe's training images."""
    size = recipe.image_size_px
    return Transform(size, size, recipe.augment, seed, decoder, recipe.size_ramp)


@contextmanager
def _relative_to(part: slice, corrupt: set[int] | None) -> Iterator[set[int] | None]:
    """Yields those of `corrupt` in `part`, counted from its start, and adds to `corrupt` what is added to them."""
    if corrupt is None:
        yield None
        return
    relative = {position - part.start for position in corrupt if part.start <= position < part.stop}
    yield relative
    corrupt.update(position + part.start for position in relative)


def _place(index: RowIndex, rows: Rows, position: int) -> str:
    return index.place(int(rows[position]))


def _is_crop_and_flip(spec: Augment) -> bool:
    return spec == Augment(crop_padding_px=spec.crop_padding_px, flip_probability=spec.flip_probability)


def augment_pixels(pixels: Pixels, spec: Augment, seed: int, epoch: Epochs, keys: Keys) -> Pixels:
    """Returns pixels, uint8 [N, S, S, 3], augmented by `spec`: by numpy where it is but a padded crop and a flip."""
    if _is_crop_and_flip(spec):
        from_y, from_x = padded_crops(pixels.shape[1], spec, seed, epoch, keys)
        return pixels[np.arange(len(pixels))[:, None, None], from_y[:, :, None], from_x[:, None, :]]

    import torch

    from pipeline.loader.augment import augment_batch

    batch = augment_batch(torch.from_numpy(pixels).permute(0, 3, 1, 2), spec, seed, epoch, keys)
    return batch.permute(0, 2, 3, 1).contiguous().numpy()
