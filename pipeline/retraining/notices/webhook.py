"""Signed webhooks: a message is posted to a URL, signed as the Standard Webhooks specification says, and retried.

Headers `webhook-id` (the same whenever a message is sent again), `webhook-timestamp` (seconds since 1970) and
`webhook-signature` (`v1,` and the Base64 of an HMAC-SHA256 over `ID.TIMESTAMP.BODY`), by
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
`examples/verify_webhook.py` checks them.
"""

import base64
import binascii
import hashlib
import hmac
import http.client
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from email.message import Message as Headers
from typing import Any

from pipeline.core.errors import RecipeError
from pipeline.storage import files

SECRET_VARIABLE = "IMAGE_PIPELINE_WEBHOOK_SECRET"
_SECRET_PREFIX = "whsec_"
_LEAST_SECRET, _MOST_SECRET = 24, 64  # bytes, by the specification
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = 410
_SAFE = "%/:=&?~+!$,;'@()*[]"  # left as they are in path and query
_LONGEST_WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Answer:
    """A receiver's answer to a message."""

    accepted: bool
    """Whether the receiver answered with a status from 200 to 299."""
    reason: str = ""
    """Why the message wasn't accepted; empty if it was."""
    may_pass: bool = False
    """Whether the same message may be accepted later: the receiver was unreachable, busy or failed."""
    retry_after_seconds: float = 0.0
    """The wait that the receiver asked for."""
    is_gone: bool = False
    """Whether the receiver wants no message any more: HTTP 410."""


@dataclass(frozen=True)
class Webhook:
    """A receiver of messages. Raises RecipeError unless the URL is one of HTTP."""

    url: str
    """Where messages are posted to."""
    secret: bytes | None = field(default=None, repr=False)
    """Key of the signatures; None sends unsigned messages."""
    attempts: int = 4
    """Attempts for one message; with the default times they end within 47 s."""
    first_wait_seconds: float = 1.0
    """Wait after the first attempt; it doubles with each further one, to 10 s at most."""
    timeout_seconds: float = 10.0
    """Limit of one attempt, from the connection to the answer's headers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", http_url("webhook", self.url))

    def post(self, message_id: str, body: bytes) -> Answer:
        """Posts a message until it is accepted, and returns the last answer.

        message_id: names the message; a receiver that has seen it ignores the message. body: JSON.
        """
        for attempt in range(self.attempts):
            answer = self._post_once(message_id, body)
            if answer.accepted or not answer.may_pass or attempt == self.attempts - 1:
                break
            # Jitter, so that many senders don't return at once.
            wait = self.first_wait_seconds * 2**attempt * random.uniform(0.5, 1)
            time.sleep(min(max(wait, answer.retry_after_seconds), _LONGEST_WAIT_SECONDS))
        return answer

    def _post_once(self, message_id: str, body: bytes) -> Answer:
        """Posts in a thread: a receiver that sends its headers byte by byte passes every timeout of a socket."""
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(self._request(message_id, body)), daemon=True)
        thread.start()
        thread.join(self.timeout_seconds)
        late = Answer(False, f"no answer within {self.timeout_seconds:g} s", may_pass=True)
        return answers[0] if answers else late

    def _request(self, message_id: str, body: bytes) -> Answer:
        timestamp = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "image-pipeline",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
        }
        if self.secret is not None:
            headers["webhook-signature"] = signature(self.secret, message_id, timestamp, body)
        request = urllib.request.Request(self.url, body, headers, method="POST")
        try:
            # Ends a thread that `_post_once` no longer waits for.
            urllib.request.build_opener(_NoRedirects).open(request, timeout=2 * self.timeout_seconds).close()
        except urllib.error.HTTPError as error:
            error.close()
            wait = _seconds(error.headers.get("Retry-After"))
            return Answer(
                False, f"HTTP {error.code} {error.reason}", error.code in _TRANSIENT, wait, error.code == _GONE
            )
        except (OSError, http.client.HTTPException) as error:
            return Answer(False, str(getattr(error, "reason", error)) or type(error).__name__, may_pass=True)
        return Answer(True)


def http_url(field: str, url: str) -> str:
    """Returns a URL as HTTP sends it: other characters than ASCII are encoded. Raises RecipeError, naming `field`, for
    what is no URL of HTTP, and for one with a user, which Python's client doesn't send."""
    if not url.startswith(("http://", "https://")):
        raise RecipeError(f"{field}={url} must begin with http:// or https://")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
        if not host or any(character <= " " for character in host):
            raise ValueError("it names no host")
    except ValueError as error:
        raise RecipeError(f"{field}={url}: no URL of HTTP ({error}); give one such as http://HOST:PORT/PATH") from error
    if "@" in parts.netloc:
        raise RecipeError(f"{field}: the URL holds a user or a password, which isn't sent; leave it out")
    host = f"[{host}]" if ":" in host else host
    path, query = (urllib.parse.quote(each, safe=_SAFE) for each in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host if port is None else f"{host}:{port}", path, query, ""))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: urllib would follow it by a GET without the body."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Headers, newurl: str
    ) -> None:
        return None


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Returns the value of `webhook-signature`. timestamp: seconds since 1970."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def read_secret(file: str | None) -> bytes | None:
    """Returns the key in `file`, or else that of the variable IMAGE_PIPELINE_WEBHOOK_SECRET; None without both.

    Either holds `whsec_` and the Base64 of 24 to 64 random bytes. Raises RecipeError, without the value, for others.
    """
    if file is None:
        said, text = SECRET_VARIABLE, os.environ.get(SECRET_VARIABLE, "")
        if not text:
            return None
    else:
        said = f"webhook-secret-file={file}"
        if not files.exists(file):
            raise RecipeError(f"{said}: no such file")
        text = files.read_bytes(file).decode(errors="replace")
    remedy = "give whsec_ and the Base64 of 24 to 64 random bytes, as of: echo whsec_$(openssl rand -base64 32)"
    prefix, _, encoded = text.strip().partition("_")
    try:
        secret = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if f"{prefix}_" != _SECRET_PREFIX or not _LEAST_SECRET <= len(secret) <= _MOST_SECRET:
        raise RecipeError(f"{said}: is no secret of a webhook; {remedy}")
    return secret


def _seconds(text: str | None) -> float:
    """Returns the seconds of a Retry-After header; 0 for none, or for a date."""
    return float(text) if text and text.isdecimal() else 0.0
