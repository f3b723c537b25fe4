"""Recomputing activations: the forward does not keep what a module computes inside; backward computes it again.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016), call this checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nanograd_llm.autograd.modes import modes, no_grad, recording
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tape import Node, walk
from nanograd_llm.autograd.tensor import Tensor, origin
from nanograd_llm.backend.randomness import NoiseBlock, repeatable_noise
from nanograd_llm.errors import GraphError
from nanograd_llm.nn.module import Module
from nanograd_llm.settings import require_type


def recompute(module: Module, x: Tensor, *others: Any) -> Tensor:
    """module(x, *others) with exactly the same numbers and gradients, but only x and the result are saved on the tape.

    Backward runs the module again, one module at a time. So the activations of only one module are in memory at once,
    and the time of one more forward is added. Dropout uses the same mask again.

    The module must map a Tensor to a Tensor, and depend only on its inputs and its own parameters. others: inputs that
    need no gradient, such as a mask. Raises DtypeError if x or the result is no Tensor. Backward raises GraphError if
    the second result differs from the first, because a parameter or a mode has changed, or if a Tensor other than x and
    the parameters needs a gradient; to compare, it waits for each module on a GPU. In `checked()`, `watched()` and
    `higher_order()` nothing is recomputed: this is module(x, *others), with every op on the tape.
    """
    require_type("module", module, Module, "a Module")
    require_type("x", x, Tensor, "a Tensor")
    inputs = [x, *module.parameters()]
    now = modes()
    if not now.recording or now.tracing_calls or now.higher_order or not any(t.requires_grad for t in inputs):
        return module(x, *others)
    first_noise, same_noise = repeatable_noise()
    with no_grad(), first_noise:
        y = module(x, *others)
    require_type(f"the result of {type(module).__name__}", y, Tensor, "a Tensor")
    sources = tuple([origin(t) if t.requires_grad else None for t in inputs])
    rule = _Recomputation(module, others, same_noise)
    return Tensor._recorded(y.data, Node(rule, sources, (x.data, y.data), y.data, differentiable=False))


class _Recomputation:
    """A placeholder on the tape in place of an op. Its rule runs the module again, recorded, and walks that tape."""

    def __init__(self, module: Module, others: tuple[Any, ...], same_noise: Callable[[], NoiseBlock]):
        self.module, self.others, self.same_noise = module, others, same_noise
        self.name = f"recomputation of {type(module).__name__}"

    def pull_back(self, node: Node, cotangent: Any, needs: tuple[bool, ...], sums: Sums) -> list[Any]:
        before, result = node.saved
        x = Tensor(before, requires_grad=needs[0])
        with recording(), self.same_noise():
            y = self.module(x, *self.others)
        if not np.array_equal(y.data, result, equal_nan=True):
            raise GraphError(
                f"{self.name} gave another result in backward than in forward: a parameter was changed, train() or "
                "eval() was called, or the module depends on more than its inputs; change nothing until backward"
            )
        leaves = [x, *self.module.parameters()]
        inner = Sums(out={leaf: array for leaf, array in zip(leaves, sums.into(node.sources)) if array is not None})
        if y.requires_grad:
            for step in walk(origin(y), cotangent, inner):
                del step  # free its memory for the next rule
        if not inner.pending.keys() <= {*leaves}:
            raise GraphError(
                f"{self.name} uses a Tensor that needs a gradient and is neither its first input nor its parameter; "
                "make it a Parameter of the module, or call the module without recompute"
            )
        return [inner.total(leaf) if leaf in inner.pending else None for leaf in leaves]
