"""What this thread is doing: recording or not, for one derivative or for any order, checked or plain.

Each mode is a `with` block, and each thread has its own, so several can run forward and backward at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


class _State(threading.local):
    """What this thread is doing."""

    recording = True
    higher_order = False
    checked = False
    watcher: Callable[..., None] | None = None
    tracing_calls = False  # note the module and the line of each op call? where checked or watched
    modules: tuple[str, ...] = ()  # the names of the modules being called, outermost first; kept where calls are traced
    innermost: Any = None  # the last of these modules


state = _State()


@contextlib.contextmanager
def _set(**values: Any) -> Iterator[None]:
    before = {name: getattr(state, name) for name in (*values, "tracing_calls")}
    vars(state).update(values)
    state.tracing_calls = state.checked or state.watcher is not None
    try:
        yield
    finally:
        vars(state).update(before)


def forget_modes() -> None:
    """Leave every block in this thread, for a process that was forked inside a block of its parent."""
    vars(state).clear()


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Inside this block nothing is recorded: results need no gradient and hold no tape."""
    return _set(recording=False)


def recording() -> contextlib.AbstractContextManager[None]:
    """Inside this block ops are recorded, even within `no_grad()`."""
    return _set(recording=True)


def higher_order() -> contextlib.AbstractContextManager[None]:
    """Inside this block gradients are themselves recorded, so that they can be differentiated again, to any order.

    A fused op runs the composition it equals, and rules receive Tensors. Both the function and its gradient must be
    computed inside the block.
    """
    return _set(higher_order=True)


@contextlib.contextmanager
def checked(enabled: bool = True) -> Iterator[None]:
    """Inside this block every output and every cotangent is tested for NaN, infinity, dtype drift and shape.

    That goes for every op call on Tensors; on bare arrays alone, as in a rule, an op only computes. The first failure
    names the op, its inputs' shapes, the module path and the source line that called it. A forward cannot write into
    its inputs, and arrays the tape keeps are read-only until backward has used them, so it fails there; a write
    through an older view is found by a digest when backward reads the array. Outside this mode such writes are not
    detected: the rule sees the changed numbers.
    """
    warnings = np.errstate(all="ignore") if enabled else contextlib.nullcontext()  # our error says more than NumPy's
    with _set(checked=enabled), warnings:
        yield


def watched(watcher: Callable[..., None]) -> contextlib.AbstractContextManager[None]:
    """Inside this block `watcher(node, arrays, static, place)` is called after every op call that is recorded.

    It gets the node on the tape, the arrays and static arguments the op ran on, and in words where the call was made.
    """
    return _set(watcher=watcher)


def within_module(name: str, module: Any = None) -> contextlib.AbstractContextManager[None]:
    """Inside this block `module` is being called; `name`, its path below its caller, is added to the module path."""
    return _set(modules=(*state.modules, name) if name else state.modules, innermost=module)
