"""What a call of an op must keep apart from right gradients: its shape line, float32, its inputs, what it equals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nanograd_llm.autograd.modes import higher_order
from nanograd_llm.autograd.op import Op
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tensor import Tensor, grad
from nanograd_llm.errors import NanogradError
from nanograd_llm.gradcheck.cases import samples
from nanograd_llm.gradcheck.cases.samples import Case, differentiated
from nanograd_llm.gradcheck.check.comparison import DEPTH
from nanograd_llm.gradcheck.check.derivatives import EPS

ERRORS = (NanogradError, ValueError, TypeError, IndexError, ArithmeticError)  # what a wrong forward or rule may raise
_REPEATS = 12
_NEARBY = 1e-4  # as a part of x: far enough for other roundings, near enough for a mistake to be much the same


def case_problems(op: Op, case: Case, seed: int = 0) -> list[str]:
    """What, apart from the numbers of its gradients, is wrong with a call of an op."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means over nothing: cases have axes of zero
        found = [shape_problem(op, case), *dtype_problems(op, case), *layout_problems(op, case, seed=seed)]
        found += [*needs_problems(op, case, seed=seed), *sharing_problems(op, case, seed=seed)]
        if op.equals is not None:
            found += equality_problems(op, case, seed=seed)
    return [f"{case}: {problem}" for problem in found if problem]


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
        gradients = op.pull_back(y._node, np.ones(y.shape, y.dtype), needs, Sums())
        # in NumPy 1 whatever has no axes widens; the engine converts it, as it converts all gradients
        given = [(i, g) for i, g in enumerate(gradients) if g is not None and g.ndim]
        found += [(f"the gradient of input {i}", g.dtype, np.float32) for i, g in given]
        kept = [array for array in _arrays_in(y._node.saved) if array.dtype.kind == "f"]
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
    """Where a fused op and the composition it equals part, in the result or in a gradient, by more than rounding.

    What exceeds the rounding to expect must also be more than what it is by rounding, seen at points nearby.
    """
    assert op.equals is not None
    fused, composed = (_result_and_gradients(op, f, case, seed) for f in (op, op.equals))
    if fused[0].shape != composed[0].shape:
        return [f"the result has shape {fused[0].shape}, that of its composition {composed[0].shape}"]
    places = differentiated(op, case)
    names = ["the result", *(f"the gradient of {name}" for _, name in places)]
    # a gradient is by nature as large as y by the size of x; what is left where that cancels is rounding
    result = _largest(composed[0])
    sizes = [
        result,
        *(_largest(g) + result / (_largest(case.inputs[i]) or 1) for g, (i, _) in zip(composed[1:], places)),
    ]
    distances = [_distance(a, b) for a, b in zip(fused, composed)]
    bounds = [DEPTH * EPS * size for size in sizes]
    if any(not distance <= bound for distance, bound in zip(distances, bounds)):
        bounds = [bound + noise for bound, noise in zip(bounds, _equality_noise(op, case, seed, fused, composed))]
    return [
        f"{what} is {distance:.1e} away from that of its composition, where its size is {size:.1e}"
        for what, distance, size, bound in zip(names, distances, sizes, bounds)
        if not distance <= bound
    ]


def _equality_noise(
    op: Op, case: Case, seed: int, fused: Sequence[np.ndarray], composed: Sequence[np.ndarray]
) -> list[float]:
    """How far rounding moves what is between a fused op and its composition, in the result and in each gradient."""
    rng = np.random.default_rng(seed)
    apart = [[a - b] for a, b in zip(fused, composed)]
    places = [i for i, _ in differentiated(op, case)]
    assert op.equals is not None
    for _ in range(_REPEATS):
        inputs = list(case.inputs)
        for i in places:
            inputs[i] = np.asarray(inputs[i] * (1 + _NEARBY * rng.uniform(-1, 1, inputs[i].shape)))  # no scalar
        near = replace(case, inputs=tuple(inputs))
        both = [_result_and_gradients(op, f, near, seed) for f in (op, op.equals)]
        for seen, a, b in zip(apart, *both):
            seen.append(a - b)
    with np.errstate(invalid="ignore"):
        return [4 * float(np.nan_to_num(np.ptp(seen, axis=0)).max(initial=0)) for seen in apart]


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
