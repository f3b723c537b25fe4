"""Tensors, and the functions that differentiate them: `grad`, `value_and_grad`, `jacobian`, `hessian`, `hvp`.

Ops are declared in `op` and looked up here by name; the walk itself is in `tape`. Each thread records its own tape, so
several threads can run forward and backward at once on shared parameters.
"""

from __future__ import annotations

import functools
import operator
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nanograd_llm.autograd.modes import higher_order, modes
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tape import Node, backward, calls
from nanograd_llm.backend.arrays import as_array, device_of, is_array, on_default_device, to_device, to_host, xp
from nanograd_llm.backend.lazy import absent
from nanograd_llm.backend.threads import fork_safe_lock
from nanograd_llm.errors import DeviceError, DtypeError, GraphError, ShapeError, SignatureError

Array = Any  # np.ndarray, or CuPy on a GPU

NUMBERS = "fiubc"  # the kinds of dtype that a Tensor holds

_ARITHMETIC = {"add", "subtract", "multiply", "divide", "power", "matmul"}
_NO_GRADIENT = {
    *("shape", "ndim", "size", "zeros_like", "ones_like", "empty_like", "full_like", "argmax", "argmin", "argsort"),
    *("array_equal", "array_equiv", "allclose", "isclose", "array2string", "array_repr", "array_str"),
    *("any", "all", "nonzero", "flatnonzero", "count_nonzero", "result_type"),
}
_COMPARISONS = {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal"}
_INSTEAD_OF_NUMPY = {  # NumPy's name -> what to write, for functions that are not in the registry by that name
    **{name: f"ops.{name}(...)" for name in "einsum flip pad prod repeat roll sort split std take".split()},
    "take_along_axis": "ops.take_along_axis(...)",
    **dict.fromkeys(("abs", "fabs"), "ops.absolute(...)"),
    **dict.fromkeys(("amax", "fmax", "maximum.reduce"), "ops.max(...), or ops.maximum(...) of two"),
    **dict.fromkeys(("amin", "fmin", "minimum.reduce"), "ops.min(...), or ops.minimum(...) of two"),
    **dict.fromkeys(("add.reduce", "nansum"), "ops.sum(...)"),
    "add.at": "ops.scatter(values, index=ids, shape=x.shape), which adds up what falls on one place",
    **dict.fromkeys(("multiply.reduce", "product"), "ops.prod(...)"),
    **dict.fromkeys(("dot", "vdot"), "ops.matmul(...)"),
    **dict.fromkeys(("outer", "multiply.outer", "inner", "tensordot", "trace"), "ops.einsum(...)"),
    **dict.fromkeys(("vstack", "hstack", "dstack", "column_stack"), "ops.concatenate(...) or ops.stack(...)"),
    **dict.fromkeys(("moveaxis", "rollaxis", "permute_dims", "matrix_transpose"), "ops.transpose(...)"),
    **dict.fromkeys(("ravel", "atleast_1d", "atleast_2d", "atleast_3d"), "ops.reshape(...)"),
    **dict.fromkeys(("array_split", "hsplit", "vsplit", "dsplit"), "ops.split(...)"),
    **dict.fromkeys(("flipud", "fliplr"), "ops.flip(...)"),
    **dict.fromkeys(("cumulative_sum", "add.accumulate"), "ops.cumsum(...)"),
    **dict.fromkeys(("select", "choose", "nan_to_num"), "ops.where(...)"),
    **dict.fromkeys(("compress", "extract", "diagonal", "diag", "delete", "diff"), "indexing, x[...]"),
    "sign": "ops.where(x > 0, y, -y) for np.sign(x) * y",
    **{"average": "ops.mean(...)", "append": "ops.concatenate(...)"},
    **{"triu": "x - ops.tril(x, k=-1)", "tile": "ops.broadcast_to(...)", "astype": "x.astype(...)"},
    **{"square": "x * x", "reciprocal": "1 / x", "expm1": "ops.exp(x) - 1", "copy": "x * 1, or x.detach()"},
    **{"exp2": "2.0 ** x", "float_power": "x ** y", "norm": "ops.sqrt(ops.sum(x * x))"},
    **{"log2": "ops.log(x) / np.log(2)", "log10": "ops.log(x) / np.log(10)", "tan": "ops.sin(x) / ops.cos(x)"},
}

_INSTEAD_OF_TORCH = {  # PyTorch's method -> what to write
    **{"view": "x.reshape(...)", "permute": "x.transpose(...)", "unsqueeze": "x[None] or ops.expand_dims(x, axis=...)"},
    **{"clone": "x * 1, or x.detach()", "zero_grad": "x.grad = None", "dot": "x @ y", "matmul": "x @ y", "mm": "x @ y"},
    **{
        "requires_grad_": "x.requires_grad = ..., or module.freeze()",
        "t": "x.T",
        "expand": "ops.broadcast_to",
        "pow": "x ** y",
    },
    **{"float": "x.astype('float32')", "double": "x.astype('float64')", "masked_fill": "ops.masked_fill"},
    **{"cuda": "x.to('cuda')", "norm": "ops.sqrt(ops.sum(x * x))", "prod": "ops.prod(x)"},
}

registry: dict[str, Any] = {}  # name, or MODULE.NAME of an op outside the package -> op; `@op` fills it
_commit_lock = fork_safe_lock()


def _arithmetic(name: str) -> tuple[Callable[[Tensor, Any], Tensor], Callable[[Tensor, Any], Tensor]]:
    """The two operators that call the op of this name: `tensor * other` and `other * tensor`."""

    def forward(self: Tensor, other: Any) -> Tensor:
        return registry[name](self, other)

    def reflected(self: Tensor, other: Any) -> Tensor:
        return registry[name](other, self)

    return forward, reflected


def _method(name: str, *static: str) -> Callable[..., Tensor]:
    """The op of this name as a method whose static arguments may also be positional, as in NumPy."""

    def method(self: Tensor, *values: Any, **named: Any) -> Tensor:
        return registry[name](self, *values[len(static) :], **dict(zip(static, values)), **named)

    return method


def _in_place(name: str) -> Callable[[Tensor, Any], Tensor]:
    """The augmented assignment of this op, `tensor += other`: updates a parameter in place, else gives a new Tensor."""

    def update(self: Tensor, other: Any) -> Tensor:
        is_parameter = self.is_leaf and (self.requires_grad or isinstance(self, Parameter))
        if is_parameter and modes().recording:
            raise GraphError(
                "an augmented assignment such as x += 1 would replace this leaf by a computed Tensor: to update the "
                "leaf, do it inside no_grad() or use an optimizer; to compute with it, write y = x + 1"
            )
        y = registry[name](self, other)
        if not is_parameter:
            return y
        if y.shape != self.shape:
            raise ShapeError(f"an update of shape {y.shape} does not fit a Tensor of shape {self.shape}")
        try:
            np.copyto(self.data, y.data, casting="same_kind")
        except (TypeError, ValueError) as error:  # another kind of number, or a read-only array
            instead = "assign its .data instead"
            if "read-only" in str(error):
                instead += ", or, inside checked(), update after backward: the tape keeps this array until then"
            raise GraphError(f"this Tensor cannot be updated in place: {error}; {instead}") from None
        self._updated = next(calls)
        return self

    return update


def _comparison(compare: Callable[[Any, Any], Array]) -> Callable[[Tensor, Any], Array]:
    return lambda self, other: compare(self.data, array_of(other))


class Tensor:
    """An array that can be differentiated.

    data: anything that NumPy can convert to an array. An array is not copied: an update of `.data` in place changes the
        caller's array as well; give a.copy() to keep it. Python floats and lists of them become float32; arrays, and
        lists of arrays, keep their dtype.
    requires_grad: make this a leaf, whose gradient `backward` adds to `.grad`; the dtype must be a real float.
    device: "cpu", or "cuda" for a GPU, which needs CuPy; by default that of `use_device`, or where the array is.

    Operators follow NumPy and broadcast. float32 with float64 gives float64 (NumPy's promotion), while each gradient
    has its leaf's dtype. Python numbers, lists and NumPy scalars take the dtype of the other operand. Comparisons give
    plain boolean arrays, since there is nothing to differentiate. Item assignment raises GraphError. Inside
    `no_grad()`, `+=` and the other augmented assignments update a parameter's array in place. Update after backward:
    backward needs the numbers that the forward used. It raises GraphError after such an assignment. A write into the
    array itself (`x.data += 1`, or `a[:] = 5` where x = Tensor(a), which does not copy) is not seen: the gradients are
    wrong without a word, but inside `checked()` it raises an error.

    Raises DtypeError for objects, strings, and for integers, booleans or complex numbers that require a gradient.
    """

    __slots__ = ("data", "requires_grad", "_grad", "_node", "_hooks", "_updated", "__weakref__")

    data: Array
    requires_grad: bool
    _updated: int  # when an augmented assignment last changed the array, among the numbers of the calls

    def __init__(self, data: Any, requires_grad: bool = False, *, device: str | None = None):
        data = array_of(data)
        if not is_array(data):
            data = _array_from(data, np.dtype(np.float32))
        elif isinstance(data, (np.generic, np.ndarray)):
            data = np.asarray(data)  # not a scalar, and not a subclass such as np.matrix, whose * is a matrix product
        if data.dtype.kind not in NUMBERS:
            raise DtypeError(
                f"a Tensor holds numbers; got dtype {data.dtype}; convert it first, e.g. astype('float32')"
            )
        if requires_grad and data.dtype.kind != "f":
            raise DtypeError(
                f"only float data can require a gradient; got {data.dtype}; use astype('float32'), or write 1.0 for 1"
            )
        self.data = on_default_device(data) if device is None else to_device(data, device)
        self.requires_grad = requires_grad
        self._grad: Array | None = None
        self._node: Node | None = None
        self._hooks: list[Callable[[Array], Array | None]] | None = None
        self._updated = 0

    @classmethod
    def _recorded(cls, data: Array, node: Node | None) -> Tensor:
        """Wrap an op's result, without the checks of `Tensor(...)`."""
        tensor = object.__new__(Tensor)
        tensor.data = data
        tensor.requires_grad = node is not None
        tensor._grad = None
        tensor._node = node
        tensor._hooks = None
        return tensor

    @property
    def grad(self) -> Array | None:
        """The gradient that backward has added up, for a leaf; of a computed Tensor only after `retain_grad()`.

        It is an array and no Tensor, or None: write `x.grad`, not `x.grad.data`, and `x.grad = None` to start again.
        """
        if self._grad is None and self._node is not None and self._node.retained is None:
            warnings.warn(
                f"backward keeps no .grad of a computed Tensor (this one was made by {self._node.op.name}); call its "
                "retain_grad() before backward, or use ng.grad(y, x)",
                stacklevel=2,
            )
        return self._grad

    @grad.setter
    def grad(self, gradient: Array | None) -> None:
        if gradient is not None and (not is_array(gradient) or gradient.shape != self.shape):
            found = f"an array of shape {gradient.shape}" if is_array(gradient) else f"a {type(gradient).__name__}"
            raise ShapeError(f".grad of a Tensor of shape {self.shape} is an array of that shape, or None; got {found}")
        self._grad = gradient

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def is_leaf(self) -> bool:
        """Is this Tensor not computed from others that require a gradient?"""
        return self._node is None

    @property
    def T(self) -> Tensor:
        """The Tensor with its axes reversed."""
        return registry["transpose"](self)

    @property
    def mT(self) -> Tensor:
        """The Tensor with its last two axes swapped: the transpose of each matrix."""
        return registry["swapaxes"](self, axis1=-1, axis2=-2)

    @property
    def device(self) -> str:
        """Where the array is: "cpu", or "cuda" for a GPU."""
        return device_of(self.data)

    def to(self, device: str) -> Tensor:
        """The Tensor on this device: itself if it is there, else a leaf of a copy, with the same requires_grad.

        Raises DeviceError for a GPU that cannot be used, GraphError for a computed Tensor that requires a gradient.
        """
        if device == self.device:
            return self
        if self._node is not None:
            raise GraphError("no gradient goes from one device to another; move the leaf, or use .detach().to(device)")
        return type(self)(self.data, self.requires_grad, device=device)

    def cpu(self) -> Tensor:
        """The Tensor on the CPU, as `to("cpu")`."""
        return self.to("cpu")

    def numpy(self) -> np.ndarray:
        """The Tensor's array, without a copy; a copy of one that is on a GPU."""
        return to_host(self.data)

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        return self.data.tolist()

    def item(self) -> float:
        """The value of a Tensor of one element, as a Python number, which has no tape: no gradient goes through it.

        float() and the functions of math do the same. Raises ShapeError for any other size.
        """
        if self.size != 1:
            raise ShapeError(f"item() needs a Tensor of one element; this one has shape {self.shape}; use .tolist()")
        return self.data.item()

    def detach(self) -> Tensor:
        """A Tensor of the same array, shared and not copied, that has no tape and requires no gradient."""
        return Tensor._recorded(self.data, None)

    def backward(self, cotangent: Any = None, *, retain_graph: bool = False, **other: Any) -> None:
        """Add the gradient of this Tensor to the `.grad` of every leaf it was computed from.

        cotangent: array of floats of this Tensor's shape, the gradient of a later result with respect to it. Optional
            for a scalar: the default is 1.
        retain_graph: keep the tape for another backward; otherwise it is freed during the pass.

        Gradients accumulate over passes; set `.grad = None` to start again. If an error is raised, no `.grad` has
        changed. Raises GraphError if nothing was recorded or the tape is freed, ShapeError or DtypeError if the
        cotangent does not fit.
        """
        if other:
            hint = _TWICE if "create_graph" in other else "it takes a cotangent and retain_graph="
            raise SignatureError(f"backward has no {', '.join(other)}; {hint}")
        found = backward(origin(self), _seed(self, cotangent), Sums(), retain_graph)
        with _commit_lock:
            for source, gradient in found.items():
                gradient = gradient.data.copy() if isinstance(gradient, Tensor) else gradient
                if isinstance(source, Tensor):
                    source.grad = gradient if source.grad is None else as_array(source.grad + gradient)
                elif (tensor := source.retained()) is not None:
                    tensor.grad = gradient

    def retain_grad(self) -> None:
        """Make backward store the gradient of this computed Tensor in `.grad`: that of the last pass, not a sum.

        Raises GraphError if the Tensor does not require a gradient.
        """
        if not self.requires_grad:
            raise GraphError("retain_grad() needs a Tensor that requires a gradient; this one does not")
        if self._node is not None:
            self._node.retained = weakref.ref(self)  # weak: the tape must not keep the Tensor alive

    def register_hook(self, hook: Callable[[Array], Array | None]) -> Callable[[], None]:
        """Call hook(cotangent) in each backward pass, once this Tensor's cotangent is complete.

        hook: gets an array (under `higher_order()` a Tensor) and must not write into it. What it returns, unless None,
            replaces the cotangent, and must have the same shape and dtype.

        Returns a function that removes the hook. Raises GraphError if the Tensor does not require a gradient.
        """
        if not self.requires_grad:
            raise GraphError("register_hook() needs a Tensor that requires a gradient; this one does not")
        if self._node is None:
            hooks = self._hooks = self._hooks or []
        else:
            hooks = self._node._hooks = self._node._hooks or []

        def run(cotangent: Any) -> Any:
            replacement = hook(cotangent)
            if modes().higher_order:
                return replacement if replacement is None or isinstance(replacement, Tensor) else Tensor(replacement)
            return as_array(array_of(replacement), cotangent)

        hooks.append(run)
        return lambda: hooks.remove(run) if run in hooks else None

    if not TYPE_CHECKING:  # type checkers would think that a Tensor has every attribute

        def __getattr__(self, name: str) -> None:
            if name != "data" and not is_array(self.data):
                kind = type(self.data).__name__
                raise DtypeError(f"the .data of this Tensor was set to a {kind}; set it to an array: np.asarray(...)")
            raise absent(f"{type(self).__name__!r} object", name, _INSTEAD_OF_TORCH)

    # Each operator calls the op of that name.

    __add__, __radd__ = _arithmetic("add")
    __sub__, __rsub__ = _arithmetic("subtract")
    __mul__, __rmul__ = _arithmetic("multiply")
    __truediv__, __rtruediv__ = _arithmetic("divide")
    __pow__, __rpow__ = _arithmetic("power")
    __matmul__, __rmatmul__ = _arithmetic("matmul")
    __iadd__, __isub__, __imul__ = _in_place("add"), _in_place("subtract"), _in_place("multiply")
    __itruediv__, __ipow__, __imatmul__ = _in_place("divide"), _in_place("power"), _in_place("matmul")

    __neg__ = _method("negative")
    __abs__ = abs = _method("absolute")

    def __pos__(self) -> Tensor:
        return self

    def __getitem__(self, index: Any) -> Tensor:
        return registry["getitem"](self, index=index)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise GraphError(
            "a Tensor does not support item assignment; use ops.where, or (not in a rule) write into its .data"
        )

    exp, log, sqrt, sin, cos, tanh = map(_method, ("exp", "log", "sqrt", "sin", "cos", "tanh"))
    relu, sigmoid = map(_method, ("relu", "sigmoid"))
    softmax, log_softmax = _method("softmax", "axis"), _method("log_softmax", "axis")
    sum, mean = _method("sum", "axis", "keepdims"), _method("mean", "axis", "keepdims")
    max, min = _method("max", "axis", "keepdims"), _method("min", "axis", "keepdims")
    var = _method("var", "axis", "keepdims", "ddof")
    clip, cumsum = _method("clip", "low", "high"), _method("cumsum", "axis")
    squeeze, swapaxes = _method("squeeze", "axis"), _method("swapaxes", "axis1", "axis2")
    astype = _method("cast", "dtype")

    def std(self, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
        """Standard deviation over one axis, several, or all (None); ddof=1 divides by n - 1."""
        return self.var(axis, keepdims, ddof).sqrt()

    def argmax(self, axis: Any = None) -> Array:
        """The index of the largest element, as a plain array: there is nothing to differentiate."""
        return as_array(self.data.argmax(axis))

    def argmin(self, axis: Any = None) -> Array:
        """The index of the smallest element, as a plain array."""
        return as_array(self.data.argmin(axis))

    def flatten(self) -> Tensor:
        """All elements along one axis, in row-major order."""
        return self.reshape(-1)

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape, given as one tuple or as several integers; one may be -1."""
        return registry["reshape"](self, shape=shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Tensor:
        """Permute the axes, given as one tuple or as several integers, all of them; without any, reverse them.

        `swapaxes` swaps two axes.
        """
        return registry["transpose"](self, axes=(axes[0] if len(axes) == 1 else axes or None))

    # Comparisons are not recorded: their result is a plain boolean array.

    __eq__ = _comparison(operator.eq)  # type: ignore[assignment]
    __ne__ = _comparison(operator.ne)  # type: ignore[assignment]
    __lt__ = _comparison(operator.lt)
    __le__ = _comparison(operator.le)
    __gt__ = _comparison(operator.gt)
    __ge__ = _comparison(operator.ge)

    __hash__ = object.__hash__

    def __len__(self) -> int:
        if self.ndim == 0:
            raise ShapeError("len() needs a Tensor with at least one axis; this one is a scalar, of shape ()")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ShapeError(
                f"the truth value of a Tensor of shape {self.shape} is ambiguous; use t.data.any() or t.data.all(), or "
                "t.size to ask whether it has elements"
            )
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __round__(self, ndigits: int | None = None) -> float:
        return round(self.item(), ndigits)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """The state of a leaf for `copy` and `pickle`, without its hooks. Raises GraphError for a recorded Tensor."""
        if self._node is not None:
            raise GraphError("a recorded Tensor cannot be copied or pickled with its tape; use its .detach()")
        held = {"data": self.data, "requires_grad": self.requires_grad, "grad": self.grad}
        return None, {**held, "_node": None, "_hooks": None}

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """`array * tensor`, for which NumPy calls multiply(array, tensor), is the op multiply; all else is refused."""
        name = ufunc.__name__.replace("true_divide", "divide")  # NumPy's name for divide
        if method == "__call__" and not options and not isinstance(inputs[0], Tensor):
            if name in _ARITHMETIC:
                return registry[name](*inputs)
            if name in _COMPARISONS:
                return ufunc(*map(array_of, inputs))
        if "out" in options:
            instead = "no array can hold its tape: for `array += tensor` write `array = array + tensor`"
            raise _refusal(name, name, instead)
        raise _refusal(name if method == "__call__" else f"{name}.{method}", name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.requires_grad and (self.ndim or dtype is None):  # np.float32(loss) asks for a dtype, and is as float()
            raise GraphError(
                "NumPy would lose this Tensor's tape; combine Tensors by ops.stack(...) or ops.concatenate(...); if no "
                "gradient is needed, use (not in a rule) .data or .detach()"
            )
        if self.device != "cpu":
            raise DeviceError("NumPy does not take a Tensor that is on a GPU; give it tensor.numpy(), a copy")
        return np.asarray(self.data, dtype=dtype) if copy is None else np.array(self.data, dtype=dtype, copy=copy)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """NumPy's functions compute with the arrays where no gradient is lost; else DtypeError says what to use."""
        values = [*args, *kwargs.values()]
        parts = [p for x in values for p in (x if isinstance(x, (list, tuple)) else (x,))]
        if func.__name__ not in _NO_GRADIENT and any(isinstance(x, Tensor) and x.requires_grad for x in parts):
            raise _refusal(f"{func.__module__}.{func.__name__}".partition(".")[2], func.__name__)
        named = {name: array_of(value) for name, value in kwargs.items()}
        if any(device_of(array_of(x)) != "cpu" for x in parts):
            args = [[*map(array_of, x)] if isinstance(x, (list, tuple)) else x for x in args]
            return func(*map(array_of, args), **named)
        return func._implementation(*map(array_of, args), **named)

    def __repr__(self) -> str:
        body = np.array2string(self.numpy(), precision=4, threshold=20, edgeitems=3, separator=", ", prefix="Tensor(")
        origin = f", made by {self._node.op.name}" if self._node else ", requires_grad" if self.requires_grad else ""
        place = ", on a GPU" if self.device != "cpu" else ""
        return f"{type(self).__name__}({body}, shape={self.shape}, {self.dtype}{place}{origin})"


def _refusal(called: str, name: str, instead: str = "") -> DtypeError:
    """The error where np.CALLED, such as np.linalg.norm or np.add.reduce, of this last name or ufunc got a Tensor."""
    own = {name: f"ops.{name}(...)"} if name in registry else {}
    known = _INSTEAD_OF_NUMPY | own
    found = known.get(called) or known.get(name) or "other ops, or (not in a rule) .data if no gradient is needed"
    return DtypeError(f"np.{called} does not take a Tensor, whose tape it would lose; {instead or f'use {found}'}")


class Parameter(Tensor):
    """A Tensor that a model learns: a leaf that requires a gradient. Lists become float32, arrays keep their dtype."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True, *, device: str | None = None):
        super().__init__(data, requires_grad, device=device)

    if not TYPE_CHECKING:  # type checkers would think that a Parameter takes every attribute

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "data" and hasattr(self, "data") and self.requires_grad:
                is_float = is_array(value) and value.dtype.kind in "fc"  # complex steps set complex numbers
                if not is_float or value.shape != self.shape:
                    got = f"{value.dtype} of shape {value.shape}" if is_array(value) else f"a {type(value).__name__}"
                    remedy = (
                        "; for another shape assign a new one, model.weight = ng.Parameter(array)" if is_float else ""
                    )
                    raise (ShapeError if is_float else DtypeError)(
                        f"the .data of this Parameter is an array of floats of shape {self.shape}; got {got}{remedy}"
                    )
            super().__setattr__(name, value)


def _array_from(data: Any, float_dtype: np.dtype) -> np.ndarray:
    """A Python number or a list as an array. Floats get this dtype, but a list of arrays keeps that of its arrays."""
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ShapeError(f"expected a rectangular array of numbers: {error}") from None
    keeps_dtype = isinstance(data, (list, tuple)) and any(is_array(x) and x.ndim for x in data)
    return array.astype(float_dtype) if array.dtype == np.float64 and not keeps_dtype else array


def as_dtype_of(x: Any, *arrays: Any) -> Any:
    """A Python number, list or NumPy scalar in the dtype of the arrays it is combined with, so that it widens none.

    Without such arrays it becomes float32.
    """
    dtype = arrays[0].dtype if len(arrays) == 1 else np.result_type(*[a.dtype for a in arrays] or [np.float32])
    if isinstance(x, (int, float)):
        return np.asarray(x, dtype=dtype) if dtype.kind in "fc" else x
    array = Tensor(_array_from(x, np.dtype(np.float64)), device="cpu").data
    return array.astype(dtype) if dtype.kind == "c" or (dtype.kind == "f" and array.dtype.kind != "c") else array


def array_of(x: Any) -> Any:
    """The array of a Tensor; anything else unchanged."""
    return x.data if isinstance(x, Tensor) else x


_TWICE = (
    "to differentiate a gradient, compute y and ng.grad(y, x) inside `with ng.higher_order():`, where that is a Tensor"
)


def grad(
    y: Tensor,
    wrt: Any = None,
    cotangent: Any = None,
    *,
    retain_graph: bool | None = None,
    out: Sequence[Array] | None = None,
    **other: Any,
) -> Any:
    """The gradient of y with respect to `wrt`, a Tensor or a sequence of Tensors (leaves or computed ones).

    cotangent: array of floats of y's shape; optional if y is a scalar.
    retain_graph: keep the tape; the default is False, and True under `higher_order()`.
    out: where `wrt` is a sequence of leaves, an array for each, of its shape and dtype. Gradients are summed in these
        arrays, which saves the memory of a second set. If an error is raised, their contents are undefined.

    Returns an array for a Tensor, a list of arrays for a sequence, each of its Tensor's shape and dtype; under
    `higher_order()` Tensors that can be differentiated again. A Tensor that y does not depend on gets zeros, without an
    error (PyTorch raises one unless allow_unused=True). No `.grad` changes. Raises GraphError, ShapeError and
    DtypeError as `Tensor.backward` does.
    """
    if "create_graph" in other:
        raise SignatureError(f"grad has no create_graph; {_TWICE}")
    if other:
        raise SignatureError(f"grad has no argument {', '.join(other)}; it takes cotangent=, retain_graph= and out=")
    if not isinstance(y, Tensor):
        advice = f"; {_TWICE}" if is_array(y) else ""
        if callable(y):
            advice = "; write ng.grad(f(x), x), or ng.value_and_grad(f)(x)"
        elif is_array(wrt):
            advice = "; x must be a Tensor before y is computed: x = ng.Tensor(x, requires_grad=True)"
        raise GraphError(f"grad differentiates a Tensor; got a {type(y).__name__}{advice}")
    single = isinstance(wrt, Tensor)
    targets = _targets("grad", wrt)
    for target in targets:
        if not target.requires_grad:
            raise GraphError(f"grad is taken with respect to Tensors that require a gradient; got {target!r}")
    if single and y.is_leaf and y.requires_grad and not wrt.is_leaf:
        raise GraphError("grad got a leaf first, and a computed Tensor second; to differentiate y, write ng.grad(y, x)")
    retain = modes().higher_order if retain_graph is None else retain_graph
    origins = [origin(target) for target in targets]
    places = {} if out is None else _places_for(targets, out)
    found = backward(origin(y), _seed(y, cotangent, f"; {_TWICE}"), Sums({*origins}, places), retain)
    gradients: list[Any] = []
    handed_out: set[int] = set()
    for target, source in zip(targets, origins):
        gradient = found.get(source)
        if gradient is None and source in places:
            gradient = places[source]
            gradient[...] = 0
        elif gradient is None:
            gradient = xp(target.data).zeros_like(target.data)
            gradient = Tensor._recorded(gradient, None) if modes().higher_order else gradient
        elif id(gradient) in handed_out and not modes().higher_order:  # the same Tensor is in wrt twice
            gradient = gradient.copy()
        handed_out.add(id(gradient))
        gradients.append(gradient)
    return gradients[0] if single else gradients


def _targets(name: str, wrt: Any) -> list[Tensor]:
    """`wrt` as a list. Raises GraphError unless it is a Tensor or has only Tensors, also in lists."""
    is_single = isinstance(wrt, Tensor) or is_array(wrt) or not isinstance(wrt, Iterable)
    targets: list[Any] = [wrt] if is_single else [*wrt]
    for target in targets:
        if isinstance(target, (list, tuple)) and name != "grad":  # whose gradients are one flat list
            _targets(name, target)
        elif not isinstance(target, Tensor):
            call = f"{name}({'loss' if name == 'grad' else 'f'}, "
            raise GraphError(
                f"{name} is taken with respect to Tensors that require a gradient; got {type(target).__name__}; write "
                f"{call}x) for a Tensor x, or {call}model.parameters())"
            )
    return targets


def _require_function(call: str, f: Any) -> None:
    if not callable(f):
        name = call.partition("(")[0]
        raise DtypeError(f"{name} takes a function of Tensors first; got {type(f).__name__}; write ng.{call}")


def _places_for(targets: Sequence[Tensor], out: Sequence[Array]) -> dict[Tensor, Array]:
    """For each leaf the array of `out` that its gradient is written into."""
    if modes().higher_order:
        raise GraphError("out= takes plain arrays, and under higher_order() a gradient is a Tensor; omit out=")
    if any(target._node is not None for target in targets) or len({id(t) for t in targets}) < len(targets):
        raise GraphError("out= is for leaves, each given once; omit it for computed Tensors")
    if len(out) != len(targets):
        raise ShapeError(f"out= needs an array for each of the {len(targets)} Tensors; got {len(out)}")
    for target, array in zip(targets, out):
        if (array.shape, array.dtype) != (target.shape, target.dtype):
            raise ShapeError(
                f"out= needs an array of each Tensor's shape and dtype, here {target.shape} {target.dtype}; got "
                f"{array.shape} {array.dtype}"
            )
    return dict(zip(targets, out))


def value_and_grad(
    f: Callable[..., Any],
    wrt: Any = None,
    *,
    argnum: int | Sequence[int] | None = None,
    has_aux: bool = False,
    **other: Any,
) -> Callable[..., tuple[Any, Any]]:
    """A function that computes f and its gradient: `loss, grads = value_and_grad(f, parameters)(*args)`.

    wrt: a Tensor or a sequence of Tensors. By default the positional arguments of the call: each becomes a float leaf,
        and a list of arrays becomes a list of leaves, whose gradient is a list.
    argnum: the position of the argument to differentiate, or several positions; f gets the other arguments unchanged.
    has_aux: f returns a tuple whose first element is differentiated; the value returned is then such a tuple, too.

    f must return a scalar Tensor: GraphError if it returns none, ShapeError for another shape. The value is returned
    detached, except under `higher_order()`.
    """

    _require_function("value_and_grad(f, x)(...), or ng.value_and_grad(f)(x)", f)
    if other:
        raise SignatureError(f"value_and_grad has no argument {', '.join(other)}; it takes argnum= and has_aux=")
    if wrt is not None:
        targets = _targets("value_and_grad", wrt)  # a list, as a generator could be used only once
        wrt = wrt if isinstance(wrt, Tensor) else targets

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        targets: Any = wrt
        if targets is None:
            places = range(len(args)) if argnum is None else (argnum,) if isinstance(argnum, int) else argnum
            given = dict(enumerate(args))
            if beyond := [i for i in places if i not in given]:
                raise SignatureError(
                    f"argnum is {beyond[0]}, and the call has arguments 0 to {len(args) - 1}; they count from 0"
                )
            given |= {i: _leaves(args[i]) for i in places}
            args = tuple(given.values())
            targets = [args[i] for i in places]
            if len(targets) == 1 and (argnum is None or isinstance(argnum, int)):
                targets = targets[0]
        y = f(*args, **kwargs)
        y, *aux = y if has_aux else (y,)
        _require_scalar(y, "value_and_grad")
        found = iter(grad(y, _flat_leaves(targets)))
        value = y if modes().higher_order else y.detach()
        return (value, *aux) if has_aux else value, _like(targets, found)

    return run


def _require_tensor(y: Any, who: str) -> Any:
    if not isinstance(y, Tensor):
        raise GraphError(f"{who} needs a function that returns a Tensor; it returned {type(y).__name__}")
    return y


def _require_scalar(y: Any, who: str) -> Any:
    if _require_tensor(y, who).shape != ():
        raise ShapeError(
            f"{who} needs a function that returns a scalar; it returned shape {y.shape}; return its .sum() or .mean()"
        )
    return y


def _leaves(x: Any) -> Any:
    """x as a float leaf; a list of arrays as a list of leaves."""
    if isinstance(x, (list, tuple)) and any(is_array(array_of(part)) for part in x):
        return [_leaves(part) for part in x]
    return x if isinstance(x, Tensor) and x.requires_grad else Tensor(x, requires_grad=True)


def _flat_leaves(x: Any) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else [leaf for part in x for leaf in _flat_leaves(part)]


def _like(x: Any, found: Iterator[Any]) -> Any:
    """The gradients in the same nested lists as the leaves x."""
    return next(found) if isinstance(x, Tensor) else [_like(part, found) for part in x]


def jacobian(f: Callable[[Tensor], Tensor], x: Any) -> Array:
    """The derivative of each element of f(x) by each element of x: an array of shape f(x).shape + x.shape.

    f maps a Tensor to a Tensor; x is converted to a leaf.
    """
    _require_function("jacobian(f, x)", f)
    leaf = Tensor(x, requires_grad=True)
    return _rows_of_jacobian(_require_tensor(f(leaf), "jacobian"), leaf)


def hessian(f: Callable[[Tensor], Tensor], x: Any) -> Array:
    """The second derivatives of f, which maps a Tensor to a scalar Tensor, at x: an array of shape x.shape + x.shape.

    >>> hessian(lambda x: x[0] * x[0] * x[1], [3.0, 5.0]).tolist()
    [[10.0, 6.0], [6.0, 0.0]]
    """
    _require_function("hessian(f, x)", f)
    leaf = Tensor(x, requires_grad=True)
    with higher_order():
        gradient = grad(_require_scalar(f(leaf), "hessian"), leaf)
    return _rows_of_jacobian(gradient, leaf)


def _rows_of_jacobian(y: Tensor, leaf: Tensor) -> Array:
    arrays = xp(leaf.data)
    found = arrays.zeros((y.size, *leaf.shape), leaf.dtype)
    for i in range(y.size if y.requires_grad else 0):
        one = arrays.zeros(y.shape, y.dtype)
        one.reshape(-1)[i] = 1
        found[i] = grad(y, leaf, one, retain_graph=True)
    return found.reshape(y.shape + leaf.shape)


def hvp(f: Callable[..., Tensor], inputs: Sequence[Any], vectors: Sequence[Any]) -> list[Array]:
    """Hessian-vector product: the derivative of f's gradient at `inputs` along `vectors` (Pearlmutter 1994).

    f takes the inputs as Tensors and returns a scalar Tensor. Returns one array for each input; the Hessian is never
    built. Raises ShapeError if a vector does not have the shape of its input.
    """
    _require_function("hvp(f, [x], [v])", f)
    for given in (inputs, vectors):
        if isinstance(given, Tensor) or is_array(given) or not isinstance(given, Iterable):
            raise DtypeError(
                f"hvp takes lists of inputs and vectors; got {type(given).__name__}; write ng.hvp(f, [x], [v])"
            )
    inputs, vectors = [*inputs], [*vectors]
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    expected, found = [leaf.shape for leaf in leaves], [np.shape(array_of(v)) for v in vectors]
    if found != expected:
        raise ShapeError(f"hvp needs a vector of each input's shape, {expected}; got {found}")
    with higher_order():
        gradients = grad(_require_scalar(f(*leaves), "hvp"), leaves)
        along = [g * array_of(v) for g, v in zip(gradients, vectors)]
        total = functools.reduce(lambda a, b: a + b, [a.sum() for a in along])
    if not total.requires_grad:  # f is linear: its gradient is constant
        return [np.zeros_like(leaf.data) for leaf in leaves]
    return grad(total, leaves)


def origin(tensor: Tensor) -> Any:
    """What stands for a Tensor on the tape: the node that computed it, or the leaf itself."""
    return tensor if tensor._node is None else tensor._node


def _seed(root: Tensor, cotangent: Any, advice: str = "") -> Any:
    """The cotangent that backward starts with, as an array. Raises GraphError, ShapeError or DtypeError.

    advice: for the error where there is nothing to differentiate.
    """
    if not modes().recording:
        raise GraphError("backward was called inside no_grad(); call it outside of that block")
    if not root.requires_grad:
        raise GraphError(
            "nothing to differentiate: this Tensor was computed under no_grad(), or from no Tensor with "
            f"requires_grad=True{advice}"
        )
    if cotangent is None:
        if root.shape != ():
            raise ShapeError(
                f"backward needs a scalar, and this Tensor has shape {root.shape}; pass a cotangent of that shape"
            )
        seed = xp(root.data).ones_like(root.data)
    else:
        seed = cotangent if is_array(array_of(cotangent)) else to_device(as_dtype_of(cotangent, root), root.device)
        if device_of(array_of(seed)) != root.device:
            raise DeviceError(
                f"the cotangent is on {device_of(array_of(seed))}, this Tensor on {root.device}; move one"
            )
        if seed.shape != root.shape:
            raise ShapeError(f"the cotangent has shape {seed.shape}; this Tensor has {root.shape}; they must be equal")
        if seed.dtype.kind == root.dtype.kind == "f":
            seed = seed if seed.dtype == root.dtype else seed.astype(root.dtype)
        elif seed.dtype != root.dtype:
            raise DtypeError(f"the cotangent has dtype {seed.dtype}; this Tensor has {root.dtype}; cast it first")
    if modes().higher_order:
        return seed if isinstance(seed, Tensor) else Tensor._recorded(seed, None)
    return np.asarray(seed) if isinstance(seed, np.generic) else array_of(seed)
