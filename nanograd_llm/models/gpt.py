"""GPT-2: token and position embeddings, pre-norm blocks, a final norm, and the token embedding again as the head.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).

B batch, T time, C channels (n_embd), H heads, V vocabulary
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.autograd.tensor import Parameter, Tensor, array_of
from nanograd_llm.backend.arrays import to_host
from nanograd_llm.errors import ShapeError
from nanograd_llm.models.inputs import reaching_targets, token_ids, warn_of_shift
from nanograd_llm.models.transformer import Look, TransformerConfig, fresh, watch
from nanograd_llm.nn.cache import KeyValueCache
from nanograd_llm.nn.layers import Dropout, LayerNorm, normal
from nanograd_llm.nn.module import Module
from nanograd_llm.nn.recompute import recompute
from nanograd_llm.settings import IGNORE_INDEX, require_choice, setting

# gpt2 to gpt2-xl: Radford et al. 2019, table 2. distilgpt2: Sanh et al. 2019, gpt2 with every other block.
PRESETS: dict[str, dict[str, int]] = {
    "nano": dict(vocab_size=1024, context_length=64, n_layer=2, n_head=4, n_embd=128),
    "distilgpt2": dict(vocab_size=50257, context_length=1024, n_layer=6, n_head=12, n_embd=768),
    "gpt2": dict(vocab_size=50257, context_length=1024, n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(vocab_size=50257, context_length=1024, n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(vocab_size=50257, context_length=1024, n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(vocab_size=50257, context_length=1024, n_layer=48, n_head=25, n_embd=1600),
}

TRAINING_ONLY = ("dropout", "recompute_activations")  # settings that affect training only, not the result of a GPT


class GPTConfig(TransformerConfig):
    """The sizes of a GPT, and the options in which models like GPT-2 differ. Raises ConfigError naming the field."""

    scale_attn_weights: bool = setting("Divide attention scores by √(n_embd/n_head).", default=True)
    scale_attn_by_inverse_layer_idx: bool = setting(
        "Also divide attention scores by 1 in the first block, by 2 in the second, and so on.", default=False
    )
    tie_word_embeddings: bool = setting("Use the token embedding as the head; else a table of its own.", default=True)
    recompute_activations: bool = setting(
        "Keep only the input of each block and compute the rest again in backward: less memory, a third more time, "
        "exactly the same numbers.",
        default=False,
    )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> GPTConfig:
        """The sizes of nano, distilgpt2, gpt2, gpt2-medium, gpt2-large or gpt2-xl, with these fields changed.

        Raises ConfigError for another name.
        """
        require_choice("preset", name, PRESETS)
        return cls(**{**PRESETS[name], **changes})


class GPT(Module):
    """A decoder-only transformer: `model(tokens)` gives the logits of each next token.

    Initialised like GPT-2: normal with standard deviation 0.02, biases 0, and the projections into the residual stream
    divided by √(2 n_layer), since 2 n_layer of them are added there. (OpenAI's code uses 0.01 for the position
    embedding; later implementations use 0.02 for all.)

    seed: determines every initial value. With None the parameters are read-only zeros that use no memory, to be
        replaced by `load_state_dict(arrays, assign=True)`.
    """

    loss_items = "tokens"

    def __init__(self, config: GPTConfig, seed: int | None = 0):
        rng = fresh(config, GPTConfig, seed)
        C = config.n_embd
        self.config = config
        self.wte = normal((config.vocab_size, C), 0.02, rng)
        self.wpe = normal((config.context_length, C), 0.02, rng)
        self.dropout = Dropout(config.dropout)
        residual_std = 0.02 / math.sqrt(2 * config.n_layer)
        self.blocks = [
            config.block(rng, scale=_attention_scale(config, layer), residual_std=residual_std)
            for layer in range(config.n_layer)
        ]
        self.ln_f = LayerNorm(C, eps=config.layer_norm_epsilon)
        self.head = None if config.tie_word_embeddings else normal((config.vocab_size, C), 0.02, rng)

    def forward(self, tokens: Any) -> Tensor:
        """Logits of each next token.  tokens (B, T) ids -> (B, T, V)

        Raises ShapeError if T exceeds context_length, IndexRangeError for an id outside the vocabulary, DtypeError for
        tokens that are not integers.
        """
        return self._head(self.hidden(tokens))

    def loss(self, tokens: Any, targets: Any) -> Tensor:
        """Mean cross-entropy in nats over the targets that are not -100.  tokens, targets (B, T) ids -> ()

        The token table is used twice, as embedding and as head, so its gradient is the sum of two. On paper, with one
        channel and nothing between table and head: token 0 has vector 1 and logits 1 and 1 + log 3, so the
        probabilities are 1/4 and 3/4. With target 0 the gradient of the logits is (-3/4, 3/4). As the head the table
        gets this times the vector 1; as the embedding row 0 gets -3/4*1 + 3/4*(1 + log 3).

        >>> wte = Tensor(np.array([[1], [1 + math.log(3)]]), requires_grad=True)
        >>> ops.linear_cross_entropy(ops.embedding(wte, [0]), wte, [0]).backward()
        >>> (wte.grad - [[0.75 * math.log(3)], [0]]).round(9).tolist()
        [[-0.75], [0.75]]
        """
        real = reaching_targets(tokens, targets)
        x = self.hidden(tokens, real=real)  # (B, T, C), or (N, C) where the rest reaches no target
        wanted = targets if real is None else to_host(array_of(targets))[real]
        loss: Tensor = ops.linear_cross_entropy(x, self.head_table, wanted)
        warn_of_shift(tokens, targets)
        return loss

    def loss_costs(self, *batch: np.ndarray) -> np.ndarray:
        """The tokens of each row that `loss` computes; the loss of a subclass may take other arrays behind them."""
        real = reaching_targets(*batch[:2]) if len(batch) > 1 else None
        return super().loss_costs(*batch) if real is None else real.reshape(len(real), -1).sum(axis=1)

    def example_batch(self, draw: Any) -> tuple[np.ndarray, ...]:
        """See `Module.example_batch`: (tokens, targets)"""
        ids = draw.integers(0, self.config.vocab_size, (2, 1 + min(8, self.config.context_length)))
        targets = ids[:, 1:].copy()
        targets[0, 0] = IGNORE_INDEX
        return ids[:, :-1], targets

    @property
    def head_table(self) -> Parameter:
        """The weights of the head, (V, C): row i times the last hidden state is the logit of token i."""
        return self.wte if self.head is None else self.head

    def hidden(
        self, tokens: Any, caches: list[KeyValueCache] | None = None, *, real: np.ndarray | None = None
    ) -> Tensor:
        """The input of the head: the hidden states after the final norm.  tokens (B, T) -> (B, T, C)

        caches: one for each block, from `new_caches`; the tokens continue the sequences stored there.
        real (B, T): compute only the tokens where it is True, (N, C), and let no token see the others.
        """
        with self.entered():
            x = self._embed(tokens, caches[0].length if caches else 0)
            x = x if real is None else x[real]  # (B, T, C) -> (N, C)
            for i, block in enumerate(self.blocks):
                if self.config.recompute_activations and not caches:
                    x = recompute(block, x, None, real)
                else:
                    x = block(x, None, real, cache=caches[i] if caches else None)
            return self.ln_f(x)

    def next_logits(self, tokens: Any, caches: list[KeyValueCache] | None = None) -> np.ndarray:
        """Logits of the token after the last one, without recording.  tokens (B, T), T ≥ 1 -> array (B, V)"""
        with no_grad():
            x = array_of(self.hidden(tokens, caches))
            if not x.shape[1]:
                raise ShapeError(f"next_logits needs at least one token; got tokens of shape {np.shape(tokens)}")
            return x[:, -1] @ self.head_table.data.T

    def new_caches(self, batch: int) -> list[KeyValueCache]:
        """Empty key-value caches for `batch` sequences of up to context_length tokens."""
        c = self.config
        D = c.n_embd // c.n_head
        sizes = c.n_head, c.context_length, D, self.wte.dtype, self.wte.device
        return [KeyValueCache(batch, *sizes) for _ in self.blocks]

    def look(self, tokens: Any) -> Look:
        """The logits of `model(tokens)` together with every layer's hidden states and attention maps."""
        with no_grad(), self.entered():
            x, hidden_states, (attention_maps,) = watch(self.blocks, self._embed(tokens, 0))
            return Look(self._head(self.ln_f(x)).numpy(), hidden_states, attention_maps)

    def _head(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.head_table.T)  # (B, T, C)·(C, V) -> (B, T, V)

    def _embed(self, tokens: Any, start: int) -> Tensor:
        ids = token_ids(tokens, self.config.context_length, start)
        return self.dropout(
            ops.embedding(self.wte, ids) + self.wpe[start : start + ids.shape[1]]
        )  # (B, T) -> (B, T, C)


def _attention_scale(config: GPTConfig, layer: int) -> float | None:
    """What the attention scores of this block are divided by; None for √D."""
    if config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx:
        return None
    scale = math.sqrt(config.n_embd // config.n_head) if config.scale_attn_weights else 1.0
    return scale * (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


def _specimens(draw: Any) -> Any:
    plain = GPTConfig(vocab_size=5, context_length=3, n_layer=1, n_head=2, n_embd=4, dropout=0.1)
    other = {"n_inner": 3, "activation": "gelu_exact", "tie_word_embeddings": False, "layer_norm_epsilon": 0.1}
    scaled = {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}
    for changes in ({}, {"n_layer": 2}, {**other, **scaled}):
        model = GPT(dataclasses.replace(plain, **changes))
        yield model.loss, model.example_batch(draw)


GPT.specimens = _specimens
