"""Loader benchmark: images/s that reach the trainer's process, beside the decoder's limit and other loaders.

uv run jobs/bench/loader.py --images ../shared/data/imagenet-fullsize-160.tar [--rows 4000] [--size-px 224] [--s3]

The limit is libjpeg-turbo alone, decoding only the rows and columns of the crop: one process per CPU, images in memory,
crops drawn beforehand, no batch handed over. "our decoder alone" measures our decoder in the same way. Every loader
makes uint8 batches of random resized crops (area 0.08 to 1) with flips, in a process of its own. A round measures each
loader once; the first seconds, its start, aren't counted. Loaders that aren't installed are left out and named:
`uv sync --group bench` installs them. With --s3, --rows must be more than are read in a pass, so that the first epoch
lasts: 60,000 for 2,000 images/s. --resume and --soak-minutes measure the stream alone, in other respects.
"""

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from jobs.bench.ingest import read_tar
from jobs.bench.loader_questions import resume, soak
from jobs.bench.loader_ways import BESIDE, FROM_S3, LIMIT, OURS, WAYS, Pass
from jobs.bench.peers import NEEDS, PEERS
from jobs.terminal import command
from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.core.errors import PipelineError
from pipeline.ingestion.api import ingest
from pipeline.ingestion.image_check import ImageHandling
from pipeline.ingestion.plan import IngestSettings
from pipeline.storage import files

BUCKET = "bench"


@dataclass(frozen=True)
class Args:
    """The images are repeated, under other names each time, to fill the data set."""

    images: Annotated[str, command.option("a local tar of JPEGs", "TAR")]
    rows: Annotated[int, command.option("images in the data set", "N", "4000")] = 4000
    source_px: Annotated[int | None, command.option("shrink the images' shorter side to N pixels first", "N", "no")] = (
        None
    )
    size_px: Annotated[int, command.option("side of the crops, in pixels", "N", "224")] = 224
    batch_size: Annotated[int, command.option("images in a batch", "N", "256")] = 256
    seconds: Annotated[float, command.option("seconds that are measured in each pass", "N", "20")] = 20.0
    rounds: Annotated[int, command.option("passes of each loader, in turn", "N", "3")] = 3
    only: Annotated[str | None, command.option("loaders whose names start so, and the limit", "NAME", "all")] = None
    s3: Annotated[bool, command.option("also measure streams from a real S3 server on loopback", "")] = False
    resume: Annotated[bool, command.option("instead: time to start at 90 % of an epoch", "")] = False
    soak_minutes: Annotated[float | None, command.option("instead: one stream for N minutes", "N", "no")] = None
    json_out: Annotated[str | None, command.option("write the figures to FILE, as JSON", "FILE", "nowhere")] = None
    plot_out: Annotated[str | None, command.option("write a bar chart to FILE, as SVG", "FILE", "nowhere")] = None


def main(args: Args) -> None:
    """Makes the data set, measures all loaders and prints the rates."""
    folder = tempfile.mkdtemp(prefix="bench-")
    try:
        data, tree = f"{folder}/data", f"{folder}/tree"
        images = read_tar(args.images)
        if args.source_px:
            images = [shrunk(image, args.source_px) for image in images]
        make_tree(images, args.rows, tree)
        with command.Display() as display:
            ingest(tree, data, settings=IngestSettings(handling=ImageHandling(checks="header")), progress=display)
        one = Pass(OURS, data, f"{tree}/train", args.size_px, args.batch_size, args.seconds)
        if args.soak_minutes:
            soak(one, args.soak_minutes)
            return
        if args.resume:
            resume(one)
            return
        rates, costs = run_all(args, data, f"{tree}/train", folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_rates(args, rates, costs)
    if args.json_out:
        measured = {"args": asdict(args), "rates": rates, "cpu_ms": costs}
        Path(args.json_out).write_text(json.dumps(measured, indent=1))
    if args.plot_out:
        plot(rates, args.plot_out)


def shrunk(image: bytes, shorter_side_px: int) -> bytes:
    """Returns the image as a JPEG of quality 90 with a shorter side of `shorter_side_px` pixels."""
    import io

    from PIL import Image

    whole, out = Image.open(io.BytesIO(image)).convert("RGB"), io.BytesIO()
    scale = shorter_side_px / min(whole.size)
    whole.resize((round(whole.width * scale), round(whole.height * scale)), Image.Resampling.LANCZOS).save(
        out, format="JPEG", quality=90
    )
    return out.getvalue()


def make_tree(images: list[bytes], rows: int, folder: str) -> None:
    """Writes the images as class folders, and a few for val, because an ingest needs both splits."""
    for number in range(rows + 20):
        split = "train" if number < rows else "val"
        path = Path(folder, split, f"class-{number % 10}", f"{number:07d}.JPEG")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images[number % len(images)])


