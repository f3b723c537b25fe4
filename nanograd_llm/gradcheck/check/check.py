"""Is a gradient right?  Every input of a function held to numbers, to every order; the verdict and its reasons."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.errors import GraphError, InPlaceError
from nanograd_llm.gradcheck.check import comparison, consistency, kinks, patterns
from nanograd_llm.gradcheck.check.comparison import Method, Precision, dense, length, line, rows
from nanograd_llm.gradcheck.check.culprit import culprits
from nanograd_llm.gradcheck.check.derivatives import derivative, differences
from nanograd_llm.gradcheck.check.function import Differentiable, Function, Gradient, gradients, label
from nanograd_llm.gradcheck.check.report import Culprit, Finding, GradientError, Report
from nanograd_llm.gradcheck.check.rounding import DEPTH
from nanograd_llm.settings import require_int, require_seed

DIRECTIONS = 4
JACOBIAN = 4096  # entries that a Jacobian may have to be compared whole
_ENTRIES = 2**20  # entries of a Jacobian, and
_CALLS = 8192  # op calls, within which each entry of an input is still moved by itself
_BY_DIFFERENCES = 256  # entries of an input that are, where each takes dozens of evaluations


def gradcheck(
    f: Callable[..., Tensor],
    *inputs: Any,
    order: int = 1,
    seed: int = 0,
    jacobian: int = JACOBIAN,
    explain: bool = True,
    **arguments: Any,
) -> Report:
    """Check the engine's gradient of any function of Tensors: an op, a closure, a Module, a model's loss.

    inputs: the point to check at. Float arrays and Tensors that require a gradient are checked, as float64 copies;
        everything else is handed on as it is, and so are the constants that an op declares. Leaves that f holds itself,
        such as a Module's parameters, are found on the tape and checked too; nothing else may use them meanwhile.
    order: check derivatives up to this order. The gradient's own gradient, by the inputs and by the cotangent, is
        checked against differences of the gradient, and the Hessian for its symmetry.
    seed: of the random cotangents and directions, of which there are four each for every input.
    jacobian: a Jacobian (result by input) with no more entries than this is compared whole at first order. Of a larger
        one each entry of the gradient is compared, for the four cotangents, while that takes few op calls; otherwise
        the random directions must do, and the report says what all would have cost. 0 leaves it at directions.
    explain: False stops at the first wrong gradient, without looking for its cause.
    arguments: further keyword arguments of f, such as an op's `axis=0`, handed on as they are.

    There is no tolerance to choose: see `comparison` and `rounding`. The report also says whether every op call on the
    tape keeps its shape line, two backward passes give the same bits, the same gradient whichever others are wanted,
    and nothing for a cotangent of zeros; for a wrong gradient the pattern it looks like, and the op calls on the tape
    whose own rule is at fault. A forward that writes into its input is a problem that ends the check.

    Raises GraphError where f returns no Tensor, nothing requires a gradient, or f gives other numbers when called
    again; DtypeError for complex inputs or a result that is not float; ConfigError unless order is an integer of at
    least 1; ShapeError for an input that is a list of Tensors or of float arrays of different shapes.
    """
    require_int("order", order, 1)
    require_int("jacobian", jacobian, 0)
    require_seed(seed)
    if arguments:
        f = functools.partial(f, **arguments)
    try:
        return _Check(Function(f, inputs), order, seed, jacobian, explain).report()
    except InPlaceError as error:
        return Report(label(f), (), (str(error),))


def assert_gradients(
    f: Callable[..., Tensor],
    *inputs: Any,
    order: int = 1,
    seed: int = 0,
    jacobian: int = JACOBIAN,
    **arguments: Any,
) -> None:
    """`gradcheck`, for tests: raises GradientError, an AssertionError that shows the report, unless all is right."""
    report = gradcheck(f, *inputs, order=order, seed=seed, jacobian=jacobian, **arguments)
    if not report.passed:
        raise GradientError(report)


class _Check:
    """One gradcheck on its way."""

    def __init__(self, function: Function, order: int, seed: int, jacobian: int, explain: bool):
        self.function, self.order, self.seed, self.jacobian, self.explain = function, order, seed, jacobian, explain
        self.rng = np.random.default_rng(seed)

    def report(self, *, trace: bool = True) -> Report:
        """trace: follow a wrong gradient to the op calls at fault."""
        function, problems = self.function, list(self.function.shape_problems)
        notes = list(function.notes)
        findings: list[Finding] = []
        with function.borrowed():
            epsilon, depth, self.calls = function.tape()
            self.precision = Precision(epsilon, DEPTH + 16 * max(0, depth - 1))
            for finding in self._findings(problems):
                findings.append(finding)
                if finding.verdict == "wrong" and not self.explain:
                    return Report(function.label, tuple(findings), tuple(problems))
            wrong = [finding.order for finding in findings if finding.verdict == "wrong"]
            found = self._trace(min(wrong), notes) if wrong and self.explain and trace else []
        return Report(function.label, tuple(findings), tuple(problems), tuple(found), tuple(notes))

    def _trace(self, order: int, notes: list[str]) -> list[Culprit]:
        """The op calls on the tape that are wrong by themselves at this order; a note where none is."""

        def check(f: Callable[..., Tensor], *inputs: Any) -> Report:
            return _Check(Function(f, inputs), order, self.seed, self.jacobian, self.explain).report(trace=False)

        found, calls = culprits(lambda: self.function.record(self.function.values)[0], check)
        if not found:
            right = f"the rules of all {calls} op calls on the tape are right at these numbers"
            causes = "a .data or .detach() on the way, a hook, or a result written into"
            notes.append(f"{right}; what is wrong lies between them: {causes}")
        return found

    def _findings(self, problems: list[str]) -> Iterator[Finding]:
        """Order by order, input by input; problems: what else is found on the way is added there."""
        target: Differentiable = self.function
        bent: list[np.ndarray | None] = []
        for order in range(1, self.order + 1):
            y = target.evaluate(target.values)
            if not np.array_equal(y, target.evaluate(target.values), equal_nan=True):
                raise GraphError(
                    f"{self.function.label} gives other numbers when it is called again with the same inputs; make it "
                    "repeatable, e.g. give its dropout a seed"
                )
            cotangents = [dense(self.rng, y.shape) for _ in range(DIRECTIONS)]
            if order == 1:
                cotangent = cotangents[0]
                bent = [self._kinks(target, k) for k in range(len(target.values))]
                problems += consistency.problems(self.function, cotangent, self.precision)
            elif order == 2:
                problems += consistency.asymmetry(self.function, cotangent, self.precision, self.rng)
            bent += [np.zeros(0, int)] * (len(target.values) - len(bent))  # a gradient is linear in its cotangent
            for k, places in enumerate(bent):
                yield self._check_input(target, k, places, y, cotangents, order)
            target = Gradient(target, cotangents[0])

    def _kinks(self, function: Differentiable, k: int) -> np.ndarray | None:
        """Flat places of the entries of input k by which the function bends; None where they cannot be told."""
        direction = dense(self.rng, function.values[k].shape) * length(function.values[k])
        return kinks.find(lambda u: line(function, function.values, k, u), direction, self.precision.epsilon)

    def _check_input(
        self,
        function: Differentiable,
        k: int,
        bent: np.ndarray | None,
        y: np.ndarray,
        cotangents: list[np.ndarray],
        order: int,
    ) -> Finding:
        x, epsilon = function.values[k], self.precision.epsilon
        finding = functools.partial(Finding, order, function.names[k], x.shape)
        if bent is None:
            reason = f"the function bends by more than {kinks.MOST} entries here, or in a way that no entry explains"
            return finding("cannot tell", 0.0, 0.0, "differences", 0.0, "nothing", reason=reason)
        smooth = np.ones(x.size, bool)
        smooth[bent] = False
        directions = [dense(self.rng, x.shape) * length(x) * smooth.reshape(x.shape) for _ in range(DIRECTIONS)]
        first = derivative(line(function, function.values, k, directions[0]), epsilon=epsilon)
        method: Method = functools.partial(differences, epsilon=epsilon)
        if not first.why:
            method = functools.partial(derivative, confirm=False, epsilon=epsilon)

        hold, v = functools.partial(comparison.hold, function, k, method), rows(cotangents)
        found = shown = hold(v, rows(directions), self.precision, self.rng)
        right, (compared, singly) = found.right, self._extent(order, y.size, x.size, by_differences=bool(first.why))
        if singly and smooth.any() and found.right and found.finite and found.sharp:
            each = v if singly == "cotangents" else dense(self.rng, (y.size,))
            by_entry = hold(each, length(x) * smooth, self.precision, self.rng)
            right, shown = by_entry.right, found if by_entry.right else by_entry

        bends = tuple(kinks.look_at(function, k, int(place), v) for place in bent) if order == 1 else ()
        worst, pattern, reason = None, "", ""
        if not found.finite:
            verdict, reason = "cannot tell", "the function's own numbers are not finite along a direction"
        elif self._comes_from_infinity(function, k, y, cotangents[0]):
            verdict, reason = "cannot tell", "the function's own numbers are not finite here"
        elif not right:
            verdict = "wrong"
            if self.explain:
                cotangent = cotangents[int(np.argmax(found.wrong_rows))]
                worst = patterns.worst_entry(function, k, cotangent, method, np.flatnonzero(smooth))
                pattern = patterns.pattern(function, k, y, cotangent, method) if not bent.size else ""
        elif not found.sharp:
            verdict, reason = "cannot tell", "rounding inside the function hides more than a millionth of the gradient"
        elif not all(kink.allowed for kink in bends):
            verdict, pattern = "wrong", "at a kink it is neither of the two slopes nor a value between"
        else:
            verdict = "at a kink" if bent.size else "right"
        why = first.why if order == 1 else ""  # rules need no complex numbers, so beyond it is always so
        of = (shown.off, shown.tolerance, first.method, first.step, compared)
        return finding(verdict, *of, why=why, reason=reason, worst=worst, pattern=pattern, kinks=bends)

    @staticmethod
    def _comes_from_infinity(function: Differentiable, k: int, y: np.ndarray, cotangent: np.ndarray) -> bool:
        """Does a gradient come from results that are not finite? To differences these are flat, as they are where they
        are masked; but where they overflowed, they rise as the rule says."""
        hidden = ~np.isfinite(y)
        return bool(hidden.any() and gradients(function, function.values, [cotangent * hidden])[0][k].any())

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
