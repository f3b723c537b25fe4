"""The encoder-decoder: an encoder reads a source, a decoder that looks at it writes the target, a token at a time.

Vaswani et al., "Attention Is All You Need" (2017). With `norm_first` a norm is before each part, and one after
each stack, as is usual today; without it, norms are where the paper and Marian's models have them.

B batch, S source time, T target time, C channels (n_embd), H heads, V vocabulary
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.autograd.tensor import Parameter, Tensor, array_of
from nanograd_llm.backend.arrays import to_host, xp
from nanograd_llm.errors import ShapeError
from nanograd_llm.models.inputs import reaching_targets, real_tokens, token_ids, warn_of_shift
from nanograd_llm.models.transformer import ShownByShapes, TransformerConfig, fresh, watch
from nanograd_llm.nn.cache import KeyValueCache
from nanograd_llm.nn.layers import Dropout, LayerNorm, Linear, normal
from nanograd_llm.nn.module import Module
from nanograd_llm.settings import IGNORE_INDEX, setting

POSITIONS = ("sinusoidal", "sinusoidal_halves", "learned")


class EncoderDecoderConfig(TransformerConfig):
    """The sizes of an encoder-decoder, and in what its kinds differ. Raises ConfigError naming the field."""

    source_vocab_size: int | None = setting(
        "Tokens of the source; if not given, source and target have one vocabulary and share one table.",
        default=None,
        low=1,
    )
    n_decoder_layer: int | None = setting("Blocks of the decoder; n_layer if not given.", default=None, low=1)
    norm_first: bool = setting("Normalise what enters each part of a block; else what leaves it.", default=True)
    positions: str = setting(
        "How positions are encoded: sines and cosines, alternating (sinusoidal) or in two halves, or learned vectors.",
        default="sinusoidal",
        choices=POSITIONS,
    )
    scale_embedding: bool = setting("Multiply the vectors of the tokens by √n_embd.", default=True)
    tie_word_embeddings: bool = setting("Use the token table as the head; else the head has its own.", default=True)
    head_bias: bool = setting("Add a bias to each logit.", default=False)
    label_smoothing: float = setting(
        "While training, this share of each target's weight is spread over all tokens.", default=0.0, high=1, below=True
    )
    pad_id: int = setting("The id that fills up a shorter source; no token looks at it.", default=0)
    start_id: int = setting("The id that a target begins with, before its first token.", default=0)
    end_id: int = setting("The id that ends a target.", default=0)


@dataclasses.dataclass(frozen=True, repr=False)
class EncoderDecoderLook(ShownByShapes):
    """What an encoder-decoder computed on the way, as arrays.

    logits: (B, T, V). encoder_states: (B, S, C) and decoder_states: (B, T, C), before the first block and after each.
    encoder_maps: (B, H, S, S), decoder_maps: (B, H, T, T), cross_maps: (B, H, T, S), one for each block; row i says how
    much token i looks at each token.
    """

    logits: np.ndarray
    encoder_states: list[np.ndarray]
    decoder_states: list[np.ndarray]
    encoder_maps: list[np.ndarray]
    decoder_maps: list[np.ndarray]
    cross_maps: list[np.ndarray]


class EncoderDecoder(Module):
    """`model(source, target_in)` gives the logits of the token that follows each of target_in, of which the first is
    start_id.

    Initialised normal: tables with standard deviation 0.02, matrices with √(2 / (rows + columns)), which keeps the size
    of what passes forward and backward (Glorot and Bengio 2010). `seed` decides every number; with None there are none
    yet, as for a GPT.
    """

    loss_items = "tokens"

    def __init__(self, config: EncoderDecoderConfig, seed: int | None = 0):
        rng = fresh(config, EncoderDecoderConfig, seed)
        self.config = c = config
        C = c.n_embd
        self.source_table = normal((c.source_vocab_size or c.vocab_size, C), 0.02, rng)
        self.target_table = normal((c.vocab_size, C), 0.02, rng) if c.source_vocab_size else self.source_table
        self.source_positions = self.target_positions = None
        if c.positions == "learned":
            self.source_positions = normal((c.context_length, C), 0.02, rng)
            self.target_positions = normal((c.context_length, C), 0.02, rng)
        self.dropout = Dropout(c.dropout)
        n_decoder_layer = c.n_decoder_layer or c.n_layer
        self.encoder = [c.block(rng, norm_first=c.norm_first, causal=False) for _ in range(c.n_layer)]
        self.encoder_norm = LayerNorm(C, eps=c.layer_norm_epsilon) if c.norm_first else None
        self.decoder = [c.block(rng, norm_first=c.norm_first, cross=True) for _ in range(n_decoder_layer)]
        self.decoder_norm = LayerNorm(C, eps=c.layer_norm_epsilon) if c.norm_first else None
        self.head = None if c.tie_word_embeddings else normal((c.vocab_size, C), 0.02, rng)
        self.head_bias = Parameter(np.zeros(c.vocab_size, np.float32)) if c.head_bias else None
        for layer in self.modules():
            if isinstance(layer, Linear):
                n_in, n_out = layer.weight.shape
                layer.weight = normal((n_in, n_out), math.sqrt(2 / (n_in + n_out)), rng)

    def forward(self, source: Any, target_in: Any, lengths: Any = None) -> Tensor:
        """Logits of each next token.  source (B, S), target_in (B, T) ids -> (B, T, V)

        lengths (B,): how many tokens of each source are real; if not given, those that are not pad_id.
        Raises ShapeError where one exceeds the context, IndexRangeError for an id outside the vocabulary.
        """
        with self.entered():
            return self._head(self.decode(target_in, *self.encode(source, lengths)))

    def loss(self, source: Any, target_in: Any, target: Any) -> Tensor:
        """Mean cross-entropy in nats over the targets that are not -100.  source (B, S), target_in, target (B, T) -> ()

        Teacher forcing: the decoder is given the right tokens up to each place, not what it would have written.
        target_in is start_id, then target without its last. label_smoothing acts while training only. Nothing is
        computed for the padding of the source, nor for what follows the last target that counts.
        """
        warn_of_shift(target_in, target)
        with self.entered():
            real = reaching_targets(target_in, target)
            x = self.decode(target_in, *self.encode(source, packed=True), real=real)
            target = target if real is None else to_host(array_of(target))[real]  # (B, T) -> (N,)
            smoothing = self.config.label_smoothing if self.training else 0.0
            if self.head_bias is None:
                return ops.linear_cross_entropy(x, self.head_table, target, label_smoothing=smoothing)
            return ops.cross_entropy(self._head(x), target, label_smoothing=smoothing)

    def loss_costs(self, *batch: np.ndarray) -> np.ndarray:
        """The tokens of each row that `loss` computes: of the source, and those that reach a target."""
        real = reaching_targets(*batch[-2:])
        targets = batch[-1].shape[-1] if real is None else real.sum(axis=-1)
        return np.count_nonzero(batch[0] != self.config.pad_id, axis=-1) + targets

    def example_batch(self, draw: Any) -> tuple[np.ndarray, ...]:
        """See `Module.example_batch`: (source, target_in, target)"""
        c, T = self.config, min(8, self.config.context_length)
        source = draw.integers(0, c.source_vocab_size or c.vocab_size, (2, T))
        ids = draw.integers(0, c.vocab_size, (2, T + 1))
        target = ids[:, 1:].copy()
        target[0, -1] = IGNORE_INDEX
        return source, ids[:, :-1], target

    @property
    def head_table(self) -> Parameter:
        """(V, C): what the end of the stream is compared with, a row for each token."""
        return self.target_table if self.head is None else self.head

    def encode(self, source: Any, lengths: Any = None, *, packed: bool = False) -> tuple[Tensor, np.ndarray | None]:
        """What the decoder looks at, and which of it is real, None for all.  source (B, S) -> (B, S, C), (B, S)

        packed: compute the real tokens only, (N, C), where some are not.
        """
        x, mask = self._embed_source(source, lengths)
        x = x[mask] if packed and mask is not None else x  # (B, S, C) -> (N, C)
        for block in self.encoder:
            x = block(x, None, mask)
        return (self.encoder_norm(x) if self.encoder_norm else x), mask

    def decode(
        self,
        target_in: Any,
        memory: Any,
        mask: Any = None,
        caches: list[list[KeyValueCache]] | None = None,
        *,
        real: np.ndarray | None = None,
    ) -> Tensor:
        """What the head sees, after each token.  target_in (B, T), memory (B, S, C), mask (B, S) -> (B, T, C)

        memory, mask: from `encode`, also packed.
        caches: from `new_caches`; the tokens then continue what is stored there. Memory is read the first time only.
        real (B, T): compute only the tokens where it is True, (N, C).
        """
        x = self._embed_target(target_in, caches[0][0].length if caches else 0)
        x = x if real is None else x[real]  # (B, T, C) -> (N, C)
        for i, block in enumerate(self.decoder):
            own, cross = caches[i] if caches else (None, None)
            x = block(x, memory, real, mask, cache=own, cross_cache=cross)
        return self.decoder_norm(x) if self.decoder_norm else x

    def next_logits(
        self, target_in: Any, memory: Any, mask: Any = None, caches: list[list[KeyValueCache]] | None = None
    ) -> np.ndarray:
        """Logits of the token that follows the last one; records nothing.  As `decode` -> array (B, V)"""
        with no_grad(), self.entered():
            return array_of(self._head(self.decode(target_in, memory, mask, caches)[:, -1]))

    def new_caches(self, batch: int, source_length: int) -> list[list[KeyValueCache]]:
        """Empty caches for `batch` targets: of each block's self-attention, and of its attention to the source."""
        c, table = self.config, self.source_table
        D = c.n_embd // c.n_head
        sizes = c.context_length, source_length
        kind = D, table.dtype, table.device
        return [[KeyValueCache(batch, c.n_head, size, *kind) for size in sizes] for _ in self.decoder]

    def look(self, source: Any, target_in: Any, lengths: Any = None) -> EncoderDecoderLook:
        """Compute as `model(source, target_in)` does, and show every layer's hidden states and attention maps."""
        with no_grad(), self.entered():
            x, mask = self._embed_source(source, lengths)
            x, encoder_states, (encoder_maps,) = watch(self.encoder, x, None, mask)
            memory = self.encoder_norm(x) if self.encoder_norm else x
            x = self._embed_target(target_in, 0)
            x, decoder_states, (decoder_maps, cross_maps) = watch(self.decoder, x, memory, None, mask)
            logits = self._head(self.decoder_norm(x) if self.decoder_norm else x).numpy()
            return EncoderDecoderLook(logits, encoder_states, decoder_states, encoder_maps, decoder_maps, cross_maps)

    def _head(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.head_table.T, self.head_bias)  # (..., C)·(C, V) -> (..., V)

    def _embed_source(self, source: Any, lengths: Any) -> tuple[Tensor, np.ndarray | None]:
        ids = token_ids(source, self.config.context_length, remedy="give a shorter source")
        key_mask = ids != self.config.pad_id if lengths is None else None
        mask = real_tokens(ids.shape, lengths, key_mask)
        return self._embed(self.source_table, self.source_positions, ids, 0), mask

    def _embed_target(self, target_in: Any, start: int) -> Tensor:
        ids = token_ids(target_in, self.config.context_length, start, remedy="give a shorter target")
        if not ids.shape[1]:
            raise ShapeError(f"a target begins with start_id; got tokens of shape {ids.shape}")
        return self._embed(self.target_table, self.target_positions, ids, start)

    def _embed(self, table: Parameter, positions: Any, ids: np.ndarray, start: int) -> Tensor:
        c, places = self.config, slice(start, start + ids.shape[1])
        if positions is None:
            found = sinusoids(np.arange(places.start, places.stop), c.n_embd, halves=c.positions != "sinusoidal")
            positions, places = xp(table.data).asarray(found, dtype=table.dtype), slice(None)
        x = ops.embedding(table, ids)
        x = x * math.sqrt(c.n_embd) if c.scale_embedding else x
        return self.dropout(x + positions[places])  # (B, T, C)


