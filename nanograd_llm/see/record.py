"""Recording one forward and its backward pass: every op call, its numbers, and each gradient that its rule sent back.

The recorder is the tape's watcher, which is handed each node, and then walks the tape itself, as backward does. So the
engine runs nothing more when nothing is recorded, and a recorded pass gives the same bits.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import math
import mmap
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanograd_llm.autograd.modes import modes, recording, watched
from nanograd_llm.autograd.op import Op
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tape import Node, walk
from nanograd_llm.autograd.tensor import Tensor, array_of, origin
from nanograd_llm.backend.arrays import as_array, beside, device_of, is_array, to_host
from nanograd_llm.backend.threads import blas_threads
from nanograd_llm.errors import GraphError, ShapeError
from nanograd_llm.gradcheck.check.function import input_names, label, tape_below
from nanograd_llm.nn.module import Module
from nanograd_llm.settings import counted, listed, nearest

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_ENGINE = tuple(os.path.join(_PACKAGE, room, "") for room in ("autograd", "see", "backend", "gradcheck"))
_OPS = os.path.join(_PACKAGE, "ops", "")
_AT_ONCE = 2**16  # numbers that fit into a cache


@dataclass(eq=False, repr=False)
class Value:
    """An array of the forward: a leaf, a constant, or the output of an op call.

    name: of a leaf its parameter's or argument's, of an output the caller's local variable; "" where there is none.
    label: what it is called: its name where it is the only one of that name, else the module or the call it is of.
    grad: its complete gradient, after hooks; None for a constant.
    uses: the calls that gave it a gradient, in the order in which these arrived. Their sum is `grad`.
    hooked: did a hook replace that sum by another array?
    """

    array: np.ndarray
    name: str = ""
    label: str = "a constant"
    made_by: Call | None = None
    grad: np.ndarray | None = None
    uses: list[Use] = field(default_factory=list)
    hooked: bool = False

    def entry(self, index: tuple[int, ...]) -> str:
        """What one entry is called, such as x[0,2] (the output of 1 tanh)."""
        name = self.name or self.label
        return name + at(index) + self.label.removeprefix(name)

    def __repr__(self) -> str:
        known = f"{self.label} {self.array.shape} {self.array.dtype}, norm {norm(self.array):.4g}"
        if self.grad is None:
            return known
        return f"{known}; gradient of {counted(len(self.uses), 'use')}, norm {norm(self.grad):.4g}"


@dataclass(eq=False, repr=False)
class Use:
    """One place where a value goes into an op call, and the gradient that came back from there."""

    call: Call
    place: int
    gradient: np.ndarray

    def __str__(self) -> str:
        return f"{self.call.name}, as {self.call.input_name(self.place)}"

    def __repr__(self) -> str:
        return f"<use in {self}: {self.gradient.shape}, norm {norm(self.gradient):.4g}>"


@dataclass(eq=False, repr=False)
class Call:
    """One call of an op: what went in and came out, and what its rule was given and sent back.

    number: its place among the calls, from 0.
    inputs: a Value for each input, None for one left out.  needs: which of them get a gradient.
    module: the path of the module that called.  file, line, source: the line of code that called.
    kept: what the rule was given beside the cotangent, by the names of its parameters.
    sent: the gradient of each input, in its shape and dtype; None where none is needed.
    """

    number: int
    op: Op
    inputs: list[Value | None]
    static: dict[str, Any]
    needs: tuple[bool, ...]
    output: Value
    module: str
    file: str
    line: int
    kept: dict[str, Any] = field(default_factory=dict)
    sent: list[np.ndarray | None] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its number, op and module, such as 3 layernorm in blocks.0.ln_1."""
        return f"{self.number} {self.op.name}" + (f" in {self.module}" if self.module else "")

    def __repr__(self) -> str:
        known = [(self.input_name(i), x.array.shape) for i, x in enumerate(self.inputs) if x is not None]
        inputs = ", ".join(f"{name} {shape}" for name, shape in known)
        return f"<call {self.name}: {inputs} -> y {self.output.array.shape}>"

    @property
    def source(self) -> str:
        """The line of code that called."""
        return linecache.getline(self.file, self.line).strip()

    @property
    def cotangent(self) -> np.ndarray:
        """ȳ, the gradient of the output, as the rule received it."""
        assert self.output.grad is not None
        return self.output.grad

    def input_name(self, place: int) -> str:
        """What the op calls this input; those of an op with any number of inputs are xs_0, xs_1, …"""
        return f"{self.op.inputs[0]}_{place}" if self.op.variadic else self.op.inputs[place]

    def place_of(self, name: str | int) -> int:
        """The place of the input of this name, or of the only one with a value of this name.

        Raises GraphError if there is none that gets a gradient.
        """
        names = [self.input_name(i) for i in range(len(self.inputs))]
        values = [x.name if x else "" for x in self.inputs]
        if name not in names and values.count(str(name)) > 1:
            known = " and ".join(n for n, value in zip(names, values) if value == name)
            raise GraphError(f"call {self.number} ({self.op.name}) takes {name!r} as {known}: give one of these")
        where = names if name in names or name not in values else values
        place = name if isinstance(name, int) else where.index(name) if name in where else -1
        if not 0 <= place < len(names) or not self.needs[place]:
            known = "its inputs " + ", ".join(n for n, need in zip(names, self.needs) if need)
            raise GraphError(f"call {self.number} ({self.op.name}) sends no gradient to {name!r}, only to {known}")
        return place

    @property
    def rule_place(self) -> str:
        """FILE:LINE of the rule, below the package where it is in there."""
        code = inspect.unwrap(self.op.rule).__code__  # type: ignore[arg-type]
        return f"{short_path(code.co_filename)}:{code.co_firstlineno}"

    @property
    def call_place(self) -> str:
        return f"{short_path(self.file)}:{self.line}"


