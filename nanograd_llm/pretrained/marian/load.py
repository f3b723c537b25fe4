"""`load_marian`: load a pretrained translation model of Marian's kind."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from nanograd_llm.pretrained.gpt2.source import find_source
from nanograd_llm.pretrained.gpt2.tokenizer import OWN
from nanograd_llm.pretrained.layout import WRAPPERS, fill
from nanograd_llm.pretrained.marian.names import BIAS, COPIES, FIXED, HUGGING_FACE, LAYOUT, SAME
from nanograd_llm.pretrained.opened import require_fitting, require_plausible, weights_dtype
from nanograd_llm.pretrained.weights import READERS, read_settings
from nanograd_llm.text import Tokenizer, load_tokenizer


def load_marian(
    source: str | os.PathLike[str], *, dtype: DTypeLike = "float32", strict: bool = False
) -> EncoderDecoder:
    """A pretrained translation model in evaluation mode; `inference.translate(model, ids)` takes source ids.

    source: a folder or file of a MarianMTModel of transformers, or one that `save_marian` wrote; or a name, ORG/NAME.
    dtype, strict: as for `load_gpt2`.

    Raises BadFileError, which lists every name that is missing, extra, or of a wrong shape or type, or names a setting
    that is not supported; StorageError if nothing is there, or it cannot be read.
    """
    return OpenedMarian(source).model(dtype=dtype, strict=strict)


class OpenedMarian:
    """A pretrained Marian that was found: see `Opened`. source: as for `load_marian`. settings: of config.json.

    Raises StorageError if nothing is there, BadFileError if it is not a model.
    """

    model_class = EncoderDecoder
    step: int | None = None  # not known from such files

    def __init__(self, source: str | os.PathLike[str], settings: dict[str, Any] | None = None):
        self.source = os.fspath(source) if isinstance(source, os.PathLike) else source
        self.form, self.path = find_source(source)
        if self.form not in READERS:
            raise BadFileError(f"{self.path}: has the form {self.form}, in which there is no Marian")
        self.folder: Path = self.path.parent
        self._settings = read_settings(self.folder / "config.json") if settings is None else settings

    @functools.cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """By the names of `LAYOUT`, without copies, and without a bias that is all zeros."""
        arrays = {WRAPPERS.sub("", name): x for name, x in READERS[self.form](self.path).items()}
        plain = {name: x for name, x in arrays.items() if name not in COPIES}
        if COPIES[0] in arrays:  # a file of tensors that share memory may keep either name
            plain.setdefault("model.shared.weight", arrays[COPIES[0]])
        bias = plain.pop(BIAS, np.zeros((1, 0), np.float32))
        return plain | ({BIAS: bias[0]} if bias.ndim == 2 and bias.any() else {})

    @functools.cached_property
    def config(self) -> EncoderDecoderConfig:
        """The sizes of the model. Raises as `load_marian` does."""
        settings, where = self._settings, str(self.folder / "config.json")
        config = HUGGING_FACE.read(settings, where)
        for key, other in SAME.items():
            wanted = settings.get(other, HUGGING_FACE.defaults[other])
            if settings.get(key, wanted) not in (wanted, None):
                raise BadFileError(f"{where}: {key} is {settings[key]!r:.50}; expected {wanted!r:.50}, as {other} is")
        return dataclasses.replace(config, **FIXED, head_bias=BIAS in self._arrays)

    def model(self, *, dtype: DTypeLike = "float32", strict: bool = False) -> EncoderDecoder:
        """The model in evaluation mode; see `load_marian`."""
        dtype, where = weights_dtype(dtype), str(self.path)
        config, arrays = self.config, self._arrays
        del self._arrays  # otherwise weights that are converted or trained would be in memory twice
        require_plausible(config, arrays, where)
        return fill(EncoderDecoder(config, seed=None), arrays, LAYOUT, where, dtype=dtype, strict=strict)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that `save_marian` wrote. Raises BadFileError where there is none, or of another vocabulary."""
        if not (self.folder / OWN).exists():
            raise BadFileError(
                f"{self.folder}: has no {OWN}; the files of a SentencePiece tokenizer cannot be read: use ids, with "
                "inference.translate"
            )
        tokenizer = load_tokenizer(self.folder / OWN)
        require_fitting(tokenizer, self.config.vocab_size, str(self.folder))
        return tokenizer
