"""How fast the loader is beside its decoder and beside what people use: images/s into the trainer's process.

uv run jobs/bench/loader.py --images ../shared/data/imagenet-fullsize-160.tar [--rows 4000] [--size-px 224] [--s3]

The limit is libjpeg-turbo alone, made to decode the crop's rows and columns and no others: as many processes as there
are CPUs, images in memory, crops drawn beforehand, nothing handed over. Beside it stands our own decoder, likewise. All
ways make uint8 batches of random resized crops (area 0.08 to 1) with flips. Each runs in a process of its own, in
rounds of all ways in turn; what comes in the first seconds, while it starts, isn't counted. Peers that aren't installed
are left out, and named: `uv sync --group bench` installs them. --resume and --soak-minutes ask other questions of the
stream alone.
"""

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from jobs import command
from jobs.bench.ingest import read_tar
from jobs.bench.peers import NEEDS, PEERS
from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.cluster.session import ray_session
from pipeline.config.augment import Augment
from pipeline.core.errors import PipelineError
from pipeline.core.processes import cpu_seconds, tree_megabytes
from pipeline.dataset import manifest
from pipeline.ingestion.api import ingest
from pipeline.ingestion.image_check import ImageHandling
from pipeline.ingestion.plan import IngestSettings
from pipeline.storage import files

AUGMENT = Augment(resized_crop_area=(0.08, 1.0), flip_probability=0.5)
BUCKET = "bench"


@dataclass(frozen=True)
class Args:
    """The images are repeated, each time under other names, until there are so many rows."""

    images: Annotated[str, command.option("a local tar of JPEGs", "TAR")]
    rows: Annotated[int, command.option("images in the data set", "N", "4000")] = 4000
    source_px: Annotated[int | None, command.option("shrink the images' shorter side to so much first", "N", "no")] = (
        None
    )
    size_px: Annotated[int, command.option("of the crops", "N", "224")] = 224
    batch_size: Annotated[int, command.option("images in a batch", "N", "256")] = 256
    seconds: Annotated[float, command.option("of each pass that are counted", "N", "20")] = 20.0
    rounds: Annotated[int, command.option("of all ways in turn", "N", "3")] = 3
    only: Annotated[str | None, command.option("ways whose names begin so, besides the limit", "NAME", "all")] = None
    s3: Annotated[bool, command.option("also from a real S3 on loopback", "")] = False
    resume: Annotated[bool, command.option("instead: begin at 90 % of an epoch, beside skipping up to it", "")] = False
    soak_minutes: Annotated[float | None, command.option("instead: one stream for so long", "N", "no")] = None
    json_out: Annotated[str | None, command.option("where to write the figures", "FILE", "nowhere")] = None
    plot_out: Annotated[str | None, command.option("where to draw them, as SVG", "FILE", "nowhere")] = None


@dataclass(frozen=True)
class Pass:
    """What one pass needs to know. data: the data set; folder: the same JPEGs as class folders; server: the process
    that `data` comes from, 0 for none; run_rows: of the order; cached: whether row groups are kept on this disk."""

    way: str
    data: str
    folder: str
    size_px: int
    batch_size: int
    seconds: float
    server: int = 0
    run_rows: int = 1
    cached: bool = False


def main(args: Args) -> None:
    """Makes the data set, runs all ways, prints."""
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
        rates = run_all(args, data, f"{tree}/train", folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_rates(args, rates)
    if args.json_out:
        Path(args.json_out).write_text(json.dumps({"args": asdict(args), "rates": rates}, indent=1))
    if args.plot_out:
        plot(rates, args.plot_out)


def shrunk(image: bytes, shorter_side_px: int) -> bytes:
    """Returns the image as a JPEG of quality 90 whose shorter side has so many pixels."""
    import io

    from PIL import Image

    whole, out = Image.open(io.BytesIO(image)).convert("RGB"), io.BytesIO()
    scale = shorter_side_px / min(whole.size)
    whole.resize((round(whole.width * scale), round(whole.height * scale)), Image.Resampling.LANCZOS).save(
        out, format="JPEG", quality=90
    )
    return out.getvalue()


def make_tree(images: list[bytes], rows: int, folder: str) -> None:
    """Writes the images as class folders, and a few for val, which an ingest wants."""
    for number in range(rows + 20):
        split = "train" if number < rows else "val"
        path = Path(folder, split, f"class-{number % 10}", f"{number:07d}.JPEG")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images[number % len(images)])


