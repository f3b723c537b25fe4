"""What `checked()` tests at every op: finite numbers, dtypes that do not widen, arrays that nobody writes into.

Plain training pays nothing for this. In the mode, the first number that goes wrong is reported where it arose: with the
op, its inputs' shapes, the path of the module that called it and the line of source.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from nanograd_llm.backend.arrays import is_array
from nanograd_llm.errors import DtypeError, NonFiniteError

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_ENGINE = tuple(os.path.join(_PACKAGE, room, "") for room in ("autograd", "ops", "gradcheck"))


def caller() -> str:
    """The line of source that called the op: the nearest frame outside the engine, the ops and their checks."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_ENGINE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def place(op_name: str, arrays: Sequence[Any], module_path: str) -> str:
    """One op call described for an error: name, input shapes, module, line."""
    shapes = ", ".join(str(getattr(a, "shape", a)) for a in arrays)
    module = f" in module {module_path}" if module_path else ""
    return f"{op_name}({shapes}){module}, called at {caller()}"


def require_finite(array: np.ndarray, what: str, inputs: Sequence[Any] = ()) -> None:
    """Raise NonFiniteError where the array holds a NaN or an infinity; `what` names it.

    A -inf passes where an input holds one too: it is the mask of a softmax.
    """
    if array.dtype.kind not in "fc":
        return
    bad = ~np.isfinite(array)
    if bad.any() and any(np.isneginf(x).any() for x in inputs if is_array(x) and x.dtype.kind == "f"):
        bad &= array != -np.inf
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise NonFiniteError(
            f"{what} holds {int(bad.sum())} non-finite of {array.size} values; the first is {array[first]} at {first}"
        )


def require_no_widening(dtype: np.dtype, inputs: Sequence[Any], what: str) -> None:
    """Raise DtypeError where a result is wider than every array it came from (float32 in, float64 out)."""
    dtypes = [x.dtype for x in inputs if hasattr(x, "dtype")]
    widest = max((d.itemsize for d in dtypes if d.kind in "fc"), default=None)
    if dtype.kind in "fc" and widest is not None and dtype.itemsize > widest:
        raise DtypeError(f"{what} drifted to {dtype}; its inputs hold {widest} bytes a number; cast inside the op")


class Protection:
    """Keeps an array read-only while the tape needs it, and can tell whether it changed all the same.

    Writing through the array itself fails at the line that writes. Writing through an older view cannot be stopped, so
    a digest taken now is compared when backward reads the array.
    """

    _alive: weakref.WeakValueDictionary[int, Protection] = weakref.WeakValueDictionary()

    @classmethod
    def of(cls, array: np.ndarray) -> Protection:
        """The protection of this array; those who keep the same array, with the same numbers, share one."""
        found = cls._alive.get(id(array))
        if found is None or found.array is not array or not found.unchanged():
            found = cls._alive[id(array)] = cls(array)
        return found

    def __init__(self, array: np.ndarray):
        self.array = array
        self.restores = [array] if array.flags.writeable else []
        self.digest = _digest(array)
        array.flags.writeable = False

    def unchanged(self) -> bool:
        return _digest(self.array) == self.digest

    def __del__(self) -> None:
        for array in self.restores:
            try:
                array.flags.writeable = True
            except ValueError:  # a view of an array that is still protected: it is restored after that one
                owner = self._alive.get(id(array.base))
                if owner is not None:
                    owner.restores.append(array)


def _digest(array: np.ndarray) -> bytes:
    import hashlib  # here, because it takes longer to load than all of this package's own files together

    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()
