"""Is a gradient right?  Random cotangents and directions, numbers against the engine, a tolerance that rounding sets.

For a cotangent v and a direction u of one input, the engine's gradient a and the function's Jacobian J must agree on
one number: ⟨a, u⟩ = ⟨v, J u⟩.  A wrong entry moves the left side by itself times uᵢ, and no uᵢ or vᵢ is small. Where J
is small it is also compared entry by entry, so that no entry can hide behind larger ones.

Both sides are sums, and rounding moves a sum by the machine epsilon times the sizes of its terms,
c ε (Σ|aᵢuᵢ| + Σ|vᵢ(Ju)ᵢ|), with c from the longest chain of ops between an input and the result.  The result y is
rounded too, which is felt where y is large and J small, as in a softmax that saturates: 4 ε Σ|vᵢyᵢ| max(1, |u|).  A
difference adds its own error estimate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanograd_llm.engine import Tensor, grad
from nanograd_llm.errors import GraphError
from nanograd_llm.gradcheck import kinks
from nanograd_llm.gradcheck.culprit import culprits
from nanograd_llm.gradcheck.derivatives import EPS, Derivative, derivative, differences
from nanograd_llm.gradcheck.function import Differentiable, Function, Gradient, gradients
from nanograd_llm.gradcheck.patterns import recognise
from nanograd_llm.gradcheck.report import Entry, Finding, GradientError, Kink, Report
from nanograd_llm.modes import higher_order
from nanograd_llm.settings import require_int

DIRECTIONS = 4
DEPTH = 64  # c of a single op: how many roundings, in a row and all the same way, its right gradient may suffer
JACOBIAN = 4096  # entries that a Jacobian may have to be compared whole
BLUNT = 1e-6  # a tolerance above this part of the numbers compared tells nothing,
FAINT = 1e-10  # unless these are all rounding: a gradient below this part of its cotangent counts as zero
_BY_DIFFERENCES = 256  # columns of a Jacobian at most, where each takes dozens of evaluations
_REPEATS = 6
_ALONE = 8  # inputs at most whose gradient is also asked for alone


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
        price of an evaluation for each entry of the input. A larger one is seen through the random directions only.

    There is no tolerance to choose: see the head of this file. Where a difference is larger than rounding in the result
    explains, it is measured how much rounding inside f moves it, by repeating the comparison at points a few units in
    the last place away: a wrong gradient is wrong there by the same amount, a difference from rounding is another.

    The report also holds: whether two backward passes give the same bits, and the same gradient whichever others are
    wanted; for a wrong gradient the pattern it looks like, and the op calls on the tape whose own rule is at fault.

    Raises GraphError where f returns no Tensor, nothing requires a gradient, or f gives other numbers when called
    again; DtypeError for complex inputs or a result that is not float; ConfigError unless order is an integer of at
    least 1; ShapeError for an input that is a list of Tensors or of float arrays of different shapes.
    """
    require_int("order", order, 1)
    require_int("jacobian", jacobian, 0)
    require_int("seed", seed, 0)
    return _Check(f, inputs, order, seed, jacobian).report(explain=True)


def assert_gradients(
    f: Callable[..., Tensor], *inputs: Any, order: int = 1, seed: int = 0, jacobian: int = JACOBIAN
) -> None:
    """`gradcheck`, for tests: raises GradientError, an AssertionError that shows the report, unless all is right."""
    report = gradcheck(f, *inputs, order=order, seed=seed, jacobian=jacobian)
    if not report.passed:
        raise GradientError(report)


