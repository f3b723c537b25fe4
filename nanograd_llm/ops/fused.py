"""Layer functions derived by hand for speed; `equals` names the composition of primitives that each one equals.

Forwards compute in place in one new array where possible, and keep for their rule what is expensive to recompute.
Rules receive plain arrays and use plain NumPy; under `higher_order()` the composition runs instead.

⟨·⟩ is the mean over the last axis; N rows, C channels, V vocabulary
"""

from __future__ import annotations

import math

import numpy as np

from nanograd_llm.autograd.op import keep, op
from nanograd_llm.autograd.shapes import axes_of, require_row_of
from nanograd_llm.backend.arrays import as_array, beside, constant, no_wider, xp
from nanograd_llm.backend.kernels import on_gpu
from nanograd_llm.backend.threads import share_out
from nanograd_llm.ops import composed
from nanograd_llm.ops.composed import GELU_FLAT, check_loss_settings, dropout_mask, flat_targets, shift
from nanograd_llm.ops.layout import array_like
from nanograd_llm.ops.primitive import at_most, erf, sigmoid
from nanograd_llm.settings import IGNORE_INDEX, require_number

_CACHED = 2**15  # numbers processed at a time: what one line writes is still in the cache for the next


def _log_total(shifted, e, axis):
    """log Σ e, where e = exp(shifted) and its largest term is 1: log(1 + the others), as in `composed`."""
    largest = shifted.real == 0
    count = np.sum(largest, axis=axes_of(axis, largest.ndim), keepdims=True)
    rest = np.where(largest, e - 1, e).sum(axis=axis, keepdims=True) + (count - 1).astype(e.real.dtype)
    return np.log1p(np.where(count == 0, np.zeros_like(rest), rest))


def _over_last_or_first(draw):
    for axis in (-1, 0, 1, None, (0, 1)):
        yield (draw(3, 4),), {"axis": axis}
    yield (draw(1, 1),), {}
    masked = draw(2, 3)
    masked[0, 1:] = -np.inf
    yield (masked,), {}


@op("y = exp x / Σ exp x over axis", "x̄ = y*(ȳ - Σ ȳ*y)", equals=composed.softmax, samples=_over_last_or_first)
def softmax(x, *, axis=-1):
    """Exponentials divided by their sum; -inf gives 0, and a row of only -inf gives zeros with zero gradient.

    x (*) -> y (*)

    On paper: exp x is 1, 2, 3, in sum 6. With ȳ = (6, 0, 0), Σ ȳ*y is 1, so x̄ = y*(6-1, 0-1, 0-1).

    >>> import nanograd_llm as ng
    >>> x = ng.Tensor(np.log([1, 2, 3]), requires_grad=True)
    >>> y = softmax(x)
    >>> (6 * y.data).round(9)
    array([1., 2., 3.])
    >>> y.backward([6.0, 0.0, 0.0])
    >>> (6 * x.grad).round(9)
    array([ 5., -2., -3.])
    """
    y = as_array(np.exp(x - shift(x, axis)), x)
    total = y.sum(axis=axis, keepdims=True)
    y /= np.where(total == 0, np.ones_like(total), total)
    return y


@softmax.backward
def softmax_backward(dy, y, axis):
    dx = dy * y
    dx -= y * dx.sum(axis=axis, keepdims=True)
    return dx


@op(
    "y = x - log Σ exp x over axis",
    "x̄ = ȳ - softmax(x)*Σ ȳ",
    equals=composed.log_softmax,
    samples=lambda draw: list(_over_last_or_first(draw))[:-1],
)
def log_softmax(x, *, axis=-1):
    """Logarithm of softmax, accurate also where the softmax underflows.  x (*) -> y (*)"""
    y = x - shift(x, axis)
    return y - _log_total(y, np.exp(y), axis)


@log_softmax.backward
def log_softmax_backward(dy, y, axis):
    return dy - np.exp(y) * dy.sum(axis=axis, keepdims=True)


