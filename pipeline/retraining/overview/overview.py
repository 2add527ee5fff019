"""What is known of all retraining runs of a workspace, read once for its page and its metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.retraining import registry
from pipeline.retraining.notices.outbox import given_up, undelivered
from pipeline.retraining.notices.status_file import Status, read_status
from pipeline.retraining.overview.nights import Night, accuracy_of, read_nights
from pipeline.retraining.workspace import interrupted_run, registry_uri


@dataclass(frozen=True)
class Overview:
    """All retraining runs of a workspace."""

    workspace: str
    """Absolute URI."""
    nights: Sequence[Night]
    """Finished runs, the oldest first."""
    moves: Sequence[registry.Move] = ()
    """Of the champion, the oldest first."""
    status: Status | None = None
    """How the last call ended."""
    interrupted: str | None = None
    """ID of the run that is at work, or was interrupted."""
    waiting: int = 0
    """Messages that no webhook has accepted yet."""
    given_up: int = 0
    """Messages that no webhook wants, and that no run sends again."""

    @property
    def name(self) -> str:
        """The workspace's URI without its query, which holds options of this machine's access, such as an endpoint."""
        return self.workspace.split("?")[0]

    @property
    def live(self) -> tuple[int, int] | None:
        """(correct, rows) of the champion in the newest run that has looked at it; None if none has, or without one."""
        return accuracy_of(self.nights, self.moves[-1].version) if self.moves else None


def read_overview(workspace: str) -> Overview:
    """Returns what is known of the runs of a workspace; updates `nights.json`. workspace: absolute URI."""
    place, interrupted = registry_uri(workspace), interrupted_run(workspace)
    return Overview(
        workspace,
        read_nights(workspace, update=True),
        registry.history(place),
        read_status(workspace),
        interrupted.id if interrupted else None,
        len(undelivered(workspace)),
        len(given_up(workspace)),
    )
