"""What a `config.json` of transformers says of a model's sizes, and how it is written: a table for each kind of model.

A setting that changes the result, and that is not supported here, is refused by name.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from nanograd_llm.errors import BadFileError, NanogradError
from nanograd_llm.settings import Settings

ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu"}
ACTIVATIONS |= {"silu": "silu", "swish": "silu"}
AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclasses.dataclass(frozen=True)
class ConfigJSON(Generic[AnySettings]):
    """The settings of one kind of model. A key in none of these tables does not change what transformers computes.

    kind: the config here. defaults: of transformers, by its keys. renamed: {its key: the name here}, where they differ.
    activation: the key of the activation. dropouts: the keys of dropout rates, which here are one.
    only: settings that change the result, with the values that are supported. aliases: {other key: its key}.
    """

    kind: type[AnySettings]
    defaults: Mapping[str, Any]
    renamed: Mapping[str, str]
    activation: str
    dropouts: tuple[str, ...]
    only: Mapping[str, tuple[Any, ...]]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def read(self, table: Mapping[str, Any], where: str) -> AnySettings:
        """The config of a `config.json`. Raises BadFileError with the key that is wrong or not supported."""
        refuse_unsupported(table, self.only, where)
        named = dict(table)
        for alias, key in self.aliases.items():
            if alias in named:
                if named.get(key, named[alias]) != named[alias]:
                    raise BadFileError(f"{where}: {alias} is {named[alias]!r:.50}, but {key} is {named[key]!r:.50}")
                named[key] = named[alias]
        found = {key: named.get(key, default) for key, default in self.defaults.items()}
        activation = found[self.activation]
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise BadFileError(  # no near match is suggested: with another one the model would load, and be wrong
                f"{where}: {self.activation} is {activation!r:.100}, which is not supported; expected one of "
                f"{', '.join(ACTIVATIONS)}, and it must be the one that the weights were trained with"
            )
        found[self.activation] = ACTIVATIONS[activation]
        fields = {self.renamed.get(key, key): value for key, value in found.items()}
        return config_of(self.kind, {**fields, "dropout": self._dropout(table, where)}, where, self.renamed)

    def write(self, config: AnySettings) -> dict[str, Any]:
        """The content of a `config.json` for this config, without model_type and architectures."""
        fields = {key: getattr(config, self.renamed.get(key, key)) for key in self.defaults}
        ours = fields[self.activation]
        fields[self.activation] = next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)
        return fields | dict.fromkeys(self.dropouts, vars(config)["dropout"])

    def _dropout(self, table: Mapping[str, Any], where: str) -> float:
        """The dropout rate, which matters only in training. The rates of transformers must be equal to be one here."""
        rates = [table.get(key, 0.1) for key in self.dropouts]
        if all(rate == rates[0] for rate in rates):
            return rates[0]
        shown = ", ".join(f"{key}={rate!r:.30}" for key, rate in zip(self.dropouts, rates))
        warnings.warn(
            f"{where}: {shown} differ; this {self.kind.__name__.removesuffix('Config')} has one dropout rate, which is "
            "set to 0: it matters only in training",
            stacklevel=2,
        )
        return 0.0


def refuse_unsupported(table: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]], where: str) -> None:
    """Raise BadFileError for a setting that has none of its supported values; only: {key: these values}."""
    for key, allowed in only.items():
        if not any(type(table.get(key)) is type(value) and table.get(key) == value for value in allowed):
            raise BadFileError(
                f"{where}: {key} is {table[key]!r:.100}, which is not supported; expected {allowed[0]!r}"
            )


def config_of(kind: type[AnySettings], fields: Mapping[str, Any], where: str, names: Mapping[str, str]) -> AnySettings:
    """A config. An error uses the file's name of a field, from `names`: {the file's name: the name here}."""
    try:
        return kind(**fields)
    except NanogradError as error:
        field, _, fault = str(error).partition(" ")
        theirs = next((theirs for theirs, ours in names.items() if ours == field), field)
        raise BadFileError(f"{where}: {theirs} {fault}") from None
