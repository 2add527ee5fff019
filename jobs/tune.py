"""Searches the fields of a recipe with Ray Tune, on a held-out part of train: which values do best.

uv run jobs/tune.py --recipe NAME --trials N [--space learning_rate=log:0.1..1] [--data URI] [--out DIR]
"""

import logging
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from jobs import command, training
from pipeline.cluster.ray_errors import user_message
from pipeline.cluster.ray_tasks import run_in_thread
from pipeline.cluster.session import quieten_ray, ray_session
from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.ingestion.prepare import prepare_dataset
from pipeline.loader.sample_order import num_steps
from pipeline.loader.samplers import train_eval_split
from pipeline.storage import files

if TYPE_CHECKING:
    from pipeline.training.job import TrainJob
    from pipeline.training.search.run import Space, TrialResult, Values


@dataclass(frozen=True, kw_only=True)
class Args:
    """The same command goes on with a search that was interrupted."""

    recipe: Annotated[str, command.option("to search around: a name, or a .json of one", "NAME")]
    trials: Annotated[int, command.option("to begin; most are stopped early. The first is the recipe itself", "N")]
    space: Annotated[
        tuple[str, ...],
        command.option(
            "what to draw: FIELD=LOW..HIGH, FIELD=log:LOW..HIGH or FIELD=A,B,C, where FIELD is one of the recipe's or "
            "augment.NAME",
            "LINE...",
            "rate, weight decay, label smoothing",
        ),
    ] = ()
    data: Annotated[str | None, command.option("raw images or a data set", "URI", "CIFAR-10, downloaded once")] = None
    out: Annotated[str | None, command.option("where the search lies; the same again goes on", "DIR")] = None
    epochs: Annotated[int | None, command.option("of a trial that isn't stopped", "N", "the recipe's")] = None
    hold_out: Annotated[float, command.option("share of train that trials are compared by", "X", "0.1")] = 0.1
    grace_epochs: Annotated[float, command.option("that each trial gets before it may be stopped", "N", "1")] = 1
    keep_one_of: Annotated[int, command.option("trials at each look, of those that got so far", "N", "3")] = 3
    workers: Annotated[int, command.option("of a trial; 0: its own process", "N", "0; 1 on GPUs")] = -1
    cpus_per_trial: Annotated[int, command.option("of each of its processes", "N", "1")] = 1
    seed: Annotated[int, command.option("of the values, and of each training", "N", "0")] = 0
    layout: Annotated[str, command.option("of raw data", "NAME", "auto")] = "auto"
    md5: Annotated[str | None, command.option("expected of a CIFAR archive; any: don't check", "HEX")] = None


def main(args: Args) -> None:
    """The whole search, to the table and the report."""
    recipe = _recipe(args)
    with ray_session(max(1, args.workers)):
        import ray

        from pipeline.training.search import run as tune

        space = tune.parse_space(args.space, recipe) or tune.default_space(recipe)
        drawn = tune.draw(space, args.trials, recipe, args.seed)
        with command.Display() as display:
            dataset = prepare_dataset(args.data, layout=args.layout, md5=args.md5, progress=display)
        data = training.describe_dataset(dataset)
        parts = train_eval_split(data, args.hold_out)
        gpus = int(ray.cluster_resources().get("GPU", 0))
        template = _template(args, recipe, dataset, gpus)
        out = files.absolute(args.out or f"runs/tune-{recipe.name}-{data.name}")
        identity = {
            "recipe": asdict(recipe), "space": {name: repr(domain) for name, domain in space.items()},
            "trials": args.trials, "seed": args.seed, "hold_out": args.hold_out, "dataset_digest": data.digest,
            "grace_epochs": args.grace_epochs, "keep_one_of": args.keep_one_of,
        }  # fmt: skip
        tune.claim_search(out, identity)
        command.console.print(
            f"search {out}: {args.trials} trials of {recipe.epochs} epochs at most, each "
            f"{recipe.epochs * num_steps(parts.train_rows, recipe.global_batch_size):,} steps on {parts.train_rows:,} "
            f"images, compared on {parts.rows:,}"
        )
        with command.Display() as display, tempfile.TemporaryDirectory(prefix="tune-") as scratch:
            _search(args, template, out, drawn, gpus, display, scratch)
        _finish(out, recipe, space, tune.read_trials(out, drawn), identity)


def _recipe(args: Args) -> Recipe:
    from pipeline.config.presets import make_recipe

    for name, least in (("trials", 1), ("keep_one_of", 2), ("cpus_per_trial", 1), ("grace_epochs", 0.01)):
        if getattr(args, name) < least:
            raise RecipeError(f"{name.replace('_', '-')}={getattr(args, name)} must be {least} or more")
    recipe = make_recipe(args.recipe, epochs=args.epochs)
    return replace(recipe, fit_seconds=0.0)  # every trial is as long as every other


