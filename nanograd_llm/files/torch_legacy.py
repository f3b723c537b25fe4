"""What torch.save wrote before 1.6: five pickles in a row, then the bytes of every storage.

    a magic number, 1001, {"little_endian": True, ...}      a pickle each
    the structure                                           as in a zip file: `tensor_pickle` reads it
    ["94101", "94102", ...]                                 the keys of the storages, in the order in which they follow
    of each storage: the number of its elements, int64; then the elements

The type of a storage is in the structure alone, so that is read twice: once to learn how long each storage is, and
again when they are found. The elements lie anywhere, so they are copied to where a processor reads them fast.

The layout: _legacy_save in torch/serialization.py of PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.mapped import bytes_at
from nanograd_llm.files.tensor_pickle import MAX_PICKLE, pickle_size, read_tensor_pickle

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_torch_legacy(data: NDArray[np.uint8], where: str) -> Any:
    """The object in the bytes of such a file; see `torch.read_torch_object`. Raises BadFileError if it is damaged."""
    programs, place = [], 0
    for part in ("the magic number", "the version", "the system", "the structure", "the keys"):
        programs.append(_pickle_at(data, place, f"{where}: {part}"))
        place += len(programs[-1])
        if len(programs) == 1 and _plain(programs[0], where) != MAGIC:
            raise BadFileError(f"{where}: a bare pickle, which torch.save did not write; save a state_dict with torch")
    version, system, keys = (_plain(programs[part], where) for part in (1, 2, 4))
    if version != PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise BadFileError(
            f"{where}: not of version {PROTOCOL}, or its numbers are big-endian; load it with torch and save it "
            "again on a little-endian machine"
        )
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len({*keys}) != len(keys):
        raise BadFileError(f"{where}: its keys are not a list of different strings; the file is damaged")
    structure, part = programs[3], f"{where}: the structure"
    sizes = _sizes(structure, len(data), part)
    if sizes.keys() != {*keys}:
        raise BadFileError(f"{where}: the keys of its storages are not those of its structure; the file is damaged")
    storages = {}
    for key in keys:
        elements = int.from_bytes(bytes_at(data, place, 8, where), "little", signed=True)
        expected, size = sizes[key]
        if elements != expected:
            raise BadFileError(
                f"{where}: storage {key!r:.50} has {elements:,} elements, but {expected:,} by the structure"
            )
        storages[key] = np.frombuffer(bytes_at(data, place + 8, size, where), np.uint8)
        place += 8 + size
    if place != len(data):
        raise BadFileError(f"{where}: ends with {len(data) - place:,} bytes left over; the file is damaged")
    return read_tensor_pickle(structure, lambda key, *_: storages[key], part)


def _sizes(structure: bytes, limit: int, where: str) -> dict[str, tuple[int, int]]:
    """How many elements and how many bytes each storage has that the structure names; together at most `limit`."""
    sizes: dict[str, tuple[int, int]] = {}
    left = limit

    def note(key: str, elements: int, size: int) -> NDArray[np.uint8]:
        nonlocal left
        if key in sizes:  # it is asked for once for each type
            raise BadFileError(f"{where}: storage {key!r:.50} has two types; the file is damaged")
        sizes[key] = elements, size
        left -= size
        if left < 0:
            raise BadFileError(f"{where}: its storages are larger than the file, which is cut short or damaged")
        return np.zeros(size, np.uint8)

    read_tensor_pickle(structure, note, where)
    return sizes


def _pickle_at(data: NDArray[np.uint8], place: int, where: str) -> bytes:
    program = data[place : place + MAX_PICKLE].tobytes()
    return program[: pickle_size(program, where)]


def _plain(program: bytes, where: str) -> Any:
    return read_tensor_pickle(program, lambda *_: None, where)
