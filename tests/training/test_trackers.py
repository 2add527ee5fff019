"""What others are told of a run, read back by their own readers; and trackers that fail."""

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.presets import make_recipe
from pipeline.core.errors import PipelineError, RecipeError
from pipeline.storage import files
from pipeline.training.job import TrainJob
from pipeline.training.trackers.base import Tracker, Trackers
from pipeline.training.trackers.defaults import default_trackers
from pipeline.training.trackers.mlflow import make_mlflow
from pipeline.training.trackers.tensorboard import TensorBoard, make_tensorboard
from pipeline.training.trackers.wandb import make_wandb
from tests.support.trained.runs import scalars


def line(step: int, loss: float = 1.0) -> dict[str, Any]:
    return {
        "step": step, "epoch": step / 10, "images": 100, "loss": loss, "learning_rate": 0.1, "images_per_second": 50.0,
        "data_wait": 0.25, "seconds": {"compute": 2.0}, "skipped_steps": 0,
    }  # fmt: skip


def job_of(run: str) -> TrainJob:
    return TrainJob("/data", run, make_recipe("digits"), seed=5)


def told(tracker: Tracker, first: int, last: int, loss: float) -> None:
    for step in range(first, last + 1):
        tracker.line(line(step, loss), 3)
    tracker.evaluation(last, {"top1": 0.5, "top5": 0.9, "loss": loss})


def test_tensorboard_shows_each_step_once_also_of_a_run_that_went_on_from_a_checkpoint(tmp_path: Path) -> None:
    first = TensorBoard(job_of(str(tmp_path)), 0)
    told(first, 1, 6, 2.0)  # killed here: nothing ends it
    first._writer.flush()
    second = TensorBoard(job_of(str(tmp_path)), 4)  # from the checkpoint after step 4
    told(second, 5, 8, 1.0)
    second.end(True)
    folder = str(tmp_path / "tensorboard")
    assert scalars(folder, "train/loss") == [(n, 2.0) for n in (1, 2, 3, 4)] + [(n, 1.0) for n in (5, 6, 7, 8)]
    assert scalars(folder, "val/top1")[-1] == (8, 0.5)
    assert scalars(folder, "train/quarantined_rows")[0] == (1, 3.0)


@pytest.mark.ray
def test_tensorboard_of_a_run_in_object_storage_lies_beside_it(s3: str, tmp_path: Path) -> None:
    run = f"{s3}/runs/tracked"
    tracker = TensorBoard(job_of(run), 0)
    told(tracker, 1, 3, 2.0)
    tracker.end(True)
    folder = files.join(run, "tensorboard")
    for name, _ in files.list_files(folder):
        (tmp_path / name).write_bytes(files.read_bytes(files.join(folder, name)))
    assert scalars(str(tmp_path), "train/loss") == [(1, 2.0), (2, 2.0), (3, 2.0)]


