"""Small real things that the tests share: image trees, archives, a data set, a Ray cluster."""

import os
import sys
from collections.abc import Iterator

# Processes of tests side by side share the cores: with more threads than cores, torch's spin while they wait.
_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _processes > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _processes)))

import pytest

from pipeline.ingestion.sources import digits, open_source
from pipeline.storage.local_s3 import local_s3
from tests.support.dev_packages import missing_packages, restart_with_them
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import make_tree

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["RAY_metrics_report_interval_ms"] = "1500"  # noqa: SIM112 - Ray's own name
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Brings the packages that only tests need: a fresh clone has pytest alone. The first hook: before -n is read."""
    if missing := missing_packages():
        restart_with_them(pluginmanager, missing)


def pytest_configure() -> None:
    """Switches Hypothesis's limits by the clock off: on a busy machine they fail a test that has nothing wrong."""
    from hypothesis import HealthCheck, settings  # not before the packages are there

    settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any load")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for the whole suite, whose tests wait for Ray as much as they compute; none for chosen files."""
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


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
    """Sets Ray's variables for tests that train in this process, whether or not there is a cluster."""
    from pipeline.cluster.session import ray_variables as variables

    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(variables())


@pytest.fixture(scope="session")
def trained(digits_dataset: str, ray_variables: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a finished run on the digits that held a tenth of train out."""
    from pipeline.config.presets import make_recipe
    from pipeline.training import launch
    from pipeline.training.job import TrainJob

    run = str(tmp_path_factory.mktemp("model") / "run")
    launch.run_training(TrainJob(digits_dataset, run, make_recipe("digits", epochs=3), hold_out=0.1))
    return run


@pytest.fixture(scope="session")
def ray_cluster(s3: str) -> Iterator[None]:
    """One Ray for the whole session, started as the jobs start it; after S3, whose variables its workers inherit."""
    from pipeline.cluster.session import ray_session

    os.environ.pop("RAY_ADDRESS", None)
    with ray_session(num_workers=3):
        yield
