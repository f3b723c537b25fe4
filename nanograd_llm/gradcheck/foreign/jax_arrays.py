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
from nanograd_llm.gradcheck.check.function import input_names
from nanograd_llm.gradcheck.foreign.function import Arrays, Foreign
from nanograd_llm.gradcheck.foreign.library import Library, is_wider
from nanograd_llm.gradcheck.foreign.trees import leaves


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
        if hasattr(jax, "enable_x64"):
            in_64_bits = jax.enable_x64(True)
        else:
            in_64_bits = jax.experimental.enable_x64()
        with in_64_bits, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Casting from complex to real")  # then differences are taken
            yield

    def narrowest(self, call: Callable[..., Any], natives: Sequence[Any]) -> np.dtype:
        wide = all(dtype != np.float32 for dtype in _float_dtypes(jax.make_jaxpr(call)(*natives).jaxpr))
        return np.dtype(np.float64 if wide else np.float32)


def _float_dtypes(jaxpr: Any) -> Iterator[np.dtype]:
    """Of everything that is computed on the way."""
    for equation in jaxpr.eqns:
        yield from (out.aval.dtype for out in equation.outvars if hasattr(out.aval, "dtype"))
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _float_dtypes(inner)


class Autograd(Foreign):
    """The rule is JAX's: what `jax.vjp` makes of the function."""

    def __init__(self, f: Callable[..., Any], inputs: Sequence[Any], library: Library):
        super().__init__(f, inputs, input_names(f, len(inputs)), library, f)
        self.who = f"jax.vjp of {self.label}"
        self.rules = {"its bwd": f.bwd} if isinstance(f, jax.custom_vjp) else {}

    def pull(self, dy: np.ndarray, arrays: Arrays) -> list[np.ndarray]:
        def floats(*natives: Any) -> list[Any]:
            result = self.call(*self.inputs.having(iter(natives)))
            return [y for _, y in leaves(result) if jax.numpy.issubdtype(jax.numpy.result_type(y), np.floating)]

        def work() -> list[Any]:
            results, vjp = jax.vjp(floats, *self.natives(arrays))
            return list(vjp(self.cotangent(dy, results)))

        with self.library.context():
            return self.gradients(self.guarded(work, arrays, self.who), arrays)

    def chosen(self, returned: list[Any]) -> list[Any]:
        return returned
