"""RAY_ADDRESS that leads nowhere: one line within seconds, for each way in which nothing of Ray's answers."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline.cluster import address
from pipeline.cluster.address import check_cluster, cluster_address
from pipeline.core.errors import ClusterError


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """Yields the address of a server that sends `answer` to each connection; None: it stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection = listening.accept()[0]
                except OSError:
                    return
                held.append(connection)
                if answer is not None:
                    connection.recv(100)
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


def closed_port() -> str:
    """Returns an address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nothing_listens(scheme: str) -> None:
    place = scheme + closed_port()
    with pytest.raises(ClusterError, match=rf"^RAY_ADDRESS={place}: {place}: Connection refused; start the cluster"):
        check_cluster(place)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "answers, but isn't Ray's port"),
        (b"", "answers, but isn't Ray's port"),
        (None, "doesn't answer within"),
    ],
)
def test_something_else_listens(answer: bytes | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_ANSWER_SECONDS", 0.3)
    with server(answer) as place, pytest.raises(ClusterError, match=words):
        check_cluster(place)


@pytest.mark.parametrize("place", ["localhost", "a:b", "127.0.0.1:99999", ":6379", "http://", "gone.invalid:6379"])
def test_what_is_no_address_is_told_at_once(place: str) -> None:
    start = time.monotonic()
    with pytest.raises(ClusterError, match=rf"^RAY_ADDRESS={place}: .*unset it") as error:
        check_cluster(place)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 10


def test_a_server_of_rays_protocol_is_taken() -> None:
    settings = bytes((0, 0, 6, 4, 0, 0, 0, 0, 0)) + bytes(6)
    with server(settings) as place:
        check_cluster(place)


@pytest.mark.parametrize(("value", "found"), [("", None), ("local", None), ("auto", "auto"), ("h:1", "h:1")])
def test_where_ray_is_started_here(value: str, found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address() == found
