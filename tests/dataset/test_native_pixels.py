"""Native code for pixels gives, to the bit, what libjpeg-turbo, PIL and hashlib give, and leaves the rest to them."""

import hashlib
import io
import itertools
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.dataset import image_codec
from pipeline.dataset.image_codec import BadImageError, Pixels, decode, read_jpeg_header
from pipeline.dataset.native import library, pixels
from pipeline.dataset.native.pixels import decode_ordinary_jpeg, native_facts
from pipeline.ingestion.quality import pixel_facts as facts_module
from pipeline.ingestion.quality.pixel_facts import HASH_PX, grey_square, pixel_facts
from tests.support.pictures.images import picture, shared
from tests.support.pictures.mutations import KINDS, Change, samples

OURS = ("444", "422", "420")  # of simplejpeg's samplings


@pytest.fixture
def native() -> None:
    if pixels.cached_library() is None:
        pytest.skip("no C compiler here")


@pytest.fixture
def fast(native: None) -> None:
    library = pixels.cached_library()
    if not library.is_fast():
        pytest.skip("no AVX2 or no GCC here: libjpeg-turbo decodes")


def noise(seed: int, height: int, width: int) -> Pixels:
    """Returns an image that is noise, noise of two values, or of one colour."""
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return (values, values // 128 * 255, np.full_like(values, values[0, 0, 0]))[seed % 3]


def encoded(image: Pixels, quality: int, sampling: str) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling=sampling)
    return data


def saved(image: Pixels, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", **options)
    return out.getvalue()


def ours(data: bytes) -> Pixels | None:
    height, width, space = read_jpeg_header(data)
    return decode_ordinary_jpeg(data, height, width) if space == "YCbCr" else None


def assert_libjpegs(data: bytes) -> None:
    """Whether the native decoder takes the image, and gives libjpeg-turbo's pixels."""
    found = ours(data)
    assert found is not None
    assert np.array_equal(found, simplejpeg.decode_jpeg(data, colorspace="RGB"))


# --- decoding ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("sampling", OURS)
def test_every_small_size_is_libjpegs_to_the_bit(sampling: str) -> None:
    for seed, (height, width) in enumerate(itertools.product(range(1, 36), range(1, 36))):
        assert_libjpegs(encoded(noise(seed, height, width), (5, 50, 90, 100)[seed % 4], sampling))


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("quality", [1, 10, 60, 95, 100])
def test_all_colours_and_steps_are_libjpegs_to_the_bit(quality: int) -> None:
    for seed, sampling in itertools.product(range(6), OURS):
        assert_libjpegs(encoded(noise(seed, 200, 301), quality, sampling))


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    "options",
    [
        {"restart_marker_blocks": 1},
        {"restart_marker_rows": 1},
        {"optimize": True},
        {"comment": b"any", "icc_profile": b"x" * 70_000},
        {"dpi": (72, 72), "subsampling": 0},
    ],
    ids=str,
)
def test_what_encoders_write_is_libjpegs_to_the_bit(options: dict[str, object]) -> None:
    for seed in range(3):
        assert_libjpegs(saved(noise(seed, 75, 131), quality=92, **options))


@pytest.mark.usefixtures("fast")
def test_real_photographs_are_libjpegs_to_the_bit() -> None:
    decoded = 0
    with tarfile.open(shared("imagenet-fullsize-160.tar")) as tar:
        streams = [tar.extractfile(info) for info in tar if info.isfile()]
        for data in (stream.read() for stream in streams if stream):
            found = ours(data)
            if found is not None:
                assert np.array_equal(found, simplejpeg.decode_jpeg(data, colorspace="RGB"))
                decoded += 1
    assert decoded > 150


def steps(data: bytes, value: int) -> bytes:
    """Returns the JPEG with all steps of its quantisers set to a value."""
    changed, place = bytearray(data), 0
    while (place := data.find(b"\xff\xdb", place)) >= 0:
        for at in range(place + 5, place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")):
            changed[at] = value if (at - place - 4) % 65 else changed[at]
        place += 2
    return bytes(changed)


@pytest.mark.usefixtures("fast")
def test_values_that_overflow_are_left_to_libjpeg() -> None:
    """Coefficients of 16 bits overflow in libjpeg-turbo's vector code, otherwise than in its plain C."""
    taken = set()
    for seed, step in itertools.product(range(9), (1, 2, 20, 100, 255)):
        data = steps(encoded(noise(seed, 40, 56), 100, OURS[seed % 3]), step)
        found = ours(data)
        taken.add(found is not None)
        if found is not None:
            assert np.array_equal(found, simplejpeg.decode_jpeg(data, colorspace="RGB"))
    assert taken == {True, False}


@pytest.mark.usefixtures("fast")
def test_rare_and_damaged_jpegs_are_left_to_libjpeg() -> None:
    image = noise(0, 40, 60)
    whole = saved(image)
    for data in (
        saved(image, progressive=True), encoded(image, 90, "440"), encoded(image, 90, "411"),
        simplejpeg.encode_jpeg(image[:, :, :1].copy(), colorspace="GRAY"),
        whole[:-2], whole[:-30], whole[:-2] + b"\0" + whole[-2:], whole[:-2] + b"\0" * 20 + whole[-2:],
    ):  # fmt: skip
        assert ours(data) is None


CHANGES = st.lists(
    st.builds(Change, st.sampled_from(KINDS), st.floats(0, 1), st.floats(0, 1), st.integers(0, 65_535)), max_size=3
)


@pytest.mark.usefixtures("fast")
@settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["JPEG", "small steps", "fine chroma"]), CHANGES)
def test_a_mutated_jpeg_that_the_native_decoder_takes_is_libjpegs(kind: str, changes: list[Change]) -> None:
    image = np.asarray(picture(1, 24, 36))
    made = {"JPEG": saved(image), "small steps": saved(image, quality=98), "fine chroma": encoded(image, 90, "444")}
    data = made[kind]
    for change in changes:
        data = change.apply(data, samples()["JPEG"] if "JPEG" in samples() else made["JPEG"])
    try:
        found = ours(data) if data[:2] == b"\xff\xd8" else None
    except BadImageError:
        return
    if found is not None:
        assert np.array_equal(found, image_codec._decode_jpeg(data, "RGB"))  # which raises for what is damaged