def short_path(path: str) -> str:
    """A path from the package's name on, or the file's name elsewhere."""
    inside = os.path.relpath(path, os.path.dirname(_PACKAGE)) if path.startswith(_PACKAGE) else os.path.basename(path)
    return inside.replace(os.sep, "/")


@dataclass(eq=False, repr=False)
class Record:
    """A recorded pass: `calls` in the order of the forward, `leaves` by name, and the result.

    device: where it ran. The arrays are NumPy arrays in any case.
    constants: the arguments that get no gradient, and why.
    cuts: the lines of code that made a number of a Tensor, which no gradient goes through.
    """

    title: str
    calls: list[Call]
    leaves: dict[str, Value]
    result: Value
    device: str = "cpu"
    constants: dict[str, str] = field(default_factory=dict)
    cuts: list[str] = field(default_factory=list)

    @property
    def heading(self) -> str:
        """How much was recorded, and what has no gradient although it may be meant to have one."""
        leaves = counted(len(self.leaves), "leaf", "leaves")
        constants = f"; constants: {', '.join(self.constants)}" if self.constants else ""
        cut = "makes a number of a Tensor, by float, item or math; no gradient goes through it"
        notes = "".join(f"\nnote: {line} {cut}" for line in self.cuts)
        return f"{self.title}: {counted(len(self.calls), 'op call')}, {leaves}{constants}{notes}"

    @property
    def grads(self) -> dict[str, np.ndarray]:
        """The gradient of each leaf, by name; None for a leaf that none reached."""
        return {name: leaf.grad for name, leaf in self.leaves.items()}  # type: ignore[misc]

    def values(self) -> Iterator[Value]:
        """Every value with a gradient: the leaves, then the outputs in the order of the calls."""
        yield from self.leaves.values()
        yield from (call.output for call in self.calls)

    def call(self, ref: int | str) -> Call:
        """A call by its number, from 0, or by the name of what it made. Raises GraphError if there is none."""
        if isinstance(ref, str):
            if not self.named(ref) and (inside := self.inside(ref)):
                raise GraphError(f"{ref!r} is a module: give a call in it, one of {_numbers(inside)}")
            made_by = self.value(ref).made_by
            if made_by is None:
                users = _numbers(use.call for use in self.value(ref).uses) or "none"
                raise GraphError(f"{ref!r} is an input of the pass, which no call made; the calls that use it: {users}")
            return made_by
        if not isinstance(ref, (int, np.integer)) or not 0 <= ref < len(self.calls):
            raise GraphError(f"there is no call {ref!r}; they are numbered from 0 to {len(self.calls) - 1}")
        return self.calls[ref]

    def value(self, ref: int | str) -> Value:
        """A value with a gradient: by the number of the call that made it, its name, or the module whose output it is.

        Raises GraphError if there is none, or the name is that of several.
        """
        if not isinstance(ref, str):
            return self.call(ref).output
        found = self.named(ref)
        if len(found) == 1:
            return found[0]
        inside = self.inside(ref)
        if not inside or found:
            raise self._unknown(ref, found)
        return inside[-1].output

    def inside(self, module: str) -> list[Call]:
        """The calls of the module of this path, and of those in it."""
        return [c for c in self.calls if c.module == module or c.module.startswith(f"{module}.")]

    def named(self, name: str) -> list[Value]:
        """The leaf of this name, or the outputs of this name."""
        return [self.leaves[name]] if name in self.leaves else [c.output for c in self.calls if c.output.name == name]

    def _unknown(self, name: str, found: list[Value]) -> GraphError:
        if found:
            numbers = _numbers([value.made_by for value in found if value.made_by])
            return GraphError(f"{name!r} is the name of several values: give the number of a call, one of {numbers}")
        if calls := [c for c in self.calls if c.op.name == name]:
            return GraphError(f"{name!r} is an op: give the number of a call of it, one of {_numbers(calls)}")
        if name in self.constants:
            return GraphError(f"{name!r} has no gradient: {self.constants[name]}")
        known = [*self.leaves, *(c.output.name for c in self.calls), *(c.module for c in self.calls)]
        names = [*dict.fromkeys(filter(None, known))]
        near = nearest(str(name), names)
        return GraphError(
            f"nothing is called {name!r}; " + (f"did you mean {near!r}?" if near else f"the pass has {listed(names)}")
        )


