import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.core.environment import versions
from pipeline.dataset import manifest
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation.analysis.leakage import without_leaked
from pipeline.evaluation.metrics import basic_metrics
from pipeline.reporting.figures import confused_pairs
from pipeline.training.outputs import report, result
from tests.support.trained.predictions import part


class Collector(HTMLParser):
    """Collects every address that a page refers to, and pictures without a text alternative."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.mute: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img" and not values.get("alt"):
            self.mute.append(str(values)[:80])


def make_result(name: str, classes: tuple[str, ...], predictions: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": name, "digest": "ab" * 32, "rows": {"train": 9, "val": 3}, "classes": list(classes)},
        "recipe": {"name": "r", "model": "m", "fit_seconds": 0, "test_views": "none",
                   "augment": {"flip_probability": 0.5}},
        "seed": 0, "decoder": "kernel", "world_size": 2, "epochs": 1, "steps": 4, "train_seconds": 2.0,
        "images_per_second": 4.5,
        "data_wait_fraction": 0.1, "seconds": {"compute": 1.8, "decode": 0.2, "evaluate": 0.1}, "quarantined": [],
        "operations": {"total": 1e12, "per_image": 1e8, "peak_per_second": 4e11, "peak_source": "here", "devices": 2},
        "utilisation": 0.25, "goodput": 0.9, "starts": [{"time": 1.0, "step": 0, "world_size": 2}],
        "skipped_steps": [3], "evaluated": {"split": "val", "held_out": False, "first_row": 0},
        "parameter_groups": [
            {"optimizer": "SGD", "group": "kernels", "tensors": 2, "parameters": 10, "learning_rate": 0.1,
             "weight_decay": 1e-4, "momentum": 0.9, "epochs": 0.0, "first": "conv1.weight"},
        ],
        "val": basic_metrics(predictions, classes), "val_without_leaked": None,
        "evaluations": [],
        "history": [{"step": 4, "epoch": 1.0, "loss": 2.0, "learning_rate": 0.1, "images_per_second": 4.0}],
        "versions": versions(), "git_commit": "unknown",
    }  # fmt: skip


def rendered(uri: str, num_rows: int) -> str:
    data = manifest.load(uri)
    predictions = part(list(range(num_rows)))
    predictions.label[:] = 1  # and everything is taken for class 0
    return report.render(uri, data, make_result(data.name, data.classes, predictions), predictions)


@pytest.fixture(scope="module")
def page(tree_dataset: str) -> str:
    return rendered(tree_dataset, 51)


def test_the_page_needs_nothing_else(page: str) -> None:
    collector = Collector()
    collector.feed(page)
    assert len(collector.addresses) > 10
    assert all(address.startswith("data:") for address in collector.addresses)
    assert not collector.mute
    assert "url(" not in page


def test_the_page_says_what_happened(page: str) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for words in ("0.00 % top-1: m on raw", "0 of 51 validation images correct", "2 workers",
                  "bee predicted as ant , 51 times", "ab" * 32, "augment.flip_probability 0.5"):  # fmt: skip
        assert words in text, words
    assert "CIFAR" not in text


def test_leaked_images_are_taken_out_once_more(tree_dataset: str) -> None:
    data = manifest.load(tree_dataset)
    keys = read_rows(tree_dataset, data.split("val"), np.arange(51), ("key",))["key"].to_pylist()
    predictions = part(list(range(51)))  # all taken for class 0
    predictions.label[:] = [1, 1, 1] + [0] * 48
    assert without_leaked(tree_dataset, data, predictions) is None
    data = replace(data, leaked={"val": (keys[50], keys[0], keys[2])})
    clean = without_leaked(tree_dataset, data, predictions)
    assert clean == {"rows": 48, "correct": 47, "top1": 47 / 48}
    values = {**make_result("raw", data.classes, predictions), "val_without_leaked": clean}
    assert "Without the 3 of them" in report.render(tree_dataset, data, values, predictions)
    assert without_leaked(tree_dataset, replace(data, leaked={"val": tuple(keys)}), predictions) is None


def test_the_worst_mistakes_show_the_stored_images(page: str) -> None:
    pictures = re.findall(r'data:image/jpeg;base64,([^"]+)" alt="bee, predicted as ant"', page)
    pictures += re.findall(r'data:image/png;base64,([^"]+)" alt="bee, predicted as ant"', page)
    assert len(pictures) == 21
    import io

    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).width == 30


def test_the_stand_in_is_never_taken_for_cifar10(digits_dataset: str) -> None:
    page = rendered(digits_dataset, 359)
    assert "not CIFAR-10: the archive could not be downloaded" in page
    assert page.count("digits-not-cifar10") >= 3


def test_confused_pairs_are_ranked() -> None:
    matrix = np.array([[9, 2, 0], [5, 9, 0], [0, 1, 9]])
    assert confused_pairs(matrix, ("a", "b", "c")) == [(5, "b", "a"), (2, "a", "b"), (1, "c", "b")]


def test_a_name_with_markup_stays_text(tree_dataset: str) -> None:
    data = manifest.load(tree_dataset)
    predictions = part(list(range(51)))
    hostile = make_result("<script>alert(1)</script>", data.classes, predictions)
    assert "<script>" not in report.render(tree_dataset, data, hostile, predictions)


def test_a_result_is_read_back(tmp_path: Path) -> None:
    assert result.read_result(str(tmp_path)) is None
    result.write_result(str(tmp_path), {"epochs": 3})
    assert result.read_result(str(tmp_path)) == {"epochs": 3}
    assert json.loads((tmp_path / "result.json").read_text()) == {"epochs": 3}
