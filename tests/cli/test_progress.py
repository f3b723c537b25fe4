"""What is shown of a run, on a terminal and elsewhere."""

from __future__ import annotations

import dataclasses
import io
import sys
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console
from rich.progress import Progress

from nanograd_llm.cli.progress import _Lines, show
from nanograd_llm.cli.terminal import folded, waiting, write_pieces
from nanograd_llm.gradcheck import Report
from nanograd_llm.runs.progress import Bar, shown
from nanograd_llm.runs.run import Run, Scored
from nanograd_llm.settings import printable
from nanograd_llm.tasks.task import Score
from nanograd_llm.training import StepRecord

RECORD = StepRecord(12_345, 10, 3.25, 1e-3, 1.0, 73_078.0, 0.25)
TEXT = "The statement is a statement of the statement.\n\n  [bold]x[/]\n" + "\u6f22\u5b57 \u6f22\u5b57" * 5


@pytest.mark.parametrize("width", [12, 20, 30])
def test_on_a_terminal_each_line_of_a_quote_begins_with_its_mark(width: int) -> None:
    bar, screen = Bar(), io.StringIO()
    bar.shown = Progress(console=Console(file=screen, width=width))
    bar.quote(TEXT)
    rows = screen.getvalue().splitlines()
    assert len(rows) > len(TEXT.splitlines())
    assert all(row.startswith("    |") for row in rows)
    assert "".join(row[6:] for row in rows).replace(" ", "") == TEXT.replace("\n", "").replace(" ", "")


def test_elsewhere_a_line_of_a_quote_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    _Lines().quote(TEXT)
    assert capsys.readouterr().out == "".join(f"    | {line}\n" for line in TEXT.splitlines())


def test_the_remark_on_a_score_gives_its_figure_as_the_score_does(capsys: pytest.CaptureFixture[str]) -> None:
    score = Score("accuracy", 26.96, {}, percent=["accuracy"], remark="no better than majority (27.0 %)")
    training = SimpleNamespace(batch_size=1)
    task = SimpleNamespace(describe=dict, training=training, model=SimpleNamespace(loss_items="texts"))
    ends = {"stopped_by": None, "suggested_rate": lambda: None, "is_stuck": False, "overfitting": str, "is_test": False}
    ends["config"] = SimpleNamespace(keep=None)
    run = SimpleNamespace(task=task, adapters=None, trainer=SimpleNamespace(workers=1), **ends)
    scores = [Scored(1, score), Scored(2, score)]
    assert show(cast(Run, run), iter(scores)) == 0
    out = capsys.readouterr().out
    assert "\naccuracy 27.0 %, on all that is held out: no better than majority (27.0 %)" in out
    assert out.rindex("scored on   all that is held out") > out.rindex("step      2: held out")
    assert "eval" not in out


