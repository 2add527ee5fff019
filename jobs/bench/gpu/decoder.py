"""Decoding of JPEGs to crops of 224 px: this project's decoder on 1, 4 and all cores, and torchvision's beside it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from jobs.bench.gpu.child import Bench
from jobs.bench.gpu.clock import now
from jobs.bench.gpu.pictures import photographs
from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.config.augment import Augment
from pipeline.core.keyed_random import Stream, uniform
from pipeline.dataset.image_codec import read_jpeg_header
from pipeline.loader.crops import crop_boxes
from pipeline.loader.decode import CropGeometry, DecoderName, best_decoder, decode_batch

_SIZE_PX = 224
_AUGMENT = Augment(resized_crop_area=(0.08, 1.0))
_PART = 32  # images that a thread decodes at a time


def run(bench: Bench) -> None:
    """Measures images a second of each decoder, images in memory."""
    images = photographs(bench.settings)
    pixels = sum(height * width for height, width, _ in map(read_jpeg_header, images)) / len(images)
    bench.record("images", {"count": len(images), "mean_megapixels": pixels / 1e6, "decoder": best_decoder()})
    seconds = 0.3 if bench.small else 4.0
    for cores in sorted({1, min(4, usable_cpus()), usable_cpus()}):
        rate = _rate(images, cores, seconds, best_decoder())
        bench.record(f"{cores} cores", rate, f"{rate:,.0f} images/s, random crops of {_SIZE_PX} px")
    rate = _torchvision_rate(images, seconds)
    bench.record("torchvision, 1 core", rate, f"{rate:,.0f} images/s, whole images, without crop and resize")
    _nvjpeg(bench, images, seconds)


def _rate(images: list[bytes], cores: int, seconds: float, decoder: DecoderName) -> float:
    """Returns images a second of threads that decode random crops, each on images of its own."""
    torch.set_num_threads(1)
    ends = time.perf_counter() + seconds
    with ThreadPoolExecutor(cores) as pool:
        counts = pool.map(lambda thread: _decode_until(images, thread, ends, decoder), range(cores))
        return sum(counts) / seconds


def _decode_until(images: list[bytes], thread: int, ends: float, decoder: DecoderName) -> int:
    """Returns the number of images decoded until the time `ends`; what was begun then counts by its share."""
    chosen = [memoryview(images[(thread * _PART + number) % len(images)]) for number in range(_PART)]
    sizes = np.array([read_jpeg_header(image)[:2] for image in chosen], dtype=np.int32)
    out = np.empty((_PART, _SIZE_PX, _SIZE_PX, 3), dtype=np.uint8)
    keys, count, number = np.arange(_PART, dtype=np.uint64), 0, 0
    while True:
        began = time.perf_counter()
        draws = uniform(thread, number, Stream.RESIZED_CROP, keys, 40)
        boxes = crop_boxes(sizes[:, 0], sizes[:, 1], _AUGMENT, draws)
        geometry = CropGeometry.resized_crops(_SIZE_PX, sizes, boxes, np.zeros(_PART, np.int32))
        decode_batch(chosen, geometry, str, decoder, None, out)
        ended = time.perf_counter()
        if ended >= ends:
            return count + round(_PART * max(0.0, ends - began) / (ended - began))
        count, number = count + _PART, number + 1


def _torchvision_rate(images: list[bytes], seconds: float) -> float:
    from torchvision.io import ImageReadMode, decode_jpeg

    torch.set_num_threads(1)
    tensors = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in images]
    return _repeated(lambda number: decode_jpeg(tensors[number % len(tensors)], ImageReadMode.RGB), 1, seconds)


def _nvjpeg(bench: Bench, images: list[bytes], seconds: float) -> None:
    """Records the rate of nvJPEG, where there is a GPU and torchvision's build has it."""
    if bench.settings.device != "cuda":
        bench.remark("nvJPEG: needs a GPU")
        return
    from torchvision.io import ImageReadMode, decode_jpeg

    tensors = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in images[:64]]
    try:
        decode_jpeg(tensors, ImageReadMode.RGB, device="cuda")
    except RuntimeError as error:  # torchvision without nvJPEG says so
        bench.remark(f"nvJPEG: not in this torchvision ({str(error).splitlines()[0]})")
        return
    rate = _repeated(lambda _: decode_jpeg(tensors, ImageReadMode.RGB, device="cuda"), len(tensors), seconds)
    bench.record("nvJPEG", rate, f"{rate:,.0f} images/s, whole images, without crop and resize")


def _repeated(call: Callable[[int], object], images: int, seconds: float) -> float:
    """Returns images a second of a call that decodes `images` of them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    call(0)
    start, count = now(device), 0
    while time.perf_counter() - start < seconds:
        call(count)
        count += 1
    return count * images / (now(device) - start)
