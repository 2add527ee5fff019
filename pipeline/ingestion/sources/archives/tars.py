"""Lists the members of tars by ranged reads of their headers: name, offset and length of each.

A header tells where the next one is, so a tar has to be walked from its start, and over a network each member costs a
round trip. A large remote tar is therefore walked from many places at once. Each walk starts at the first block that
looks like a header by its checksum. Its members count from the place on at which the walk before it ended; if that
place isn't among its headers (image bytes looked like a header), the stretch is walked again from there. So the result
is exactly that of one walk from the start.
"""

import itertools
import posixpath
import tarfile
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.cluster.ray_tasks import map_tables
from pipeline.core.errors import SourceError
from pipeline.core.progress import Bytes, Progress, silent
from pipeline.ingestion.sources.archives.ranged import Place, RangedFile
from pipeline.storage import files
from pipeline.storage.file_names import escaped, printable

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("header", pa.int64()),  # first byte of its header, extended headers included
        ("next", pa.int64()),  # first byte of the next header
        ("content", pa.binary()),  # only of members with a suffix in `keep`
        ("link", pa.string()),  # of a link: the name of the member that it leads to
        ("damage", pa.string()),  # why the member can't be read, null if it can
    ]
)
STRETCH_BYTES = 64 << 20
_BLOCK = tarfile.BLOCKSIZE
MAX_KEPT_BYTES = 4096
_MOST_HOPS = 8  # from link to link


@dataclass(frozen=True)
class _Stretch:
    """The part of a tar that one walk covers: the headers that begin in [start, stop)."""

    tar: Place
    start: int
    stop: int
    at_header: bool  # whether `start` is known to be the first byte of a header
    keep: tuple[str, ...]


def scan(tars: list[Place], keep: tuple[str, ...] = (), progress: Progress = silent) -> list[pa.Table]:
    """Returns a table of SCHEMA for each tar; offsets count from the start of the object. Uses Ray if it runs.

    keep: suffixes of small members whose content is wanted. A link has the place of the member that it leads to; a link
    to nothing in the tar, or a device, has its `damage`. Raises SourceError if a tar is damaged or truncated, or if a
    member's name points outside the archive.
    """
    stretches = [stretch for tar in tars for stretch in _stretches(tar, keep)]
    total = sum(tar.length for tar in tars)

    def report(count: int) -> None:
        progress("index", Bytes(sum(stretch.stop - stretch.start for stretch in stretches[:count])), Bytes(total))

    found = map_tables(_walk_from_first_header, stretches, SCHEMA, report)
    by_tar: dict[Place, list[tuple[_Stretch, pa.Table]]] = {}
    for stretch, table in zip(stretches, found, strict=True):
        by_tar.setdefault(stretch.tar, []).append((stretch, table))
    return [_absolute(tar, _joined(by_tar[tar])) for tar in tars]


def stretch_bytes(tar: Place) -> int:
    """Returns the bytes of a tar that one walk covers."""
    # On a local disk there are no round trips to hide: one walk.
    return max(1, tar.length) if files.is_local(tar.object) else STRETCH_BYTES