def test_mlflow_goes_on_with_the_run_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a server, without one
    from mlflow import MlflowClient

    uri, job = f"file://{tmp_path}/mlflow", job_of(str(tmp_path / "run"))
    told(make_mlflow(uri)(job, 0), 1, 4, 2.0)
    tracker = make_mlflow(uri)(job, 4)
    told(tracker, 5, 6, 1.0)
    tracker.end(True)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("image-pipeline").experiment_id])
    assert len(runs) == 1
    run = runs[0]
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer"] == "muon"
    assert run.data.params["augment.crop_padding_px"] == "2"
    assert run.data.params["seed"] == "5"
    history = client.get_metric_history(run.info.run_id, "train.loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 2.0), (5, 1.0), (6, 1.0)]
    assert run.data.metrics["val.top1"] == 0.5


class Noting:
    """Somebody's own tracker."""

    def __init__(self, breaks_at: int = -1) -> None:
        self.steps: list[int] = []
        self.breaks_at = breaks_at

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        if line["step"] == self.breaks_at:
            raise OSError("the server is away")
        self.steps.append(line["step"])

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        self.steps.append(-step)

    def end(self, finished: bool) -> None:
        self.steps.append(0)


def test_a_tracker_that_fails_is_said_once_and_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    good, bad = Noting(), Noting(breaks_at=2)

    def cannot(job: TrainJob, step: int) -> Tracker:
        raise RuntimeError("no key\nfor it")

    trackers = Trackers(
        (lambda *_: good, cannot, lambda *_: bad, lambda *_: None), job_of(str(tmp_path)), 0, said.append
    )
    told(trackers, 1, 3, 1.0)
    trackers.end(True)
    assert good.steps == [1, 2, 3, -3, 0]
    assert bad.steps == [1]
    assert said == [
        "cannot: no key for it; this tracker is left out, training goes on",
        "Noting: the server is away; this tracker is left out, training goes on",
    ]


def test_without_the_packages_tensorboard_is_left_out_and_mlflow_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert make_tensorboard(job_of(str(tmp_path)), 0) is None
    with pytest.raises(RecipeError, match=r"^mlflow=http://x: needs the package mlflow or mlflow-skinny; install it"):
        make_mlflow("http://x")


def wandb_records(folder: Path, seconds: float = 20) -> list[Any]:
    """Returns the records of the file that an offline run of W&B has written: LevelDB's log format, in blocks.

    seconds: to wait for the end of the file, which W&B's own process writes.
    """
    protocol: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    message: Any = importlib.import_module("google.protobuf.message")
    deadline = time.monotonic() + seconds
    while True:
        try:
            records = _wandb_records(folder, protocol)
            if any(each.HasField("exit") for each in records) or time.monotonic() > deadline:
                return records
        except message.DecodeError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _wandb_records(folder: Path, protocol: Any) -> list[Any]:
    (path,) = folder.glob("*.wandb")
    data, place, parts, records = path.read_bytes(), 7, b"", []
    while place < len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = protocol.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


@pytest.fixture
def fresh_wandb() -> Iterator[None]:
    """W&B reads its variables once a process; tests have different ones."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.slow  # W&B starts a process of its own for each run
def test_wandb_writes_offline_and_goes_on_with_the_run_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_wandb: None
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    job = job_of(str(tmp_path))
    first = make_wandb("team/photos")(job, 0)
    told(first, 1, 4, 2.0)
    first.end(False)
    second = make_wandb("team/photos")(job, 2)
    told(second, 3, 6, 1.0)
    second.end(True)
    folders = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert len(folders) == 2
    run_id = files.read_json(str(tmp_path / "wandb.json"))["run_id"]
    points: list[dict[str, Any]] = []
    for folder, status in zip(folders, (1, 0), strict=True):
        records = wandb_records(folder)
        run = next(each.run for each in records if each.run.run_id)
        assert (run.run_id, run.project, run.entity) == (run_id, "photos", "team")
        config = {item.key: json.loads(item.value_json) for each in records for item in each.run.config.update}
        assert (config["optimizer"], config["augment.crop_padding_px"], config["seed"]) == ("muon", 2, 5)
        assert [each.exit.exit_code for each in records if each.HasField("exit")] == [status]
        lines = [each.history.item for each in records if each.HasField("history")]
        points += [{(item.key or item.nested_key[0]): json.loads(item.value_json) for item in line} for line in lines]
    losses = [(point["step"], point["train.loss"]) for point in points if "train.loss" in point]
    assert losses == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 2.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 1.0)]
    assert [(point["step"], point["val.top1"]) for point in points if "val.top1" in point] == [(4, 0.5), (6, 0.5)]


@pytest.mark.slow
def test_wandb_whose_server_does_not_answer_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_wandb: None
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("pipeline.training.trackers.wandb._INIT_SECONDS", 3.0)
    said: list[str] = []
    good = Noting()
    trackers = Trackers((make_wandb("photos"), lambda *_: good), job_of(str(tmp_path)), 0, said.append)
    told(trackers, 1, 2, 1.0)
    trackers.end(True)
    assert good.steps == [1, 2, -2, 0]
    (line,) = said
    assert line.startswith("MakeWandb: ")
    assert line.endswith("this tracker is left out, training goes on")


@pytest.mark.parametrize(
    ("project", "installed", "message"),
    [
        ("photos", False, r"^wandb=photos needs wandb; install them: pip install 'image-pipeline\[wandb\]'"),
        ("photos", True, r"^wandb=photos: no API key; run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"),
        ("a/b/c", True, r"^wandb=a/b/c: give PROJECT, or ENTITY/PROJECT"),
    ],
)
def test_wandb_that_cannot_work_is_an_error_before_training(
    project: str, installed: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_wandb: None
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if not installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PipelineError, match=message):
        default_trackers(wandb_project=project)
