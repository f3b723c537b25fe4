"""The transformer block: attention lets tokens exchange what they know, the MLP works on each by itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.nn.attention import MultiHeadAttention
from nanograd_llm.nn.cache import KeyValueCache
from nanograd_llm.nn.layers import MLP, LayerNorm
from nanograd_llm.nn.module import Module


class Block(Module):
    """Both halves add to the residual stream what they compute from its normalised form (pre-norm).

    (B, T, C) -> (B, T, C). residual_std: initial standard deviation of the two projections that feed the stream.
    eps: of both norms. n_inner, activation: of the MLP. scale: of the attention.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        *,
        n_inner: int | None = None,
        activation: str = "gelu",
        scale: float | None = None,
        eps: float = 1e-5,
        dropout: float = 0.0,
        residual_std: float = 0.02,
        rng: np.random.Generator | None = None,
    ):
        self.ln_1 = LayerNorm(n_embd, eps=eps)
        self.attention = MultiHeadAttention(n_embd, n_head, dropout=dropout, scale=scale, out_std=residual_std, rng=rng)
        self.ln_2 = LayerNorm(n_embd, eps=eps)
        self.mlp = MLP(n_embd, n_inner=n_inner, activation=activation, dropout=dropout, down_std=residual_std, rng=rng)

    def forward(self, x: Any, cache: KeyValueCache | None = None) -> Tensor:
        x = x + self.attention(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))
