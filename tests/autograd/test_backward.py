"""Backward passes: sums of gradients, freed tapes, hooks, errors that change nothing, and separate memory."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from nanograd_llm import Parameter, Tensor, grad, hessian, higher_order, hvp, keep, no_grad, op, ops, value_and_grad
from nanograd_llm.errors import DtypeError, GraphError, ShapeError, SignatureError


def leaf(values, dtype=np.float32):
    return Tensor(np.array(values, dtype=dtype), requires_grad=True)


def failing_op():
    """An op whose rule raises."""

    @op("y = x", "x̄ = ȳ")
    def breaks(x):
        """x (*) -> y (*)"""
        return x + 0

    @breaks.backward
    def breaks_backward(dy):
        raise ZeroDivisionError("the rule failed")

    return breaks


# Sums


@pytest.mark.parametrize("uses", [2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_tensor_used_many_times_gets_the_sum_of_all_gradients(uses, shape):
    x = leaf(np.full(shape, 2.0))
    total = x * 1.0
    for _ in range(uses - 1):
        total = total + x
    gradient = grad(total, x, np.ones(shape, np.float32))
    assert type(gradient) is np.ndarray and gradient.dtype == np.float32
    np.testing.assert_array_equal(gradient, np.full(shape, uses))


def test_the_gradient_of_a_matrix_times_its_own_transpose(rng):
    x = leaf(rng.standard_normal((3, 4)), np.float64)
    cotangent = rng.standard_normal((3, 3))
    np.testing.assert_allclose(grad(x @ x.T, x, cotangent), (cotangent + cotangent.T) @ x.data, rtol=1e-14)


def test_each_node_of_a_diamond_is_visited_once():
    calls = []

    @op("y = 2*x", "x̄ = 2*ȳ")
    def double(x):
        """x (*) -> y (*)"""
        return 2 * x

    @double.backward
    def double_backward(dy):
        calls.append(dy)
        return 2 * dy

    x = leaf([1.0])
    y = double(x)
    left, right = y * 3, y * 5
    np.testing.assert_array_equal(grad((left * right).sum(), x), [2 * (3 * 10 + 5 * 6)])
    assert len(calls) == 1


def test_each_node_of_200_diamonds_in_a_row_is_visited_once():
    x = leaf(1.0, np.float64)
    y = x
    for _ in range(200):  # 2**200 paths
        y = y * 0.5 + y * 0.5
    assert grad(y, x) == 1


def test_broadcasting_is_undone_for_every_operand(rng):
    a, b, c = leaf(rng.standard_normal((2, 1, 3))), leaf(rng.standard_normal((4, 1))), leaf(rng.standard_normal(()))
    cotangent = rng.standard_normal((2, 4, 3)).astype(np.float32)
    da, db, dc = grad(a * b + c, [a, b, c], cotangent)
    np.testing.assert_allclose(da, (cotangent * b.data).sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(db, (cotangent * a.data).sum((0, 2))[:, None], rtol=1e-5)
    np.testing.assert_allclose(dc, cotangent.sum(), rtol=1e-5)


# Passes over one tape


def test_gradients_accumulate_over_passes():
    x = leaf([1.0, 2.0])
    (x * 3).sum().backward()
    first = x.grad
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [5, 7])
    np.testing.assert_array_equal(first, [3, 3])
    x.grad = None
    (x * 3).sum().backward()
    np.testing.assert_array_equal(x.grad, [3, 3])


def test_the_gradient_of_a_scalar_leaf_stays_an_array():
    x = leaf(1.0)
    for _ in range(3):
        (x * 2).backward()
        assert type(x.grad) is np.ndarray and x.grad.shape == () and x.grad.dtype == np.float32
    assert x.grad == 6


def test_a_second_backward_over_a_freed_tape_is_refused():
    y = (leaf([1.0]) * 2).sum()
    y.backward()
    with pytest.raises(GraphError, match="graph freed: backward already passed through sum.*retain_graph=True"):
        y.backward()


def test_a_tape_that_shares_a_freed_part_is_freed_too():
    x = leaf([1.0])
    shared = x * 2
    shared.sum().backward()
    with pytest.raises(GraphError, match="graph freed: backward already passed through multiply"):
        (shared * 3).sum().backward()
    np.testing.assert_array_equal(x.grad, [2])


def test_retain_graph_keeps_the_tape_for_another_pass():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(x.grad, [6, 12])
    with pytest.raises(GraphError, match="graph freed"):
        y.backward()


def test_nodes_that_a_pass_does_not_reach_are_freed_as_well():
    x = leaf([1.0])
    y = x * 2
    grad((y * 3).sum(), y)
    with pytest.raises(GraphError, match="graph freed"):
        grad((y * 3).sum(), x)


def test_the_gradient_of_a_leaf_by_itself_is_the_cotangent():
    x = leaf(3.0)
    x.backward()
    assert x.grad == 1
    v = leaf([1.0, 2.0])
    v.backward(np.array([5.0, 7.0], np.float32))
    np.testing.assert_array_equal(v.grad, [5, 7])


def test_gradients_of_computed_tensors_are_not_stored_by_default():
    x = leaf([1.0])
    y = x * 2
    y.sum().backward()
    with pytest.warns(UserWarning, match="retain_grad"):
        assert y.grad is None


# retain_grad


def test_retain_grad_stores_the_gradient_of_the_last_pass_only():
    x = leaf([1.0, 2.0])
    y = x * 2
    y.retain_grad()
    y.retain_grad()
    z = (y * y).sum()
    z.backward(retain_graph=True)
    z.backward()
    np.testing.assert_array_equal(y.grad, [4, 8])
    np.testing.assert_array_equal(x.grad, [16, 32])
    assert type(y.grad) is np.ndarray and y.grad.dtype == np.float32


def test_retain_grad_on_a_leaf_changes_nothing():
    x = leaf([1.0])
    x.retain_grad()
    (x * 2).sum().backward()
    np.testing.assert_array_equal(x.grad, [2])


def test_a_retained_gradient_is_that_after_the_hooks():
    x = leaf([1.0])
    y = x * 2
    y.retain_grad()
    y.register_hook(lambda g: g * 10)
    y.sum().backward()
    np.testing.assert_array_equal(y.grad, [10])


@pytest.mark.parametrize("call", [Tensor.retain_grad, lambda t: t.register_hook(print)])
def test_retain_grad_and_hooks_refuse_a_tensor_without_a_gradient(call):
    with pytest.raises(GraphError, match="needs a Tensor that requires a gradient"):
        call(Tensor([1.0]))


# Hooks


def test_a_hook_gets_the_complete_cotangent_once():
    x = leaf([1.0])
    y = x * 2
    seen = []
    y.register_hook(lambda g: seen.append(g.copy()))
    (y * 3 + y * 4).sum().backward()
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], [7])
    np.testing.assert_array_equal(x.grad, [14])


@pytest.mark.parametrize("interior", [True, False])
def test_the_result_of_a_hook_replaces_the_cotangent(interior):
    x = leaf([1.0, 2.0])
    y = x * 2
    (y if interior else x).register_hook(lambda g: np.clip(g, -0.5, 0.5))
    (y * 3).sum().backward()
    np.testing.assert_array_equal(x.grad, [1, 1] if interior else [0.5, 0.5])


@pytest.mark.parametrize("interior", [True, False])
def test_hooks_run_in_order_and_can_be_removed(interior):
    x = leaf([1.0])
    y = x * 1
    target = y if interior else x
    remove_first = target.register_hook(lambda g: g + 1)
    target.register_hook(lambda g: g * 10)
    z = y.sum()
    np.testing.assert_array_equal(grad(z, x, retain_graph=True), [20])
    remove_first()
    remove_first()  # a second call removes nothing
    np.testing.assert_array_equal(grad(z, x, retain_graph=True), [10])


@pytest.mark.parametrize("interior", [True, False])
@pytest.mark.parametrize(
    "replacement", [np.ones(2, np.float32), np.ones(3, np.float64), np.ones((1, 3), np.float32), 1.0, "text", [1.0] * 3]
)
def test_a_hook_that_changes_shape_or_dtype_is_refused(interior, replacement):
    x = leaf([1.0, 2.0, 3.0])
    y = x * 1
    (y if interior else x).register_hook(lambda g: replacement)
    with pytest.raises(
        ShapeError, match=r"a hook replaced a cotangent of shape \(3,\), float32 by .*same shape and dtype"
    ):
        y.sum().backward()
    assert x.grad is None


def test_a_hook_may_scale_a_scalar_by_a_python_number():
    x = leaf(3.0)
    y = x * x
    y.register_hook(lambda g: g * 0.5)
    y.backward()
    assert x.grad == 3 and x.grad.dtype == np.float32


def test_an_array_kept_by_a_hook_is_not_the_gradient():
    x = leaf([1.0])
    seen = []
    x.register_hook(seen.append)
    (x * 2 + x * 3).sum().backward()
    x.grad *= 100
    np.testing.assert_array_equal(seen[0], [5])


def test_an_array_returned_by_a_hook_is_not_the_gradient():
    shared = np.array([7.0], np.float32)
    x = leaf([1.0])
    x.register_hook(lambda g: shared)
    (x * 2).sum().backward()
    x.grad *= 100
    assert shared[0] == 7


def test_under_higher_order_a_hook_gets_and_may_return_tensors():
    x = leaf([2.0], np.float64)
    kinds = []

    def hook(g):
        kinds.append(type(g))
        return g * x

    with higher_order():
        y = x * x
        y.register_hook(hook)
        first = grad(y.sum(), x)  # 2x * x
        second = grad(first.sum(), x)
    assert kinds == [Tensor] * len(kinds)
    assert (first.item(), second.item()) == (8, 8)


# Misuse


def test_a_tensor_that_is_not_a_scalar_needs_a_cotangent():
    with pytest.raises(ShapeError, match=r"needs a scalar, and this Tensor has shape \(2, 1\); pass a cotangent"):
        (leaf([[1.0], [2.0]]) * 2).backward()


@pytest.mark.parametrize(
    ("cotangent", "error", "words"),
    [
        *[(np.ones(shape, np.float32), ShapeError, r"shape .*; this Tensor has \(2,\); they must be equal")
          for shape in ((), (3,), (1, 2), (2, 1), (2, 2))],
        *[(np.ones(2, dtype), DtypeError, "dtype .*; this Tensor has float32; cast it first")
          for dtype in (np.int64, np.bool_, np.complex64)],
    ],
)  # fmt: skip
def test_a_cotangent_of_another_shape_or_kind_of_number_is_refused_not_broadcast_or_cast(cotangent, error, words):
    with pytest.raises(error, match=f"the cotangent has {words}"):
        (leaf([1.0, 2.0]) * 2).backward(cotangent)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_cotangent_of_other_floats_is_cast_to_the_results_dtype(dtype):
    x = leaf([1.0, 2.0])
    (x * 2).backward(np.array([3, 4], dtype))
    assert x.grad.dtype == np.float32 and x.grad.tolist() == [6, 8]


def test_who_asks_for_a_second_derivative_is_led_to_higher_order():
    x = leaf([1.0, 2.0])
    with pytest.raises(SignatureError, match="no create_graph; .*inside `with ng.higher_order"):
        grad((x * x).sum(), x, create_graph=True)
    with pytest.raises(SignatureError, match="backward has no create_graph; .*inside `with ng.higher_order"):
        (x * x).sum().backward(create_graph=True)
    with pytest.raises(GraphError, match="got a ndarray; .*inside `with ng.higher_order"):
        grad(grad((x * x).sum(), x), x)
    with pytest.raises(GraphError, match="inside `with ng.higher_order"):
        grad(Tensor(grad((x * x).sum(), x)).sum(), x)
    with pytest.raises(SignatureError, match="no argument keep"):
        grad((x * x).sum(), x, keep=True)


@pytest.mark.parametrize("cotangent", ["ab", [object(), 1], [1j, 2j], [None, 1.0]])
def test_a_cotangent_that_is_not_real_numbers_is_refused(cotangent):
    with pytest.raises(DtypeError):
        (leaf([1.0, 2.0]) * 2).backward(cotangent)
    with pytest.raises(ShapeError, match="a rectangular array"):
        (leaf([1.0, 2.0]) * 2).backward([[1.0], [1.0, 2.0]])


@pytest.mark.parametrize("cotangent", [[1.0, 2.0], (1, 2), np.array([1, 2], np.float32), Tensor([1.0, 2.0])])
def test_a_cotangent_may_be_a_list_an_array_or_a_tensor(cotangent):
    x = leaf([5.0, 6.0])
    (x * x).backward(cotangent)
    np.testing.assert_array_equal(x.grad, [10, 24])


def test_the_cotangent_of_a_scalar_may_be_a_python_number():
    x = leaf(3.0)
    (x * x).backward(0.5)
    assert x.grad == 3


def under_no_grad():
    with no_grad():
        return leaf(1.0) * 2


@pytest.mark.parametrize("y", [Tensor(1.0), Tensor(1.0) * 2, leaf(1.0).detach(), under_no_grad()])
def test_a_tensor_that_was_not_recorded_cannot_be_differentiated(y):
    with pytest.raises(GraphError, match="nothing to differentiate: .* under no_grad.*=True$"):  # no higher_order
        y.backward()


def test_backward_inside_no_grad_is_refused():
    y = leaf(1.0) * 2
    with no_grad(), pytest.raises(GraphError, match="backward was called inside no_grad"):
        y.backward()
    y.backward()


@pytest.mark.parametrize("y", [3.0, np.ones(()), None, [1.0]])
def test_grad_of_anything_but_a_tensor_is_refused(y):
    with pytest.raises(GraphError, match="grad differentiates a Tensor; got a"):
        grad(y, leaf(1.0))


@pytest.mark.parametrize("wrt", [Tensor(1.0), [leaf(1.0), Tensor(1.0)], [np.ones(2)], np.ones(2)])
def test_grad_with_respect_to_a_tensor_without_a_gradient_is_refused(wrt):
    with pytest.raises(GraphError, match="with respect to Tensors that require a gradient"):
        grad(leaf(1.0) * 2, wrt)


# A pass that fails


@pytest.mark.parametrize("use", [lambda w: w * w, lambda w: w.reshape(2, 1) * w, lambda w: (w.T @ w) * 2])
def test_backward_after_an_update_in_place_of_what_it_needs_is_refused(use):
    w = leaf([1.0, 2.0])
    y = use(w).sum()
    with no_grad():
        w -= 0.5
    with pytest.raises(GraphError, match=r"shape \(2,\) was updated in place after .* update after backward"):
        y.backward()
    assert w.grad is None
    (w * w).sum().backward()
    assert np.array_equal(w.grad, [1, 3])


def test_backward_after_an_update_in_place_works_where_no_rule_needs_the_array():
    w, other = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    y = ((w + 1) * other).sum()
    with no_grad():
        w -= 0.5
    y.backward()
    assert np.array_equal(w.grad, [3, 4])
    assert np.array_equal(other.grad, [2, 3])


def test_a_failing_rule_changes_no_grad():
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (x * w).sum().backward()
    before = x.grad, w.grad
    y = x * w
    y.retain_grad()
    z = failing_op()(y) * w
    z.retain_grad()
    with pytest.raises(ZeroDivisionError):
        (z + y).sum().backward()
    assert (x.grad, w.grad, y.grad, z.grad) == (*before, None, None)
    np.testing.assert_array_equal(before, [[3, 4], [1, 2]])


def fails(g):
    raise ZeroDivisionError


def test_a_failing_hook_changes_no_grad():
    x, w = leaf([1.0]), leaf([2.0])
    w.register_hook(fails)
    with pytest.raises(ZeroDivisionError):
        (x * w).sum().backward()
    assert x.grad is None and w.grad is None


def test_after_a_failed_pass_a_retained_tape_can_be_walked_again():
    x = leaf([1.0])
    y = x * 2
    remove = y.register_hook(fails)
    z = y.sum()
    with pytest.raises(ZeroDivisionError):
        z.backward(retain_graph=True)
    remove()
    z.backward()
    np.testing.assert_array_equal(x.grad, [2])


def test_after_a_failed_pass_a_tape_that_was_not_retained_is_freed():
    x = leaf([1.0])
    z = (failing_op()(x) * 2).sum()
    with pytest.raises(ZeroDivisionError):
        z.backward()
    with pytest.raises(GraphError, match="graph freed"):
        z.backward()


def test_a_backward_from_a_hook_over_the_same_tape_is_refused():
    x = leaf([1.0])
    y = x * 2
    z = y.sum()
    y.register_hook(lambda g: z.backward(retain_graph=True))
    with pytest.raises(GraphError, match="another backward is walking this tape"):
        z.backward(retain_graph=True)


# grad


def test_grad_accepts_leaves_and_computed_tensors_and_changes_no_grad():
    x = leaf([1.0, 2.0])
    y = x * 2
    y.retain_grad()
    z = (y * y).sum()
    dx, dy, dz = grad(z, [x, y, z])
    np.testing.assert_array_equal(dx, [8, 16])
    np.testing.assert_array_equal(dy, [4, 8])
    np.testing.assert_array_equal(dz, 1)
    assert x.grad is None and y.grad is None
    with pytest.warns(UserWarning, match="retain_grad"):
        assert z.grad is None


def test_grad_of_one_tensor_is_an_array_and_of_a_sequence_a_list():
    x = leaf([1.0])
    assert isinstance(grad((x * 2).sum(), x), np.ndarray)
    assert [type(g) for g in grad((x * 2).sum(), (x,))] == [np.ndarray]
    assert grad((x * 2).sum(), []) == []
    assert len(grad((x * 2).sum(), iter([x, x]))) == 2


def test_grad_with_respect_to_one_tensor_twice_gives_two_arrays():
    x = leaf([1.0])
    first, second = grad((x * 2).sum(), [x, x])
    assert first is not second and not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, second)


def test_the_gradient_is_zeros_where_y_does_not_depend_on_the_tensor():
    x, other = leaf([1.0]), leaf(np.ones((2, 3)), np.float64)
    computed = other * 2
    for gradient in grad((x * 2).sum(), [other, computed, x])[:2]:
        np.testing.assert_array_equal(gradient, np.zeros((2, 3)))
        assert gradient.dtype == np.float64


def product_noting(ran, name="product"):
    """A product whose rule appends to `ran` which gradients are needed."""

    @op("y = a*b", "ā = ȳ*b;  b̄ = ȳ*a")
    def product(a, b):
        """a (*), b (*) -> y (*)"""
        return a * b

    @product.backward
    def product_backward(dy, a, b, needs):
        ran.append((name, needs))
        return (dy * b if needs[0] else None), (dy * a if needs[1] else None)

    return product


def test_a_rule_runs_only_if_a_requested_gradient_depends_on_it_and_gets_needs():
    ran = []
    first, aside, second = (product_noting(ran, name) for name in ("first", "aside", "second"))
    x, w, v = leaf([2.0]), leaf([3.0]), leaf([5.0])
    y = second(first(x, w), aside(v, v)).sum()
    np.testing.assert_array_equal(grad(y, w, retain_graph=True), [50])
    assert ran == [("second", (True, False)), ("first", (False, True))]
    ran.clear()
    grad(y, v, retain_graph=True)
    assert ran == [("second", (False, True)), ("aside", (True, True))]
    ran.clear()
    y.backward()
    assert sorted(ran) == [("aside", (True, True)), ("first", (True, True)), ("second", (True, True))]


@pytest.mark.parametrize("b", [Tensor([2.0]), 2.0])
def test_an_input_without_requires_grad_is_not_needed(b):
    ran = []
    product_noting(ran)(leaf([1.0]), b).sum().backward()
    assert ran == [("product", (True, False))]


def test_a_constant_input_gets_no_gradient_and_the_result_needs_none():
    condition, a = leaf([1.0, 0.0]), leaf([2.0, 3.0])
    assert not ops.where(condition, 1.0, 2.0).requires_grad
    y = ops.where(condition, a, 0.0).sum()
    np.testing.assert_array_equal(grad(y, condition, retain_graph=True), [0, 0])
    y.backward()
    assert condition.grad is None
    np.testing.assert_array_equal(a.grad, [1, 0])


# value_and_grad


def test_value_and_grad_of_given_tensors():
    w = Parameter([2.0, 3.0])
    value, (gradient,) = value_and_grad(lambda x: (w * w * x).sum(), [w])(np.float32(5))
    assert value.item() == 65 and not value.requires_grad
    np.testing.assert_array_equal(gradient, [20, 30])
    value, gradient = value_and_grad(lambda: (w * w).sum(), w)()
    np.testing.assert_array_equal(gradient, [4, 6])
    assert w.grad is None


@pytest.mark.parametrize(
    ("name", "differentiated"),
    [
        ("value_and_grad", lambda f, x: value_and_grad(f)(x)),
        ("hessian", hessian),
        ("hvp", lambda f, x: hvp(f, [x], [x])),
    ],
)
def test_a_function_whose_result_is_no_scalar_is_refused_with_what_to_do(name, differentiated):
    with pytest.raises(ShapeError, match=rf"{name} needs a function .*; it returned shape \(2,\); return its .sum"):
        differentiated(lambda x: x * x, np.ones(2))


def test_value_and_grad_of_the_arguments():
    value, (da, db) = value_and_grad(lambda a, b, scale=1: (a * b * scale).sum())([2.0, 3.0], np.ones(2), scale=10)
    assert value.item() == 50
    np.testing.assert_array_equal(da, [10, 10])
    np.testing.assert_array_equal(db, [20, 30])
    assert (da.dtype, db.dtype) == (np.float32, np.float64)
    _, single = value_and_grad(lambda a: (a * a).sum())([3.0])
    np.testing.assert_array_equal(single, [6])


def test_value_and_grad_of_an_argument_that_was_computed():
    x = leaf([2.0])
    _, gradient = value_and_grad(lambda y: (y * y).sum())(x * 3)
    np.testing.assert_array_equal(gradient, [12])


def test_value_and_grad_of_a_generator_of_tensors_can_be_called_twice():
    w = Parameter([2.0])
    f = value_and_grad(lambda: (w * w).sum(), (p for p in [w]))
    for _ in range(2):
        np.testing.assert_array_equal(f()[1], [[4]])


def test_value_and_grad_keeps_the_name_of_f_and_its_errors():
    def loss(x):
        """The loss."""
        return x.sum()

    assert (value_and_grad(loss).__name__, value_and_grad(loss).__doc__) == ("loss", "The loss.")
    with pytest.raises(ShapeError, match="value_and_grad needs a function that returns a scalar"):
        value_and_grad(lambda x: x * 2)([1.0, 2.0])
    with pytest.raises(GraphError, match="returns a Tensor; it returned float"):
        value_and_grad(lambda x: 1.0)([1.0])
    with pytest.raises(DtypeError, match="only float data"):
        value_and_grad(lambda x: x.sum())([1, 2])


# No shared memory


@pytest.mark.parametrize(
    "f",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a.reshape(4).reshape(2, 2) + b.T.T,
        lambda a, b: ops.concatenate(a, b).swapaxes(0, 1),
        lambda a, b: ops.stack(a, b)[0] + a,
        lambda a, b: ops.broadcast_to(a, shape=(3, 2, 2)) + b,
        lambda a, b: a,
        lambda a, b: ops.where(np.ones((2, 2), bool), a, b),
    ],
)
@pytest.mark.parametrize("retain", [True, False])
def test_gradients_share_no_memory_with_other_arrays(f, retain, rng):
    a, b = leaf(rng.standard_normal((2, 2))), leaf(rng.standard_normal((2, 2)))
    y = f(a, b)
    cotangent = rng.standard_normal(y.shape).astype(np.float32)
    kept = cotangent.copy()
    interior = [y] if y is not a else []
    gradients = grad(y, [a, b, *interior], cotangent, retain_graph=retain)
    others = [a.data, b.data, y.data, cotangent]
    for i, gradient in enumerate(gradients):
        assert gradient.flags.writeable
        for other in others + gradients[:i]:
            assert not np.shares_memory(gradient, other)
    if retain:
        expected = [g.copy() for g in gradients]
        for gradient in gradients:
            gradient[...] = np.nan
        for again, first in zip(grad(y, [a, b, *interior], cotangent), expected):
            np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(cotangent, kept)


@pytest.mark.parametrize("mode", [higher_order, contextlib.nullcontext])
def test_the_grads_of_two_leaves_are_different_arrays(mode):
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    cotangent = np.array([1.0, 1.0], np.float32)
    with mode():
        (a + b).backward(cotangent)
    a.grad *= 10
    np.testing.assert_array_equal(b.grad, [1, 1])
    np.testing.assert_array_equal(cotangent, [1, 1])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_gradients_that_are_views_of_each_other_are_summed_correctly(order):
    @op("y = a + bᵀ", "ā = ȳ;  b̄ = ȳᵀ")
    def add_transposed(a, b):
        """a (n, m), b (m, n) -> y (n, m)"""
        return a + b.T

    @add_transposed.backward
    def add_transposed_backward(dy):
        da = dy * 1
        return da, da.T

    a, b = leaf([[1.0, 2.0], [3.0, 4.0]]), leaf([[5.0, 6.0], [7.0, 8.0]])
    cotangent = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    terms = [(a, b)[i] * 100 for i in order]
    y = add_transposed(a, b) + terms[0] + terms[1]
    da, db = grad(y, [a, b], cotangent)
    np.testing.assert_array_equal(da, 101 * cotangent)
    np.testing.assert_array_equal(db, 100 * cotangent + cotangent.T)
    assert not np.shares_memory(da, db)


def test_one_array_returned_for_two_inputs_is_summed_correctly():
    @op("y = a + b", "ā = ȳ;  b̄ = ȳ")
    def sum_of_two(a, b):
        """a (*), b (*) -> y (*)"""
        return a + b

    @sum_of_two.backward
    def sum_of_two_backward(dy):
        same = dy * 1
        return same, same

    a, b = leaf([1.0]), leaf([2.0])
    da, db = grad((sum_of_two(a, b) + a * 2 + b * 3).sum(), [a, b])
    assert (da[0], db[0]) == (3, 4)


def test_a_saved_array_returned_by_a_rule_is_not_changed():
    @op("y = Σ x₁*x₂", "x̄₁ = x₂;  x̄₂ = x₁")
    def dot(*xs):
        """xs (n) -> y ()"""
        return (xs[0] * xs[1]).sum()

    @dot.backward
    def dot_backward(dy, xs):
        return xs[1], xs[0]

    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    y = dot(a, b) + (a * 10).sum() + (a * 20).sum()
    da, db = grad(y, [a, b], retain_graph=True)
    np.testing.assert_array_equal(da, [33, 34])
    da[...] = db[...] = 0
    np.testing.assert_array_equal(a.data, [1, 2])
    np.testing.assert_array_equal(b.data, [3, 4])


def identity_with(rule):
    """An identity op with this rule, which keeps x in several forms."""

    @op("y = x", "x̄ = ȳ")
    def identity(x):
        """x (n) -> y (n)"""
        return keep(x + 0, parts=[(x,)], whole=x.reshape(-1, 1))

    identity.backward(rule)
    return identity


CONSTANT = np.array([1.0, 2.0], np.float32)
CONSTANT.flags.writeable = False


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        *[(rule, [31, 93]) for rule in (  # the cotangent, a view of it, or a view of an array computed from it
            lambda dy: dy,
            lambda dy: dy.reshape(2, 1).reshape(2),
            lambda dy: dy[::-1][::-1],
            lambda dy: (dy * 1).reshape(1, 2).reshape(2),
            lambda dy: (dy.reshape(2, 1) * np.ones(2, np.float32))[:, 0],
            lambda dy: np.stack([dy, dy])[1],
        )],
        *[(rule, [31, 92]) for rule in (  # a saved array, a view of one, a read-only array
            lambda dy, x: x,
            lambda dy, x: x.reshape(1, 2).reshape(2),
            lambda dy, parts: parts[0][0],
            lambda dy, parts: parts[0][0][:],
            lambda dy, whole: whole.reshape(2),
            lambda dy, whole: whole.base,
            lambda dy: CONSTANT,
        )],
    ],
)  # fmt: skip
def test_any_array_that_a_rule_returns_is_summed_correctly_and_not_changed(rule, expected):
    made = identity_with(rule)
    for place in range(3):  # the rule's gradient is the first, second or last of three
        x = leaf([1.0, 2.0])
        terms = [x * 10, x * 20]
        terms.insert(place, made(x))
        y = terms[0] + terms[1] + terms[2]
        cotangent = np.array([1.0, 3.0], np.float32)
        np.testing.assert_array_equal(grad(y, x, cotangent, retain_graph=True), expected)
        np.testing.assert_array_equal(grad(y, x, cotangent), expected)
        np.testing.assert_array_equal(x.data, [1, 2])
        np.testing.assert_array_equal(cotangent, [1, 3])
        np.testing.assert_array_equal(CONSTANT, [1, 2])


@pytest.mark.parametrize("own", [lambda dy: dy * 2, lambda dy: (dy.reshape(2, 1) * 2).reshape(2)])
def test_sums_are_written_into_arrays_that_rules_have_made(own):
    made = []

    def rule(dy):
        made.append(own(dy))
        return made[-1]

    branch = identity_with(rule)
    x = leaf([1.0, 2.0])
    h = x * 1
    seen = []
    h.register_hook(seen.append)
    grad(h + branch(h), x, np.array([1.0, 3.0], np.float32))
    np.testing.assert_array_equal(made[0], [3, 9])
    assert np.shares_memory(seen[0], made[0])


# out=


def two_leaves() -> list[Tensor]:
    return [Tensor(np.array([1.0, 2.0]), requires_grad=True), Tensor(np.array([[3.0], [4.0]]), requires_grad=True)]


def test_gradients_written_into_out_are_the_same() -> None:
    leaves = two_leaves()
    y = ((leaves[0] * leaves[1]) * leaves[0]).sum()
    out = [np.full(leaf.shape, np.nan) for leaf in leaves]
    found = grad(y, leaves, retain_graph=True, out=out)
    assert all(a is b for a, b in zip(found, out, strict=True))
    for written, expected in zip(out, grad(y, leaves), strict=True):
        np.testing.assert_array_equal(written, expected)


def test_a_rule_with_into_gets_the_array_of_out(monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[Any] = []
    rule = ops.linear.rule

    def noting(dy: Any, x: Any, w: Any, needs: Any, into: Any) -> Any:
        offered.append(into)
        return rule(dy, x, w, needs, into)

    monkeypatch.setattr(ops.linear, "rule", noting)
    x, w = (Tensor(np.random.default_rng(n).standard_normal((3, 3)), requires_grad=True) for n in (0, 1))
    y = ops.linear(ops.linear(ops.linear(x, w), w), x).sum()  # w twice; x as the first input and as a last weight
    out = [np.full((3, 3), np.nan) for _ in range(2)]
    found = grad(y, [x, w], retain_graph=True, out=out)
    assert [[into is not None and into is out[k] for into in row[:2] for k in (0, 1)] for row in offered] == [
        [False, False, True, False],  # the last weight is x, with no gradient so far
        [False, False, False, True],  # the second is w, with no gradient so far
        [False, False, False, False],  # both have a gradient
    ]
    for written, expected in zip(found, grad(y, [x, w]), strict=True):
        np.testing.assert_array_equal(written, expected)
    offered.clear()
    ops.linear(x, x).sum().backward()
    grad(ops.linear(x, x).sum(), [x], out=out[:1])  # the same leaf twice in one call
    assert all(into is None for row in offered for into in row)


def test_a_rule_with_onto_adds_to_the_array_of_out(monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[Any] = []
    rule = ops.embedding.rule

    def noting(dy: Any, w_shape: Any, ids: Any, onto: Any) -> Any:
        offered.append(onto[0])
        return rule(dy, w_shape, ids, onto)

    monkeypatch.setattr(ops.embedding, "rule", noting)
    rng = np.random.default_rng(0)
    table, weight = (Tensor(rng.standard_normal((7, 3)), requires_grad=True) for _ in range(2))
    ids = rng.integers(7, size=5)
    for used in (table, weight):  # with a second use as the head, or without
        logits = ops.linear(ops.tanh(ops.embedding(table, ids)), used.T)
        out = [np.full((7, 3), np.nan) for _ in range(2)]
        found = grad((logits * logits).sum(), [table, weight], retain_graph=True, out=out)
        assert all(a is b for a, b in zip(found, out, strict=True))
        for written, expected in zip(out, grad((logits * logits).sum(), [table, weight]), strict=True):
            np.testing.assert_array_equal(written, expected)
        assert offered.pop() is None  # without out=
        assert offered.pop() is (out[0] if used is table else None)
    assert not offered


def test_a_leaf_that_y_does_not_depend_on_gets_zeros_in_out() -> None:
    leaves = two_leaves()
    out = [np.full(leaf.shape, np.nan) for leaf in leaves]
    grad((leaves[0] * 2).sum(), leaves, out=out)
    assert out[0].tolist() == [2, 2] and out[1].tolist() == [[0], [0]]


def test_the_result_of_a_hook_is_written_into_out() -> None:
    leaf = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    leaf.register_hook(lambda g: 10 * g)
    out = np.zeros(2)
    grad((leaf * leaf).sum(), [leaf], out=[out])
    assert out.tolist() == [20, 40]


def test_out_shares_no_memory_with_the_tape() -> None:
    leaf = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    cotangent, out = np.array([3.0, 4.0]), np.zeros(2)
    y = leaf + 0.0
    grad(y, [leaf], cotangent, retain_graph=True, out=[out])
    out += 1
    assert cotangent.tolist() == [3, 4]
    assert grad(y, leaf, cotangent).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("wrt", "out", "error", "match"),
    [
        ("ab", [np.zeros(2)], ShapeError, "an array for each of the 2 Tensors; got 1"),
        ("ab", [np.zeros(2), np.zeros(2)], ShapeError, r"here \(2, 1\) float64; got \(2,\) float64"),
        ("ab", [np.zeros(2, np.float32), np.zeros((2, 1))], ShapeError, r"here \(2,\) float64; got \(2,\) float32"),
        ("c", [np.zeros((2, 2))], GraphError, "out= is for leaves"),
        ("aa", [np.zeros(2), np.zeros(2)], GraphError, "out= is for leaves, each given once"),
    ],
)
def test_out_that_does_not_fit_is_refused(wrt: str, out: list[np.ndarray], error: type[Exception], match: str) -> None:
    a, b = two_leaves()
    tensors = {"a": a, "b": b, "c": a * b}
    with pytest.raises(error, match=match):
        grad(tensors["c"].sum(), [tensors[name] for name in wrt], out=out)


def test_out_is_refused_under_higher_order() -> None:
    leaf = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    with higher_order(), pytest.raises(GraphError, match="under higher_order"):
        grad((leaf * leaf).sum(), [leaf], out=[np.zeros(2)])


def test_reading_the_grad_of_a_computed_tensor_that_keeps_none_warns():
    x = leaf([1.0, 2.0])
    y, kept = x * 2, x * 3
    kept.retain_grad()
    (y * kept).sum().backward()
    with pytest.warns(UserWarning, match=r"multiply\); call its retain_grad\(\) before backward, or use ng.grad"):
        assert y.grad is None
    assert kept.grad.tolist() == [2, 4]
    assert x.grad is not None and leaf([1.0]).grad is None and y.detach().grad is None


@pytest.mark.parametrize(("value", "found"), [([1.0, 2.0], "a list"), (np.ones(3), r"an array of shape \(3,\)")])
def test_a_grad_of_another_shape_or_type_is_refused(value, found):
    x = leaf([1.0, 2.0])
    with pytest.raises(ShapeError, match=rf"shape \(2,\) is an array of that shape, or None; got {found}"):
        x.grad = value
