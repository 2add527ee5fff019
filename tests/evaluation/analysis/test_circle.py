"""The whole circle: wrong labels in real images are found and corrected, and the network trained again is better."""

import csv
from pathlib import Path

import pytest

from pipeline.config.presets import make_recipe
from pipeline.evaluation import EvaluateOptions, compare, evaluate
from pipeline.ingestion import correct
from pipeline.ingestion.sources import open_source
from pipeline.training import launch
from pipeline.training.job import TrainJob
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.planted import found_of, plant

OPTIONS = EvaluateOptions(views="none", label_issues=True)


def fill_in(listed: Path, truth: dict[str, str], verdicts: Path) -> set[str]:
    """Writes the verdicts of a person who sees what each image shows. Returns the keys that were listed."""
    with open(listed, encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    with open(verdicts, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, lines[0].keys(), delimiter=";")
        writer.writeheader()
        writer.writerows({**line, "verdict": truth.get(line["key"], "keep")} for line in lines)
    return {line["key"] for line in lines}


@pytest.mark.slow
def test_wrong_labels_are_found_and_corrected_and_the_next_network_is_better(
    digits_dataset: str, ray_variables: None, tmp_path: Path
) -> None:
    truth = plant(digits_dataset, tmp_path / "planted.tar", share=0.3, leaks=0).wrong
    data, corrected = tmp_path / "digits", tmp_path / "digits-corrected"
    ingest_here(open_source(str(tmp_path / "planted.tar"), spool=str(tmp_path / "spool")), str(data))
    recipe = make_recipe("digits", epochs=3)
    launch.run_training(TrainJob(str(data), str(tmp_path / "first"), recipe))
    before = evaluate(tmp_path / "first", data, tmp_path / "before", OPTIONS, 0)

    listed = fill_in(tmp_path / "before" / "label-problems.csv", truth, tmp_path / "verdicts.csv")
    done = correct(tmp_path / "verdicts.csv", data, corrected)
    assert done.verdicts.relabelled == len(listed & truth.keys())
    assert done.verdicts.kept == len(listed - truth.keys())

    launch.run_training(TrainJob(str(corrected), str(tmp_path / "second"), recipe))
    after = evaluate(tmp_path / "second", corrected, tmp_path / "after", OPTIONS, 0)
    precision, recall = found_of(listed, {*truth})
    pair = compare(tmp_path / "before", tmp_path / "after", corrected, tmp_path)
    top1 = [values["metrics"]["top1"] for values in (before, after)]
    print(f"wrong labels: precision {precision:.3f}, recall {recall:.3f}; top-1 {top1}, p {pair['p']:.2g}")
    assert recall > 0.6
    assert top1[1] > top1[0] + 0.02
    assert pair["p"] < 0.05
    problems = after["label_problems"]
    assert problems["found"] < before["label_problems"]["found"] / 2
    with open(tmp_path / "after" / "label-problems.csv", encoding="utf-8-sig", newline="") as file:
        assert not listed & {line["key"] for line in csv.DictReader(file)}  # nobody is asked twice
