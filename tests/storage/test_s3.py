"""Everything that touches storage, on a real S3."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from pipeline.cluster.ray_errors import user_message
from pipeline.config.presets import make_recipe
from pipeline.core.errors import StorageError
from pipeline.dataset import manifest
from pipeline.ingestion.cost import estimate
from pipeline.ingestion.plan import IngestSettings
from pipeline.ingestion.run import planned_ingest, write_dataset
from pipeline.ingestion.sources import Source, open_source
from pipeline.models import checkpoint
from pipeline.models.tensor_file import read_tensors
from pipeline.storage import files as storage
from pipeline.storage import object_store, retries
from pipeline.storage.local_s3 import ACCESS_KEY, SECRET_KEY
from pipeline.storage.request_counts import requests_sent
from pipeline.storage.store_clients import forget_clients
from pipeline.training import launch
from pipeline.training.job import TrainJob
from pipeline.training.outputs import result
from tests.support.jobs import one_line_error, run_job
from tests.support.pictures.images import jpeg, make_tar, make_tree, sample_bytes, tree_files, webdataset
from tests.support.servers.fault_proxy import fault_proxy

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
        with planned_ingest(Source(source), f"{s3}/sets/{number}") as plan:
            digests.add(write_dataset(plan).manifest.digest)
        assert manifest.load(f"{s3}/sets/{number}").digest in digests
        assert not [name for name, size in storage.list_files(f"{s3}/sets/{number}/_ingest") if size]
    assert len(digests) == 1


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long)])
def test_a_run_lives_in_a_bucket_and_continues_from_there(s3: str, digits_dataset: str, workers: int) -> None:
    for name, _ in storage.list_files(digits_dataset):
        storage.write_bytes(f"{s3}/digits/{name}", storage.read_bytes(f"{digits_dataset}/{name}"))
    job = TrainJob(f"{s3}/digits", f"{s3}/runs/{workers}", make_recipe("digits", epochs=1), num_workers=workers)
    data = launch.check_job(job)
    launch.claim_run(job, data)
    launch.run_training(job)
    first = result.build_result(job, data)
    assert first["val"]["rows"] == 359
    assert checkpoint.steps(job.run) == [12]
    launch.run_training(replace(job, num_workers=0))  # nothing is left to train; evaluates the checkpoint again
    assert result.build_result(job, data)["val"]["confusion_matrix"] == first["val"]["confusion_matrix"]


def test_wrong_credentials_are_an_error_in_one_line_without_the_secret(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    forget_clients()  # they have the right one
    try:
        with pytest.raises(StorageError, match="check bucket, endpoint and credentials") as caught:
            open_source(f"{s3}/raw", spool="")
    finally:
        forget_clients()
    message = user_message(caught.value) or ""
    assert len(message.splitlines()) == 1
    assert "secret" not in message
    assert os.environ["AWS_ENDPOINT_URL"] not in message


@pytest.mark.parametrize("read", [storage.exists, storage.read_bytes, storage.list_files])
def test_a_bucket_that_is_not_there_is_told_as_such(s3: str, read: Callable[[str], object]) -> None:
    with pytest.raises(StorageError, match="s3://not-there/x: there is no such bucket; check its name"):
        read("s3://not-there/x")


def upload(files: dict[str, bytes], prefix: str) -> None:
    client = boto3.client("s3")
    for name, data in files.items():
        client.put_object(Bucket="images", Key=f"{prefix}/{name}", Body=data)


def test_a_bucket_is_listed_in_full_page_after_page_and_prefix_by_prefix(s3: str) -> None:
    """More keys than a page holds, flat and in folders, beside a prefix that only begins alike."""
    flat = [f"{n:05d}" for n in range(2100)]
    deep = [f"train/c{n % 40:02d}/{n:04d}" for n in range(400)]
    with ThreadPoolExecutor(16) as pool:
        list(
            pool.map(
                lambda name: object_store.write(f"{s3}/many/{name}", b"x"), ["val/" + name for name in flat] + deep
            )
        )
    object_store.write(f"{s3}/many-more/x", b"x")
    before = requests_sent()
    names = [name for name, _ in storage.list_files(f"{s3}/many")]
    assert names == sorted(["val/" + name for name in flat] + deep)
    assert requests_sent().plus(before, -1).list >= 3 + 40
    assert storage.list_files(f"{s3}/nothing") == []
    assert storage.kind(f"{s3}/many") == "directory"
    assert storage.kind(f"{s3}/man") == "missing"


def test_markers_of_folders_are_no_files(s3: str) -> None:
    upload({"full/": b"", "full/a.jpg": b"", "full/b": b"x", "hollow/": b""}, "marked")
    assert storage.list_files(f"{s3}/marked") == [("full/a.jpg", 0), ("full/b", 1)]


@pytest.mark.parametrize(
    ("wait", "attempts"), [("503", 2), ("reset", 2), ("cut", 2), ("stall", 1)]
)  # a stall is waited out
def test_each_kind_of_fault_is_retried_and_counted(
    s3: str, monkeypatch: pytest.MonkeyPatch, wait: str, attempts: int
) -> None:
    object_store.write(f"{s3}/faults/a", b"0123456789" * 1000)
    monkeypatch.setattr("tests.support.servers.fault_proxy.KINDS", (wait,))
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], every=1, stall_seconds=0.5) as (address, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        before = requests_sent()

        def heal() -> None:
            while not proxy.faults:
                time.sleep(0.01)
            proxy.every = 0

        healer = threading.Thread(target=heal)
        healer.start()
        assert object_store.read_range(f"{s3}/faults/a", 10, 20) == b"0123456789" * 2
        healer.join()
        sent = requests_sent().plus(before, -1)
        assert sum(proxy.requests.values()) == sent.get >= attempts
        assert sent.retried == sent.get - 1


def test_a_storage_that_stays_away_is_given_up_with_a_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr("tests.support.servers.fault_proxy.KINDS", ("503",))
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], every=1) as (address, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(
            StorageError, match=r"s3://images/x: the storage answers 503 SlowDown; check bucket"
        ) as info:
            object_store.read_range("s3://images/x", 0, 1)
    assert "127.0.0.1" not in str(info.value)


def test_a_slow_down_halves_the_requests_in_flight_and_answers_bring_them_back() -> None:
    limit = retries.AdaptiveLimit(16)
    limit.slowed()
    limit.slowed()
    assert limit.limit == 4
    for _ in range(4):
        limit.succeeded()
    assert 4.8 < limit.limit < 5.2
    for _ in range(1000):
        limit.succeeded()
    assert limit.limit == 16
    for _ in range(20):
        limit.slowed()
    assert limit.limit == 1
    with limit.request():
        assert limit._active == 1


def test_a_lost_answer_to_a_conditional_write_is_not_a_lost_race(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first PUT arrives, its answer is cut off; the second is refused, but the object is ours."""
    monkeypatch.setattr("tests.support.servers.fault_proxy.KINDS", ("mute",))
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], every=1) as (address, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        threading.Timer(0.2, lambda: setattr(proxy, "every", 0)).start()
        assert storage.write_once(f"{s3}/mute/a", b"mine")
        assert not storage.write_once(f"{s3}/mute/a", b"other")
    assert proxy.requests["PUT"] >= 3


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_an_ingest_through_a_storage_that_fails_gives_the_same_bytes_for_the_requests_it_says(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request in ten is a 503, a reset, a cut answer or a stall; the proxy counts all there are."""
    upload(tree_files(make_tree(tmp_path / "tree", per_class=60)), "faulty")
    settings = IngestSettings(shard_bytes=60_000)
    with planned_ingest(Source(f"{s3}/faulty"), str(tmp_path / "quiet"), settings) as plan:
        quiet = write_dataset(plan)
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], every=10, stall_seconds=5.0) as (address, proxy):
        source = f"{s3}/faulty?endpoint_override={address.removeprefix('http://')}&scheme=http"
        before = requests_sent()
        with planned_ingest(Source(source), str(tmp_path / "faulty"), settings) as plan:
            cost = estimate(plan.index, plan.shards, settings, plan.out, 2)
            faulty = write_dataset(plan)
        here = requests_sent().plus(before, -1)
        requests = faulty.requests.plus(here)
        assert set(proxy.faults) == {"503", "reset", "cut", "stall"}
    assert faulty.manifest.digest == quiet.manifest.digest
    assert cost.reads == 360
    assert faulty.requests.get == cost.reads + faulty.requests.retried
    assert sum(proxy.requests.values()) == requests.total
    assert abs(sum(proxy.requests.values()) / (cost.reads + here.total - here.retried + requests.retried) - 1) < 0.05


@pytest.mark.usefixtures("ray_cluster")
def test_many_tars_in_a_bucket_are_walked_by_ray(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough stretches that the index pass runs as Ray tasks; the rows are those of the same tars on disk."""
    root = webdataset(tmp_path / "w")
    for number in range(20):
        make_tar(root / f"imagenet-train-{number + 10:06d}.tar", {"a.jpg": jpeg(number), "a.cls": b"2"})
    upload(tree_files(root), "web")
    local = open_source(str(root), spool="")
    remote = open_source(f"{s3}/web", spool="")
    assert (remote.classes, remote.num_rows) == (local.classes, local.num_rows)
    for split, table in local.splits.items():
        assert sample_bytes(remote.splits[split]) == sample_bytes(table)
        assert remote.splits[split]["key"].to_pylist() == table["key"].to_pylist()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_nothing_that_is_written_or_printed_tells_endpoint_or_credentials(s3: str, tmp_path: Path) -> None:
    files = tree_files(make_tree(tmp_path / "tree"))
    upload({**files, "train/bee/002.jpg": b"I am text"}, "secret-free")
    run = run_job(
        "ingest", "--source", f"{s3}/secret-free", "--out", f"{s3}/told", "--max-quarantined", "1", cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    bad = run_job("ingest", "--source", f"{s3}/nothing", "--out", f"{s3}/told-2", cwd=tmp_path)
    assert "no such file or directory" in one_line_error(bad)
    written = {name: storage.read_bytes(f"{s3}/told/{name}") for name, _ in storage.list_files(f"{s3}/told")}
    assert {"manifest.json", "quarantine.parquet", "quality.html", "README.md"} <= set(written)
    texts = [run.stdout, run.stderr, bad.stdout, bad.stderr, *(data.decode("latin1") for data in written.values())]
    for secret in (ACCESS_KEY, SECRET_KEY, os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")):
        assert not any(secret in text for text in texts)
    assert not any(name.startswith("_ingest") for name in written)


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_storage_that_is_away_for_a_minute_costs_the_minute_and_nothing_else(
    s3: str, tree_dataset: str, tmp_path: Path
) -> None:
    """Images are streamed from it and checkpoints written to it; the weights end as those of a quiet run."""
    for name, _ in storage.list_files(tree_dataset):
        storage.write_bytes(f"{s3}/away/tree/{name}", storage.read_bytes(f"{tree_dataset}/{name}"))
    recipe = make_recipe("resnet18-smoke", epochs=4, global_batch_size=2, model="seed-cnn")
    recipe = replace(recipe, image_size_px=32, evaluate_resize_px=32, evaluate_size_px=32, checkpoint_every_steps=7)
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], every=0) as (address, proxy):
        through = f"?endpoint_override={address.removeprefix('http://')}&scheme=http"
        quiet = TrainJob(f"{s3}/away/tree", str(tmp_path / "quiet"), recipe, num_workers=1)
        away = replace(quiet, dataset=f"{s3}/away/tree{through}", run=f"{s3}/away/run{through}")
        gone: list[float] = []

        def go_away() -> None:
            while not gone:
                if any(step >= 14 for step in checkpoint.steps(f"{s3}/away/run")):
                    proxy.away = True
                    gone.append(time.time())
                    time.sleep(60)
                    proxy.away = False
                    gone.append(time.time())
                time.sleep(0.05)

        leaver = threading.Thread(target=go_away)
        leaver.start()
        for job in (quiet, away):
            data = launch.check_job(job)
            launch.claim_run(job, data)
            launch.run_training(job)
        leaver.join()
    assert proxy.faults["away"] > 5
    away = replace(away, dataset=quiet.dataset, run=f"{s3}/away/run")  # not through the proxy, which has ended
    values = result.build_result(away, data)
    assert len(values["starts"]) == 1
    quiet_model, away_model = (read_tensors(storage.join(job.run, "model.safetensors")) for job in (quiet, away))
    assert all((quiet_model[name] == away_model[name]).all() for name in quiet_model)
    waited = {name: round(seconds, 1) for name, seconds in values["seconds"].items() if seconds > 0.05}
    print(f"away for {gone[1] - gone[0]:.0f} s; {proxy.faults['away']} requests failed; seconds {waited}")
