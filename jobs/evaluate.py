"""Evaluates a trained model on each image of a split once, and certifies it; or compares two on the same images.

uv run jobs/evaluate.py --checkpoint RUN --data URI [--full]
uv run jobs/evaluate.py --compare RUN_A RUN_B --data URI
uv run jobs/evaluate.py --verify OUT
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from jobs import command, training
from pipeline.cluster import resources
from pipeline.config.choices import TestViews
from pipeline.core.errors import RecipeError, check_installed
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.manifest import load as load_manifest
from pipeline.ingestion.prepare import prepare_dataset
from pipeline.storage import files

if TYPE_CHECKING:
    from pipeline.evaluation.runner import EvaluateJob
    from pipeline.models.load import TrainedModel

_SHOWN = 3
_LABEL_ROWS = 50_000
_FULL_SEVERITIES = (1, 3, 5)


@dataclass(frozen=True)
class Args:
    """Flags."""

    checkpoint: Annotated[str | None, command.option("a finished run, or RUN/checkpoints/STEP", "URI")] = None
    data: Annotated[str | None, command.option("raw images or a data set", "URI", "CIFAR-10, as for training")] = None
    split: Annotated[str, command.option("val, train, or held-out: what the run kept of train", "NAME", "val")] = "val"
    views: Annotated[TestViews | None, command.option("of each image", "NAME", "the recipe's")] = None
    workers: Annotated[int | None, command.option("processes; 0: this one", "N", "one a GPU")] = None
    device: Annotated[resources.Device, command.option(resources.DEVICE_HELP, "KIND", "auto")] = "auto"
    wait_minutes: Annotated[float, command.option(resources.WAIT_HELP, "N", "0")] = 0
    out: Annotated[str | None, command.option("where everything goes", "DIR", "below the run")] = None
    slice_by: Annotated[
        tuple[str, ...], command.option("more columns of the provenance", "NAME...", "class, size, brightness")
    ] = ()
    full: Annotated[bool, command.option("all three of what follows", "")] = False
    robustness: Annotated[bool, command.option("also under corruptions", "")] = False
    explain: Annotated[bool, command.option("also what it looks at: Grad-CAM, integrated gradients", "")] = False
    label_problems: Annotated[bool, command.option("also training labels in doubt", "")] = False
    severities: Annotated[tuple[int, ...], command.option("of the corruptions, 1 to 5", "N...", "1 3 5")] = (
        _FULL_SEVERITIES
    )
    robustness_rows: Annotated[int, command.option("images that are corrupted; 0: all", "N", "2000")] = 2000
    label_rows: Annotated[int, command.option("training images whose labels are looked at", "N", "50000")] = _LABEL_ROWS
    compare: Annotated[tuple[str, str] | None, command.option("instead: two runs or evaluations", "A B")] = None
    verify: Annotated[str | None, command.option("instead: check the certificate of an evaluation", "DIR")] = None
    layout: Annotated[str, command.option("of raw data", "NAME", "auto")] = "auto"
    md5: Annotated[str | None, command.option("expected of a CIFAR archive; any: don't check", "HEX")] = None


def main(args: Args) -> None:
    """Evaluates, verifies or compares."""
    if args.compare is not None:
        _compare(args, *(files.absolute(each).rstrip("/") for each in args.compare))
    elif args.verify is not None:
        _verify(args, files.absolute(args.verify).rstrip("/"))
    elif args.checkpoint is None:
        raise RecipeError("checkpoint: give a finished run or RUN/checkpoints/STEP; or --compare A B, or --verify DIR")
    else:
        _evaluate(args, files.absolute(args.checkpoint).rstrip("/"))


def _dataset(args: Args) -> str:
    with command.Display() as display:
        return prepare_dataset(args.data, layout=args.layout, md5=args.md5, progress=display)


# --- evaluating --------------------------------------------------------------------------------------------------


def _evaluate(args: Args, uri: str) -> None:
    from pipeline.evaluation import runner
    from pipeline.models import load as trained

    model = trained.find_model(uri)
    if not all(1 <= severity <= 5 for severity in args.severities) or not args.severities:
        raise RecipeError(f"severities={' '.join(map(str, args.severities))} must be 1 to 5")
    if args.explain or args.full:
        check_installed("explain", "captum")
    if args.label_problems or args.full:
        check_installed("label-problems", "cleanlab")
    if args.robustness_rows < 0:
        raise RecipeError(f"robustness-rows={args.robustness_rows} must be 0 (all) or more")
    if args.label_rows < 1:
        raise RecipeError(f"label-rows={args.label_rows} must be 1 or more")
    dataset = _dataset(args)
    data = training.describe_dataset(dataset)
    trained.check_classes(model, data.classes)
    split, first, rows = runner.split_rows(args.split, data, model)
    views = args.views or model.recipe.test_views
    default = files.join(uri, f"evaluation-{args.split}-{views}-{data.digest[:8]}")
    job = runner.EvaluateJob(uri, dataset, files.absolute(args.out) if args.out else default, split, views)
    job = replace(job, first_row=first, rows=rows)
    with training.evaluating(args.workers, job, args.device, args.wait_minutes) as ready:
        _run_and_report(args, ready, data, model)


def _run_and_report(args: Args, job: "EvaluateJob", data: Manifest, model: "TrainedModel") -> None:
    from pipeline.evaluation import certificate as certify
    from pipeline.evaluation import metrics_file, output_files, runner
    from pipeline.evaluation.analysis import explain
    from pipeline.evaluation.pages import model_card
    from pipeline.evaluation.pages import report as evaluation_report

    calibrates = bool(model.hold_out) and job.split == "val" and model.dataset_digest == data.digest
    job = replace(job, keep="logits" if calibrates else "nothing")
    severities = args.severities if args.robustness or args.full else ()
    runner.run_evaluation(
        replace(job, severities=severities, robustness_rows=min(args.robustness_rows, len(job.row_range(data))))
    )
    certificate, predictions = certify.certify(job, data, model)
    values = metrics_file.gather(job, data, model, certificate, predictions, args.slice_by)
    explained = problems = None
    if calibrates:
        values["temperature"] = _temperature(job, data, model, predictions)
    if severities:
        values["robustness"] = output_files.read_robustness(job.out)
    if args.explain or args.full:
        explained = explain.explain(job, data, model, predictions, job.progress)
        values["sanity"] = explained["sanity"]
    if args.label_problems or args.full:
        values["label_problems"], problems = _label_problems(args, job, data)
    output_files.write_metrics(job.out, values)
    report = evaluation_report.write_report(job.out, job.dataset, data, values, predictions, explained, problems)
    _print(job.out, values, report, model_card.write_card(job.out, values))


def _temperature(job: "EvaluateJob", data: Manifest, model: "TrainedModel", predictions: Any) -> dict[str, Any]:
    """Fits one on what the run held out of train, and says what it does to the calibration of what is evaluated."""
    from pipeline.evaluation import metrics_file, runner
    from pipeline.evaluation.predictions import read_predictions

    split, first, rows = runner.split_rows(runner.HELD_OUT, data, model)
    held = replace(job, out=files.join(job.out, runner.HELD_OUT), split=split, first_row=first, rows=rows)
    runner.run_evaluation(held)
    return metrics_file.calibrated(held, job, read_predictions(held.out)[0].label, predictions)


def _label_problems(args: Args, job: "EvaluateJob", data: Manifest) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from pipeline.evaluation import output_files, runner
    from pipeline.evaluation.analysis import label_issues as label_problems
    from pipeline.evaluation.pages import report as evaluation_report
    from pipeline.evaluation.predictions import read_predictions

    rows = min(args.label_rows, data.split("train").rows)
    looked = replace(
        job, out=files.join(job.out, "train"), split="train", views="none", first_row=0, rows=rows, keep="features"
    )
    runner.run_evaluation(looked)
    predictions, keys = read_predictions(looked.out)
    job.progress("labels", 0, 1, "a classifier of the features, without each fifth of the images")
    probabilities = label_problems.out_of_sample_probabilities(
        output_files.read_kept(looked.out), predictions.label, len(data.classes)
    )
    found = label_problems.find_problems(probabilities, predictions.label)
    job.progress("labels", 1, 1)
    uri = label_problems.write_problems(job.out, found, predictions.row, keys)
    pictures = evaluation_report.problem_pictures(job.dataset, data, "train", predictions.row, found)
    return {"rows": rows, "found": len(found), "table": uri}, pictures


def _print(out: str, values: dict[str, Any], report: str, card: str) -> None:
    from pipeline.evaluation.analysis.corruptions import robustness_means

    summary, certificate = values["metrics"], values["certificate"]
    low, high = summary["intervals"]["top1"]
    views = "" if certificate["views"] == "none" else f", test views: {certificate['views']}"
    counts = f"{summary['correct']:,} of {summary['rows']:,}{views}"
    lines = [
        ("top-1", f"{summary['top1']:.4f}  [{low:.4f}, {high:.4f}]  ({counts})"),
        ("top-5", f"{summary['top5']:.4f}"),
        ("macro F1", f"{summary['macro']['f1']:.4f}"),
        ("calibration", f"error {summary['calibration']['ece']:.4f}{_after(values['temperature'])}"),
        ("worst slice", _worst(values["worst_slice"])),
    ]
    clean = values["without_leaked"]
    if clean:
        left_out = summary["rows"] - clean["rows"]
        lines.insert(1, ("", f"{clean['top1']:.4f}  without the {left_out:,} that have a duplicate in train"))
    if values["robustness"]:
        clean, mean = robustness_means(values["robustness"])
        rows = values["robustness"][0]["rows"]
        lines.append(("corrupted", f"{mean:.4f} on average, {clean:.4f} without, of {rows:,} images looked at once"))
    for line in values["sanity"] or []:
        if line["random"] == "all layers":
            word = "depends" if line["depends"] else "DOES NOT DEPEND"
            lines.append(
                (line["method"], f"{word} on the weights: correlation {line['similarity']:.2f} with random ones")
            )
    labels = values["label_problems"]
    if labels:
        lines.append(
            ("labels", f"{labels['found']:,} of {labels['rows']:,} training images in doubt: {labels['table']}")
        )
    lines += [
        ("certificate", f"{certificate['digest'][:16]}  (--verify {out})"),
        ("metrics", files.join(out, "metrics.json")),
        ("predictions", files.join(out, "predictions.parquet")),
        ("model card", card),
        ("report", report),
    ]
    command.print_table(f"\n{values['model']['recipe']} on {values['dataset']['name']}, {certificate['split']}", lines)


def _after(temperature: dict[str, Any] | None) -> str:
    if temperature is None:
        return ""
    return f"; {temperature['ece_after']:.4f} with temperature {temperature['value']:.3f}, fitted on held-out images"


def _worst(worst: dict[str, Any] | None) -> str:
    if worst is None:
        return "none that is worse than chance would make it"
    return (
        f"{worst['column']} {worst['value']}: {worst['top1']:.4f} of {worst['rows']:,} images, "
        f"{100 * worst['below_mean']:.1f} points below the mean"
    )


# --- verifying and comparing -------------------------------------------------------------------------------------


def _verify(args: Args, out: str) -> None:
    from pipeline.evaluation import certificate as certify
    from pipeline.evaluation import output_files
    from pipeline.models import load as trained

    values = output_files.read_metrics(out)
    model = trained.find_model(files.absolute(args.checkpoint) if args.checkpoint else values["model"]["uri"])
    dataset = _dataset(args) if args.data else values["dataset"]["uri"]
    found = certify.verify(out, dataset, load_manifest(dataset), model)
    command.console.print(f"{out}: {found.rows:,} rows, each once; certificate {found.digest[:16]} and metrics hold")


def _compare(args: Args, first: str, second: str) -> None:
    """Prints which of two is better, and whether that may be chance."""
    from pipeline.evaluation import comparison as compare

    dataset = _dataset(args)
    data = training.describe_dataset(dataset)
    values, pair = compare.compare(first, second, dataset, data)
    out = files.absolute(args.out) if args.out else second
    place, report = compare.write_comparison(out, dataset, data, values, pair)
    changes = values["per_class"]
    command.print_table(
        f"\nB against A, {values['rows']:,} rows",
        [
            ("", compare.verdict(values)),
            ("top-1", f"A {values['top1'][0]:.4f}, B {values['top1'][1]:.4f}"),
            ("only A right", f"{values['only_first']:,}"),
            ("only B right", f"{values['only_second']:,}"),
            ("both, neither", f"{values['both']:,}, {values['neither']:,}"),
            ("McNemar, exact", f"p = {values['p']:.3g}"),
            ("recall falls most", _changes(changes[:_SHOWN])),
            ("rises most", _changes(changes[::-1][:_SHOWN])),
            ("all of it", place),
            ("report", report),
        ],
    )


def _changes(lines: list[dict[str, Any]]) -> str:
    return ", ".join(f"{x['class']} {x['recall'][0]:.3f} -> {x['recall'][1]:.3f}" for x in lines)


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
