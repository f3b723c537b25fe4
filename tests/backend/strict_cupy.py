"""A stand-in for CuPy on a machine without a GPU: it computes with NumPy, and is as strict as CuPy or stricter.

`installed(monkeypatch)` puts it into `sys.modules`, where the package's own `import cupy` finds it. What it knows are
functions, ufuncs, their arguments and methods of CuPy 14 that the package may use (docs.cupy.dev/en/stable/reference);
anything else raises. Its arrays, as CuPy's,

- are never converted to NumPy arrays, nor combined with them: not as operands, indices or values to assign,
- wrap indices that are out of range, and add repeated ones in any order (assigning to repeated ones raises here),
- are returned by reductions, without axes; they have no writeable flag, no `initial=` and no `order=` of ufuncs,
- begin as NaN where `empty` makes them. `waits` counts what has to wait for the GPU.
"""

from __future__ import annotations

import operator
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


def _table(text: str) -> dict[str, str | None]:
    """{name: its parameters} from lines of names, a colon, and parameters; dots are for any."""
    lines = [line.partition(":") for line in text.strip().splitlines()]
    return {name: None if "..." in known else known for names, _, known in lines for name in names.split()}


FUNCTIONS = _table("""
    sum prod mean: a axis dtype out keepdims
    max min amax amin any all: a axis out keepdims
    argmax argmin: a axis dtype out keepdims
    var std: a axis dtype out ddof keepdims
    cumsum cumprod: a axis dtype out
    zeros_like ones_like: a dtype order subok shape
    empty_like: prototype dtype order subok shape
    full_like: a fill_value dtype order subok shape
    shape ndim size nonzero flatnonzero argwhere iscomplexobj: a
    real imag: val
    tril triu: m k
    concatenate stack: tup axis out dtype casting
    sort argsort: a axis kind
    array_equal: a1 a2 equal_nan
    allclose isclose: a b rtol atol equal_nan
    vdot outer inner may_share_memory: a b
    dot: a b out
    tensordot: a b axes
    einsum: ...
    result_type array2string: ...
    where: condition x y
    clip: a a_min a_max out
    copyto: dst src casting where
    reshape: a newshape order copy
    transpose: a axes
    swapaxes: a axis1 axis2
    squeeze expand_dims flip count_nonzero: a axis
    moveaxis: a source destination
    split: ary indices_or_sections axis
    broadcast_to: array shape
    ravel: a order
    ascontiguousarray: a dtype
    take: a indices axis out
    take_along_axis: a indices axis
    repeat: a repeats axis
    pad: array pad_width mode constant_values
    diff: a n axis prepend append
    searchsorted: a v side sorter
    isneginf: x out
    nan_to_num: x copy nan posinf neginf
    linalg.norm: x ord axis keepdims
""")
CREATED = _table("""
    zeros ones: shape dtype order
    full: shape fill_value dtype order
    arange: start stop step dtype
    tri: N M k dtype
""")  # functions of the module that make an array of no other
METHODS = _table("""
    sum prod mean: axis dtype out keepdims
    max min any all: axis out keepdims
    argmax argmin: axis out dtype keepdims
    var std: axis dtype out ddof keepdims
    cumsum: axis dtype out
    astype: dtype order casting subok copy
    copy ravel flatten: order
    squeeze: axis
    swapaxes: axis1 axis2
    take: indices axis out
    argsort: axis kind
    fill: value
    clip: min max out
    dot: b out
    repeat: repeats axis
    round: decimals out
    conj nonzero:
    view: dtype
    reshape transpose: ...
""")
WAITING = {"nonzero", "flatnonzero", "argwhere", "array2string", "allclose"}
UFUNCS = {
    *"add subtract multiply divide true_divide floor_divide remainder power negative absolute sign square".split(),
    *"exp exp2 expm1 log log2 log1p sqrt sin cos tan tanh sinh cosh arctan rint floor ceil reciprocal".split(),
    *"maximum minimum fmax fmin isfinite isnan isinf logaddexp matmul conjugate".split(),
    *"equal not_equal less less_equal greater greater_equal logical_and logical_or logical_xor logical_not".split(),
    *"bitwise_and bitwise_or bitwise_xor invert left_shift right_shift".split(),
}
REAL_ONLY = {"logaddexp", "floor_divide", "remainder", "rint", "floor", "ceil"}
ELEMENTS = "?bBhHiIlLqQefdFD"  # the dtypes of CuPy

