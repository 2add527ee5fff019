"""The report of a search: which values did best, and what each field had to do with it."""

from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter

from pipeline.config.recipe import Recipe
from pipeline.reporting.charts import BLUE, GREY, ORANGE, new_axes, render_page, svg_data_uri
from pipeline.storage import files
from pipeline.training.search.run import Range, Space, TrialResult, best_trial

REPORT_NAME = "report.html"


def write_report(out: str, recipe: Recipe, space: Space, trials: list[TrialResult], about: dict[str, Any]) -> str:
    """Writes the search's `report.html` and returns its URI. about: lines for its end, by name."""
    uri = files.join(out, REPORT_NAME)
    files.write_bytes(uri, render(recipe, space, trials, about).encode())
    return uri


def render(recipe: Recipe, space: Space, trials: list[TrialResult], about: dict[str, Any]) -> str:
    """Returns the report as HTML."""
    ranked = sorted(trials, key=lambda trial: (trial.status != "finished", -trial.top1, trial.number))
    best, own = best_trial(trials), trials[0]
    return render_page(
        "tune.html",
        recipe=recipe,
        names=list(space),
        trials=ranked,
        best=best,
        own=own if own.status == "finished" else None,
        counts={s: n for s in ("finished", "stopped", "failed", "running", "waiting") if (n := _count(trials, s))},
        curves=_curves(trials, best),
        scatters=[_scatter(name, domain, trials, best) for name, domain in space.items()] if best else [],
        about=about,
    )


def _count(trials: list[TrialResult], status: str) -> int:
    return sum(trial.status == status for trial in trials)


def _curves(trials: list[TrialResult], best: TrialResult | None) -> tuple[str, str]:
    figure, plot = new_axes(7.2, 3.6)
    for trial in trials:
        first = trial is best
        plot.plot(
            [line["epoch"] for line in trial.scores],
            [100 * line["top1"] for line in trial.scores],
            "o-",
            color=ORANGE if first else BLUE,
            alpha=1.0 if first else 0.45,
            linewidth=2 if first else 1,
            markersize=4,
            zorder=3 if first else 2,
        )
    plot.set(xlabel="epoch", ylabel="top-1 on held-out images, %")
    text = "Top-1 of each trial; those that end early were stopped because others were better at the same epoch"
    return svg_data_uri(figure), text + (f". Orange: trial {best.number}, the best" if best else "")


def _scatter(name: str, domain: Any, trials: list[TrialResult], best: TrialResult | None) -> tuple[str, str]:
    figure, plot = new_axes(4.4, 2.8)
    shown = [trial for trial in trials if trial.scores]
    numbers = isinstance(domain, Range)
    for trial in shown:
        value = trial.values[name] if numbers else str(trial.values[name])
        done = trial.status == "finished"
        plot.plot(
            value,
            100 * trial.top1,
            "o",
            color=ORANGE if trial is best else BLUE,
            markerfacecolor=None if done else "none",
        )
    if numbers and domain.logarithmic:
        plot.set_xscale("log")
        plot.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plot.xaxis.set_major_formatter("{x:g}")
        plot.xaxis.set_minor_formatter(NullFormatter())
    plot.set(xlabel=name, ylabel="last top-1, %")
    plot.tick_params(colors=GREY, which="both")
    value = best.values[name] if best else None
    return svg_data_uri(figure), f"{name}: the best trial has {value}. Filled: finished; hollow: stopped early"
