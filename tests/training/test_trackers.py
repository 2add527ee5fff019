"""What others are told of a run, read back by their own readers; and trackers that fail."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.presets import make_recipe
from pipeline.core.errors import RecipeError
from pipeline.storage import files
from pipeline.training.job import TrainJob
from pipeline.training.trackers.base import Tracker, Trackers
from pipeline.training.trackers.mlflow import make_mlflow
from pipeline.training.trackers.tensorboard import TensorBoard, make_tensorboard
from tests.support.runs import scalars


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
