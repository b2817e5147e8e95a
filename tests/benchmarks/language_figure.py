"""The figure of the identified languages: a cell for each, as SVG without any library.

In come the rows of docs/languages.csv, out comes the text of docs/languages.svg: the best language
first, each with its share of right answers, whose colour it has. What is never told right is listed.
"""

from collections.abc import Mapping, Sequence

COLUMNS = 16
CELL, LINE = (60, 34), 15
MARGIN, TOP = 14, 66
SHADES = ((1.0, "#1a6b3c"), (0.9, "#4a9d66"), (0.5, "#e0b243"), (0.0, "#c8553d"))
"""From a share on."""
Lines = Sequence[Mapping[str, str]]


def draw(lines: Lines, best: int, target: float) -> str:
    """lines: `language`, `paragraphs` and `right`, the best first; the mean is that of the `best`."""
    shares = {line["language"]: int(line["right"]) / int(line["paragraphs"]) for line in lines}
    told = [language for language, share in shares.items() if share]
    never = sorted(set(shares) - set(told))
    mean = sum(list(shares.values())[:best]) / best
    good = sum(share >= target for share in shares.values())
    rows = -(-len(told) // COLUMNS)
    listed = [never[start : start + 38] for start in range(0, len(never), 38)]
    bottom = TOP + rows * CELL[1] + 26
    width, height = 2 * MARGIN + COLUMNS * CELL[0], bottom + LINE * len(listed) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        _text(MARGIN, 24, f"{good} languages are told right in {target:.0%} of paragraphs", 15),
        _text(MARGIN, 44, f"{mean:.2%} in the {best} best. Universal Declaration of Human Rights,"),
        _text(MARGIN, 58, "paragraphs over 100 characters, CLD2; ISO 639 codes."),
        *(_cell(number, code, shares[code]) for number, code in enumerate(told)),
        _text(MARGIN, bottom - 6, f"Never told right, most unknown to CLD2 ({len(never)}):"),
        *(
            _text(MARGIN, bottom + LINE * (number + 1) - 6, " ".join(codes), 11)
            for number, codes in enumerate(listed)
        ),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _cell(number: int, code: str, share: float) -> str:
    row, column = divmod(number, COLUMNS)
    x, y = MARGIN + column * CELL[0], TOP + row * CELL[1]
    shade = next(colour for least, colour in SHADES if share >= least)
    told = "100 %" if share == 1 else f"{100 * share:.1f} %"
    return (
        f'<rect x="{x}" y="{y}" width="{CELL[0] - 2}" height="{CELL[1] - 2}" fill="{shade}"/>'
        f'<text x="{x + 5}" y="{y + 14}" fill="#fff" font-weight="bold">{code}</text>'
        f'<text x="{x + 5}" y="{y + 27}" fill="#fff" font-size="11">{told}</text>'
    )


def _text(x: int, y: int, text: str, size: int = 12) -> str:
    weight = ' font-weight="bold"' if size > 12 else ""
    return f'<text x="{x}" y="{y}" font-size="{size}"{weight}>{text}</text>'
