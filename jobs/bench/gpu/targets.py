"""The targets of a proof on a GPU, and what was measured beside them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from jobs.bench.gpu.cifar10.seconds import OURS, PUBLISHED
from jobs.bench.gpu.resnet import LOOP, STEP
from jobs.bench.gpu.stream import STREAM

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Line:
    """One line of the table. met: None where it wasn't measured, or means nothing here."""

    what: str
    target: str
    measured: float | None
    met: bool | None


@dataclass(frozen=True)
class _Target:
    what: str
    shown: str
    measure: Callable[[Results], float]
    is_met: Callable[[float], bool]


def _value(*path: str) -> Callable[[Results], float]:
    """Returns a function that reads a figure of a section; it raises KeyError where that wasn't measured."""

    def read(results: Results) -> float:
        value: Any = results
        for name in path:
            value = value[name]
        return float(value)

    return read


def _ours_of_published(results: Results) -> float:
    return _value("cifar10", OURS, "train_seconds")(results) / _value("cifar10", PUBLISHED, "train_seconds")(results)


def _points_beside_published(results: Results) -> float:
    return 100 * (_value("cifar10", OURS, "top1")(results) - _value("cifar10", PUBLISHED, "top1")(results))


def _original_top1(results: Results) -> float:
    if not results["cifar10"]["original_pixels"]:
        raise KeyError("original_pixels")
    return 100 * _value("cifar10", OURS, "top1")(results)


_OF_PLAIN = _value("resnet50", f"batch 256: {LOOP}", "of_plain")
_EAGER = _value("resnet50", f"batch 256: {STEP}", "images_per_second")
_COMPILED = _value("resnet50", f"batch 256, compiled: {STEP}, compiled", "images_per_second")
_TARGETS = (
    _Target("whole loop, of plain PyTorch's step in bfloat16", ">= 0.97", _OF_PLAIN, lambda v: v >= 0.97),
    _Target("waits in a step", "0", _value("correctness", "waits", "waits"), lambda v: v == 0),
    _Target("ResNet-50 at 224 px, images/s", ">= 2,400", _EAGER, lambda v: v >= 2400),
    _Target("ResNet-50 at 224 px, compiled, images/s", ">= 2,800", _COMPILED, lambda v: v >= 2800),
    _Target("stream, of batches in memory", ">= 0.95", _value("stream", STREAM, "of_held"), lambda v: v >= 0.95),
    _Target("stream, share of waiting", "< 0.03", _value("stream", STREAM, "data_wait"), lambda v: v < 0.03),
    _Target("cifar10-94, training, of the published seconds", "<= 1.15", _ours_of_published, lambda v: v <= 1.15),
    _Target("cifar10-94, top-1 beside the published, points", ">= -0.2", _points_beside_published, lambda v: v >= -0.2),
    _Target("cifar10-94, mean top-1, original pixels, %", ">= 93.8", _original_top1, lambda v: v >= 93.8),
)


def table(sections: dict[str, dict[str, Any]], judged: bool) -> list[dict[str, Any]]:
    """Returns the lines of the table, as dictionaries. judged: whether the sizes are those of the targets, on a GPU."""
    results = {name: section.get("results", {}) for name, section in sections.items()}
    lines = []
    for target in _TARGETS:
        try:
            measured: float | None = target.measure(results)
        except KeyError:  # that section didn't run, or not so far
            measured = None
        met = target.is_met(measured) if judged and measured is not None else None
        lines.append(asdict(Line(target.what, target.shown, measured, met)))
    return lines


def shown(line: dict[str, Any]) -> str:
    """Returns the measured value, target and verdict of a line, for people."""
    measured = "not measured" if line["measured"] is None else f"{line['measured']:,.4g}"
    verdict = {True: "met", False: "MISSED", None: "not judged here"}[line["met"]]
    return f"{measured:>14}   target {line['target']:<16} {verdict}"
