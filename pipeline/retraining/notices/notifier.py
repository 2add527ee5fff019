"""Tells others how a retraining run ended: webhook, command hook, MLflow registry. What fails is a warning."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pipeline.cluster.ray_errors import pipeline_error, unwrap, user_message
from pipeline.core.errors import PipelineError, UnavailableError
from pipeline.core.shares import counted
from pipeline.retraining.mlflow_mirror import mirror
from pipeline.retraining.notices import outbox
from pipeline.retraining.notices.command_hook import call_command, check_command
from pipeline.retraining.notices.status_file import Status, read_status, write_status
from pipeline.retraining.notices.webhook import Webhook
from pipeline.retraining.workspace import read_latest, registry_uri
from pipeline.training.trackers.mlflow import check_mlflow

log = logging.getLogger(__name__)
SECONDS_FOR_MESSAGES = 120.0
"""After so many seconds of sending, a run sends one message more for each notice of its own, within 47 s."""
_MOST_CHARACTERS = 500  # of a defect's message, which may be a page of CUDA's


@dataclass(frozen=True)
class Channels:
    """Who is told. Raises RecipeError for what can't work."""

    webhook: Webhook | None = None
    """Receiver of every decision and failure, by POST."""
    command: str | None = None
    """Command that gets each decision as JSON on its standard input."""
    mlflow: str | None = None
    """URI of an MLflow server whose registry follows ours."""

    def __post_init__(self) -> None:
        if self.command is not None:
            check_command(self.command)
        if self.mlflow:
            check_mlflow(self.mlflow)


class Notifier:
    """Tells the channels of a workspace; the workspace's lease must be held.

    Each decision is told at least once: the status file names the decision that was told last, so what a process that
    was killed left untold is told by the next one.
    """

    def __init__(self, workspace: str, channels: Channels) -> None:
        self._workspace, self._channels = workspace, channels
        self._status = Status()
        self._refused = set[str]()  # IDs of messages that this run doesn't send again
        self._seconds_left = SECONDS_FOR_MESSAGES

    def begin(self) -> None:
        """Tells the decision that a killed process has published and not told, and sends what is undelivered."""
        with _as_warning("notices of earlier runs"):
            latest, status = read_latest(self._workspace), read_status(self._workspace)
            if status is None:  # a new workspace, or one of an earlier program, whose decisions are known
                status = Status(told=message_id(latest) if latest else None)
            if status.first_run is None:
                status = replace(status, first_run=status.last_success or status.last_run or time.time())
                write_status(self._workspace, status)
            self._status = status
            if latest and message_id(latest) != status.told:
                self.decided(latest)
            else:
                self._send()

    def decided(self, decision: dict[str, Any]) -> None:
        """Tells a decision. decision: the content of `decision.json`."""
        status = "promoted" if decision["promote"] else "kept"
        body = message_body(f"retraining.{decision.get('status', status)}", decision)
        if not self._tell(message_id(decision), body):
            return
        with _as_warning("the status"):
            self._status = replace(self._status, told=message_id(decision))
            write_status(self._workspace, self._status)

    def reviewed(self, content: dict[str, Any]) -> bool:
        """Tells the decision of a review of models in use. Returns whether it is told, or waits in the outbox."""
        return self._tell(*review_message(content))

    def ended(self, status: str, message: str) -> None:
        """Writes how a call without an error ended. status, message: as in `Status`."""
        now = time.time()
        self._write_status(status, message, now, now)

    def failed(self, error: Exception) -> None:
        """Writes that a call failed, and tells the webhook."""
        now, text = time.time(), _reason(error)
        body = message_body("retraining.failed", {"reason": text})
        if isinstance(pipeline_error(error), UnavailableError):  # the workspace may be away, too: nothing is written
            if self._channels.webhook is not None:
                self._channels.webhook.post(f"failed_{int(now)}", json.dumps(body).encode())
            return
        self._write_status("failed", text, now, self._status.last_success)
        with _as_warning("the notice of the failure"):
            self._put(f"failed_{int(now)}", body)
            self._send()

    def _write_status(self, status: str, message: str, now: float, success: float | None) -> None:
        self._status = replace(self._status, status=status, message=message, last_run=now, last_success=success)
        with _as_warning("the status"):
            write_status(self._workspace, self._status)

    def _tell(self, name: str, body: dict[str, Any]) -> bool:
        """Tells each channel, whatever becomes of the others. Returns whether the webhook's message can't be lost."""
        is_kept = False
        with _as_warning("the notice of the decision"):
            self._put(name, body)
            is_kept = True
            self._send()
        with _as_warning(f"on-decision {self._channels.command}"):
            self._call_command(body)
        with _as_warning(f"mlflow={self._channels.mlflow}"):
            self._update_mlflow()
        return is_kept

    def _put(self, name: str, body: dict[str, Any]) -> None:
        if self._channels.webhook is not None:
            outbox.put(self._workspace, name, body)

    def _send(self) -> None:
        if self._channels.webhook is None:
            return
        start = time.monotonic()
        _, left = outbox.send(self._workspace, self._channels.webhook, self._refused, self._seconds_left)
        self._seconds_left = max(0.0, self._seconds_left - (time.monotonic() - start))
        self._refused |= {each.id for each in left if each.refusals}
        if left:
            log.warning(
                "the webhook accepted all but %s (%s); the next run sends again, or: image-pipeline nights send",
                counted(len(left), "message"),
                next((each.reason for each in left if each.reason), "not sent"),
            )

    def _call_command(self, body: dict[str, Any]) -> None:
        if self._channels.command is None:
            return
        failure = call_command(self._channels.command, json.dumps(body).encode())
        if failure:
            log.warning("on-decision %s failed (%s); the decision stands", self._channels.command, failure)

    def _update_mlflow(self) -> None:
        if not self._channels.mlflow:
            return
        from mlflow.exceptions import MlflowException

        try:
            mirror(registry_uri(self._workspace), self._channels.mlflow)
        except MlflowException as error:
            log.warning("MLflow refused the update (%s); the decision stands", " ".join(str(error).split())[:200])


