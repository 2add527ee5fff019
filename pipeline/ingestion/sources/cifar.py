"""CIFAR-10 as published (https://www.cs.toronto.edu/~kriz/cifar.html): the binary archive and the Python archive.

A binary record is one byte for the label and 3,072 bytes for the image: 32x32 values of R, then G, then B. The batches
of the Python archive are rewritten into the spool folder as such records, so both archives give the same data set.
Pickles are read by an unpickler that knows arrays only: a pickle of an untrusted archive could run any code.
"""

import io
import pickle
import re
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources.index import Index, sample_table
from pipeline.ingestion.sources.members import Listing, Member
from pipeline.storage import files

BINARY_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
BINARY_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
BINARY_BYTES = 170_052_171
PYTHON_MD5 = "c58f30108f718f92721af3b95e74349a"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXEL_BYTES = 3 * 32 * 32
RECORD_BYTES = 1 + PIXEL_BYTES

_BINARY_BATCH = re.compile(r"(?:^|/)((?:data_batch_\d+|test_batch)\.bin)$")
_PYTHON_BATCH = re.compile(r"(?:^|/)(data_batch_\d+|test_batch)$")


def matches_binary(listing: Listing) -> bool:
    """Whether the source holds `data_batch_N.bin`."""
    return any(_BINARY_BATCH.search(name) for name in listing.names)


def matches_python(listing: Listing) -> bool:
    """Whether the source holds `data_batch_N` pickles."""
    return any(_PYTHON_BATCH.search(name) for name in listing.names)


def build_binary_index(listing: Listing, name: str, md5: str | None) -> Index:
    """Returns the index of the binary archive. Raises SourceError if it is damaged or has another MD5.

    md5: the expected MD5 (hex), "any" for no check, None for that of the published archive.
    """
    found = ((row, _BINARY_BATCH.search(each)) for row, each in enumerate(listing.names))
    batches = {match.group(1)[:-4]: listing.member(row) for row, match in found if match}
    index = _index(name, "cifar-binary", batches, listing)
    check_md5(listing, md5 or BINARY_MD5)
    return index


def build_python_index(listing: Listing, name: str, md5: str | None, spool: str) -> Index:
    """Returns the index of the Python archive, and writes its batches to `spool` as binary records.

    md5, errors: see `build_binary_index`.
    """
    batches = {}
    for row, each in enumerate(listing.names):
        if match := _PYTHON_BATCH.search(each):
            place = f"{listing.uri}: {each}"
            batch = records(unpickled(listing.member(row).read(), place), place)
            uri = files.join(spool, match.group(1) + ".bin")
            files.write_bytes(uri, batch)
            batches[match.group(1)] = Member(each, uri, 0, len(batch))
    index = _index(name, "cifar-python", batches, listing)
    check_md5(listing, md5 or PYTHON_MD5)
    return index


def check_md5(listing: Listing, expected: str) -> None:
    """Raises SourceError if a compressed archive has another MD5 (hex) than expected. "any": no check."""
    # Called after the content was read, so that the message for a truncated or hostile archive says so.
    if expected != "any" and listing.md5 is not None and listing.md5 != expected:
        raise SourceError(
            f"{listing.uri}: md5 is {listing.md5}, the published archive's is {expected}; download it again, "
            f"or pass --md5 {listing.md5} if you know where it comes from"
        )


def _index(name: str, layout: str, batches: dict[str, Member], listing: Listing) -> Index:
    splits = {
        "train": {batch: member for batch, member in batches.items() if batch != "test_batch"},
        "val": {batch: member for batch, member in batches.items() if batch == "test_batch"},
    }
    for split, members in splits.items():
        if not members:
            raise SourceError(f"{name}: the archive lacks its {split} batches; download it again")
    tables = {split: record_table(members) for split, members in splits.items()}
    others = len(listing) - len(batches)
    ignored = {"other files": others} if others else {}
    return Index(name, layout, CLASSES, "cifar", tables, listing.fingerprint, ignored={**ignored, **listing.ignored})


def record_table(batches: dict[str, Member], num_classes: int = len(CLASSES), label_bytes: int = 1) -> pa.Table:
    """Returns a table of INDEX_SCHEMA for batches of binary records; keys are `BATCH/NUMBER`.

    label_bytes: before the pixels of each record; the last of them is the label. Raises SourceError if a batch isn't
    made of whole records, or if a label isn't below `num_classes`.
    """
    keys, labels, objects, offsets = [], [], [], []
    record_bytes = label_bytes + PIXEL_BYTES
    for batch, member in batches.items():
        num_records, rest = divmod(member.length, record_bytes)
        if rest or not num_records:
            raise SourceError(
                f"{member.name}: {member.length} bytes is no whole number of {record_bytes}-byte records; "
                "the batch is truncated: download the archive again"
            )
        batch_labels = np.frombuffer(member.read(), dtype=np.uint8)[label_bytes - 1 :: record_bytes]
        if batch_labels.max() >= num_classes:
            raise SourceError(
                f"{member.name}: label {batch_labels.max()} is not below {num_classes}; not CIFAR-{num_classes}"
            )
        keys += [f"{batch}/{number:05d}" for number in range(num_records)]
        labels += batch_labels.tolist()
        objects += [member.object] * num_records
        offsets += [member.offset + number * record_bytes + label_bytes for number in range(num_records)]
    return sample_table(keys, labels, objects, offsets, [PIXEL_BYTES] * len(keys))


def _latin1(text: Any, encoding: Any) -> bytes:
    """Does what `_codecs.encode` does in numpy's pickles of protocol 2, and nothing else."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("_codecs.encode with other arguments than numpy's")
    return text.encode("latin1")


def _numpy_globals() -> dict[tuple[str, str], Any]:
    # The names in pickles of numpy arrays, of any version of numpy and any protocol.
    from numpy._core import multiarray, numeric

    return {
        ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
        ("numpy._core.numeric", "_frombuffer"): numeric._frombuffer,  # type: ignore[attr-defined]
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and numpy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns a name that arrays need. Raises UnpicklingError for any other, before it is imported."""
        allowed = _numpy_globals()
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return allowed[module, name]


def unpickled(data: bytes, place: str) -> dict[str, Any]:
    """Returns the dictionary in a pickle of CIFAR, with keys as str. place: for messages. Raises SourceError."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a hostile pickle can raise anything
        raise SourceError(f"{place}: the pickle is refused, {error}; use the binary archive instead") from error
    if not isinstance(batch, dict):
        raise SourceError(f"{place}: the pickle holds no dictionary; not a CIFAR batch")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in batch.items()}


def records(batch: dict[str, Any], place: str, label_key: str = "labels", num_classes: int = len(CLASSES)) -> bytes:
    """Returns an unpickled batch as binary records of one label byte. place: for messages. Raises SourceError."""
    what = f"not a CIFAR-{num_classes} batch"
    pixels, labels = batch.get("data"), batch.get(label_key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXEL_BYTES,):
        raise SourceError(f"{place}: 'data' is not uint8 [N, {PIXEL_BYTES}]; {what}")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(l in range(num_classes) for l in labels):
        raise SourceError(
            f"{place}: {label_key!r} is not a list of {len(pixels)} classes in 0..{num_classes - 1}; {what}"
        )
    return np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1).tobytes()
