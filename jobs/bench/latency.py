"""A proxy on loopback that hands on every request some milliseconds late, as a bucket far away answers.

It sees chunks of bytes, not HTTP: what a client sends waits, what the server answers passes at once, from socket to
socket in the kernel. So bandwidth isn't limited, and little CPU is taken.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.core.variables import environment_variables
from pipeline.storage.local_s3 import free_ports

_CHUNK = 1 << 20


@contextmanager
def delayed_s3(milliseconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Has the standard variable name a proxy before the server that it names, for the block. Yields its process."""
    upstream = urlsplit(os.environ["AWS_ENDPOINT_URL"]).port or 80
    (port,) = free_ports(1)
    code = f"from jobs.bench.latency import serve; serve({port}, {upstream}, {milliseconds / 1000})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        try:
            _await_port(port)
            with environment_variables({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}):
                yield process
        finally:
            process.terminate()


def serve(port: int, upstream: int, seconds: float) -> None:
    """Serves for ever."""
    with socket.create_server(("127.0.0.1", port), backlog=256) as listener:
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", upstream))
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_late, args=(client, server, seconds), daemon=True).start()
            threading.Thread(target=_at_once, args=(server, client), daemon=True).start()


def _late(client: socket.socket, server: socket.socket, seconds: float) -> None:
    with suppress(OSError):
        while data := client.recv(_CHUNK):
            time.sleep(seconds)
            server.sendall(data)
    _end(client, server)


def _at_once(server: socket.socket, client: socket.socket) -> None:
    reader, writer = os.pipe()
    with suppress(OSError):
        while count := os.splice(server.fileno(), writer, _CHUNK):
            while count:
                count -= os.splice(reader, client.fileno(), count)
    os.close(reader)
    os.close(writer)
    _end(client, server)


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def _await_port(port: int, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
