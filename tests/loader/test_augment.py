import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline.config.augment import Augment
from pipeline.core.errors import RecipeError
from pipeline.core.keyed_random import Stream, uniform
from pipeline.loader import auto_augment
from pipeline.loader.augment import augment_batch, crop_places, dropout_seed, erase, inside
from pipeline.loader.crops import crop_boxes, padded_crops

SPECS = {
    "crop": Augment(crop_padding_px=4),
    "flip": Augment(flip_probability=0.5),
    "crop and flip": Augment(crop_padding_px=2, flip_probability=0.5),
    "rotation": Augment(rotation_degrees=30),
    "salt and pepper": Augment(salt_and_pepper=0.1),
    "jitter": Augment(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    "rand": Augment(auto="rand", rand_ops=2, rand_strength=20),
    "trivial": Augment(auto="trivial"),
    "resized crop": Augment(resized_crop_area=(0.3, 1.0)),
    "all": Augment((0.3, 1.0), (3 / 4, 4 / 3), 2, 0.5, 15, 0.05, 0.2, 0.2, 0.2, 0.05, auto="trivial"),
}
KEYS = np.arange(100, 164, dtype=np.uint64)


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (64, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return F.resize(small, [32, 32]).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_a_sample_does_not_depend_on_the_rest_of_the_batch(images: Tensor, spec: Augment) -> None:
    together = augment_batch(images, spec, 1, 2, KEYS)
    assert together.shape == images.shape
    assert together.dtype == torch.uint8
    for rows in (slice(0, 1), slice(7, 20), slice(63, 64)):
        assert torch.equal(augment_batch(images[rows], spec, 1, 2, KEYS[rows]), together[rows])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize(("seed", "epoch"), [(1, 3), (2, 2)])
def test_another_seed_or_epoch_gives_another_view(images: Tensor, spec: Augment, seed: int, epoch: int) -> None:
    assert not torch.equal(augment_batch(images, spec, 1, 2, KEYS), augment_batch(images, spec, seed, epoch, KEYS))


def test_the_default_does_nothing(images: Tensor) -> None:
    assert torch.equal(augment_batch(images, Augment(), 0, 0, KEYS), images)


def test_switching_one_operation_on_leaves_the_draws_of_the_others(images: Tensor) -> None:
    flipped = augment_batch(images, SPECS["flip"], 1, 2, KEYS)
    both = augment_batch(images, Augment(flip_probability=0.5, salt_and_pepper=0.02), 1, 2, KEYS)
    assert ((flipped == both).float().mean() > 0.95).item()


def test_crop_and_flip_are_torchvisions(images: Tensor) -> None:
    spec = SPECS["crop and flip"]
    shift = (uniform(1, 2, Stream.CROP, KEYS, 2) * 5).astype(int)
    flips = uniform(1, 2, Stream.FLIP, KEYS)[:, 0] < 0.5
    padded = F.pad(images, [2, 2, 2, 2], padding_mode="reflect")
    for index, (image, (top, left), flip) in enumerate(zip(padded, shift, flips, strict=True)):
        expected = F.crop(image, top, left, 32, 32)
        expected = F.horizontal_flip(expected) if flip else expected
        assert torch.equal(augment_batch(images, spec, 1, 2, KEYS)[index], expected)
    assert 20 < flips.sum() < 44


def test_rotation_is_torchvisions_and_within_its_range(images: Tensor) -> None:
    angles = (2 * uniform(1, 2, Stream.ROTATION, KEYS)[:, 0] - 1) * 30
    assert np.abs(angles).max() > 25
    expected = F.rotate(images[3], float(angles[3]), interpolation=v2.InterpolationMode.BILINEAR)
    assert torch.equal(augment_batch(images, SPECS["rotation"], 1, 2, KEYS)[3], expected)


def test_salt_and_pepper_sets_the_stated_share_of_pixels(images: Tensor) -> None:
    grey = torch.full_like(images, 99)
    noisy = augment_batch(grey, Augment(salt_and_pepper=0.1), 0, 0, KEYS)
    assert set(noisy.unique().tolist()) == {0, 99, 255}
    for value in (0, 255):  # 65,536 pixels: a standard deviation of 0.0009
        assert abs((noisy == value).float().mean().item() - 0.05) < 0.004
    assert torch.equal(noisy[:, 0], noisy[:, 2])  # a pixel, not a channel


def test_erasing_hits_its_share_of_images_and_area(images: Tensor) -> None:
    white = torch.full((2000, 3, 32, 32), 255, dtype=torch.uint8)
    erased = (erase(white, 0.5, 0, 0, np.arange(2000, dtype=np.uint64)) == 127)[:, 0]
    area = erased.float().mean(dim=(1, 2))
    assert abs((area > 0).float().mean().item() - 0.5) < 0.04
    assert area[area > 0].min() > 0.01
    assert area.max() < 0.4


NAMES = {"color": "Color", "auto-contrast": "AutoContrast"}


def their_name(ours: str) -> str:
    return NAMES.get(ours, "".join(word.capitalize() for word in ours.split("-")))


@pytest.mark.parametrize("name", auto_augment.OPERATIONS)
@pytest.mark.parametrize("bin_", [0, 1, 9, 17, 30])
def test_each_operation_is_torchvisions_at_each_strength(images: Tensor, name: str, bin_: int) -> None:
    theirs = their_name(name)
    for reference, ours in (
        (v2.RandAugment(), auto_augment.rand_strength(name, bin_, 32)),
        (v2.TrivialAugmentWide(), auto_augment.trivial_strength(name, bin_)),
    ):
        strengths, signed = reference._AUGMENTATION_SPACE[theirs]
        values = strengths(31, 32, 32)
        value = 0.0 if values is None else float(values[bin_])
        assert ours == value
        assert signed == (name in auto_augment.SIGNED)
        for sign in (1, -1) if signed else (1,):
            expected = reference._apply_image_or_video_transform(
                images[5], theirs, sign * value, interpolation=v2.InterpolationMode.NEAREST, fill=reference._fill
            )
            assert torch.equal(auto_augment.apply(images[5], name, sign * value), expected)


def test_images_of_the_same_operation_go_through_it_together_to_the_same_bytes() -> None:
    """As on a GPU. All operations are there, most of them for several images."""
    count, size = 120, 32
    images = torch.randint(
        0, 256, (count, size, size, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    images = images.permute(0, 3, 1, 2)
    draws = uniform(0, 0, Stream.AUTO, np.arange(count, dtype=np.uint64), 4)
    operations = [auto_augment.rand_choices(2, 9, each, size) for each in draws]
    assert {name for pair in operations for name, _ in pair} == set(auto_augment.OPERATIONS)
    together = auto_augment.apply_alike(images, operations)
    for image, each, found in zip(images, operations, together, strict=True):
        assert torch.equal(found, auto_augment.apply_in_turn(image, each))


def test_the_tables_have_torchvisions_operations_and_all_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {their_name(name) for name in auto_augment.OPERATIONS}
    assert names == set(v2.RandAugment()._AUGMENTATION_SPACE) == set(v2.TrivialAugmentWide()._AUGMENTATION_SPACE)
    seen: list[tuple[str, float]] = []

    def note(image: Tensor, name: str, value: float) -> Tensor:
        seen.append((name, value))
        return image

    monkeypatch.setattr(auto_augment, "apply", note)
    keys = np.arange(5000, dtype=np.uint64)
    image = torch.zeros((3, 8, 8), dtype=torch.uint8)
    for draws in uniform(0, 0, Stream.AUTO, keys, 4):
        auto_augment.apply_in_turn(image, auto_augment.rand_choices(2, 9, draws, 8))
    for draws in uniform(0, 1, Stream.AUTO, keys, 3):
        auto_augment.apply_in_turn(image, auto_augment.trivial_choice(draws))
    counts = {name: sum(name == other for other, _ in seen) for name in auto_augment.OPERATIONS}
    assert all(abs(count - 15_000 / 14) < 150 for count in counts.values()), counts  # a standard deviation of 32
    signs = [value < 0 for name, value in seen if name == "rotate"]
    assert abs(np.mean(signs) - 0.5) < 0.05


def test_resized_crops_are_distributed_as_torchvisions() -> None:
    """Kolmogorov-Smirnov on area, ratio and place of 4,000 boxes of a 375x500 image."""
    from scipy.stats import ks_2samp

    spec = Augment(resized_crop_area=(0.08, 1.0))
    draws = uniform(0, 0, Stream.RESIZED_CROP, np.arange(4000, dtype=np.uint64), 40)
    ours = crop_boxes(np.full(4000, 375), np.full(4000, 500), spec, draws)
    torch.manual_seed(0)
    reference = v2.RandomResizedCrop(224, scale=(0.08, 1.0))
    image = torch.zeros(3, 375, 500)
    boxes = [reference.make_params([image]) for _ in range(4000)]
    theirs = np.array([[box[name] for name in ("top", "left", "height", "width")] for box in boxes])
    assert (ours[:, :2] + ours[:, 2:] <= (375, 500)).all()
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.005


@pytest.mark.parametrize(("height", "width"), [(20, 400), (400, 20), (1, 1)])
def test_extreme_shapes_get_a_crop(height: int, width: int) -> None:
    draws = np.full((1, 40), 0.999)
    sizes = np.array([height]), np.array([width])
    top, left, h, w = crop_boxes(*sizes, Augment(resized_crop_area=(0.9, 1.0)), draws)[0]
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    assert h > 0
    assert w > 0


def test_a_crop_does_not_depend_on_the_rest_of_the_batch() -> None:
    spec = Augment(resized_crop_area=(0.5, 1.0))
    heights, widths = np.array([20, 300, 40, 375]), np.array([400, 300, 35, 500])
    draws = uniform(0, 0, Stream.RESIZED_CROP, np.arange(4, dtype=np.uint64), 40)
    together = crop_boxes(heights, widths, spec, draws)
    for row in range(4):
        alone = crop_boxes(heights[row : row + 1], widths[row : row + 1], spec, draws[row : row + 1])
        assert alone.tolist() == [together[row].tolist()]


@pytest.mark.parametrize(
    ("field", "value"),
    [("flip_probability", 1.5), ("salt_and_pepper", -0.1), ("hue", 0.6), ("crop_padding_px", -1),
     ("resized_crop_area", (0.5, 0.2)), ("rotation_degrees", -3.0), ("auto", "randaugment"), ("rand_ops", 0),
     ("rand_strength", 31), ("mixup_alpha", -0.1), ("cutmix_alpha", -1.0)],
)  # fmt: skip
def test_impossible_values_are_refused(field: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"augment.{field}|{field}"):
        dataclasses.replace(Augment(), **{field: value})


def test_dropout_seeds_differ_by_step_and_rank() -> None:
    seeds = {dropout_seed(0, step, rank) for step in range(50) for rank in range(4)}
    assert len(seeds) == 200


def test_boxes_cover_their_pixels_alone() -> None:
    boxes = np.array([[0, 0, 0, 0], [1, 2, 3, 5], [0, 0, 6, 6], [5, 0, 6, 6]])
    masks = inside(torch.from_numpy(boxes), 6)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        expected = torch.zeros(6, 6, dtype=torch.bool)
        expected[top:bottom, left:right] = True
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("spec", [SPECS["crop"], SPECS["flip"], Augment(flip_probability=0.5, flip_alternates=True)])
def test_places_of_crops_are_those_of_numpy(images: Tensor, spec: Augment) -> None:
    for epochs in (3, np.arange(64)):
        ours = crop_places(images, spec, 7, epochs, KEYS)
        theirs = padded_crops(32, spec, 7, epochs, KEYS)
        assert all(np.array_equal(one.numpy(), other) for one, other in zip(ours, theirs, strict=True))


def test_erasing_and_cutting_out_keep_the_memory_format(images: Tensor) -> None:
    assert erase(images, 0.5, 0, 0, KEYS).is_contiguous(memory_format=torch.channels_last)
