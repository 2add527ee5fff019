"""Configuration of a training run: a recipe, a data set, where the run lies, and how it is carried out."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.cluster.resources import node_cpus, wait_for_resources, worker_cpus
from pipeline.config.choices import OnCorrupt
from pipeline.config.recipe import Recipe
from pipeline.config.recipe_json import recipe_to_json
from pipeline.core.errors import CheckpointError, RecipeError
from pipeline.core.interrupts import StopRequest
from pipeline.core.progress import Progress, silent
from pipeline.dataset.cache_folder import CacheFolder
from pipeline.dataset.manifest import Manifest, load
from pipeline.loader.decode import DecoderName, best_decoder
from pipeline.loader.sampling.tables import table_digests
from pipeline.storage import files
from pipeline.training.trackers.base import MakeTracker


@dataclass(frozen=True)
class Weights:
    """A file of weights that a run starts from or learns from."""

    uri: str
    """URI of the file, or of the run that it belongs to."""
    sha256: str
    """SHA-256 of the file's bytes, in hex: part of the run's identity."""


def weights_of(field_name: str, uri: str, file: str = "") -> Weights:
    """Returns the weights at `uri`, with the SHA-256 of the file itself, or of `file` in the folder `uri`.

    field_name: for the message. Raises CheckpointError if the file doesn't exist.
    """
    place = files.join(uri, file) if file else uri
    if not files.exists(place):
        raise CheckpointError(f"{field_name}={uri}: no such file{f' ({file})' if file else ''}; give one that exists")
    return Weights(uri, hashlib.sha256(files.read_bytes(place)).hexdigest())


def teacher_weights(run: str) -> Weights:
    """Returns the weights of a finished run, to learn from. Raises CheckpointError if there is none."""
    from pipeline.models.checkpoint import MODEL_NAME  # loads torch

    return weights_of("teacher", files.absolute(run).rstrip("/"), MODEL_NAME)


@dataclass(frozen=True)
class TrainJob:
    """A training run. The recipe and the fields in `identity` decide its numbers; the others, how it is carried out."""

    dataset: str
    """URI of an ingested data set, absolute."""
    run: str
    """URI of the folder that the run writes, absolute; all nodes must reach it."""
    recipe: Recipe
    """Model, optimiser, schedule, augmentation: everything that the accuracy depends on."""
    seed: int = 0
    """Seed of the initial weights, the order of rows, and augmentation."""
    num_workers: int = 0
    """Number of training processes, one a GPU where there are GPUs; 0 trains in this process."""
    max_workers: int = 0
    """Largest number of workers of an elastic run, which grows and shrinks with the cluster between `num_workers` and
    this; 0 for always `num_workers`."""
    use_gpu: bool = False
    """Whether each worker gets a GPU. Without workers, torch takes the GPU that this process sees."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray reserves for each worker."""
    compile: bool = False
    """Whether to compile the network with torch.compile, as a recipe that says `compile` does, too."""
    fsdp: bool = False
    """Whether weights, gradients and optimiser states are spread over the workers (FSDP2), for a network that doesn't
    fit into one. Not part of the identity: a run may go on with or without it."""
    deterministic: bool = False
    """Whether a GPU repeats its numbers to the last bit, at the cost of speed."""
    hold_out: float = 0.0
    """Share of the training split, in [0, 1), that is not trained on, and evaluated instead of the validation split."""
    trace_rows: bool = False
    """Whether to write the keys of every step's images to RUN/rows/, to prove that no row was lost or doubled."""
    cache: CacheFolder | None = None
    """Folder on each node's own disk that keeps what streaming reads from object storage."""
    on_corrupt: OnCorrupt = "stop"
    """What to do about an image whose bytes have changed since ingest: "stop", or "quarantine" to go on without it."""
    max_skipped_steps: int = 0
    """Steps that may be skipped in the whole run, because loss or gradient isn't finite; one more ends it."""
    pretrained: Weights | None = None
    """Weights to start from; a last layer for other classes is replaced by a new one."""
    teacher: Weights | None = None
    """Finished run to learn from, beside the labels (knowledge distillation, Hinton et al., arXiv 1503.02531)."""
    hang_seconds: float = 1800
    """Seconds without progress after which a worker ends itself, to be restarted; 0 for never."""
    resize_seconds: float = 60
    """Seconds between looks for new nodes, in an elastic run."""
    checkpoint_seconds: float | None = None
    """Least seconds between two checkpoints, and from the start to the first; None: 10 on a GPU, none on a CPU."""
    decoder: DecoderName = field(default_factory=best_decoder)
    """JPEG decoder on all nodes. Decoders differ in a few pixel values, so a run keeps the one it was started with."""
    trackers: tuple[MakeTracker, ...] = ()
    """Functions that make a tracker each (`pipeline.training.trackers`); called in the process of rank 0."""
    stop: StopRequest = field(default_factory=StopRequest, compare=False, repr=False)
    """Called by rank 0 after each step: whether the run is to save its state and stop."""
    command: str = ""
    """Command line that repeats the run, for its report; empty where the run isn't begun by a command."""
    manifest: Manifest | None = field(default=None, compare=False, repr=False)
    """The data set's manifest, where it has been read already."""
    label: str = ""
    """Name of the run in logs and trackers; empty for the last part of its URI."""
    progress: Progress = silent
    """Called with the progress of the run; in the process of rank 0, so it has to be picklable where there are
    workers."""

    def __post_init__(self) -> None:
        fit = self.recipe.fit_head
        if fit != "none" and self.pretrained is None:  # as in searches, which start from none
            raise RecipeError(f"fit_head={fit} needs pretrained weights; add --pretrained timm, or set fit_head=none")

    @property
    def name(self) -> str:
        """Name of the run in logs and trackers."""
        return self.label or files.basename(self.run)

    @property
    def compiles(self) -> bool:
        """Whether the network is compiled: by the job or by its recipe."""
        return self.compile or self.recipe.compile

    def read_manifest(self) -> Manifest:
        """Returns the data set's manifest. Raises DatasetError if there is none."""
        return self.manifest or load(self.dataset)

    def identity(self, digest: str) -> dict[str, Any]:
        """Returns what the numbers of a run depend on: jobs of the same identity may continue each other's checkpoints.

        digest: of the data set (`Manifest.digest`).
        """
        values = {
            "recipe": recipe_to_json(self.recipe),
            "seed": self.seed,
            "dataset_digest": digest,
            "decoder": self.decoder,
            "pretrained": self.pretrained and self.pretrained.sha256,
            "teacher": self.teacher and self.teacher.sha256,
            "hold_out": self.hold_out,
        }
        if tables := table_digests(self.recipe.sampling):
            values["sampling_tables"] = tables
        identity: dict[str, Any] = json.loads(json.dumps(values))  # as it is read back: lists for tuples
        return identity


def fit_to_cluster(job: TrainJob, wait_minutes: float, progress: Progress) -> TrainJob:
    """Returns the job with the CPUs that each worker gets on the running cluster.

    wait_minutes: how long to wait for nodes to join. Raises ClusterError if the cluster has no room for the workers
    then.
    """
    if not job.num_workers:
        return job
    wait_for_resources(job.num_workers, job.use_gpu, wait_minutes, progress)
    cpus = worker_cpus(job.num_workers, job.use_gpu, node_cpus(that_train=True))
    return replace(job, cpus_per_worker=int(100 * cpus) / 100)
