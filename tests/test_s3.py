"""Everything that touches storage, on a real S3."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from jobs.command import user_message
from pipeline import checkpoint, manifest, result, storage, train
from pipeline.ingest import ingest, planned
from pipeline.recipes import make_recipe
from tests.conftest import make_tar, make_tree, tree_files
from tests.test_jobs import one_line_error, run_job

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


def test_of_many_racing_writers_one_wins(s3: str) -> None:
    uri = f"{s3}/once/manifest.json"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda writer: storage.write_once(uri, bytes([writer])), range(16)))
    assert won.count(True) == 1
    assert storage.read_bytes(uri) == bytes([won.index(True)])


def test_files_are_written_listed_and_removed(s3: str) -> None:
    for name in ("b", "a/c"):
        storage.write_bytes(f"{s3}/tree/{name}", name.encode())
    assert storage.list_files(f"{s3}/tree") == [("a/c", 3), ("b", 1)]
    assert storage.list_directories(f"{s3}/tree") == ["a"]
    before = storage.fingerprint(f"{s3}/tree")
    storage.write_bytes(f"{s3}/tree/b", b"longer")
    assert storage.fingerprint(f"{s3}/tree") != before
    storage.delete_tree(f"{s3}/tree")
    assert not storage.exists(f"{s3}/tree/b")


@pytest.mark.usefixtures("ray_cluster")
def test_a_folder_a_tar_and_a_bucket_give_the_same_data_set(s3: str, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    tar = make_tar(tmp_path / "packed.tar", tree_files(tree))
    client = boto3.client("s3")
    client.upload_file(str(tar), "images", "raw/packed.tar")
    for name, data in tree_files(tree).items():
        client.put_object(Bucket="images", Key=f"raw/folders/{name}", Body=data)
    digests = set()
    sources = [str(tree), str(tar), f"{s3}/raw/packed.tar", f"{s3}/raw/folders"]
    for number, source in enumerate(sources):
        with planned(source, f"{s3}/sets/{number}") as plan:
            digests.add(ingest(plan).manifest.digest)
        assert manifest.load(f"{s3}/sets/{number}").digest in digests
        assert not storage.exists(f"{s3}/sets/{number}/_ingest")
    assert len(digests) == 1


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_lives_in_a_bucket_and_continues_from_there(s3: str, digits_dataset: str) -> None:
    for name, _ in storage.list_files(digits_dataset):
        storage.write_bytes(f"{s3}/digits/{name}", storage.read_bytes(f"{digits_dataset}/{name}"))
    job = train.TrainJob(f"{s3}/digits", f"{s3}/runs/one", make_recipe("digits", epochs=1), num_workers=1)
    data = train.check_job(job)
    train.claim_run(job, data)
    train.run(job)
    first = result.build_result(job, data)
    assert first["val"]["rows"] == 359
    assert checkpoint.all_steps(job.run) == [12]
    train.run(replace(job, num_workers=0))  # nothing is left to train; evaluates the checkpoint again
    assert result.build_result(job, data)["val"]["confusion_matrix"] == first["val"]["confusion_matrix"]


def test_wrong_credentials_are_said_in_one_line_without_the_secret(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    message = one_line_error(run_job("ingest", "--source", f"{s3}/raw", "--out", "out", cwd=tmp_path))
    assert "check bucket, endpoint and credentials" in message
    assert "secret" not in message.replace("AWS_SECRET_ACCESS_KEY", "")


@pytest.mark.parametrize(("number", "words"), [(28, "the disk is full"), (13, "not allowed"), (30, "not allowed")])
def test_a_storage_that_cannot_be_written_is_said_in_one_line(number: int, words: str) -> None:
    assert words in (user_message(OSError(number, "No", "/data/x")) or "")
    assert user_message(OSError(5, "I/O error", "/data/x")) is None
