"""Retraining runs under faults: killed in the middle of each stage; storages that refuse, are full or go away."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.retraining import registry
from pipeline.retraining.registry_check import verify
from pipeline.storage import files
from pipeline.storage.local_s3 import ACCESS_KEY, READER_KEY, READER_SECRET, SECRET_KEY
from tests.support.jobs import one_line_error, run_job
from tests.support.kills import kill_at, start_job
from tests.support.pictures.datasets import Source
from tests.support.servers.fault_proxy import fault_proxy

pytestmark = pytest.mark.ray

# PUTs of the second run, as of `kill_at`.
MOMENTS = (
    ("work/active.json", True, 0),
    ("aliases/champion.json", True, 0),  # the fence
    (r"datasets/\w+/train/", False, 0),  # of a version: what is new is in train
    (r"datasets/\w+/manifest.json", True, 0),
    ("run/checkpoints/.*/state.json", False, 1),
    ("run/result.json", False, 0),
    ("challenger/predictions.parquet", False, 0),
    ("challenger/metrics.json", True, 0),
    ("champion/predictions.parquet", False, 0),
    ("drift/after/kept.npy", False, 0),
    ("versions/.*/metrics.json", False, 0),
    ("versions/.*/version.json", True, 0),
    ("aliases/champion.json", False, 1),
    ("aliases/champion.json", True, 1),
    ("decision.json", False, 0),
    ("latest.json", False, 0),
)


def arguments(source: Source, workspace: str) -> list[str]:
    return ["--source", source.uri, "--workspace", workspace, "--recipe", "digits", "--epochs", "4", "--workers", "0"]


@pytest.mark.long
def test_killed_in_the_middle_of_each_stage_a_run_ends_with_one_promotion(
    digits_dataset: str, s3: str, tmp_path: Path
) -> None:
    """SIGKILL while a file is on its way to the storage, or has just arrived there; sixteen times in one run."""
    source, workspace = Source(digits_dataset, f"{s3}/killed/source"), f"{s3}/killed/work"
    line = arguments(source, workspace)
    source.add(0, 200)
    first = run_job("retrain", *line, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    source.add(200, 1000)
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], every=0) as s3_proxy:
        kill_at(MOMENTS, ["retrain", *line], tmp_path, s3_proxy)
    finished = run_job("retrain", *line, cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "PROMOTED" in finished.stdout
    place = f"{workspace}/registry"
    assert [move.number for move in registry.history(place)] == [1, 2]
    assert len(registry.versions(place)) == 2
    assert verify(place) == []
    assert not files.exists(f"{workspace}/active.json")
    assert len(files.list_directories(f"{workspace}/nights")) == 2
    assert "nothing to do" in run_job("retrain", *line, cwd=tmp_path).stdout


@pytest.fixture(scope="module")
def promoted(digits_dataset: str, s3: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, str]:
    """A source in a bucket, and a workspace with a champion; then more images have come."""
    source, workspace = Source(digits_dataset, f"{s3}/refused/source"), f"{s3}/refused/work"
    source.add(0, 200)
    first = run_job("retrain", *arguments(source, workspace), cwd=tmp_path_factory.mktemp("first"))
    assert first.returncode == 0, first.stderr
    source.add(200, 400)
    return source, workspace


@pytest.mark.parametrize(
    ("key", "secret", "words"),
    [
        pytest.param(ACCESS_KEY, "a-wrong-secret", "the storage answers 403", marks=pytest.mark.long),
        pytest.param("nobody", SECRET_KEY, "the storage answers 403", marks=pytest.mark.long),
        pytest.param(READER_KEY, READER_SECRET, "answers 403 AccessDenied; check bucket", marks=pytest.mark.long),
    ],
)
def test_without_permission_to_write_the_error_is_one_line_and_nothing_changes(
    promoted: tuple[Source, str], key: str, secret: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, workspace = promoted
    place, before = f"{workspace}/registry", files.list_files(workspace)
    moves = registry.history(place)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        for job, line in (
            ("retrain", arguments(source, workspace)),
            ("registry", ["promote", moves[0].version, "--reason", "x", "--alias", "other", "--registry", place]),
            ("registry", ["rollback", "--registry", place]),
        ):
            finished = run_job(job, *line, cwd=tmp_path)
            if key == READER_KEY and "rollback" in line:
                assert "nothing to go back to" in one_line_error(finished)
            else:
                assert words in one_line_error(finished)
            assert secret not in finished.stdout + finished.stderr
    assert files.list_files(workspace) == before
    assert registry.history(place) == moves
    assert verify(place) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MB of its own; needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a disk can't be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.long
def test_on_a_disk_that_is_full_a_run_ends_in_one_line_and_promotes_later(
    digits_dataset: str, small_disk: Path, tmp_path: Path
) -> None:
    """With a little more space each time, so that each attempt ends at another place."""
    source, workspace = Source(digits_dataset, str(tmp_path / "source")), str(small_disk / "work")
    line, place, filler = arguments(source, workspace), f"{workspace}/registry", small_disk / "filler"
    source.add(0, 200)
    assert run_job("retrain", *line, cwd=tmp_path).returncode == 0
    champion = registry.current(place, "champion")
    source.add(200, 1000)
    ends = []
    for room_kib in (0, 16, 256, 1024, 2048, 4096):
        free = shutil.disk_usage(small_disk).free
        filler.write_bytes(b"x" * max(0, free - (room_kib << 10)))
        finished = run_job("retrain", *line, cwd=tmp_path)
        filler.unlink()
        ends.append((room_kib, finished.returncode, finished.stderr.strip().splitlines()[-1:]))
        if finished.returncode == 0:
            break
        message = one_line_error(finished)
        assert "the disk is full; free some space" in message or "No space left on device" in message
        assert "UDF" not in message
        assert registry.current(place, "champion") == champion
        assert verify(place) == []
    assert len([status for _, status, _ in ends if status == 2]) >= 2, ends
    finished = run_job("retrain", *line, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert len(registry.history(place)) == 2
    assert verify(place) == []


@pytest.mark.long
def test_a_storage_that_goes_away_ends_a_run_in_one_line_and_the_next_one_promotes(
    digits_dataset: str, s3: str, tmp_path: Path
) -> None:
    """It goes while the evaluation's files are written, and comes back after the run has given up: three minutes."""
    source, workspace = Source(digits_dataset, f"{s3}/away/source"), f"{s3}/away/work"
    line = arguments(source, workspace)
    source.add(0, 200)
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], every=0) as (address, proxy):
        proxy.hold("challenger/metrics.json")
        process = start_job(["retrain", *line], tmp_path, address)
        assert proxy.holds.wait(120)
        proxy.away = True
        start = time.monotonic()
        output, errors = process.communicate(timeout=500)
        print(f"gave up after {time.monotonic() - start:.0f} s: {errors}")
    assert process.returncode == 1, output + errors
    assert len(errors.strip().splitlines()) == 1
    assert "the storage answers" in errors
    place = f"{workspace}/registry"
    assert registry.current(place, "champion") is None
    assert verify(place) == []
    finished = run_job("retrain", *line, cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert len(registry.history(place)) == 1
