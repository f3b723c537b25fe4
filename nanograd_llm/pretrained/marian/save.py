"""`save_marian`: write a translation model as a folder that transformers opens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from nanograd_llm.errors import ConfigError
from nanograd_llm.models.encoder_decoder import EncoderDecoder
from nanograd_llm.pretrained.gpt2.tokenizer import OWN
from nanograd_llm.pretrained.marian.names import BIAS, FIXED, HUGGING_FACE, LAYOUT, SAME
from nanograd_llm.pretrained.saving import stored_arrays, write_folder
from nanograd_llm.settings import require_type
from nanograd_llm.text import Tokenizer


def save_marian(
    model: EncoderDecoder, folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None, *, form: str = "hf"
) -> list[Path]:
    """Write a model, and its tokenizer if given, into `folder`, which is created if it does not exist.

    form: hf for `MarianMTModel.from_pretrained` of transformers, numpy for `numpy.load`; as for `save_gpt2`. The
        tokenizer is written for nanograd_llm. `load_marian` reads both, with exactly the same numbers.

    Writes all files or none, and returns their paths. Raises ConfigError for a model that is not of Marian's kind, or a
    tokenizer that is larger than the model; StorageError if the folder already holds a model, or writing fails.
    """
    require_type("model", model, EncoderDecoder, "an EncoderDecoder")
    c = model.config
    wrong = [f"{name} is {getattr(c, name)}, not {value}" for name, value in FIXED.items() if getattr(c, name) != value]
    wrong += ["source and target have two vocabularies"] if c.source_vocab_size else []
    if wrong:
        raise ConfigError(f"transformers' MarianMTModel has no such model: {', '.join(wrong)}")
    depths = {"n_inner": c.n_inner or 4 * c.n_embd, "n_decoder_layer": c.n_decoder_layer or c.n_layer}
    settings: dict[str, Any] = {"model_type": "marian", "architectures": ["MarianMTModel"], **HUGGING_FACE.write(c)}
    settings |= {"encoder_ffn_dim": depths["n_inner"], "decoder_layers": depths["n_decoder_layer"]}
    settings |= {key: settings[other] for key, other in SAME.items()}
    settings |= {"is_encoder_decoder": True, "forced_eos_token_id": c.end_id}
    stored = stored_arrays(model, LAYOUT)
    stored.setdefault(BIAS, np.zeros(c.vocab_size, model.source_table.dtype))
    stored[BIAS] = stored[BIAS][None]
    return write_folder(folder, settings, stored, form, tokenizer, lambda tokenizer, at: tokenizer.save(at / OWN))
