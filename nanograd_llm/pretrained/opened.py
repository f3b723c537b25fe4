"""The interface of an opened model, whether a run or a pretrained one, and checks of its weights and tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.nn.module import Module
from nanograd_llm.text import Tokenizer

OpenedModel = TypeVar("OpenedModel", bound=Module, covariant=True)
MAX_LAYERS = 1024


class Opened(Protocol[OpenedModel]):
    """A model that was found: of a run, or a pretrained one. Each file is read when it is first needed.

    source: as it was given. path: the run folder, or the file of the weights. form: "run", or the kind of that file.
    step: of the checkpoint that was given, else None. model_class: of the model.
    task_name: what the model is for: a name in `tasks.registry`.
    """

    source: str
    path: Path
    form: str
    step: int | None
    model_class: type[Module]

    @property
    def task_name(self) -> str:
        """See above."""

    @property
    def config(self) -> Any:
        """The sizes of the model: the config of its class."""

    @property
    def beside(self) -> Mapping[str, bytes]:
        """Files that say how the model is used, by their names, for `save_pretrained`."""

    def model(self, *, dtype: DTypeLike = "float32", strict: bool = False, merged: bool = True) -> OpenedModel:
        """The model in evaluation mode, read from its file at each call.

        dtype: of the parameters, float32 or float64; weights of another dtype are converted.
        strict: refuse weights that are not finite; otherwise a warning names them.
        merged: add adapters, which a run with LoRA has, to the weights beside them; otherwise they stay adapters.
        """

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises BadFileError, with both sizes, if it does not fit the model."""


def weights_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype for a model's parameters. Raises ConfigError unless it is float32 or float64."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise ConfigError(f"dtype must be float32 or float64; got {dtype!r}") from None
    if found not in (np.float32, np.float64):
        raise ConfigError(f"dtype must be float32 or float64; got {found}")
    return found


def require_fitting(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Raise BadFileError, with both sizes, unless the tokenizer has `vocab_size` tokens as the model does."""
    if tokenizer.vocab_size != vocab_size:
        raise BadFileError(
            f"{where}: its tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}; "
            "use the tokenizer that the model was trained with"
        )


def require_plausible(config: Any, arrays: Mapping[str, NDArray[Any]], where: str) -> None:
    """Raise BadFileError for sizes that a file of these arrays cannot have: the model would take all memory."""
    if hasattr(config, "n_layer"):
        layers, widest = config.n_layer, max(config.n_embd, config.n_inner or 4 * config.n_embd)  # that of a bias
        numbers = max(layers * widest, config.vocab_size)  # a table has a row for each token
    else:
        layers, numbers = 1, max((size for size in vars(config).values() if isinstance(size, int)), default=0)
    present = sum(x.size for x in arrays.values())
    if layers > MAX_LAYERS or numbers > present + 2**20:
        raise BadFileError(
            f"{where}: its sizes need over {numbers:,} numbers in {layers:,} layers; the file has {present:,}"
        )


def require_finite(arrays: Mapping[str, NDArray[Any]], where: str, remedy: str, *, strict: bool) -> None:
    """Warn of weights that are not finite, by name. strict: raise BadFileError instead."""
    bad = [name for name, x in arrays.items() if not _is_finite(x)]
    if bad:
        message = f"{where}: NaN or infinity in {', '.join(bad)}"
        if strict:
            raise BadFileError(f"{message}; {remedy}")
        warnings.warn(message, stacklevel=4)


def _is_finite(x: NDArray[Any]) -> bool:
    """Are all numbers finite? The sum shows it fast and without memory, unless it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(x.sum()) or np.isfinite(x).all())
