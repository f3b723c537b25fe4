"""Tables of text from files that are not trusted: .csv and .tsv."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from nanograd_llm.errors import BadFileError
from nanograd_llm.settings import counted

MOST = 2**24  # characters of a cell


def csv_rows(lines: Iterable[str], name: str, *, tabs: bool = False) -> Iterator[tuple[str, list[str]]]:
    """The header of a table, then its rows, each with "NAME, line 3", where it begins; blank lines are left out.

    lines: each with its end. tabs: are there tabs between the columns, and no quotes?
    Raises BadFileError, with the place, for another sign between the columns, and a row that does not fit the header.
    """
    rows = csv.reader(lines, strict=True)
    if tabs:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    line = 1  # where the row begins; quotes may hold ends of lines
    try:
        header = [column.strip() for column in _next(rows) or []]
        between = next((sign for sign in ";\t|," if len(header) == 1 and sign in header[0]), "")
        if between:
            expected = "a tab" if tabs else "a comma; name it .tsv" if between == "\t" else "a comma"
            raise BadFileError(f"{name}: has {between!r} between its columns; expected {expected}; save it so")
        yield name, header
        line = rows.line_num + 1
        while (row := _next(rows)) is not None:
            if row and len(row) != len(header):
                raise BadFileError(
                    f"{name}, line {line}: has {counted(len(row), 'column')}, and the header "
                    f"{len(header)}; " + ("a text has no tab" if tabs else "put a text that holds a comma in quotes")
                )
            if row:
                yield f"{name}, line {line}", row
            line = rows.line_num + 1
    except csv.Error as error:
        end = rows.line_num
        of = f"; the row goes on to line {end:,}, so a quote may not be closed" if end > line else ""
        raise BadFileError(
            f"{name}, line {line}: {error}{of}; close each quote, and write a quote inside a text twice"
        ) from error


def _next(rows: Iterator[list[str]]) -> list[str] | None:
    """The next row, with cells of up to MOST characters; None at the end. Python's limit is one for all readers."""
    before = csv.field_size_limit(MOST)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(before)
