"""Certified evaluations: the same integers for any number of workers, and what isn't as it should be is named."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import CertificateError, CheckpointError, RecipeError
from pipeline.dataset import manifest
from pipeline.evaluation.certificate import Certificate, certify, verify
from pipeline.evaluation.comparison import compare_predictions, read_pair, verdict
from pipeline.evaluation.metrics_file import build_metrics
from pipeline.evaluation.output_files import read_robustness
from pipeline.evaluation.pages.comparison import write_comparison
from pipeline.evaluation.predictions import read_predictions
from pipeline.evaluation.runner import EvaluateJob, run_evaluation, split_rows
from pipeline.models import checkpoint
from pipeline.models.load import check_classes, find_model
from tests.support.jobs import one_line_error, run_job
from tests.support.predictions import evaluated


def test_an_evaluation_has_every_row_once_and_repeats_itself(trained: str, digits_dataset: str, tmp_path: Path) -> None:
    first, second = (evaluated(trained, digits_dataset, tmp_path / name) for name in "ab")
    assert first == second
    assert first.rows == 359
    _, keys = read_predictions(str(tmp_path / "a"))
    assert len(set(keys)) == 359


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
    with pytest.raises(RecipeError, match="trained on all of train"):
        split_rows("held-out", data, replace(model, hold_out=0.0))
    with pytest.raises(RecipeError, match="another data set"):
        split_rows("held-out", data, replace(model, dataset_digest="0"))


@pytest.mark.slow
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


def rewritten(out: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    place = out / "predictions.parquet"
    pq.write_table(change(pq.read_table(place)), place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pa.concat_tables([t, t.slice(5, 1)]), r"more than once: \S+ \(1\)"),
        (lambda t: t.slice(1), r"missing: \S+ \(1\)"),
        (
            lambda t: t.set_column(1, "key", pa.array(["other.png", *t["key"].to_pylist()[1:]])),
            r"missing: \S+ \(1\); foreign: other.png \(1\)",
        ),
        (
            lambda t: t.set_column(
                2, "label", pa.array([(t["label"][0].as_py() + 1) % 10, *t["label"].to_pylist()[1:]])
            ),
            r"label \d, the data set says \d",
        ),
    ],
)
def test_a_row_too_many_too_few_or_foreign_is_refused_by_name(
    trained: str, digits_dataset: str, tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    job = EvaluateJob(trained, digits_dataset, str(tmp_path))
    run_evaluation(job)
    rewritten(tmp_path, change)
    with pytest.raises(CertificateError, match=message):
        certify(job, manifest.load(digits_dataset), find_model(trained))


def test_what_was_changed_after_signing_is_seen(trained: str, digits_dataset: str, tmp_path: Path) -> None:
    job, data, model = (
        EvaluateJob(trained, digits_dataset, str(tmp_path)),
        manifest.load(digits_dataset),
        find_model(trained),
    )
    run_evaluation(job)
    signed, predictions = certify(job, data, model)
    values = build_metrics(job, data, model, signed, predictions)
    place = tmp_path / "metrics.json"

    def verified(model: object = model) -> Certificate:
        return verify(str(tmp_path), digits_dataset, data, model)

    with pytest.raises(RecipeError, match="slice-by=colour: no column"):
        build_metrics(job, data, model, signed, predictions, ("colour",))
    with pytest.raises(RecipeError, match="slice-by=pixel_sha256: has more than"):
        build_metrics(job, data, model, signed, predictions, ("pixel_sha256",))
    place.write_text(json.dumps(values))
    assert verified() == signed
    with pytest.raises(CertificateError, match="checkpoint_sha256 was"):
        verified(replace(model, sha256="0" * 64))
    flattered = {**values, "metrics": {**values["metrics"], "top1": 0.999}}
    place.write_text(json.dumps(flattered))
    with pytest.raises(CertificateError, match=r"top1 was 0\.999"):
        verified()
    place.write_text(json.dumps({**values, "certificate": asdict(replace(signed, views="flip"))}))
    with pytest.raises(CertificateError, match="digest was"):
        verified()
    place.write_text(json.dumps(values))
    rewritten(tmp_path, lambda t: t.set_column(5, "loss", pa.array(np.zeros(t.num_rows))))
    with pytest.raises(CertificateError, match="predictions_sha256 was"):
        verified()


def test_a_checkpoint_is_evaluated_as_its_run_was(trained: str, digits_dataset: str, tmp_path: Path) -> None:
    place = str(checkpoint.latest(trained))
    evaluated(place, digits_dataset, tmp_path / "checkpoint")
    evaluated(trained, digits_dataset, tmp_path / "run")
    one, other = (read_predictions(str(tmp_path / name))[0] for name in ("checkpoint", "run"))
    assert np.array_equal(one.classes, other.classes)


def test_what_cannot_be_evaluated_is_said(trained: str, digits_dataset: str, tree_dataset: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished run"):
        find_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        find_model(f"{trained}/checkpoints/000000007")
    with pytest.raises(CheckpointError, match=r"knows 10 classes, the data set has 3"):
        check_classes(find_model(trained), manifest.load(tree_dataset).classes)
    with pytest.raises(CheckpointError, match=r"no predictions\.parquet"):
        read_pair(trained, str(tmp_path))
    with pytest.raises(RecipeError, match="rows=400 from 0 on: val has 359"):
        EvaluateJob(trained, digits_dataset, str(tmp_path), rows=400).row_range(manifest.load(digits_dataset))


def test_two_evaluations_are_compared_row_by_row(
    trained: str, digits_dataset: str, tree_dataset: str, tmp_path: Path
) -> None:
    for views in ("none", "flip"):  # a mirrored digit is another
        evaluated(trained, digits_dataset, tmp_path / views, views=views)
    rewritten(tmp_path / "flip", lambda t: t.take(pa.array(np.random.default_rng(0).permutation(t.num_rows))))
    data = manifest.load(digits_dataset)
    values, pair = compare_predictions(str(tmp_path / "none"), str(tmp_path / "flip"), digits_dataset, data)
    assert values["both"] + values["only_first"] + values["only_second"] + values["neither"] == 359
    assert values["top1"][0] - values["top1"][1] == pytest.approx((len(values["lost"]) - len(values["won"])) / 359)
    assert sum(line["lost"] for line in values["per_class"]) == values["only_first"] == len(values["lost"])
    assert verdict(values).startswith("A is better")
    assert "may be chance" in verdict({**values, "p": 0.3})
    _, report = write_comparison(str(tmp_path), digits_dataset, data, values, pair)
    assert Path(report).read_text().count("<figure") == min(21, len(values["lost"])) + min(21, len(values["won"]))
    held_out, _ = compare_predictions(trained, trained, digits_dataset, data)  # of train, not of val
    assert (values["split"], held_out["split"]) == ("val", "train")
    with pytest.raises(CertificateError, match="isn't what A and B were evaluated on"):
        compare_predictions(trained, trained, tree_dataset, manifest.load(tree_dataset))
    rewritten(tmp_path / "flip", lambda t: t.slice(2))
    with pytest.raises(CertificateError, match=r"missing: .* \(2\)"):
        read_pair(str(tmp_path / "none"), str(tmp_path / "flip"))


@pytest.mark.ray
@pytest.mark.slow
def test_the_job_evaluates_verifies_and_compares(trained: str, digits_dataset: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    arguments = ["--checkpoint", trained, "--data", digits_dataset, "--out", out, "--full", "--severities", "3"]
    finished = run_job("evaluate", *arguments, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    values = json.loads(Path(out, "metrics.json").read_text())
    assert values["temperature"]["fitted_on"] == 144
    assert len(values["robustness"]) == 6
    assert {line["method"] for line in values["sanity"]} == {"Grad-CAM", "integrated gradients"}
    assert values["label_problems"]["rows"] == 1438
    assert pq.read_table(Path(out, "label-problems.parquet")).num_rows == values["label_problems"]["found"]
    finished = run_job("evaluate", "--verify", out, cwd=tmp_path)
    assert "359 rows, each once; certificate" in finished.stdout, finished.stderr
    finished = run_job("evaluate", "--compare", out, trained, "--data", digits_dataset, cwd=tmp_path)
    assert "isn't one of these 359 rows" in one_line_error(finished)
    assert "give a finished run" in one_line_error(run_job("evaluate", cwd=tmp_path))
