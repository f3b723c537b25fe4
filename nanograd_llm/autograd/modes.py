"""The modes: recording or not, first derivatives or any order, checked or not.

Each mode is a `with` block that affects its own thread, and its own task of asyncio, only: so several can run forward
and backward at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

from nanograd_llm.errors import InPlaceError, NanogradError


@dataclasses.dataclass(frozen=True)
class Modes:
    """The modes of one thread or task."""

    recording: bool = True
    higher_order: bool = False
    checked: bool = False
    watcher: Callable[..., None] | None = None
    modules: tuple[str, ...] = ()  # names of the modules being called, outermost first; set while calls are traced
    innermost: Any = None  # the last of these modules
    tracing_calls: bool = False  # is the module and source line of each op call found? In checked() and watched()


_DEFAULTS = Modes()
_current = ContextVar("modes", default=_DEFAULTS)
modes: Callable[[], Modes] = _current.get  # the modes here and now


@contextlib.contextmanager
def _set(**values: Any) -> Iterator[None]:
    before = modes()
    inside = dataclasses.replace(before, **values)
    _current.set(dataclasses.replace(inside, tracing_calls=inside.checked or inside.watcher is not None))
    try:
        yield
    finally:
        _current.set(before)


def forget_modes() -> None:
    """Set all modes to their defaults: for a process that was forked inside a block of its parent."""
    _current.set(_DEFAULTS)


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Inside this block nothing is recorded: results have no tape and do not require a gradient.

    Update parameters here, after backward. If an array that the tape has saved is changed before backward, backward
    raises GraphError after `w -= step`, but does not notice `w.data -= step`, and its gradient is wrong.
    """
    return _set(recording=False)


def recording() -> contextlib.AbstractContextManager[None]:
    """Inside this block ops are recorded, also within `no_grad()`."""
    return _set(recording=True)


def higher_order() -> contextlib.AbstractContextManager[None]:
    """Inside this block gradients are recorded too, so that they can be differentiated again, to any order.

    A fused op runs the composition it equals, and rules receive Tensors. Compute both the function and its gradient
    inside the block.
    """
    return _set(higher_order=True)


@contextlib.contextmanager
def checked(enabled: bool = True) -> Iterator[None]:
    """Inside this block every result and every cotangent is tested for NaN, infinity, a wider dtype and its shape.

    Every op call on Tensors is tested; calls on plain arrays, as in a rule, are not. The first failure raises an error
    that names the op, its inputs' shapes, the module path and the source line of the call; where a parameter holds NaN,
    it names the parameter. (A warning of NumPy outside the block names the line of the op.) A forward's inputs are
    read-only, and so is every array saved on the tape until backward has used it: writing into one raises NumPy's
    ValueError, which leaves the block as InPlaceError. A write through an older view is detected when backward reads
    the array. Outside this mode such writes are not detected: the rule computes with the changed numbers.
    """
    warnings = np.errstate(all="ignore") if enabled else contextlib.nullcontext()  # our error replaces NumPy's warning
    with _set(checked=enabled), warnings:
        try:
            yield
        except ValueError as error:
            if not enabled or isinstance(error, NanogradError) or "read-only" not in str(error):
                raise
            raise InPlaceError(
                "inside checked(), arrays that the tape keeps or that others may share (a forward's input, a "
                f"cotangent) are read-only: write into a copy, or after backward ({error})"
            ) from error


def watched(watcher: Callable[..., None]) -> contextlib.AbstractContextManager[None]:
    """Inside this block `watcher(node, y, arrays, static, place)` is called after every recorded op call.

    Its arguments: the node on the tape, the op's result, its arrays and static arguments, and a description of the
    call's place.
    """
    return _set(watcher=watcher)


def within_module(name: str, module: Any = None) -> contextlib.AbstractContextManager[None]:
    """Inside this block `module` is being called; `name`, its path below its caller, extends the module path."""
    return _set(modules=(*modes().modules, name) if name else modes().modules, innermost=module)
