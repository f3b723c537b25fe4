"""`nanograd-llm plot`: the curves of training runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def plot(
    runs: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    html: Path | None = None,
    png: Path | None = None,
) -> None:
    """Show the curves of runs: loss, learning rate and norm of the gradient; after `train --watch` also of its layers.

    Parameters
    ----------
    runs
        Folders of runs.
    html
        Write a page with the loss against steps, items and time, such as plot.html; if not given, the curves are
        lines of text.
    png
        The same as a picture, such as plot.png, which needs matplotlib. Only a PNG is replaced.
    """
    import numpy as np

    from nanograd_llm.cli.terminal import row, written
    from nanograd_llm.files.atomic import require_replaceable, write_atomically
    from nanograd_llm.files.png import PNG_BEGINS, require_matplotlib
    from nanograd_llm.runs.compare import sparkline
    from nanograd_llm.runs.folder import RunFolder
    from nanograd_llm.see.page import require_html
    from nanograd_llm.see.pictures import training_page, training_png

    path = None if html is None else require_html(html)
    if png is not None:
        require_replaceable(png, ".png", PNG_BEGINS)
        require_matplotlib()
    folders = {run: RunFolder.open(Path(run)) for run in runs}
    metrics = {run: folder.read_metrics() for run, folder in folders.items()}
    width = max(8, min(48, shutil.get_terminal_size((100, 24)).columns - 34))
    for run, records in metrics.items():
        print(written(run))
        for title, key in (("loss", "loss"), ("rate", "learning_rate"), ("gradient", "gradient_norm")):
            curve = [record[key] for record in records if key in record]
            ends = f" {curve[0]:.3g} to {curve[-1]:.3g}" if curve else "no steps yet"
            print(written(row(f"  {title}", sparkline(np.array(curve), width) + ends)))
        if lost := folders[run].lost_metrics(records):
            print(written(lost))
    watched = {run: folder.read_watched() for run, folder in folders.items()}
    if path is not None:
        write_atomically(path, training_page(metrics, watched).encode())
        print(written(f"wrote {path}; open it in a browser"))
    if png is not None:
        write_atomically(png, training_png(metrics, watched))
        print(written(f"wrote {png}"))
