"""Is a gradient right?  `gradcheck` compares it with the function's slopes, for every input and at every order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.backend.arrays import is_array
from nanograd_llm.backend.randomness import random_uses
from nanograd_llm.errors import GraphError, InPlaceError, NanogradError, SignatureError
from nanograd_llm.gradcheck.check import comparison, consistency, decision, kinks, patterns
from nanograd_llm.gradcheck.check.comparison import Method, Slopes, dense, length, line, rows, sizes
from nanograd_llm.gradcheck.check.culprit import culprits
from nanograd_llm.gradcheck.check.decision import DIGITS, Outcome
from nanograd_llm.gradcheck.check.derivatives import CONTRADICTED, DOUBTED, Derivative, derivative, differences
from nanograd_llm.gradcheck.check.function import Differentiable, Function, Gradient, Scaled, Varying, gradients, label
from nanograd_llm.gradcheck.check.progress import Progress
from nanograd_llm.gradcheck.check.report import NOTHING, PASSING, Culprit, Entry, Finding, GradientError, Kink, Report
from nanograd_llm.gradcheck.check.rounding import DEPTH, Precisions
from nanograd_llm.settings import counted, require_int, require_number, require_seed, told_apart

DIRECTIONS = 4
JACOBIAN = 4096  # entries that a Jacobian may have to be compared whole
_ENTRIES = 2**20  # each entry of an input is moved by itself while the Jacobian has no more entries than this
_CALLS = 8192  # and while that takes no more op calls than this
_BY_DIFFERENCES = 256  # entries of an input that are moved so where each takes dozens of evaluations
SECONDS = 60.0
_FAR = 1e10  # times its own size that an entry may be moved by complex step, which is then still tiny
_NO_WIDER = "wider numbers than float64 would tell, but it or its gradient does not run on them: try other inputs"
_CURVED = 1e-4  # the part by which slopes change, at least, where a function is called curved
_NEARER = (2, 3, 5, 9, 13)  # times that inputs are divided by four to find it curved, up to 1e9 times as large as there
_SHARE = 1.5  # comparing one entry takes this many times as long as computing its slope


def gradcheck(
    f: Callable[..., Any],
    *inputs: Any,
    order: int = 1,
    seed: int = 0,
    jacobian: int = JACOBIAN,
    explain: bool = True,
    seconds: float = SECONDS,
    unused: Sequence[str] = (),
    **arguments: Any,
) -> Report:
    """Check the engine's gradient of any function of Tensors: an op, a closure, a Module, a model's loss.

    f returns a Tensor, or a tuple, list or dict that holds Tensors: all floats among them are checked together.
    inputs: the point to check at. Float arrays and Tensors that require a gradient are checked, as float64 copies;
        everything else is handed on as it is, and so are the constants that an op declares. Leaves that f holds itself,
        such as a Module's parameters, are found and checked too; nothing else may use them meanwhile.
    order: check derivatives up to this order. The gradient's own gradient, by the inputs and by the cotangent, is
        checked against differences of the gradient, and the Hessian for its symmetry. What cannot be computed, as of a
        rule that uses `keep` or NumPy's functions on what it receives, gets the verdict "cannot tell".
    seed: of the random cotangents and directions; every input is compared for four of each.
    jacobian: a Jacobian (result by input) with no more entries than this is compared whole at first order. For a larger
        one, each entry of the gradient is compared for the four cotangents if that takes few op calls. Otherwise only
        the random directions are compared, and the report says what the whole would take. 0: directions only.
    explain: False stops at the first wrong gradient, without looking for its cause.
    seconds: single entries are compared only if the whole check is expected to take no longer than this. What cannot be
        left out, some fifty evaluations and a dozen backward passes for each input, may take longer.
    unused: names of parameters of a Module that its result is not meant to depend on. Any other that no gradient
        reaches is a problem, unless it is frozen.
    arguments: further inputs of f by name. Float arrays and Tensors are checked as above; Python floats, such as
        eps=1e-5, are handed on as they are.

    What is on a GPU is computed there, and compared on the CPU. A GPU has no numbers wider than float64, so there the
    check says "cannot tell" more often.

    There is no tolerance to choose, and none that depends on the scale of the inputs: see `comparison`. The
    report also names op calls that break their shape line, and rules that break what `consistency` lists. For a wrong
    gradient it says which known mistake it looks like, and which op calls on the tape have a wrong rule. A forward that
    writes into its input, or an input that holds NaN, is a problem that ends the check.

    Raises GraphError where f returns no Tensor, nothing requires a gradient, or f gives other numbers when called
    again; DtypeError for complex inputs or a result that is not float; ConfigError unless order is an integer of at
    least 1; ShapeError for an input that is a list of Tensors or of float arrays of different shapes.
    """
    if isinstance(f, np.ufunc) or getattr(f, "__module__", None) in ("numpy", "numpy.linalg"):
        name = f"{getattr(f, '__module__', None) or 'np'}.{label(f)}".replace("numpy", "np")
        raise SignatureError(
            f"{name} is a function of NumPy, which check_gradient checks: check_gradient({name}, its gradient, ...)"
        )
    packages = {base.__module__.partition(".")[0] for x in (f, *inputs) for base in type(x).__mro__}
    if other := packages & {"torch", "jax", "jaxlib"}:
        library = "PyTorch" if "torch" in other else "JAX"
        raise SignatureError(f"{label(f)} is a function of {library}: check_gradient takes it, with the same arguments")
    named = {name: x for name, x in arguments.items() if is_array(x) or isinstance(x, Tensor)}
    if arguments:
        f = functools.partial(f, **arguments)
    return examined(f, inputs, order, seed, jacobian, explain, seconds, unused, named)


def examined(
    f: Callable[..., Any],
    inputs: Sequence[Any],
    order: int,
    seed: int,
    jacobian: int,
    explain: bool,
    seconds: float,
    unused: Sequence[str] = (),
    named: Mapping[str, Any] = MappingProxyType({}),
    *,
    trace: bool = True,
) -> Report:
    """`gradcheck`.  named: inputs that f takes by name.  trace: follow a wrong gradient to the op calls at fault."""
    require_int("order", order, 1)
    require_int("jacobian", jacobian, 0)
    require_number("seconds", seconds, 0)
    require_seed(seed)
    with quiet():
        try:
            function = Function(f, inputs, unused, named)
        except InPlaceError as error:
            return Report(label(f), (), (str(error),))
        nan = [(name, np.argwhere(np.isnan(x))) for name, x in zip(function.names, function.values)]
        problems = [f"{name} holds NaN, first at {places[0].tolist()}" for name, places in nan if len(places)]
        if problems:
            return Report(function.label, (), tuple(problems))
        try:
            return _Check(function, order, seed, jacobian, explain, seconds).report(trace)
        except NanogradError as error:  # a rule need not run on shapes that its op is not declared for
            if not (broken := function.shape_problems):
                raise
            return Report(function.label, (), (*broken, f"with these shapes no more can be checked: {error}"))


def assert_gradients(f: Callable[..., Any], *inputs: Any, **arguments: Any) -> None:
    """`gradcheck`, for tests: raises GradientError, an AssertionError that shows the report, unless all is right."""
    report = gradcheck(f, *inputs, **arguments)
    if not report.passed:
        raise GradientError(report)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside this block NumPy does not warn: a check moves inputs to where functions overflow or are not defined. And
    what a line of code warns of is shown once: a check runs it hundreds of times."""
    show, shown = warnings.showwarning, set[tuple[Any, ...]]()

    def show_once(message: Any, category: Any, filename: str, lineno: int, *more: Any, **how: Any) -> None:
        if (place := (category, filename, lineno)) not in shown:
            shown.add(place)
            show(message, category, filename, lineno, *more, **how)

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.showwarning = show_once
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
        yield


