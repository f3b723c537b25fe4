"""`load_marian`: load a pretrained translation model of Marian's kind."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
from numpy.typing import DTypeLike

from nanograd_llm.errors import BadFileError
from nanograd_llm.models.encoder_decoder import EncoderDecoder
from nanograd_llm.pretrained.found import Found, Parts
from nanograd_llm.pretrained.gpt2.tokenizer import OWN
from nanograd_llm.pretrained.layout import WRAPPERS
from nanograd_llm.pretrained.marian.names import BIAS, COPIES, FIXED, HUGGING_FACE, LAYOUT, SAME
from nanograd_llm.pretrained.weights import READERS
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


class OpenedMarian(Found[EncoderDecoder]):
    """A pretrained Marian that was found: see `Found`."""

    model_class, task_name = EncoderDecoder, "translation"

    def read(self) -> Parts:
        """The arrays by the names of `LAYOUT`, without copies, and without a bias that is all zeros."""
        settings, where = self.settings, str(self.folder / "config.json")
        config = HUGGING_FACE.read(settings, where)
        for key, other in SAME.items():
            wanted = settings.get(other, HUGGING_FACE.defaults[other])
            if settings.get(key, wanted) not in (wanted, None):
                raise BadFileError(f"{where}: {key} is {settings[key]!r:.50}; expected {wanted!r:.50}, as {other} is")
        arrays = {WRAPPERS.sub("", name): x for name, x in READERS[self.form](self.path).items()}
        plain = {name: x for name, x in arrays.items() if name not in COPIES}
        if COPIES[0] in arrays:  # a file of tensors that share memory may keep either name
            plain.setdefault("model.shared.weight", arrays[COPIES[0]])
        bias = plain.pop(BIAS, np.zeros((1, 0), np.float32))
        if has_bias := bias.ndim == 2 and bool(bias.any()):
            plain[BIAS] = bias[0]
        return Parts(dataclasses.replace(config, **FIXED, head_bias=has_bias), plain, LAYOUT)

    def read_tokenizer(self) -> Tokenizer:
        """The tokenizer that `save_marian` wrote. Raises BadFileError where there is none."""
        if not (self.folder / OWN).exists():
            raise BadFileError(
                f"{self.folder}: has no {OWN}; the files of a SentencePiece tokenizer cannot be read: use ids, with "
                "inference.translate"
            )
        return load_tokenizer(self.folder / OWN)
