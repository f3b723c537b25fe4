"""A pretrained model that was found at a path or by a name: what every kind of model does with its files."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar, Generic, NamedTuple

from numpy.typing import DTypeLike, NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.pretrained.gpt2.source import find_source
from nanograd_llm.pretrained.layout import Layout, fill
from nanograd_llm.pretrained.opened import OpenedModel, require_fitting, require_plausible, weights_dtype
from nanograd_llm.pretrained.weights import READERS, read_settings
from nanograd_llm.text import GPT2Tokenizer, Tokenizer, WordPieceTokenizer
from nanograd_llm.text.template import template_files


class Parts(NamedTuple):
    """The content of a model's files. arrays: by the names of `layout`. biases: whether the model has them."""

    config: Any
    arrays: dict[str, NDArray[Any]]
    layout: Layout
    biases: bool = True


class Found(ABC, Generic[OpenedModel]):
    """A pretrained model that was found: see `Opened`. A subclass reads the files of its kind.

    source: as for `load_gpt2`. settings: of config.json, if they are known.
    Raises StorageError if nothing is there, BadFileError if it is not a model, or in a form that this kind has not.
    """

    model_class: ClassVar[Any]
    task_name: Any  # see `Opened`
    forms: ClassVar[Collection[str]] = READERS
    step: int | None = None  # not known from such files

    def __init__(self, source: str | os.PathLike[str], settings: dict[str, Any] | None = None):
        self.source = os.fspath(source) if isinstance(source, os.PathLike) else source
        self.form, self.path = find_source(source)
        self.folder = self.path.parent
        if settings is not None:
            self.settings = settings
        if self.form not in self.forms:
            name = self.model_class.__name__
            raise BadFileError(f"{self.path}: has the form {self.form}, in which there is no {name}; see load_gpt2")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r})"

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The content of config.json."""
        return read_settings(self.folder / "config.json")

    @property
    def beside(self) -> dict[str, bytes]:
        """See `Opened.beside`: the template of a model that answers."""
        return template_files(self.folder)

    @abstractmethod
    def read(self) -> Parts:
        """Read the files of the model."""

    @abstractmethod
    def read_tokenizer(self) -> Tokenizer:
        """The tokenizer of the files beside the weights. Raises BadFileError where there is none."""

    @functools.cached_property
    def _parts(self) -> Parts:
        if self.path.is_file() and self.path.stat().st_size == 0:
            raise BadFileError(f"{self.path}: is empty; fetch it again")
        return self.read()

    @functools.cached_property
    def config(self) -> Any:
        """The sizes of the model, and the parts that its file has. Raises as `model` does."""
        return self._parts.config

    def model(self, *, dtype: DTypeLike = "float32", strict: bool = False, merged: bool = True) -> OpenedModel:
        """The model in evaluation mode, as `Opened.model` and `load_gpt2` say; such files have no adapters to merge."""
        dtype, where = weights_dtype(dtype), str(self.path)
        (_, arrays, layout, biases), config = self._parts, self.config
        del self._parts  # otherwise weights that are converted or trained would be in memory twice
        require_plausible(config, arrays, where)
        model: OpenedModel = self.model_class(config, seed=None)
        return fill(model, arrays, layout, where, dtype=dtype, strict=strict, biases=biases)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model. If the model's vocabulary is padded, the last ids decode to nothing.

        Raises BadFileError if there is none, or it does not fit the model.
        """
        return self._tokenizer

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer, vocab_size = self.read_tokenizer(), self.config.vocab_size
        if isinstance(tokenizer, (GPT2Tokenizer, WordPieceTokenizer)) and tokenizer.vocab_size < vocab_size:
            tokenizer = tokenizer.changed(vocab_size=vocab_size)
        require_fitting(tokenizer, vocab_size, str(self.folder))
        return tokenizer
