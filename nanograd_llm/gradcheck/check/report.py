"""What a gradient check found, in a form that reads well: a Finding for each input, a verdict for each Finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nanograd_llm.errors import NanogradError

PASSING = ("right", "at a kink")
SHOWN = 8  # findings that did not pass, in full


class GradientError(NanogradError, AssertionError):
    """A gradient did not pass its check; `report` holds the Report."""

    def __init__(self, report: Report):
        super().__init__(str(report))
        self.report = report


@dataclass(frozen=True)
class Entry:
    """One entry of a gradient: where it is, what the engine says, what the function's numbers say."""

    index: tuple[int, ...]
    analytic: float
    numeric: float

    def __str__(self) -> str:
        ratio = f"{self.analytic / self.numeric:.10g}" if self.numeric else "undefined"
        return (
            f"worst at {list(self.index)}: the engine says {self.analytic:.12g}, the numbers say {self.numeric:.12g}, "
            f"ratio {ratio}"
        )


@dataclass(frozen=True)
class Kink:
    """An entry of an input at which the function bends: the slopes to both sides, and what the engine says.

    allowed: does the engine say one of them, or a value between?
    """

    index: tuple[int, ...]
    left: float
    right: float
    analytic: float
    allowed: bool

    def __str__(self) -> str:
        near = 1e-6 * (abs(self.left) + abs(self.right))
        picked = "a value between"
        if not self.allowed:
            picked = "neither of them nor a value between"
        elif abs(self.analytic - self.left) <= near:
            picked = "the left one"
        elif abs(self.analytic - self.right) <= near:
            picked = "the right one"
        return (
            f"kink at {list(self.index)}: slope {self.left:.6g} to the left, {self.right:.6g} to the right; the engine "
            f"says {self.analytic:.6g}, {picked}"
        )


@dataclass(frozen=True)
class Culprit:
    """An op call on the tape whose own rule is wrong at the very numbers that it met there.

    place: the op with its input shapes, the module, the line that called it.  rule: where the rule is written.
    inputs: names of the op's inputs whose gradient is wrong.  pattern: what the first of them looks like.
    """

    op: str
    place: str
    rule: str
    inputs: tuple[str, ...]
    pattern: str = ""

    def __str__(self) -> str:
        lines = [f"the rule of {self.op} is wrong for {', '.join(self.inputs)}", self.place, f"the rule: {self.rule}"]
        return "\n    ".join([*lines, f"looks like: {self.pattern}"] if self.pattern else lines)


@dataclass(frozen=True)
class Finding:
    """What was found for one input (`name`, `shape`) at one order of differentiation.

    verdict:
        "right"
        "wrong"
        "at a kink": the left and right derivatives by some entries (`kinks`) differ, and the engine says one of them or
            a value between; all other entries are right
        "cannot tell": `reason` says why
    relative_error: the largest difference over all that was compared, as a part of Σ|aᵢuᵢ| + Σ|vᵢ(Ju)ᵢ|.
    tolerance: what it may be, in the same measure.
    method, step, why: see `derivatives.Derivative`.  compared: which numbers were.
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
        seen = f"off by {self.relative_error:.1e} where {self.tolerance:.1e} is rounding; {self.compared}"
        lines = [f"{self.name} {self.shape}: {self.verdict}, {f'because {self.reason}' if self.reason else seen}"]
        if self.why:
            lines.append(f"by differences, step {self.step:.0e}, because {self.why}")
        if self.worst is not None:
            lines.append(str(self.worst))
        if self.pattern:
            lines.append(f"looks like: {self.pattern}")
        lines += map(str, self.kinks[:4])
        if len(self.kinks) > 4:
            lines.append(f"and {len(self.kinks) - 4} more kinks")
        return "\n    ".join(lines)


@dataclass(frozen=True)
class Report:
    """The outcome of a gradient check: a Finding for each input and order. `print(report)` reads well, rich's too.

    problems: what is wrong beyond the gradients' values, in words.  culprits: the rules at fault, where one was wrong.
    notes: what else there is to know.
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

    def relative_error(self, order: int = 1) -> float:
        """The largest relative error found at this order."""
        return max((f.relative_error for f in self.findings if f.order == order), default=0.0)

    def __str__(self) -> str:
        is_open = not self.problems and all(finding.verdict in (*PASSING, "cannot tell") for finding in self.findings)
        verdict = "right" if self.passed else "CANNOT TELL" if is_open else "NOT RIGHT"
        lines = [f"gradients of {self.function}: {verdict}"]
        for head, items in (("problem", self.problems), ("culprit", self.culprits)):
            lines += ["  " + line for item in items for line in f"{head}: {item}".splitlines()]
        for order in sorted({finding.order for finding in self.findings}):
            findings = [finding for finding in self.findings if finding.order == order]
            methods = dict.fromkeys(f"{finding.method}, step {finding.step:.0e}" for finding in findings)
            lines.append(f"  order {order}, by {' and '.join(methods)} (cotangents x directions, results x entries)")
            failed = [finding for finding in findings if finding.verdict not in PASSING]
            for finding in findings:
                if finding not in failed[SHOWN:]:
                    lines += ["    " + line for line in str(finding).splitlines()]
            if failed[SHOWN:]:
                rest = ", ".join(f"{finding.name} {finding.verdict}" for finding in failed[SHOWN:])
                lines.append(f"    and not shown: {rest}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def __rich__(self) -> Any:
        """The same with its verdicts in colour, for rich's console."""
        from rich.text import Text

        text = Text(str(self))
        text.highlight_regex(r"(?<=: )(right|at a kink)\b", "green")
        text.highlight_regex(r"(?<=: )(wrong|NOT RIGHT|CANNOT TELL|cannot tell)\b", "bold red")
        text.highlight_regex(r"^ *(problem|culprit|looks like|worst at|kink at)", "bold")
        return text
