"""`trace`: record a function's forward and backward pass, then look at any number of it."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.checked import read_only
from nanograd_llm.errors import GraphError
from nanograd_llm.see import replay
from nanograd_llm.see.record import Call, Record, Use, Value, norm, recorded


def trace(f: Callable[..., Any], *args: Any, cotangent: Any = None, **named: Any) -> Trace:
    """Run f(*args, **named) and backward, and record every op call of it: see `Trace`.

        trace = ng.trace(model.loss, tokens, targets)
        print(trace)                            # a table of the calls
        trace.terms(12, "x", (0, 3, 2))         # one number of a gradient, term by term

    f: any function of Tensors; an op, a module or its loss. Floats and arrays of floats become leaves, float64 ones of
        Python floats. Constants are integers (write 3.0 to get a gradient for 3), lists, and floats given by name, such
        as eps=1e-5. Parameters of a model are leaves as well; their `.grad` does not change.
    cotangent: of the result; optional where that is a scalar.

    The numbers are those of an untraced pass, bit for bit, on one BLAS thread. A model on a GPU is recorded there; the
    trace holds NumPy arrays, and whatever it computes again, it computes on the CPU. Raises GraphError where no op is
    recorded, or a Tensor was computed before; ShapeError for a result that needs a cotangent.
    """
    found: Trace = recorded(f, args, named, cotangent, Trace)
    return found


class Calls(tuple):
    """Some calls of a trace, shown as its table."""

    def __repr__(self) -> str:
        return table(self)


class Trace(Record):
    """A recorded forward and backward pass.

    `print(trace)` shows a table of the op calls: the module that called, the output's shape, the norms |y| of its value
    and |ȳ| of its cotangent, how many uses the output has, and where the rule is written.

    trace[12]: a Call.  trace["wte"]: a Value, by the name of a leaf, or else of a local variable.
    trace["blocks.0.mlp"]: the calls of a module.  trace.grads: the gradient of each leaf by name.
    """

    def __repr__(self) -> str:
        return f"{self.heading}\n{table(self.calls)}"

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, (int, np.integer)):
            return self.call(int(key))
        inside = Calls(self.inside(key))
        return inside if inside and not self.named(key) else self.value(key)

    def uses(self, ref: int | str) -> list[Use]:
        """The gradient of a value by consumer, in the order of arrival; their sum is the whole."""
        return self.value(ref).uses

    def terms(self, call: int | str | None = None, name: str | int | None = None, index: Any = ()) -> replay.Terms:
        """One entry of the gradient that a call sent to an input, as the terms of the chain rule.

        call: its number, or the name of the value that it made.  name: of the input, or its place.  index: of one entry
        of it. Raises GraphError where there is none.
        """
        if call is None or name is None:
            form = 'trace.terms(9, "x", (0, 2, 5)): a call, an input of it, and an entry of that'
            raise GraphError(f"terms got {'no call' if call is None else repr(call)} and no input; write {form}")
        at = self.call(call)
        places = {at.input_name(i): i for i, x in enumerate(at.inputs)}
        given = [x.name if x else "" for x in at.inputs]
        if name in places and name in given and given[places[str(name)]] != name:  # as in b - a
            mine, its = given.index(str(name)), places[str(name)]
            raise GraphError(
                f"your {name} is input {mine} of {at.op.name}, which calls input {its} {name}: give {mine} or {its}"
            )
        return replay.terms(at, name, index)

    def nudge(self, ref: int | str, index: Any = ()) -> replay.Nudge:
        """Move one entry of a value up and down, run the recorded calls again, and compare with the gradient."""
        return replay.nudge(self, self.value(ref), index)

    def open(self, call: int | str) -> Trace:
        """The composition that the fused op of a call equals, at its numbers, as a trace of its own.

        call: its number, or the name of the value that it made.
        """
        found: Trace = replay.composition(self, self.call(call), type(self))
        return found

    def step(self, number: int = 0, commands: Iterable[str] | None = None, tokens: Sequence[list[str]] = ()) -> None:
        """Step through the pass in the terminal, from call `number` on, with commands like those of pdb; h lists them.

        commands: such as ["n", "p x"]; if not given they come from standard input, which may be a pipe.
        tokens: the pieces of the text, or of several, to show beside the ids, as in `html`.
        """
        from nanograd_llm.see.stepper import step

        step(self, number, commands, tokens)

    def shadow(self) -> replay.Shadow:
        """A run in float64 beside the recorded one: how many digits each call has lost, itself and in all."""
        return replay.shadow(self)

    def script(self, path: str | os.PathLike[str]) -> None:
        """Write the pass as a NumPy script, PATH.py and PATH.npz, that compares itself with the recorded numbers.

        It needs only NumPy. Raises ConfigError unless the path ends in .py; GraphError, naming it, for what a script
        cannot hold: a cotangent that a hook replaced, or an op without its source; DeviceError for a pass on a GPU.
        """
        from nanograd_llm.see.script import write_script

        write_script(self, path)

    def html(self, path: str | os.PathLike[str], *tokens: list[str]) -> None:
        """Write the pass as one HTML file to step through in a browser; it needs no network.

        tokens: the pieces of the text, or of several, to name the rows of arrays that have one row for each.
        Raises ConfigError unless the path ends in .html.
        """
        from nanograd_llm.files.atomic import write_atomically
        from nanograd_llm.see.page import page, require_html

        write_atomically(require_html(path), page(self, *tokens).encode())

    def _repr_html_(self) -> str:
        from nanograd_llm.see.page import notebook

        return notebook(self)

    def check(self, answers: Mapping[str, Any] | None = None, /, **named: Any) -> bool:
        """Print for each array whether it is the gradient of a value, and if not, what it looks like.

        trace.check(dlogits=mine) compares with the gradient of `logits`; trace.check({"blocks.0.ln_1": mine}) takes the
        names that are no Python names. A function in place of an array is called for it, and named in its place; an
        error that it raises is printed, so that a lesson goes on. True if all are right.
        """
        found = dict(answers or {})
        if not found and not named:
            raise GraphError("check needs at least one gradient, such as trace.check(dlogits=mine)")
        for name, mine in named.items():
            if not name.startswith("d"):
                raise GraphError(f"the gradient of {name} is given as d{name}=")
            found[name[1:]] = mine
        verdicts = [self._verdict(name, self.value(name), mine) for name, mine in found.items()]
        print("\n".join(line for _, line in verdicts))
        return all(right for right, _ in verdicts)

    def _verdict(self, name: str, value: Value, mine: Any) -> tuple[bool, str]:
        if callable(mine):
            name = mine.__name__.removesuffix("_backward").replace("_", " ").capitalize()
            try:
                mine = _on_read_only_arrays(mine)()
            except Exception as error:  # whatever a half-written function raises
                why = "it writes into an array that it has not made; use a copy: " if "read-only" in str(error) else ""
                return False, f"{name}: not yet right: {why}{error}"
        return replay.compare(self, name, value, mine)


def _on_read_only_arrays(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function with read-only views of the arrays among its globals, which the rest of a lesson uses as well."""
    if not isinstance(f, types.FunctionType):
        return f
    shown = {name: read_only(x) if isinstance(x, np.ndarray) else x for name, x in f.__globals__.items()}
    copied = types.FunctionType(f.__code__, shown, f.__name__, f.__defaults__, f.__closure__)
    copied.__kwdefaults__ = f.__kwdefaults__
    return copied


def table(calls: Any) -> str:
    """The calls, one on a line."""
    rows = [("", "op", "module", "shape", "|y|", "|ȳ|", "uses", "rule")]
    rows += [
        (
            str(c.number),
            c.op.name + (f" {c.output.name}" if c.output.name else ""),
            c.module,
            str(c.output.array.shape),
            f"{norm(c.output.array):.3g}",
            f"{norm(c.cotangent):.3g}",
            str(len(c.output.uses)),
            c.rule_place,
        )
        for c in calls
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    right = (True, False, False, False, True, True, True, False)
    return "\n".join(
        "  ".join(f"{x:>{n}}" if to_right else f"{x:<{n}}" for x, n, to_right in zip(row, widths, right)).rstrip()
        for row in rows
    )
