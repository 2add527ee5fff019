"""Evaluate a trained model, certify the result and write its files; verify an evaluation; compare two of them."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.core.progress import Progress, silent
from pipeline.dataset import manifest
from pipeline.dataset.manifest import Manifest
from pipeline.evaluation import certificate
from pipeline.evaluation.analysis import label_issues
from pipeline.evaluation.analysis.looks import note_look
from pipeline.evaluation.certificate import Certificate, certify
from pipeline.evaluation.comparison import compare_predictions
from pipeline.evaluation.inputs import Data, EvaluateOptions, StrPath, Workers, absolute_uri, dataset_uri
from pipeline.evaluation.metrics_file import build_metrics, calibrate
from pipeline.evaluation.output_files import read_kept, read_metrics, read_robustness, write_metrics
from pipeline.evaluation.pages.comparison import write_comparison
from pipeline.evaluation.pages.label_review import PAGE_NAME, write_review
from pipeline.evaluation.pages.model_card import write_card
from pipeline.evaluation.pages.report import label_issue_pictures, write_report
from pipeline.evaluation.predictions import Predictions, check_predictions, read_predictions
from pipeline.evaluation.runner import HELD_OUT, EvaluateJob, run_evaluation, split_rows
from pipeline.evaluation.workers import as_workers, evaluation_session
from pipeline.ingestion.corrections.reviewed import reviewed_rows
from pipeline.models.load import TrainedModel, check_classes, find_model
from pipeline.storage import files
from pipeline.storage.places import check_folder

_log = logging.getLogger(__name__)


def evaluate(
    run: StrPath,
    data: Data | None = None,
    out: StrPath | None = None,
    options: EvaluateOptions | None = None,
    workers: Workers | int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Evaluates a trained model on every image of a split and returns the content of `metrics.json`.

        values = evaluate("runs/digits", "data/digits", options=EvaluateOptions(explain=True))
        print(values["metrics"]["top1"], values["metrics"]["intervals"]["top1"])

    run: a finished run, or RUN/checkpoints/STEP. data: a data set with the same classes, or raw images, which are
    ingested once; None for CIFAR-10; all as for `train`. out: the folder that gets `metrics.json` (with the
    certificate), `predictions.parquet`, `evaluation.html` and `MODEL_CARD.md`; by default a folder below the run, named
    by split, views and data set. workers: number of processes, or `Workers`; by default one for each GPU. With 0, and
    by default without a GPU, everything runs in this process, and Ray is not started.

    The metrics do not depend on the number of workers. Raises CheckpointError if the run isn't finished or knows other
    classes, SourceError if there are no such images, CertificateError if a row is missing or repeated, ClusterError if
    the installed torch has no code for the GPU, and MissingPackageError for an analysis that isn't installed.
    """
    options = options or EvaluateOptions()
    options.check_packages()
    model = find_model(absolute_uri(run))
    check_folder(model.uri if out is None else absolute_uri(out), "out")
    dataset = dataset_uri(data, progress, options.split)
    contents = manifest.load(dataset)
    check_classes(model, contents.classes)
    split, first_row, rows = split_rows(options.split, contents, model)
    folder = evaluation_folder(model, contents, options) if out is None else absolute_uri(out)
    views = options.views or model.recipe.test_views
    job = EvaluateJob(model.uri, dataset, folder, split, views, first_row, rows)
    with evaluation_session(job, as_workers(workers), progress) as ready:
        return _evaluate_and_report(ready, contents, model, options)


def evaluation_folder(model: TrainedModel, data: Manifest, options: EvaluateOptions) -> str:
    """Returns the URI of the default folder of an evaluation: below the run, named by split, views and data set."""
    views = options.views or model.recipe.test_views
    return files.join(model.uri, f"evaluation-{options.split}-{views}-{data.digest[:8]}")


