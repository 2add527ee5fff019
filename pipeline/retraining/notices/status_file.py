"""`WORKSPACE/status.json`: how the last call ended, and which decision was told last."""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.storage import files

STATUS_NAME = "status.json"


@dataclass(frozen=True)
class Status:
    """How the last call of a retraining run in a workspace ended."""

    status: str = ""
    """"promoted", "candidate", "kept", "stopped", "unchanged" or "failed"; empty if none has ended yet."""
    message: str = ""
    """The reason, in one sentence."""
    last_run: float | None = None
    """When the last call ended, in seconds since 1970."""
    last_success: float | None = None
    """When the last call that didn't fail ended, in seconds since 1970."""
    first_run: float | None = None
    """When the first call began, in seconds since 1970; of workspaces of earlier programs, a later call."""
    told: str | None = None
    """ID of the message of the newest decision that was told."""


def read_status(workspace: str) -> Status | None:
    """Returns the status of a workspace; None if no call has ended there. Unknown fields are ignored."""
    place = files.join(workspace, STATUS_NAME)
    if not files.exists(place):
        return None
    values: dict[str, Any] = files.read_json(place)
    return Status(**{name: value for name, value in values.items() if name in Status.__dataclass_fields__})


def write_status(workspace: str, status: Status) -> None:
    """Writes the status of a workspace."""
    files.write_json(files.join(workspace, STATUS_NAME), asdict(status), pretty=True)
