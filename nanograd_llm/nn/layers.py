"""The basic layers: linear, embedding, two norms, dropout, Sequential, and the two-layer perceptron of a transformer.

B batch, T time, C channels; weights are (in, out), as in GPT-2's files, so y = x W + b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.tensor import Parameter, Tensor
from nanograd_llm.backend.arrays import on_default_device
from nanograd_llm.backend.randomness import next_key
from nanograd_llm.nn.module import Module
from nanograd_llm.settings import require_choice, require_int, require_number, require_type

ACTIVATIONS: dict[str, Callable[[Any], Tensor]] = {
    "gelu": ops.gelu,
    "gelu_exact": ops.gelu_exact,
    "relu": ops.relu,
    "silu": ops.silu,
}


class Unfilled:
    """Given as `rng`, it makes parameters that use no memory: read-only zeros of the right shape.

    `load_state_dict(arrays, assign=True)` replaces them.
    """


def normal(shape: tuple[int, ...], std: float, rng: np.random.Generator | None) -> Parameter:
    """A float32 parameter drawn from a normal distribution of mean 0; with rng=None from a random seed."""
    if isinstance(rng, Unfilled):
        return Parameter(np.broadcast_to(on_default_device(np.zeros((), np.float32)), shape))
    rng = rng or np.random.default_rng()
    return Parameter(rng.standard_normal(shape, dtype=np.float32) * np.float32(std))


def _constant(value: float, size: int) -> Parameter:
    return Parameter(np.full(size, value, dtype=np.float32))


class Linear(Module):
    """y = x W + b over the last axis.  x (..., n_in) -> y (..., n_out)

    std: initial standard deviation of the weights; 1/√n_in by default, which preserves the variance. The initial bias
        is 0.
    adapter: a Module whose result is added, or None: see `nn.lora`.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        bias: bool = True,
        std: float | None = None,
        rng: np.random.Generator | None = None,
    ):
        require_int("n_in", n_in, 1)
        require_int("n_out", n_out, 1)
        self.weight = normal((n_in, n_out), n_in**-0.5 if std is None else std, rng)
        self.bias = _constant(0, n_out) if bias else None
        self.adapter: Any = None

    def forward(self, x: Any) -> Tensor:
        y = ops.linear(x, self.weight, self.bias)
        return y if self.adapter is None else y + self.adapter(x)


Linear.specimens = lambda draw: [
    (Linear(3, 2), (draw(2, 4, 3),)),
    (Linear(1, 3, bias=False), (draw(1),)),
    (Linear(2, 1), (draw(0, 2),)),
]


class Embedding(Module):
    """A learned vector for each of `count` ids.  ids (...) integers from 0 to count-1 -> (..., size)"""

    def __init__(self, count: int, size: int, *, std: float = 0.02, rng: np.random.Generator | None = None):
        require_int("count", count, 1)
        require_int("size", size, 1)
        self.weight = normal((count, size), std, rng)

    def forward(self, ids: Any) -> Tensor:
        return ops.embedding(self.weight, ids)


Embedding.specimens = lambda draw: [(Embedding(3, n), (draw.integers(0, 3, (2, 3)),)) for n in (1, 2)]


class LayerNorm(Module):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift by learned vectors.

    (..., C) -> (..., C). Ba, Kiros and Hinton 2016.
    """

    def __init__(self, size: int, *, eps: float = 1e-5):
        require_int("size", size, 1)
        self.weight, self.bias = _constant(1, size), _constant(0, size)
        self.eps = eps

    def forward(self, x: Any) -> Tensor:
        return ops.layernorm(x, self.weight, self.bias, eps=self.eps)


LayerNorm.specimens = lambda draw: [(LayerNorm(n), (draw(B, 2, n),)) for B, n in [(1, 2), (2, 3), (0, 3)]]


class RMSNorm(Module):
    """Divide the last axis by its root mean square, then scale by a learned vector.

    (..., C) -> (..., C). Zhang and Sennrich 2019.
    """

    def __init__(self, size: int, *, eps: float = 1e-5):
        require_int("size", size, 1)
        self.weight = _constant(1, size)
        self.eps = eps

    def forward(self, x: Any) -> Tensor:
        return ops.rmsnorm(x, self.weight, eps=self.eps)


RMSNorm.specimens = lambda draw: [(RMSNorm(n), (draw(B, 2, n),)) for B, n in [(1, 2), (2, 3), (0, 3)]]


class Dropout(Module):
    """In training, set elements to zero with probability `rate`, 0 ≤ rate < 1.  (...) -> (...)

    Inside a block `randomness.noise(seed, step, shard)` these numbers determine the mask; outside it is random.
    """

    def __init__(self, rate: float):
        require_number("dropout", rate, 0, 1, below=True)
        self.rate = rate

    def forward(self, x: Any) -> Any:
        if not self.training or self.rate == 0:
            return x
        return ops.dropout(x, rate=self.rate, seed=next_key())


Dropout.specimens = lambda draw: [(Dropout(0.4), (draw(3, n),)) for n in (1, 3)]


class Sequential(Module):
    """Layers applied in order, each a Module or a function such as `ops.relu`; `model[0]` is the first."""

    def __init__(self, *layers: Callable[[Any], Any]):
        for layer in layers:
            require_type("each layer", layer, Callable, "a Module or a function")  # type: ignore[arg-type]
        self.layers = list(layers)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Any:
        return self.layers[index]


Sequential.specimens = lambda draw: [
    (Sequential(Linear(3, 2), ops.tanh, LayerNorm(2)), (draw(2, 3),)),
    (Sequential(Linear(2, 2, bias=False)), (draw(3, 2),)),
]


class MLP(Module):
    """A linear layer to n_inner channels, the activation, a linear layer back, and dropout.  (..., C) -> (..., C)

    n_inner: channels between the layers; 4 n_embd by default.
    activation: gelu (GPT-2's tanh form), gelu_exact, relu or silu.
    down_std: initial standard deviation of `down.weight`, whose result is added to the residual stream.
    """

    def __init__(
        self,
        n_embd: int,
        *,
        n_inner: int | None = None,
        activation: str = "gelu",
        dropout: float = 0.0,
        down_std: float = 0.02,
        rng: np.random.Generator | None = None,
    ):
        require_choice("activation", activation, ACTIVATIONS)
        n_inner = 4 * n_embd if n_inner is None else n_inner
        self.up = Linear(n_embd, n_inner, std=0.02, rng=rng)
        self.activation = activation
        self.down = Linear(n_inner, n_embd, std=down_std, rng=rng)
        self.dropout = Dropout(dropout)

    def forward(self, x: Any) -> Tensor:
        activation = ACTIVATIONS[self.activation]
        return self.dropout(self.down(activation(self.up(x))))  # (..., C) -> (..., 4C) -> (..., C)


MLP.specimens = lambda draw: [
    (MLP(1, dropout=0.2), (draw(2, 1),)),
    (MLP(3, activation="gelu_exact", dropout=0.2), (draw(2, 3),)),
]
