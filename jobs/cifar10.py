"""Trains and evaluates an image classifier on this machine: on CIFAR-10, or on images of yours.

Examples:
uv run jobs/cifar10.py --run-dir runs/first
uv run jobs/cifar10.py --data photos/ --run-dir runs/photos
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
from dataclasses import dataclass
from typing import Annotated

from jobs.arguments import training
from jobs.terminal import command
from jobs.terminal.training_result import describe_dataset, print_result
from pipeline.core.progress import begin
from pipeline.ingestion.prepare import prepare_dataset
from pipeline.storage import files
from pipeline.storage.places import check_folder
from pipeline.training.workflow import choose_settings, new_run, train


@dataclass(frozen=True)
class DataArgs:
    """What to train on."""

    data: Annotated[
        str | None,
        command.option("raw images (folder, tar, CIFAR archive) or a data set", "URI", "CIFAR-10, downloaded once"),
    ] = None


@dataclass(frozen=True)
class OutputArgs:
    """Where the run is written and reported."""

    run_dir: Annotated[
        str | None, command.option("folder of the run; the same again continues it", "DIR", "a new one in runs/")
    ] = None
    resume: Annotated[bool, command.option("go on with the newest run in runs/ of these data, recipe and seed", "")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class Args(training.TrainingArgs):
    """Without --data: the cached CIFAR-10, else a download, else (offline) scikit-learn's digits."""

    data: Annotated[DataArgs, command.group("data")] = DataArgs()
    output: Annotated[OutputArgs, command.group("output")] = OutputArgs()


def main(args: Args) -> None:
    """Trains, from raw images to the report."""
    check_folder(args.output.run_dir or "runs", "run-dir")  # at once: the check of the recipe loads torch
    recipe, options = args.check(training.UNKNOWN_YET)
    with command.Display() as display:
        dataset = prepare_dataset(
            args.raw.source(args.data.data), max_quarantined=args.raw.max_quarantined, progress=display
        )
    opened = describe_dataset(dataset)
    data = opened.manifest
    run = args.output.run_dir
    if args.output.resume and run is None:
        run = training.run_to_resume(files.absolute("runs"), data, args.recipe, options)
    if args.recipe.recipe is None:
        with command.Display() as display:
            begin(display, "loading PyTorch, choosing a recipe")
            recipe, options = choose_settings(opened, run and files.absolute(run), options, args.recipe.make)
    run = run or new_run(recipe, data.name)
    command.goes_on_with("--run-dir", run)
    with command.Display() as display:
        result = train(opened, run, recipe, workers=args.workers.workers, options=options, progress=display)
    print_result(run, data, result)


RESUME_HINT = "the same run goes on with"

if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
