"""The process of one section: what it is told, what it measures, and the file that keeps each figure at once.

A section runs alone in its process, so that a crash, a hang or an error of the device ends that section and no other.
"""

import contextlib
import importlib
import json
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.core.finite import finite_or_none
from pipeline.storage import files

MODULES = {
    "ceilings": "ceilings",
    "correctness": "correctness",
    "resnet50": "resnet",
    "cifar10": "cifar10.seconds",
    "decoder": "decoder",
    "checkpoints": "checkpoints",
    "records": "cifar10.records",
    "stream": "stream",
}
"""Module of each section in this folder, by the section's name, in the order in which they run. Ray comes last."""

ON_REQUEST = ("records",)
"""Sections that run only where they are named."""


@dataclass(frozen=True)
class Settings:
    """What all sections are told."""

    device: str
    """"cuda" or "cpu"."""
    small: bool
    """Whether sizes are tiny: everything runs, and no figure means anything."""
    cifar: str
    """Archive of CIFAR-10 in its binary form; empty for generated pictures."""
    photos: str
    """Tar of JPEGs; empty for generated pictures."""
    folder: str
    """Folder for what the sections share, such as ingested data sets; removed at the end."""


class SkippedError(Exception):
    """Raised by a section that can't run here: why."""


class PartsFailedError(Exception):
    """Raised at the end of a section of which a part or a check of correctness failed."""


class Bench:
    """One section at work: its settings, its time, and its figures.

    out: file that is written anew, atomically, after each figure. seconds: until the section has to end by itself.
    """

    def __init__(self, name: str, settings: Settings, seconds: float, out: str) -> None:
        self.name, self.settings, self._out = name, settings, out
        self.results: dict[str, Any] = {}
        self.remarks: list[str] = []
        self.errors: dict[str, str] = {}
        self._started = time.monotonic()
        self._ends = self._started + seconds

    @property
    def device(self) -> Any:
        """The torch.device of the section."""
        import torch

        # With its number: torch.cuda.set_device refuses a device without one.
        return torch.device("cuda", 0) if self.settings.device == "cuda" else torch.device("cpu")

    @property
    def small(self) -> bool:
        """Whether sizes are tiny."""
        return self.settings.small

    def left(self) -> float:
        """Returns the seconds that are left to this section."""
        return self._ends - time.monotonic()

    def has(self, seconds: float, what: str) -> bool:
        """Returns whether there are `seconds` left for `what`; if not, notes that it was left out."""
        if self.left() >= seconds:
            return True
        self.remark(f"{what}: left out, {max(0.0, self.left()):.0f} s are left and it takes about {seconds:.0f} s")
        return False

    def record(self, name: str, value: Any, line: str = "") -> None:
        """Keeps a figure, or a dictionary of figures, and shows a line about it."""
        self.results[name] = value
        self.write("running")
        print(f"  {name:<34} {line or _shown(value)}", flush=True)

    def check(self, name: str, passed: bool, line: str, **details: Any) -> None:
        """Keeps the result of a check of correctness, and shows it."""
        self.results.setdefault("checks", {})[name] = {"passed": bool(passed), "line": line, **details}
        self.write("running")
        print(f"  {name:<34} {'passed' if passed else 'FAILED'}: {line}", flush=True)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Keeps and shows the error of a part of the section, which goes on, and has failed at its end."""
        try:
            yield
        except SkippedError:
            raise
        except Exception as error:  # of any kind: it is the result of this part
            self.errors[name] = traceback.format_exc()
            self.remark(f"{name}: FAILED, {_in_one_line(error)}")
            self.write("running")

    def remark(self, line: str) -> None:
        """Keeps a line about what was left out or is special, and shows it."""
        self.remarks.append(line)
        print(f"  {line}", flush=True)

    def write(self, status: str, **more: Any) -> None:
        """Writes the file."""
        seconds = round(time.monotonic() - self._started, 2)
        values = {"status": status, "seconds": seconds, "results": self.results, "remarks": self.remarks, **more}
        if self.errors:
            values["errors"] = self.errors
        files.write_json(self._out, finite_or_none(values), pretty=True)

    def run(self, module: str) -> None:
        """Runs the section in a module, and writes how it ended: done, skipped, or failed with the error."""
        try:
            importlib.import_module(module).run(self)
            failed = [name for name, check in self.results.get("checks", {}).items() if not check["passed"]]
            if wrong := [*failed, *self.errors]:
                raise PartsFailedError(f"{len(wrong)} failed: {', '.join(wrong)}")
        except SkippedError as reason:
            self.write("skipped", reason=str(reason))
        except Exception as error:  # of any kind: it is the result of this section
            self.write("failed", error=_in_one_line(error), traceback=traceback.format_exc())
        else:
            self.write("done")


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Runs the section NAME: python -m jobs.bench.gpu.child NAME SECONDS SETTINGS-AS-JSON OUT."""
    name, seconds, settings, out = sys.argv[1:]
    bench = Bench(name, Settings(**json.loads(settings)), float(seconds), out)
    bench.write("running")
    bench.run(f"jobs.bench.gpu.{MODULES[name]}")


def command(name: str, seconds: float, settings: Settings, out: str) -> list[str]:
    """Returns the command line of a section's process."""
    return [sys.executable, "-m", "jobs.bench.gpu.child", name, str(seconds), json.dumps(asdict(settings)), out]


if __name__ == "__main__":
    main()
