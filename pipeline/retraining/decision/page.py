"""`decision.html`: the page of a retraining run, with links to the reports that its decision rests on."""

from typing import Any

from pipeline.reporting.charts import BLUE, GREY, ORANGE, chart_style, new_axes, render_page, svg_data_uri
from pipeline.reporting.links import existing
from pipeline.retraining.decision.promotion_gate import RecallChange
from pipeline.retraining.overview.times import planned_text, taken_text
from pipeline.storage import files

_CLASSES_SHOWN = 20  # in the chart: those whose fall is most likely


def render_decision(folder: str, values: dict[str, Any], changes: tuple[RecallChange, ...] = ()) -> str:
    """Returns the page as HTML.

    folder: absolute URI of the run's folder, where the page lies. values: the content of `decision.json`. changes: of
    each class's recall, as in `Decision`.
    """
    classes = values.get("classes", {})
    return render_page(
        "decision.html",
        folder,
        values=values,
        links=_links(folder, values),
        changes=_changes_chart(changes),
        classes=classes if classes.get("text") else None,
        planned=planned_text(values.get("plan")),
        taken=taken_text(values["seconds"], values.get("plan")),
    )


def _links(folder: str, values: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns (URI, text) of the files that exist."""
    texts = {
        values["report"]: "Evaluation of the challenger",
        values["comparison"]: "Comparison with the champion, image by image",
        files.join(folder, "run", "report.html"): "Training of the challenger",
        files.join(values["dataset"], "quality.html"): "The data set",
        files.join(folder, "decision.json"): "All numbers, as JSON",
    }
    return [(place, texts[place]) for place in existing(*texts)]


@chart_style()
def _changes_chart(changes: tuple[RecallChange, ...]) -> tuple[str, str] | None:
    """Returns (chart, caption) of the change of each class's recall with its interval; None without a champion."""
    if not changes:
        return None
    shown = changes[:_CLASSES_SHOWN][::-1]
    figure, plot = new_axes(6.4, 0.9 + 0.27 * len(shown))
    middle = [100 * each.change for each in shown]
    low = [max(0.0, 100 * (each.change - each.low)) for each in shown]
    high = [max(0.0, 100 * (min(1.0, each.high) - each.change)) for each in shown]
    plot.errorbar(middle, [each.name for each in shown], xerr=[low, high], fmt="o", color=BLUE, ecolor=GREY, capsize=3)
    plot.axvline(0, color=ORANGE, linestyle="--", linewidth=1)
    plot.set(xlabel="change of recall, points (challenger minus champion)")
    caption = "Change of each class's recall with its interval, which allows for the number of classes"
    if len(changes) > len(shown):
        caption += f"; the {len(shown)} of {len(changes)} classes whose fall is most likely"
    return svg_data_uri(figure), caption
