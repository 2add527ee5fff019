"""Flags of the rules for models in use; their help is the documentation of the fields that they set. Prints reviews."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from jobs.arguments.flags import option
from pipeline.config.documentation import field_help
from pipeline.retraining.live.limits import LiveRule

if TYPE_CHECKING:
    from pipeline.retraining.live.review import Finding, Review

RETURNED = 5
"""Exit status of a command that took the champion back to the version before."""
_DEFAULT = LiveRule()


def _option(name: str, value: str) -> Any:
    return option(field_help(LiveRule, name), value, f"{getattr(_DEFAULT, name):g}")


@dataclass(frozen=True)
class LiveArgs:
    """When a candidate is promoted or dropped, and when the champion goes back."""

    min_images: Annotated[int, _option("min_images", "N")] = _DEFAULT.min_images
    max_disagreement: Annotated[float, _option("max_disagreement", "X")] = _DEFAULT.max_disagreement
    max_latency_ratio: Annotated[float, _option("max_latency_ratio", "X")] = _DEFAULT.max_latency_ratio
    max_failures: Annotated[float, _option("max_failures", "X")] = _DEFAULT.max_failures
    window_images: Annotated[int, _option("window_images", "N")] = _DEFAULT.window_images
    min_labels: Annotated[int, _option("min_labels", "N")] = _DEFAULT.min_labels
    live_level: Annotated[float, _option("live_level", "P")] = _DEFAULT.live_level
    max_fall: Annotated[float, _option("max_fall", "X")] = _DEFAULT.max_fall
    return_disagreement: Annotated[float, _option("return_disagreement", "X")] = _DEFAULT.return_disagreement

    def make(self) -> LiveRule:
        """Returns the rule. Raises RecipeError for a value out of range."""
        return LiveRule(**vars(self))


def review_lines(review: "Review") -> list[tuple[str, str]]:
    """Returns (name, text) of what a review found and did, for `print_table`."""
    lines = []
    for each in review.findings:
        lines.append((each.alias, f"{each.version}: {_said(each)}"))
        lines += [
            (f"  {check.name}", f"{'ok' if check.passed else 'NO'}  {check.text}") for check in each.verdict.checks
        ]
    names = {"review": "PROMOTED", "return": "WENT BACK", "dropped": "DROPPED", "outdated": "DROPPED"}
    lines += [(names[each["kind"]], f"{each['move']['reason']}") for each in review.decisions]
    return lines


def _said(finding: "Finding") -> str:
    words = {
        "wait": f"waits, {finding.verdict.reason}",
        "keep": "stays",
        "promote": "promoted",
        "drop": "dropped",
        "return": "goes back",
    }
    text = words[finding.verdict.action]
    if not finding.held:
        return text
    return f"would go back, but {finding.held}" if finding.verdict.action == "return" else text
