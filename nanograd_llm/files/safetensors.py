"""Safetensors: a JSON header that says where each tensor lies, then nothing but the tensors.

    0           8                8 + N                                              end of file
    | N, uint64 | header, N bytes | tensor | tensor | tensor | ...                         |
                  {"wte.weight": {"dtype": "F32", "shape": [50257, 768], "data_offsets": [0, 154389504]},
                   ..., "__metadata__": {"format": "pt"}}

Numbers are little-endian, arrays in C order, offsets count from the end of the header. The tensors must fill the file
without a hole or an overlap, so a file has one meaning and no hidden part; this reader holds it to that.

The format: github.com/huggingface/safetensors, README.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.json import read_json_object
from nanograd_llm.files.mapped import array_at, bytes_at, count, map_file, unsigned_at, widen_bfloat16
from nanograd_llm.files.shards import read_shards

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # the bits; NumPy has no such type
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Every tensor of a safetensors file under its own name, read-only and mapped; bfloat16 comes as float32.

    Raises StorageError if the file cannot be read, BadFileError if it is not exactly what the format prescribes.
    """
    data = map_file(path)
    size = unsigned_at(data, 0, 8, f"{path}: the length of the header")
    text = bytes_at(data, 8, size, f"{path}: the header")
    if not text.startswith(b"{"):
        raise BadFileError(f"{path}: no safetensors file: its header begins with {text[:8]!r}, not with '{{'")
    header = read_json_object(text, f"{path}: the header")
    _check_metadata(header.pop("__metadata__", {}), f"{path}: __metadata__")
    return _tensors(header, data[8 + size :], path)


def read_sharded_safetensors(index_path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Every tensor of the files that `model.safetensors.index.json` names. Raises as `shards.read_shards` does."""
    return read_shards(index_path, read_safetensors)


def _tensors(header: dict[str, Any], data: NDArray[np.uint8], path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    spans = []
    for name, entry in header.items():
        where = f"{path}: tensor {name!r:.200}"
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise BadFileError(f"{where}: its entry must hold dtype, shape and data_offsets, and nothing else")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise BadFileError(f"{where}: dtype {str(dtype)!r:.50} is not one of {', '.join(DTYPES)}")
        if not isinstance(shape, list) or not isinstance(offsets, list):
            raise BadFileError(f"{where}: shape and data_offsets must be lists of integers")
        if len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
            raise BadFileError(f"{where}: data_offsets must be two integers, begin and end")
        begin, end = offsets
        size = count(shape, where) * np.dtype(DTYPES[dtype]).itemsize
        if end - begin != size:
            raise BadFileError(f"{where}: {dtype} {shape} takes {size:,} bytes; data_offsets give {end - begin:,}")
        spans.append((begin, end, name))
        tensors[name] = array_at(data, begin, DTYPES[dtype], shape, where)
    _check_that_they_fill(spans, len(data), path)
    return {
        name: widen_bfloat16(array) if header[name]["dtype"] == "BF16" else array for name, array in tensors.items()
    }


def _check_that_they_fill(spans: list[tuple[int, int, str]], size: int, path: str | os.PathLike[str]) -> None:
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            fault = "overlaps the tensor before it" if begin < reached else "leaves a hole before it"
            raise BadFileError(f"{path}: tensor {name!r:.200} {fault}: it begins at {begin:,}, not {reached:,}")
        reached = end
    if reached != size:
        raise BadFileError(f"{path}: the tensors end at {reached:,}, the file's data at {size:,}; both must be one")


def _check_metadata(metadata: Any, where: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadFileError(f"{where}: must be an object of strings")