def test_hostile_bytes_do_no_harm(tmp_path: Path) -> None:
    """Cut and overwritten JPEGs, and facts of images of any size, under the address and UB sanitizers."""
    if pixels.cached_library() is None:
        pytest.skip("no C compiler here")
    for number, sampling in enumerate(OURS):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(noise(number, 33, 50), 90, sampling))
    (tmp_path / "3.jpg").write_bytes(saved(noise(0, 40, 30), restart_marker_blocks=2))
    fuzz = Path(__file__).parents[1] / "support" / "pictures" / "fuzz_pixels.c"
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["cc", "-g", "-O1", "-w", *sanitize, "-o", "fuzz", str(fuzz)], cwd=tmp_path, check=True)
    files = sorted(path.name for path in tmp_path.glob("*.jpg"))
    done = subprocess.run(["./fuzz", "6000", *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = dict(zip(done.stdout.split()[::2], map(int, done.stdout.split()[1::2]), strict=True))
    assert min(counts["decoded"], counts["left"]) > 500, counts


# --- facts -------------------------------------------------------------------------------------------------------

SIZES = [
    (1, 1), (1, 2), (2, 1), (3, 5), (1, 700), (700, 1), (31, 32), (32, 31), (32, 32), (33, 32), (32, 64), (64, 33),
    (45, 30), (58, 40), (63, 128), (127, 64), (128, 128), (129, 127), (191, 192), (75, 118), (500, 375), (375, 500),
    (20, 900), (900, 31), (400, 66), (1025, 97), (3, 5000),
]  # fmt: skip


def assert_libraries(image: Pixels) -> None:
    found = native_facts(image)
    assert found is not None
    pil = Image.fromarray(image)
    height, width = image.shape[:2]
    digest = hashlib.sha256(f"{height}x{width}:".encode() + image.tobytes()).hexdigest()
    assert found.sha256 in (digest, None)
    assert np.array_equal(found.histogram, pil.histogram())
    grey = grey_square(pil, HASH_PX)
    assert np.array_equal(found.grey, grey)
    assert found.thumbnail == facts_module._thumbnail(grey)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_facts_are_those_of_the_libraries(size: tuple[int, int]) -> None:
    for seed in range(6):
        assert_libraries(noise(seed, *size))


@pytest.mark.usefixtures("native")
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 200) | st.integers(1, 800), st.integers(1, 200) | st.integers(1, 800), st.integers(0, 1 << 30))
def test_facts_of_any_size_are_those_of_the_libraries(height: int, width: int, seed: int) -> None:
    assert_libraries(noise(seed, height, width))


@pytest.mark.usefixtures("native")
def test_facts_of_an_image_whose_rows_do_not_follow_each_other() -> None:
    image = noise(0, 90, 120)
    for part in (image[10:70, 20:100], image[::2], image[:, ::-1]):
        assert_libraries(np.ascontiguousarray(part))
        assert pixel_facts(part).sha256 == pixel_facts(part.copy()).sha256


# --- without a compiler ------------------------------------------------------------------------------------------


@pytest.fixture
def uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine where native code was never compiled, and can't be."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "temporary_home", lambda: str(tmp_path / "temporary"))
    monkeypatch.setattr(shutil, "which", lambda command: None)
    pixels.cached_library.cache_clear()
    yield
    pixels.cached_library.cache_clear()


def test_without_a_compiler_libraries_give_the_same(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    images = [noise(seed, 50 + 40 * seed, 70) for seed in range(6)]
    files = [saved(image) for image in images]
    before = [(decode(data).tobytes(), facts_of(image)) for data, image in zip(files, images, strict=True)]
    request.getfixturevalue("uncompiled")
    with caplog.at_level(logging.WARNING):
        after = [(decode(data).tobytes(), facts_of(image)) for data, image in zip(files, images, strict=True)]
    assert after == before
    (record,) = caplog.records
    assert "no C compiler (cc, gcc or clang) is installed" in record.getMessage()
    assert "install gcc on every node" in record.getMessage()


def facts_of(image: Pixels) -> tuple[object, ...]:
    found = pixel_facts(image)
    return found.sha256, found.histogram.tolist(), found.perceptual_hash, found.thumbnail


def test_a_cpu_without_instructions_for_sha_has_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(0, 60, 80)
    found = native_facts(image)
    if found is None:
        pytest.skip("no C compiler here")
    without = pixels.NativeFacts(None, found.histogram, found.grey, found.thumbnail)
    monkeypatch.setattr(facts_module, "native_facts", lambda _: without)
    assert pixel_facts(image).sha256 == hashlib.sha256(b"60x80:" + image.tobytes()).hexdigest()
