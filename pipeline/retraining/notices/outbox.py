"""Messages for a webhook that haven't been accepted yet: `WORKSPACE/notices/ID.json`, one file each.

A message is written here before it is sent, and deleted once it is accepted. So a kill, or a receiver that is down,
delays a message and loses none; the next run, or `image-pipeline nights send`, sends it again with the same ID.

A message that the receiver doesn't want is given up: it moves to `WORKSPACE/notices/dead/`, where only `nights send`
tries it again. That is the message that was refused for good by MOST_REFUSALS runs, or by HTTP 410, and any message
after MOST_DAYS.
"""

import json
import logging
import time
from collections.abc import Container
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import msgspec

from pipeline.core.errors import DamagedError
from pipeline.retraining.notices.webhook import Answer, Webhook
from pipeline.storage import files

FOLDER, DEAD_FOLDER = "notices", "notices/dead"
MOST_REFUSALS, MOST_DAYS = 3, 14
_SUFFIX = ".json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    """A message that is to be delivered."""

    id: str
    """Header `webhook-id`: letters, digits and `_`."""
    body: dict[str, Any]
    """The content, JSON values."""
    since: Annotated[float, msgspec.Meta(ge=0, le=1e11)]
    """When it was written, in seconds since 1970."""
    failures: int = 0
    """How often it was sent and not accepted."""
    reason: str = ""
    """Why it wasn't accepted last; empty if it hasn't been sent yet."""
    refusals: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How often of these it was refused for good, as by HTTP 400."""


def put(workspace: str, message_id: str, body: dict[str, Any]) -> None:
    """Writes a message. The same ID again replaces the message."""
    _write(workspace, Message(message_id, body, time.time()))


def undelivered(workspace: str) -> list[Message]:
    """Returns all messages that wait: those that were never refused for good first, and the oldest of them first.

    A file that can't be read is left where it is, with a warning.
    """
    return _read_all(files.join(workspace, FOLDER))


def given_up(workspace: str) -> list[Message]:
    """Returns all messages that were given up, in the order of `undelivered`."""
    return _read_all(files.join(workspace, DEAD_FOLDER))


def send(
    workspace: str, webhook: Webhook, but: Container[str] = (), limit_seconds: float = float("inf")
) -> tuple[int, list[Message]]:
    """Sends all messages that wait, and returns the number that were accepted, and the messages that are left.

    A receiver that can't be reached is asked once: the messages after that one are left as they are. A message that is
    refused for good stays until it is given up, and the next one is sent.

    but: IDs of messages that are left as they are. limit_seconds: no message is begun after these, but the first.
    """
    sent, left, goes_on, end = 0, list[Message](), True, time.monotonic() + limit_seconds
    for message in undelivered(workspace):
        if not goes_on or message.id in but:
            left.append(message)
            continue
        answer = webhook.post(message.id, json.dumps(message.body).encode())
        if answer.accepted:
            _delete(workspace, FOLDER, message)
            sent += 1
        else:
            failed = _failed(message, answer)
            left.append(failed)
            if answer.is_gone or _is_given_up(failed):
                _bury(workspace, failed)
            else:
                _write(workspace, failed)
        goes_on = not answer.may_pass and time.monotonic() < end
    return sent, left


def send_given_up(workspace: str, webhook: Webhook) -> int:
    """Sends all messages that were given up, once more, and returns the number that were accepted.

    A receiver that can't be reached is asked once.
    """
    sent = 0
    for message in given_up(workspace):
        answer = webhook.post(message.id, json.dumps(message.body).encode())
        if answer.accepted:
            _delete(workspace, DEAD_FOLDER, message)
            sent += 1
        else:
            _write(workspace, _failed(message, answer), DEAD_FOLDER)
        if answer.may_pass:
            break
    return sent


def discard_given_up(workspace: str) -> int:
    """Deletes all messages that were given up, those that can't be read included, and returns their number."""
    names = _names(files.join(workspace, DEAD_FOLDER))
    files.delete_files(files.join(workspace, DEAD_FOLDER), names)
    return len(names)


def _failed(message: Message, answer: Answer) -> Message:
    refusals = message.refusals + (not answer.may_pass)
    return replace(message, failures=message.failures + 1, reason=answer.reason, refusals=refusals)


def _is_given_up(message: Message) -> bool:
    return message.refusals >= MOST_REFUSALS or time.time() - message.since > MOST_DAYS * 86_400


def _bury(workspace: str, message: Message) -> None:
    """Moves a message to those that were given up. A kill in between leaves it in both places, under the same ID."""
    _write(workspace, message, DEAD_FOLDER)
    _delete(workspace, FOLDER, message)
    log.warning(
        "the message %s was given up (%s) and lies in %s; image-pipeline nights send sends it again, or discards it",
        message.id, message.reason, files.join(workspace, DEAD_FOLDER),
    )  # fmt: skip


def _read_all(folder: str) -> list[Message]:
    messages = (_read(files.join(folder, name)) for name in _names(folder))
    return sorted((each for each in messages if each), key=lambda each: (each.refusals > 0, each.since, each.id))


def _names(folder: str) -> list[str]:
    if files.kind(folder) != "directory":
        return []
    return [name for name, _ in files.list_files(folder) if name.endswith(_SUFFIX) and "/" not in name]


def _read(place: str) -> Message | None:
    """Returns a message; None, with a warning, if its file is damaged or gone. Fields of later programs are ignored."""
    try:
        return files.read_record(place, Message, "it isn't sent; remove it")
    except FileNotFoundError:  # accepted meanwhile, by `nights send`
        return None
    except DamagedError as error:
        log.warning("%s", error)
        return None


def _write(workspace: str, message: Message, folder: str = FOLDER) -> None:
    files.write_json(files.join(workspace, folder, f"{message.id}{_SUFFIX}"), asdict(message), pretty=True)


def _delete(workspace: str, folder: str, message: Message) -> None:
    files.delete_files(files.join(workspace, folder), [f"{message.id}{_SUFFIX}"])
