"""`load_bert`: load a pretrained BERT, with the parts that its file has."""

from __future__ import annotations

import dataclasses
import os
import warnings

import numpy as np
from numpy.typing import DTypeLike

from nanograd_llm.errors import BadFileError
from nanograd_llm.models.bert import BERT
from nanograd_llm.models.heads import Classifier, SentenceEncoder
from nanograd_llm.nn.layers import Linear
from nanograd_llm.pretrained.bert.config import HUGGING_FACE
from nanograd_llm.pretrained.bert.names import HEAD, LAYOUT, plain_arrays
from nanograd_llm.pretrained.bert.sentences import sentence_files, sentence_settings
from nanograd_llm.pretrained.bert.tokenizer import read_tokenizer
from nanograd_llm.pretrained.found import Found, Parts
from nanograd_llm.pretrained.layout import Layout, fill
from nanograd_llm.pretrained.opened import weights_dtype
from nanograd_llm.pretrained.weights import READERS, refuse_adapter
from nanograd_llm.settings import shown
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


class OpenedBERT(Found[BERT]):
    """A pretrained BERT that was found: see `Found`. It has the parts that its file has."""

    model_class = BERT

    def read(self) -> Parts:
        """The arrays by the names of `LAYOUT`: see `plain_arrays`."""
        refuse_adapter(self.folder)
        config = HUGGING_FACE.read(self.settings, str(self.folder / "config.json"))
        plain = plain_arrays(READERS[self.form](self.path), str(self.path))
        has_head, has_pooler = any(name.startswith(HEAD) for name in plain), "pooler.dense.weight" in plain
        return Parts(dataclasses.replace(config, masked_word_head=has_head, pooler=has_pooler), plain, LAYOUT)

    @property
    def task_name(self) -> str:
        """What the parts in its file are for."""
        if "classifier.bias" in READERS[self.form](self.path):
            return "classification"
        return "masked-words" if self.config.masked_word_head else "similarity"

    def classifier(self, *, dtype: DTypeLike = "float32", strict: bool = False, merged: bool = True) -> Classifier:
        """The model with the classes of BertForSequenceClassification. Raises BadFileError if the file has none."""
        arrays = READERS[self.form](self.path)
        found = {name: x for name, x in arrays.items() if name.startswith("classifier.")}
        classes = np.size(found.get("classifier.bias", ()))
        if not classes:
            raise BadFileError(f"{self.path}: has no classifier.weight and classifier.bias")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*left out.*'classifier")
            encoder = self.model(dtype=dtype, strict=strict)
        if encoder.pooler is None:
            raise BadFileError(f"{self.path}: has no pooler, as every BertForSequenceClassification has")
        model = Classifier.on(encoder, classes, pooling="pooled")
        head, where = Linear(self.config.n_embd, classes), str(self.path)
        model.classes = fill(head, found, CLASSES, where, dtype=weights_dtype(dtype), strict=strict)
        model.fresh = ()
        return model

    def class_names(self, classes: int) -> list[str]:
        """What config.json calls the classes of `classifier`; their numbers where it does not say.

        Raises BadFileError where it does not hold the names by number.
        """
        names = self.settings.get("id2label") or {}
        if not isinstance(names, dict):
            where = self.folder / "config.json"
            raise BadFileError(
                f"{where}: id2label is {shown(names)}; expected an object that names the classes by number"
            )
        return [str(names.get(str(i), i)) for i in range(classes)]

    def sentence_encoder(
        self, *, dtype: DTypeLike = "float32", strict: bool = False, merged: bool = True
    ) -> SentenceEncoder:
        """The model with the pooling and the normalising of sentence-transformers; see `sentence_settings`."""
        settings = sentence_settings(self.folder)
        return SentenceEncoder(self.model(dtype=dtype, strict=strict), **settings)

    @property
    def beside(self) -> dict[str, bytes]:
        """The files of sentence-transformers, which say how the vector of a text is made."""
        return sentence_files(self.folder)

    def read_tokenizer(self) -> Tokenizer:
        """The tokenizer of the files beside the weights. Raises BadFileError where there is none."""
        tokenizer = read_tokenizer(self.folder)
        if tokenizer is None:
            raise BadFileError(f"{self.folder}: has no tokenizer, such as vocab.txt or tokenizer.json")
        return tokenizer
