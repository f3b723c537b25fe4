"""Safetensors: a JSON header with the offsets of each tensor, followed by the tensors.

    0           8                8 + N                                              end of file
    | N, uint64 | header, N bytes | tensor | tensor | tensor | ...                         |
                  {"wte.weight": {"dtype": "F32", "shape": [50257, 768], "data_offsets": [0, 154389504]},
                   ..., "__metadata__": {"format": "pt"}}

Numbers are little-endian, arrays are in C order, offsets count from the end of the header. The tensors must fill the
file with no gap and no overlap, so that nothing can be hidden in it.

The format: github.com/huggingface/safetensors, README.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError, DtypeError
from nanograd_llm.files.atomic import write_parts
from nanograd_llm.files.json import read_json_object
from nanograd_llm.files.mapped import array_at, bytes_at, check_apart, count, map_file, widen_bfloat16

DTYPES = {  # in the order in which the safetensors library writes tensors: larger alignment first
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "F32": "<f4",
    "U32": "<u4",
    "I32": "<i4",
    "BF16": "<u2",  # the bits; NumPy has no such type
    "F16": "<f2",
    "U16": "<u2",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_WRITTEN = {np.dtype(ours): theirs for theirs, ours in DTYPES.items() if theirs != "BF16"}


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Every tensor of a safetensors file under its own name, read-only and mapped; bfloat16 comes as float32.

    Raises StorageError if the file cannot be read, BadFileError if it does not follow the format exactly.
    """
    return read_safetensors_with_metadata(path)[0]


def read_safetensors_with_metadata(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors, as from `read_safetensors`, and the strings of the file's `__metadata__`."""
    file = map_file(path)
    size = int(array_at(file, 0, "<u8", (), f"{path}: the length of the header"))
    text = bytes_at(file, 8, size, f"{path}: the header")
    if not text.startswith(b"{"):
        raise BadFileError(f"{path}: not a safetensors file: its header begins with {text[:8]!r}, not with '{{'")
    header = read_json_object(text, f"{path}: the header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadFileError(f"{path}: __metadata__ must be an object of strings")

    data = file[8 + size :]
    spans, tensors = [], {}
    for name, entry in header.items():
        begin, end, tensors[name] = _tensor(entry, data, f"{path}: tensor {name!r:.200}")
        spans.append((begin, end, name))
    check_apart(spans, str(path))
    used = sum(end - begin for begin, end, _ in spans)
    if used != len(data):
        raise BadFileError(f"{path}: its tensors take {used:,} of {len(data):,} bytes; they must take all of them")
    # widened last: now all tensors together are known to be no larger than the file
    wide = {name: widen_bfloat16(x) for name, x in tensors.items() if header[name]["dtype"] == "BF16"}
    return tensors | wide, metadata


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write arrays of any shape and layout, all or nothing: the same bytes as the safetensors library writes.

    An array that is not in C order is copied, one at a time. Raises DtypeError for an array that does not hold numbers,
    StorageError if writing fails.
    """
    order = list(_WRITTEN.values())
    stored = {name: (_dtype(name, array), array) for name, array in arrays.items()}
    stored = dict(sorted(stored.items(), key=lambda item: (order.index(item[1][0]), item[0])))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, array) in stored.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the offset of the first tensor is a multiple of 8

    def parts() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for name, (_, array) in stored.items():
            yield stored_bytes(name, array).data

    write_parts(path, parts())


def stored_bytes(name: str, array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of an array as the file holds them, a view if possible. Raises DtypeError if it holds no numbers."""
    _dtype(name, array)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)


def _dtype(name: str, array: NDArray[Any]) -> str:
    """The format's name for the dtype of the array."""
    found = _WRITTEN.get(array.dtype.newbyteorder("<"))
    if found is None:
        raise DtypeError(f"{name} is {array.dtype}; safetensors can hold {', '.join(map(str, _WRITTEN))}")
    return found


def _tensor(entry: Any, data: NDArray[np.uint8], where: str) -> tuple[int, int, NDArray[Any]]:
    """The first byte and the last byte + 1 of a header entry's tensor in `data`, and the tensor (bits if bfloat16)."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadFileError(f"{where}: its entry must have exactly the keys dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadFileError(f"{where}: dtype {dtype!r:.50} is not one of {', '.join(DTYPES)}")
    if not isinstance(shape, list):
        raise BadFileError(f"{where}: its shape must be a list of integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        raise BadFileError(f"{where}: data_offsets must be two integers, begin and end")
    begin, end = offsets
    size = count(shape, where) * np.dtype(DTYPES[dtype]).itemsize
    if end - begin != size:
        raise BadFileError(f"{where}: {dtype} {shape} takes {size:,} bytes; data_offsets give {end - begin:,}")
    return begin, end, array_at(data, begin, DTYPES[dtype], shape, where)
