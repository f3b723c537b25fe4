"""AdamW: each parameter moves by its mean gradient, divided by the root of its mean squared gradient, and decays.

Kingma and Ba 2015; Loshchilov and Hutter 2019.

    m ← β₁m + (1-β₁)g;  v ← β₂v + (1-β₂)g²;  p ← p - η λ p - η m̂/(√v̂ + ε),  m̂ = m/(1-β₁ᵗ),  v̂ = v/(1-β₂ᵗ)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanograd_llm.autograd.tensor import Parameter
from nanograd_llm.backend.kernels import on_gpu
from nanograd_llm.settings import require_known
from nanograd_llm.training.flat import FlatParameters
from nanograd_llm.training.optimizer import Optimizer, at_step


class Rates(NamedTuple):
    """The factors of a step: rate is that of m/(√v + eps), decay of parameters that decay, scale of the gradient."""

    rate: float
    eps: float
    decay: float
    scale: float
    learning_rate: float


class AdamW(Optimizer):
    """Optimizer over `parameters`; weight_decay (λ) acts on matrices and tables only.

    m and v are flat arrays in the layout of `flat`, as is the gradient that `update` takes; `step` takes a list of
    gradients in the order of the parameters given, and raises GraphError if a parameter left `flat`.
    shared: see `FlatParameters`.
    """

    start = 0  # where in the flat layout v begins: in a subclass, after parameters that need none

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        shared: bool = False,
        **other: Any,
    ):
        require_known(other, type(self).__name__, "beta1 beta2 eps weight_decay", at_step)
        super().__init__(parameters)
        self.flat = FlatParameters(self.order, shared=shared)
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.m, self.v = self.flat.zeros(), self.flat.zeros(self.start)
        self.steps = 0

    def move(self, gradients: Sequence[np.ndarray], learning_rate: float) -> None:
        by_id = {id(p): g for p, g in zip(self.order, gradients)}
        gradient = np.concatenate([by_id[id(p)].reshape(-1) for p in self.flat.parameters])
        self.share(0, 1, gradient, self.next_rates(learning_rate))

    def next_rates(self, learning_rate: float, scale: float = 1.0) -> Rates:
        """Count a step and compute its factors for `update`. scale: of the gradient, for clipping.

        Raises GraphError if a parameter has left `flat`.
        """
        self.flat.require_views()
        self.steps += 1
        # m̂/(√v̂ + ε) with its corrections moved into the factors: η m/(√v + ε√(1-β₂ᵗ)), where
        # η = learning rate * √(1-β₂ᵗ)/(1-β₁ᵗ)
        correction = math.sqrt(1 - self.beta2**self.steps)
        rate, eps = learning_rate * correction / (1 - self.beta1**self.steps), self.eps * correction
        return Rates(rate, eps, 1 - learning_rate * self.weight_decay, scale, learning_rate)

    def share(self, worker: int, workers: int, gradient: np.ndarray, rates: Rates) -> None:
        """A worker's part of the update of all parameters."""
        self.update(self.flat.blocks(worker, workers), gradient, rates)

    def moments(self) -> Iterator[tuple[str, Parameter, np.ndarray]]:
        """What a resumed run needs: the kind, such as "adamw.m.", the parameter, and the array in its shape."""
        for kind, array in (("adamw.m.", self.m), ("adamw.v.", self.v)):
            views = self.flat.views(array)
            yield from ((kind, p, view) for p, view in zip(self.flat.parameters[-len(views) :], views))

    def update(self, blocks: Iterable[slice], gradient: np.ndarray, rates: Rates) -> None:
        """Update the parameters in these blocks of the flat layout. gradient: the whole flat gradient."""
        for block in blocks:
            p, m, g = (array[block] for array in (self.flat.data, self.m, gradient))
            v = self.v[block.start - self.start : block.stop - self.start]
            decayed = max(0, self.flat.decayed - block.start)
            _update_block(p, m, v, g, rates, 1 - self.beta1, 1 - self.beta2, decayed)


@on_gpu
def _update_block(p, m, v, gradient, rates, one_minus_beta1, one_minus_beta2, decayed):
    # only operations in place or with one number: NumPy computes those fastest
    scratch = gradient * (one_minus_beta1 * rates.scale)
    m *= 1 - one_minus_beta1
    m += scratch
    np.multiply(gradient, math.sqrt(one_minus_beta2) * rates.scale, out=scratch)
    scratch *= scratch
    v *= 1 - one_minus_beta2
    v += scratch
    np.sqrt(v, out=scratch)
    scratch += rates.eps
    np.divide(m, scratch, out=scratch)
    scratch *= rates.rate
    p[:decayed] *= rates.decay
    p -= scratch


def clip_by_global_norm(gradients: Sequence[np.ndarray], max_norm: float) -> float:
    """Scale gradients in place so that their global norm is at most max_norm; returns the norm before.

    Pascanu, Mikolov and Bengio 2013. If a number is not finite, nothing is changed.
    """
    with np.errstate(over="ignore"):  # a sum of squares that overflows is infinite, which the norm shows
        squares = [np.vdot(g, g) for g in gradients]  # all of them, before one waits for a GPU
        norm = math.sqrt(sum(map(float, squares)))
    if math.isfinite(norm) and norm > max_norm:
        for g in gradients:
            g *= max_norm / norm
    return norm