@dataclass(frozen=True)
class _Comparison:
    """Both sides of each pair of a cotangent (rows) and a direction (columns), and how far rounding may part them."""

    analytic: np.ndarray
    numeric: np.ndarray
    scale: np.ndarray  # Σ|aᵢuᵢ| + Σ|vᵢ(Ju)ᵢ|
    error: np.ndarray  # of the differences

    @property
    def off(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return self.analytic - self.numeric


Compare = Callable[[Sequence[np.ndarray], Any, Any], _Comparison]  # values, cotangents, directions
Method = Callable[..., Derivative]


class _Check:
    """One gradcheck on its way."""

    def __init__(self, f: Callable[..., Tensor], inputs: Sequence[Any], order: int, seed: int, jacobian: int):
        self.f, self.order, self.seed, self.jacobian = f, order, seed, jacobian
        self.rng = np.random.default_rng(seed)
        self.function = Function(f, inputs)

    def report(self, *, explain: bool) -> Report:
        function = self.function
        findings: list[Finding] = []
        problems: list[str] = []
        notes = [f"{dtype} inputs were checked as float64 copies" for dtype in function.promoted]
        found: list[Any] = []
        with function.borrowed():
            self.epsilon, depth = function.rounding()
            self.c = DEPTH + 16 * max(0, depth - 1)
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
                cotangents = [_dense(self.rng, y.shape) for _ in range(DIRECTIONS)]
                if n == 1:
                    cotangent = cotangents[0]
                    self.kinks = [self._kinks(target, k) for k in range(len(target.values))]
                    problems += self._inconsistencies(target, cotangent)
                elif n == 2:
                    problems += self._asymmetry(cotangent)
                self.kinks += [np.zeros(0, int)] * (len(target.values) - len(self.kinks))
                findings += [self._check_input(target, k, y, cotangents, n) for k in range(len(target.values))]
                target = Gradient(target, cotangents[0])
            wrong = [finding for finding in findings if finding.verdict == "wrong"]
            if wrong and explain:
                found, calls = culprits(lambda: function.record(function.values)[0], self._check_call(wrong))
                if not found:
                    notes.append(
                        f"the rules of all {calls} op calls on the tape are right at these numbers; what is wrong lies "
                        "between them: a .data or .detach() on the way, a hook, or a result written into"
                    )
        return Report(function.label, tuple(findings), tuple(problems), tuple(found), tuple(notes))

    def _check_call(self, wrong: Sequence[Finding]) -> Callable[..., Report]:
        order = min(finding.order for finding in wrong)
        return lambda f, *inputs: _Check(f, inputs, order, self.seed, 0).report(explain=False)

    def _kinks(self, function: Differentiable, k: int) -> np.ndarray | None:
        """Flat places of the entries of input k by which the function bends; None where they cannot be told."""
        x = function.values[k]
        direction = _dense(self.rng, x.shape) * _length(x)
        return kinks.find(lambda u: _line(function, function.values, k, u), direction, self.epsilon)

    def _inconsistencies(self, function: Differentiable, cotangent: np.ndarray) -> list[str]:
        """Where backward twice, or asking for one gradient alone, gives another gradient."""
        y, leaves = function.record(function.values)
        if not y.requires_grad:
            return []
        together, again = (grad(y, leaves, cotangent, retain_graph=True) for _ in range(2))
        problems = [
            f"two backward passes over one tape give {name} gradients that differ, by up to {np.abs(a - b).max():.1e}"
            for name, a, b in zip(function.names, together, again)
            if not np.array_equal(a, b, equal_nan=True)
        ]
        for k, leaf in enumerate(leaves[:_ALONE] if len(leaves) > 1 else ()):
            alone = grad(y, leaf, cotangent, retain_graph=True)
            off = np.abs(alone - together[k]).max(initial=0)
            if off > self.c * self.epsilon * np.abs(together[k]).max(initial=0):
                problems.append(f"the gradient of {function.names[k]}, asked for alone, is another, by up to {off:.1e}")
        return problems

    def _asymmetry(self, cotangent: np.ndarray) -> list[str]:
        """Whether the Hessian of ⟨v, f⟩ is not symmetric: ⟨w, H u⟩ must be ⟨u, H w⟩."""
        function = self.function
        u, w = ([_dense(self.rng, x.shape) * _length(x) for x in function.values] for _ in range(2))

        def difference(values: Sequence[np.ndarray]) -> tuple[float, float]:
            products = []
            with higher_order():
                y, leaves = function.record(values)
                if not y.requires_grad:
                    return 0.0, 0.0
                gradient = grad(y, leaves, cotangent)
                for one, other in ((u, w), (w, u)):
                    along = functools.reduce(Tensor.__add__, [(g * d).sum() for g, d in zip(gradient, one)])
                    hessian = grad(along, leaves) if along.requires_grad else [Tensor(np.zeros(x.shape)) for x in u]
                    products.append([d * h.data for d, h in zip(other, hessian)])
            sums = [sum(float(p.sum()) for p in product) for product in products]
            size = sum(float(np.abs(p).sum()) for product in products for p in product)
            return sums[0] - sums[1], size

        off, size = difference(function.values)
        tolerance = 4 * self.c * self.epsilon * size
        if not np.isfinite(off) or abs(off) <= tolerance:
            return []
        offs = [off, *(difference(self._nudged(function.values))[0] for _ in range(_REPEATS))]
        if abs(off) <= tolerance + 4 * np.ptp(offs):
            return []
        return [f"the Hessian is not symmetric: ⟨w, H u⟩ and ⟨u, H w⟩ differ by {abs(off):.1e}, of terms of {size:.1e}"]

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
        mask = smooth.reshape(x.shape)
        directions = [_dense(self.rng, x.shape) * _length(x) * mask for _ in range(DIRECTIONS)]
        first = derivative(_line(function, function.values, k, directions[0]), epsilon=self.epsilon)
        method: Method = functools.partial(differences, epsilon=self.epsilon)
        if not first.why:
            method = functools.partial(derivative, confirm=False, epsilon=self.epsilon)

        finite_y = np.where(np.isfinite(y), y, 0.0)
        v, u = _rows(cotangents), _rows(directions)
        size_of_y = np.abs(v) @ np.abs(finite_y).reshape(-1, 1)
        size_of_v = np.abs(v).sum(axis=1, keepdims=True)
        compare: Compare = functools.partial(_compare, function, k, method)
        found = compare(function.values, v, u)
        rounding = 4 * size_of_y * max(1.0, _length(x))
        tolerance = self._tolerance(function, compare, found, v, u, rounding)
        right = (np.abs(found.off) <= tolerance).all()
        sharp = (tolerance <= BLUNT * (found.scale + size_of_y) + FAINT * size_of_v).all()
        off, part = _part(np.abs(found.off), found.scale), _part(tolerance, found.scale)
        finite = bool(np.isfinite(found.numeric).all())
        compared = f"{DIRECTIONS}x{DIRECTIONS} directions"
        whole = order == 1 and smooth.any() and 0 < y.size * x.size <= self.jacobian
        if whole and (not first.why or x.size <= _BY_DIFFERENCES):
            compared = f"{compared}, all {y.size}x{x.size} entries"
            if right and finite and sharp:
                s, sizes = _dense(self.rng, (y.size,)), np.full(x.size, _length(x)) * smooth
                compare = functools.partial(_compare_entries, function, k, method)
                entries = compare(function.values, s, sizes)
                # an entry is made of terms as large as the others of its row, and of y
                rows = entries.scale.max(axis=1, initial=0, keepdims=True)
                rounding = 4 * (rows + np.abs(s * finite_y.reshape(-1))[:, None] * max(1.0, _length(x)))
                rounding = rounding + FAINT * np.abs(s)[:, None] * sizes
                allowed = self._tolerance(function, compare, entries, s, sizes, rounding)
                right = (np.abs(entries.off) <= allowed).all()
                if not right:
                    off, part = _part(np.abs(entries.off), entries.scale), _part(allowed, entries.scale)

        bends = tuple(self._kink(function, k, int(place), v) for place in bent) if order == 1 else ()
        worst, pattern, reason = None, "", ""
        if not finite:
            verdict, reason = "cannot tell", "the function's own numbers are not finite along a direction"
        elif not right:
            verdict = "wrong"
            row = int(np.argmax(~(np.abs(found.off) <= tolerance).all(axis=1)))
            worst = _worst_entry(function, k, cotangents[row], method, np.flatnonzero(smooth))
            pattern = _pattern(function, k, y, cotangents[row], method) if not bent.size else ""
        elif not sharp:
            verdict, reason = "cannot tell", "rounding inside the function hides more than a millionth of the gradient"
        elif not all(kink.allowed for kink in bends):
            verdict, pattern = "wrong", "at a kink it is neither of the two slopes nor a value between"
        else:
            verdict = "at a kink" if bent.size else "right"
        return finding(
            verdict,
            off,
            part,
            first.method,
            first.step,
            compared,
            why=first.why if order == 1 else "",  # rules need no complex numbers, so beyond it is always so
            reason=reason,
            worst=worst,
            pattern=pattern,
            kinks=bends,
        )

    def _tolerance(
        self, function: Differentiable, compare: Compare, found: _Comparison, v: Any, u: Any, rounding: np.ndarray
    ) -> np.ndarray:
        """How far apart both sides may be; how much rounding inside f moves them is measured only where it matters."""
        tolerance = self.epsilon * (self.c * found.scale + rounding) + found.error
        if (np.abs(found.off) <= tolerance).all():
            return tolerance
        return tolerance + self._noise(function, compare, v, u, found.off)

    def _noise(self, function: Differentiable, compare: Compare, v: Any, u: Any, off: np.ndarray) -> np.ndarray:
        """How far rounding inside the function can move each difference, seen by moving every number by a few ulps.

        Both sides move together then, so that what is left is rounding done another way: the idea of J. Vignes, "A
        stochastic arithmetic for reliable scientific computation", Mathematics and Computers in Simulation 35 (1993).
        """
        offs = [off]
        for _ in range(_REPEATS):
            nudged_v, nudged_u = self._nudged([v, u])
            offs.append(compare(self._nudged(function.values), nudged_v, nudged_u).off)
        with np.errstate(invalid="ignore"):
            return 4 * np.ptp(offs, axis=0).max(axis=1, initial=0, keepdims=True)  # rounding is alike along a row

    def _nudged(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [a * (1 + EPS * self.rng.integers(-2, 3, a.shape)) for a in arrays]

    def _kink(self, function: Differentiable, k: int, place: int, v: np.ndarray) -> Kink:
        """What the function does to both sides of one entry of input k, and what the engine makes of it."""
        x = function.values[k]
        u = np.zeros(x.size)
        u[place] = _length(x)
        line = _line(function, function.values, k, u.reshape(x.shape))
        left, right = (slope.reshape(-1) / _length(x) for slope in kinks.slopes(line))
        with np.errstate(invalid="ignore"):
            lows = np.minimum(v * left, v * right).sum(axis=1)
            highs = np.maximum(v * left, v * right).sum(axis=1)
            near = 1e-6 * (np.abs(v) @ (np.abs(left) + np.abs(right)))
        cotangents = [row.reshape(function.evaluate(function.values).shape) for row in v]
        a = np.array([g[k].reshape(-1)[place] for g in gradients(function, function.values, cotangents)])
        allowed = bool(((lows - near <= a) & (a <= highs + near)).all())
        index = tuple(int(i) for i in np.unravel_index(place, x.shape))
        return Kink(index, float(v[0] @ left), float(v[0] @ right), float(a[0]), allowed)


def _compare(
    function: Differentiable, k: int, method: Method, values: Sequence[np.ndarray], v: np.ndarray, u: np.ndarray
) -> _Comparison:
    """Every pair of a dense cotangent (a row of v) and a dense direction (a row of u)."""
    shape = function.evaluate(values).shape
    a = _rows([g[k] for g in gradients(function, values, [row.reshape(shape) for row in v])])
    slopes = [method(_line(function, values, k, row.reshape(values[k].shape))) for row in u]
    ju, error = _rows([s.value for s in slopes]), _rows([s.error for s in slopes])
    with np.errstate(invalid="ignore"):
        scale = np.abs(a) @ np.abs(u).T + np.abs(v) @ np.abs(ju).T
        return _Comparison(a @ u.T, v @ ju.T, scale, np.abs(v) @ error.T)


def _compare_entries(
    function: Differentiable, k: int, method: Method, values: Sequence[np.ndarray], s: np.ndarray, sizes: np.ndarray
) -> _Comparison:
    """Every entry of the Jacobian: cotangents that are s at one place, directions that have their size at one place."""
    y, leaves = function.record(values)
    a = np.zeros((s.size, sizes.size))
    if y.requires_grad:
        cotangent = np.zeros(s.size)
        for i in range(s.size):
            cotangent[:] = 0
            cotangent[i] = s[i]
            a[i] = grad(y, leaves[k], cotangent.reshape(y.shape), retain_graph=True).reshape(-1)
    ju, error = np.zeros((sizes.size, s.size)), np.zeros((sizes.size, s.size))
    for j in np.flatnonzero(sizes):
        slope = _slope(function, values, k, j, sizes[j], method)
        ju[j], error[j] = slope.value.reshape(-1), slope.error.reshape(-1)
    with np.errstate(invalid="ignore"):
        analytic, numeric = a * sizes, (ju * s).T
        return _Comparison(analytic, numeric, np.abs(analytic) + np.abs(numeric), np.abs(error * s).T)


def _worst_entry(
    function: Differentiable, k: int, cotangent: np.ndarray, method: Method, places: np.ndarray
) -> Entry | None:
    """The entry of input k whose gradient is off the most; among many, looked for where the sum of halves is worse."""
    x = function.values[k]
    analytic = gradients(function, function.values, [cotangent])[0][k].reshape(-1)

    def numeric(places: np.ndarray) -> float:
        return float(np.sum(cotangent * _slope(function, function.values, k, places, _length(x), method).value))

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


def _pattern(function: Differentiable, k: int, y: np.ndarray, cotangent: np.ndarray, method: Method) -> str:
    """What the wrong gradient of input k looks like; nothing is tried where it would take too long."""
    values = function.values

    def jacobian(k: int) -> np.ndarray:
        size = _length(values[k])
        columns = [_slope(function, values, k, j, size, method).value for j in range(values[k].size)]
        return _rows(columns).T / size

    if not 0 < values[k].size <= 1024 or values[k].size * y.size > 2**20:
        return ""
    same = [j for j, x in enumerate(values) if j != k and x.shape == values[k].shape and x.size <= 256][:4]
    others = {function.names[j]: (cotangent.reshape(-1) @ jacobian(j)).reshape(values[j].shape) for j in same}
    a = gradients(function, values, [cotangent])[0][k]
    return recognise(values[k], y, cotangent, a, jacobian(k), others)


def _slope(
    function: Differentiable, values: Sequence[np.ndarray], k: int, places: Any, size: float, method: Method
) -> Derivative:
    """Along the direction that has this size at these flat places of input k and is zero elsewhere."""
    u = np.zeros(values[k].size)
    u[places] = size
    return method(_line(function, values, k, u.reshape(values[k].shape)))


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
    return float(np.max(np.divide(a, whole, where=whole > 0, out=np.zeros_like(whole)), initial=0))
