"""What a recipe is chosen by: rows, classes and sizes of a data set's images."""

from dataclasses import dataclass

import numpy as np

from pipeline.config.choices import IMAGENET_MEAN, IMAGENET_STD
from pipeline.dataset.manifest import Manifest, Split
from pipeline.dataset.parquet import read_split_provenance
from pipeline.ingestion.sources import cifar, digits
from pipeline.loader.samplers import train_eval_split

_SHARDS = 8  # whose rows stand for all: sizes are mixed over the shards, and large sets have thousands
_GREY_DIFFERENCE = 1e-3  # of the means of R, G and B

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class DataFacts:
    """Facts of a data set that decide about a recipe."""

    name: str
    """Name of the data set."""
    classes: tuple[str, ...]
    """Names of the classes."""
    train_rows: int
    """Rows that are trained on."""
    val_rows: int
    """Rows that are evaluated."""
    rows_per_class: tuple[int, ...]
    """Rows of train in each class, those that are held out included."""
    width_px: int
    """Median width of the training images."""
    height_px: int
    """Median height of the training images."""
    pixel_mean: Rgb = IMAGENET_MEAN
    """Mean of R, G and B, of values in [0, 1]; ImageNet's where the images weren't decoded."""
    pixel_std: Rgb = IMAGENET_STD
    """Standard deviation of R, G and B; ImageNet's where the images weren't decoded."""

    @property
    def side_px(self) -> int:
        """The shorter side of a median image, in pixels."""
        return min(self.width_px, self.height_px)

    @property
    def grey(self) -> bool:
        """Whether the images have no colours: R, G and B have the same mean."""
        return max(self.pixel_mean) - min(self.pixel_mean) < _GREY_DIFFERENCE

    @property
    def is_digits(self) -> bool:
        """Whether these are scikit-learn's digits."""
        return self.name == digits.NAME

    @property
    def is_cifar10(self) -> bool:
        """Whether these are CIFAR-10's images, in whatever form."""
        return set(self.classes) == set(cifar.CLASSES) and self.side_px == 32


def data_facts(uri: str, manifest: Manifest, hold_out: float = 0.0) -> DataFacts:
    """Returns the facts of a data set. Reads the columns of sizes of some shards' provenance, and no image.

    hold_out: share of train that is evaluated and not trained on.
    """
    parts = train_eval_split(manifest, hold_out)
    train = manifest.split("train")
    width, height = _median_size(uri, train)
    quality = manifest.quality
    return DataFacts(
        name=manifest.name,
        classes=manifest.classes,
        train_rows=parts.train_rows,
        val_rows=parts.rows,
        rows_per_class=train.rows_per_class,
        width_px=width,
        height_px=height,
        pixel_mean=_rgb(quality.get("pixel_mean", IMAGENET_MEAN)),
        pixel_std=_rgb(quality.get("pixel_std", IMAGENET_STD)),
    )


def _median_size(uri: str, split: Split) -> tuple[int, int]:
    step = max(1, len(split.shards) // _SHARDS)
    table = read_split_provenance(uri, Split(0, (), split.shards[::step][:_SHARDS]), ["width", "height"])
    return int(np.median(table["width"].to_numpy())), int(np.median(table["height"].to_numpy()))


def _rgb(values: object) -> Rgb:
    red, green, blue = (float(value) for value in values)  # type: ignore[attr-defined]
    return red, green, blue
