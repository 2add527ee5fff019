"""The page of a search: ranked trials, their learning curves, and top-1 against each searched field."""

from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter

from pipeline.config.recipe import Recipe
from pipeline.reporting.charts import BLUE, GREY, ORANGE, chart_style, new_axes, render_page, svg_data_uri
from pipeline.storage import files
from pipeline.training.search.space import Choice, Range, Space
from pipeline.training.search.trial import TrialResult, best_trial

REPORT_NAME = "report.html"
_STATUSES = ("finished", "stopped", "failed", "running", "waiting")


@dataclass(frozen=True)
class Place:
    """Where the page lies, and what it needs beside the trials."""

    out: str = ""
    """URI of the search's folder."""
    held_out_rows: int = 0
    """Number of images that the trials were compared on; 0 if unknown."""
    links: tuple[tuple[str, str], ...] = ()
    """(URI, text) of files that belong to the search."""


def write_report(place: Place, recipe: Recipe, space: Space, trials: list[TrialResult], about: dict[str, Any]) -> str:
    """Writes the search's `report.html` and returns its URI. about: facts for the end of the page, by name."""
    uri = files.join(place.out, REPORT_NAME)
    files.write_bytes(uri, render(recipe, space, trials, about, place).encode())
    return uri


def render(
    recipe: Recipe, space: Space, trials: list[TrialResult], about: dict[str, Any], place: Place | None = None
) -> str:
    """Returns the report as HTML. trials: the first is the recipe itself."""
    place = place or Place()
    ranked = sorted(trials, key=lambda trial: (trial.status != "finished", -trial.top1, trial.number))
    best, unchanged = best_trial(trials), trials[0]
    statuses = [trial.status for trial in trials]
    return render_page(
        "tune.html",
        place.out,
        recipe=recipe,
        links=place.links,
        held_out_rows=place.held_out_rows,
        names=list(space),
        trials=ranked,
        best=best,
        own=unchanged if unchanged.status == "finished" else None,
        counts={status: statuses.count(status) for status in _STATUSES if status in statuses},
        curves=_curves(trials, best),
        scatters=[_scatter(name, domain, trials, best) for name, domain in space.items()] if best else [],
        about=about,
    )


@chart_style()
def _curves(trials: list[TrialResult], best: TrialResult | None) -> tuple[str, str]:
    """Returns the learning curves as SVG, and a caption."""
    figure, plot = new_axes(7.2, 3.6)
    for trial in trials:
        is_best = trial is best
        plot.plot(
            [line["epoch"] for line in trial.scores],
            [100 * line["top1"] for line in trial.scores],
            "o-",
            color=ORANGE if is_best else BLUE,
            alpha=1.0 if is_best else 0.45,
            linewidth=2 if is_best else 1,
            markersize=4,
            zorder=3 if is_best else 2,
        )
    plot.set(xlabel="epoch", ylabel="top-1 on held-out images, %")
    caption = "Top-1 of each trial. A trial that ends early was stopped because others were better at the same epoch"
    return svg_data_uri(figure), caption + (f". Orange: trial {best.number}, the best" if best else "")


@chart_style()
def _scatter(name: str, domain: Range | Choice, trials: list[TrialResult], best: TrialResult | None) -> tuple[str, str]:
    """Returns a scatter plot of last top-1 against one field as SVG, and a caption."""
    figure, plot = new_axes(4.4, 2.8)
    for trial in trials:
        if trial.scores:
            value = trial.values[name]
            plot.plot(
                value if isinstance(domain, Range) else str(value),
                100 * trial.top1,
                "o",
                color=ORANGE if trial is best else BLUE,
                markerfacecolor=None if trial.status == "finished" else "none",
            )
    if isinstance(domain, Range) and domain.logarithmic:
        plot.set_xscale("log")
        plot.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plot.xaxis.set_major_formatter("{x:g}")
        plot.xaxis.set_minor_formatter(NullFormatter())
    plot.set(xlabel=name, ylabel="last top-1, %")
    plot.tick_params(colors=GREY, which="both")
    best_value = best.values[name] if best else None
    return svg_data_uri(figure), f"{name}: the best trial has {best_value}. Filled: finished; hollow: stopped early"
