"""`@op`: one declaration holds an op's forward, formula, adjoints, shapes and backward rule.

Calling the op on Tensors records a Node on the tape; calling it on plain arrays only computes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.checked import (
    Guard,
    parameter_name,
    place,
    raised_at,
    read_only,
    require_finite,
    require_no_widening,
)
from nanograd_llm.autograd.modes import modes
from nanograd_llm.autograd.shapes import ShapeLine
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tape import Node
from nanograd_llm.autograd.tensor import NUMBERS, Array, Tensor, array_of, as_dtype_of, registry
from nanograd_llm.backend.arrays import as_array, device_of, gpu_in_use, gpu_memory_error, is_array, to_device
from nanograd_llm.errors import (
    DeviceError,
    DtypeError,
    GraphError,
    IndexRangeError,
    InPlaceError,
    NanogradError,
    ShapeError,
    SignatureError,
)

KNOWN_IN_BACKWARD = ("needs", "into", "onto")  # parameters of a rule whose values are known in backward only
WRITES = "writes into its cotangent, which other inputs may share, or into what the tape keeps; copy it first"
_BAR = "\N{COMBINING MACRON}"
HALF = np.dtype(np.float16)
HALF_CHAR = HALF.char
_RECEIVES = (
    "arrays, or Tensors under higher_order() and in a check of order 2: use operators, ops and methods that both have, "
    "not .data or NumPy's functions; or declare equals=, the same function made of ops, and it receives arrays only"
)
_ERRORS_IN_RULES: dict[type[Exception], type[NanogradError]] = {  # an error in a rule -> the one raised, with the op
    TypeError: DtypeError, AttributeError: DtypeError, DtypeError: DtypeError, ValueError: ShapeError,
    IndexError: IndexRangeError, GraphError: GraphError,
}  # fmt: skip


class Kept(tuple):
    """An op's result together with the extra values that its rule needs."""


def keep(y: Array, **extras: Any) -> Kept:
    """Return `keep(y, name=value)` from an op's forward to give its rule a parameter `name`, besides inputs and y.

    The value has no tape: only with `equals` can the gradient of such an op be differentiated again.
    """
    return Kept((y, extras))


