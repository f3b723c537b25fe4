"""A function to be checked, seen from both sides: run on numbers, or recorded and differentiated by the engine.

Its gradient is again such a function, of the same inputs and of the cotangent: so any order is checked.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np

from nanograd_llm.autograd import tensor
from nanograd_llm.autograd.modes import higher_order, no_grad, watched
from nanograd_llm.autograd.tensor import Tensor, array_of, origin
from nanograd_llm.backend.arrays import beside, default_device, device_of, is_array, to_device, to_host
from nanograd_llm.errors import ConfigError, DtypeError, GraphError, NanogradError, ShapeError, SignatureError
from nanograd_llm.gradcheck.check.references import references
from nanograd_llm.ops import concatenate
from nanograd_llm.settings import listed, nearest


class Varying(Exception):
    """A function or its gradient is another one when it is computed again: there is no one gradient to check."""


def grad(y: Tensor, leaves: Any, cotangent: Any = None, **how: Any) -> Any:
    """The engine's `grad` between NumPy arrays, wherever y is; of Tensors under `higher_order()`."""
    if cotangent is not None and not isinstance(cotangent, Tensor):
        cotangent = beside(cotangent, y.data)
    found = tensor.grad(y, leaves, cotangent, **how)
    many = [g if isinstance(g, Tensor) else to_host(g) for g in (found if isinstance(found, list) else [found])]
    return many if isinstance(found, list) else many[0]


def gradients(
    function: Differentiable, values: Sequence[np.ndarray], cotangents: Sequence[np.ndarray]
) -> list[list[np.ndarray]]:
    """What the engine says: for each cotangent, the gradient of each value."""
    y, leaves = function.record(values)
    if not y.requires_grad:  # the tape does not lead to any of them: to the engine it is a constant
        return [[np.zeros(leaf.shape, leaf.dtype) for leaf in leaves] for _ in cotangents]
    return [grad(y, leaves, cotangent, retain_graph=True) for cotangent in cotangents]


