"""Streams by threads and on a real Ray: exact batches for any number of workers, time by stage, corrupt rows."""

import hashlib
import shutil
import time
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.augment import Augment
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import SizeRamp
from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest
from pipeline.dataset.row_reader import load_index
from pipeline.loader import transform as transform_module
from pipeline.loader.batch import Batch, usable_positions
from pipeline.loader.decode import best_decoder
from pipeline.loader.sample_order import Order
from pipeline.loader.samplers import TrainSampler
from pipeline.loader.stage_times import Stopwatch
from pipeline.loader.streaming import threads
from pipeline.loader.streaming.threads import local_batches
from pipeline.loader.transform import Transform
from pipeline.training import launch
from pipeline.training.job import TrainJob
from pipeline.training.outputs import result
from pipeline.training.step_meter import Meter
from pipeline.training.trackers import make_ray_metrics
from tests.support.pictures.damaged import damaged_copy
from tests.support.ray_alone import task_batches
from tests.support.trained.runs import traced

pytestmark = [
    pytest.mark.usefixtures("ray_variables"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

Carrier = Callable[..., Generator[Batch]]


@pytest.fixture(params=["threads", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def carrier(request: pytest.FixtureRequest) -> Carrier:
    """What makes the batches of a stream: threads of this process, or Ray Data tasks."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
        return task_batches
    return local_batches


EVERYTHING = Augment(
    resized_crop_area=(0.3, 1.0), flip_probability=0.5, auto="trivial", rotation_degrees=10, salt_and_pepper=0.02
)


def streamed(
    carrier: Carrier, uri: str, order: Order, view: Transform, steps: range, world_size: int
) -> dict[int, str]:
    """Returns {global step: SHA-256 of the global batch's pixels, labels and rows} of `steps`."""
    parts: dict[int, list[tuple[bytes, ...]]] = {}
    split = manifest.load(uri).split("train")
    for rank in range(world_size):
        sampler = TrainSampler(order, steps.stop, steps.start, world_size, rank)
        for batch in carrier(uri, split, sampler, view):
            pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
            part = (pixels.tobytes(), batch.labels.numpy().tobytes(), batch.rows.tobytes())
            parts.setdefault(steps.start + batch.index, []).append(part)
    joined = {step: b"".join(b"".join(column) for column in zip(*part, strict=True)) for step, part in parts.items()}
    return {step: hashlib.sha256(data).hexdigest() for step, data in joined.items()}


def test_batches_are_the_same_for_any_number_of_workers_and_any_first_step(tree_dataset: str, carrier: Carrier) -> None:
    """51 rows, batches of 17, 3 epochs of 16, 24 and 32 px; world sizes change in the middle of epochs.

    Of Ray fewer sizes: each rank is a pipeline of Ray Data, which takes a second to start.
    """
    split = manifest.load(tree_dataset).split("train")
    order = Order(split.row_group_rows, 9, 17, 2)
    view = Transform(32, 32, EVERYTHING, seed=9, decoder=best_decoder(), ramp=SizeRamp(16, 0, 2, multiple_px=8))
    alone = streamed(local_batches, tree_dataset, order, view, range(9), 1)
    assert len(alone) == len(set(alone.values())) == 9
    pieces: dict[int, str] = {}
    changes = ((0, 2, 2), (2, 4, 7), (4, 7, 3), (7, 9, 4)) if carrier is local_batches else ((0, 4, 2), (4, 9, 3))
    for first, last, world_size in changes:
        pieces |= streamed(carrier, tree_dataset, order, view, range(first, last), world_size)
    assert pieces == alone


def test_sizes_grow_from_epoch_to_epoch_in_one_stream(tree_dataset: str, carrier: Carrier) -> None:
    split = manifest.load(tree_dataset).split("train")
    order = Order(split.row_group_rows, 9, 17, 2)
    view = Transform(32, 32, Augment((0.3, 1.0)), decoder=best_decoder(), ramp=SizeRamp(16, 0, 2, multiple_px=8))
    batches = carrier(tree_dataset, split, TrainSampler(order, 12), view)
    assert [batch.images.shape[-1] for batch in batches] == [16] * 3 + [24] * 3 + [32] * 6


# --- where the time goes -----------------------------------------------------------------------------------------

DELAY = 0.2


def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(DELAY)
        return function(*arguments)

    return slow


BLAMED = [
    ("read_parts", "storage"),
    ("decode_batch", "decode"),
    ("augment_pixels", "augment"),
    ("batch_from_columns", "hand-over"),
    ("", "compute"),
]


@pytest.mark.parametrize(("function", "stage"), BLAMED)
def test_the_slow_stage_is_blamed(
    tree_dataset: str, monkeypatch: pytest.MonkeyPatch, function: str, stage: str
) -> None:
    split = manifest.load(tree_dataset).split("train")
    spec = EVERYTHING if stage == "augment" else Augment((0.3, 1.0), flip_probability=0.5)
    order, view = Order(split.row_group_rows, 1, 5), Transform(24, 24, spec, decoder=best_decoder())
    if function:
        module = transform_module if stage in ("storage", "decode", "augment") else threads
        monkeypatch.setattr(module, function, slowed(getattr(module, function)))
    stream = local_batches(tree_dataset, split, TrainSampler(order, 5), view)
    seconds: dict[str, float] = {}
    meter = Meter(seconds, [], torch.device("cpu"), 1, 0)
    for _ in range(5):
        meter.next_batch(stream)
        if stage == "compute":
            time.sleep(DELAY)
        meter.mark("compute")
    stream.close()
    meter.settle()
    seconds.pop("queue")  # processes start
    if stage in ("storage", "decode", "augment"):
        seconds.pop("hand-over")  # a machine that does other things hands over late
    assert seconds[stage] > 0.6 * sum(seconds.values()), seconds


def test_what_was_measured_comes_with_the_batch(tree_dataset: str) -> None:
    split = manifest.load(tree_dataset).split("train")
    watch, index = Stopwatch(), load_index(tree_dataset, split)
    Transform(24, 24, EVERYTHING, decoder=best_decoder()).load(index, np.arange(51), 0, None, watch)
    making = watch.timing()
    assert min(making.storage, making.decode, making.augment) > 0
    assert making.storage + making.decode + making.augment <= making.ended - making.started


# --- corrupt rows ------------------------------------------------------------------------------------------------


DAMAGED = [("train", 3), ("train", 30), ("val", 20)]


@pytest.fixture(scope="module")
def damaged(tree_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a copy of the tree with three damaged images."""
    return damaged_copy(tree_dataset, tmp_path_factory.mktemp("damaged") / "data", DAMAGED)


CROPS = Augment((0.5, 1.0))  # cut while decoding: tasks that need no torch start soonest


def job_on(uri: str, run: Path, residency: str, **changes: Any) -> TrainJob:
    recipe = replace(make_recipe("digits", epochs=1, global_batch_size=16), residency=residency, augment=CROPS)
    return TrainJob(uri, str(run), recipe, trace_rows=True, **changes)


def run_it(job: TrainJob) -> dict[str, Any]:
    data = launch.check_job(job)
    launch.claim_run(job, data)
    launch.run_training(job)
    return result.build_result(job, data)


@pytest.mark.parametrize(
    ("residency", "num_workers"),
    [("resident", 0), ("stream", 0), pytest.param("stream", 2, marks=[pytest.mark.ray, pytest.mark.long])],
)
def test_corrupt_rows_are_left_out_counted_and_named(
    damaged: str, tmp_path: Path, request: pytest.FixtureRequest, residency: str, num_workers: int
) -> None:
    if num_workers:
        request.getfixturevalue("ray_cluster")
    more = {"num_workers": num_workers, "cpus_per_worker": 0.5, "on_corrupt": "quarantine"}
    values = run_it(job_on(damaged, tmp_path / "run", residency, **more))
    assert [(line["split"], line["row"]) for line in values["quarantined"]] == DAMAGED
    keys = {line["key"] for line in values["quarantined"]}
    for line in values["quarantined"]:
        assert ".parquet, row group" in line["place"]
    assert values["val"]["rows"] == 50
    seen = [key for rank in sorted((tmp_path / "run" / "rows").iterdir()) for key in keys_of(rank)]
    assert len(seen) == len(set(seen)) == 51 - 2
    assert not keys & set(seen)


def keys_of(path: Path) -> list[str]:
    only = path.parent.parent / "one" / path.name / "rows"
    only.mkdir(parents=True)
    shutil.copy(path, only)
    return [key for keys in traced(only.parent).values() for key in keys]


@pytest.mark.parametrize("residency", ["resident", "stream"])
def test_a_corrupt_row_stops_the_run_with_shard_and_row_group(damaged: str, tmp_path: Path, residency: str) -> None:
    from pipeline.cluster.ray_errors import user_message

    with pytest.raises(Exception, match=r"train/\S+parquet, row group \d+, row \d+ of the split: not the by") as caught:
        run_it(job_on(damaged, tmp_path / "run", residency))
    message = user_message(caught.value)
    assert message is not None
    assert "--on-corrupt quarantine goes on without such images" in message


def test_a_batch_of_which_nothing_is_left_stops_the_run() -> None:
    with pytest.raises(DatasetError, match="batch 4: none of its 3 images can be used"):
        usable_positions(4, np.ones(3, dtype=np.bool_))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_seconds_of_a_run_are_metrics_of_ray(digits_dataset: str, tmp_path: Path) -> None:
    import ray

    job = job_on(digits_dataset, tmp_path / "measured", "resident", trackers=(make_ray_metrics,))
    values = run_it(job)
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline, found = time.monotonic() + 30, dict[str, float]()
    while time.monotonic() < deadline and not {"images", "top1"} <= found.keys():
        time.sleep(0.5)
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        lines = [line for line in text.splitlines() if 'run="measured"' in line or 'run="measured,' in line]
        for line in lines:
            name, value = line.split("{")[0].removeprefix("ray_image_pipeline_"), float(line.rsplit(" ", 1)[-1])
            stage = line.partition('stage="')[2].partition('"')[0] or line.partition('stage="')[2]
            found[stage or name.removesuffix("_total")] = value
    assert found["images"] == pytest.approx(1438)
    assert found["compute"] == pytest.approx(values["seconds"]["compute"], rel=0.01)
    assert found["loss"] == pytest.approx(values["history"][-1]["loss"])
    assert found["quarantined_rows"] == 0
    assert found["top1"] == pytest.approx(values["val"]["top1"])
