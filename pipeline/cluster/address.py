"""The cluster that RAY_ADDRESS names: which it is, and whether anything answers there, before Ray waits for it."""

import os
import socket
from contextlib import suppress
from typing import NoReturn
from urllib.parse import urlsplit

from pipeline.core.errors import ClusterError

_ANSWER_SECONDS = 5.0
_START = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # RFC 9113, 3.4, with no settings
_SETTINGS = 4  # the type of the frame that a server sends first
_REMEDY = "start the cluster (ray start --head), correct RAY_ADDRESS, or unset it to use this machine alone"


def cluster_address() -> str | None:
    """Returns the value of RAY_ADDRESS, or None where Ray is to be started on this machine: not set, or "local"."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def check_cluster(address: str) -> None:
    """Raises ClusterError within a few seconds unless something that speaks Ray's protocol answers at `address`.

    Ray itself would wait for minutes, with a warning every few seconds.
    """
    place = _find_cluster() if address == "auto" else address
    try:
        parts = urlsplit(place if "://" in place else f"//{place}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        refuse(address, str(error))
    if not host or not port:
        refuse(address, "it is no HOST:PORT, ray://HOST:PORT or auto")
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() not in ("", "0", "false"):
                return
            connection.sendall(_START)
            answer = connection.recv(9, socket.MSG_WAITALL)
    except TimeoutError:
        refuse(address, f"{place} doesn't answer within {_ANSWER_SECONDS:g} s")
    except OSError as error:
        refuse(address, f"{place}: {error.strerror or error}")
    if len(answer) < 9 or answer[3] != _SETTINGS:
        refuse(address, f"{place} answers, but isn't Ray's port (6379 by default, 10001 for ray://)")


def refuse(address: str, reason: str) -> NoReturn:
    """Raises ClusterError with the address, the reason in one line, and the remedy."""
    raise ClusterError(f"RAY_ADDRESS={address}: {reason.rstrip('. ')}; {_REMEDY}") from None


def _find_cluster() -> str:
    """Returns the address of the cluster on this machine, as Ray finds it. Raises ClusterError if there is none."""
    with suppress(ImportError, AttributeError):  # not a public part of Ray
        from ray._private import services

        try:
            if found := services.get_ray_address_from_environment("auto", None):
                return str(found)
        except ConnectionError:
            pass
    refuse("auto", "no cluster runs on this machine")
