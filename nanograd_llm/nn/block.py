"""The transformer block: attention moves information between tokens, the MLP processes each token separately."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.errors import ShapeError
from nanograd_llm.nn.attention import MultiHeadAttention
from nanograd_llm.nn.cache import KeyValueCache
from nanograd_llm.nn.layers import MLP, LayerNorm
from nanograd_llm.nn.module import Module


class Block(Module):
    """Attention and an MLP; each adds its result to the residual stream.  (B, T, C) -> (B, T, C), or (N, C) -> (N, C)

    norm_first: normalise the input of attention and MLP (pre-norm, as in GPT-2); otherwise normalise the stream after
        each addition (post-norm, as in Vaswani et al. 2017, BERT and Marian).
    causal, scale: of the attention.
    cross: add a second attention, to a context (B, S, C), between attention and MLP.
    n_inner, activation: of the MLP.
    eps: of the norms.
    dropout: rate on attention weights and on each result that is added to the stream.
    residual_std: initial standard deviation of the layers whose results are added to the stream.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        *,
        norm_first: bool = True,
        causal: bool = True,
        cross: bool = False,
        n_inner: int | None = None,
        activation: str = "gelu",
        scale: float | None = None,
        eps: float = 1e-5,
        dropout: float = 0.0,
        residual_std: float = 0.02,
        rng: np.random.Generator | None = None,
    ):
        shared: Any = {"dropout": dropout, "scale": scale, "out_std": residual_std, "rng": rng}
        self.norm_first = norm_first
        self.ln_1 = LayerNorm(n_embd, eps=eps)
        self.attention = MultiHeadAttention(n_embd, n_head, causal=causal, **shared)
        self.ln_cross = LayerNorm(n_embd, eps=eps) if cross else None
        self.cross_attention = MultiHeadAttention(n_embd, n_head, cross=True, **shared) if cross else None
        self.ln_2 = LayerNorm(n_embd, eps=eps)
        self.mlp = MLP(n_embd, n_inner=n_inner, activation=activation, dropout=dropout, down_std=residual_std, rng=rng)

    def forward(
        self,
        x: Any,
        context: Any = None,
        key_mask: Any = None,
        context_mask: Any = None,
        *,
        cache: KeyValueCache | None = None,
        cross_cache: KeyValueCache | None = None,
    ) -> Tensor:
        """key_mask (B, T), context_mask (B, S): True where a token of x, or of the context, is real.

        x (N, C), context (M, C): only the real tokens, in the order of their masks, so that no padding is computed.
        """
        x = self._add(self.ln_1, lambda x: self.attention(x, None, key_mask, cache=cache), x)
        if self.cross_attention is not None:
            attend = self.cross_attention
            x = self._add(self.ln_cross, lambda x: attend(x, context, context_mask, key_mask, cross_cache), x)
        elif not context is context_mask is cross_cache is None:
            raise ShapeError("this block was made without cross=True and takes no context, context_mask or cross_cache")
        return self._add(self.ln_2, self.mlp, x)

    def weights(
        self, x: Any, context: Any = None, key_mask: Any = None, context_mask: Any = None
    ) -> tuple[Tensor, ...]:
        """The attention weights that `forward` uses: of x to itself (B, H, T, T), with cross to the context as well."""
        own = self.attention.weights(self.ln_1(x) if self.norm_first else x, None, key_mask)
        if self.cross_attention is None or self.ln_cross is None:
            return (own,)
        x = self._add(self.ln_1, lambda x: self.attention(x, None, key_mask), x)
        x = self.ln_cross(x) if self.norm_first else x
        return own, self.cross_attention.weights(x, context, context_mask)

    def _add(self, norm: Any, part: Callable[[Any], Tensor], x: Any) -> Tensor:
        return x + part(norm(x)) if self.norm_first else norm(x + part(x))


Block.specimens = lambda draw: [
    (Block(4, 2, dropout=0.2), (draw(2, 3, 4),)),
    (Block(2, 1), (draw(2, 3, 2),)),
    (Block(4, 2, norm_first=False, causal=False), (draw(2, 3, 4), None, ops.sequence_mask([3, 1], 3))),
    (
        Block(4, 2, norm_first=False, cross=True),
        (draw(2, 2, 4), draw(2, 3, 4), ops.sequence_mask([1, 2], 2), ops.sequence_mask([2, 3], 3)),
    ),
    (Block(2, 1, cross=True, dropout=0.2), (draw(2, 2, 2), draw(2, 3, 2))),
    (Block(2, 1, cross=True), (draw(3, 2), draw(4, 2), ops.sequence_mask([1, 2], 2), ops.sequence_mask([3, 1], 3))),
]
