"""Random numbers that are a function of their key, independent of when and where they are drawn.

A draw is a hash of (seed, epoch, stream, key, counter) by SplitMix64's finaliser (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014). There is no state, so any worker can draw for any row
in any order, and the numbers can be computed in any language. NumPy's own generators may change from version to
version; these don't (tests/core/test_keyed_random.py pins them).
"""

import hashlib
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Epochs = int | npt.NDArray[np.int64]  # one epoch for all keys, or int64 [N], one for each

# Constants of SplitMix64. Products of uint64 arrays wrap around, as the definition wants.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Stream(IntEnum):
    """The purpose of a draw. Each has a stream of its own, so that a new one changes no other. Never renumber them."""

    SHARD = 1
    HOLD_OUT = 2
    ROW_GROUP = 3
    ROW = 4
    RUN = 5
    SAMPLE = 6
    SAMPLE_OFFSET = 7
    MIXTURE = 8
    PROXY = 9
    RESIZED_CROP = 10
    CROP = 11
    FLIP = 12
    ROTATION = 13
    SALT_AND_PEPPER = 14
    JITTER = 15
    ERASE = 16
    DROPOUT = 17
    AUTO = 18
    MIX = 19
    CUTOUT = 20
    NOISE = 21
    IMPULSES = 22
    OWN_SAMPLE = 30
    OWN_BATCH = 31


# Copies of a row in one epoch are augmented as in epochs that no run reaches. An odd number, so that what alternates
# from epoch to epoch alternates from copy to copy.
COPY_EPOCHS = 2**40 - 1


def epochs_at(epochs: Epochs, places: Any) -> Epochs:
    """Returns the epochs of a selection of samples.

    epochs: of all samples. places: indices or a slice.
    """
    return epochs[places] if isinstance(epochs, np.ndarray) else epochs


def key_hash(keys: list[str]) -> Keys:
    """Returns uint64 [N]: the first 8 bytes of each key's BLAKE2b, little-endian."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def mix(x: Keys) -> Keys:
    """Returns SplitMix64's finaliser of each value, a bijection on uint64."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def bits(seed: int, epoch: Epochs, stream: Stream, keys: Keys, num_draws: int = 1) -> Keys:
    """Returns uint64 [N, num_draws], one row of independent draws for each of the N keys."""
    # With a full mix after each word, so that (seed 1, epoch 2) and (seed 2, epoch 1) have nothing in common.
    state = np.zeros(1, dtype=np.uint64)
    for word in (seed, epoch, int(stream)):
        number = word.astype(np.uint64) if isinstance(word, np.ndarray) else np.array([word % 2**64], dtype=np.uint64)
        state = mix((state + _GAMMA) ^ number)
    base = mix(mix(keys + _GAMMA) ^ state)
    counters = np.arange(1, num_draws + 1, dtype=np.uint64) * _GAMMA
    return mix(base[:, None] + counters[None, :])


def uniform(seed: int, epoch: Epochs, stream: Stream, keys: Keys, num_draws: int = 1) -> npt.NDArray[np.float64]:
    """Returns float64 [N, num_draws] in [0, 1), of 53 random bits each."""
    # The upper 53 bits: a float64 holds no more, and 1.0 can't come out by rounding.
    return (bits(seed, epoch, stream, keys, num_draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, stream: Stream, keys: Keys) -> npt.NDArray[np.int64]:
    """Returns int64 [N], the positions of `keys` sorted by their draws; equal draws keep their order."""
    return np.argsort(bits(seed, epoch, stream, keys)[:, 0], kind="stable")
