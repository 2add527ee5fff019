"""The journal of a removal, beside the versions: it is carried out step by step, and goes on after a kill.

1. `begin` writes down which keys are removed. From now on no version can be published in the folder.
2. New shards are written beside the old ones, under new names; all else that changes is staged in the journal's folder,
   and hashes of the bytes that are removed, too.
3. `write_ready` says what is to be copied and deleted. Before it nothing that exists has changed, and the removal is
   planned again.
4. Hashes, manifests and other files are copied to their places, bases first, then the old shards are deleted. Each step
   may be repeated, and a version can be read at every moment.
5. The journal keeps the hashes of all removals, and their keys, until a search finds none of the bytes.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from pipeline.core.errors import StorageError
from pipeline.dataset.version import REWRITING
from pipeline.storage import files
from pipeline.versions.removal.traces import Traces, traces_of

_KEYS_NAME = "removed-keys.json"
_BATCH_BYTES = 8 << 20
_RESTORE = "restore the folder _versions from a copy, or run the same command by the release that has written it"
_BEGIN_AGAIN = "delete it, and run `versions forget` again with all keys"
_Form = TypeVar("_Form")


class _Keys(msgspec.Struct, forbid_unknown_fields=True):
    """The content of `plan.json` and of `removed-keys.json`."""

    keys: list[str]


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What remains to be done once all that is new has been written. Names are below the folder of the versions."""

    copies: Sequence[str]
    """Staged files, in the order in which they are copied."""

    pages: Sequence[str]
    """Versions whose pages are made anew."""

    deletions: Sequence[str]
    """Files that are replaced."""

    rows: Sequence[str]
    """SPLIT/KEY of each row that is removed."""

    versions: dict[str, str]
    """{name of each version that is rewritten: its new digest}."""


@dataclass(frozen=True)
class Journal:
    """The journal of a removal from the versions in a folder."""

    folder: str

    @property
    def place(self) -> str:
        """URI of the journal's folder."""
        return files.join(self.folder, *REWRITING[:-1])

    def staged(self, *names: str) -> str:
        """Returns the URI at which a file or folder below the folder of the versions is staged."""
        return files.join(self.place, "new", *names)

    def begin(self, keys: Iterable[str]) -> None:
        """Writes down which keys are removed, and forgets what an interrupted removal has staged."""
        files.write_json(files.join(self.folder, *REWRITING), {"keys": sorted(keys)})
        files.delete_tree(self.staged())

    def begun(self) -> list[str] | None:
        """Returns the keys of a removal that was interrupted, None if there is none.

        This and the methods below raise StorageError if a file of the journal is damaged or of another release.
        """
        plan = self._read("plan.json", _Keys, _BEGIN_AGAIN)
        return None if plan is None else plan.keys

    def write_ready(self, ready: Ready) -> None:
        """Says what remains to be done."""
        files.write_json(files.join(self.place, "ready.json"), msgspec.to_builtins(ready))

    def ready(self) -> Ready | None:
        """Returns what remains to be done, None unless `write_ready` was called."""
        ready = self._read("ready.json", Ready, _RESTORE)
        names = () if ready is None else (*ready.copies, *ready.pages, *ready.deletions)
        if strays := [name for name in names if not _is_below(name)]:
            place = files.join(self.place, "ready.json")
            raise StorageError(f"{place}: damaged: {strays[0]!r} is no file below {self.folder}; {_RESTORE}")
        return ready

    def copy(self, ready: Ready) -> None:
        """Copies what was staged to its place."""
        for name in ready.copies:
            try:
                data = files.read_bytes(self.staged(name))
            except FileNotFoundError as error:
                raise StorageError(f"{self.staged(name)}: is missing; {_RESTORE}") from error
            files.write_bytes(files.join(self.folder, name), data)

    def delete(self, ready: Ready) -> None:
        """Deletes what is replaced. Afterwards the versions are whole again, and may be built on."""
        files.delete_files(self.folder, list(ready.deletions))
        files.delete_files(self.place, ["ready.json"])
        files.delete_files(self.place, ["plan.json"])  # last: alone it is planned again, and nothing is found
        files.delete_tree(self.staged())

    def give_up(self) -> None:
        """Removes the plan of a removal of which nothing was carried out, but no traces of an earlier one."""
        files.delete_tree(self.staged())
        files.delete_files(self.place, ["plan.json"])

    def end(self) -> None:
        """Removes the journal."""
        files.delete_tree(self.place)

    def removed_keys(self) -> set[str]:
        """Returns KEY and SPLIT/KEY of all images that are removed, and whose bytes no search has missed yet."""
        found = self._read(_KEYS_NAME, _Keys, _RESTORE)
        return set() if found is None else set(found.keys)

    def stage_removed_keys(self, keys: Iterable[str]) -> str:
        """Stages the keys of images, for `removed_keys`, beside those that are there. Returns the name for `copies`."""
        name = "/".join((*REWRITING[:-1], _KEYS_NAME))
        files.write_json(self.staged(name), {"keys": sorted(self.removed_keys() | set(keys))})
        return name

    def stage_traces(self, kind: str, removed: Iterable[bytes]) -> list[str]:
        """Stages the hashes of byte strings that will be removed, to be searched for. Returns the names for `copies`.

        Files are named after their content, so that those of an earlier removal stay.
        """
        names = []
        for batch in _batches(removed):
            traces = traces_of(batch)
            packed = np.packbits(traces.known_blocks)
            arrays: dict[str, np.ndarray[Any, Any]] = {
                "blocks": packed,
                "pixels": traces.of_pixels,
                "headers": traces.of_headers,
            }
            data = _npz(arrays)
            name = "/".join((*REWRITING[:-1], "traces", f"{kind}-{hashlib.sha256(data).hexdigest()}.npz"))
            files.write_bytes(self.staged(name), data)
            names.append(name)
        return names

    def traces(self, kind: str) -> list[Traces]:
        """Returns the hashes of this kind of all that was removed."""
        place = files.join(self.place, "traces")
        found = [name for name, _ in files.list_files(place) if name.startswith(f"{kind}-")]
        return [_traces(files.join(place, name)) for name in found]

    def _read(self, name: str, form: type[_Form], remedy: str) -> _Form | None:
        try:
            return files.read_record(files.join(self.place, name), form, remedy)
        except FileNotFoundError:
            return None


def _is_below(name: str) -> bool:
    """Whether a name from `ready.json` is of a file below the folder of the versions."""
    return bool(name) and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def _batches(removed: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for each in removed:
        batch.append(each)
        size += len(each)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _npz(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _traces(uri: str) -> Traces:
    """Returns the hashes in a file that is named after the SHA-256 of its content. Raises StorageError."""
    data = files.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() not in uri:
        raise StorageError(f"{uri}: damaged (SHA-256); {_RESTORE}")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Traces(np.unpackbits(arrays["blocks"]).view(bool), arrays["pixels"], arrays["headers"])
