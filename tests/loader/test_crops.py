"""Flips that alternate from epoch to epoch."""

import numpy as np

from pipeline.config.augment import Augment
from pipeline.loader.crops import flips

KEYS = np.arange(24, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def test_alternating_flips_show_the_other_side_in_every_next_epoch() -> None:
    spec = Augment(flip_probability=0.5, flip_alternates=True)
    sides = [flips(spec, 3, epoch, KEYS) for epoch in range(4)]
    assert 0 < sides[0].sum() < len(KEYS)
    assert np.array_equal(sides[0], ~sides[1])
    assert np.array_equal(sides[0], sides[2])
    assert np.array_equal(sides[1], sides[3])
