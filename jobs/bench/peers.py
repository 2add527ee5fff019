"""Other loaders that `jobs/bench/loader.py` compares with ours, each written as its documentation recommends.

Every function yields the number of images of one batch after the other, without end: random resized crops (area 0.08 to
1) with flips, uint8. A loader's own storage format is written before its first batch, outside the measured time.
"""

import glob
import os
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.cluster.session import ray_session

AREA = (0.08, 1.0)


def torch_loader(data: str, folder: str, size_px: int, batch_size: int) -> Generator[int]:
    """torch's DataLoader over torchvision's ImageFolder, decode_jpeg and v2 transforms."""
    from torchvision.io import ImageReadMode, decode_image, read_file

    def load(path: str) -> Any:
        return decode_image(read_file(path), mode=ImageReadMode.RGB)

    yield from _folder_loader(folder, batch_size, load, _transform(size_px))


def torch_loader_pil(data: str, folder: str, size_px: int, batch_size: int) -> Generator[int]:
    """torch's DataLoader with PIL, as in PyTorch's ImageNet example, without the conversion to floats."""
    from torchvision.datasets.folder import pil_loader
    from torchvision.transforms import v2

    transform = v2.Compose([_transform(size_px), v2.PILToTensor()])
    yield from _folder_loader(folder, batch_size, pil_loader, transform)


def _transform(size_px: int) -> Any:
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(size_px, scale=AREA, antialias=True), v2.RandomHorizontalFlip()])


def _decode(data: bytes) -> Any:
    import torch
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def _folder_loader(folder: str, batch_size: int, load: Callable[[str], Any], transform: Any) -> Generator[int]:
    import torch
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(folder, transform, loader=load)
    options: dict[str, Any] = {"shuffle": True, "num_workers": usable_cpus(), "persistent_workers": True}
    batches = torch.utils.data.DataLoader(dataset, batch_size, worker_init_fn=_one_thread, **options)
    while True:
        for images, _ in batches:
            yield len(images)


def _one_thread(_: int) -> None:
    import torch

    torch.set_num_threads(1)


def ray_data(data: str, folder: str, size_px: int, batch_size: int) -> Generator[int]:
    """Ray Data's read_parquet, and a map of each row by torchvision."""
    import ray
    import torch

    transform = _transform(size_px)

    def make(row: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(1)
        return {"image": transform(_decode(row["image"])).permute(1, 2, 0).numpy(), "label": row["label"]}

    with ray_session():
        while True:
            rows = ray.data.read_parquet(f"{data}/train", columns=["image", "label"]).map(make)
            for batch in rows.iter_batches(batch_size=batch_size, local_shuffle_buffer_size=1000):
                yield len(batch["image"])


def webdataset(data: str, folder: str, size_px: int, batch_size: int) -> Generator[int]:
    """WebDataset's tars and WebLoader, with torchvision's decode_jpeg and v2 transforms."""
    import webdataset as wds

    with wds.ShardWriter("shard-%04d.tar", maxcount=500, verbose=0) as writer:
        for number, path in enumerate(_files(folder)):
            with open(path, "rb") as file:
                writer.write({"__key__": f"{number:07d}", "jpg": file.read(), "cls": number % 10})
    transform = _transform(size_px)
    urls = sorted(glob.glob("shard-*.tar"))
    dataset = wds.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(1000).to_tuple("jpg", "cls")
    dataset = dataset.map_tuple(lambda jpg: transform(_decode(jpg)), int).batched(batch_size)
    workers = usable_cpus()
    for images, _ in wds.WebLoader(dataset, batch_size=None, num_workers=workers, worker_init_fn=_one_thread):
        yield len(images)


def litdata(data: str, folder: str, size_px: int, batch_size: int) -> Generator[int]:
    """litdata's chunks and StreamingDataLoader, with torchvision's decode_jpeg and v2 transforms."""
    import litdata as ld

    ld.optimize(fn=_litdata_sample, inputs=_files(folder), output_dir="litdata", chunk_bytes="64MB", num_workers=1)
    dataset = ld.StreamingDataset("litdata", shuffle=True, transform=partial(_litdata_crop, _transform(size_px)))
    loader = ld.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=usable_cpus())
    while True:
        for images in loader:
            yield len(images)


def _litdata_sample(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"jpg": file.read(), "label": 0}


def _litdata_crop(transform: Any, sample: dict[str, Any]) -> Any:
    return transform(_decode(sample["jpg"]))


def dali(data: str, folder: str, size_px: int, batch_size: int) -> Generator[int]:
    """NVIDIA DALI's CPU pipeline: fused decode and random crop, antialiased resize."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch_size, num_threads=usable_cpus(), device_id=None, prefetch_queue_depth=2
    )
    def crops() -> Any:
        jpegs, labels = fn.readers.file(file_root=folder, random_shuffle=True, name="files")
        images = fn.decoders.image_random_crop(jpegs, device="cpu", random_area=list(AREA))
        images = fn.resize(images, size=(size_px, size_px), interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    pipe = crops()
    pipe.build()
    while True:
        images, _ = pipe.run()
        yield len(images)


def tf_data(data: str, folder: str, size_px: int, batch_size: int) -> Generator[int]:
    """tf.data with decode_and_crop_jpeg.

    It does less: its default DCT is the fast inexact one, and its resize doesn't antialias.
    """
    import tensorflow as tf

    def make(path: Any) -> Any:
        data = tf.io.read_file(path)
        shape = tf.io.extract_jpeg_shape(data)
        box = tf.zeros([1, 0, 4])
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            shape, box, area_range=AREA, aspect_ratio_range=(3 / 4, 4 / 3), use_image_if_no_bounding_boxes=True
        )
        window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
        image = tf.image.resize(tf.image.decode_and_crop_jpeg(data, window, channels=3), (size_px, size_px))
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = usable_cpus()
    files = tf.data.Dataset.from_tensor_slices(_files(folder)).shuffle(10_000).repeat()
    batches = files.map(make, num_parallel_calls=usable_cpus()).batch(batch_size).prefetch(2)
    for images in batches.with_options(options):
        yield int(images.shape[0])


def _files(folder: str) -> list[str]:
    return sorted(glob.glob(os.path.join(folder, "*", "*")))


PEERS: dict[str, Callable[[str, str, int, int], Generator[int]]] = {
    "torch DataLoader, torchvision v2": torch_loader,
    "torch DataLoader, PIL": torch_loader_pil,
    "Ray Data, a function a row": ray_data,
    "WebDataset": webdataset,
    "litdata": litdata,
    "NVIDIA DALI, CPU": dali,
    "tf.data": tf_data,
}
NEEDS = {
    "WebDataset": "webdataset",
    "litdata": "litdata",
    "NVIDIA DALI, CPU": "nvidia.dali",
    "tf.data": "tensorflow",
}
