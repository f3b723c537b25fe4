"""A model in several files: a JSON index gives, for each tensor, the name of the file in the same folder that holds it.

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
    """The tensors of every file that the index at `index_path` names; `read` reads each file.

    The files must be in the folder of the index, and each must hold exactly the tensors that the index says.

    Raises StorageError for a missing file, BadFileError with the names for everything else that is wrong.
    """
    index = read_json_file(index_path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadFileError(f"{index_path}: weight_map must be an object of tensor names and file names")
    placed: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise BadFileError(f"{index_path}: the entry of {name!r:.200} must be a file name, a string")
        placed.setdefault(file, set()).add(name)
    if len(placed) > MAX_SHARDS:
        raise BadFileError(f"{index_path}: names {len(placed):,} files; at most {MAX_SHARDS:,} are read")
    paths = {file: beside(index_path, file) for file in placed}
    missing = [file for file, path in paths.items() if not os.path.exists(path)]
    if missing:
        raise StorageError(f"{index_path}: names files that its folder lacks: {listed(missing)}; fetch them too")
    tensors: dict[str, NDArray[Any]] = {}
    for file, path in paths.items():
        found = read(path)
        if found.keys() != placed[file]:
            missing, extra = sorted(placed[file] - found.keys()), sorted(found.keys() - placed[file])
            raise BadFileError(
                f"{path}: its tensors are not those that {Path(index_path).name} lists; "
                f"missing: {listed(missing) or 'none'}; extra: {listed(extra) or 'none'}"
            )
        tensors |= found
    return tensors


def beside(path: str | os.PathLike[str], name: str) -> Path:
    """The path of the file `name` in the folder of `path`. Raises BadFileError unless it is a plain file name."""
    if name in ("", ".", "..") or set(name) & set("/\\:") or not name.isprintable():
        raise BadFileError(f"{path}: {name!r:.200} is not a plain file name; expected a file in the same folder")
    return Path(path).with_name(name)