def _template(args: Args, recipe: Recipe, dataset: str, gpus: int) -> "TrainJob":
    from pipeline.training.job import TrainJob

    workers = args.workers if args.workers >= 0 else min(1, gpus)
    return TrainJob(
        dataset,
        "",
        recipe,
        args.seed,
        workers,
        use_gpu=0 < workers <= gpus,
        cpus_per_worker=float(args.cpus_per_trial),
        hold_out=args.hold_out,
    )


def _search(
    args: Args,
    template: "TrainJob",
    out: str,
    drawn: "list[Values]",
    gpus: int,
    display: command.Display,
    scratch: str,
) -> None:
    """Has Ray Tune begin, continue and stop trials until none is left. scratch: a folder for what it writes itself."""
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}  # its tables; its logs
    import ray
    from ray import tune as ray_tune

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    from ray.tune.schedulers import ASHAScheduler

    from pipeline.training.search import run as tune

    def trial(config: dict[str, Any]) -> None:
        quieten_ray()
        number = config["number"]
        tune.run_trial(tune.trial_job(template, out, number, drawn[number]), ray_tune.report)

    known = tune.read_trials(out, drawn)  # of a search that goes on
    top1 = {each.number: each.top1 for each in known if each.scores}
    ended = {each.number for each in known if each.status not in ("waiting", "running")}

    class Noting(ray_tune.Callback):  # type: ignore[misc]
        """Writes down how trials end, and shows where the search is."""

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **_: Any) -> None:
            top1[trial.config["number"]] = result["top1"]
            self.show(trials)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            run = tune.trial_run(out, trial.config["number"])
            if tune.read_status(run)[0] == "running":
                tune.write_status(run, "stopped")
            self.show(trials, trial)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            error = trial.get_error() or RuntimeError("no message")
            text = user_message(error) or str(error).strip().splitlines()[-1]
            tune.write_status(tune.trial_run(out, trial.config["number"]), "failed", text)
            self.show(trials, trial)

        def show(self, trials: list[Any], now_ended: Any = None) -> None:
            ended.update([now_ended.config["number"]] if now_ended else [])
            running = sum(each.status == "RUNNING" for each in trials)
            leading = max(top1, key=lambda number: top1[number], default=None)
            best = "" if leading is None else f"; highest so far {top1[leading]:.4f} (trial {leading})"
            display("tune", len(ended), len(drawn), f"{running} running{best}")

    workers, cpus = template.num_workers, args.cpus_per_trial
    total = int(ray.cluster_resources().get("CPU", 1))
    each = max(1, workers) * cpus + (template.recipe.residency == "stream")  # a stream's tasks need one, too
    at_once = max(1, gpus // workers if template.use_gpu else (total - (workers > 0)) // each)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(trial, {"CPU": 0, "memory": 1}),
        param_space={"number": ray_tune.grid_search(list(range(len(drawn))))},
        tune_config=ray_tune.TuneConfig(
            metric="top1",
            mode="max",
            max_concurrent_trials=at_once,
            scheduler=ASHAScheduler(
                time_attr="epoch",
                grace_period=args.grace_epochs,
                max_t=max(template.recipe.epochs, args.grace_epochs),
                reduction_factor=args.keep_one_of,
                stop_last_trials=False,
            ),
        ),
        # What Tune itself writes are logs and pickles that nobody reads.
        run_config=ray_tune.RunConfig(name="tune", storage_path=scratch, verbose=0, callbacks=[Noting()]),
    )
    run_in_thread(tuner.fit)


def _finish(out: str, recipe: Recipe, space: "Space", trials: "list[TrialResult]", identity: dict[str, Any]) -> None:
    from pipeline.core.environment import git_commit
    from pipeline.training.search import report as tune_report
    from pipeline.training.search import run as tune

    best = tune.best_trial(trials)
    place = tune.write_best(out, recipe, trials)
    about = {
        "trials": identity["trials"], "seed": identity["seed"], "held out": identity["hold_out"],
        "data-set digest": identity["dataset_digest"], "commit": git_commit(),
        **{f"space of {name}": text for name, text in identity["space"].items()},
    }  # fmt: skip
    report = tune_report.write_report(out, recipe, space, trials, about)
    statuses = [trial.status for trial in trials]
    counts = ", ".join(f"{statuses.count(name)} {name}" for name in dict.fromkeys(statuses))
    lines = [(f"trial {best.number}", f"{best.top1:.4f} of held-out images")] if best else []
    lines += [("", f"{name} = {value}") for name, value in best.values.items()] if best else []
    if trials[0].status == "finished":
        lines.append(("the recipe", f"{trials[0].top1:.4f} as it is (trial 0)"))
    lines += [("trials", counts), ("report", report)]
    lines += [("train it", f"uv run jobs/cifar10.py --recipe {place}")] if place else []
    command.print_table(f"\nsearch around {recipe.name}", lines)
    if best is None:
        errors = [trial.error for trial in trials if trial.error]
        raise RecipeError(f"no trial has finished; first error: {errors[0] if errors else 'none'}")


RESUME_HINT = "the same command continues the search"

if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
