"""A wrong gradient is told by what it looks like."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from nanograd_llm import ops
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.gradcheck import gradcheck


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def layernorm_by_n_minus_1(dy, w, xhat, r):
    n = xhat.shape[-1]
    xhat, r = xhat.reshape(dy.shape), r.reshape(*dy.shape[:-1], 1)
    g = dy * w
    dx = r * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).sum(-1, keepdims=True) / (n - 1))
    return dx, (dy * xhat).reshape(-1, n).sum(0), dy.reshape(-1, n).sum(0)


def rows_put(dy, w_shape, ids, onto):
    dw = np.zeros(w_shape)
    dw[ids] = dy
    return dw


def all_but_the_last_row(dy, w_shape, ids, onto):
    dw = np.zeros(w_shape)
    np.add.at(dw, ids.reshape(-1)[:-1], dy.reshape(-1, w_shape[1])[:-1])
    return dw


# op, the wrong rule, inputs, the input it makes wrong, words of the report
WRONG = {
    "a factor": ("exp", lambda dy, y: 2 * dy * y, (normal(2, 3),), "x", "off by the factor 2"),
    "a tiny factor": ("exp", lambda dy, y: dy * y * (1 + 1e-9), (normal(2, 3),), "x", "off by the factor 1 + 1.0e-09"),
    "a sign": ("subtract", lambda dy, needs: (dy, dy), (normal(2, 3), normal(2, 3)), "b", "the sign is wrong"),
    "a mean for a sum": (
        "mean",
        lambda dy, x_shape, axis, keepdims: np.broadcast_to(dy, x_shape),
        (normal(3, 5),),
        "x",
        "off by the factor 15: the gradient is that of a sum over all 15 entries, the function takes a mean",
    ),
    "n - 1": (
        "mean",
        lambda dy, x_shape, axis, keepdims: np.broadcast_to(dy / 6, x_shape),
        (normal(7),),
        "x",
        "the gradient divides by n - 1 for an axis of size 7, the function by n",
    ),
    "beyond a value": (
        "exp",
        lambda dy, y: dy * np.where(y > 1, y * y, y),
        (np.array([-2.0, 1.0, -0.5, 3.0, 0.25]),),
        "x",
        "no known mistake; 3 of 5 entries are wrong, those where the input is above -0.5",
    ),
    "beyond a size": (
        "tanh",
        lambda dy, y: dy * np.where(y * y > 0.5, y, 1 - y * y),
        (np.array([[-2.0, 0.1, 0.5], [3.0, -0.25, 4.0]]),),
        "x",
        "3 of 6 entries are wrong, those where the size of the input is above 0.5",
    ),
    "some places": (
        "exp",
        lambda dy, y: dy * y * [1, 1.5, 1, 1, 1.25],
        (np.array([3.0, 1.0, -1.0, 2.0, 0.0]),),
        "x",
        "2 of 5 entries are wrong: [1], [4]",
    ),
    "nothing": ("tanh", lambda dy, y: dy * 0, (normal(4),), "x", "no gradient arrives"),
    "not finite": ("tanh", lambda dy, y: dy * np.nan, (normal(4),), "x", "not finite"),
    "upstream ignored": ("exp", lambda dy, y: y, (normal(2, 3),), "x", "upstream is ignored"),
    "transposed": (
        "matmul",
        lambda dy, a, b, needs: ((dy @ b.T).T, a.T @ dy),
        (normal(3, 3), normal(3, 3, seed=1)),
        "a",
        "transposed",
    ),
    "the neighbour's": (
        "multiply",
        lambda dy, a, b, needs: (dy * a, dy * a),
        (normal(2, 3), normal(2, 3, seed=1)),
        "a",
        "it is the gradient of b",
    ),
    "no sum over a broadcast axis": (
        "add",
        lambda dy: (dy, dy[0]),
        (normal(4, 3), normal(3)),
        "b",
        "of several contributions only the first arrives",
    ),
    "shifted": ("exp", lambda dy, y: np.roll(dy * y, 1, -1), (normal(2, 3),), "x", "shifted by one place along axis 1"),
    "transposed, of three axes": (
        "exp",
        lambda dy, y: (dy * y).T.reshape(y.shape),
        (normal(2, 3, 4),),
        "x",
        "transposed, then reshaped",
    ),
    "the last slice lost": (
        "exp",
        lambda dy, y: dy * y * np.array([[1.0], [0.0]]),
        (normal(2, 3),),
        "x",
        "3 of 6 entries are zero that should not be, all at 1 on axis 0",
    ),
    "no sum over two broadcast axes": (
        "add",
        lambda dy: (dy, dy[0, :, :1]),
        (normal(4, 2, 3), normal(2, 1)),
        "b",
        "a sum over axes 0, 2 of the result, along which the input is used again, is missing: of several "
        "contributions only the first arrives",
    ),
    "upstream's size": ("exp", lambda dy, y: abs(dy) * y, (normal(2, 3),), "x", "arrives without its sign"),
    "one lost": (
        "embedding",
        all_but_the_last_row,
        (normal(5, 3), np.array([[4, 0, 4], [2, 1, 4]])),
        "w",
        "one of several contributions is lost",
    ),
    "one of several": (
        "embedding",
        rows_put,
        (normal(5, 3), np.array([[4, 0, 4], [2, 4, 1]])),
        "w",
        "of several contributions only one arrives",
    ),
    "the projection dropped": (
        "softmax",
        lambda dy, y, axis: dy * y,
        (normal(3, 4),),
        "x",
        "in each row of the last axis the error is a multiple of the result: such a term is off or missing",
    ),
    "the variance by N - 1": (
        "layernorm",
        layernorm_by_n_minus_1,
        (normal(4, 16), normal(16), normal(16, seed=1)),
        "x",
        "the term with the variance is off or missing, or has N - 1 in place of N",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_recognised(mistake, monkeypatch):
    name, rule, inputs, wrong, words = WRONG[mistake]
    monkeypatch.setattr(registry[name], "rule", rule)
    for seed in range(3):
        finding = next(f for f in gradcheck(registry[name], *inputs, seed=seed).findings if f.name == wrong)
        assert finding.verdict == "wrong"
        assert words in finding.pattern, finding


def test_a_rule_that_runs_from_the_wrong_end_is_recognised(monkeypatch):
    monkeypatch.setattr(registry["cumsum"], "rule", lambda dy, axis: np.cumsum(dy, axis=axis))
    (finding,) = gradcheck(ops.cumsum, normal(2, 4), axis=1).findings
    assert "it runs along axis 1 from the wrong end" in finding.pattern


def test_where_nothing_explains_a_mistake_nothing_is_claimed(monkeypatch):
    noise = normal(3, 4, seed=3)
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: dy * (y + noise))
    assert gradcheck(ops.exp, normal(3, 4)).findings[0].pattern == ""


def test_a_function_that_ignores_its_input_and_claims_a_gradient_is_told():
    y = gradcheck(lambda x: ops.where(np.zeros(3, bool), x, 2.0) + 0 * x, normal(3))
    assert y.passed  # a gradient of zero for what does not depend on x


def test_what_is_right_has_no_pattern():
    for op in (ops.exp, functools.partial(ops.sum, axis=0)):
        assert gradcheck(op, normal(3, 4)).findings[0].pattern == ""


def test_the_gradient_of_another_number_is_recognised(monkeypatch):
    monkeypatch.setattr(registry["multiply"], "rule", lambda dy, a, b, needs: (dy * a, dy * b))
    patterns = [finding.pattern for finding in gradcheck(ops.multiply, 2.0, -5.0).findings]
    assert patterns == [
        "b has this gradient: are they swapped?",
        "off by the factor -2.5; a has this gradient: are they swapped?",
    ]


def test_of_a_single_number_only_a_plain_factor_is_said(monkeypatch):
    for factor, said in ((0.5, "off by the factor 0.5"), (-1 / 6, ""), (1.37, "")):
        monkeypatch.setattr(registry["tanh"], "rule", lambda dy, y, factor=factor: factor * dy * (1 - y * y))
        assert gradcheck(ops.tanh, 0.5).findings[0].pattern == said


def test_a_factor_that_one_entry_alone_shows_beside_tiny_ones_is_not_said(monkeypatch):
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: dy * np.where(y > 1, 1.0069 * y, y))
    (finding,) = gradcheck(ops.exp, np.array([20.0, -3.0, -4.0])).findings
    assert finding.verdict == "wrong" and "factor" not in finding.pattern and "1 of 3 entries is" in finding.pattern


def test_an_input_that_the_function_itself_repeats_is_not_called_broadcast(own_op):
    @own_op("y = (x, 2x)", "x_bar = ?")
    def two_rows(x):
        """Rows.  x (C) -> y (2, C)"""
        return np.stack([x, 2 * x])

    two_rows.backward(lambda dy, x: dy[0])
    (finding,) = gradcheck(two_rows, normal(4)).findings
    assert "along which the input is used again" in finding.pattern
    assert "broadcast" not in finding.pattern


def test_a_factor_is_named_only_if_every_entry_has_it(monkeypatch):
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: dy * y * (1.5 + 0.1 * np.log(y)))
    (finding,) = gradcheck(ops.exp, 1e-3 * normal(3, 4)).findings
    assert finding.verdict == "wrong" and "factor" not in finding.pattern


def test_tiny_entries_show_a_factor_too(monkeypatch):
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: 1.001 * dy * y)
    assert gradcheck(ops.exp, 30 * normal(3, 4)).findings[0].pattern == "off by the factor 1.001"


def test_tiny_entries_that_differ_are_not_counted_as_right(monkeypatch):
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: dy * y * (1.3 + 0.01 * np.sin(np.log(y))))
    assert "at least 1 of 12 entries is wrong" in gradcheck(ops.exp, 30 * normal(3, 4)).findings[0].pattern


def test_of_a_factor_in_float32_only_the_digits_that_are_known_are_said(monkeypatch):
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: 1.5 * dy * y)
    (finding,) = gradcheck(lambda x: ops.exp(x.astype(np.float32)), normal(2, 5)).findings
    assert finding.pattern == "off by the factor 1.5"
    assert finding.worst.analytic / finding.worst.numeric == pytest.approx(1.5, rel=1e-4)
