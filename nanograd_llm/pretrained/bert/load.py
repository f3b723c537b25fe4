"""`load_bert`: load a pretrained BERT, with the parts that its file has."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.models.bert import BERT, BERTConfig
from nanograd_llm.models.heads import Classifier, SentenceEncoder
from nanograd_llm.nn.layers import Linear
from nanograd_llm.pretrained.bert.config import HUGGING_FACE
from nanograd_llm.pretrained.bert.names import HEAD, LAYOUT, plain_arrays
from nanograd_llm.pretrained.bert.sentences import sentence_settings
from nanograd_llm.pretrained.bert.tokenizer import read_tokenizer
from nanograd_llm.pretrained.gpt2.source import find_source
from nanograd_llm.pretrained.layout import Layout, fill
from nanograd_llm.pretrained.opened import require_fitting, require_plausible, weights_dtype
from nanograd_llm.pretrained.weights import READERS, read_settings, refuse_adapter
from nanograd_llm.text import Tokenizer


def load_bert(source: str | os.PathLike[str], *, dtype: DTypeLike = "float32", strict: bool = False) -> BERT:
    """A pretrained BERT in evaluation mode; `model.hidden(ids, lengths=...)` takes an array of ids (B, T).

    source: a folder or file of transformers (safetensors, pytorch_model.bin, also from before torch 1.6, whole or in
        shards), or one that `save_bert` wrote; or a name, as for `load_gpt2`.
    dtype: float32 or float64. Weights of this dtype are mapped, read-only and not copied, but for queries, keys and
        values, which lie side by side here; others are converted.
    strict: refuse weights that are not finite; otherwise a warning names them.

    The model has a pooler, and a head that fills in words, if the file has them. Raises BadFileError, which lists every
    name that is missing, extra, or of a wrong shape or type, or names a setting that is not supported; StorageError if
    nothing is there, or it cannot be read.
    """
    return OpenedBERT(source).model(dtype=dtype, strict=strict)


CLASSES = Layout(
    "transformers", {"weight": "classifier.weight", "bias": "classifier.bias"}, "out, in", turned=("weight",)
)


class OpenedBERT:
    """A pretrained BERT that was found: see `Opened`. source: as for `load_bert`. settings: of config.json, if known.

    Raises StorageError if nothing is there, BadFileError if it is not a model.
    """

    model_class = BERT
    step: int | None = None  # not known from such files

    def __init__(self, source: str | os.PathLike[str], settings: dict[str, Any] | None = None):
        self.source = os.fspath(source) if isinstance(source, os.PathLike) else source
        self.form, self.path = find_source(source)
        self.folder = self.path.parent
        if settings is not None:
            self._settings = settings
        if self.form not in READERS:
            raise BadFileError(f"{self.path}: has the form {self.form}, in which there is no BERT; see load_gpt2")

    @functools.cached_property
    def _settings(self) -> dict[str, Any]:
        return read_settings(self.folder / "config.json")

    @functools.cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return READERS[self.form](self.path)

    @functools.cached_property
    def _plain(self) -> dict[str, NDArray[Any]]:
        return plain_arrays(self._arrays, str(self.path))

    @functools.cached_property
    def config(self) -> BERTConfig:
        """The sizes of the model, and the parts that its file has. Raises as `load_bert` does."""
        refuse_adapter(self.folder)
        config = HUGGING_FACE.read(self._settings, str(self.folder / "config.json"))
        has_head, has_pooler = any(name.startswith(HEAD) for name in self._plain), "pooler.dense.weight" in self._plain
        return dataclasses.replace(config, masked_word_head=has_head, pooler=has_pooler)

    def model(self, *, dtype: DTypeLike = "float32", strict: bool = False) -> BERT:
        """The model in evaluation mode; see `load_bert`."""
        dtype, where = weights_dtype(dtype), str(self.path)
        config, arrays = self.config, self._plain
        del self._arrays, self._plain  # otherwise weights that are converted or trained would be in memory twice
        require_plausible(config, arrays, where)
        return fill(BERT(config, seed=None), arrays, LAYOUT, where, dtype=dtype, strict=strict)

    def classifier(self, *, dtype: DTypeLike = "float32", strict: bool = False) -> Classifier:
        """The model with the classes of BertForSequenceClassification. Raises BadFileError if the file has none."""
        found = {name: x for name, x in self._arrays.items() if name.startswith("classifier.")}
        classes = np.size(found.get("classifier.bias", ()))
        if not classes:
            raise BadFileError(f"{self.path}: has no classifier.weight and classifier.bias")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*left out.*'classifier")
            model = Classifier(self.model(dtype=dtype, strict=strict), classes, pooling="pooled")
        head, where = Linear(self.config.n_embd, classes), str(self.path)
        model.classes = fill(head, found, CLASSES, where, dtype=weights_dtype(dtype), strict=strict)
        return model

    def sentence_encoder(self, *, dtype: DTypeLike = "float32", strict: bool = False) -> SentenceEncoder:
        """The model with the pooling and the normalising of sentence-transformers; see `sentence_settings`."""
        settings = sentence_settings(self.folder)
        return SentenceEncoder(self.model(dtype=dtype, strict=strict), **settings)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the files beside the weights.

        Raises BadFileError if there is none, or it does not fit the model.
        """
        return self._tokenizer

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = read_tokenizer(self.folder)
        if tokenizer is None:
            raise BadFileError(f"{self.folder}: has no tokenizer, such as vocab.txt or tokenizer.json")
        require_fitting(tokenizer, self.config.vocab_size, str(self.folder))
        return tokenizer
