"""Send a request to object storage: retried, limited in number, and counted.

obstore (Rust) sends the requests, with its own retries off. Retried here are network errors, timeouts, truncated
answers, 429 and 5xx, with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015), for RETRY_SECONDS, which
a warning says. A bucket that can't be reached when it is first used is given up within seconds. Each slow-down halves
the number of requests in flight, each success adds a little (additive increase, multiplicative decrease).
"""

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pipeline.core.errors import StorageError, UnavailableError
from pipeline.core.processes import is_ray_worker
from pipeline.storage.request_counts import count_requests
from pipeline.storage.store_clients import (
    CREDENTIALS,
    REQUESTS_IN_FLIGHT,
    bucket_of,
    client_and_key,
    sends_unsigned,
)

T = TypeVar("T")
RETRY_SECONDS = 180.0
FIRST_USE_SECONDS = 2.0  # of a bucket that can't be reached and never was: a wrong endpoint, or no network
TELL_SECONDS = 2.0  # of an outage, before it is told
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.1, 10.0

_log = logging.getLogger(__name__)


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
    StorageError if the storage refuses or can't be reached at its first use, and UnavailableError if it hasn't answered
    within RETRY_SECONDS.
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
                if kind == "put" or _no_bucket(error):
                    raise StorageError(_one_line(uri, error)) from error
                _outages.end(uri)
                raise
            except (exceptions.BaseError, ValueError) as error:
                waited = time.monotonic() - start
                if not _may_pass(error, uri) or (waited > FIRST_USE_SECONDS and _outages.hopeless(uri, error)):
                    raise StorageError(_one_line(uri, error)) from error
                if waited > RETRY_SECONDS:
                    raise UnavailableError(_one_line(uri, error)) from error
                _outages.tell(uri, error, waited)
                slow = _status(error) in (429, 503)
            else:
                _limit.succeeded()
                _outages.end(uri)
                return answer
        # Outside the limit: a request that waits takes no place of another.
        if slow:
            _limit.slowed()
        longest = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**tries)
        time.sleep(random.uniform(0, longest))
        tries += 1


class _Outages:
    """Which buckets have answered this process, and of which an outage was told."""

    def __init__(self) -> None:
        self._answered: set[object] = set()
        self._told: dict[object, float] = {}  # when
        self._lock = threading.Lock()

    def end(self, uri: str) -> None:
        """Must be called after an answer."""
        bucket = bucket_of(uri)
        if bucket in self._answered and bucket not in self._told:
            return
        with self._lock:
            self._answered.add(bucket)
            begun = self._told.pop(bucket, None)
        if begun is not None:
            _log.info("%s answers again", _bucket_name(uri))

    def answered(self, uri: str) -> bool:
        """Returns whether the bucket has ever answered this process."""
        return bucket_of(uri) in self._answered

    def hopeless(self, uri: str, error: Exception) -> bool:
        """Returns whether waiting won't help: there is no connection, and never was one.

        A worker of Ray has just begun, but works for a run that may have: it is patient.
        """
        return _connects_not(error) and not self.answered(uri) and not is_ray_worker()

    def tell(self, uri: str, error: Exception, waited: float) -> None:
        """Logs an outage, once, when it has lasted TELL_SECONDS."""
        bucket = bucket_of(uri)
        if waited < TELL_SECONDS or bucket in self._told or self.hopeless(uri, error):
            return
        with self._lock:
            first = self._told.setdefault(bucket, now := time.monotonic()) == now
        if first:
            reason = _reason(error)
            _log.warning("%s doesn't answer (%s); retrying, up to %g s", _bucket_name(uri), reason, RETRY_SECONDS)


_outages = _Outages()


def _bucket_name(uri: str) -> str:
    return "{}://{}".format(*bucket_of(uri))


def _status(error: Exception) -> int | None:
    match = re.search(r"status code: (\d{3})", str(error))
    return int(match.group(1)) if match else None


def _no_bucket(error: Exception) -> bool:
    return "NoSuchBucket" in str(error) or "specified bucket does not exist" in str(error)


def _connects_not(error: Exception) -> bool:
    return "kind: Connect" in str(error) or "ConnectError(" in str(error)


def _may_pass(error: Exception, uri: str) -> bool:
    from obstore import exceptions

    if isinstance(error, exceptions.UnauthenticatedError) and re.search(
        r"\.(Endpoint\w*|Read|Connect)\w*Error'>", str(error)
    ):
        return _outages.answered(uri)  # the service that issues temporary credentials has an outage
    if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, ValueError)):
        return False
    if "token request" in str(error):  # Google's, from the metadata of a machine, which there isn't elsewhere
        return _outages.answered(uri)
    status = _status(error)
    return status is None or status >= 500 or status in (408, 429)


def _reason(error: Exception) -> str:
    """Returns why a request failed, in a few words, without the address of an endpoint."""
    text = str(error)
    head = " ".join(text.split("Debug source")[0].split())
    head = re.sub(r"https?://\S+ in [\d.]+\S+ - ", "", head)
    if _status(error):
        code = re.search(r"<Code>(\w+)</Code>", text)
        return f"{_status(error)} {code.group(1) if code else ''}".strip()
    for words, reason in _CONNECTION_REASONS.items():
        if words in text:
            return reason
    return head.removeprefix("The operation lacked valid authentication credentials for path ")[:200].rstrip(" .")


_CONNECTION_REASONS = {
    "dns error": "its name can't be resolved: no network, or a wrong endpoint or region",
    "Connection refused": "connection refused",
    "unreachable": "network unreachable",
    "certificate": "its certificate isn't trusted",
    "TimedOut": "no answer in time",
    "kind: Timeout": "no answer in time",
    "reset": "connection reset",
}


def _one_line(uri: str, error: Exception) -> str:
    place, scheme = uri.split("?")[0], uri.split(":")[0]
    missing = f"no credentials were found: set {CREDENTIALS[scheme]}"
    if _no_bucket(error):
        return f"{place}: there is no such bucket; check its name, region and endpoint"
    if "token request" in str(error):
        return f"{place}: {missing}"
    missing = f"; {missing}" if sends_unsigned(uri) else ""
    if _connects_not(error):
        return f"{place}: the storage can't be reached ({_reason(error)}); check network, endpoint and region{missing}"
    where = "the GOOGLE_... variables or the account" if scheme == "gs" else "the AWS_... variables or profile"
    return f"{place}: the storage answers {_reason(error)}; check bucket, endpoint and credentials ({where}){missing}"