def _numbers(calls: Iterable[Call]) -> str:
    return ", ".join(str(call.number) for call in calls)


def at(index: tuple[int, ...]) -> str:
    """An index as it is typed, such as [0,3]; nothing for a whole array."""
    return f"[{','.join(map(str, index))}]" if index else ""


def norm(a: np.ndarray) -> float:
    """The Euclidean norm of all numbers, in float64, which a large array is converted to in parts."""
    if a.size <= _AT_ONCE:
        return float(np.linalg.norm(a.astype(np.float64).reshape(-1)))
    flat = a.reshape(-1) if a.flags.c_contiguous else a.T.reshape(-1)
    return math.hypot(*(norm(flat[start : start + _AT_ONCE]) for start in range(0, a.size, _AT_ONCE)))


def layout_copy(a: np.ndarray) -> np.ndarray:
    """A copy that lies in memory as `a` does, so that NumPy and BLAS give the same bits."""
    return with_strides(a, a.strides) if device_of(a) == "cpu" else a.copy(order="K")


def with_strides(a: np.ndarray, strides: tuple[int, ...]) -> np.ndarray:
    """A copy of the array that lies in memory with these strides."""
    low = sum([min(0, s * (n - 1)) for s, n in zip(strides, a.shape)]) if a.size else 0
    high = sum([max(0, s * (n - 1)) for s, n in zip(strides, a.shape)]) if a.size else 0
    view = np.ndarray(a.shape, a.dtype, np.empty(high - low + a.itemsize, np.uint8), -low, strides)
    view[...] = a
    return view


def recorded(
    f: Callable[..., Any],
    args: tuple[Any, ...],
    named: Mapping[str, Any],
    cotangent: Any = None,
    kind: type[Record] = Record,
    inside_ops: bool = False,
) -> Any:
    """Run f(*args, **named) and backward from its result, and return the `kind` of record of both.

    Floats and arrays of floats among the arguments become leaves, but for those of an op's constants and floats given
    by name. Leaves that f uses without being given them, such as a model's parameters, are found on the tape.

    cotangent: of the result, 1 for a scalar.  inside_ops: the calling lines may lie in `ops`, as in a composition.
    Raises GraphError where nothing is recorded, something was recorded before, or inside `higher_order()`; ShapeError
    for a result that is no scalar without a cotangent.
    """
    if modes().higher_order:
        raise GraphError("trace records a first backward pass; call it outside higher_order()")
    if not callable(f):
        raise GraphError(
            f"trace takes a function and its arguments, such as ng.trace(model.loss, tokens, targets); got a "
            f"{type(f).__name__}"
        )
    names = input_names(f, len(args))
    constants = f.constants if isinstance(f, Op) else ()
    given = [_as_leaf(x) if name not in constants else x for name, x in zip(names, args)]
    named = {name: _as_leaf(x) if name not in constants and is_array(x) else x for name, x in named.items()}
    recorder = _Recorder(f, dict(zip(names, given)) | named, inside_ops)
    with blas_threads(1), recording(), recorder.watching():
        y = f(*given, **named)
        if not isinstance(y, Tensor) or not y.requires_grad:
            came = f"a {type(y).__name__}" if not isinstance(y, Tensor) else "a Tensor that needs no gradient"
            hint = next((f"; {remedy}" for remedy in recorder.constants.values()), "")
            raise GraphError(
                f"{label(f)} returned {came}; trace needs a Tensor computed from floats, float arrays or Tensors that "
                f"require a gradient{hint}"
            )
        if cotangent is None and y.shape != ():
            raise ShapeError(f"{label(f)} returned shape {y.shape}; give trace(..., cotangent=an array of that shape)")
        seed = beside(1 if cotangent is None else array_of(cotangent), y.data).astype(y.dtype, copy=False)
        if seed.shape != y.shape:
            raise ShapeError(f"the cotangent has shape {seed.shape}; the result of {label(f)} has {y.shape}")
        record = recorder.backward(y, seed, kind)
        if y.device != "cpu":
            _move_to_host(record, y.device)
        return record


