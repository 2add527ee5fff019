"""Odd images, made here: each is stored as it is, repaired or refused, with its reason."""

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.dataset.image_codec import decode
from pipeline.ingestion import image_check
from pipeline.ingestion.image_check import ImageHandling, Refused, Stored, check_image
from pipeline.ingestion.quality.pixel_facts import perceptual_hash, pixel_facts
from tests.support.pictures.images import jpeg, picture, shared
from tests.support.pictures.rare_jpegs import arithmetic_jpeg, lossless_jpeg, with_frame_marker, with_segment

DECODE, HEADER = ImageHandling(), ImageHandling(checks="header")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def rgb() -> Image.Image:
    return picture(7, 40, 60)


def grey16() -> bytes:
    grey = np.asarray(rgb().convert("L")).astype(np.uint16)
    return encoded(Image.fromarray(grey * 257), "PNG")


def ycck() -> bytes:
    data: bytes = simplejpeg.encode_jpeg(255 - np.asarray(rgb().convert("CMYK")), colorspace="CMYK", quality=95)
    return data


def broken_exif() -> bytes:
    """An EXIF block whose tag promises more bytes than there are: PIL warns, the pixels decode."""
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 0x010F, 2, 5000, 200)
    return with_segment(encoded(rgb(), "JPEG"), 0xE1, b"Exif\0\0" + tiff)


def bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_bomb() -> bytes:
    """A JPEG whose header claims 30,000 x 30,000 pixels."""
    data = bytearray(encoded(rgb(), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 30_000, 30_000)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.JPEG", jpeg(1, 40, 60)),
        ("a.JPEG", encoded(rgb(), "JPEG", progressive=True)),
        ("a.JPEG", encoded(rgb(), "JPEG", quality=95, subsampling=0)),
        ("a.png", encoded(rgb(), "PNG")),
        ("a.JPEG", encoded(rgb(), "JPEG") + b"bytes after the end"),
        ("a.JPEG", encoded(rgb(), "JPEG", exif=bytes(Image.Exif()))),
    ],
)
@pytest.mark.parametrize("handling", [DECODE, HEADER])
def test_an_intact_image_is_stored_byte_for_byte(name: str, data: bytes, handling: ImageHandling) -> None:
    found = check_image(data, name, handling)
    assert isinstance(found, Stored)
    assert (found.data, found.repair, found.height, found.width) == (data, "", 40, 60)
    assert found.source_sha256 == hashlib.sha256(data).hexdigest()
    assert (found.facts is None) == (handling is HEADER)


@pytest.mark.parametrize("handling", [DECODE, HEADER])
@pytest.mark.parametrize(
    ("data", "repair", "tolerance"),
    [
        (encoded(rgb().convert("CMYK"), "JPEG", quality=95), "CMYK JPEG converted to RGB JPEG of quality 95", 3),
        (ycck(), "YCCK JPEG converted", 3),
        (encoded(rgb().convert("L"), "JPEG", quality=95), "Gray JPEG converted", 40),
        (encoded(rgb(), "PNG"), "RGB PNG converted", 2),
        (encoded(rgb().convert("P"), "PNG"), "P PNG converted", 30),
        (encoded(rgb().convert("RGBA"), "PNG"), "RGBA PNG converted", 2),
        (grey16(), "16-bit PNG converted", 40),
        (encoded(rgb(), "BMP"), "RGB BMP converted", 2),
        (encoded(rgb(), "WEBP", quality=95), "RGB WEBP converted", 6),
        (broken_exif(), "unreadable EXIF removed", 3),
    ],
)
def test_an_odd_image_is_converted_and_the_repair_is_recorded(
    data: bytes, repair: str, tolerance: float, handling: ImageHandling
) -> None:
    found = check_image(data, "val/n01/x.JPEG", handling)
    assert isinstance(found, Stored)
    assert found.repair.startswith(repair)
    assert found.source_sha256 == hashlib.sha256(data).hexdigest()
    assert simplejpeg.decode_jpeg_header(found.data)[2] == "YCbCr"
    assert check_image(found.data, "val/n01/x.JPEG", handling).repair == ""
    assert np.abs(decode(found.data).astype(int) - np.asarray(rgb())).mean() < tolerance
    assert check_image(data, "val/n01/x.JPEG", handling).data == found.data


