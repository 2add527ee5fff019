import io
import itertools
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pipeline.config.augment import Augment
from pipeline.core.errors import ClusterError, DatasetError
from pipeline.core.keyed_random import Stream, uniform
from pipeline.loader import decode
from pipeline.loader.crops import crop_boxes
from pipeline.loader.decode import MAX_ERROR, CropGeometry, DecoderName, best_decoder, decode_batch
from pipeline.loader.native import kernel
from tests.support.pictures.images import picture, shared
from tests.support.pictures.rare_jpegs import lossless_jpeg

SAMPLINGS = ("444", "422", "420", "440", "411", "Gray")
BILINEAR: dict[str, Any] = {"interpolation": InterpolationMode.BILINEAR, "antialias": True}


@pytest.fixture(params=["kernel", "libjpeg", "simplejpeg"])
def decoder(request: pytest.FixtureRequest) -> DecoderName:
    if request.param != "simplejpeg" and best_decoder() != "kernel":
        pytest.skip("no C compiler or no libjpeg-turbo headers here")
    chosen: DecoderName = request.param
    return chosen


def encoded(height: int, width: int, seed: int = 0, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture(seed, height, width).save(out, format=kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return out.getvalue()


MADE = [
    encoded(200, 300, subsampling="4:2:0"), encoded(300, 200, 1, subsampling="4:2:2"),
    encoded(97, 131, 2, subsampling="4:4:4"), encoded(250, 250, 3, progressive=True),
    encoded(33, 500, 4), encoded(500, 33, 5, restart_marker_blocks=3),
    encoded(240, 320, 6, subsampling="4:2:0", quality=98, optimize=True),
]  # fmt: skip


def sizes_of(images: list[bytes]) -> Any:
    return np.array([Image.open(io.BytesIO(image)).size[::-1] for image in images], dtype=np.int32)


def photographs(archive: str, count: int) -> list[bytes]:
    with tarfile.open(shared(archive)) as tar:
        streams = [tar.extractfile(info) for info in tar if info.isfile()]
        images = [stream.read() for stream in streams[:count] if stream]
    return [image for image in images if Image.open(io.BytesIO(image)).mode == "RGB"]


def in_full(image: bytes) -> torch.Tensor:
    return torchvision_decode(torch.frombuffer(bytearray(image), dtype=torch.uint8), mode=ImageReadMode.RGB)


def errors(ours: Any, reference: list[torch.Tensor]) -> Any:
    theirs = np.stack([image.permute(1, 2, 0).numpy() for image in reference])
    return np.abs(ours.astype(int) - theirs.astype(int)).mean(axis=(1, 2, 3))


def random_crops(images: list[bytes], size: int, seed: int = 0) -> CropGeometry:
    sizes = sizes_of(images)
    draws = uniform(seed, 0, Stream.RESIZED_CROP, np.arange(len(images), dtype=np.uint64), 40)
    boxes = crop_boxes(sizes[:, 0], sizes[:, 1], Augment(resized_crop_area=(0.08, 1.0)), draws)
    return CropGeometry.resized_crops(size, sizes, boxes, np.zeros(len(images), np.int32))


def name(number: int) -> str:
    return f"image {number}"


@pytest.mark.parametrize("source", ["made", "imagenet-fullsize-160.tar", "imagenette-mini.tar"])
@pytest.mark.parametrize("size", [224, 96])
def test_random_crops_are_torchvisions_within_the_tolerance(decoder: DecoderName, source: str, size: int) -> None:
    images = MADE * 6 if source == "made" else photographs(source, 160)
    views = random_crops(images, size)
    ours = decode_batch(images, views, name, decoder)
    reference = [
        F.resized_crop(in_full(image), *box, [size, size], **BILINEAR)
        for image, box in zip(images, views.boxes.tolist(), strict=True)
    ]
    found = errors(ours, reference)
    assert found.mean() < MAX_ERROR
    assert found.max() < 5 * MAX_ERROR
    assert errors(ours[::-1], reference).mean() > 10 * MAX_ERROR  # the measure can tell


@pytest.mark.parametrize("source", ["made", "imagenet-fullsize-160.tar"])
def test_evaluation_decodes_in_full_and_is_torchvisions(decoder: DecoderName, source: str) -> None:
    images = MADE if source == "made" else photographs(source, 160)
    ours = decode_batch(images, CropGeometry.centre_crops(64, 73, sizes_of(images)), name, decoder)
    reference = [F.center_crop(F.resize(in_full(image), [73], **BILINEAR), [64, 64]) for image in images]
    assert errors(ours, reference).max() < 0.5


@pytest.mark.parametrize("image", MADE, ids=range(len(MADE)))
def test_an_image_of_the_right_size_is_not_touched(decoder: DecoderName, image: bytes) -> None:
    whole = in_full(image)
    side = min(whole.shape[1:])
    box = np.array([[whole.shape[1] - side, whole.shape[2] - side, side, side]], dtype=np.int32)
    views = CropGeometry.resized_crops(side, sizes_of([image]), box, np.zeros(1, np.int32))
    ours = decode_batch([image], views, name, decoder)[0].astype(int)
    difference = np.abs(ours - whole[:, -side:, -side:].permute(1, 2, 0).numpy())
    # two builds of libjpeg-turbo; the kernel rounds once, where the reference rounds three times
    assert difference[8:-8, 8:-8].max(initial=0) <= (3 if decoder == "kernel" else 2)
    assert difference[8:-8, 8:-8].mean() < 0.4


def test_a_flip_mirrors(decoder: DecoderName) -> None:
    views = random_crops(MADE, 50)
    flipped = replace(views, flip=np.array([1, 0, 1, 0, 1, 0, 1], np.int32))
    plain, mirrored = (decode_batch(MADE, each, name, decoder) for each in (views, flipped))
    assert np.array_equal(mirrored[::2], plain[::2, :, ::-1])
    assert np.array_equal(mirrored[1::2], plain[1::2])


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (17, 8)])
def test_tiny_images_become_samples(decoder: DecoderName, shape: tuple[int, int]) -> None:
    image = encoded(*shape)
    box = np.array([[0, 0, *shape]], dtype=np.int32)
    ours = decode_batch(
        [image], CropGeometry.resized_crops(32, sizes_of([image]), box, np.zeros(1, np.int32)), name, decoder
    )
    assert errors(ours, [F.resize(in_full(image), [32, 32], **BILINEAR)]).max() < 1


