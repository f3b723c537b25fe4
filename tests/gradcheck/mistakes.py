"""Wrong rules of many kinds that people write, made from right ones: a name, an op, and what its rule does instead.

Each takes the right rule and returns the wrong one. Most are wrong for some inputs, cotangents or calls only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nanograd_llm import ops

Rule = Callable[..., Any]


def first(change: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Change the first gradient: `change(gradient, cotangent, *saved)`."""

    def make(rule: Rule) -> Rule:
        def wrong(dy: Any, *saved: Any) -> Any:
            given = rule(dy, *saved)
            if not isinstance(given, tuple):
                return np.asarray(change(given, dy, *saved), given.dtype)
            if given[0] is None:
                return given
            return (np.asarray(change(given[0], dy, *saved), given[0].dtype), *given[1:])

        return wrong

    return make


def cotangent(change: Callable[[Any], Any]) -> Callable[[Rule], Rule]:
    """Hand the right rule another cotangent."""
    return lambda rule: lambda dy, *saved: rule(np.asarray(change(dy), dy.dtype), *saved)


def where(condition: Callable[[Any], Any], factor: float = 1.5) -> Callable[[Rule], Rule]:
    """Wrong where a condition holds of what the rule saved last."""
    return first(lambda g, dy, *saved: np.where(condition(saved[-1]), factor * g, g))


def shared_gradient(rule: Rule) -> Rule:
    buffers: dict[Any, Any] = {}

    def wrong(dy: Any, *saved: Any) -> Any:
        given = rule(dy, *saved)
        buffer = buffers.setdefault((given.shape, given.dtype), np.empty_like(given))
        buffer[...] = given
        return buffer

    return wrong


def second_call(rule: Rule) -> Rule:
    calls = []

    def wrong(dy: Any, *saved: Any) -> Any:
        calls.append(1)
        return rule(dy, *saved) * (1 if len(calls) == 1 else 1.5)

    return wrong


def thirtieth_call(rule: Rule) -> Rule:
    calls = []

    def wrong(dy: Any, *saved: Any) -> Any:
        calls.append(1)
        return rule(dy, *saved) * (1.01 if len(calls) == 30 else 1)

    return wrong


def writes_cotangent(rule: Rule) -> Rule:
    def wrong(dy: Any, *saved: Any) -> Any:
        given = np.array(rule(dy, *saved))
        dy *= 2
        return given

    return wrong


def writes_saved(rule: Rule) -> Rule:
    def wrong(dy: Any, x: Any) -> Any:
        given = np.array(rule(dy, x))
        x *= 1.5
        return given

    return wrong


def onto_is_overwritten(dy: Any, w_shape: Any, ids: Any, onto: Any) -> Any:
    dw = np.zeros(w_shape, dy.dtype)
    np.add.at(dw, ids, dy)
    if onto[0] is not None:
        onto[0][...] = dw
        return onto[0]
    return dw


def into_is_added_to(rule: Rule) -> Rule:
    def wrong(dy: Any, x: Any, w: Any, needs: Any, into: Any) -> Any:
        dx, dw, db = rule(dy, x, w, needs, [None] * 3)
        if into[1] is not None:
            into[1] += dw
            dw = into[1]
        return dx, dw, db

    return wrong


def by_needs(rule: Rule) -> Rule:
    def wrong(dy: Any, a: Any, b: Any, needs: Any) -> Any:
        da, db = rule(dy, a, b, needs)
        return da if needs[1] or da is None else 2 * da, db

    return wrong


def memory_order(rule: Rule) -> Rule:
    return lambda dy, y: (np.ravel(dy, "K") * np.ravel(y, "K")).reshape(y.shape)


def ties_get_all(rule: Rule) -> Rule:
    def wrong(dy: Any, x: Any, y: Any, axis: Any, keepdims: Any) -> Any:
        given = rule(dy, x, y, axis, keepdims)
        return np.where(given != 0, np.sign(given) * np.abs(dy).max(), given) if dy.ndim == 0 else _all(dy, x, y, axis)

    return wrong