def run_all(args: Args, data: str, tree: str, folder: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Returns {loader: images/s of each round}, the limit first, and {loader: milliseconds of CPU an image}."""
    from contextlib import ExitStack, nullcontext

    from jobs.bench.latency import delayed_s3
    from pipeline.storage.local_s3 import local_s3

    chosen = [way for way in (*WAYS, *PEERS) if way == LIMIT or not args.only or way.startswith(args.only)]
    missing = [way for way in chosen if way in NEEDS and not _is_installed(NEEDS[way])]
    if missing:
        command.console.print(f"left out, not installed: {', '.join(missing)} (uv sync --group bench)")
    chosen = [way for way in chosen if way not in missing and (way not in FROM_S3 or args.s3)]
    rates: dict[str, list[float]] = {way: [] for way in chosen}
    costs: dict[str, list[float]] = {way: [] for way in chosen}
    with local_s3(BUCKET) if args.s3 else nullcontext() as server:
        if server is not None:
            for name, _ in files.list_files(data):
                files.write_bytes(f"s3://{BUCKET}/data/{name}", files.read_bytes(f"{data}/{name}"))
        for number in range(args.rounds):
            for way in chosen:
                one = Pass(way, data, tree, args.size_px, args.batch_size, args.seconds)
                with ExitStack() as stack:
                    if way in FROM_S3 and server is not None:
                        one = replace(one, data=f"s3://{BUCKET}/data", servers=(server.pid,), **FROM_S3[way])
                    if one.delay_ms:
                        proxy = stack.enter_context(delayed_s3(one.delay_ms))
                        one = replace(one, servers=(*one.servers, proxy.pid))
                    rate, served, own = run_apart(one, folder)
                rates[way].append(rate)
                costs[way].append(1000 * own / rate)
                if one.servers:
                    cpus = usable_cpus()
                    rates.setdefault(f"{way}{BESIDE}", []).append(rate * cpus / (cpus - served))
                command.console.print(
                    f"round {number + 1}: {way}: {rate:,.0f} images/s, {costs[way][-1]:.3f} ms of CPU an image"
                )
    return rates, costs


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent
        return False


def run_apart(one: Pass, folder: str) -> tuple[float, float, float]:
    """Returns what `measure` does, of a pass in a process of its own."""
    os.makedirs(place := f"{folder}/pass")  # so that files that a loader keeps are removed with it
    code = f"from jobs.bench.loader_ways import *; print('RATE', *measure(Pass(**{asdict(one)!r})))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": place}
    command_line = [sys.executable, "-c", code]
    done = subprocess.run(command_line, cwd=place, env=environment, capture_output=True, text=True)
    shutil.rmtree(place)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RATE ")]
    if done.returncode or not lines:
        raise PipelineError(f"{one.way}: failed: {' '.join(done.stderr.split())[-500:]}")
    rate, served, own = map(float, lines[-1].split()[1:])
    return rate, served, own


# --- output -----------------------------------------------------------------------------------------------------


def print_rates(args: Args, rates: dict[str, list[float]], costs: dict[str, list[float]]) -> None:
    """Prints the medians of the rounds, and the medians of the ratios to the limit in the same round.

    The last ratio is of the CPU time that an image takes: of images/s by the CPU that the loader was given, which other
    work on the machine hardly changes.
    """
    rows = []
    for way, values in sorted(rates.items(), key=lambda item: -statistics.median(item[1])):
        ratio = statistics.median(a / b for a, b in zip(values, rates[LIMIT], strict=True))
        line = f"{statistics.median(values):7,.0f} images/s  {ratio:.2f} of the limit"
        if way in costs:
            by_cpu = statistics.median(b / a for a, b in zip(costs[way], costs[LIMIT], strict=True))
            line += f"  {statistics.median(costs[way]):.3f} ms of CPU  {by_cpu:.2f}"
        rows.append((way, line))
    title = (
        f"\n{Path(args.images).name}, {f'{args.source_px} -> ' if args.source_px else ''}{args.size_px} px, "
        f"{usable_cpus()} CPUs, medians of {args.rounds} rounds"
    )
    command.print_table(title, rows)


def plot(rates: dict[str, list[float]], path: str) -> None:
    """Draws the medians as bars."""
    from pipeline.reporting.charts import BLUE, GREY, chart_style, new_axes

    names = sorted(rates, key=lambda way: statistics.median(rates[way]))
    with chart_style():
        figure, chart = new_axes(8, 0.8 + 0.35 * len(names))
        bars = chart.barh(names, [statistics.median(rates[name]) for name in names], color=BLUE)
        chart.bar_label(bars, fmt="%.0f", padding=3, color=GREY)
        chart.set(xlabel="images/s")
        figure.savefig(path, format="svg", bbox_inches="tight")


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
