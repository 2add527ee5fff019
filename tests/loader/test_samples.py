import io
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.config.augment import Augment
from pipeline.config.recipe import SizeRamp
from pipeline.dataset import manifest
from pipeline.dataset.parquet import read_rows
from pipeline.dataset.row_reader import load_index, read_images
from pipeline.loader import transform as transform_module
from pipeline.loader.batch import batch_from_columns
from pipeline.loader.decode import DecoderName, best_decoder
from pipeline.loader.resident import load_resident, resident_batches
from pipeline.loader.sample_order import Order
from pipeline.loader.samplers import EvaluationSampler, TrainSampler
from pipeline.loader.transform import Transform


def whole_split(uri: str, name: str) -> dict[str, list[Any]]:
    shards = manifest.load(uri).split(name).shards
    parts = [pq.read_table(f"{uri}/{shard.path}").to_pydict() for shard in shards]
    return {column: [value for part in parts for value in part[column]] for column in parts[0]}


def test_rows_come_in_the_order_asked_for(tree_dataset: str) -> None:
    split, whole = manifest.load(tree_dataset).split("train"), whole_split(tree_dataset, "train")
    rows = np.random.default_rng(0).permutation(split.rows)[:40]
    table = read_rows(tree_dataset, split, rows)
    assert table["key"].to_pylist() == [whole["key"][row] for row in rows]
    assert table["image"].to_pylist() == [whole["image"][row] for row in rows]
    assert read_rows(tree_dataset, split, np.array([3, 3, 0]))["key"].to_pylist() == [
        whole["key"][row] for row in (3, 3, 0)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_deals_every_row_once_in_the_same_batch(world_size: int) -> None:
    samplers = [EvaluationSampler(1003, 50, world_size, rank) for rank in range(world_size)]
    runs = [tuple(part.rows(unit)) for part in samplers for unit in range(len(part))]
    alone = EvaluationSampler(1003, 50)
    assert sorted(runs) == [tuple(alone.rows(unit)) for unit in range(len(alone))]
    assert sorted(row for run in runs for row in run) == list(range(1003))


VIEW = Transform(32, 32, Augment(crop_padding_px=2, flip_probability=0.5), seed=5)


def resident_digests(uri: str, world_size: int, first_step: int = 0) -> dict[int, list[str]]:
    """Returns {global step: [digest of each sample in the global batch]}."""
    import hashlib

    split = manifest.load(uri).split("train")
    data = load_resident(uri, split, VIEW)
    order = Order(split.row_group_rows, 5, 100, None)
    steps: dict[int, list[str]] = {}
    for rank in range(world_size):
        for batch in resident_batches(data, TrainSampler(order, 20, first_step, world_size, rank), VIEW):
            digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch.images]
            steps.setdefault(first_step + batch.index, []).extend(digests)
    return steps


def test_batches_are_the_same_for_every_world_size_and_from_any_step_on(digits_dataset: str) -> None:
    alone = resident_digests(digits_dataset, 1)
    assert alone == resident_digests(digits_dataset, 3)
    later = resident_digests(digits_dataset, 2, first_step=13)
    assert later == {step: digests for step, digests in alone.items() if step >= 13}


