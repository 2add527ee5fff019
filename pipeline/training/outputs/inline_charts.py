"""Small line charts as SVG text, drawn in a millisecond: for the report of a run that is still training."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 520, 200, 52, 26, 10
_COLOURS = ("#3b82c4", "#e08a2c", "#5a9e4b", "#a05195")
_MAX_POINTS = 400

Points = Sequence[tuple[float, float]]


def line_chart(series: Mapping[str, Points], x_label: str, unit: str = "", least_top: float = 0.0) -> Markup:
    """Returns an SVG element with one line for each series, on axes from 0.

    series: {name: (x, y) in the order of x}; empty ones are left out. least_top: of the y axis, at least.
    """
    lines = {name: thinned(points) for name, points in series.items() if points}
    right = max((points[-1][0] for points in lines.values()), default=1.0) or 1.0
    top = max([least_top, *(y for points in lines.values() for _, y in points)]) or 1.0
    parts = [_axes(right, top, x_label, unit)]
    for number, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = " ".join(f"{_x(x, right):.1f},{_y(y, top):.1f}" for x, y in points)
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>')
        last_x, last_y = points[-1]
        parts.append(f'<circle cx="{_x(last_x, right):.1f}" cy="{_y(last_y, top):.1f}" r="3" fill="{colour}"/>')
        parts.append(_text(_LEFT + 10 + 130 * number, _TOP + 4, f"{name} {_number(last_y)}{unit}", colour))
    title = ", ".join(f"{name}: {_number(points[-1][1])}{unit}" for name, points in lines.items()) or "no values yet"
    shape = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}"'
    # Every text in it is escaped above.
    return Markup(f'<svg {shape} style="width:100%;height:auto">{"".join(parts)}</svg>')


def thinned(points: Points) -> list[tuple[float, float]]:
    """Returns at most a few hundred of the points, with the last."""
    every = -(-len(points) // _MAX_POINTS)
    kept = list(points[::every])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _x(value: float, right: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - 10) * value / right


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP - 12) * value / top


def _axes(right: float, top: float, x_label: str, unit: str) -> str:
    base = _HEIGHT - _BOTTOM
    return (
        f'<path d="M{_LEFT} {_TOP}V{base}H{_WIDTH - 10}" fill="none" stroke="#808080"/>'
        + _text(_LEFT - 6, _y(top, top) + 4, f"{_number(top)}{unit}", anchor="end")
        + _text(_LEFT - 6, base, "0", anchor="end")
        + _text(_WIDTH - 10, _HEIGHT - 8, f"{_number(right)} {x_label}", anchor="end")
    )


def _text(x: float, y: float, text: str, colour: str = "#808080", anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="11" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
