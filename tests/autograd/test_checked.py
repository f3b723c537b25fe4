"""In `checked()` mode the first wrong number, dtype, shape or write is reported where it first appears."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

from nanograd_llm import Parameter, Tensor, checked, grad, hvp, keep, nn, no_grad, op, ops
from nanograd_llm.autograd.modes import within_module
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.errors import DtypeError, GraphError, InPlaceError, NonFiniteError, ShapeError
from nanograd_llm.gradcheck.cases.samples import draw_cases

OPS = sorted(name for name, one in registry.items() if one.__module__.startswith("nanograd_llm.ops"))


def leaf(values, dtype=np.float32):
    return Tensor(np.array(values, dtype=dtype), requires_grad=True)


def line_after(offset: int = 1) -> str:
    """FILE:LINE of the source line `offset` lines below the call."""
    frame = inspect.currentframe().f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno + offset}"


# Numbers


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_first_nan_is_reported_with_op_shapes_module_line_and_index():
    x = leaf([[1.0, -1.0, 2.0], [1.0, 1.0, -3.0]])
    with checked(), within_module("blocks"), within_module("2"), pytest.raises(NonFiniteError) as caught:
        where = line_after()
        ops.exp(ops.log(x) * 0.5)
    assert str(caught.value) == (
        f"the result of log((2, 3)) in module blocks.2, called at {where} holds 2 non-finite of 6 values; "
        "the first is nan at (0, 1)"
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_infinity_is_reported_with_the_line_of_the_operator():
    x = leaf([1.0, 0.0])
    with checked(), pytest.raises(NonFiniteError) as caught:
        where = line_after()
        1 / x
    said = f"the result of divide(a number, (2,)), called at {where} holds 1 non-finite of 2 values"
    assert said in str(caught.value)
    assert "the first is inf at (1,)" in str(caught.value)


def test_a_bad_result_of_a_method_is_reported_with_the_line_that_calls_it():
    x = leaf([np.finfo(np.float32).max] * 2)
    with (
        np.errstate(all="ignore"),
        checked(),
        pytest.raises(NonFiniteError, match=r"the result of sum\(\(2,\)\)") as caught,
    ):
        where = line_after()
        x.sum()
    assert where in str(caught.value)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_bad_gradient_is_reported_with_the_op_and_the_line_of_its_forward():
    x = leaf([4.0, 0.0])
    with checked():
        where = line_after()
        y = ops.sqrt(x)
        with pytest.raises(NonFiniteError) as caught:
            y.sum().backward()
    assert re.match(
        rf"the gradient of input 0 of sqrt\(\(2,\)\), called at {re.escape(where)} holds 1", str(caught.value)
    )
    assert x.grad is None


def test_a_bad_cotangent_given_by_the_caller_is_not_blamed_on_a_rule():
    y = None
    with checked():
        y = leaf([1.0, 2.0]) * 3
    with pytest.raises(NonFiniteError, match=r"the cotangent of the result of multiply\(.*, a number\).*nan at \(1,\)"):
        y.backward([1.0, float("nan")])


def test_a_bad_cotangent_from_a_hook_is_reported():
    x = leaf([1.0, 2.0])
    with checked():
        y = x * 3
        y.register_hook(lambda g: g * np.float32("inf"))
        with pytest.raises(NonFiniteError, match="the cotangent of the result of multiply"):
            y.sum().backward()


def test_an_overflow_of_a_sum_of_gradients_is_reported():
    huge = np.finfo(np.float32).max
    x = leaf([1.0])
    with np.errstate(all="ignore"), checked():
        y = x * 1.0
        z = (y * (huge * 0.75) * 0.5 + y * (huge * 0.75) * 0.5).sum()
        grad(z, x, retain_graph=True)
        with pytest.raises(NonFiniteError, match="the cotangent of the result of multiply"):
            grad(z, x, np.float32(2))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_outside_checked_nothing_is_tested():
    x = leaf([-1.0])
    y = ops.log(x).sum()
    y.backward()
    assert np.isnan(y.item())
    with checked(enabled=False):
        ops.log(x)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_results_that_need_no_gradient_are_tested_too():
    with checked(), pytest.raises(NonFiniteError, match="the result of log"):
        ops.log(Tensor([-1.0]))


def test_integers_and_booleans_pass():
    with checked():
        np.testing.assert_array_equal((Tensor([1, 2]) + Tensor([True, False])).data, [2, 2])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_module_names_its_path():
    class Leaves(nn.Module):
        def forward(self, x):
            return ops.log(x)

    class Tree(nn.Module):
        def __init__(self):
            self.blocks = [Leaves(), Leaves()]

        def forward(self, x):
            return self.blocks[1](self.blocks[0](x))

    with checked(), pytest.raises(NonFiniteError, match=r"in module blocks\.1, called at .*test_checked\.py"):
        Tree()(leaf([1.0, 0.5]))


# Dtypes


def drifting_forward():
    @op("y = x", "x̄ = ȳ")
    def drifts(x):
        """x (*) -> y (*)"""
        return x.astype(np.float64)

    @drifts.backward
    def drifts_backward(dy):
        return dy

    return drifts


def drifting_rule():
    @op("y = x", "x̄ = ȳ")
    def drifts_back(x):
        """x (*) -> y (*)"""
        return x * 1

    @drifts_back.backward
    def drifts_back_backward(dy):
        return dy * np.ones(dy.shape)

    return drifts_back


def test_a_result_wider_than_its_inputs_is_reported():
    with checked(), pytest.raises(DtypeError, match=r"the result of drifts\(\(2,\)\), called at .* widened to float64"):
        drifting_forward()(leaf([1.0, 2.0]))


def test_a_gradient_wider_than_its_inputs_is_reported():
    with checked():
        y = drifting_rule()(leaf([1.0, 2.0])).sum()
        said = r"the gradient of input 0 of drifts_back\(\(2,\)\).* widened to float64.*: convert it, by .astype"
        with pytest.raises(DtypeError, match=said):
            y.backward()


def test_a_cast_and_mixed_dtypes_are_allowed():
    x, wide = leaf([1.0, 2.0]), leaf([3.0, 4.0], np.float64)
    with checked():
        y = (x.astype("float64") * wide).sum() + (x * wide).sum() + wide.astype("float32").sum()
        dx, dwide = grad(y, [x, wide])
    assert (dx.dtype, dwide.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(dx, [6, 8])
    np.testing.assert_array_equal(dwide, [3, 5])


# Shapes


def test_a_result_that_breaks_its_shape_line_is_reported():
    @op("y = Σ x", "x̄ = ȳ")
    def flattens(x):
        """x (n, m) -> y (n)"""
        return x.sum(axis=0)

    x = Tensor(np.ones((2, 3), np.float32))
    with checked(), pytest.raises(ShapeError) as caught:
        where = line_after()
        flattens(x)
    assert str(caught.value) == (
        f"the result of flattens((2, 3)), called at {where} breaks the shape line x (n, m) -> y (n): "
        "the result has shape (3,) where the line says (2,)"
    )


def test_inputs_that_break_the_shape_line_are_reported_even_if_numpy_broadcasts():
    @op("y = x*w", "x̄ = ȳ*w;  w̄ = ȳ*x")
    def scales(x, w):
        """x (..., C), w (C) -> y (..., C)"""
        return x * w

    with checked(), pytest.raises(ShapeError, match="C is 1 here and 3 in x"):
        scales(leaf(np.ones((2, 3))), leaf([2.0]))


@pytest.mark.parametrize("shape", [6, (6,), [3, 2], (-1, 2), [-1], np.int64(6), (np.int64(3), 2)])
def test_a_static_shape_may_be_a_number_a_tuple_or_a_list(shape):
    with checked():
        assert leaf(np.ones((2, 3))).reshape(shape).size == 6


@pytest.mark.parametrize("axis", [None, 0, -1, np.int64(1), (0, 1), (), [0]])
def test_a_reduction_may_name_its_axes_in_any_form(axis):
    with checked():
        x = leaf(np.ones((2, 3)))
        for reduce in (ops.sum, ops.mean, ops.max):
            y = reduce(x, axis=axis)
            assert reduce(x, axis=axis, keepdims=True).ndim == 2
            grad(y, x, np.ones(y.shape, np.float32))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_op_runs_in_checked_mode_and_gives_the_same_bits(name):
    for case in draw_cases(registry[name], np.random.default_rng(0), 6):
        if not all(np.isfinite(x).all() for x in case.inputs if isinstance(x, np.ndarray)):
            continue
        plain, found = [], []
        for mode, results in ((False, plain), (True, found)):
            inputs = [
                Tensor(x, requires_grad=True) if getattr(x, "dtype", None) == np.float32 else x
                for x in case.astype(np.float32).inputs
            ]
            leaves = [x for x in inputs if isinstance(x, Tensor)]
            with checked(mode):
                y = registry[name](*inputs, **case.static)
                cotangent = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
                results += [y.data, *grad(y, leaves, cotangent)]
            assert all(x.data.flags.writeable for x in leaves)
        for a, b in zip(plain, found):
            np.testing.assert_array_equal(a, b)


# Writes


def test_a_forward_that_writes_into_its_input_is_reported_by_name():
    @op("y = 2x", "x̄ = 2ȳ")
    def doubles(x):
        """x (*) -> y (*)"""
        x *= 2
        return x

    for x in (leaf([1.0]), Tensor([1.0]), leaf([1.0]) * 3):
        with checked(), pytest.raises(InPlaceError, match="the forward of doubles writes into its input"):
            doubles(x)


def test_a_result_that_is_its_input_or_a_view_of_it_is_as_writeable_as_without_checked():
    x = Tensor(np.ones((2, 3), np.float32))
    with checked():
        results = [x.reshape(6), x.T, x[0], x.astype(np.float32), ops.dropout(x, rate=0.0, seed=(1,))]
    assert all(y.data.flags.writeable for y in results)


def test_an_input_that_holds_nan_is_named_as_the_cause():
    with checked(), pytest.raises(NonFiniteError, match=r"the input w of linear\(.* holds 1 non-finite of 6 values"):
        ops.linear(leaf([[1.0, 2.0]]), leaf([[1.0, 2.0, np.nan], [1.0, 2.0, 3.0]]))


def test_a_parameter_that_holds_nan_is_named_with_its_full_path():
    class Two(nn.Module):
        def __init__(self):
            self.layers = [nn.Linear(2, 3), nn.Linear(3, 2)]

        def forward(self, x):
            return self.layers[1](self.layers[0](x))

    model, x = Two(), leaf([[1.0, 2.0]])
    model.layers[1].bias.data[1] = np.nan
    with checked(), pytest.raises(NonFiniteError, match=r"the parameter layers\.1\.bias, the input b of linear\("):
        model(x)
    model.layers[1].bias.data[1] = 0
    broken = leaf([[np.nan, 2.0]])  # of no module, so it is the input alone that is named
    with checked(), pytest.raises(NonFiniteError, match=r"^the input x of linear\("):
        model(broken)


@pytest.mark.parametrize("what", ["a saved array", "a cotangent in a hook"])
def test_a_write_that_leaves_the_block_says_what_to_do(what):
    def doubled(cotangent):
        cotangent *= 2

    with (
        pytest.raises(InPlaceError, match=r"inside checked\(\), arrays that the tape keeps .* write into a copy"),
        checked(),
    ):
        x = leaf([1.0, 2.0])
        y = x * x
        if what == "a saved array":
            x.data[0] = 9
        y.register_hook(doubled)
        y.sum().backward()


def test_writing_into_a_saved_array_fails_at_the_line_that_writes():
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    with checked():
        y = (x * w).sum()
        for array in (x.data, w.data):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 9
        y.backward()
    x.data[0] = w.data[0] = 9
    np.testing.assert_array_equal(x.grad, [3, 4])


def test_saved_results_static_arguments_and_lists_are_read_only_as_well():
    x, rows = leaf([[1.0, 2.0], [3.0, 4.0]]), np.array([0, 0, 1])
    with checked():
        y = ops.exp(x)
        z = y[rows, 1].sum()
        assert not y.data.flags.writeable and not rows.flags.writeable
        z.backward()
    assert y.data.flags.writeable and rows.flags.writeable


def test_saved_arrays_are_writeable_again_when_the_graph_is_dropped_without_backward():
    x = leaf([1.0])
    with checked():
        y = x * x
        assert not x.data.flags.writeable
        del y
        assert x.data.flags.writeable


def test_saved_arrays_are_writeable_again_after_a_failed_forward_or_backward():
    x = leaf([4.0, 0.0])
    with np.errstate(all="ignore"), checked():
        with pytest.raises(NonFiniteError):
            ops.sqrt(x * x * 0.0).sum().backward()
        with pytest.raises(NonFiniteError):
            ops.log(x * x)
    assert x.data.flags.writeable


def test_an_array_saved_by_two_nodes_is_read_only_until_both_are_freed():
    x = leaf([1.0, 2.0])
    with checked():
        first, second = (x * x).sum(), (x * x * x).sum()
        first.backward()
        assert not x.data.flags.writeable
        second.backward(retain_graph=True)
        assert not x.data.flags.writeable
        second.backward()
        assert x.data.flags.writeable


def test_an_array_that_was_read_only_before_stays_read_only():
    array = np.array([1.0, 2.0], np.float32)
    array.flags.writeable = False
    x = Tensor(array, requires_grad=True)
    with checked():
        (x * x).sum().backward()
    assert not array.flags.writeable


@pytest.mark.parametrize("view_first", [True, False])
@pytest.mark.parametrize("backward", [True, False])
def test_a_view_and_its_owner_are_both_restored_in_any_order(view_first, backward):
    owner = np.array([1.0, 2.0, 3.0], np.float32)
    view = owner[1:]
    x, part = Tensor(owner, requires_grad=True), Tensor(view, requires_grad=True)
    with checked():
        tapes = [(part * part).sum(), (x * x).sum()]
        while tapes:
            y = tapes.pop(0 if view_first else -1)
            if backward:
                y.backward()
            del y
    assert owner.flags.writeable and view.flags.writeable


@pytest.mark.parametrize("through", ["view", "base"])
def test_a_write_through_an_older_view_or_the_base_is_reported_by_backward(through):
    base = np.array([1.0, 2.0, 3.0], np.float32)
    saved, view = (base, base[1:]) if through == "view" else (base[1:], base)
    x = Tensor(saved, requires_grad=True)
    with checked():
        where = line_after()
        y = (x * x).sum()
        view[-1] = 7
        with pytest.raises(GraphError) as caught:
            y.backward()
    assert f"an array of shape {saved.shape} that multiply" in str(caught.value)
    assert f"called at {where} saved for backward was changed after the forward" in str(caught.value)
    assert x.grad is None


def test_a_write_that_is_undone_before_backward_is_no_error():
    base = np.array([1.0, 2.0], np.float32)
    view = base[:]
    x = Tensor(base, requires_grad=True)
    with checked():
        y = (x * x).sum()
        view[0] = 7
        view[0] = 1
        y.backward()
    np.testing.assert_array_equal(x.grad, [2, 4])


def test_an_op_recorded_after_a_write_saves_the_new_numbers():
    base = np.array([1.0, 2.0], np.float32)
    view = base[:]
    x = Tensor(base, requires_grad=True)
    with checked():
        stale = (x * x).sum()
        view[0] = 7
        fresh = (x * x).sum()
        fresh.backward()
        with pytest.raises(GraphError, match="was changed after the forward"):
            stale.backward()
    del stale, fresh
    np.testing.assert_array_equal(x.grad, [14, 4])
    assert base.flags.writeable


def test_outside_checked_a_rule_computes_with_the_changed_numbers():
    x, w = leaf([1.0]), leaf([3.0])
    y = (x * w).sum()
    w.data[0] = 5
    np.testing.assert_array_equal(grad(y, x), [5])


def test_a_rule_that_writes_into_its_cotangent_fails_at_that_line():
    @op("y = 2*x", "x̄ = 2*ȳ")
    def doubles(x):
        """x (*) -> y (*)"""
        return 2 * x

    @doubles.backward
    def doubles_backward(dy):
        dy *= 2
        return dy

    x = leaf([1.0])
    with checked():
        y = doubles(x) + x  # both get the same cotangent
        with pytest.raises(InPlaceError, match="in the rule of doubles: it writes into its cotangent, .* copy it"):
            y.backward([1.0])


def test_a_rule_that_writes_into_a_saved_array_fails_at_that_line():
    @op("y = x²", "x̄ = 2*ȳ*x")
    def squares(x):
        """x (*) -> y (*)"""
        return keep(x * x, doubled=2 * x)

    @squares.backward
    def squares_backward(dy, doubled):
        doubled *= dy
        return doubled

    with checked():
        y = squares(leaf([1.0])).sum()
        with pytest.raises(InPlaceError, match="or into what the tape keeps"):
            y.backward()


def test_backward_outside_the_block_still_checks_what_was_recorded_inside():
    base = np.array([1.0, 2.0], np.float32)
    view = base[:]
    x = Tensor(base, requires_grad=True)
    with checked():
        y = (x * x).sum()
    view[0] = 7
    with pytest.raises(GraphError, match="was changed after the forward"):
        y.backward()


def test_checked_training_steps_give_the_same_bits_as_plain_ones():
    def steps(mode):
        w = Parameter(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))
        for _ in range(3):
            with checked(mode):
                loss = ops.cross_entropy(ops.gelu(Tensor(np.eye(4, dtype=np.float32)) @ w), np.array([0, 1, 2, 0]))
                loss.backward()
            w.data -= 0.1 * w.grad
            w.grad = None
        return w.data.tobytes()

    assert steps(True) == steps(False)


def test_second_derivatives_run_in_checked_mode():
    with checked():
        (product,) = hvp(lambda x: (ops.softmax(x) * x).sum(), [np.array([1.0, 2.0])], [np.array([1.0, 0.0])])
    assert np.isfinite(product).all()


def test_an_update_in_place_before_backward_is_refused_with_advice():
    w = leaf([1.0, 2.0])
    with checked():
        y = (w * w).sum()
        with no_grad(), pytest.raises(GraphError, match="update after backward: the tape keeps this array until then"):
            w -= 0.5
        y.backward()
    assert np.array_equal(w.grad, [2, 4])
