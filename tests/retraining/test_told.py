"""What a night says of itself: failures of every kind are told, and a review's return is never lost."""

from pathlib import Path

import pytest

from pipeline.core.errors import MovedError, StorageError
from pipeline.retraining import run
from pipeline.retraining.live.review import Review
from pipeline.retraining.notices.status_file import read_status
from pipeline.retraining.plan import RetrainOptions
from tests.support.jobs import call_job
from tests.support.webhooks import receiver

MOVE = {"alias": "champion", "number": 3, "version": "a", "before": 1, "reason": "back to a: worse", "time": 1.0}
BACK = Review(decisions=({"kind": "return", "move": MOVE},))


def fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Lets every call fail after its review, before anything is planned."""

    def plan(*_: object) -> None:
        raise error

    monkeypatch.setattr(run, "plan_retraining", plan)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StorageError("the disk is full"), "the disk is full"),
        (RuntimeError("CUDA error: out of\nmemory"), "RuntimeError: CUDA error: out of memory"),
        (KeyError("lost"), "KeyError: 'lost'"),
    ],
)
def test_every_failure_is_told_and_raised(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, error)
    (tmp_path / "photos").mkdir()
    metrics = tmp_path / "nights.prom"
    with receiver() as there:
        options = RetrainOptions(webhook=there.url, metrics=str(metrics))
        with pytest.raises(type(error)):
            run.retrain(tmp_path / "photos", tmp_path / "work", options=options)
        assert [(each["type"], each["reason"]) for each in there.messages] == [("retraining.failed", said)]
    status = read_status(str(tmp_path / "work"))
    assert status is not None
    assert (status.status, status.message) == ("failed", said)
    assert 'last_run_status{status="failed",workspace=' in metrics.read_text()
    assert said.split("\n")[0][:20] in (tmp_path / "work" / "index.html").read_text().replace("&#39;", "'")


@pytest.mark.parametrize(("moves", "raised"), [(0, False), (2, False), (3, True)])
def test_a_review_is_repeated_if_another_one_has_moved_an_alias(
    moves: int, raised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, seen = [MovedError("champion: another process has moved it")] * moves, list[Review]()

    def review(*_: object) -> Review:
        if left:
            raise left.pop()
        return BACK

    monkeypatch.setattr(run, "review", review)
    fails(monkeypatch, RuntimeError("after the review"))
    (tmp_path / "photos").mkdir()
    with pytest.raises(MovedError if raised else RuntimeError):
        run.retrain(tmp_path / "photos", tmp_path / "work", options=RetrainOptions(on_review=seen.append))
    assert seen == ([] if raised else [BACK])


@pytest.mark.parametrize(
    ("review", "error", "status", "said"),
    [
        (BACK, StorageError("the bucket is full"), 5, "error: the bucket is full\n"),
        (BACK, RuntimeError("CUDA"), 5, "RuntimeError: CUDA\n"),
        (Review(), StorageError("the bucket is full"), 2, "error: the bucket is full\n"),
    ],
)
def test_a_return_ends_with_its_status_whatever_came_after(
    review: Review, error: Exception, status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "review", lambda *_: review)
    fails(monkeypatch, error)
    (tmp_path / "photos").mkdir()
    done = call_job("retrain", "--source", "photos", "--workspace", "work", "--workers", "0", cwd=tmp_path)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stderr.endswith(said)
    assert ("WENT BACK" in done.stdout) == (status == 5)
