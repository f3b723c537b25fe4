"""Files of torch.save, read without torch: a zip file of one small pickle and the bytes of every storage.

    model/data.pkl         the structure, and the place of each tensor in its storage: `tensor_pickle` reads it
    model/data/0           the bytes of storage "0", and so on
    model/byteorder        "little"
    model/version ...      not needed

The records are slices of the mapped file, so tensors are views of it. Files from before 1.6 have another layout, which
`torch_legacy` reads.

The layout: torch/serialization.py in PyTorch, since 1.6.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.mapped import map_file
from nanograd_llm.files.tensor_pickle import MAX_PICKLE, read_tensor_pickle
from nanograd_llm.files.torch_legacy import read_torch_legacy
from nanograd_llm.files.zip import read_zip_records
from nanograd_llm.settings import listed

NESTED = ("state_dict", "model_state_dict", "model", "module")  # keys of a checkpoint that may hold the state_dict
_SAVE_AGAIN = "load it once with torch and save it again: torch.save(torch.load(path, weights_only=True), path)"


def read_torch(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Every tensor of a state_dict that torch.save wrote, by name, read-only; bfloat16 comes as float32.

    The state_dict may be part of a checkpoint, such as {"state_dict": ..., "epoch": 3}; a warning lists the other keys.
    Raises StorageError if the file cannot be read, BadFileError if it is damaged or holds no tensors by name.
    """
    found = read_torch_object(path)
    key = next((key for key in NESTED if isinstance(found, dict) and isinstance(found.get(key), dict)), None)
    if key is not None:
        others = [other for other in found if other != key]
        if others:
            warnings.warn(f"{path}: left out, not part of {key!r}: {listed(others)}", stacklevel=2)
        found = found[key]
    require_tensors(found, str(path))
    return found


def require_tensors(found: Any, where: str) -> None:
    """Raise BadFileError unless `found` is a dict of tensors by name."""
    if not isinstance(found, dict):
        raise BadFileError(f"{where}: holds a {type(found).__name__}; expected a state_dict, which is tensors by name")
    others = [name for name, x in found.items() if not isinstance(name, str) or not isinstance(x, np.ndarray)]
    if others:
        raise BadFileError(
            f"{where}: these are not tensors: {listed(others)}; expected a state_dict, as from "
            "torch.save(model.state_dict(), path)"
        )


def read_torch_object(path: str | os.PathLike[str]) -> Any:
    """The object that torch.save wrote: dicts, lists, tuples, strings, numbers, and tensors as read-only arrays.

    A list or dict may be in several places, and may even contain itself. Raises as `read_torch` does.
    """
    data = map_file(path)
    begin = data[:4].tobytes()
    if data[257:262].tobytes() == b"ustar":
        raise BadFileError(f"{path}: is a tar file, which the first versions of torch wrote; {_SAVE_AGAIN}")
    if begin[:1] == b"\x80":
        return read_torch_legacy(data, str(path))
    if begin != b"PK\3\4":
        raise BadFileError(f"{path}: was not written by torch.save: it begins with {begin!r}, which is not a zip file")
    records = read_zip_records(data, str(path))
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise BadFileError(
            f"{path}: is a zip file that torch.save did not write: it holds {len(pickles)} data.pkl, not one"
        )
    root = pickles[0].removesuffix("data.pkl")
    order = records.get(f"{root}byteorder")
    if order is not None and order.tobytes() != b"little":
        raise BadFileError(f"{path}: its numbers are big-endian; {_SAVE_AGAIN} on a little-endian machine")
    if f"{root}constants.pkl" in records:
        raise BadFileError(f"{path}: is TorchScript, a program with its weights; save only its state_dict")
    program = records[pickles[0]]
    if len(program) > MAX_PICKLE:
        raise BadFileError(f"{path}: data.pkl has {len(program):,} bytes; at most {MAX_PICKLE:,} are read")
    prefix = f"{root}data/"
    storages = {name.removeprefix(prefix): record for name, record in records.items() if name.startswith(prefix)}
    return read_tensor_pickle(program.tobytes(), lambda key, *_: storages.get(key), f"{path}: data.pkl")
