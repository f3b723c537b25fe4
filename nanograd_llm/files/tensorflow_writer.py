"""A TensorFlow checkpoint written without TensorFlow: the way back of `tensorflow_checkpoint`, which explains the form.

The variables lie in the order of their names, in one file. TensorFlow asks for no more than that the table is sorted
and the checksums are right.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import DtypeError
from nanograd_llm.files.atomic import write_atomically, write_parts
from nanograd_llm.files.crc32c import masked_crc32c
from nanograd_llm.files.leveldb import varint, write_table
from nanograd_llm.files.tensorflow import DTYPES

_LITTLE_ENDIAN_VERSION_1 = b"\x1a\x02\x08\x01"  # version {producer: 1}; the endianness is 0, which is left out
_NUMBERS = {np.dtype(name): number for number, name in reversed(DTYPES.items()) if number not in (14, 17)}


def write_tensorflow(
    folder: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], name: str = "model.ckpt"
) -> None:
    """Write the arrays as a checkpoint `name` with the file `checkpoint` that points to it.

    Raises DtypeError for an array that is not of numbers, StorageError where the disk refuses.
    """
    folder = Path(folder)
    refused = [f"{key} {array.dtype}" for key, array in arrays.items() if array.dtype not in _NUMBERS]
    if refused:
        raise DtypeError(f"{folder}: a checkpoint of TensorFlow is of numbers here; got {', '.join(refused)}")
    ordered = {key: arrays[key] for key in sorted(arrays, key=str.encode)}
    entries, offset = [(b"", b"\x08\x01" + _LITTLE_ENDIAN_VERSION_1)], 0  # num_shards: 1
    for key, array in ordered.items():
        data = _bytes(array)
        shape = b"".join(_field(2, _number(1, size)) for size in array.shape)
        entry = _number(1, _NUMBERS[array.dtype]) + _field(2, shape) + _number(4, offset) + _number(5, len(data))
        entries.append((key.encode(), entry + b"\x35" + masked_crc32c(data).to_bytes(4, "little")))
        offset += len(data)
    write_parts(folder / f"{name}.data-00000-of-00001", (_bytes(x).data for x in ordered.values()), offset)
    write_atomically(folder / f"{name}.index", write_table(entries))
    told = f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'
    write_atomically(folder / "checkpoint", told.encode())


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The array's bytes, little-endian and in C order."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)


def _number(field: int, value: int) -> bytes:
    """A field of a protocol buffer that is a number; one that is 0 is left out."""
    return bytes([field << 3]) + varint(value) if value else b""


def _field(field: int, content: bytes) -> bytes:
    """A field of a protocol buffer that is bytes."""
    return bytes([field << 3 | 2]) + varint(len(content)) + content
