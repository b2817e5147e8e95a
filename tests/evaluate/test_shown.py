"""Tables of an evaluation lose no letter, however narrow the terminal."""

import io

import pytest
from rich.console import Console

from panthalassa.cli_evaluate import show_table
from panthalassa.evaluate.telling import HEADINGS

ROW = ("choices-of-captions", "recall@1_calibrated", "33.3", "16.7 to 50.0", "1,200", "10.0")


@pytest.mark.parametrize(("terminal", "width"), [(False, 80), (True, 80), (True, 40)])
def test_every_figure_and_name_is_shown_whole(terminal: bool, width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    show_table(console, HEADINGS, [ROW])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    letters = sorted("".join([*HEADINGS, *ROW]).replace(" ", ""))
    assert sorted("".join(shown.split())) == letters
    if not terminal:
        assert "  ".join(ROW[:1]) in shown
        assert ROW[1] in shown
