"""Google Cloud Storage, by a stand-in that speaks its XML API (`google_storage.py`): files, conditions, whole jobs."""

import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.config.presets import make_recipe
from pipeline.core.errors import StorageError
from pipeline.retraining import registry
from pipeline.retraining.registry_check import verify
from pipeline.storage import files
from pipeline.storage.store_clients import forget_clients
from tests.support.jobs import run_job
from tests.support.pictures.datasets import Source
from tests.support.servers.google_storage import Stored, google_storage


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Stored]]:
    """A bucket `images`, by its variables; yields its objects."""
    with google_storage("images") as (variables, there):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget_clients()
        yield there
    forget_clients()


def test_files_are_written_read_listed_and_removed(stored: dict[str, Stored]) -> None:
    here = "gs://images/a"
    files.write_bytes(f"{here}/x.txt", b"hello world")
    assert files.read_bytes(f"{here}/x.txt") == b"hello world"
    assert bytes(files.read_range(f"{here}/x.txt", 6, 5)) == b"world"
    with pytest.raises(StorageError, match="the object has changed"):
        files.read_range(f"{here}/x.txt", 6, 50)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(f"{here}/none")
    names = sorted(f"deep/{number:03d}/f ä&.bin" for number in range(130))  # more than a page
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: files.write_bytes(f"{here}/{name}", b"z"), names))
    assert files.list_files(here) == [*((name, 1) for name in names), ("x.txt", 11)]
    assert files.list_directories(here) == ["deep"]
    assert [files.kind(f"{here}{name}") for name in ("", "/x.txt", "/none")] == ["directory", "file", "missing"]
    assert files.size(f"{here}/x.txt") == 11
    files.delete_files(here, ["x.txt", "none"])
    assert "a/x.txt" not in stored
    files.delete_tree(here)
    assert stored == {}


def test_of_racing_writers_one_is_first_and_a_file_is_replaced_in_the_version_that_was_read(
    stored: dict[str, Stored],
) -> None:
    place = "gs://images/lease"
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: files.write_once(place, f"{number}".encode()), range(16)))
    assert sum(won) == 1
    assert files.read_bytes(place) == f"{won.index(True)}".encode()
    found = files.read_version(place)
    assert found is not None
    with ThreadPoolExecutor(16) as pool:
        after = list(pool.map(lambda n: files.replace(place, f"next {n}".encode(), found[1]), range(16)))
    assert len([version for version in after if version]) == 1
    assert files.replace(place, b"late", found[1]) is None
    assert files.read_version("gs://images/none") is None


def test_pyarrow_writes_and_reads_there_also_in_another_process(stored: dict[str, Stored]) -> None:
    """As Ray Train does."""
    filesystem, path = files.open_filesystem("gs://images/run")
    with filesystem.open_output_stream(f"{path}/marker") as stream:
        stream.write(b"abc")
    again = pickle.loads(pickle.dumps(filesystem))  # noqa: S301 - its own
    assert again.get_file_info(f"{path}/marker").size == 3
    assert again.open_input_file(f"{path}/marker").read() == b"abc"


def test_a_wrong_token_is_one_line_without_the_endpoint(
    stored: dict[str, Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "another")
    forget_clients()
    with pytest.raises(StorageError) as caught:
        files.read_bytes("gs://images/x")
    text = str(caught.value)
    assert text.startswith("gs://images/x: the storage answers 401 AuthenticationRequired; check bucket, endpoint and")
    assert "127.0.0.1" not in text
    assert "\n" not in text


@pytest.mark.long
@pytest.mark.ray
def test_a_night_in_a_bucket_promotes_a_model_and_a_worker_trains_from_it(
    stored: dict[str, Stored], digits_dataset: str, tmp_path: Path
) -> None:
    """Ingest, lease, training, evaluation, registry; then a stream and checkpoints of a worker of Ray Train."""
    Source(digits_dataset, "gs://images/raw").add(0, 600)
    night = run_job(
        "retrain", "--source", "gs://images/raw", "--workspace", "gs://images/work", "--recipe", "digits",
        "--epochs", "4", "--workers", "0", cwd=tmp_path,
    )  # fmt: skip
    assert night.returncode == 0, night.stdout + night.stderr
    assert registry.get("gs://images/work/registry", "champion").id
    assert verify("gs://images/work/registry") == []
    data = next(name for name in stored if name.endswith("/manifest.json")).rsplit("/", 1)[0]
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(asdict(replace(make_recipe("digits", epochs=1), residency="stream"))))
    trained = run_job(
        "imagenet_resnet", "--data", f"gs://images/{data}", "--storage", "gs://images/work", "--run-name", "one",
        "--recipe", str(recipe), "--workers", "1", cwd=tmp_path,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout + trained.stderr
    result = json.loads(stored["work/runs/one/result.json"].data)
    assert result["val"]["rows"] == 359