@op("y = log Σ exp x over axis", "x̄ = ȳ*softmax(x)", equals=composed.logsumexp, samples=_over_last_or_first)
def logsumexp(x, *, axis=-1):
    """Logarithm of a sum of exponentials; a row of only -inf gives -inf with zero gradient.

    x (*) -> y (* - axis)
    """
    s = shift(x, axis)
    shifted = x - s
    p = np.exp(shifted)
    y = _log_total(shifted, p, axis) + s
    total = p.sum(axis=axis, keepdims=True)
    empty = total == 0
    y = np.where(empty, np.full_like(y, -np.inf), y)
    return keep(no_wider(np.squeeze(y, axis), x), p=p / np.where(empty, np.ones_like(total), total))


@logsumexp.backward
def logsumexp_backward(dy, p, axis):
    return p * np.expand_dims(dy, axes_of(axis, p.ndim))


def _rows(x):
    """Merge the leading axes: (..., C) -> (N, C)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _row_means(x):
    """⟨x⟩ of x (N, C), 0 if C = 0; a product with a vector is the fastest way to sum.  (N, C) -> (N)"""
    C = x.shape[-1]
    return x @ constant(C, 1 / x.dtype.type(C or 1), x.dtype, xp(x))


def _row_mean_products(a, b):
    """⟨a*b⟩ of a, b (N, C), 0 if C = 0.  2 × (N, C) -> (N)"""
    return np.einsum("nc,nc->n", a, b) / a.dtype.type(a.shape[-1] or 1)


def _column_sums(x):
    return xp(x).ones(len(x), dtype=x.dtype) @ x


def _add_into(y, b):
    """y + b, written into y unless b has a wider dtype."""
    return np.add(y, b, out=y if b.dtype == y.dtype or np.result_type(y, b) == y.dtype else None)


def _norm_samples(draw):
    for lead, C in [((2, 3), 4), ((5,), 7), ((), 3), ((0,), 2)]:
        yield (draw(*lead, C), draw(C), draw(C)), {"eps": 0.1} if C == 7 else {}


@op(
    "y = x̂*w + b,  x̂ = (x - ⟨x⟩)*r,  r = 1/√(⟨(x - ⟨x⟩)²⟩ + ε)",
    "x̄ = r*(g - ⟨g⟩ - x̂*⟨g*x̂⟩), g = ȳ*w;  w̄ = Σ ȳ*x̂;  b̄ = Σ ȳ",
    equals=composed.layernorm,
    samples=_norm_samples,
)
def layernorm(x, w, b, *, eps=1e-5):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift (Ba, Kiros and Hinton 2016).

    x (..., C), w (C), b (C) -> y (..., C)

    On paper: 0, 0, 4, 4 has mean 2 and variance 4, so r = 1/2 and x̂ = (-1, -1, 1, 1). With ȳ = (3, 1, 1, 1),
    g = ȳ*w = (9, 1, 5, 1), ⟨g⟩ = 4 and ⟨g*x̂⟩ = -1, so x̄ = (9-4-1, 1-4-1, 5-4+1, 1-4+1)/2.

    >>> import nanograd_llm as ng
    >>> x, w, b = (ng.Tensor(a, requires_grad=True) for a in ([0.0, 0, 4, 4], [3.0, 1, 5, 1], [10.0, 10, 10, 10]))
    >>> y = layernorm(x, w, b, eps=0)
    >>> y.data.tolist()
    [7.0, 9.0, 15.0, 11.0]
    >>> y.backward([3.0, 1.0, 1.0, 1.0])
    >>> x.grad.tolist(), w.grad.tolist()
    ([2.0, -2.0, 1.0, -1.0], [-3.0, -1.0, 1.0, 1.0])
    """
    require_row_of(x, w=w, b=b)
    y, xhat, r = _normalise(_rows(x), w, b, eps)
    return keep(y.reshape(x.shape), xhat=xhat, r=r)


FAR = 32  # standard deviations of a row from 0 to its mean: the rounding of such a mean is seen beside the deviations


