"""Test views of an image, weighted as published."""

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.evaluation.inference import view_logits


def test_views_are_weighted_as_published() -> None:
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 5)), torch.randn(4, 3, 6, 6)
    assert torch.equal(view_logits(net, images, "none"), net(images))
    both = (net(images) + net(images.flip(-1))) / 2
    assert torch.allclose(view_logits(net, images, "flip"), both, atol=1e-6)
    padded, expected = F.pad(images, (1, 1, 1, 1), "reflect"), 0.5 * both
    for n in (0, 2):
        shifted = padded[:, :, n : n + 6, n : n + 6]
        expected = expected + 0.125 * (net(shifted) + net(shifted.flip(-1)))
    assert torch.allclose(view_logits(net, images, "flip-and-shift"), expected, atol=1e-6)
