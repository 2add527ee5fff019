"""What has changed between two versions of a data set: its classes, its pixels, and what the champion makes of it.

Warnings, not verdicts: a data set that grew by what was missing has drifted, too.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_provenance

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Thresholds:
    """Above which a change is named.

    class_mix: total variation distance of the class shares, in [0, 1]. brightness: Kolmogorov and Smirnov's distance of
    the images' mean values, in [0, 1]. features: distance of the mean features of the champion, in standard deviations.
    """

    class_mix: float = 0.1
    brightness: float = 0.1
    features: float = 0.5


@dataclass(frozen=True)
class Drift:
    """The distances, whether each is above its threshold, and what they mean in words."""

    class_mix: float
    brightness: float | None
    features: float | None
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return asdict(self)


def class_mix(before: Manifest, after: Manifest) -> float:
    """Returns the total variation distance of the class shares in train, half the sum of their differences."""
    shares = []
    for data in (before, after):
        counts = dict(zip(data.classes, data.split("train").rows_per_class, strict=True))
        total = sum(counts.values())
        shares.append({name: count / total for name, count in counts.items()})
    names = set(shares[0]) | set(shares[1])
    return 0.5 * sum(abs(shares[0].get(name, 0.0) - shares[1].get(name, 0.0)) for name in names)


def brightness(before: str, old: Manifest, after: str, new: Manifest) -> float | None:
    """Returns the distance of both distributions of brightness in train; None where an ingest decoded nothing."""
    from scipy.stats import ks_2samp

    values = []
    for uri, data in ((before, old), (after, new)):
        table = read_provenance(uri, data, ["brightness"])
        of_train = table.filter(np.array(table["split"].to_pylist()) == "train")["brightness"]
        if of_train.null_count:
            return None
        values.append(of_train.to_numpy())
    return float(ks_2samp(*values).statistic)


def feature_distance(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> float:
    """before, after: float32 [N, M], features of samples of both. Returns the root mean square, over the M features, of
    the difference of their means in standard deviations of the first (0.3 and less is small, Cohen, 1988)."""
    deviation = before.std(axis=0, dtype=np.float64)
    known = deviation > 1e-6
    shift = (after.mean(axis=0, dtype=np.float64) - before.mean(axis=0, dtype=np.float64))[known] / deviation[known]
    return float(np.sqrt((shift**2).mean()))


def judge(mix: float, light: float | None, features: float | None, thresholds: Thresholds) -> Drift:
    """Returns the drift with a warning for each distance above its threshold."""
    found = (
        ("class_mix", mix, "the mix of classes has changed: {:.3f} of the images would have to be of another class"),
        ("brightness", light, "the images are darker or brighter than they were: distance {:.3f}"),
        ("features", features, "the champion sees other images than it did: {:.2f} standard deviations"),
    )
    warnings = [
        text.format(value) for name, value, text in found if value is not None and value > getattr(thresholds, name)
    ]
    return Drift(mix, light, features, tuple(warnings))
