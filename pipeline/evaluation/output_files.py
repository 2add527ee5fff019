"""Files in the folder of an evaluation: names, and functions that write and read them."""

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import CheckpointError
from pipeline.storage import files

METRICS_NAME, KEPT_NAME, ROBUSTNESS_NAME = "metrics.json", "kept.npy", "robustness.json"


def finite(values: Any) -> Any:
    """Returns JSON values with None for every float that is NaN or infinite: JSON has no such numbers (RFC 8259)."""
    if isinstance(values, dict):
        return {name: finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def write_metrics(out: str, values: dict[str, Any]) -> None:
    """Writes `metrics.json` into the folder `out`."""
    files.write_json(files.join(out, METRICS_NAME), finite(values), pretty=True)


def read_metrics(out: str) -> dict[str, Any]:
    """Returns the content of `metrics.json` in the folder `out`. Raises CheckpointError if there is none."""
    uri = files.join(out, METRICS_NAME)
    if not files.exists(uri):
        raise CheckpointError(f"{out}: no {METRICS_NAME}; give the folder of an evaluation")
    values: dict[str, Any] = files.read_json(uri)
    return values


def write_robustness(out: str, lines: list[dict[str, Any]]) -> None:
    """Writes `robustness.json` into the folder `out`. lines: of `corruptions.robustness_lines`."""
    files.write_json(files.join(out, ROBUSTNESS_NAME), lines, pretty=True)


def read_robustness(out: str) -> list[dict[str, Any]]:
    """Returns `robustness.json`: corruption, severity, strength, and correct of rows, for each case."""
    lines: list[dict[str, Any]] = files.read_json(files.join(out, ROBUSTNESS_NAME))
    return lines


def write_kept(out: str, kept: npt.NDArray[np.float32]) -> None:
    """Writes `kept.npy` into the folder `out`. kept: float32 [rows, M], logits or features in row order."""
    buffer = io.BytesIO()
    np.save(buffer, kept, allow_pickle=False)
    files.write_bytes(files.join(out, KEPT_NAME), buffer.getvalue())


def read_kept(out: str) -> npt.NDArray[np.float32]:
    """Returns `kept.npy`, float32 [rows, M], in the order of the predictions."""
    kept: npt.NDArray[np.float32] = np.load(
        io.BytesIO(files.read_bytes(files.join(out, KEPT_NAME))), allow_pickle=False
    )
    return kept
