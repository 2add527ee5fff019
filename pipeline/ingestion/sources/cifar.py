"""CIFAR-10 as published: the binary archive, and the Python archive without trusting its pickles.

https://www.cs.toronto.edu/~kriz/cifar.html. A binary record is one label byte and 3,072 bytes: 32x32 of R, then
G, then B. The Python archive's batches are rewritten as such records into the spool folder, so both archives
give the same keys, the same rows and the same data set.
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
    """Whether the listing holds `data_batch_N.bin`."""
    return any(_BINARY_BATCH.search(name) for name in listing.names)


def matches_python(listing: Listing) -> bool:
    """Whether the listing holds `data_batch_N` pickles."""
    return any(_PYTHON_BATCH.search(name) for name in listing.names)


def build_binary_index(listing: Listing, name: str, md5: str | None) -> Index:
    """Returns the index of the binary archive.

    md5: the expected one, "any" for no check, None for the published one. Raises SourceError on damage.
    """
    found = ((row, _BINARY_BATCH.search(each)) for row, each in enumerate(listing.names))
    batches = {match.group(1)[:-4]: listing.member(row) for row, match in found if match}
    index = _index(name, "cifar-binary", batches, listing)
    _check_md5(listing, md5 or BINARY_MD5)
    return index


def build_python_index(listing: Listing, name: str, md5: str | None, spool: str) -> Index:
    """Returns the index of the Python archive, whose batches are written to `spool` as binary records."""
    batches = {}
    for row, each in enumerate(listing.names):
        if match := _PYTHON_BATCH.search(each):
            records = _records(listing.member(row).read(), f"{listing.uri}: {each}")
            uri = files.join(spool, match.group(1) + ".bin")
            files.write_bytes(uri, records)
            batches[match.group(1)] = Member(each, uri, 0, len(records))
    index = _index(name, "cifar-python", batches, listing)
    _check_md5(listing, md5 or PYTHON_MD5)
    return index


def _check_md5(listing: Listing, expected: str) -> None:
    # After the content was looked at, so that a truncated or hostile archive is called that.
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
    ignored = len(listing) - len(batches)
    return Index(name, layout, CLASSES, "cifar", tables, listing.fingerprint, num_ignored=ignored)


def record_table(batches: dict[str, Member], num_classes: int = len(CLASSES)) -> pa.Table:
    """Returns the index table of batches of binary records; a key is `BATCH/NUMBER`."""
    keys, labels, objects, offsets = [], [], [], []
    for batch, member in batches.items():
        num_records, rest = divmod(member.length, RECORD_BYTES)
        if rest or not num_records:
            raise SourceError(
                f"{member.name}: {member.length} bytes is no whole number of {RECORD_BYTES}-byte records; "
                "the batch is truncated: download the archive again"
            )
        batch_labels = np.frombuffer(member.read(), dtype=np.uint8)[::RECORD_BYTES]
        if batch_labels.max() >= num_classes:
            raise SourceError(f"{member.name}: label {batch_labels.max()} is not below {num_classes}; not CIFAR-10")
        keys += [f"{batch}/{number:05d}" for number in range(num_records)]
        labels += batch_labels.tolist()
        objects += [member.object] * num_records
        offsets += [member.offset + number * RECORD_BYTES + 1 for number in range(num_records)]
    return sample_table(keys, labels, objects, offsets, [PIXEL_BYTES] * len(keys))


def _latin1(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("_codecs.encode with other arguments than numpy's")
    return text.encode("latin1")


def _numpy_globals() -> dict[tuple[str, str], Any]:
    # What numpy's own arrays name when pickled, by any version of numpy and any protocol; nothing else.
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
    """Unpickles containers, numbers, strings and numpy arrays; refuses every other name before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = _numpy_globals()
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return allowed[module, name]


def _records(data: bytes, place: str) -> bytes:
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a hostile pickle can raise anything; all of it means the same to the user
        raise SourceError(f"{place}: the pickle is refused, {error}; use the binary archive instead") from error
    if not isinstance(batch, dict):
        raise SourceError(f"{place}: the pickle holds no dictionary; not a CIFAR-10 batch")
    values = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    pixels, labels = values.get("data"), values.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXEL_BYTES,):
        raise SourceError(f"{place}: 'data' is not uint8 [N, {PIXEL_BYTES}]; not a CIFAR-10 batch")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(l in range(10) for l in labels):
        raise SourceError(f"{place}: 'labels' is not a list of {len(pixels)} classes in 0..9; not a CIFAR-10 batch")
    return np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1).tobytes()
