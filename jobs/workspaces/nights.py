"""Lists the retraining runs of a workspace, writes their page and metrics, and sends what no webhook has accepted.

Examples:
    uv run jobs/workspaces/nights.py list --workspace work
    uv run jobs/workspaces/nights.py page --workspace s3://bucket/work
    uv run jobs/workspaces/nights.py metrics --workspace s3://bucket/work --metrics /var/lib/node_exporter/nights.prom
    uv run jobs/workspaces/nights.py send --workspace work --webhook https://example.org/hook
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.table import Table

from jobs.terminal import command
from pipeline.core.errors import RecipeError, StorageError
from pipeline.core.shares import counted
from pipeline.storage import files
from pipeline.storage.places import nearest

Action = Literal["list", "page", "metrics", "send"]


@dataclass(frozen=True)
class SendArgs:
    """For `send`: where to, and what becomes of messages that no webhook wants."""

    webhook: Annotated[str | None, command.option("URL that gets the messages, by POST", "URL")] = None
    webhook_secret_file: Annotated[
        str | None,
        command.option("file with the key of their signatures", "FILE", "the variable IMAGE_PIPELINE_WEBHOOK_SECRET"),
    ] = None
    discard: Annotated[bool, command.option("delete the messages that were given up and are refused once more", "")] = (
        False
    )


@dataclass(frozen=True)
class Args:
    """A retraining run does all of this itself; the command does it in between, or on another machine."""

    action: Annotated[tyro.conf.Positional[Action], command.option("list, page, metrics or send", "ACTION")]
    workspace: Annotated[str | None, command.option("workspace of jobs/retrain.py", "URI")] = None
    metrics: Annotated[
        str | None,
        command.option("for `metrics` and `send`: file NAME.prom of node-exporter, or Pushgateway", "FILE|URL"),
    ] = None
    send: Annotated[SendArgs, command.group("send")] = SendArgs()


def main(args: Args) -> None:
    """Carries out the action."""
    if args.workspace is None:
        raise RecipeError("--workspace URI is missing")
    workspace = files.absolute(args.workspace).rstrip("/")
    if files.kind(workspace) != "directory":
        raise StorageError(f"workspace={workspace}: no such folder; give that of jobs/retrain.py{nearest(workspace)}")
    {"list": print_nights, "page": page, "metrics": write, "send": send}[args.action](args, workspace)


def print_nights(args: Args, workspace: str) -> None:
    """Prints a table of all finished runs, the newest first."""
    from pipeline.retraining.overview.nights import read_nights
    from pipeline.retraining.overview.page import data_text
    from pipeline.retraining.overview.times import planned_text, taken_text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "finished", "decision", "gain", "data", "time", "planned"):
        table.add_column(name)
    for night in reversed(read_nights(workspace)):
        gain = f"{100 * night.gain['gain']:+.2f} points" if night.gain else ""
        finished = time.strftime("%Y-%m-%d %H:%M", time.localtime(night.finished))
        taken = taken_text(night.seconds, night.plan) if night.seconds else ""
        table.add_row(night.id, finished, night.status, gain, data_text(night.data), taken, planned_text(night.plan))
    command.console.print(table)
    command.console.print(f"{counted(table.row_count, 'finished run')} in {workspace}")


def page(args: Args, workspace: str) -> None:
    """Writes the page of all runs."""
    from pipeline.retraining.overview.overview import read_overview
    from pipeline.retraining.overview.page import write_page

    command.console.print(write_page(read_overview(workspace)))


def write(args: Args, workspace: str) -> None:
    """Writes or pushes the metrics."""
    from pipeline.retraining.overview.metrics import check_target, write_metrics
    from pipeline.retraining.overview.overview import read_overview

    if args.metrics is None:
        raise RecipeError("--metrics FILE or URL is missing")
    check_target(args.metrics)
    try:
        write_metrics(args.metrics, read_overview(workspace))
    except OSError as error:
        raise StorageError(f"metrics={args.metrics}: {error}; is it there, and may it be written?") from error


def send(args: Args, workspace: str) -> None:
    """Sends the messages that no webhook has accepted, then writes page and metrics; status 1 if a message is left."""
    from pipeline.retraining.notices import outbox
    from pipeline.retraining.notices.webhook import Webhook, read_secret
    from pipeline.retraining.overview.metrics import check_target
    from pipeline.retraining.overview.report import report_nights

    if args.send.webhook is None:
        raise RecipeError("--webhook URL is missing")
    if args.metrics is not None:
        check_target(args.metrics)
    webhook = Webhook(args.send.webhook, read_secret(args.send.webhook_secret_file))
    sent = outbox.send_given_up(workspace, webhook) + outbox.send(workspace, webhook)[0]
    discarded = outbox.discard_given_up(workspace) if args.send.discard else 0
    left = [*outbox.undelivered(workspace), *outbox.given_up(workspace)]
    gone = f", {discarded} discarded" if discarded else ""
    command.console.print(f"{counted(sent, 'message')} accepted, {len(left)} left{gone}")
    for message in left:
        command.console.print(f"{message.id}: {message.reason or 'not sent: the receiver did not answer before'}")
    report_nights(workspace, args.metrics)
    if left:
        sys.exit(1)


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
