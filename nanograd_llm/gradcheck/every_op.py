"""Every op of the registry checked in the same way, and the check itself checked: a mistake in a rule must be found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nanograd_llm.engine import Tensor, grad
from nanograd_llm.errors import NanogradError
from nanograd_llm.gradcheck import samples
from nanograd_llm.gradcheck.check import assert_gradients, gradcheck, verdicts
from nanograd_llm.gradcheck.comparison import DEPTH
from nanograd_llm.gradcheck.derivatives import EPS
from nanograd_llm.gradcheck.mutants import Mutant, mutants
from nanograd_llm.gradcheck.report import Report
from nanograd_llm.gradcheck.samples import Case, differentiated
from nanograd_llm.modes import higher_order
from nanograd_llm.op import Op
from nanograd_llm.settings import require_int

CASES = 200
ERRORS = (NanogradError, ValueError, TypeError, IndexError, ArithmeticError)  # what a wrong forward or rule may raise
PROBLEMS_SHOWN = 3  # of one op
HIGHER_ORDER_CASES = 6  # beyond first order a case costs a hundred times as much, so only so many,
HIGHER_ORDER_SIZE = 128  # and only those that hold no more numbers, are checked there


class OpError(NanogradError, AssertionError):
    """A call of an op broke one of the promises that ops make, other than a right gradient."""


@dataclass(frozen=True)
class OpSummary:
    """What was found for one op, layer or model: the largest relative error at each order, which mutants were planted
    in its rules and which of these the check let through, and in words whatever is wrong."""

    name: str
    cases: int
    errors: tuple[float, ...]
    mutants: int
    survivors: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.verdict == "right"

    @property
    def verdict(self) -> str:
        if self.problems:
            return "wrong"
        if not self.cases:
            return "not checked"
        return f"blind to {', '.join(self.survivors)}" if self.survivors else "right"

    def __str__(self) -> str:
        """A line of the table."""
        noticed = "-" if self.problems else f"{self.mutants - len(self.survivors)}/{self.mutants}"
        return table_line(self.name, self.cases, [f"{error:.1e}" for error in self.errors], noticed, self.verdict)


def table_line(name: str, cases: object, errors: Sequence[str], mutants: str, verdict: str) -> str:
    """The cells of a table in columns, wide enough for each op and layer here."""
    return f"{name:24} {cases:>5}  {''.join(f'{error:9}' for error in errors)}{mutants:8} {verdict}"


def table_head(order: int) -> str:
    return table_line("checked", "cases", [f"order {n + 1}" for n in range(order)], "mutants", "verdict")


@dataclass(frozen=True)
class Summary:
    """What `check_all` found, op by op, layer by layer; `str` makes a table of it."""

    ops: tuple[OpSummary, ...]

    @property
    def passed(self) -> bool:
        return bool(self.ops) and all(op.passed for op in self.ops)

    @property
    def conclusion(self) -> str:
        """What stands under the table: all that is wrong, and how many are right."""
        lines = []
        for op in self.ops:
            lines += [f"{op.name}: {problem}\n" for problem in op.problems[:PROBLEMS_SHOWN]]
            if len(op.problems) > PROBLEMS_SHOWN:
                lines.append(f"{op.name}: and {len(op.problems) - PROBLEMS_SHOWN} more\n")
        return "\n".join([*lines, f"{sum(op.passed for op in self.ops)} of {len(self.ops)} are right"])

    def __str__(self) -> str:
        order = max((len(op.errors) for op in self.ops), default=0)
        return "\n".join([table_head(order), *map(str, self.ops), "", self.conclusion])


def check_op(op: Op, *, order: int = 2, cases: int = CASES, seed: int = 0) -> OpSummary:
    """Check an op on `cases` cases (or on one for each of its samples, where there are more).

    Its shape line holds; its gradients are right up to `order`, beyond the first on a few small cases; float32 stays
    float32; a fused op equals its composition, forward and backward; neither the layout of the inputs nor which other
    gradients are wanted changes a gradient, and a Tensor given twice gets the sum of both; every mutant is caught.

    Raises ConfigError unless `cases` and `order` are integers of at least 1.
    """
    require_int("cases", cases, 1)
    require_int("seed", seed, 0)
    require_int("order", order, 1)
    if op.rule is None:
        return OpSummary(op.name, 0, (0.0,) * order, 0, (), (f"no rule; write one under @{op.name}.backward",))
    rng = np.random.default_rng(seed)
    drawn = list(samples.cases(op, rng, cases))
    deep = higher_order_cases(drawn, cases)
    problems = []
    errors = [0.0] * order
    kinked = list(samples.cases(op, rng, max(1, cases // 10), kinks=True))
    for number, case in enumerate([*drawn, *kinked]):
        try:
            report = check_case(op, case, order=order if case in deep else 1, seed=seed + number)
            errors = [max(error, report.relative_error(n + 1)) for n, error in enumerate(errors)]
            at_kinks = number >= len(drawn)  # where "cannot tell" is no fault, and nothing else is forgiven
            is_wrong = bool(report.problems) or any(found.verdict == "wrong" for found in report.findings)
            if is_wrong or not (report.passed or at_kinks):
                problems.append(f"{case}: {report}")
            problems += case_problems(op, samples.varied(op, case, rng), seed=seed + number)
        except ERRORS as error:
            problems.append(f"{case}: it raises {type(error).__name__}: {error}")
    planted = [] if problems else mutants(op)
    survivors = surviving_mutants(op, planted, drawn)
    return OpSummary(op.name, len(drawn), tuple(errors), len(planted), tuple(survivors), tuple(problems))


def check_case(op: Op, case: Case, *, order: int = 1, seed: int = 0) -> Report:
    """`gradcheck` of one call of an op."""
    f, arrays = case.on(op)
    return gradcheck(f, *arrays, order=order, seed=seed)


def assert_case(op: Op, case: Case, *, order: int = 1, seed: int = 0) -> None:
    """Everything that `check_op` holds a case of an op to, for tests of your own ops:

        @given(strategies.cases(my_op))
        def test_my_op(case):
            assert_case(my_op, case)

    Raises GradientError where a gradient is not right, OpError where something else is not.
    """
    f, arrays = case.on(op)
    assert_gradients(f, *arrays, order=order, seed=seed)
    problems = case_problems(op, case, seed=seed)
    if problems:
        raise OpError(f"{op.name}{case}: " + "; ".join(problems))


def case_problems(op: Op, case: Case, seed: int = 0) -> list[str]:
    """What, apart from the numbers of its gradients, is wrong with a call of an op."""
    found = [shape_problem(op, case), *dtype_problems(op, case), *layout_problems(op, case, seed=seed)]
    found += [*needs_problems(op, case, seed=seed), *sharing_problems(op, case, seed=seed)]
    if op.equals is not None:
        found += equality_problems(op, case, seed=seed)
    return [f"{case}: {problem}" for problem in found if problem]


def higher_order_cases(drawn: Sequence[Case], cases: int = CASES) -> Sequence[Case]:
    """Those of an op's cases that are cheap enough to be checked beyond first order."""
    return [case for case in drawn if case.size <= HIGHER_ORDER_SIZE][: max(HIGHER_ORDER_CASES, cases // 50)]


def surviving_mutants(op: Op, planted: Sequence[Mutant], drawn: Sequence[Case]) -> list[str]:
    """The names of those mutants of an op's rule that the check calls right on every one of these cases."""
    survivors = []
    for mutant in planted:
        with mutant.planted():
            if not any(_is_caught(op, case) for case in drawn):
                survivors.append(mutant.name)
    return survivors


def _is_caught(op: Op, case: Case) -> bool:
    try:
        f, arrays = case.on(op)
        return any(finding.verdict == "wrong" for finding in verdicts(f, *arrays).findings)
    except ERRORS:  # a rule may be too wrong to run
        return True


def shape_problem(op: Op, case: Case) -> str | None:
    """How a call breaks the op's shape line."""
    y = op(*_tensors(case, differentiated(op, case)), **case.static)
    return op.shape_problem(case.inputs, case.static, y.shape)


def dtype_problems(op: Op, case: Case) -> list[str]:
    """Where float32 inputs become something else: in the result, in what the tape keeps, in what the rule returns.

    A static argument `dtype` says what the result is; otherwise all is float32, in a fused op's composition too.
    """
    case = case.astype(np.float32)
    inputs = _tensors(case, differentiated(op, case))
    y = op(*inputs, **case.static)
    result = np.dtype(case.static.get("dtype", np.float32))
    found = [("the result", y.dtype, result)]
    if y._node is not None:
        needs = tuple(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        saved, gradients = op.pull_back(y._node, np.ones(y.shape, y.dtype), needs)
        # in NumPy 1 whatever has no axes widens; the engine converts it, as it converts all gradients
        given = [(i, g) for i, g in gradients if needs[i] and np.ndim(g)]
        found += [(f"the gradient of input {i}", g.dtype, np.float32) for i, g in given]
        kept = [array for array in _arrays_in(saved) if array.dtype.kind == "f"]
        found += [(f"an array {array.shape} that the tape keeps", array.dtype, np.float32) for array in kept]
    if op.equals is not None:
        with higher_order():
            found.append(("the result of its composition", op(*inputs, **case.static).dtype, result))
    return [f"{what} is {dtype} for float32 inputs" for what, dtype, expected in found if dtype != expected]


def layout_problems(op: Op, case: Case, seed: int = 0) -> list[str]:
    """Where the layout of the inputs and of the cotangent in memory changes a result or gradient, or is written to."""
    layouts = case.layouts or ("contiguous",) * len(case.inputs)
    pairs = list(zip(case.inputs, layouts))
    inputs = [samples.laid_out(x, layout) if isinstance(x, np.ndarray) else x for x, layout in pairs]
    plain = replace(case, inputs=tuple(x.copy(order="C") if isinstance(x, np.ndarray) else x for x in inputs))
    before = [x.copy() if isinstance(x, np.ndarray) else x for x in inputs]
    expected = _result_and_gradients(op, op, plain, seed)
    try:
        found = _result_and_gradients(op, op, replace(case, inputs=tuple(inputs)), seed, "negative strides")
    except ERRORS as error:
        return [f"it does not run on inputs in this layout: {error}"]
    problems = [
        f"input {i} was written to"
        for i, (x, as_given) in enumerate(zip(inputs, before))
        if isinstance(x, np.ndarray) and not np.array_equal(x, as_given, equal_nan=x.dtype.kind == "f")
    ]
    names = ["the result", *(f"the gradient of {name}" for _, name in differentiated(op, case))]
    for name, a, b in zip(names, found, expected):
        # a sum that cancels is as small as it likes, while its rounding is that of its terms: numbers of about one
        if a.shape != b.shape or not _distance(a, b) <= DEPTH * EPS * (1 + _largest(b)):
            problems.append(f"the layout of the inputs changes {name} by {_distance(a, b):.1e}")
    return problems


def needs_problems(op: Op, case: Case, seed: int = 0) -> list[str]:
    """Where a gradient is another one when not all are wanted."""
    places = differentiated(op, case)
    if case.needs is None:
        return []
    wanted = [place for place in places if case.needs[place[0]]]
    y, *together = _result_and_gradients(op, op, case, seed)
    alone = _result_and_gradients(op, op, case, seed, wanted=wanted)[1:]
    by_place = dict(zip([i for i, _ in places], together))
    return [
        f"the gradient of {name} differs when only {[name for _, name in wanted]} are wanted"
        for (i, name), gradient in zip(wanted, alone)
        if not np.array_equal(gradient, by_place[i], equal_nan=True)
    ]


def sharing_problems(op: Op, case: Case, seed: int = 0) -> list[str]:
    """Where a Tensor given twice does not get the sum of what both places would get."""
    if case.same is None:
        return []
    first, second = case.same
    inputs = list(case.inputs)
    inputs[second] = inputs[first].copy()
    apart = _result_and_gradients(op, op, replace(case, inputs=tuple(inputs)), seed)
    by_place = dict(zip([i for i, _ in differentiated(op, case)], apart[1:]))
    expected = by_place[first] + by_place[second]
    inputs[first] = inputs[second] = leaf = Tensor(case.inputs[first], requires_grad=True)
    y = op(*inputs, **case.static)
    found = grad(y, leaf, _cotangent(y.shape, seed))
    if _distance(found, expected) <= DEPTH * EPS * (1 + _largest(expected)):
        return []
    return [f"one Tensor as inputs {first} and {second} gets a gradient that is {_distance(found, expected):.1e} off"]


def equality_problems(op: Op, case: Case, seed: int = 0) -> list[str]:
    """Where a fused op and the composition it equals part, in the result or in a gradient, by more than rounding."""
    assert op.equals is not None
    fused, *fused_gradients = _result_and_gradients(op, op, case, seed)
    composed, *composed_gradients = _result_and_gradients(op, op.equals, case, seed)
    if fused.shape != composed.shape:
        return [f"the result has shape {fused.shape}, that of its composition {composed.shape}"]
    found = [("the result", _distance(fused, composed), _largest(composed))]
    places = differentiated(op, case)
    for (i, name), a, b in zip(places, fused_gradients, composed_gradients):
        # a gradient is by nature as large as y by the size of x; what is left where that cancels is rounding
        size = _largest(b) + _largest(composed) / (_largest(case.inputs[i]) or 1)
        found.append((f"the gradient of {name}", _distance(a, b), size))
    return [
        f"{what} is {distance:.1e} away from that of its composition, where its size is {size:.1e}"
        for what, distance, size in found
        if not distance <= DEPTH * EPS * size
    ]


def _result_and_gradients(
    op: Op,
    f: Callable[..., Tensor],
    case: Case,
    seed: int,
    layout: str = "contiguous",
    wanted: Sequence[tuple[int, str]] | None = None,
) -> list[np.ndarray]:
    """f's result and the gradient of each wanted input, for a random cotangent in this layout."""
    wanted = differentiated(op, case) if wanted is None else wanted
    inputs = _tensors(case, wanted)
    y = f(*inputs, **case.static)
    cotangent = samples.laid_out(_cotangent(y.shape, seed), layout)
    return [y.data, *grad(y, [inputs[i] for i, _ in wanted], cotangent)]


def _cotangent(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


def _tensors(case: Case, wanted: Sequence[tuple[int, str]]) -> list[Any]:
    """The inputs of a case with those whose gradient is wanted as leaves."""
    inputs: list[Any] = list(case.inputs)
    for i, _ in wanted:
        inputs[i] = Tensor(inputs[i], requires_grad=True)
    return inputs


def _arrays_in(saved: Any) -> Iterator[np.ndarray]:
    if isinstance(saved, (list, tuple)):
        for part in saved:
            yield from _arrays_in(part)
    elif isinstance(saved, np.ndarray):
        yield saved


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference; infinities that are the same are none, and a NaN is as far as can be."""
    with np.errstate(invalid="ignore"):
        difference = np.where(a == b, 0.0, np.abs(a - b))
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0))


def _largest(a: np.ndarray) -> float:
    """The largest size of a finite entry."""
    return float(np.abs(a[np.isfinite(a)]).max(initial=0))