def test_a_grey_image_keeps_its_greys() -> None:
    grey = rgb().convert("L")
    found = check_image(encoded(grey, "JPEG", quality=95), "x.jpg", DECODE)
    assert isinstance(found, Stored)
    assert np.abs(decode(found.data).astype(int) - np.asarray(grey)[:, :, None]).mean() < 2
    sixteen = check_image(grey16(), "x.jpg", DECODE)
    assert isinstance(sixteen, Stored)
    assert np.abs(decode(sixteen.data).astype(int) - np.asarray(grey)[:, :, None]).mean() < 2


def test_a_cmyk_photograph_has_the_colours_that_pil_gives_it() -> None:
    data = encoded(rgb().convert("CMYK"), "JPEG", quality=95)
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    found = check_image(data, "x.jpg", DECODE)
    assert isinstance(found, Stored)
    assert np.abs(decode(found.data) - reference).mean() < 2


def test_unreadable_exif_is_cut_out_and_no_pixel_changes() -> None:
    found = check_image(broken_exif(), "x.jpg", DECODE)
    assert isinstance(found, Stored)
    assert found.data == encoded(rgb(), "JPEG")


def test_a_png_under_its_own_name_stays_lossless() -> None:
    found = check_image(encoded(rgb().convert("P"), "PNG"), "x.png", DECODE)
    assert isinstance(found, Stored)
    assert found.repair == "P PNG converted to RGB PNG"
    assert np.array_equal(decode(found.data), np.asarray(rgb().convert("P").convert("RGB")))


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


WHOLE = encoded(noise(), "JPEG")


