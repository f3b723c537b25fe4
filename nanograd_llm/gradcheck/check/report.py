"""What a gradient check found, in a form that reads well: a Finding for each input, a verdict for each Finding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nanograd_llm.errors import NanogradError
from nanograd_llm.settings import printable, told_apart

PASSING = ("right", "at a kink")
NOTHING = "nothing was checked: no input has entries"
SHOWN = 8  # findings that did not pass, in full


class GradientError(NanogradError, AssertionError):
    """A gradient did not pass its check; `report` holds the Report."""

    def __init__(self, report: Report):
        super().__init__(str(report))
        self.report = report


class Shown:
    """An object that a notebook and the prompt show as its text."""

    def __repr__(self) -> str:
        return str(self)


class Checked(Shown):
    """What a check returns: true where it `passed`, so that `assert gradcheck(...)` is a test."""

    @property
    def passed(self) -> bool:
        raise NotImplementedError

    def __bool__(self) -> bool:
        return self.passed


def factor(value: float) -> str:
    """A factor; one near 1 by how far it is from 1."""
    off = value - 1
    return f"1 {'-' if off < 0 else '+'} {abs(off):.1e}" if 0 < abs(off) < 1e-8 else f"{value:.10g}"


@dataclass(frozen=True, repr=False)
class Entry(Shown):
    """One entry of a gradient: as the rule computes it, and as computed from values of the function.

    cotangent: ȳ in words, where it is not random. The gradient is that of Σ ȳ y.
    """

    index: tuple[int, ...]
    analytic: float
    numeric: float
    cotangent: str = ""

    @property
    def off(self) -> float:
        """The difference of the two."""
        return abs(self.analytic - self.numeric)

    def __str__(self) -> str:
        place = f"worst at {list(self.index)}: " if self.index else ""
        given = f"for ȳ = {self.cotangent}" if self.cotangent else "for a random ȳ"
        analytic, numeric = told_apart(self.analytic, self.numeric, 12)
        ratio = self.analytic / self.numeric if self.numeric else 0.0
        shown = f"ratio {factor(ratio)}, " if 1e-9 < abs(ratio) < 1e9 else ""  # others say nothing
        return f"{place}the gradient is {analytic}, the function gives {numeric}, {shown}{given}"


@dataclass(frozen=True, repr=False)
class Kink(Shown):
    """An entry of an input at which the function bends; allowed: is the gradient one of the slopes, or between them?

    jump: the function itself jumps there, and has no slopes.  off: how far the gradient is beyond them, as a part of
    their sizes; tolerance: what is allowed of it.  of: what slopes and gradient are those of, where it is not plain.
    """

    index: tuple[int, ...]
    left: float
    right: float
    analytic: float
    allowed: bool
    jump: bool = False
    off: float = 0.0
    tolerance: float = 0.0
    of: str = ""

    def __str__(self) -> str:
        at = f" at {list(self.index)}" if self.index else ""
        if self.jump:
            return f"jump{at}: the function has other values on both sides of it, or bends again and again"
        near = 1e-6 * (abs(self.left) + abs(self.right))
        picked = "a value between" if self.allowed else "neither of them nor a value between"
        for slope, words in ((self.right, "the slope from the right"), (self.left, "the slope from the left")):
            picked = words if self.allowed and abs(self.analytic - slope) <= near else picked
        return (
            f"kink{at}: slope {self.left:.6g} to the left, {self.right:.6g} to the right; the gradient is "
            f"{self.analytic:.6g}, {picked}" + (f" ({self.of})" if self.of else "")
        )


@dataclass(frozen=True, repr=False)
class Culprit(Shown):
    """An op call on the tape whose own rule is wrong at the numbers that it met there.

    place: of the call.  rule: where it is written.  inputs: those whose gradient is wrong.  pattern: of the first.
    """

    op: str
    place: str
    rule: str
    inputs: tuple[str, ...]
    pattern: str = ""

    def __str__(self) -> str:
        lines = [f"the rule of {self.op} is wrong for {', '.join(self.inputs)}", self.place, f"the rule: {self.rule}"]
        which = f", for {self.inputs[0]}" if len(self.inputs) > 1 else ""
        return "\n    ".join([*lines, f"looks like{which}: {self.pattern}"] if self.pattern else lines)


@dataclass(frozen=True, repr=False)
class Finding(Shown):
    """What was found for one input (`name`, `shape`) at one order of differentiation.

    verdict: "right"; "wrong"; "at a kink", where the left and right derivatives by some entries (`kinks`) differ, the
        engine says one of them or a value between, and all other entries are right; "cannot tell", for this `reason`.
    relative_error: the largest difference, as a part of Σ|aᵢuᵢ| + Σ|vᵢ(Ju)ᵢ|, NaN where nothing was compared;
        tolerance: what rounding explains of it, as far as that was measured. Of a wrong gradient both are those of the
        numbers that are wrong.
    method, step, why: see `derivatives.Derivative`.  compared: which numbers were compared; "" where none could be.
    worst: the worst entry of a gradient that is wrong.  pattern: what kind of mistake it looks like.
    """

    order: int
    name: str
    shape: tuple[int, ...]
    verdict: str
    relative_error: float
    tolerance: float
    method: str
    step: float
    compared: str
    why: str = ""
    reason: str = ""
    worst: Entry | None = None
    pattern: str = ""
    kinks: tuple[Kink, ...] = ()

    def __str__(self) -> str:
        is_coarse = self.verdict in PASSING and 1e-10 < self.tolerance < 1  # fewer digits than a reader expects
        digits = f"to about {-math.log10(self.tolerance):.0f} digits: " if is_coarse else ""
        seen = f"{digits}off by {self.relative_error:.1e} where {self.tolerance:.1e} is rounding; {self.compared}"
        if not self.tolerance and self.verdict in PASSING:
            elsewhere = " elsewhere" if self.kinks else ""
            hidden = "a mistake that is multiplied by zero is not seen: check at other numbers too"
            seen = f"the function's slopes and the gradient are zero{elsewhere}, and {hidden}"
            if len(self.kinks) == math.prod(self.shape):
                seen = "as every entry is"
        if self.tolerance >= 1 and self.verdict in PASSING:
            seen = f"the gradient is zero up to rounding: check it where it is larger too; {self.compared}"
        if 0 in self.shape:
            return f"{self.name} {self.shape}: not checked, it has no entries"
        if not math.isfinite(self.worst.analytic if self.worst else self.relative_error):
            seen = f"not finite; {self.compared}"
        if self.reason:
            seen = f"because {self.reason}" if self.verdict == "cannot tell" else self.reason
        shape = f" {self.shape or '(a number)'}" if self.compared else ""
        lines = [f"{self.name}{shape}: {self.verdict}, {seen}"]
        if self.worst is not None:
            lines.append(str(self.worst))
        if self.pattern:
            lines.append(f"looks like: {self.pattern}")
        lines += map(str, sorted(self.kinks, key=lambda kink: kink.allowed)[:4])
        if len(self.kinks) > 4:
            lines.append(f"and {len(self.kinks) - 4} more kinks")
        return "\n    ".join(lines)


@dataclass(frozen=True, repr=False)
class Report(Checked):
    """The outcome of a gradient check: a Finding for each input and order. `print(report)` reads well, rich's too.

    problems: what is wrong beyond the gradients' values, in words.  culprits: the rules at fault.
    """

    function: str
    findings: tuple[Finding, ...]
    problems: tuple[str, ...] = ()
    culprits: tuple[Culprit, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Is every gradient right, or at a kink a value that is allowed there?"""
        return not self.problems and all(finding.verdict in PASSING for finding in self.findings)

    @property
    def doubtful(self) -> int:
        """The lowest order at which the check cannot tell; 0 where something is wrong, or all is right."""
        if self.problems or any(f.verdict == "wrong" for f in self.findings):
            return 0
        return min((f.order for f in self.findings if f.verdict not in PASSING), default=0)

    def relative_error(self, order: int = 1) -> float:
        """The largest relative error found at this order; NaN where nothing was compared."""
        errors = [f.relative_error for f in self.findings if f.order == order]
        return float(np.fmax.reduce(errors, initial=math.nan))

    def __str__(self) -> str:
        verdict = "right" if self.passed else "CANNOT TELL" if self.doubtful else "NOT RIGHT"
        if self.problems and not self.findings or NOTHING in self.problems:
            verdict = "NOT CHECKED"
        lines = [f"gradients of {self.function}: {verdict}"]
        patterns = {finding.pattern for finding in self.findings}
        culprits = [replace(c, pattern="") if c.pattern in patterns else c for c in self.culprits]
        for head, items in (("problem", self.problems), ("culprit", culprits)):
            lines += ["  " + line for item in items for line in f"{head}: {item}".splitlines()]
        for order in sorted({f.order for f in self.findings}):
            findings = [f for f in self.findings if f.order == order]
            indent = "  " if order == 1 else "    "
            if order > 1:
                lines.append(f"  order {order}, the gradient of the gradient:")
            left_out = [f for f in findings if f.verdict not in PASSING][SHOWN:]
            lines += [indent + line for f in findings if f not in left_out for line in str(f).splitlines()]
            if left_out:
                lines.append(f"{indent}and not shown: {', '.join(f'{f.name} {f.verdict}' for f in left_out)}")
        by: dict[str, dict[str, None]] = {}  # method -> the inputs
        for f in self.findings:
            if f.step:
                of = by.setdefault(f"by {f.method}" + f", because {f.why}" * bool(f.why), {})
                of[f.name if f.order == 1 else "higher orders"] = None
        methods = sorted(by, key=lambda method: "because" in method)
        parts = [f"of {', '.join(by[method])} {method}" for method in methods] if len(methods) > 1 else methods
        how = [f"slopes of the function from its values alone, {'; '.join(parts)}"] if methods else []
        if any(f.verdict == "wrong" for f in self.findings):
            how.append(
                "off by: |gradient - slope| ÷ (|gradient| + |slope|), over all the numbers that are compared together; "
                "for one entry, see its ratio"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in [*self.notes, *how])])

    def __rich__(self) -> Any:
        """The same with its verdicts in colour, for rich's console."""
        from rich.text import Text

        text = Text(printable(str(self)))
        text.highlight_regex(r"(?<=: )(right|at a kink)\b", "green")
        text.highlight_regex(r"(?<=: )(wrong|NOT RIGHT|NOT CHECKED|CANNOT TELL|cannot tell)\b", "bold red")
        text.highlight_regex(r"^ *(problem|culprit|looks like|worst at|kink at)", "bold")
        return text
