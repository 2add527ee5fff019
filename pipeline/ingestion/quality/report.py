"""`quality.html`: classes, sizes, brightness and duplicates of a data set, to be looked at before training."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.shares import counted
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_provenance, read_rows
from pipeline.ingestion.quarantine import read_quarantine
from pipeline.reporting.charts import BLUE, GREY, ORANGE, chart_style, new_axes, render_page, svg_data_uri, thumbnail

_MOST_CLASSES = 40  # in a bar chart; of more classes, a histogram
_MOST_PAIRS = 24
_MOST_REFUSED = 50


def render(uri: str, manifest: Manifest, histogram: npt.NDArray[np.int64]) -> str:
    """Returns the page about the data set at `uri`, whose shards are written already.

    histogram: int64 [768], counts of the values of R, G and B over all rows.
    """
    rows = read_provenance(uri, manifest, ["key", "height", "width", "brightness"])
    charts = [_classes(manifest), _sizes(rows)]
    if manifest.quality:
        charts += [_brightness(rows), _values(histogram)]
    refused = read_quarantine(uri)
    return render_page(
        "quality.html",
        manifest=manifest,
        charts=charts,
        refused=refused.slice(0, _MOST_REFUSED).to_pylist(),
        num_refused=refused.num_rows,
        leaks=_pairs(uri, manifest, rows, across=True),
        within=_pairs(uri, manifest, rows, across=False),
        num_leaked=sum(map(len, manifest.leaked.values())),
        megabytes=sum(shard.bytes for split in manifest.splits.values() for shard in split.shards) / 1e6,
    )


@chart_style()
def _classes(manifest: Manifest) -> tuple[str, str]:
    """Returns (SVG, sentence), as do the charts below."""
    split = "train" if "train" in manifest.splits else "val"  # raw images for an evaluation may lack train
    kind = "training" if split == "train" else "validation"
    counts = sorted(zip(manifest.split(split).rows_per_class, manifest.classes, strict=True))
    smallest, largest = counts[0], counts[-1]
    text = (
        f"Every class has {counted(smallest[0], f'{kind} image')}"
        if smallest[0] == largest[0]
        else f"From {smallest[0]:,} ({smallest[1]}) to {largest[0]:,} ({largest[1]}) {kind} images a class"
    )
    if len(counts) <= _MOST_CLASSES:
        figure, plot = new_axes(5.2, 0.8 + 0.22 * len(counts))
        bars = plot.barh([name for _, name in counts], [count for count, _ in counts], color=BLUE)
        plot.bar_label(bars, fmt="{:,.0f}", padding=3, color=GREY)
        plot.set(xlabel=f"{kind} images", xlim=(0, 1.18 * largest[0]))
    else:
        figure, plot = new_axes()
        plot.hist([count for count, _ in counts], bins=40, color=BLUE)
        plot.set(xlabel=f"{kind} images of a class", ylabel="classes")
    return svg_data_uri(figure), text


@chart_style()
def _sizes(rows: pa.Table) -> tuple[str, str]:
    shorter = np.minimum(rows["height"].to_numpy(), rows["width"].to_numpy())
    figure, plot = new_axes()
    if shorter.min() == shorter.max():
        plot.bar([f"{shorter[0]} px"], [len(shorter)], width=0.3, color=BLUE)
        plot.set(ylabel="images", xlim=(-1, 1))
        return svg_data_uri(figure), f"Every image has a shorter side of {shorter[0]} pixels"
    plot.hist(shorter, bins=np.geomspace(shorter.min(), shorter.max() + 1, 50), color=BLUE)
    plot.set(xlabel="shorter side, pixels", ylabel="images", xscale="log")
    low, middle, high = np.quantile(shorter, (0.01, 0.5, 0.99))
    text = f"Shorter sides: half are below {middle:,.0f} pixels, 98 % between {low:,.0f} and {high:,.0f}"
    return svg_data_uri(figure), text


@chart_style()
def _brightness(rows: pa.Table) -> tuple[str, str]:
    figure, plot = new_axes()
    splits = np.array(rows["split"].to_pylist())
    brightness = rows["brightness"].to_numpy()
    means = {}
    for split, colour in zip(dict.fromkeys(splits.tolist()), (BLUE, ORANGE, GREY), strict=False):
        mine = brightness[splits == split]
        means[split] = float(mine.mean())
        weights = np.full(len(mine), 100 / len(mine))
        plot.hist(mine, bins=np.arange(0, 257, 8), weights=weights, histtype="step", color=colour, label=split)
    plot.legend(frameon=False)
    plot.set(xlabel="mean value of an image, 0 to 255", ylabel="% of the split", xlim=(0, 255))
    values = ", ".join(f"{mean:.1f} in {split}" for split, mean in means.items())
    return svg_data_uri(figure), f"Mean brightness: {values}"


@chart_style()
def _values(histogram: npt.NDArray[np.int64]) -> tuple[str, str]:
    figure, plot = new_axes()
    shares = 100 * histogram.reshape(3, 256) / histogram[:256].sum()
    for channel, colour, name in zip(shares, ("#d2544f", "#4f9d5d", BLUE), ("red", "green", "blue"), strict=True):
        plot.plot(channel, color=colour, linewidth=1, label=name)
    plot.legend(frameon=False)
    plot.set(xlabel="value", ylabel="% of the pixels", xlim=(0, 255), ylim=(0, float(np.quantile(shares, 0.995)) * 1.2))
    return svg_data_uri(figure), f"Values of {histogram[:256].sum():,} pixels"


def _pairs(uri: str, manifest: Manifest, rows: pa.Table, across: bool) -> list[dict[str, Any]]:
    """Returns some pairs with their pictures, evenly spread over all pairs across splits, or within one split."""
    pairs = [pair for pair in manifest.quality.get("pairs", []) if (pair["first"][0] != pair["second"][0]) == across]
    chosen = pairs[:: max(1, len(pairs) // _MOST_PAIRS)][:_MOST_PAIRS]
    wanted = {tuple(each) for pair in chosen for each in (pair["first"], pair["second"])}
    names = zip(rows["split"].to_pylist(), rows["key"].to_pylist(), rows["row"].to_pylist(), strict=True)
    place = {(split, key): row for split, key, row in names if (split, key) in wanted}
    pictures = {}
    for split in manifest.splits:
        mine = sorted(name for name in wanted if name[0] == split)
        if mine:
            table = read_rows(uri, manifest.split(split), np.array([place[name] for name in mine]), ("label", "image"))
            for name, label, image in zip(mine, table["label"], table["image"], strict=True):
                label = manifest.classes[label.as_py()]
                pictures[name] = {"split": split, "key": name[1], "label": label, "picture": thumbnail(image.as_py())}
    return [
        {
            "exact": pair["exact"],
            "correlation": pair["correlation"],
            "images": [pictures[tuple(each)] for each in (pair["first"], pair["second"])],
        }
        for pair in chosen
    ]
