"""Predictions by alias: the answers are the first version's alone, and what both did is recorded."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import (
    CheckpointError,
    MissingPackageError,
    ModelFailedError,
    RegistryError,
    StorageError,
    UnavailableError,
)
from pipeline.dataset.manifest import load
from pipeline.dataset.parquet import parquet_bytes, read_rows
from pipeline.evaluation import Workers, predict
from pipeline.evaluation.batch_predict.images import image_table
from pipeline.evaluation.batch_predict.job import PredictJob
from pipeline.evaluation.batch_predict.model_failures import model_failure
from pipeline.evaluation.batch_predict.results import CONTENT, SCHEMA, SECONDS
from pipeline.evaluation.batch_predict.run import claim
from pipeline.models import checkpoint
from pipeline.models.load import find_model
from pipeline.retraining import registry
from pipeline.retraining.live import shadow, store
from pipeline.retraining.live.limits import LiveRule
from pipeline.retraining.live.review import review
from pipeline.retraining.live.shadow import LiveModels, predict_live
from pipeline.retraining.registry_check import verify
from pipeline.storage import files
from tests.support.jobs import call_job, one_line_error
from tests.support.trained.live import copy_version, make_version, nominate, promote


@pytest.mark.parametrize(
    ("shadow_name", "expected"),
    [(None, None), ("candidate", "three"), ("previous", "one"), ("champion", None), ("other", "one")],
)
def test_which_versions_answer(shadow_name: str | None, expected: str | None, tmp_path: Path) -> None:
    place = str(tmp_path)
    ids = {name: make_version(place, name) for name in ("one", "two", "three")}
    promote(place, ids["one"])
    assert shadow._versions(LiveModels(place, shadow="previous")) == (ids["one"], None)  # a first champion has none
    promote(place, ids["two"])
    assert shadow._versions(LiveModels(place, shadow="candidate")) == (ids["two"], None)  # nobody waits
    nominate(place, ids["three"])
    registry.move(place, "other", ids["one"], "by hand", None)
    assert shadow._versions(LiveModels(place, shadow=shadow_name)) == (ids["two"], expected and ids[expected])
    with pytest.raises(RegistryError, match="no such version or alias"):
        shadow._versions(LiveModels(place, shadow="nothere"))


def test_a_record_has_the_answers_of_both(trained: str, tmp_path: Path) -> None:
    """No answer: a probability that isn't finite, and a part that the second version never wrote."""
    names = [f"{number}.png" for number in range(3)]
    out, other = str(tmp_path / "out"), str(tmp_path / "shadow")
    images = image_table(names, [f"/{name}" for name in names], [0] * 3, [9] * 3)
    job = PredictJob(find_model(trained), images, out, "none", "simplejpeg", recorded=True)
    columns = {
        "key": names, "class": ["a", "b", None], "probability": [0.9, float("nan"), None],
        "classes": [["a"], ["b"], None], "probabilities": [[0.9], [float("nan")], None],
        "error": [None, None, "empty: zero bytes"],
    }  # fmt: skip
    first = pa.table(columns, schema=SCHEMA)
    second = pa.table({**columns, "class": ["b", "b", None], "probability": [0.9, 0.9, None]}, schema=SCHEMA)
    second = second.append_column(SECONDS, pa.array([0.5] * 3, SECONDS.type))
    first = first.append_column(CONTENT, pa.array(["1f", "2e", None], CONTENT.type))
    files.write_bytes(job.part_uri(job.parts[0]), parquet_bytes(first))
    (alone,) = shadow._parts(job, None)
    shadow_job = replace(job, out=other)
    (lost,) = shadow._parts(job, shadow_job)
    assert alone.equals(lost)
    assert alone["second"].to_pylist() == [None] * 3
    files.write_bytes(files.join(other, "part-000000.parquet"), parquet_bytes(second))
    (both,) = shadow._parts(job, shadow_job)
    assert both["first"].to_pylist() == ["a", None, None]
    assert both["second"].to_pylist() == ["b", "b", None]
    assert both["first_seconds"].to_pylist() == [None] * 3  # a part of a call that wasn't timed
    assert both["second_seconds"].to_pylist() == [0.5] * 3
    assert both["error"].to_pylist() == [None, None, "empty: zero bytes"]
    assert both["content"].to_pylist() == ["1f", "2e", None]
    assert both.schema.names == store.SCHEMA.names


