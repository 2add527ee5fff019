"""Evaluations: every row once, the same integers for any number of workers, and errors in one line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import CheckpointError, RecipeError
from pipeline.dataset import manifest
from pipeline.evaluation.output_files import read_robustness
from pipeline.evaluation.predictions import read_predictions
from pipeline.evaluation.runner import EvaluateJob, split_rows
from pipeline.models import checkpoint
from pipeline.models.load import check_classes, find_model
from tests.support.trained.predictions import evaluated


def test_an_evaluation_has_every_row_once_and_repeats_itself(
    trained: str, digits_dataset: str, evaluation: str, tmp_path: Path
) -> None:
    assert evaluated(trained, digits_dataset, tmp_path).rows == 359
    _, keys = read_predictions(str(tmp_path))
    assert len(set(keys)) == 359
    names = ("predictions.parquet",)
    assert all((tmp_path / name).read_bytes() == Path(evaluation, name).read_bytes() for name in names)


def test_what_a_run_held_out_is_evaluated_as_the_run_did(trained: str, digits_dataset: str, tmp_path: Path) -> None:
    data, model = manifest.load(digits_dataset), find_model(trained)
    split, first, rows = split_rows("held-out", data, model)
    assert (split, first, rows) == ("train", 1438 - 144, 144)
    evaluated(trained, digits_dataset, tmp_path, split=split, first_row=first, rows=rows)
    mine, keys = read_predictions(str(tmp_path))
    theirs, same_keys = read_predictions(trained)
    assert keys == same_keys
    assert np.array_equal(mine.classes, theirs.classes)
    assert np.array_equal(mine.row, theirs.row)
    with pytest.raises(RecipeError, match="was trained on all of train"):
        split_rows("held-out", data, replace(model, hold_out=0.0))
    with pytest.raises(RecipeError, match="another data set"):
        split_rows("held-out", data, replace(model, dataset_digest="0"))


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_same_integers_for_any_number_of_workers(trained: str, digits_dataset: str, tmp_path: Path) -> None:
    found = []
    for workers in (0, 3):
        out = tmp_path / str(workers)
        evaluated(
            trained, digits_dataset, out, num_workers=workers, cpus_per_worker=0.3, severities=(2,), robustness_rows=300
        )
        predictions, keys = read_predictions(str(out))
        robust = read_robustness(str(out))
        found.append((predictions.classes.tolist(), predictions.label.tolist(), keys, robust))
    assert found[0] == found[1]


def test_a_checkpoint_is_evaluated_as_its_run_was(
    trained: str, digits_dataset: str, evaluation: str, tmp_path: Path
) -> None:
    evaluated(str(checkpoint.latest(trained)), digits_dataset, tmp_path)
    one, other = (read_predictions(each)[0] for each in (str(tmp_path), evaluation))
    assert np.array_equal(one.classes, other.classes)


def test_what_cannot_be_evaluated_is_an_error(
    trained: str, digits_dataset: str, tree_dataset: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no finished run"):
        find_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        find_model(f"{trained}/checkpoints/000000007")
    with pytest.raises(CheckpointError, match=r"knows 10 classes, the data set has 3"):
        check_classes(find_model(trained), manifest.load(tree_dataset).classes)
    with pytest.raises(CheckpointError, match=r"no predictions\.parquet"):
        read_predictions(str(tmp_path))
    with pytest.raises(RecipeError, match="rows=400 from 0 on: val has 359"):
        EvaluateJob(trained, digits_dataset, str(tmp_path), rows=400).row_range(manifest.load(digits_dataset))
