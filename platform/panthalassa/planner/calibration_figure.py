"""The figure of the calibration: the error of each prediction, as SVG without any library.

In come the rows of calibration.csv, out comes the text of a file: errors in per cent over the speed
that was measured (logarithmic). The band is the range that a prediction states.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720.0, 420.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 130.0, 16.0, 46.0
SLOWEST, FASTEST, WORST = 10.0, 300_000.0, 50.0
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#000000", "#888888", "#7b3294", "#a6761d"),
)


def draw(lines: Sequence[Mapping[str, str]], spread: float) -> str:
    """Filled points were fitted, hollow ones were not. spread: ln of the ratio at the band's edge."""
    families = sorted({line["family"] for line in lines})
    colour = {family: COLOURS[n % len(COLOURS)] for n, family in enumerate(families)}
    high, low = (_y(100 * math.expm1(sign * spread)) for sign in (1, -1))
    across = f'x="{LEFT}" width="{WIDTH - LEFT - RIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<rect {across} y="{high:.1f}" height="{low - high:.1f}" fill="#ddd"/>',
        f'<rect {across} y="{_y(0):.1f}" height="1" fill="#888"/>',
    ]
    for power in range(1, 6):
        x, value = _x(10.0**power), f"{10**power:,}"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 28}" text-anchor="middle">{value}</text>')
    for error in range(-40, 50, 20):
        y = _y(error) + 4
        parts.append(f'<text x="{LEFT - 6}" y="{y:.1f}" text-anchor="end">{error:+d} %</text>')
    for line in lines:
        shade = colour[line["family"]]
        fill = shade if line["use"] == "fit" else "none"
        x, y = _x(float(line["measured"])), _y(float(line["error_pct"]))
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" fill-opacity="0.6" '
            f'stroke="{shade}"><title>{escape(line["id"])}: {line["error_pct"]} %</title></circle>'
        )
    for number, family in enumerate(families):
        x, y = WIDTH - RIGHT + 20, TOP + 20 + 18 * number
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour[family]}"/>')
        parts.append(f'<text x="{x + 10}" y="{y}">{escape(family)}</text>')
    axis = "measured, tokens/s/GPU; error of the prediction over it; filled: fitted"
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{axis}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(speed: float) -> float:
    share = math.log(speed / SLOWEST) / math.log(FASTEST / SLOWEST)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(error: float) -> float:
    """Errors beyond the edge are drawn on it."""
    share = 0.5 - max(-WORST, min(WORST, error)) / (2 * WORST)
    return TOP + share * (HEIGHT - TOP - BOTTOM)
