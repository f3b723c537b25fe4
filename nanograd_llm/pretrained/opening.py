"""A pretrained model of any kind: `open_pretrained` finds it, by its config.json; `save_pretrained` writes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanograd_llm.models import BERT, GPT, EncoderDecoder
from nanograd_llm.nn.module import Module
from nanograd_llm.pretrained.bert.load import OpenedBERT
from nanograd_llm.pretrained.bert.save import save_bert
from nanograd_llm.pretrained.gpt2.load import OpenedGPT2
from nanograd_llm.pretrained.gpt2.save import save_gpt2
from nanograd_llm.pretrained.gpt2.source import find_source
from nanograd_llm.pretrained.marian.load import OpenedMarian
from nanograd_llm.pretrained.marian.save import save_marian
from nanograd_llm.pretrained.opened import Opened
from nanograd_llm.pretrained.weights import READERS, read_settings
from nanograd_llm.settings import require_type
from nanograd_llm.text import Tokenizer

KINDS: dict[str, Any] = {"gpt2": OpenedGPT2, "bert": OpenedBERT, "marian": OpenedMarian}  # by model_type
SAVERS: dict[type[Module], Any] = {GPT: save_gpt2, BERT: save_bert, EncoderDecoder: save_marian}


def open_pretrained(source: str | os.PathLike[str]) -> Opened[Any]:
    """The pretrained model at a path, or of a name; see `load_gpt2`, `load_bert`, `load_marian`.

    Raises StorageError if nothing is there, BadFileError if it is not a model.
    """
    form, weights = find_source(source)
    config = weights.parent / "config.json"
    settings = read_settings(config) if form in READERS and config.exists() else None
    if settings is None:
        return KINDS["gpt2"](source)
    # files of before 2020 do not name the kind; type_vocab_size is a setting of BERT
    kind = settings.get("model_type") or ("bert" if "type_vocab_size" in settings else "gpt2")
    return KINDS.get(str(kind), OpenedGPT2)(source, settings)  # which refuses another kind by its name


def save_pretrained(
    model: Module,
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    form: str = "hf",
    beside: Mapping[str, bytes] = {},
) -> list[Path]:
    """Write a model into `folder`, for transformers or NumPy; see `save_gpt2`, `save_bert` and `save_marian`.

    beside: contents of files to write as well, by their names, which `open_model` gives as `beside`.
    """
    expected = "a GPT, a BERT or an EncoderDecoder (a classifier is used from its run folder)"
    require_type("model", model, tuple(SAVERS), expected)
    saver = next(saver for kind, saver in SAVERS.items() if isinstance(model, kind))
    saved: list[Path] = saver(model, folder, tokenizer, form=form, beside=beside)
    return saved
