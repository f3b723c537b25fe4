"""A recorded pass as a plain NumPy script, which compares every array it computes with the recorded one.

The script holds the source of each forward and rule, calls them in the recorded order, and needs only NumPy.
"""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nanograd_llm.autograd.op import Op
from nanograd_llm.errors import ConfigError, DeviceError, GraphError
from nanograd_llm.files.atomic import write_atomically
from nanograd_llm.see.record import Call, Record, Use, Value, added, with_strides
from nanograd_llm.see.source import KEEP, Sources, literal

_HEAD = '''"""{title}: one forward and backward pass, recorded by nanograd_llm, in plain NumPy.

Each array is compared with the recorded one in {npz}, bit for bit. Where one differs, the script says so
and goes on with the recorded one, so only the op where it happens is named.
"""

from __future__ import annotations

import os
import sys

for library in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "BLIS_NUM", "VECLIB_MAXIMUM"):
    os.environ[library + "_THREADS"] = "1"  # as recorded; with more, a matrix product may have other last bits
{imports}
import numpy as np

recorded = np.load(os.path.splitext(os.path.abspath(__file__))[0] + ".npz")
differing = []
'''
_HELPERS = '''def same(what, found, name):
    """The array, compared with the recorded one; that one where they differ."""
    expected = recorded[name]
    if found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes():
        return found
    print(f"{what}: they differ")
    differing.append(what)
    return expected


def forward(number, op, *inputs, **static):
    """Run an op: its result, and what it keeps for its rule."""
    y = op(*inputs, **static)
    y, kept = y if type(y) is Kept else (y, {})
    return same(f"{number} {op.__name__}: y", as_array(y, *inputs), f"{number}.y"), kept


def backward(number, rule, inputs, dy, *arguments):
    """Run a rule: the gradient of each input, in its shape and dtype. An input that needs none is None."""
    sent = rule(dy, *arguments)
    sent = sent if isinstance(sent, (tuple, list)) else (sent,)
    gradients = []
    for (name, x), gradient in zip(inputs.items(), sent):
        if x is not None:
            gradient = fit(as_array(gradient, dy), x)
            gradients.append(same(f"{number} {rule.__name__}: d{name}", gradient, f"{number}.d{name}"))
    return gradients


def fit(gradient, x):
    """Sum over the axes along which x was repeated by broadcasting, and convert to its dtype."""
    if gradient.shape != x.shape:
        extra = gradient.ndim - x.ndim
        repeated = (i + extra for i, n in enumerate(x.shape) if n == 1 and gradient.shape[i + extra] != 1)
        gradient = gradient.sum(axis=(*range(extra), *repeated), keepdims=True).reshape(x.shape)
    return gradient if gradient.dtype == x.dtype else gradient.astype(x.dtype)


def total(first, *others):
    """The sum over the uses of a value, in the order in which backward reaches them."""
    for gradient in others:
        first = as_array(first + gradient)
    return first'''
_END = """
if differing:
    print(f"{len(differing)} of %d arrays differ from the recorded ones")
    sys.exit(1)
print("all %d arrays are the same, bit for bit")
"""


def write_script(record: Record, path: str | os.PathLike[str]) -> None:
    """Write a recorded pass as PATH.py and PATH.npz.

    Raises ConfigError unless the path ends in .py; GraphError, naming it, for what a script cannot hold: a cotangent
    that a hook replaced, or an op without its source; DeviceError for a pass that ran on a GPU.
    """
    if record.device != "cpu":
        raise DeviceError(
            "a script repeats a pass with NumPy bit for bit, and a GPU rounds in another order; record it on the CPU: "
            "--device cpu, or model.cpu()"
        )
    if not isinstance(path, (str, os.PathLike)) or Path(path).suffix != ".py":
        raise ConfigError(f"a script ends in .py, such as backward.py; got {path}")
    path = Path(path)
    text, arrays = _Script(record).written(path.with_suffix(".npz").name)
    held = io.BytesIO()
    np.savez(held, **arrays)  # type: ignore[arg-type]
    write_atomically(path.with_suffix(".npz"), held.getvalue())
    write_atomically(path, text.encode())


