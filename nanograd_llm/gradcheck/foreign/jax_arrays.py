"""Functions of JAX: the gradient is what `jax.vjp` gives, numbers come from the function alone.

Everything runs in 64 bits, whatever `jax_enable_x64` says, and on complex128 where the function does.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.experimental
import numpy as np

from nanograd_llm.errors import DtypeError
from nanograd_llm.gradcheck.check.function import input_names, label
from nanograd_llm.gradcheck.check.trees import Opened, branches, leaves, openers
from nanograd_llm.gradcheck.foreign.function import Arrays, Foreign
from nanograd_llm.gradcheck.foreign.library import Library, is_wider


def _opened(value: Any) -> Opened | None:
    """The parts of a class that is registered with JAX, and how to make one of others."""
    if value is None or isinstance(value, (list, tuple, dict)):
        return None
    parts, structure = jax.tree_util.tree_flatten(value, is_leaf=lambda part: part is not value)
    if jax.tree_util.treedef_is_leaf(structure):
        return None
    attributes = {id(part): f".{name}" for name, part in getattr(value, "__dict__", {}).items()}
    return [(attributes.get(id(part), f"[{i}]"), part) for i, part in enumerate(parts)], structure.unflatten


openers.append(_opened)


class Jax(Library):
    def is_checked(self, leaf: Any, name: str) -> bool:
        if not isinstance(leaf, jax.Array):
            return super().is_checked(leaf, name)
        if leaf.dtype in (np.dtype("complex64"), np.dtype("complex128")):
            raise DtypeError(f"{name} is complex; give its real and imaginary parts as float arrays")
        return bool(jax.numpy.issubdtype(leaf.dtype, np.floating))

    def to_numpy(self, leaf: Any) -> np.ndarray:
        if getattr(leaf, "dtype", None) in (jax.numpy.bfloat16, np.dtype(np.float16)):
            raise DtypeError(f"an array is {leaf.dtype}, too coarse to check a gradient; use float64 or float32")
        return np.asarray(leaf)

    def native(self, array: np.ndarray, like: Any) -> Any:
        if is_wider(array):
            raise DtypeError(f"JAX has no {array.dtype}; use float64")
        return jax.numpy.asarray(array)

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        in_64_bits = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64
        with in_64_bits(True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Casting from complex to real")  # then differences are taken
            yield


class Autograd(Foreign):
    """The rule is JAX's: what `jax.vjp` makes of the function. A function that is a pytree is its own first input."""

    shares = "its bwd uses what calls share; let fwd return it as a residual"

    def __init__(self, f: Callable[..., Any], inputs: Sequence[Any], library: Library):
        names = input_names(f, len(inputs))
        if branches(f) is None:
            super().__init__(f, inputs, names, library, f)
        else:
            super().__init__(lambda f, *inputs: f(*inputs), [f, *inputs], ["", *names], library, f)
            self.names[:] = [name.removeprefix(".") for name in self.names]
            self.label = label(f)
        self.who = f"jax.vjp of {self.label}"
        self.doubts["no gradient goes through jax.lax.stop_gradient"] = ""
        self.rules = {"its bwd": f.bwd} if isinstance(f, jax.custom_vjp) else {}

    def pull(self, dy: np.ndarray, arrays: Arrays) -> list[np.ndarray]:
        def floats(*natives: Any) -> list[Any]:
            result = self.call(*self.inputs.having(iter(natives)))
            return [y for _, y in leaves(result) if jax.numpy.issubdtype(jax.numpy.result_type(y), np.floating)]

        def work() -> list[Any]:
            results, vjp = jax.vjp(floats, *self.natives(arrays))
            self.between()
            return list(vjp(self.cotangent(dy, results)))

        with self.library.context():
            return self.gradients(self.guarded(work, arrays, self.who), arrays)

    def chosen(self, returned: list[Any]) -> list[Any]:
        return returned
