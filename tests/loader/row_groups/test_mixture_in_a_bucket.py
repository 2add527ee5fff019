"""A mixture whose sources are in object storage: the batches of a disk, through a cache and without one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.presets import make_recipe
from pipeline.dataset import manifest
from pipeline.dataset.cache_folder import CacheFolder
from pipeline.dataset.mixture import mix
from pipeline.ingestion.sources import open_source
from pipeline.loader.batch import Batch
from pipeline.loader.decode import best_decoder
from pipeline.loader.sample_order import training_order
from pipeline.loader.samplers import TrainSampler
from pipeline.loader.sampling.plan import expected_counts
from pipeline.loader.streaming.plan import StreamPlan
from pipeline.loader.streaming.threads import thread_source
from pipeline.loader.transform import training_transform
from pipeline.storage.request_counts import requests_sent
from tests.support.pictures.datasets import copied, ingest_here
from tests.support.pictures.images import make_tree

EPOCHS = 3
SHARES = "photos=1, drawings=3; 6: photos=1, drawings=0; 9: photos=1, drawings=1"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two data sets of the same classes on a disk, 51 and 15 training rows, and their mixture."""
    root = tmp_path_factory.mktemp("here")
    for name, rows in (("photos", 17), ("drawings", 5)):
        tree = make_tree(root / "raw" / name, per_class=rows)
        ingest_here(open_source(str(tree), spool=str(root / "spool")), str(root / name), shard_size=9000)
    mix({name: str(root / name) for name in ("photos", "drawings")}, str(root / "mixed"))
    return {name: str(root / name) for name in ("photos", "drawings", "mixed")}


@pytest.fixture(scope="module")
def remote(s3: str, here: dict[str, str]) -> str:
    """The URI of their mixture in a bucket, where all three are."""
    sources = {name: copied(here[name], f"{s3}/{name}") for name in ("photos", "drawings")}
    mix(sources, f"{s3}/mixed")
    return f"{s3}/mixed"


def plan_of(uri: str, cache: CacheFolder | None = None, epochs: int = EPOCHS) -> StreamPlan:
    changes = {"global_batch_size": 11, "image_size_px": 16, "residency": "stream", "shuffle_window_row_groups": 2}
    changes |= {"sampling.shares": SHARES, "augment.flip_probability": 0.5}
    recipe, data = make_recipe("digits", **changes), manifest.load(uri)
    split = data.split("train")
    order = training_order(recipe, split.row_group_rows, 4, expected_counts(uri, data, recipe.sampling))
    sampler = TrainSampler(order, epochs * order.steps_per_epoch)
    return StreamPlan(uri, split, sampler, training_transform(recipe, 4, best_decoder()), cache=cache)


def same(batches: Iterator[Batch], others: Iterator[Batch]) -> int:
    """Returns the number of batches, which are the same in both."""
    count = 0
    for batch, other in zip(batches, others, strict=True):
        assert np.array_equal(batch.rows, other.rows)
        assert batch.images.equal(other.images)
        assert batch.labels.equal(other.labels)
        count += 1
    return count


def test_the_batches_are_those_of_a_disk_and_each_row_group_is_requested_once(
    here: dict[str, str], remote: str, tmp_path: Path
) -> None:
    """In three epochs, in which the shares change all the time, through a cache and without one."""
    local, plan = plan_of(here["mixed"]), plan_of(remote, CacheFolder(str(tmp_path)))
    groups, rows = plan.index().groups_of, [plan.sampler.rows(number) for number in range(len(plan.sampler))]
    before = requests_sent()
    assert same(thread_source(plan)(lambda: False), thread_source(local)(lambda: False)) == len(rows)
    assert requests_sent().plus(before, -1).get == len(np.unique(groups(np.concatenate(rows))))
    assert same(thread_source(plan_of(remote))(lambda: False), thread_source(local)(lambda: False)) == len(rows)
    drawings = [int((each >= 51).sum()) for each in rows]
    assert drawings[6] == 0
    assert all(drawings[number] for number in (0, 1, 2, 9, 10))