state = SimpleNamespace(waits=0, limit=None, rng=np.random.default_rng(0))


class OutOfMemoryError(MemoryError):
    pass


OutOfMemoryError.__module__ = "cupy.cuda.memory"


def _unknown(name: str, table: str) -> TypeError:
    where = f"if CuPy has it, add it to {table} of tests/backend/strict_cupy.py"
    return TypeError(f"the stand-in for CuPy does not know numpy.{name}; {where}")


def unwrapped(x: Any) -> Any:
    """The NumPy arrays of arrays, also in lists; raises for a NumPy array, which CuPy would refuse."""
    if isinstance(x, ndarray):
        return x._array
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: it has shape {x.shape}")
    return type(x)(map(unwrapped, x)) if type(x) in (list, tuple) else x


def wrapped(x: Any, *sources: Any) -> Any:
    """The result of NumPy's function as an array on the GPU; sources: what it may be a view of."""
    if isinstance(x, (np.ndarray, np.generic)):
        return ndarray(np.asarray(x), sources)
    return type(x)(wrapped(part, *sources) for part in x) if type(x) in (list, tuple) else x


def call(function: Any, known: str | None, args: Any, options: dict[str, Any]) -> Any:
    """function(*args, **options) of NumPy on the arrays' numbers. Raises TypeError for an argument CuPy has not."""
    name = function.__name__
    if known is not None:
        names = known.split()
        if len(args) > len(names) or not options.keys() <= {*names}:
            raise TypeError(f"cupy.{name}({known.replace(' ', ', ')}) got {len(args)} arguments and {[*options]}")
    if name in ("sort", "argsort") and options.get("kind") not in (None, "stable"):
        raise ValueError(f"kind {options['kind']} is not supported")
    state.waits += name in WAITING
    sources = [x for x in (*args, *options.values()) if isinstance(x, ndarray)]
    with np.errstate(all="ignore"):  # a GPU warns of nothing
        result = function(*map(unwrapped, args), **{key: unwrapped(x) for key, x in options.items()})
    if "empty" in name:
        result[...] = np.nan if result.dtype.kind in "fc" else 1
    return result if name in ("shape", "result_type", "array2string") else wrapped(result, *sources)


class Flags:
    def __init__(self, array: np.ndarray, owns: bool):
        self.c_contiguous, self.f_contiguous = array.flags.c_contiguous, array.flags.f_contiguous
        self.forc, self.owndata = array.flags.forc, owns


