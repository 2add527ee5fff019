"""The whole way of two models on the digits: candidate, shadow, review, a bad model by wrong labels, and back."""

from pathlib import Path

import pytest

from pipeline.retraining import registry
from pipeline.retraining.registry_check import verify
from tests.support.jobs import call_job
from tests.support.pictures.datasets import Source
from tests.support.trained.live import put_incoming, swap_classes


@pytest.mark.long
def test_a_candidate_goes_live_and_a_bad_model_comes_back(
    digits_dataset: str, ray_cluster: None, tmp_path: Path
) -> None:
    source, place = Source(digits_dataset, str(tmp_path / "photos")), str(tmp_path / "work" / "registry")
    put_incoming(digits_dataset, tmp_path / "incoming")

    def job(expected: int, name: str, *arguments: str) -> str:
        finished = call_job(name, *arguments, cwd=tmp_path)
        assert finished.returncode == expected, finished.stdout + finished.stderr
        return finished.stdout

    night = ["--source", "photos", "--workspace", "work", "--recipe", "digits", "--epochs", "4", "--workers", "0"]
    easy = ["--min-images", "300", "--max-latency-ratio", "50"]
    answers = ["--registry", place, "--input", "incoming", "--out"]
    source.add(0, 200)
    assert "PROMOTED" in job(0, "retrain", *night, "--shadow")  # nothing is live that it could shadow
    first = registry.get(place, "champion").id
    assert "no candidate to answer" in job(0, "predict", *answers, "sunday", "--shadow", "candidate")
    source.add(200, 1000)
    assert "CANDIDATE" in job(0, "retrain", *night, "--shadow")
    second = registry.get(place, "candidate").id
    assert registry.get(place, "champion").id == first
    assert second in job(0, "predict", *answers, "monday", "--shadow", "candidate")
    assert "waits, 359 of 1,000 images seen" in job(
        0, "registry", "review", "--registry", place, "--min-images", "1000"
    )
    assert "nothing to do" in job(0, "retrain", *night, "--shadow", *easy)  # its review promotes
    assert registry.get(place, "champion").id == second

    swap_classes(tmp_path / "photos")
    assert "PROMOTED" in job(0, "retrain", *night, *easy)
    third = registry.get(place, "champion").id
    job(0, "predict", *answers, "tuesday", "--shadow", "previous")
    assert "WENT BACK" in job(5, "registry", "review", "--registry", place, "--labels", "labels.csv", *easy)
    assert registry.get(place, "champion").id == second
    again = job(0, "retrain", *night, *easy)
    assert "nothing to do" in again
    assert "stays" in again
    assert [move.version for move in registry.history(place)] == [first, second, third, second]
    assert verify(place) == []
