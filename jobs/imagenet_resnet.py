"""Trains and evaluates a ResNet (or another network) on ImageNet-like data, on a Ray cluster.

ray job submit --working-dir . -- python jobs/imagenet_resnet.py --data URI [--recipe NAME] [--workers N]
    [--storage URI] [--run-name NAME]
"""

import time
from dataclasses import dataclass
from typing import Annotated

from jobs import command, training
from pipeline.cluster.session import ray_session
from pipeline.ingestion.prepare import prepare_dataset
from pipeline.storage import files as storage


@dataclass(frozen=True, kw_only=True)
class DataArgs:
    """What to train on, and where to."""

    data: Annotated[str, command.option("raw images (ingested into the storage first) or a data set", "URI")]
    storage: Annotated[
        str, command.option("runs and data sets; all nodes must reach it", "URI", "~/image-pipeline")
    ] = "~/image-pipeline"
    run_name: Annotated[str | None, command.option("the same again continues it", "NAME", "a new one")] = None


@dataclass(frozen=True, kw_only=True)
class Args(training.TrainingArgs, DataArgs):
    """On several nodes --storage is s3://bucket/prefix or a shared folder."""


def main(args: Args) -> None:
    """The whole path, on the cluster that RAY_ADDRESS names, else on this machine."""
    recipe = args.make_recipe("resnet50")
    root = storage.absolute(args.storage)
    with ray_session(args.workers or 1):
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0))
        workers = max(1, gpus) if args.workers is None else args.workers
        with command.Display() as display:
            parent = storage.join(root, "datasets")
            dataset = prepare_dataset(args.data, parent, layout=args.layout, md5=args.md5, progress=display)
        training.describe_dataset(dataset)

        run = storage.join(root, "runs", args.run_name or f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        job = args.make_job(dataset, run, recipe, workers, gpus)
        training.train_on_cluster(job, args.wait_minutes)


RESUME_HINT = "the same command with the same --run-name continues from the last checkpoint"

if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