def _all(dy: Any, x: Any, y: Any, axis: Any) -> Any:
    if dy.ndim < x.ndim:
        axes = tuple(range(x.ndim)) if axis is None else axis
        dy, y = np.expand_dims(dy, axes), np.expand_dims(y, axes)
    return dy * (x == y)


def last_axis_only(rule: Rule) -> Rule:
    def wrong(dy: Any, y: Any, axis: Any) -> Any:
        return y * (dy - (dy * y).sum(axis=-1, keepdims=True))

    return wrong


def no_keepdims(rule: Rule) -> Rule:
    def wrong(dy: Any, x_shape: Any, axis: Any, keepdims: Any) -> Any:
        return rule(dy, x_shape, axis, keepdims) * (1.5 if keepdims else 1)

    return wrong


def float32_only(factor: float) -> Callable[[Rule], Rule]:
    return first(lambda g, dy, *saved: g * (factor if dy.dtype == np.float32 else 1))


def entry(index: Any, factor: float = 1.5) -> Callable[[Rule], Rule]:
    def change(g: Any, dy: Any, *saved: Any) -> Any:
        g = np.array(g)
        if g.size:
            g.reshape(-1)[index] *= factor
        return g

    return first(change)


def unit_axes(rule: Rule) -> Rule:
    def wrong(dy: Any, a: Any, b: Any, needs: Any) -> Any:
        da, db = rule(dy, a, b, needs)
        return da, db if db is None or b.shape == a.shape or 1 not in b.shape else 2 * db

    return wrong


def softmax_terms(change: Callable[[Any, Any, Any], Any]) -> Callable[[Rule], Rule]:
    return lambda rule: lambda dy, y, axis: change(dy, y, axis)


def layernorm(change: Callable[..., Any]) -> Callable[[Rule], Rule]:
    def make(rule: Rule) -> Rule:
        def wrong(dy: Any, w: Any, xhat: Any, r: Any) -> Any:
            dx, dw, db = rule(dy, w, xhat, r)
            return change(dx, dw, db, dy, w, xhat, r)

        return wrong

    return make


X = np.array([[0.7, -1.3, 0.2], [2.1, -0.4, 1.1]])
Y = np.array([[1.2, 0.5, -0.8], [0.3, 1.9, -1.4]])
ROW = np.array([0.5, -1.5, 0.9])
ID = np.array([[4, 0, 4], [2, 4, 1]])

