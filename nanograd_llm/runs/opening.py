"""`open_model` opens a run, a checkpoint of a run, or a pretrained model; each file is read when it is first needed."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any, overload

from numpy.typing import DTypeLike

from nanograd_llm.errors import BadFileError, ConfigError, NanogradError, StorageError
from nanograd_llm.models import BERT, GPT
from nanograd_llm.models.heads import Classifier, SentenceEncoder
from nanograd_llm.nn import lora
from nanograd_llm.nn.module import Module
from nanograd_llm.pretrained.bert.load import OpenedBERT
from nanograd_llm.pretrained.opened import (
    Opened,
    OpenedModel,
    require_finite,
    require_fitting,
    require_plausible,
    weights_dtype,
)
from nanograd_llm.pretrained.opening import open_pretrained
from nanograd_llm.runs.folder import RunFolder, run_meant, run_of_checkpoint
from nanograd_llm.runs.tables import check_tables
from nanograd_llm.settings import check_keys, require_type
from nanograd_llm.tasks.registry import DEFAULT, complete_tasks, task_named
from nanograd_llm.tasks.task import Task
from nanograd_llm.text import Tokenizer, load_tokenizer
from nanograd_llm.text.template import template_files
from nanograd_llm.training.trainer import MOMENTS


@overload
def open_model(source: str | os.PathLike[str]) -> Opened[Any]: ...
@overload
def open_model(source: str | os.PathLike[str], kind: type[OpenedModel]) -> Opened[OpenedModel]: ...
def open_model(source: str | os.PathLike[str], kind: type[Module] = Module) -> Opened[Any]:
    """The model at `source`; each file of it is read when it is first needed.

        opened = open_model("runs/nano-1")
        model, tokenizer = opened.model(), opened.tokenizer()

    source: the folder of a run, for its newest checkpoint; the file of an older one; or whatever `load_gpt2` or
        `load_bert` takes: a folder, a file, or a name such as gpt2.
    kind: the class that the model must be of, such as GPT.
    Raises ConfigError if it is of another class or source is empty, StorageError if nothing is there, BadFileError if
    what is there is damaged or no model. Damage to a part may show only when that part is read.
    """
    require_type("source", source, (str, os.PathLike), "a path or a name")
    if not os.fspath(source):
        raise ConfigError("source is empty; give the folder of a run, or a pretrained model, such as gpt2")
    folder, step = run_of_checkpoint(source) or (Path(source), None)
    if folder.name == "checkpoints" and os.path.exists(folder.parent / "config.toml"):
        raise StorageError(f"{folder}: holds the checkpoints of a run; give the run, {folder.parent}, or one of them")
    if os.path.exists(folder / "config.toml"):  # False where the name is too long, where Path.exists raises
        opened: Any = OpenedRun(source, RunFolder.open(folder), step)
    else:
        try:
            opened = open_pretrained(source)
        except (BadFileError, StorageError) as error:
            if meant := run_meant(folder):
                raise type(error)(f"{folder}: {meant}") from None
            raise
    if not issubclass(opened.model_class, kind):
        tasks = [task for task in complete_tasks() if task.model_class is opened.model_class]
        remedy = f"; use nanograd-llm {tasks[0].used_by}" if tasks else ""
        raise ConfigError(
            f"{opened.source} is a model of the class {opened.model_class.__name__}; expected {kind.__name__}{remedy}"
        )
    return opened


def open_encoder(source: str | os.PathLike[str]) -> tuple[SentenceEncoder, Tokenizer]:
    """What makes vectors of texts with the model at `source`, a BERT or a GPT, and its tokenizer.

    A vector is the mean of the last hidden states, unless the files of sentence-transformers beside a BERT say
    otherwise. Raises as `open_model` does, ConfigError for a model of another class.
    """
    opened = open_model(source)
    if not issubclass(opened.model_class, (BERT, GPT)):
        name = opened.model_class.__name__
        raise ConfigError(f"{opened.source} is a model of the class {name}; vectors of texts need a BERT or a GPT")
    if isinstance(opened, OpenedBERT):
        return opened.sentence_encoder(), opened.tokenizer()
    return SentenceEncoder(opened.model()), opened.tokenizer()


def open_adapted(source: str | os.PathLike[str], dtype: DTypeLike = "float32") -> tuple[OpenedRun, Module]:
    """A run with LoRA, and its model with the adapters beside the weights.

    Raises as `open_model` does, ConfigError for a model without adapters.
    """
    opened = open_model(source)
    if not isinstance(opened, OpenedRun) or opened.adapters is None:
        raise ConfigError(f"{opened.source} has no adapters; give a run that was trained with --lora-rank")
    return opened, opened.model(dtype=dtype, merged=False)


def open_classifier(source: str | os.PathLike[str]) -> tuple[Classifier, Tokenizer, list[str], int]:
    """The classifier at `source`, its tokenizer, the names of its classes, and how many tokens of a text it reads.

    source: a run of the task classification, or a folder of BertForSequenceClassification. Raises as `open_model` does,
    ConfigError for a classifier of one class.
    """
    opened = open_model(source)
    if not isinstance(opened, OpenedBERT):
        opened = open_model(source, Classifier)
    from nanograd_llm.tasks.classification import classifier_of  # one task of those that are loaded when asked for

    model, names, longest = classifier_of(opened)
    return model, opened.tokenizer(), names, longest


class OpenedRun:
    """The model of a run; see `Opened`. folder: the run's. settings: the tables of its config.toml.

    Raises BadFileError where a setting cannot be.
    """

    form = "run"

    def __init__(self, source: str | os.PathLike[str], folder: RunFolder, step: int | None):
        self.source, self.folder, self.step = os.fspath(source), folder, step
        self.path = folder.path
        self.settings = folder.read_config()
        check_tables(self.task, self.settings, folder.config_path, others=True)

    def __repr__(self) -> str:
        return f"OpenedRun({self.source!r})"

    @functools.cached_property
    def task(self) -> type[Task]:
        """What it was trained for: a language model where config.toml does not say it."""
        try:
            return task_named(self.settings.get("run", {}).get("task", DEFAULT))
        except ConfigError as error:
            raise BadFileError(f"{self.folder.config_path} [run]: {error}") from None

    @property
    def task_name(self) -> str:
        """The name of its task."""
        return self.task.name

    def start(self) -> Opened[Any]:
        """The model that it started from, opened. Raises as `open_model` does, also where there is none."""
        return open_model(self.init or "")

    @property
    def init(self) -> str | None:
        """The model that it started from; None if it began with fresh weights."""
        found: str | None = self.settings.get("run", {}).get("init")
        return found

    @property
    def beside(self) -> dict[str, bytes]:
        """See `Opened.beside`: the template of a model that answers."""
        return template_files(self.path)

    @property
    def model_class(self) -> type[Any]:
        """The class of the model."""
        return self.task.model_class

    @functools.cached_property
    def config(self) -> Any:
        """The sizes of the model. Raises BadFileError where config.toml does not hold them."""
        table = dict(self.settings.get("model", {}))
        if "checkpoint_activations" in table:  # its name in runs of version 0.1
            table["recompute_activations"] = table.pop("checkpoint_activations")
        where, kind = f"{self.folder.config_path} [model]", self.task.tables["model"]
        fields = dataclasses.fields(kind)
        try:
            check_keys(table, [field.name for field in fields], where)
            missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in table]
            if missing:
                raise ConfigError(f"has no {', no '.join(missing)}; restore the file from a copy of the run")
            return kind(**table)
        except NanogradError as error:
            raise BadFileError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None

    @functools.cached_property
    def adapters(self) -> lora.LoRAConfig | None:
        """The settings of LoRA, if the run has adapters. Raises BadFileError where they cannot be."""
        try:
            return lora.LoRAConfig(**self.settings["lora"]) if "lora" in self.settings else None
        except NanogradError as error:
            raise BadFileError(f"{self.folder.config_path} [lora]: {error}") from None

    def model(self, *, dtype: DTypeLike = "float32", strict: bool = False, merged: bool = True) -> Any:
        """See `Opened.model`. Raises StorageError where there is no checkpoint, BadFileError for a damaged one.

        merged: add adapters, which a run with LoRA has, to the weights beside them; otherwise they stay adapters.
        """
        dtype, where, adapters = weights_dtype(dtype), str(self.path), self.adapters
        config, arrays = self.config, self.folder.load_checkpoint(self.step)[0]
        require_plausible(config, arrays, where)
        model = self.model_class(config, seed=None)
        try:
            if adapters is not None:
                trained = {name.removeprefix(kind) for name in arrays for kind in MOMENTS if name.startswith(kind)}
                model.fresh = tuple(name for name, _ in model.named_parameters() if name in trained)
                places = [name for name, _ in model.named_modules() if f"{name}.adapter.A" in arrays]
                lora.add(model, **{**dataclasses.asdict(adapters), "targets": places})
            weights = {name: arrays[name] for name, _ in model.named_parameters() if name in arrays}
            model.load_state_dict(weights, assign=True)
        except NanogradError as error:
            raise BadFileError(f"{where}: the checkpoint does not fit the sizes in config.toml: {error}") from None
        require_finite(weights, where, "use an older checkpoint", strict=strict)
        if model.parameters()[0].dtype != dtype:
            model.astype(dtype)
        model.eval()
        return lora.merge(model) if merged and adapters is not None else model

    def tokenizer(self) -> Tokenizer:
        """See `Opened.tokenizer`."""
        return self._tokenizer

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = load_tokenizer(self.folder.tokenizer_path)
        require_fitting(tokenizer, self.config.vocab_size, str(self.path))
        return tokenizer
