"""Stepping through a recorded pass in a terminal, one op call at a time, with commands like those of Python's debugger.

The steps are the calls in the order of the forward, then the same calls in the order of backward.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm.errors import GraphError, NanogradError
from nanograd_llm.see.record import Call, Record, Value, at, norm
from nanograd_llm.see.replay import BAR, bar, composition, nudge, require_index, terms, wrong_rules
from nanograd_llm.see.source import source_lines
from nanograd_llm.settings import counted, listed, wrapped

HELP = """\
n          the next step: forward through the calls, then backward through them; n 3 takes three
b          the step before; b 3 goes three back
f          the other pass: from the forward of this call to its backward, or back
g 12       go to call 12; g h1: to the one that made h1
l          list the calls around this one
s          the source of this call's forward, with the functions that it calls
p x[0,3]   print an array or an entry: of this call an input, y, dy or dx; else by name any in the table: wte, wte.grad
t x[0,3]   the terms of the chain rule that make up the entry of dx, which this call alone sent to x
m x[0,3]   move the entry of x up and down, and compare with its whole gradient, from all calls that use it
u wte[4,0] the gradient of a value, or of an entry of it, use by use
c          check each rule: its gradients beside the slopes of its forward, along random directions
o          open a fused op into the composition it equals; up comes back
h          this help
q          quit; an empty line repeats the last command
Of a large array |21.86| is shown, its norm: the square root of the sum of its squares. x̄, in commands dx, is the
gradient of the result with respect to x."""
PROMPT = "(step) "
_FEW = 12
_REFERENCE = re.compile(r"(?P<name>[^\[\]]+?)\s*(?:\[(?P<index>[^\]]*)\])?")


class Stepper:
    """A position in a trace, and the commands that move it or print what is there.

    number: of the call.  backward: is this the call's backward?  tokens: of each text its pieces, shown beside the ids.
    """

    def __init__(self, trace: Record, number: int = 0, tokens: Sequence[Sequence[str]] = ()):
        self.trace, self.backward, self.tokens = trace, False, tokens
        self.number = trace.call(number).number
        self.above: list[tuple[Record, int, bool]] = []

    @property
    def call(self) -> Call:
        return self.trace.calls[self.number]

    def run(self, lines: Iterable[str], write: Callable[[str], Any], echo: bool) -> None:
        """Obey these lines until q. echo: write the prompt and the line as well, since it comes from no keyboard."""
        write(f"{self.trace.heading}\nh for help\n{self.shown()}\n")
        last = ""
        lines = iter(lines)
        while True:
            line = next(lines, None)
            if echo:
                write(f"{PROMPT}{(line or '').strip()}\n")
            elif line is None:
                write("\n")
            if line is None or line.strip() in ("q", "quit", "exit"):
                return
            last = line.strip() or last
            try:
                write(self.obey(last) + "\n")
            except NanogradError as error:
                write(f"{error}\n")

    def obey(self, line: str) -> str:
        """Do one command; returns what it shows. Raises NanogradError for what cannot be done."""
        word, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], str]] = {
            **{"n": self.next, "b": self.back, "f": self.flip, "g": self.go, "l": self.listed, "p": self.printed},
            **{"t": self.terms, "m": self.nudge, "u": self.uses, "c": self.checked, "s": self.source, "up": self.up},
            **{"o": self.open, "open": self.open},
            **{"h": lambda _: HELP, "help": lambda _: HELP, "": lambda _: self.shown()},
        }
        if word not in commands:
            raise GraphError(f"there is no command {word!r}; h lists them")
        if rest.strip() and word not in {*"nbgptmu"}:
            raise GraphError(f"{word} takes nothing after it; got {rest.strip()!r}")
        return commands[word](rest.strip())

    def next(self, rest: str) -> str:
        return self._moved(rest, 1)

    def back(self, rest: str) -> str:
        return self._moved(rest, -1)

    def _moved(self, rest: str, way: int) -> str:
        if rest and not (rest.isascii() and rest.isdigit()):
            raise GraphError(f"expected a number of steps, such as n 3; got {rest!r}")
        count = len(self.trace.calls)
        now = 2 * count - 1 - self.number if self.backward else self.number
        place = max(0, min(2 * count - 1, now + way * int(rest or 1)))
        if place == now and rest != "0":
            return "this is the last step" if way > 0 else "this is the first step"
        self.backward, self.number = place >= count, min(place, 2 * count - 1 - place)
        return self.shown()

    def flip(self, _: str) -> str:
        self.backward = not self.backward
        return self.shown()

    def go(self, rest: str) -> str:
        if not rest:
            raise GraphError("expected the number of a call, such as g 12, or the name of what it made")
        self.number = self.trace.call(int(rest) if rest.isdigit() else rest).number
        return self.shown()

    def listed(self, _: str) -> str:
        nearby = self.trace.calls[max(0, self.number - 5) : self.number + 6]
        arrow = "<-" if self.backward else "->"
        return "\n".join(f"{arrow if call is self.call else '  '} {call.name}" for call in nearby)

    def printed(self, rest: str) -> str:
        value, index, gradient, name = self._found(rest)
        a = value.grad if gradient and isinstance(value, Value) else value
        a = a.array if isinstance(a, Value) else a
        if a is None:
            raise GraphError(f"{name} has no gradient")
        if not isinstance(a, np.ndarray):
            return f"{name} = {a!r}"
        if index is not None and index != ():
            return f"{name}{at(index)} = {a[require_index(a, index, name)]!s}"
        return f"{name} {a.shape} {a.dtype}\n{_array(a)}"

    def terms(self, rest: str) -> str:
        name, index = _parsed(rest)
        return str(terms(self.call, name, index or ()))

    def nudge(self, rest: str) -> str:
        value, index, _, _ = self._found(rest)
        if not isinstance(value, Value):
            raise GraphError(f"{rest} is not a value of the forward pass; move an input, y, or a value by its name")
        return str(nudge(self.trace, value, index or ()))

    def uses(self, rest: str) -> str:
        value, index, _, name = self._found(rest)
        if not isinstance(value, Value) or not value.uses or value.grad is None:
            raise GraphError(f"no call sends a gradient to {name}")
        shown, total = _size, ""
        if index:
            index = require_index(value.array, index, name)
            shown, total = (lambda a: f"{a[index]:.6g}"), f"{value.grad[index]:.6g}, "
        first = f"the gradient of {value.entry(index or ())} is {total}the sum of {counted(len(value.uses), 'use')}"
        return "\n".join([first, *(f"  {shown(use.gradient)} from {use}" for use in value.uses)])

    def checked(self, _: str) -> str:
        wrong = [f"{call.name}, to {call.input_name(place)}" for call, place in wrong_rules(self.trace)]
        left_out = [call.name for call in self.trace.calls if not np.isfinite(call.output.array).all()]
        rules = "every other rule" if left_out else "every rule"
        lines = [f"{rules} agrees along two random directions, within the rounding of {self.call.cotangent.dtype}"]
        if wrong:
            lines = ["wrong are the gradients that these send:", *wrong]
        if left_out:
            lines.append(f"not compared, as their results are not finite: {listed(left_out)}")
        return "\n".join(lines)

    def source(self, _: str) -> str:
        call = self.call
        return "\n".join([f"the forward of {call.op.name}", *_quoted(call.op.forward)])

    def open(self, _: str) -> str:
        opened = composition(self.trace, self.call, type(self.trace))
        self.above.append((self.trace, self.number, self.backward))
        self.trace, self.number = opened, len(opened.calls) - 1 if self.backward else 0
        return f"{opened.title}: {counted(len(opened.calls), 'op call')}; up comes back\n{self.shown()}"

    def up(self, _: str) -> str:
        if not self.above:
            raise GraphError("nothing is open")
        self.trace, self.number, self.backward = self.above.pop()
        return self.shown()

    def _found(self, rest: str) -> tuple[Any, Any, bool, str]:
        """What `x[0,3]` or `dx[0,3]` stands for at this call: a Value or array, the index, is it a gradient, its name.

        The gradient of an input is what this call sent.
        """
        name, index = _parsed(rest)
        call = self.call
        here: dict[str, Any] = {call.input_name(i): x for i, x in enumerate(call.inputs)}
        here |= {"y": call.output, "dy": call.cotangent}
        here |= {f"d{call.input_name(i)}": sent for i, sent in enumerate(call.sent) if sent is not None}
        here = {**call.kept, **here}
        if name in here:
            return here[name], index, False, name
        whole, is_known = name, lambda name: self.trace.named(name) or self.trace.inside(name)
        if not is_known(name):
            whole = name.removesuffix(".grad")
            whole = name[1:] if name.startswith("d") and is_known(name[1:]) else whole
        if isinstance(here.get(whole), Value):
            return here[whole], index, True, name
        named = {id(x): place for place, x in reversed(here.items()) if isinstance(x, Value) and x.name == whole}
        if len(named) > 1:  # as in x = f(x)
            raise GraphError(f"{whole!r} names {' and '.join(reversed(named.values()))} here: give one of these")
        ref: Any = int(whole) if whole.isdigit() else whole
        try:
            value = here[next(iter(named.values()))] if named else self.trace.value(ref)
        except NanogradError as error:
            raise GraphError(f"{error}; here are {', '.join(here)}") from None
        return value, index, whole != name, name

    def shown(self) -> str:
        """The call where we are, with its numbers."""
        return "\n".join(self._backward() if self.backward else self._forward())

    def _forward(self) -> Iterator[str]:
        call = self.call
        yield f"-> forward {call.name}{self._opens()}"
        yield f"   {call.call_place}: {call.source}"
        yield f"   {call.op.formula}"
        for i, x in enumerate(call.inputs):
            if x is not None:
                yield from _line(call.input_name(i), x.array, _from(x) or self._text(x.array))
        for name, value in call.static.items():
            yield f"   {name} = {value!r:.80}"
        yield from _line("y", call.output.array, f"is {call.output.name}" if call.output.name else "")

    def _opens(self) -> str:
        return "  (fused: o opens it)" if self.call.op.equals is not None else ""

    def _text(self, ids: np.ndarray) -> str:
        """The pieces of the text whose tokens these are."""
        if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2) or (ids.ndim == 2 and len(ids) != 1):
            return ""
        fitting = [text for text in self.tokens if len(text) == ids.size]
        return f"text {' '.join(fitting[0])}" if len(fitting) == 1 else ""

    def _backward(self) -> Iterator[str]:
        call = self.call
        yield f"<- backward {call.name}{self._opens()}"
        yield f"   {call.op.adjoint}"
        yield f"   {call.rule_place}"
        yield from _quoted(call.op.rule)
        if call.op.keeps:
            yield f"   {', '.join(call.op.keeps)}: computed in the forward; s shows its source"
        uses = call.output.uses
        origin = "" if not uses else f"from {uses[0]}" if len(uses) == 1 else f"the sum of {counted(len(uses), 'use')}"
        yield from _line(bar("y"), call.cotangent, origin or "where backward begins")
        for use in uses if len(uses) > 1 else ():
            yield f"      {_size(use.gradient)} from {use}"
        for i, (x, sent) in enumerate(zip(call.inputs, call.sent)):
            if sent is not None and x is not None:
                yield from _line(bar(call.input_name(i)), sent, f"to {x.label}")


def step(
    trace: Record, number: int = 0, commands: Iterable[str] | None = None, tokens: Sequence[Sequence[str]] = ()
) -> None:
    """Step through a trace with these commands, or those from standard input: see HELP."""
    is_typed = commands is None and sys.stdin.isatty()

    def typed() -> Iterator[str]:
        with contextlib.suppress(ImportError):  # with it, arrows edit the line and bring back earlier ones
            import readline  # noqa: F401
        while True:
            try:
                yield input(PROMPT)
            except EOFError:
                return

    def write(text: str) -> None:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        print(wrapped(text, columns) if columns else text, end="", flush=True)

    lines = commands if commands is not None else typed() if is_typed else sys.stdin
    Stepper(trace, number, tokens).run(lines, write, echo=not is_typed)


def _quoted(f: Any) -> Iterator[str]:
    """The source of a function and of the functions that it calls, as quoted lines."""
    return (f"   | {line}".rstrip() for line in source_lines(f))


def _parsed(rest: str) -> tuple[str, Any]:
    match = _REFERENCE.fullmatch(rest.strip())
    parts = [] if match is None else [part.strip() for part in (match["index"] or "").split(",") if part.strip()]
    if match is None or not all(part.lstrip("-").isdigit() for part in parts):
        raise GraphError(f"expected a name, or a name and an index, such as x[0,3]; got {rest!r}")
    return match["name"].replace(BAR, ""), tuple(map(int, parts))


def _from(x: Value) -> str:
    made_by = f"from {x.made_by.name}" if x.made_by is not None else ""
    return ", ".join(filter(None, (x.name, made_by)))


def _line(name: str, a: np.ndarray, more: str) -> Iterator[str]:
    """An array's line: in full where it is short, else its norm."""
    numbers = f"|{norm(a):.4g}|" if a.size > _FEW else _array(a).replace("\n", "")
    yield f"   {name:<4} {a.shape!s:<12} {a.dtype} {numbers}" + (f"  {more}" if more else "")


def _size(a: np.ndarray) -> str:
    """A number as it is, an array by its norm."""
    return f"{a.item():.4g}" if a.size == 1 else f"|{norm(a):.4g}|"


def _array(a: np.ndarray) -> str:
    return np.array2string(a, precision=4, threshold=60, edgeitems=3, separator=" ", max_line_width=110)
