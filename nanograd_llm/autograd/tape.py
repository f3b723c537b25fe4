"""The tape and the walk along it: reverse-mode differentiation.

Every op call on Tensors records a Node: the op, where its inputs came from, and the arrays that its rule needs.
Backward visits the nodes from the last to the first and computes two kinds of derivative of the final result L:

    cotangent   ȳ = ∂L/∂y of a call's output; complete when the walk reaches the call, since all uses of y are later
    gradients   x̄ = ȳ·∂y/∂x for each input x of the call: one step of the chain rule, by the op's rule

The gradient of an input that is used in several places is the sum over these uses. That is the whole algorithm:

>>> from nanograd_llm import Tensor
>>> x = Tensor([2.0, 3.0], requires_grad=True)
>>> L = (x * x + x).sum()
>>> sums = Sums()
>>> for node, cotangent, gradients in walk(L._node, np.ones((), "float32"), sums):
...     print(f"{node.op.name}: {cotangent} ->", *gradients)
sum: 1.0 -> [1. 1.]
add: [1. 1.] -> [1. 1.] [1. 1.]
multiply: [1. 1.] -> [2. 3.] [2. 3.]
>>> print(sums.pending[x])
[5. 7.]
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.checked import Guard
from nanograd_llm.autograd.modes import modes
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.backend.arrays import is_array, xp
from nanograd_llm.backend.threads import fork_safe_lock
from nanograd_llm.errors import GraphError, ShapeError


def walk(root: Any, seed: Any, sums: Sums, retain: bool = False) -> Iterator[tuple[Node, Any, list[Any]]]:
    """Backward from `root`, a node or a leaf, one op call at a time: yields (node, cotangent, gradients).

    seed: the cotangent of root.
    sums: collects the gradients; after the walk `pending` holds those of the leaves.
    retain: keep the tape for another walk; otherwise each node is freed after its step.

    `gradients` has one for each input of the call, in the input's shape and dtype, or None where none is needed. Each
    `next()` first adds the gradients of the last step to the sums, which may overwrite them, so copy what you keep;
    then it runs the next rule. Close the generator to stop early.

    Raises GraphError if a node is freed or another walk is using it.
    """
    with _claimed(root) as nodes:
        sums.pending[root] = seed
        needed = _need_gradient(nodes, sums.wanted)
        for node in reversed(nodes):
            cotangent = sums.take(node)
            needs = tuple([source in needed for source in node.sources])
            if cotangent is not None and True in needs:
                gradients = _pull_back(node, cotangent, needs, sums)
                yield node, cotangent, gradients
                sums.add(node, cotangent, gradients)
                del cotangent, gradients  # free their memory for the next rule
            if not retain:
                node.free()


def backward(root: Any, seed: Any, sums: Sums, retain: bool = False) -> dict[Any, Any]:
    """The whole walk: node or leaf -> gradient, for those that `sums` wants. The arrays belong to the caller."""
    for step in walk(root, seed, sums, retain):
        del step  # free its memory, as in the walk
    return sums.results()


def _need_gradient(nodes: Sequence[Node], wanted: set[Any] | None) -> set[Any]:
    """The nodes and leaves that need a gradient: the wanted ones and what was computed from them; all if None."""
    needed = set() if wanted is None else {*wanted}
    for node in nodes:
        if wanted is None:
            needed.update(node.sources)
        elif not needed.isdisjoint(node.sources):
            needed.add(node)
    return needed - {None}


def _pull_back(node: Node, cotangent: Any, needs: tuple[bool, ...], sums: Sums) -> list[Any]:
    """Run a node's rule: a gradient of the shape and dtype of each input that needs one, None for the others."""
    if node.guard is not None:
        cotangent = node.guard.cotangent(cotangent)
    gradients = node.op.pull_back(node, cotangent, needs, sums)
    if node.guard is not None:
        node.guard.gradients(gradients, node.sources, [cotangent, *node.saved])
    for i, (source, gradient) in enumerate(zip(node.sources, gradients)):
        if gradient is not None and (gradient.shape != source.shape or gradient.dtype != source.dtype):
            gradients[i] = _fit(gradient, source, node.op, i)
    return gradients


