"""Decompresses archives into the spool folder: a compressed tar can't be read at random."""

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.core.errors import SourceError
from pipeline.core.progress import Bytes, Progress
from pipeline.ingestion.sources.archives.ranged import Place, RangedFile
from pipeline.storage import files

_CHUNK_BYTES = 1 << 20
BZIP2_DAMAGE = "Invalid data stream"  # bz2 raises an OSError with this message
_ZSTD_WINDOW_BYTES = 1 << 31  # what `zstd --long=31` needs, its longest


def _open_zstd(stream: Any) -> Any:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    return decompressor.stream_reader(stream, read_across_frames=True, closefd=False)


_OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"BZh": bz2.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}


def is_compressed(head: bytes) -> bool:
    """Whether a file is compressed by gzip, xz, bzip2 or Zstandard, by its first bytes, whatever its name."""
    return head.startswith(tuple(_OPENERS))


def decompress(archive: Place, target: str, progress: Progress) -> str:
    """Writes the content of a compressed file to the URI `target`. Returns the MD5 (hex) of the compressed bytes.

    Both in one pass, in constant memory. Raises SourceError if the file is truncated or damaged. A cut Zstandard file
    ends without an error; the tar inside it then lacks its end.
    """
    head = bytes(files.read_range(archive.object, archive.offset, min(archive.length, 16)))
    opener = next(opener for magic, opener in _OPENERS.items() if head.startswith(magic))
    with _stream(archive) as raw, files.write_pieces(target) as out:
        hashing = _Hashing(raw, lambda done: progress("decompress", Bytes(done), Bytes(archive.length)))
        for chunk in _chunks(opener, hashing, archive.name):
            out.write(chunk)
        while hashing.read(_CHUNK_BYTES):  # bytes after the end of the compressed stream belong to the MD5, too
            pass
    return hashing.md5.hexdigest()


def _stream(archive: Place) -> Any:
    if archive.offset or archive.length != files.size(archive.object):
        return io.BufferedReader(RangedFile(archive), _CHUNK_BYTES)
    filesystem, path = files.open_filesystem(archive.object)
    return filesystem.open_input_stream(path, compression=None)  # by default pyarrow decompresses by its name


def _chunks(opener: Callable[[Any], Any], stream: Any, name: str) -> Iterator[bytes]:
    import zstandard

    try:
        with opener(stream) as plain:
            while chunk := plain.read(_CHUNK_BYTES):
                yield chunk
    except (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and str(error) != BZIP2_DAMAGE:
            raise
        raise SourceError(f"{name}: the archive is truncated or damaged ({error}); download it again") from error


class _Hashing:
    """A readable stream that computes the MD5 of the bytes it returns, and reports their number."""

    def __init__(self, stream: Any, report: Callable[[int], None]) -> None:
        self._stream, self._report = stream, report
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = bytes(self._stream.read(size if size >= 0 else None))
        self.md5.update(data)
        self.num_bytes += len(data)
        self._report(self.num_bytes)
        return data