class Answers:
    """Predictions without networks: each version answers three images with one class, or raises."""

    def __init__(self, trained: str, place: str, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained, self.place, self.out = trained, place, out
        self.by_version: dict[str, str | Exception] = {}
        names = ["0.png", "1.png", "2.png"]
        self.images = image_table(names, [f"/{name}" for name in names], [0] * 3, [9] * 3)
        monkeypatch.setattr(shadow, "prepared_job", lambda uri, *_: nullcontext(self.job(uri)))
        monkeypatch.setattr(shadow, "run_prediction", self.run)

    def job(self, uri: str) -> PredictJob:
        return PredictJob(find_model(uri), self.images, self.out, "none", "simplejpeg")

    def run(self, job: PredictJob, *_: object) -> str:
        claim(job)
        answer = self.by_version[files.basename(job.model.uri)]
        if isinstance(answer, Exception):
            raise answer
        rows: dict[str, list[object]] = {"key": self.images["name"].to_pylist(), "class": [answer] * 3}
        rows |= {"probability": [0.9] * 3, "classes": [[answer]] * 3, "probabilities": [[0.9]] * 3, "error": [None] * 3}
        files.write_bytes(job.part_uri(job.parts[0]), parquet_bytes(pa.table(rows, schema=SCHEMA)))
        return "result"

    def add(self, name: str, answer: str | Exception) -> str:
        version = copy_version(self.place, self.trained, name)
        model = files.join(registry.version_uri(self.place, version), checkpoint.MODEL_NAME)
        files.write_bytes(model, name.encode())  # weights of its own
        self.by_version[version] = answer
        return version

    def predict(self, shadow_name: str | None = None) -> tuple[store.Traffic, list[str | None]]:
        """Returns the head of the record, and what the second version answered."""
        record = predict_live(LiveModels(self.place, shadow=shadow_name), "images", self.out).record
        assert record is not None
        head, table = store.read_traffic(record)
        return head, table["second"].to_pylist()


@pytest.fixture
def answers(trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """A champion that says "a"."""
    found = Answers(trained, str(tmp_path / "registry"), str(tmp_path / "out"), monkeypatch)
    promote(found.place, found.add("champion", "a"))
    return found


def test_the_same_command_records_the_answers_of_each_candidate_as_its_own(answers: Answers) -> None:
    """Also where the one before has left its answers below the same folder, as `--shadow previous` does."""
    for number, (answer, expected) in enumerate((("b", "b"), ("c", "c"), (ModelFailedError("no"), None))):
        nominate(answers.place, answers.add(f"candidate {number}", answer), number)
        head, second = answers.predict("candidate")
        assert second == [expected] * 3
        assert bool(head.second_failure) == (expected is None)


def test_other_predictions_in_the_folder_of_a_candidate_are_no_failure_of_it(answers: Answers) -> None:
    candidate = answers.add("candidate", "b")
    nominate(answers.place, candidate)
    files.write_json(files.join(answers.out, "_shadow", candidate, "plan.json"), {"model": "another"})
    with pytest.raises(CheckpointError, match="holds predictions by another model"):
        answers.predict("candidate")
    assert store.traffic_uris(answers.place) == []


class DiedError(Exception):
    """Stands for Ray's errors: a process or a node has died, or the object store is full."""


@pytest.mark.parametrize(
    "error",
    [
        DiedError("the worker died"),
        MemoryError(),
        MissingPackageError("timm isn't installed"),
        UnavailableError("the storage doesn't answer"),
        StorageError("no credentials"),
        OSError(5, "Input/output error"),
    ],
)
def test_what_the_machine_fails_in_is_recorded_of_no_model(answers: Answers, error: Exception) -> None:
    nominate(answers.place, answers.add("candidate", error))
    with pytest.raises(type(error)):
        answers.predict("candidate")
    answers.by_version[registry.get(answers.place, "champion").id] = error
    with pytest.raises(type(error)):
        answers.predict()
    assert store.traffic_uris(answers.place) == []


def test_a_damaged_candidate_is_recorded_as_failed(answers: Answers) -> None:
    """The serving command ends as without it, and a review can drop it."""
    for name, damage in ((checkpoint.OUTPUT_NAME, b'{"classes": ["a"'), (checkpoint.OUTPUT_NAME, b"[]"), ("lost", b"")):
        candidate = answers.add(f"candidate {name} {damage!r}", "b")
        folder = Path(registry.version_uri(answers.place, candidate))
        if damage:
            (folder / name).write_bytes(damage)
        else:
            (folder / checkpoint.MODEL_NAME).unlink()
        nominate(answers.place, candidate)
        head, second = answers.predict("candidate")
        assert "Error: " in head.second_failure
        assert second == [None] * 3


@pytest.fixture(scope="module")
def pictures(digits_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the digits' validation images as files, and one that is no image."""
    root, split = tmp_path_factory.mktemp("pictures"), load(digits_dataset).split("val")
    for number, image in enumerate(read_rows(digits_dataset, split, np.arange(40))["image"].to_pylist()):
        (root / f"{number:02d}.png").write_bytes(image)
    (root / "empty.jpg").touch()
    return root


@pytest.fixture
def place(trained: str, tmp_path: Path) -> Iterator[str]:
    """A registry with a champion."""
    uri = str(tmp_path / "registry")
    promote(uri, copy_version(uri, trained, "one"))
    yield uri
    assert verify(uri) == []


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_answers_are_the_champions_whatever_its_shadow_does(
    place: str, trained: str, pictures: Path, tmp_path: Path
) -> None:
    champion = registry.get(place, "champion").id
    predict(trained, pictures, tmp_path / "plain", "none", Workers(1))
    expected = pq.read_table(tmp_path / "plain" / "part-000000.parquet")
    for name, damaged in (("same", False), ("damaged", True)):
        candidate = copy_version(place, trained, name, damaged)
        nominate(place, candidate)
        out = tmp_path / name
        done = predict_live(LiveModels(place, shadow="candidate"), pictures, out, "none", Workers(1))
        assert (done.version, done.shadow) == (champion, candidate)
        assert bool(done.failure) == damaged
        found = pq.read_table(out / "part-000000.parquet")
        assert found.drop_columns(["seconds", "content"]).equals(expected)
        assert (done.result.images, done.result.unusable) == (41, 1)
        assert done.record is not None
        head, table = store.read_traffic(done.record)
        assert (head.first, head.second) == (champion, candidate)
        usable = table.filter(pa.compute.is_null(table["error"]))
        assert usable.num_rows == 40
        assert len(set(usable["content"].to_pylist()) - {None}) == 40
        assert usable["second"].to_pylist() == ([None] * 40 if damaged else usable["first"].to_pylist())
        assert min(usable["first_seconds"].to_pylist()) > 0
        before = files.read_bytes(done.record)
        again = predict_live(LiveModels(place, shadow="candidate"), pictures, out, "none", Workers(1))
        assert (again.record, again.result.predicted_now, again.failure) == (done.record, 0, done.failure)
        assert files.read_bytes(done.record) == before
        reviewed = review(place, LiveRule(min_images=40, max_latency_ratio=100))
        assert [each["kind"] for each in reviewed.decisions] == ["dropped" if damaged else "review"]
        champion = registry.get(place, "champion").id


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_champion_that_fails_is_recorded_and_goes_back(
    place: str, trained: str, pictures: Path, tmp_path: Path
) -> None:
    good = registry.get(place, "champion").id
    promote(place, copy_version(place, trained, "damaged", damaged=True))
    with pytest.raises(Exception, match=r"(?i)safetensors|buffer|header") as error:
        predict_live(LiveModels(place), pictures, tmp_path / "out", "none", Workers(1))
    assert isinstance(model_failure(error.value), CheckpointError)
    assert review(place, LiveRule(min_images=40)).returned
    assert registry.get(place, "champion").id == good
    reason = registry.history(place)[-1].reason
    assert "gave no answer for 41 of 41 images" in reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --checkpoint URI, or --registry URI"),
        (["--checkpoint", "run", "--registry", "registry"], "give either --checkpoint URI"),
        (["--checkpoint", "run", "--shadow", "candidate"], "--shadow names a model of a registry"),
        (["--registry", "nothere"], "no such folder"),
        (["--registry", "registry", "--alias", "nothere"], "no such version or alias"),
    ],
)
def test_a_user_error_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    promote(str(tmp_path / "registry"), make_version(str(tmp_path / "registry"), "one"))
    finished = call_job("predict", *arguments, "--input", ".", "--out", "out", cwd=tmp_path)
    assert message in one_line_error(finished)
