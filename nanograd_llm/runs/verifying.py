"""A proof for a run with LoRA: adapters off, it is its base, bit for bit; merged, it is the same within rounding."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.errors import ConfigError
from nanograd_llm.models import EncoderDecoder
from nanograd_llm.nn import lora
from nanograd_llm.runs.opening import open_adapted, open_model

TOKENS = 64  # of the random text that is computed with
ROUNDINGS = 4  # of the largest logit, for the model and again for each merged layer


@dataclasses.dataclass(frozen=True)
class Verified:
    """What `verify` found.

    weights, results: how many numbers of each the base has; weights_off, results_off: how many of these differ in a bit
    when the adapters are off. effect: by how much the adapters change a logit at most; merged_off: by how much a logit
    of the merged model differs from that at most; limit: how much of it may be rounding.
    """

    base: str
    weights: int
    weights_off: int
    results: int
    results_off: int
    effect: float
    merged_off: float
    limit: float

    @property
    def passed(self) -> bool:
        return not self.weights_off and not self.results_off and self.merged_off <= self.limit

    def __str__(self) -> str:
        return (
            f"adapters off: {self.weights_off:,} of {self.weights:,} weights, and {self.results_off:,} of "
            f"{self.results:,} results on a random text, differ from those of {self.base} in any bit\n"
            f"merged: the adapters change a logit by up to {self.effect:.3g}; merged they do the same to within "
            f"{self.merged_off:.1e}, where rounding may be {self.limit:.1e}"
        )


def verify(source: str | os.PathLike[str]) -> Verified:
    """Compare a run with LoRA with its base, and with itself when merged.

    Raises as `open_model` does, also for the base; ConfigError for a run without adapters, or whose base is no part of
    its model, as where a GPT became a BERT.
    """
    opened, adapted = open_adapted(source)
    start = open_model(opened.settings["run"]["init"])
    base: Any = start.model()
    inner = next((module for module in adapted.modules() if isinstance(module, type(base))), None)
    if inner is None:
        kinds = f"a {type(base).__name__}, which is no part of this {type(adapted).__name__}"
        raise ConfigError(f"{start.source} is {kinds}; only a model that was trained further can be compared")
    with lora.off(adapted):
        before, own, theirs = _logits(adapted), inner.state_dict(), base.state_dict()
        pairs = [(own[name], x) for name, x in theirs.items() if name in own]  # a classifier leaves out other heads
        results = _hidden(inner), _hidden(base)
        weights_off, results_off = sum(_differing(*pair) for pair in pairs), _differing(*results)
    beside, layers = _logits(adapted), len(lora.adapted(adapted))
    return Verified(
        base=start.source,
        weights=sum(x.size for _, x in pairs),
        weights_off=weights_off,
        results=results[1].size,
        results_off=results_off,
        effect=float(np.abs(beside - before).max()),
        merged_off=float(np.abs(_logits(lora.merge(adapted)) - beside).max()),
        limit=ROUNDINGS * (1 + layers) * float(np.spacing(np.abs(beside).max())),
    )


def _ids(config: Any) -> np.ndarray:
    known = min(config.vocab_size, getattr(config, "source_vocab_size", None) or config.vocab_size)
    return np.random.default_rng(0).integers(0, known, (1, min(TOKENS, config.context_length)))


def _logits(model: Any) -> np.ndarray:
    ids = _ids(model.config)
    with no_grad():
        return model(ids, ids).data if isinstance(model, EncoderDecoder) else model(ids).data


def _hidden(model: Any) -> np.ndarray:
    if isinstance(model, EncoderDecoder):
        return _logits(model)
    with no_grad():
        return model.hidden(_ids(model.config)).data


def _differing(a: np.ndarray, b: np.ndarray) -> int:
    """How many numbers differ in a bit; all where the shapes do."""
    if a.shape != b.shape:
        return b.size
    a, b = (np.ascontiguousarray(x).view(f"u{x.itemsize}") for x in (a, b))
    return int(np.count_nonzero(a != b))
