"""Named arrays from files of weights, for any model. The name of a file says its form.

model.safetensors, or its .index.json and shards      Hugging Face
pytorch_model.bin, or its .index.json and shards      older Hugging Face; also .pth, and .ckpt of Lightning
model.npz                                             `numpy.savez`
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.json import read_json_file
from nanograd_llm.files.npz import read_npz
from nanograd_llm.files.safetensors import read_safetensors
from nanograd_llm.files.shards import read_shards
from nanograd_llm.files.torch import read_torch

READERS: dict[str, Callable[[Path], dict[str, NDArray[Any]]]] = {
    "safetensors": read_safetensors,
    "sharded safetensors": functools.partial(read_shards, read=read_safetensors),
    "torch": read_torch,
    "sharded torch": functools.partial(read_shards, read=read_torch),
    "numpy": read_npz,
}
FILES = {  # in the order in which a folder is searched, the same as Hugging Face's
    "model.safetensors": "safetensors",
    "model.safetensors.index.json": "sharded safetensors",
    "pytorch_model.bin": "torch",
    "pytorch_model.bin.index.json": "sharded torch",
    "model.npz": "numpy",
}
ADAPTER = "adapter_config.json"  # of an adapter of PEFT
ENDINGS = {name[name.index(".") :]: form for name, form in FILES.items()} | {".pth": "torch", ".ckpt": "torch"}


def form_by_name(path: Path) -> str | None:
    """The form of a file of weights, a key of `READERS`, from the end of its name; None for another name."""
    return next((form for ending, form in ENDINGS.items() if path.name.endswith(ending)), None)


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a file such as config.json. Raises StorageError if it is missing."""
    if not path.exists():
        raise StorageError(f"{path}: no such file; it holds the sizes of the model: put it in the weights' folder")
    return read_json_file(path)


def refuse_adapter(folder: Path) -> None:
    """Raise BadFileError if there is an adapter of peft beside the weights, which would change the model."""
    if (folder / ADAPTER).exists():
        raise BadFileError(
            f"{folder / ADAPTER}: there is an adapter beside the weights; move it into a folder of its "
            "own, and give it to the model with ng.load_lora(model, folder)"
        )
