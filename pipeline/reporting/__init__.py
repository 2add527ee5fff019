"""Parts of HTML pages that several reports share: charts, pictures and templates.

Numbers, images and values of templates come in. Self-contained HTML goes out, which loads nothing from elsewhere.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.reporting.charts import (
        chart_style,
        heat_picture,
        new_axes,
        pixel_picture,
        render_page,
        svg_data_uri,
        thumbnail,
    )
    from pipeline.reporting.figures import confused_pairs, confusion_matrix_chart

__all__ = [
    "chart_style",
    "confused_pairs",
    "confusion_matrix_chart",
    "heat_picture",
    "new_axes",
    "pixel_picture",
    "render_page",
    "svg_data_uri",
    "thumbnail",
]
__getattr__ = lazy(
    __name__,
    {
        "charts": (
            "chart_style",
            "heat_picture",
            "new_axes",
            "pixel_picture",
            "render_page",
            "svg_data_uri",
            "thumbnail",
        ),
        "figures": ("confused_pairs", "confusion_matrix_chart"),
    },
)
