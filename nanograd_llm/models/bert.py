"""BERT: every token sees every other one, and the model learns to fill in words that were hidden.

The encoder: word, position and type vectors, a norm, post-norm blocks without a causal mask. On top of it, if wanted, a
head that fills in words, and a pooler, which makes one vector of a text.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (2018).

B batch, T time, C channels (n_embd), H heads, V vocabulary
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.autograd.tensor import Parameter, Tensor, array_of
from nanograd_llm.backend.arrays import to_host
from nanograd_llm.errors import ConfigError, ShapeError
from nanograd_llm.models.inputs import real_tokens, token_ids
from nanograd_llm.models.transformer import Look, TransformerConfig, fresh, watch
from nanograd_llm.nn.layers import ACTIVATIONS, Dropout, LayerNorm, Linear, normal
from nanograd_llm.nn.module import Module
from nanograd_llm.ops.composed import count_targets, unpacked
from nanograd_llm.settings import IGNORE_INDEX, setting


class BERTConfig(TransformerConfig):
    """The sizes of a BERT, and which parts it has. Raises ConfigError naming the field."""

    layer_norm_epsilon: float = setting("Added to the variance in each layer norm.", default=1e-12)
    activation: str = setting("Of the MLPs and the head.", default="gelu_exact", choices=ACTIVATIONS)
    type_vocab_size: int = setting("Kinds of tokens, such as first and second sentence.", default=2, low=1)
    norm_first: bool = setting(
        "Put layer norms before each part of a block and at the end, as GPT-2 does; else after the embedding and "
        "after each part, as BERT does.",
        default=False,
    )
    masked_word_head: bool = setting("Have the head that fills in words.", default=True)
    pooler: bool = setting("Have the layer that makes one vector of a text from its first token.", default=False)


class MaskedWordHead(Module):
    """Logits of the word at each place.  x (..., C), table (V, C) -> (..., V)

    One more layer, a norm, then the word table again, and a bias for each word.
    """

    def __init__(self, vocab_size: int, n_embd: int, *, activation: str = "gelu_exact", eps: float, rng: Any = None):
        self.transform = Linear(n_embd, n_embd, std=0.02, rng=rng)
        self.activation = activation
        self.norm = LayerNorm(n_embd, eps=eps)
        self.bias = Parameter(np.zeros(vocab_size, np.float32))

    def forward(self, x: Any, table: Any) -> Tensor:
        x = self.norm(ACTIVATIONS[self.activation](self.transform(x)))
        return ops.linear(x, ops.transpose(table), self.bias)  # (..., C)·(C, V) -> (..., V)


MaskedWordHead.specimens = lambda draw: [
    (MaskedWordHead(5, 3, eps=0.1), (draw(2, 2, 3), draw(5, 3))),
    (MaskedWordHead(3, 4, eps=1e-5, activation="gelu"), (draw(2, 4), draw(3, 4))),
]


class BERT(Module):
    """An encoder: `model(tokens, lengths=...)` gives the logits of the word at each place.

    Initialised normal with standard deviation 0.02, biases 0. `seed` decides every number; with None there are none
    yet, as for a GPT. The head is a table of its own only where the config says so; without one, use `hidden`.
    """

    loss_items = "words"

    def __init__(self, config: BERTConfig, seed: int | None = 0):
        rng = fresh(config, BERTConfig, seed)
        C, eps = config.n_embd, config.layer_norm_epsilon
        self.config = config
        self.wte = normal((config.vocab_size, C), 0.02, rng)
        self.wpe = normal((config.context_length, C), 0.02, rng)
        self.wtype = normal((config.type_vocab_size, C), 0.02, rng)
        self.norm = LayerNorm(C, eps=eps)
        self.dropout = Dropout(config.dropout)
        self.blocks = [config.block(rng, norm_first=config.norm_first, causal=False) for _ in range(config.n_layer)]
        self.pooler = Linear(C, C, std=0.02, rng=rng) if config.pooler else None
        self.head = None
        if config.masked_word_head:
            self.head = MaskedWordHead(config.vocab_size, C, activation=config.activation, eps=eps, rng=rng)

    def forward(self, tokens: Any, types: Any = None, *, lengths: Any = None, key_mask: Any = None) -> Tensor:
        """Logits of the word at each place.  tokens (B, T) ids -> (B, T, V)

        types (B, T): the kind of each token; all 0 if not given.
        lengths (B,): how many tokens of each row are real, where the rest is padding; or key_mask (B, T): True where a
            token is real. The logits of real tokens do not depend on padding.
        Raises ShapeError where T exceeds the context, IndexRangeError for an id outside the vocabulary, ConfigError
        where the model has no head.
        """
        return self._head(self.hidden(tokens, types, lengths=lengths, key_mask=key_mask))

    def loss(self, tokens: Any, targets: Any, lengths: Any = None, types: Any = None, key_mask: Any = None) -> Tensor:
        """Mean cross-entropy in nats over the targets that are not -100.  tokens, targets (B, T) ids -> ()

        Targets are the words that were hidden, -100 elsewhere; the rest is as in `forward`.
        """
        x = self.hidden(tokens, types, lengths=lengths, key_mask=key_mask, skip_padding=True)
        targets = to_host(array_of(targets))
        if targets.shape != x.shape[:2]:
            raise ShapeError(f"targets {targets.shape} do not fit tokens {x.shape[:2]}; expected the same shape")
        counted = np.nonzero(targets != IGNORE_INDEX)
        if not len(counted[0]):
            raise ShapeError(f"none of {targets.size} targets counts ({IGNORE_INDEX} leaves one out); there is no mean")
        return ops.cross_entropy(self._head(x[counted]), targets[counted])  # (B, T, C) -> (N, C) -> (N, V) -> ()

    def loss_count(self, *batch: np.ndarray) -> int:
        """How many of the targets, the second array, count."""
        return count_targets(batch[1])

    def example_batch(self, draw: Any) -> tuple[np.ndarray, ...]:
        """See `Module.example_batch`: (tokens, targets, lengths, types)"""
        c, T = self.config, min(8, self.config.context_length)
        tokens, targets = draw.integers(0, c.vocab_size, (2, 2, T))
        targets[0, 0] = targets[1, -1] = IGNORE_INDEX
        return tokens, targets, np.array([T, max(1, T - 1)]), draw.integers(0, c.type_vocab_size, (2, T))

    @property
    def head_table(self) -> Parameter:
        """(V, C): what the head compares with, a row for each word."""
        return self.wte

    def hidden(
        self,
        tokens: Any,
        types: Any = None,
        *,
        lengths: Any = None,
        key_mask: Any = None,
        skip_padding: bool = False,
    ) -> Tensor:
        """What the encoder makes of each token; see `forward`.  tokens (B, T) -> (B, T, C)

        skip_padding: give zeros for padding, for which nothing is then computed.
        """
        with self.entered():
            x, mask = self._embed(tokens, types, lengths, key_mask)
            if skip_padding and mask is not None:
                x = x[mask]  # (B, T, C) -> (N, C)
            for block in self.blocks:
                x = block(x, None, mask)
            return unpacked(self.norm(x) if self.config.norm_first else x, mask)

    def pooled(self, hidden: Any) -> Tensor:
        """One vector for each text, made from its first token.  hidden (B, T, C) -> (B, C)

        Raises ConfigError where the model has no pooler.
        """
        if self.pooler is None:
            raise ConfigError("this BERT has no pooler; take the mean of the tokens, or a config with pooler=True")
        with self.entered():
            return ops.tanh(self.pooler(hidden[:, 0]))

    def look(self, tokens: Any, types: Any = None, *, lengths: Any = None, key_mask: Any = None) -> Look:
        """Compute as `model(tokens)` does, and show every layer's hidden states and attention maps."""
        with no_grad(), self.entered():
            x, mask = self._embed(tokens, types, lengths, key_mask)
            x, hidden_states, (attention_maps,) = watch(self.blocks, x, None, mask)
            logits = self._head(self.norm(x) if self.config.norm_first else x).numpy()
            return Look(logits, hidden_states, attention_maps)

    def _head(self, x: Tensor) -> Tensor:
        if self.head is None:
            raise ConfigError(
                "this BERT has no head that fills in words; use hidden(tokens), or weights with such a head"
            )
        with self.entered():
            return self.head(x, self.wte)

    def _embed(self, tokens: Any, types: Any, lengths: Any, key_mask: Any) -> tuple[Tensor, np.ndarray | None]:
        """The vectors that the first block is given, and the key mask."""
        ids = token_ids(tokens, self.config.context_length, remedy="pass only the first ones")
        mask = real_tokens(ids.shape, lengths, key_mask)
        if types is not None and np.shape(array_of(types)) != ids.shape:
            raise ShapeError(f"types {np.shape(array_of(types))} do not fit tokens {ids.shape}; give one for each")
        of_types = self.wtype[0] if types is None else ops.embedding(self.wtype, types)
        x = ops.embedding(self.wte, ids) + self.wpe[: ids.shape[1]] + of_types  # (B, T) -> (B, T, C)
        return self.dropout(x if self.config.norm_first else self.norm(x)), mask


def _specimens(draw: Any) -> Any:
    plain = BERTConfig(vocab_size=5, context_length=3, n_layer=1, n_head=2, n_embd=4, n_inner=5, dropout=0.1)
    other: Any = {"n_layer": 2, "activation": "gelu", "layer_norm_epsilon": 0.1, "norm_first": True}
    padded = np.array([3, 2]), draw.integers(0, 2, (2, 3))
    for changes, padding in (({}, padded), (other, ())):
        tokens, targets = draw.integers(0, 5, (2, 2, 3))
        targets[0, 0] = -100
        yield BERT(dataclasses.replace(plain, **changes)).loss, (tokens, targets, *padding)


BERT.specimens = _specimens
