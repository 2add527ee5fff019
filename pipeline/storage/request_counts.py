"""Count the requests that this process sends to object storage, so that a plan can be compared with what happened."""

import threading
from dataclasses import dataclass, fields


@dataclass
class RequestCounts:
    """Numbers of requests of each kind, with retries; `retried` is how many of them were retries. And bytes moved."""

    get: int = 0
    put: int = 0
    list: int = 0
    head: int = 0
    delete: int = 0
    retried: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def plus(self, other: "RequestCounts", sign: int = 1) -> "RequestCounts":
        """Returns the sum of both, or with sign -1 their difference."""
        return RequestCounts(**{f.name: getattr(self, f.name) + sign * getattr(other, f.name) for f in fields(self)})

    @property
    def total(self) -> int:
        """The number of requests of all kinds."""
        return self.get + self.put + self.list + self.head + self.delete

    def __str__(self) -> str:
        kinds = [f"{getattr(self, name):,} {name.upper()}" for name in ("get", "put", "list", "head", "delete")]
        return ", ".join(kind for kind in kinds if not kind.startswith("0 ")) + f" ({self.retried:,} retries)"


_sent = RequestCounts()
_lock = threading.Lock()


def count_requests(**amounts: int) -> None:
    """Adds to the fields of `RequestCounts`, by their names."""
    with _lock:
        for name, amount in amounts.items():
            setattr(_sent, name, getattr(_sent, name) + amount)


def requests_sent() -> RequestCounts:
    """Returns the numbers of requests that this process has sent so far."""
    with _lock:
        return _sent.plus(RequestCounts())
