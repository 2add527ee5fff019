"""Lists the members of a zip by its central directory. Stored members are read in place, others are unpacked once.

Unpacked members lie one after another in a file of the spool folder. What they take is bounded before the first byte
is written: members that share their bytes, and sizes that no image reaches, are the marks of a zip bomb.
"""

import contextlib
import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import SourceError
from pipeline.core.progress import Bytes, Progress
from pipeline.ingestion.sources.archives import compressed
from pipeline.ingestion.sources.archives.ranged import BeforeStartError, Place, RangedFile
from pipeline.storage import files
from pipeline.storage.parallel_reads import read_ahead

MAGICS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field
_CHUNK_BYTES = 1 << 20
_READERS = 32
_MAX_EXPANSION = 200  # deflate can reach 1,032; photographs in any format stay near 1, flat drawings as BMP below 100
# What `zipfile` raises for a damaged zip: bad signatures and checksums, a newer format, fields or data cut off,
# a name that isn't UTF-8 although a flag says so, and offsets before the start.
_DAMAGE = (zipfile.BadZipFile, NotImplementedError, struct.error, EOFError, UnicodeDecodeError, BeforeStartError)
ALWAYS_ALLOWED_BYTES = 256 << 20


@dataclass(frozen=True)
class ZipMember:
    """A file in a zip: `length` bytes at `offset` of an object, the zip itself or the file of unpacked members."""

    name: str
    object: str
    offset: int
    length: int
    damage: str = ""  # why it can't be read


def scan(archive: Place, spooled: str, progress: Progress) -> list[ZipMember]:
    """Returns the files in a zip, in the order in which they lie there.

    spooled: URI of the file that unpacked members are written to. Raises SourceError if the zip is truncated, damaged,
    encrypted or a zip bomb, or if a member points outside it. A single member that can't be unpacked has its `damage`.
    """
    try:
        with zipfile.ZipFile(io.BufferedReader(RangedFile(archive), _CHUNK_BYTES)) as opened:
            infos = sorted(
                (info for info in opened.infolist() if not info.is_dir()), key=lambda each: each.header_offset
            )
            _check(infos, archive)
            stored = [info for info in infos if info.compress_type == zipfile.ZIP_STORED]
            found = {id(info): member for info, member in _in_place(stored, archive)}
            packed = [info for info in infos if info.compress_type != zipfile.ZIP_STORED]
            if packed:
                found |= {id(info): member for info, member in _unpacked(opened, packed, spooled, progress)}
    except _DAMAGE as error:
        raise SourceError(f"{archive.name}: the zip is truncated or damaged ({error}); download it again") from error
    return [found[id(info)] for info in infos]


def _check(infos: list[zipfile.ZipInfo], archive: Place) -> None:
    """Raises SourceError for a zip as a whole: encrypted, a bomb, or with names that point outside it."""
    for info in infos:
        name = _name(info)
        if name.startswith("/") or ".." in name.split("/") or name[1:3] in (":/", ":\\"):
            raise SourceError(f"{archive.name}: member {name!r} points outside the archive; don't use this archive")
        if info.flag_bits & 1:
            raise SourceError(
                f"{archive.name}: member {name!r} is encrypted; unpack the zip with its password, and give the folder"
            )
    packed, unpacked = sum(info.compress_size for info in infos), sum(info.file_size for info in infos)
    if packed > archive.length or unpacked > max(_MAX_EXPANSION * packed, ALWAYS_ALLOWED_BYTES):
        raise SourceError(
            f"{archive.name}: {archive.length:,} bytes would unpack to {unpacked:,}, which is the mark of a zip bomb; "
            "don't use this archive, or unpack it yourself and give the folder"
        )


def _name(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not info.flag_bits & 0x800:  # without the flag for UTF-8 it was decoded as cp437, and is UTF-8 nearly always
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    if info.create_system == 0:  # some programs on Windows write its separators
        name = name.replace("\\", "/")
    return name.removeprefix("./")


def _in_place(infos: list[zipfile.ZipInfo], archive: Place) -> Iterator[tuple[zipfile.ZipInfo, ZipMember]]:
    """Yields the members that lie in the zip as they are.

    Where the bytes of a member begin stands in the header before them, not in the central directory.
    """

    def read(info: zipfile.ZipInfo) -> bytes:
        if info.header_offset < 0 or info.header_offset + _LOCAL_HEADER.size > archive.length:
            return b""
        return bytes(files.read_range(archive.object, archive.offset + info.header_offset, _LOCAL_HEADER.size))

    def member(info: zipfile.ZipInfo, header: bytes) -> ZipMember:
        name = _name(info)
        if link := _is_link(info):
            return ZipMember(name, archive.object, 0, 0, link)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(MAGICS[0]):
            return ZipMember(name, archive.object, 0, 0, "damaged in the zip: no header where it should be")
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if start + info.file_size > archive.length:
            return ZipMember(name, archive.object, 0, 0, "damaged in the zip: it ends after the end of the archive")
        return ZipMember(name, archive.object, archive.offset + start, info.file_size)

    if files.is_local(archive.object):
        yield from ((info, member(info, read(info))) for info in infos)
        return
    with ThreadPoolExecutor(_READERS) as pool:
        for info, header in read_ahead(pool, read, infos, in_order=True, max_pending=4 * _READERS):
            yield info, member(info, header)


def _unpacked(
    opened: zipfile.ZipFile, infos: list[zipfile.ZipInfo], target: str, progress: Progress
) -> Iterator[tuple[zipfile.ZipInfo, ZipMember]]:
    """Unpacks members into the file `target`, in constant memory, and yields them."""
    total, position = sum(info.file_size for info in infos), 0
    with files.write_pieces(target) as out:
        for info in infos:
            num_bytes, damage = (0, link) if (link := _is_link(info)) else _unpack(opened, info, out)
            yield info, ZipMember(_name(info), target, position, 0 if damage else num_bytes, damage)
            position += num_bytes
            progress("unpack", Bytes(position), Bytes(total))


def _unpack(opened: zipfile.ZipFile, info: zipfile.ZipInfo, out: Any) -> tuple[int, str]:
    """Writes the bytes of a member to a stream. Returns their number, and what is wrong with the member, or ""."""
    num_bytes = 0
    try:
        # No more than the size in the central directory is read, and the CRC-32 is checked at the end.
        with opened.open(info) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                out.write(chunk)
                num_bytes += len(chunk)
    except NotImplementedError as error:  # a method of compression that Python doesn't have, or a newer format
        return num_bytes, f"can't be unpacked: {error}"
    except (*_DAMAGE, zlib.error, lzma.LZMAError) as error:
        return num_bytes, f"damaged in the zip: {error}"
    except OSError as error:
        if str(error) != compressed.BZIP2_DAMAGE:  # the storage's, not the zip's
            raise
        return num_bytes, f"damaged in the zip: {error}"
    return num_bytes, ""


def _is_link(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    return "a symbolic link in a zip" if info.create_system == 3 and stat.S_ISLNK(mode) else ""
