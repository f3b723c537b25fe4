"""What an array is: a Library turns the arrays of NumPy, or those of another library, into NumPy's and back."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from nanograd_llm.errors import DtypeError


class Library:
    """NumPy; the libraries of other arrays derive from it."""

    only: np.dtype | None = None  # the dtype without which the function does not run
    unused: Sequence[str] = ()  # names of inputs that are constants

    def is_checked(self, leaf: Any, name: str) -> bool:
        """Is this input differentiated, rather than a constant? Raises DtypeError for complex numbers."""
        if not isinstance(leaf, (np.ndarray, np.generic, float, complex, list, tuple)):
            return False
        kind = np.asarray(leaf).dtype.kind
        if kind == "c":
            raise DtypeError(f"{name} is complex; give its real and imaginary parts as float arrays")
        return kind == "f"

    def to_numpy(self, leaf: Any) -> np.ndarray:
        return np.asarray(leaf)

    def as_given(self, array: np.ndarray, like: Any) -> Any:
        """`native`, in the dtype that the function runs on."""
        if self.only is not None:
            array = array.astype(np.result_type(self.only, np.complex64) if np.iscomplexobj(array) else self.only)
        return self.native(array, like)

    def native(self, array: np.ndarray, like: Any) -> Any:
        """The array as what `like` is. A number stays a number, of NumPy's type."""
        return array if isinstance(like, np.ndarray) or array.ndim else array[()]

    def constant(self, leaf: Any) -> Any:
        """An input that is not checked, as functions of this library take it."""
        return leaf

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """In which functions of this library are called."""
        return contextlib.nullcontext()


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(error).strip() or "no reason given").splitlines()[0][:200]


def is_wider(array: np.ndarray) -> bool:
    """Is it longdouble, or made of such, and longdouble is wider than float64 here?"""
    return array.dtype.kind in "fc" and array.real.dtype.itemsize > np.dtype(np.float64).itemsize
