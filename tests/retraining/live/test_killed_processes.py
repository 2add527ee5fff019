"""Programs of the models in use, killed while a file is on its way to the storage, or has just arrived there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.retraining import registry
from pipeline.retraining.live import store
from pipeline.retraining.registry_check import verify
from tests.support.jobs import run_job
from tests.support.kills import kill_at
from tests.support.pictures.datasets import Source
from tests.support.servers.fault_proxy import FaultProxy, fault_proxy
from tests.support.trained.live import put_incoming, swap_classes

pytestmark = [pytest.mark.ray, pytest.mark.long]

# As of `kill_at`.
PREDICTION = (("/monday/", False, 0), ("live/traffic/.*parquet", False, 0), ("live/traffic/.*parquet", True, 0))
PROMOTION = (
    ("live/reviews/", False, 0),
    ("live/decided/candidate", False, 0),
    ("live/decided/candidate", True, 0),
    ("aliases/champion.json", False, 0),
    ("history/champion/", False, 0),  # the alias has moved
)
RETURN = (
    ("live/labels/", False, 0),
    ("live/labels/", True, 0),
    ("live/reviews/", True, 0),
    ("live/decided/champion", True, 0),
    ("aliases/champion.json", False, 0),
    ("aliases/champion.json", True, 0),
)


@pytest.fixture
def proxied(s3: str) -> Iterator[tuple[str, FaultProxy]]:
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], every=0) as found:
        yield found


def test_each_decision_is_carried_out_once_whenever_its_program_is_killed(
    digits_dataset: str, s3: str, tmp_path: Path, proxied: tuple[str, FaultProxy]
) -> None:
    """A prediction with a shadow, the review that promotes the candidate, and the one that takes it back."""
    source, work = Source(digits_dataset, str(tmp_path / "photos")), f"{s3}/killed-live/work"
    place, outs = f"{work}/registry", f"{s3}/killed-live"
    put_incoming(digits_dataset, tmp_path / "incoming")
    night = ["retrain", "--source", "photos", "--workspace", work, "--recipe", "digits", "--epochs", "4"]
    night += ["--workers", "0", "--latency-ratio", "50"]
    predict = ["predict", "--registry", place, "--input", "incoming", "--shadow"]
    review = ["registry", "review", "--registry", place, "--min-images", "300", "--max-latency-ratio", "50"]

    def ends(line: list[str], status: int) -> str:
        finished = run_job(*line, cwd=tmp_path)
        assert finished.returncode == status, finished.stdout + finished.stderr
        return finished.stdout

    source.add(0, 200)
    ends(night, 0)
    first = registry.get(place, "champion").id
    source.add(200, 1000)
    assert "CANDIDATE" in ends([*night, "--shadow"], 0)
    second = registry.get(place, "candidate").id

    line = [*predict, "candidate", "--out", f"{outs}/monday"]
    kill_at(PREDICTION, line, tmp_path, proxied)
    ends(line, 0)
    [record] = store.traffic_uris(place)
    assert store.read_traffic(record)[1].num_rows == 359

    kill_at(PROMOTION, review, tmp_path, proxied)
    ends(review, 0)
    assert [move.version for move in registry.history(place)] == [first, second]

    swap_classes(tmp_path / "photos")
    assert "PROMOTED" in ends(night, 0)
    third = registry.get(place, "champion").id
    ends([*predict, "previous", "--out", f"{outs}/tuesday"], 0)
    line = [*review, "--labels", "labels.csv"]
    kill_at(RETURN, line, tmp_path, proxied)
    assert "WENT BACK" in ends(line, 5)
    assert [move.version for move in registry.history(place)] == [first, second, third, second]
    assert verify(place) == []
    assert len(store.label_uris(place)) == 1
    ends(line, 0)  # nothing more to do
