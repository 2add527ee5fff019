"""Replay: repeats the steps after a checkpoint, and compares their losses with those that the run recorded."""

import contextlib
import math
import tempfile
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from pipeline.cluster.resources import count_gpus, workers_use_gpus
from pipeline.config.recipe_json import recipe_from_json
from pipeline.core.errors import CheckpointError
from pipeline.core.finite import finite_or_none
from pipeline.core.progress import Progress, silent
from pipeline.models import checkpoint
from pipeline.models.identity import check_identity
from pipeline.storage import files
from pipeline.training.job import TrainJob, Weights, teacher_weights
from pipeline.training.launch import check_job, run_training
from pipeline.training.loop import Due, count_results, report, run_steps
from pipeline.training.resume import numerics
from pipeline.training.selection.choose import SELECTION_NAME
from pipeline.training.setup import set_up
from pipeline.training.workflow import training_session

REPLAY_NAME = "replayed.json"


@dataclass(frozen=True)
class Replay:
    """Losses of the same steps, recorded and repeated; NaN for a step that was skipped."""

    first: int
    """Number of the first step."""
    recorded: list[float]
    """Loss of each step in the run, the mean over its global batch."""
    repeated: list[float]
    """Loss of each step in the replay."""

    @property
    def differing(self) -> list[int]:
        """Numbers of the steps whose losses aren't the same to the last bit."""
        return [self.first + number for number, difference in enumerate(self._differences()) if difference]

    @property
    def largest_difference(self) -> float:
        """The largest relative difference of a loss; infinite where a step was skipped on one side alone."""
        return max(self._differences())

    def _differences(self) -> list[float]:
        return [_relative_difference(old, new) for old, new in zip(self.recorded, self.repeated, strict=True)]


def _relative_difference(old: float, new: float) -> float:
    if math.isnan(old) or math.isnan(new):
        return 0.0 if math.isnan(old) and math.isnan(new) else math.inf
    return abs(new - old) / max(abs(old), 1e-12)


@dataclass(frozen=True)
class ReplaySchedule:
    """The schedule of a replay: every step is a line, and nothing else is due."""

    first_step: int
    last_step: int
    stage: str = "replay"

    def due(self, step: int) -> Due:
        """Returns what is due after `step` steps of the run."""
        return Due(line=True)

    def progress(self, step: int) -> tuple[int, int]:
        """Returns the steps repeated and the steps to repeat."""
        return step - self.first_step, self.last_step - self.first_step


def replay_loop(config: dict[str, Any]) -> None:
    """Repeats steps, as one worker of Ray Train. config: {"job": TrainJob, "num_steps": how many}."""
    import ray.train

    with contextlib.ExitStack() as exits:
        worker = set_up(config["job"], exits)
        first_step = worker.state.step
        last_step = min(worker.num_steps, first_step + config["num_steps"])
        schedule = ReplaySchedule(first_step, last_step)
        run_steps(worker, schedule)
        count_results(worker, worker.state.step)
        report(worker, schedule, catch_up=True)
        if worker.batches.rank == 0:
            files.write_json(files.join(worker.job.run, REPLAY_NAME), finite_or_none(worker.state.losses))
        ray.train.report({"step": worker.state.step})  # a barrier: no worker leaves before the losses are written


def replay_checkpoint(
    checkpoint_uri: str, dataset: str, num_steps: int = 20, teacher: str | None = None, progress: Progress = silent
) -> Replay:
    """Repeats up to `num_steps` steps after a checkpoint, with as many workers as the run had, and returns the losses.

    checkpoint_uri: a folder below RUN/checkpoints/, or a run, for its oldest checkpoint. dataset, teacher: those of the
    run. On CPUs, and on GPUs of the same kind where the run was `deterministic`, the losses are the same to the last
    bit. Writes nothing but a temporary folder. Raises CheckpointError if there is nothing to repeat, or if data set or
    teacher are others.
    """
    uri = files.absolute(checkpoint_uri).rstrip("/")
    if not checkpoint.is_checkpoint(uri) and (steps := checkpoint.steps(uri)):
        uri = checkpoint.folder(uri, steps[0])
    weights = teacher_weights(teacher) if teacher else None
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch:
        job, recorded = prepare_replay(uri, files.absolute(dataset), scratch, num_steps, weights)
        gpus = count_gpus()
        # On CPUs a run of one worker and a run in its own process are the same: the latter needs no Ray.
        num_workers = 0 if not gpus and job.num_workers == 1 else job.num_workers
        job = replace(job, num_workers=num_workers, use_gpu=workers_use_gpus("auto", job.num_workers, gpus))
        with training_session(job, progress=progress) as ready:
            return run_replay(ready, recorded)


