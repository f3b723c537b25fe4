"""A model in several files: an index in JSON names, for each tensor, the file beside it that holds it.

{"metadata": {"total_size": 548090880},
 "weight_map": {"wte.weight": "model-00001-of-00002.safetensors", ...}}
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.json import read_json_file
from nanograd_llm.settings import listed

MAX_SHARDS = 1000
Reader = Callable[[Path], dict[str, NDArray[Any]]]


def read_shards(index_path: str | os.PathLike[str], read: Reader) -> dict[str, NDArray[Any]]:
    """The tensors of every file that the index at `index_path` names, each read by `read`.

    A file lies beside the index, under a plain name, and must hold exactly the tensors that the index places there.

    Raises StorageError for a file that is missing, BadFileError for everything else that is wrong, with its names.
    """
    index = read_json_file(index_path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadFileError(f"{index_path}: weight_map must be an object, from names of tensors to names of files")
    placed: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise BadFileError(f"{index_path}: {name!r:.200} is placed in no file: its entry is not a string")
        placed.setdefault(file, set()).add(name)
    if len(placed) > MAX_SHARDS:
        raise BadFileError(f"{index_path}: names {len(placed):,} files; at most {MAX_SHARDS:,} are read")
    paths = {file: beside(index_path, file) for file in placed}
    missing = [file for file, path in paths.items() if not os.path.exists(path)]
    if missing:
        raise StorageError(f"{index_path}: names files that are not beside it: {listed(missing)}; fetch them too")
    tensors: dict[str, NDArray[Any]] = {}
    for file, path in paths.items():
        found = read(path)
        if found.keys() != placed[file]:
            missing, extra = sorted(placed[file] - found.keys()), sorted(found.keys() - placed[file])
            raise BadFileError(
                f"{path}: holds other tensors than {Path(index_path).name} says; missing: {listed(missing) or 'none'}; "
                f"extra: {listed(extra) or 'none'}"
            )
        tensors |= found
    return tensors


def beside(path: str | os.PathLike[str], name: str) -> Path:
    """The path of the file called `name` beside the file at `path`. Raises BadFileError unless it is a plain name."""
    if name in ("", ".", "..") or set(name) & set("/\\:") or not name.isprintable():
        raise BadFileError(f"{path}: {name!r:.200} is no plain file name; a file here may name its neighbours only")
    return Path(path).with_name(name)
