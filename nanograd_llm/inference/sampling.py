"""From logits to the next token: temperature, top-k and nucleus sampling.

V vocabulary, B batch
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nanograd_llm.backend.arrays import to_host
from nanograd_llm.errors import ConfigError, NonFiniteError
from nanograd_llm.settings import MAX_SEED, Settings, setting


class Sampling(Settings):
    """How to choose the next token. Raises ConfigError that names the field.

    top_k: Fan, Lewis and Dauphin 2018; top_p: nucleus sampling, Holtzman et al. 2020. With both, top_k acts first.
    """

    temperature: float = setting(
        "Divides the logits: 0 always takes the likeliest token (greedy), a higher one gives more variety.",
        default=1.0,
    )
    top_k: int | None = setting("Choose among the k likeliest tokens only; all if not given.", default=None, low=1)
    top_p: float = setting(
        "Choose among the likeliest tokens that together have this probability; 1 for all.",
        default=1.0,
        low=1e-9,
        high=1,
    )
    repetition_penalty: float = setting(
        "Makes tokens that occurred before less likely: their positive logits are divided by this, negative ones "
        "multiplied (Keskar et al. 2019); 1 for no penalty.",
        default=1.0,
        low=1e-3,
        high=1e3,
    )
    seed: int = setting("The same seed gives the same text.", default=0, high=MAX_SEED)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """The distribution that the next token is drawn from.  logits (B, V) -> (B, V) float64, rows sum to one

        Equal logits are ranked by id, so the same logits give the same distribution. -inf excludes a token.
        Raises NonFiniteError if a row holds a NaN or +inf, or nothing but -inf.
        """
        logits = to_host(logits).astype(np.float64)
        rows, best = np.arange(len(logits)), likeliest(logits)
        if self.temperature == 0:
            result = np.zeros_like(logits)
            result[rows, best] = 1
            return result
        largest = logits[rows, best][:, None]
        with np.errstate(over="ignore"):  # near temperature 0 all but the largest become -inf, as intended
            scaled = (logits - largest) / self.temperature
        if self.top_k is None and self.top_p == 1:
            return _normalised(scaled)
        result = np.zeros_like(logits)
        for row, numbers in enumerate(scaled):
            places, p = self._kept(numbers)
            result[row, places] = p
        return result

    def _kept(self, scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that top_k and top_p keep, likeliest first, and their probabilities.  scaled (V) -> 2 × (n)

        Only as many tokens are sorted as needed: to sort all 50,257 of GPT-2 takes a fifth of the time of a token.
        """
        total = np.exp(scaled).sum() if self.top_k is None else None
        count = self.top_k or FEW_TOKENS
        while True:
            places = _largest(scaled, count)[: self.top_k]
            e = np.exp(scaled[places])
            p = e / (e.sum() if total is None else total)
            kept = np.cumsum(p) - p < self.top_p  # those before it do not reach top_p
            if total is None or not kept[-1] or count >= len(scaled):
                return places[kept], p[kept] / p[kept].sum()
            count *= 16

    def penalised(self, logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """The logits with the repetition penalty.  logits (B, V), seen (B, T) ids that came before -> (B, V)"""
        if self.repetition_penalty == 1:
            return logits
        logits, rows = logits.copy(), np.arange(len(logits))[:, None]
        before = logits[rows, seen]
        penalty = self.repetition_penalty
        logits[rows, seen] = np.where(before > 0, before / penalty, before * penalty)
        return logits

    def choose(self, logits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """One token per row.  logits (B, V), uniform (B) random numbers from [0, 1) -> ids (B)"""
        cumulative = np.cumsum(self.probabilities(logits), axis=-1)
        return (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(axis=-1)


NOT_FINITE = "look for NaN in the weights, and for weights that are too large, as after too high a learning rate"
PROSE = Sampling(temperature=0.8, top_p=0.95)  # with less variety, which suits the text of a small model


def strategy_of(given: Mapping[str, Any], *, answers: bool) -> Sampling:
    """How to choose tokens: as is given, else as suits prose, or a model that answers; by default a random seed.

    Raises ConfigError for a setting that changes nothing, since the likeliest token is always taken.
    """
    import secrets

    own = {"seed": secrets.randbelow(10**6)} | ({"temperature": 0} if answers else {})
    found = dataclasses.replace(PROSE, **{**own, **given})
    if found.temperature == 0 and (idle := [name for name in ("top_k", "top_p") if name in given]):
        raise ConfigError(
            f"{idle[0]} chooses among the likeliest tokens, but at temperature 0{' of a model that answers' * answers} "
            f"the likeliest is always taken; leave {idle[0]} out, or give a temperature above 0"
        )
    return found


FEW_TOKENS = 256  # so many are sorted first; mostly they have the probability that is wanted


def _largest(row: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` largest numbers, and of those equal to the last; largest first, equal ones by place."""
    if count >= len(row):
        return np.argsort(-row, kind="stable")
    places = np.flatnonzero(row >= np.partition(row, -count)[-count])
    return places[np.argsort(-row[places], kind="stable")]


def _normalised(scaled: np.ndarray) -> np.ndarray:
    """The softmax of rows whose largest number is 0, so that nothing overflows."""
    p = np.exp(scaled)
    p /= p.sum(axis=-1, keepdims=True)
    return p


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Of each next token.  logits (N, V) -> (N, V) float64. Raises as `likeliest`."""
    logits = to_host(logits)
    shifted = logits.astype(np.float64) - logits[np.arange(len(logits)), likeliest(logits)][:, None]
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def likeliest(logits: np.ndarray) -> np.ndarray:
    """The token with the largest logit of each row, the first of several.  logits (B, V) -> ids (B)

    Raises NonFiniteError if a row holds a NaN or +inf, or nothing but -inf.
    """
    logits = to_host(logits)
    best = logits.argmax(axis=-1)  # if there is a NaN, its place
    for row, place in zip(logits, best):
        if not math.isfinite(largest := row[place]):
            raise NonFiniteError(f"the largest of {logits.shape[-1]} logits is {largest}; {NOT_FINITE}")
    return best
