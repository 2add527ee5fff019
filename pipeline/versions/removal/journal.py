"""The journal of a removal, beside the versions: it is carried out step by step, and goes on after a kill.

1. `begin` writes down which keys are removed. From now on no version can be published in the folder.
2. New shards are written beside the old ones, under new names; all else that changes is staged in the journal's folder.
3. `write_ready` says what is to be copied and deleted. Before it nothing that exists has changed, and the removal is
   planned again.
4. Manifests and other files are copied to their places, bases first, then the old shards are deleted. Each step may be
   repeated, and a version can be read at every moment.
5. The journal keeps hashes of the removed bytes until a search finds none of them.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.ingestion.changes.removed import REWRITING
from pipeline.storage import files
from pipeline.versions.removal.traces import Traces, traces_of

_BATCH_BYTES = 8 << 20


@dataclass(frozen=True)
class Ready:
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
        """Returns the keys of a removal that was interrupted, None if there is none."""
        plan = self._read("plan.json")
        return None if plan is None else list(plan["keys"])

    def write_ready(self, ready: Ready) -> None:
        """Says what remains to be done."""
        files.write_json(files.join(self.place, "ready.json"), asdict(ready))

    def ready(self) -> Ready | None:
        """Returns what remains to be done, None unless `write_ready` was called."""
        values = self._read("ready.json")
        return None if values is None else Ready(**values)

    def copy(self, ready: Ready) -> None:
        """Copies what was staged to its place."""
        for name in ready.copies:
            files.write_bytes(files.join(self.folder, name), files.read_bytes(self.staged(name)))

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

    def keep_traces(self, name: str, removed: Iterable[bytes]) -> None:
        """Keeps the hashes of removed byte strings, to be searched for. name: of this part of them."""
        for number, batch in enumerate(_batches(removed)):
            traces = traces_of(batch)
            packed = np.packbits(traces.known_blocks)
            arrays: dict[str, np.ndarray[Any, Any]] = {
                "blocks": packed,
                "pixels": traces.of_pixels,
                "headers": traces.of_headers,
            }
            files.write_bytes(files.join(self.place, "traces", f"{name}-{number}.npz"), _npz(arrays))

    def traces(self, prefix: str = "") -> list[Traces]:
        """Returns what `keep_traces` has kept under names that begin so."""
        place = files.join(self.place, "traces")
        found = [name for name, _ in files.list_files(place) if name.startswith(prefix)]
        return [_traces(files.read_bytes(files.join(place, name))) for name in found]

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            values: dict[str, Any] = files.read_json(files.join(self.place, name))
        except FileNotFoundError:
            return None
        return values


def _batches(removed: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for each in removed:
        batch.append(each)
        if sum(map(len, batch)) >= _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _npz(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _traces(data: bytes) -> Traces:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Traces(np.unpackbits(arrays["blocks"]).view(bool), arrays["pixels"], arrays["headers"])
