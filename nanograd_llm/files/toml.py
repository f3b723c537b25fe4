"""Settings in TOML: tables of numbers, strings, lists of strings, true and false.

The size of a file is checked before it is parsed: the time and memory of Python's parser grow with the square of the
number of parts in a dotted name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.atomic import write_atomically
from nanograd_llm.files.mapped import map_file
from nanograd_llm.settings import MAX_SEED, shown

MAX_BYTES = 2**16
MAX_DOTS = 200  # in one line; a number has one, a path has a few


def read_toml(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """The tables of the file.

    Raises StorageError if it cannot be read; BadFileError if it is not TOML, is too long, or has a setting outside a
    table or one that is not a string, a list of strings, a number of 64 bits, true or false.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    data = map_file(path)[: MAX_BYTES + 1].tobytes()
    if len(data) > MAX_BYTES:
        raise BadFileError(f"{path}: is not a settings file: it has more than {MAX_BYTES:,} bytes")
    if max(line.count(b".") for line in data.split(b"\n")) > MAX_DOTS:
        raise BadFileError(f"{path}: is not a settings file: a line has more than {MAX_DOTS} dots")
    try:
        tables = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number too long, nested too deeply
        raise BadFileError(
            f"{path}: is not valid TOML: {str(error):.150}; correct that place, or bring the file back"
        ) from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise BadFileError(
                f"{path}: {name!r:.100} is {shown(table)}; expected a table: put it under a line such as [model]"
            )
        for key, value in table.items():
            is_long = isinstance(value, int) and not -MAX_SEED <= value <= MAX_SEED
            is_list = isinstance(value, list) and value and all(isinstance(one, str) for one in value)
            if is_long or not (is_list or isinstance(value, (str, int, float))):
                raise BadFileError(
                    f"{path}: {key!r:.100} is {shown(value)}; "
                    "expected a string, a list of strings, a number of 64 bits, true or false"
                )
    return tables


def write_toml(path: str | os.PathLike[str], tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Write tables of settings. A setting that is None is left out, since TOML has no such value."""
    import tomli_w

    plain = {  # NumPy's numbers as Python's
        name: {k: v.item() if isinstance(v, np.generic) else v for k, v in table.items() if v is not None}
        for name, table in tables.items()
    }
    write_atomically(path, tomli_w.dumps(plain).encode())