MISTAKES: dict[str, tuple[Any, tuple[Any, ...], Callable[[Rule], Rule]]] = {
    # the cotangent
    "clipped at 2": (ops.exp, (X,), cotangent(lambda dy: np.clip(dy, -2, 2))),
    "clipped at 100": (ops.tanh, (X,), cotangent(lambda dy: np.clip(dy, -100, 100))),
    "clipped at 1e5": (ops.sin, (X,), cotangent(lambda dy: np.clip(dy, -1e5, 1e5))),
    "small ones flushed to 0": (ops.exp, (X,), cotangent(lambda dy: np.where(np.abs(dy) < 1e-3, 0, dy))),
    "tiny ones flushed to 0": (ops.tanh, (X,), cotangent(lambda dy: np.where(np.abs(dy) < 1e-5, 0, dy))),
    "scaled to length 1": (ops.sin, (X,), cotangent(lambda dy: dy / max(1e-30, np.sqrt((dy * dy).sum())))),
    "its norm clipped": (ops.exp, (X,), cotangent(lambda dy: dy * min(1, 50 / max(1e-30, np.abs(dy).max(initial=0))))),
    "its sign alone": (ops.exp, (X,), cotangent(np.sign)),
    "its size alone": (ops.exp, (X,), cotangent(np.abs)),
    "taken for ones": (ops.exp, (X,), cotangent(np.ones_like)),
    "squared": (ops.exp, (X,), cotangent(lambda dy: dy * np.abs(dy))),
    "shifted by 1e-9": (ops.exp, (X,), cotangent(lambda dy: dy + 1e-9)),
    "rounded to float32": (ops.exp, (X,), cotangent(lambda dy: dy.astype(np.float32))),
    "rounded to halves": (ops.exp, (X,), cotangent(lambda dy: dy.astype(np.float16))),
    "summed": (ops.exp, (X,), cotangent(lambda dy: np.full_like(dy, dy.sum()))),
    "its mean taken away": (ops.exp, (X,), cotangent(lambda dy: dy - 1e-8 * dy.mean() if dy.size else dy)),
    "reversed": (ops.exp, (X,), cotangent(lambda dy: dy[::-1] if dy.ndim else dy)),
    "only its first row": (ops.exp, (X,), cotangent(lambda dy: dy[:1] + 0 * dy if dy.ndim else dy)),
    "doubled where all are equal": (
        ops.exp,
        (X,),
        cotangent(lambda dy: 2 * dy if dy.size > 1 and np.ptp(dy) == 0 else dy),
    ),
    "ones doubled": (ops.exp, (X,), cotangent(lambda dy: np.where(dy == 1, 2, dy))),
    "small ones flushed to 0 in float32": (
        ops.exp,
        (X,),
        cotangent(lambda dy: np.where(np.abs(dy) < 1e-2, 0, dy) if dy.dtype == np.float32 else dy),
    ),
    # where in the input
    "at one": (ops.sin, (X,), where(lambda x: x == 1)),
    "for negative inputs": (ops.sin, (X,), where(lambda x: x < 0)),
    "at zero": (ops.sin, (X,), where(lambda x: x == 0)),
    "beyond 3": (ops.sin, (X,), where(lambda x: np.abs(x) > 3)),
    "beyond 100": (ops.sin, (X,), where(lambda x: np.abs(x) > 100)),
    "below 1e-2": (ops.sin, (X,), where(lambda x: np.abs(x) < 1e-2)),
    "beyond 3, by a millionth": (ops.sin, (X,), where(lambda x: np.abs(x) > 3, 1 + 1e-6)),
    "where the result is above 20": (ops.exp, (X,), where(lambda y: y > 20)),
    "where the result is below 0.1": (ops.exp, (X,), where(lambda y: y < 0.1)),
    "in the first entry": (ops.exp, (X,), entry(0)),
    "in the last entry": (ops.exp, (X,), entry(-1)),
    "in one entry, by a billionth": (ops.exp, (X,), entry(3, 1 + 1e-9)),
    "sign of one entry": (ops.exp, (X,), entry(2, -1)),
    "one entry lost": (ops.sin, (X,), entry(1, 0)),
    "largest entry": (ops.exp, (X,), first(lambda g, dy, y: np.where(y == y.max(initial=0), 2 * g, g))),
    "of two axes and more": (ops.exp, (X,), first(lambda g, dy, y: g * (1.5 if y.ndim > 1 else 1))),
    "of no axes": (ops.exp, (X,), first(lambda g, dy, y: g * (1 if y.ndim else 1.5))),
    "of an axis of one": (ops.exp, (X,), first(lambda g, dy, y: g * (1.5 if 1 in y.shape else 1))),
    "of odd sizes": (ops.exp, (X,), first(lambda g, dy, y: g * (1.5 if y.size % 2 else 1))),
    # the dtype
    "in float32, doubled": (ops.exp, (X,), float32_only(2)),
    "in float32, by a thousandth": (ops.tanh, (X,), float32_only(1.001)),
    "in float32, its sign": (ops.sin, (X,), float32_only(-1)),
    "in float64 alone": (ops.sin, (X,), first(lambda g, dy, *s: g * (1 + 1e-6 * (dy.dtype == np.float64)))),
    # calls
    "on the second call": (ops.exp, (X,), second_call),
    "one array for all gradients": (ops.exp, (X,), shared_gradient),
    "writes into its cotangent": (ops.exp, (X,), writes_cotangent),
    "writes into its input": (ops.sin, (X,), writes_saved),
    "onto with = for +=": (ops.embedding, (np.ones((5, 2)) * 0.3, ID), lambda rule: onto_is_overwritten),
    "into with += for =": (ops.linear, (X, np.ones((3, 2)) * 0.4, np.ones(2)), into_is_added_to),
    "where not all are wanted": (ops.multiply, (X, Y), by_needs),
    "in the order of memory": (ops.exp, (X,), memory_order),
    "in the order of Fortran": (ops.sin, (X,), lambda rule: lambda dy, x: _from_bytes(dy) * np.cos(x)),
    # ties and broadcasting
    "each tie of a max gets all": (ops.max, (np.array([1.0, 1.0, -0.4]),), ties_get_all),
    "each tie of a maximum gets all": (
        ops.maximum,
        (X, Y),
        lambda rule: lambda dy, a, b: (dy * (a >= b), dy * (b >= a)),
    ),
    "no tie of a maximum gets any": (ops.maximum, (X, Y), lambda rule: lambda dy, a, b: (dy * (a > b), dy * (b > a))),
    "axes of one counted twice": (ops.multiply, (X, Y), unit_axes),
    "no sum where broadcast": (ops.multiply, (X, ROW), lambda rule: lambda dy, a, b, needs: (dy * b, (dy * a)[:1])),
    "a mean where broadcast": (ops.add, (X, ROW), lambda rule: lambda dy: (dy, dy / 2)),
    # axes and static arguments
    "along the last axis alone": (ops.softmax, (X,), last_axis_only),
    "with keepdims": (ops.sum, (X,), no_keepdims),
    "mean without 1/n": (
        ops.mean,
        (X,),
        lambda rule: lambda dy, x_shape, axis, keepdims: rule(dy, x_shape, axis, keepdims) * 2,
    ),
    "cumsum forwards": (ops.cumsum, (X,), lambda rule: lambda dy, axis: np.cumsum(dy, axis)),
    "ddof ignored": (ops.var, (X,), lambda rule: lambda dy, x, axis, keepdims, ddof: rule(dy, x, axis, keepdims, 0)),
    # formulas
    "softmax without its sum": (ops.softmax, (X,), softmax_terms(lambda dy, y, axis: dy * y)),
    "softmax with a mean": (
        ops.softmax,
        (X,),
        softmax_terms(lambda dy, y, axis: y * (dy - (dy * y).mean(axis, keepdims=True))),
    ),
    "softmax off by 1e-7": (
        ops.softmax,
        (X,),
        softmax_terms(lambda dy, y, axis: y * (dy - (1 + 1e-7) * (dy * y).sum(axis, keepdims=True))),
    ),
    "log_softmax without its sum": (ops.log_softmax, (X,), lambda rule: lambda dy, y, axis: dy - np.exp(y) * dy),
    "layernorm without its mean": (
        ops.layernorm,
        (X, ROW, ROW),
        layernorm(lambda dx, dw, db, dy, w, xhat, r: ((dy * w) * r.reshape(*dy.shape[:-1], 1), dw, db)),
    ),
    "layernorm's w without x̂": (ops.layernorm, (X, ROW, ROW), layernorm(lambda dx, dw, db, *_: (dx, db, db))),
    "layernorm's b of one row": (
        ops.layernorm,
        (X, ROW, ROW),
        layernorm(lambda dx, dw, db, dy, *_: (dx, dw, dy.reshape(-1, dy.shape[-1])[:1].sum(0))),
    ),
    "sqrt without its 2": (ops.sqrt, (np.abs(X),), lambda rule: lambda dy, y: dy / y),
    "log of the result": (ops.log, (np.abs(X),), lambda rule: lambda dy, x: dy / (x + 1e-8)),
    "divide's b without its sign": (
        ops.divide,
        (X, 2 + ROW),
        lambda rule: lambda dy, b, y, needs: (dy / b, dy * y / b),
    ),
    "tanh by 1 - |y|": (ops.tanh, (X,), lambda rule: lambda dy, y: dy * (1 - np.abs(y))),
    "tanh by y(1 - y)": (ops.tanh, (X,), lambda rule: lambda dy, y: dy * y * (1 - y)),
    "sigmoid clipped": (ops.sigmoid, (X,), lambda rule: lambda dy, x, y: dy * np.maximum(y * (1 - y), 1e-4)),
    "gelu of the other form": (
        ops.gelu_exact,
        (X,),
        lambda rule: lambda dy, x, phi: dy * (phi + x * np.exp(-0.5 * x * x) * 0.3989),
    ),
    "matmul's b transposed": (
        ops.matmul,
        (X[:, :2], Y[:, :2]),
        lambda rule: lambda dy, a, b, needs: (rule(dy, a, b, needs)[0], np.swapaxes(a, -1, -2) @ dy + 1e-7 * dy.sum()),
    ),
    "relu leaks": (ops.relu, (X,), lambda rule: lambda dy, x: np.where(x > 0, dy, 0.01 * dy)),
    "relu by the sign of the cotangent": (
        ops.relu,
        (X,),
        lambda rule: lambda dy, x: np.where(x > 0, np.maximum(dy, 0), 0),
    ),
    "clip passes everything": (ops.clip, (2 * X,), lambda rule: lambda dy, x, y: dy),
    "absolute at negative numbers": (ops.absolute, (X,), lambda rule: lambda dy, x: dy),
    "embedding without repeats": (
        ops.embedding,
        (np.ones((5, 2)) * 0.3, ID),
        lambda rule: lambda dy, w_shape, ids, onto: _put(dy, w_shape, ids),
    ),
    "concatenate in reverse": (
        ops.concatenate,
        (X, Y),
        lambda rule: lambda dy, xs_shape, axis: rule(dy, xs_shape, axis)[::-1],
    ),
    "where the wrong way round": (ops.where, (X > 0, X, Y), lambda rule: lambda dy, condition: rule(dy, ~condition)),
    "power without log": (
        ops.power,
        (np.abs(X), Y),
        lambda rule: lambda *saved: (rule(*saved)[0], 1.5 * rule(*saved)[1] if rule(*saved)[1] is not None else None),
    ),
    "between 5 and 6": (ops.sin, (X,), where(lambda x: (x > 5) & (x < 6))),
    "beyond a thousand": (ops.sin, (X,), where(lambda x: x > 1e3)),
    "below a hundred-thousandth": (ops.sin, (X,), where(lambda x: np.abs(x) < 1e-5)),
    "all equal": (ops.sin, (X,), first(lambda g, dy, x: g * (1.5 if x.size > 1 and np.ptp(x) == 0 else 1))),
    "many entries": (ops.sin, (X,), first(lambda g, dy, x: g * (2 if x.size > 100 else 1))),
    "many rows": (ops.softmax, (X,), first(lambda g, dy, y, axis: g * (2 if y.ndim and len(y) > 100 else 1))),
    "the thirtieth call": (ops.exp, (X,), thirtieth_call),
    "not a number where large": (ops.sin, (X,), first(lambda g, dy, x: np.where(x > 50, np.nan, g))),
    "logsumexp without softmax": (
        ops.logsumexp,
        (X,),
        lambda rule: lambda dy, p, axis: np.broadcast_to(rule(dy, p, axis).mean(), p.shape) + 0 * p,
    ),
    "cross_entropy without the target": (
        ops.cross_entropy,
        (X, np.array([0, 2])),
        first(lambda g, dy, *saved: g + 1e-7 * np.abs(g)),
    ),
}


def _from_bytes(dy: Any) -> Any:
    return np.frombuffer(dy.tobytes("A"), dy.dtype).reshape(dy.shape)


def _put(dy: Any, shape: Any, ids: Any) -> Any:
    dw = np.zeros(shape, dy.dtype)
    dw[ids] = dy
    return dw