def test_a_resident_split_holds_the_stored_images(tree_dataset: str) -> None:
    split, whole = manifest.load(tree_dataset).split("val"), whole_split(tree_dataset, "val")
    data = load_resident(tree_dataset, split, Transform(16, 18))
    assert data.labels.tolist() == whole["label"]
    assert data.images.is_contiguous(memory_format=torch.channels_last)
    reference = v2.Compose([v2.Resize(18), v2.CenterCrop(16)])
    for row in (0, 20, 50):
        image = Image.open(io.BytesIO(whole["image"][row])).convert("RGB")
        expected = reference(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        assert (data.images[row].int() - expected.int()).abs().float().mean() < 1


@pytest.mark.parametrize("decoder", ["kernel", "libjpeg", "simplejpeg"])
def test_a_sample_does_not_depend_on_the_rest_of_the_batch(tree_dataset: str, decoder: DecoderName) -> None:
    if decoder != "simplejpeg" and best_decoder() != "kernel":
        pytest.skip("no C compiler or no libjpeg-turbo headers here")
    index = load_index(tree_dataset, manifest.load(tree_dataset).split("train"))
    for spec in (Augment((0.3, 1.0), flip_probability=0.5), Augment((0.3, 1.0), (3 / 4, 4 / 3), 2, 0.5, 15, 0.05)):
        view = Transform(16, 16, spec, seed=3, decoder=decoder)
        rows = np.random.default_rng(0).permutation(index.length.size)
        together = view.load(index, rows, 4)
        for some in (rows[:1], rows[7:20], rows[::-1]):
            at = [rows.tolist().index(row) for row in some.tolist()]
            assert np.array_equal(view.load(index, some, 4), together[at])
        assert not np.array_equal(view.load(index, rows, 5), together)


KEYS = np.arange(20, dtype=np.uint64)


def task_block(sampler: TrainSampler, unit: int) -> dict[str, Any]:
    rows = sampler.rows(unit)
    flat = {
        "index": np.array([unit]),
        "row": rows[None],
        "label": rows[None],
        "timing": np.zeros((1, 5)),
        "error": np.array([""]),
    }
    return flat | {"image": np.zeros((1, len(rows), 2, 2, 3), np.uint8), "corrupt": np.zeros((1, len(rows)), np.bool_)}


def test_corrupt_rows_are_taken_out_of_a_batch() -> None:
    sampler = TrainSampler(Order((20,), 0, 5), 1)
    block, rows = {name: column[0] for name, column in task_block(sampler, 0).items()}, sampler.rows(0)
    block["corrupt"][[1, 4]] = True
    batch = batch_from_columns(0, block, KEYS, 0)
    assert batch.rows.tolist() == batch.labels.tolist() == batch.keys.tolist() == rows[[0, 2, 3]].tolist()
    assert (batch.positions.tolist(), batch.corrupt.tolist()) == ([0, 2, 3], rows[[1, 4]].tolist())
    assert len(batch.images) == 3


def test_repeated_images_are_the_samples_of_as_many_epochs(digits_dataset: str) -> None:
    """Batched otherwise, and the same to the last bit: crops, flips that alternate, rotation, noise."""
    spec = Augment(
        crop_padding_px=2, flip_probability=0.5, flip_alternates=True, rotation_degrees=9, salt_and_pepper=0.1
    )
    split, view = manifest.load(digits_dataset).split("train"), Transform(32, 32, spec, seed=5)
    data = load_resident(digits_dataset, split, view)
    samples = []
    for repeats in (1, 3):
        order = Order(split.row_group_rows, 5, 90, None, repeats=repeats)
        found: dict[tuple[int, int], bytes] = {}
        for batch in resident_batches(data, TrainSampler(order, 3 * order.steps_per_epoch), view):
            epochs = np.broadcast_to(batch.epochs, batch.rows.shape).tolist()
            for row, epoch, image in zip(batch.rows.tolist(), epochs, batch.images, strict=True):
                found[row, epoch] = image.numpy().tobytes()
        samples.append(found)
    assert samples[0] == samples[1]
    assert len(samples[0]) == 3 * split.rows


def test_read_only_arrays_become_tensors_without_a_copy_or_a_warning() -> None:
    """As Ray's shared memory is; no filter hides torch's warning, for the user's own arrays would lose it, too."""
    block = {name: column[0] for name, column in task_block(TrainSampler(Order((20,), 0, 5), 1), 0).items()}
    for name in ("row", "label", "image"):
        block[name] = block[name].copy()
        block[name].setflags(write=False)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            batch = batch_from_columns(0, block, KEYS, 0)
            assert batch.images.data_ptr() == block["image"].ctypes.data
            with pytest.raises(UserWarning, match="not writable"):
                torch.from_numpy(block["image"])
    finally:
        torch.set_warn_always(False)


def test_importing_the_loader_leaves_the_filters_of_warnings() -> None:
    code = (
        "import warnings, numpy, pyarrow, torch, torchvision; before = list(warnings.filters);"
        "import pipeline.loader.api, pipeline.loader.streaming.carrier; assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_parts_of_a_batch_have_one_size_though_their_epochs_have_several(
    tree_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of repeated images holds several epochs of a ramp, and object storage delivers it part by part."""
    index = load_index(tree_dataset, manifest.load(tree_dataset).split("train"))
    ramp = SizeRamp(16, 0, 2, multiple_px=8)
    transform, rows = Transform(32, 32, Augment((0.3, 1.0)), ramp=ramp), np.arange(10)
    epochs = np.repeat(np.arange(2, dtype=np.int64), 5)
    whole = transform.load(index, rows, epochs)

    def in_parts(*arguments: Any) -> Iterator[Any]:
        images = read_images(*arguments)
        yield slice(0, 5), images[:5]
        yield slice(5, 10), images[5:]

    monkeypatch.setattr(transform_module, "read_parts", in_parts)
    assert whole.shape == (10, 16, 16, 3)
    assert np.array_equal(transform.load(index, rows, epochs), whole)
