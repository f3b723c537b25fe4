"""Is a gradient right?  Random cotangents and directions, numbers against the engine, a tolerance that rounding sets.

For a cotangent v and a direction u of one input, the engine's gradient a and the function's Jacobian J must agree on
one number: ⟨a, u⟩ = ⟨v, J u⟩.  A wrong entry moves the left side by itself times uᵢ, and no uᵢ or vᵢ is small.

Both sides are sums, and rounding moves a sum by the machine epsilon times the sizes of its terms,
c ε (Σ|aᵢuᵢ| + Σ|vᵢ(Ju)ᵢ|).  The result y is rounded too, which is felt where y is large and J small, as in a softmax
that saturates: 4 ε Σ|vᵢyᵢ| max(1, |u|).  A difference adds its own error estimate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanograd_llm.engine import Tensor
from nanograd_llm.errors import GraphError, NanogradError
from nanograd_llm.gradcheck.derivatives import EPS, Derivative, derivative, differences
from nanograd_llm.gradcheck.function import Differentiable, Function, Gradient, gradients
from nanograd_llm.settings import require_int

DIRECTIONS = 4
DEPTH = 64  # c: how many roundings, in a row and all the same way, a right gradient may have suffered
BLUNT = 1e-6  # a tolerance above this part of the numbers compared tells nothing,
FAINT = 1e-10  # unless these are all rounding: a gradient below this part of its cotangent counts as zero
_REPEATS = 6


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
class Finding:
    """What was found for one input (`name`, `shape`) at one order of differentiation.

    verdict: "right", "wrong", or "cannot tell" where rounding (to float32, inside the function) or a kink hides more
        than a millionth, or where the function's own numbers are not finite.
    relative_error: the largest difference over all pairs of directions, as a part of Σ|aᵢuᵢ| + Σ|vᵢ(Ju)ᵢ|.
    tolerance: what it may be, in the same measure.  method, step, why: see `derivatives.Derivative`.
    worst: the worst entry of a gradient that is wrong.
    """

    order: int
    name: str
    shape: tuple[int, ...]
    verdict: str
    relative_error: float
    tolerance: float
    method: str
    step: float
    why: str
    worst: Entry | None

    def __str__(self) -> str:
        lines = [
            f"{self.name} {self.shape}: {self.verdict}, off by {self.relative_error:.1e} where {self.tolerance:.1e} is "
            f"rounding, by {self.method}, step {self.step:.0e}"
        ]
        if self.why:
            lines.append(f"    differences, because {self.why}")
        if self.worst is not None:
            lines.append(f"    {self.worst}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """The outcome of a gradient check: a Finding for each input and order. `print(report)` reads well."""

    function: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Is every gradient right?"""
        return all(finding.verdict == "right" for finding in self.findings)

    def relative_error(self, order: int = 1) -> float:
        """The largest relative error found at this order."""
        return max((f.relative_error for f in self.findings if f.order == order), default=0.0)

    def __str__(self) -> str:
        lines = [f"gradients of {self.function}: {'right' if self.passed else 'NOT RIGHT'}"]
        for order in sorted({finding.order for finding in self.findings}):
            lines.append(f"  order {order}")
            for finding in self.findings:
                if finding.order == order:
                    lines += ["    " + line for line in str(finding).splitlines()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def gradcheck(f: Callable[..., Tensor], *inputs: Any, order: int = 1, seed: int = 0) -> Report:
    """Check the engine's gradient of any function of Tensors: an op, a closure, a Module, a model's loss.

    inputs: the point to check at. Float arrays and Tensors that require a gradient are checked, as float64 copies;
        everything else (integers, None, Tensors that require no gradient) is handed on as it is. Leaves that f holds
        itself, such as a Module's parameters, are found on the tape and checked too; nothing else may use them while
        the check runs.
    order: check derivatives up to this order. The gradient's own gradient, by the inputs and by the cotangent, is
        checked against differences of the gradient.
    seed: of the random cotangents and directions, of which there are four each for every input.

    There is no tolerance to choose: see the head of this file. Where a difference is larger than rounding in the result
    explains, it is measured how much rounding inside f moves it, by repeating the comparison at points a few units in
    the last place away: a wrong gradient is wrong there by the same amount, a difference from rounding is another.

    Raises GraphError where f returns no Tensor, nothing requires a gradient, or f gives other numbers when called
    again; DtypeError for complex inputs or a result that is not float; ConfigError unless order is an integer of at
    least 1; ShapeError for an input that is a list of Tensors or of float arrays of different shapes.
    """
    require_int("order", order, 1)
    rng = np.random.default_rng(seed)
    function = Function(f, inputs)
    findings: list[Finding] = []
    notes = [f"{dtype} inputs were checked as float64 copies" for dtype in function.promoted]
    with function.borrowed():
        epsilon = function.epsilon()
        target: Differentiable = function
        for n in range(1, order + 1):
            y = target.evaluate(target.values)
            if not np.array_equal(y, target.evaluate(target.values), equal_nan=True):
                raise GraphError(
                    f"{function.label} gives other numbers when it is called again with the same inputs; make it "
                    "repeatable, e.g. give its dropout a seed"
                )
            cotangents = [_dense(rng, y.shape) for _ in range(DIRECTIONS)]
            findings += [_check_input(target, k, y, cotangents, n, epsilon, rng) for k in range(len(target.values))]
            target = Gradient(target, cotangents[0])
    return Report(function.label, tuple(findings), tuple(notes))


def assert_gradients(f: Callable[..., Tensor], *inputs: Any, order: int = 1, seed: int = 0) -> None:
    """`gradcheck`, for tests: raises GradientError, an AssertionError that shows the report, unless all is right."""
    report = gradcheck(f, *inputs, order=order, seed=seed)
    if not report.passed:
        raise GradientError(report)


@dataclass(frozen=True)
class _Comparison:
    """Both sides for every pair of a cotangent (rows) and a direction (columns), and how large their terms are."""

    analytic: np.ndarray
    numeric: np.ndarray
    scale: np.ndarray
    error: np.ndarray

    @property
    def off(self) -> np.ndarray:
        return self.analytic - self.numeric


def _check_input(
    function: Differentiable,
    k: int,
    y: np.ndarray,
    cotangents: list[np.ndarray],
    order: int,
    epsilon: float,
    rng: np.random.Generator,
) -> Finding:
    x = function.values[k]
    directions = [_dense(rng, x.shape) * _length(x) for _ in range(DIRECTIONS)]
    first = derivative(_line(function, function.values, k, directions[0]), epsilon=epsilon)
    method = functools.partial(differences, epsilon=epsilon)
    if not first.why:
        method = functools.partial(derivative, confirm=False, epsilon=epsilon)
    found = _compare(function, function.values, k, cotangents, directions, method)
    finite_y = np.where(np.isfinite(y), y, 0.0)
    size_of_y = np.array([[np.abs(v * finite_y).sum()] for v in cotangents])
    size_of_v = np.array([[np.abs(v).sum()] for v in cotangents])
    tolerance = epsilon * (DEPTH * found.scale + 4 * size_of_y * max(1.0, _length(x))) + found.error
    if not (np.abs(found.off) <= tolerance).all():
        tolerance = tolerance + _noise(function, k, cotangents, directions, method, found.off, rng)
    right = np.abs(found.off) <= tolerance
    worst = None
    if not np.isfinite(found.numeric).all():
        verdict = "cannot tell"
    elif not right.all():
        verdict = "wrong"
        row = int(np.argmax(~right.all(axis=1)))
        worst = _worst_entry(function, k, cotangents[row], method)
    elif (tolerance <= BLUNT * (found.scale + size_of_y) + FAINT * size_of_v).all():
        verdict = "right"
    else:
        verdict = "cannot tell"
    return Finding(
        order,
        function.names[k],
        x.shape,
        verdict,
        _part(np.abs(found.off), found.scale),
        _part(tolerance, found.scale),
        first.method,
        first.step,
        first.why if order == 1 else "",  # rules need no complex numbers, so beyond first order it is always so
        worst,
    )


def _compare(
    function: Differentiable,
    values: Sequence[np.ndarray],
    k: int,
    cotangents: Sequence[np.ndarray],
    directions: Sequence[np.ndarray],
    method: Callable[..., Derivative],
) -> _Comparison:
    a = _rows([gradient[k] for gradient in gradients(function, values, cotangents)])
    v, u = _rows(cotangents), _rows(directions)
    slopes = [method(_line(function, values, k, direction)) for direction in directions]
    ju, error = _rows([s.value for s in slopes]), _rows([s.error for s in slopes])
    with np.errstate(invalid="ignore"):
        scale = np.abs(a) @ np.abs(u).T + np.abs(v) @ np.abs(ju).T
        return _Comparison(a @ u.T, v @ ju.T, scale, np.abs(v) @ error.T)


def _noise(
    function: Differentiable,
    k: int,
    cotangents: Sequence[np.ndarray],
    directions: Sequence[np.ndarray],
    method: Callable[..., Derivative],
    off: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """How far rounding inside the function can move each difference, seen by moving every number by a few ulps.

    Both sides move together then, so that what is left is rounding done another way: the idea of J. Vignes, "A
    stochastic arithmetic for reliable scientific computation", Mathematics and Computers in Simulation 35 (1993).
    """

    def nudge(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [a * (1 + EPS * rng.integers(-2, 3, a.shape)) for a in arrays]

    offs = [off]
    for _ in range(_REPEATS):
        offs.append(_compare(function, nudge(function.values), k, nudge(cotangents), nudge(directions), method).off)
    return 4 * np.ptp(offs, axis=0)


def _worst_entry(
    function: Differentiable, k: int, cotangent: np.ndarray, method: Callable[..., Derivative]
) -> Entry | None:
    """The entry of input k whose gradient is off the most; among many, looked for where the sum of halves is worse."""
    x = function.values[k]
    analytic = gradients(function, function.values, [cotangent])[0][k].reshape(-1)

    def numeric(places: np.ndarray) -> float:
        u = np.zeros(x.size)
        u[places] = _length(x)
        return float(np.sum(cotangent * method(_line(function, function.values, k, u.reshape(x.shape))).value))

    places = np.arange(x.size)
    while places.size > 256:
        halves = np.array_split(places, 2)
        places = max(halves, key=lambda half: abs(analytic[half].sum() * _length(x) - numeric(half)))
    if not places.size:
        return None
    slopes = np.array([numeric(np.array([place])) / _length(x) for place in places])
    off = np.abs(analytic[places] - slopes)
    worst = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
    index = tuple(int(i) for i in np.unravel_index(places[worst], x.shape))
    return Entry(index, float(analytic[places[worst]]), float(slopes[worst]))


def _line(
    function: Differentiable, values: Sequence[np.ndarray], k: int, direction: np.ndarray
) -> Callable[[complex], np.ndarray]:
    return lambda t: function.evaluate([*values[:k], values[k] + t * direction, *values[k + 1 :]])


def _dense(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random signs and sizes, none of them small, so that no entry can hide; never all the same."""
    return np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape))


def _length(x: np.ndarray) -> float:
    """The root mean square of x, so that a direction is as large as x; 1 where x is zero, empty or infinite."""
    finite = x[np.isfinite(x)]
    size = float(np.sqrt(np.mean(finite * finite))) if finite.size else 0.0
    return size or 1.0


def _rows(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([a.reshape(-1) for a in arrays])


def _part(a: Any, whole: Any) -> float:
    """The largest a / whole; 0 where there is nothing to be a part of."""
    return float(np.max(np.divide(a, whole, where=whole > 0, out=np.zeros_like(whole))))
