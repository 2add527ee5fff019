"""Reads and checks the images of a shard in child processes, so that one on which a process dies costs that image."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from pipeline.dataset.image_codec import Buffer
from pipeline.dataset.isolated_calls import IMAGE_SECONDS, Died, call_isolated
from pipeline.ingestion.image_check import Refused, Stored
from pipeline.ingestion.source_reader import gather

_CHUNK_BYTES = 32 << 20  # of images that are read before they are checked

Checked = Stored | Refused
Check = Callable[[Buffer, int], Checked]  # of the bytes of an image and its position among the samples
Image = tuple[int, Buffer]


def check_isolated(samples: pa.Table, check: Check, unreadable: dict[int, str]) -> Iterator[tuple[Image, Checked]]:
    """Yields ((position, stored bytes), outcome) of each row of an index table, as `gather` and `check` would.

    An image on which two processes die is refused. The outcomes are those of `check` else. unreadable: see `gather`.
    """

    def call(image: Image) -> tuple[Checked, bool]:
        outcome = check(image[1], image[0])
        if isinstance(outcome, Stored) and outcome.data is image[1]:
            return _with_data(outcome, b""), True  # the parent has the bytes
        return outcome, False

    for positions in _chunks(samples["length"].to_pylist()):
        # The threads that read have ended before a child is forked: a lock that one held would never be released.
        reasons: dict[int, str] = {}
        images = [(positions[row], data) for row, data in gather(samples.take(pa.array(positions)), reasons)]
        unreadable.update({positions[row]: reason for row, reason in reasons.items()})
        for image, result in zip(images, call_isolated(images, call, IMAGE_SECONDS), strict=True):
            if isinstance(result, Died):
                yield image, Refused(result.reason, hashlib.sha256(image[1]).hexdigest())
                continue
            outcome, is_unchanged = result
            if isinstance(outcome, Stored) and is_unchanged:
                outcome = _with_data(outcome, image[1])
            yield image, outcome


def _chunks(lengths: Sequence[int]) -> Iterator[list[int]]:
    chunk: list[int] = []
    total = 0
    for position, length in enumerate(lengths):
        if chunk and total + length > _CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(position)
        total += length
    if chunk:
        yield chunk


def _with_data(image: Stored, data: Buffer) -> Stored:
    return Stored(data, image.height, image.width, image.source_sha256, image.repair, image.facts)
