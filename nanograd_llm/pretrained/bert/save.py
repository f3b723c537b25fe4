"""`save_bert`: write a model as a folder that transformers opens, with its names, layout and settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nanograd_llm.models.bert import BERT
from nanograd_llm.pretrained.bert.config import to_hugging_face
from nanograd_llm.pretrained.bert.names import HEAD, LAYOUT
from nanograd_llm.pretrained.bert.tokenizer import write_tokenizer
from nanograd_llm.pretrained.saving import stored_arrays, write_folder
from nanograd_llm.settings import require_type
from nanograd_llm.text import Tokenizer


def save_bert(
    model: BERT,
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    form: str = "hf",
    beside: Mapping[str, bytes] = {},
) -> list[Path]:
    """Write a model, and its tokenizer if given, into `folder`, which is created if it does not exist.

    form: hf for `BertModel.from_pretrained` of transformers, and `BertForMaskedLM` if the model has a head; numpy for
        `numpy.load`; as for `save_gpt2`. `load_bert` reads both, with exactly the same numbers.
    beside: contents of files to write as well, by their names: those of sentence-transformers, which `open_model` gives
        as `beside`.

    Writes all files or none, and returns their paths. Raises ConfigError for a tokenizer that is larger than the model,
    or a model with norm_first; StorageError if the folder already holds a model, or writing fails.
    """
    require_type("model", model, BERT, "a BERT")
    settings, stored = to_hugging_face(model.config), stored_arrays(model, LAYOUT)
    if model.config.masked_word_head:  # in transformers, the part below the head is called `bert`
        stored = {name if name.startswith(HEAD) else f"bert.{name}": array for name, array in stored.items()}
    return write_folder(folder, settings, stored, form, tokenizer, write_tokenizer, beside)
