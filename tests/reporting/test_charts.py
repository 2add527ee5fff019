"""Charts leave matplotlib's settings as they were, and are the same bytes each time."""

import io
import subprocess
import sys

import matplotlib
import pytest
from PIL import Image

from pipeline.reporting.charts import chart_style, new_axes, svg_data_uri, thumbnail
from pipeline.reporting.figures import confusion_matrix_chart

_HOST = """
import sys
import matplotlib
matplotlib.rcParams.update({"font.size": 17, "text.color": "red"})
before = dict(matplotlib.rcParams.copy())
from pipeline.reporting.charts import chart_style, new_axes, svg_data_uri
with chart_style():
    figure, axes = new_axes()
    axes.plot([1, 2], label="loss")
    axes.legend()
svg_data_uri(figure)
assert dict(matplotlib.rcParams.copy()) == before
assert "matplotlib.pyplot" not in sys.modules  # nothing has chosen a backend
"""


@chart_style()
def _chart() -> str:
    figure, axes = new_axes()
    axes.plot([3, 1, 2], label="loss")
    axes.legend()
    axes.set(xlabel="epoch")
    return svg_data_uri(figure)


def test_the_settings_and_the_backend_of_the_host_stay() -> None:
    subprocess.run([sys.executable, "-c", _HOST], check=True, timeout=60)


def test_a_chart_is_the_same_bytes_each_time_under_any_settings_of_the_host() -> None:
    first = _chart()
    with matplotlib.rc_context({"font.size": 17, "text.color": "red", "svg.hashsalt": "host"}):
        assert _chart() == first


def test_a_confusion_matrix_is_drawn() -> None:
    import numpy as np

    picture = confusion_matrix_chart(np.array([[3, 1], [0, 2]]), ("ant", "bee"))
    assert picture.startswith("data:image/svg+xml;base64,")


def test_a_large_image_costs_no_warning(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    out = io.BytesIO()
    Image.new("RGB", (12, 12)).save(out, format="PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # PIL warns of more, and refuses more than twice as many
    assert thumbnail(out.getvalue()).startswith("data:image/png;base64,")
    assert not recwarn.list


def test_an_image_that_cannot_be_decoded_costs_its_picture_alone() -> None:
    assert thumbnail(b"\xff\xd8 no image").startswith("data:image/jpeg;base64,")