def _stretches(tar: Place, keep: tuple[str, ...]) -> list[_Stretch]:
    count = max(1, tar.length // stretch_bytes(tar))
    cuts = [tar.length * part // count // _BLOCK * _BLOCK for part in range(count)] + [tar.length]
    return [
        _Stretch(tar, start, stop, number == 0, keep) for number, (start, stop) in enumerate(itertools.pairwise(cuts))
    ]


def _walk_from_first_header(stretch: _Stretch) -> pa.Table:
    """Returns the members of a stretch, or anything if the walk began in the middle of an image: see `_joined`."""
    if stretch.at_header:
        return _walk(stretch)
    start = _first_header(stretch)
    if start is None:
        return SCHEMA.empty_table()
    try:
        return _walk(replace(stretch, start=start))
    except SourceError:
        return SCHEMA.empty_table()


def _first_header(stretch: _Stretch) -> int | None:
    """Returns the first byte of the first block that is a header by its checksum, or None."""
    window = RangedFile(stretch.tar)
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
    """Returns a table of SCHEMA: the members whose headers begin in a stretch. Raises SourceError."""
    tar, window = stretch.tar, RangedFile(stretch.tar)
    window.seek(stretch.start)
    rows: list[tuple[object, ...]] = []
    try:
        with tarfile.open(fileobj=window, mode="r:") as archive:
            while (info := archive.next()) is not None and info.offset < stretch.stop:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep millions of them
                name = "" if info.isdir() else _safe_name(info, tar.name)
                after, content = archive.offset, _content(info, archive, stretch)
                place = (info.offset_data, info.size if info.isfile() else 0, info.offset, after)
                rows.append((name, *place, content, _target(info), _damage(info)))
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
    if not info.isfile() or not stretch.keep or not info.name.endswith(stretch.keep) or info.size > MAX_KEPT_BYTES:
        return None
    stream = archive.extractfile(info)
    return stream.read() if stream else None


def _check_end(window: RangedFile, offset: int, tar: Place) -> None:
    # tarfile ends without an error at a damaged header and at a cut between two members. A whole archive ends in zeros.
    window.seek(offset)
    block = window.read(_BLOCK)
    if not block:
        raise SourceError(f"{tar.name}: the archive is truncated (no end-of-archive mark); download it again")
    if block.strip(b"\0"):
        raise SourceError(
            f"{tar.name}: the archive is truncated or damaged (no header at byte {offset:,}); download it again"
        )


def _joined(walks: list[tuple[_Stretch, pa.Table]]) -> pa.Table:
    """Returns the members of one tar: of each walk those that come after the end of the walk before it."""
    parts, position = [], 0
    for stretch, table in walks:
        if position >= stretch.stop:
            continue
        headers = table["header"].to_pylist()
        if position in headers:
            part = table.slice(headers.index(position))
        else:
            part = _walk(replace(stretch, start=position, at_header=True))
        parts.append(part)
        if part.num_rows:
            position = part["next"][-1].as_py()
        elif stretch.stop < stretch.tar.length:
            break  # the end mark
    return pa.concat_tables(parts)


def _absolute(tar: Place, table: pa.Table) -> pa.Table:
    """Returns a table without directories, whose offsets count from the start of the object."""
    table = _with_links(table.filter(pa.compute.not_equal(table["name"], "")))
    return table.set_column(1, "offset", pa.compute.add(table["offset"], tar.offset))


def _with_links(table: pa.Table) -> pa.Table:
    """Returns a table whose links have offset and length of the members that they lead to, or their damage."""
    links = table["link"].to_pylist() if table["link"].null_count < table.num_rows else []
    if not links:
        return table
    columns = {name: table[name].to_pylist() for name in ("name", "offset", "length", "damage")}
    last = {name: row for row, name in enumerate(columns["name"])}
    for row, link in enumerate(links):
        target, hops = link, 0
        while target is not None and hops < _MOST_HOPS and target in last and links[last[target]] is not None:
            target, hops = links[last[target]], hops + 1
        if link is None:
            continue
        if target not in last or links[last[target]] is not None:
            columns["damage"][row] = f"dangling link: {link} is not in the archive"
            continue
        for name in ("offset", "length", "damage"):
            columns[name][row] = columns[name][last[target]]
    for name in ("offset", "length", "damage"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(name), pa.array(columns[name], table.schema.field(name).type))
    return table


def _target(info: tarfile.TarInfo) -> str | None:
    """Returns the name that a link leads to, None if the member is no link."""
    if not (info.islnk() or info.issym()):
        return None
    start = posixpath.dirname(info.name) if info.issym() else ""  # of a hard link the name counts from the root
    return _utf8(posixpath.normpath(posixpath.join(start, info.linkname)))


def _damage(info: tarfile.TarInfo) -> str | None:
    return None if info.isfile() or info.isdir() or info.islnk() or info.issym() else "not a file: a pipe or device"


def _utf8(name: str) -> str:
    return name if name.isascii() else printable(escaped(name))


def _safe_name(info: tarfile.TarInfo, uri: str) -> str:
    """Returns the name of a member, as UTF-8. Raises SourceError if it points outside the archive."""
    name = _utf8(info.name).removeprefix("./")
    if name.startswith("/") or ".." in name.split("/"):
        raise SourceError(f"{uri}: member {name!r} points outside the archive; don't use this archive")
    return name if "//" not in name and "/./" not in name else posixpath.normpath(name)
