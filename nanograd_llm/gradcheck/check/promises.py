"""What a call of an op promises besides right gradients and shapes.

float32 stays float32, inputs are not written to, and a fused op equals its composition.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nanograd_llm.autograd.modes import higher_order
from nanograd_llm.autograd.op import Op
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.backend.arrays import is_array
from nanograd_llm.errors import NanogradError
from nanograd_llm.gradcheck.cases import samples
from nanograd_llm.gradcheck.cases.samples import Case, differentiated
from nanograd_llm.gradcheck.check.function import grad
from nanograd_llm.gradcheck.check.rounding import DEPTH, EPS, nudged, widened

_FAR = 2.0**40  # units in the last place: where terms cancel, a shorter move does not change the rounding
_WIDENS = (
    "an array of float64 or integers, or a NumPy number, makes it so, such as {}, mask.sum(axis=-1) or np.sqrt(2): "
    "convert it, by .astype({}.dtype) or float(np.sqrt(2))"
)
_IN_FORWARD, _IN_RULE = _WIDENS.format("np.ones(3)", "x"), _WIDENS.format("ops.where(x > 0, 1.0, -1.0)", "dy")
ERRORS = (NanogradError, ValueError, TypeError, IndexError, ArithmeticError)  # what a wrong forward or rule may raise


def case_problems(op: Op, case: Case, seed: int = 0) -> list[str]:
    """What, apart from the numbers of its gradients, is wrong with a call of an op."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means over nothing: cases have axes of zero
        wide = [f"{replace(case, layouts=())}: {problem}" for problem in dtype_problems(op, case)]
        found = needs_problems(op, case, seed)
        if not case.region:  # in other regions rounding may be larger than these allow
            found += [p for of in (layout_problems, sharing_problems, equality_problems) for p in of(op, case, seed)]
    return [*wide, *(f"{case}: {problem}" for problem in found)]


