"""A GPT that learns to prefer the chosen one of two answers, by direct preference optimization.

Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model" (2023).

B pairs, T time, C channels, N targets that count, V vocabulary
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.tensor import Tensor, array_of
from nanograd_llm.backend.arrays import beside, to_host
from nanograd_llm.errors import ShapeError
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.models.inputs import reaching_targets
from nanograd_llm.settings import IGNORE_INDEX, require_number


class PreferenceGPT(GPT):
    """A GPT whose loss is that of pairs of answers: `model.loss(tokens, targets, reference)`.

    beta: how much a log-probability may differ from the reference's: the smaller, the further.
    supervised: weight of a second term, the mean loss of the tokens of the chosen answer, which keeps its probability
        from falling together with the other's (Pang et al., "Iterative Reasoning Preference Optimization", 2024).
    """

    loss_items = "pairs"

    def __init__(self, config: GPTConfig, seed: int | None = 0, *, beta: float = 0.1, supervised: float = 0.0):
        super().__init__(config, seed)
        require_number("beta", beta, 1e-6)
        require_number("supervised", supervised, 0)
        self.beta, self.supervised = beta, supervised

    def log_probabilities(self, tokens: Any, targets: Any) -> Tensor:
        """Summed log-probabilities of the targets of each answer that are not -100.  (B, 2, T), (B, 2, T) -> (B, 2)"""
        ids, wanted = to_host(array_of(tokens)), to_host(array_of(targets))
        if ids.ndim != 3 or ids.shape[1] != 2 or ids.shape != wanted.shape:
            raise ShapeError(f"tokens and targets of pairs are (B, 2, T); got {ids.shape} and {wanted.shape}")
        ids, wanted = (array.reshape(-1, ids.shape[2]) for array in (ids, wanted))  # (2B, T)
        real, places = reaching_targets(ids, wanted), wanted != IGNORE_INDEX
        x = self.hidden(ids, real=real)[places if real is None else places[real]]  # only what the head is computed for
        logits = ops.linear(x, self.head_table.T)  # (N, C)·(C, V) -> (N, V)
        losses = ops.cross_entropy(logits, wanted[places], reduction="none")  # (N)
        return -ops.sum(ops.scatter(losses, index=places, shape=wanted.shape), axis=1).reshape((-1, 2))

    def rewards(self, tokens: Any, targets: Any, reference: Any) -> Tensor:
        """beta times what each log-probability has gained on the reference's.  reference (B, 2) -> (B, 2)"""
        return self._rewards(self.log_probabilities(tokens, targets), reference)

    def _rewards(self, log_p: Tensor, reference: Any) -> Tensor:
        return self.beta * (log_p - (reference if isinstance(reference, Tensor) else beside(reference, log_p.data)))

    def loss(self, tokens: Any, targets: Any, reference: Any = None) -> Tensor:
        """Mean of -log sigmoid(reward of the chosen - that of the rejected), in nats; log 2 where nothing is learned.

        tokens, targets (B, 2, T): the chosen answer first, each behind its prompt, whose targets are -100.
        reference (B, 2): what `log_probabilities` gave before training. A pair without targets does not count.
        Without a reference it is the loss of a GPT, of tokens and targets (B, T).
        """
        if reference is None:
            return super().loss(tokens, targets)
        log_p = self.log_probabilities(tokens, targets)
        rewards = self._rewards(log_p, reference)
        losses = ops.softplus(rewards[:, 1] - rewards[:, 0])  # (B)
        sizes = np.count_nonzero(to_host(array_of(targets)) != IGNORE_INDEX, axis=2)  # (B, 2)
        if self.supervised:
            chosen = beside(np.maximum(sizes[:, 0], 1).astype(log_p.dtype), log_p.data)
            losses = losses - self.supervised * log_p[:, 0] / chosen
        counts = sizes.all(axis=1)
        return ops.sum(ops.where(counts, losses, 0.0)) / max(int(counts.sum()), 1)

    def example_batch(self, draw: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A small random batch for `loss`, of which the last pair is padding."""
        tokens, targets = draw.integers(0, self.config.vocab_size, (2, 3, 2, min(4, self.config.context_length)))
        targets[0, 0, 0] = targets[2] = IGNORE_INDEX
        return tokens, targets, draw(3, 2)

    def loss_count(self, *batch: np.ndarray) -> int:
        """How many pairs have targets in both answers."""
        return int((batch[1] != IGNORE_INDEX).any(axis=2).all(axis=1).sum())


def _specimens(draw: Any) -> Any:
    config = GPTConfig(vocab_size=4, context_length=2, n_layer=1, n_head=1, n_embd=3)
    for supervised in (0.0, 0.5):
        model = PreferenceGPT(config, beta=0.5, supervised=supervised)
        yield model.loss, model.example_batch(draw)


PreferenceGPT.specimens = _specimens
