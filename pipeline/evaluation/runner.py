"""Runs an evaluation: every row of a split is predicted exactly once, in this process or by Ray Train workers.

The result is `predictions.parquet`; on request also `kept.npy` (logits or features) and `robustness.json`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from pipeline.cluster.resources import this_node
from pipeline.config.choices import TestViews
from pipeline.core.errors import RecipeError
from pipeline.core.progress import Progress, message, silent
from pipeline.dataset import manifest
from pipeline.dataset.manifest import Manifest
from pipeline.evaluation.analysis.corruptions import CorruptionTally, add_tallies
from pipeline.evaluation.distributed import gather_objects, predict_distributed
from pipeline.evaluation.inference import Predictor
from pipeline.evaluation.output_files import write_kept, write_robustness
from pipeline.evaluation.predictions import UNIT_ROWS, Keep, write_predictions
from pipeline.loader.batch import Batch
from pipeline.loader.decode import DecoderName, best_decoder
from pipeline.loader.device.copy_ahead import copied_ahead
from pipeline.loader.normalise import Normalise
from pipeline.loader.samplers import EvaluationSampler, train_eval_split
from pipeline.loader.streaming.carrier import stream_source
from pipeline.loader.streaming.plan import Source, StreamPlan
from pipeline.loader.transform import evaluation_transform
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.models.class_lists.network import MappedClasses
from pipeline.models.load import TrainedModel, check_classes, find_model, load_net
from pipeline.storage import files

HELD_OUT = "held-out"


@dataclass(frozen=True)
class EvaluateJob:
    """Configuration of an evaluation. All URIs are absolute."""

    checkpoint: str  # a finished run, or RUN/checkpoints/STEP
    dataset: str
    out: str  # the folder that gets the results
    split: str = "val"
    views: TestViews = "none"  # test views of each image
    first_row: int = 0
    rows: int = 0  # number of rows from `first_row` on; 0 for all
    num_workers: int = 0  # 0 evaluates in this process
    use_gpu: bool = False  # one GPU for each worker
    on_cpu: bool = False  # this process leaves its GPU alone; workers have one only if `use_gpu`
    cpus_per_worker: float = 1.0  # reserved in Ray, and rounded down the number of torch threads
    severities: tuple[int, ...] = ()  # 1 to 5: also evaluates every corruption at each of them
    robustness_rows: int = 0  # rows that are corrupted; 0 for all
    keep: Keep = "nothing"  # also writes `kept.npy`: logits, or features, the inputs of the last layer
    decoder: DecoderName = field(default_factory=best_decoder)  # chosen here, for all workers must use the same
    class_map: ClassMap | None = None  # where the model's classes aren't the data set's; None: they must be
    progress: Progress = silent  # called after each batch of rank 0

    def row_range(self, data: Manifest) -> range:
        """Returns the rows that are evaluated. Raises RecipeError if the split has fewer."""
        available = data.split(self.split).rows - self.first_row
        if not 0 <= self.rows <= available:
            raise RecipeError(f"rows={self.rows} from {self.first_row} on: {self.split} has {available} of them")
        return range(self.first_row, self.first_row + (self.rows or available))


def split_rows(name: str, data: Manifest, model: TrainedModel) -> tuple[str, int, int]:
    """Returns (split, first row, number of rows) of a split, or of "held-out": the rows of train not trained on.

    Raises RecipeError for "held-out" if the model's run held nothing out or was trained on another data set, and
    DatasetError for an unknown split.
    """
    if name != HELD_OUT:
        return name, 0, data.split(name).rows
    if not model.hold_out:
        raise RecipeError(f"split={HELD_OUT}: the run was trained on all of train; train one with --hold-out 0.1")
    if model.dataset_digest != data.digest:
        raise RecipeError(f"split={HELD_OUT}: the run was trained on another data set; give that one with --data")
    parts = train_eval_split(data, model.hold_out)
    return parts.split, parts.first_row, parts.rows


def run_evaluation(job: EvaluateJob) -> None:
    """Evaluates, and returns when `predictions.parquet` is at `job.out`. Needs a Ray session if there are workers."""
    if not job.num_workers:
        _evaluate(job, 0, 1, torch.device("cuda" if torch.cuda.is_available() and not job.on_cpu else "cpu"))
        return
    import ray.train
    import ray.train.torch

    from pipeline.cluster.ray_train import fit_trainer, scaling_config

    filesystem, path = files.open_filesystem(job.out)
    fit_trainer(
        ray.train.torch.TorchTrainer(
            _worker_loop,
            train_loop_config={"job": job},
            scaling_config=scaling_config(job.num_workers, job.use_gpu, job.cpus_per_worker),
            run_config=ray.train.RunConfig(
                name=path.rsplit("/", 1)[1], storage_path=path.rsplit("/", 1)[0], storage_filesystem=filesystem
            ),
        )
    )


def _worker_loop(config: dict[str, Any]) -> None:
    """Evaluates one worker's part; Ray Train calls it in each worker. config: {"job": EvaluateJob}."""
    import ray.train.torch

    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config["job"].cpus_per_worker)))
    _evaluate(config["job"], context.get_world_rank(), context.get_world_size(), device)
    ray.train.report({})  # a barrier: no worker leaves before rank 0 has written the predictions


def _evaluate(job: EvaluateJob, rank: int, world_size: int, device: torch.device) -> None:
    data, model = manifest.load(job.dataset), find_model(job.checkpoint)
    if job.class_map is None:
        check_classes(model, data.classes)
    recipe, rows = model.recipe, job.row_range(data)
    net, normalise = load_net(model, device), Normalise(recipe.pixel_mean, recipe.pixel_std).to(device)
    net = net if job.class_map is None else MappedClasses(net, job.class_map)
    num_answers = len(data.classes if job.class_map is None else job.class_map.answers)
    predictor = Predictor(net, normalise, num_answers, recipe.loss, job.views, job.keep)
    view = evaluation_transform(recipe, job.decoder)
    units = EvaluationSampler(len(rows), UNIT_ROWS, world_size, rank, rows.start)
    progress = job.progress if rank == 0 else silent
    rank_nodes = gather_objects(this_node(), world_size)
    plan = StreamPlan(job.dataset, data.split(job.split), units, view)
    source = stream_source(plan, device, rank_nodes, partial(message, progress))
    batches: Iterable[Batch] = _batches(source, device, len(units), progress)
    # Corruptions are counted on the batches as they pass, so that every image is read and decoded once.
    tally = CorruptionTally(job.severities, rows.start + (job.robustness_rows or len(rows)))
    if job.severities:
        batches = tally.count(batches, net, normalise)
    predictions = predict_distributed(predictor, batches, rows, world_size)
    tallies = gather_objects(tally, world_size)
    if rank == 0:
        write_predictions(job.out, job.dataset, data.split(job.split), predictions)
        if job.keep != "nothing":
            write_kept(job.out, predictions.kept)
        if job.severities:
            write_robustness(job.out, add_tallies(tallies).lines(view.size_px))


def _batches(source: Source, device: torch.device, num_batches: int, progress: Progress) -> Iterator[Batch]:
    for batch in copied_ahead(source, device):
        yield batch.to(device)
        progress("evaluate", batch.index + 1, num_batches)
