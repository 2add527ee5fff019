"""What the reports share: charts as SVG, pictures as data URIs, pages from templates."""

import base64
import io
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#3b82c4", "#e08a2c", "#808080"
_THUMBNAIL_PX, _LOSSLESS_PX = 192, 64


def new_axes(width: float = 5.2, height: float = 3.0) -> tuple[Figure, Any]:
    """Returns a figure and its axes, in greys that read on light and on dark."""
    style = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY)
    plt.rcParams.update(
        {**style, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "report"}
    )
    return plt.subplots(figsize=(width, height))


def svg_data_uri(figure: Figure) -> str:
    """Returns the figure as a data URI, the same for the same figure."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue().encode()).decode()


def thumbnail(data: bytes) -> str:
    """Returns an encoded image as a data URI of at most 192 pixels a side; small ones lose nothing."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGB")
        small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        kind = "png" if max(small.size) <= _LOSSLESS_PX else "jpeg"
        out = io.BytesIO()
        small.save(out, format=kind.upper(), quality=85)
    return f"data:image/{kind};base64," + base64.b64encode(out.getvalue()).decode()


def pixel_picture(pixels: npt.NDArray[np.uint8], least_px: int = 96) -> str:
    """pixels: uint8 [H, W, 3]. Returns a data URI of at most 192 pixels a side; small ones are magnified, unblurred."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if max(image.size) < least_px:
        factor = -(-least_px // max(image.size))
        image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return thumbnail(out.getvalue())


def heat_picture(pixels: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> str:
    """pixels: uint8 [H, W, 3]; heat: float [H, W] >= 0. Returns the grey image under the heat, from blue to yellow."""
    top = np.quantile(heat, 0.99) or 1.0
    colours = matplotlib.colormaps["viridis"](np.clip(heat / top, 0, 1))[..., :3]
    grey = pixels.mean(axis=2, keepdims=True) / 255
    return pixel_picture((255 * (0.4 * grey + 0.6 * colours)).round().astype(np.uint8))


def render_page(template: str, **values: Any) -> str:
    """Returns a page of `templates/`. Raises jinja2.UndefinedError where it names a value that isn't given."""
    escape = template.endswith(".html")
    environment = Environment(
        loader=PackageLoader("pipeline.reporting"), autoescape=escape, undefined=StrictUndefined, trim_blocks=not escape
    )
    return environment.get_template(template).render(**values)
