"""Sums of gradients: a Tensor that is used in several places gets the sum of what they send back.

The sum is written into an array that is there already wherever nobody else can see that array: one that a rule has
just made, or the place for a leaf's gradient that the caller gave with `out=`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.modes import state
from nanograd_llm.backend.arrays import as_array
from nanograd_llm.errors import DtypeError, ShapeError


class Sums:
    """What has arrived so far at each node and leaf, in one backward pass.

    wanted: the nodes and leaves whose gradient is asked for; None for all leaves, and the nodes that retain theirs.
    out: for some leaves an array that their gradient is written into as it arrives.
    pending: node or leaf -> what has arrived there; a node's is taken out when the walk gets there.
    owned: those whose pending array nobody else can see, so that the next sum may go into it.
    found: node or leaf -> its gradient, where that is asked for.
    """

    def __init__(self, wanted: set[Any] | None = None, out: Mapping[Any, Any] | None = None):
        self.wanted = wanted
        self.out = out or {}
        self.pending: dict[Any, Any] = {}
        self.owned: set[Any] = set()
        self.found: dict[Any, Any] = {}

    def take(self, node: Any) -> Any:
        """The whole cotangent of a node, as its hooks leave it; None where nothing has arrived."""
        cotangent = self.pending.pop(node, None)
        if cotangent is not None:
            if node._hooks:
                cotangent = _run_hooks(node, cotangent)
            if node.retained is not None if self.wanted is None else node in self.wanted:
                self.found[node] = cotangent if state.higher_order else cotangent.copy()
        return cotangent

    def add(self, node: Any, cotangent: Any, gradients: Sequence[Any]) -> None:
        """Add what a node's rule gave for each input to what has arrived at the input's source."""
        pending, owned, out = self.pending, self.owned, self.out
        is_plain = not (state.higher_order or node.differentiable)  # otherwise Tensors, whose arrays nobody writes into
        seen: set[int] | None = None
        for source, gradient in zip(node.sources, gradients):
            if gradient is None:
                continue
            if source in owned:
                if gradient is not pending[source]:  # otherwise the rule itself has added it, `onto` what was there
                    np.add(pending[source], gradient, out=pending[source])
            elif source in out:
                if gradient is not out[source]:
                    out[source][...] = gradient
                pending[source] = out[source]
                owned.add(source)
            elif source not in pending and not source.is_leaf:
                pending[source] = gradient  # whose array it is need not be known unless another gradient arrives
            else:
                if is_plain and seen is None:
                    seen = _arrays_seen((cotangent, *node.saved))
                is_own = seen is not None and _is_own(gradient, seen, gradients)
                if source not in pending:
                    pending[source] = gradient
                elif is_own:
                    pending[source] = np.add(pending[source], gradient, out=gradient)
                else:
                    pending[source] = as_array(pending[source] + gradient)
                    is_own = not state.higher_order
                if is_own:
                    owned.add(source)

    def into(self, sources: Sequence[Any]) -> list[Any]:
        """For each input of a call the array in `out` that its gradient, the first, may be written into; or None."""
        return [self.out[s] if self._is_open(s, sources) and s not in self.pending else None for s in sources]

    def onto(self, sources: Sequence[Any]) -> list[Any]:
        """For each input of a call the array in `out` that its gradient, not the first, may be added to; or None."""
        return [self.out[s] if self._is_open(s, sources) and s in self.pending else None for s in sources]

    def _is_open(self, source: Any, sources: Sequence[Any]) -> bool:
        return source in self.out and sum([source is other for other in sources]) == 1

    def total(self, leaf: Any) -> Any:
        """What has arrived at a leaf, as an array that nobody else sees."""
        return self.pending[leaf] if leaf in self.owned or state.higher_order else self.pending[leaf].copy()

    def results(self) -> dict[Any, Any]:
        """After the walk: each node and leaf whose gradient is asked for, with its gradient, now the caller's own."""
        for leaf in self.pending:  # the nodes have been taken out
            if self.wanted is not None and leaf not in self.wanted:
                continue
            if leaf.dtype.kind != "f":
                raise DtypeError(f"a leaf of dtype {leaf.dtype} has requires_grad set; only floats have gradients")
            if leaf._hooks:
                self.pending[leaf] = _run_hooks(leaf, self.pending[leaf])
                self.owned.discard(leaf)  # the hook may have kept what it saw or gave
            self.found[leaf] = gradient = self.total(leaf)
            if leaf in self.out and gradient is not self.out[leaf]:
                self.out[leaf][...] = gradient
                self.found[leaf] = self.out[leaf]
        return self.found


def _arrays_seen(values: Sequence[Any]) -> set[int]:
    """Ids of all arrays among these values, and of those they are views of."""
    ids: set[int] = set()
    for value in values:
        if isinstance(value, (list, tuple)):
            ids |= _arrays_seen(value)
        elif hasattr(value, "base"):
            ids |= {id(value), id(value.base)}
    return ids


def _is_own(gradient: Any, seen: set[int], gradients: Sequence[Any]) -> bool:
    """Did the rule make this array, or the array it is a whole view of, so that nobody else can see it change?"""
    owner = gradient
    if gradient.base is not None:
        owner = gradient.base
        if not isinstance(owner, np.ndarray) or owner.base is not None or owner.size != gradient.size:
            return False
        if not gradient.flags.forc:
            return False
    return (
        id(owner) not in seen
        and getattr(gradient.flags, "writeable", True)  # CuPy's flags have no such thing
        and sum([g is owner or getattr(g, "base", None) is owner for g in gradients]) == 1
        and owner.flags.owndata
    )


def _run_hooks(origin: Any, cotangent: Any) -> Any:
    """What the hooks of a node or leaf leave of its cotangent. Raises ShapeError for another shape or dtype."""
    expected = origin.shape, origin.dtype
    for hook in list(origin._hooks):
        replacement = hook(cotangent)
        if replacement is not None:
            found = getattr(replacement, "shape", None), getattr(replacement, "dtype", type(replacement).__name__)
            if found != expected:
                raise ShapeError(
                    f"a hook replaced a cotangent of shape {expected[0]}, {expected[1]} by {found[0]}, {found[1]}; "
                    "both must stay"
                )
            cotangent = replacement
    return cotangent
