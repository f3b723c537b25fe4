"""Sums of gradients: the gradient of a Tensor that is used in several places is the sum over these uses.

The sum is written into an existing array where nothing else refers to it: an array that a rule has just made, or the
array for a leaf's gradient that the caller gave with `out=`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.modes import modes
from nanograd_llm.backend.arrays import as_array, is_array
from nanograd_llm.errors import DtypeError, ShapeError


class Sums:
    """The sum of the gradients so far at each node and leaf, in one backward pass.

    wanted: the nodes and leaves whose gradient is requested; None for all leaves and for nodes with `retain_grad()`.
    out: leaf -> array that its gradient is written into, for some leaves.
    pending: node or leaf -> the sum so far; a node's is removed when the walk reaches the node.
    owned: nodes and leaves whose pending array nothing else refers to, so that the next sum may be written into it.
    found: node or leaf -> its complete gradient, where that is requested.
    """

    def __init__(self, wanted: set[Any] | None = None, out: Mapping[Any, Any] | None = None):
        self.wanted = wanted
        self.out = out or {}
        self.pending: dict[Any, Any] = {}
        self.owned: set[Any] = set()
        self.found: dict[Any, Any] = {}

    def take(self, node: Any) -> Any:
        """The complete cotangent of a node, after its hooks; None if no gradient has reached the node."""
        cotangent = self.pending.pop(node, None)
        if cotangent is not None:
            if node._hooks:
                cotangent = _run_hooks(node, cotangent)
            if node.retained is not None if self.wanted is None else node in self.wanted:
                self.found[node] = cotangent if modes().higher_order else cotangent.copy()
        return cotangent

    def add(self, node: Any, cotangent: Any, gradients: Sequence[Any]) -> None:
        """Add the gradient of each input of a node to the sum at the input's source."""
        pending, owned, out = self.pending, self.owned, self.out
        is_plain = not (modes().higher_order or node.differentiable)  # gradients are arrays: may be written into
        known: set[int] | None = None  # ids of arrays that the tape or the walk refers to
        for source, gradient in zip(node.sources, gradients):
            if gradient is None:
                continue
            if source in owned:
                if gradient is not pending[source]:  # otherwise the rule has added its gradient `onto` it already
                    np.add(pending[source], gradient, out=pending[source])
            elif source in out:
                if gradient is not out[source]:
                    out[source][...] = gradient
                pending[source] = out[source]
                owned.add(source)
            elif source not in pending and not source.is_leaf:
                pending[source] = gradient  # the owner of this array matters only once another gradient arrives
            else:
                if is_plain and known is None:
                    known = _array_ids((cotangent, *node.saved))
                is_fresh = known is not None and _is_fresh(gradient, known, gradients)
                if source not in pending:
                    pending[source] = gradient
                elif is_fresh:
                    pending[source] = np.add(pending[source], gradient, out=gradient)
                else:
                    pending[source] = as_array(pending[source] + gradient)
                    is_fresh = not modes().higher_order
                if is_fresh:
                    owned.add(source)

    def into(self, sources: Sequence[Any]) -> list[Any]:
        """For each input of a call the array of `out` to write its gradient into, if that is the first; else None."""
        return [self.out[s] if s not in self.pending and self._is_open(s, sources) else None for s in sources]

    def onto(self, sources: Sequence[Any]) -> list[Any]:
        """For each input of a call the array of `out` to add its gradient to, if that is not the first; else None."""
        return [self.out[s] if s in self.pending and self._is_open(s, sources) else None for s in sources]

    def _is_open(self, source: Any, sources: Sequence[Any]) -> bool:
        return source in self.out and [id(other) for other in sources].count(id(source)) == 1

    def total(self, leaf: Any) -> Any:
        """The sum at a leaf, as an array that nothing else refers to."""
        return self.pending[leaf] if leaf in self.owned or modes().higher_order else self.pending[leaf].copy()

    def results(self) -> dict[Any, Any]:
        """After the walk: node or leaf -> gradient, for those requested. The arrays belong to the caller.

        Raises DtypeError for a leaf that is not of a float dtype.
        """
        for leaf in self.pending:  # the nodes have been removed
            if self.wanted is not None and leaf not in self.wanted:
                continue
            if leaf.dtype.kind != "f":
                raise DtypeError(f"a leaf of dtype {leaf.dtype} has requires_grad set; only floats have gradients")
            if leaf._hooks:
                self.pending[leaf] = _run_hooks(leaf, self.pending[leaf])
                self.owned.discard(leaf)  # the hook may have kept a reference to the array
            self.found[leaf] = gradient = self.total(leaf)
            if leaf in self.out and gradient is not self.out[leaf]:
                self.out[leaf][...] = gradient
                self.found[leaf] = self.out[leaf]
        return self.found


def _array_ids(values: Sequence[Any]) -> set[int]:
    """The ids of all arrays among these values, and of the arrays they are views of."""
    ids: set[int] = set()
    for value in values:
        if isinstance(value, (list, tuple)):
            ids |= _array_ids(value)
        elif hasattr(value, "base"):
            ids |= {id(value), id(value.base)}
    return ids


def _is_fresh(gradient: Any, known: set[int], gradients: Sequence[Any]) -> bool:
    """Has the rule just made this array, or the array that it views as a whole, so that nothing else refers to it?"""
    owner = gradient
    if gradient.base is not None:
        owner = gradient.base
        if not is_array(owner) or owner.base is not None or owner.size != gradient.size:
            return False
        if not gradient.flags.forc:
            return False
    return (
        id(owner) not in known
        and getattr(gradient.flags, "writeable", True)  # CuPy has no such flag
        and sum([g is owner or getattr(g, "base", None) is owner for g in gradients]) == 1
        and owner.flags.owndata
    )


def _run_hooks(origin: Any, cotangent: Any) -> Any:
    """The cotangent of a node or leaf after its hooks. Raises ShapeError if one changes its shape or dtype."""
    expected = origin.shape, origin.dtype
    for hook in list(origin._hooks):
        replacement = hook(cotangent)
        if replacement is not None:
            found = getattr(replacement, "shape", None), getattr(replacement, "dtype", type(replacement).__name__)
            if found != expected:
                raise ShapeError(
                    f"a hook replaced a cotangent of shape {expected[0]}, {expected[1]} by {found[0]}, {found[1]}; "
                    "return the same shape and dtype"
                )
            cotangent = replacement
    return cotangent
