"""Is a gradient right?  Every input of a function, to every order, held to numbers; then the verdict and its reasons.

How the two sides are compared, and the tolerance that rounding sets, stands in `comparison`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.errors import GraphError, InPlaceError
from nanograd_llm.gradcheck.check import comparison, consistency, explanation, kinks
from nanograd_llm.gradcheck.check.comparison import Outcome, Precision, dense, length, rows
from nanograd_llm.gradcheck.check.culprit import culprits
from nanograd_llm.gradcheck.check.derivatives import derivative, differences
from nanograd_llm.gradcheck.check.function import Differentiable, Function, Gradient, gradients, label
from nanograd_llm.gradcheck.check.report import Finding, GradientError, Report
from nanograd_llm.gradcheck.check.rounding import DEPTH
from nanograd_llm.settings import require_int, require_seed

DIRECTIONS = 4
JACOBIAN = 4096  # entries that a Jacobian may have to be compared whole
_ENTRIES = 2**20  # entries of a Jacobian, and
_CALLS = 8192  # op calls, within which each entry of an input is still moved by itself
_BY_DIFFERENCES = 256  # entries of an input that are, where each takes dozens of evaluations


def gradcheck(
    f: Callable[..., Tensor], *inputs: Any, order: int = 1, seed: int = 0, jacobian: int = JACOBIAN
) -> Report:
    """Check the engine's gradient of any function of Tensors: an op, a closure, a Module, a model's loss.

    inputs: the point to check at. Float arrays and Tensors that require a gradient are checked, as float64 copies;
        everything else (integers, None, Tensors that require no gradient) is handed on as it is. Leaves that f holds
        itself, such as a Module's parameters, are found on the tape and checked too; nothing else may use them while
        the check runs.
    order: check derivatives up to this order. The gradient's own gradient, by the inputs and by the cotangent, is
        checked against differences of the gradient, and the Hessian for its symmetry.
    seed: of the random cotangents and directions, of which there are four each for every input.
    jacobian: a Jacobian (result by input) with no more entries than this is compared whole at first order, at the
        price of an evaluation for each entry of the input. Of a larger one each entry of the gradient is compared, for
        the four cotangents, while that takes few op calls; otherwise the random directions must do, and the report says
        what all would have cost. 0 leaves it at directions.

    There is no tolerance to choose: see `gradcheck.comparison`. Where a difference is larger than rounding in the
    result explains, it is measured how much rounding inside f moves it, by repeating the comparison at points a few
    units in the last place away: a wrong gradient is wrong there by as much, a difference from rounding is another.

    The report also holds: whether every op call on the tape keeps its shape line, two backward passes give the same
    bits, the same gradient whichever others are wanted, and nothing for a cotangent of zeros; for a wrong gradient the
    pattern it looks like, and the op calls on the tape whose own rule is at fault. A forward that writes into its input
    is a problem that ends the check. The arrays given stay as they are.

    Raises GraphError where f returns no Tensor, nothing requires a gradient, or f gives other numbers when called
    again; DtypeError for complex inputs or a result that is not float; ConfigError unless order is an integer of at
    least 1; ShapeError for an input that is a list of Tensors or of float arrays of different shapes.
    """
    require_int("order", order, 1)
    require_int("jacobian", jacobian, 0)
    require_seed(seed)
    try:
        return _Check(f, inputs, order, seed, jacobian).report()
    except InPlaceError as error:
        return Report(label(f), (), (str(error),))


def verdicts(f: Callable[..., Tensor], *inputs: Any, order: int = 1, seed: int = 0) -> Report:
    """`gradcheck` up to the first wrong verdict, without explanations, which may take longer than the check itself."""
    return _Check(f, inputs, order, seed, JACOBIAN, explains=False).report()


def assert_gradients(
    f: Callable[..., Tensor], *inputs: Any, order: int = 1, seed: int = 0, jacobian: int = JACOBIAN
) -> None:
    """`gradcheck`, for tests: raises GradientError, an AssertionError that shows the report, unless all is right."""
    report = gradcheck(f, *inputs, order=order, seed=seed, jacobian=jacobian)
    if not report.passed:
        raise GradientError(report)


class _Check:
    """One gradcheck on its way."""

    def __init__(
        self,
        f: Callable[..., Tensor],
        inputs: Sequence[Any],
        order: int,
        seed: int,
        jacobian: int,
        *,
        explains: bool = True,
    ):
        self.order, self.seed, self.jacobian, self.explains = order, seed, jacobian, explains
        self.rng = np.random.default_rng(seed)
        self.function = Function(f, inputs)

    def report(self, *, traced: bool = True) -> Report:
        """traced: with the op calls at fault."""
        function = self.function
        findings: list[Finding] = []
        problems = list(function.shape_problems)
        notes = [f"{dtype} inputs were checked as float64 copies" for dtype in function.promoted]
        found: list[Any] = []
        with function.borrowed():
            epsilon, depth, self.calls = function.tape()
            self.precision = Precision(epsilon, DEPTH + 16 * max(0, depth - 1))
            notes += function.widening()
            target: Differentiable = function
            self.kinks: list[np.ndarray | None] = []
            for n in range(1, self.order + 1):
                y = target.evaluate(target.values)
                if not np.array_equal(y, target.evaluate(target.values), equal_nan=True):
                    raise GraphError(
                        f"{function.label} gives other numbers when it is called again with the same inputs; make it "
                        "repeatable, e.g. give its dropout a seed"
                    )
                cotangents = [dense(self.rng, y.shape) for _ in range(DIRECTIONS)]
                if n == 1:
                    cotangent = cotangents[0]
                    self.kinks = [self._kinks(target, k) for k in range(len(target.values))]
                    problems += consistency.problems(function, cotangent, self.precision)
                elif n == 2:
                    problems += consistency.asymmetry(function, cotangent, self.precision, self.rng)
                self.kinks += [np.zeros(0, int)] * (len(target.values) - len(self.kinks))
                for k in range(len(target.values)):
                    findings.append(self._check_input(target, k, y, cotangents, n))
                    if findings[-1].verdict == "wrong" and not self.explains:
                        return Report(function.label, tuple(findings), tuple(problems))
                target = Gradient(target, cotangents[0])
            wrong = [finding for finding in findings if finding.verdict == "wrong"]
            if wrong and self.explains and traced:
                found, calls = culprits(lambda: function.record(function.values)[0], self._check_call(wrong))
                if not found:
                    notes.append(
                        f"the rules of all {calls} op calls on the tape are right at these numbers; what is wrong lies "
                        "between them: a .data or .detach() on the way, a hook, or a result written into"
                    )
        return Report(function.label, tuple(findings), tuple(problems), tuple(found), tuple(notes))

    def _check_call(self, wrong: Sequence[Finding]) -> Callable[..., Report]:
        order = min(finding.order for finding in wrong)
        return lambda f, *inputs: _Check(f, inputs, order, self.seed, self.jacobian).report(traced=False)

    def _kinks(self, function: Differentiable, k: int) -> np.ndarray | None:
        """Flat places of the entries of input k by which the function bends; None where they cannot be told."""
        x = function.values[k]
        direction = dense(self.rng, x.shape) * length(x)
        return kinks.find(lambda u: comparison.line(function, function.values, k, u), direction, self.precision.epsilon)

    def _check_input(
        self, function: Differentiable, k: int, y: np.ndarray, cotangents: list[np.ndarray], order: int
    ) -> Finding:
        x, bent = function.values[k], self.kinks[k]
        finding = functools.partial(Finding, order, function.names[k], x.shape)
        if bent is None:
            reason = f"the function bends by more than {kinks.MOST} entries here, or in a way that no entry explains"
            return finding("cannot tell", 0.0, 0.0, "differences", 0.0, "nothing", reason=reason)
        smooth = np.ones(x.size, bool)
        smooth[bent] = False
        directions = [dense(self.rng, x.shape) * length(x) * smooth.reshape(x.shape) for _ in range(DIRECTIONS)]
        first = derivative(comparison.line(function, function.values, k, directions[0]), epsilon=self.precision.epsilon)
        method: comparison.Method = functools.partial(differences, epsilon=self.precision.epsilon)
        if not first.why:
            method = functools.partial(derivative, confirm=False, epsilon=self.precision.epsilon)

        v, u = rows(cotangents), rows(directions)
        found = self._hold(comparison.along_directions, function, k, method, v, u)
        right, shown = found.right, found
        compared, singly = self._extent(order, y.size, x.size, by_differences=bool(first.why))
        if singly and smooth.any() and found.right and found.finite and found.sharp:
            each = v if singly == "cotangents" else dense(self.rng, (y.size,))
            by_entry = self._hold(comparison.by_entries, function, k, method, each, np.full(x.size, length(x)) * smooth)
            right, shown = by_entry.right, found if by_entry.right else by_entry

        bends = tuple(explanation.kink(function, k, int(place), v) for place in bent) if order == 1 else ()
        worst, pattern, reason = None, "", ""
        if not found.finite:
            verdict, reason = "cannot tell", "the function's own numbers are not finite along a direction"
        elif self._comes_from_infinity(function, k, y, cotangents[0]):
            verdict, reason = "cannot tell", "the function's own numbers are not finite here"
        elif not right:
            verdict = "wrong"
            if self.explains:
                cotangent = cotangents[int(np.argmax(found.wrong_rows))]
                worst = explanation.worst_entry(function, k, cotangent, method, np.flatnonzero(smooth))
                pattern = explanation.pattern(function, k, y, cotangent, method) if not bent.size else ""
        elif not found.sharp:
            verdict, reason = "cannot tell", "rounding inside the function hides more than a millionth of the gradient"
        elif not all(kink.allowed for kink in bends):
            verdict, pattern = "wrong", "at a kink it is neither of the two slopes nor a value between"
        else:
            verdict = "at a kink" if bent.size else "right"
        return finding(
            verdict,
            shown.off,
            shown.tolerance,
            first.method,
            first.step,
            compared,
            why=first.why if order == 1 else "",  # rules need no complex numbers, so beyond it is always so
            reason=reason,
            worst=worst,
            pattern=pattern,
            kinks=bends,
        )

    @staticmethod
    def _comes_from_infinity(function: Differentiable, k: int, y: np.ndarray, cotangent: np.ndarray) -> bool:
        """Does a gradient come from results that are not finite? To differences these are flat, as they are where they
        are masked; but where they overflowed, they rise as the rule says."""
        hidden = ~np.isfinite(y)
        return bool(hidden.any() and gradients(function, function.values, [cotangent * hidden])[0][k].any())

    def _hold(
        self, compare: Callable[..., comparison.Sides], function: Differentiable, k: int, method: Any, v: Any, u: Any
    ) -> Outcome:
        compare = functools.partial(compare, function, k, method)
        return comparison.hold(compare, function.values, v, u, length(function.values[k]), self.precision, self.rng)

    def _extent(self, order: int, results: int, entries: int, *, by_differences: bool) -> tuple[str, str]:
        """What is compared, in words, and whether entries are moved singly: for each result, for the cotangents."""
        size, directions = results * entries, f"{DIRECTIONS}x{DIRECTIONS} directions"
        if order > 1 or not size or not self.jacobian:  # beyond the first order an evaluation is a backward pass
            return directions, ""
        if size <= self.jacobian and not (by_differences and entries > _BY_DIFFERENCES):
            return f"{directions}, whole {results}x{entries} Jacobian", "results"
        if size <= _ENTRIES and entries * self.calls <= _CALLS and not by_differences:
            return f"{directions}, each of {entries:,} entries for {DIRECTIONS} cotangents", "cotangents"
        return f"{directions}; the {results}x{entries} Jacobian would take {entries:,} evaluations", ""
