"""Read what a training run has written: its trace of rows and its TensorBoard files."""

import json
from itertools import chain
from pathlib import Path

from pipeline.storage import files


def traced(run: Path) -> dict[int, list[str]]:
    """Returns {step: keys of the rows} of a run of one worker; the last time counts where a step was done twice."""
    lines = [line for path in sorted((run / "rows").iterdir()) for line in path.read_text().splitlines()]
    return {entry["step"]: entry["keys"] for entry in map(json.loads, lines)}


def trained_on(run: str) -> dict[int, list[str]]:
    """Returns {step: keys of the global batch} of a run of any number of workers; the last time counts, as above."""
    starts: dict[tuple[str, int], dict[int, list[list[str]]]] = {}
    for name, _ in files.list_files(files.join(run, "rows")):  # a start's files lie together, rank by rank
        start = (name.split("-rank-")[0], int(name.split("-of-")[1].split("-to-")[0].removesuffix(".jsonl")))
        for line in files.read_bytes(files.join(run, "rows", name)).decode().splitlines():
            entry = json.loads(line)
            starts.setdefault(start, {}).setdefault(entry["step"], []).append(entry["keys"])
    done: dict[int, list[str]] = {}
    for (_, ranks), steps in starts.items():
        done |= {step: list(chain.from_iterable(keys)) for step, keys in steps.items() if len(keys) == ranks}
    return done


def scalars(folder: str, name: str) -> list[tuple[int, float]]:
    """Returns (step, value) of each point of a curve in a folder of TensorBoard files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(folder)
    found.Reload()
    return [(event.step, round(event.value, 6)) for event in found.Scalars(name)]
