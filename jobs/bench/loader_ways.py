"""The loaders that `jobs/bench/loader.py` compares: each yields the number of images of one batch after the other."""

import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jobs.bench.peers import PEERS
from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.cluster.session import ray_session
from pipeline.config.augment import Augment
from pipeline.core.errors import PipelineError
from pipeline.core.processes import cpu_seconds, process_tree
from pipeline.dataset import manifest
from pipeline.dataset.cache_folder import CacheFolder, resolve_cache
from pipeline.dataset.manifest import Split

AUGMENT = Augment(resized_crop_area=(0.08, 1.0), flip_probability=0.5)


@dataclass(frozen=True)
class Pass:
    """One measurement.

    way: name of the loader. data: URI of the data set. folder: the same JPEGs as class folders. size_px: side of the
    crops. seconds: that are measured. servers: ids of the processes that serve `data`. run_rows: see `Order`. cache:
    size of a cache of row groups on the local disk, as a share of the data set; 0 for none, None for what fits.
    is_filled: whether all row groups are in it beforehand. delay_ms: of every request.
    """

    way: str
    data: str
    folder: str
    size_px: int
    batch_size: int
    seconds: float
    servers: tuple[int, ...] = ()
    run_rows: int = 1
    cache: float | None = 0.0
    is_filled: bool = False
    delay_ms: float = 0.0


def measure(one: Pass) -> tuple[float, float, float]:
    """Returns the images/s of a pass, the CPUs that servers used meanwhile, and those that the loader's processes used.

    The measurement starts 5 s after the first batch, when processes have started and buffers are full.
    """
    if one.way in WAYS:
        batches = WAYS[one.way](one)
    else:
        batches = PEERS[one.way](one.data, one.folder, one.size_px, one.batch_size)
    next(batches)
    warm = time.perf_counter() + 5
    while time.perf_counter() < warm:
        next(batches)
    count, start, before, own = 0, time.perf_counter(), sum(map(cpu_seconds, one.servers)), _own_cpu_seconds()
    while time.perf_counter() < start + one.seconds:
        count += next(batches)
    seconds, served = time.perf_counter() - start, sum(map(cpu_seconds, one.servers)) - before
    own = _own_cpu_seconds() - own
    batches.close()
    return count / seconds, served / seconds, own / seconds


def _own_cpu_seconds() -> float:
    return sum(map(cpu_seconds, process_tree(os.getpid())))


def limit(one: Pass, decoder: str = "libjpeg") -> Generator[int]:
    """A decoder on images in memory, in one process per CPU; simplejpeg where the kernel can't be compiled."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    workers = [
        context.Process(target=_decode_forever, args=(one, decoder, queue), daemon=True) for _ in range(usable_cpus())
    ]
    for worker in workers:
        worker.start()
    try:
        while True:
            yield queue.get()
    finally:
        for worker in workers:
            worker.kill()


def _decode_forever(one: Pass, decoder: Any, queue: Any) -> None:
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
    geometries = []
    for seed in range(8):
        draws = uniform(seed, 0, Stream.RESIZED_CROP, rows.astype(np.uint64), 40)
        boxes = crop_boxes(sizes[:, 0], sizes[:, 1], AUGMENT, draws)
        geometries.append(CropGeometry.resized_crops(one.size_px, sizes, boxes, np.arange(size, dtype=np.int32) % 2))
    while True:
        for each in geometries:
            queue.put(len(decode_batch(images, each, str, decoder)))


def ours(one: Pass) -> Generator[int]:
    """The stream of a training worker: threads of its process, and batches taken ahead."""
    import torch

    from pipeline.loader.device.copy_ahead import copied_ahead
    from pipeline.loader.streaming.threads import thread_source

    plan = plan_of(one, 0)
    if one.is_filled and plan.cache:
        fill(plan.uri, plan.split, plan.cache)
    with closing(copied_ahead(thread_source(plan), torch.device("cpu"))) as stream:
        for batch in stream:
            if one.cache is None and not one.is_filled and batch.index >= plan.sampler.order.steps_per_epoch:
                raise PipelineError(f"{one.way}: the first epoch ended while it was measured; give more --rows")
            yield len(batch.images)


def fill(uri: str, split: Split, folder: CacheFolder) -> None:
    """Puts all row groups of a split into a cache."""
    from pipeline.dataset.row_group_cache import RowGroupCache
    from pipeline.dataset.row_reader import load_index

    index, cache = load_index(uri, split), RowGroupCache.of(folder, split)
    for group in range(len(index.row_group_ends)):
        request = index.whole_group(group)
        cache.read(group, index.paths[request.shard], request.offset, request.length)


def in_session(one: Pass) -> Generator[int]:
    """The stream of a training worker in a Ray session of one node: it would take help from other nodes."""
    import torch

    from pipeline.cluster.resources import this_node
    from pipeline.loader.device.copy_ahead import copied_ahead
    from pipeline.loader.streaming.carrier import stream_source

    with ray_session():
        device = torch.device("cpu")
        source = stream_source(plan_of(one, 0), device, {this_node()}, lambda line: None)
        with closing(copied_ahead(source, device)) as stream:
            for batch in stream:
                yield len(batch.images)


def public_loader(one: Pass) -> Generator[int]:
    """`pipeline.Loader` in a loop of one's own."""
    from pipeline.loader import Loader

    loader = Loader(
        one.data,
        "resnet50",
        global_batch_size=one.batch_size,
        image_size_px=one.size_px,
        augment=AUGMENT,
        warmup_epochs=0,
    )
    while True:
        for batch in loader:
            yield len(batch.images)


