"""Batch predictions: equal to an evaluation of the same images, with a reason for each image that cannot be used."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import CheckpointError, PipelineError, SourceError
from pipeline.core.progress import silent
from pipeline.dataset.manifest import load
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation import Workers, predict
from pipeline.evaluation.batch_predict import job as prediction_job
from pipeline.evaluation.batch_predict.decode_task import decode_unit
from pipeline.evaluation.batch_predict.images import find_images, image_table, input_uris
from pipeline.evaluation.batch_predict.job import PredictJob
from pipeline.evaluation.batch_predict.run import claim
from pipeline.evaluation.predictions import read_predictions
from pipeline.loader.decode import best_decoder
from pipeline.loader.transform import evaluation_transform
from pipeline.models.load import find_model
from pipeline.storage import files
from pipeline.storage.file_names import printable
from tests.support.jobs import run_job
from tests.support.pictures.images import jpeg, make_tar, picture, tree_files


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


def test_an_archive_gives_what_its_folder_gives(pictures: Path, tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "all.tar.gz", tree_files(pictures), "w:gz")
    folder, archive = (find_images([str(each)], str(tmp_path / "spool"), silent) for each in (pictures, tar))
    assert folder.skipped == archive.skipped == {".txt": 1}
    for column in ("name", "length"):
        assert folder.table[column].to_pylist() == archive.table[column].to_pylist()
    one = find_images([str(pictures / "cut.jpg")], "", silent)
    assert (one.table["name"].to_pylist(), one.skipped) == (["cut.jpg"], {})


def test_what_cannot_be_read_is_reported_and_the_rest_is_read(trained: str, pictures: Path, tmp_path: Path) -> None:
    samples = find_images([str(pictures)], str(tmp_path), silent).table
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
    samples = find_images([str(pictures)], str(tmp_path), silent).table
    job = PredictJob(find_model(trained), samples, str(tmp_path), "none", "simplejpeg")
    claim(job)
    claim(job)
    with pytest.raises(CheckpointError, match="of other images"):
        claim(PredictJob(job.model, samples.slice(1), str(tmp_path), "none", "simplejpeg"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    with pytest.raises(SourceError, match=r"texts: no image among 1 file \(.txt 1\); give images"):
        find_images([str(tmp_path / "texts")], str(tmp_path), silent)
    with pytest.raises(SourceError, match="no such file or folder"):
        find_images([str(tmp_path / "nothere")], str(tmp_path), silent)
    with pytest.raises(SourceError, match="no file matches"):
        find_images([str(tmp_path / "*.jpg")], str(tmp_path), silent)


def test_names_of_several_inputs_are_their_places_below_the_common_folder(tmp_path: Path) -> None:
    for name in ("new/a.jpg", "new/b.png", "new/deep/a.jpg", "old/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(3))

    def names(*inputs: str) -> list[str]:
        return find_images([str(tmp_path / each) for each in inputs], str(tmp_path), silent).table["name"].to_pylist()

    assert names("new") == ["a.jpg", "b.png", "deep/a.jpg"]
    assert names("new/*.jpg") == ["a.jpg"]
    assert names("new/**/*.jpg") == ["a.jpg", "deep/a.jpg"]
    assert names("new/a.jpg", "old/a.jpg") == ["new/a.jpg", "old/a.jpg"]
    assert names("new/deep", "old", "new/b.png") == ["new/deep/a.jpg", "old/a.jpg", "new/b.png"]
    (tmp_path / "old" / "a[1].jpg").write_bytes(jpeg(4))  # the name of a file, though it looks like a pattern
    assert names("old/a[1].jpg") == ["a[1].jpg"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_prediction_prints_its_own_lines_and_a_summary_and_nothing_of_rays(
    trained: str, pictures: Path, tmp_path: Path
) -> None:
    """In a process of its own, since Ray's core writes past Python."""
    images = [str(pictures / "cut.jpg"), str(next(pictures.glob("digits/**/*.png")))]
    done = run_job("predict", "--checkpoint", trained, "--input", *images, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "core_worker" not in done.stdout
    assert {"looking at the images", "starting Ray"} <= set(done.stdout.splitlines())
    assert "1, see the column error; first cut.jpg: truncated" in done.stdout


def test_patterns_over_odd_folders_end_and_name_each_image_once(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/b.jpg", os.fsdecode(b"caf\xe9.jpg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(3))
    (tmp_path / "deep" / "circle").symlink_to(tmp_path)
    found = find_images([f"{tmp_path}/**/*.jpg"], str(tmp_path), silent).table
    assert sorted(map(printable, found["name"].to_pylist())) == ["a.jpg", "caf\\xe9.jpg", "deep/b.jpg"]


@pytest.mark.parametrize("by", ["our pattern", "the shell's"])
def test_no_odd_file_that_a_pattern_matches_ends_the_search(by: str, tmp_path: Path) -> None:
    for name, data in {"a.jpg": jpeg(3), "notes.txt": b"x", "no_suffix": b"hello", "photo": jpeg(4)}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg(5))
    inputs = [f"{tmp_path}/*"] if by == "our pattern" else input_uris(sorted(tmp_path.iterdir()))
    found = find_images(inputs, str(tmp_path / "spool"), silent)
    rows = zip(map(printable, found.table["name"].to_pylist()), found.table["error"].to_pylist(), strict=True)
    assert dict(rows) == {
        "a.jpg": None,
        "caf\\xe9.jpg": None,
        "gone.jpg": "dangling link: nowhere is not there",
        "photo": None,
        "pipe.jpg": "not a file: a pipe, socket or device",
    }
    assert found.skipped == {".txt": 2, "no suffix": 1}
    with pytest.raises(SourceError, match=r"typo\.jpg: no such file or folder"):
        find_images([*inputs, str(tmp_path / "typo.jpg")], str(tmp_path / "spool"), silent)
    with pytest.raises(SourceError, match=r"notes\.txt: neither a folder nor an archive"):
        find_images([str(tmp_path / "notes.txt")], str(tmp_path / "spool"), silent)


