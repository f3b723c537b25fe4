"""`save_gpt2`: write a model as a folder that other programs open, with their names, layout and settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nanograd_llm.models.gpt import GPT
from nanograd_llm.pretrained.gpt2 import config as gpt2_config
from nanograd_llm.pretrained.gpt2.names import HEAD, HUGGING_FACE
from nanograd_llm.pretrained.gpt2.tokenizer import write_tokenizer
from nanograd_llm.pretrained.saving import stored_arrays, write_folder
from nanograd_llm.settings import require_type
from nanograd_llm.text import Tokenizer


def save_gpt2(
    model: GPT,
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    form: str = "hf",
    beside: Mapping[str, bytes] = {},
) -> list[Path]:
    """Write a model, and its tokenizer if given, into `folder`, which is created if it does not exist.

    form: hf for `GPT2LMHeadModel.from_pretrained` of transformers (config.json, model.safetensors); numpy for
        `numpy.load` (model.npz with Hugging Face's names and layout, config.json). `load_gpt2` reads both, with
        exactly the same numbers.
    beside: contents of files to write as well, by their names, such as the template of a model that answers.

    Writes all files or none, and returns their paths. Raises ConfigError for a tokenizer that is larger than the model;
    StorageError if the folder already holds a model, or writing fails.
    """
    require_type("model", model, GPT, "a GPT")
    end = None if tokenizer is None else tokenizer.end_of_text
    settings = gpt2_config.to_hugging_face(model.config) | {"bos_token_id": end, "eos_token_id": end}
    stored = stored_arrays(model, HUGGING_FACE)
    if form == "hf":  # in transformers, the part below the head is called `transformer`
        stored = {name if name == HEAD[1] else f"transformer.{name}": array for name, array in stored.items()}
    return write_folder(folder, settings, stored, form, tokenizer, write_tokenizer, beside)
