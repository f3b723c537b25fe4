"""The primitive ops that compute: arithmetic, elementary functions, reductions and the matrix product.

Each rule follows its forward and uses ops and operators, so that it can itself be differentiated, to any order. A bar
is an adjoint: x̄ = ∂loss/∂x has the shape of x, and ȳ is the cotangent of the result. No rule undoes broadcasting: the
engine sums each gradient to its input's shape.

A rule gets the cotangent `dy` and whatever its other parameters name: an input (`a`, `x`), its shape (`x_shape`), the
output (`y`), a static argument (`axis`), or `needs`, a bool for each input: does it need a gradient? `domain` gives
the interval from which checks draw an input, `samples` the inputs that they use.

Where a derivative does not exist, the docstring says what the rule gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from nanograd_llm.autograd.op import op
from nanograd_llm.autograd.shapes import axes_of
from nanograd_llm.backend.arrays import as_array, beside, gpu_in_use, no_wider, xp
from nanograd_llm.errors import ShapeError
from nanograd_llm.ops.layout import array_like, broadcast_to, expand_dims, flip, squeeze, swapaxes


@op("y = a + b", "ā = ȳ;  b̄ = ȳ")
def add(a, b):
    """Elementwise sum.  a (*), b (*) -> y (*)"""
    return np.add(a, b)


@add.backward
def add_backward(dy):
    return dy, dy


@op("y = a - b", "ā = ȳ;  b̄ = -ȳ")
def subtract(a, b):
    """Elementwise difference.  a (*), b (*) -> y (*)"""
    return np.subtract(a, b)


@subtract.backward
def subtract_backward(dy, needs):
    return dy, -dy if needs[1] else None


@op("y = a*b", "ā = ȳ*b;  b̄ = ȳ*a")
def multiply(a, b):
    """Elementwise product.  a (*), b (*) -> y (*)"""
    return np.multiply(a, b)


@multiply.backward
def multiply_backward(dy, a, b, needs):
    return dy * b if needs[0] else None, dy * a if needs[1] else None


@op("y = a/b", "ā = ȳ/b;  b̄ = -ȳ*y/b", domain={"b": (0.5, 2.0)})
def divide(a, b):
    """Elementwise quotient.  a (*), b (*) -> y (*)"""
    return np.divide(a, b)


@divide.backward
def divide_backward(dy, b, y, needs):
    da = dy / b
    return da, -da * y if needs[1] else None


@op("y = -x", "x̄ = -ȳ")
def negative(x):
    """Elementwise negation.  x (*) -> y (*)"""
    return np.negative(x)


@negative.backward
def negative_backward(dy):
    return -dy


def _powers(draw: Any) -> Iterable[Any]:
    for a, b in [((3, 4), (3, 4)), ((2, 3, 1), (4,)), ((), (2,)), ((2, 3), ()), ((1, 4), (2, 1)), ((2, 0), (1, 1))]:
        yield (draw.within(0.5, 2.0, a), draw(*b)), {}
    yield (np.array([1.0, 2.0, 1.5]), draw(2, 3)), {}
    yield (draw.within(0.5, 2.0, (2, 4)), np.array([0.0, 1.0, 2.0, -1.0])), {}
    for whole in (2, -1, 3):  # a number gets no gradient: that of the exponent of a negative base is NaN
        yield (-draw.within(0.5, 2.0, (2, 3)), whole), {}


@op("y = a^b", "ā = ȳ*b*a^(b-1);  b̄ = ȳ*y*log a", domain={"a": (0.5, 2.0)}, samples=_powers)
def power(a, b):
    """Elementwise power; a negative base with a fractional exponent gives NaN, as in NumPy.

    a (*), b (*) -> y (*)

    ā is 0 where b = 0, also at a = 0.  b̄ is 0 at a = 0 (the limit for b > 0), NaN for a < 0.
    """
    return np.power(a, b)


@power.backward
def power_backward(dy, a, b, y, needs):
    da = db = None
    if needs[0]:
        da = dy * b * power(a, where((a == 0) & (b == 0), 1.0, b) - 1)
    if needs[1]:
        db = dy * where(a == 0, 0.0, y) * log(where(a == 0, 1.0, a))
    return da, db


@op("y = exp x", "x̄ = ȳ*y")
def exp(x):
    """Elementwise exponential.  x (*) -> y (*)"""
    return np.exp(x)


@exp.backward
def exp_backward(dy, y):
    return dy * y


@op("y = log x", "x̄ = ȳ/x", domain={"x": (0.5, 2.0)})
def log(x):
    """Elementwise natural logarithm; at 0 it is -inf with gradient inf.  x (*) -> y (*)"""
    return np.log(x)


@log.backward
def log_backward(dy, x):
    return dy / x


@op("y = log(1 + x)", "x̄ = ȳ/(1 + x)", domain={"x": (-0.5, 2.0)})
def log1p(x):
    """Elementwise log(1 + x), exact also where x is small.  x (*) -> y (*)"""
    return np.log1p(x)


@log1p.backward
def log1p_backward(dy, x):
    return dy / (1 + x)


@op("y = √x", "x̄ = ȳ/(2y)", domain={"x": (0.5, 2.0)})
def sqrt(x):
    """Elementwise square root; at 0 the gradient is inf.  x (*) -> y (*)"""
    return np.sqrt(x)


@sqrt.backward
def sqrt_backward(dy, y):
    return dy / (2 * y)


@op("y = sin x", "x̄ = ȳ*cos x")
def sin(x):
    """Elementwise sine of radians.  x (*) -> y (*)"""
    return np.sin(x)


@sin.backward
def sin_backward(dy, x):
    return dy * cos(x)


@op("y = cos x", "x̄ = -ȳ*sin x")
def cos(x):
    """Elementwise cosine of radians.  x (*) -> y (*)"""
    return np.cos(x)


@cos.backward
def cos_backward(dy, x):
    return -dy * sin(x)


@op("y = tanh x", "x̄ = ȳ*(1 - y²)")
def tanh(x):
    """Elementwise hyperbolic tangent.  x (*) -> y (*)"""
    return np.tanh(x)


@tanh.backward
def tanh_backward(dy, y):
    return dy * (1 - y * y)


@op("y = max(x, 0)", "x̄ = ȳ where x > 0, else 0")
def relu(x):
    """Elementwise x where it is positive, else 0; at 0 the gradient is 0.  x (*) -> y (*)"""
    return np.maximum(x, 0)


@relu.backward
def relu_backward(dy, x):
    return where(x > 0, dy, 0.0)


@op("y = 1/(1 + exp(-x))", "x̄ = ȳ*y*(1 - y)")
def sigmoid(x):
    """Elementwise logistic function.  x (*) -> y (*)"""
    size = absolute(x)
    if size.dtype.kind not in "fc":  # the negative of an unsigned integer is a large one
        size = size.astype(np.float64)
    e = np.exp(-size)  # at most 1
    return np.where(np.real(x) < 0, e, np.ones_like(e)) / (1 + e)


@sigmoid.backward
def sigmoid_backward(dy, x, y):
    return dy * y * sigmoid(-x)  # which is 1 - y, but accurate also where y is almost 1


@op("y = log(exp a + exp b)", "ā = ȳ*sigmoid(a - b);  b̄ = ȳ*sigmoid(b - a)")
def logaddexp(a, b):
    """Elementwise log(exp a + exp b), without overflow.  a (*), b (*) -> y (*)"""
    d = _difference(a, b)
    return np.where(np.real(d) > 0, a, b) + np.log1p(np.exp(-absolute(d)))


@logaddexp.backward
def logaddexp_backward(dy, a, b):
    d = _difference(a, b)
    return dy * sigmoid(d), dy * sigmoid(-d)


def _difference(a, b):
    """a - b, but 0 where both are the same infinity."""
    with np.errstate(invalid="ignore"):
        return where((a == b) & (absolute(a) == np.inf), 0.0, a - 1.0 * b)  # as floats: unsigned integers wrap around


@op("y = erf x = 2/√π ∫₀ˣ exp(-t²) dt", "x̄ = ȳ*2/√π*exp(-x²)", domain={"x": (-3.0, 3.0)})
def erf(x):
    """Elementwise error function, to the last few bits of its dtype.  x (*) -> y (*)

    Rational Chebyshev approximations on |x| ≤ 0.46875, ≤ 4 and beyond, with the coefficients of W. J. Cody,
    "Rational Chebyshev approximations for the error function", Mathematics of Computation 23 (1969), as in SPECFUN.
    In float32 it is tanh(x p(x²)), where p is a polynomial.
    """
    x = array_like(x)
    if x.dtype == np.float32:
        with np.errstate(over="ignore"):  # a square that is infinite is cut as any large one
            square = at_most(as_array(x * x), _ERF_SINGLE_FLAT)
            y = _polynomial(square, _ERF_SINGLE)
            y *= x
        return np.tanh(y, out=y)
    x = x if x.dtype.kind in "fc" else x.astype(float)  # the coefficients take x's dtype
    size = np.minimum(np.where(x.real < 0, -x, x), _ERF_FLAT)
    square = size * size
    near = size * _ratio(square, _ERF_NEAR)
    tail = np.exp(-square)
    middle = 1 - tail * _ratio(size, _ERF_MIDDLE)
    inverse = 1 / np.where(size.real > 1, size, 1)
    far = 1 - tail * inverse * (1 / math.sqrt(math.pi) - inverse * inverse * _ratio(inverse * inverse, _ERF_FAR))
    y = np.where(size.real <= 0.46875, near, np.where(size.real <= 4, middle, far))
    return np.where(x.real < 0, -y, y).astype(x.dtype)


@erf.backward
def erf_backward(dy, x):
    near = clip(x, low=-_ERF_FLAT, high=_ERF_FLAT)  # the square of a larger x would overflow
    return dy * (2 / math.sqrt(math.pi) * exp(-near * near))


_ERF_FLAT = 30  # here exp(-x²) is 0, and no power in the approximations overflows yet
_ERF_SINGLE_FLAT = 15.6  # the square from which erf is ±1 in float32


def at_most(x, limit):
    """min(x, limit) of x ≥ 0, written into x; faster than np.minimum where nothing is larger."""
    if xp(x) is np and x.max(initial=0) <= limit:  # on a GPU this would wait for the result
        return x
    return np.minimum(x, limit, out=x)  # also with a NaN


def _ratio(t, coefficients):
    numerator, denominator = (_polynomial(t, c) for c in coefficients)
    numerator /= denominator
    return numerator


def _polynomial(t, coefficients):
    first, *rest, last = np.array(coefficients, dtype=t.dtype)
    y = as_array(first * t)
    for c in rest:
        y += c
        y *= t
    y += last
    return y


# A fit of artanh(erf x)/x in x², by least squares with weights that make the relative error of erf even: at most 1e-7.
_ERF_SINGLE = (
    1.4183856e-07, -5.66821881e-06, 8.76356282e-05, -6.19779756e-04, -1.91836995e-04, 1.02769059e-01, 1.12837927e0,
)  # fmt: skip
# Numerator and denominator of each of Cody's approximations, from the highest power to the lowest.
_ERF_NEAR = (
    (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)  # fmt: skip
_ERF_MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
     3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip
_ERF_FAR = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
     1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
     2.33520497626869185e-3),
)  # fmt: skip


@op("y = |x|", "x̄ = ȳ*sign x")
def absolute(x):
    """Elementwise absolute value; at 0 the gradient is 0.  x (*) -> y (*)"""
    x = array_like(x)
    return np.where(x.real < 0, -x, x) if x.dtype.kind == "c" else np.abs(x)


@absolute.backward
def absolute_backward(dy, x):
    return where(x > 0, dy, where(x < 0, -dy, 0.0))


@op("y = max(a, b)", "ā = ȳ where a > b;  b̄ = ȳ where b > a;  half each where equal")
def maximum(a, b):
    """Elementwise maximum of two inputs; where they are equal, each gets half the gradient.  a (*), b (*) -> y (*)"""
    return np.maximum(a, b)


@maximum.backward
def maximum_backward(dy, a, b):
    share = _share(a > b, a == b, dy)
    return dy * share, dy * (1 - share)


@op("y = min(a, b)", "ā = ȳ where a < b;  b̄ = ȳ where b < a;  half each where equal")
def minimum(a, b):
    """Elementwise minimum of two inputs; where they are equal, each gets half the gradient.  a (*), b (*) -> y (*)"""
    return np.minimum(a, b)


@minimum.backward
def minimum_backward(dy, a, b):
    share = _share(a < b, a == b, dy)
    return dy * share, dy * (1 - share)


def _share(wins, ties, dy):
    return (as_array(wins) + 0.5 * as_array(ties)).astype(dy.dtype)


@op(
    "y = a where condition, else b",
    "ā = ȳ where condition, else 0;  b̄ = 0 where condition, else ȳ",
    constants=("condition",),
    samples=lambda draw: [
        ((draw(3, 4) > 0, draw(3, 4), draw(4)), {}),
        ((draw(2, 1) > 0, draw(), draw(2, 3)), {}),
        ((draw(3) > 0, draw(2, 3), draw(2, 3)), {}),
    ],
)
def where(condition, a, b):
    """Choose elementwise by a boolean array.  condition (*), a (*), b (*) -> y (*)

    A Python number takes the other's dtype; two of them make float64 or int64, as in NumPy: where(x > 0, y, -y), not
    y * where(x > 0, 1.0, -1.0), stays float32.
    """
    if gpu_in_use:
        condition = beside(condition, next((x for x in (condition, a, b) if xp(x) is not np), condition))
    return no_wider(np.where(condition, a, b), a, b)


@where.backward
def where_backward(dy, condition):
    return where(condition, dy, 0.0), where(condition, 0.0, dy)


def _limits(draw: Any) -> Iterable[Any]:
    for low, high in [(-1.0, 1.0), (None, 1.0), (-1.0, None)]:
        yield (draw(3, 4),), {"low": low, "high": high}
    yield (draw(),), {}
    yield (draw(2, 0),), {}


@op("y = min(max(x, low), high)", "x̄ = ȳ where low ≤ x ≤ high, else 0", samples=_limits)
def clip(x, *, low=-1.0, high=1.0):
    """Limit each element to [low, high]; None means no limit. On a limit the gradient is that of x.  x (*) -> y (*)"""
    return np.clip(x, low, high)


@clip.backward
def clip_backward(dy, x, y):
    return where(x == y, dy, 0.0)


def _over_axes(draw: Any) -> Iterable[Any]:
    for axis, keepdims in [(None, False), (None, True), (0, False), (-1, True), ((0, 2), False), ((1, -1), True)]:
        yield (draw(2, 3, 4),), {"axis": axis, "keepdims": keepdims}
    yield (draw(2, 3, 4),), {"axis": ()}
    yield (draw(2, 3, 4),), {"axis": -2}
    yield (draw(),), {}
    yield (draw(3, 0),), {"axis": 0}


@op("y = Σ x over axis", "x̄ = ȳ, repeated over axis", samples=_over_axes)
def sum(x, *, axis=None, keepdims=False):
    """Sum over one axis, several, or all (None).  x (*) -> y (* - axis)

    Raises ShapeError for an axis that is out of range, named twice or not an integer.
    """
    return np.sum(x, axis=axes_of(axis, np.ndim(x)), keepdims=keepdims)


@sum.backward
def sum_backward(dy, x_shape, axis, keepdims):
    return broadcast_to(_with_axes(dy, axis, keepdims, len(x_shape)), shape=x_shape)


@op("y = Σ x / n over axis", "x̄ = ȳ/n, repeated over axis", samples=lambda draw: list(_over_axes(draw))[:-1])
def mean(x, *, axis=None, keepdims=False):
    """Mean over one axis, several, or all (None).  x (*) -> y (* - axis)"""
    return np.mean(x, axis=axes_of(axis, np.ndim(x)), keepdims=keepdims)


@mean.backward
def mean_backward(dy, x_shape, axis, keepdims):
    n = math.prod(x_shape[a] for a in axes_of(axis, len(x_shape)))
    return broadcast_to(_with_axes(dy, axis, keepdims, len(x_shape)) / n, shape=x_shape)


def _with_infinity(draw: Any, infinity: float) -> list[Any]:
    x = draw(2, 3)
    x[0, 1:] = infinity
    return [*list(_over_axes(draw))[:-1], ((x,), {"axis": -1})]


@op(
    "y = max x over axis",
    "x̄ = ȳ at the largest x, shared evenly by ties",
    samples=lambda draw: _with_infinity(draw, -np.inf),
)
def max(x, *, axis=None, keepdims=False):
    """Maximum over one axis, several, or all (None).  x (*) -> y (* - axis)"""
    return np.max(x, axis=axes_of(axis, np.ndim(x)), keepdims=keepdims)


@max.backward
def max_backward(dy, x, y, axis, keepdims):
    dy, y = (_with_axes(z, axis, keepdims, x.ndim) for z in (dy, y))
    chosen = as_array(x == y)
    count = chosen.sum(axis=axes_of(axis, x.ndim), keepdims=True)
    return dy * (chosen / count).astype(dy.dtype)


@op(
    "y = min x over axis",
    "x̄ = ȳ at the smallest x, shared evenly by ties",
    samples=lambda draw: _with_infinity(draw, np.inf),
)
def min(x, *, axis=None, keepdims=False):
    """Minimum over one axis, several, or all (None).  x (*) -> y (* - axis)"""
    return np.min(x, axis=axes_of(axis, np.ndim(x)), keepdims=keepdims)


min.backward(max_backward)


@op(
    "y = Σ (x - ⟨x⟩)² / (n - ddof) over axis",
    "x̄ = 2ȳ*(x - ⟨x⟩)/(n - ddof)",
    samples=lambda draw: [
        (x, {**static, "ddof": ddof}) for (x, static), ddof in zip(_over_axes(draw), (0, 1, 0, 2, 1, 0, 0, 1))
    ],
)
def var(x, *, axis=None, keepdims=False, ddof=0):
    """Variance over one axis, several, or all (None); ddof=1 divides by n - 1.  x (*) -> y (* - axis)"""
    centred = x - np.mean(x, axis=axes_of(axis, np.ndim(x)), keepdims=True)
    y = np.sum(centred * centred, axis=axes_of(axis, np.ndim(x)), keepdims=keepdims)
    return y / y.dtype.type(_divisor(np.shape(x), axis, ddof))


@var.backward
def var_backward(dy, x, axis, keepdims, ddof):
    centred = x - mean(x, axis=axis, keepdims=True)
    return _with_axes(dy, axis, keepdims, x.ndim) * (centred * (2 / _divisor(x.shape, axis, ddof)))


def _divisor(shape, axis, ddof):
    n = math.prod(shape[a] for a in axes_of(axis, len(shape)))
    if n <= ddof:
        raise ShapeError(f"the variance of {n} numbers with ddof={ddof} is undefined; give at least {ddof + 1}")
    return n - ddof


@op(
    "yᵢ = x₀ + … + xᵢ along axis",
    "x̄ᵢ = ȳᵢ + ȳᵢ₊₁ + … along axis",
    samples=lambda draw: [((draw(2, 3, 4),), {"axis": axis}) for axis in (0, 1, -1)] + [((draw(0, 2),), {"axis": 0})],
)
def cumsum(x, *, axis):
    """Cumulative sum along an axis.  x (*) -> y (*)"""
    return np.cumsum(x, *axes_of((axis,), np.ndim(x)))


@cumsum.backward
def cumsum_backward(dy, axis):
    return flip(cumsum(flip(dy, axis), axis=axis), axis)


def _with_axes(z: Any, axis: Any, keepdims: bool, ndim: int) -> Any:
    """Insert the reduced axes again, with size one."""
    return z if keepdims else expand_dims(z, axis=axes_of(axis, ndim))


@op("y = a b", "ā = ȳ bᵀ;  b̄ = aᵀ ȳ")
def matmul(a, b):
    """Matrix product with NumPy's rules: leading axes broadcast, a vector counts as a row (left) or a column (right).

    a (..., n?, k), b (..., k, m?) -> y (..., n?, m?)
    """
    return np.matmul(a, b)


@matmul.backward
def matmul_backward(dy, a, b, needs):
    a_is_vector, b_is_vector = a.ndim == 1, b.ndim == 1
    if a_is_vector:
        a, dy = expand_dims(a, axis=0), expand_dims(dy, axis=-1 if b_is_vector else -2)
    if b_is_vector:
        b, dy = expand_dims(b, axis=-1), expand_dims(dy, axis=-1)
    da = matmul(dy, swapaxes(b, axis1=-1, axis2=-2)) if needs[0] else None
    db = matmul(swapaxes(a, axis1=-1, axis2=-2), dy) if needs[1] else None
    if a_is_vector and da is not None:
        da = squeeze(da, axis=-2)
    if b_is_vector and db is not None:
        db = squeeze(db, axis=-1)
    return da, db


@op(
    "y = Σ a*b*… over the letters that the output lacks",
    "x̄ᵢ = the same sum of ȳ and the other xs",
    samples=lambda draw: [
        ((draw(2, 3), draw(3, 4)), {"subscripts": "ij,jk->ik"}),
        ((draw(2, 3, 4), draw(2, 4)), {"subscripts": "bij,bj->ib"}),
        ((draw(2, 3, 2),), {"subscripts": "ijk->kj"}),
        ((draw(2, 3), draw(2), draw(4)), {"subscripts": "ij,i,k->ik"}),
        ((draw(3), draw(3)), {"subscripts": "i,i"}),
        ((draw(3, 3), draw(3, 3)), {"subscripts": "ij,jk->ik"}),
    ],
)
def contract(*xs, subscripts):
    """The op behind `einsum`, with `subscripts` as a static argument.  xs (?) -> y (?)"""
    _letters(subscripts, [np.shape(x) for x in xs])
    return np.einsum(subscripts, *xs, optimize=True)


@contract.backward
def contract_backward(dy, xs, xs_shape, subscripts, needs):
    inputs, output = _letters(subscripts, xs_shape)
    gradients = []
    for i, letters in enumerate(inputs):
        others = [j for j in range(len(inputs)) if j != i]
        known = "".join(c for c in letters if c in output or any(c in inputs[j] for j in others))
        terms = ",".join([output, *(inputs[j] for j in others)])
        gradient = contract(dy, *(xs[j] for j in others), subscripts=f"{terms}->{known}") if needs[i] else None
        if needs[i] and known != letters:  # a letter in no other term was summed: the gradient is constant along it
            lost = tuple(k for k, c in enumerate(letters) if c not in known)
            gradient = broadcast_to(expand_dims(gradient, axis=lost), shape=xs_shape[i])
        gradients.append(gradient)
    return tuple(gradients)


def _letters(subscripts, shapes):
    """The letters of each input and of the output. Raises ShapeError for subscripts that are not supported."""
    left, arrow, output = subscripts.replace(" ", "").partition("->")
    inputs = left.split(",")
    if not arrow:
        output = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    if not (left + output).replace(",", "a").isalpha() and left:
        raise ShapeError(f"einsum takes letters, such as 'ij,jk->ik', and no ellipsis; got {subscripts!r}")
    if any(len(set(letters)) < len(letters) for letters in inputs):
        raise ShapeError(f"einsum takes a letter at most once in each input; got {subscripts!r}")
    sizes = {}  # of each letter
    fits = len(inputs) == len(shapes)
    for letters, shape in zip(inputs, shapes):
        fits = fits and len(letters) == len(shape) and all(sizes.setdefault(c, n) == n for c, n in zip(letters, shape))
    if not fits:
        raise ShapeError(f"einsum {subscripts!r} does not fit the shapes {shapes}")
    return inputs, output