def _fit(gradient: Any, source: Any, op: Any, i: int) -> Any:
    """Undo broadcasting, which used one number in many places: sum over the repeated axes. Then cast to the dtype.

    Raises ShapeError for a shape that broadcasting does not explain.
    """
    shape = source.shape
    if gradient.shape != shape:
        extra = gradient.ndim - len(shape)
        fits = extra >= 0 and all(n in (1, m) for n, m in zip(shape, gradient.shape[extra:]))
        if not fits or not op.broadcasts(i, shape, gradient.shape):
            sums = "; a gradient has the shape of its input: sum it over the other axes" if fits else ""
            raise ShapeError(
                f"the rule of {op.name} returned a gradient of shape {gradient.shape} for its input "
                f"{op.input_name(i)} of shape {shape}{sums}"
            )
        repeated = (axis + extra for axis, n in enumerate(shape) if n == 1 and gradient.shape[axis + extra] != 1)
        gradient = gradient.sum(axis=(*range(extra), *repeated), keepdims=True).reshape(shape)
    return gradient if gradient.dtype == source.dtype else gradient.astype(source.dtype)


calls = itertools.count()  # numbers op calls, and updates of leaves in place between them


class Node:
    """One recorded op call.

    sources: for each input the leaf Tensor or node it came from; None if it needs no gradient.
    saved: the arguments of the op's rule after the cotangent.
    shape, dtype: of the output.
    order: the number of the call; sorting by it puts every call after those it depends on.
    differentiable: was it recorded under `higher_order()`, with saved inputs that have a tape themselves?
    claimed: is a walk using this node? freed: has a walk passed it, and dropped what was saved?
    _hooks, retained: the output Tensor's hooks, and a weak reference to it if `retain_grad()` was called.
    guard: tests the call's cotangent and gradients, in `checked()` mode.

    A node does not refer to its output Tensor, so there are no cycles: dropping the last Tensor frees the whole tape.
    """

    __slots__ = (
        "op", "sources", "saved", "shape", "dtype", "order", "differentiable", "claimed", "freed", "_hooks", "retained",
        "guard", "__weakref__",
    )  # fmt: skip
    is_leaf = False

    def __init__(self, op: Any, sources: tuple[Any, ...], saved: tuple[Any, ...], y: Any, differentiable: bool):
        self.op = op
        self.sources = sources
        self.saved = saved
        self.shape: tuple[int, ...] = y.shape
        self.dtype: np.dtype = y.dtype
        self.order = next(calls)
        self.differentiable = differentiable
        self.claimed = self.freed = False
        self._hooks: list[Callable[[Any], Any]] | None = None
        self.retained: Any = None
        self.guard: Guard | None = None

    def free(self) -> None:
        self.freed = True
        self.sources = self.saved = ()
        self._hooks = self.guard = None


_claim_lock = fork_safe_lock()


@contextlib.contextmanager
def _claimed(root: Any) -> Iterator[Sequence[Node]]:
    """Reserve `root` and all nodes it depends on for one walk; gives them in the order of their calls.

    Raises GraphError, and reserves none, if one is freed, in use by another walk, or was recorded outside
    `higher_order()` while inside it now, or has saved an array that an augmented assignment has changed since.
    """
    seen: set[Node] = set()
    updated: set[Any] = set()
    stack = [root]
    with _claim_lock:
        while stack:
            node = stack.pop()
            if not isinstance(node, Node):
                if getattr(node, "_updated", 0):
                    updated.add(node)
                continue
            if node in seen:
                continue
            if node.freed:
                raise GraphError(
                    f"graph freed: backward already passed through {node.op.name}; call it once, or pass "
                    "retain_graph=True to the earlier call"
                )
            if node.claimed:
                raise GraphError("another backward is walking this tape; run one after the other, or record it twice")
            if modes().higher_order and not node.differentiable:
                raise GraphError(
                    f"{node.op.name} was recorded outside higher_order(); compute the function inside the block as well"
                )
            seen.add(node)
            stack.extend(node.sources)
        nodes = sorted(seen, key=lambda node: node.order)
        for leaf in updated:
            _require_unchanged(leaf, nodes)
        for node in nodes:
            node.claimed = True
    try:
        yield nodes
    finally:
        for node in nodes:
            node.claimed = False


def _require_unchanged(leaf: Any, nodes: Sequence[Node]) -> None:
    """Raise GraphError if a node has saved the array of this leaf before its last update in place."""
    for node in nodes:
        for x in node.saved if node.order < leaf._updated else ():
            for part in x if isinstance(x, (list, tuple)) else (x,):
                array = part if is_array(part) else getattr(part, "data", None)  # a Tensor, under higher_order()
                if is_array(array) and xp(array) is xp(leaf.data) and np.may_share_memory(array, leaf.data):
                    raise GraphError(
                        f"a Tensor of shape {leaf.shape} was updated in place after {node.op.name} had used it, and "
                        "backward needs the earlier numbers; update after backward"
                    )
