"""Receive the signed webhooks of retraining runs: a server of the standard library that prints what it may believe.

    IMAGE_PIPELINE_WEBHOOK_SECRET=whsec_... uv run python examples/verify_webhook.py 8000
    uv run jobs/retrain.py --source photos --workspace work --webhook http://localhost:8000/

The signature is that of the Standard Webhooks specification, whose libraries verify it in many languages
(https://www.standardwebhooks.com).
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

TOLERANCE_SECONDS = 300  # of the sender's clock; older messages may have been recorded and sent again
MOST_BYTES = 1_000_000


def verify(secret: str, headers: Mapping[str, str], body: bytes, now: float | None = None) -> Any:
    """Returns the content of a message. Raises ValueError unless it is signed with the secret, and recent.

    secret: `whsec_` and Base64, as the sender has it. headers: those of the request. body: as it came, before any
    parsing. now: in seconds since 1970; None for the clock.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp = fields["webhook-id"], int(fields["webhook-timestamp"])
        signatures = fields["webhook-signature"].split(" ")
    except (KeyError, ValueError) as error:
        raise ValueError(f"a header is missing or damaged: {error}") from error
    if abs((time.time() if now is None else now) - timestamp) > TOLERANCE_SECONDS:
        raise ValueError("the timestamp is too old or too new")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    # Several signatures where a secret is being replaced. In constant time; as bytes, since a header may be no ASCII.
    if not any(hmac.compare_digest(each.encode(), expected.encode()) for each in signatures):
        raise ValueError("no signature is that of the secret")
    return json.loads(body)


class Receiver(BaseHTTPRequestHandler):
    """Prints each message once, and refuses what isn't signed."""

    secret = ""
    seen: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        """Verifies a message, and prints it unless it came before: a sender may send it again."""
        length = int(self.headers.get("Content-Length", 0))
        if length > MOST_BYTES:
            self.send_error(413)
            return
        try:
            message = verify(self.secret, dict(self.headers), self.rfile.read(length))
        except ValueError as error:
            self.send_error(400, str(error))
            return
        if self.headers["webhook-id"] not in self.seen:
            self.seen.add(self.headers["webhook-id"])
            print(f"{message['type']}: {message['reason']}", flush=True)
        self.send_response(204)
        self.end_headers()


def main(secret: str, port: int) -> None:
    """Receives until Ctrl-C."""
    receiver = type("SignedReceiver", (Receiver,), {"secret": secret})
    HTTPServer(("127.0.0.1", port), receiver).serve_forever()


if __name__ == "__main__":
    main(os.environ["IMAGE_PIPELINE_WEBHOOK_SECRET"], int(sys.argv[1]))