class ndarray:
    """An array of CuPy's; `_array` holds its numbers."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: np.ndarray, sources: Any = ()):
        if array.dtype.char not in ELEMENTS:
            raise TypeError(f"CuPy has no dtype {array.dtype}")
        if not array.size and not array.flags.writeable:  # NumPy's flag of a broadcast view, which CuPy has not
            array = np.empty(array.shape, array.dtype)
        owners = [x for x in sources if x._array.size and np.may_share_memory(array, x._array)]
        if state.limit is not None and not owners and array.nbytes > state.limit:
            raise OutOfMemoryError(f"Out of memory allocating {array.nbytes:,} bytes")
        self._array, self.data = array, SimpleNamespace(ptr=array.ctypes.data)
        self.base = None if not owners else owners[0] if owners[0].base is None else owners[0].base
        self.shape, self.ndim, self.size, self.dtype = array.shape, array.ndim, array.size, array.dtype
        self.strides, self.itemsize, self.nbytes = array.strides, array.itemsize, array.nbytes

    flags = property(lambda self: Flags(self._array, self.base is None))
    T = property(lambda self: wrapped(self._array.T, self))
    mT = property(lambda self: wrapped(self._array.swapaxes(-1, -2), self))
    real = property(lambda self: wrapped(self._array.real, self))
    imag = property(lambda self: wrapped(self._array.imag, self))

    def get(self) -> np.ndarray:
        state.waits += 1
        return self._array.copy()

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __format__(self, spec: str) -> str:
        return format(self.get()[()], spec)

    def __repr__(self) -> str:
        return repr(self.get())

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()  # type: ignore[attr-defined]

    def __reduce__(self) -> Any:
        return asarray, (self.get(),)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_function__(self, function: Any, _types: Any, args: Any, options: dict[str, Any]) -> Any:
        name = f"{function.__module__}.{function.__name__}".removeprefix("numpy.")
        if name not in {*FUNCTIONS, *CREATED}:
            raise _unknown(name, "FUNCTIONS")
        if name in CREATED:  # with like=
            return getattr(installed_module(), name)(*args, **options)
        return call(function, FUNCTIONS[name], args, options)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.pop("out", (None,))[0]
        if not all(isinstance(x, (ndarray, np.ndarray, np.generic, bool, int, float, complex)) for x in inputs):
            return NotImplemented
        arrays = [unwrapped(x) for x in inputs]
        name = ufunc.__name__
        if name not in UFUNCS:
            raise _unknown(name, "UFUNCS")
        if name in REAL_ONLY and any(np.iscomplexobj(x) for x in arrays):
            return NotImplemented
        if method == "at" and name in ("add", "maximum", "minimum"):
            target, index, *values = arrays
            return _added_at(ufunc, target, _wrapping(index, target.shape), *values)
        if method == "reduceat" and name == "add":
            return wrapped(_reduceat(*arrays, **options))
        if method in ("reduce", "accumulate") and name not in ("add", "multiply"):
            raise NotImplementedError(f"`cupy_{name}.{method}` is not supported yet")
        if method in ("reduceat", "at") or not options.keys() <= {"dtype", "axis", "keepdims"}:
            raise TypeError(f"Wrong arguments {options}")
        if out is not None and not isinstance(out, ndarray):
            raise TypeError(f"return arrays must be of ArrayType, not {type(out)}")
        with np.errstate(all="ignore"):
            result = getattr(ufunc, method)(*arrays, **options, **({} if out is None else {"out": out._array}))
        return wrapped(result) if out is None else out

    def __getitem__(self, index: Any) -> ndarray:
        index = _wrapping(index, self.shape)
        state.waits += _has(index, "b")
        return wrapped(self._array[index], self)

    def __setitem__(self, index: Any, value: Any) -> None:
        index, value = _wrapping(index, self.shape), unwrapped(value)
        state.waits += _has(index, "b") and np.ndim(value) > 0
        if _has(index, "iu"):
            places = np.arange(self.size).reshape(self.shape)[index]
            if len(np.unique(places)) < places.size:
                raise ValueError("which of the values is stored at a repeated index is not defined")
        with np.errstate(all="ignore"):
            self._array[index] = value


def _binary(name: str) -> Any:
    return lambda self, other: getattr(np, name)(self, other)


for _name, _ufunc in {
    **{"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide"},
    **{"mod": "remainder", "pow": "power", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or"},
    **{"xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift"},
}.items():
    setattr(ndarray, f"__{_name}__", _binary(_ufunc))
    setattr(ndarray, f"__r{_name}__", lambda self, other, f=_ufunc: getattr(np, f)(other, self))
    setattr(ndarray, f"__i{_name}__", lambda self, other, f=_ufunc: getattr(np, f)(self, other, out=self))
for _name, _ufunc in {"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater"}.items():
    setattr(ndarray, f"__{_name}__", _binary(_ufunc))
ndarray.__ge__ = _binary("greater_equal")  # type: ignore[operator]
for _name, _ufunc in {"neg": "negative", "abs": "absolute", "invert": "invert"}.items():
    setattr(ndarray, f"__{_name}__", lambda self, f=_ufunc: getattr(np, f)(self))
for _name, _known in METHODS.items():

    def _method(self: ndarray, *args: Any, _name: str = _name, _known: str | None = _known, **options: Any) -> Any:
        def function(array: np.ndarray, *args: Any, **options: Any) -> Any:
            return getattr(array, _name)(*args, **options)

        function.__name__ = _name
        return call(function, None if _known is None else f"self {_known}", (self, *args), options)

    setattr(ndarray, _name, _method)
ndarray.__module__ = "cupy"


def _has(index: Any, kinds: str) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, np.ndarray) and part.dtype.kind in kinds for part in parts)


def _wrapping(index: Any, shape: tuple[int, ...]) -> Any:
    """The index with its arrays unwrapped, and integers that are out of range wrapped, as CuPy wraps them."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, (list, np.ndarray)) for part in parts):
        raise TypeError("an index has a list or a NumPy array, which would be copied to the GPU")
    sizes = [part.ndim if isinstance(part, ndarray) and part.dtype.kind == "b" else part is not None for part in parts]
    rest = len(shape) - sum(n for n, part in zip(sizes, parts) if part is not ...)
    axis, found = 0, []
    for size, part in zip(sizes, parts):
        part = unwrapped(part)
        if isinstance(part, np.ndarray) and part.dtype.kind in "iu":
            part = part % max(1, shape[axis])
        found.append(part)
        axis += rest if part is ... else size
    return tuple(found) if isinstance(index, tuple) else found[0]


