"""The pages as people meet them, in headless Chromium: axe finds nothing, nothing sticks out, nothing is fetched."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from pipeline.config.presets import make_recipe
from pipeline.dataset import manifest
from pipeline.evaluation.analysis import explain
from pipeline.evaluation.analysis.label_issues import LabelIssue
from pipeline.evaluation.certificate import certify
from pipeline.evaluation.comparison import compare_predictions
from pipeline.evaluation.metrics_file import build_metrics, calibrate
from pipeline.evaluation.output_files import read_robustness
from pipeline.evaluation.pages import model_card
from pipeline.evaluation.pages import report as evaluation_report
from pipeline.evaluation.pages.comparison import write_comparison
from pipeline.evaluation.pages.label_review import PAGE_NAME, write_review
from pipeline.evaluation.pages.report import label_issue_pictures
from pipeline.evaluation.predictions import read_predictions
from pipeline.evaluation.runner import EvaluateJob, run_evaluation
from pipeline.models.load import find_model
from pipeline.retraining.decision.drift import Thresholds, assess
from pipeline.retraining.decision.page import render_decision
from pipeline.retraining.decision.promotion_gate import Gate, decide
from pipeline.retraining.overview.overview import Overview
from pipeline.retraining.overview.page import render_overview
from pipeline.training.job import TrainJob
from pipeline.training.outputs import result
from pipeline.training.outputs.report import write_report
from pipeline.training.search import report as search_report
from pipeline.training.search.report import Place
from pipeline.training.search.space import Range
from pipeline.training.search.trial import TrialResult
from tests.support.trained.overview import many_nights

WINDOWS = ((1280, "light"), (390, "dark"))


@pytest.fixture(scope="module")
def pages(trained: str, digits_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An evaluation's page with everything on it, a comparison, and the model card beside them."""
    out = tmp_path_factory.mktemp("pages")
    data, model = manifest.load(digits_dataset), find_model(trained)
    jobs = [
        EvaluateJob(trained, digits_dataset, str(out / views), views=views, keep="logits", severities=(1, 5))
        for views in ("none", "flip")
    ]
    for job in jobs:
        run_evaluation(job)
    job = jobs[0]
    certificate, predictions = certify(job, data, model)
    values = build_metrics(job, data, model, certificate, predictions)
    values["temperature"] = calibrate(job, job, predictions.label, predictions)
    values["robustness"] = read_robustness(job.out)
    values["label_problems"] = {"rows": 100, "found": 2, "table": "label-problems.parquet"}
    problems = label_issue_pictures(
        digits_dataset, data, "val", predictions.row, [LabelIssue(3, 1, 7, 0.01), LabelIssue(8, 2, 3, 0.2)]
    )
    issues = [LabelIssue(row, 1, 7, 0.01 * row) for row in range(40)]
    write_review(job.out, digits_dataset, data, issues, predictions.row, [f"train/{row}" for row in predictions.row])
    explained = explain.explain(job, data, model, predictions)
    values["sanity"] = explained["sanity"]
    arguments = (job.out, data, values, predictions, explained, problems)
    report = evaluation_report.write_report(*arguments)
    compared, pair = compare_predictions(jobs[0].out, jobs[1].out, digits_dataset, data)
    _, comparison = write_comparison(str(out), digits_dataset, data, compared, pair)
    (out / "values.json").write_text(json.dumps(values))
    better, worse = (read_predictions(each.out)[0] for each in jobs)
    decision = decide(better, worse, data.classes, Gate())
    decided = {
        **decision.as_json(),
        "drift": assess(0.3, None, 0.1, Thresholds()).as_json(),
        "night": "0123456789ab", "recipe": {"name": "digits"}, "dataset": digits_dataset, "fair_rows": 300, "rows": 359,
        "challenger": "a" * 16, "champion_before": "b" * 16, "report": report, "comparison": comparison,
        "seconds": {"train": 12.3},
    }  # fmt: skip
    decided["fair_rows"] = len(better.row)
    (out / "decision.html").write_text(render_decision(str(out), decided, decision.changes))
    training = TrainJob(digits_dataset, trained, make_recipe("digits", epochs=3), hold_out=0.1)
    made = result.build_result(training, data)
    shutil.copy(Path(trained) / "machine_use.json", out)
    trained_page = write_report(replace(training, run=str(out)), data, made, read_predictions(trained)[0])
    result.write_result(str(out), made)  # as a run does, once the page is written
    space = {"learning_rate": Range(0.1, 1.0, logarithmic=True)}
    trials = [
        TrialResult(0, {"learning_rate": 0.3}, "finished", [{"step": 9, "epoch": 1.0, "top1": 0.7, "loss": 0.9}], ""),
        TrialResult(1, {"learning_rate": 0.9}, "stopped", [{"step": 9, "epoch": 1.0, "top1": 0.4, "loss": 1.9}], ""),
        TrialResult(2, {"learning_rate": 0.5}, "failed", [], "RuntimeError: out of memory on device 0"),
    ]
    tuned = search_report.write_report(Place(str(out / "tune"), 140), make_recipe("digits"), space, trials, {"seed": 0})
    runs = many_nights(70)
    for place in [name for each in runs for name in (f"nights/{each.id}/decision.html", each.report, each.comparison)]:
        if place:
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            (out / place).touch()
    (out / "index.html").write_text(render_overview(Overview(str(out), runs)))
    return {
        "tune": Path(tuned),
        "nights": out / "index.html",
        "quality": Path(digits_dataset) / "quality.html",
        "evaluation": Path(report),
        "labels": Path(job.out) / PAGE_NAME,
        "compare": Path(comparison),
        "report": Path(trained_page),
        "decision": out / "decision.html",
        "card": Path(model_card.write_card(str(out), values)),
        "values": out / "values.json",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluation", "labels", "compare", "report", "decision", "tune", "quality", "nights"])
@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_axe_finds_nothing_and_nothing_sticks_out(
    pages: dict[str, Path], browser: Any, name: str, scheme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    fetched: list[str] = []
    shown.on("request", lambda request: fetched.append(request.url))
    shown.goto(pages[name].as_uri(), timeout=120_000)
    results = Axe().run(shown)
    assert results.violations_count == 0, results.generate_report()
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []
    assert pages[name].stat().st_size < 5e6
    if os.environ.get("PAGE_PICTURES"):  # to be looked at
        shown.screenshot(path=f"{os.environ['PAGE_PICTURES']}/{name}-{width}.png", full_page=True)
    for url in shown.eval_on_selector_all("a[href]", "links => links.map(link => link.href)"):
        assert Path(unquote(url.removeprefix("file://"))).exists(), url
    shown.close()


def test_a_phone_shows_all_columns_of_the_classes(pages: dict[str, Path], browser: Any) -> None:
    shown = browser.new_page(viewport={"width": 390, "height": 900})
    shown.goto(pages["evaluation"].as_uri())
    table = shown.locator("table.sortable").last
    assert "precision" in table.inner_text()
    assert table.evaluate("table => table.parentElement.scrollWidth <= table.parentElement.clientWidth")
    shown.close()


def test_tables_are_sorted_by_keyboard(pages: dict[str, Path], browser: Any) -> None:
    shown = browser.new_page()
    shown.goto(pages["evaluation"].as_uri())
    table = shown.locator("table.sortable").last
    head = table.locator("th button", has_text="recall")
    for order in (1, -1):
        head.focus()
        shown.keyboard.press("Enter")
        numbers = [float(text) for text in table.locator("tbody td:nth-child(4)").all_text_contents()]
        assert numbers == sorted(numbers)[::order]
    assert table.locator("th[aria-sort=descending]").text_content() == "recall"
    shown.close()


def test_the_page_says_what_was_found(pages: dict[str, Path]) -> None:
    text, values = pages["evaluation"].read_text(), json.loads(pages["values"].read_text())
    assert f"{100 * values['metrics']['top1']:.2f} %" in text
    assert values["certificate"]["digest"] in text
    for heading in ("Under corruption", "What it looks at", "Training labels in doubt", "Classes"):
        assert heading in text


def test_hugging_faces_own_reader_takes_the_card(pages: dict[str, Path]) -> None:
    from huggingface_hub import ModelCard

    card, values = ModelCard.load(pages["card"]), json.loads(pages["values"].read_text())
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results["top-1"] == pytest.approx(values["metrics"]["top1"], abs=1e-6)
    assert card.data.pipeline_tag == "image-classification"
    assert "## Limits" in card.text
