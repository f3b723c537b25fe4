"""Arrays: which library they belong to, NumPy or CuPy, and how results without axes stay arrays.

The only file that names CuPy. NumPy's functions dispatch to CuPy by themselves when they are handed a CuPy array
(NEP 13 and 18), so ops are written with `np.` and ask for `xp(x)` only where they make an array out of nothing.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np


def xp(x: Any) -> ModuleType:
    """The library that x lives in: NumPy, or CuPy for an array on a GPU."""
    if type(x).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy
    return np


def is_array(x: Any) -> bool:
    """Is x an array (of NumPy or CuPy) or a NumPy scalar, rather than a Python number or a sequence?"""
    return isinstance(x, (np.ndarray, np.generic)) or xp(x) is not np


# NumPy 1 makes a float64 of a float32 without axes where it meets a Python number.
SCALARS_WIDEN = np.result_type(np.float32(1), 1.0) == np.float64


def as_array(x: Any, *made_of: Any) -> Any:
    """A result without axes, which NumPy gives as a scalar, as an array; no wider than the arrays it was made of."""
    if not isinstance(x, (np.generic, int, float, complex)):
        return x
    x = np.asarray(x)
    dtypes = [a.dtype for a in made_of if isinstance(a, np.ndarray) and a.dtype.kind == x.dtype.kind]
    return x.astype(np.result_type(*dtypes)) if SCALARS_WIDEN and dtypes else x
