"""`WORKSPACE/status.json`: how the last call ended, and which decision was told last."""

from dataclasses import asdict, dataclass
from typing import Annotated

import msgspec

from pipeline.storage import files

STATUS_NAME = "status.json"


_Time = Annotated[float, msgspec.Meta(ge=0, le=1e11)]


@dataclass(frozen=True)
class Status:
    """How the last call of a retraining run in a workspace ended."""

    status: str = ""
    """"promoted", "candidate", "kept", "stopped", "unchanged" or "failed"; empty if none has ended yet."""
    message: str = ""
    """The reason, in one sentence."""
    last_run: _Time | None = None
    """When the last call ended, in seconds since 1970."""
    last_success: _Time | None = None
    """When the last call that didn't fail ended, in seconds since 1970."""
    first_run: _Time | None = None
    """When the first call began, in seconds since 1970; of workspaces of earlier programs, a later call."""
    told: str | None = None
    """ID of the message of the newest decision that was told."""


def read_status(workspace: str) -> Status | None:
    """Returns the status of a workspace; None if no call has ended there. Unknown fields are ignored."""
    place = files.join(workspace, STATUS_NAME)
    if not files.exists(place):
        return None
    return files.read_record(place, Status, "remove it: the next run writes it anew")


def write_status(workspace: str, status: Status) -> None:
    """Writes the status of a workspace."""
    files.write_json(files.join(workspace, STATUS_NAME), asdict(status), pretty=True)
