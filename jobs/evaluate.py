"""Evaluates a trained model on every image of a split, and certifies the result; or compares two models.

It writes metrics.json, predictions.parquet, evaluation.html and MODEL_CARD.md into a folder below the run. With
--compare it tells which of two models is better, and with --verify it repeats the checks of an earlier evaluation.

Examples:
    uv run jobs/evaluate.py --checkpoint runs/photos --data data/photos
    uv run jobs/evaluate.py --checkpoint runs/photos --data data/photos --full
    uv run jobs/evaluate.py --compare runs/a runs/b --data data/photos
    uv run jobs/evaluate.py --verify runs/photos/evaluation-val-none-0123abcd
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from jobs.arguments.evaluation import CHECKPOINT_HELP, WorkerArgs, evaluation_option
from jobs.arguments.source import RawArgs
from jobs.terminal import command
from jobs.terminal.training_result import describe_dataset
from pipeline.config.choices import TestViews
from pipeline.core.errors import RecipeError
from pipeline.core.shares import counted, share_text
from pipeline.ingestion.prepare import prepare_dataset, trained_twin
from pipeline.ingestion.sources import Source
from pipeline.storage import files

_SHOWN = 3  # classes whose recall changes most
_FULL_SEVERITIES = (1, 3, 5)


@dataclass(frozen=True)
class AnalysisArgs:
    """Analyses beside the metrics; each takes as long as some evaluations."""

    full: Annotated[bool, command.option("all three: --robustness --explain --label-problems", "")] = False
    robustness: Annotated[bool, command.option("accuracy under noise, blur, brightness and compression", "")] = False
    explain: Annotated[bool, evaluation_option("explain", "")] = False
    label_problems: Annotated[bool, evaluation_option("label_issues", "")] = False
    severities: Annotated[tuple[int, ...], evaluation_option("severities", "N...", "1 3 5")] = _FULL_SEVERITIES
    robustness_rows: Annotated[int, evaluation_option("robustness_rows", "N", "2000")] = 2000
    label_rows: Annotated[int, evaluation_option("label_rows", "N", "50000")] = 50_000
    slice_by: Annotated[tuple[str, ...], evaluation_option("slice_by", "NAME...", "none")] = ()


@dataclass(frozen=True)
class InsteadArgs:
    """Instead of an evaluation."""

    compare: Annotated[tuple[str, str] | None, command.option("two runs or evaluations to compare", "A B", "none")] = (
        None
    )
    verify: Annotated[str | None, command.option("an evaluation whose certificate is checked", "DIR", "none")] = None


@dataclass(frozen=True)
class Args:
    """Flags of the command."""

    checkpoint: Annotated[str | None, command.option(CHECKPOINT_HELP, "URI")] = None
    data: Annotated[str | None, command.option("a data set or raw images", "URI", "CIFAR-10, as in training")] = None
    split: Annotated[str, evaluation_option("split", "NAME", "val")] = "val"
    views: Annotated[TestViews | None, evaluation_option("views", "NAME", "the recipe's")] = None
    out: Annotated[str | None, command.option("folder for the results", "DIR", "below the run")] = None
    raw: Annotated[RawArgs, command.group("data")] = field(default_factory=RawArgs)
    worker: Annotated[WorkerArgs, command.group("hardware")] = field(default_factory=WorkerArgs)
    analysis: Annotated[AnalysisArgs, command.group("analysis")] = AnalysisArgs()
    instead: Annotated[InsteadArgs, command.group("other")] = InsteadArgs()


def main(args: Args) -> None:
    """Evaluates, verifies or compares, and prints the result."""
    if args.instead.compare is not None:
        _compare(args, *(files.absolute(each).rstrip("/") for each in args.instead.compare))
    elif args.instead.verify is not None:
        _verify(args, files.absolute(args.instead.verify).rstrip("/"))
    elif args.checkpoint is None:
        raise RecipeError("checkpoint: give a finished run or RUN/checkpoints/STEP; or --compare A B, or --verify DIR")
    else:
        _evaluate(args, files.absolute(args.checkpoint).rstrip("/"))


def _source(args: Args) -> Source | None:
    # Of raw images without val every one counts, unless another split is asked for.
    source = args.raw.source(args.data)
    return source and replace(source, for_evaluation=args.split == "val")


def _dataset(args: Args) -> str:
    with command.Display() as display:
        return prepare_dataset(_source(args), max_quarantined=args.raw.max_quarantined, progress=display)


def _evaluate(args: Args, uri: str) -> None:
    with command.loading():
        from pipeline.evaluation.inputs import EvaluateOptions
        from pipeline.evaluation.workflow import evaluate, evaluation_folder
        from pipeline.models.load import find_model

        model, more = find_model(uri), args.analysis
    if not more.severities:
        raise RecipeError("severities: give one or more of 1 to 5")
    options = EvaluateOptions(
        args.split,
        args.views,
        more.slice_by,
        more.severities,
        more.robustness_rows,
        more.explain or more.full,
        more.label_problems or more.full,
        more.label_rows,
    )
    if not (more.robustness or more.full):
        options = replace(options, severities=())
    options.check_packages()
    dataset = _dataset(args)
    data = describe_dataset(dataset).manifest
    if twin := trained_twin(_source(args), model.dataset_digest):
        command.console.print(
            f"NOTE: the model was trained on most of these images; --data {twin} evaluates those held out of training",
            style="bold yellow",
        )
    out = files.absolute(args.out) if args.out else evaluation_folder(model, data, options)
    with command.Display() as display:
        values = evaluate(uri, dataset, out, options, args.worker.make(), display)
    _print(out, values)


def _print(out: str, values: dict[str, Any]) -> None:
    from pipeline.evaluation.analysis.corruptions import robustness_means
    from pipeline.evaluation.analysis.looks import looks_text

    summary, certificate = values["metrics"], values["certificate"]
    views = "" if certificate["views"] == "none" else f", test views: {certificate['views']}"
    counts = f"{summary['correct']:,} of {summary['rows']:,}{views}"
    lines = [
        ("top-1", f"{share_text(summary['correct'], summary['rows'])}  ({counts})"),
        *([("top-5", share_text(summary["correct_top5"], summary["rows"]))] if len(summary["per_class"]) > 5 else []),
        ("macro F1", f"{summary['macro']['f1']:.4f}"),
        ("calibration", f"error {summary['calibration']['ece']:.4f}{_after(values['temperature'])}"),
        ("worst slice", _worst(values["worst_slice"])),
    ]
    clean = values["without_leaked"]
    if clean:
        left_out = summary["rows"] - clean["rows"]
        accuracy = share_text(clean["correct"], clean["rows"])
        lines.insert(1, ("", f"{accuracy}  without the {left_out:,} that have a near duplicate in train"))
    if values["earlier_looks"] is not None:
        lines.insert(1, ("", looks_text(values["earlier_looks"])))
    if values["robustness"]:
        clean, mean = robustness_means(values["robustness"])
        rows = values["robustness"][0]["rows"]
        lines.append(
            ("corrupted", f"top-1 {mean:.4f} on average, {clean:.4f} uncorrupted, of {rows:,} images, one view each")
        )
    for line in values["sanity"] or []:
        if line["random"] == "all layers":
            verb = "depends" if line["depends"] else "DOES NOT DEPEND"
            lines.append(
                (
                    line["method"],
                    f"{verb} on the weights: rank correlation {line['similarity']:.2f} with random weights",
                )
            )
    labels = values["label_problems"]
    if labels:
        lines.append(
            (
                "labels",
                f"{counted(labels['found'], 'doubtful one')} among {counted(labels['rows'], 'training image')}"
                + (f", without {labels['reviewed']:,} that a person has looked at" if labels["reviewed"] else "")
                + f": {labels['table']}",
            )
        )
    lines += [
        ("certificate", f"{certificate['digest'][:16]}  (--verify {out})"),
        ("metrics", files.join(out, "metrics.json")),
        ("predictions", files.join(out, "predictions.parquet")),
        ("model card", files.join(out, "MODEL_CARD.md")),
        ("report", files.join(out, "evaluation.html")),
    ]
    if labels and labels["found"]:
        lines.append(("to decide", labels["page"]))
        lines += [("to correct", each) for each in labels["commands"]]
    command.print_table(f"\n{values['model']['recipe']} on {values['dataset']['name']}, {certificate['split']}", lines)


def _after(temperature: dict[str, Any] | None) -> str:
    if temperature is None:
        return ""
    return f"; {temperature['ece_after']:.4f} with temperature {temperature['value']:.3f}, fitted on held-out images"


def _worst(worst: dict[str, Any] | None) -> str:
    if worst is None:
        return "none is significantly below the mean"
    return (
        f"{worst['column']} {worst['value']}: {share_text(worst['correct'], worst['rows'])} of {worst['rows']:,} "
        f"images, {100 * worst['below_mean']:.1f} points below the mean"
    )


def _verify(args: Args, out: str) -> None:
    with command.loading():
        from pipeline.evaluation.workflow import verify

    found = verify(out, _dataset(args) if args.data else None, args.checkpoint)
    command.console.print(
        f"{out}: {counted(found.rows, 'row')}, each once; certificate {found.digest[:16]} and metrics hold"
    )


def _compare(args: Args, first: str, second: str) -> None:
    """Prints which of two models is better, and whether the difference may be chance."""
    with command.loading():
        from pipeline.evaluation.comparison import verdict
        from pipeline.evaluation.predictions import check_predictions
        from pipeline.evaluation.workflow import compare

    for folder in (first, second):
        check_predictions(files.absolute(folder))
    dataset = _dataset(args)
    describe_dataset(dataset)
    out = files.absolute(args.out) if args.out else second
    values = compare(first, second, dataset, out)
    command.print_table(
        f"\nB against A, {counted(values['rows'], 'row')}",
        [
            ("", verdict(values)),
            ("top-1 of A", share_text(values["both"] + values["only_first"], values["rows"])),
            ("top-1 of B", share_text(values["both"] + values["only_second"], values["rows"])),
            ("only A correct", f"{values['only_first']:,}"),
            ("only B correct", f"{values['only_second']:,}"),
            ("both, neither", f"{values['both']:,}, {values['neither']:,}"),
            ("McNemar, exact", f"p = {values['p']:.3g}"),
            *recall_changes(values["per_class"]),
            ("comparison", files.join(out, "compare.json")),
            ("report", files.join(out, "compare.html")),
        ],
    )


def recall_changes(per_class: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns the lines on the classes whose recall falls and rises most. per_class: of a comparison, by change."""
    falls = [each for each in per_class if each["change"] < 0]
    rises = [each for each in per_class[::-1] if each["change"] > 0]
    return [("recall falls most", _changes(falls)), ("rises most", _changes(rises))]


def _changes(lines: list[dict[str, Any]]) -> str:
    shown = (f"{each['class']} {each['recall'][0]:.3f} -> {each['recall'][1]:.3f}" for each in lines[:_SHOWN])
    return ", ".join(shown) or "none"


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
