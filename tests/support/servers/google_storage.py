"""As much of Google Cloud Storage as obstore speaks to, for no real one is at hand: its XML API on loopback.

Objects with generations, conditions on them, ranges, listings page by page, and a token that is asked for. After
https://cloud.google.com/storage/docs/xml-api/reference-methods; multipart uploads aren't there.
"""

import email.utils
import hashlib
import http.server
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

TOKEN = "a-token-of-the-tests"
_PAGE_KEYS = 50


@dataclass(frozen=True)
class Stored:
    """One object, as it was written last."""

    data: bytes
    generation: int
    time: float

    @property
    def headers(self) -> dict[str, str]:
        return {
            "ETag": f'"{hashlib.md5(self.data).hexdigest()}"',
            "x-goog-generation": str(self.generation),
            "Last-Modified": email.utils.formatdate(self.time, usegmt=True),
        }


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, Stored]
    generations: Iterator[int]
    lock: threading.Lock
    bucket: str

    def _answer(self, code: int, data: bytes = b"", headers: dict[str, str] | None = None, length: int = -1) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length < 0 else length))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, code: int, name: str) -> None:
        self._answer(code, f"<?xml version='1.0'?><Error><Code>{name}</Code></Error>".encode())

    def _key(self) -> str | None:
        """The object's name, "" for the bucket; None where the answer has been sent."""
        bucket, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._error(401, "AuthenticationRequired")
        elif bucket != self.bucket:
            self._error(404, "NoSuchBucket")
        else:
            return key
        return None

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if (key := self._key()) is None:
            return
        with self.lock:
            there, wanted = self.objects.get(key), self.headers["x-goog-if-generation-match"]
            if wanted is not None and int(wanted) != (there.generation if there else 0):
                self._error(412, "PreconditionFailed")
                return
            self.objects[key] = Stored(data, next(self.generations), time.time())
            headers = self.objects[key].headers
        self._answer(200, headers=headers)

    def do_HEAD(self) -> None:
        self._get(with_data=False)

    def do_GET(self) -> None:
        self._get(with_data=True)

    def _get(self, with_data: bool) -> None:
        if (key := self._key()) is None:
            return
        if not key:
            self._list()
        elif (stored := self.objects.get(key)) is None:
            self._answer(404, length=0)
        elif with_data and self.headers["Range"]:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = stored.data[int(first) : int(last) + 1 if last else None]
            if not part:
                self._error(416, "InvalidRange")
                return
            end = int(first) + len(part) - 1
            headers = {**stored.headers, "Content-Range": f"bytes {first}-{end}/{len(stored.data)}"}
            self._answer(206, part, headers)
        else:
            self._answer(200, stored.data if with_data else b"", stored.headers, len(stored.data))

    def _list(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        found: dict[str, Stored | None] = {}
        for key, stored in sorted(self.objects.items()):
            rest = key.removeprefix(prefix)
            if key.startswith(prefix) and delimiter and delimiter in rest:
                found[prefix + rest.split(delimiter)[0] + delimiter] = None
            elif key.startswith(prefix):
                found[key] = stored
        first = int(query.get("continuation-token", "0"))
        page, more = list(found.items())[first : first + _PAGE_KEYS], first + _PAGE_KEYS < len(found)
        lines = [f"<NextContinuationToken>{first + _PAGE_KEYS}</NextContinuationToken>"] if more else []
        for name, entry in page:
            if entry is None:
                lines.append(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>")
                continue
            changed = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(entry.time))
            lines.append(
                f"<Contents><Key>{escape(name)}</Key><LastModified>{changed}</LastModified>"
                f"<ETag>{escape(entry.headers['ETag'])}</ETag><Size>{len(entry.data)}</Size></Contents>"
            )
        self._answer(200, f"<?xml version='1.0'?><ListBucketResult>{''.join(lines)}</ListBucketResult>".encode())

    def do_DELETE(self) -> None:
        if (key := self._key()) is None:
            return
        with self.lock:
            gone = self.objects.pop(key, None)
        self._answer(204 if gone else 404)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def google_storage(bucket: str) -> Iterator[tuple[dict[str, str], dict[str, Stored]]]:
    """Yields the variables by which a bucket is reached, and its objects."""
    objects: dict[str, Stored] = {}
    fields = {"objects": objects, "generations": itertools.count(1), "lock": threading.Lock(), "bucket": bucket}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), fields))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        yield {"GOOGLE_BASE_URL": base, "GOOGLE_BEARER_TOKEN": TOKEN}, objects
    finally:
        server.shutdown()
        server.server_close()
