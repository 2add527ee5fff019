"""Batch predictions: equal to an evaluation of the same images, with a reason for each image that cannot be used."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import CheckpointError, SourceError
from pipeline.dataset.manifest import load
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation import Workers, predict
from pipeline.evaluation.batch_predict import job as prediction_job
from pipeline.evaluation.batch_predict.decode_task import decode_unit
from pipeline.evaluation.batch_predict.images import find_images, image_table
from pipeline.evaluation.batch_predict.job import PredictJob
from pipeline.evaluation.batch_predict.run import claim
from pipeline.evaluation.predictions import read_predictions
from pipeline.loader.decode import best_decoder
from pipeline.loader.transform import evaluation_transform
from pipeline.models.load import find_model
from pipeline.storage import files
from tests.support.images import jpeg, make_tar, tree_files
from tests.support.jobs import call_job


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes parts of 256 images, so that the few images of a test are several parts."""
    monkeypatch.setattr(prediction_job, "PART_UNITS", 2)


@pytest.fixture(scope="module")
def pictures(digits_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' validation images as files in folders, and some files that are no usable images."""
    root = tmp_path_factory.mktemp("pictures")
    split = load(digits_dataset).split("val")
    table = read_rows(digits_dataset, split, np.arange(split.rows))
    for key, image in zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True):
        place = root / "digits" / f"{key}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(image)
    (root / "empty.jpg").touch()
    (root / "text.png").write_text("no image")
    (root / "cut.jpg").write_bytes(jpeg(3)[:-200])
    (root / "notes.txt").write_text("no image by its name")
    return root


def predicted(out: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("part-*.parquet")))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_a_folder_is_predicted_as_an_evaluation_does_and_the_rest_reported(
    trained: str, pictures: Path, digits_dataset: str, evaluation: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = predict(trained, pictures, out, "none", Workers(2))
    table = predicted(out)
    pairs = zip(table["key"].to_pylist(), table["error"].to_pylist(), strict=True)
    errors = {key: error for key, error in pairs if error}
    assert errors.keys() == {"empty.jpg", "text.png", "cut.jpg"}
    assert errors["empty.jpg"] == "empty: zero bytes"
    assert (done.images, done.unusable, done.skipped, done.predicted_now) == (362, 3, 1, 362)
    theirs, keys = read_predictions(evaluation)
    classes = load(digits_dataset).classes
    expected = {f"digits/{key}.png": classes[best] for key, best in zip(keys, theirs.classes[:, 0], strict=True)}
    usable = table.filter(table["error"].is_null())
    assert dict(zip(usable["key"].to_pylist(), usable["class"].to_pylist(), strict=True)) == expected
    summary = json.loads((out / "predictions.json").read_text())
    assert (summary["images_count"], summary["unusable"]) == (362, 3)
    assert sum(summary["per_class"].values()) == 359
    assert predict(trained, pictures, out, "none", Workers(2)).predicted_now == 0  # all parts are finished

    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    for name in ("plan.json", "part-000000.parquet"):
        shutil.copy(out / name, interrupted)
    assert predict(trained, pictures, interrupted, "none", Workers(1)).predicted_now == 362 - 256
    assert predicted(interrupted).equals(table)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_job_prints_a_summary(trained: str, pictures: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", trained, "--input", str(pictures / "cut.jpg"), "--out", "out"]
    finished = call_job("predict", *arguments, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "1, see the column error; first cut.jpg: truncated" in finished.stdout


def test_an_archive_gives_what_its_folder_gives(pictures: Path, tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "all.tar.gz", tree_files(pictures), "w:gz")
    folder, archive = (find_images(str(each), str(tmp_path / "spool"), lambda *_: None) for each in (pictures, tar))
    assert folder[1] == archive[1] == 1
    assert folder[0]["name"].to_pylist() == archive[0]["name"].to_pylist()
    assert folder[0]["length"].to_pylist() == archive[0]["length"].to_pylist()
    one, others = find_images(str(pictures / "cut.jpg"), "", lambda *_: None)
    assert (one["name"].to_pylist(), others) == (["cut.jpg"], 0)


def test_what_cannot_be_read_is_reported_and_the_rest_is_read(trained: str, pictures: Path, tmp_path: Path) -> None:
    samples, _ = find_images(str(pictures), str(tmp_path), lambda *_: None)
    gone = files.join(str(pictures), "gone.png")
    lost = image_table(["gone.png"], [gone], [0], [100])
    view = evaluation_transform(find_model(trained).recipe, "simplejpeg")
    images, errors = decode_unit(pa.concat_tables([samples.slice(0, 20), lost]), view)
    assert images.shape == (21, 32, 32, 3)
    assert "can't be read" in errors[20]
    assert [bool(error) for error in errors[:20]] == [
        bool(error) for error in decode_unit(samples.slice(0, 20), view)[1]
    ]


def test_other_predictions_are_not_mixed_in(trained: str, pictures: Path, tmp_path: Path) -> None:
    samples, _ = find_images(str(pictures), str(tmp_path), lambda *_: None)
    job = PredictJob(find_model(trained), samples, str(tmp_path), "none", "simplejpeg")
    claim(job)
    claim(job)
    with pytest.raises(CheckpointError, match="of other images"):
        claim(PredictJob(job.model, samples.slice(1), str(tmp_path), "none", "simplejpeg"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    with pytest.raises(SourceError, match="no file is named like an image"):
        find_images(str(tmp_path / "texts"), str(tmp_path), lambda *_: None)
    with pytest.raises(SourceError, match="no such file or folder"):
        find_images(str(tmp_path / "nothere"), str(tmp_path), lambda *_: None)


def test_a_buckets_prefix_gives_what_the_folder_gives(trained: str, pictures: Path, s3: str, tmp_path: Path) -> None:
    for name, data in list(tree_files(pictures).items())[:12]:
        files.write_bytes(f"{s3}/pictures/{name}", data)
    view = evaluation_transform(find_model(trained).recipe, best_decoder())
    bucket, _ = find_images(f"{s3}/pictures", str(tmp_path), lambda *_: None)
    folder, _ = find_images(str(pictures), str(tmp_path), lambda *_: None)
    kept = folder.filter(pa.compute.is_in(folder["name"], value_set=bucket["name"].combine_chunks()))
    assert bucket["name"].to_pylist() == kept["name"].to_pylist()
    (images, errors), (same, same_errors) = (decode_unit(samples, view) for samples in (bucket, kept))
    assert np.array_equal(images, same)
    assert errors == same_errors
