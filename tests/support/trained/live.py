"""Registries for tests of models in use: versions without a network, and what they are said to have answered."""

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.dataset.manifest import load
from pipeline.dataset.parquet import read_rows
from pipeline.models import checkpoint
from pipeline.retraining import registry
from pipeline.retraining.alias_file import encode
from pipeline.retraining.live import store
from pipeline.storage import files

CLASSES = ("a", "b")
SWAPPED = (("3", "5"), ("4", "9"), ("1", "7"))


def make_version(place: str, name: str, top1: float = 0.9, rows: int = 1000, classes: Sequence[str] = CLASSES) -> str:
    """Adds a version whose weights are its name, and returns its ID."""
    output = json.dumps(
        {"classes": classes, "recipe": {"name": "digits"}, "dataset_digest": "d", "hold_out": 0.0}
    ).encode()
    return _add(place, {checkpoint.MODEL_NAME: name.encode(), checkpoint.OUTPUT_NAME: output}, top1, rows)


def copy_version(place: str, run: str, name: str, damaged: bool = False) -> str:
    """Adds a version with a run's model, which has no evaluation, and returns its ID; name: tells copies apart."""
    contents = {
        each: files.read_bytes(files.join(run, each)) for each in (checkpoint.MODEL_NAME, checkpoint.OUTPUT_NAME)
    }
    if damaged:
        contents[checkpoint.MODEL_NAME] = contents[checkpoint.MODEL_NAME][:-100]
    return _add(place, {**contents, "name": name.encode()}, 0.9, 1000)


def _add(place: str, contents: dict[str, bytes], top1: float, rows: int) -> str:
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in contents.items()}
    version = registry.Version("digits", "d" * 64, top1, rows, "c" * 64, "", hashes)
    version = replace(version, id=version.computed_id())
    folder = registry.version_uri(place, version.id)
    for file, data in contents.items():
        files.write_bytes(files.join(folder, file), data)
    files.write_once(files.join(folder, registry.VERSION_NAME), encode(asdict(version)))
    return version.id


def promote(place: str, version: str, kind: str = "night", number: int = 0) -> registry.Move:
    """Makes a version champion as a retraining run does (kind: night), or as a person (kind: "")."""
    mark = f" ({kind} {number:012x})" if kind else ""
    return registry.move(place, "champion", version, f"promoted{mark}", registry.current(place, "champion"))


def nominate(place: str, version: str, number: int = 0) -> registry.Move:
    """Makes a version candidate as a retraining run does."""
    champion = registry.current(place, "champion")
    assert champion is not None
    return registry.nominate(place, version, f"candidate (night {number:012x})", champion)


def put_traffic(
    place: str,
    versions: tuple[str, str | None],
    first: Sequence[str | None],
    second: Sequence[str | None] = (),
    name: str = "day",
    seconds: tuple[float, float] = (0.001, 0.001),
) -> None:
    """Stores the answers of two versions for images NAME/0, NAME/1 and so on; None is no answer."""
    rows = len(first)
    table = pa.table(
        {
            "key": [f"{name}/{row}" for row in range(rows)],
            "first": first,
            "second": second or [None] * rows,
            "first_seconds": [seconds[0]] * rows,
            "second_seconds": [seconds[1]] * rows if second else [None] * rows,
            "error": [None] * rows,
            "content": [None] * rows,
        },
        schema=store.SCHEMA,
    )
    head = store.Traffic(versions[0], versions[1] or store.ALONE, float(len(store.traffic_uris(place))))
    store.write_traffic(place, name, head, iter([table]))


def put_labels(place: str, labels: dict[str, str]) -> None:
    """Stores labels by key."""
    lines = ["key,label", *(f"{key},{label}" for key, label in labels.items())]
    store.add_labels(place, "\n".join(lines).encode())


def put_incoming(dataset: str, folder: Path) -> None:
    """Writes the validation images as files, and their true labels as `labels.csv` beside the folder."""
    data, split = load(dataset), load(dataset).split("val")
    table, lines = read_rows(dataset, split, np.arange(split.rows)), [["key", "label"]]
    folder.mkdir()
    for number, (label, image) in enumerate(zip(table["label"].to_pylist(), table["image"].to_pylist(), strict=True)):
        (folder / f"{number}.png").write_bytes(image)
        lines.append([f"{number}.png", data.classes[label]])
    with (folder.parent / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def swap_classes(source: Path) -> None:
    """Exchanges the folders of some classes, in train and in val."""
    for split in ("train", "val"):
        for one, other in SWAPPED:
            (source / split / one).rename(source / split / "x")
            (source / split / other).rename(source / split / one)
            (source / split / "x").rename(source / split / other)
