"""A checkpoint: named arrays and a few strings in one safetensors file that proves its own content.

The file carries a SHA-256 of all that it holds, so a flipped bit is found, not trained on. Equal contents give equal
bytes, so two runs can be compared with `cmp`. Any reader of safetensors opens the arrays; nothing is ever pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError, DtypeError
from nanograd_llm.files.atomic import read_bytes, write_atomically

VERSION = 1
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
DTYPES = ("float64", "float32", "float16", "bool", *_INTEGERS)


def save_checkpoint(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write `arrays` (any shape, the dtypes of `DTYPES`) and `metadata` to `path`, whole or not at all.

    Raises DtypeError for another dtype, StorageError (exit code 4) if the disk refuses; the
    previous file then stays as it was.
    """
    from safetensors.numpy import save

    refused = [f"{name} {array.dtype}" for name, array in arrays.items() if array.dtype.name not in DTYPES]
    if refused:
        raise DtypeError(f"{path}: a checkpoint cannot hold {', '.join(refused)}; it holds {', '.join(DTYPES)}")
    # the format holds little-endian bytes in C order
    plain = {name: np.asarray(array, array.dtype.newbyteorder("<"), order="C") for name, array in arrays.items()}
    proof = {"version": VERSION, "sha256": _digest(plain, metadata), "metadata": dict(metadata)}
    # safetensors writes its own metadata in random order: one entry has only one
    write_atomically(path, save(plain, {"nanograd_llm": json.dumps(proof, sort_keys=True)}))


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays and the metadata that `save_checkpoint` was given; the arrays are fresh and may be written to.

    Raises StorageError if the file cannot be read, and BadFileError if it is cut short, is no safetensors file, was
    not written by `save_checkpoint` of this version, or does not hold what was saved.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = read_bytes(path)
    try:
        arrays = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadFileError(
            f"{path}: {len(data):,} bytes that are no safetensors file, or a damaged one: {error}"
        ) from (error)
    metadata, digest = _proof(path, data)
    if _digest(arrays, metadata) != digest:
        raise BadFileError(f"{path}: its content does not match its SHA-256: the file is damaged; use an older one")
    return arrays, metadata


def _proof(path: str | os.PathLike[str], data: bytes) -> tuple[dict[str, str], str]:
    """The metadata and the SHA-256 that the header of a well-formed safetensors file claims."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    entry = header.get("__metadata__", {}).get("nanograd_llm")
    if entry is None:
        raise BadFileError(f"{path}: a safetensors file, but no checkpoint of nanograd_llm: it carries no SHA-256")
    try:
        proof = json.loads(entry)
        version, digest, metadata = proof["version"], proof["sha256"], dict(proof["metadata"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadFileError(f"{path}: the checkpoint's header is damaged: {error!r}; use an older one") from error
    if version != VERSION:
        raise BadFileError(f"{path}: checkpoint version {version!r}; this nanograd_llm reads version {VERSION}")
    return metadata, digest


def _digest(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, dtypes, shapes, bytes and metadata, in an order that depends on nothing but the names."""
    import hashlib

    names = sorted(arrays)
    shapes = [(name, arrays[name].dtype.str, arrays[name].shape) for name in names]
    digest = hashlib.sha256(json.dumps([sorted(metadata.items()), shapes]).encode())
    for name in names:
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
