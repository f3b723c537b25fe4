"""The tape: a Node for each recorded op call, and the walk from the last node to the first.

The walk hands each rule the cotangent of its op's output and adds what comes back to the cotangents of the inputs.
There is no mathematics here but that: sums at a fork, and sums over the axes that broadcasting repeated.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.checked import Protection, require_finite, require_no_widening
from nanograd_llm.autograd.modes import state
from nanograd_llm.backend.arrays import SCALARS_WIDEN, as_array
from nanograd_llm.backend.threads import fork_safe_lock
from nanograd_llm.errors import DtypeError, GraphError, ShapeError

_order = itertools.count()
_claim_lock = fork_safe_lock()

Hook = Callable[[Any], Any]


class Node:
    """One recorded op call.

    sources: the leaf Tensors and the nodes its inputs came from, None where no gradient goes; None once freed.
    forms: shape and dtype of each source.
    saved: what the op's rule wants to see again, as the op laid it out.
    differentiable: recorded under `higher_order()`, so that what is saved has a tape of its own.
    retained: a weak reference to the output Tensor, if that asked for its gradient.
    place: where the call stands, in `checked()` mode; `protections` then guard the saved arrays.

    A node never points at its own output Tensor, so dropping the last Tensor frees the whole tape: no cycles.
    """

    __slots__ = (
        "op", "sources", "forms", "saved", "shape", "dtype", "order", "differentiable", "claimed", "hooks", "retained",
        "place", "protections", "__weakref__",
    )  # fmt: skip

    def __init__(
        self,
        op: Any,
        sources: tuple[Any, ...],
        forms: tuple[Any, ...],
        saved: tuple[Any, ...],
        y: Any,
        differentiable: bool,
    ):
        self.op = op
        self.sources: tuple[Any, ...] | None = sources
        self.forms = forms
        self.saved = saved
        self.shape: tuple[int, ...] = y.shape
        self.dtype: np.dtype = y.dtype
        self.order = next(_order)
        self.differentiable = differentiable
        self.claimed = False
        self.hooks: list[Hook] | None = None
        self.retained: Any = None
        self.place: str | None = None
        self.protections: Sequence[Protection] = ()

    def free(self) -> None:
        self.sources = None
        self.saved = ()
        self.hooks = None
        self.protections = ()


def walk(
    root: Any,
    seed: Any,
    wanted: set[int] | None,
    retain: bool,
    out: dict[int, Any] | None = None,
    leaf_hooks: bool = True,
) -> dict[int, tuple[Any, Any]]:
    """Run backward from `root`, a Node or a leaf, whose cotangent is `seed`.

    wanted: ids of the nodes and leaves whose gradient is asked for; None for all leaves and the retained nodes.
    out: id -> array, for leaves whose gradient is to be written there as it arrives.
    leaf_hooks: run the hooks of leaves; not in a part of a larger walk, which runs them at its own end.
    Returns id -> (node or leaf, gradient). Each array is the caller's own: nothing on the tape shares it.
    """
    out = out or {}
    pending: dict[int, Any] = {id(root): seed}  # cotangents on their way, by node or leaf
    owned: set[int] = set()  # whose pending array nobody else can see, so that sums may go into it
    leaves: dict[int, Any] = {}
    found: dict[int, tuple[Any, Any]] = {}
    if isinstance(root, Node):
        nodes = _claim(root)
    else:
        nodes = []
        leaves[id(root)] = root
    try:
        leads = _leading(nodes, wanted)
        while nodes:
            node = nodes[-1]
            cotangent = pending.pop(id(node), None)
            if cotangent is not None:
                if node.hooks:
                    cotangent = _run_hooks(node.hooks, cotangent, node.shape, node.dtype)
                is_asked_for = node.retained is not None if wanted is None else id(node) in wanted
                if is_asked_for:
                    found[id(node)] = node, cotangent if state.higher_order else cotangent.copy()
                for source, gradient, is_own in _pull_back(node, cotangent, leads, pending, owned, out):
                    key = id(source)
                    if not isinstance(source, Node):
                        leaves[key] = source
                        if key in out and key not in pending:
                            if gradient is not out[key]:
                                out[key][...] = gradient
                            gradient, is_own = out[key], True
                    _accumulate(pending, owned, key, gradient, is_own)
            if not retain:
                node.free()
            nodes.pop().claimed = False
    finally:
        for node in nodes:
            node.claimed = False
    for key, leaf in leaves.items():
        if wanted is None or key in wanted:
            total = pending[key]
            if total.dtype.kind != "f":
                raise DtypeError(f"a leaf of dtype {total.dtype} has requires_grad set; only floats have gradients")
            hooks = leaf._hooks if leaf_hooks else None
            gradient = _run_hooks(hooks, total, leaf.shape, leaf.dtype) if hooks else total
            is_own = state.higher_order or (key in owned and gradient is total and not hooks)
            if key in out and gradient is not out[key]:
                out[key][...] = gradient
                gradient, is_own = out[key], True
            found[key] = leaf, gradient if is_own else gradient.copy()
    return found


def _claim(root: Node) -> list[Node]:
    """All nodes below `root`, oldest first, marked as being walked; refused where freed or walked by another thread."""
    seen: dict[int, Node] = {}
    stack = [root]
    with _claim_lock:
        while stack:
            node = stack.pop()
            if id(node) in seen:
                continue
            if node.sources is None:
                raise GraphError(
                    f"graph freed: backward already passed through {node.op.name}; call it once, or pass "
                    "retain_graph=True to the earlier call"
                )
            if node.claimed:
                raise GraphError("another backward is walking this tape; run one after the other, or record it twice")
            if state.higher_order and not node.differentiable:
                raise GraphError(
                    f"{node.op.name} was recorded outside higher_order(); compute the function inside the block as well"
                )
            seen[id(node)] = node
            stack.extend(source for source in node.sources if isinstance(source, Node))
        nodes = sorted(seen.values(), key=lambda node: node.order)
        for node in nodes:
            node.claimed = True
    return nodes


def _leading(nodes: list[Node], wanted: set[int] | None) -> set[int] | None:
    """Ids of everything a wanted gradient lies below; None where every leaf is wanted."""
    if wanted is None:
        return None
    leads = set(wanted)
    for node in nodes:
        for source in node.sources or ():
            if id(source) in leads:
                leads.add(id(node))
                break
    return leads


def _accumulate(pending: dict[int, Any], owned: set[int], key: int, gradient: Any, is_own: bool) -> None:
    """Add a gradient to what has already arrived for this key, in place where the array there is ours."""
    if key not in pending:
        pending[key] = gradient
        if is_own:
            owned.add(key)
    elif key in owned:
        np.add(pending[key], gradient, out=pending[key])
    elif is_own:
        pending[key] = np.add(pending[key], gradient, out=gradient)
        owned.add(key)
    else:
        pending[key] = as_array(pending[key] + gradient)
        if not state.higher_order:
            owned.add(key)


def _pull_back(
    node: Node,
    cotangent: Any,
    leads: set[int] | None,
    pending: dict[int, Any],
    owned: set[int],
    out: dict[int, Any],
) -> Iterator[tuple[Any, Any, bool]]:
    """Run a node's rule: (source, gradient in the source's shape and dtype, is it an array of its own) for each.

    The last is found out where it matters: at leaves, and where another gradient is pending already.
    """
    sources = node.sources or ()
    needs = tuple([source is not None and (leads is None or id(source) in leads) for source in sources])
    if True not in needs:
        return
    if node.place is not None:
        cotangent = _checked_cotangent(node, cotangent)
    higher_order = state.higher_order
    into, onto = None, None
    if out:
        keys = [id(source) for source in sources]
        keys = [k if k in out and keys.count(k) == 1 else 0 for k in keys]  # 0 is no id
        into = [out[k] if k and k not in pending else None for k in keys]
        onto = [pending[k] if k in owned else None for k in keys]
    saved, gradients = node.op.pull_back(node, cotangent, needs, into, onto)
    shared: set[int] | None = None
    for i, gradient in gradients:
        if not needs[i] or (onto is not None and onto[i] is not None and gradient is onto[i]):  # it has arrived
            continue
        shape, dtype = node.forms[i]
        if not isinstance(gradient, np.ndarray):
            gradient = as_array(gradient, cotangent)
            if not hasattr(gradient, "dtype"):
                raise GraphError(
                    f"the rule of {node.op.name} returned {gradient!r} for input {i}, which needs a gradient"
                )
        if node.place is not None:
            what = f"the cotangent of input {i} of {node.place}"
            require_finite(gradient.data if higher_order else gradient, what)
            if gradient.dtype != dtype and not (SCALARS_WIDEN and cotangent.shape == ()):
                require_no_widening(gradient.dtype, [cotangent, *saved], what)
        fitted = gradient
        if gradient.shape != shape or gradient.dtype != dtype:
            fitted = _fit(gradient, shape, dtype, node.op.name)
        source, is_own = sources[i], False
        if not higher_order and (not isinstance(source, Node) or id(source) in pending):
            if shared is None:
                shared = _owners((cotangent, *saved))
            is_own = fitted is not gradient or _is_own(gradient, shared, [g for _, g in gradients])
        yield source, fitted, is_own


def _checked_cotangent(node: Node, cotangent: Any) -> Any:
    """In checked mode: the cotangent that arrives at a rule, tested and read-only; what was saved is as it was."""
    arrived = cotangent.data if state.higher_order else cotangent
    require_finite(arrived, f"the cotangent of the result of {node.place}")
    for protection in node.protections:
        if not protection.unchanged():
            raise GraphError(
                f"an array of shape {protection.array.shape} that {node.place} keeps for backward was written into "
                "after the forward; copy it before you change it"
            )
    if isinstance(cotangent, np.ndarray):  # it may be that of another input as well: a rule must not write into it
        cotangent = cotangent.view()
        cotangent.flags.writeable = False
    return cotangent


def _is_own(gradient: Any, shared: set[int], gradients: list[Any]) -> bool:
    """Did the rule make this array, or the array it is a whole view of, so that nobody else can see it change?"""
    owner = gradient
    if gradient.base is not None:
        owner = gradient.base
        if not isinstance(owner, np.ndarray) or owner.base is not None or owner.size != gradient.size:
            return False
        if not gradient.flags.forc:
            return False
    return (
        id(owner) not in shared
        and getattr(gradient.flags, "writeable", True)  # CuPy's flags have no such thing
        and sum([g is owner or getattr(g, "base", None) is owner for g in gradients]) == 1
        and owner.flags.owndata
    )


def _owners(values: Any) -> set[int]:
    """Ids of all arrays among these values, and of those they are views of."""
    ids: set[int] = set()
    for value in values:
        if isinstance(value, (list, tuple)):
            ids |= _owners(value)
        elif hasattr(value, "base"):
            ids |= {id(value), id(value.base)}
    return ids


def _fit(gradient: Any, shape: tuple[int, ...], dtype: np.dtype, name: str) -> Any:
    """Undo broadcasting: sum over the axes that were repeated. Then the source's dtype."""
    if gradient.shape != shape:
        extra = gradient.ndim - len(shape)
        if extra < 0 or any(n not in (1, m) for n, m in zip(shape, gradient.shape[extra:])):
            raise ShapeError(f"the rule of {name} gave a gradient of shape {gradient.shape} for an input of {shape}")
        repeated = (i + extra for i, n in enumerate(shape) if n == 1 and gradient.shape[i + extra] != 1)
        gradient = gradient.sum(axis=(*range(extra), *repeated), keepdims=True).reshape(shape)
    return gradient if gradient.dtype == dtype else gradient.astype(dtype)


def _run_hooks(hooks: list[Hook], cotangent: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    for hook in list(hooks):
        replacement = hook(cotangent)
        if replacement is not None:
            found = getattr(replacement, "shape", None), getattr(replacement, "dtype", type(replacement).__name__)
            if found != (shape, dtype):
                raise ShapeError(
                    f"a hook replaced a cotangent of shape {shape}, {dtype} by {found[0]}, {found[1]}; both must stay"
                )
            cotangent = replacement
    return cotangent
