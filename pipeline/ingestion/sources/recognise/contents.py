"""Images by their first bytes, where a file's name doesn't tell what it is: no suffix, `.JPG.1`."""

from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.ingestion.sources.recognise.file_kinds import is_image, is_known, kind_of
from pipeline.storage import files

HEAD_BYTES = 32
_THREADS = 16
# Of so many files of one suffix only a sample is looked at, if they are all alike: a request costs time and money.
_MOST_OF_A_KIND, _SAMPLE = 10_000, 500
_STARTS: tuple[bytes, ...] = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"8BPS",
)
_STARTS += (b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL ", b"\xff\x4f\xff\x51")
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")
_BITMAP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes of the header after that of the file


def looks_like_image(head: bytes) -> bool:
    """Whether a file begins as an image does. head: its first HEAD_BYTES, or all of a shorter one."""
    if head.startswith(_STARTS):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return True
    return head[:2] == b"BM" and head[6:10] == bytes(4) and int.from_bytes(head[14:18], "little") in _BITMAP_HEADERS


def find_images(
    names: Sequence[str],
    objects: Sequence[str],
    offsets: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    unreadable: Container[int],
) -> list[int]:
    """Returns the indices of the files that are images by their names or, where these don't tell, by their content.

    All columns have the same length. A file that can't be read counts as an image unless its name says otherwise.
    """
    found, by_kind = [], dict[str, list[int]]()
    for row, name in enumerate(names):
        if is_image(name):
            found.append(row)
        elif not is_known(kind := kind_of(name)):
            if row in unreadable:
                found.append(row)
            elif lengths[row]:
                by_kind.setdefault(kind, []).append(row)

    def look(row: int) -> bool:
        length = min(HEAD_BYTES, int(lengths[row]))
        return looks_like_image(bytes(files.read_range(objects[row], int(offsets[row]), length)))

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="sniff") as pool:
        for rows in by_kind.values():
            found += _images_of_one_kind(rows, lambda chosen: list(pool.map(look, chosen)))
    return sorted(found)


def _images_of_one_kind(rows: list[int], look: Any) -> list[int]:
    """Returns the images among files of one suffix. look: whether each of some rows is an image."""
    if len(rows) > _MOST_OF_A_KIND:
        sample = look(rows[:: len(rows) // _SAMPLE])
        if all(sample) or not any(sample):
            return rows if all(sample) else []
    return [row for row, is_one in zip(rows, look(rows), strict=True) if is_one]
