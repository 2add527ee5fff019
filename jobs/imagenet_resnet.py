"""Trains and evaluates a ResNet (or another network) on ImageNet-like data, on a Ray cluster.

Examples:
ray job submit --working-dir . -- python jobs/imagenet_resnet.py --data s3://bucket/imagenet --storage s3://bucket/work
uv run jobs/imagenet_resnet.py --data photos.tar --workers 1 --run-name photos
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated

from jobs.arguments import training
from jobs.terminal import command
from jobs.terminal.training_result import describe_dataset, print_result
from pipeline.cluster.session import ray_session
from pipeline.core.progress import begin
from pipeline.ingestion.prepare import check_data, prepare_dataset
from pipeline.storage import files
from pipeline.storage.places import check_folder
from pipeline.training.workflow import choose_settings, default_workers, train


@dataclass(frozen=True, kw_only=True)
class DataArgs:
    """What to train on."""

    data: Annotated[str, command.option("raw images (ingested into the storage first) or a data set", "URI")]


@dataclass(frozen=True, kw_only=True)
class OutputArgs:
    """Where data sets and runs are written and reported. On several nodes: s3://bucket/prefix or a shared folder."""

    storage: Annotated[
        str, command.option("folder of runs and data sets; all nodes must reach it", "URI", "~/image-pipeline")
    ] = "~/image-pipeline"
    run_name: Annotated[
        str | None, command.option("name of the run; the same again continues it", "NAME", "RECIPE-TIME")
    ] = None
    resume: Annotated[
        bool, command.option("go on with the newest run in the storage of these data, recipe and seed", "")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Args(training.TrainingArgs):
    """Flags of a training job on a cluster."""

    data: Annotated[DataArgs, command.group("data")]
    output: Annotated[OutputArgs, command.group("output")] = OutputArgs()


def main(args: Args) -> None:
    """Trains, from raw images to the report, on the cluster that RAY_ADDRESS names, else on this machine."""
    root = files.absolute(args.output.storage)
    check_folder(root, "storage")  # at once: the check of the recipe loads torch
    recipe, options = args.check(training.UNKNOWN_YET)
    check_data(args.raw.source(args.data.data))
    with ExitStack() as stack:
        with command.Display() as display:
            begin(display, "starting Ray")
            stack.enter_context(ray_session(args.workers.workers or 1))
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0))
        parent = files.join(root, "datasets")
        with command.Display() as display:
            dataset = prepare_dataset(
                args.raw.source(args.data.data), parent, max_quarantined=args.raw.max_quarantined, progress=display
            )
        opened = describe_dataset(dataset)
        data = opened.manifest
        runs, name = files.join(root, "runs"), args.output.run_name
        if args.output.resume and name is None:
            name = files.basename(training.run_to_resume(runs, data, args.recipe, options))
        if args.recipe.recipe is None:
            with command.Display() as display:
                begin(display, "loading PyTorch, choosing a recipe")
                recipe, options = choose_settings(opened, name and files.join(runs, name), options, args.recipe.make)
        name = name or f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        given = args.workers.workers
        workers = max(1, default_workers(recipe, gpus)) if given is None else given
        command.goes_on_with("--run-name", name)
        run = files.join(runs, name)
        with command.Display() as display:
            result = train(opened, run, recipe, workers=workers, options=options, progress=display)
        print_result(run, data, result)


RESUME_HINT = "the same run goes on with"

if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