class _Script:
    def __init__(self, record: Record):
        self.record = record
        self.arrays: dict[str, np.ndarray] = {}
        self.sources = Sources(self.store)
        self.names: dict[int, str] = {}  # id of a Value -> its variable
        self.inputs: dict[str, str] = {}  # variable of a leaf or constant -> where it comes from
        self.compared = 0
        for call in record.calls:
            inputs = {f"d{call.input_name(i)}{call.number}" for i, _ in enumerate(call.inputs)}
            self.sources.taken |= {f"y{call.number}", f"kept{call.number}", f"dy{call.number}"} | inputs
        self.sources.taken |= {"same", "forward", "backward", "fit", "total", "recorded", "differing", "value_of"}
        self.sources.simpler("as_array")

    def store(self, name: str, a: np.ndarray) -> str:
        """Put an array into the file; the expression that reads it, with the strides that it had."""
        while name in self.arrays and self.arrays[name] is not a:
            name += "_"
        self.arrays[name] = a
        text = f'recorded["{name}"]'
        if a.flags.c_contiguous or a.flags.f_contiguous:
            return text
        return f"{self.sources.function(with_strides, 'an array')}({text}, {a.strides})"

    def written(self, npz: str) -> tuple[str, dict[str, np.ndarray]]:
        for value in self.record.values():
            if value.hooked:
                raise GraphError(
                    f"a script cannot hold the gradient of {value.label}: a hook replaced it; record without the hook"
                )
        forward = [line for call in self.record.calls for line in self.forward(call)]
        backward = [line for call in reversed(self.record.calls) if call.sent for line in self.backward(call)]
        ends = list(self.leaves())
        leaves = [f"{name} = {text}" for name, text in self.inputs.items()]
        title = self.record.title.replace("\\", "").replace('"', "'")
        head = _HEAD.format(title=title, npz=npz, imports="\n".join(sorted(self.sources.imports)))
        blocks = [head.rstrip(), KEEP, *self.sources.text, _HELPERS]
        main = ["# what goes in", *leaves, "", "# forward", *forward, "", "# backward", *backward, *ends]
        return "\n\n\n".join([*blocks, "\n".join(main)]) + "\n" + _END % (self.compared, self.compared), self.arrays

    def variable(self, value: Value) -> str:
        if id(value) not in self.names:
            name = self.names[id(value)] = self.sources.free(value.name or "constant")
            self.inputs[name] = self.store(value.name or name, value.array)
        return self.names[id(value)]

    def forward(self, call: Call) -> Iterator[str]:
        op, n = call.op, call.number
        given = [self.given(call, i, x) for i, x in enumerate(call.inputs)]
        static = {**call.static, "needs": call.needs} if op.wants_needs else call.static
        given += [f"{name}={self.static(x, f'{name}{n}', call)}" for name, x in static.items()]
        where = f" in {call.module}" if call.module else ""
        yield f"# {n} {op.name}{where}: {op.formula}"
        function = self.sources.function(op.forward, f"the op {op.name}")
        yield f"y{n}, kept{n} = forward({', '.join([str(n), function, *given])})"
        self.names[id(call.output)] = f"y{n}"
        self.compare(f"{n}.y", call.output.array)

    def given(self, call: Call, place: int, x: Value | None) -> str:
        if x is None:
            return "None"
        is_constant = not call.op.variadic and call.op.inputs[place] in call.op.constants
        if call.op.equals is not None and not is_constant and x.array.dtype.kind in "iub":
            return f'{self.variable(x)}.astype("{np.result_type(x.array.dtype, np.float32)}")'
        return self.variable(x)

    def static(self, x: Any, name: str, call: Call) -> str:
        try:
            return literal(x, lambda a: self.store(name, a))
        except ValueError as error:
            raise GraphError(f"a script cannot hold call {call.number}: {call.op.name} got a {error}") from None

    def compare(self, name: str, a: np.ndarray) -> None:
        self.arrays[name] = a
        self.compared += 1

    def backward(self, call: Call) -> Iterator[str]:
        op, n = call.op, call.number
        places = [i for i, _ in enumerate(call.inputs) if op.variadic or op.inputs[i] not in op.constants]
        keys = {i: call.input_name(i) for i in places}
        sent = {i: gradient for i, gradient in enumerate(call.sent) if gradient is not None}
        inputs = [f'"{keys[i]}": {self.variable(x) if i in sent and (x := call.inputs[i]) else None}' for i in places]
        arguments = [self.argument(call, name) for name in list(inspect.signature(_rule(op)).parameters)[1:]]
        rule = self.sources.function(_rule(op), f"the rule of {op.name}")
        yield f"# {n} {op.name}: {op.adjoint}"
        seed = self.store("seed", call.cotangent) if call.output is self.record.result else ""
        yield f"dy{n} = {seed or self.total(call.output)}"
        names = ", ".join(f"d{keys[i]}{n}" for i in sent)
        names = names if len(sent) > 1 else f"({names},)"
        yield f"{names} = backward({', '.join([str(n), rule, '{' + ', '.join(inputs) + '}', f'dy{n}', *arguments])})"
        for i, gradient in sent.items():
            self.compare(f"{n}.d{keys[i]}", gradient)

    def argument(self, call: Call, name: str) -> str:
        """The expression for a parameter of a rule, which its name decides, as the tape does."""
        op, n = call.op, call.number
        if name == "y":
            return f"y{n}"
        if name == "needs":
            return repr(call.needs)
        if name in ("into", "onto"):
            return f"[None] * {len(call.inputs)}"
        if name in op.static_defaults:
            return self.static(call.static.get(name, op.static_defaults[name]), f"{name}{n}", call)
        for kind in ("", "shape", "dtype"):
            base = name.removesuffix(f"_{kind}") if kind else name
            if base in op.inputs and name == (f"{base}_{kind}" if kind else base):
                of = [self.given(call, i, x) for i, x in enumerate(call.inputs)]
                of = [f"{x}.{kind}" if kind else x for x in of]
                return f"[{', '.join(of)}]" if op.variadic else of[op.inputs.index(base)]
        return f'kept{n}["{name}"]'

    def total(self, value: Value) -> str:
        names = [self.sent_name(use) for use in value.uses]
        text = names[0] if len(names) == 1 else f"total({', '.join(names)})"
        if len(names) > 1 and value.grad is not None:
            if added(value.uses).strides != value.grad.strides:  # backward had added into an array that lies otherwise
                return f"{self.sources.function(with_strides, 'a sum')}({text}, {value.grad.strides})"
        return text

    def sent_name(self, use: Use) -> str:
        return f"d{use.call.input_name(use.place).replace('[', '_').rstrip(']')}{use.call.number}"

    def leaves(self) -> Iterator[str]:
        yield "# the gradients of the leaves"
        for name, leaf in self.record.leaves.items():
            if leaf.uses and leaf.grad is not None:
                key = f"gradient of {name}"
                self.compare(key, leaf.grad)
                variable = self.sources.free(f"d{self.variable(leaf)}")
                yield f'{variable} = same("{key}", {self.total(leaf)}, "{key}")'


def _rule(op: Op) -> Any:
    return inspect.unwrap(op.rule)  # type: ignore[arg-type]
