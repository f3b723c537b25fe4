"""llm.c's model file: a header of 256 integers, then every parameter of GPT-2 one after the other, without names.

    0                  1024
    | 256 × int32      | wte | wpe | ln1w | ln1b | qkvw | ... | lnfw | lnfb |
      0 magic 20240326   a parameter of a block is there once for all L layers: ln1w is (L, C)
      1 version: 3 holds float32, 5 bfloat16
      2 max_seq_len  3 vocab_size  4 num_layers  5 num_heads  6 channels  7 padded_vocab_size

Matrices are stored as PyTorch's Linear keeps them, (out, in). The rows of wte beyond the vocabulary are padding.

The format: github.com/karpathy/llm.c, train_gpt2.py (write_model) and train_gpt2.c (gpt2_build_from_checkpoint).

L layers, T positions, C channels, V padded vocabulary
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.mapped import array_at, count, map_file, widen_bfloat16

MAGIC = 20240326
HEADER = 1024
FIELDS = ("max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size")


def read_llmc(path: str | os.PathLike[str]) -> tuple[dict[str, int], dict[str, NDArray[Any]]]:
    """The header's `FIELDS`, and the parameters under llm.c's names, read-only; bfloat16 comes as float32.

    Raises StorageError if the file cannot be read; BadFileError if its magic number, version or sizes are wrong, or if
    its length does not match its sizes.
    """
    data = map_file(path)
    header = [int(number) for number in array_at(data, 0, "<i4", (256,), f"{path}: the header")]
    if header[0] != MAGIC:
        raise BadFileError(f"{path}: not a model file of llm.c: it begins with {header[0]}, not {MAGIC}")
    if header[1] not in (3, 5):
        raise BadFileError(
            f"{path}: has version {header[1]} of llm.c's format; versions 3 (float32) and 5 (bfloat16) can be read: "
            "write the file again with llm.c's current train_gpt2.py"
        )
    fields = dict(zip(FIELDS, header[2:8]))
    if fields["padded_vocab_size"] < fields["vocab_size"]:
        raise BadFileError(f"{path}: the header: padded_vocab_size is less than vocab_size: {fields}")
    dtype = np.dtype("<f4" if header[1] == 3 else "<u2")
    arrays, offset = {}, HEADER
    for name, shape in _shapes(fields).items():
        where = f"{path}: {name} {list(shape)}"
        array = array_at(data, offset, dtype, shape, where)
        offset += count(shape, where) * dtype.itemsize
        arrays[name] = array
    if offset != len(data):
        raise BadFileError(f"{path}: the sizes in its header need {offset:,} bytes; it has {len(data):,}")
    if header[1] == 5:
        arrays = {name: widen_bfloat16(array) for name, array in arrays.items()}
    return fields, arrays


def _shapes(fields: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters, in the order of the file."""
    V, T, L, C = (fields[name] for name in ("padded_vocab_size", "max_seq_len", "num_layers", "channels"))
    return {
        "wte": (V, C),
        "wpe": (T, C),
        "ln1w": (L, C),
        "ln1b": (L, C),
        "qkvw": (L, 3 * C, C),
        "qkvb": (L, 3 * C),
        "attprojw": (L, C, C),
        "attprojb": (L, C),
        "ln2w": (L, C),
        "ln2b": (L, C),
        "fcw": (L, 4 * C, C),
        "fcb": (L, 4 * C),
        "fcprojw": (L, C, 4 * C),
        "fcprojb": (L, C),
        "lnfw": (C,),
        "lnfb": (C,),
    }
