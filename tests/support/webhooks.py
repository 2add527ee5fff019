"""A webhook's receiver on this machine, whose answers a test chooses."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Receiver:
    """What a receiver got, and what it answers."""

    url: str = ""
    answers: list[int | str] = field(default_factory=list)
    """Statuses of the next answers, "hang" for none, "drip" for a header without an end; 204 after the last."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of every answer."""
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """(method, headers, body) of each request."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The bodies."""
        return [json.loads(body) for _, _, body in self.requests]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Yields a receiver that listens while the block runs."""
    state, ended = Receiver(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.requests.append((self.command, {k.lower(): v for k, v in self.headers.items()}, body))
            answer = state.answers.pop(0) if state.answers else 204
            if answer == "hang":
                ended.wait(10)
            elif answer == "drip":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not ended.wait(0.02):
                    try:
                        self.wfile.write(b"a")
                    except OSError:
                        return
            else:
                self.send_response(int(answer))
                for name, value in state.headers.items():
                    self.send_header(name, value)
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Prints nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield state
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
