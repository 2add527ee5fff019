"""What only a real Ray can show. All tests share one cluster."""

import hashlib
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.augment import Augment
from pipeline.config.presets import make_recipe
from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest
from pipeline.dataset.row_reader import load_index
from pipeline.ingestion.plan import SHARD_BYTES
from pipeline.ingestion.run import planned_ingest, write_dataset
from pipeline.ingestion.sources import Source
from pipeline.loader import transform as transform_module
from pipeline.loader.batch import Batch, batch_from_columns
from pipeline.loader.decode import best_decoder
from pipeline.loader.resident import load_resident, resident_batches
from pipeline.loader.sample_order import Order
from pipeline.loader.samplers import EvaluationSampler, Sampler, TrainSampler
from pipeline.loader.streaming import ray_helpers
from pipeline.loader.streaming.helped import Columns, helped_source
from pipeline.loader.streaming.plan import StreamPlan
from pipeline.loader.streaming.ray_helpers import RayHelpers
from pipeline.loader.transform import Transform
from pipeline.training import launch
from pipeline.training.job import TrainJob
from pipeline.training.outputs import result
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import make_tar, make_tree, shared, tree_files
from tests.support.ray_alone import task_batches
from tests.support.trained.runs import traced

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable"),
]


def digest(batch: Batch) -> tuple[Any, ...]:
    return (
        batch.index,
        batch.rows.tolist(),
        batch.labels.tolist(),
        hashlib.sha256(batch.images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()).hexdigest(),
    )


def test_ray_writes_the_bytes_that_the_plan_says(tmp_path: Path) -> None:
    source = str(make_tar(tmp_path / "a.tar", tree_files(make_tree(tmp_path / "tree"))))
    with planned_ingest(Source(source), str(tmp_path / "by-ray")) as plan:
        by_ray = write_dataset(plan).manifest
        assert by_ray == ingest_here(plan.index, str(tmp_path / "here"), shard_size=SHARD_BYTES)
    assert not (tmp_path / "by-ray" / "_ingest").exists()
    for split in by_ray.splits.values():
        for shard in split.shards:
            data = (tmp_path / "by-ray" / shard.path).read_bytes()
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (shard.sha256, shard.bytes)


