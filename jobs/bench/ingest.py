"""Measures ingest against the limit of its storage: images in a real S3 server on this machine.

The limit is the rate of plain parallel ranged GETs of the same objects, after which only the header of each image is
read. Ingest writes to a local folder and, as another measurement, to the same S3. Rounds are interleaved; the table
shows medians. Needs the dev group (SeaweedFS).

Examples:
    uv run jobs/bench/ingest.py --images ../shared/data/imagenet-fullsize-160.tar --rows 20000
    uv run jobs/bench/ingest.py --images ../shared/data/imagenette-mini.tar --rows 5000 --rounds 1 --only disk
"""

import json
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil

from jobs.terminal import command
from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.cluster.session import ray_session
from pipeline.core.errors import SourceError
from pipeline.ingestion.api import ingest
from pipeline.ingestion.image_check import ImageHandling
from pipeline.ingestion.plan import IngestSettings
from pipeline.storage import files, object_store
from pipeline.storage.local_s3 import local_s3

BUCKET = "bench"
_THREADS = 16


@dataclass(frozen=True)
class Args:
    """The images of the tar are uploaded repeatedly, each time under other keys, until there are enough rows."""

    images: Annotated[str, command.option("a local tar of images", "TAR")]
    rows: Annotated[int, command.option("images in the bucket", "N", "20000")] = 20_000
    rounds: Annotated[int, command.option("measurements of each way, interleaved", "N", "3")] = 3
    only: Annotated[str | None, command.option("ways whose name contains this", "NAME", "all")] = None
    json_out: Annotated[str | None, command.option("file for the measurements", "FILE", "none")] = None


@dataclass(frozen=True)
class Timing:
    """One measurement of one way."""

    way: str
    rows: int
    megabytes: float
    seconds: float  # reading, checking and writing; without starting Ray and listing the bucket
    whole_seconds: float
    requests: int
    peak_task_mib: float
    cpu_seconds: float  # of this process and Ray's, in all; without the storage