@on_gpu
def _normalise(rows, w, b, eps):
    y, xhat = np.empty_like(rows, dtype=np.result_type(rows, w, b), order="C"), np.empty_like(rows, order="C")
    r = np.empty_like(rows, shape=(len(rows), 1))
    pieces = _row_pieces(rows)

    def work(numbers):
        for piece in pieces[numbers]:
            _normalise_piece(rows[piece], w, b, eps, y[piece], xhat[piece], r[piece])

    share_out(work, len(pieces), 4 * rows.size, rows)
    return y, xhat, r


def _normalise_piece(rows, w, b, eps, y, xhat, r):
    mean, on_cpu = _row_means(rows), isinstance(rows, np.ndarray)
    np.subtract(rows, mean[:, None], out=xhat)
    if not on_cpu:  # all rows, as a choice of rows would wait for the GPU
        xhat -= _row_means(xhat)[:, None]
    deviation = _deviations(xhat, eps)
    limit = FAR * float(deviation.real.min()) if on_cpu else 0.0
    if on_cpu and not np.vdot(mean, mean).real <= limit * limit:  # else no row is far
        far = np.flatnonzero(np.abs(mean) > FAR * deviation.real)
        xhat[far] = centred = xhat[far] - _row_means(xhat[far])[:, None]
        deviation[far] = _deviations(centred, eps)
    np.divide(1, deviation, out=r[:, 0])
    xhat *= r
    np.multiply(xhat, w, out=y)
    y += b


def _deviations(centred, eps):
    """√(⟨x²⟩ + ε) of x (N, C).  (N, C) -> (N)"""
    variance = _row_mean_products(centred, centred)
    variance += variance.real.dtype.type(eps)
    return np.sqrt(variance, out=variance)


@layernorm.backward
def layernorm_backward(dy, w, xhat, r):
    dx, dw, db = _normalise_backward(_rows(dy), w, xhat, r)
    return dx.reshape(dy.shape), dw, db


@on_gpu
def _normalise_backward(rows, w, xhat, r):
    dx = np.empty_like(rows, dtype=np.result_type(rows, w), order="C")
    pieces = _row_pieces(rows)
    sums = np.empty_like(rows, shape=(2, len(pieces), len(w)))  # of w̄ and b̄, for each piece
    share = w / w.dtype.type(len(w) or 1)

    def work(numbers):
        for i in range(numbers.start, numbers.stop):
            piece = pieces[i]
            _normalise_piece_backward(rows[piece], w, share, xhat[piece], r[piece], dx[piece], sums[:, i])

    share_out(work, len(pieces), 4 * rows.size, rows)
    return (dx, *(sums[:, 0] if len(pieces) == 1 else sums.sum(axis=1)))


def _normalise_piece_backward(rows, w, share, xhat, r, dx, sums):
    product = rows * xhat
    sums[0], sums[1] = _column_sums(product), _column_sums(rows)
    mean, mean_product = (rows @ share)[:, None], (product @ share)[:, None]  # ⟨g⟩ and ⟨g*x̂⟩
    np.multiply(xhat, mean_product, out=product)
    product += mean
    np.multiply(rows, w, out=dx)
    dx -= product
    dx *= r


@op(
    "y = x̂*w,  x̂ = x*r,  r = 1/√(⟨x²⟩ + ε)",
    "x̄ = r*(g - x̂*⟨g*x̂⟩), g = ȳ*w;  w̄ = Σ ȳ*x̂",
    equals=composed.rmsnorm,
    samples=lambda draw: [((x, w), static) for (x, w, _), static in _norm_samples(draw)],
)
def rmsnorm(x, w, *, eps=1e-5):
    """Divide the last axis by its root mean square, then multiply by w (Zhang and Sennrich 2019).

    x (..., C), w (C) -> y (..., C)
    """
    require_row_of(x, w=w)
    rows = _rows(x)
    r = 1 / _deviations(rows, eps)[:, None]
    xhat = rows * r
    return keep((xhat * w).reshape(x.shape), xhat=xhat, r=r)


