"""Functions made of other ops agree with NumPy, have right second derivatives, and refuse invalid arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nanograd_llm import Parameter, Tensor, grad, ops
from nanograd_llm.autograd.tensor import array_of
from nanograd_llm.errors import ConfigError, IndexRangeError, ShapeError
from nanograd_llm.gradcheck import assert_gradients

INDICES = np.array([[0, 3], [1, 1], [-1, 0]])
FUNCTIONS = {
    "softplus": (ops.softplus, lambda x: np.logaddexp(x, 0)),
    "std": (lambda x: ops.std(x, 1, ddof=1), lambda x: np.std(x, 1, ddof=1)),
    "std of all": (ops.std, np.std),
    "prod": (ops.prod, np.prod),
    "prod, axis": (lambda x: ops.prod(x, 0, keepdims=True), lambda x: np.prod(x, 0, keepdims=True)),
    "prod, axes": (lambda x: ops.prod(x, (1, 0)), lambda x: np.prod(x, (1, 0))),
    "masked_fill": (lambda x: ops.masked_fill(x, np.tri(3, 4) > 0, -5), lambda x: np.where(np.tri(3, 4), -5, x)),
    "take_along_axis": (lambda x: ops.take_along_axis(x, INDICES), lambda x: np.take_along_axis(x, INDICES, -1)),
    "sort": (lambda x: ops.sort(x, 0), lambda x: np.sort(x, 0)),
    "topk": (lambda x: ops.topk(x, 2)[0], lambda x: np.sort(x)[:, :-3:-1]),
    "pad": (lambda x: ops.pad(x, ((1, 0), (0, 2)), 3.0), lambda x: np.pad(x, ((1, 0), (0, 2)), constant_values=3)),
    "pad with 0": (lambda x: ops.pad(x, 1), lambda x: np.pad(x, 1)),
    "roll": (lambda x: ops.roll(x, 3, 1), lambda x: np.roll(x, 3, 1)),
    "flip": (ops.flip, np.flip),
    "flip, axis": (lambda x: ops.flip(x, -1), lambda x: np.flip(x, -1)),
    "repeat": (lambda x: ops.repeat(x, 2, 0), lambda x: np.repeat(x, 2, 0)),
    "take": (lambda x: ops.take(x, [2, 0, 2], 1), lambda x: np.take(x, [2, 0, 2], 1)),
    "einsum": (lambda x: ops.einsum("ij,kj->ik", x, x), lambda x: x @ x.T),
    "einsum without an arrow": (lambda x: ops.einsum("ij,j", x, [1.0, 2, 3, 4]), lambda x: x @ [1, 2, 3, 4]),
    "mse": (lambda x: ops.mse(x, np.ones((3, 4)).tolist()), lambda x: np.mean((x - 1) ** 2)),
    "binary_cross_entropy": (
        lambda x: ops.binary_cross_entropy(x, np.eye(3, 4).tolist(), reduction="sum"),
        lambda x: -np.sum(np.log(1 / (1 + np.exp(-np.where(np.eye(3, 4), x, -x))))),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_on_tensors_arrays_and_lists_agree_with_numpy(name, rng):
    ours, expected = FUNCTIONS[name]
    x = rng.standard_normal((3, 4))
    for given in (Parameter(x), x, x.tolist()):
        np.testing.assert_allclose(array_of(ours(given)), expected(x), rtol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_right_to_second_order_and_float32_is_preserved(name, rng):
    ours, _ = FUNCTIONS[name]
    x = rng.permutation(12).reshape(3, 4) / 4 - 1.3
    assert_gradients(ours, x, order=2, explain=False)
    assert ours(Parameter(x.astype(np.float32))).dtype == np.float32


def test_a_product_has_right_gradients_where_factors_are_zero():
    x = Parameter([[0.0, 2.0, 3.0], [0.0, 0.0, 5.0]])
    y = ops.prod(x, axis=1)
    assert y.data.tolist() == [0, 0]
    assert grad(y.sum(), x).tolist() == [[6, 0, 0], [0, 0, 0]]
    assert ops.prod(np.ones((0, 2)), axis=0).tolist() == [1, 1]
    assert_gradients(lambda x: ops.prod(x, axis=1), x.data.astype(np.float64), order=2)


def test_large_inputs_give_no_overflow_and_no_nan():
    x = Parameter([-1e4, -100.0, 0.0, 100.0, 1e4])
    with np.errstate(over="raise", invalid="raise"):
        for f, values, slopes in [
            (ops.sigmoid, [0, math.exp(-100), 0.5, 1, 1], [0, math.exp(-100), 0.25, math.exp(-100), 0]),
            (ops.softplus, [0, math.exp(-100), math.log(2), 100, 1e4], [0, math.exp(-100), 0.5, 1, 1]),
            (ops.relu, [0, 0, 0, 100, 1e4], [0, 0, 0, 1, 1]),
        ]:
            y = f(x)
            np.testing.assert_allclose(y.data, values, rtol=1e-6, atol=1e-45)
            np.testing.assert_allclose(grad(y.sum(), x), slopes, rtol=1e-6, atol=1e-45)
        assert ops.binary_cross_entropy([1e4, -1e4], [1.0, 0.0]) == 0


def test_logaddexp_of_infinities_is_right():
    a, b = Parameter([-np.inf, np.inf, -np.inf, 1.0]), Parameter([-np.inf, np.inf, 1.0, -np.inf])
    y = ops.logaddexp(a, b)
    assert y.data.tolist() == [-np.inf, np.inf, 1, 1]
    assert [g.tolist() for g in grad(y, [a, b], [1.0, 1, 1, 1])] == [[0.5, 0.5, 0, 1], [0.5, 0.5, 1, 0]]


def test_power_has_the_documented_gradients_at_zero_and_infinity():
    a, b = Parameter([0.0, 0.0, 0.0, np.inf, 4.0]), Parameter([-1.0, 0.0, 2.0, 0.0, 0.5])
    with np.errstate(divide="ignore"):
        to_a, to_b = grad(ops.power(a, b), [a, b], np.ones(5, np.float32))
    assert to_a[1:].tolist() == [0, 0, 0, 0.25]
    assert to_b[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda x: ops.einsum("ii", x[:, :3]), ShapeError, "a letter at most once"),
        (lambda x: ops.einsum("...j,j", x, x[0]), ShapeError, "no ellipsis"),
        (lambda x: ops.einsum("ij,jk", x, x), ShapeError, "does not fit the shapes"),
        (lambda x: ops.einsum("ij,jk", x), ShapeError, "does not fit the shapes"),
        (lambda x: ops.topk(x, 5), ConfigError, "k must be an integer of at most 4"),
        (lambda x: ops.topk(x, 0), ConfigError, "k must be an integer of at least 1"),
        (lambda x: ops.repeat(x, -1), ConfigError, "repeats must be"),
        (lambda x: ops.take_along_axis(x, [0]), ShapeError, "indices with 2 axes"),
        (lambda x: ops.take_along_axis(x, INDICES + 3), IndexRangeError, "out of bounds"),
        (lambda x: ops.mse(x, x[0]), ShapeError, "a target of the same shape"),
        (lambda x: ops.binary_cross_entropy(x, 1.0), ShapeError, "a target of the same shape"),
        (lambda x: ops.mse(x, x, reduction="average"), ConfigError, "reduction must be one of mean, sum, none"),
        (lambda x: ops.var(x[:, :1], axis=1, ddof=1), ShapeError, "variance of 1 numbers with ddof=1"),
        (lambda x: ops.roll(x, 1, 2), ShapeError, "axis 2 is out of range"),
        (lambda x: ops.cumsum(x, axis=True), ShapeError, "axis must be an integer"),
    ],
)
def test_invalid_arguments_are_refused(call, error, said):
    for x in (Parameter(np.ones((3, 4))), np.ones((3, 4))):
        with pytest.raises(error, match=said):
            call(x)


def test_topk_gives_the_indices_of_the_largest():
    values, places = ops.topk(Tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 6.0]]), 2)
    assert values.data.tolist() == [[3, 2], [6, 5]] and places.tolist() == [[1, 2], [2, 0]]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_are_reduced_by_mean_sum_or_none(reduction, rng):
    x, target = rng.standard_normal((2, 3)), rng.integers(0, 2, (2, 3)).astype(float)
    for loss in (ops.mse, ops.binary_cross_entropy):
        each = loss(x, target, reduction="none")
        assert each.shape == (2, 3)
        expected = {"mean": np.mean(each), "sum": np.sum(each), "none": each}[reduction]
        np.testing.assert_allclose(loss(x, target, reduction=reduction), expected, rtol=1e-12)
