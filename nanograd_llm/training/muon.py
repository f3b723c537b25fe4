"""Muon: each matrix moves by the orthogonal matrix nearest to its mean gradient, so that all directions move alike.

Jordan et al. 2024; with the decay and the scale of Liu et al. 2025 (Moonlight), which makes its steps as large as
those of AdamW, so that both can have the same learning rate:

    u ← μu + (1-μ)g;  p ← p - η λ p - 0.2 η √max(n, m) O(μu + (1-μ)g),  p (n, m),  O(U S Vᵀ) ≈ U Vᵀ
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import Parameter, Tensor
from nanograd_llm.errors import SignatureError
from nanograd_llm.training.adamw import AdamW, Rates
from nanograd_llm.training.optimizer import Optimizer

MOMENTUM, SCALE = 0.95, 0.2
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's: singular values from 0.01 to 1 come between 0.68 and 1.14
ITERATIONS = 5


def orthogonal(matrix: Any) -> Any:
    """About the orthogonal factor U Vᵀ of a matrix U S Vᵀ, by Newton and Schulz's iteration.  (n, m) -> (n, m)

    x ← (a + b G + c G²) x with G = x xᵀ, five times. Only G, on the shorter side, and the product of the brackets are
    computed in between: they are polynomials of the first G, so they commute.

    >>> turned = np.array([[0.6, -0.8], [0.8, 0.6]])
    >>> bool(abs(orthogonal(turned @ np.diag([3.0, 1.0])) - turned).max() < 0.35)
    True
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    a, b, c = NEWTON_SCHULZ
    # the squares of tiny numbers are 0, hence 1e-7; no float(), which would wait for a GPU
    x = matrix / ((matrix * matrix).sum() ** 0.5 + 1e-7)
    gram, product = x @ x.T, None
    for iteration in range(ITERATIONS):
        bracket = gram @ gram
        bracket *= c
        bracket += b * gram
        bracket.reshape(-1)[:: len(bracket) + 1] += a  # on the diagonal
        product = bracket if product is None else bracket @ product
        if iteration < ITERATIONS - 1:
            gram = bracket @ gram @ bracket
    return product @ x


class Muon(AdamW):
    """Optimizer over `parameters`: Muon on those in `matrices`, AdamW on all others, such as tables, norms and biases.

    Other arguments as for AdamW. Each worker updates whole matrices. Raises SignatureError without `matrices`.
    """

    def __init__(
        self, parameters: Sequence[Parameter], *, matrices: Collection[Parameter] | None = None, **settings: Any
    ):
        if isinstance(matrices, Tensor) or not isinstance(matrices, Iterable):
            weights = "[m.weight for _, m in model.named_modules() if isinstance(m, nn.Linear)]"
            raise SignatureError(
                f"Muon moves some parameters as matrices; name them: Muon(model.parameters(), matrices={weights})"
            )
        Optimizer.__init__(self, parameters)  # checks them
        by_muon, order = {id(parameter) for parameter in matrices}, self.order
        self.start = sum(p.size for p in order if id(p) in by_muon)  # behind them are AdamW's parameters
        # first in the flat layout, so that the rest is one range
        super().__init__(sorted(order, key=lambda p: id(p) not in by_muon), **settings)
        self.order = order
        count = sum(id(p) in by_muon for p in self.flat.parameters)
        self.matrices = self.flat.parameters[:count]
        # large and small ones in turn, for workers that take every second one, third one, ...
        self._turns = sorted(range(count), key=lambda i: -self.matrices[i].size)

    def share(self, worker: int, workers: int, gradient: np.ndarray, rates: Rates) -> None:
        gradients, averages = self.flat.views(gradient), self.flat.views(self.m)
        for i in self._turns[worker::workers]:
            _update_matrix(self.matrices[i].data, averages[i], gradients[i], rates)
        blocks = [slice(max(b.start, self.start), b.stop) for b in self.flat.blocks(worker, workers)]
        self.update([block for block in blocks if block.start < block.stop], gradient, rates)

    def moments(self) -> Iterator[tuple[str, Parameter, np.ndarray]]:
        mine = {id(p) for p in self.matrices}
        for kind, parameter, view in super().moments():
            yield "muon.u." if id(parameter) in mine else kind, parameter, view


def _update_matrix(p: Any, u: Any, gradient: Any, rates: Rates) -> None:
    g = gradient * (rates.scale * (1 - MOMENTUM))
    u *= MOMENTUM
    u += g
    direction = orthogonal(MOMENTUM * u + g)
    direction *= SCALE * math.sqrt(max(p.shape)) * rates.learning_rate
    p *= rates.decay
    p -= direction