@rmsnorm.backward
def rmsnorm_backward(dy, w, xhat, r):
    rows = _rows(dy)
    g = rows * w
    g -= xhat * _row_mean_products(g, xhat)[:, None]
    g *= r
    return g.reshape(dy.shape), np.einsum("nc,nc->c", rows, xhat)


GELU_SLOPE = math.sqrt(2 / math.pi)
GELU_CUBE = 0.044715


@op(
    "y = x*h,  h = (1 + tanh u)/2,  u = √(2/π)*(x + 0.044715 x³)",
    "x̄ = ȳ*(h + 2 x*h*(1 - h)*u'),  u' = √(2/π)*(1 + 3*0.044715 x²)",
    equals=composed.gelu,
)
def gelu(x, *, needs):
    """GELU in the tanh form that GPT-2 uses (Hendrycks and Gimpel 2016).  x (*) -> y (*)

    The slope is computed together with the result, so that the tape saves one array instead of two.
    """
    return _in_pieces(_gelu_into, array_like(x), needs)


def _in_pieces(into, x, needs):
    """What into(x, y, slope) writes, a piece at a time that stays in the cache, shared out over threads."""
    y = np.empty_like(x, order="C")
    slope = np.empty_like(y) if any(needs) else None
    flat_x, flat_y, flat_slope = x.reshape(-1), y.reshape(-1), None if slope is None else slope.reshape(-1)

    def work(part):
        with np.errstate(over="ignore"):  # of this thread
            for piece in _slices(part.start, part.stop, _at_once(x, _CACHED)):
                into(flat_x[piece], flat_y[piece], None if flat_slope is None else flat_slope[piece])

    share_out(work, x.size, 4 * x.size, x)
    return keep(y, slope=slope)


@on_gpu
def _gelu_into(x, y, slope=None):
    square = at_most(np.square(x), GELU_FLAT**2)  # beyond it h is 0 or 1 for any square
    h = square * (GELU_SLOPE * GELU_CUBE)
    h += GELU_SLOPE
    h *= x
    np.tanh(h, out=h)
    h *= 0.5
    h += 0.5
    np.multiply(x, h, out=y)
    if slope is not None:
        square *= 6 * GELU_SLOPE * GELU_CUBE
        square += 2 * GELU_SLOPE
        np.subtract(1, h, out=slope)
        slope *= y  # before the square, so that a large x is multiplied by 0 and not by infinity
        slope *= square
        slope += h


@gelu.backward
def gelu_backward(dy, slope):
    return dy * slope


@op("y = x*Φ(x),  Φ(x) = (1 + erf(x/√2))/2", "x̄ = ȳ*(Φ(x) + x*exp(-x²/2)/√(2π))", equals=composed.gelu_exact)
def gelu_exact(x, *, needs):
    """GELU in its exact form, x times the normal cumulative distribution function.  x (*) -> y (*)

    The slope is computed together with the result, as in `gelu`.
    """
    return _in_pieces(_gelu_exact_into, array_like(x), needs)


def _gelu_exact_into(x, y, slope=None):
    phi = erf(np.multiply(x, math.sqrt(0.5), out=y))
    phi += 1
    phi *= 0.5
    np.multiply(x, phi, out=y)
    if slope is not None:
        near = np.clip(x, -GELU_FLAT, GELU_FLAT)  # the square of a larger x would overflow
        near *= near
        near *= -0.5
        np.exp(near, out=slope)
        slope *= x
        slope /= math.sqrt(2 * math.pi)
        slope += phi


@gelu_exact.backward
def gelu_exact_backward(dy, slope):
    return dy * slope


@op("y = x*s,  s = 1/(1 + exp(-x))", "x̄ = ȳ*s*(1 + x*(1 - s))", equals=composed.silu)
def silu(x):
    """x * sigmoid(x), also called swish (Elfwing, Uchibe and Doya 2017).  x (*) -> y (*)"""
    x = array_like(x)
    s = sigmoid(x)
    return keep(x * s, s=s)


