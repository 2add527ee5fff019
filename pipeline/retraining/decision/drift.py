"""Drift between two versions of a data set: class mix, brightness, and the champion's features.

Drift warns, or stops a run before it trains (`RetrainOptions.on_drift`). It never decides a promotion: a data set that
gained what it lacked has drifted, too.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import RecipeError
from pipeline.dataset import manifest
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_split_provenance
from pipeline.models.class_lists.mapping import ClassMap

OnDrift = Literal["warn", "stop"]
"""What a distance above its threshold does: "warn" reports it, "stop" ends the run before it trains, too."""


@dataclass(frozen=True)
class Thresholds:
    """Distances above which drift is reported. The defaults are rules of thumb, not measured.

    Raises RecipeError for a distance that is negative or no number.
    """

    class_mix: float = 0.1  # total variation distance of the class shares, in [0, 1]
    brightness: float = 0.1  # Kolmogorov-Smirnov distance of the images' mean pixel values, in [0, 1]
    features: float = 0.5  # distance of the mean features of the champion, in standard deviations

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise RecipeError(f"drift {name}={value:g} must be 0 or more, and finite")


@dataclass(frozen=True)
class Drift:
    """The distances, None where one couldn't be measured, and a warning for each that is above its threshold."""

    class_mix: float
    brightness: float | None
    features: float | None
    warnings: tuple[str, ...]
    thresholds: Thresholds = field(default_factory=Thresholds)

    def as_json(self) -> dict[str, Any]:
        """Returns the drift as JSON values."""
        return asdict(self)


def class_mix(before: Manifest, after: Manifest, name_since: Callable[[str], str] = str) -> float:
    """Returns the total variation distance of the class shares in train: half the sum of their absolute differences.

    name_since: the name now of a class of `before`. A class that one of them lacks has a share of 0 there.
    """
    shares = []
    for data, named in ((before, name_since), (after, str)):
        counts = Counter[str]()
        for name, rows in zip(data.classes, data.split("train").rows_per_class, strict=True):
            counts[named(name)] += rows
        shares.append({name: count / counts.total() for name, count in counts.items()})
    names = set(shares[0]) | set(shares[1])
    return 0.5 * sum(abs(shares[0].get(name, 0.0) - shares[1].get(name, 0.0)) for name in names)


def brightness(before: str, old: Manifest, after: str, new: Manifest) -> float | None:
    """Returns the Kolmogorov-Smirnov distance of the two distributions of brightness in train.

    before, after: URIs of the data sets. None if an ingest with `--checks header` decoded no images.
    """
    from scipy.stats import ks_2samp

    values = []
    for uri, data in ((before, old), (after, new)):
        of_train = read_split_provenance(uri, data.split("train"), ["brightness"])["brightness"]
        if of_train.null_count:
            return None
        values.append(of_train.to_numpy())
    return float(ks_2samp(*values).statistic)


def feature_distance(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> float:
    """Returns the standardised distance of two samples of features: 0.3 and less is small (Cohen, 1988).

    before, after: float32 [N, M], of any two N. The distance is the root mean square, over the M features, of the
    difference of their means in standard deviations of `before`. Constant features are left out.
    """
    deviation = before.std(axis=0, dtype=np.float64)
    varies = deviation > 1e-6
    shift = (after.mean(axis=0, dtype=np.float64) - before.mean(axis=0, dtype=np.float64))[varies] / deviation[varies]
    return float(np.sqrt((shift**2).mean()))


def assess(mix: float, light: float | None, features: float | None, thresholds: Thresholds) -> Drift:
    """Returns the drift, with a warning for each distance above its threshold.

    mix, light, features: as from `class_mix`, `brightness` and `feature_distance`.
    """
    measured = (
        ("class_mix", mix, "the mix of classes has changed: {:.3f} of the images would have to be of another class"),
        ("brightness", light, "the images have become darker or brighter: Kolmogorov-Smirnov distance {:.3f}"),
        ("features", features, "the champion's features have shifted: by {:.2f} standard deviations"),
    )
    warnings = [
        text.format(value) for name, value, text in measured if value is not None and value > getattr(thresholds, name)
    ]
    return Drift(mix, light, features, tuple(warnings), thresholds)


def data_drift(before: str, after: str, thresholds: Thresholds, class_map: ClassMap | None = None) -> Drift:
    """Returns the drift that needs no model: of classes and brightness.

    before, after: URIs of the data sets. class_map: which classes were renamed; None for none.
    """
    old, new = manifest.load(before), manifest.load(after)
    mix = class_mix(old, new, class_map.name_since if class_map else str)
    return assess(mix, brightness(before, old, after, new), None, thresholds)
