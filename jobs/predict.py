"""Writes a trained model's class predictions for a folder, an archive or a bucket of images, by Ray Data.

An image that cannot be read or decoded gets a row with the reason, and the command still ends with 0. If the command is
interrupted, the same command continues after the last finished part.

Examples:
    uv run jobs/predict.py --checkpoint runs/photos --input photos --out predictions
    uv run jobs/predict.py --checkpoint runs/photos --input new/1.jpg "more/*.png" --out predictions
    uv run jobs/predict.py --checkpoint runs/photos --input s3://bucket/new --out s3://bucket/predictions --workers 4
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
from dataclasses import dataclass, field
from typing import Annotated

from jobs.arguments.evaluation import CHECKPOINT_HELP, WorkerArgs, evaluation_option
from jobs.terminal import command
from pipeline.config.choices import TestViews
from pipeline.storage import files

_SHOWN = 5  # most frequent classes
RESUME_HINT = "the same command continues after the last finished part"


@dataclass(frozen=True)
class Args:
    """Flags of the command."""

    checkpoint: Annotated[str, command.option(CHECKPOINT_HELP, "URI")]
    input: Annotated[
        tuple[str, ...], command.option("folders, prefixes of a bucket, archives, images, or patterns", "URI...")
    ]
    out: Annotated[str, command.option("folder for the predictions, as Parquet", "URI")]
    views: Annotated[TestViews | None, evaluation_option("views", "NAME", "the recipe's")] = None
    worker: Annotated[WorkerArgs, command.group("hardware")] = field(default_factory=WorkerArgs)


def main(args: Args) -> None:
    """Predicts, and prints a summary."""
    with command.loading():
        from pipeline.evaluation.batch_predict.results import SUMMARY_NAME
        from pipeline.evaluation.batch_predict.run import predict

    with command.Display() as display:
        result = predict(args.checkpoint, args.input, args.out, args.views, args.worker.make(), display)
    frequent = sorted(result.per_class.items(), key=lambda item: -item[1])[:_SHOWN]
    rate = ": they were finished before"
    if result.predicted_now:
        rate = f", {result.predicted_now / result.seconds:,.0f} images/s"
    command.print_table(
        f"\n{result.model} on {_inputs(args.input)}",
        [
            ("images", f"{result.images:,}{rate}"),
            ("not images", _skipped(result.skipped, result.skipped_kinds)),
            ("UNUSABLE" if result.unusable else "unusable", _unusable(result.unusable, result.first_errors)),
            ("most frequent", ", ".join(f"{name} {count:,}" for name, count in frequent if count)),
            ("test views", result.views),
            ("predictions", files.join(result.out, "part-*.parquet")),
            ("summary", files.join(result.out, SUMMARY_NAME)),
        ],
    )


def _inputs(inputs: tuple[str, ...]) -> str:
    return files.absolute(inputs[0]) if len(inputs) == 1 else f"{inputs[0]} and {len(inputs) - 1:,} more"


def _skipped(count: int, kinds: dict[str, int]) -> str:
    named = ", ".join(f"{kind} {number:,}" for kind, number in list(kinds.items())[:_SHOWN])
    return f"{count:,} file{'' if count == 1 else 's'}{f' ({named})' if named else ''}"


def _unusable(count: int, first: tuple[str, ...]) -> str:
    return f"{count:,}, see the column error; first {first[0]}" if count else "none"


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