def plan_of(one: Pass, first_step: int) -> Any:
    """Returns the plan of a stream of 10,000 epochs, from a global step on."""
    from pipeline.loader.decode import best_decoder
    from pipeline.loader.samplers import TrainSampler
    from pipeline.loader.streaming.plan import StreamPlan
    from pipeline.loader.transform import Transform

    split, order = manifest.load(one.data).split("train"), order_of(one)
    sampler = TrainSampler(order, 10_000 * order.steps_per_epoch, first_step)
    transform = Transform(one.size_px, one.size_px, AUGMENT, decoder=best_decoder())
    size = None if one.cache is None else int(one.cache * sum(shard.bytes for shard in split.shards))
    return StreamPlan(one.data, split, sampler, transform, cache=resolve_cache("cache", size))


def order_of(one: Pass) -> Any:
    """Returns the order of the pass, seed 0, shuffled as in the recipe `resnet50`.

    Where two of the recipe's windows are more than the cache holds, as of a small data set, the windows are smaller.
    """
    from pipeline.config.presets import make_recipe
    from pipeline.loader.sample_order import Order

    split, recipe = manifest.load(one.data).split("train"), make_recipe("resnet50")
    size, window = min(one.batch_size, split.rows), recipe.shuffle_window_row_groups
    if one.cache and window:
        window = max(1, min(window, int(one.cache * len(split.row_group_rows)) // 2))
    return Order(split.row_group_rows, 0, size, window, run_rows=one.run_rows)


LIMIT, DECODER = "limit: libjpeg-turbo alone", "our decoder alone"
OURS, IN_SESSION, PUBLIC = "this project", "this project, in a Ray session", "this project, pipeline.Loader"
DELAY_MS = 40.0
BESIDE = ", by the CPU that the server left"
FROM_S3: dict[str, dict[str, Any]] = {
    f"{OURS}, from S3": {},
    f"{OURS}, from S3, in runs of 8": {"run_rows": 8},
    f"{OURS}, from S3, cached, first epoch": {"cache": None},
    f"{OURS}, from S3, cached, later epochs": {"cache": None, "is_filled": True},
    f"{OURS}, from S3, cache of a tenth": {"cache": 0.1},
    f"{OURS}, from S3, {DELAY_MS:g} ms a request": {"delay_ms": DELAY_MS},
    f"{OURS}, from S3, {DELAY_MS:g} ms a request, cached, first epoch": {"cache": None, "delay_ms": DELAY_MS},
    f"{OURS}, from S3, {DELAY_MS:g} ms a request, cache of a tenth": {"cache": 0.1, "delay_ms": DELAY_MS},
}
WAYS: dict[str, Callable[[Pass], Generator[int]]] = {
    LIMIT: limit,
    DECODER: partial(limit, decoder="kernel"),
    OURS: ours,
    PUBLIC: public_loader,
    IN_SESSION: in_session,
    **dict.fromkeys(FROM_S3, ours),
}