class Op:
    """A differentiable operation, made by `@op`: a call on Tensors is recorded, a call on plain arrays only computes.

    `rule` is the function that `@NAME.backward` registered.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        formula: str,
        adjoint: str,
        equals: Callable[..., Any] | None,
        constants: Sequence[str],
        domain: Mapping[str, tuple[float, float]],
        samples: Callable[..., Any] | None,
    ):
        functools.update_wrapper(self, forward)
        self.name = forward.__name__
        self.forward = forward
        self.formula, self.adjoint = formula, adjoint
        self.equals, self.domain, self.samples = equals, domain, samples
        self.rule: Callable[..., Any] | None = None
        self._plan: list[tuple[str, Any]] = []  # where each parameter of the rule comes from, in order
        self._open: list[tuple[int, str]] = []  # those of them that are known in backward only, and their positions

        parameters = inspect.signature(forward).parameters.values()
        kinds = inspect.Parameter
        self.variadic = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
        self.inputs = [p.name for p in parameters if p.kind is not kinds.KEYWORD_ONLY]
        self.required = sum(p.default is kinds.empty for p in parameters if p.kind is not kinds.KEYWORD_ONLY)
        self.constants = self._checked_constants(constants)
        self.static_defaults = {p.name: p.default for p in parameters if p.kind is kinds.KEYWORD_ONLY}
        self.wants_needs = self.static_defaults.pop("needs", None) is not None
        self._constant_places = frozenset(i for i, name in enumerate(self.inputs) if name in self.constants)
        self._differentiable_places = [i for i in range(len(self.inputs)) if i not in self._constant_places]
        self._require_cases()
        self._require_same_arguments()
        self.shape_line = self._declared_shapes()
        self._require_adjoints()

    @property
    def differentiable(self) -> list[str]:
        """Names of the inputs that a gradient can go to."""
        return [name for name in self.inputs if name not in self.constants]

    @property
    def keeps(self) -> list[str]:
        """Names of the parameters of the rule that the forward computes and passes to `keep`."""
        return [name for kind, name in self._plan if kind == "kept"]

    def input_name(self, i: int) -> str:
        """What the op's function calls its input number i."""
        return f"{self.inputs[0]}[{i}]" if self.variadic else self.inputs[i]

    def broadcasts(self, i: int, shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
        """May the op have broadcast its input number i from `shape` to `whole`, which NumPy could do?"""
        name = self.inputs[0] if self.variadic else self.inputs[i]
        return self.shape_line.broadcasts(name, shape, whole, beside=self.variadic)

    def _checked_constants(self, constants: Any) -> frozenset[str]:
        is_several = isinstance(constants, Iterable) and not isinstance(constants, str)
        names = [*constants] if is_several else [constants]
        if not is_several or any(name not in self.inputs for name in names):
            form = f"constants=({self.inputs[-1]!r},)"
            raise SignatureError(
                f"op {self.name}: constants is a tuple of inputs ({', '.join(self.inputs)}), such as {form}; got "
                f"{constants!r:.100}"
            )
        return frozenset(names)

    def _require_cases(self) -> None:
        """Raise SignatureError where `samples` or `domain` is in another form."""
        if self.samples is not None and not callable(self.samples):
            form = "samples=lambda draw: [((draw(3, 4),), {'axis': 0})]"
            raise SignatureError(f"op {self.name}: samples is a function of a draw, such as {form}")
        if not isinstance(self.domain, Mapping) or not {*self.domain} <= {*self.inputs}:
            form = f"domain={{'{self.inputs[0]}': (0.5, 2.0)}}"
            raise SignatureError(
                f"op {self.name}: domain has intervals by input ({', '.join(self.inputs)}), such as {form}; got "
                f"{self.domain!r:.100}"
            )

    def _require_same_arguments(self) -> None:
        """Raise SignatureError where `equals` takes other arguments, or has other defaults."""
        if self.equals is None:
            return
        if not callable(self.equals):
            raise SignatureError(f"op {self.name}: equals is a function of ops; got {self.equals!r:.100}")
        takes = inspect.signature(self.equals)
        mine = inspect.signature(self.forward)
        mine = mine.replace(parameters=[p for p in mine.parameters.values() if p.name != "needs"])
        if _arguments(takes) != _arguments(mine):
            raise SignatureError(
                f"op {self.name} takes {mine.replace(return_annotation=mine.empty)}, and the composition in equals= "
                f"{takes.replace(return_annotation=takes.empty)}; give both the same arguments and defaults"
            )

    def _declared_shapes(self) -> ShapeLine:
        if self.__doc__ is None and sys.flags.optimize > 1:
            raise NanogradError("python -OO strips docstrings, and those of ops hold their shape lines; use python -O")
        line = ShapeLine.find(self.__doc__)
        if line is None:
            near = next((text.strip() for text in (self.__doc__ or "").splitlines() if "->" in text), "")
            hint = f"; {near!r} is none: each name is followed by its sizes in parentheses" if near else ""
            raise ShapeError(
                f"op {self.name} needs a shape line in its docstring, such as 'x (..., C) -> y (..., C)'{hint}"
            )
        if (named := list(line.inputs)) != self.inputs:
            rest = self.inputs[len(named) :] if self.inputs[: len(named)] == named else []
            form = f"def {self.name}({', '.join([*named, '*', *rest])})"
            remedy = f"; if {rest[0]} is a static argument, write {form}" if rest else ""
            raise ShapeError(f"op {self.name}: the shape line names {named}, the function {self.inputs}{remedy}")
        for token in line.unbound() - set(self.static_defaults):
            raise ShapeError(
                f"op {self.name}: no input and no static argument defines {token} in {line.text!r}; for a result of "
                "any shape, such as half of T, write y (?)"
            )
        for name in {"y", *KNOWN_IN_BACKWARD} & {*self.inputs, *self.static_defaults}:
            raise NanogradError(
                f"op {self.name}: {name!r} is a reserved parameter of rules; rename the argument "
                f"(reserved are y, {', '.join(KNOWN_IN_BACKWARD)})"
            )
        return line

    def _require_adjoints(self) -> None:
        if not self.formula.strip():
            raise NanogradError(f"op {self.name} needs a formula, such as 'y = a*b'")
        rest = unicodedata.normalize("NFKD", self.adjoint).replace("\N{COMBINING OVERLINE}", _BAR)
        for name in sorted(self.differentiable, key=len, reverse=True):  # so that b does not match what is beta's
            if (usual := name + _BAR) in rest:  # compiling patterns for each name takes longer than all the rest
                rest = rest.replace(usual, "", 1)
                continue
            found = next(filter(None, (re.search(form, rest) for form in _adjoint_forms(name))), None)
            if found is None:
                alike = [other for other in self.differentiable if other[0] == name[0]]
                count = unicodedata.normalize("NFKD", self.adjoint).count(name[0] + _BAR) or "no"
                raise NanogradError(
                    f"op {self.name}: its adjoints {self.adjoint!r} have {count} {name[0]}{_BAR} for input "
                    f"{', '.join(map(repr, alike))}; write one for each, as {name[0]}{_BAR}, {name}_bar or d{name}; "
                    f"or constants=({name!r},) where no gradient goes to it"
                )
            rest = rest[: found.start()] + rest[found.end() :]

    def backward(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator that registers the rule: `rule(cotangent, ...)` returns the gradient of each differentiable input.

        The names of its other parameters decide what the tape saves. Each is an input (its array), NAME_shape or
        NAME_dtype of an input, y (the output), a static argument, a name that the forward passed to `keep`, or:

        needs: a bool for each input: does it need a gradient?
        into: for each input an array to write the gradient into and return, or None: then return an array as usual.
        onto: for each input an array that holds a sum of gradients, to add to and return, or None.

        `into` and `onto` avoid copies of large gradients. The rule must not write into any other argument: the
        cotangent may be another input's as well. It receives arrays, or Tensors under `higher_order()` if the op has no
        `equals`. Operators, comparisons, ops and common methods such as `.sum(axis=...)` work on both; `.data` and
        NumPy's functions do not. An error raised in the rule is raised with the op's name added.

        The engine may add into an array that the rule returns, or give it to the user as `.grad`. Return a new array, a
        view of one, the cotangent or a saved array; keep no other reference to it. A second rule replaces the first.
        """
        parameters = [*inspect.signature(rule).parameters]
        if not parameters:
            raise SignatureError(
                f"the rule of {self.name} takes no argument; the first is the cotangent: "
                f"{self.name}_backward(dy, {', '.join(self.inputs)})"
            )
        if parameters[0] in self.inputs:
            raise SignatureError(
                f"the first parameter of a rule is the cotangent, and {parameters[0]!r} is an input of {self.name}; "
                f"write {self.name}_backward(dy, {', '.join(self.inputs)})"
            )
        self._plan = [self._resolve(name) for name in parameters[1:]]  # the first is the cotangent
        self._open = [(i, kind) for i, (kind, _) in enumerate(self._plan) if kind in KNOWN_IN_BACKWARD]
        self.rule = rule
        return rule

    def _resolve(self, name: str) -> tuple[str, Any]:
        """Where a parameter of the rule comes from: a kind, and the position or name within it."""
        if name == "y" or name in KNOWN_IN_BACKWARD:
            return name, None
        if name in self.static_defaults:
            return "static", name
        for kind, base in (("input", name), ("shape", name[: -len("_shape")]), ("dtype", name[: -len("_dtype")])):
            if base in self.inputs and name in (base, f"{base}_{kind}"):
                return kind, slice(None) if self.variadic else self.inputs.index(base)
        return "kept", name

    def __repr__(self) -> str:
        return f"<op {self.name}: {self.formula}   {self.adjoint}>"

    def __copy__(self) -> Op:
        return self

    def __deepcopy__(self, memo: Any) -> Op:
        return self

    def __reduce__(self) -> Any:
        """An op is pickled like a function: by its module and its name."""
        return _load_op, (self.__module__, self.forward.__qualname__)

    def __call__(self, *inputs: Any, **static: Any) -> Any:
        if static:
            static = {name: self._as_static(name, v) for name, v in static.items()}
        if self.variadic:
            if len(inputs) == 1 and isinstance(inputs[0], (list, tuple)):
                inputs = tuple(inputs[0])
        elif self.required <= len(inputs) < len(self.inputs):
            inputs += (None,) * (len(self.inputs) - len(inputs))
        elif len(inputs) > len(self.inputs):
            extra, named = inputs[len(self.inputs) :], [name for name in self.static_defaults if name not in static]
            words = ", ".join(f"{name}={value!r}" for name, value in zip(named, extra))
            raise SignatureError(
                f"{self.name} takes {self.shape_line.text}; got too many positional arguments"
                + (f"; write {words}" if words else "")
            )
        for x in inputs:  # here and below a loop takes half the time of any([...])
            if isinstance(x, Tensor):
                break
        else:
            for x in inputs:
                if hasattr(x, "dtype") and x.dtype == HALF and self.name != "cast":
                    return self._in_single(inputs, inputs, static)
            inputs = tuple(self._on_one_device(inputs, inputs)) if gpu_in_use else inputs
            return self._forward(inputs, static, ())[0]
        now = modes()
        if self.equals is not None and now.higher_order:
            return self.equals(*inputs, **static)
        arrays = _operands(inputs, self._constant_places)
        for a in arrays:
            if hasattr(a, "dtype") and a.dtype.char == HALF_CHAR and self.name != "cast":
                return self._in_single(inputs, arrays, static)
        if gpu_in_use:
            arrays = self._on_one_device(inputs, arrays)
        needs: tuple[bool, ...] = ()
        if now.recording:
            constants = self._constant_places
            needs = tuple(
                [isinstance(x, Tensor) and x.requires_grad and i not in constants for i, x in enumerate(inputs)]
            )
        is_traced = now.tracing_calls  # then the forward gets read-only views
        shown = [read_only(a) if isinstance(a, np.ndarray) else a for a in arrays] if is_traced else arrays
        y, kept = self._forward(shown, static, needs)
        if not isinstance(y, np.ndarray):
            y = as_array(y, *arrays)
            if not is_array(y):
                raise GraphError(f"the forward of {self.name} returned {type(y).__name__}; it must return an array")
        if is_traced:
            y, where = as_input(y, shown, arrays), place(self.name, arrays, ".".join(now.modules))
            if now.checked:
                self._check_output(y, arrays, static, where)
        if True not in needs or y.dtype.kind != "f":
            if True in needs:
                self._require_floats(inputs, needs)
            return Tensor._recorded(y, None)
        node = self._record(inputs, arrays, static, kept, needs, y)
        if is_traced:
            if now.checked:
                saved = [a for a in map(array_of, _flat(node.saved)) if is_array(a) and not isinstance(a, np.generic)]
                node.guard = Guard(where, saved)
            if now.watcher is not None:
                now.watcher(node, y, arrays, static, where)
        return Tensor._recorded(y, node)

    def _require_floats(self, inputs: Sequence[Any], needs: tuple[bool, ...]) -> None:
        for x, need in zip(inputs, needs):
            if need and x.dtype.kind not in "fc":
                raise DtypeError(
                    f"{self.name} got a Tensor that requires a gradient, and whose .data was set to {x.dtype}; set it "
                    "to floats: array.astype('float32')"
                )

    def _as_static(self, name: str, v: Any) -> Any:
        """A static argument: a Tensor as its array, a number of NumPy as one of Python, and a copy of lists."""
        if isinstance(v, Tensor):
            if v.requires_grad:
                raise GraphError(
                    f"{self.name}: {name}= is a static argument, to which no gradient goes, but this Tensor requires "
                    "one; give its .item(), or write the function of ops that take it as an input"
                )
            return v.data if v.ndim or v.dtype.kind != "f" else v.item()  # an index may be an array of one boolean
        return v.item() if isinstance(v, np.generic) else frozen(v)

    def _in_single(self, inputs: Sequence[Any], arrays: Sequence[Any], static: dict[str, Any]) -> Any:
        """The op on float16, whose sums overflow and lose digits: computed in float32, then rounded.

        A result that NumPy would give another dtype, such as that of float16 and int16, is not rounded.
        """
        y = self(*[x.astype(np.float32) if getattr(x, "dtype", "") == HALF else x for x in inputs], **static)
        if y.dtype != np.float32:
            return y
        constants = () if self.variadic else self._constant_places
        beside = [a for i, a in enumerate(arrays) if a is not None and i not in constants]
        beside = [np.asarray(a) if isinstance(a, (list, tuple)) else a for a in beside]
        dtype = np.result_type(*[a if isinstance(a, np.generic) else getattr(a, "dtype", a) for a in beside])
        return y.astype(HALF) if dtype == HALF else y

    def _on_one_device(self, inputs: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        """The arrays of a call where the others are on a GPU: lists are copied to it, one number becomes a scalar.

        Constants, such as ids, may be NumPy arrays: the forward checks them, then moves them. Raises DeviceError if one
        of the other Tensors and arrays is not on the GPU.
        """
        places = [device_of(a) for a in arrays]
        if "cuda" not in places:
            return [*arrays]
        moved = []
        for i, (x, a, home) in enumerate(zip(inputs, arrays, places)):
            if home == "cpu" and (self.variadic or i not in self._constant_places):
                if isinstance(x, Tensor) or (isinstance(x, np.ndarray) and x.ndim):
                    names = self.inputs * len(arrays) if self.variadic else self.inputs
                    found = ", ".join(f"{name} {np.shape(a)} on {p}" for name, a, p in zip(names, arrays, places))
                    raise DeviceError(f"{self.name} got {found}; move one: .to('cuda') or .to('cpu')")
                if isinstance(a, np.ndarray):
                    a = to_device(a, "cuda") if a.ndim else a[()]
                elif isinstance(a, (list, tuple)):
                    a = to_device(a, "cuda")
            moved.append(a)
        return moved

    def _forward(
        self, arrays: Sequence[Any], static: dict[str, Any], needs: tuple[bool, ...]
    ) -> tuple[Array, dict[str, Any]]:
        """Run the forward on plain arrays. An error of NumPy's becomes a NanogradError: what arrived, what it takes."""
        if self.wants_needs:
            static = {**static, "needs": needs or (False,) * len(arrays)}
        try:
            if not needs:  # without Tensors, inputs may be lists
                arrays = [np.asarray(a) if isinstance(a, (list, tuple)) else a for a in arrays]
            operands = arrays
            if self.equals is not None:
                operands = [
                    a if (type(a) is np.ndarray and a.dtype.kind == "f") or i in self._constant_places else _as_float(a)
                    for i, a in enumerate(arrays)
                ]
            y = self.forward(*operands, **static)
        except NanogradError:
            raise
        except MemoryError as error:  # the shapes may be right: add the op and its inputs, no advice
            raise gpu_memory_error(error, f"{self.name} got {_described(arrays)}") from error
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            self._require_signature(arrays, static)
            if "read-only" in str(error) and any(isinstance(a, np.ndarray) and not a.flags.writeable for a in arrays):
                raise InPlaceError(
                    f"the forward of {self.name} writes into its input, which belongs to the caller; return a new "
                    f"array, or write into a copy: {error}"
                ) from error
            kind: type[NanogradError] = DtypeError if isinstance(error, TypeError) else ShapeError
            if type(error) is IndexError:  # NumPy's AxisError is a subclass, and is about shapes
                kind = IndexRangeError
            why = None
            if kind is ShapeError and all(map(is_array, arrays)):
                why = self.shape_line.misfit(self._named_shapes(arrays))
            message = f"{self.name} got {_described(arrays)}; it takes {self.shape_line.text}: {why or error}"
            raise kind(message) from error
        return y if type(y) is Kept else (y, {})  # type: ignore[return-value]

    def _require_signature(self, arrays: Sequence[Any], static: dict[str, Any]) -> None:
        """Raise SignatureError if the forward does not accept these arguments."""
        try:
            inspect.signature(self.forward).bind(*arrays, **static)
        except TypeError as error:
            allowed = ", ".join(f"{name}=" for name in self.static_defaults)
            named = f", and by name only: {allowed}" if allowed else ""
            raise SignatureError(f"{self.name} takes {self.shape_line.text}{named}; {error}") from None

    def _record(
        self,
        inputs: Sequence[Any],
        arrays: Sequence[Any],
        static: dict[str, Any],
        kept: dict[str, Any],
        needs: tuple[bool, ...],
        y: Array,
    ) -> Node:
        if self.rule is None:
            raise GraphError(f"op {self.name} has no rule; write one under @{self.name}.backward")
        higher_order = modes().higher_order
        originals = inputs if higher_order else arrays
        saved: list[Any] = []
        for kind, key in self._plan:
            if kind == "input":
                saved.append(originals[key])
            elif kind == "y":
                saved.append(y)
            elif kind == "static":
                saved.append(static[key] if key in static else self.static_defaults[key])
            elif kind == "kept":
                saved.append(self._kept(kept, key, higher_order))
            elif kind in KNOWN_IN_BACKWARD:
                saved.append(None)
            elif isinstance(key, slice):
                saved.append([getattr(a, kind) for a in arrays])
            else:
                saved.append(getattr(arrays[key], kind))
        sources = tuple([(x if x._node is None else x._node) if need else None for x, need in zip(inputs, needs)])
        return Node(self, sources, tuple(saved), y, higher_order)

    def _kept(self, kept: dict[str, Any], name: str, higher_order: bool) -> Any:
        if name not in kept:
            raise GraphError(
                f"the rule of {self.name} has a parameter {name!r}, which is none of these: an input, a static argument"
                f", y for the result, what the forward passed to keep() ({', '.join(kept) or 'nothing'}); the first "
                f"parameter, here {next(iter(inspect.signature(self.rule).parameters))!r}, is the cotangent"  # type: ignore[arg-type]
            )
        if higher_order:
            raise GraphError(
                f"{self.name} keeps {name!r}, which has no tape, so its gradient cannot be differentiated again; "
                "for that equals= names the same function made of ops"
            )
        return kept[name]

    def pull_back(self, node: Node, cotangent: Any, needs: tuple[bool, ...], sums: Sums) -> list[Any]:
        """Run the rule on what the node saved: a gradient for each input, None where none is needed.

        sums: has the arrays that the rule may write gradients into (`into`) or add them to (`onto`).
        """
        assert self.rule is not None
        saved = [*node.saved]
        for i, kind in self._open:
            saved[i] = needs if kind == "needs" else getattr(sums, kind)(node.sources)
        if node.differentiable:  # its inputs were saved as Tensors
            for i, (kind, _) in enumerate(self._plan):
                if kind == "y" and modes().higher_order:
                    saved[i] = Tensor._recorded(saved[i], node)
                elif kind == "input" and not modes().higher_order:
                    saved[i] = [array_of(x) for x in saved[i]] if self.variadic else array_of(saved[i])
        try:
            given = self.rule(cotangent, *saved)
        except MemoryError as error:
            raise gpu_memory_error(error, f"in the rule of {self.name}") from error
        except Exception as error:
            error_class = _ERRORS_IN_RULES.get(type(error))
            if error_class is None or str(error).startswith("in the rule of "):
                raise
            received = self._received(error, cotangent, saved)
            if "read-only" in str(error):
                raise InPlaceError(f"in the rule of {self.name}: it {WRITES} ({error}) {received}") from error
            raise error_class(f"in the rule of {self.name}: {error} {received}") from error
        given = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        places = range(len(needs)) if self.variadic else self._differentiable_places
        if len(given) != len(places):
            came = (
                "nothing" if len(given) == 1 and given[0] is None else f"{len(given)} gradient{'s' * (len(given) != 1)}"
            )
            takes = f"{len(places)} input{'s' * (len(places) != 1)} ({', '.join(map(self.input_name, places))})"
            raise GraphError(f"the rule of {self.name} returned {came} for {takes}; return one gradient for each")
        gradients: list[Any] = [None] * len(needs)
        higher_order = modes().higher_order
        for i, gradient in zip(places, given):
            if not needs[i]:
                continue
            if not isinstance(gradient, np.ndarray):
                if isinstance(gradient, Tensor) and not higher_order:
                    raise GraphError(
                        f"the rule of {self.name} returned a Tensor for {self.input_name(i)}; return an array, made of "
                        "the arrays that the rule receives"
                    )
                gradient = as_array(gradient, cotangent)
                if not hasattr(gradient, "dtype"):
                    raise GraphError(
                        f"the rule of {self.name} returned {gradient!r:.100} for {self.input_name(i)}, which needs a "
                        "gradient"
                    )
            if higher_order and not isinstance(gradient, Tensor):  # a constant
                gradient = Tensor._recorded(gradient, None)
            gradients[i] = gradient
        return gradients

    def _received(self, error: Exception, cotangent: Any, saved: Sequence[Any]) -> str:
        """What the rule received when it raised this error, and the line in its file."""
        assert self.rule is not None
        received = dict(zip(inspect.signature(self.rule).parameters, (cotangent, *saved)))
        shapes = ", ".join(f"{name} is {x.shape}" for name, x in received.items() if is_array(x))
        if any(isinstance(x, Tensor) for x in _flat([*received.values()])):
            shapes = f"a rule receives {_RECEIVES}"
        elif "memoryview" in str(error):  # the .data of an array
            shapes += f"; a rule receives {_RECEIVES}"
        where = raised_at(error, self.rule)
        return f"({shapes})" + (f", at {where}" if where else "")

    def _check_output(self, y: Array, arrays: Sequence[Any], static: dict[str, Any], where: str) -> None:
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            for i, a in enumerate(arrays):  # an input that holds NaN is the cause, such as a parameter
                if is_array(a) and a.dtype.kind == "f" and np.isnan(a).any():
                    name = f"the input {self.input_name(i)}"
                    parameter = parameter_name(a)
                    require_finite(a, f"{parameter and f'the parameter {parameter}, '}{name} of {where}", [a])
        require_finite(y, f"the result of {where}", arrays)
        if "dtype" not in static:
            require_no_widening(y.dtype, arrays, f"the result of {where}")
        problem = self.shape_complaint(arrays, static, y.shape, where)
        if problem:
            raise ShapeError(problem)

    def shape_complaint(
        self, arrays: Sequence[Any], static: Mapping[str, Any], output: tuple[int, ...], where: str
    ) -> str | None:
        """`shape_problem` as a sentence about the call described by `where`; None if there is no problem."""
        problem = self.shape_problem(arrays, static, output)
        return f"the result of {where} breaks the shape line {self.shape_line.text}: {problem}" if problem else None

    def shape_problem(self, arrays: Sequence[Any], static: Mapping[str, Any], output: tuple[int, ...]) -> str | None:
        """Why these inputs and this output shape do not match the op's shape line; None if they do."""
        return self.shape_line.mismatch(self._named_shapes(arrays), {**self.static_defaults, **static}, output)

    def _named_shapes(self, arrays: Sequence[Any]) -> dict[str, list[tuple[int, ...]]]:
        shapes = [np.shape(a) for a in arrays]
        if self.variadic:
            return {self.inputs[0]: shapes}
        return {name: [shape] for name, shape, a in zip(self.inputs, shapes, arrays) if a is not None}


def op(
    formula: str = "",
    adjoint: str = "",
    *rest: str,
    equals: Callable[..., Any] | None = None,
    constants: Sequence[str] = (),
    domain: Mapping[str, tuple[float, float]] | None = None,
    samples: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Op]:
    """Decorator that makes an op of its forward, a function of plain arrays.

        @op("y = a*b", "ā = ȳ*b;  b̄ = ȳ*a")
        def multiply(a, b):
            '''Elementwise product.  a (*), b (*) -> y (*)'''
            return a * b

        @multiply.backward
        def multiply_backward(dy, a, b):
            return dy * b, dy * a

    Positional parameters of the forward are inputs, keyword-only parameters are static arguments; a keyword-only
    `needs` receives a bool for each input: does it need a gradient? The docstring contains the shape line (see
    `shapes`). The rule returns the gradient of each differentiable input, in order, or None for one that `needs` says
    is not needed. Where an input was broadcast, as the shape line allows, its gradient may have the larger shape: the
    engine sums it to the input's shape.

    formula: what the op computes.
    adjoint: the adjoint of each input: its name with a bar over the first letter or over the whole name, in Greek
        letters, or in ASCII. That of `beta` is b̄, b̄eta, betā, β̄, beta_bar or dbeta.
    equals: the composition of other ops that equals this one. It replaces the op under `higher_order()`, so the rule
        may use all of NumPy. Without it the rule receives Tensors there: write it in operators, ops and common methods.
    constants: inputs without a gradient (ids, conditions).
    domain: {input: (low, high)}, the interval from which checks draw that input; standard normal otherwise.
    samples: function of a `draw` (see gradcheck) that yields pairs (inputs, static arguments) for checks, where the
        shape line is not enough to draw them from.

    The name of an op of this package is unique. Other ops are known by module and name: they may be called like one of
    the package, and a later definition in the same module replaces the earlier one.

    Raises ShapeError or NanogradError if the shape line, the formula or an adjoint is missing.
    """

    if not isinstance(formula, str) or rest:
        form = '@op takes a formula, and the adjoints in one string, such as @op("y = a*b", "ā = ȳ*b;  b̄ = ȳ*a")'
        raise SignatureError(form)

    def register(forward: Callable[..., Any]) -> Op:
        made = Op(forward, formula, adjoint, equals, constants, domain or {}, samples)
        made.__module__ = made.__module__ or "__main__"  # None in code run by exec() without a __name__
        key = _registry_key(made.__module__, made.name)
        other = registry.get(key)
        if other is not None and other.__module__ != made.__module__:
            raise NanogradError(f"op {made.name} of {made.__module__} exists already in {other.__module__}; rename it")
        registry[key] = made
        return made

    return register


def _registry_key(module: str, name: str) -> str:
    return name if module.partition(".")[0] == __name__.partition(".")[0] else f"{module}.{name}"


def keys_of(name: str, known: Iterable[str]) -> list[str]:
    """The keys, such as those of the registry, that a name stands for: NAME and MODULE.NAME for any module."""
    return [key for key in known if name in (key, key.rpartition(".")[2])]


def _load_op(module: str, qualname: str) -> Op:
    """The op of this name, for pickle: that of the module, or of a function in it that has defined the op by now."""
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    found = found if isinstance(found, Op) else registry.get(_registry_key(module, qualname.rpartition(".")[2]))
    if found is None:
        raise NanogradError(f"the pickled op {qualname} is not in {module}; define it at the top level of that module")
    return found


def _arguments(signature: inspect.Signature) -> tuple[list[Any], dict[str, Any]]:
    """Kind and default of the positional arguments, whose names may differ; the others by name."""
    parameters, by_name = signature.parameters.values(), inspect.Parameter.KEYWORD_ONLY
    positional = [(p.kind, p.default) for p in parameters if p.kind is not by_name]
    return positional, {p.name: p.default for p in parameters if p.kind is by_name}


def _adjoint_forms(name: str) -> Iterator[str]:
    """Regular expressions for the ways to write the adjoint of an input, those of one name only before shared ones."""
    word, digits = re.fullmatch(r"(.*?)((?:_?\d+)?)_*", name, re.DOTALL).groups()  # type: ignore[union-attr]
    spellings, digits = {word}, digits.strip("_")
    with contextlib.suppress(KeyError):  # Unicode spells it lamda
        spellings.add(unicodedata.lookup(f"GREEK SMALL LETTER {word.replace('lambda', 'lamda')}"))
    if (letter := unicodedata.name(word, "") if len(word) == 1 else "").startswith("GREEK SMALL LETTER "):
        spellings.add(letter.split()[-1].lower().replace("lamda", "lambda"))
    for s in (name, *(s + digits for s in spellings)):
        yield rf"{s}{_BAR}|(?<!\w){s}_?bar(?!\w)|(?<!\w)d_?{s}(?!\w)"
        yield f"{s[0]}{_BAR}{s[1:]}(?!\\w)"
    for s in spellings:
        yield s[0] + _BAR


def _operands(inputs: Sequence[Any], constants: frozenset[int]) -> list[Any]:
    """The arrays of an op's inputs; numbers and lists take the dtype of the differentiable Tensors beside them."""
    arrays = []
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor):
            arrays.append(x.data)
        elif x is None or isinstance(x, bool) or (type(x) is np.ndarray and x.dtype.kind in NUMBERS):
            arrays.append(x)
        elif i in constants or (is_array(x) and not isinstance(x, np.generic)):
            arrays.append(Tensor(x, device=None if is_array(x) else "cpu").data)
        else:
            tensors = [t.data for j, t in enumerate(inputs) if isinstance(t, Tensor) and j not in constants]
            arrays.append(as_dtype_of(x, *tensors))
    return arrays


def as_input(y: Any, shown: Sequence[Any], arrays: Sequence[Any]) -> Any:
    """A result that is one of the read-only views `shown` to a forward, or a view of it: writeable as the input is."""
    for a, view in zip(arrays, shown):
        if y is view:
            return a
        is_view = isinstance(a, np.ndarray) and y.base is not None and (y.base is a or y.base is a.base)
        if is_view and a.flags.writeable and 0 not in y.strides:  # stride 0: NumPy makes broadcast views read-only
            with contextlib.suppress(ValueError):  # the array that owns the memory is protected
                y.flags.writeable = True
    return y


def frozen(v: Any) -> Any:
    """A copy of a static argument's lists, which the caller cannot change later; anything else as it is."""
    if isinstance(v, list):
        return [frozen(part) for part in v]
    return tuple([frozen(part) for part in v]) if isinstance(v, tuple) else v


def _as_float(a: Any) -> Any:
    """Integers and booleans as floats, for a fused op: the functions it is composed of convert them, too."""
    if getattr(a, "dtype", None) is None or a.dtype.kind not in "iub":
        return a
    return a.astype(np.result_type(a.dtype, np.float32))


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    """These values, and those in lists and tuples among them."""
    for value in values:
        yield from value if isinstance(value, (list, tuple)) else (value,)


def _described(arrays: Sequence[Any]) -> str:
    return ", ".join(f"{a.shape} {a.dtype}" if is_array(a) else repr(a) for a in arrays)
