"""What all models of transformer blocks share: their sizes, their fresh weights, and a look at what the blocks compute.

B batch, T time, C channels (n_embd), H heads, V vocabulary
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.nn.attention import head_size
from nanograd_llm.nn.block import Block
from nanograd_llm.nn.layers import ACTIVATIONS, Unfilled
from nanograd_llm.nn.module import Module
from nanograd_llm.settings import Settings, require_seed, require_type, setting


class TransformerConfig(Settings):
    """The sizes that every model here has. Raises ConfigError naming the field."""

    vocab_size: int = setting("Number of tokens in the vocabulary.", low=1)
    context_length: int = setting("Number of tokens that the model sees at once.", low=1)
    n_layer: int = setting("Number of blocks.", low=1)
    n_head: int = setting("Number of attention heads in each block.", low=1)
    n_embd: int = setting("Number of channels, a multiple of n_head.", low=1)
    dropout: float = setting("Share of activations set to zero in training.", default=0.0, high=1, below=True)
    n_inner: int | None = setting("Width of the MLPs; 4 * n_embd if not given.", default=None, low=1)
    layer_norm_epsilon: float = setting("Added to the variance in each layer norm.", default=1e-5)
    activation: str = setting("Of the MLPs: gelu is GPT-2's tanh form.", default="gelu", choices=ACTIVATIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        head_size(self.n_embd, self.n_head)

    def block(self, rng: Any, **kind: Any) -> Block:
        """A block of these sizes. kind: further arguments of `Block`, such as causal."""
        sizes = {"n_inner": self.n_inner, "activation": self.activation, "eps": self.layer_norm_epsilon}
        return Block(self.n_embd, self.n_head, **sizes, dropout=self.dropout, rng=rng, **kind)  # type: ignore[arg-type]


def fresh(config: Any, kind: type[TransformerConfig], seed: int | None) -> Any:
    """The generator of a new model's weights; with the seed None, what makes read-only zeros that use no memory.

    Raises DtypeError unless config is of this kind, ConfigError for another seed.
    """
    require_type("config", config, kind, f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}")
    if seed is None:
        return Unfilled()
    require_seed(seed)
    return np.random.default_rng(seed)


def take_arrays(model: Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Give the parameters of a model these arrays, by name, in their own dtype; others, such as a head, keep theirs.

    Those are `fresh` from then on. An array that the model has no parameter for is left out.
    """
    own = model.arrays()
    model.load_state_dict(
        {name: arrays.get(name, x).astype(x.dtype, copy=False) for name, x in own.items()}, assign=True
    )
    model.fresh = tuple(name for name in own if name not in arrays)


class ShownByShapes:
    """A dataclass of arrays and lists of arrays, which is shown as their shapes."""

    def __repr__(self) -> str:
        values = {name: [value] if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}
        shown = (
            f"{name}: " + (f"{len(arrays)} x " if len(arrays) != 1 else "") + (str(arrays[0].shape) if arrays else "()")
            for name, arrays in values.items()
        )
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclasses.dataclass(frozen=True, repr=False)
class Look(ShownByShapes):
    """The intermediate results of a model, as arrays.

    logits: (B, T, V).
    hidden_states: n_layer + 1 arrays (B, T, C), before the first block and after each block.
    attention_maps: n_layer arrays (B, H, T, T); row i has the weights with which token i attends to each token.
    """

    logits: np.ndarray
    hidden_states: list[np.ndarray]
    attention_maps: list[np.ndarray]


def watch(blocks: Iterable[Block], x: Tensor, *others: Any) -> tuple[Tensor, list[np.ndarray], list[list[np.ndarray]]]:
    """Let x pass the blocks: the result, the hidden states as in `Look`, and the attention maps by kind.

    others: what each block is given beside x. The maps of each token to its own text come first, those to the context,
    where there is one, second.
    """
    states, maps = [x.numpy()], []
    for block in blocks:
        maps.append([weights.numpy() for weights in block.weights(x, *others)])
        x = block(x, *others)
        states.append(x.numpy())
    return x, states, [list(kind) for kind in zip(*maps)]