class Function:
    """Any function of Tensors, with its float inputs, and the leaves it uses without being given them, as its values.

    The latter, such as a model's parameters, are found on the tape. While a check runs (`borrowed`) their arrays are
    swapped for others, so nothing else may use them meanwhile.

    named: inputs that f takes by name.
    values: the point to check at, float64.  names: of these values.  shape: of the result.
    shape_problems: which op calls on the tape break their op's shape line, in words.
    cut: names of a module's parameters that no gradient reaches. Those named in `unused` are left alone.
    notes: which inputs are float64 copies, and which op call is the first to widen such an input, in words.
    outside: what it raised where a check moved its values out of its domain.
    Raises InPlaceError where an op's forward writes into its input.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        inputs: Sequence[Any],
        unused: Sequence[str] = (),
        named: Mapping[str, Any] = MappingProxyType({}),
    ):
        if not callable(f):
            raise DtypeError(f"a function to check is an op, a closure, a Module, ...; got {f!r:.100}")
        self.f, self.inputs, self.named, self.label = f, [*inputs, *named.values()], [*named], label(f)
        names = input_names(f, len(inputs)) + self.named
        constants = getattr(getattr(f, "func", f), "constants", ())  # of an op
        untrained = untrained_arrays(f)  # before f keeps some
        self._places = [i for i, x in enumerate(self.inputs) if names[i] not in constants and _is_checked(x)]
        given = [np.array(to_host(array_of(self.inputs[i]))) for i in self._places]  # copies, whatever f does to them
        beside_parameters = next((p.device for p in _parameters_of(f).values()), default_device())
        self._devices = [_device_for(self.inputs[i], beside_parameters) for i in self._places]
        self._given = [*inputs, *getattr(f, "keywords", {}).values()]
        self.held: list[Tensor] = []
        broken: dict[str, None] = {}
        widened: list[str] = []

        def note(node: Any, y: Any, arrays: Sequence[Any], static: Any, place: str) -> None:
            if problem := node.op.shape_complaint(arrays, static, node.shape, place):
                broken[problem] = None
            for dtype in (a.dtype for a in arrays if hasattr(a, "dtype") and a.dtype.kind == "f"):
                if dtype.itemsize < node.dtype.itemsize and node.op.name != "cast":  # that one is meant
                    widened.append(f"{dtype} widens to {node.dtype} in {place}")

        with watched(note):  # where a forward that writes into its input is refused
            y, leaves = self.record(given)
        self.shape_problems, self.shape, self.outside = list(broken), y.shape, ""
        held, self.cut = _held(f, y, leaves, unused, self._is_moved_by)
        self.held = list(held.values())
        self.names = [names[i] for i in self._places] + list(held)
        arrays = given + [leaf.numpy() for leaf in self.held]
        if not arrays:
            raise self._nothing_to_check()
        promoted = sorted({str(a.dtype) for a in arrays if a.dtype != np.float64})
        self.notes = [f"{dtype} inputs were checked as float64 copies" for dtype in promoted]
        self.notes += widened[:1] if promoted else []
        self.notes += [f"{name} is declared a constant: no gradient goes to it" for name in names if name in constants]
        self.notes += untrained
        integers = [name for name, x in zip(names, self.inputs) if name not in constants and is_integer(x)]
        self.notes += [f"not checked, as they hold integers: {', '.join(integers)}"] if integers else []
        self.values = [a.astype(np.float64) for a in arrays]

    def _is_moved_by(self, *leaves: Tensor) -> bool:
        """Does the result change with the numbers of these leaves, which no gradient reaches?"""
        before = [leaf.data for leaf in leaves]
        values = [np.array(to_host(array_of(self.inputs[i]))) for i in self._places]
        y = self.evaluate(values)
        try:
            for leaf, data in zip(leaves, before):
                leaf.data = data + np.sin(1 + data)
            return not np.array_equal(self.evaluate(values), y, equal_nan=True)
        finally:
            for leaf, data in zip(leaves, before):
                leaf.data = data

    def _nothing_to_check(self) -> GraphError:
        kinds = [f" of {array_of(x).dtype}" if hasattr(array_of(x), "dtype") else "" for x in self._given]
        came = ", ".join(type(x).__name__ + kind for x, kind in zip(self._given, kinds)) or "none"
        return GraphError(
            f"{self.label} has no input that requires a gradient; it got {came}; give it a float array, or a Tensor "
            "with requires_grad=True"
        )

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Give the leaves that are held their own arrays back in the end."""
        before = [leaf.data for leaf in self.held]
        try:
            yield
        finally:
            for leaf, data in zip(self.held, before):
                leaf.data = data

    def tape(
        self, dtype: Any = np.float64, k: int | None = None, recorded: tuple[Tensor, list[Tensor]] | None = None
    ) -> tuple[float, int, int, list[str]]:
        """The machine epsilon of the narrowest float that the function and its rules compute in when the inputs have
        this dtype (they may convert them); the number of ops in the longest chain of them, and of all op calls; and
        which rule returns a gradient narrower than its input, in words.

        k: the input whose gradient is meant; without it, those of all. recorded: what `record` gave for this dtype.
        """
        y, leaves = recorded or self.record([value.astype(dtype) for value in self.values])
        below = tape_below(y)
        nodes = [source for source in below if not isinstance(source, Tensor)]
        narrow = _narrow_gradients(y, dict(zip(leaves, self.names)), nodes)
        depths: dict[int, int] = {}
        for node in sorted(nodes, key=lambda node: node.order):
            depths[id(node)] = 1 + max((depths.get(id(source), 0) for source in node.sources), default=0)
        dtypes = [source.dtype for source in [y, *below]]
        dtypes += [dtype for _, dtype, at in narrow if k is None or any(leaves[k] is other for other in _below(at))]
        epsilon = max(float(np.finfo(dtype).eps) for dtype in dtypes)
        return epsilon, max(depths.values(), default=0), len(depths), [words for words, _, _ in narrow]

    def record(
        self, values: Sequence[np.ndarray], leaves: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The function's result at these values, and the leaf that stands for each of them.

        leaves: what an earlier call with the same values returned, to be used again.
        """
        if leaves is None:
            leaves = [*self._leaves(values, requires_grad=True), *self.held]
        return self._run(leaves[: len(self._places)], values), list(leaves)

    def evaluate(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """The result's numbers; one of the arrays may be complex.

        NaN at real numbers where the function raises, though it does not at the point to check: they lie outside its
        domain, as a matrix that is not positive definite.
        """

        def compute() -> np.ndarray:
            if not any(map(np.iscomplexobj, values)):
                return self.record(values)[0].numpy()
            wide = np.result_type(*[value.dtype for value in values], np.complex64)
            every = [value.astype(wide) for value in values]  # all: forwards may add up in place
            with no_grad():
                return self._run(self._leaves(every), every).numpy()

        return self.inside(compute, values, self.shape)

    def inside(self, compute: Callable[[], np.ndarray], values: Sequence[np.ndarray], shape: Any) -> np.ndarray:
        """What `compute` gives; NaN of this shape where these values are outside the function's domain."""
        try:
            return compute()
        except (Varying, OSError, MemoryError):
            raise
        except Exception as error:  # the function is a user's, and may raise whatever it likes
            if any(map(np.iscomplexobj, values)) or all(map(np.array_equal, values, self.values)):
                raise
            self.outside = str(error) if isinstance(error, NanogradError) else f"{type(error).__name__}: {error}"
            return np.full(shape, np.nan)

    def _leaves(self, values: Sequence[np.ndarray], **how: bool) -> list[Tensor]:
        return [Tensor(value, device=device, **how) for value, device in zip(values, self._devices)]

    def _run(self, leaves: Sequence[Tensor], values: Sequence[np.ndarray]) -> Tensor:
        for leaf, value in zip(self.held, values[len(self._places) :]):
            leaf.data = to_device(value, leaf.device)
        inputs = list(self.inputs)
        for place, leaf in zip(self._places, leaves):
            inputs[place] = leaf
        positional = len(inputs) - len(self.named)
        y = self.f(*inputs[:positional], **dict(zip(self.named, inputs[positional:])))
        if isinstance(y, (tuple, list, dict)) and (parts := _float_tensors(y)):
            y = parts[0] if len(parts) == 1 else concatenate([part.reshape(-1) for part in parts])
        if not isinstance(y, Tensor):
            if self._given and not (self._places or self.held):  # then an op returns an array
                raise self._nothing_to_check()
            raise GraphError(
                f"{self.label} returned {type(y).__name__}; a function to check returns a Tensor, or a tuple, list or "
                "dict of Tensors; float(), .item(), .data and the functions of math leave the tape"
            )
        if y.dtype.kind not in "fc":
            raise DtypeError(f"{self.label} returned {y.dtype}; only a float result has a gradient")
        if y.dtype in (np.float16, np.float32) and all(value.dtype == np.float64 for value in values):
            return y.astype(np.float64)  # as its cotangents are
        return y


class Gradient:
    """The gradient of a function, all of it in one row, as a function of the same values and of the cotangent."""

    def __init__(self, function: Differentiable, cotangent: np.ndarray):
        self.function = function
        self.inside: Callable[..., np.ndarray] = function.inside
        self.values: list[np.ndarray] = [*function.values, cotangent]
        order = sum(name.startswith("cotangent") for name in function.names)
        self.names: list[str] = [*function.names, "cotangent" + "'" * order]

    def record(self, values: Sequence[np.ndarray]) -> tuple[Tensor, list[Tensor]]:
        with higher_order():
            y, leaves = self.function.record(values[:-1])
            cotangent = Tensor(values[-1], requires_grad=True, device=y.device)
            parts = grad(y, leaves, cotangent) if y.requires_grad else [x.detach() * 0 for x in leaves]
            return concatenate([part.reshape(-1) for part in parts]), [*leaves, cotangent]

    def evaluate(self, values: Sequence[np.ndarray]) -> np.ndarray:
        def compute() -> np.ndarray:
            (parts,) = gradients(self.function, values[:-1], [values[-1]])
            return np.concatenate([part.reshape(-1) for part in parts])

        return self.inside(compute, values[:-1], sum(value.size for value in values[:-1]))


class Scaled:
    """The same function at a part of its values."""

    def __init__(self, function: Differentiable, part: float):
        self.values: list[np.ndarray] = [part * x for x in function.values]
        self.names: list[str] = function.names
        self.record: Callable[..., tuple[Tensor, list[Tensor]]] = function.record
        self.evaluate: Callable[..., np.ndarray] = function.evaluate
        self.inside: Callable[..., np.ndarray] = function.inside


Differentiable = Function | Gradient | Scaled


def _device_for(x: Any, otherwise: str) -> str:
    """Where an input is: a Tensor stays where it is, and so does an array on a GPU."""
    return device_of(array_of(x)) if isinstance(x, Tensor) or device_of(x) != "cpu" else otherwise


def is_integer(x: Any) -> bool:
    """Is it an array or scalar of integers?"""
    return getattr(getattr(x, "dtype", None), "kind", "") in ("i", "u")


def _is_checked(x: Any) -> bool:
    """Is this input differentiated (a float array, or a Tensor that requires a gradient), rather than a constant?"""
    if isinstance(x, Tensor):
        return x.requires_grad
    if x is None or isinstance(x, (str, bool)):
        return False
    if isinstance(x, (list, tuple)):
        try:  # NumPy refuses parts of different shapes, and Tensors
            np.asarray(x)
        except (ValueError, GraphError):
            if not any(_is_checked(part) for part in x):
                return False
            raise ShapeError(
                f"an input is a {type(x).__name__} of Tensors, or of arrays that make no one array; pass its parts as "
                "separate inputs, such as gradcheck(lambda a, b: concatenate([a, b]), a, b)"
            ) from None
    made = x if is_array(x) else np.asarray(x if isinstance(x, (float, complex, list, tuple)) else 0)
    kind = made.dtype.kind
    if kind == "c":
        raise DtypeError("a complex input has no gradient here; give its real and imaginary parts as float arrays")
    return kind == "f"


def _narrow_gradients(y: Tensor, leaves: Mapping[Tensor, str], nodes: Sequence[Any]) -> list[tuple[str, Any, Any]]:
    """Where these rules return a gradient narrower than cotangent and input: in words, its dtype, and the node or leaf
    that gets it. leaves: with their names."""
    found: list[tuple[str, Any, Any]] = []

    def note(op: str, gradients: Sequence[Any], sources: Sequence[Any], made_of: Sequence[Any]) -> None:
        for g, x in zip(gradients, sources):
            is_float = g is not None and g.dtype.kind in "fc"
            if is_float and x is not None and g.itemsize < min(x.dtype.itemsize, made_of[0].itemsize):
                which = f"the gradient of {leaves[x]}" if x in leaves else "a gradient"
                words = f"{which} that {op} gives is {g.dtype}, though its input is {x.dtype}"
                found.append((f"{words}: the rounding of {g.dtype} hides small mistakes", g.dtype, x))

    for node in nodes:
        node.guard = SimpleNamespace(cotangent=lambda dy: dy, gradients=functools.partial(note, node.op.name))
    with contextlib.suppress(Exception), np.errstate(all="ignore"):  # `consistency` says which rule raises it
        if y.requires_grad:
            grad(y, [*leaves], np.ones(y.shape, y.dtype), retain_graph=True)
    return found


def _float_tensors(y: Any) -> list[Tensor]:
    """The float Tensors in a tuple, list or dict, and in those within it."""
    if isinstance(y, Tensor):
        return [y] if y.dtype.kind in "fc" else []
    parts = y.values() if isinstance(y, dict) else y if isinstance(y, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _float_tensors(part)]


def _held(
    f: Any, y: Tensor, given: Sequence[Tensor], unused: Sequence[str], is_moved_by: Callable[..., bool]
) -> tuple[dict[str, Tensor], list[str]]:
    """The leaves that f uses without being given them, by name, and those that no gradient reaches.

    A module's parameters come first, in its order, whether or not the tape leads to them. Of another function they are
    those that it refers to and that move its result; then come any others on the tape. Left out are those that are
    frozen, or said to be unused.
    """
    named, of_others = _parameters_of(f), {}
    if not named:
        of_others = {name: leaf for name, leaf in _referred_to(f).items() if all(leaf is not x for x in given)}
    named = named or of_others
    unused = as_names(unused)
    require_unused(unused, [*named], label(f))
    known = {id(leaf) for leaf in given}
    found = {id(x): x for x in tape_below(y) if isinstance(x, Tensor) and id(x) not in known}
    listed = {name: leaf for name, leaf in named.items() if leaf.requires_grad and name not in unused}
    idle = {n: leaf for n, leaf in listed.items() if n in of_others and id(leaf) not in found}
    if idle and is_moved_by(*idle.values()):  # most often a function uses none of them
        idle = {n: leaf for n, leaf in idle.items() if not is_moved_by(leaf)}
    listed = {n: leaf for n, leaf in listed.items() if n not in idle}
    cut = [name for name, leaf in listed.items() if id(leaf) not in found and id(leaf) not in known]
    held = {name: leaf for name, leaf in listed.items() if id(leaf) in found or name in cut}
    others = [leaf for key, leaf in found.items() if all(leaf is not parameter for parameter in named.values())]
    return held | {f"leaf {i}": leaf for i, leaf in enumerate(others)}, cut


def as_names(unused: Any) -> list[Any]:
    """What `unused=` got, as a list: of one name where it got that name alone."""
    return [unused] if isinstance(unused, str) or not isinstance(unused, Iterable) else [*unused]


def require_unused(unused: Sequence[Any], known: Sequence[str], who: str) -> None:
    """Raise ConfigError unless `unused=` names some of these."""
    if unknown := [name for name in unused if name not in known]:
        near = nearest(str(unknown[0]), known)
        hint = f"; did you mean {near!r}?" if near else f"; it may name {listed(known)}" if known else ""
        raise ConfigError(f"unused= names {unknown[0]!r}, which {who} does not have{hint}")


def _parameters_of(f: Any) -> dict[str, Tensor]:
    """By name, the parameters of the module that f is, or whose method it is."""
    owner = owner_of(f)
    return dict(owner.named_parameters()) if hasattr(owner, "named_parameters") else {}


def untrained_arrays(f: Any) -> list[str]:
    """In words: the float arrays that the module that f is, or whose method it is, holds as no Parameter or buffer."""
    model = owner_of(f)
    if not hasattr(model, "named_modules"):
        return []
    return [
        f"{path}.{name} is an array and no Parameter, so it is neither trained nor saved"
        for path, module in model.named_modules(type(model).__name__)
        for name, x in vars(module).items()
        if is_array(x) and x.dtype.kind == "f" and name not in module._buffers
    ]


def _referred_to(f: Any) -> dict[str, Tensor]:
    """By name, the parameters of Modules, and the leaves, that a function refers to; of one that has two names the
    first."""
    found: dict[int, tuple[str, Tensor]] = {}

    def is_held(value: Any) -> bool:
        return isinstance(value, Tensor) or hasattr(type(value), "named_parameters")  # a Module has them

    for name, value in references([("", f)], is_held, "nanograd_llm"):
        parts = [("", value)] if isinstance(value, Tensor) else value.named_parameters()
        for path, leaf in parts:
            if leaf.is_leaf:
                found.setdefault(id(leaf), (".".join(filter(None, (name, path))), leaf))
    return dict(found.values())


def owner_of(f: Any) -> Any:
    """The module that f is, or whose method it is, with or without arguments that functools.partial fixes."""
    inner = getattr(f, "func", f)
    return getattr(inner, "__self__", inner)


def tape_below(y: Any) -> list[Any]:
    """Every node and leaf that the tape leads to from y: a Tensor, or a tuple, list or dict that holds Tensors."""
    return _below(*(origin(part) for part in _float_tensors(y) if part.requires_grad))


def _below(*sources: Any) -> list[Any]:
    """These nodes or leaves, and every one that the tape leads to from them."""
    found: dict[int, Any] = {}
    stack = [*sources]
    while stack:
        source = stack.pop()
        if source is not None and id(source) not in found:
            found[id(source)] = source
            stack.extend(() if isinstance(source, Tensor) else source.sources)
    return list(found.values())


def label(f: Callable[..., Any]) -> str:
    inner = getattr(f, "func", f)  # a functools.partial goes by the name of its function
    return getattr(inner, "__name__", type(inner).__name__)


def place_of(f: Callable[..., Any]) -> str:
    """The file and line where a function is written; nothing for a builtin."""
    code = getattr(inspect.unwrap(f), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


def input_names(f: Callable[..., Any], count: int) -> list[str]:
    """What the function calls its first `count` inputs, as far as it says so."""
    parameters, inner = [], getattr(f, "func", f)
    with contextlib.suppress(TypeError, ValueError):  # a builtin says nothing
        signature = inspect.signature(getattr(inner, "forward", inner))  # a Module's, an op's
        parameters = list(signature.parameters.values())
    if isinstance(f, functools.partial) and parameters:
        try:
            signature.bind_partial(*f.args, **f.keywords)
        except TypeError as error:
            own = "gradcheck's own are order=, seed=, jacobian=, explain=, seconds=, unused="
            raise SignatureError(f"{label(f)} {error}; {own}") from None
        parameters = parameters[len(f.args) :]
    names = []
    for place in range(count):
        variadic = next((p for p in parameters[: place + 1] if p.kind is p.VAR_POSITIONAL), None)
        if variadic is not None:
            names.append(f"{variadic.name}[{place - parameters.index(variadic)}]")
        else:
            names.append(parameters[place].name if place < len(parameters) else f"input {place}")
    return names