def sinusoids(places: np.ndarray, n_embd: int, *, halves: bool = False) -> np.ndarray:
    """Channels 2i and 2i + 1 are the sine and the cosine of p / 10000^(2i/C).  places p (T,) -> (T, C) float64

    halves: all sines stand before all cosines, as in Marian's models.
    """
    rates = 10000 ** (-np.arange(0, n_embd, 2) / n_embd)  # of which an odd C has one sine more than cosines
    angles = places[:, None] * rates
    both = np.sin(angles), np.cos(angles)[:, : n_embd // 2]
    if halves:
        return np.concatenate(both, axis=1)
    table = np.empty((len(places), n_embd))
    table[:, 0::2], table[:, 1::2] = both
    return table


def _specimens(draw: Any) -> Any:
    small = EncoderDecoderConfig(vocab_size=4, context_length=3, n_layer=1, n_head=2, n_embd=4, n_inner=2, dropout=0.1)
    paper: dict[str, Any] = {"norm_first": False, "activation": "relu", "label_smoothing": 0.1, "positions": "learned"}
    apart: dict[str, Any] = {"source_vocab_size": 5, "tie_word_embeddings": False, "head_bias": True}
    for changes in ({}, {**paper, **apart, "layer_norm_epsilon": 0.1, "scale_embedding": False}):
        source, ids = draw.integers(1, 4, (2, 2)), draw.integers(1, 4, (2, 3))
        target = ids[:, 1:].copy()
        source[0, -1], target[0, -1] = 0, -100
        yield EncoderDecoder(dataclasses.replace(small, **changes)).loss, (source, ids[:, :-1], target)


EncoderDecoder.specimens = _specimens
