"""Reads and decodes a unit of images, in a Ray task on any CPU. Images that cannot be used are reported, not raised."""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.cluster.ray_tasks import task_attempt
from pipeline.core.errors import SourceError
from pipeline.dataset.image_codec import MAX_IMAGE_BYTES
from pipeline.dataset.isolated_calls import Died, call_isolated
from pipeline.ingestion.image_check import ImageHandling, Refused, Stored, check_image
from pipeline.ingestion.source_reader import gather
from pipeline.loader.decode import CropGeometry, check_decoder, decode_batch
from pipeline.loader.transform import Transform
from pipeline.storage import files

Arrays = dict[str, npt.NDArray[Any]]
UNIT_IMAGES = 128  # that are read, decoded and predicted together


@dataclass(frozen=True)
class DecodeTask:
    """A Ray Data function that decodes units.

    images: an ObjectRef of the table of `find_images`. hashed: whether the rows say which contents the images have.
    """

    images: Any
    view: Transform
    hashed: bool = False

    def __call__(self, batch: Arrays) -> Arrays:
        """Returns one row for one unit, so that Ray cannot split it.

        batch: {"id": int64 [1]}. The row: unit: int64 [1]; image: uint8 [1, N, S, S, 3]; error: str [1], a JSON list
        of N messages, "" for a usable image; content: str [1], a JSON list of N contents as of `content_of`, or "[]".
        """
        import ray

        unit = int(batch["id"][0])
        check_decoder(self.view.decoder)
        rows = ray.get(self.images).slice(unit * UNIT_IMAGES, UNIT_IMAGES)
        # A task whose process has died is tried again by Ray. It may have died of an image: find out which.
        encoded, errors = read_unit(rows)
        contents = [content_of(data) for data in encoded] if self.hashed else []
        images, errors = _decode(encoded, rows, self.view, errors, is_isolated=task_attempt() > 0)
        texts = {"error": np.array([json.dumps(errors)]), "content": np.array([json.dumps(contents)])}
        return {"unit": np.array([unit]), "image": images[None], **texts}


def content_of(data: Any) -> str | None:
    """Returns 16 hex digits that tell the bytes of an image from those of others, None for no bytes (BLAKE2b)."""
    return None if data is None else hashlib.blake2b(data, digest_size=8).hexdigest()


def decode_unit(
    images: pa.Table, view: Transform, is_isolated: bool = False
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Returns (pixels, errors): uint8 [N, S, S, 3], black for an unusable image, and N messages, "" for a usable one.

    images: some rows of the table of `find_images`. is_isolated: decodes in child processes; an image on which two die
    is unusable. The pixels are the same.
    """
    encoded, errors = read_unit(images)
    return _decode(encoded, images, view, errors, is_isolated)


def read_unit(images: pa.Table) -> tuple[list[Any], list[str]]:
    """Returns (bytes, errors) of some rows of the table of `find_images`; None and a message for an unusable one."""
    encoded: list[Any] = [None] * images.num_rows
    known = zip(images["error"].to_pylist(), images["length"].to_pylist(), strict=True)
    errors = [error or ("" if length else "empty: zero bytes") for error, length in known]
    for position, data in _read(images, errors):
        encoded[position] = data
    return encoded, errors


def _decode(
    encoded: list[Any], images: pa.Table, view: Transform, errors: list[str], is_isolated: bool
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    return (_decode_isolated if is_isolated else decode_images)(encoded, images["name"].to_pylist(), view, errors)


def decode_images(
    encoded: list[Any], names: list[str], view: Transform, errors: list[str] | None = None
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Returns (pixels, errors) of encoded images, as `decode_unit` does.

    encoded: the bytes of each file, JPEG, PNG or another format that PIL reads. errors: known already, "" for images
    that are to be decoded.
    """
    errors = list(errors or [""] * len(encoded))
    stored: dict[int, Stored] = {}
    for position, (data, name) in enumerate(zip(encoded, names, strict=True)):
        if errors[position]:
            continue
        found = check_image(data, name, ImageHandling("header"))
        if isinstance(found, Refused):
            errors[position] = found.reason
        else:
            stored[position] = found
    pixels = np.zeros((len(encoded), view.size_px, view.size_px, 3), dtype=np.uint8)
    positions = sorted(stored)
    if positions:
        sizes = np.array([(stored[n].height, stored[n].width) for n in positions])
        views = CropGeometry.centre_crops(view.size_px, view.resize_px, sizes)
        corrupt: set[int] = set()
        data = [stored[n].data for n in positions]
        pixels[positions] = decode_batch(data, views, str, view.decoder, corrupt=corrupt)
        for index in corrupt:
            errors[positions[index]] = "damaged: the image can't be decoded in full"
    return pixels, errors


def _decode_isolated(
    encoded: list[Any], names: list[str], view: Transform, errors: list[str]
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    def decode(position: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)  # a forked child has none of the threads that torch counts on
        one = slice(position, position + 1)
        return decode_images(encoded[one], names[one], view, errors[one])

    pixels = np.zeros((len(encoded), view.size_px, view.size_px, 3), dtype=np.uint8)
    for position, result in enumerate(call_isolated(range(len(encoded)), decode)):
        if isinstance(result, Died):
            errors[position] = result.reason
        else:
            pixels[position], errors[position] = result[0][0], result[1][0]
    return pixels, errors


def _read(images: pa.Table, errors: list[str]) -> Iterator[tuple[int, Any]]:
    """Yields (position, bytes) of the images that can be read, in any order; sets `errors` for the others.

    A storage that does not answer at all is raised: then no image is at fault.
    """
    for position, length in enumerate(images["length"].to_pylist()):
        if length > MAX_IMAGE_BYTES:
            errors[position] = f"too large: {length:,} bytes, the limit is {MAX_IMAGE_BYTES:,}"
    done = set()
    try:
        for position, data in gather(images):
            done.add(position)
            yield position, data
    except (OSError, SourceError):
        # One file that is gone or forbidden fails a request for many. Read the rest one by one to find out which.
        for position, image in enumerate(images.to_pylist()):
            if position not in done and not errors[position]:
                try:
                    data = files.read_range(image["object"], image["offset"], image["length"])
                except (OSError, SourceError) as error:
                    errors[position] = f"can't be read: {error}"
                else:
                    yield position, data