def run_all(args: Args, data: str, tree: str, folder: str) -> dict[str, list[float]]:
    """Returns {way: images/s of each round}, the limit first."""
    from contextlib import nullcontext

    from pipeline.storage.local_s3 import local_s3

    chosen = [way for way in (*WAYS, *PEERS) if way == LIMIT or not args.only or way.startswith(args.only)]
    missing = [way for way in chosen if way in NEEDS and not _is_installed(NEEDS[way])]
    if missing:
        command.console.print(f"left out, not installed: {', '.join(missing)} (uv sync --group bench)")
    chosen = [way for way in chosen if way not in missing and (way not in FROM_S3 or args.s3)]
    rates: dict[str, list[float]] = {way: [] for way in chosen}
    with local_s3(BUCKET) if args.s3 else nullcontext() as server:
        if server is not None:
            for name, _ in files.list_files(data):
                files.write_bytes(f"s3://{BUCKET}/data/{name}", files.read_bytes(f"{data}/{name}"))
        for number in range(args.rounds):
            for way in chosen:
                one = Pass(way, data, tree, args.size_px, args.batch_size, args.seconds)
                if way in FROM_S3 and server is not None:
                    one = replace(one, data=f"s3://{BUCKET}/data", server=server.pid, **FROM_S3[way])
                rate, served = run_apart(one, folder)
                rates[way].append(rate)
                if one.server:
                    cpus = usable_cpus()
                    rates.setdefault(f"{way}{BESIDE}", []).append(rate * cpus / (cpus - served))
                command.console.print(f"round {number + 1}: {way}: {rate:,.0f} images/s")
    return rates


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent
        return False


def run_apart(one: Pass, folder: str) -> tuple[float, float]:
    """Returns the images/s of one pass, run in a process of its own, and how many CPUs its server took meanwhile."""
    os.makedirs(place := f"{folder}/pass")  # what a loader writes for itself goes with it
    code = f"from jobs.bench.loader import *; print('RATE', *measure(Pass(**{asdict(one)!r})))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": place}
    command_line = [sys.executable, "-c", code]
    done = subprocess.run(command_line, cwd=place, env=environment, capture_output=True, text=True)
    shutil.rmtree(place)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RATE ")]
    if done.returncode or not lines:
        raise PipelineError(f"{one.way}: failed: {' '.join(done.stderr.split())[-500:]}")
    rate, served = map(float, lines[-1].split()[1:])
    return rate, served


def measure(one: Pass) -> tuple[float, float]:
    """Returns images/s between the end of the start (5 s after the first batch) and the end of the pass, and the CPUs
    that the server took meanwhile."""
    if one.way in WAYS:
        batches = WAYS[one.way](one)
    else:
        batches = PEERS[one.way](one.data, one.folder, one.size_px, one.batch_size)
    next(batches)
    warm = time.perf_counter() + 5
    while time.perf_counter() < warm:
        next(batches)
    count, start, before = 0, time.perf_counter(), cpu_seconds(one.server)
    while time.perf_counter() < start + one.seconds:
        count += next(batches)
    seconds, served = time.perf_counter() - start, cpu_seconds(one.server) - before
    batches.close()
    return count / seconds, served / seconds


# --- the ways: each yields the number of images of batch after batch ---------------------------------------------


def limit(one: Pass, decoder: str = "libjpeg") -> Generator[int]:
    """A decoder on images in memory, in as many processes as CPUs; simplejpeg where there is no kernel."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    workers = [
        context.Process(target=_decode_for_ever, args=(one, decoder, queue), daemon=True) for _ in range(usable_cpus())
    ]
    for worker in workers:
        worker.start()
    try:
        while True:
            yield queue.get()
    finally:
        for worker in workers:
            worker.kill()


def _decode_for_ever(one: Pass, decoder: Any, queue: Any) -> None:
    from pipeline.core.keyed_random import Stream, uniform
    from pipeline.dataset.row_reader import load_index, read_images
    from pipeline.loader.crops import crop_boxes
    from pipeline.loader.decode import CropGeometry, best_decoder, decode_batch

    index = load_index(one.data, manifest.load(one.data).split("train"))
    decoder = decoder if best_decoder() == "kernel" else "simplejpeg"
    size = min(one.batch_size, len(index.length))
    rows = np.arange(size)
    images = read_images(index, rows)
    sizes = np.stack([index.height[rows], index.width[rows]], axis=1)
    views = []
    for seed in range(8):
        draws = uniform(seed, 0, Stream.RESIZED_CROP, rows.astype(np.uint64), 40)
        boxes = crop_boxes(sizes[:, 0], sizes[:, 1], AUGMENT, draws)
        views.append(CropGeometry.resized_crops(one.size_px, sizes, boxes, np.arange(size, dtype=np.int32) % 2))
    while True:
        for each in views:
            queue.put(len(decode_batch(images, each, str, decoder)))


def ours(one: Pass) -> Generator[int]:
    """This project's stream, as one training worker gets it."""
    with ray_session(), closing(stream_from(one, 0)) as stream:
        for batch in stream:
            yield len(batch.images)


