"""Runs a batch prediction by Ray Data: tasks decode on any CPU, and a pool of actors predicts.

The results are written part by part. A call that was interrupted is continued by the same call: finished parts stay.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipeline.cluster import resources
from pipeline.cluster.address import cluster_address
from pipeline.cluster.ray_tasks import TASK_CPUS, map_in_order
from pipeline.cluster.session import ray_session
from pipeline.config.choices import TestViews
from pipeline.core.errors import CheckpointError, ExactnessError, RecipeError
from pipeline.core.progress import Progress, begin, silent
from pipeline.core.thread_warnings import thread_warnings
from pipeline.dataset.parquet import parquet_bytes
from pipeline.evaluation.batch_predict.decode_task import UNIT_IMAGES, Arrays, DecodeTask
from pipeline.evaluation.batch_predict.images import find_images, input_uris
from pipeline.evaluation.batch_predict.job import PredictJob
from pipeline.evaluation.batch_predict.results import PredictResult, unit_table, write_summary
from pipeline.evaluation.batch_predict.worker import PredictWorker
from pipeline.evaluation.inputs import StrPath, Workers, absolute_uri
from pipeline.evaluation.workers import as_workers
from pipeline.loader.decode import best_decoder
from pipeline.loader.transform import evaluation_transform
from pipeline.models.load import find_model
from pipeline.storage import files
from pipeline.storage.places import check_folder, claim_folder

PLAN_NAME = "plan.json"


def predict(
    run: StrPath,
    input: StrPath | Sequence[StrPath],
    out: StrPath,
    views: TestViews | None = None,
    workers: Workers | int | None = None,
    progress: Progress = silent,
) -> PredictResult:
    """Predicts the class of every image in folders, buckets, archives or files, and returns a summary.

        result = predict("runs/digits", "photos/", "predictions/")
        print(result.images, result.unusable, result.per_class)

    run: a finished run, or RUN/checkpoints/STEP. input: one or several of: a folder or a prefix of a bucket with
    everything below it, an archive, an image, or a pattern such as "new/*.jpg". A file is an image by its name or its
    first bytes. out: the folder that gets `part-*.parquet`, one row for each image with its
    key, the best five classes and their probabilities, or an error; and `predictions.json`. views: test views of each
    image; None takes the recipe's. workers: number of actors that hold the network, or `Workers`; by default one for
    each GPU, else one.

    Joins a Ray session, or starts one on this machine for the time of the call; for a few images without Ray use
    `load_model`. An interrupted call is continued by the same call. Raises CheckpointError if the run isn't finished or
    `out` holds other predictions, SourceError if there are no images, and ClusterError if there is no room for the
    workers.
    """
    with prepared_job(run, input, out, views, workers, progress) as job:
        return run_prediction(job, progress)


@contextmanager
def prepared_job(
    run: StrPath,
    input: StrPath | Sequence[StrPath],
    out: StrPath,
    views: TestViews | None = None,
    workers: Workers | int | None = None,
    progress: Progress = silent,
) -> Iterator[PredictJob]:
    """Yields the job of `predict` with the same arguments, in a Ray session that lasts for the block."""
    workers = as_workers(workers)
    gpus = resources.count_gpus()
    num = max(1, gpus) if workers.num is None else workers.num
    if num < 1:
        raise RecipeError(f"workers={num} must be 1 or more")
    model = find_model(absolute_uri(run))
    sources = [input] if isinstance(input, str | os.PathLike) else input
    uris, folder = input_uris(sources), absolute_uri(out)
    check_folder(folder, "out")
    with tempfile.TemporaryDirectory() as spool:
        begin(progress, "looking at the images")
        found = find_images(uris, spool, progress)
        begin(progress, "starting Ray")
        with ray_session(num):
            use_gpu = resources.workers_use_gpus(workers.device, num, gpus)
            resources.wait_for_resources(num, use_gpu, workers.wait_minutes, progress)
            threads = max(1, int(sum(resources.node_cpus()) - 1) // num)
            chosen = views or model.recipe.test_views
            yield PredictJob(model, found.table, folder, chosen, best_decoder(), num, use_gpu, threads, found.skipped)


def run_prediction(job: PredictJob, progress: Progress = silent) -> PredictResult:
    """Predicts every image, and returns a summary when all parts are at `job.out`. Needs a Ray session.

    Raises CheckpointError if the folder holds the predictions of another model or of other images.
    """
    claim(job)
    start = time.perf_counter()
    unfinished = [part for part in job.parts if not files.exists(job.part_uri(part))]
    units = [unit for part in unfinished for unit in part]
    total, done, predicted_now = job.images.num_rows, job.num_units - len(units), 0
    progress("predict", done * UNIT_IMAGES, total)
    rows = _execute(job, units)
    for part in unfinished:
        tables = list[pa.Table]()
        for unit in part:
            row = next(rows)
            if int(row["unit"][0]) != unit:
                raise ExactnessError(f"Ray Data returned unit {int(row['unit'][0])} instead of unit {unit}")
            tables.append(unit_table(job, unit, row))
            done, predicted_now = done + 1, predicted_now + tables[-1].num_rows
            progress("predict", min(total, done * UNIT_IMAGES), total)
        files.write_bytes(job.part_uri(part), parquet_bytes(pa.concat_tables(tables)))
    return write_summary(job, time.perf_counter() - start, predicted_now)


def claim(job: PredictJob) -> None:
    """Writes `plan.json` if there is none. Raises CheckpointError if the folder has the plan of another prediction."""
    uri, plan = files.join(job.out, PLAN_NAME), job.plan()
    if claim_folder(uri, plan, indent=None) != plan:
        raise CheckpointError(
            f"out={job.out}: holds predictions by another model, of other images or with other views; give another"
        )


def _execute(job: PredictJob, units: list[int]) -> Iterator[Arrays]:
    import ray

    if not units:
        return
    decode = DecodeTask(ray.put(job.images), evaluation_transform(job.model.recipe, job.decoder), job.recorded)

    def stages(source: Any) -> Any:
        with thread_warnings("ignore"):  # Ray calls `max_restarts` deprecated, and has nothing in its place yet
            return source.map_batches(decode, batch_size=1, num_cpus=TASK_CPUS).map_batches(
                PredictWorker,
                fn_constructor_args=(job.model, job.views, job.threads),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=job.num_workers),
                # A cluster's node may go. Of each actor with restarts Ray's core writes an error to the terminal.
                max_restarts=-1 if cluster_address() else 0,
                num_cpus=0 if job.use_gpu else 0.5,  # tasks and actors share the CPUs: neither waits for all of one
                num_gpus=1 if job.use_gpu else 0,
            )

    yield from map_in_order(units, stages)
