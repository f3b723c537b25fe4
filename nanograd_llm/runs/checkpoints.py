"""A checkpoint: named arrays and a few strings in one safetensors file, with a checksum.

The file has a SHA-256 of its content, so that a flipped bit is found. Equal contents give equal bytes, so two runs can
be compared with `cmp`. Any reader of safetensors can read the arrays; nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.json import read_json_object
from nanograd_llm.files.safetensors import read_safetensors_with_metadata, stored_bytes, write_safetensors

VERSION = 1


def save_checkpoint(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write `arrays` (any shape, of numbers) and `metadata` to `path` atomically, with no copy in memory.

    Raises DtypeError for an array that is not of numbers, StorageError if it cannot be written; an older one stays.
    """
    header = {"version": VERSION, "sha256": _digest(arrays, metadata), "metadata": dict(metadata)}
    write_safetensors(path, arrays, {"nanograd_llm": json.dumps(header, sort_keys=True)})


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays and the metadata that `save_checkpoint` was given; the arrays are copies and can be written to.

    Raises StorageError if the file cannot be read, and BadFileError if it is cut short, is no safetensors file, was
    not written by `save_checkpoint` of this version, or does not hold what was saved.
    """
    mapped, strings = read_safetensors_with_metadata(path)
    if "nanograd_llm" not in strings:
        raise BadFileError(f"{path}: a safetensors file, but no checkpoint of nanograd_llm: it has no SHA-256")
    header = read_json_object(strings["nanograd_llm"].encode(), f"{path}: the checkpoint's header")
    if header.get("version") != VERSION:
        found = f"{header.get('version')!r:.50}"
        raise BadFileError(f"{path}: checkpoint version {found}; this nanograd_llm reads version {VERSION}")
    metadata = header.get("metadata")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadFileError(f"{path}: the checkpoint's header is damaged: no metadata; use an older one")
    arrays = {name: array.copy() for name, array in mapped.items()}
    if header.get("sha256") != _digest(arrays, metadata):
        raise BadFileError(f"{path}: is damaged: its content does not match its SHA-256; use an older one")
    return arrays, metadata


def _digest(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, dtypes, shapes, bytes and metadata, in the order of the names."""
    import hashlib

    names = sorted(arrays)
    shapes = [(name, arrays[name].dtype.newbyteorder("<").str, arrays[name].shape) for name in names]
    digest = hashlib.sha256(json.dumps([sorted(metadata.items()), shapes]).encode())
    for name in names:
        digest.update(stored_bytes(name, arrays[name]).data)
    return digest.hexdigest()