def test_small_images_have_the_colours_of_libjpeg(decoder: DecoderName) -> None:
    """All sizes from 1x1 to 20x20: libjpeg doubles chroma of one or two columns in another way than that of more."""
    generator = np.random.default_rng(0)
    worst: dict[str, tuple[int, int, int]] = {}
    for sampling, height, width in itertools.product(SAMPLINGS, range(1, 21), range(1, 21)):
        few = generator.integers(60, 200, (3, 3, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC))
        colours = {"colorspace": "GRAY"} if sampling == "Gray" else {"colorspace": "RGB", "colorsubsampling": sampling}
        shown = pixels[:, :, :1] if sampling == "Gray" else pixels
        image = simplejpeg.encode_jpeg(np.ascontiguousarray(shown), quality=95, **colours)
        whole, side = simplejpeg.decode_jpeg(image).astype(int), min(height, width)
        for top, left in {(0, 0), (height - side, width - side)}:
            box = np.array([[top, left, side, side]], np.int32)
            views = CropGeometry.resized_crops(side, np.array([[height, width]], np.int32), box, np.zeros(1, np.int32))
            ours = decode_batch([image], views, name, decoder)[0].astype(int)
            error = int(np.abs(ours - whole[top : top + side, left : left + side]).max())
            worst[sampling] = max(worst.get(sampling, (0, 0, 0)), (error, height, width))
    assert max(error for error, _, _ in worst.values()) <= (3 if decoder == "kernel" else 0), worst


@pytest.mark.parametrize("shape", [(3800, 1), (1, 3800), (1, 1), (2, 2), (65_500, 1), (1, 65_500), (3, 60_000)])
def test_images_of_extreme_shape_become_samples(shape: tuple[int, int]) -> None:
    """By every decoder alike, in evaluation and in training; none computes the whole of the resized image."""
    image, sizes = encoded(*shape, quality=95), np.array([shape], np.int32)
    crops = [random_crops([image], 64, seed) for seed in range(3)]
    for views in [CropGeometry.centre_crops(224, 256, sizes), CropGeometry.centre_crops(32, 32, sizes), *crops]:
        reference = decode_batch([image], views, name, "simplejpeg").astype(int)
        for which in ("kernel", "libjpeg") if best_decoder() == "kernel" else ():
            assert np.abs(decode_batch([image], views, name, which) - reference).max() <= 4


def test_a_part_of_a_large_resize_is_the_part_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [in_full(image).permute(1, 2, 0).numpy() for image in MADE]
    for size, resize in ((64, 73), (224, 256)):
        views = CropGeometry.centre_crops(size, resize, np.array([pixels.shape[:2] for pixels in images]))
        whole = [decode.resize_and_crop(pixels, views, n).astype(int) for n, pixels in enumerate(images)]
        with monkeypatch.context() as patch:
            patch.setattr(decode, "_MOST_RESIZED_PIXELS", 0)
            parts = [decode.resize_and_crop(pixels, views, n) for n, pixels in enumerate(images)]
        assert max(np.abs(part - all_of_it).max() for part, all_of_it in zip(parts, whole, strict=True)) <= 1