def main(args: Args) -> None:
    """Fills the bucket, measures all ways, and prints the medians."""
    images = read_tar(args.images)
    folder = tempfile.mkdtemp(prefix="bench-")
    try:
        with local_s3(BUCKET), ray_session():
            uploaded = fill(images, args.rows)
            timings = measure(args, uploaded, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_timings(timings)
    if args.json_out:
        Path(args.json_out).write_text(json.dumps([asdict(timing) for timing in timings], indent=1))


def read_tar(path: str) -> list[bytes]:
    """Returns the images of a tar. Raises SourceError."""
    if not os.path.exists(path):
        raise SourceError(f"images={path}: no such file; give a tar of images")
    with tarfile.open(path) as tar:
        streams = (tar.extractfile(info) for info in tar if info.isfile())
        return [stream.read() for stream in streams if stream]


def fill(images: list[bytes], rows: int) -> dict[str, int]:
    """Uploads `rows` images as class folders, one in twenty for val. Returns {key: bytes of the object}."""
    keys: dict[str, int] = {}

    def upload(number: int) -> None:
        image = images[number % len(images)]
        split = "val" if number % 20 == 0 else "train"
        key = f"raw/{split}/class-{number % 10}/{number:07d}.JPEG"
        # A JPEG comment makes each object different, so that no cache can help.
        data = image[:2] + b"\xff\xfe" + (9).to_bytes(2, "big") + f"{number:07d}".encode() + image[2:]
        object_store.write(f"s3://{BUCKET}/{key}", data)
        keys[key] = len(data)
        if number < 64:
            object_store.write(f"s3://{BUCKET}/warm/{key}", data)

    with ThreadPoolExecutor(_THREADS) as pool, command.Display() as display:
        for done, _ in enumerate(pool.map(upload, range(rows)), 1):
            if done % 500 == 0 or done == rows:
                display("upload", done, rows)
    return keys


def measure(args: Args, uploaded: dict[str, int], folder: str) -> list[Timing]:
    """Returns the measurements of all ways, round after round."""
    local, remote = f"{folder}/out", f"s3://{BUCKET}/out"
    ways: dict[str, Callable[[], tuple[float, float, int, float]]] = {
        "limit: GET + header": lambda: time_limit(uploaded),
        "ingest --checks header, to disk": lambda: time_ingest(local, ImageHandling(checks="header")),
        "ingest --checks header, to S3": lambda: time_ingest(remote, ImageHandling(checks="header")),
        "ingest (decodes everything), to disk": lambda: time_ingest(local, ImageHandling()),
    }
    # Warm-up: processes, libraries and connections, as for the limit.
    time_ingest(f"{folder}/warm", ImageHandling(), source=f"s3://{BUCKET}/warm")
    chosen = {name: way for name, way in ways.items() if not args.only or args.only in name or "limit" in name}
    timings = []
    for number in range(args.rounds):
        for name, way in chosen.items():
            before = cpu_seconds()
            seconds, whole, requests, peak = way()
            cpu, megabytes = cpu_seconds() - before, sum(uploaded.values()) / 1e6
            timings.append(Timing(name, len(uploaded), megabytes, seconds, whole, requests, peak, cpu))
            command.console.print(f"round {number + 1}: {name}: {len(uploaded) / seconds:,.0f} rows/s")
    return timings


def cpu_seconds() -> float:
    """Returns the CPU time that this process and its children, such as Ray's, have taken; without the S3's."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system if process.name() != "weed" else 0
    return total


def get_all(part: list[tuple[str, int]]) -> int:
    """Reads objects and the header of each image. Returns how many were read."""
    import simplejpeg

    def one(item: tuple[str, int]) -> int:
        data = bytes(files.read_range(f"s3://{BUCKET}/{item[0]}", 0, item[1]))
        return int(simplejpeg.decode_jpeg_header(data, strict=False)[0])

    with ThreadPoolExecutor(_THREADS) as pool:
        return sum(1 for height in pool.map(one, part) if height)


def time_limit(uploaded: dict[str, int]) -> tuple[float, float, int, float]:
    """Returns (seconds, seconds, requests, 0) of plain GETs by one process a CPU; the header of each image is read."""
    import ray

    get: Any = ray.remote(num_cpus=1)(get_all)
    items, cpus = list(uploaded.items()), usable_cpus()
    ray.get([get.remote(items[:10]) for _ in range(cpus)])  # warm-up: processes, libraries and connections
    start = time.perf_counter()
    assert sum(ray.get([get.remote(items[rank::cpus]) for rank in range(cpus)])) == len(items)
    seconds = time.perf_counter() - start
    return seconds, seconds, len(items), 0.0


def time_ingest(
    out: str, handling: ImageHandling, source: str = f"s3://{BUCKET}/raw"
) -> tuple[float, float, int, float]:
    """Ingests and removes the data set. Returns (seconds of writing, seconds in all, requests, peak MiB of a task)."""
    marks: dict[str, float] = {}

    def progress(stage: str, done: int, total: int, remark: str = "") -> None:
        if stage == "write":
            marks.setdefault("start", time.perf_counter())
            if done == total:
                marks["end"] = time.perf_counter()

    start = time.perf_counter()
    done = ingest(source, out, settings=IngestSettings(handling=handling), progress=progress)
    whole = time.perf_counter() - start
    files.delete_tree(out)
    return marks["end"] - marks["start"], whole, done.requests.total, done.peak_task_bytes / 2**20


def print_timings(timings: list[Timing]) -> None:
    """Prints the medians of each way, and its rate as a share of the limit in the same round."""
    by_way: dict[str, list[Timing]] = {}
    for timing in timings:
        by_way.setdefault(timing.way, []).append(timing)
    limit = next(iter(by_way.values()))
    rows = []
    for way, passes in by_way.items():
        ratios = [a.seconds / b.seconds for a, b in zip(limit, passes, strict=True)]
        rows.append((way, _describe(passes, statistics.median(ratios))))
    command.print_table(f"\n{limit[0].rows:,} images, {limit[0].megabytes:,.0f} MB, medians of {len(limit)}", rows)


def _describe(passes: list[Timing], ratio: float) -> str:
    def median(values: Any) -> float:
        return statistics.median(list(values))

    per_second = median(each.rows / each.seconds for each in passes)
    megabytes = median(each.megabytes / each.seconds for each in passes)
    cpu = median(1e3 * each.cpu_seconds / each.rows for each in passes)
    text = f"{per_second:,.0f} rows/s, {megabytes:,.0f} MB/s, {ratio:.2f} of the limit, {cpu:.2f} ms of CPU a row"
    if passes[0].peak_task_mib:
        whole = median(each.rows / each.whole_seconds for each in passes)
        peak = max(each.peak_task_mib for each in passes)
        text += f"; {whole:,.0f} rows/s with listing and publishing; {peak:,.0f} MiB a task"
    return text


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