def _compared(number: int) -> str:
    return f"{number} random direction{'s' * (number != 1)} compared"


@dataclasses.dataclass
class _Compared:
    """The gradient of input k of a function beside its slopes.

    smooth: which entries were compared.  first, method: a slope, and how others are computed.
    found: the outcome for directions.  shown: the one that shows a mistake.  words: what was compared.
    part: of the inputs at which it was compared instead, if any.
    beside: were entries left out by which the function has no finite slope?  reason: in words, where it has none.
    """

    function: Differentiable
    k: int
    cotangents: list[np.ndarray]
    order: int
    smooth: np.ndarray
    first: Derivative
    method: Method
    found: Outcome
    words: str = ""
    part: float = 0.0
    beside: bool = False
    reason: str = ""
    kinks: tuple[Kink, ...] = ()

    def __post_init__(self) -> None:
        self.shown = self.found


class _Check:
    """One run of gradcheck."""

    def __init__(self, function: Function, order: int, seed: int, jacobian: int, explain: bool, seconds: float):
        self.function, self.order, self.seed, self.jacobian, self.explain = function, order, seed, jacobian, explain
        self.rng, self.notes = np.random.default_rng(seed), list(function.notes)
        self.not_analytic: set[int] = set()  # inputs by which a complex step gives another slope than the function has
        self._is_grainy = functools.cache(functools.partial(comparison.is_grainy, function))
        self.ties: list[str] = []  # what is wrong with the gradients of ties, in words
        inputs = len(function.values)
        self.progress = Progress(order * inputs + (order - 1) * order // 2, seconds)

    def report(self, trace: bool) -> Report:
        function, problems = self.function, list(self.function.shape_problems)
        findings: list[Finding] = []
        culprits: list[Culprit] = []
        with function.borrowed():
            self.early, recorded = consistency.first_passes(function, self.rng, self.progress.seconds)
            epsilon, depth, self.calls, narrow = function.tape(recorded=recorded)
            self.first = recorded[0].numpy().copy()
            del recorded
            self.notes += narrow
            c = DEPTH + 16 * max(0, depth - 1)
            self.of_all = self.precisions = self._precisions(epsilon, c)
            self.of_each = [self._precisions_of(k, c) if narrow else self.of_all for k in range(len(function.values))]
            try:
                for finding in self._findings(problems):
                    findings.append(finding)
                    if finding.verdict == "wrong":
                        self._require_repeatable(function, 8)
                        if not self.explain:
                            break
                wrong = [finding.order for finding in findings if finding.verdict == "wrong"] + [1] * bool(self.ties)
                if wrong and self.explain and trace:
                    culprits = self._trace(min(wrong))
            finally:
                self.progress.end()
        if (took := self.progress.elapsed) > 2 * max(1.0, self.progress.seconds):
            cannot = "the evaluations that every check needs take longer"
            self.notes.append(f"the check took {took:.0f} s instead of {self.progress.seconds:g} s: {cannot}")
        if function.outside:
            raised = function.outside.partition("\n")[0]
            self.notes.append(f"points farther away were left out, where it is not defined: {raised:.200}")
        for finding in findings:
            if finding.name in function.cut and finding.order == 1 and finding.verdict != "wrong":
                problems.append(
                    f"no gradient reaches the parameter {finding.name}, and the result does not depend on it; if that "
                    f"is meant, freeze it or pass unused=[{finding.name!r}]"
                )
        if not any(value.size for value in function.values):
            problems.append(NOTHING)
        empty = [f"{name} has no entries" for name, x in zip(function.names, function.values) if not x.size]
        notes = dict.fromkeys([*self.notes, *empty, *self._region()])
        return Report(function.label, tuple(findings), tuple(problems), tuple(culprits), tuple(notes))

    def _precisions(self, epsilon: float, c: float, k: int | None = None) -> Precisions:
        return Precisions(epsilon, c, lambda dtype: self.function.tape(dtype, k)[0], self._is_grainy)

    def _precisions_of(self, k: int, c: float) -> Precisions:
        """Those of input k alone: a narrow gradient of another input leaves them as they are."""
        return self._precisions(self.function.tape(k=k)[0], c, k)

    def _region(self) -> list[str]:
        """Where the points lie that were checked: beyond, nothing is known."""
        parts = []
        for name, values in zip(self.function.names, self.function.values):
            if (x := values[np.isfinite(values)]).size:
                of = f" of {values.size:,}" * (x.size < values.size)
                low, high = told_apart(x.min(), x.max(), 4)
                among = f"between {low} and {high}" if x.min() < x.max() else f"that are all {low}"
                parts.append(f"{x.size:,}{of} values of {name} {among}" if values.size > 1 else f"{name} = {x[0]:.4g}")
        more = f", and {len(parts) - 4} more inputs" if len(parts) > 4 else ""
        return [f"checked at {', '.join(parts[:4])}{more}"] if parts else []

    def _trace(self, order: int) -> list[Culprit]:
        """The op calls on the tape that are wrong by themselves at this order; a note where none is."""
        if not self.progress.left:
            self.notes.append("there was no time to look for the op calls at fault: give seconds= for it")
            return []

        def check(f: Callable[..., Tensor], *inputs: Any) -> Report:
            seconds = max(1.0, self.progress.left) / 8
            return _Check(Function(f, inputs), order, self.seed, self.jacobian, True, seconds).report(trace=False)

        found, calls = culprits(lambda: self.function.record(self.function.values)[0], check)
        if not found:
            right = f"the rules of all {calls} op calls on the tape are right at these numbers"
            causes = "a .data, .detach(), .item() or float() on the way, a hook, or a result written into"
            self.notes.append(f"{right}; what is wrong lies between them: {causes}")
        return found

    def _require_repeatable(self, target: Differentiable, times: int, known: np.ndarray | None = None) -> np.ndarray:
        """The function's result. Raises GraphError where it is another one when it is computed again.

        known: the result, where it was computed before.
        """
        noise = random_uses()
        y = target.evaluate(target.values)
        is_noisy = random_uses() > noise
        is_steady = known is None or np.array_equal(y, known, equal_nan=True)
        times -= known is not None
        for _ in range(0 if is_noisy else times):
            is_steady = is_steady and np.array_equal(y, target.evaluate(target.values), equal_nan=True)
        if is_noisy or not is_steady:
            what = "" if isinstance(target, Function) else "the gradient of "
            cause = "give its dropout a seed, or call it inside nanograd_llm.backend.randomness.noise(seed)"
            if not is_noisy:
                cause = "seed its random numbers in each call, as by np.random.default_rng(0)"
            raise GraphError(
                f"{what}{self.function.label} gives other numbers when it is called again with the same inputs; {cause}"
            )
        return y

    def _findings(self, problems: list[str]) -> Iterator[Finding]:
        """Order by order, input by input; problems: what else is found on the way is added there."""
        target: Differentiable = self.function
        bent: list[np.ndarray | None] = []
        is_wrong = False
        for order in range(1, self.order + 1):
            try:
                if order > 1:
                    target.record(target.values)
            except NanogradError as error:
                if not (problems or is_wrong):  # found at an earlier order, which comes first
                    why = f"order {order} could not be computed: {error}; pass order={order - 1} to leave it out"
                    yield Finding(order, "all inputs", (), "cannot tell", math.nan, 0.0, "", 0.0, "", reason=why)
                return
            try:
                y = self._require_repeatable(target, 1, self.first if order == 1 else None)
            except NanogradError:
                if problems:  # found at an earlier order: the cause of this one
                    return
                raise
            cotangents = [self.early.cotangent] if order == 1 else []
            cotangents += [dense(self.rng, y.shape) for _ in range(DIRECTIONS - len(cotangents))]
            if order == 1:
                bent = [self._kinks(target, k) for k in range(len(target.values))]
                self.ties = kinks.ties(self.function, bent, self.early.cotangent.reshape(-1), self.of_all)
                problems += self.ties
                try:
                    how = self.of_all, self.rng, self._is_early, self.progress.seconds
                    problems += consistency.problems(self.function, self.early, *how)
                except Varying as varying:
                    problems.append(str(varying))
                    return
            elif order == 2:
                problems += consistency.asymmetry(self.function, self.early.cotangent, self.of_all, self.rng)
            bent += [np.zeros(0, int)] * (len(target.values) - len(bent))  # a gradient is linear in its cotangent
            for k, places in enumerate(bent):
                self.progress.next(target.names[k])
                self.precisions = self.of_each[k] if order == 1 else self.of_all
                found = places if order == 1 else np.zeros(0, int)  # at this order
                finding = self._check_input(target, k, places, found, y, cotangents, order)
                if places is not None and finding.method == "differences" and finding.verdict not in PASSING:
                    missed = self._missed_kinks(target, k, places)
                    if missed is None or missed.size:
                        bent[k] = None if missed is None else np.union1d(places, missed)
                        finding = self._check_input(target, k, bent[k], missed, y, cotangents, order)
                if order == 1 and finding.verdict == "wrong" and finding.method == "complex step":
                    x = target.values[k]  # rounding may have hidden that a complex step is not the function's slope
                    wide = self._in_wider_numbers(target, k, dense(self.rng, x.shape) * sizes(x))
                    if wide is not None and wide.why == CONTRADICTED:
                        self.not_analytic.add(k)
                        again = self._check_input(target, k, bent[k], found, y, cotangents, order)
                        if again.verdict in PASSING or again.relative_error <= again.tolerance:
                            finding = again  # else it is wrong by both methods
                is_wrong |= finding.verdict == "wrong"
                yield finding
            target = Gradient(target, cotangents[0])

    def _is_early(self) -> bool:
        """Is there time to test more of what holds of any gradient?  A note says where there is none."""
        if self.progress.left < max(1.0, self.progress.seconds) / 2:
            such_as = "that holds of any gradient, such as that it is linear in its cotangent: give seconds= for it"
            self.notes.append(f"in {self.progress.seconds:g} s not all was tested {such_as}")
            return False
        return True

    def _kinks(self, function: Differentiable, k: int) -> np.ndarray | None:
        """Flat places of the entries of input k by which the function bends; None where they cannot be told."""
        direction = dense(self.rng, function.values[k].shape) * sizes(function.values[k])
        return kinks.find(function, k, direction, self.of_each[k])

    def _missed_kinks(self, function: Differentiable, k: int, known: np.ndarray) -> np.ndarray | None:
        """Where differences contradict the gradient, look for more kinks, along several directions; None where there
        are too many.

        Two entries that are equal but for their last digits may stay so along one direction. And a gradient may bend
        where the function itself does not.
        """
        found: list[int] = []
        for _ in range(DIRECTIONS):
            direction = (dense(self.rng, function.values[k].shape) * sizes(function.values[k])).reshape(-1)
            direction[[*known, *found]] = 0
            places = kinks.find(function, k, direction.reshape(function.values[k].shape), self.precisions)
            if places is None or len(found) + len(places) > kinks.MOST:
                return None
            found += places.tolist()
        return np.array(sorted(found), int)

    def _method(self, function: Differentiable, k: int, smooth: np.ndarray) -> tuple[Derivative, Method]:
        """How slopes by input k are computed, and a first one: by complex step unless differences contradict it, or it
        is known that the function is not analytic.

        The differences are taken along the input itself, so that no entry leaves its neighbourhood. Where rounding is
        too large for them, they are taken in wider numbers.
        """
        x = function.values[k]
        own = dense(self.rng, x.shape) * sizes(x) * smooth.reshape(x.shape)
        known = comparison.noise(function, self.precisions) if isinstance(function, Gradient) else 0.0
        along = line(function, function.values, k, own)
        epsilon = self.precisions.given.epsilon
        if k in self.not_analytic and not isinstance(function, Gradient):
            return differences(along, epsilon=epsilon, noise=known, why=CONTRADICTED), differences
        first = derivative(along, epsilon=epsilon, noise=known)
        if first.why and not isinstance(function, Gradient):
            again = self._in_wider_numbers(function, k, own)
            first = again if again is not None and not again.why else first
        return first, differences if first.why else functools.partial(derivative, confirm=False)

    def _in_wider_numbers(self, function: Differentiable, k: int, direction: np.ndarray) -> Derivative | None:
        """The slope along this direction of input k; None where the function does not compute in wider numbers."""
        if (wide := self.precisions.wide) is None:
            return None
        values = [value.astype(wide.dtype) for value in function.values]
        along = line(function, values, k, direction.astype(wide.dtype))
        return derivative(along, epsilon=wide.epsilon, noise=comparison.noise(function, self.precisions))

    def _check_input(
        self,
        function: Differentiable,
        k: int,
        bent: np.ndarray | None,
        kinks_here: np.ndarray | None,
        y: np.ndarray,
        cotangents: list[np.ndarray],
        order: int,
    ) -> Finding:
        """bent: places of the kinks, also of those found at lower orders.  kinks_here: of those found at this one."""
        x = function.values[k]
        if bent is None or kinks_here is None:
            by = f"by more than {kinks.MOST} entries" if x.size > kinks.MOST else "where its entries move together"
            reason = f"the function bends here {by}, or so much that rounding hides how"
            of = (function.names[k], x.shape, "cannot tell", math.nan, 0.0, "differences", 0.0, "nothing")
            return Finding(order, *of, reason=reason)
        smooth = np.ones(x.size, bool)
        smooth[bent] = False
        begin = self.progress.elapsed
        first, method = self._method(function, k, smooth)
        # four directions take about as long as that did, and one direction a fourth of it
        number = 1 if self.progress.elapsed - begin > max(1.0, self.progress.share) else DIRECTIONS
        reach = sizes(x) if first.why else np.minimum(length(x), _FAR * sizes(x))
        directions = rows([dense(self.rng, x.shape) * reach for _ in range(number)]) * smooth
        hold, v = functools.partial(decision.hold, Slopes(function, k, method)), rows(cotangents[:number])
        found = hold(v, directions, self.precisions, self.rng)
        c = _Compared(function, k, cotangents, order, smooth, first, method, found)
        c.words, singly = self._extent(c, y.size, _compared(number))
        flows = self._from_infinity(c, y)
        if not c.found.finite or flows.any() or np.isnan(y).any():
            self._set_aside(c, y, v, directions, flows)
        elif smooth.any() and not c.found.wrong.any():
            is_lost = c.found.lost or bool(c.found.faint.any()) or c.found.digits < 1
            if is_lost or c.found.hidden:
                self._look_nearer(c, v, directions, is_lost)
        c.shown = c.found
        if singly and smooth.any() and c.found.clear and not c.part and not c.beside:
            each = v if singly == "cotangents" else dense(self.rng, (y.size,))
            is_exact = functools.partial(decision.is_exact, Slopes(function, k, method), v, directions, self.precisions)
            by_entry = hold(each, reach.reshape(-1) * smooth, self.precisions, self.rng, functools.cache(is_exact))
            c.shown = by_entry if by_entry.wrong.any() else c.found
            if by_entry.hidden or by_entry.faint.any():
                less = "so little that it may be rounding: mistakes as small as that are not seen"
                self.notes.append(f"some entries of the gradient of {function.names[k]} differ from the slopes {less}")
        c.kinks = tuple(kinks.look_at(function, k, int(place), v, self.precisions) for place in kinks_here)
        verdict, reason = self._verdict(c, y, is_bent=bool(bent.size))
        worst, pattern = None, ""
        if verdict == "wrong" and not c.shown.wrong.any():
            pattern = "at a kink it is neither of the two slopes nor a value between"
            worst_kink = max(c.kinks, key=lambda kink: kink.off)
            c.shown = dataclasses.replace(c.shown, off=worst_kink.off, tolerance=worst_kink.tolerance)
        elif verdict == "wrong" and self.explain:
            worst, pattern = self._explained(c, y)
        elif verdict in PASSING:
            self._note_digits(c)
            self._note_straight(c, dense(np.random.default_rng(self.seed), x.shape) * reach * smooth.reshape(x.shape))
        why = c.first.why if order == 1 and c.found.finite else ""  # beyond the first order it is always so
        off = c.shown.off if c.found.finite else math.nan  # then nothing could be compared
        shown = off, c.shown.tolerance, c.first.method, c.first.step, c.words, why, reason, worst, pattern
        return Finding(order, function.names[k], x.shape, verdict, *shown, c.kinks)

    def _set_aside(self, c: _Compared, y: np.ndarray, v: np.ndarray, directions: np.ndarray, flows: np.ndarray) -> None:
        """Compare without infinite results, and without the entries by which the function has no finite slope, or to
        which a gradient `flows` from infinite results."""
        c.reason, places = self._not_finite(c, y)
        rest = c.smooth & ~flows.astype(bool)
        rest[places] = False
        known = v * np.isfinite(y).reshape(-1)
        c.found = dataclasses.replace(c.found, finite=False)
        if rest.any() and known.any():
            first, method = self._method(c.function, c.k, rest)
            found = decision.hold(Slopes(c.function, c.k, method), known, directions * rest, self.precisions, self.rng)
            if found.finite:
                c.found, c.smooth, c.beside, c.first, c.method = found, rest, True, first, method
                c.words = _compared(len(v))

    def _look_nearer(self, c: _Compared, v: np.ndarray, directions: np.ndarray, is_lost: bool) -> None:
        """Compare nearer to zero where the gradient is hidden by rounding, unless the function is constant."""

        def method_at(scaled: Scaled) -> Method:
            return self._method(scaled, c.k, c.smooth)[1]

        found, function = c.found, c.function
        if decision.is_constant(function, c.k, self.precisions, self.rng):
            c.found = dataclasses.replace(found, off=0.0, faint=np.zeros_like(found.faint))
            is_small = "the result does not change with it, and the gradient is zero up to rounding"
            c.reason = "" if found.zero else is_small
            return
        nearer = decision.retreat(function, c.k, method_at, v, directions, self.precisions, self.rng)
        if nearer and (is_lost or nearer[1].clear or nearer[1].wrong.any()):
            c.part, c.found = nearer
            c.function = Scaled(function, c.part)
            where = f"at {c.part:g} times the inputs, as at the inputs themselves rounding hides it"
            c.words = f"{_compared(len(v))} {where}"
        elif is_lost and not found.zero and found.digits >= 1:
            c.found = dataclasses.replace(found, faint=np.ones_like(found.faint))

    def _verdict(self, c: _Compared, y: np.ndarray, *, is_bent: bool) -> tuple[str, str]:
        """The verdict, and its reason in words where the numbers do not say it."""
        if not c.found.finite:
            return "cannot tell", c.reason
        if (c.shown.wrong | c.shown.blunt).any() and not c.part and self._moves_in_steps(c):
            return "cannot tell", kinks.IN_STEPS
        if c.shown.wrong.any():
            if c.first.why == DOUBTED and self.precisions.wide is None:
                return "cannot tell", f"{c.first.why}; {_NO_WIDER}"
            return "wrong", "" if c.shown.off > 0 else "the gradient is not finite where the function's slope is finite"
        if c.beside:
            return "cannot tell", c.reason + ("; the other entries are right" if c.found.clear else "")
        if c.found.blunt.any():
            return "cannot tell", self._hidden(c.shown)
        if c.found.faint.any():
            what = "the gradient is smaller than what rounding leaves of larger numbers"
            return "cannot tell", f"{what}, here and nearer to zero"
        if any(kink.jump for kink in c.kinks):
            return "cannot tell", "the function jumps here, or bends again and again"
        if not all(kink.allowed for kink in c.kinks):
            return "wrong", ""
        return "at a kink" if is_bent else "right", c.reason

    def _moves_in_steps(self, c: _Compared) -> bool:
        x = c.function.values[c.k]
        return kinks.moves_in_steps(c.function, c.k, dense(self.rng, x.shape) * sizes(x), self.precisions)

    def _hidden(self, found: Outcome) -> str:
        """How much of a gradient can be compared, in words, where that is not enough to call it right."""
        if (part := max(found.off, found.tolerance, 1e-15)) < 0.1:
            digits = counted(max(1, round(-np.log10(part))), "digit")
            known = f"gradient and slope agree to about {digits}; the rest may be rounding inside the function"
        else:
            known = "no digit of the slope is known: rounding is as large, or a pole is near, as at a singular matrix"
        return known + (f"; {_NO_WIDER}" if self.precisions.wide is None else "")

    def _explained(self, c: _Compared, y: np.ndarray) -> tuple[Entry | None, str]:
        """The worst entry of a wrong gradient, and the mistake that it looks like."""
        cotangent = np.where(np.isfinite(y), c.cotangents[int(np.argmax(c.found.wrong.any(axis=1)))], 0.0)
        how = cotangent, c.method, np.flatnonzero(c.smooth), self.progress.left / 4
        known = self.precisions.given.epsilon, c.shown.tolerance
        return patterns.explained(c.function, c.k, y, *how, *known, must=y.size * c.smooth.size <= self.jacobian)

    def _note_digits(self, c: _Compared) -> None:
        """Note that few digits of a right gradient are known."""
        name, digits = c.function.names[c.k], f"{c.found.digits:.0f}"
        if c.part or c.found.digits >= DIGITS or c.order > 1 or c.reason:  # which says that it is zero
            return
        if self.precisions.pair is None:
            hides = "rounding inside the function hides smaller mistakes"
            self.notes.append(f"the gradient of {name} is right to about {digits} digits; {hides}")
        else:
            leaves = f"rounding inside the function leaves about {digits} digits of the gradient of {name}"
            self.notes.append(f"{leaves} at these numbers; the rule is right")

    def _note_straight(self, c: _Compared, u: np.ndarray) -> None:
        """Note where the function is straight around the inputs, though not nearer to zero, as where it saturates."""
        values, k, given = c.function.values, c.k, self.precisions.given

        def change(part: float, method: Method) -> tuple[float, float]:
            """By which part of them do the slopes along u change, at least and at most, where the input is a little
            larger?"""
            points = ([*values[:k], part * t * values[k], *values[k + 1 :]] for t in (1.0, 1.125))
            one, other = (method(line(c.function, point, k, part * u)) for point in points)
            changes, errors = np.abs(one.value - other.value), one.error + other.error
            size = float(np.max(np.abs(one.value), initial=0)) or 1.0
            return float(np.max(changes - errors, initial=0)) / size, float(np.max(changes + errors, initial=0)) / size

        if c.order > 1 or c.part or not values[k].any() or not self.progress.left:
            return
        least, most = change(1.0, c.method)
        if least > given.c * given.epsilon or most > _CURVED:
            return
        # here a complex step may do, and be wrong nearer to zero: exp(-|x|) is analytic where it is nothing
        nearer = functools.partial(differences, enough=_CURVED / 100, epsilon=given.epsilon)
        if any(change(4.0**-step, nearer)[0] > _CURVED for step in _NEARER):
            self.notes.append(
                f"at these values of {c.function.names[k]} the function is flat or straight, and nearer to zero it is "
                "not: terms of the gradient that vanish here were not compared; check smaller values too"
            )

    @staticmethod
    def _not_finite(c: _Compared, y: np.ndarray) -> tuple[str, list[int]]:
        """Where the function's own numbers are not finite, in words; the entries by which it has no finite slope."""
        x, k, where = c.function.values[c.k], c.k, " along a direction"

        def slope(place: int) -> np.ndarray:
            return comparison.slope(c.function, c.function.values, k, place, length(x), c.method).value[np.isfinite(y)]

        places = [place for place in range(min(x.size, _BY_DIFFERENCES)) if not np.isfinite(slope(place)).all()]
        if len(bad := np.argwhere(~np.isfinite(y))):
            where = f": its result is {y[tuple(bad[0])]}" + (f" at {bad[0].tolist()}" if y.ndim else "")
        elif places:
            at = f" at {list(kinks.index_of(places[0], x.shape))}" if x.ndim else ""
            where = f": it has no finite slope{at}, where {c.function.names[k]} is {x.flat[places[0]]:.6g}"
        return f"the function's own numbers are not finite{where}", places

    @staticmethod
    def _from_infinity(c: _Compared, y: np.ndarray) -> np.ndarray:
        """The gradient that comes from results that are not finite, flat. To differences these are flat, as they are
        where they are masked; but where they overflowed, they rise as the rule says."""
        if np.isfinite(y).all():
            return np.zeros(c.smooth.size)
        return gradients(c.function, c.function.values, [c.cotangents[0] * ~np.isfinite(y)])[0][c.k].reshape(-1)

    def _extent(self, c: _Compared, results: int, directions: str) -> tuple[str, str]:
        """What is compared, in words, and whether entries are moved singly: for each result, for the cotangents."""
        entries, by_differences = c.function.values[c.k].size, bool(c.first.why)
        size = results * entries
        if c.order > 1 or not size or not self.jacobian:  # beyond the first order an evaluation is a backward pass
            return directions, ""
        begin = self.progress.elapsed
        comparison.slope(c.function, c.function.values, c.k, 0, length(c.function.values[c.k]), c.method)
        takes = _SHARE * entries * (self.progress.elapsed - begin)
        may_be_moved = not (by_differences and entries > _BY_DIFFERENCES)
        words, singly, needs, time = "", "", "take smaller inputs", ""
        if size <= self.jacobian and may_be_moved:
            words, singly = "each entry compared", "results"
        elif size <= _ENTRIES and entries * self.calls <= _CALLS and not by_differences:
            words, singly = f"each entry compared for {DIRECTIONS} random ȳ", "cotangents"
        elif size <= _ENTRIES and may_be_moved:
            needs = f"give jacobian={size}"
        if singly and takes > self.progress.share:
            singly, needs, time = "", f"give seconds={self.progress.needed(takes)}", f", about {takes:.0f} s"
        if not singly:
            all_take = f"all {entries:,} entries would take {entries:,} evaluations{time}"
            words = f"{directions}; {all_take}: {needs} for them"
        return words, singly
