"""Trains and evaluates an image classifier on this machine: CIFAR-10, or a data set of yours.

uv run jobs/cifar10.py [--data PATH_OR_URI] [--recipe NAME] [--workers N] [--epochs E] [--seed S] [--run-dir DIR]
"""

import time
from dataclasses import dataclass
from typing import Annotated

from jobs import command, training
from pipeline.cluster import resources
from pipeline.ingestion.prepare import prepare_dataset
from pipeline.ingestion.sources import digits
from pipeline.storage import files


@dataclass(frozen=True)
class DataArgs:
    """What to train on, and where to."""

    data: Annotated[
        str | None,
        command.option("raw images (folder, tar, CIFAR archive) or a data set", "URI", "CIFAR-10, downloaded once"),
    ] = None
    run_dir: Annotated[str | None, command.option("the same again continues it", "DIR", "a new one in runs/")] = None


@dataclass(frozen=True)
class Args(training.TrainingArgs, DataArgs):
    """Without --data: the cached CIFAR-10, else a download, else (offline) scikit-learn's digits."""


def main(args: Args) -> None:
    """The whole path, from raw images to a report."""
    recipe = args.make_recipe("cifar10")
    with command.Display() as display:
        dataset = prepare_dataset(args.data, layout=args.layout, md5=args.md5, progress=display)
    data = training.describe_dataset(dataset)
    if args.recipe is None and data.name == digits.NAME:
        recipe = args.make_recipe("digits")

    gpus = resources.count_gpus()
    workers = gpus if args.workers is None else args.workers
    default_run = f"runs/{recipe.name}-{data.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = files.absolute(args.run_dir or default_run)
    job = args.make_job(dataset, run, recipe, workers, gpus)
    training.train_here(job, args.wait_minutes)


RESUME_HINT = "the same command with the same --run-dir continues from the last checkpoint"

if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
