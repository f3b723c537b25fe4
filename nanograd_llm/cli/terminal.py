"""What several commands show: counts in words, and that something is under way."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def waiting(title: str, *, lines: bool = False) -> Iterator[Callable[..., object]]:
    """On a terminal, a line on stderr with the seconds; the yielded function gives it a share done, and a title.

    lines: elsewhere, each new title is a line on stdout; otherwise nothing is shown there.
    """
    if not sys.stderr.isatty():
        titles = {title}

        def tell(share: float, title: str = title) -> None:
            if lines and title not in titles:
                titles.add(title)
                print(title, flush=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def show(share: float, title: str = title) -> None:
            bar.update(task, total=1 if share else None, completed=share, description=title)

        yield show


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "token"), counted(2000, "token")
    ('1 token', '2,000 tokens')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