@pytest.mark.parametrize(
    ("rises", "is_test", "end"),
    [
        ("", False, ": low; train longer\n"),
        ("it rises", False, ": low\nit rises\n"),
        ("", True, ", in the last score\n"),
    ],
)
def test_the_advice_to_train_longer_is_left_out_where_the_loss_rises_and_after_a_test_with_what_the_score_means(
    rises: str, is_test: bool, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    task = SimpleNamespace(
        describe=dict, training=SimpleNamespace(batch_size=1), model=SimpleNamespace(loss_items="texts")
    )
    ends = {"stopped_by": None, "suggested_rate": lambda: None, "is_stuck": False, "overfitting": lambda: rises}
    ends |= {"config": SimpleNamespace(keep=None), "is_test": is_test}
    run = SimpleNamespace(task=task, adapters=None, trainer=SimpleNamespace(workers=1), **ends)
    show(cast(Run, run), iter([Scored(1, Score("accuracy", 20.0, {}, remark="low", advice="train longer"))]))
    out = capsys.readouterr().out
    assert out.endswith(end)


def test_a_score_of_a_part_says_on_how_much_and_which_command_scores_more(capsys: pytest.CaptureFixture[str]) -> None:
    score = Score("accuracy", 58.8, {}, "64 of the 734 held-out texts", percent=["accuracy"], remark="low", share=0.09)
    task = SimpleNamespace(
        describe=dict, training=SimpleNamespace(batch_size=1), model=SimpleNamespace(loss_items="texts")
    )
    ends = {"stopped_by": None, "suggested_rate": lambda: None, "is_stuck": False, "overfitting": str, "is_test": False}
    ends["config"] = SimpleNamespace(keep=None)
    folder = SimpleNamespace(path="runs/my text")
    run = SimpleNamespace(task=task, adapters=None, trainer=SimpleNamespace(workers=1), folder=folder, **ends)
    show(cast(Run, run), iter([Scored(1, score)]))
    out = capsys.readouterr().out
    assert "\naccuracy 58.8 %, on 64 of the 734 held-out texts: low" in out
    assert "64 of the 734 held-out texts, in the last score; nanograd-llm eval 'runs/my text' scores all\n" in out


@pytest.mark.parametrize(
    ("width", "parts"),
    [
        (20, {"step  12345", " 25%"}),
        (30, {"step  12345", " 25%", "loss 3.250"}),
        (42, {"step  12345", " 25%", "loss 3.250", "left"}),
        (66, {"step  12345", " 25%", "loss 3.250", "left", "73,078 tokens/s"}),
        (80, {"step  12345", " 25%", "loss 3.250", "left", "73,078 tokens/s", "━"}),
    ],
)
def test_on_a_narrow_terminal_the_bar_leaves_fields_out_and_cuts_none(
    width: int, parts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    bar, screen = Bar("tokens"), io.StringIO()
    bar.step(RECORD)
    console = Console(file=screen, width=width)
    console.print(bar.shown.get_renderable())
    shown = screen.getvalue()
    everything = {"step  12345", " 25%", "loss 3.250", "left", "73,078 tokens/s", "━"}
    assert {part for part in everything if part in shown} == parts
    assert "…" not in shown and shown.count("\n") == 1


@pytest.mark.parametrize("bad", ["\x1b[31m", "\x07", "\x9b2J", "\r", "\u202e", "\x7f", "\0"])
def test_control_characters_are_shown_as_their_escapes(bad: str) -> None:
    assert printable(f"a{bad}b") == f"a{bad[0].encode('unicode_escape').decode()}{bad[1:]}b"
    bar, screen = Bar(), io.StringIO()
    bar.shown = Progress(console=Console(file=screen, width=80))
    bar.quote(f"a{bad}b")
    bar.say(f"a{bad}b")
    assert bad[0] not in screen.getvalue() and "\\" in screen.getvalue()


def test_a_title_with_control_characters_and_markup_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with waiting("reading [red]a\x1b]0;b") as update:
        update("reading [bold]c\x1b]0;d", 0.5)
    shown = screen.getvalue()
    assert "[red]a\\x1b]0;b" in shown and "[bold]c\\x1b]0;d" in shown and "\x1b]0" not in shown


def test_a_report_with_control_characters_reaches_a_terminal_as_escapes() -> None:
    screen, report = io.StringIO(), Report("loss", (), problems=("in a\x1b[2Jb",))
    Console(file=screen).print(report)
    assert "in a\\x1b[2Jb" in screen.getvalue()


def test_text_lines_tabs_and_all_that_is_only_shown_stay_as_they_are() -> None:
    assert (
        printable("a\tb\r\n\u6f22 \U0001f469\u200d\U0001f52c \u00a0")
        == "a\tb\n\u6f22 \U0001f469\u200d\U0001f52c \u00a0"
    )


def test_in_a_notebook_one_bar_is_redrawn_and_every_event_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cells: list[list[str]] = []

    def display(progress: Progress, *, display_id: bool) -> SimpleNamespace:
        cells.append([])
        return SimpleNamespace(update=lambda p: cells[0].append(p._repr_mimebundle_((), ())["text/html"]))

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    events = [RECORD, "a score", dataclasses.replace(RECORD, loss=1.5, progress=1.0)]
    assert list(shown(iter(events), "tokens")) == events
    assert len(cells) == 1 and "100%" in cells[0][-1] and "loss 1.500" in cells[0][-1]


def test_the_time_of_what_is_done_runs_on_after_something_else_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar that reached its end once stays at the time of then, unless it begins again."""
    made: list[Progress] = []

    class Kept(Progress):
        def __init__(self, *columns: object, **settings: object) -> None:
            super().__init__(*columns, **settings)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr("rich.progress.Progress", Kept)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True, write=len, flush=lambda: None))
    with waiting("reading") as tell:
        tell("reading", 1.0)
        assert made[0].tasks[0].finished
        tell("scoring", 0.25)
        assert not made[0].tasks[0].finished and made[0].tasks[0].completed == 0.25


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        (
            ["The stat", "ement ", "is", " a", " statement.\n\n", "  An", "d"],
            ["The", "statement", "is a", "statement.", "", "  And"],
        ),
        (["x", "yz" * 8, " and on"], ["xyzyzyzyzyzyzyzyz", "and on"]),
        (["\u6f22\u5b57" * 4, "\u6f22 a"], ["\u6f22\u5b57" * 2 + "\u6f22", "\u5b57\u6f22\u5b57\u6f22 a"]),
        (["a ten chr", "s and"], ["a ten chrs", "and"]),
        ([], [""]),
    ],
)
def test_on_a_terminal_a_text_that_is_generated_breaks_between_its_words(pieces, lines, monkeypatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "10")
    write_pieces(pieces)
    assert screen.getvalue().split("\n") == lines


def test_on_a_terminal_a_remark_breaks_between_its_words_and_elsewhere_it_is_one_line(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    screen = io.StringIO()
    monkeypatch.setattr("sys.stdout", screen)
    assert folded("the held-out loss is higher now") == "the held-out loss is higher now"
    screen.isatty = lambda: True  # type: ignore[method-assign]
    assert folded("the held-out loss is higher now") == "the held-out loss is\n  higher now"