def dtype_problems(op: Op, case: Case) -> list[str]:
    """Where float32 inputs become something else: in the result, in what the tape keeps, in what the rule returns, in a
    fused op's composition. A static argument `dtype` says what the result is."""
    case = case.astype(np.float32)
    inputs = _tensors(case, differentiated(op, case))
    y = op(*inputs, **case.static)
    result = np.dtype(case.static.get("dtype", np.float32))
    found = [("the result", y.dtype, result, _IN_FORWARD)]
    if y._node is not None:
        needs = tuple(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        gradients = op.pull_back(y._node, np.ones_like(y.data), needs, Sums())
        # in NumPy 1 whatever has no axes widens; the engine converts it, as it converts all gradients
        given = [(i, g) for i, g in enumerate(gradients) if g is not None and g.ndim]
        found += [(f"the gradient of {op.input_name(i)}", g.dtype, np.float32, _IN_RULE) for i, g in given]
        parts = [part for saved in y._node.saved for part in (saved if isinstance(saved, (list, tuple)) else [saved])]
        kept = [array for array in parts if is_array(array) and array.dtype.kind == "f"]
        found += [(f"an array {a.shape} that the tape keeps", a.dtype, np.float32, _IN_FORWARD) for a in kept]
    if op.equals is not None:
        with higher_order():
            found.append(("the result of its composition", op(*inputs, **case.static).dtype, result, _IN_FORWARD))
    return [
        f"{what} is {dtype} for float32 inputs" + f"; {remedy}" * (dtype == np.float64)
        for what, dtype, expected, remedy in found
        if dtype != expected
    ]


def layout_problems(op: Op, case: Case, seed: int = 0) -> list[str]:
    """Where the layout of the inputs and of the cotangent in memory changes a result or gradient, or is written to."""
    layouts = case.layouts or ("contiguous",) * len(case.inputs)
    inputs = [samples.laid_out(x, at) if isinstance(x, np.ndarray) else x for x, at in zip(case.inputs, layouts)]
    before = [x.copy(order="C") if isinstance(x, np.ndarray) else x for x in inputs]
    plain = replace(case, inputs=tuple(x.copy() if isinstance(x, np.ndarray) else x for x in before))
    expected = _outcome(op, op, plain, seed)
    try:
        found = _outcome(op, op, replace(case, inputs=tuple(inputs)), seed, layout="negative strides")
    except ERRORS as error:
        return [f"it does not run on inputs in this layout: {error}"]
    pairs = [(i, x, b) for i, (x, b) in enumerate(zip(inputs, before)) if isinstance(x, np.ndarray)]
    written = [i for i, x, b in pairs if not np.array_equal(x, b, equal_nan=x.dtype.kind == "f")]
    off = {what: _distance(found[what], b) for what, b in expected.items() if not _is_near(found[what], b)}
    problems = [f"input {i} was written to" for i in written]
    return problems + [f"the layout of the inputs changes {what} by {far:.1e}" for what, far in off.items()]


def needs_problems(op: Op, case: Case, seed: int = 0) -> list[str]:
    """Where a gradient changes when not all gradients are wanted."""
    if case.needs is None:
        return []
    wanted = [(i, name) for i, name in differentiated(op, case) if case.needs[i]]
    together = _outcome(op, op, case, seed)
    return [
        f"{what} differs when only {[name for _, name in wanted]} are wanted"
        for what, alone in _outcome(op, op, case, seed, wanted=wanted).items()
        if not np.array_equal(alone, together[what], equal_nan=True)
    ]


def sharing_problems(op: Op, case: Case, seed: int = 0) -> list[str]:
    """Where a Tensor given twice does not get the sum of what both places would get."""
    if case.same is None:
        return []
    first, second = case.same
    inputs = [*case.inputs]
    inputs[second] = inputs[first].copy()
    apart, names = _outcome(op, op, replace(case, inputs=tuple(inputs)), seed), dict(differentiated(op, case))
    expected = apart[f"the gradient of {names[first]}"] + apart[f"the gradient of {names[second]}"]
    inputs = case.placed()
    inputs[first] = inputs[second] = leaf = Tensor(case.inputs[first], requires_grad=True)
    y = op(*inputs, **case.static)
    found = grad(y, leaf, np.asarray(np.random.default_rng(seed).standard_normal(y.shape)))
    if _is_near(found, expected):
        return []
    return [f"one Tensor as inputs {first} and {second} gets a gradient that is {_distance(found, expected):.1e} off"]


def equality_problems(op: Op, case: Case, seed: int = 0) -> list[str]:
    """Where a fused op and the composition it equals differ by more than rounding, in the result or in a gradient."""
    if op.equals is None:
        return []
    both, rng = (op, op.equals), np.random.default_rng(seed)

    def apart(inputs: Sequence[Any], what: str) -> np.ndarray:
        near = replace(case, inputs=tuple(inputs))
        return _difference(*(_outcome(op, f, near, seed)[what] for f in both)).reshape(-1)

    fused, composed = (_outcome(op, f, case, seed) for f in both)
    result = "the result"
    if fused[result].shape != composed[result].shape:
        return [f"the result has shape {fused[result].shape}, that of its composition {composed[result].shape}"]
    # a gradient is by nature as large as y by the size of x; what is left where that cancels is rounding
    sizes = {what: _largest(b) for what, b in composed.items()}
    for i, name in differentiated(op, case):
        sizes[f"the gradient of {name}"] += sizes[result] / (_largest(case.inputs[i]) or 1)
    problems = []
    for what, size in sizes.items():
        off = _difference(fused[what], composed[what]).reshape(-1)
        again = functools.partial(lambda what: apart(nudged(case.inputs, rng, far=_FAR), what), what)
        if not (np.abs(off) <= widened(DEPTH * EPS * size, off, again)).all():
            far = np.abs(off).max()
            problems.append(f"{what} is {far:.1e} away from that of its composition, where its size is {size:.1e}")
    return problems


def _outcome(
    op: Op,
    f: Callable[..., Tensor],
    case: Case,
    seed: int,
    *,
    layout: str = "contiguous",
    wanted: Sequence[tuple[int, str]] | None = None,
) -> dict[str, np.ndarray]:
    """f's result and the gradient of each wanted input, for a random cotangent in this layout, by name."""
    wanted = differentiated(op, case) if wanted is None else wanted
    inputs = _tensors(case, wanted)
    y = f(*inputs, **case.static)
    cotangent = samples.laid_out(np.asarray(np.random.default_rng(seed).standard_normal(y.shape)), layout)
    gradients = grad(y, [inputs[i] for i, _ in wanted], cotangent)
    return {"the result": y.numpy()} | {f"the gradient of {name}": g for (_, name), g in zip(wanted, gradients)}


def _tensors(case: Case, wanted: Sequence[tuple[int, str]]) -> list[Any]:
    """The inputs of a case with those whose gradient is wanted as leaves."""
    inputs = case.placed()
    for i, _ in wanted:
        inputs[i] = Tensor(inputs[i], requires_grad=True)
    return inputs


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b; what is infinite or NaN in both does not differ, and a NaN in one is as far as can be."""
    with np.errstate(invalid="ignore"):
        difference = np.where((a == b) | np.isnan(a) & np.isnan(b), 0.0, a - b)
    return np.where(np.isnan(difference), np.inf, difference)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(_difference(a, b)).max(initial=0))


def _is_near(a: np.ndarray, b: np.ndarray) -> bool:
    """Is only rounding between them? That of a sum that cancels is as large as that of its terms: of ones."""
    return a.shape == b.shape and _distance(a, b) <= DEPTH * EPS * (1 + _largest(b))


def _largest(a: np.ndarray) -> float:
    """The largest size of a finite entry."""
    return float(np.abs(a[np.isfinite(a)]).max(initial=0))
