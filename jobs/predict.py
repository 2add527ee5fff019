"""Says what a trained model takes any images for: a folder, an archive or a bucket's prefix, by Ray Data.

uv run jobs/predict.py --checkpoint RUN --input URI --out OUT
"""

from dataclasses import dataclass
from typing import Annotated

from jobs import command
from pipeline.cluster import resources
from pipeline.config.choices import TestViews
from pipeline.storage import files

_SHOWN = 5


@dataclass(frozen=True)
class Args:
    """Flags."""

    checkpoint: Annotated[str, command.option("a finished run, or RUN/checkpoints/STEP", "URI")]
    input: Annotated[str, command.option("a folder, an image, a tar, or a prefix of a bucket", "URI")]
    out: Annotated[str, command.option("where the predictions go, as Parquet", "URI")]
    views: Annotated[TestViews | None, command.option("of each image", "NAME", "the recipe's")] = None
    workers: Annotated[int | None, command.option("that hold the network", "N", "one a GPU, else one")] = None
    device: Annotated[resources.Device, command.option(resources.DEVICE_HELP, "KIND", "auto")] = "auto"
    wait_minutes: Annotated[float, command.option(resources.WAIT_HELP, "N", "0")] = 0


def main(args: Args) -> None:
    """Predicts, and prints what came of it."""
    from pipeline.evaluation.batch_predict.run import predict
    from pipeline.evaluation.workers import Workers

    workers = Workers(args.workers, args.device, args.wait_minutes)
    with command.Display() as display:
        done = predict(args.checkpoint, args.input, args.out, args.views, workers, display)
    most = sorted(done.per_class.items(), key=lambda item: -item[1])[:_SHOWN]
    rate = f", {done.predicted_now / done.seconds:,.0f} images/s" if done.predicted_now else ": they were there already"
    command.print_table(
        f"\n{done.model} on {files.absolute(args.input)}",
        [
            ("images", f"{done.images:,}{rate}"),
            ("not images", f"{done.skipped:,} files, by their names"),
            ("UNUSABLE" if done.unusable else "unusable", _unusable(done.unusable, done.first_errors)),
            ("most frequent", ", ".join(f"{name} {count:,}" for name, count in most if count)),
            ("test views", done.views),
            ("predictions", files.join(done.out, "part-*.parquet")),
            ("summary", files.join(done.out, "predictions.json")),
        ],
    )


def _unusable(count: int, first: tuple[str, ...]) -> str:
    return f"{count:,}, see the column error; first {first[0]}" if count else "none"


RESUME_HINT = "the same command continues after the last finished part"

if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
