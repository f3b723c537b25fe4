"""What several commands show: text that is safe for a terminal, counts in words, and that something is under way."""

from __future__ import annotations

import contextlib
import re
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


# What moves the cursor, colours, rings, or turns the direction of writing: control characters but tab and line end.
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""A text from a model or a file as a terminal may get it: a control character becomes its Python escape.

    >>> print(printable("\x1b[31mred"))
    \x1b[31mred
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def written(text: str) -> str:
    """A text for stdout: `printable` on a terminal, and as it is in a file or a pipe."""
    return printable(text) if sys.stdout.isatty() else text


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "token"), counted(2000, "token")
    ('1 token', '2,000 tokens')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