def recorded_losses(run: str) -> list[float]:
    """Returns the losses of a run as far as it got, from its model or its newest checkpoint; NaN for skipped steps."""
    output = files.join(run, checkpoint.OUTPUT_NAME)
    if files.exists(output):
        found = files.as_record(files.read_json(output), output, _Output, "give another run")
        return _from_json(found.state.losses)
    newest = checkpoint.latest(run)
    if newest is None:
        raise CheckpointError(f"{run}: no run with checkpoints; give the --run-dir or --run-name of a run")
    return checkpoint.load(newest).tensors["losses"].tolist()


class _Losses(msgspec.Struct):
    losses: list[float | None]


class _Output(msgspec.Struct):
    state: _Losses


def _from_json(losses: list[float | None]) -> list[float]:
    return [math.nan if loss is None else loss for loss in losses]


def prepare_replay(
    uri: str, dataset: str, scratch: str, num_steps: int, teacher: Weights | None = None
) -> tuple[TrainJob, list[float]]:
    """Returns a job that repeats up to `num_steps` steps after the checkpoint at `uri`, and their recorded losses.

    scratch: an empty folder, which becomes the job's run. Raises CheckpointError if the run recorded no step after the
    checkpoint, or if the data set or the teacher isn't the run's.
    """
    run = uri.split(f"/{checkpoint.FOLDER}/")[0]
    meta = checkpoint.read_state(uri)
    losses, first = recorded_losses(run), meta["step"]
    recorded = losses[first : first + num_steps]
    if not recorded:
        raise CheckpointError(f"{uri}: no step after step {first} is recorded; give an earlier checkpoint")
    identity: dict[str, Any] = meta["state"]["identity"]
    computed = numerics(run, first)
    job = TrainJob(
        dataset,
        scratch,
        recipe_from_json(identity["recipe"]),
        identity["seed"],
        decoder=identity["decoder"],
        pretrained=Weights("", identity["pretrained"]) if identity["pretrained"] else None,
        teacher=teacher,
        hold_out=identity["hold_out"],
        # Steps that the run skipped, before the checkpoint and after it, are skipped again.
        max_skipped_steps=len(meta["state"]["skipped"]) + sum(math.isnan(loss) for loss in recorded),
        compile=computed["compile"],
        deterministic=computed["deterministic"],
        fsdp=computed["fsdp"],
    )
    data = check_job(job)
    check_identity(uri, identity, job.identity(data.digest))
    place = checkpoint.folder(scratch, first)
    for name in [*meta["parts"], checkpoint.STATE_NAME]:
        files.write_bytes(files.join(place, name), files.read_bytes(files.join(uri, name)))
    if files.exists(files.join(run, SELECTION_NAME)):
        files.write_bytes(files.join(scratch, SELECTION_NAME), files.read_bytes(files.join(run, SELECTION_NAME)))
    files.write_json(files.join(scratch, checkpoint.LATEST_NAME), {"step": first})
    return replace(job, num_workers=meta["state"]["world_size"]), recorded


def run_replay(job: TrainJob, recorded: list[float]) -> Replay:
    """Runs a job of `prepare_replay`, and returns its losses beside the recorded ones. Needs Ray if the job does."""
    run_training(job, replay_loop, num_steps=len(recorded))
    losses = _from_json(files.read_json(files.join(job.run, REPLAY_NAME)))
    first = len(losses) - len(recorded)
    return Replay(first, recorded, losses[first:])
