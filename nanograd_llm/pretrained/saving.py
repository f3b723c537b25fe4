"""A model as a folder that others open: settings, weights and tokenizer, all there or none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nanograd_llm.errors import ConfigError, StorageError
from nanograd_llm.files.atomic import write_atomically, written_together
from nanograd_llm.files.npz import write_npz
from nanograd_llm.files.safetensors import write_safetensors
from nanograd_llm.nn.module import Module
from nanograd_llm.pretrained.gpt2.source import names_of_a_model
from nanograd_llm.pretrained.layout import Layout
from nanograd_llm.settings import require_choice
from nanograd_llm.text import Tokenizer

FORMS = ("hf", "numpy")
PathLike = str | os.PathLike[str]


def stored_arrays(model: Module, layout: Layout) -> dict[str, NDArray[Any]]:
    """The parameters of a model by the names of a layout, without copies."""
    return {theirs: x for name, array in model.state_dict().items() for theirs, x in layout.stored(name, array).items()}


def write_folder(
    folder: PathLike,
    settings: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    form: str,
    tokenizer: Tokenizer | None,
    write_tokenizer: Callable[[Tokenizer, Path], None],
    beside: Mapping[str, bytes] = {},
) -> list[Path]:
    """Write config.json, the weights, and the tokenizer if there is one; returns the files.

    settings: of config.json, with vocab_size. form: hf for model.safetensors, numpy for model.npz. beside: the contents
    of further files, by their path in the folder.
    Raises ConfigError for another form or a tokenizer that is larger than the vocabulary, StorageError if the folder
    holds a model already, or the disk refuses.
    """
    require_choice("form", form, FORMS)
    folder = Path(folder)
    if tokenizer is not None and tokenizer.vocab_size > settings["vocab_size"]:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {settings['vocab_size']}; give the model's "
            "own tokenizer"
        )
    with written_together(folder) as place:
        if held := names_of_a_model(folder, with_tokenizer=tokenizer is not None) if folder.is_dir() else []:
            raise StorageError(f"{folder}: already holds {held[0]}; choose another folder, or remove it first")
        dtype = next(iter(arrays.values())).dtype.name
        write_atomically(place / "config.json", json.dumps({**settings, "dtype": dtype}, indent=2).encode() + b"\n")
        if tokenizer is not None:
            write_tokenizer(tokenizer, place)
        if form == "hf":
            write_safetensors(place / "model.safetensors", arrays, {"format": "pt"})
        else:
            write_npz(place / "model.npz", arrays)
        for name, content in beside.items():
            (place / name).parent.mkdir(exist_ok=True)
            write_atomically(place / name, content)
        written = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    return [folder / name for name in written]