def png_of(rows: int, colour: int, depth: int, interlaced: bool = False) -> bytes:
    """Returns a PNG of 16x16 pixels whose data end after so many of its 16 rows, with all checksums right."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(2, 2), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8), (16, 8)] if interlaced else [(16, 16)]
    lines = [bytes(1 + -(-width * bits // 8)) for width, height in passes for _ in range(height)]
    kept = b"".join(lines[: len(lines) * rows // 16])
    header = struct.pack(">IIBBBBB", 16, 16, depth, colour, 0, 0, int(interlaced))
    palette = [(b"PLTE", bytes(3 * 2**depth))] if colour == 3 else []
    chunks = [(b"IHDR", header), *palette, (b"IDAT", zlib.compress(kept)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("handling", [DECODE, HEADER])
@pytest.mark.parametrize(
    ("colour", "depth"),
    [
        (0, 1),
        (0, 2),
        (0, 4),
        (0, 8),
        (0, 16),
        (2, 8),
        (2, 16),
        (3, 1),
        (3, 4),
        (3, 8),
        (4, 8),
        (4, 16),
        (6, 8),
        (6, 16),
    ],
)
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_is_stored_if_the_data_of_all_rows_are_there(
    colour: int, depth: int, interlaced: bool, handling: ImageHandling
) -> None:
    """PIL fills the rows with black that the compressed data lack."""
    assert isinstance(check_image(png_of(16, colour, depth, interlaced), "a.png", handling), Stored)
    for rows in (0, 8, 15):
        found = check_image(png_of(rows, colour, depth, interlaced), "a.png", handling)
        assert isinstance(found, Refused)
        assert found.reason == "truncated: the pixel data end before the last row"


@pytest.mark.parametrize("handling", [DECODE, HEADER])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty: zero bytes"),
        (b"hello, I am text", "no image: it begins with b'hello, I am text'"),
        (WHOLE[:20], "damaged: no readable JPEG header"),
        (WHOLE[: len(WHOLE) // 2], "truncated: "),
        (encoded(rgb(), "PNG")[:-300], "truncated: |damaged: "),
        (bomb(), "too many pixels: "),
        (jpeg_bomb(), "too many pixels: 30000x30000, the limit is 100,000,000"),
        (encoded(noise().convert("CMYK"), "JPEG")[:3000], "truncated: "),
        (encoded(rgb(), "WEBP")[:200], "damaged: |truncated: "),
        (b"\xff\xd8" + b"\0" * 50, "damaged: "),
    ],
)
def test_an_image_that_does_not_decode_in_full_is_refused_with_its_reason(
    data: bytes, reason: str, handling: ImageHandling
) -> None:
    found = check_image(data, "x.JPEG", handling)
    assert isinstance(found, Refused)
    assert any(found.reason.startswith(each) for each in reason.split("|")), found.reason
    assert found.source_sha256 == hashlib.sha256(data).hexdigest()


def test_missing_data_before_the_end_mark_is_found_only_by_decoding() -> None:
    """PIL and torchvision make up the missing part, in grey."""
    cut = WHOLE[: len(WHOLE) // 2] + b"\xff\xd9"
    assert Image.open(io.BytesIO(cut)).convert("RGB").size == (60, 40)
    found = check_image(cut, "x.jpg", DECODE)
    assert isinstance(found, Refused)
    assert found.reason == "truncated: Corrupt JPEG data: premature end of data segment"
    assert isinstance(check_image(cut, "x.jpg", HEADER), Stored)


def test_superfluous_bytes_change_no_pixel_and_are_kept() -> None:
    data = WHOLE[:-2] + b"\0" * 20 + WHOLE[-2:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(data, strict=True)
    found = check_image(data, "x.jpg", DECODE)
    assert isinstance(found, Stored)
    assert np.array_equal(decode(found.data), decode(WHOLE))


@pytest.mark.parametrize(
    "data",
    [
        WHOLE[:20] + b"stray" + WHOLE[20:],
        WHOLE[:20] + b"\xff" + WHOLE[20:],
        with_segment(WHOLE, 0xE2, b"ICC_PROFILE\0\x09\x02"),
        WHOLE[:11] + b"\x02\x01" + WHOLE[13:],
    ],
    ids=["between segments", "fill bytes", "bad ICC", "JFIF 2.1"],
)
def test_odd_metadata_change_no_pixel_and_are_kept(data: bytes) -> None:
    for handling in (DECODE, HEADER):
        found = check_image(data, "x.jpg", handling)
        assert isinstance(found, Stored), found.reason
        assert (found.data, found.repair) == (data, "")
    assert np.array_equal(decode(data), decode(WHOLE))


def test_superfluous_bytes_do_not_hide_that_others_are_missing() -> None:
    """libjpeg tells of the superfluous bytes only, and fills the rest with grey."""
    out = io.BytesIO()
    noise().save(out, format="JPEG", restart_marker_rows=1)
    restarts = out.getvalue()
    first, second = (restarts.index(bytes([0xFF, 0xD0 + number])) for number in (0, 1))
    stray = restarts[:first] + b"\0" * 9 + restarts[first:]
    assert isinstance(check_image(stray, "x.jpg", DECODE), Stored)
    assert np.array_equal(decode(stray), decode(restarts))
    found = check_image(stray[: second - 60] + stray[second:], "x.jpg", DECODE)
    assert isinstance(found, Refused)
    two = restarts[:first] + b"\0" * 9 + restarts[first:second] + b"\0" * 7 + restarts[second:]
    assert np.array_equal(decode(two), decode(restarts))


# --- what not every decoder reads --------------------------------------------------------------------------------


@pytest.mark.parametrize("handling", [DECODE, HEADER])
@pytest.mark.parametrize(("bits", "channels"), [(2, 3), (3, 1), (4, 3), (7, 1), (8, 3), (8, 1)])
def test_a_lossless_jpeg_is_converted_in_its_full_range(bits: int, channels: int, handling: ImageHandling) -> None:
    values = np.asarray(rgb())[:, :, :channels] >> (8 - bits)
    data, space = lossless_jpeg(values, bits), "Gray" if channels == 1 else "RGB"
    expected = np.broadcast_to(np.round(values / (2**bits - 1) * 255), (*values.shape[:2], 3))
    assert np.array_equal(decode(data), expected)
    found = check_image(data, "x.jpg", handling)
    assert isinstance(found, Stored)
    assert found.repair == f"lossless {space} JPEG converted to RGB JPEG of quality 95"
    assert np.abs(decode(found.data) - expected).mean() < 3


@pytest.mark.parametrize("handling", [DECODE, HEADER])
def test_an_arithmetic_coded_jpeg_is_converted(handling: ImageHandling) -> None:
    data, baseline = arithmetic_jpeg()
    found = check_image(data, "x.jpg", handling)
    assert isinstance(found, Stored)
    assert found.repair == "arithmetic YCbCr JPEG converted to RGB JPEG of quality 95"
    assert np.abs(decode(found.data).astype(int) - decode(baseline)).mean() < 3


@pytest.mark.parametrize("handling", [DECODE, HEADER])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lossless_jpeg(np.asarray(rgb()), 12), "unsupported: lossless JPEG (Unsupported JPEG data precision 12"),
        (with_frame_marker(WHOLE, 0xC5), "unsupported: hierarchical JPEG ("),
        (encoded(Image.fromarray(np.zeros((4, 5), np.float32)), "TIFF"), "unsupported: floating-point pixels"),
        (encoded(Image.fromarray(np.full((4, 5), 200, np.int32)), "TIFF"), "unsupported: 32-bit integer pixels"),
        (encoded(Image.fromarray(np.full((4, 5), 1 << 20, np.int32)), "TIFF"), "unsupported: 32-bit integer pixels"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "unsupported: an image of a kind that PIL can't read"),
        (encoded(Image.new("RGB", (65_501, 1)), "PNG"), "too long: 65501x1 pixels, the limit of a side is 65,500"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no image: "),
    ],
)
def test_what_cannot_be_converted_is_refused(data: bytes, reason: str, handling: ImageHandling) -> None:
    found = check_image(data, "x.jpg", handling)
    assert isinstance(found, Refused)
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("x"), struct.error("x"), MemoryError(), RecursionError("x"), zlib.error("x")]
)
@pytest.mark.parametrize("place", ["decode", "pixel_facts", "encode_jpeg", "_without_broken_exif"])
def test_whatever_a_library_raises_costs_one_image(
    error: Exception, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(image_check, place, fail)
    data = encoded(rgb(), "WEBP") if place == "encode_jpeg" else WHOLE
    found = check_image(data, "val/a.jpg", DECODE)
    assert isinstance(found, Refused)
    assert found.reason.startswith(f"unexpected error: {type(error).__name__}")
    assert "val/a.jpg" in caplog.text  # with its traceback: it may be an error of ours


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), struct.error("x"), RecursionError("x")])
def test_whatever_pil_raises_says_that_the_file_is_damaged(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image, mode: str) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    found = check_image(encoded(rgb(), "WEBP"), "a.webp", DECODE)
    assert isinstance(found, Refused)
    assert found.reason.startswith(f"damaged: {type(error).__name__}: ")


def test_a_large_image_is_shrunk_to_its_shorter_side() -> None:
    data = encoded(picture(3, 400, 600), "JPEG", quality=95)
    found = check_image(data, "x.jpg", ImageHandling(shorter_side_px=100))
    assert isinstance(found, Stored)
    assert (found.height, found.width, found.repair) == (100, 150, "shrunk to 150x100, JPEG of quality 90")
    reference = np.asarray(picture(3, 400, 600).resize((150, 100), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(decode(found.data) - reference).mean() < 2
    small = check_image(WHOLE, "x.jpg", ImageHandling(shorter_side_px=100))
    assert isinstance(small, Stored)
    assert small.data == WHOLE
    again = check_image(WHOLE, "x.jpg", ImageHandling(jpeg_quality=30))
    assert isinstance(again, Stored)
    assert (again.repair, len(again.data) < len(WHOLE)) == ("JPEG of quality 30", True)


def test_pixel_facts_equal_numpys() -> None:
    pixels = np.asarray(picture(5, 50, 70))
    facts = pixel_facts(pixels)
    for channel in range(3):
        counts = np.bincount(pixels[:, :, channel].ravel(), minlength=256)
        assert np.array_equal(facts.histogram[256 * channel : 256 * (channel + 1)], counts)
    assert facts.sha256 == hashlib.sha256(b"50x70:" + pixels.tobytes()).hexdigest()
    assert facts.sha256 != pixel_facts(pixels.reshape(70, 50, 3)).sha256
    assert len(facts.thumbnail) == 256


def test_the_perceptual_hash_is_the_signs_of_scipys_dct() -> None:
    from scipy.fft import dctn

    grey = np.random.default_rng(0).uniform(0, 255, (32, 32))
    spectrum = dctn(grey, type=2)
    wanted = [(u, v) for u in range(9) for v in range(9) if 0 < u + v <= 10][:64]
    bits = np.array([spectrum[u, v] > 0 for u, v in wanted])
    assert perceptual_hash(grey) == int(np.packbits(bits).view(np.uint64)[0])


def test_our_decoder_agrees_with_torchvisions_on_real_photographs(tmp_path: Path) -> None:
    import tarfile

    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    with tarfile.open(shared("imagenet-fullsize-160.tar")) as tar:
        members = [info for info in tar if info.isfile()][:24]
        for info in members:
            stream = tar.extractfile(info)
            assert stream
            data = stream.read()
            reference = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
            assert np.abs(decode(data).astype(int) - reference.permute(1, 2, 0).numpy()).max() <= 3