@silu.backward
def silu_backward(dy, x, s):
    return dy * s * (1 + x * (1 - s))


@op("y = x w + b", "x̄ = ȳ wᵀ;  w̄ = xᵀ ȳ;  b̄ = Σ ȳ", equals=composed.linear)
def linear(x, w, b=None):
    """An affine map of the last axis; b is optional.  x (..., n), w (n, m), b (m) -> y (..., m)"""
    y = _rows(x) @ w  # one matrix product for all leading axes
    if b is not None:
        require_row_of(w, b=b)
        y = _add_into(y, b)
    return y.reshape(*x.shape[:-1], w.shape[1])


@linear.backward
def linear_backward(dy, x, w, needs, into):
    rows = _rows(dy)
    dx = (rows @ w.T).reshape(x.shape) if needs[0] else None
    dw = np.matmul(_rows(x).T, rows, out=into[1]) if needs[1] else None
    db = _column_sums(rows) if needs[2] else None
    return dx, dw, db


@op(
    "y = x*mask,  mask = 0 with probability rate, else 1/(1 - rate)",
    "x̄ = ȳ*mask",
    equals=composed.dropout,
    samples=lambda draw: [((draw(4, 5),), {"rate": rate, "seed": (7,)}) for rate in (0.0, 0.3, 0.9)],
)
def dropout(x, *, rate=0.1, seed=(0,)):
    """Set random elements to zero and scale up the others (Srivastava et al. 2014).

    x (*) -> y (*)

    The same seed gives the same mask, also the default; `nn.Dropout` draws another one in each call. Raises ConfigError
    unless 0 ≤ rate < 1.
    """
    mask = dropout_mask(x.shape, x, rate, seed)
    return keep(x * mask, mask=mask)


@dropout.backward
def dropout_backward(dy, mask):
    return dy * mask


def _target_samples(draw):
    targets = np.array([[1, 0, 3], [IGNORE_INDEX, 4, 1]])
    for label_smoothing in (0.0, 0.1):
        yield (draw(2, 3, 5), targets), {"label_smoothing": label_smoothing}
    yield (draw(2, 3, 5), targets), {"reduction": "sum", "weight": np.array([0.5, 1.0, 2.0, 1.5, 0.7])}
    yield (draw(2, 3, 5), targets), {"reduction": "none"}
    yield (draw(1, 5), np.array([2])), {}
    yield (draw(2, 4), np.array([2, 0])), {"ignore_index": 0}
    masked = draw(3, 4)
    masked[0, 1:3] = masked[1] = -np.inf
    yield (masked, np.array([3, IGNORE_INDEX, 0])), {}


@op(
    "y = Σ -log softmax(logits)[target] / n over the n targets that count",
    "l̄ = ȳ/n*(softmax(logits) - onehot(target)), 0 where ignored",
    equals=composed.cross_entropy,
    constants=("targets",),
    samples=_target_samples,
)
def cross_entropy(logits, targets, *, ignore_index=IGNORE_INDEX, label_smoothing=0.0, reduction="mean", weight=None):
    """Mean negative log-likelihood, in nats, of the targets that are not `ignore_index`.

    logits (..., V), targets (...) -> y (?)

    reduction: "mean", "sum", or "none" for the loss of each target, (...), 0 where ignored.
    weight: the weight of each class, (V); the mean is weighted by it.
    label_smoothing: the share of each target's probability that is spread evenly over the classes (Szegedy et al.
        2016).

    A row of only -inf has loss inf and zero gradient. Raises IndexRangeError for a target outside 0..V-1, ShapeError
    for a mean where no target counts, ConfigError unless 0 ≤ label_smoothing < 1, or with label_smoothing and weight.

    On paper: probabilities (1, 2, 3)/6 and (1, 1, 1)/3; the targets have 3/6 and 1/3, so the loss is the mean of log 2
    and log 3. The gradient is half of (1, 2, 3-6)/6 and half of (1-3, 1, 1)/3.

    >>> import nanograd_llm as ng
    >>> logits = ng.Tensor(np.log([[1, 2, 3], [1, 1, 1]]), requires_grad=True)
    >>> loss = cross_entropy(logits, [2, 0])
    >>> round(loss.item() / math.log(6), 9)
    0.5
    >>> loss.backward()
    >>> (12 * logits.grad).round(9).tolist()
    [[1.0, 2.0, -3.0], [-4.0, 2.0, 2.0]]
    """
    check_loss_settings(label_smoothing, reduction, weight)
    chosen, weights, divisor = flat_targets(targets, logits.shape, ignore_index, reduction, weight)
    chosen, weights = beside(chosen, logits), beside(weights, logits)
    p, losses, row_weights = _rows_losses(_rows(logits), chosen, weights, label_smoothing)
    y = losses.reshape(logits.shape[:-1]) if reduction == "none" else losses.sum()
    return keep(y / p.dtype.type(divisor), p=p, chosen=chosen, row_weights=row_weights, divisor=divisor)


