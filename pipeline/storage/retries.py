"""Send a request to object storage: retried, limited in number, and counted.

obstore (Rust) sends the requests, with its own retries off. Retried here are network errors, timeouts, truncated
answers, 429 and 5xx, with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015), for RETRY_SECONDS. Each
slow-down halves the number of requests in flight, each success adds a little (additive increase, multiplicative
decrease).
"""

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pipeline.core.errors import StorageError, UnavailableError
from pipeline.storage.request_counts import count_requests
from pipeline.storage.store_clients import REQUESTS_IN_FLIGHT, client_and_key

T = TypeVar("T")
RETRY_SECONDS = 180.0
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.1, 10.0


class AdaptiveLimit:
    """Limits the requests in flight: a slow-down halves the limit, as many successes as the limit raise it by one."""

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(most)
        self._active = 0
        self._condition = threading.Condition()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Waits until a request may be sent, and counts it as in flight for the block."""
        with self._condition:
            self._condition.wait_for(lambda: self._active < max(1, int(self.limit)))
            self._active += 1
        try:
            yield
        finally:
            with self._condition:
                self._active -= 1
                self._condition.notify()

    def succeeded(self) -> None:
        """Must be called after a successful answer."""
        with self._condition:
            self.limit = min(self.most, self.limit + 1 / self.limit)

    def slowed(self) -> None:
        """Must be called after an answer 503 or 429."""
        with self._condition:
            self.limit = max(1.0, self.limit / 2)


_limit = AdaptiveLimit(REQUESTS_IN_FLIGHT)


class ConflictError(Exception):
    """A conditional write found another object than expected. It isn't raised outside `pipeline.storage`.

    tries: how often the request had been sent before without an answer.
    """

    def __init__(self, tries: int) -> None:
        self.tries = tries


def send_request(kind: str, uri: str, call: Callable[[Any, str], T]) -> T:
    """Returns what `call(client, key)` returns for the object at `uri`, and retries it where that may help.

    kind: the field of `RequestCounts` in which the request is counted. Raises FileNotFoundError, ConflictError,
    StorageError if the storage refuses, and UnavailableError if it hasn't answered within RETRY_SECONDS.
    """
    from obstore import exceptions

    store, key = client_and_key(uri)
    start, tries = time.monotonic(), 0
    while True:
        with _limit.request():
            count_requests(**{kind: 1, "retried": int(tries > 0)})
            try:
                answer = call(store, key)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
                raise ConflictError(tries) from error
            except FileNotFoundError as error:
                if kind == "put":
                    raise StorageError(_one_line(uri, error)) from error
                raise
            except (exceptions.BaseError, ValueError) as error:
                if not _may_pass(error):
                    raise StorageError(_one_line(uri, error)) from error
                if time.monotonic() - start > RETRY_SECONDS:
                    raise UnavailableError(_one_line(uri, error)) from error
                slow = _status(error) in (429, 503)
            else:
                _limit.succeeded()
                return answer
        # Outside the limit: a request that waits takes no place of another.
        if slow:
            _limit.slowed()
        longest = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**tries)
        time.sleep(random.uniform(0, longest))
        tries += 1


def _status(error: Exception) -> int | None:
    match = re.search(r"status code: (\d{3})", str(error))
    return int(match.group(1)) if match else None


def _may_pass(error: Exception) -> bool:
    from obstore import exceptions

    if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, ValueError)):
        return False
    status = _status(error)
    return status is None or status >= 500 or status in (408, 429)


def _one_line(uri: str, error: Exception) -> str:
    text = " ".join(str(error).split("Debug source")[0].split())
    text = re.sub(r"https?://\S+ in [\d.]+\S+ - ", "", text)  # no address of an endpoint in messages and logs
    code = re.search(r"<Code>(\w+)</Code>", text)
    reason = f"{_status(error)} {code.group(1) if code else ''}".strip() if _status(error) else text[:200]
    where = "the GOOGLE_... variables or the account" if uri.startswith("gs:") else "the AWS_... variables or profile"
    return f"{uri.split('?')[0]}: the storage answers {reason}; check bucket, endpoint and credentials ({where})"
