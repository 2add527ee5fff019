"""Writes a trained model's class predictions for a folder, an archive or a bucket of images, by Ray Data.

An image that cannot be read or decoded gets a row with the reason. If the command is interrupted, the same command
continues after the last finished part.

Examples:
    uv run jobs/predict.py --checkpoint runs/photos --input photos --out predictions
    uv run jobs/predict.py --checkpoint runs/photos --input s3://bucket/new --out s3://bucket/predictions --workers 4
"""

from dataclasses import dataclass
from typing import Annotated

from jobs import command
from pipeline.cluster import resources
from pipeline.config.choices import TestViews
from pipeline.storage import files

_SHOWN = 5  # most frequent classes
RESUME_HINT = "the same command continues after the last finished part"


@dataclass(frozen=True)
class WorkerArgs:
    """Processes that hold a copy of the network."""

    workers: Annotated[int | None, command.option("processes", "N", "one a GPU, else one")] = None
    device: Annotated[resources.Device, command.option(resources.DEVICE_HELP, "KIND", "auto")] = "auto"
    wait_minutes: Annotated[float, command.option(resources.WAIT_HELP, "N", "0")] = 0


@dataclass(frozen=True)
class Args:
    """Flags of the command."""

    checkpoint: Annotated[str, command.option("a finished run, or RUN/checkpoints/STEP", "URI")]
    input: Annotated[str, command.option("a folder, a prefix of a bucket, a tar, or one image", "URI")]
    out: Annotated[str, command.option("folder for the predictions, as Parquet", "URI")]
    views: Annotated[TestViews | None, command.option("test views of each image", "NAME", "the recipe's")] = None
    worker: Annotated[WorkerArgs, command.group("hardware")] = WorkerArgs()


def main(args: Args) -> None:
    """Predicts, and prints a summary."""
    from pipeline.evaluation.batch_predict.results import SUMMARY_NAME
    from pipeline.evaluation.batch_predict.run import predict
    from pipeline.evaluation.workers import Workers

    workers = Workers(args.worker.workers, args.worker.device, args.worker.wait_minutes)
    with command.Display() as display:
        result = predict(args.checkpoint, args.input, args.out, args.views, workers, display)
    frequent = sorted(result.per_class.items(), key=lambda item: -item[1])[:_SHOWN]
    rate = ": they were finished before"
    if result.predicted_now:
        rate = f", {result.predicted_now / result.seconds:,.0f} images/s"
    command.print_table(
        f"\n{result.model} on {files.absolute(args.input)}",
        [
            ("images", f"{result.images:,}{rate}"),
            ("not images", f"{result.skipped:,} files, by their names"),
            ("UNUSABLE" if result.unusable else "unusable", _unusable(result.unusable, result.first_errors)),
            ("most frequent", ", ".join(f"{name} {count:,}" for name, count in frequent if count)),
            ("test views", result.views),
            ("predictions", files.join(result.out, "part-*.parquet")),
            ("summary", files.join(result.out, SUMMARY_NAME)),
        ],
    )


def _unusable(count: int, first: tuple[str, ...]) -> str:
    return f"{count:,}, see the column error; first {first[0]}" if count else "none"


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
