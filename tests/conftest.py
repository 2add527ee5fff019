"""Small real things that the tests share: image trees, archives, a data set, a Ray cluster."""

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.core.progress import silent
from pipeline.dataset.image_codec import Handling
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import parquet_bytes
from pipeline.ingestion.plan import Settings, plan_shards
from pipeline.ingestion.run import (
    QUARANTINE_NAME,
    WORK,
    IngestPlan,
    ShardContext,
    make_shard,
    publish,
    quarantine_table,
)
from pipeline.ingestion.source_reader import gather
from pipeline.ingestion.sources import Index, digits, open_source
from pipeline.storage import files as storage
from pipeline.storage import lease
from pipeline.storage.local_s3 import local_s3

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["RAY_metrics_report_interval_ms"] = "500"  # noqa: SIM112 - Ray's own name
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def shared(name: str) -> str:
    """Returns the path of a real image archive beside the project; skips the test, saying so, where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout (../shared/data)")
    return str(path)


def picture(seed: int, height: int = 32, width: int = 32) -> Image.Image:
    """Returns coloured noise, smooth enough to survive an encoding."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(seed: int, height: int = 32, width: int = 32) -> bytes:
    """Returns the picture as a JPEG."""
    out = io.BytesIO()
    picture(seed, height, width).save(out, format="JPEG", quality=90)
    return out.getvalue()


def sample_bytes(samples: pa.Table) -> list[bytes]:
    """Returns the stored bytes of each row of an index table, in its order, as ingest reads them."""
    found = {row: bytes(data) for row, data in gather(samples)}
    return [found[row] for row in range(samples.num_rows)]


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


def ingest_here(
    index: Index, out: str, seed: int = 0, shard_size: int = 100_000, handling: Handling | None = None
) -> Manifest:
    """Ingests without Ray, by the functions that the Ray tasks call."""
    settings = Settings(seed, shard_size, handling or Handling())
    with lease.held(storage.join(out, WORK, "lease.json"), out) as held:
        plan = IngestPlan("", index, plan_shards(index, settings), out, settings, held)
        context = ShardContext("", out, index.encoding, index.classes, settings)
        receipts = [make_shard(index.splits[s.split].take(pa.array(s.rows)), s, context) for s in plan.shards]
        rejected = quarantine_table(index, receipts)
        storage.write_bytes(storage.join(out, QUARANTINE_NAME), parquet_bytes(rejected))
        manifest = publish(plan, receipts, silent)
    storage.delete_tree(storage.join(out, WORK))
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
def s3() -> Iterator[str]:
    """The URI of an empty bucket in a real S3 on loopback, with credentials in the standard variables."""
    with local_s3("images"):
        yield "s3://images"


@pytest.fixture(scope="session")
def ray_variables() -> None:
    """For who trains in this process before there is a cluster: Ray, imported without them, refuses its own nodes."""
    from pipeline.cluster.session import prepare_environment

    os.environ.pop("RAY_ADDRESS", None)
    prepare_environment()


@pytest.fixture(scope="session")
def trained(digits_dataset: str, ray_variables: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a finished run on the digits that held a tenth of train out."""
    from pipeline.config.presets import make_recipe
    from pipeline.training import loop as train
    from pipeline.training.job import TrainJob

    run = str(tmp_path_factory.mktemp("model") / "run")
    train.run(TrainJob(digits_dataset, run, make_recipe("digits", epochs=3), hold_out=0.1))
    return run


@pytest.fixture(scope="session")
def ray_cluster(s3: str) -> Iterator[None]:
    """One Ray for the whole session, started as the jobs start it; after S3, whose variables its workers inherit."""
    from pipeline.cluster.session import ray_session

    os.environ.pop("RAY_ADDRESS", None)
    with ray_session(num_workers=3):
        yield
