"""What a training run is told: a recipe, a data set, a place, and how to go about it."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.cluster.resources import check_stream_resources, node_cpus, wait_for_resources, worker_cpus
from pipeline.config.choices import OnCorrupt
from pipeline.config.recipe import Recipe
from pipeline.core.errors import CheckpointError
from pipeline.core.progress import Progress, silent
from pipeline.loader.decode import DecoderName, best_decoder
from pipeline.storage import files
from pipeline.training.trackers import MakeTracker


@dataclass(frozen=True)
class Weights:
    """Weights that a run begins with or learns from: where they are, and the SHA-256 of the file."""

    uri: str
    sha256: str


def weights_of(field_name: str, uri: str, file: str = "") -> Weights:
    """Returns the weights at `uri`, of whose `file` the SHA-256 is. Raises CheckpointError if it isn't there."""
    place = files.join(uri, file) if file else uri
    if not files.exists(place):
        raise CheckpointError(f"{field_name}={uri}: no such file{f' ({file})' if file else ''}; give one that exists")
    return Weights(uri, hashlib.sha256(files.read_bytes(place)).hexdigest())


@dataclass(frozen=True)
class TrainJob:
    """A training run. dataset and run are absolute URIs; num_workers 0 means in this process; decoder: on all nodes.

    max_workers: as many as there is room for, from num_workers on; 0 for num_workers. resize_seconds: when to look.
    hold_out: a share of train that isn't trained on, and evaluated instead of val (`units.train_eval_split`).
    on_corrupt: "stop", or "quarantine" to go on without images whose bytes have changed; they are counted and named.
    max_skipped_steps: steps whose loss or gradient isn't finite that are left out; one more stops the run.
    replay_steps: 0 trains; otherwise so many steps after the run's checkpoint are repeated, and nothing but their
    losses is written.
    trackers: who is told how it gets on; they don't change what a run is.
    pretrained: weights to begin with; teacher: a finished run to learn from (`distill.Teacher`).
    hang_seconds: without any progress, before a worker ends itself; 0 for never.
    cache: a folder on each node, where a stream keeps what it reads of object storage; empty for none.
    """

    dataset: str
    run: str
    recipe: Recipe
    seed: int = 0
    num_workers: int = 0
    max_workers: int = 0
    use_gpu: bool = False
    cpus_per_worker: float = 1.0
    hold_out: float = 0.0
    trace_rows: bool = False
    cache: str = ""
    on_corrupt: OnCorrupt = "stop"
    max_skipped_steps: int = 0
    pretrained: Weights | None = None
    teacher: Weights | None = None
    hang_seconds: float = 1800
    resize_seconds: float = 60
    replay_steps: int = 0
    decoder: DecoderName = field(default_factory=best_decoder)
    trackers: tuple[MakeTracker, ...] = ()
    progress: Progress = silent

    def identity(self, digest: str) -> dict[str, Any]:
        """What a run is: two jobs of the same identity may continue each other's checkpoints."""
        values = {
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "dataset_digest": digest,
            "decoder": self.decoder,
            "pretrained": self.pretrained and self.pretrained.sha256,
            "teacher": self.teacher and self.teacher.sha256,
            "hold_out": self.hold_out,
        }
        identity: dict[str, Any] = json.loads(json.dumps(values))
        return identity


def fitted(job: TrainJob, wait_minutes: float, progress: Progress) -> TrainJob:
    """Returns the job with the CPUs of a worker, when the running cluster has room for it.

    Raises ClusterError if it hasn't within the minutes, or no CPU would be left for reading.
    """
    if not job.num_workers:
        return job
    pass

    wait_for_resources(job.num_workers, job.use_gpu, wait_minutes, progress)
    cpus = worker_cpus(job.num_workers, job.use_gpu, node_cpus(that_train=True))
    check_stream_resources(job.num_workers, cpus, sum(node_cpus()))
    return replace(job, cpus_per_worker=int(100 * cpus) / 100)
