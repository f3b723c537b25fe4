"""The progress of training as one bar that stays in place, on a terminal and in the cell of a notebook."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from nanograd_llm.settings import printable
from nanograd_llm.training.trainer import StepRecord

QUOTE = "    | "
Passed = TypeVar("Passed")


def shown(events: Iterable[Passed], items: str = "items") -> Iterator[Passed]:
    """Pass on the events of `Run.train`, or the records of `Trainer.run`, and show the steps among them as one bar.

        for event in shown(run.train(), "tokens"):
            ...

    In a notebook the bar is in the output of the cell, and needs no widgets; elsewhere it is on the terminal.
    items: what the model learns from, for the speed.
    """
    bar = Bar(items)
    if not bar.shown.console.is_jupyter:
        with bar.shown:
            yield from _stepped(events, bar)
        return
    from IPython.display import display

    cell, drawn = display(bar.shown, display_id=True), time.monotonic()
    try:
        for event in _stepped(events, bar):
            if time.monotonic() - drawn > 0.1:
                cell.update(bar.shown)
                drawn = time.monotonic()
            yield event
    finally:
        cell.update(bar.shown)


def _stepped(events: Iterable[Passed], bar: Bar) -> Iterator[Passed]:
    for event in events:
        if isinstance(event, StepRecord):
            bar.step(event)
        yield event


def numbers(record: StepRecord, items: str) -> tuple[str, str]:
    """The loss and the speed of a step, in words."""
    return f"loss {record.loss:.3f}", f"{record.items_per_second:,.0f} {items}/s"


class Bar:
    """A progress bar with loss, speed and the time left; text from `say` appears above it."""

    def __init__(self, items: str = "items") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.items, console = items, Console()
        columns = [(0, TextColumn("step {task.fields[step]:>6}")), (75, BarColumn())]  # each with the width it needs
        columns += [(0, TextColumn("{task.percentage:>3.0f}%")), (30, TextColumn("{task.fields[loss]}"))]
        columns += [(66, TextColumn("{task.fields[speed]}")), (42, TimeRemainingColumn()), (42, TextColumn("left"))]
        self.shown = Progress(*(column for width, column in columns if width <= console.width), console=console)
        self.task = self.shown.add_task("training", total=1.0, step=0, loss="", speed="")

    def step(self, record: StepRecord) -> None:
        loss, speed = numbers(record, self.items)
        self.shown.update(self.task, completed=record.progress, step=record.step, loss=loss, speed=speed)

    def say(self, text: str) -> None:
        self.shown.console.print(printable(text), markup=False, highlight=False)

    def quote(self, text: str) -> None:
        """With the mark before each line of the screen, also where a line of the text takes several."""
        from rich.text import Text

        console = self.shown.console
        room = max(1, console.width - len(QUOTE))
        rows = [row.plain for line in printable(text).splitlines() for row in Text(line).wrap(console, room)]
        self.say("\n".join(QUOTE + row.rstrip() for row in rows))
