"""What several commands show: text that is safe for a terminal, rows of names and values, and progress."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Callable, Iterator

from nanograd_llm.settings import printable


@contextlib.contextmanager
def waiting(title: str, *, lines: bool = False) -> Iterator[Callable[..., object]]:
    """Show on stderr, if it is a terminal, a progress bar with the seconds while this block runs.

    Yields a function that sets the share that is done and, if given, another title.
    lines: where stderr is no terminal, print each new title as a line on stdout; otherwise nothing is shown there.
    """
    if not sys.stderr.isatty():
        titles = {title}

        def print_title(share: float, title: str = title) -> None:
            if lines and title not in titles:
                titles.add(title)
                print(written(title), flush=True)

        yield print_title
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(title), total=None)

        def update(share: float, title: str = title) -> None:
            bar.update(task, total=1 if share else None, completed=share, description=printable(title))

        yield update


def accept_any_input() -> None:
    """Let bytes on stdin that are not UTF-8 become U+FFFD."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        with contextlib.suppress(io.UnsupportedOperation):  # the calling program has already read from it
            sys.stdin.reconfigure(errors="replace")


def written(text: str) -> str:
    """A text for stdout: `printable` if that is a terminal, unchanged if it is a file or a pipe."""
    return printable(text) if sys.stdout.isatty() else text


def row(name: str, value: str) -> str:
    """A line of a name and its value, for stdout; on a terminal it is wrapped, and the value stays in its column."""
    line = f"{name:<11} {value}"
    if not sys.stdout.isatty():
        return line
    import textwrap

    width = max(40, shutil.get_terminal_size().columns - 1)
    return "\n".join(textwrap.wrap(printable(line), width, subsequent_indent=" " * 12, break_on_hyphens=False))
