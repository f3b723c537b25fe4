"""What several commands show: text that is safe for a terminal, rows of names and values, and progress."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator

from nanograd_llm.settings import printable, wrapped

_WORD = re.compile(r"[^\S\n]*(\n|[\u2e80-\uffff]|[^\s\u2e80-\uffff]+(?=[\s\u2e80-\uffff]))")
LINE_EVERY = 10.0  # seconds between the lines of progress where there is no terminal


@contextlib.contextmanager
def waiting(doing: str) -> Iterator[Callable[[str, float], object]]:
    """Show on stderr what is being done while this block runs: on a terminal a bar with the seconds, and those left,
    elsewhere a line now and then.

    Yields a function that takes what is being done now, and the share of it that is done.
    """
    if not sys.stderr.isatty():
        last = time.monotonic()

        def print_line(doing: str, share: float) -> None:
            nonlocal last
            if time.monotonic() - last >= LINE_EVERY:
                last = time.monotonic()
                print(f"{printable(doing)}: {share:.0%}", file=sys.stderr, flush=True)

        yield print_line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    left = TimeRemainingColumn(), TextColumn("left")
    with Progress(*columns, *left, console=Console(stderr=True), transient=True) as bar:
        task, before = bar.add_task(printable(doing), total=None), 0.0

        def update(doing: str, share: float) -> None:
            nonlocal before
            if share < before:  # something else begins; the clock of what is done would stand still
                bar.reset(task, total=None)
            before = share
            bar.update(task, total=1 if share else None, completed=share, description=printable(doing))

        yield update


def keep_bytes_of_stdin() -> None:
    """Let stdin be read as UTF-8, with bytes that are not kept for `piped`, which refuses them."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        with contextlib.suppress(io.UnsupportedOperation):  # the calling program has already read from it
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")


def piped(text: str, name: str = "standard input") -> str:
    """What was read after `keep_bytes_of_stdin`. Raises BadFileError if it is not UTF-8."""
    from nanograd_llm.text.corpora import decoded

    return decoded(text.encode("utf-8", "surrogateescape"), name) if text else ""


def text_or_piped(text: str | None) -> str | None:
    """A text of the command line; what is piped in where that is "-" or not given; None where nothing is piped.

    Raises BadFileError if what is piped in is not UTF-8.
    """
    if text == "-" or (text is None and not sys.stdin.isatty()):
        keep_bytes_of_stdin()
        return piped(sys.stdin.read()).removesuffix("\n")
    if text is not None:
        warn_of_file(text)
    return text


def warn_of_file(text: str) -> None:
    """Warn where a text of the command line is the name of a file."""
    if os.path.isfile(text):
        how = f"to give what is in it, end the command with - < {shlex.quote(text)}"
        warnings.warn(f"{text} is taken as a text, though there is a file of this name; {how}", stacklevel=3)


def written(text: str) -> str:
    """A text for stdout: `printable` if that is a terminal, unchanged if it is a file or a pipe."""
    return printable(text) if sys.stdout.isatty() else text


def folded(text: str) -> str:
    """As `written`, for sentences: on a terminal their lines end between words."""
    return wrapped(printable(text), shutil.get_terminal_size().columns) if sys.stdout.isatty() else text


def write_pieces(pieces: Iterable[str]) -> None:
    """Print a text to stdout while it comes. On a terminal a line ends between words; each is shown when it is whole.

    A word that is longer than a line is cut, and Chinese or Japanese after any character.
    """
    if not sys.stdout.isatty():
        for piece in pieces:
            print(piece, end="", flush=True)
        return
    from rich.cells import cell_len

    width, column, rest = shutil.get_terminal_size().columns, 0, ""

    def write(part: str) -> None:
        nonlocal column
        if 0 < column and column + cell_len(part.rstrip("\n")) > width:
            part, column = f"\n{part.lstrip(' ')}", 0
        print(part, end="", flush=True)
        column = 0 if part.endswith("\n") else column + cell_len(part.lstrip("\n"))

    try:
        for piece in pieces:
            rest += printable(piece)
            while found := _WORD.match(rest):
                write(found[0])
                rest = rest[found.end() :]
            if cell_len(rest) > width:
                write(rest)
                rest, column = "", column % width
    finally:  # also where Ctrl-C ends it
        write(rest)


def row(name: str, value: str) -> str:
    """A line of a name and its value, for stdout; on a terminal it is wrapped, and the value stays in its column."""
    line = f"{name:<11} {value}"
    if not sys.stdout.isatty():
        return line
    import textwrap

    width = max(40, shutil.get_terminal_size().columns - 1)
    return "\n".join(textwrap.wrap(printable(line), width, subsequent_indent=" " * 12, break_on_hyphens=False))