def _instead(name: str, x: Any) -> str:
    """Why an argument gets no gradient, and what to write; "" for one that is a leaf, or is no number."""
    if is_array(x) and x.dtype.kind in "iu":
        return f"an array of {x.dtype} is a constant: only floats have a gradient"
    if type(x) is int:
        return f"an integer is a constant: write {float(x)} for {x}"
    if isinstance(x, float):
        return f"a float given by name is a constant: write {x} for {name}={x}, at its place"
    if isinstance(x, (list, tuple)) and any(isinstance(part, (float, list, tuple)) for part in x):
        return f"a {type(x).__name__} is a constant: write np.array({list(x)!r:.40})"
    return ""


def _as_leaf(x: Any) -> Any:
    is_float = isinstance(x, float) or (is_array(x) and x.dtype.kind == "f")
    return Tensor(layout_copy(x if is_array(x) else np.asarray(x)), requires_grad=True) if is_float else x


def _move_to_host(record: Record, device: str) -> None:
    """Replace every array of a pass that ran on a GPU by a NumPy array, the same one wherever it was the same."""
    copies: dict[int, tuple[Any, np.ndarray]] = {}

    def moved(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return type(x)(map(moved, x))
        if device_of(x) == "cpu":
            return x
        if id(x) not in copies:
            copies[id(x)] = x, to_host(x)
        return copies[id(x)][1]

    record.device = device
    for value in {id(x): x for call in record.calls for x in (*call.inputs, call.output) if x is not None}.values():
        value.array, value.grad = moved(value.array), moved(value.grad)
        for use in value.uses:
            use.gradient = moved(use.gradient)
    for call in record.calls:
        call.static, call.kept = ({name: moved(x) for name, x in held.items()} for held in (call.static, call.kept))
        call.sent = moved(call.sent)


class _Recorder:
    """Collects the calls of one forward, and the names of what they compute with."""

    def __init__(self, f: Callable[..., Any], arguments: Mapping[str, Any], inside_ops: bool):
        self.f, self.title = f, label(f)
        self.hidden = _ENGINE if inside_ops else (*_ENGINE, _OPS)
        self.calls: dict[Node, Call] = {}
        self.arrays: dict[int, tuple[Any, Value]] = {}  # id of an array that no call made -> the array, its copy
        self.names: dict[int, tuple[Any, str, bool]] = {}  # id of a node or leaf -> it, its name, by the user's code?
        self.leaves: dict[Tensor, Value] = {}
        self.arguments = [id(x) for x in arguments.values() if isinstance(x, Tensor)]
        self.constants = {name: text for name, x in arguments.items() if (text := _instead(name, x))}
        self.cuts: dict[str, None] = {}
        self.find_names(arguments)

    def find_names(self, arguments: Mapping[str, Any]) -> None:
        """Name the arguments, and the parameters of the modules that f is, holds, is given or mentions."""
        modules: dict[str, Module] = {}
        inner = getattr(self.f, "func", self.f)
        owner = getattr(inner, "__self__", inner)
        code = getattr(inner, "__code__", None)
        seen = dict(arguments)
        if isinstance(owner, Module):
            modules[""] = owner
            self.title = f"{type(owner).__name__}.{label(self.f)}" if owner is not inner else type(owner).__name__
        elif code is not None:
            cells = zip(code.co_freevars, inner.__closure__ or ())
            with contextlib.suppress(ValueError):  # a cell that is still empty
                seen |= {name: cell.cell_contents for name, cell in cells}
            seen |= {name: inner.__globals__[name] for name in code.co_names if name in inner.__globals__}
        modules |= {name: x for name, x in seen.items() if isinstance(x, Module) and x is not owner}
        for name, module in modules.items():
            prefix = f"{name}." if name and len(modules) > 1 else ""
            for path, parameter in module.named_parameters():
                self.names.setdefault(id(parameter), (parameter, prefix + path, True))
        for name, x in seen.items():
            if isinstance(x, Tensor):
                self.names.setdefault(id(x), (x, name, True))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        def note_return(frame: Any, event: str, _: Any) -> None:
            if event == "return" and not frame.f_code.co_filename.startswith(self.hidden):
                self.read_locals(frame)
            elif event == "call" and frame.f_code is Tensor.item.__code__ and frame.f_locals["self"].requires_grad:
                caller = self._outside(frame)
                self.cuts[f"{short_path(caller.f_code.co_filename)}:{caller.f_lineno}"] = None

        with watched(self.note):
            if sys.getprofile() is not None:  # leave a profiler that runs alone: last values stay without names
                yield
                return
            sys.setprofile(note_return)  # a function's last values have their names when it returns
            try:
                yield
            finally:
                sys.setprofile(None)

    def note(self, node: Node, y: Any, arrays: Any, static: Any, place: str) -> None:
        frame = self._outside(sys._getframe(1))
        self.read_locals(frame)  # before an assignment gives a name to another value
        inputs = [self.value(source, array) for source, array in zip(node.sources, arrays)]
        needs = tuple([source is not None for source in node.sources])
        held = {name: _held(value) for name, value in static.items()}
        where = ".".join(modes().modules), frame.f_code.co_filename, frame.f_lineno
        output = Value(np.empty(0))  # its array is known when a call uses it, or in the end
        call = Call(len(self.calls), node.op, inputs, held, needs, output, *where)
        output.made_by = self.calls[node] = call

    def _outside(self, frame: Any) -> Any:
        """The nearest frame that is not of the engine."""
        while frame.f_back is not None and frame.f_code.co_filename.startswith(self.hidden):
            frame = frame.f_back
        return frame

    def value(self, source: Any, array: Any) -> Value | None:
        """What stands for an input of a call: the output of an earlier call, a leaf, or a constant."""
        if array is None:
            return None
        if source in self.calls:
            found = self.calls[source].output
            found.array = array
            return found
        if id(array) not in self.arrays or not _same(self.arrays[id(array)][1].array, array):
            copied = layout_copy(array) if is_array(array) and not _is_fixed(array) else np.asarray(array)
            self.arrays[id(array)] = array, Value(copied)
        found = self.arrays[id(array)][1]
        if not isinstance(source, Tensor):
            return found
        leaf = self.leaves.setdefault(source, Value(found.array))  # two leaves may have one array
        if leaf.array is not found.array:
            raise GraphError(
                f"a leaf of shape {source.shape} was changed while trace recorded; change it before or after"
            )
        return leaf

    def read_locals(self, frame: Any) -> None:
        is_user = not frame.f_code.co_filename.startswith(_PACKAGE)
        for name, x in frame.f_locals.items():
            if isinstance(x, Tensor):
                known = self.names.get(id(source := origin(x)))
                if known is None or (is_user and not known[2]):
                    self.names[id(source)] = source, name, is_user

    def backward(self, y: Tensor, seed: np.ndarray, kind: type[Record]) -> Record:
        """Walk back from the result, and put together what was recorded. Raises GraphError where that is not all."""
        below, root = tape_below(y), origin(y)
        nodes = sorted((node for node in below if isinstance(node, Node)), key=lambda node: node.order)
        for node in nodes:
            if node not in self.calls:
                raise GraphError(
                    f"{self.title} uses a Tensor that {node.op.name} had computed before; compute it inside the "
                    "function, or give its .detach()"
                )
        if isinstance(root, Tensor):
            raise GraphError(f"{self.title} returned one of its inputs; there is no op call to record")
        calls = [self.calls[node] for node in nodes]
        self.calls[root].output.array = y.data
        self.name_outputs(nodes)
        for node, call in zip(nodes, calls):
            call.kept = self._kept(node)
        with_hooks = [self.leaves[s] if isinstance(s, Tensor) else self.calls[s].output for s in below if s._hooks]
        self.walk_back(nodes, root, seed)
        for value in with_hooks:
            value.hooked = bool(value.uses) and value.grad is not None and not _same(added(value.uses), value.grad)
        leaves, output = self.named_leaves(below), self.calls[root].output
        return kind(self.title, calls, leaves, output, constants=self.constants, cuts=[*self.cuts])

    def name_outputs(self, nodes: list[Node]) -> None:
        """Number the calls, and name their outputs by local variables; those of the package where there is one only."""
        named = {id(node): self.names[id(node)] for node in nodes if id(node) in self.names}
        leaves = [self.names[id(leaf)] for leaf in self.leaves if id(leaf) in self.names]
        counts = Counter([*self.constants, *(name for _, name, _ in [*named.values(), *leaves])])
        last: dict[str, Node] = {}  # of each module the last call in it or in its parts, whose output is the module's
        for node in nodes:
            parts = self.calls[node].module.split(".")
            last |= {".".join(parts[: i + 1]): node for i in range(len(parts))}
        for number, node in enumerate(nodes):
            call, (_, name, is_user) = self.calls[node], named.get(id(node), (None, "", False))
            call.number = number
            is_of_module = call.module and last[call.module] is node
            call.output.label = call.module if is_of_module else f"the output of {number} {call.op.name}"
            if is_user or counts[name] == 1:  # those of the package are often called x and y
                call.output.name = name
                call.output.label = name if counts[name] == 1 else f"{name} ({call.output.label})"

    def walk_back(self, nodes: list[Node], root: Any, seed: np.ndarray) -> None:
        """Fill in the cotangents, what each rule sent, and the gradients by use."""
        of = {id(node): self.calls[node].output for node in nodes} | {id(t): v for t, v in self.leaves.items()}
        edges = Counter(id(source) for node in nodes for source in node.sources)
        sums = Sums()
        for node, arrived, gradients in walk(root, seed, sums):
            call = self.calls[node]
            call.output.grad = arrived
            call.sent = list(gradients)
            for place, (source, gradient) in enumerate(zip(node.sources, gradients)):
                if gradient is not None:
                    if edges[id(source)] > 1:  # the walk adds to it in place
                        call.sent[place] = gradient = gradient.copy(order="K")
                    of[id(source)].uses.append(Use(call, place, gradient))
        for leaf, gradient in sums.results().items():
            if leaf in self.leaves:  # else a Tensor with retain_grad()
                of[id(leaf)].grad = gradient

    def named_leaves(self, below: list[Any]) -> dict[str, Value]:
        """The leaves of the tape: arguments first, then parameters in the order of their modules, then others."""
        reached = {id(source) for source in below}
        order = {place: i for i, place in enumerate(dict.fromkeys([*self.arguments, *self.names]))}
        leaves: dict[str, Value] = {}
        for leaf, value in sorted(self.leaves.items(), key=lambda item: order.get(id(item[0]), len(order))):
            if id(leaf) in reached:
                name = self.names.get(id(leaf), (None, f"leaf {len(leaves)}"))[1]
                value.name = value.label = name if name not in leaves else f"{name} ({len(leaves)})"
                if any(call.output.name == name for call in self.calls.values()):
                    value.label = f"{name} (a leaf)"
                leaves[value.name] = value
        return leaves

    def _kept(self, node: Node) -> dict[str, Any]:
        """The rule's arguments by name. An array of the caller's is replaced by its copy."""
        names = list(inspect.signature(node.op.rule).parameters)[1:]
        needs = tuple([source is not None for source in node.sources])
        known = {"needs": needs, "into": [None] * len(needs), "onto": [None] * len(needs)}
        return {name: known.get(name, self._own(x)) for name, x in zip(names, node.saved)}

    def _own(self, x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return type(x)(map(self._own, x))
        return self.arrays[id(x)][1].array if id(x) in self.arrays else x


def added(uses: list[Use]) -> np.ndarray:
    """The sum of these gradients in the order of their arrival, as backward adds them."""
    total = uses[0].gradient
    for use in uses[1:]:
        total = as_array(total + use.gradient)
    return total


def _held(x: Any) -> Any:
    """A static argument that later writes of the caller do not reach."""
    if isinstance(x, (list, tuple)):
        return type(x)(map(_held, x))
    return layout_copy(x) if isinstance(x, np.ndarray) else x


def _is_fixed(x: Any) -> bool:
    """Is this array a view of memory that nobody can write into, such as a file of weights? Then it needs no copy."""
    if not isinstance(x, np.ndarray):
        return False
    while isinstance(x, np.ndarray) and not x.flags.writeable:
        x = x.base
    return isinstance(x.obj if isinstance(x, memoryview) else x, (bytes, mmap.mmap))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    is_equal = a is b or np.array_equal(a, b) or np.array_equal(a, b, equal_nan=True)
    return a.dtype == b.dtype and is_equal
