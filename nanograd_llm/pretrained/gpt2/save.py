"""`save_gpt2`: write a model as a folder that other programs open, with their names, layout and settings."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nanograd_llm.errors import ConfigError, StorageError
from nanograd_llm.files.atomic import storage_errors, write_atomically, written_together
from nanograd_llm.files.npz import write_npz
from nanograd_llm.files.safetensors import write_safetensors
from nanograd_llm.models.gpt import GPT
from nanograd_llm.pretrained.gpt2 import config as gpt2_config
from nanograd_llm.pretrained.gpt2.names import HUGGING_FACE
from nanograd_llm.pretrained.gpt2.source import names_of_a_model
from nanograd_llm.pretrained.gpt2.tokenizer import write_tokenizer
from nanograd_llm.settings import require_choice, require_type
from nanograd_llm.text import Tokenizer

FORMS = ("hf", "numpy")


def save_gpt2(
    model: GPT, folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None, *, form: str = "hf"
) -> list[Path]:
    """Write a model, and its tokenizer if given, into `folder`, which is created if it does not exist.

    form: hf for `GPT2LMHeadModel.from_pretrained` of transformers (config.json, model.safetensors); numpy for
        `numpy.load` (model.npz with Hugging Face's names and layout, config.json). `load_gpt2` reads both, with the
        same bits.

    Writes all files or none, and returns their paths. Raises ConfigError for a tokenizer that is larger than the model;
    StorageError if the folder already holds a model, or writing fails.
    """
    require_choice("form", form, FORMS)
    require_type("model", model, GPT, "a GPT")
    folder = Path(folder)
    c = model.config
    if tokenizer is not None and tokenizer.vocab_size > c.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {c.vocab_size}; give the model's own tokenizer"
        )
    end = None if tokenizer is None else tokenizer.end_of_text
    settings = gpt2_config.to_hugging_face(c)
    settings |= {"bos_token_id": end, "eos_token_id": end, "dtype": model.wte.dtype.name}
    with storage_errors(f"{folder}: cannot read", "choose another folder"):
        held = names_of_a_model(folder, with_tokenizer=tokenizer is not None) if folder.is_dir() else []
    if held:
        raise StorageError(f"{folder}: already holds {held[0]}; choose another folder, or remove it first")
    stored = {_name(name, form): HUGGING_FACE.stored(name, array) for name, array in model.state_dict().items()}
    with written_together(folder) as place:
        write_atomically(place / "config.json", json.dumps(settings, indent=2).encode() + b"\n")
        if tokenizer is not None:
            write_tokenizer(tokenizer, place)
        if form == "hf":
            write_safetensors(place / "model.safetensors", stored, {"format": "pt"})
        else:
            write_npz(place / "model.npz", stored)
        written = sorted(path.name for path in place.iterdir())
    return [folder / name for name in written]


def _name(ours: str, form: str) -> str:
    """The name in the file. In transformers, the part below the head is called `transformer`."""
    name = HUGGING_FACE.name(ours)
    return name if form != "hf" or ours == "head" else f"transformer.{name}"
