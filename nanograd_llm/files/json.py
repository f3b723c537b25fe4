"""JSON from files that are not trusted: no duplicate keys, only finite numbers, and a size limit that is checked first.

Python's own reader accepts duplicate keys and takes the last one. It accepts `NaN`, and `1e999` as infinity. It has no
limit on empty lists, each of which takes twenty times the memory of its text.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.atomic import read_bytes
from nanograd_llm.files.mapped import refuse_stand_in
from nanograd_llm.settings import unique_keys

MAX_VALUES = 2**17  # the vocabulary of GPT-2 has 50,257
BYTES_A_VALUE = 32  # the size limit of a file, for each value that it may hold
MAX_BYTES = BYTES_A_VALUE * MAX_VALUES
MAX_DEPTH = 100  # so that an error message can show any part of the object
MAX_ROW_VALUES = 2**24  # of a file of rows, which is data of the user's own


def read_json_file(path: str | os.PathLike[str], *, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """The JSON object in a file. Raises StorageError if it cannot be read, BadFileError as `read_json_object` does."""
    content = read_bytes(path, at_most=BYTES_A_VALUE * max_values)
    return read_json_object(content, str(path), max_values=max_values)


def read_json_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a .json file, which holds a list of them, or of a .jsonl file, which holds one a line.

    Each comes with the words for where it is, "FILE, row 3" or "FILE, line 3". Blank lines are left out.
    Raises as `read_json_file`; for another kind of file, or one without a row, BadFileError.
    """
    kind, content = Path(path).suffix.lower(), read_bytes(path, at_most=BYTES_A_VALUE * MAX_ROW_VALUES)
    content = content.removeprefix(b"\xef\xbb\xbf")
    if kind not in (".json", ".jsonl"):
        raise BadFileError(f"{path}: expected a .json with a list of rows, or a .jsonl with a row on each line")
    if kind == ".jsonl":
        rows = json_lines(content.split(b"\n"), str(path))
    else:
        found = _parsed(content, str(path), MAX_ROW_VALUES)
        if not isinstance(found, list):
            raise BadFileError(f"{path}: expected a list of rows [{{...}}, ...]; found {type(found).__name__}")
        rows = ((where, _object(row, where)) for n, row in enumerate(found, 1) for where in [f"{path}, row {n}"])
    is_empty = True
    for row in rows:
        is_empty = False
        yield row
    if is_empty:
        raise BadFileError(f"{path}: has no row")


def json_lines(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON lines, each with "NAME, line 3"; blank lines are left out. Raises as `read_json_object`."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{name}, line {number}"
            yield where, read_json_object(line, where, max_values=MAX_ROW_VALUES)


def read_json_object(text: bytes, where: str, *, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """Parse UTF-8 `text` as a JSON object. `where` says in errors where it comes from.

    Raises BadFileError if it is not a JSON object, is too large or nested too deeply, has a duplicate key, or a number
    that is not finite or has more than 40 digits.
    """
    return _object(_parsed(text, where, max_values), where)


def _parsed(text: bytes, where: str, max_values: int) -> Any:
    """The value that the JSON holds. Raises BadFileError as `read_json_object`."""
    refuse_stand_in(text[:64], where)
    values = text.count(b",") + text.count(b"[") + text.count(b"{")  # an upper bound of the number of values
    if len(text) > BYTES_A_VALUE * max_values or values > max_values:
        raise BadFileError(
            f"{where}: the JSON is too large: {len(text):,} bytes with up to {values:,} values; "
            f"at most {BYTES_A_VALUE * max_values:,} bytes and {max_values:,} values are read"
        )
    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise BadFileError(f"{where}: the JSON is nested too deeply to be read") from None
    except ValueError as error:  # from json, from UTF-8, and from the functions below
        why = str(error)
        if isinstance(error, json.JSONDecodeError) and error.lineno == 1:  # `where` may have a line of its own
            why = f"{error.msg.removesuffix(' at').removesuffix(' starting')}, at column {error.colno:,}"
        raise BadFileError(f"{where}: not valid JSON: {why:.200}") from None


def _object(found: Any, where: str) -> dict[str, Any]:
    """The value, if it is an object that is not nested too deeply. Raises BadFileError."""
    if not isinstance(found, dict):
        raise BadFileError(f"{where}: expected a JSON object {{...}}; found {type(found).__name__}")
    if _is_deeper(found, MAX_DEPTH):
        raise BadFileError(f"{where}: the JSON is nested too deeply: at most {MAX_DEPTH} levels are read")
    return found


def _is_deeper(value: dict[str, Any] | list[Any], depth: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(part, depth - 1) for part in parts if isinstance(part, (dict, list)))


def _integer(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits:.40} is not a finite number")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
