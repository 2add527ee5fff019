"""Says what a trained model takes any images for: a folder, an archive or a bucket's prefix, by Ray Data.

uv run jobs/predict.py --checkpoint RUN --input URI --out OUT
"""

import tempfile
from dataclasses import dataclass
from typing import Annotated

from jobs import command
from pipeline.cluster import resources
from pipeline.cluster.session import ray_session
from pipeline.config.choices import TestViews
from pipeline.core.errors import RecipeError
from pipeline.loader.decode import best_decoder
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
    from pipeline.evaluation.batch_predict import run as batch_predict
    from pipeline.models import load as trained

    gpus = resources.count_gpus()
    workers = args.workers if args.workers is not None else max(1, gpus)
    if workers < 1:
        raise RecipeError(f"workers={workers} must be 1 or more")
    model = trained.find_model(files.absolute(args.checkpoint))
    source, out = files.absolute(args.input), files.absolute(args.out)
    with tempfile.TemporaryDirectory() as spool:
        with command.Display() as display:
            samples, others = batch_predict.find_images(source, spool, display)
        views = args.views or model.recipe.test_views
        with ray_session(workers), command.Display() as display:
            use_gpu = resources.workers_use_gpus(args.device, workers, gpus)
            resources.wait_for_resources(workers, use_gpu, args.wait_minutes, display)
            threads = max(1, int(sum(resources.node_cpus()) - 1) // workers)
            job = batch_predict.PredictJob(model, samples, out, views, best_decoder(), workers, use_gpu, threads)
            done = batch_predict.predict(job, display)
    most = sorted(done.per_class.items(), key=lambda item: -item[1])[:_SHOWN]
    rate = f", {done.predicted_now / done.seconds:,.0f} images/s" if done.predicted_now else ": they were there already"
    command.print_table(
        f"\n{model.name} on {source}",
        [
            ("images", f"{done.images:,}{rate}"),
            ("not images", f"{others:,} files, by their names"),
            ("UNUSABLE" if done.unusable else "unusable", _unusable(done.unusable, done.first_errors)),
            ("most frequent", ", ".join(f"{name} {count:,}" for name, count in most if count)),
            ("test views", views),
            ("predictions", files.join(out, "part-*.parquet")),
            ("summary", files.join(out, batch_predict.SUMMARY_NAME)),
        ],
    )


def _unusable(count: int, first: tuple[str, ...]) -> str:
    return f"{count:,}, see the column error; first {first[0]}" if count else "none"


RESUME_HINT = "the same command continues after the last finished part"

if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
