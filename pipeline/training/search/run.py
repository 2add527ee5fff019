"""A search: draws values, runs the trials, and writes the best recipe and a report.

Trials train on a part of train; the rest of it is held out to compare them, and val isn't used. All that a search knows
lies in plain files below OUT: an interrupted search continues when it is started again with the same settings.
"""

import json
import logging
import os
from dataclasses import dataclass, replace
from typing import Any

from pipeline.cluster.session import ray_session
from pipeline.config.recipe import Recipe
from pipeline.config.recipe_json import recipe_to_json
from pipeline.core.environment import git_commit
from pipeline.core.progress import Progress, silent
from pipeline.core.shares import counted
from pipeline.dataset import manifest
from pipeline.loader.sample_order import num_steps
from pipeline.loader.samplers import training_split
from pipeline.models.identity import check_identity
from pipeline.reporting.links import existing
from pipeline.storage import files
from pipeline.storage.places import claim_folder
from pipeline.training.job import TrainJob
from pipeline.training.search.settings import SearchSettings
from pipeline.training.search.space import Space, Values, default_space, with_values
from pipeline.training.search.trial import TrialResult, best_trial, read_trials, trial_run

SEARCH_NAME, BEST_NAME = "search.json", "best-recipe.json"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """What a search has found."""

    trials: list[TrialResult]  # by number; the first is the recipe itself
    best: TrialResult | None  # None if no trial has finished
    recipe_uri: str | None  # of the best trial's recipe, which `--recipe` accepts
    report_uri: str


def search(
    dataset: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe,
    settings: SearchSettings,
    progress: Progress = silent,
) -> SearchResult:
    """Searches fields of a recipe for the values with the highest top-1 on held-out images, and returns the result.

    Writes trials, `best-recipe.json` and `report.html` below `out`; continues the search there if it was interrupted.
    Uses the running Ray cluster, or starts Ray on this machine and stops it afterwards.

    dataset: URI of a finished data set. recipe: the starting point, and trial 0; its `fit_seconds` is ignored, so that
    all trials are equally long. Raises RecipeError for a space or settings that can't work, and CheckpointError if
    `out` holds another search.
    """
    dataset_uri, out_uri = files.absolute(os.fspath(dataset)), files.absolute(os.fspath(out))
    recipe = replace(recipe, fit_seconds=0.0)
    space = settings.space or default_space(recipe)
    drawn = settings.draw(recipe)
    data = manifest.load(dataset_uri)
    parts = training_split(dataset_uri, data, recipe, settings.hold_out)
    identity = _identity(recipe, space, settings, data.digest)
    claim_search(out_uri, identity)
    _logger.info(
        f"search {out_uri}: {counted(settings.num_trials, 'trial')} of {counted(recipe.epochs, 'epoch')} at most, each "
        f"{recipe.epochs * num_steps(parts.epoch_rows, recipe.global_batch_size):,} steps on {parts.train_rows:,} "
        f"images, compared on {parts.rows:,}"
    )
    with ray_session(max(1, settings.num_workers or 0)):
        from pipeline.training.search.tuner import run_trials

        run_trials(_template(dataset_uri, recipe, settings), out_uri, drawn, settings, progress)
    return _write_result(out_uri, recipe, space, drawn, identity, parts.rows)


def claim_search(out: str, identity: dict[str, Any]) -> None:
    """Records the identity of a search when it first starts. Raises CheckpointError if `out` holds another search."""
    uri = files.join(out, SEARCH_NAME)
    mine = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    check_identity(out, claim_folder(uri, mine), mine, "--out")


def write_best(out: str, recipe: Recipe, trials: list[TrialResult]) -> str | None:
    """Writes the recipe of the best trial, named NAME-tuned, and returns its URI; None if no trial has finished."""
    best = best_trial(trials)
    if best is None:
        return None
    uri = files.join(out, BEST_NAME)
    tuned = replace(with_values(recipe, best.values), name=f"{recipe.name}-tuned")
    files.write_bytes(uri, json.dumps(recipe_to_json(tuned), indent=1).encode())
    return uri


def _identity(recipe: Recipe, space: Space, settings: SearchSettings, dataset_digest: str) -> dict[str, Any]:
    # The keys are those of `search.json`, whose names are kept so that older searches can be continued.
    return {
        "recipe": recipe_to_json(recipe),
        "space": {name: repr(domain) for name, domain in space.items()},
        "trials": settings.num_trials,
        "seed": settings.seed,
        "hold_out": settings.hold_out,
        "dataset_digest": dataset_digest,
        "grace_epochs": settings.grace_epochs,
        "keep_one_of": settings.reduction_factor,
    }


def _template(dataset: str, recipe: Recipe, settings: SearchSettings) -> TrainJob:
    """Returns the job of every trial, without its run and values. Needs a running Ray."""
    import ray

    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = min(1, num_gpus) if settings.num_workers is None else settings.num_workers
    return TrainJob(
        dataset,
        "",
        recipe,
        settings.seed,
        workers,
        use_gpu=0 < workers <= num_gpus,
        cpus_per_worker=float(settings.cpus_per_worker),
        hold_out=settings.hold_out,
    )


def _write_result(
    out: str, recipe: Recipe, space: Space, drawn: list[Values], identity: dict[str, Any], held_out_rows: int
) -> SearchResult:
    from pipeline.training.search.report import Place, write_report

    trials = read_trials(out, drawn)
    recipe_uri = write_best(out, recipe, trials)
    about = {
        "trials": identity["trials"],
        "seed": identity["seed"],
        "held out": identity["hold_out"],
        "data-set digest": identity["dataset_digest"],
        "commit": git_commit(),
        **{f"space of {name}": text for name, text in identity["space"].items()},
    }
    best = best_trial(trials)
    texts = {recipe_uri or "": "Recipe of the best trial"}
    if best:
        texts[files.join(trial_run(out, best.number), "report.html")] = "Report of the best trial"
    place = Place(out, held_out_rows, tuple((uri, texts[uri]) for uri in existing(*texts)))
    report_uri = write_report(place, recipe, space, trials, about)
    return SearchResult(trials, best, recipe_uri, report_uri)
