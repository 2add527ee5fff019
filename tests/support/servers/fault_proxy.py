"""A proxy in front of an HTTP server that spoils one request in so many: 503, reset, cut body, stall.

It runs in a thread of the test, speaks plain HTTP/1.1 on loopback, and counts what it lets through and spoils.
"""

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

KINDS = ("503", "reset", "cut", "stall")


class FaultProxy:
    """every: one request in this many is spoiled, the kinds in turn; stall_seconds: how long a stalled one waits."""

    def __init__(self, upstream: str, every: int = 10, stall_seconds: float = 5.0) -> None:
        parts = urlsplit(upstream)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self.every, self._stall_seconds = every, stall_seconds
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.away = False  # every connection is reset
        self._pattern, self._arrives, self._passes, self.holds = "", False, 0, threading.Event()

    def hold(self, pattern: str, arrives: bool = False, passes: int = 0) -> None:
        """From now on no PUT to a path that the pattern is found in is answered, after the first few that pass; arrives
        says whether the storage gets it. `holds` is set by the first one. An empty pattern holds nothing.
        """
        self._pattern, self._arrives, self._passes = pattern, arrives, passes
        self.holds.clear()

    def _is_held(self, head: bytes) -> bool:
        method, path, _ = head.decode("latin1").split(" ", 2)
        if method != "PUT" or not self._pattern or not re.search(self._pattern, path):
            return False
        self._passes -= 1
        return self._passes < 0

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one client connection, request after request."""
        upstream_writer = None
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
            while await self._request(reader, writer, upstream_reader, upstream_writer):
                pass
        writer.close()
        if upstream_writer:
            upstream_writer.close()

    async def _request(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        if self.away:
            self.faults["away"] += 1
            writer.transport.abort()
            return False
        self.requests[head.split(b" ", 1)[0].decode()] += 1
        total = sum(self.requests.values())
        fault = KINDS[total // self.every % len(KINDS)] if self.every and total % self.every == 0 else ""
        body = await reader.readexactly(_content_length(head))
        if fault:
            self.faults[fault] += 1
        if fault == "503":
            text = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
            await writer.drain()
            return True
        if fault == "reset":
            writer.transport.abort()
            return False
        held = self._is_held(head)
        if held and not self._arrives:
            self.holds.set()
            await reader.read()  # until its sender is killed
            return False
        if fault == "stall":
            await asyncio.sleep(self._stall_seconds)
        up_writer.write(head + body)
        await up_writer.drain()
        if held:
            await up_reader.readuntil(b"\r\n\r\n")
            self.holds.set()
            await reader.read()
            return False
        if fault == "mute":  # the request arrives, the answer gets lost
            await up_reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()
            return False
        return await self._response(head, up_reader, writer, cut=fault == "cut")

    async def _response(
        self, request: bytes, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: bool
    ) -> bool:
        head = await up_reader.readuntil(b"\r\n\r\n")
        no_body = request.startswith(b"HEAD") or head.split(b" ", 2)[1] in (b"204", b"304")
        if b"transfer-encoding: chunked" in head.lower() and not no_body:
            writer.write(head)
            while True:
                line = await up_reader.readline()
                writer.write(line + await up_reader.readexactly(int(line, 16) + 2))
                if int(line, 16) == 0:
                    break
        else:
            body = b"" if no_body else await up_reader.readexactly(_content_length(head))
            writer.write(head + (body[: len(body) // 2] if cut else body))
            if cut and body:
                await writer.drain()
                return False
        await writer.drain()
        return True


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.split(b":", 1)[1])
    return 0


@contextmanager
def fault_proxy(upstream: str, every: int = 10, stall_seconds: float = 5.0) -> Iterator[tuple[str, FaultProxy]]:
    """Yields the proxy's address and the proxy; ends it on leaving."""
    proxy = FaultProxy(upstream, every, stall_seconds)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    # Not in this thread, where a browser of another test may run a loop.
    starting = asyncio.start_server(proxy.serve_one, "127.0.0.1", 0, limit=1 << 20)
    server = asyncio.run_coroutine_threadsafe(starting, loop).result(timeout=10)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", proxy
    finally:

        async def end() -> None:
            server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
