"""Evaluates a trained model on each image of a split once, and certifies it; or compares two on the same images.

uv run jobs/evaluate.py --checkpoint RUN --data URI [--full]
uv run jobs/evaluate.py --compare RUN_A RUN_B --data URI
uv run jobs/evaluate.py --verify OUT
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from jobs import command, training
from pipeline.cluster import resources
from pipeline.config.choices import TestViews
from pipeline.core.errors import RecipeError
from pipeline.ingestion.prepare import prepare_dataset
from pipeline.storage import files

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


def _evaluate(args: Args, uri: str) -> None:
    from pipeline.evaluation.workers import Workers
    from pipeline.evaluation.workflow import EvaluateOptions, evaluate, evaluation_folder
    from pipeline.models.load import find_model

    model = find_model(uri)
    if not args.severities:
        raise RecipeError("severities: give one or more of 1 to 5")
    options = EvaluateOptions(
        args.split,
        args.views,
        args.slice_by,
        args.severities,
        args.robustness_rows,
        args.explain or args.full,
        args.label_problems or args.full,
        args.label_rows,
    )
    if not (args.robustness or args.full):
        options = replace(options, severities=())
    options.check_packages()
    dataset = _dataset(args)
    data = training.describe_dataset(dataset)
    out = files.absolute(args.out) if args.out else evaluation_folder(model, data, options)
    with command.Display() as display:
        workers = Workers(args.workers, args.device, args.wait_minutes)
        values = evaluate(uri, dataset, out, options, workers, display)
    _print(out, values)


def _print(out: str, values: dict[str, Any]) -> None:
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
        ("model card", files.join(out, "MODEL_CARD.md")),
        ("report", files.join(out, "evaluation.html")),
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


def _verify(args: Args, out: str) -> None:
    from pipeline.evaluation.workflow import verify

    found = verify(out, _dataset(args) if args.data else None, args.checkpoint)
    command.console.print(f"{out}: {found.rows:,} rows, each once; certificate {found.digest[:16]} and metrics hold")


def _compare(args: Args, first: str, second: str) -> None:
    """Prints which of two models is better, and whether the difference may be chance."""
    from pipeline.evaluation.comparison import verdict
    from pipeline.evaluation.workflow import compare

    dataset = _dataset(args)
    training.describe_dataset(dataset)
    out = files.absolute(args.out) if args.out else second
    values = compare(first, second, dataset, out)
    changes = values["per_class"]
    command.print_table(
        f"\nB against A, {values['rows']:,} rows",
        [
            ("", verdict(values)),
            ("top-1", f"A {values['top1'][0]:.4f}, B {values['top1'][1]:.4f}"),
            ("only A right", f"{values['only_first']:,}"),
            ("only B right", f"{values['only_second']:,}"),
            ("both, neither", f"{values['both']:,}, {values['neither']:,}"),
            ("McNemar, exact", f"p = {values['p']:.3g}"),
            ("recall falls most", _changes(changes[:_SHOWN])),
            ("rises most", _changes(changes[::-1][:_SHOWN])),
            ("all of it", files.join(out, "compare.json")),
            ("report", files.join(out, "compare.html")),
        ],
    )


def _changes(lines: list[dict[str, Any]]) -> str:
    return ", ".join(f"{x['class']} {x['recall'][0]:.3f} -> {x['recall'][1]:.3f}" for x in lines)


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