def teller(webhook: Webhook) -> Callable[[dict[str, Any]], bool]:
    """Returns a function that posts the decision of a review outside a workspace, and returns whether it is accepted.

    What isn't accepted is a warning; the next review tells it again.
    """

    def tell(content: dict[str, Any]) -> bool:
        name, body = review_message(content)
        answer = webhook.post(name, json.dumps(body).encode())
        if not answer.accepted:
            log.warning("the webhook refused the decision (%s); the next review tells it again", answer.reason)
        return answer.accepted

    return tell


def review_message(content: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns ID and content of the message of a review's decision: it promoted, returned or dropped a version."""
    kind = {"review": "promoted", "return": "returned"}.get(content["kind"], "dropped")
    return f"review_{content['review']}", message_body(f"retraining.{kind}", content)


def message_id(decision: dict[str, Any]) -> str:
    """Returns the ID of a decision's message, the same whenever it is sent."""
    return f"night_{decision['night']}_{int(decision.get('finished') or 0)}"


def message_body(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a message: its type, the time as ISO 8601, and `values` without the recipe."""
    body = {name: value for name, value in values.items() if name != "recipe"}
    return {"type": kind, "timestamp": datetime.now(UTC).isoformat(timespec="seconds"), **body}


def _reason(error: Exception) -> str:
    """Returns why a call failed, as its command prints it; of a defect, class and message of what Ray wraps."""
    cause = next(unwrap(error), error)
    return user_message(error) or f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:_MOST_CHARACTERS]


@contextmanager
def _as_warning(what: str) -> Iterator[None]:
    """Logs an error instead of raising it, a defect with its traceback: no notice fails a run that has decided."""
    try:
        yield
    except Exception as error:
        is_known = isinstance(error, (PipelineError, OSError))
        log.warning("%s: %s; the run goes on", what, error if is_known else repr(error), exc_info=not is_known)