@cross_entropy.backward
def cross_entropy_backward(dy, logits_shape, p, chosen, row_weights, divisor, label_smoothing):
    dlogits = p.copy()
    _subtract_targets(dlogits, chosen, label_smoothing)
    dlogits *= (row_weights * (np.reshape(dy, -1) / divisor))[:, None].astype(p.dtype)
    return dlogits.reshape(logits_shape)


def _rows_losses(logits, chosen, weights, label_smoothing, out=None):
    """The softmax of each row, the weighted loss of each row, and the weight of its gradient.

    out: the array to write the softmax into; may be the logits.
    """
    targets = xp(logits).arange(len(chosen)), chosen
    p = np.subtract(logits, shift(logits, -1), out=out)
    target_logits, mean = p[targets], p.mean(axis=-1) if label_smoothing else 0
    np.exp(p, out=p)
    e = p[targets]
    p[targets] = 0
    others = p.sum(axis=-1)
    p[targets] = e
    total = others + e
    empty = total == 0  # a row of only -inf
    p /= np.where(empty, np.ones_like(total), total)[:, None]
    # log total, accurate also where the target's own term is 1, the largest, and the others are tiny
    normaliser = np.log1p(np.where(empty, np.zeros_like(total), others + (e - 1)))
    loss = normaliser - target_logits
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (normaliser - mean)
    weights = weights.astype(loss.real.dtype)
    return p, np.where(weights != 0, loss, np.zeros_like(loss)) * weights, weights * ~empty


def _subtract_targets(p, chosen, label_smoothing):
    """Subtract the target distribution from the softmax, in place."""
    if label_smoothing:
        p -= label_smoothing / p.shape[-1]
    p[xp(p).arange(len(chosen)), chosen] -= 1 - label_smoothing


_BLOCK_NUMBERS = 2**24  # logits held at a time, unless all are kept: 64 MB in float32,
_GPU_BLOCK_NUMBERS = 2**27  # and 512 MB on a GPU, where large products are faster


