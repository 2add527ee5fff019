"""Parts of HTML pages: charts as SVG, pictures as data URIs, and pages from templates.

Charts are drawn without pyplot, whose figures and settings belong to the whole process: matplotlib's settings and
backend are the host's own before and after.
"""

import base64
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pipeline.core.thread_warnings import thread_warnings
from pipeline.reporting.page import render_page as render_page

_log = logging.getLogger(__name__)

BLUE, ORANGE, GREY = "#3b82c4", "#e08a2c", "#808080"
_THUMBNAIL_PX, _LOSSLESS_PX = 192, 64
_STYLE: dict[str, Any] = {  # greys that can be read on a light and on a dark page
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "report",  # else the ids in an SVG are random
}


@contextmanager
def chart_style() -> Iterator[None]:
    """A context, or a decorator, in which matplotlib draws in the style of the reports.

    It belongs on each function that calls `new_axes`: matplotlib reads its settings when it makes a figure, and again
    for each text, legend and tick that is added to it.
    """
    with matplotlib.rc_context(_STYLE):
        yield


def new_axes(width: float = 5.2, height: float = 3.0) -> tuple[Figure, Any]:
    """Returns a new figure and its axes, in the style of the reports. width, height: in inches."""
    with chart_style():
        figure = Figure(figsize=(width, height))
        return figure, figure.subplots()


def svg_data_uri(figure: Figure) -> str:
    """Returns the figure as a data URI of an SVG; equal figures give equal bytes."""
    out = io.StringIO()
    with chart_style():
        figure.savefig(out, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue().encode()).decode()


def thumbnail(data: bytes) -> str:
    """Returns an encoded image as a data URI of at most 192 pixels a side: PNG up to 64 pixels, else JPEG.

    An image that PIL doesn't decode, which may be one that wasn't decoded at ingest, is shown as a grey square.
    """
    from PIL import Image

    try:
        with thread_warnings("ignore"), Image.open(io.BytesIO(data)) as image:  # of large images, and odd EXIF
            small = image.convert("RGB")
    except Exception as error:  # PIL raises almost anything for damaged input; one picture is no reason to lose a page
        _log.warning("warning: an image can't be shown on a page (%s)", error)
        small = Image.new("RGB", (_THUMBNAIL_PX, _THUMBNAIL_PX), "grey")
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    kind = "png" if max(small.size) <= _LOSSLESS_PX else "jpeg"
    out = io.BytesIO()
    small.save(out, format=kind.upper(), quality=85)  # PNG ignores the quality
    return f"data:image/{kind};base64," + base64.b64encode(out.getvalue()).decode()


def pixel_picture(pixels: npt.NDArray[np.uint8], least_px: int = 96) -> str:
    """pixels: uint8 [H, W, 3]. Returns a data URI of a picture of at most 192 pixels a side.

    A picture below `least_px` pixels is enlarged by a whole factor, without interpolation.
    """
    from PIL import Image

    image = Image.fromarray(pixels)
    if max(image.size) < least_px:
        factor = -(-least_px // max(image.size))
        image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return thumbnail(out.getvalue())


def heat_picture(pixels: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> str:
    """Returns a data URI of the image in grey, under a heat map from blue (0) to yellow (the 99th percentile).

    pixels: uint8 [H, W, 3]. heat: float32 [H, W], at least 0.
    """
    top = np.quantile(heat, 0.99) or 1.0  # not the largest value: one bright pixel would make all others blue
    colours = matplotlib.colormaps["viridis"](np.clip(heat / top, 0, 1))[..., :3]
    grey = pixels.mean(axis=2, keepdims=True) / 255
    return pixel_picture((255 * (0.4 * grey + 0.6 * colours)).round().astype(np.uint8))
