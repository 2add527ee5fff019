"""What is printed about a data set and a finished training run."""

from typing import Any

from jobs.terminal.console import console, print_table
from pipeline.core.shares import counted, share_text
from pipeline.dataset.api import Dataset, open_dataset
from pipeline.dataset.manifest import Manifest
from pipeline.ingestion.sources import digits
from pipeline.loader import stage_times
from pipeline.storage import files


def print_result(run: str, data: Manifest, result: dict[str, Any]) -> None:
    """Prints the table of a finished run. result: the content of its result.json."""
    val = result["val"]
    stand_in = " (NOT CIFAR-10: scikit-learn's digits)" if data.name == digits.NAME else ""
    run = files.absolute(run)
    print_table(
        f"\n{result['recipe']['name']} on {data.name}{stand_in}",
        [
            (
                "top-1",
                f"{share_text(val['correct'], val['rows'])}  ({val['correct']:,} of {val['rows']:,} "
                f"{_evaluated(result)}{_views(result)})",
            ),
            *_without_leaked(result),
            *([("top-5", share_text(val["correct_top5"], val["rows"]))] if len(data.classes) > 5 else []),
            ("loss", "not finite" if val["loss"] is None else f"{val['loss']:.4f}"),
            (
                "training",
                f"{result['train_seconds']:.0f} s, {counted(result['epochs'], 'epoch')}, "
                f"{counted(result['steps'], 'step')}",
            ),
            (
                "speed",
                f"{result['images_per_second']:,.0f} images/s, {result['data_wait_fraction']:.1%} waiting for data",
            ),
            ("time went to", stage_times.largest_shares(result["seconds"])),
            ("operations", _operations(result)),
            (
                "goodput",
                f"{result['goodput']:.0%} of the time since the first start, {counted(len(result['starts']), 'start')}",
            ),
            *_sampled(result),
            *_quarantined(result),
            *(("WARNING", line) for line in result.get("warnings", ())),
            ("data set", data.digest[:16]),
            ("result", files.join(run, "result.json")),
            ("report", files.join(run, "report.html")),
        ],
    )


def _operations(result: dict[str, Any]) -> str:
    total = result["operations"]["total"]
    return f"{total:.3g} in training, {result['utilisation']:.0%} of what the device can do"


def _sampled(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns a line on the rows of a sampled epoch; none where every row comes once."""
    sampling = result.get("sampling")
    if sampling is None:
        return []
    rows = f"{sampling['epoch_rows']:,} images an epoch, of {sampling['different_rows']:,} different ones"
    return [("sampled", f"{rows} ({sampling['said']})")]


def _quarantined(result: dict[str, Any]) -> list[tuple[str, str]]:
    lines = result["quarantined"]
    if not lines:
        return []
    counts = ", ".join(f"{sum(line['split'] == split for line in lines):,} {split}" for split in ("train", "val"))
    return [("LEFT OUT", f"{counts}: images whose bytes are damaged; first {lines[0]['key']} in {lines[0]['place']}")]


def _evaluated(result: dict[str, Any]) -> str:
    return "images held out of train" if result["evaluated"]["held_out"] else "validation images"


def _views(result: dict[str, Any]) -> str:
    views = result["recipe"]["test_views"]
    return "" if views == "none" else f", test views: {views}"


def _without_leaked(result: dict[str, Any]) -> list[tuple[str, str]]:
    clean = result["val_without_leaked"]
    if clean is None:
        return []
    left_out = result["val"]["rows"] - clean["rows"]
    accuracy = share_text(clean["correct"], clean["rows"])
    return [("", f"{accuracy}  without the {left_out:,} that have a duplicate or near duplicate in train")]


def describe_dataset(uri: str) -> Dataset:
    """Prints one line about a data set and returns it, with its manifest."""
    found = open_dataset(uri)
    data = found.manifest
    rows = ", ".join(f"{split.rows:,} {name}" for name, split in data.splits.items())
    rows += f" ({data.val_rule})" if data.val_rule else ""
    console.print(f"data set {data.name}: {rows}, {len(data.classes)} classes, digest {data.digest[:16]}")
    if data.name == digits.NAME:
        console.print("NOTE: these are scikit-learn's handwritten digits, NOT CIFAR-10", style="bold yellow")
    return found
