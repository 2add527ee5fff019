"""The members of tars, where they lie: name, offset and length by ranged reads of the headers alone.

Each header says where the next one is, so a tar can only be walked from its start; over a network that is a wait for
each member. A large remote tar is therefore walked from many places at once: at each, the first block that is a
header (by its checksum) is taken on trust, and a walk counts only from where the walk before it really ended. Where
trust was misplaced (image bytes that look like a header), that stretch is walked again from the right place. So the
result is exactly that of a walk from the start.
"""

import io
import itertools
import tarfile
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.cluster.ray_tasks import map_tables
from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress, silent
from pipeline.storage import files

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("header", pa.int64()),  # where its header begins, extended headers included
        ("next", pa.int64()),  # where the next header is
        ("content", pa.binary()),  # of members with a suffix in `keep`
    ]
)
STRETCH_BYTES = 64 << 20
_BLOCK = tarfile.BLOCKSIZE
_SMALL_WINDOW, _LARGE_WINDOW = 4 << 10, 1 << 20
_MAX_KEPT_BYTES = 4096


@dataclass(frozen=True)
class Tar:
    """A tar of `length` bytes at `offset` of the object at URI `object`; `name` is for messages."""

    name: str
    object: str
    offset: int
    length: int


@dataclass(frozen=True)
class _Stretch:
    """What one walk covers: headers that begin in [start, stop) of the tar. The first walk starts on a header."""

    tar: Tar
    start: int
    stop: int
    trusted: bool
    keep: tuple[str, ...]


