"""`nanograd-llm compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nanograd_llm.cli.terminal import written
from nanograd_llm.settings import printable


def compare(runs: Annotated[list[str], Parameter(consume_multiple=True)], /, *, svg: Path | None = None) -> None:
    """Show runs side by side: the settings in which they differ, their last scores, steps and time, and their losses.

    Parameters
    ----------
    runs
        Folders of runs.
    svg
        A file for a picture of the losses, against items and against time, such as losses.svg. Only an earlier picture
        is replaced.
    """
    from rich.console import Console
    from rich.table import Table

    from nanograd_llm.files.atomic import require_replaceable, write_atomically
    from nanograd_llm.runs.compare import SVG_BEGINS, differences, history, loss_picture, sparkline

    if svg is not None:
        require_replaceable(svg, ".svg", SVG_BEGINS)
    histories = [history(path) for path in runs]
    rows = dict(differences(histories))
    rows["last score"] = [one.figure or "none" for one in histories]
    rows["steps"] = [f"{one.steps:,}" for one in histories]
    rows["items"] = [f"{one.items[-1]:,.0f}" if one.steps else "0" for one in histories]
    rows["seconds of training"] = [f"{one.seconds[-1]:,.1f}" if one.steps else "0" for one in histories]
    rows["loss"] = [sparkline(one.losses) for one in histories]
    table = Table("", *(printable(one.path) for one in histories))
    for name, values in rows.items():
        table.add_row(printable(name), *map(printable, values))
    Console(highlight=False, markup=False).print(table)
    if svg is not None:
        write_atomically(svg, loss_picture(histories).encode())
        print(written(f"wrote {svg}"))
