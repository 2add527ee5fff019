"""`Loader` in a loop of one's own: five lines, places given by hand, own functions, torch's interfaces."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline import Loader
from pipeline.config import Augment, recipes
from pipeline.core.errors import RecipeError
from pipeline.loader import Batch

SMALL: dict[str, Any] = {"global_batch_size": 17, "size_px": 24}


def images_by_key(batches: list[Batch]) -> dict[int, bytes]:
    return {
        int(key): image.numpy().tobytes()
        for batch in batches
        for key, image in zip(batch.keys.tolist(), batch.images, strict=True)
    }


def test_the_five_lines(tree_dataset: str) -> None:
    begun = time.perf_counter()
    loader = Loader(tree_dataset, split="train", global_batch_size=17, size_px=24, seed=0, rank=0, world_size=1)
    keys: list[int] = []
    for batch in loader:
        if not keys:
            assert time.perf_counter() - begun < 5  # measured: a tenth of a second; other tests run beside it
        assert (batch.images.shape, batch.images.dtype) == ((17, 3, 24, 24), torch.uint8)
        assert (batch.labels.shape, batch.labels.dtype) == ((17,), torch.int64)
        keys += batch.keys.tolist()
    assert len(keys) == len(set(keys)) == loader.num_rows == 51
    assert loader.recipe.augment == Augment(resized_crop_area=(0.08, 1.0), flip_probability=0.5)


def test_a_state_of_three_ranks_resumes_on_two(tree_dataset: str) -> None:
    def loaders(world_size: int) -> list[Loader]:
        return [Loader(tree_dataset, **SMALL, rank=rank, world_size=world_size) for rank in range(world_size)]

    alone = [batch.keys.tolist() for batch in loaders(1)[0]]
    three, steps, states = loaders(3), [], []
    for parts in zip(*three, strict=True):
        steps.append([key for part in parts for key in part.keys.tolist()])
        states = [loader.state_dict() for loader in three]
        if len(steps) == 2:
            break
    assert states[0] == states[1] == states[2]
    two = loaders(2)
    for loader in two:
        loader.load_state_dict(states[0])
    for parts in zip(*two, strict=True):
        steps.append([key for part in parts for key in part.keys.tolist()])
    assert steps == alone


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"rank": 1}, "rank=1, world_size=None: give both"),
        ({"world_size": 2}, "rank=None, world_size=2: give both"),
        ({"rank": 2, "world_size": 2}, "rank=2, world_size=2: give both, and a rank from 0 to world_size - 1"),
        ({"rank": -1, "world_size": 2}, "rank=-1"),
    ],
)
def test_a_place_that_cannot_be_is_refused(tree_dataset: str, place: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Loader(tree_dataset, **place)


def test_an_epoch_can_be_chosen(tree_dataset: str) -> None:
    loader, other = Loader(tree_dataset, **SMALL), Loader(tree_dataset, **SMALL)
    list(loader)
    second = images_by_key(list(loader))
    next(iter(other))
    other.epoch = 1
    assert images_by_key(list(other)) == second
    assert other.epoch == 2


def test_batches_arrive_on_a_device_with_the_same_pixels(tree_dataset: str) -> None:
    plain, ahead = Loader(tree_dataset, **SMALL), Loader(tree_dataset, **SMALL, device="cpu")
    assert images_by_key(list(plain)) == images_by_key(list(ahead))


# --- own functions -----------------------------------------------------------------------------------------------


def noise(image: Tensor, generator: torch.Generator) -> Tensor:
    return image ^ torch.randint(0, 8, image.shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("residency", ["stream", "resident"])
def test_own_samples_depend_on_seed_epoch_and_key_alone(tree_dataset: str, residency: str) -> None:
    recipe = replace(recipes["digits"], residency=residency, image_size_px=24, augment=Augment(flip_probability=0.5))

    def epochs(world_size: int, batch_size: int, seed: int = 0) -> list[dict[int, bytes]]:
        place = {"seed": seed, "world_size": world_size, "global_batch_size": batch_size}
        loaders = [Loader(tree_dataset, recipe, rank=rank, **place).map_samples(noise) for rank in range(world_size)]
        return [images_by_key([batch for loader in loaders for batch in loader]) for _ in range(2)]

    alone = epochs(1, 17)
    assert alone == epochs(3, 12)
    assert alone[0] != alone[1]
    assert alone[0] != epochs(1, 17, seed=1)[0]
    plain = images_by_key(list(Loader(tree_dataset, recipe, global_batch_size=17)))
    assert plain.keys() == alone[0].keys()
    changed = [np.frombuffer(plain[key], np.uint8) ^ np.frombuffer(alone[0][key], np.uint8) for key in plain]
    assert max(each.max() for each in changed) == 7


def test_own_batches_come_after_own_samples_and_may_change_anything(tree_dataset: str) -> None:
    def normalised(batch: Batch, generator: torch.Generator) -> Batch:
        shift = torch.rand((), generator=generator, device=generator.device)
        return replace(batch, images=batch.images / 255 + shift)

    def run() -> list[Tensor]:
        loader = Loader(tree_dataset, **SMALL).map_samples(lambda image, _: 0 * image).map_batches(normalised)
        return [batch.images for _ in range(2) for batch in loader]

    first, second = run(), run()
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert len({float(images.max()) for images in first}) == 6
    assert first[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"map_samples": lambda image, _: image[:, ::2]}, r"<lambda> returned torch.uint8 \[3, 12, 24\] for uint8"),
        ({"map_samples": lambda image, _: image / 2}, r"returned torch.float32 .*map_batches"),
        ({"map_batches": lambda batch, _: batch.images}, "map_batches: <lambda> returned Tensor; return a batch"),
    ],
)
def test_functions_that_return_something_else_are_told(tree_dataset: str, change: dict[str, Any], message: str) -> None:
    loader = Loader(tree_dataset, **SMALL)
    for name, function in change.items():
        getattr(loader, name)(function)
    with pytest.raises(RecipeError, match=message):
        list(loader)


# --- torch's interfaces ------------------------------------------------------------------------------------------


def test_samples_are_those_of_the_batches(tree_dataset: str) -> None:
    loader, batches = Loader(tree_dataset, **SMALL), list(Loader(tree_dataset, **SMALL))
    samples = list(loader.samples())
    assert torch.equal(torch.stack([image for image, _ in samples]), torch.cat([batch.images for batch in batches]))
    assert [int(label) for _, label in samples] == torch.cat([batch.labels for batch in batches]).tolist()


def test_torchs_dataloader_takes_the_dataset(tree_dataset: str) -> None:
    expected = list(Loader(tree_dataset, **SMALL))
    dataset = Loader(tree_dataset, **SMALL).as_dataset()
    assert len(DataLoader(dataset, batch_size=None)) == 3
    got = list(DataLoader(dataset, batch_size=None))
    assert images_by_key(got) == images_by_key(expected)
    assert dataset.loader.epoch == 1
    samples = DataLoader(Loader(tree_dataset, **SMALL).as_dataset(samples=True), batch_size=17)
    images, labels = next(iter(samples))
    assert torch.equal(images, expected[0].images)
    assert torch.equal(labels, expected[0].labels)
    with pytest.raises(TypeError, match="aren't counted"):
        len(samples)


def test_worker_processes_of_torchs_dataloader_are_refused(tree_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Info:
        num_workers = 2

    monkeypatch.setattr("pipeline.loader.torch_dataset.get_worker_info", Info)
    with pytest.raises(RecipeError, match="num_workers=2 of the DataLoader must be 0"):
        next(iter(Loader(tree_dataset, **SMALL).as_dataset()))


def test_a_cache_must_be_a_folder_of_this_machine(tree_dataset: str, tmp_path: Path) -> None:
    assert len(list(Loader(tree_dataset, **SMALL, cache=str(tmp_path), cache_size="1 MB"))) == 3
    with pytest.raises(RecipeError, match="must be a folder"):
        Loader(tree_dataset, cache="s3://bucket/cache")
