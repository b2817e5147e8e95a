"""The figure of the calibration: the error of each prediction, as SVG without any library.

In come the rows of calibration.csv, out comes the text of a file: errors in per cent over the speed
that was measured (logarithmic). The band is the range that a prediction states.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median

WIDTH, HEIGHT = 760.0, 500.0
LEFT, RIGHT, TOP, BOTTOM = 76.0, 130.0, 64.0, 90.0
SLOWEST, FASTEST, WORST = 10.0, 300_000.0, 50.0
NAMED = 20.0
"""Per cent; runs that are predicted worse are named."""
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#000000", "#888888", "#7b3294", "#a6761d"),
)
Lines = Sequence[Mapping[str, str]]


def draw(lines: Lines, spread: float) -> str:
    """Filled points were fitted, hollow ones were not. spread: ln of the ratio at the band's edge."""
    families = sorted({line["family"] for line in lines})
    colour = {family: COLOURS[n % len(COLOURS)] for n, family in enumerate(families)}
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        _text(14, 24, _finding(lines), "start", 'font-size="15" font-weight="bold"'),
        _text(14, 46, "Filled: fitted to; hollow: never. Grey: the range that is stated.", "start"),
        *_axes(spread),
        *(_point(line, colour[line["family"]]) for line in lines),
        _text(middle, HEIGHT - BOTTOM + 38, "measured speed, tokens/s/GPU"),
        _text(18, (TOP + HEIGHT - BOTTOM) / 2, "predicted above or below measured", rotated=True),
        *(_text(14, HEIGHT - 28 + 16 * n, told, "start") for n, told in enumerate(_worst(lines))),
    ]
    for number, family in enumerate(families):
        x, y = WIDTH - RIGHT + 20, TOP + 20 + 18 * number
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour[family]}"/>')
        parts.append(_text(x + 10, y, family, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _finding(lines: Lines) -> str:
    fitted = [abs(float(line["error_pct"])) for line in lines if line["use"] == "fit"]
    others = [abs(float(line["error_pct"])) for line in lines if line["use"] != "fit"]
    return (
        f"Half of {len(fitted)} fitted runs are predicted within {median(fitted):.1f} %, half of "
        f"{len(others)} others within {median(others):.1f} %"
    )


def _worst(lines: Lines) -> list[str]:
    """Who is off by more than NAMED, in two lines."""
    off = sorted(lines, key=lambda line: -abs(float(line["error_pct"])))
    told = [line["id"] for line in off if abs(float(line["error_pct"])) > NAMED]
    half = -(-len(told) // 2)
    return [f"Off by more than {NAMED:g} %: {', '.join(told[:half])},", ", ".join(told[half:])]


def _axes(spread: float) -> list[str]:
    high, low = (_y(100 * math.expm1(sign * spread)) for sign in (1, -1))
    across = f'x="{LEFT}" width="{WIDTH - LEFT - RIGHT}"'
    parts = [f'<rect {across} y="{high:.1f}" height="{low - high:.1f}" fill="#ddd"/>']
    for error in range(-40, 50, 20):
        shade = "#eee" if error else "#888"
        parts.append(f'<rect {across} y="{_y(error):.1f}" height="1" fill="{shade}"/>')
        parts.append(_text(LEFT - 6, _y(error) + 4, f"{error:+d} %" if error else "0 %", "end"))
    for power in range(1, 6):
        parts.append(_text(_x(10.0**power), HEIGHT - BOTTOM + 18, f"{10**power:,}"))
    return parts


def _point(line: Mapping[str, str], shade: str) -> str:
    fill = shade if line["use"] == "fit" else "none"
    x, y = _x(float(line["measured"])), _y(float(line["error_pct"]))
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" fill-opacity="0.6" '
        f'stroke="{shade}"><title>{escape(line["id"])}: {line["error_pct"]} %</title></circle>'
    )


def _text(
    x: float, y: float, text: str, anchor: str = "middle", style: str = "", rotated: bool = False
) -> str:
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if rotated else ""
    style = f" {style}" if style else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}{turned}>{escape(text)}</text>'
    )


def _x(speed: float) -> float:
    share = math.log(speed / SLOWEST) / math.log(FASTEST / SLOWEST)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(error: float) -> float:
    """Errors beyond the edge are drawn on it."""
    share = 0.5 - max(-WORST, min(WORST, error)) / (2 * WORST)
    return TOP + share * (HEIGHT - TOP - BOTTOM)