def stream_from(one: Pass, first_step: int) -> Generator[Any]:
    """Returns the batches of 10,000 epochs, from a step on."""
    from pipeline.loader.decode import best_decoder
    from pipeline.loader.samplers import TrainSampler
    from pipeline.loader.stream import stream_batches
    from pipeline.loader.transform import Transform

    split, order = manifest.load(one.data).split("train"), order_of(one)
    units = TrainSampler(order, 10_000 * order.steps_per_epoch, first_step)
    view = Transform(one.size_px, one.size_px, AUGMENT, decoder=best_decoder())
    return stream_batches(one.data, split, units, view, cache=os.path.abspath("cache") if one.cached else "")


def order_of(one: Pass) -> Any:
    """Returns the order of the pass, seed 0, mixed as in the recipe `resnet50`."""
    from pipeline.config.presets import make_recipe
    from pipeline.loader.sample_order import Order

    split, recipe = manifest.load(one.data).split("train"), make_recipe("resnet50")
    size = min(one.batch_size, split.rows)
    return Order(split.row_group_rows, 0, size, recipe.shuffle_window_row_groups, run_rows=one.run_rows)


# --- other questions than how fast -------------------------------------------------------------------------------


def resume(one: Pass) -> None:
    """Prints what it takes to begin at 90 % of an epoch, beside drawing and throwing away all batches before."""
    import ray
    import ray.data  # loading modules isn't the question

    from pipeline.dataset.row_reader import load_index
    from pipeline.loader import stream as _  # noqa: F401

    order = order_of(one)
    step = round(0.9 * order.steps_per_epoch)
    index = load_index(one.data, manifest.load(one.data).split("train"))

    @ray.remote(num_cpus=0.5)  # type: ignore[untyped-decorator]
    def nothing() -> None:
        pass

    rows = []
    for name, first, skipped in (("from the step on", step, 0), ("skipping up to it", 0, step)):
        with ray_session():
            ray.get([nothing.remote() for _ in range(16)])  # Ray's own start isn't the question
            start, num_bytes = time.perf_counter(), 0
            with closing(stream_from(one, first)) as stream:
                for number in range(skipped + 1):
                    batch = next(stream)
                    num_bytes += int(index.length[batch.rows].sum())
                    seconds = time.perf_counter() - start
                    if number == skipped:
                        break
            assert np.array_equal(batch.rows, order.rows(step))
            rows.append((name, f"first batch after {seconds:6.1f} s, {num_bytes / 1e6:9,.1f} MB read up to its end"))
    command.print_table(f"\nstep {step} of {order.steps_per_epoch}, {order.num_rows:,} rows", rows)


def soak(one: Pass, minutes: float) -> None:
    """Prints speed and memory of one stream, ten times in `minutes`, beginning when it has been on its way a minute."""
    with ray_session(), closing(stream_from(one, 0)) as stream:
        begin = time.perf_counter()
        while time.perf_counter() < begin + min(60, minutes * 6):
            next(stream)
        rates, memory = [], []
        for number in range(10):
            start, count = time.perf_counter(), 0
            while time.perf_counter() < start + minutes * 6:
                count += len(next(stream).images)
            rates.append(count / (time.perf_counter() - start))
            memory.append(tree_megabytes(os.getpid()))
            command.console.print(f"{number + 1:3}/10  {rates[-1]:,.0f} images/s  {memory[-1]:,.0f} MB")
    title = f"\none stream for {minutes:g} minutes"
    change = f"{rates[0]:,.0f} -> {rates[-1]:,.0f} images/s, {memory[0]:,.0f} -> {memory[-1]:,.0f} MB"
    command.print_table(title, [("first and last tenth", change), ("most memory", f"{max(memory):,.0f} MB")])


LIMIT, DECODER = "limit: libjpeg-turbo alone", "our decoder alone"
OURS, BESIDE = "this project", ", by the CPU that the server left"
FROM_S3: dict[str, dict[str, Any]] = {
    f"{OURS}, from S3": {},
    f"{OURS}, from S3, in runs of 8": {"run_rows": 8},
    f"{OURS}, from S3, cached": {"cached": True},
}
WAYS: dict[str, Callable[[Pass], Generator[int]]] = {
    LIMIT: limit,
    DECODER: partial(limit, decoder="kernel"),
    OURS: ours,
    **dict.fromkeys(FROM_S3, ours),
}


# --- the end -----------------------------------------------------------------------------------------------------


def print_rates(args: Args, rates: dict[str, list[float]]) -> None:
    """Prints the medians, and the median of the ratios to the limit in the same round."""
    rows = []
    for way, values in sorted(rates.items(), key=lambda item: -statistics.median(item[1])):
        ratio = statistics.median(a / b for a, b in zip(values, rates[LIMIT], strict=True))
        rows.append((way, f"{statistics.median(values):7,.0f} images/s  {ratio:.2f} of the limit"))
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
