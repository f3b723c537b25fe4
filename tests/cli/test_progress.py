"""What is shown of a run, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from nanograd_llm.cli.progress import _Bar, _Lines

TEXT = "The statement is a statement of the statement.\n\n  [bold]x[/]\n" + "\u6f22\u5b57 \u6f22\u5b57" * 5


@pytest.mark.parametrize("width", [12, 20, 30])
def test_on_a_terminal_the_mark_of_a_quote_stands_before_each_line_of_the_screen(width: int) -> None:
    bar, screen = _Bar(), io.StringIO()
    bar.shown = Progress(console=Console(file=screen, width=width))
    bar.quote(TEXT)
    rows = screen.getvalue().splitlines()
    assert len(rows) > len(TEXT.splitlines())
    assert all(row.startswith("    |") for row in rows)
    assert "".join(row[6:] for row in rows).replace(" ", "") == TEXT.replace("\n", "").replace(" ", "")


def test_elsewhere_a_line_of_a_quote_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    _Lines().quote(TEXT)
    assert capsys.readouterr().out == "".join(f"    | {line}\n" for line in TEXT.splitlines())