def test_what_the_kernel_cannot_decode_the_library_may(decoder: DecoderName) -> None:
    """An old data set may hold JPEGs that the system's libjpeg can't decode and the one that comes with us can."""
    pixels = np.asarray(picture(3, 40, 50))
    rare = lossless_jpeg(pixels)
    views = CropGeometry.centre_crops(32, 32, np.array([(40, 50)] * 2, np.int32))
    corrupt: set[int] = set()
    found = decode_batch([rare, rare[:500]], views, name, decoder, corrupt)
    assert corrupt == {1}
    assert np.array_equal(found[0], decode.resize_and_crop(pixels, views, 0))
    assert not found[1].any()


def test_a_png_beside_jpegs(decoder: DecoderName) -> None:
    images = [MADE[0], encoded(70, 90, 7, "PNG"), MADE[2]]
    views = CropGeometry.centre_crops(64, 64, sizes_of(images))
    ours = decode_batch(images, views, name, decoder)
    for index in range(3):
        alone = decode_batch(
            images[index : index + 1], CropGeometry.centre_crops(64, 64, views.sizes[index : index + 1]), name, decoder
        )
        assert np.array_equal(alone[0], ours[index])


def test_an_exif_rotation_is_not_applied(decoder: DecoderName) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = encoded(70, 90, 7, exif=exif.tobytes())
    plain = encoded(70, 90, 7)
    both = [
        decode_batch([each], CropGeometry.centre_crops(64, 64, sizes_of([each])), name, decoder)
        for each in (image, plain)
    ]
    assert np.array_equal(*both)