@op(
    "y = cross_entropy(x wᵀ, targets)",
    "x̄ = l̄ w;  w̄ = l̄ᵀ x,  l̄ = ȳ/n*(softmax(x wᵀ) - onehot(target)), 0 where ignored",
    equals=composed.linear_cross_entropy,
    constants=("targets",),
    samples=lambda draw: [
        ((draw(*targets.shape, 3), draw(logits.shape[-1], 3), targets), static)
        for (logits, targets), static in _target_samples(draw)
        if "reduction" not in static
    ],
)
def linear_cross_entropy(x, w, targets, *, ignore_index=IGNORE_INDEX, label_smoothing=0.0, needs):
    """cross_entropy(x wᵀ, targets), computed in blocks of rows, so that the logits never exist all at once.

    x (..., C), w (V, C), targets (...) -> y ()

    The gradients are linear in ȳ, so the forward computes them for ȳ = 1, while it has a block's softmax. It keeps the
    smaller one of l̄ and w̄: with more rows than channels that is w̄. Raises as cross_entropy does; a row of only -inf
    has loss inf and zero gradient.
    """
    require_number("label_smoothing", label_smoothing, 0, 1, below=True)
    chosen, weights, count = flat_targets(targets, (*x.shape[:-1], len(w)), ignore_index)
    chosen, weights = beside(chosen, x), beside(weights, x)
    rows, arrays = _rows(x), xp(x)
    loss = arrays.zeros((), dtype=np.result_type(x, w))
    dx = np.empty_like(rows) if needs[0] else None
    keeps_dlogits, dw = needs[1] and len(rows) <= rows.shape[1], None
    held = _BLOCK_NUMBERS if arrays is np else _GPU_BLOCK_NUMBERS
    blocks = 1 if keeps_dlogits else max(1, math.ceil(len(rows) * len(w) / held))  # BLAS is fastest with many rows
    size = math.ceil(len(rows) / blocks)
    space = arrays.empty((size, len(w)), loss.dtype)
    for block in _slices(0, len(rows), size):
        # (rows, C)·(C, V) -> (rows, V)
        logits = np.matmul(rows[block], w.T, out=space[: block.stop - block.start])
        losses = _logits_to_gradient(logits, chosen[block], weights[block], count, label_smoothing)
        loss = loss + as_array(sum(losses)).astype(loss.dtype)
        if dx is not None:
            np.matmul(logits, w, out=dx[block])
        if needs[1] and not keeps_dlogits:
            dw = logits.T @ rows[block] if dw is None else _add_product(dw, logits, rows[block])
    dx = None if dx is None else dx.reshape(x.shape)
    return keep(loss / loss.dtype.type(count), dx=dx, dw=dw, dlogits=space if keeps_dlogits else None)


@linear_cross_entropy.backward
def linear_cross_entropy_backward(dy, x, dx, dw, dlogits, needs, into):
    # the forward has computed dx, dw and dlogits for ȳ = 1, and they may be large: no copy is made where ȳ is 1; a GPU
    # multiplies in less time than it takes to ask
    is_one = xp(dy) is np and dy == 1
    dx, dw = (kept if kept is None or is_one else dy * kept for kept in (dx, dw))
    if dlogits is not None and needs[1]:
        dw = np.matmul(dlogits.T, _rows(x) * dy, out=into[1])
    return dx if needs[0] else None, dw if needs[1] else None


@on_gpu
def _logits_to_gradient(logits, chosen, weights, count, label_smoothing):
    """Replace logits by their gradient of cross_entropy, in place, a few rows at a time; return the sums of losses."""

    def work(part):
        losses = []
        for piece in _slices(part.start, part.stop, _at_once(logits, max(1, 4 * _CACHED // logits.shape[1]))):
            p = logits[piece]
            _, loss, row_weights = _rows_losses(p, chosen[piece], weights[piece], label_smoothing, out=p)
            _subtract_targets(p, chosen[piece], label_smoothing)
            p *= (row_weights / count)[:, None].astype(p.dtype)
            losses.append(loss.sum())
        return losses

    return [loss for losses in share_out(work, len(logits), 4 * logits.size, logits) for loss in losses]


def _add_product(dw, dlogits, rows):
    """dw += dlogitsᵀ rows, a slice of the vocabulary at a time, so that no second array of the size of dw is needed."""

    def work(part):
        for piece in _slices(part.start, part.stop, _at_once(dw, 1024)):
            dw[piece] += dlogits[:, piece].T @ rows

    share_out(work, len(dw), dw.size, dw)
    return dw


def _row_pieces(rows):
    """Slices of rows that stay in the cache while several lines work on them."""
    return _slices(0, len(rows), _at_once(rows, 2 * _CACHED // max(1, rows.shape[1])))


def _at_once(x, cached):
    """How many rows or numbers of x one line computes: what fits the cache, or all of them on a GPU."""
    return cached if xp(x) is np else len(x.reshape(-1))


def _slices(start, stop, size):
    """Consecutive slices of at most this size, from start to stop."""
    return [slice(i, min(i + size, stop)) for i in range(start, stop, max(1, size))]
