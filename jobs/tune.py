"""Searches the fields of a recipe with Ray Tune, on a held-out part of train: which values give the highest top-1?

Examples:
    uv run jobs/tune.py --recipe cifar10 --trials 20 --epochs 4
    uv run jobs/tune.py --recipe cifar10 --trials 30 --data s3://bucket/cifar10 --out s3://bucket/search \\
        --space learning_rate=log:0.1..1 optimizer=adam,muon augment.crop_padding_px=1..4
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from jobs.arguments.recipe import RecipeArgs
from jobs.arguments.source import RawArgs
from jobs.terminal import command
from jobs.terminal.continuation import command_of
from jobs.terminal.training_result import describe_dataset
from pipeline.cluster.session import ray_session
from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.ingestion.prepare import check_data, prepare_dataset
from pipeline.storage import files
from pipeline.storage.places import check_folder

if TYPE_CHECKING:
    from pipeline.training.search import SearchResult, SearchSettings


@dataclass(frozen=True, kw_only=True)
class DataArgs:
    """The images to search on."""

    data: Annotated[str | None, command.option("raw images or a data set", "URI", "CIFAR-10, downloaded once")] = None


@dataclass(frozen=True, kw_only=True)
class TrialArgs:
    """How a trial is trained, compared and stopped."""

    hold_out: Annotated[float, command.option("share of train that trials are compared on", "X", "0.1")] = 0.1
    grace_epochs: Annotated[float, command.option("epochs before a trial may be stopped", "N", "1")] = 1
    keep_one_of: Annotated[
        int, command.option("at each milestone, the best one of N trials continues (ASHA's reduction factor)", "N", "3")
    ] = 3


@dataclass(frozen=True, kw_only=True)
class HardwareArgs:
    """What a trial runs on."""

    workers: Annotated[int, command.option("training processes of a trial; 0: its own", "N", "0; 1 on GPUs")] = -1
    cpus_per_trial: Annotated[int, command.option("CPUs of each of its processes", "N", "1")] = 1


@dataclass(frozen=True, kw_only=True)
class OutputArgs:
    """Where the search is written."""

    out: Annotated[str | None, command.option("folder of the search", "DIR", "runs/tune-RECIPE-DATA")] = None


@dataclass(frozen=True, kw_only=True)
class Args:
    """Flags. The same command continues a search that was interrupted."""

    trials: Annotated[int, command.option("trials to start; most are stopped early. The first is the recipe", "N")]
    space: Annotated[
        tuple[str, ...],
        command.option(
            "fields to search: FIELD=LOW..HIGH, FIELD=log:LOW..HIGH or FIELD=A,B,C, where FIELD is one of the recipe's "
            "or augment.NAME",
            "LINE...",
            "learning rate, weight decay, label smoothing",
        ),
    ] = ()
    seed: Annotated[int, command.option("seed of the drawn values and of each training", "N", "0")] = 0
    source: Annotated[DataArgs, command.group("data")] = DataArgs()
    raw: Annotated[RawArgs, command.group("data")] = field(default_factory=RawArgs)
    recipe: Annotated[RecipeArgs, command.group("recipe")] = field(default_factory=RecipeArgs)
    trial: Annotated[TrialArgs, command.group("trial")] = TrialArgs()
    hardware: Annotated[HardwareArgs, command.group("hardware")] = HardwareArgs()
    output: Annotated[OutputArgs, command.group("output")] = OutputArgs()


def main(args: Args) -> None:
    """Searches, and prints the best values."""
    if args.recipe.recipe is None:
        raise RecipeError("recipe is missing; give --recipe NAME to search around (--list-recipes shows them)")
    recipe = args.recipe.make(args.recipe.recipe)
    settings = _settings(args, recipe)
    settings.draw(recipe)  # values that no recipe can have are an error now, and not after the data are prepared
    check_data(args.raw.source(args.source.data))
    check_folder(args.output.out or "runs", "out")
    with ray_session(max(1, args.hardware.workers)):
        from pipeline.training.search import search

        with command.Display() as display:
            dataset = prepare_dataset(
                args.raw.source(args.source.data), max_quarantined=args.raw.max_quarantined, progress=display
            )
        data = describe_dataset(dataset).manifest
        out = files.absolute(args.output.out or f"runs/tune-{recipe.name}-{data.name}")
        with command.Display() as display:
            result = search(dataset, out, recipe, settings, display)
    _print_result(recipe.name, result, args.source.data)


def _settings(args: Args, recipe: Recipe) -> "SearchSettings":
    from pipeline.training.search import SearchSettings, parse_space

    return SearchSettings(
        num_trials=args.trials,
        space=parse_space(args.space, recipe) or None,
        seed=args.seed,
        hold_out=args.trial.hold_out,
        grace_epochs=args.trial.grace_epochs,
        reduction_factor=args.trial.keep_one_of,
        num_workers=None if args.hardware.workers < 0 else args.hardware.workers,
        cpus_per_worker=args.hardware.cpus_per_trial,
    )


def _print_result(recipe_name: str, result: "SearchResult", data: str | None) -> None:
    """Prints the search's outcome, and how to train on `data` with it. Raises RecipeError if no trial has finished."""
    best, unchanged = result.best, result.trials[0]
    statuses = [trial.status for trial in result.trials]
    counts = ", ".join(f"{statuses.count(name)} {name}" for name in dict.fromkeys(statuses))
    lines = [(f"trial {best.number}", f"{best.top1:.4f} of held-out images")] if best else []
    lines += [("", f"{name} = {value}") for name, value in best.values.items()] if best else []
    if unchanged.status == "finished":
        lines.append(("the recipe", f"{unchanged.top1:.4f} without changes (trial 0)"))
    lines += [("trials", counts), ("report", result.report_uri)]
    if result.recipe_uri:
        arguments = [*(("--data", data) if data else ()), "--recipe", result.recipe_uri]
        lines.append(("train it", command_of("cifar10", "train", arguments)))
    command.print_table(f"\nsearch around {recipe_name}", lines)
    if best is None:
        errors = [trial.error for trial in result.trials if trial.error]
        raise RecipeError(f"no trial has finished; first error: {errors[0] if errors else 'none'}")


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", "the same command continues the search")
