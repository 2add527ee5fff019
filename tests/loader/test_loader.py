"""`pipeline.loader.Loader`: exact batches in one process or several, without Ray."""

import hashlib
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import Augment, Recipe, SizeRamp, recipes
from pipeline.core.errors import CheckpointError, DatasetError, RecipeError
from pipeline.dataset import manifest
from pipeline.dataset.row_reader import load_index
from pipeline.loader import Batch, Loader, Order, TrainSampler, load_resident, resident_batches
from pipeline.loader.decode import best_decoder
from pipeline.loader.sample_order import training_order
from pipeline.loader.streaming.threads import local_batches
from pipeline.loader.transform import training_transform
from tests.support.pictures.damaged import damaged_copy

AUGMENT = Augment(resized_crop_area=(0.3, 1.0), flip_probability=0.5)
STREAM = replace(recipes["resnet18-smoke"], global_batch_size=17, image_size_px=24, evaluate_resize_px=24)
STREAM = replace(STREAM, augment=AUGMENT, shuffle_window_row_groups=2)
RESIDENT = replace(recipes["digits"], global_batch_size=300)


def digest(batch: Batch) -> str:
    """Returns the SHA-256 of a batch's pixels, labels and rows."""
    pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
    return hashlib.sha256(pixels.tobytes() + batch.labels.numpy().tobytes() + batch.rows.tobytes()).hexdigest()


def test_an_epoch_is_one_loop_and_holds_every_row_once(tree_dataset: str) -> None:
    loader = Loader(Path(tree_dataset), STREAM)
    epochs = []
    for epoch in range(2):
        assert loader.epoch == epoch
        batches = list(loader)
        assert len(batches) == len(loader) == 3
        epochs.append(np.concatenate([batch.rows for batch in batches]).tolist())
        assert sorted(epochs[-1]) == list(range(51))
        assert all(batch.images.shape == (17, 3, 24, 24) for batch in batches)
        assert all(batch.images.dtype == torch.uint8 and batch.labels.dtype == torch.int64 for batch in batches)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    "recipe",
    [
        STREAM,
        replace(STREAM, shuffle_window_row_groups=None, shuffle_run_rows=4, augment=Augment(auto="trivial")),
        replace(STREAM, epochs=4, repeats=2, global_batch_size=34, image_size_px=32, size_ramp=SizeRamp(16, 0, 2, 8)),
        replace(STREAM, augment=Augment((0.3, 1.0), crop_padding_px=2, flip_probability=0.5, flip_alternates=True)),
    ],
    ids=["crops", "runs", "repeats", "padding"],
)
def test_batches_are_those_of_a_training_run_bit_for_bit(tree_dataset: str, recipe: Recipe) -> None:
    """Held against the order, and each batch decoded in one piece, as a task of the stream does."""
    split = manifest.load(tree_dataset).split("train")
    order, index = training_order(recipe, split.row_group_rows, 7), load_index(tree_dataset, split)
    transform = training_transform(recipe, 7, best_decoder())
    loader, step = Loader(tree_dataset, recipe, seed=7), 0
    for _ in range(3):
        for batch in loader:
            rows = order.rows(step)
            assert np.array_equal(batch.rows, rows)
            expected = transform.load(index, rows, order.epochs(step))
            assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)
            assert batch.labels.tolist() == index.label[rows].tolist()
            step += 1
    assert step == 3 * len(loader)


def test_the_order_is_the_pinned_one(digits_dataset: str) -> None:
    """The same values as in test_sample_order.py, which old runs depend on, by way of the public loader."""
    loader = Loader(digits_dataset, replace(RESIDENT, shuffle_window_row_groups=3), seed=0)
    groups = manifest.load(digits_dataset).split("train").row_group_rows
    assert np.array_equal(np.concatenate([batch.rows for batch in loader]), Order(groups, 0, 300, 3).epoch_rows(0))


def test_a_resident_recipe_gives_the_batches_of_its_training_run(digits_dataset: str) -> None:
    split, transform = manifest.load(digits_dataset).split("train"), training_transform(RESIDENT, 3, best_decoder())
    data = load_resident(digits_dataset, split, transform)
    sampler = TrainSampler(training_order(RESIDENT, split.row_group_rows, 3), 10)
    loader = Loader(digits_dataset, RESIDENT, seed=3)
    found = [digest(batch) for _ in range(2) for batch in loader]
    assert found == [digest(batch) for batch in resident_batches(data, sampler, transform)]


def test_evaluation_yields_every_row_once_in_order_without_augmentation(tree_dataset: str) -> None:
    loader = Loader(tree_dataset, STREAM, split="val")
    passes = [list(loader), list(loader)]
    assert np.concatenate([batch.rows for batch in passes[0]]).tolist() == list(range(51))
    assert [digest(batch) for batch in passes[0]] == [digest(batch) for batch in passes[1]]
    assert len(loader) == len(passes[0])


