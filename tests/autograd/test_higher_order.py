"""Gradients of gradients, to any order: known derivatives, Hessian products, and misuse that is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nanograd_llm import (
    Tensor,
    checked,
    grad,
    hessian,
    higher_order,
    hvp,
    jacobian,
    keep,
    nn,
    no_grad,
    op,
    ops,
    value_and_grad,
)
from nanograd_llm.errors import DtypeError, GraphError, ShapeError


def leaf(values, dtype=np.float64):
    return Tensor(np.array(values, dtype=dtype), requires_grad=True)


def derivatives(f, at, count):
    x = leaf(at)
    found = []
    with higher_order():
        y = f(x)
        for _ in range(count):
            y = grad(y, x)
            found.append(y.item())
    return found


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x: x**4, [4 * 0.7**3, 12 * 0.7**2, 24 * 0.7, 24, 0]),
        (ops.sin, [math.cos(0.7), -math.sin(0.7), -math.cos(0.7), math.sin(0.7), math.cos(0.7)]),
        (ops.exp, [math.exp(0.7)] * 5),
        (ops.log, [1 / 0.7, -1 / 0.7**2, 2 / 0.7**3, -6 / 0.7**4, 24 / 0.7**5]),
        (lambda x: 1 / x, [-1 / 0.7**2, 2 / 0.7**3, -6 / 0.7**4, 24 / 0.7**5, -120 / 0.7**6]),
        (lambda x: (x * x[None]).sum() * x, [3 * 0.7**2, 6 * 0.7, 6]),
    ],
)
def test_the_first_derivatives_of_a_known_function(f, expected):
    assert derivatives(f, 0.7, len(expected)) == pytest.approx(expected, rel=1e-12)


def test_a_mixed_third_derivative_is_right():
    x, y = leaf(1.3), leaf(0.4)
    with higher_order():
        z = ops.sin(x * x * y)
        dx = grad(z, x)
        dxy = grad(dx, y)
        dxyx = grad(dxy, x)
    # ∂x = 2xy cos u, ∂y of it = 2x cos u - 2x³y sin u, and once more by x
    u = 1.3**2 * 0.4
    expected = 2 * math.cos(u) - 4 * 1.3**2 * 0.4 * math.sin(u)
    expected -= 6 * 1.3**2 * 0.4 * math.sin(u) + 4 * 1.3**4 * 0.4**2 * math.cos(u)
    assert dxyx.item() == pytest.approx(expected, rel=1e-12)


FUNCTIONS = {
    "primitive": lambda x, w: ops.tanh(x @ w).sum() + (x * x / (2 + ops.sin(x))).mean(),
    "softmax": lambda x, w: (ops.softmax(x @ w) * (x @ w)).sum(),
    "layernorm": lambda x, w: ops.tanh(ops.layernorm(x, w[0], w[1])).sum(),
    "gelu": lambda x, w: ops.gelu(ops.linear(x, w)).sum(),
    "cross entropy": lambda x, w: ops.cross_entropy(x @ w, np.array([0, 3, 1])),
    "attention": lambda x, w: (ops.attention(x, x @ w, x, causal=True) * x).sum(),
    "indexing": lambda x, w: (x[[0, 0, 2]] @ w).max(axis=0).sum() * x[0, 0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_hvp_is_the_finite_difference_of_the_gradient(name, rng):
    f = FUNCTIONS[name]
    x, w = rng.standard_normal((3, 4)), rng.standard_normal((4, 4))
    vx, vw = rng.standard_normal((3, 4)), rng.standard_normal((4, 4))
    h = 1e-6
    _, above = value_and_grad(f)(x + h * vx, w + h * vw)
    _, below = value_and_grad(f)(x - h * vx, w - h * vw)
    found = hvp(f, [x, w], [vx, vw])
    for product, a, b in zip(found, above, below):
        assert type(product) is np.ndarray
        np.testing.assert_allclose(product, (a - b) / (2 * h), rtol=1e-6, atol=1e-7)


def test_the_hessian_from_products_is_symmetric_and_right():
    a = np.array([[2.0, 1.0], [1.0, 3.0]])
    columns = [hvp(lambda x: (x @ (a @ x.reshape(2, 1))).sum() / 2, [np.zeros(2)], [e])[0] for e in np.eye(2)]
    np.testing.assert_allclose(np.stack(columns), a)


def test_hvp_of_a_linear_function_is_zero_and_of_float32_stays_float32():
    (zero,) = hvp(lambda x: x.sum(), [np.ones(3, np.float32)], [np.ones(3)])
    np.testing.assert_array_equal(zero, np.zeros(3))
    (product,) = hvp(lambda x: (x * x).sum(), [np.ones(3, np.float32)], [[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(product, [2, 4, 6])
    assert zero.dtype == product.dtype == np.float32


def test_hvp_does_not_change_its_arguments():
    x, v = np.array([1.0, 2.0]), np.array([1.0, 1.0])
    (product,) = hvp(lambda t: (t * t * t).sum(), [x], [v])
    product[:] = 0
    np.testing.assert_array_equal(x, [1, 2])
    np.testing.assert_array_equal(v, [1, 1])


@pytest.mark.parametrize("vectors", [[np.ones(1)], [1.0], [np.ones((3, 1))], [], [np.ones(3), np.ones(3)]])
def test_hvp_refuses_vectors_that_are_not_shaped_as_the_inputs(vectors):
    with pytest.raises(ShapeError, match="hvp needs a vector of each input's shape"):
        hvp(lambda x: (x * x).sum(), [np.ones(3)], vectors)


def test_under_higher_order_gradients_are_tensors_and_the_tape_stays():
    x = leaf([1.0, 2.0])
    with higher_order():
        y = (x * x * x).sum()
        first, again = grad(y, x), grad(y, x)
        assert type(first) is Tensor and first.requires_grad
        np.testing.assert_array_equal(first.data, again.data)
        (untouched,) = grad(y, [leaf([5.0])])
        assert type(untouched) is Tensor and not untouched.requires_grad
        value, gradient = value_and_grad(lambda t: (t * t).sum())(x)
        assert value.requires_grad and gradient.requires_grad


def test_outside_the_block_a_higher_order_tape_gives_arrays():
    x = leaf([1.0, 2.0])
    with higher_order():
        y = ops.softmax(x * x)[0]
        (gradient,) = grad(y, [x])
    np.testing.assert_array_equal(grad(y, x, retain_graph=True), gradient.data)
    second = grad(gradient.sum(), x)
    assert type(second) is np.ndarray


def test_backward_under_higher_order_adds_arrays_into_grad():
    x = leaf([1.0, 2.0])
    for _ in range(2):
        with higher_order():
            (x * x).sum().backward()
    assert type(x.grad) is np.ndarray
    np.testing.assert_array_equal(x.grad, [4, 8])


def test_a_gradient_penalty_has_a_gradient_in_the_weights():
    w = leaf([2.0])
    with higher_order():
        x = leaf([3.0])
        slope = grad((w * x * x).sum(), x)  # 2wx
        (slope * slope).sum().backward()  # 4w²x²
    np.testing.assert_allclose(w.grad, [8 * 2 * 9])


def test_a_cotangent_that_is_a_tensor_is_differentiated_through():
    x, v = leaf([2.0, 3.0]), leaf([5.0, 7.0])
    with higher_order():
        product = grad(x * x, x, v)  # 2xv
        np.testing.assert_array_equal(grad(product.sum(), v).data, [4, 6])
        np.testing.assert_array_equal(grad(product.sum(), x).data, [10, 14])


def test_a_fused_op_runs_the_composition_it_equals():
    x = leaf([0.3, -0.2])
    assert ops.gelu(x)._node.op.name == "gelu"
    with higher_order():
        assert ops.gelu(x)._node.op.name == "multiply"


def test_a_rule_may_return_a_plain_array_under_higher_order():
    @op("y = 3*x", "x̄ = 3*ȳ")
    def triple(x):
        """x (*) -> y (*)"""
        return 3 * x

    @triple.backward
    def triple_backward(dy):
        return np.full(dy.shape, 3.0)

    x = leaf([1.0, 2.0])
    with higher_order():
        gradient = grad(triple(x).sum(), x)
        assert type(gradient) is Tensor and not gradient.requires_grad
        np.testing.assert_array_equal(grad((triple(x) + x * x).sum(), x).data, [5, 7])


# Misuse


def test_a_function_computed_outside_the_block_is_refused():
    x = leaf([1.0])
    y = (x * x).sum()
    with (
        higher_order(),
        pytest.raises(GraphError, match=r"was recorded outside higher_order\(\); compute the function"),
    ):
        grad(y, x)
    inner = x * x
    with higher_order(), pytest.raises(GraphError, match="multiply was recorded outside"):
        grad((inner * 2).sum(), x)
    np.testing.assert_array_equal(grad(y, x), [2])


def test_a_gradient_computed_outside_the_block_has_no_tape():
    x = leaf([1.0])
    gradient = grad((x * x).sum(), x)
    assert type(gradient) is np.ndarray
    with higher_order(), pytest.raises(GraphError, match="nothing to differentiate"):
        grad((Tensor(gradient) * 2).sum(), x)


def test_a_tape_that_was_not_retained_cannot_be_differentiated_again():
    x = leaf([1.0])
    with higher_order():
        first = grad((x * x * x).sum(), x, retain_graph=False)
        with pytest.raises(GraphError, match="graph freed"):
            grad(first.sum(), x)


def test_a_constant_gradient_has_nothing_to_differentiate():
    x = leaf([1.0])
    with higher_order():
        gradient = grad((x * 2).sum(), x)
        assert not gradient.requires_grad
        with pytest.raises(GraphError, match="nothing to differentiate"):
            grad(gradient.sum(), x)


def test_an_op_with_kept_arrays_and_without_equals_is_refused():
    @op("y = x²", "x̄ = 2*ȳ*x")
    def square(x):
        """x (*) -> y (*)"""
        return keep(x * x, doubled=2 * x)

    @square.backward
    def square_backward(dy, doubled):
        return dy * doubled

    x = leaf([3.0])
    np.testing.assert_array_equal(grad(square(x).sum(), x), [6])
    with higher_order(), pytest.raises(GraphError, match="square keeps 'doubled'.*equals= names the same function"):
        square(x)


def test_a_rule_in_plain_numpy_is_refused():
    @op("y = eˣ", "x̄ = ȳ*y")
    def e_to(x):
        """x (*) -> y (*)"""
        return np.exp(x)

    @e_to.backward
    def e_to_backward(dy, x):
        return dy * np.exp(x)

    x = leaf([1.0])
    with higher_order(), pytest.raises(TypeError, match=r"in the rule of e_to: .* use ops.exp"):
        grad(e_to(x).sum(), x)


def test_a_cotangent_keeps_its_shape_and_dtype_under_higher_order():
    x = leaf([1.0, 2.0])
    with higher_order():
        y = x * x
        with pytest.raises(ShapeError, match="the cotangent has shape"):
            grad(y, x, leaf([1.0]))
        assert grad(y, x, Tensor([1.0, 1.0])).dtype == np.float64


def test_no_grad_inside_higher_order_records_nothing():
    x = leaf([1.0])
    with higher_order(), no_grad():
        assert not (x * x).requires_grad
        with pytest.raises(GraphError, match="no_grad"):
            grad((x * x).sum(), x)


def test_checked_mode_tests_second_derivatives():
    x = leaf([1.0, 2.0])
    with higher_order(), checked():
        first = grad((x * x * x).sum(), x)
        np.testing.assert_array_equal(grad(first.sum(), x).data, [6, 12])


@pytest.mark.parametrize(
    ("differentiate", "call"),
    [
        (lambda x, y, f: value_and_grad(y, x), r"got Tensor; write ng.value_and_grad\(f, x\)"),
        (lambda x, y, f: value_and_grad(x, f), r"got Tensor; write ng.value_and_grad\(f, x\)"),
        (lambda x, y, f: jacobian(y, x), r"got Tensor; write ng.jacobian\(f, x\)"),
        (lambda x, y, f: hessian(x, f), r"got Tensor; write ng.hessian\(f, x\)"),
        (lambda x, y, f: hvp(y, [x], [x]), r"got Tensor; write ng.hvp\(f, \[x\], \[v\]\)"),
        (lambda x, y, f: hvp(f, x, x), r"takes lists .*got Tensor; write ng.hvp\(f, \[x\], \[v\]\)"),
        (lambda x, y, f: grad(f, x), r"got a function; write ng.grad\(f\(x\), x\)"),
        (lambda x, y, f: grad(x, y), r"got a leaf first, .*write ng.grad\(y, x\)"),
        (lambda x, y, f: grad(y, nn.Linear(1, 1)), r"got Linear; write grad\(loss, x\).*model.parameters\(\)\)$"),
        (lambda x, y, f: grad(y, 3), r"got int; write"),
        (lambda x, y, f: grad(y, [x, np.ones(2)]), r"got ndarray; write"),
        (lambda x, y, f: value_and_grad(f, nn.Linear(1, 1)), r"got Linear; write value_and_grad\(f, x\)"),
        (lambda x, y, f: value_and_grad(f, np.ones(2)), r"got ndarray; write"),
    ],
)
def test_swapped_and_unfit_arguments_are_refused_at_the_call_with_the_right_one(differentiate, call):
    x = leaf([1.0, 2.0])

    def f(x):
        return (x * x).sum()

    with pytest.raises((DtypeError, GraphError), match=call):
        differentiate(x, f(x), f)
