"""`nanograd-llm compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nanograd_llm.cli.terminal import folded, row, written
from nanograd_llm.settings import printable

ABREAST = 3  # runs that are shown as columns, where the screen has room; more are rows
SHORTEST = 10  # characters for the names of runs, in a table


def compare(
    runs: Annotated[list[str], Parameter(consume_multiple=True)], /, *, svg: Path | None = None, png: Path | None = None
) -> None:
    """Show runs side by side: the settings in which they differ, their last scores, steps and time, and their losses.

    Parameters
    ----------
    runs
        Folders of runs.
    svg
        A file for a picture of the losses, against items and against time, such as losses.svg. An existing file
        is replaced only if it is such a picture.
    png
        The same picture as PNG, which needs matplotlib.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from nanograd_llm.files.atomic import require_replaceable, write_atomically
    from nanograd_llm.files.png import PNG_BEGINS, require_matplotlib
    from nanograd_llm.runs.compare import (
        SVG_BEGINS,
        differences,
        history,
        loss_picture,
        loss_png,
        remarks,
        short_names,
        sparkline,
    )

    if svg is not None:
        require_replaceable(svg, ".svg", SVG_BEGINS)
    if png is not None:
        require_replaceable(png, ".png", PNG_BEGINS)
        require_matplotlib()
    histories = [history(path) for path in runs]
    found = {
        "last score": [one.figure or "none" for one in histories],
        "steps": [f"{one.steps:,}" for one in histories],
        "trained on": [f"{one.items[-1] if one.steps else 0:,.0f} {one.noun}" for one in histories],
        "seconds": [f"{one.seconds[-1] if one.steps else 0:,.1f}" for one in histories],
        "loss": [sparkline(one.losses, 24 if len(runs) <= ABREAST else 8) for one in histories],
    }
    names, settings = short_names([one.path for one in histories]), differences(histories)
    console = Console(highlight=False, markup=False)
    table = Table("", *map(printable, names))
    for name, values in {**settings, **found}.items():
        table.add_row(printable(name), *map(printable, values))
    width = console.measure(table, options=console.options.update(width=10_000)).maximum
    are_rows = len(runs) > ABREAST or width > console.width  # which would cut its cells
    if are_rows:
        table = Table(*(Column(name, overflow="fold") for name in ("run", *found)))
        for cells in zip(names, *found.values()):
            table.add_row(*map(printable, cells))
    others = Table(*found)  # the names of runs may be cut in a table, words not
    for cells in zip(*found.values()):
        others.add_row(*map(printable, cells))
    if are_rows and console.measure(others).minimum + SHORTEST > console.width:
        for number, name in enumerate(names):
            print(written(name))
            for key, values in {**settings, **found}.items():
                print(folded(f"  {key}: {values[number]}"))
        settings = {}
    else:
        console.print(table)
    if are_rows and settings:
        print("The settings in which they differ:")
        ends = [key.partition(".")[2] for key in settings]  # of a setting of two tables the whole name is shown
        shown = [end if ends.count(end) == 1 else key for key, end in zip(settings, ends)]
        for number, name in enumerate(names):
            own = [f"{key}={values[number]}" for key, values in zip(shown, settings.values()) if values[number]]
            print(row(name, ", ".join(own)))
    for remark in remarks(histories):
        print(folded(remark))
    if svg is not None:
        write_atomically(svg, loss_picture(histories).encode())
        print(written(f"wrote {svg}"))
    if png is not None:
        write_atomically(png, loss_png(histories))
        print(written(f"wrote {png}"))
