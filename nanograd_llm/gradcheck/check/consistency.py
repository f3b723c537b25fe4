"""What must hold of gradients whatever their values: the same again, the same alone, nothing from nothing, symmetry."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from nanograd_llm.autograd.modes import higher_order
from nanograd_llm.autograd.tensor import Tensor, grad
from nanograd_llm.gradcheck.check.comparison import dense, length
from nanograd_llm.gradcheck.check.function import Differentiable
from nanograd_llm.gradcheck.check.rounding import Precisions, nudged, widened

_ALONE = 8  # inputs at most whose gradient is also asked for alone


def problems(
    function: Differentiable, cotangent: np.ndarray, precisions: Precisions, rng: np.random.Generator
) -> list[str]:
    """Where backward twice, asking for one gradient alone, or a cotangent of zeros gives what it should not."""
    y, leaves = function.record(function.values)
    if not y.requires_grad:
        return []
    together, again, nothing = (
        grad(y, leaves, v, retain_graph=True) for v in (cotangent, cotangent, np.zeros_like(cotangent))
    )
    found = []
    for name, a, b, zero in zip(function.names, together, again, nothing):
        if not np.array_equal(a, b, equal_nan=True):
            off = np.abs(a - b).max()
            found.append(f"two backward passes over one tape give {name} gradients that differ, by up to {off:.1e}")
        if (zero[np.isfinite(a)] != 0).any():
            found.append(f"a cotangent of zeros gives {name} a gradient that is not zero")
    for k, leaf in enumerate(leaves[:_ALONE] if len(leaves) > 1 else ()):
        alone = grad(y, leaf, cotangent, retain_graph=True)
        off = np.abs(alone - together[k]).max(initial=0)
        if off > precisions.given.c * precisions.given.epsilon * np.abs(together[k]).max(initial=0):
            found.append(f"the gradient of {function.names[k]}, asked for alone, is another, by up to {off:.1e}")
    return found


def asymmetry(
    function: Differentiable, cotangent: np.ndarray, precisions: Precisions, rng: np.random.Generator
) -> list[str]:
    """Whether the Hessian of ⟨v, f⟩ is not symmetric: ⟨w, H u⟩ must be ⟨u, H w⟩."""
    u, w = ([dense(rng, x.shape) * length(x) for x in function.values] for _ in range(2))

    def difference(values: Sequence[np.ndarray]) -> tuple[float, float]:
        """⟨w, H u⟩ - ⟨u, H w⟩, and the sizes of all terms together."""
        products = []
        with higher_order():
            y, leaves = function.record(values)
            if not y.requires_grad:
                return 0.0, 0.0
            gradient = grad(y, leaves, cotangent.astype(y.dtype))
            for one, other in ((u, w), (w, u)):
                terms = [(g * d.astype(g.dtype)).sum() for g, d in zip(gradient, one)]
                along = functools.reduce(Tensor.__add__, terms)
                hessian = grad(along, leaves) if along.requires_grad else [Tensor(np.zeros(x.shape)) for x in u]
                products.append([d * h.data for d, h in zip(other, hessian)])
        sums = [sum(p.sum() for p in product) for product in products]
        size = sum(float(np.abs(p).sum()) for product in products for p in product)
        return float(sums[0] - sums[1]), size

    given = precisions.given
    off, size = difference(function.values)
    if not np.isfinite(off) or abs(off) <= 4 * given.c * given.epsilon * size:
        return []
    if precisions.pair is not None:
        narrow, wide = (difference([x.astype(p.dtype) for x in function.values]) for p in precisions.pair)
        bound = 4 * given.c * given.epsilon * wide[1]
        if abs(wide[0]) <= max(bound, 64 * precisions.pair[1].epsilon / precisions.pair[0].epsilon * abs(narrow[0])):
            return []
        if wide[1] <= precisions.pair[1].epsilon * given.c * np.abs(cotangent).max(initial=0):
            return []
    bound = 4 * given.c * given.epsilon * size
    if abs(off) <= widened(bound, off, lambda: difference(nudged(function.values, rng))[0]):
        return []
    return [f"the Hessian is not symmetric: ⟨w, H u⟩ and ⟨u, H w⟩ differ by {abs(off):.1e}, of terms of {size:.1e}"]
