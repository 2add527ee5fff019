"""Small real things that the tests share: image trees, archives, a data set, a Ray cluster."""

import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import storage
from pipeline.ingest import CARD_NAME, build_manifest, dataset_card, plan_shards, shard_bytes
from pipeline.manifest import MANIFEST_NAME, Manifest
from pipeline.sources import Index, digits, open_source

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def shared(name: str) -> str:
    """Returns the path of a real image archive beside the project; skips the test, saying so, where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout (../shared/data)")
    return str(path)


def jpeg(seed: int, height: int = 32, width: int = 32) -> bytes:
    """Returns a JPEG of coloured noise, smooth enough to survive the encoding."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(out, format="JPEG", quality=90)
    return out.getvalue()


def make_tree(root: Path, per_class: int = 6, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Writes SPLIT/CLASS/NAME.jpg for three classes and returns `root`."""
    for number, split in enumerate(splits):
        for label, name in enumerate(("ant", "bee", "cow")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(per_class):
                (folder / f"{image:03d}.jpg").write_bytes(jpeg(1000 * number + 100 * label + image, 20 + image, 30))
    return root


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    """Writes a tar of these files."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tree_files(root: Path) -> dict[str, bytes]:
    """Returns {relative name: bytes} of a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def ingest_here(index: Index, out: str, seed: int = 0, shard_size: int = 100_000) -> Manifest:
    """Ingests without Ray, by the functions that the Ray tasks call."""
    plans, written = plan_shards(index, seed, shard_size), {}
    for number, plan in enumerate(plans):
        data = shard_bytes(index.splits[plan.split].take(plan.rows), index.encoding, index.classes, plan.row_group_rows)
        storage.write_bytes(storage.join(out, plan.path), data)
        written[number] = (len(data), hashlib.sha256(data).hexdigest())
    manifest = build_manifest(index, plans, written, seed)
    storage.write_bytes(storage.join(out, CARD_NAME), dataset_card(manifest).encode())
    assert storage.write_once(storage.join(out, MANIFEST_NAME), manifest.to_json())
    return manifest


@pytest.fixture(scope="session")
def digits_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of the digits as a finished data set of several shards."""
    root = tmp_path_factory.mktemp("digits")
    ingest_here(digits.build_index(str(root / "spool")), str(root / "data"))
    return str(root / "data")


@pytest.fixture(scope="session")
def tree_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a data set of 3 x 17 train and 3 x 17 val JPEGs of several sizes; 51 divides badly."""
    root = tmp_path_factory.mktemp("tree")
    tree = make_tree(root / "raw", per_class=17)
    ingest_here(open_source(str(tree), spool=str(root / "spool")), str(root / "data"), shard_size=9000)
    return str(root / "data")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 on loopback, SeaweedFS, with credentials in the standard variables; the URI of an empty bucket."""
    import boto3

    # Short, for sockets lie in it, and their paths are at most 107 bytes long.
    folder = Path(tempfile.mkdtemp(prefix="weed-", dir="/tmp"))
    names = ("master", "volume", "filer", "s3", "admin")
    ports = free_ports(2 * len(names))
    flags = [f"-{name}.port={port}" for name, port in zip(names, ports, strict=False)]
    flags += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[len(names) :], strict=True)]
    flags += [
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    flags += ["-webdav=false", "-admin.ui=false", "-volume.preStopSeconds=0", "-s3.autoCreateBucket=false"]
    flags += [f"-dir={folder}", f"-filer.localSocket={folder}/f.sock", f"-s3.localSocket={folder}/s.sock"]
    endpoint = f"http://127.0.0.1:{ports[names.index('s3')]}"
    variables = {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(variables)
    weed = Path(sys.executable).with_name("weed")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([weed, "-logtostderr=true", "mini", *flags], stderr=log, stdout=log, cwd=folder)
    try:
        await_answer(f"{endpoint}/healthz")
        boto3.client("s3").create_bucket(Bucket="images")
        yield "s3://images"
    finally:
        process.terminate()
        process.wait(timeout=20)
        shutil.rmtree(folder)
        for name in variables:
            os.environ.pop(name)


def free_ports(count: int) -> list[int]:
    """Returns ports of loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def await_answer(url: str, timeout_seconds: float = 30) -> None:
    """Returns when a server answers."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            assert time.monotonic() < deadline, f"{url} doesn't answer"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def ray_cluster(s3: str) -> Iterator[None]:
    """One Ray for the whole session, started as the jobs start it; after S3, whose variables its workers inherit."""
    from jobs.command import ray_session

    os.environ.pop("RAY_ADDRESS", None)
    with ray_session(num_workers=3):
        yield
