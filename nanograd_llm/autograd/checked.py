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

from nanograd_llm.backend.arrays import SCALARS_WIDEN, is_array
from nanograd_llm.errors import DtypeError, GraphError, NonFiniteError

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


class Guard:
    """Tests what goes through one recorded op call in backward, and protects what the call keeps until then."""

    def __init__(self, place: str, kept: Sequence[np.ndarray]):
        self.place = place
        self.protections = [Protection.of(array) for array in kept]

    def cotangent(self, cotangent: Any) -> Any:
        """The cotangent that arrives at the call, tested and read-only; what the call keeps is as it was."""
        require_finite(_array(cotangent), f"the cotangent of the result of {self.place}")
        for protection in self.protections:
            if not protection.unchanged():
                raise GraphError(
                    f"an array of shape {protection.array.shape} that {self.place} keeps for backward was written into "
                    "after the forward; copy it before you change it"
                )
        # another input may have the same cotangent: a rule must not write into it
        return read_only(cotangent) if isinstance(cotangent, np.ndarray) else cotangent

    def gradients(self, gradients: Sequence[Any], sources: Sequence[Any], made_of: Sequence[Any]) -> None:
        """Test what the rule gave for each input: finite, and no wider than the source and what it was made of."""
        for i, (gradient, source) in enumerate(zip(gradients, sources)):
            if gradient is not None:
                what = f"the cotangent of input {i} of {self.place}"
                require_finite(_array(gradient), what)
                if gradient.dtype != source.dtype and not (SCALARS_WIDEN and made_of[0].shape == ()):
                    require_no_widening(gradient.dtype, made_of, what)


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


def read_only(array: np.ndarray) -> np.ndarray:
    """A view of an array that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view


def _array(x: Any) -> Any:
    return x if is_array(x) else x.data  # of a Tensor, under higher_order()


def _digest(array: np.ndarray) -> bytes:
    import hashlib  # here, because it takes longer to load than all of this package's own files together

    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()
