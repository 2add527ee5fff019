"""How stored images become samples, and the Ray task that makes a unit of them.

torch isn't imported before an augmentation needs it: it is most of what a task's process takes to start.
"""

import ctypes
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.recipe import Augment, OnCorrupt, Recipe, SizeRamp
from pipeline.core.errors import PipelineError
from pipeline.core.keyed_random import Epochs, Keys, Stream, epochs_at, uniform
from pipeline.dataset.row_reader import RowIndex, read_parts
from pipeline.loader.crops import crop_boxes, flips, padded_crops
from pipeline.loader.decode import DecoderName, Views, check_decoder, decode_batch
from pipeline.loader.sample_order import Rows
from pipeline.loader.stage_times import Stopwatch
from pipeline.loader.work_units import Units

Pixels = npt.NDArray[np.uint8]
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class View:
    """How stored images become samples: `augment`, `seed` and `ramp` in training, None for evaluation."""

    size_px: int
    resize_px: int
    augment: Augment | None = None
    seed: int = 0
    decoder: DecoderName = "simplejpeg"
    ramp: SizeRamp | None = None

    def size_at(self, epoch: Epochs) -> int:
        """Returns the size S of the samples of an epoch, in pixels; of several in one batch, of the first."""
        return (
            self.ramp.size_px(int(np.min(epoch)), self.size_px)
            if self.ramp and self.augment is not None
            else self.size_px
        )

    def batch(
        self,
        index: RowIndex,
        rows: Rows,
        epoch: Epochs,
        corrupt: set[int] | None = None,
        watch: Stopwatch | None = None,
    ) -> Pixels:
        """Reads, decodes and augments rows. Returns uint8 [N, S, S, 3], the same whatever the company.

        corrupt: a set, to note where in `rows` an image can't be used, instead of raising DatasetError; it is black
        then. watch: counts the seconds.
        """
        watch = watch or Stopwatch()
        size = self.size_at(epoch)
        pixels, spec = np.empty((len(rows), size, size, 3), dtype=np.uint8), self.augment
        with watch.stage("storage"):
            parts = read_parts(index, rows, corrupt)
        while True:
            with watch.stage("storage"):
                part, images = next(parts, (slice(0), []))
            if not images:
                break
            with watch.stage("decode"):
                spec = self._decode(index, rows, part, images, epoch, pixels, corrupt)
        if spec is None or not spec.changes_samples:
            return pixels
        with watch.stage("augment"):
            return _augmented(pixels, spec, self.seed, epoch, index.key_hash[rows])

    def _decode(
        self,
        index: RowIndex,
        rows: Rows,
        part: slice,
        images: list[memoryview],
        epoch: Epochs,
        pixels: Pixels,
        corrupt: set[int] | None,
    ) -> Augment | None:
        """Decodes some of `rows` to their place in `pixels`. Returns what of the augmentation is left to do."""
        views, spec = self._views(index, rows[part], epochs_at(epoch, part))
        scaled = self.augment is not None and self.augment.resized_crop_area is not None
        unusable = None if corrupt is None else {n - part.start for n in corrupt if part.start <= n < part.stop}
        place = lambda n: index.place(int(rows[part.start + n]))  # noqa: E731
        decode_batch(images, views, place, self.decoder, scaled, unusable, pixels[part])
        if corrupt is not None:
            corrupt.update(n + part.start for n in unusable or ())
        return spec

    def _views(self, index: RowIndex, rows: Rows, epoch: Epochs) -> tuple[Views, Augment | None]:
        """Returns what is decoded, and what of the augmentation is left to do then."""
        sizes = np.stack([index.height[rows], index.width[rows]], axis=1)
        spec, keys, size = self.augment, index.key_hash[rows], self.size_at(epoch)
        if spec is None:
            return Views.centred(size, self.resize_px, sizes), None
        if spec.resized_crop_area is None:
            return Views.centred(size, size, sizes), spec
        boxes = crop_boxes(sizes[:, 0], sizes[:, 1], spec, uniform(self.seed, epoch, Stream.RESIZED_CROP, keys, 40))
        mirror = np.zeros(len(rows), dtype=np.bool_)
        if not spec.crop_padding_px:  # else crop and flip are one step, later
            mirror = flips(spec, self.seed, epoch, keys)
            spec = replace(spec, flip_probability=0.0)
        return Views.crops(size, sizes, boxes, mirror.astype(np.int32)), replace(spec, resized_crop_area=None)


def evaluation_view(recipe: Recipe, decoder: DecoderName) -> View:
    """Returns how a recipe looks at images that it is evaluated on."""
    return View(recipe.evaluate_size_px or recipe.image_size_px, recipe.evaluate_resize_px, decoder=decoder)


def _augmented(pixels: Pixels, spec: Augment, seed: int, epoch: Epochs, keys: Keys) -> Pixels:
    if spec == Augment(crop_padding_px=spec.crop_padding_px, flip_probability=spec.flip_probability):
        from_y, from_x = padded_crops(pixels.shape[1], spec, seed, epoch, keys)
        return pixels[np.arange(len(pixels))[:, None, None], from_y[:, :, None], from_x[:, None, :]]

    import torch

    from pipeline.loader.augment import augment_batch

    torch.set_num_threads(1)  # there are other tasks beside it
    batch = augment_batch(torch.from_numpy(pixels).permute(0, 3, 1, 2), spec, seed, epoch, keys)
    return batch.permute(0, 2, 3, 1).contiguous().numpy()


@dataclass(frozen=True)
class UnitTask:
    """Makes the batch of one unit; runs in a Ray task on any CPU of the cluster."""

    index: Any  # an ObjectRef of RowIndex
    units: Units
    view: View
    on_corrupt: OnCorrupt

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """batch: {"id": int64 [1]}. Returns one row, so that nobody can split or join units: unit: int64 [1]; row,
        label: int64 [1, N]; image: uint8 [1, N, S, S, 3]; corrupt: bool [1, N]; making: float64 [1, 5]; error: str [1].

        error: empty, or a PipelineError's name and text, for the trainer to raise. Ray Data would wrap it in one of its
        own, and lose it on the way.
        """
        unit = int(batch["id"][0])
        try:
            return self._made(unit)
        except PipelineError as error:
            none = np.zeros((1, 1), dtype=np.int64)
            return {
                "unit": np.array([unit]),
                "row": none,
                "label": none,
                "image": np.zeros((1, 1, 1, 1, 3), dtype=np.uint8),
                "corrupt": none == 0,
                "making": np.zeros((1, 5)),
                "error": np.array([f"{type(error).__name__} {error}"]),
            }

    def _made(self, unit: int) -> dict[str, npt.NDArray[Any]]:
        import ray

        _keep_memory()
        check_decoder(self.view.decoder)
        watch = Stopwatch()
        rows, index = self.units.rows(unit), ray.get(self.index)
        left_out: set[int] | None = set() if self.on_corrupt == "quarantine" else None
        images = self.view.batch(index, rows, self.units.epochs(unit), left_out, watch)
        corrupt = np.zeros(len(rows), dtype=np.bool_)
        corrupt[sorted(left_out or ())] = True
        return {
            "unit": np.array([unit]),
            "row": rows[None],
            "label": index.label[rows].astype(np.int64)[None],
            "image": images[None],
            "corrupt": corrupt[None],
            "making": np.array([astuple(watch.making())]),
            "error": np.array([""]),
        }


@lru_cache(maxsize=1)
def _keep_memory() -> None:
    """Has glibc keep what is freed: batches of the same size come again and again, and fresh pages cost 3 %."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
