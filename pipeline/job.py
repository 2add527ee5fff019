"""What a training run is told: a recipe, a data set, a place, and how to go about it."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.decode import DecoderName, best_decoder
from pipeline.progress import Progress, silent
from pipeline.recipes import OnCorrupt, Recipe
from pipeline.tracking import MakeTracker


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
    pretrained: URI of weights to begin with; hang_seconds: without any progress, before a worker ends itself; 0 for
    never.
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
    on_corrupt: OnCorrupt = "stop"
    max_skipped_steps: int = 0
    pretrained: str = ""
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
            "pretrained": self.pretrained,
            "hold_out": self.hold_out,
        }
        identity: dict[str, Any] = json.loads(json.dumps(values))
        return identity