def test_what_is_damaged_is_named(decoder: DecoderName) -> None:
    images = [MADE[0], MADE[2][: len(MADE[2]) // 2]]
    views = CropGeometry.centre_crops(64, 64, sizes_of(MADE[::2][:2]))
    with pytest.raises(DatasetError, match=r"^image 1: .*ingest the data set again"):
        decode_batch(images, views, name, decoder)


def test_sizes_and_boxes_that_do_not_fit_are_refused() -> None:
    if best_decoder() != "kernel":
        pytest.skip("no C compiler or no libjpeg-turbo headers here")
    good = CropGeometry.centre_crops(64, 64, sizes_of(MADE[:1]))
    for box, size, message in (
        ((0, 0, 200, 300), (200, 301), "another size"),
        ((0, 0, 201, 300), (200, 300), "a crop that doesn't lie"),
        ((-1, 0, 100, 100), (200, 300), "a crop that doesn't lie"),
        ((0, 2**31 - 1, 10, 10), (200, 300), "a crop that doesn't lie"),
    ):
        bad = replace(good, sizes=np.array([size], np.int32), boxes=np.array([box], np.int32))
        with pytest.raises(DatasetError, match=message):
            decode_batch(MADE[:1], bad, name, "kernel")


def noise(height: int, width: int, **options: Any) -> bytes:
    """A JPEG with many coefficients, none of which leaves the range of colours: what does is cut off at other times."""
    out = io.BytesIO()
    pixels = np.random.default_rng(height).integers(100, 156, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, format="JPEG", **options)
    return out.getvalue()


def without_jfif(image: bytes) -> bytes:
    length = int.from_bytes(image[4:6], "big")
    assert image[2:4] == b"\xff\xe0"
    return image[:2] + image[4 + length :]


OWN = {
    **{f"{name} {quality}": noise(61, 83, subsampling=name, quality=quality) for name in ("4:4:4", "4:2:2", "4:2:0")
       for quality in (20, 75, 100)},
    "restarts": noise(64, 80, restart_marker_blocks=2), "every row": noise(64, 80, restart_marker_rows=1),
    "optimised": noise(50, 70, optimize=True), "no JFIF": without_jfif(noise(50, 70)),
    "one block": noise(8, 8), "photograph": encoded(200, 300, quality=95),
}  # fmt: skip


@pytest.mark.parametrize("image", OWN.values(), ids=OWN.keys())
def test_our_own_decoder_gives_the_pixels_of_libjpeg(image: bytes) -> None:
    """Each pixel to a few steps, for there are fewer roundings; that none differs would mean it wasn't used."""
    if best_decoder() != "kernel":
        pytest.skip("no C compiler or no libjpeg-turbo headers here")
    differ = False
    height, width = sizes_of([image])[0]
    for top, left, h, w in ((0, 0, height, width), (height // 3, width // 4, height // 2, width // 2)):
        box = np.array([[top, left, h, w]], dtype=np.int32)
        for size in (16, 64):
            views = CropGeometry.resized_crops(size, sizes_of([image]), box, np.zeros(1, np.int32))
            ours, theirs = (decode_batch([image], views, name, which).astype(int) for which in ("kernel", "libjpeg"))
            assert np.abs(ours - theirs).max() <= 5
            assert np.abs(ours - theirs).mean() < 0.6
            differ |= bool((ours != theirs).any())
    assert differ


@pytest.mark.parametrize(
    "image",
    [
        noise(40, 60, progressive=True),
        noise(40, 60)[:-200],
        encoded(30, 30, progressive=True),
        noise(600, 900),  # to be decoded at 1/2
    ],
    ids=["progressive", "cut off", "progressive photograph", "large"],
)
def test_what_is_not_for_our_own_decoder_is_left_to_libjpeg(image: bytes) -> None:
    if best_decoder() != "kernel":
        pytest.skip("no C compiler or no libjpeg-turbo headers here")
    sizes = sizes_of([image])
    views = CropGeometry.resized_crops(16, sizes, np.array([[0, 0, *sizes[0]]], dtype=np.int32), np.zeros(1, np.int32))
    results = []
    for which in ("kernel", "libjpeg"):
        corrupt: set[int] = set()
        results.append((decode_batch([image], views, name, which, corrupt).tobytes(), corrupt))
    assert results[0] == results[1]


def test_the_environment_may_ask_for_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_DECODER", "simplejpeg")
    assert best_decoder() == "simplejpeg"
    monkeypatch.setenv("IMAGE_DECODER", "turbo")
    with pytest.raises(ClusterError, match="IMAGE_DECODER=turbo is no decoder; there are kernel, libjpeg, simplejpeg"):
        best_decoder()


@pytest.fixture
def uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The source of the kernel in a folder where it hasn't been compiled; decoders of this process are found anew."""
    monkeypatch.delenv("IMAGE_DECODER", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in kernel.SOURCE.parent.glob("*.[ch]"):
        shutil.copy(path, tmp_path)
    source = tmp_path / kernel.SOURCE.name
    monkeypatch.setattr(decode, "load_kernel", lambda: kernel.load_kernel(source))
    decode.cached_kernel.cache_clear()
    yield source
    decode.cached_kernel.cache_clear()


def test_without_a_compiler_the_library_decodes(
    uncompiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda command: None)
    assert [best_decoder(), best_decoder()] == ["simplejpeg", "simplejpeg"]
    decode.check_decoder("simplejpeg")
    with pytest.raises(ClusterError, match="install gcc and libjpeg-dev on every node, or set IMAGE_DECODER"):
        decode.check_decoder("kernel")
    (record,) = caplog.records
    assert "no C compiler (cc, gcc or clang) is installed" in record.getMessage()


def test_a_failed_compilation_is_reported_once(
    uncompiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = uncompiled.parent / "cc"
    error = "decode.c:15:10: fatal error: jpeglib.h: No such file or directory"
    compiler.write_text(f"#!/bin/sh\necho '{error}' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda command: str(compiler))
    assert [best_decoder(), best_decoder()] == ["simplejpeg", "simplejpeg"]
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("WARNING", "pipeline.loader.decode")
    message = record.getMessage()
    assert f"cc failed: {error}" in message
    assert "about twice the CPU time" in message
    assert "install gcc and libjpeg-dev on every node, or set IMAGE_DECODER=simplejpeg" in message


def test_hostile_bytes_do_no_harm(tmp_path: Path) -> None:
    """Cut, overwritten and mislabelled JPEGs, with boxes that may not fit, under the address and UB sanitizers."""
    if best_decoder() != "kernel":
        pytest.skip("no C compiler or no libjpeg-turbo headers here")
    for number, image in enumerate([*MADE, encoded(1, 1), encoded(3, 2, 1), encoded(60, 1, 2), encoded(4, 9, 3)]):
        (tmp_path / f"{number}.jpg").write_bytes(image)
    fuzz = Path(__file__).parents[1] / "support" / "pictures" / "fuzz_decode.c"
    build = [
        "cc",
        "-g",
        "-O1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-o",
        "fuzz",
        str(fuzz),
        "-ljpeg",
    ]
    subprocess.run(build, cwd=tmp_path, check=True)
    files = sorted(path.name for path in tmp_path.glob("*.jpg"))
    done = subprocess.run(["./fuzz", "4000", *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = dict(zip(done.stdout.split()[::2], map(int, done.stdout.split()[1::2]), strict=True))
    assert min(counts["ok"], counts["damaged"], counts["other-size"], counts["bad-box"]) > 50, counts
