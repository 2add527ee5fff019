"""Random numbers that are a function of their key, independent of when and where they are drawn.

A draw is a hash of (seed, epoch, stream, key, counter) by SplitMix64's finaliser (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014). There is no state, so any worker can draw for any row
in any order, and the numbers can be computed in any language. NumPy's own generators may change from version to
version; these don't (tests/core/test_keyed_random.py pins them).
"""

import hashlib
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.partition import LazyParts

if TYPE_CHECKING:
    import pyarrow as pa

Keys = npt.NDArray[np.uint64]
Epochs = int | npt.NDArray[np.int64]  # one epoch for all keys, or int64 [N], one for each

# Constants of SplitMix64. Products of uint64 arrays wrap around, as the definition wants.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

_PART_KEYS = 1 << 16  # that are hashed or drawn for at a time: their numbers stay in the CPU's caches
_BUCKET_KEYS = 1 << 14  # that are sorted at a time, about
_MOST_BUCKETS = 1 << 16


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
    LOCK_BOX = 23
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


def key_hash(keys: "Sequence[str] | pa.ChunkedArray | pa.Array") -> Keys:
    """Returns uint64 [N]: the first 8 bytes of each key's BLAKE2b, little-endian. Takes 8 bytes a key."""
    hashes = np.empty(len(keys), dtype=np.uint64)
    for start in range(0, len(keys), _PART_KEYS):
        part = keys[start : start + _PART_KEYS]
        texts: Sequence[str] = part.to_pylist() if hasattr(part, "to_pylist") else part
        digests = b"".join([hashlib.blake2b(key.encode(), digest_size=8).digest() for key in texts])
        hashes[start : start + len(texts)] = np.frombuffer(digests, dtype="<u8")
    return hashes


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
    if len(keys) > _PART_KEYS:
        return sorted_by_draw(seed, epoch, stream, keys)[:]
    return np.argsort(bits(seed, epoch, stream, keys)[:, 0], kind="stable")


def sorted_by_draw(seed: int, epoch: int, stream: Stream, keys: Keys | int) -> LazyParts:
    """Returns what `permutation` does, but sorts a part when it is read. Takes 4 bytes a key until then.

    keys: uint64 [N], or N for the keys 0 to N - 1, which take no memory. At most 2^32.
    """
    # Draws are spread evenly: their upper bits cut the keys into buckets, of which each is sorted by itself.
    count = keys if isinstance(keys, int) else len(keys)
    num_bits = min(count // _BUCKET_KEYS, _MOST_BUCKETS - 1).bit_length()
    sizes = np.zeros(1 << num_bits, dtype=np.int64)
    for _, part in _parts(keys):
        sizes += np.bincount(_buckets(bits(seed, epoch, stream, part), num_bits), minlength=len(sizes))
    members, ends = np.empty(count, dtype=np.uint32), np.cumsum(sizes) - sizes
    for start, part in _parts(keys):
        buckets = _buckets(bits(seed, epoch, stream, part), num_bits)
        found = np.bincount(buckets, minlength=len(sizes))
        places = np.arange(len(part)) + np.repeat(ends - (np.cumsum(found) - found), found)
        members[places] = np.argsort(buckets, kind="stable") + start
        ends += found  # of the buckets, as far as they are filled

    def bucket(number: int) -> npt.NDArray[np.int64]:
        positions = members[ends[number] - sizes[number] : ends[number]].astype(np.int64)
        mine = positions.astype(np.uint64) if isinstance(keys, int) else keys[positions]
        return positions[np.argsort(bits(seed, epoch, stream, mine)[:, 0], kind="stable")]

    return LazyParts(ends, bucket)


def _parts(keys: Keys | int) -> Iterator[tuple[int, Keys]]:
    """Yields (position of its first key, part of the keys)."""
    count = keys if isinstance(keys, int) else len(keys)
    for start in range(0, count, _PART_KEYS):
        stop = min(start + _PART_KEYS, count)
        yield start, np.arange(start, stop, dtype=np.uint64) if isinstance(keys, int) else keys[start:stop]


def _buckets(draws: Keys, num_bits: int) -> npt.NDArray[np.uint16]:
    """Returns uint16 [N]: the upper bits of draws, uint64 [N, 1]; at most 16."""
    return (draws[:, 0] >> np.uint64(48)).astype(np.uint16) >> np.uint16(16 - num_bits)
