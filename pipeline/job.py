"""What a training run is told: a recipe, a data set, a place, and how to go about it."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline import storage
from pipeline.decode import DecoderName, best_decoder
from pipeline.errors import CheckpointError
from pipeline.progress import Progress, silent
from pipeline.recipes import OnCorrupt, Recipe
from pipeline.tracking import MakeTracker

# Label of a Ray node on which no worker trains: `ray start --labels image-pipeline/role=augment`.
AUGMENT_NODES = ("image-pipeline/role", "augment")
TRAINING_NODES = {AUGMENT_NODES[0]: f"!{AUGMENT_NODES[1]}"}  # all others, as Ray selects by labels


@dataclass(frozen=True)
class Weights:
    """Weights that a run begins with or learns from: where they are, and the SHA-256 of the file."""

    uri: str
    sha256: str


def weights_of(field_name: str, uri: str, file: str = "") -> Weights:
    """Returns the weights at `uri`, of whose `file` the SHA-256 is. Raises CheckpointError if it isn't there."""
    place = storage.join(uri, file) if file else uri
    if not storage.exists(place):
        raise CheckpointError(f"{field_name}={uri}: no such file{f' ({file})' if file else ''}; give one that exists")
    return Weights(uri, hashlib.sha256(storage.read_bytes(place)).hexdigest())


@dataclass(frozen=True)
class TrainJob:
    """A training run. dataset and run are absolute URIs; num_workers 0 means in this process; decoder: on all nodes.

    max_workers: as many as there is room for, from num_workers on; 0 for num_workers. resize_seconds: when to look.
    hold_out: a share of train that isn't trained on, and evaluated instead of val (`units.parts_of`).
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