def test_a_pipe_is_no_image_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PipelineError, match=r"pipe\.jpg: neither a file nor a folder, but a pipe, socket or device"):
        find_images([str(tmp_path / "pipe.jpg")], str(tmp_path), silent)


def png(height: int, width: int) -> bytes:
    out = io.BytesIO()
    picture(1, height, width).save(out, format="PNG")
    return out.getvalue()


ODD = {
    "empty.jpg": b"",
    "text.jpg": b"not an image",
    "nothing-but-zeros.png": bytes(500),
    "cut.jpg": jpeg(3)[:-200],
    "two bytes.jpg": b"\xff\xd8",
    "archive.jpg": b"PK\x03\x04" + bytes(64),
}
GOOD = {
    "line.png": png(1, 3800),
    "column.png": png(3800, 1),
    "dot.png": png(1, 1),
    "no suffix": jpeg(5),
    "café.jpg": jpeg(6),
    "UPPER.JPEG": jpeg(7),
    "wrong-suffix.png": jpeg(8),
}


def test_every_kind_of_odd_file_is_a_row_with_its_reason_and_none_ends_a_prediction(
    trained: str, tmp_path: Path
) -> None:
    root = tmp_path / "odd"
    (root / "folder.jpg").mkdir(parents=True)
    for name, data in (ODD | GOOD).items():
        (root / name).write_bytes(data)
    (root / "folder.jpg" / "inside.jpg").write_bytes(jpeg(9))
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.jpg")).write_bytes(jpeg(10))
    (root / "dangling.jpg").symlink_to(root / "nowhere")
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "notes.txt").write_text("no image")
    found = find_images([str(root)], str(tmp_path), silent)
    images, errors = decode_unit(found.table, evaluation_transform(find_model(trained).recipe, best_decoder()))
    reasons = dict(zip(found.table["name"].to_pylist(), errors, strict=True))
    assert len(images) == len(reasons)
    assert {name for name, reason in reasons.items() if reason} == ODD.keys() | {"dangling.jpg"}
    assert reasons.keys() - ODD.keys() == GOOD.keys() | {"folder.jpg/inside.jpg", "caf\\xe9.jpg", "dangling.jpg"}
    assert found.skipped == {".txt": 1, ".DS_Store": 1}


def test_a_buckets_prefix_gives_what_the_folder_gives(trained: str, pictures: Path, s3: str, tmp_path: Path) -> None:
    for name, data in list(tree_files(pictures).items())[:12]:
        files.write_bytes(f"{s3}/pictures/{name}", data)
    view = evaluation_transform(find_model(trained).recipe, best_decoder())
    bucket = find_images([f"{s3}/pictures"], str(tmp_path), silent).table
    folder = find_images([str(pictures)], str(tmp_path), silent).table
    kept = folder.filter(pa.compute.is_in(folder["name"], value_set=bucket["name"].combine_chunks()))
    assert bucket["name"].to_pylist() == kept["name"].to_pylist()
    (images, errors), (same, same_errors) = (decode_unit(samples, view) for samples in (bucket, kept))
    assert np.array_equal(images, same)
    assert errors == same_errors