def _evaluate_and_report(
    job: EvaluateJob, data: Manifest, model: TrainedModel, options: EvaluateOptions
) -> dict[str, Any]:
    # A temperature is fitted on what was held out of train, and means something only for val of the same data set.
    calibrates = bool(model.hold_out) and job.split == "val" and model.dataset_digest == data.digest
    job = replace(job, keep="logits" if calibrates else "nothing")
    rows = min(options.robustness_rows, len(job.row_range(data)))
    run_evaluation(replace(job, severities=options.severities, robustness_rows=rows))
    signed, predictions = certify(job, data, model)
    values = build_metrics(job, data, model, signed, predictions, options.slice_by)
    explained = pictures = None
    if calibrates:
        values["temperature"] = _fit_temperature(job, data, model, predictions)
    if options.severities:
        values["robustness"] = read_robustness(job.out)
    if options.explain:
        from pipeline.evaluation.analysis.explain import explain

        explained = explain(job, data, model, predictions)
        values["sanity"] = explained["sanity"]
    if options.label_issues and "train" not in data.splits:
        _log.info("label problems: not looked for, since %s has no train split", data.name)
    elif options.label_issues:
        values["label_problems"], pictures = _find_label_issues(job, data, options.label_rows)
    values["earlier_looks"] = note_look(model.uri, signed)
    # Last but for the pages: a folder with metrics.json has everything that `verify` reads.
    write_metrics(job.out, values)
    write_report(job.out, data, values, predictions, explained, pictures)
    write_card(job.out, values)
    return values


def _fit_temperature(job: EvaluateJob, data: Manifest, model: TrainedModel, predictions: Predictions) -> dict[str, Any]:
    """Returns the temperature fitted on the held-out part of train, and the calibration of `predictions` with it."""
    split, first_row, rows = split_rows(HELD_OUT, data, model)
    held_out = replace(job, out=files.join(job.out, HELD_OUT), split=split, first_row=first_row, rows=rows)
    run_evaluation(held_out)
    return calibrate(held_out, job, read_predictions(held_out.out)[0].label, predictions)


def _find_label_issues(job: EvaluateJob, data: Manifest, max_rows: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns (counts for `metrics.json`, pictures for the page) of training images whose label is in doubt."""
    rows = min(max_rows, data.split("train").rows)
    train = replace(
        job, out=files.join(job.out, "train"), split="train", views="none", first_row=0, rows=rows, keep="features"
    )
    run_evaluation(train)
    predictions, keys = read_predictions(train.out)
    job.progress("labels", 0, 1, "cross-validating a classifier of the features")
    probabilities = label_issues.out_of_sample_probabilities(read_kept(train.out), predictions.label, len(data.classes))
    doubtful = label_issues.find_label_issues(probabilities, predictions.label)
    reviewed = np.isin(predictions.row, reviewed_rows(job.dataset, data.split("train")))
    found = [each for each in doubtful if not reviewed[each.index]]
    job.progress("labels", 1, 1)
    uri = label_issues.write_label_issues(job.out, found, predictions.row, keys)
    commands = write_review(job.out, job.dataset, data, found, predictions.row, keys)
    pictures = label_issue_pictures(job.dataset, data, "train", predictions.row, found)
    counts = {"rows": rows, "found": len(found), "reviewed": len(doubtful) - len(found)}
    return {**counts, "table": uri, "page": files.join(job.out, PAGE_NAME), "commands": commands}, pictures


def verify(out: StrPath, data: Data | None = None, run: StrPath | None = None) -> Certificate:
    """Repeats all checks of the evaluation in the folder `out`, and returns its certificate.

    data, run: the data set and the model if they are no longer where `metrics.json` says. Raises CertificateError if
    the weights, the data set, the predictions or a metric have changed.
    """
    folder = absolute_uri(out)
    values = read_metrics(folder)
    model = find_model(values["model"]["uri"] if run is None else absolute_uri(run))
    dataset = values["dataset"]["uri"] if data is None else dataset_uri(data)
    return certificate.verify(folder, dataset, manifest.load(dataset), model)


def compare(first: StrPath, second: StrPath, data: Data | None = None, out: StrPath | None = None) -> dict[str, Any]:
    """Compares two runs or evaluations on the same rows and returns the content of `compare.json`.

        values = compare("runs/a", "runs/b", "data/digits")
        print(values["top1"], values["p"])

    first, second: folders with `predictions.parquet`. data: the data set that both were evaluated on. out: the folder
    that gets `compare.json` and `compare.html`; by default `second`. p is of McNemar's exact test. Raises
    CertificateError unless both are predictions of the same rows of this data set.
    """
    folders = [absolute_uri(each) for each in (first, second)]
    for folder in folders:
        check_predictions(folder)
    dataset = dataset_uri(data)
    contents = manifest.load(dataset)
    values, pair = compare_predictions(folders[0], folders[1], dataset, contents)
    write_comparison(folders[1] if out is None else absolute_uri(out), dataset, contents, values, pair)
    return values
