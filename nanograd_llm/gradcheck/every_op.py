"""Every op of the registry checked in the same way, and the check itself checked: a rule made wrong must be found."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanograd_llm.engine import Tensor, grad, registry
from nanograd_llm.errors import ConfigError, GraphError
from nanograd_llm.gradcheck import samples
from nanograd_llm.gradcheck.check import DEPTH, Report, gradcheck
from nanograd_llm.gradcheck.derivatives import EPS
from nanograd_llm.gradcheck.samples import Case
from nanograd_llm.modes import higher_order
from nanograd_llm.op import Op
from nanograd_llm.settings import nearest, require_int

HIGHER_ORDER_CASES = 6  # beyond first order a case costs a hundred times as much, so only so many,
HIGHER_ORDER_SIZE = 128  # and only those that hold no more numbers, are checked there


@contextlib.contextmanager
def scaled_rule(op: Op, factor: float) -> Iterator[None]:
    """Inside this block the op's rule gives gradients that are `factor` times what they should be, in every thread."""
    rule = op.rule
    if rule is None:
        raise GraphError(f"op {op.name} has no rule to scale; write one under @{op.name}.backward")

    def scaled(*saved: Any) -> Any:
        gradients = rule(*saved)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return tuple(None if g is None else g * factor for g in gradients)

    op.rule = scaled
    try:
        yield
    finally:
        op.rule = rule


@dataclass(frozen=True)
class OpSummary:
    """What `check_op` found: the largest relative error at each order, whether a rule scaled by 1.01 was caught, and
    in words whatever is wrong."""

    name: str
    cases: int
    errors: tuple[float, ...]
    caught: bool
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.cases > 0 and self.caught and not self.problems

    @property
    def verdict(self) -> str:
        if self.problems:
            return "wrong"
        if not self.cases:
            return "not checked"
        return "right" if self.caught else "blind to a rule scaled by 1.01"


@dataclass(frozen=True)
class Summary:
    """What `check_all` found, op by op; `str` makes a table of it."""

    ops: tuple[OpSummary, ...]

    @property
    def passed(self) -> bool:
        return all(op.passed for op in self.ops)

    def __str__(self) -> str:
        order = max((len(op.errors) for op in self.ops), default=0)
        head = ["op", "cases", *(f"order {n + 1}" for n in range(order)), "x1.01", "verdict"]
        rows = [
            [op.name, str(op.cases), *map("{:.1e}".format, op.errors), "caught" if op.caught else "MISSED", op.verdict]
            for op in self.ops
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [head, *rows]]
        lines += [f"\n{op.name}: {problem}" for op in self.ops for problem in op.problems]
        right = sum(op.passed for op in self.ops)
        return "\n".join([*lines, f"\n{right} of {len(self.ops)} ops are right"])


def check_all(names: Iterable[str] | None = None, *, order: int = 2, cases: int = 8, seed: int = 0) -> Summary:
    """Check every op that is registered, or those named: see `check_op`.

    Raises ConfigError for a name that no op has, or where `check_op` does.
    """
    wanted = list(registry) if names is None else list(names)
    for name in wanted:
        if name not in registry:
            near = nearest(name, registry)
            raise ConfigError(f"there is no op {name!r}" + (f"; did you mean {near!r}?" if near else ""))
    return Summary(tuple(check_op(registry[name], order=order, cases=cases, seed=seed) for name in wanted))


def check_op(op: Op, *, order: int = 2, cases: int = 8, seed: int = 0) -> OpSummary:
    """Check an op on `cases` cases (or on one for each of its samples, where there are more).

    Its shape line holds; its gradients are right up to `order`, beyond the first on the small cases; float32 stays
    float32; a fused op equals its composition, forward and backward; a rule scaled by 1.01 is caught.

    Raises ConfigError unless `cases` and `order` are integers of at least 1.
    """
    require_int("cases", cases, 1)
    require_int("order", order, 1)
    drawn = list(samples.cases(op, np.random.default_rng(seed), cases))
    deep = higher_order_cases(drawn)
    problems = []
    errors = [0.0] * order
    for case in drawn:
        report = check_case(op, case, order=order if case in deep else 1, seed=seed)
        errors = [max(error, report.relative_error(n + 1)) for n, error in enumerate(errors)]
        if not report.passed:
            problems.append(f"{case}: {report}")
        found = [shape_problem(op, case), *dtype_problems(op, case)]
        if op.equals is not None:
            found += equality_problems(op, case, seed=seed)
        problems += [f"{case}: {problem}" for problem in found if problem]
    return OpSummary(op.name, len(drawn), tuple(errors), not missed_inputs(op, drawn, 1.01, seed), tuple(problems))


def check_case(op: Op, case: Case, *, order: int = 1, seed: int = 0) -> Report:
    """`gradcheck` of one call of an op."""
    return gradcheck(functools.partial(op, **case.static), *case.inputs, order=order, seed=seed)


def higher_order_cases(drawn: Sequence[Case]) -> Sequence[Case]:
    """Those of an op's cases that are cheap enough to be checked beyond first order."""
    return [case for case in drawn if case.size <= HIGHER_ORDER_SIZE][:HIGHER_ORDER_CASES]


def missed_inputs(op: Op, drawn: Sequence[Case], factor: float, seed: int = 0) -> set[str]:
    """The inputs whose gradient none of these cases calls wrong when the op's rule is scaled by `factor`."""
    missed = {
        f"{name}[{i}]" if op.variadic else name
        for case in drawn
        for i, name in differentiated(op, case)
        if case.inputs[i].size
    }
    with scaled_rule(op, factor):
        for case in drawn:
            if missed:
                missed -= {f.name for f in check_case(op, case, seed=seed).findings if f.verdict == "wrong"}
    return missed


def shape_problem(op: Op, case: Case) -> str | None:
    """How a call breaks the op's shape line."""
    y = op(*_tensors(op, case), **case.static)
    return op.shape_problem(case.inputs, case.static, y.shape)


def dtype_problems(op: Op, case: Case) -> list[str]:
    """Where float32 inputs become something else: in the result, in what the tape keeps, in what the rule returns.

    A static argument `dtype` says what the result is; otherwise all is float32, in a fused op's composition too.
    """
    inputs = _tensors(op, case.astype(np.float32))
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


def _result_and_gradients(op: Op, f: Callable[..., Tensor], case: Case, seed: int) -> list[np.ndarray]:
    inputs = _tensors(op, case)
    y = f(*inputs, **case.static)
    cotangent = np.asarray(np.random.default_rng(seed).standard_normal(y.shape))
    return [y.data, *grad(y, [inputs[i] for i, _ in differentiated(op, case)], cotangent)]


def _tensors(op: Op, case: Case) -> list[Any]:
    """The inputs of a case with those that a gradient can go to as leaves."""
    inputs: list[Any] = list(case.inputs)
    for i, _ in differentiated(op, case):
        inputs[i] = Tensor(inputs[i], requires_grad=True)
    return inputs


def differentiated(op: Op, case: Case) -> list[tuple[int, str]]:
    """Place and name of each input that a gradient goes to."""
    names = op.inputs * len(case.inputs) if op.variadic else op.inputs
    return [
        (i, name)
        for i, (name, x) in enumerate(zip(names, case.inputs))
        if name not in op.constants and isinstance(x, np.ndarray) and x.dtype.kind == "f"
    ]


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
