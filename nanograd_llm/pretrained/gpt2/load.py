"""`load_gpt2`: a pretrained GPT-2 from any form of file, without conversion.

Each form has a reader for its bytes, a table of names and layouts (`names`), and a reader of its sizes (`config`).
This file joins them. Weights that are float32 in the file are mapped into memory, not copied.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.tensor_pickle import Unread
from nanograd_llm.files.tensorflow import read_tensorflow
from nanograd_llm.files.torch import read_torch_object, require_tensors
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.pretrained.found import Found, Parts
from nanograd_llm.pretrained.gpt2 import config as gpt2_config
from nanograd_llm.pretrained.gpt2.llmc import read_llmc
from nanograd_llm.pretrained.gpt2.names import (
    HUGGING_FACE,
    LLMC,
    MASKS,
    NANOGPT,
    OPENAI,
    PARTS,
)
from nanograd_llm.pretrained.gpt2.tokenizer import VOCAB_SIZE, gpt2_tokenizer, read_tokenizer
from nanograd_llm.pretrained.layout import WRAPPERS, warn_left_out
from nanograd_llm.pretrained.weights import READERS, read_settings, refuse_adapter
from nanograd_llm.settings import shown
from nanograd_llm.text import Tokenizer

Arrays = Mapping[str, NDArray[Any]]


def load_gpt2(source: str | os.PathLike[str], *, dtype: DTypeLike = "float32", strict: bool = False) -> GPT:
    """A pretrained GPT-2 in evaluation mode; `model(ids)` takes an array of ids (B, T).

    source: a folder or file of Hugging Face (safetensors, pytorch_model.bin, in one file or in shards), OpenAI
        (TensorFlow), nanoGPT, llm.c or `save_gpt2`; or a name: gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2 or
        any ORG/NAME of Hugging Face, from its cache on this machine, or downloaded with the extra `hub`.
    dtype: float32 or float64. Weights of this dtype are mapped, read-only and not copied; others are converted.
    strict: refuse weights that are not finite; otherwise a warning names them.

    Raises BadFileError, which lists every weight that is missing, extra, or of a wrong shape or dtype, or names a
    setting that this GPT does not support; StorageError if there is no model, or it cannot be read.
    """
    return OpenedGPT2(source).model(dtype=dtype, strict=strict)


class OpenedGPT2(Found[GPT]):
    """A pretrained GPT-2 that was found: see `Found`."""

    model_class, task_name = GPT, "language-model"
    forms = (*READERS, "nanogpt", "openai", "llmc")

    @functools.cached_property
    def config(self) -> GPTConfig:
        """The sizes of the model. Raises as `load_gpt2` does."""
        if self.form in ("nanogpt", "llmc"):  # the sizes are in the file of the weights
            found: GPTConfig = super().config
            return found
        if self.form == "openai":
            path = self.folder / "hparams.json"
            return gpt2_config.from_openai(read_settings(path), str(path))
        refuse_adapter(self.folder)
        return gpt2_config.from_hugging_face(self.settings, str(self.folder / "config.json"))

    def read(self) -> Parts:
        """The content of the files, whatever their form."""
        return _READERS[self.form](self)

    def read_tokenizer(self) -> Tokenizer:
        """The tokenizer from the files beside the weights, or else GPT-2's own: `gpt2_tokenizer`.

        The end-of-text token is the eos_token_id of generation_config.json or config.json, if they have one.
        Raises BadFileError where GPT-2's does not fit, StorageError if it is not available.
        """
        vocab_size, folder = self.config.vocab_size, self.folder
        tokenizer = read_tokenizer(folder)
        if tokenizer is None:
            if not VOCAB_SIZE <= vocab_size < VOCAB_SIZE + 128:
                raise BadFileError(
                    f"{folder}: has no tokenizer, and the model's vocabulary of {vocab_size} is not GPT-2's of "
                    f"{VOCAB_SIZE}; put its vocab.json and merges.txt, or nanoGPT's meta.pkl, there"
                )
            tokenizer = gpt2_tokenizer()
        tokenizer.end_of_text = self._end_of_text(tokenizer)
        return tokenizer

    def _end_of_text(self, tokenizer: Tokenizer) -> int | None:
        if self.form not in READERS:
            return tokenizer.end_of_text
        path = self.folder / "generation_config.json"
        end = read_settings(path).get("eos_token_id") if path.exists() else None
        end = self.settings.get("eos_token_id") if end is None else end
        if isinstance(end, list) and len(end) == 1:
            [end] = end
        if end is not None and (type(end) is not int or end < 0):
            raise BadFileError(f"{self.folder}: eos_token_id is {shown(end)}; only one token can end a text here")
        vocab_size = max(tokenizer.vocab_size, self.config.vocab_size)
        if end is not None and end >= vocab_size:
            message = f"{self.folder}: eos_token_id {end} is not used: the vocabulary has {vocab_size} tokens"
            warnings.warn(message, stacklevel=5)
            end = None
        return tokenizer.end_of_text if end is None else end


def _hugging_face(opened: OpenedGPT2) -> Parts:
    config, arrays = opened.config, READERS[opened.form](opened.path)
    return Parts(config, _without_prefixes(arrays, config.tie_word_embeddings, str(opened.path)), HUGGING_FACE)


def _nanogpt(opened: OpenedGPT2) -> Parts:
    where = str(opened.path)
    checkpoint = read_torch_object(opened.path)
    found = checkpoint if isinstance(checkpoint, dict) else {}
    state, sizes, object_ = found.get("model"), found.get("model_args"), found.get("config")
    if not isinstance(sizes, dict) and isinstance(object_, Unread):
        sizes = object_.fields
    if not isinstance(state, dict) or not isinstance(sizes, dict):
        raise BadFileError(f"{where}: not a checkpoint of nanoGPT, which holds model and model_args")
    require_tensors(state, f"{where}: model")
    config, biases = gpt2_config.from_nanogpt(sizes, f"{where}: model_args")
    return Parts(config, _without_prefixes(state, True, where), NANOGPT, biases)


def _openai(opened: OpenedGPT2) -> Parts:
    arrays = read_tensorflow(opened.path)
    others = [name for name in arrays if not name.startswith("model/") or re.search(r"/Adam(_\d+)?$", name)]
    warn_left_out(others, str(opened.path))
    return Parts(opened.config, {name: x for name, x in arrays.items() if name not in others}, OPENAI)


def _llmc(opened: OpenedGPT2) -> Parts:
    header, stacked = read_llmc(opened.path)
    config = gpt2_config.from_llmc(header, f"{opened.path}: the header")
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in stacked.items():
        if name == "wte":
            arrays[name] = array[: config.vocab_size]  # the rest is padding
        elif name in ("wpe", "lnfw", "lnfb"):
            arrays[name] = array
        else:
            arrays |= {f"{name}[{layer}]": array[layer] for layer in range(config.n_layer)}
    return Parts(config, arrays, LLMC)


_READERS = {**dict.fromkeys(READERS, _hugging_face), "nanogpt": _nanogpt, "openai": _openai, "llmc": _llmc}


def _without_prefixes(arrays: Arrays, tied: bool, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of the language model, without prefixes, masks, other heads, and a head equal to the token table."""
    bare = {name: WRAPPERS.sub("", name) for name in arrays}
    prefix = next((x.removesuffix("wte.weight") for x in bare.values() if f".{x}".endswith(".wte.weight")), "")
    plain: dict[str, NDArray[Any]] = {}
    others = []
    for name, short in bare.items():
        own = re.fullmatch(rf"(?:.*\.)?({PARTS})", short)
        if own:
            short = own[1]
        elif prefix and not short.startswith(prefix):
            others.append(name)  # outside the transformer, so it belongs to another head
            continue
        else:
            short = short.removeprefix(prefix)
        if short in plain:
            raise BadFileError(f"{where}: duplicate weight {short!r:.200}, under two prefixes")
        if not MASKS.fullmatch(short):
            plain[short] = arrays[name]
    warn_left_out(others, where)
    head, table = plain.get("lm_head.weight"), plain.get("wte.weight")
    if tied and head is not None:
        if table is None:
            plain["wte.weight"] = head  # for tensors that share memory, a file may have either name
        elif not np.array_equal(head, table, equal_nan=True):
            warnings.warn(
                f"{where}: lm_head.weight differs from wte.weight, but the config ties them; both use wte.weight",
                stacklevel=2,
            )
        del plain["lm_head.weight"]
    return plain
