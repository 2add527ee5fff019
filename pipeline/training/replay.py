"""The steps after a checkpoint once more, and whether they give the losses that the run wrote down."""

from dataclasses import dataclass, replace
from typing import Any

from pipeline.config.recipe_json import recipe_from_json
from pipeline.core.errors import CheckpointError
from pipeline.models import checkpoint
from pipeline.models.identity import check_identity
from pipeline.storage import files
from pipeline.training import loop as train
from pipeline.training.job import TrainJob, Weights


@dataclass(frozen=True)
class Replay:
    """first: step number of the first; recorded, repeated: losses of the steps from there, means of global batches."""

    first: int
    recorded: list[float]
    repeated: list[float]

    @property
    def differing(self) -> list[int]:
        """Steps whose losses aren't the same to the last bit."""
        pairs = zip(self.recorded, self.repeated, strict=True)
        return [self.first + number for number, (old, new) in enumerate(pairs) if old != new]


def recorded_losses(run: str) -> list[float]:
    """Returns the losses of a run as far as it got: of its model, or of its newest checkpoint."""
    output = files.join(run, checkpoint.OUTPUT_NAME)
    if files.exists(output):
        losses: list[float] = files.read_json(output)["state"]["losses"]
        return losses
    newest = checkpoint.latest(run)
    if newest is None:
        raise CheckpointError(f"{run}: no run with checkpoints; give one that --run-dir or --run-name made")
    return checkpoint.load(newest).tensors["losses"].tolist()


def prepare(
    uri: str, dataset: str, scratch: str, num_steps: int, teacher: Weights | None = None
) -> tuple[TrainJob, list[float]]:
    """Returns a job that repeats the steps after the checkpoint at `uri` in the folder `scratch`, and recorded losses.

    Raises CheckpointError if the run didn't get on from there, or data set or teacher aren't the run's.
    """
    run = uri.split(f"/{checkpoint.FOLDER}/")[0]
    meta = checkpoint.read_state(uri)
    losses, first = recorded_losses(run), meta["step"]
    count = min(num_steps, len(losses) - first)
    if count < 1:
        raise CheckpointError(f"{uri}: nothing is recorded after step {first}; give an earlier checkpoint")
    identity: dict[str, Any] = meta["state"]["identity"]
    job = TrainJob(
        dataset,
        scratch,
        recipe_from_json(identity["recipe"]),
        identity["seed"],
        decoder=identity["decoder"],
        pretrained=Weights("", identity["pretrained"]) if identity["pretrained"] else None,
        teacher=teacher,
        hold_out=identity["hold_out"],
        replay_steps=count,
    )
    data = train.check_job(job)
    check_identity(uri, identity, job.identity(data.digest))
    place = checkpoint.folder(scratch, first)
    for name in [*meta["parts"], checkpoint.STATE_NAME]:
        files.write_bytes(files.join(place, name), files.read_bytes(files.join(uri, name)))
    files.write_json(files.join(scratch, checkpoint.LATEST_NAME), {"step": first})
    return replace(job, num_workers=meta["state"]["world_size"]), losses[first : first + count]


def replay(job: TrainJob, recorded: list[float]) -> Replay:
    """Runs a prepared job and returns both sides."""
    train.run(job)
    losses: list[float] = files.read_json(files.join(job.run, train.REPLAY_NAME))
    first = len(losses) - len(recorded)
    return Replay(first, recorded, losses[first:])
