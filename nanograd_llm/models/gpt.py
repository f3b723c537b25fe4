"""GPT-2, exactly: token and position vectors, pre-norm blocks, a last norm, and the token table again as the head.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).

B batch, T time, C channels (n_embd), H heads, V vocabulary
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.engine import Tensor, raw
from nanograd_llm.errors import ShapeError
from nanograd_llm.modes import no_grad
from nanograd_llm.nn.attention import head_size
from nanograd_llm.nn.block import Block
from nanograd_llm.nn.cache import KeyValueCache
from nanograd_llm.nn.layers import Dropout, LayerNorm, normal
from nanograd_llm.nn.module import Module
from nanograd_llm.settings import require_choice, require_int, require_number

PRESETS: dict[str, dict[str, int]] = {
    "nano": dict(vocab_size=1024, context_length=64, n_layer=2, n_head=4, n_embd=128),
    "gpt2": dict(vocab_size=50257, context_length=1024, n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(vocab_size=50257, context_length=1024, n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(vocab_size=50257, context_length=1024, n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(vocab_size=50257, context_length=1024, n_layer=48, n_head=25, n_embd=1600),
}


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT. Raises ConfigError naming the field that cannot be."""

    vocab_size: int
    context_length: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for field in ("vocab_size", "context_length", "n_layer", "n_head", "n_embd"):
            require_int(field, getattr(self, field), 1)
        require_number("dropout", self.dropout, 0, 1, below=True)
        head_size(self.n_embd, self.n_head)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> GPTConfig:
        """A named size: nano, gpt2, gpt2-medium, gpt2-large or gpt2-xl, with these fields changed."""
        require_choice("preset", name, PRESETS)
        return cls(**{**PRESETS[name], **changes})


@dataclasses.dataclass(frozen=True)
class Look:
    """What a GPT computed on the way, as arrays.

    logits: (B, T, V). hidden_states: n_layer + 1 arrays (B, T, C), before the first block and after each.
    attention_maps: n_layer arrays (B, H, T, T); row i says how much token i looks at each token before it.
    """

    logits: np.ndarray
    hidden_states: list[np.ndarray]
    attention_maps: list[np.ndarray]


class GPT(Module):
    """A decoder-only transformer: `model(tokens)` gives the logits of each next token.

    Initialised as GPT-2 was: normal with standard deviation 0.02, biases 0, and the projections into the residual
    stream smaller by 1/√(2 n_layer), since that many of them add up there. (OpenAI's code drew the position vectors
    with 0.01; those who rebuilt it settled on 0.02 for all.) `seed` decides every number.
    """

    def __init__(self, config: GPTConfig, seed: int = 0):
        require_int("seed", seed, 0)
        rng = np.random.default_rng(seed)
        C = config.n_embd
        self.config = config
        self.wte = normal((config.vocab_size, C), 0.02, rng)
        self.wpe = normal((config.context_length, C), 0.02, rng)
        self.dropout = Dropout(config.dropout)
        residual_std = 0.02 / math.sqrt(2 * config.n_layer)
        self.blocks = [
            Block(C, config.n_head, dropout=config.dropout, residual_std=residual_std, rng=rng)
            for _ in range(config.n_layer)
        ]
        self.ln_f = LayerNorm(C)

    def forward(self, tokens: Any) -> Tensor:
        """Logits of each next token.  tokens (B, T) ids -> (B, T, V)

        Raises ShapeError where T exceeds the context, IndexRangeError for an id outside the vocabulary.
        """
        return self._head(self.hidden(tokens))

    def loss(self, tokens: Any, targets: Any) -> Tensor:
        """Mean cross-entropy in nats over the targets that are not -100.  tokens, targets (B, T) ids -> ()

        The token table serves twice, so its gradient is the sum of two. On paper, with one channel and nothing between
        table and head: token 0 has vector 1 and logits 1 and 1 + log 3, so the probabilities are 1/4 and 3/4. Target 0
        makes the logits' gradient (-3/4, 3/4). As the head the table gets that, times the vector 1; as the embedding
        row 0 gets -3/4*1 + 3/4*(1 + log 3).

        >>> wte = Tensor(np.array([[1], [1 + math.log(3)]]), requires_grad=True)
        >>> ops.linear_cross_entropy(ops.embedding(wte, [0]), wte, [0]).backward()
        >>> (wte.grad - [[0.75 * math.log(3)], [0]]).round(9).tolist()
        [[-0.75], [0.75]]
        """
        return ops.linear_cross_entropy(self.hidden(tokens), self.wte, targets)

    def hidden(self, tokens: Any, caches: list[KeyValueCache] | None = None) -> Tensor:
        """What the head sees.  tokens (B, T) -> (B, T, C)

        caches: one for each block, from `new_caches`; the tokens then continue what is stored there.
        """
        with self.entered():
            x = self._embed(tokens, caches[0].length if caches else 0)
            for i, block in enumerate(self.blocks):
                x = block(x, caches[i] if caches else None)
            return self.ln_f(x)

    def next_logits(self, tokens: Any, caches: list[KeyValueCache] | None = None) -> np.ndarray:
        """Logits of the token that follows the last one; records nothing.  tokens (B, T) -> array (B, V)"""
        with no_grad():
            return raw(self.hidden(tokens, caches))[:, -1] @ self.wte.data.T

    def new_caches(self, batch: int) -> list[KeyValueCache]:
        """Empty key-value caches for `batch` sequences of up to context_length tokens."""
        c = self.config
        D = c.n_embd // c.n_head
        return [KeyValueCache(batch, c.n_head, c.context_length, D, self.wte.dtype) for _ in self.blocks]

    def look(self, tokens: Any) -> Look:
        """Compute as `model(tokens)` does, and show every layer's hidden states and attention maps."""
        with no_grad(), self.entered():
            x = self._embed(tokens, 0)
            hidden_states, attention_maps = [x.data], []
            for block in self.blocks:
                attention_maps.append(block.attention.weights(block.ln_1(x)).data)
                x = block(x)
                hidden_states.append(x.data)
            return Look(self._head(self.ln_f(x)).data, hidden_states, attention_maps)

    def _head(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.wte.T)  # (B, T, C)·(C, V) -> (B, T, V)

    def _embed(self, tokens: Any, start: int) -> Tensor:
        ids = np.asarray(raw(tokens))
        if ids.ndim != 2:
            raise ShapeError(f"tokens must be (B, T); got shape {ids.shape}; use tokens[None] for a single sequence")
        end = start + ids.shape[1]
        if end > self.config.context_length:
            raise ShapeError(
                f"context_length is {self.config.context_length} but {end} tokens arrived; pass the last ones only"
            )
        return self.dropout(ops.embedding(self.wte, ids) + self.wpe[start:end])  # (B, T) -> (B, T, C)
