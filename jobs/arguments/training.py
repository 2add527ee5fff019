"""Flags of the training jobs, in groups; and the run that `--resume` means."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from jobs.arguments.flags import group, option
from jobs.arguments.recipe import RecipeArgs
from jobs.arguments.source import RawArgs
from jobs.terminal.console import Display, console
from jobs.terminal.continuation import command_to_repeat
from pipeline.cluster import resources
from pipeline.config.choices import OnCorrupt
from pipeline.config.documentation import field_help
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.config.recipe_json import recipe_from_json
from pipeline.core.errors import CheckpointError
from pipeline.core.progress import begin
from pipeline.dataset.manifest import Manifest
from pipeline.training.automatic.weights import check_setting
from pipeline.training.trackers.defaults import default_trackers
from pipeline.training.workflow import TrainOptions, check_workers

UNKNOWN_YET = "imagenette-5"
"""Recipe that stands in, in the first check of flags, for the one that is chosen once the data are known."""


def _option(name: str, value: str, default: str = "") -> Any:
    """Returns the annotation of a flag that sets a field of TrainOptions; its help is the field's docstring."""
    return option(field_help(TrainOptions, name), value, default)


@dataclass(frozen=True)
class WorkerArgs:
    """Training processes, and where they run."""

    workers: Annotated[int | None, option("training processes; 0: this process", "N", "one a GPU")] = None
    max_workers: Annotated[int | None, _option("max_workers", "N", "--workers")] = None
    device: Annotated[resources.Device, _option("device", "KIND", "auto")] = "auto"
    wait_minutes: Annotated[float, _option("wait_minutes", "N", "0")] = 0
    cache: Annotated[str | None, _option("cache", "DIR", "none")] = None
    cache_size: Annotated[str | None, _option("cache_size", "SIZE", "what fits")] = None
    compile: Annotated[bool, _option("compile", "")] = False
    fsdp: Annotated[bool, _option("fsdp", "")] = False
    deterministic: Annotated[bool, _option("deterministic", "")] = False


@dataclass(frozen=True)
class StartArgs:
    """What the run starts from."""

    pretrained: Annotated[str | None, _option("pretrained", "WHAT", "by the data, or none with --recipe")] = None
    seed: Annotated[int, _option("seed", "N", "0")] = 0


@dataclass(frozen=True)
class TrackArgs:
    """Where the run is reported."""

    mlflow: Annotated[str | None, option("URI of an MLflow tracking server to log to", "URI", "none")] = None
    wandb: Annotated[
        str | None, option("project of Weights & Biases to log to; WANDB_MODE=offline: send later", "PROJECT", "none")
    ] = None


@dataclass(frozen=True)
class AdvancedArgs:
    """What few runs need."""

    teacher: Annotated[str | None, _option("teacher", "URI", "none")] = None
    hold_out: Annotated[float, _option("hold_out", "X", "0")] = 0.0
    on_corrupt: Annotated[OnCorrupt, _option("on_corrupt", "WHAT", "stop")] = "stop"
    max_skipped_steps: Annotated[int, _option("max_skipped_steps", "N", "0")] = 0
    hang_minutes: Annotated[float, _option("hang_minutes", "N", "30")] = 30
    checkpoint_seconds: Annotated[float | None, _option("checkpoint_seconds", "N", "10 on a GPU, else 0")] = None
    trace_rows: Annotated[bool, _option("trace_rows", "")] = False


@dataclass(frozen=True, kw_only=True)
class TrainingArgs:
    """Flags of every training job, in the order of --help; `data` and `output` are each job's own."""

    data: Any
    raw: Annotated[RawArgs, group("data")] = field(default_factory=RawArgs)
    recipe: Annotated[RecipeArgs, group("recipe")] = field(default_factory=RecipeArgs)
    start: Annotated[StartArgs, group("recipe")] = StartArgs()
    workers: Annotated[WorkerArgs, group("hardware")] = WorkerArgs()
    output: Any
    track: Annotated[TrackArgs, group("output")] = TrackArgs()
    advanced: Annotated[AdvancedArgs, group("advanced")] = AdvancedArgs()

    def check(self, default_recipe: str | Recipe) -> tuple[Recipe, TrainOptions]:
        """Returns recipe and options. Raises RecipeError for values that can't work, before any data is read."""
        recipe = self.recipe.make(default_recipe)
        resources.check_machine(self.workers.workers, self.workers.device)
        check_workers(recipe, self.workers.workers, self.workers.max_workers)
        # What is chosen once the data are known has a size that the network takes.
        chosen_later = self.recipe.recipe is None and default_recipe == UNKNOWN_YET
        check_setting(self.start.pretrained, None if chosen_later else recipe)
        sized = recipe.image_size_px != make_recipe(UNKNOWN_YET).image_size_px
        if self.recipe != RecipeArgs() and (sized or not chosen_later):  # loading torch takes seconds
            with Display() as display:
                begin(display, "checking the recipe")
                from pipeline.models.factory import check_image_size

                check_image_size(recipe)
        return recipe, self.options()

    def options(self) -> TrainOptions:
        """Returns the options. Raises RecipeError for values that can't work."""
        of_workers = {name: value for name, value in vars(self.workers).items() if name != "workers"}
        given = {**vars(self.start), **of_workers, **vars(self.advanced)}
        trackers = default_trackers(self.track.mlflow, self.track.wandb)
        return TrainOptions(**given, trackers=trackers, command=command_to_repeat(self.start.seed))


def run_to_resume(folder: str, data: Manifest, recipe: RecipeArgs, options: TrainOptions) -> str:
    """Returns the newest run below `folder` of these data, recipe, seed and held-out share, and prints it.

    Without --recipe, a run's own recipe counts, unless flags change it. Raises CheckpointError if there is none.
    """
    from pipeline.training.resume import newest_run  # loads torch

    def is_wanted(identity: dict[str, Any]) -> bool:
        same = (identity.get("dataset_digest"), identity.get("seed"), identity.get("hold_out"))
        if same != (data.digest, options.seed, options.hold_out):
            return False
        begun = recipe_from_json(identity["recipe"])
        return replace(recipe.make(begun), compile=begun.compile) == begun  # `compile` is no part of the identity

    found = newest_run(folder, is_wanted)
    if found is None:
        raise CheckpointError(
            f"--resume: no run in {folder} of these data (digest {data.digest[:16]}), recipe, seed {options.seed} and "
            "held-out share; leave --resume out to begin one, or name the run"
        )
    console.print(f"resuming {found}")
    return found
