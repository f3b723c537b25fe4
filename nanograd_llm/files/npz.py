"""NumPy's .npz: a zip file with one .npy for each array, which is a short header followed by the numbers.

    | "\\x93NUMPY" 1 0 | N, uint16 | header, N bytes | numbers |
                                    {'descr': '<f4', 'fortran_order': False, 'shape': (50257, 768), }

The format: numpy/lib/format.py in NumPy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.atomic import replacing
from nanograd_llm.files.mapped import array_at, bytes_at, map_file
from nanograd_llm.files.zip import read_zip_records

NPY_BEGINS = b"\x93NUMPY\1\0"
_HEADER = re.compile(  # exactly as NumPy writes it
    rb"\{'descr': '([\w<>|]+)', 'fortran_order': (True|False), 'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19})?)\), \} *\n"
)
_DTYPES = {"|b1", "|i1", "|u1", *(order + kind for order in "<>" for kind in "i2 i4 i8 u2 u4 u8 f2 f4 f8".split())}


def read_npz(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Every array in a file of `numpy.savez`, by name, read-only and mapped. Each CRC-32 is checked.

    Raises StorageError if it cannot be read, BadFileError if it is compressed, damaged, or holds more than numbers.
    """
    records = read_zip_records(map_file(path), str(path))
    return {name.removesuffix(".npy"): _array(x, f"{path}: array {name!r:.200}") for name, x in records.items()}


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the arrays for `read_npz` and `numpy.load`, all or nothing. Raises StorageError."""
    with replacing(path) as descriptor, open(descriptor, "wb", closefd=False) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_npy(path: str | os.PathLike[str], array: NDArray[Any]) -> None:
    """Write one array for `numpy.load`, all or nothing. Raises StorageError."""
    with replacing(path) as descriptor, open(descriptor, "wb", closefd=False) as file:
        np.save(file, array)


def _array(record: NDArray[np.uint8], where: str) -> NDArray[Any]:
    size = int.from_bytes(bytes_at(record, 8, 2, where), "little")
    header = _HEADER.fullmatch(bytes_at(record, 10, size, where))
    if bytes_at(record, 0, 8, where) != NPY_BEGINS or not header:
        raise BadFileError(f"{where}: not a .npy of version 1.0, or its header is damaged")
    descr, in_columns = header[1].decode(), header[2] == b"True"
    shape = tuple(int(size) for size in header[3].split(b",") if size.strip())
    if descr not in _DTYPES:
        raise BadFileError(f"{where}: its dtype is {descr}; only numbers can be read")
    array = array_at(record, 10 + size, descr, shape[::-1] if in_columns else shape, where)
    if 10 + size + array.nbytes != len(record):
        raise BadFileError(
            f"{where}: {descr} {shape} takes {array.nbytes:,} bytes; the file has {len(record) - 10 - size:,}"
        )
    return array.T if in_columns else array
