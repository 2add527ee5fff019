"""Measures what a version costs beside a full ingest: seconds, CPU time, requests and bytes written.

A source of different photographs, each made of two crops of real ones, is ingested. Then it gains 1 % of its images,
loses 1 %, and 0.25 % move to another class folder: it is ingested onto the first data set, once more without a change,
and in full. On a disk, or with --s3 in a real S3 server on this machine, which needs the dev group (SeaweedFS).

Examples:
    uv run jobs/bench/versions.py --images ../shared/data/imagenette-mini.tar --rows 20000
    uv run jobs/bench/versions.py --images ../shared/data/imagenette-mini.tar --rows 20000 --s3
"""

import io
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from PIL import Image

from jobs.bench.ingest import BUCKET, cpu_seconds, read_tar
from jobs.terminal import command
from pipeline.ingestion.api import ingest
from pipeline.storage import files
from pipeline.storage.local_s3 import local_s3
from pipeline.storage.request_counts import requests_sent

_THREADS = 16
_CLASSES = 20
_LONG_AGO = 1_600_000_000  # seconds since the epoch: the time of files that were just written says nothing


@dataclass(frozen=True)
class Args:
    """The source is made anew, and removed afterwards."""

    images: Annotated[str, command.option("a local tar of images", "TAR")]
    rows: Annotated[int, command.option("images in the source", "N", "20000")] = 20_000
    s3: Annotated[bool, command.option("keep source and data sets in a real S3 on this machine", "")] = False


@dataclass
class Source:
    """Class folders that change."""

    uri: str
    photographs: list[Image.Image]
    names: list[str] = field(default_factory=list)
    num_made: int = 0

    def add(self, count: int) -> None:
        """Adds images; one in ten is for val."""
        numbers = range(self.num_made, self.num_made + count)
        with ThreadPoolExecutor(_THREADS) as pool, command.Display() as display:
            for done, name in enumerate(pool.map(self._add, numbers), 1):
                self.names.append(name)
                if done % 500 == 0 or done == count:
                    display("source", done, count)
        self.num_made += count

    def _add(self, number: int) -> str:
        draws = np.random.default_rng(number)
        one, other = (self.photographs[at] for at in draws.choice(len(self.photographs), 2, replace=False))
        out = io.BytesIO()
        picture = Image.blend(_crop(one, draws), _crop(other, draws), float(draws.uniform(0.35, 0.65)))
        picture.save(out, format="JPEG", quality=90)
        split = "val" if number % 10 == 0 else "train"
        name = f"{split}/class-{draws.integers(_CLASSES):02d}/{number:07d}.jpg"
        self._write(name, out.getvalue())
        return name

    def _write(self, name: str, data: bytes) -> None:
        place = files.join(self.uri, name)
        if files.is_local(place):
            os.makedirs(os.path.dirname(place), exist_ok=True)
        files.write_bytes(place, data)
        if files.is_local(place):
            os.utime(place, (_LONG_AGO, _LONG_AGO))

    def remove(self, names: list[str]) -> None:
        """Removes images."""
        files.delete_files(self.uri, names)
        self.names = sorted({*self.names} - {*names})

    def relabel(self, names: list[str]) -> None:
        """Moves images to another class folder."""
        for name in names:
            split, class_name, base = name.split("/")
            other = f"class-{(int(class_name[-2:]) + 1) % _CLASSES:02d}"
            self._write(f"{split}/{other}/moved-{base}", files.read_bytes(files.join(self.uri, name)))
        self.remove(names)


def _crop(image: Image.Image, draws: np.random.Generator) -> Image.Image:
    share = draws.uniform(0.5, 0.9)
    left, top = (int(draws.uniform(0, side * (1 - share))) for side in image.size)
    box = (left, top, left + int(image.width * share), top + int(image.height * share))
    return image.crop(box).resize((400, 300), Image.Resampling.BILINEAR)


def main(args: Args) -> None:
    """Makes the source, ingests it in the four ways, and prints what each has cost."""
    photographs = [Image.open(io.BytesIO(data)).convert("RGB") for data in read_tar(args.images)]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, local_s3(BUCKET) if args.s3 else nullcontext():
        place = f"s3://{BUCKET}" if args.s3 else folder
        source, data = Source(files.join(place, "source"), photographs), files.join(place, "data")
        source.add(args.rows)
        rows = [("full ingest", measure(source, files.join(data, "v1")))]
        few = max(1, args.rows // 100)
        source.remove(source.names[13 :: max(1, args.rows // few)][:few])
        source.relabel(source.names[29 :: max(1, 4 * args.rows // few)][: max(1, few // 4)])
        source.add(few)
        rows.append(("--onto, grown", measure(source, files.join(data, "v2"), files.join(data, "v1"))))
        rows.append(("--onto, unchanged", measure(source, files.join(data, "v3"), files.join(data, "v2"))))
        rows.append(("full ingest, grown", measure(source, files.join(data, "w2"))))
    command.print_table(f"\n{args.rows:,} images", rows)


def measure(source: Source, out: str, onto: str | None = None) -> str:
    """Ingests, and returns in words what it has cost, with the start of Ray and without that of Python."""
    sent, cpu, start = requests_sent(), cpu_seconds(), time.perf_counter()
    done = ingest(source.uri, out, onto=onto)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    requests = done.requests.plus(requests_sent()).plus(sent, -1)
    written = sum(size for _, size in files.list_files(out))
    text = f"{seconds:.1f} s, {written / 1e6:,.2f} MB written, {done.manifest.rows:,} rows"
    if onto is not None:  # Ray's processes have ended with their CPU time
        text += f", {cpu:.1f} s of CPU"
    if requests.total:
        text += f", {requests}, {requests.bytes_read / 1e6:,.1f} MB read"
    return text


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
