"""Every op of the registry checked in the same way, and the check itself checked: a mistake in a rule must be found."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nanograd_llm.autograd.op import Op
from nanograd_llm.errors import NanogradError, ShapeError
from nanograd_llm.gradcheck.cases import samples
from nanograd_llm.gradcheck.cases.samples import Case
from nanograd_llm.gradcheck.check import rounding
from nanograd_llm.gradcheck.check.check import gradcheck, quiet
from nanograd_llm.gradcheck.check.promises import ERRORS, case_problems
from nanograd_llm.gradcheck.check.report import NOTHING, Checked, GradientError, Report
from nanograd_llm.gradcheck.mutation.mutants import Mutant, mutants_and_cases
from nanograd_llm.settings import counted, require_int, require_seed, require_type

CASES = 200
_KINKED = 8  # cases whose numbers lie at kinks, at least: so many meet each kink
_DERIVED_FROM = 12  # cases of a shape line, of which others are derived; else its samples
PROBLEMS_SHOWN = 3  # of one op
HIGHER_ORDER_CASES = 6  # beyond first order a case costs a hundred times as much, so only so many,
HIGHER_ORDER_SIZE = 128  # and only those that hold no more numbers, are checked there


class OpError(NanogradError, AssertionError):
    """A call of an op broke one of the promises that ops make, other than a right gradient."""


@dataclass(frozen=True, repr=False)
class OpSummary(Checked):
    """A line of the table, for one op or layer.

    errors: the largest relative error at each order, NaN where nothing was compared.  mutants: how many mistakes were
    planted in its rules, one at a time.  survivors: those of them that the check let through.  problems: in words, what
    did not pass.  doubtful: the lowest order at which the check cannot tell; 0 where a problem is a mistake.
    """

    name: str
    cases: int
    errors: tuple[float, ...]
    mutants: int
    survivors: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    doubtful: int = 0

    @property
    def passed(self) -> bool:
        return self.verdict == "right"

    @property
    def verdict(self) -> str:
        if self.doubtful > 1:
            return f"right at order {self.doubtful - 1}, unknown at order {self.doubtful}"
        if self.problems:
            return "cannot tell" if self.doubtful else "wrong"
        if not self.cases:
            return "not checked"
        return f"blind to {', '.join(self.survivors)}: take more cases" if self.survivors else "right"

    def __str__(self) -> str:
        """The head of the table and the line, and below it the notes, and what is wrong, once."""
        more = len(self.problems) - 1
        first = "".join("\n    " + line for problem in self.problems[:1] for line in problem.splitlines())
        notes = "".join(f"\n    note: {note}" for note in self.notes)
        rest = f"\n    and {counted(more, 'more problem')}" if more > 0 else ""
        return f"{table_head(len(self.errors))}\n{self.line}{notes}{first}{rest}"

    @property
    def line(self) -> str:
        """Its line in the table, of at most 60 characters where all is right up to order 2."""
        noticed = f"{self.mutants - len(self.survivors)}/{self.mutants}" if self.mutants else "-"
        errors = "".join(f"{'-':8}" if math.isnan(error) else f"{error:<8.1e}" for error in self.errors)
        return f"{self.name:23} {self.cases:>5} {errors}{noticed:7} {self.verdict}"


def table_head(order: int) -> str:
    orders = "".join(f"order {n + 1} " for n in range(order))
    return f"{'checked':23} cases {orders}{'mutants':7} verdict"


@dataclass(frozen=True, repr=False)
class Summary(Checked):
    """What `check_all` found, op by op, layer by layer; `str` makes a table of it."""

    ops: tuple[OpSummary, ...]

    @property
    def passed(self) -> bool:
        return bool(self.ops) and all(op.passed for op in self.ops)

    @property
    def conclusion(self) -> str:
        """What stands under the table: the notes, all that is wrong, and how many are right."""
        lines = []
        for op in self.ops:
            lines += [f"{op.name}: note: {note}\n" for note in op.notes]
            lines += [f"{op.name}: {problem}\n" for problem in op.problems[:PROBLEMS_SHOWN]]
            if len(op.problems) > PROBLEMS_SHOWN:
                lines.append(f"{op.name}: and {len(op.problems) - PROBLEMS_SHOWN} more\n")
        return "\n".join([*lines, f"{sum(op.passed for op in self.ops)} of {len(self.ops)} are right"])

    def __str__(self) -> str:
        order = max((len(op.errors) for op in self.ops), default=0)
        return "\n".join([table_head(order), *(op.line for op in self.ops), "", self.conclusion])


@quiet()
def check_op(op: Op, *, order: int = 2, cases: int = CASES, seed: int = 0) -> OpSummary:
    """Check an op on `cases` cases: those in which its mutants show, those of `samples.derived`, and random ones (at
    least one for each sample of an op that declares samples).

    It passes where its gradients are right up to `order`, beyond the first on a few small cases; its calls keep what
    `promises` and the shape line say; every mutant is caught. An op whose rule does not run on Tensors, or uses `keep`,
    passes at order=1 only: its second order cannot be computed. Raises ConfigError unless `cases` and `order` are
    integers of at least 1.

    The columns of its line: the cases; the largest relative error at each order, - where nothing was compared;
    `mutants`, how many of the mistakes that were planted in the rule, one at a time, the check noticed; the verdict.
    """
    require_type("op", op, Op, "an op")
    require_counts(cases, order, seed)
    if op.rule is None:
        return OpSummary(op.name, 0, (math.nan,) * order, 0, (), (f"no rule; write one under @{op.name}.backward",))
    rng = np.random.default_rng(seed)
    planted, telling = mutants_and_cases(op)
    more = samples.derived(op, samples.draw_cases(op, rng, _DERIVED_FROM if op.samples is None else 1))[: cases // 2]
    whole = [*samples.draw_cases(op, rng, max(1, cases - len(telling) - len(more))), *telling]
    drawn = [*whole, *more]
    elsewhere = list(itertools.islice(samples.draw_cases(op, rng, cases), max(2 * len(samples.REGIONS), cases // 8)))
    regions = itertools.cycle(samples.REGIONS)
    deep = higher_order_cases(drawn, cases)
    problems, broken, errors = list[tuple[int, str]](), list[str](), [math.nan] * order  # each after its `doubtful`
    kinked = list(samples.draw_cases(op, rng, max(_KINKED, cases // 10), kinks=True))
    kinked += [samples.moved(op, case, region, rng) for case, region in zip(elsewhere, regions)]
    kinked += samples.sweeps(op, whole, rng)  # with fewer axes, of which each then grows more
    if not rounding.has_wider_numbers():  # far from zero, they alone tell rounding from a mistake
        kinked = [case for case in kinked if not case.region]
    for number, case in enumerate([*drawn, *kinked]):
        try:
            how: dict[str, Any] = {"jacobian": 0} if case.size >= samples.MANY // 2 else {}
            how["explain"] = len(problems) < PROBLEMS_SHOWN
            report = check_case(op, case, order=order if case in deep else 1, seed=seed + number, **how)
            at_kinks = number >= len(drawn)  # where "cannot tell" is no fault, and nothing else is forgiven
            if not at_kinks:
                errors = [float(np.fmax(error, report.relative_error(n + 1))) for n, error in enumerate(errors)]
            if not (report.passed or at_kinks and report.doubtful):
                problems.append((report.doubtful, f"{case}: {report}"))
            if report.doubtful > 1 and math.isnan(report.relative_error(report.doubtful)):
                order = report.doubtful - 1  # other cases would not get further
            broken += case_problems(op, samples.varied(op, case, rng), seed=seed + number)
        except ERRORS as error:
            line = op.shape_line.text
            declared = isinstance(error, ShapeError) and line not in str(error)  # where another op raises it
            about = f"; the shape line of {op.name} is {line}" if declared else ""
            problems.append((0, f"{case}: it raises {type(error).__name__}: {error}{about}"))
    problems += ((0, promise) for promise in broken)
    problems.sort(key=lambda problem: problem[0])  # what is wrong comes first
    doubtful = problems[0][0] if problems else 0
    planted = [] if problems and doubtful < 2 else planted
    survivors = surviving_mutants(planted, drawn)
    kept = [
        f"{name} was {default!r} in every case; give samples= to vary it"
        for name, default in op.static_defaults.items()
        if all(repr(case.static.get(name, default)) == repr(default) for case in drawn)
    ]
    if problems and op.samples is None and not op.domain:
        with contextlib.suppress(*ERRORS):
            if not all(np.isfinite(op(*case.inputs, **case.static)).all() for case in drawn if not case.region):
                form = f"domain={{'{op.inputs[0]}': (0.5, 2.0)}}"
                kept.append(
                    f"its result is not finite for some numbers; declare the interval that it is for: @op(..., {form})"
                )
    found = tuple(errors), len(planted), tuple(survivors), tuple(problem for _, problem in problems)
    return OpSummary(op.name, len(drawn), *found, tuple(kept), doubtful)


def require_counts(cases: int, order: int, seed: int) -> None:
    """Raise ConfigError for numbers that no check of many cases can have."""
    require_int("cases", cases, 1)
    require_int("order", order, 1)
    require_seed(seed)


def check_case(op: Op, case: Case, **how: Any) -> Report:
    """`gradcheck` of one call of an op; where it has no entries there is nothing to check, which is right."""
    f, arrays = case.on(op)
    report = gradcheck(f, *arrays, **how)
    return replace(report, problems=tuple(problem for problem in report.problems if problem != NOTHING))


def assert_case(op: Op, case: Case, *, order: int = 1, seed: int = 0) -> None:
    """Everything that `check_op` holds a case of an op to, for tests of your own ops: see `strategies`.

    Raises GradientError where a gradient is not right, OpError where something else is not.
    """
    report = check_case(op, case, order=order, seed=seed)
    if not report.passed:
        raise GradientError(report)
    if problems := case_problems(op, case, seed=seed):
        raise OpError(f"{op.name}{case}: " + "; ".join(problems))


def higher_order_cases(drawn: Sequence[Case], cases: int = CASES) -> Sequence[Case]:
    """Those of an op's cases that are cheap enough to be checked beyond first order; else the smallest."""
    small = [case for case in drawn if case.size <= HIGHER_ORDER_SIZE][: max(HIGHER_ORDER_CASES, cases // 50)]
    return small or [min(drawn, key=lambda case: case.size)]


def surviving_mutants(planted: Sequence[Mutant], drawn: Sequence[Case]) -> list[str]:
    """The names of those mutants of an op's rule that the check calls right on every one of these cases."""
    return [mutant.name for mutant in planted if not any(_is_caught(mutant, case) for case in drawn)]


def _is_caught(mutant: Mutant, case: Case) -> bool:
    with mutant.planted():
        try:
            return any(found.verdict == "wrong" for found in check_case(mutant.op, case, explain=False).findings)
        except ERRORS:  # a rule may be too wrong to run
            return True