class _Window(io.RawIOBase):
    """A file of ranged reads: small ones for headers far apart, growing ones where everything is read."""

    def __init__(self, tar: Tar) -> None:
        self._tar, self._position = tar, 0
        self._data, self._start, self._size = memoryview(b""), 0, _SMALL_WINDOW

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._tar.length}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; fewer at the end alone."""
        size = max(0, min(size if size >= 0 else self._tar.length, self._tar.length - self._position))
        if not size:
            return b""
        if not self._start <= self._position <= self._position + size <= self._start + len(self._data):
            near = self._position - (self._start + len(self._data)) < _SMALL_WINDOW
            self._size = min(_LARGE_WINDOW, 2 * self._size) if near else _SMALL_WINDOW
            length = min(max(size, self._size), self._tar.length - self._position)
            self._data = files.read_range(self._tar.object, self._tar.offset + self._position, length)
            self._start = self._position
        start = self._position - self._start
        self._position += size
        return bytes(self._data[start : start + size])


def scan(tars: list[Tar], keep: tuple[str, ...] = (), progress: Progress = silent) -> list[pa.Table]:
    """Returns a table of SCHEMA for each tar; offsets count from the object's start. Needs no Ray, but uses it.

    keep: suffixes of small members whose content is wanted. Raises SourceError if a tar is damaged, truncated, or has
    a member that is a link, a device, or points outside.
    """
    stretches = [stretch for tar in tars for stretch in _stretches(tar, keep)]
    total = sum(tar.length for tar in tars)

    def done(count: int) -> None:
        progress("index", sum(stretch.stop - stretch.start for stretch in stretches[:count]), total)

    found = map_tables(_walk_trustingly, stretches, SCHEMA, done)
    by_tar: dict[Tar, list[tuple[_Stretch, pa.Table]]] = {}
    for stretch, table in zip(stretches, found, strict=True):
        by_tar.setdefault(stretch.tar, []).append((stretch, table))
    return [_absolute(tar, _joined(by_tar[tar])) for tar in tars]


def _stretch_bytes(tar: Tar) -> int:
    # On a disk there is no wait to hide.
    return max(1, tar.length) if files.is_local(tar.object) else STRETCH_BYTES


def _stretches(tar: Tar, keep: tuple[str, ...]) -> list[_Stretch]:
    count = max(1, tar.length // _stretch_bytes(tar))
    cuts = [tar.length * part // count // _BLOCK * _BLOCK for part in range(count)] + [tar.length]
    return [
        _Stretch(tar, start, stop, number == 0, keep) for number, (start, stop) in enumerate(itertools.pairwise(cuts))
    ]


def _walk_trustingly(stretch: _Stretch) -> pa.Table:
    """Walks one stretch; if it started in the wrong place, whatever came of it will be thrown away."""
    if stretch.trusted:
        return _walk(stretch)
    start = _first_header(stretch)
    if start is None:
        return SCHEMA.empty_table()
    try:
        return _walk(replace(stretch, start=start))
    except SourceError:
        return SCHEMA.empty_table()


def _first_header(stretch: _Stretch) -> int | None:
    window = _Window(stretch.tar)
    for position in range(stretch.start, stretch.stop, _BLOCK):
        window.seek(position)
        block = window.read(_BLOCK)
        if block[257:262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
            except tarfile.HeaderError:
                continue
            return position
    return None


def _walk(stretch: _Stretch) -> pa.Table:
    tar, window = stretch.tar, _Window(stretch.tar)
    window.seek(stretch.start)
    rows: list[tuple[object, ...]] = []
    try:
        with tarfile.open(fileobj=window, mode="r:") as archive:
            while (info := archive.next()) is not None and info.offset < stretch.stop:
                archive.members = []  # type: ignore[attr-defined]  # or it would keep them all
                name = "" if info.isdir() else _safe_name(info, tar.name)
                after, content = archive.offset, _content(info, archive, stretch)
                rows.append((name, info.offset_data, info.size, info.offset, after, content))
                if after >= stretch.stop and stretch.stop < tar.length:
                    break
            if info is None:
                _check_end(window, archive.offset, tar)
    except tarfile.TarError as error:
        raise SourceError(f"{tar.name}: the archive is truncated or damaged ({error}); download it again") from error
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
        if rows
        else [pa.array([], field.type) for field in SCHEMA],
        schema=SCHEMA,
    )


def _content(info: tarfile.TarInfo, archive: tarfile.TarFile, stretch: _Stretch) -> bytes | None:
    if not stretch.keep or not info.name.endswith(stretch.keep) or info.size > _MAX_KEPT_BYTES:
        return None
    stream = archive.extractfile(info)
    return stream.read() if stream else None


def _check_end(window: _Window, offset: int, tar: Tar) -> None:
    # tarfile ends in silence at a damaged header and at a cut between two members; a whole archive ends in zeros.
    window.seek(offset)
    block = window.read(_BLOCK)
    if not block:
        raise SourceError(f"{tar.name}: the archive is truncated (no end-of-archive mark); download it again")
    if block.strip(b"\0"):
        raise SourceError(
            f"{tar.name}: the archive is truncated or damaged (no header at byte {offset:,}); download it again"
        )


def _joined(walks: list[tuple[_Stretch, pa.Table]]) -> pa.Table:
    """Returns the members of one tar: of each walk what comes after the end of the one before."""
    parts, position = [], 0
    for stretch, table in walks:
        if position >= stretch.stop:
            continue
        headers = table["header"].to_pylist()
        if position in headers:
            part = table.slice(headers.index(position))
        else:
            part = _walk(replace(stretch, start=position, trusted=True))
        parts.append(part)
        if part.num_rows:
            position = part["next"][-1].as_py()
        elif stretch.stop < stretch.tar.length:
            break  # the end mark
    return pa.concat_tables(parts)


def _absolute(tar: Tar, table: pa.Table) -> pa.Table:
    table = table.filter(pa.compute.not_equal(table["name"], ""))
    return table.set_column(1, "offset", pa.compute.add(table["offset"], tar.offset))


def _safe_name(info: tarfile.TarInfo, uri: str) -> str:
    if not info.isfile():
        raise SourceError(f"{uri}: member {info.name!r} is a link or a device; an archive of images holds files only")
    name = info.name.removeprefix("./")
    if name.startswith("/") or ".." in name.split("/"):
        raise SourceError(f"{uri}: member {info.name!r} points outside the archive; don't use this archive")
    return name
