"""What the reports share: charts as SVG, pictures as data URIs, pages from templates."""

import base64
import io
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#3b82c4", "#e08a2c", "#808080"
_THUMBNAIL_PX, _LOSSLESS_PX = 192, 64


def axes(width: float = 5.2, height: float = 3.0) -> tuple[Figure, Any]:
    """Returns a figure and its axes, in greys that read on light and on dark."""
    style = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY)
    plt.rcParams.update(
        {**style, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "report"}
    )
    return plt.subplots(figsize=(width, height))


def svg(figure: Figure) -> str:
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


def page(template: str, **values: Any) -> str:
    """Returns a page of `pipeline/templates`. Raises jinja2.UndefinedError where it names a value that isn't given."""
    environment = Environment(loader=PackageLoader("pipeline"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(**values)
