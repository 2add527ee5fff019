"""Small images of all common kinds, and ways to damage their bytes."""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from tests.support.pictures.images import picture
from tests.support.pictures.rare_jpegs import arithmetic_jpeg, lossless_jpeg

HEIGHT, WIDTH = 24, 36
# Values that a parser may not expect in a field: of lengths, sizes, counts and offsets.
_FIELDS = (
    b"\0",
    b"\xff",
    b"\0\0",
    b"\0\1",
    b"\xff\xff",
    b"\x7f\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
)


@dataclass(frozen=True)
class Change:
    """One change of some bytes. at, length: places as shares of the whole, so that they fit any image."""

    kind: str
    at: float
    length: float
    value: int

    def apply(self, data: bytes, other: bytes) -> bytes:
        """Returns the changed bytes. other: another image, for splices."""
        place = int(self.at * len(data))
        end = place + int(self.length * 64)
        if self.kind == "flip":
            flipped = bytes(each ^ (1 << self.value % 8) for each in data[place : place + 1])
            return data[:place] + flipped + data[place + 1 :]
        if self.kind == "byte":
            return data[:place] + bytes([self.value % 256]) + data[place + 1 :]
        if self.kind == "cut":
            return data[:place]
        if self.kind == "drop":
            return data[:place] + data[end:]
        if self.kind == "repeat":
            return data[:end] + data[place:]
        if self.kind == "splice":
            return data[:place] + other[int(self.length * len(other)) :]
        if self.kind == "insert":
            return data[:place] + other[int(self.length * len(other)) :][: self.value % 64] + data[place:]
        if self.kind == "marker":
            length = (self.value >> 8) % 40
            return data[:place] + bytes([0xFF, self.value % 256, 0, length]) + bytes(length) + data[place:]
        field = _FIELDS[self.value % len(_FIELDS)]
        return data[:place] + field + data[place + len(field) :]


KINDS = ("flip", "byte", "cut", "drop", "repeat", "splice", "insert", "marker", "field")


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    if options.pop("several", False):
        options |= {"save_all": True, "append_images": [picture(6, HEIGHT, WIDTH)]}
    image.copy().save(out, format=kind, **options)  # a copy: an image remembers how its last encoder was set
    return out.getvalue()


@lru_cache(maxsize=1)
def samples() -> dict[str, bytes]:
    """Returns {kind of image: encoded image of HEIGHT x WIDTH pixels}."""
    image = picture(5, HEIGHT, WIDTH)
    pixels = np.asarray(image)
    grey16 = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    return {
        **{f"jpeg {s}": _saved(image, "JPEG", subsampling=s) for s in ("4:4:4", "4:2:2", "4:2:0")},
        "jpeg progressive": _saved(image, "JPEG", progressive=True),
        "jpeg restarts": _saved(image, "JPEG", restart_marker_blocks=1),
        "jpeg optimised": _saved(image, "JPEG", optimize=True, quality=98),
        "jpeg exif": _saved(image, "JPEG", exif=exif.tobytes(), comment=b"words", icc_profile=b"\0" * 300),
        "jpeg grey": _saved(image.convert("L"), "JPEG"),
        "jpeg cmyk": _saved(image.convert("CMYK"), "JPEG"),
        "jpeg lossless": lossless_jpeg(pixels),
        "jpeg lossless grey": lossless_jpeg(pixels[:, :, :1] >> 3, 5),
        "jpeg arithmetic": arithmetic_jpeg()[0],
        "mpo": _saved(image, "MPO", several=True),
        **{f"png {mode}": _saved(image.convert(mode), "PNG") for mode in ("RGB", "L", "P", "RGBA", "LA", "1")},
        "png 16-bit": _saved(grey16, "PNG"),
        "apng": _saved(image, "PNG", several=True),
        "webp": _saved(image, "WEBP"),
        "webp lossless": _saved(image.convert("RGBA"), "WEBP", lossless=True),
        "webp animated": _saved(image, "WEBP", several=True),
        "gif": _saved(image, "GIF"),
        "gif animated": _saved(image, "GIF", several=True),
        "tiff": _saved(image, "TIFF"),
        **{f"tiff {c}": _saved(image, "TIFF", compression=c) for c in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")},
        "tiff, two pages": _saved(image, "TIFF", several=True),
        "tiff 16-bit": _saved(grey16, "TIFF"),
        "tiff cmyk": _saved(image.convert("CMYK"), "TIFF"),
        "bmp": _saved(image, "BMP"),
        "bmp palette": _saved(image.convert("P"), "BMP"),
        "ico": _saved(image, "ICO", sizes=[(WIDTH, HEIGHT)]),
        "ppm": _saved(image, "PPM"),
        "tga": _saved(image, "TGA", compression="tga_rle"),
    }
