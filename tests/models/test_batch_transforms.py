import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from pipeline.config.augment import Augment
from pipeline.core.keyed_random import Stream, uniform
from pipeline.loader.batch import Batch
from pipeline.loader.sample_order import Order
from pipeline.models.batch_transforms import TransformedBatch, cut_mix, cut_out, mix_up, partners, transform_batch

SPECS = {
    "mixup": Augment(mixup_alpha=0.2),
    "cutmix": Augment(cutmix_alpha=1.0),
    "both": Augment(mixup_alpha=0.8, cutmix_alpha=1.0, erase_probability=0.25),
}
KEYS = np.arange(500, 537, dtype=np.uint64)  # an odd number
POSITIONS = np.arange(37)


def transformed(
    images: Tensor,
    labels: Tensor,
    positions: npt.NDArray[np.int64],
    augment: Augment,
    keys: npt.NDArray[np.uint64],
    seed: int = 1,
    epoch: int = 2,
) -> TransformedBatch:
    none = np.empty(0, dtype=np.int64)
    batch = Batch(0, positions, images, labels, keys, positions, none, epoch)
    return transform_batch(batch, Float(), augment, seed)


class Float(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(0, 256, (37, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return whole.contiguous(memory_format=torch.channels_last)


LABELS = torch.arange(37)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_a_mixed_sample_is_the_same_for_any_number_of_workers(images: Tensor, spec: Augment, world_size: int) -> None:
    whole = transformed(images, LABELS, POSITIONS, spec, KEYS)
    order = Order((37,), 0, 37, pairs=True)
    where = {row: place for place, row in enumerate(order.rows(0).tolist())}
    assert whole.weight is not None
    for rank in range(world_size):
        at = np.array([where[row] for row in order.rows(0, world_size, rank).tolist()])
        part = transformed(images[at], LABELS[at], np.arange(len(at)), spec, KEYS[at])
        assert torch.equal(part.images, whole.images[at])
        assert torch.equal(part.weight, whole.weight[at])
        assert torch.equal(part.partner_labels, whole.partner_labels[at])


def test_a_sample_whose_partner_is_left_out_stays_itself(images: Tensor) -> None:
    without = np.array([0, 2, 3, 5, 36])  # the partners of 0, 5 and 36 aren't there
    assert partners(without).tolist() == [0, 2, 1, 3, 4]
    for spec in (SPECS["mixup"], SPECS["cutmix"]):
        mixed = transformed(images[without], LABELS[without], without, spec, KEYS[without])
        whole = transformed(images, LABELS, POSITIONS, spec, KEYS)
        for index in (0, 3, 4):
            assert torch.equal(mixed.images[index], images[without[index]].float())
            assert mixed.weight[index] == 1
        assert torch.equal(mixed.images[1:3], whole.images[2:4])


@pytest.mark.parametrize("spec", [SPECS["mixup"], SPECS["cutmix"]], ids=["mixup", "cutmix"])
def test_the_share_of_an_image_is_the_share_of_its_pixels(spec: Augment) -> None:
    """Every other image is white: the mean of a mixed sample says how much of it is white."""
    white = torch.zeros((37, 3, 16, 16), dtype=torch.uint8)
    white[1::2] = 200
    mixed = transformed(white, LABELS, POSITIONS, spec, KEYS, seed=3, epoch=0)
    own = mixed.images.mean(dim=(1, 2, 3)) / 200
    expected = torch.where(LABELS % 2 == 1, mixed.weight, 1 - mixed.weight)
    assert torch.allclose(own, expected, atol=1e-5)
    assert mixed.weight[36] == 1
    assert mixed.weight[:36].std() > 0.05
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)


def test_shares_and_boxes_are_distributed_as_torchvisions() -> None:
    from scipy.stats import ks_2samp

    draws = uniform(0, 0, Stream.MIX, np.arange(3000, dtype=np.uint64), 4)
    torch.manual_seed(0)
    picture = torch.zeros(1, 3, 224, 224)
    theirs = [v2.MixUp(alpha=0.2, num_classes=2).make_params([picture])["lam"] for _ in range(3000)]
    assert ks_2samp(mix_up(Augment(mixup_alpha=0.2), draws), theirs).pvalue > 0.005
    boxes = np.array([v2.CutMix(alpha=1.0, num_classes=2).make_params([picture])["box"] for _ in range(3000)])
    ours = cut_mix(Augment(cutmix_alpha=1.0), draws, 224)[:, [1, 0, 3, 2]]
    for column in range(4):
        assert ks_2samp(ours[:, column], boxes[:, column]).pvalue > 0.005


def test_with_both_each_sample_has_one_of_them(images: Tensor) -> None:
    keys = np.arange(4000, dtype=np.uint64)
    many = torch.zeros((4000, 3, 8, 8), dtype=torch.uint8)
    many[1::2] = 255
    spec = Augment(mixup_alpha=1.0, cutmix_alpha=1.0)
    mixed = transformed(many, torch.zeros(4000), np.arange(4000), spec, keys, seed=0, epoch=0)
    cuts = ((mixed.images == 0) | (mixed.images == 255)).all(dim=3).all(dim=2).all(dim=1)
    assert abs(cuts.float().mean().item() - 0.5) < 0.05


def test_a_square_is_cut_out_somewhere_inside() -> None:
    out = cut_out(torch.ones(37, 3, 10, 10), 4, 0, 5, KEYS)
    assert (out == 0).sum(dim=(1, 2, 3)).tolist() == [3 * 16] * 37
    corners = {tuple(np.argwhere(image[0].numpy() == 0)[0]) for image in out}
    assert len(corners) > 10
    assert all(0 <= y <= 6 and 0 <= x <= 6 for y, x in corners)
