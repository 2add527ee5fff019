"""Messages for a webhook that haven't been accepted yet: `WORKSPACE/notices/ID.json`, one file each.

A message is written here before it is sent, and deleted once it is accepted. So a kill, or a receiver that is down,
delays a message and loses none; the next run, or `image-pipeline nights send`, sends it again with the same ID.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.retraining.notices.webhook import Answer, Webhook
from pipeline.storage import files

FOLDER = "notices"


@dataclass(frozen=True)
class Message:
    """A message that is to be delivered."""

    id: str
    """Header `webhook-id`: letters, digits and `_`."""
    body: dict[str, Any]
    """The content, JSON values."""
    since: float
    """When it was written, in seconds since 1970."""
    failures: int = 0
    """How many runs have failed to deliver it."""
    reason: str = ""
    """Why it wasn't accepted last; empty if it hasn't been sent yet."""


def put(workspace: str, message_id: str, body: dict[str, Any]) -> None:
    """Writes a message. The same ID again replaces the message."""
    _write(workspace, Message(message_id, body, time.time()))


def undelivered(workspace: str) -> list[Message]:
    """Returns all messages that haven't been accepted, the oldest first."""
    folder = files.join(workspace, FOLDER)
    names = [name for name, _ in files.list_files(folder) if name.endswith(".json")] if _is_there(folder) else []
    messages = (Message(**files.read_json(files.join(folder, name))) for name in names)
    return sorted(messages, key=lambda each: (each.since, each.id))


def send(workspace: str, webhook: Webhook) -> tuple[int, list[Message]]:
    """Sends all messages, the oldest first; returns the number that were accepted, and the messages that are left.

    A receiver that can't be reached is asked once: the messages after that one are left as they are. A message that is
    refused for good, as by HTTP 400, stays, and the next one is sent.
    """
    sent, left, is_reachable = 0, list[Message](), True
    for message in undelivered(workspace):
        if not is_reachable:
            left.append(message)
            continue
        answer = webhook.post(message.id, json.dumps(message.body).encode())
        if answer.accepted:
            files.delete_files(files.join(workspace, FOLDER), [f"{message.id}.json"])
            sent += 1
        else:
            left.append(_failed(workspace, message, answer))
            is_reachable = not answer.may_pass
    return sent, left


def _failed(workspace: str, message: Message, answer: Answer) -> Message:
    failed = replace(message, failures=message.failures + 1, reason=answer.reason)
    _write(workspace, failed)
    return failed


def _write(workspace: str, message: Message) -> None:
    files.write_json(files.join(workspace, FOLDER, f"{message.id}.json"), asdict(message), pretty=True)


def _is_there(folder: str) -> bool:
    return files.kind(folder) == "directory"
