"""Verify a run with LoRA: with adapters off it is its base, bit for bit; merged, it is the same within rounding."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.models import BERT, EncoderDecoder
from nanograd_llm.nn import lora
from nanograd_llm.runs.opening import open_adapted, open_model

TOKENS = 64  # of the random text that is computed with
ROUNDINGS = 8  # times the rounding of the model with its adapters: two models round, each a little differently


@dataclasses.dataclass(frozen=True)
class Verified:
    """What `verify` found.

    numbers: the weights of the base and its results on a random text; differing: those that differ in a bit when the
    adapters are off. effect: by how much the adapters change a result at most. merged_off: by how much a result of the
    merged model differs from that at most. limit: how much of it may be rounding, by what it is in the same model: how
    far its results are from those in float64.
    """

    base: str
    numbers: int
    differing: int
    effect: float
    merged_off: float
    limit: float

    @property
    def passed(self) -> bool:
        return not self.differing and self.merged_off <= self.limit

    def __str__(self) -> str:
        faults = ["with its adapters off the run is not its base"] if self.differing else []
        faults += [] if self.merged_off <= self.limit else ["merged, its results differ by more than rounding"]
        return (
            f"adapters off: of {self.numbers:,} weights and results on a random text, {self.differing:,} differ in a "
            f"bit from those of {self.base}\n"
            f"merged: the adapters change a result by up to {self.effect:.3g}; after the merge results differ by up to "
            f"{self.merged_off:.1e}, and rounding may be {self.limit:.1e}\n"
            + (
                f"NOT verified: {', and '.join(faults)}"
                if faults
                else "verified: with its adapters off the run is its base; merged, it gives the same results"
            )
        )


def verify(source: str | os.PathLike[str]) -> Verified:
    """Compare a run with LoRA with its base, and with itself when merged.

    Raises as `open_model` does, also for the base; BadFileError where config.toml names no base; ConfigError for a run
    without adapters, or whose base is no part of its model, as where a GPT became a BERT.
    """
    opened, model = open_adapted(source)
    if opened.init is None:
        raise BadFileError(
            f"{opened.folder.config_path} [run]: has no init, the model that its adapters were trained beside; restore "
            "the file from a copy of the run"
        )
    start = open_model(opened.init)
    base: Any = start.model()
    own = _part(model, type(base))
    if own is None:
        kinds = f"a {type(base).__name__}, which is no part of this {type(model).__name__}"
        raise ConfigError(f"{start.source} is {kinds}; only a model that was trained further can be compared")
    with lora.off(model):
        before, weights = _results(own), own.state_dict()
        pairs = [(weights[name], x) for name, x in base.state_dict().items() if name in weights]  # without other heads
        pairs.append((before, _results(base)))
    beside = _results(own)
    exact = _results(_part(open_adapted(source, "float64")[1], type(base)))
    lora.merge(model)
    return Verified(
        base=start.source,
        numbers=sum(x.size for _, x in pairs),
        differing=sum(_differing(*pair) for pair in pairs),
        effect=float(np.abs(beside - before).max()),
        merged_off=float(np.abs(_results(own) - beside).max()),
        limit=ROUNDINGS * float(max(np.abs(beside - exact).max(), np.spacing(np.abs(beside).max()))),
    )


def _part(model: Any, kind: type) -> Any:
    """The model, or the part of it, that is of this class; None if there is none."""
    return next((module for module in model.modules() if isinstance(module, kind)), None)


def _results(model: Any) -> np.ndarray:
    """The logits, or the hidden states of a BERT, which may have no head."""
    c = model.config
    ids = np.random.default_rng(0).integers(0, c.vocab_size, (1, min(TOKENS, c.context_length)))
    with no_grad():
        if isinstance(model, EncoderDecoder):
            return model(ids % (c.source_vocab_size or c.vocab_size), ids).numpy()
        return (model.hidden(ids) if isinstance(model, BERT) else model(ids)).numpy()


def _differing(a: np.ndarray, b: np.ndarray) -> int:
    """How many numbers differ in a bit; all where the shapes do."""
    if a.shape != b.shape:
        return b.size
    a, b = (np.ascontiguousarray(x).view(f"u{x.itemsize}") for x in (a, b))
    return int(np.count_nonzero(a != b))
