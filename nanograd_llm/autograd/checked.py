"""What `checked()` tests at every op: all numbers are finite, no dtype widens, and no saved array is overwritten.

The first op that fails a test is reported, with the shapes of its inputs, the module that called it and the line of
source. Outside `checked()` the tests cost nothing.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.modes import modes
from nanograd_llm.backend.arrays import SCALARS_WIDEN, is_array, to_host
from nanograd_llm.errors import DtypeError, GraphError, NonFiniteError

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_ENGINE = tuple(os.path.join(_PACKAGE, room, "") for room in ("autograd", "ops", "gradcheck"))
_ENGINE += (os.path.join(os.path.dirname(np.__file__), ""),)
_PYTHON = os.path.join(os.path.dirname(os.__file__), "")


def caller() -> str:
    """FILE:LINE of the code that called the op: the nearest frame outside the engine, the ops, gradcheck, NumPy and
    Python's own library."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_hidden(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def raised_at(error: Exception, f: Any) -> str:
    """FILE:LINE of the deepest line in the file of the function f that the error came through; "" if there is none."""
    import inspect  # here, because most functions raise nothing
    import traceback

    code = getattr(inspect.unwrap(f), "__code__", None)
    lines = [at for at in traceback.extract_tb(error.__traceback__) if code and at.filename == code.co_filename]
    return f"{lines[-1].filename}:{lines[-1].lineno}" if lines else ""


def _is_hidden(path: str) -> bool:
    return path.startswith(_ENGINE) or path.startswith(_PYTHON) and "-packages" not in path


def place(op_name: str, arrays: Sequence[Any], module_path: str) -> str:
    """A description of one op call for an error message: name, input shapes, module, line."""
    shapes = ", ".join("a number" if getattr(a, "shape", None) == () else str(getattr(a, "shape", a)) for a in arrays)
    module = f" in module {module_path}" if module_path else ""
    return f"{op_name}({shapes}){module}, called at {caller()}"


def parameter_name(array: Any) -> str:
    """The full name of the parameter with this array, in the module that is being called; "" if it is none of its."""
    named = modes().innermost.named_parameters() if modes().innermost is not None else ()
    return next((".".join((*modes().modules, name)) for name, parameter in named if parameter.data is array), "")


def require_finite(array: np.ndarray, what: str, inputs: Sequence[Any] = ()) -> None:
    """Raise NonFiniteError if the array contains NaN or infinity; `what` names the array in the message.

    -inf is allowed if an input contains -inf as well: that is how a softmax is masked.
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
    """Raise DtypeError if a result is wider than all arrays it was computed from (float32 in, float64 out)."""
    dtypes = [x.dtype for x in inputs if hasattr(x, "dtype")]
    widest = max((d.itemsize for d in dtypes if d.kind in "fc"), default=None)
    if dtype.kind in "fc" and widest is not None and dtype.itemsize > widest:
        raise DtypeError(
            f"{what} was widened to {dtype} from floats of {widest} bytes; an array of float64 or integers, or a NumPy "
            "number such as np.sqrt(2), makes it so: convert it, by .astype or float"
        )


class Guard:
    """Tests the cotangent and the gradients of one recorded op call, and protects the arrays that the call saved."""

    def __init__(self, place: str, saved: Sequence[np.ndarray]):
        self.place = place
        self.protections = [Protection.of(array) for array in saved]

    def cotangent(self, cotangent: Any) -> Any:
        """The cotangent, tested and read-only. Raises GraphError if a saved array has changed since the forward."""
        require_finite(_array(cotangent), f"the cotangent of the result of {self.place}")
        for protection in self.protections:
            if not protection.unchanged():
                raise GraphError(
                    f"an array of shape {protection.array.shape} that {self.place} saved for backward was changed "
                    "after the forward; change a copy of it instead"
                )
        # read-only, because another input may receive the same cotangent: a rule must not write into it
        return read_only(cotangent) if isinstance(cotangent, np.ndarray) else cotangent

    def gradients(self, gradients: Sequence[Any], sources: Sequence[Any], made_of: Sequence[Any]) -> None:
        """Test each input's gradient: finite, and no wider than the input and the arrays it was computed from."""
        for i, (gradient, source) in enumerate(zip(gradients, sources)):
            if gradient is not None:
                what = f"the gradient of input {i} of {self.place}"
                require_finite(_array(gradient), what)
                if gradient.dtype != source.dtype and not (SCALARS_WIDEN and made_of[0].shape == ()):
                    require_no_widening(gradient.dtype, made_of, what)


class Protection:
    """Keeps an array read-only while the tape needs it, and detects whether it has changed.

    Writing through the array itself raises at the line that writes. Writing through an older view cannot be prevented,
    so a digest of the contents is stored here and compared when backward reads the array.
    """

    _alive: weakref.WeakValueDictionary[int, Protection] = weakref.WeakValueDictionary()

    @classmethod
    def of(cls, array: np.ndarray) -> Protection:
        """The protection of this array; op calls that save the same array with the same contents share one."""
        found = cls._alive.get(id(array))
        if found is None or found.array is not array or not found.unchanged():
            found = cls._alive[id(array)] = cls(array)
        return found

    def __init__(self, array: np.ndarray):
        self.array = array
        self.restores: list[Any] = []
        self.digest = _digest(array)
        if isinstance(array, np.ndarray):  # CuPy's arrays can always be written to
            self.restores = [array] if array.flags.writeable else []
            array.flags.writeable = False

    def unchanged(self) -> bool:
        return _digest(self.array) == self.digest

    def __del__(self) -> None:
        for array in self.restores:
            try:
                array.flags.writeable = True
            except ValueError:  # a view of an array that is still protected: restore it after that array
                owner = self._alive.get(id(array.base))
                if owner is not None:
                    owner.restores.append(array)


def read_only(array: np.ndarray) -> np.ndarray:
    """A view of an array that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view


def _array(x: Any) -> Any:
    return x if is_array(x) else x.data  # a Tensor, under higher_order()


def _digest(array: np.ndarray) -> bytes:
    import hashlib  # imported here because loading it takes longer than loading the rest of this package

    return hashlib.blake2b(np.ascontiguousarray(to_host(array)).tobytes(), digest_size=16).digest()