def test_a_bad_image_leaves_no_manifest(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    (tree / "val" / "cow" / "004.jpg").write_bytes(b"")
    with (
        pytest.raises(DatasetError, match=r"1 of 36 files can't be used \(val/cow/004\.jpg: empty: zero bytes\)"),
        planned_ingest(Source(str(tree)), str(tmp_path / "out")) as plan,
    ):
        write_dataset(plan)
    assert not manifest.is_dataset(str(tmp_path / "out"))


AUGMENT = Augment(resized_crop_area=(0.3, 1.0), flip_probability=0.5, salt_and_pepper=0.02)


@pytest.mark.slow
def test_a_stream_of_repeated_images_holds_the_batches_of_the_order(tree_dataset: str) -> None:
    """51 rows in batches of 12 over 3 epochs: nothing divides. The reference is computed here, without Ray."""
    split = manifest.load(tree_dataset).split("train")
    order = Order(split.row_group_rows, 3, 12, 2, repeats=3)
    view = Transform(24, 24, AUGMENT, seed=3, decoder=best_decoder())
    for rank in range(2):
        units = TrainSampler(order, 3 * order.steps_per_epoch, 7, 2, rank)
        streamed = [digest(batch) for batch in task_batches(tree_dataset, split, units, view)]
        assert streamed == [digest(reference(tree_dataset, units, view, unit)) for unit in range(len(units))]


def reference(uri: str, units: Sampler, view: Transform, unit: int) -> Batch:
    index, rows = load_index(uri, manifest.load(uri).split("train")), units.rows(unit)
    images = view.load(index, rows, units.epochs(unit))
    labels = index.label[rows].astype(np.int64)
    columns = {"row": rows, "label": labels, "image": images, "corrupt": rows < 0, "timing": np.zeros(5)}
    return batch_from_columns(unit, columns, index.key_hash, units.epochs(unit))


@pytest.mark.slow
def test_threads_and_tasks_together_make_the_batches_of_threads_alone(
    tree_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks on this node, as if it were another one; threads are slow, so that there is something to help with."""
    split = manifest.load(tree_dataset).split("train")
    order = Order(split.row_group_rows, 3, 12, 2)
    view = Transform(24, 24, AUGMENT, seed=3, decoder=best_decoder())
    plan = StreamPlan(tree_dataset, split, TrainSampler(order, 4000), view)
    arrived: list[int] = []

    class Noting(RayHelpers):
        def arrived(self) -> list[tuple[int, Columns | None]]:
            found = super().arrived()
            arrived.extend(number for number, columns in found if columns)
            return found

    original: Any = vars(transform_module)["read_parts"]

    def read(*arguments: Any) -> Any:
        time.sleep(0.15)
        return original(*arguments)

    monkeypatch.setattr(ray_helpers, "_PATIENCE_SECONDS", 0)
    monkeypatch.setattr(ray_helpers, "tasks_of_rank", lambda nodes, world_size: 2)
    monkeypatch.setattr(transform_module, "read_parts", read)  # in this process
    batches = helped_source(plan, False, partial(Noting, plan, ()), 1 << 20)(lambda: False)
    streamed = []
    for batch in batches:
        streamed.append(digest(batch))
        if len(arrived) >= 20 and batch.index > max(arrived[:20]):
            break
    batches.close()
    monkeypatch.undo()
    assert len(streamed) < 4000
    assert streamed == [digest(reference(tree_dataset, plan.sampler, view, unit)) for unit in range(len(streamed))]


def test_streamed_and_resident_evaluation_see_the_same_pixels(tree_dataset: str) -> None:
    split, view = manifest.load(tree_dataset).split("val"), Transform(16, 18)
    units = EvaluationSampler(split.rows, 10, 2, 1)
    data = load_resident(tree_dataset, split, view)
    resident = [digest(batch) for batch in resident_batches(data, units, view)]
    assert [digest(batch) for batch in task_batches(tree_dataset, split, units, view)] == resident


@pytest.fixture(scope="module")
def trained(digits_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A finished run of two workers, two epochs of the digits."""
    recipe = make_recipe("digits", epochs=2, global_batch_size=126)
    run = str(tmp_path_factory.mktemp("runs") / "two-workers")
    job = TrainJob(digits_dataset, run, recipe, seed=4, num_workers=2, cpus_per_worker=0.5, trace_rows=True)
    launch.claim_run(job, launch.check_job(job))
    launch.run_training(job)
    return job


def global_batches(run: Path) -> dict[int, list[str]]:
    """Returns {step: keys of all ranks, in rank order} of a traced run."""
    steps: dict[int, list[str]] = {}
    for path in sorted((run / "rows").iterdir()):
        only = run / "one-rank" / "rows"
        shutil.rmtree(only.parent, ignore_errors=True)
        only.mkdir(parents=True)
        shutil.copy(path, only)
        for step, keys in traced(only.parent).items():
            steps.setdefault(step, []).extend(keys)
    return steps


def test_one_and_two_workers_train_on_the_same_global_batches(trained: TrainJob, tmp_path: Path) -> None:
    alone = replace(trained, run=str(tmp_path / "alone"), num_workers=0)
    launch.claim_run(alone, launch.check_job(alone))
    launch.run_training(alone)
    steps = global_batches(Path(trained.run))
    assert steps == global_batches(tmp_path / "alone")
    assert len(steps) == 24


@pytest.mark.parametrize("num_workers", [0, pytest.param(3, marks=pytest.mark.long)])
def test_a_checkpoint_has_the_same_totals_on_any_number_of_workers(
    trained: TrainJob, tmp_path: Path, num_workers: int
) -> None:
    """The finished run's checkpoint is continued with other worker counts: nothing is left to train."""
    run = tmp_path / "again"
    shutil.copytree(trained.run, run, ignore=shutil.ignore_patterns("*.parquet", "model.*", "*snapshot*", "rows"))
    job = replace(trained, run=str(run), num_workers=num_workers, cpus_per_worker=0.3, trace_rows=False)
    data = launch.check_job(job)
    launch.claim_run(job, data)
    launch.run_training(job)
    expected, again = (result.build_result(each, data)["val"] for each in (trained, job))
    assert again["confusion_matrix"] == expected["confusion_matrix"]
    assert (again["correct"], again["correct_top5"]) == (expected["correct"], expected["correct_top5"])
    assert again["loss"] == pytest.approx(expected["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_small_network_learns_real_imagenet_photographs_from_a_stream(tmp_path: Path) -> None:
    with planned_ingest(Source(shared("imagenette-mini.tar")), str(tmp_path / "data")) as plan:
        data = write_dataset(plan).manifest
    assert {name: split.rows for name, split in data.splits.items()} == {"train": 1200, "val": 400}
    recipe = make_recipe("resnet18-smoke", epochs=1, model="fast-resnet", optimizer="muon", learning_rate=0.1)
    recipe = replace(recipe, image_size_px=32, evaluate_resize_px=36, schedule="one-cycle", momentum=0.6)
    job = TrainJob(str(tmp_path / "data"), str(tmp_path / "run"), recipe)
    launch.claim_run(job, launch.check_job(job))
    launch.run_training(job)
    values = result.build_result(job, data)
    assert values["steps"] == 19
    assert values["val"]["rows"] == 400
    assert values["val"]["top1"] > 0.2  # one epoch; chance is 0.1
