"""Writes the model card of an evaluation: Markdown with the metadata that the Hugging Face Hub reads.

Format: https://huggingface.co/docs/hub/model-cards. Every number comes from `metrics.json`.
"""

from typing import Any

import numpy as np

from pipeline.reporting.charts import render_page
from pipeline.reporting.figures import confused_pairs
from pipeline.storage import files

CARD_NAME = "MODEL_CARD.md"


def write_card(out: str, values: dict[str, Any]) -> str:
    """Writes `MODEL_CARD.md` into the folder `out` and returns its URI. values: the content of `metrics.json`."""
    uri = files.join(out, CARD_NAME)
    files.write_bytes(uri, render_card(values).encode())
    return uri


def render_card(values: dict[str, Any]) -> str:
    """Returns the card as Markdown. values: the content of `metrics.json`."""
    settings, classes = values["model"]["settings"], tuple(values["dataset"]["classes"])
    lines = values["robustness"] or []
    severity = max((line["severity"] for line in lines), default=0)
    return render_page(
        "model_card.md",
        values=values,
        found=values["metrics"],
        certificate=values["certificate"],
        settings=settings,
        size_px=settings["evaluate_size_px"] or settings["image_size_px"],
        robustness=[(x["corruption"], x["correct"] / x["rows"]) for x in lines if x["severity"] in (0, severity)],
        severity=severity,
        columns=sorted({each["column"] for each in values["slices"]}),
        pairs=confused_pairs(np.array(values["metrics"]["confusion_matrix"]), classes, 3),
    )
