"""NumPy's own .npz: a zip file with one .npy for each array, each a short header and then nothing but the numbers."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.atomic import write_parts
from nanograd_llm.files.mapped import array_at, map_file
from nanograd_llm.files.zip import read_zip_records

_LONGEST_HEADER = 4096


def read_npz(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Every array of numbers in a file of `numpy.savez`, by name, read-only and mapped.

    Raises StorageError if the file cannot be read, BadFileError if it is no such file, is compressed or damaged, or
    holds anything but numbers.
    """
    arrays = {}
    for name, record in read_zip_records(map_file(path), str(path)).items():
        where = f"{path}: array {name!r:.200}"
        file = io.BytesIO(record[:_LONGEST_HEADER].tobytes())
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version} of the format; expected 1.0")
            shape, in_columns, dtype = np.lib.format.read_array_header_1_0(file)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise BadFileError(f"{where}: no .npy: {str(error):.200}") from None
        if dtype.kind not in "fiub":
            raise BadFileError(f"{where}: is of {dtype}; only numbers are read")
        array = array_at(record, file.tell(), dtype, shape[::-1] if in_columns else shape, where)
        if file.tell() + array.nbytes != len(record):
            raise BadFileError(f"{where}: {dtype} {list(shape)} takes {array.nbytes:,} bytes; the file has others")
        arrays[name.removesuffix(".npy")] = array.T if in_columns else array
    return arrays


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the arrays for `read_npz` and `numpy.load`, whole or not at all. Raises StorageError."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    content = file.getbuffer()
    write_parts(path, [content], len(content))
