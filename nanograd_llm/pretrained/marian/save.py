"""`save_marian`: write a translation model as a folder that transformers opens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nanograd_llm.models.encoder_decoder import EncoderDecoder
from nanograd_llm.pretrained.gpt2.tokenizer import OWN
from nanograd_llm.pretrained.marian.names import BIAS, LAYOUT, to_hugging_face
from nanograd_llm.pretrained.saving import stored_arrays, write_folder
from nanograd_llm.settings import require_type
from nanograd_llm.text import Tokenizer


def save_marian(
    model: EncoderDecoder,
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    form: str = "hf",
    beside: Mapping[str, bytes] = {},
) -> list[Path]:
    """Write a model, and its tokenizer if given, into `folder`, which is created if it does not exist.

    form: hf for `MarianMTModel.from_pretrained` of transformers, numpy for `numpy.load`; as for `save_gpt2`. The
        tokenizer is written for nanograd_llm. `load_marian` reads both, with exactly the same numbers.
    beside: contents of files to write as well, by their names.

    Writes all files or none, and returns their paths. Raises ConfigError for a model that is not of Marian's kind, or a
    tokenizer that is larger than the model; StorageError if the folder already holds a model, or writing fails.
    """
    require_type("model", model, EncoderDecoder, "an EncoderDecoder")
    settings = to_hugging_face(model.config)
    stored = stored_arrays(model, LAYOUT)
    stored.setdefault(BIAS, np.zeros(model.config.vocab_size, model.source_table.dtype))
    stored[BIAS] = stored[BIAS][None]
    return write_folder(
        folder, settings, stored, form, tokenizer, lambda tokenizer, at: tokenizer.save(at / OWN), beside
    )