def _added_at(ufunc: Any, target: np.ndarray, index: Any, values: Any) -> None:
    places = np.arange(target.size).reshape(target.shape)[index]
    order = state.rng.permutation(places.size)
    flat = target.reshape(-1)
    ufunc.at(flat, places.reshape(-1)[order], np.broadcast_to(values, places.shape).reshape(-1)[order])
    target[...] = flat.reshape(target.shape)


def _reduceat(x: np.ndarray, starts: np.ndarray, axis: int = 0) -> np.ndarray:
    """As CuPy computes it: differences of cumulative sums, which are inaccurate."""
    sums = np.cumsum(np.moveaxis(x, axis, 0), axis=0)
    sums = np.concatenate([np.zeros_like(sums[:1]), sums])
    return np.moveaxis(sums[np.append(starts[1:], x.shape[axis])] - sums[starts], 0, axis)


def asarray(x: Any, dtype: Any = None, order: Any = None) -> ndarray:
    if isinstance(x, ndarray) and (dtype is None or x.dtype == dtype):
        return x
    if isinstance(x, (list, tuple)):
        x = [part._array if isinstance(part, ndarray) else part for part in x]
    return ndarray(np.array(x._array if isinstance(x, ndarray) else x, dtype))


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(np.full(shape, np.nan if np.dtype(dtype).kind in "fc" else 1, dtype))


def installed_module() -> ModuleType:
    return sys.modules["cupy"]


def module() -> ModuleType:
    """A module that the package takes for CuPy."""
    made = ModuleType("cupy")
    made.ndarray, made.asarray, made.array, made.empty = ndarray, asarray, asarray, empty  # type: ignore[attr-defined]
    for name, known in {**FUNCTIONS, **CREATED}.items():
        function = operator.attrgetter(name)(np)
        setattr(made, name, lambda *args, f=function, k=known, **options: call(f, k, args, options))
    for name in UFUNCS:
        setattr(made, name, getattr(np, name))
    runtime = SimpleNamespace(runtimeGetVersion=lambda: 13000, getDeviceCount=lambda: 1)
    made.cuda = SimpleNamespace(runtime=runtime, OutOfMemoryError=OutOfMemoryError)  # type: ignore[attr-defined]
    return made


def installed(monkeypatch: Any) -> ModuleType:
    """Put the stand-in where `import cupy` finds it, until the test ends."""
    from nanograd_llm.backend import arrays

    made = module()
    monkeypatch.setitem(sys.modules, "cupy", made)
    monkeypatch.setattr(arrays, "_checked", None)
    monkeypatch.setattr(arrays, "_default", "cpu")
    monkeypatch.setattr(arrays, "_tf32", None)
    state.waits, state.limit = 0, None
    return made
