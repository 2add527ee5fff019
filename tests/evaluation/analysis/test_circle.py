"""The whole circle: wrong labels in real images are found and corrected, and the network trained again is better."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.presets import make_recipe
from pipeline.dataset.manifest import load
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation import EvaluateOptions, compare, evaluate
from pipeline.ingestion import correct
from pipeline.ingestion.sources import open_source
from pipeline.training import launch
from pipeline.training.job import TrainJob
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import make_tar
from tests.support.pictures.planted import found_of

OPTIONS = EvaluateOptions(views="none", label_issues=True)


def spoil(dataset: str, path: Path, share: float) -> dict[str, str]:
    """Writes a tar of class folders with a share of the training images in another class's folder, drawn at random.

    Returns {key: true class} of these images.
    """
    data, generator, files, wrong = load(dataset), np.random.default_rng(0), dict[str, bytes](), dict[str, str]()
    for split in ("train", "val"):
        table = read_rows(dataset, data.split(split), np.arange(data.split(split).rows))
        for row, (label, image) in enumerate(zip(table["label"].to_pylist(), table["image"].to_pylist(), strict=True)):
            off = int(generator.integers(1, 10)) if split == "train" and generator.random() < share else 0
            name = f"{split}/{data.classes[(label + off) % 10]}/{row:04d}.png"
            files[name] = image
            if off:
                wrong[name] = data.classes[label]
    make_tar(path, files)
    return wrong


def fill_in(listed: Path, truth: dict[str, str], verdicts: Path) -> set[str]:
    """Writes the verdicts of a person who sees what each image shows. Returns the keys that were listed."""
    with open(listed, encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    with open(verdicts, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, lines[0].keys(), delimiter=";")
        writer.writeheader()
        writer.writerows({**line, "verdict": truth.get(line["key"], "keep")} for line in lines)
    return {line["key"] for line in lines}


@pytest.mark.long
def test_wrong_labels_are_found_and_corrected_and_the_next_network_is_better(
    digits_dataset: str, ray_variables: None, tmp_path: Path
) -> None:
    truth = spoil(digits_dataset, tmp_path / "spoilt.tar", 0.4)
    data, corrected = tmp_path / "digits", tmp_path / "digits-corrected"
    ingest_here(open_source(str(tmp_path / "spoilt.tar"), spool=str(tmp_path / "spool")), str(data))

    def trained(dataset: Path, name: str, epochs: int) -> Path:
        launch.run_training(TrainJob(str(dataset), str(tmp_path / name), make_recipe("digits", epochs=epochs)))
        return tmp_path / name

    # A short run, which has not learnt the wrong labels yet, finds them; a longer one suffers from them.
    evaluate(trained(data, "short", 3), data, tmp_path / "found", OPTIONS, 0)
    before = evaluate(trained(data, "first", 8), data, tmp_path / "before", replace(OPTIONS, label_issues=False), 0)

    listed = fill_in(tmp_path / "found" / "label-problems.csv", truth, tmp_path / "verdicts.csv")
    done = correct(tmp_path / "verdicts.csv", data, corrected)
    assert done.verdicts.relabelled == len(listed & truth.keys())
    assert done.verdicts.kept == len(listed - truth.keys())

    after = evaluate(trained(corrected, "second", 8), corrected, tmp_path / "after", OPTIONS, 0)
    precision, recall = found_of(listed, {*truth})
    pair = compare(tmp_path / "before", tmp_path / "after", corrected, tmp_path)
    top1 = [values["metrics"]["top1"] for values in (before, after)]
    print(f"wrong labels: precision {precision:.3f}, recall {recall:.3f}; top-1 {top1}, p {pair['p']:.2g}")
    assert precision > 0.6
    assert recall > 0.4
    assert top1[1] > top1[0] + 0.03
    assert pair["p"] < 0.05
    with open(tmp_path / "after" / "label-problems.csv", encoding="utf-8-sig", newline="") as file:
        assert not listed & {line["key"] for line in csv.DictReader(file)}  # nobody is asked twice
