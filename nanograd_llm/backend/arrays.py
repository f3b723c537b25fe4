"""Arrays of NumPy or CuPy: finding the library of an array, and keeping results without axes as arrays.

The only file that imports CuPy. NumPy's functions call CuPy when they get a CuPy array (NEP 13 and 18), so ops are
written with `np.`, and use `xp(x)` only where they create an array.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np


def xp(x: Any) -> ModuleType:
    """The library of an array: `numpy`, or `cupy` for an array on a GPU."""
    if type(x).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy
    return np


def is_array(x: Any) -> bool:
    """Is x an array (of NumPy or CuPy) or a NumPy scalar, rather than a Python number or a sequence?"""
    return isinstance(x, (np.ndarray, np.generic)) or xp(x) is not np


# NumPy 1 converts a float32 without axes to float64 when it is combined with a Python number.
SCALARS_WIDEN = np.result_type(np.float32(1), 1.0) == np.float64


def as_array(x: Any, *made_of: Any) -> Any:
    """A scalar, which NumPy returns in place of an array without axes, as an array; anything else unchanged.

    made_of: the arrays it was computed from; the result is not wider than they are.
    """
    if not isinstance(x, (np.generic, int, float, complex)):
        return x
    x = np.asarray(x)
    dtypes = [a.dtype for a in made_of if isinstance(a, np.ndarray) and a.dtype.kind == x.dtype.kind]
    return x.astype(np.result_type(*dtypes)) if SCALARS_WIDEN and dtypes else x