def test_a_state_resumes_in_the_middle_of_an_epoch(tree_dataset: str) -> None:
    loader = Loader(tree_dataset, STREAM, seed=5)
    whole = [digest(batch) for _ in range(2) for batch in loader]
    first = Loader(tree_dataset, STREAM, seed=5)
    found, state = [], {}
    for number, batch in enumerate(first):
        found.append(digest(batch))
        if number == 1:
            state = json.loads(json.dumps(first.state_dict()))
            break
    second = Loader(tree_dataset, STREAM, seed=5)
    second.load_state_dict(state)
    assert found + [digest(batch) for _ in range(2) for batch in second] == whole
    assert [digest(batch) for batch in first] == whole[2:3]  # a loop that was left goes on


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_state_saved_at_the_last_batch_starts_the_next_epoch(tree_dataset: str, split: str) -> None:
    loader = Loader(tree_dataset, STREAM, split=split)
    states = [loader.state_dict() for _ in loader]
    assert [(state["epoch"], state["done"]) for state in states] == [(0, 1), (0, 2), (1, 0)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed=1 of this loader differs from 0 of the saved state"),
        ({"global_batch_size": 16}, "global_batch_size=16 of this loader differs from 17"),
        ({"augment": Augment()}, "augment="),
        ({"split": "val"}, "split='val' of this loader differs from 'train'"),
    ],
)
def test_a_state_of_other_batches_is_refused(tree_dataset: str, changes: dict[str, Any], message: str) -> None:
    state = Loader(tree_dataset, STREAM).state_dict()
    with pytest.raises(CheckpointError, match=message):
        Loader(tree_dataset, STREAM, **changes).load_state_dict(state)


def test_a_preset_and_changes_make_the_recipe(tree_dataset: str) -> None:
    loader = Loader(tree_dataset, "resnet50", global_batch_size=20, image_size_px=32)
    assert (loader.recipe.global_batch_size, len(loader), loader.classes) == (20, 3, ("ant", "bee", "cow"))
    images = next(iter(loader)).images
    expected = (images / 255 - torch.tensor(loader.recipe.pixel_mean).view(1, 3, 1, 1)) / torch.tensor(
        loader.recipe.pixel_std
    ).view(1, 3, 1, 1)
    assert torch.allclose(loader.normalise(images), expected, atol=1e-5)
    with pytest.raises(RecipeError, match="did you mean resnet50"):
        Loader(tree_dataset, "resnet5")
    with pytest.raises(RecipeError, match="did you mean global_batch_size"):
        Loader(tree_dataset, "resnet50", batch_size=20)
    with pytest.raises(DatasetError, match="tarin"):
        Loader(tree_dataset, "resnet50", split="tarin")


def test_damaged_images_stop_the_loop_or_are_left_out(tree_dataset: str, tmp_path: Path) -> None:
    uri = damaged_copy(tree_dataset, tmp_path / "damaged", [("train", 3)])
    with pytest.raises(DatasetError, match="row 3 of the split: not the bytes"):
        list(Loader(uri, STREAM))
    batches = list(Loader(uri, STREAM, on_corrupt="quarantine"))
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == [r for r in range(51) if r != 3]
    assert [row for batch in batches for row in batch.corrupt.tolist()] == [3]


def test_threads_make_a_bounded_number_of_batches_ahead(tree_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.loader.streaming.threads.decode_threads", lambda remote: 3)
    split, asked = manifest.load(tree_dataset).split("train"), []

    class Noting(TrainSampler):
        def rows(self, index: int) -> Any:
            asked.append(index)
            return super().rows(index)

    sampler = Noting(Order(split.row_group_rows, 0, 5), 200)
    batches = local_batches(tree_dataset, split, sampler, training_transform(STREAM, 0, best_decoder()))
    for number in range(10):
        next(batches)
        assert max(asked) == number + 4  # three threads, a part each, and one more
    batches.close()


# --- several processes -------------------------------------------------------------------------------------------


def samples(batch: Batch) -> list[str]:
    """Returns the SHA-256 of each image of a batch."""
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch.images]


def loaders(uri: str) -> dict[str, tuple[Loader, int]]:
    """Returns a loader of each split, and how many epochs of it are looked at."""
    val = Loader(uri, replace(STREAM, global_batch_size=7), split="val")
    return {"train": (Loader(uri, STREAM, seed=5), 2), "val": (val, 1)}


def run_rank(rank: int, world_size: int, folder: str, uri: str) -> None:
    """Writes the samples of this rank's batches, and the state of each loader after two batches."""
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    found: dict[str, Any] = {"states": {}, "lengths": {}}
    for name, (loader, epochs) in loaders(uri).items():
        found[name] = []
        while loader.epoch < epochs:
            for batch in loader:
                found[name].append(samples(batch))
                if len(found[name]) == 2:
                    found["states"][name] = loader.state_dict()
        found["lengths"][name] = len(loader)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_processes_share_each_global_batch_and_one_resumes_alone(tree_dataset: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_rank, args=(rank, 2, str(tmp_path), tree_dataset)) for rank in range(2)]
    for process in processes:
        process.start()
    alone = {
        name: [samples(batch) for _ in range(epochs) for batch in loader]
        for name, (loader, epochs) in loaders(tree_dataset).items()
    }
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert [mine + theirs for mine, theirs in zip(first["train"], second["train"], strict=True)] == alone["train"]
    dealt = [batch for pair in zip(first["val"], second["val"], strict=True) for batch in pair]
    assert dealt == alone["val"]  # each batch of evaluation is one rank's
    assert first["lengths"] == second["lengths"] == {"train": 3, "val": 4}
    for name, (loader, epochs) in loaders(tree_dataset).items():
        loader.load_state_dict(first["states"][name])
        rest = []
        while loader.epoch < epochs:
            rest += [samples(batch) for batch in loader]
        assert rest == alone[name][2 if name == "train" else 4 :]
