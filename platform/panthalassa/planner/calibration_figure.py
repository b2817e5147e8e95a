"""The figure of the calibration: predicted against measured speed, as SVG without any library.

In come the rows of calibration.csv, out comes the text of a file. Both axes are logarithmic; the
band is the range that a prediction states.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

SIZE, MARGIN = 520.0, 56.0
LOW, HIGH = 10.0, 300_000.0
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#888888")


def draw(lines: Sequence[Mapping[str, str]], spread: float) -> str:
    """Filled points were fitted, hollow ones were not. spread: ln of the ratio at the edge of the
    band."""
    families = sorted({line["family"] for line in lines})
    colour = {family: COLOURS[n % len(COLOURS)] for n, family in enumerate(families)}
    ratio = math.exp(spread)
    band = [(LOW, LOW * ratio), (HIGH, HIGH * ratio), (HIGH, HIGH / ratio), (LOW, LOW / ratio)]
    corners = " ".join(f"{_x(a):.1f},{_y(b):.1f}" for a, b in band)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE:g} {SIZE:g}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<clipPath id="plot"><rect x="{MARGIN}" y="{MARGIN / 2}" width="{_x(HIGH) - MARGIN}" '
        f'height="{_y(LOW) - MARGIN / 2}"/></clipPath>',
        f'<g clip-path="url(#plot)"><polygon points="{corners}" fill="#ddd"/>',
        f'<line x1="{_x(LOW)}" y1="{_y(LOW)}" x2="{_x(HIGH)}" y2="{_y(HIGH)}" stroke="#888"/></g>',
    ]
    for power in range(1, 6):
        value = 10.0**power
        parts += [
            f'<text x="{_x(value):.1f}" y="{SIZE - MARGIN + 18:g}" text-anchor="middle">'
            f"{value:,.0f}</text>",
            f'<text x="{MARGIN - 6:g}" y="{_y(value) + 4:.1f}" text-anchor="end">{value:,.0f}</text>',
        ]
    for line in lines:
        shade = colour[line["family"]]
        fill = shade if line["use"] == "fit" else "none"
        x, y = _x(float(line["measured"])), _y(float(line["predicted"]))
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" fill-opacity="0.6" '
            f'stroke="{shade}"><title>{escape(line["id"])}: {line["error_pct"]} %</title></circle>'
        )
    for number, family in enumerate(families):
        height = MARGIN + 16 * number
        parts.append(
            f'<circle cx="{MARGIN + 14}" cy="{height - 4}" r="4" fill="{colour[family]}"/>'
        )
        parts.append(f'<text x="{MARGIN + 24}" y="{height}">{escape(family)}</text>')
    middle = (MARGIN + _x(HIGH)) / 2
    parts += [
        f'<text x="{middle:g}" y="{SIZE - 10:g}" text-anchor="middle">measured, tokens/s/GPU</text>',
        f'<text x="14" y="{middle:g}" transform="rotate(-90 14 {middle:g})" text-anchor="middle">'
        "predicted</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _place(value: float) -> float:
    return math.log(value / LOW) / math.log(HIGH / LOW) * (SIZE - 1.5 * MARGIN)


def _x(value: float) -> float:
    return MARGIN + _place(value)


def _y(value: float) -> float:
    return SIZE - MARGIN - _place(value)
