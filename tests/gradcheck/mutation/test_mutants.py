"""Planted mistakes do what their names say, change a gradient, and are removed afterwards."""

from __future__ import annotations

import functools
import threading

import numpy as np
import pytest

from nanograd_llm import ops
from nanograd_llm.autograd.modes import higher_order
from nanograd_llm.autograd.op import Op, op
from nanograd_llm.autograd.tensor import Tensor, grad, registry
from nanograd_llm.errors import GraphError, NanogradError
from nanograd_llm.gradcheck import Mutant, draw_cases, mutants

NAMES = [name for name, op in registry.items() if op.__module__.startswith("nanograd_llm.")]


@functools.cache
def planned(name: str) -> list[Mutant]:
    """The mutants of an op of the package."""
    return mutants(registry[name])


def named(of: Op, name: str) -> Mutant:
    (found,) = [mutant for mutant in planned(of.name) if mutant.name == name]
    return found


def leaf(rng, *shape):
    return Tensor(rng.standard_normal(shape), requires_grad=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_op_has_its_mistakes_each_with_a_name_and_one_of_them_small(name):
    found = planned(name)
    names = [mutant.name for mutant in found]
    assert len(set(names)) == len(names) >= 7
    assert len({mutant.description for mutant in found}) == len(found)
    assert sum(mutant.sharp for mutant in found) == len(registry[name].differentiable)


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("exp", "x: scaled by 1 + 1e-9"),
        ("exp", "x: factor 2"),
        ("exp", "x: sign"),
        ("exp", "x: dropped"),
        ("exp", "x: transposed"),
        ("exp", "x: last lost"),
        ("exp", "x: shifted"),
        ("exp", "x: upstream ignored"),
        ("add", "a: no broadcast sum"),
        ("add", "b: no broadcast sum"),
        ("subtract", "a and b exchanged"),
        ("tanh", "terms with y dropped"),
        ("getitem", "x: = for +="),
        ("embedding", "w: = for +="),
        ("matmul", "b: = for +="),
        ("mean", "x: n-1"),
        ("softmax", "x: cross terms dropped"),
        ("softmax", "x: n-1"),
        ("layernorm", "x: n-1"),
        ("layernorm", "x: cross terms dropped"),
        ("layernorm", "terms with xhat dropped"),
        ("layernorm", "w: no broadcast sum"),
        ("layernorm", "w and b exchanged"),
        ("attention", "q and k exchanged"),
        ("linear", "b: no broadcast sum"),
        ("concatenate", "xs: sign"),
    ],
)
def test_the_mistakes_that_people_make_are_there(name, mistake):
    assert mistake in [mutant.name for mutant in planned(name)]


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("add", "a and b exchanged"),  # the two gradients are the same
        ("exp", "x: = for +="),  # every entry gets one contribution
        ("exp", "x: cross terms dropped"),
        ("exp", "terms with y dropped"),  # the whole gradient is one: that is "dropped"
        ("divide", "terms with b dropped"),  # a NaN, which shouts for itself
        ("softmax", "x: upstream ignored"),  # gives zero: "dropped" as well
    ],
)
def test_a_mistake_that_changes_nothing_or_the_same_as_another_is_left_out(name, mistake):
    assert mistake not in [mutant.name for mutant in planned(name)]


@pytest.mark.parametrize("name", NAMES)
def test_every_mistake_changes_a_gradient_and_is_removed_afterwards(name):
    of = registry[name]
    drawn = list(draw_cases(of, np.random.default_rng(0), 72))
    before = of.rule, of._plan, list(of._plan)
    for mutant in planned(name):
        assert any(differs(mutant, case) for case in drawn), mutant.name
    assert (of.rule, of._plan, list(of._plan)) == before


def differs(mutant, case):
    right = gradients(mutant.op, case)
    with mutant.planted():
        wrong = gradients(mutant.op, case)
    return any(np.abs(a - b).max(initial=0) > 1e-11 * np.abs(a).max(initial=0) for a, b in zip(right, wrong))


def gradients(of, case):
    call, arrays = case.on(of)
    leaves = [Tensor(x, requires_grad=True) for x in arrays]
    try:
        y = call(*leaves)
        return grad(y, leaves, np.random.default_rng(1).uniform(0.5, 1.5, y.shape)) if y.requires_grad else []
    except NanogradError:  # two gradients exchanged that have two shapes
        return [np.nan * np.ones_like(x) for x in arrays]


def test_the_rule_is_restored_after_an_exception():
    rule = ops.exp.rule
    with pytest.raises(KeyboardInterrupt), named(ops.exp, "x: sign").planted():
        assert ops.exp.rule is not rule
        raise KeyboardInterrupt
    assert ops.exp.rule is rule


def test_the_mistake_is_made_in_every_thread(rng):
    x, found = leaf(rng, 3), []
    with named(ops.exp, "x: factor 2").planted():
        thread = threading.Thread(target=lambda: found.append(grad(ops.exp(x), x, np.ones(3))))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(found[0], 2 * np.exp(x.data))


def test_a_second_mistake_in_an_op_is_refused_in_another_thread_and_within_the_first_one_is_undone_before_it(rng):
    rule, x = ops.exp.rule, leaf(rng, 3)
    first, second = (named(ops.exp, name) for name in ("x: sign", "x: factor 2"))
    refused = []

    def plant():
        with pytest.raises(GraphError, match="exp has a mistake planted in it by another thread; wait until that"):
            second.planted().__enter__()
        refused.append(True)

    with first.planted():
        (thread := threading.Thread(target=plant)).start()
        thread.join()
        with second.planted():
            np.testing.assert_array_equal(grad(ops.exp(x).sum(), x), -2 * np.exp(x.data))
        np.testing.assert_array_equal(grad(ops.exp(x).sum(), x), -np.exp(x.data))
    assert refused and ops.exp.rule is rule


def test_a_small_mistake_is_one_part_in_a_billion(rng):
    x = leaf(rng, 3)
    with named(ops.exp, "x: scaled by 1 + 1e-9").planted():
        np.testing.assert_allclose(grad(ops.exp(x), x, np.ones(3)) / np.exp(x.data) - 1, 1e-9, rtol=1e-5)


def test_writing_equals_for_plus_equals_keeps_the_last_row_that_was_looked_up(rng):
    w, dy = leaf(rng, 3, 2), rng.standard_normal((2, 2))
    with named(ops.embedding, "w: = for +=").planted():
        np.testing.assert_array_equal(grad(ops.embedding(w, np.array([1, 1])), w, dy), [[0, 0], dy[1], [0, 0]])


@pytest.mark.parametrize("shape", [(2,), (1, 2), (3, 1)])
def test_without_the_broadcast_sum_the_first_slice_is_the_gradient(rng, shape):
    a, b, dy = leaf(rng, 3, 2), leaf(rng, *shape), rng.standard_normal((3, 2))
    with named(ops.add, "b: no broadcast sum").planted():
        da, db = grad(a + b, [a, b], dy)
    np.testing.assert_array_equal(da, dy)
    np.testing.assert_array_equal(db, (dy[:, :1] if shape == (3, 1) else dy[:1]).reshape(shape))


def test_without_cross_terms_softmax_has_the_rule_of_an_elementwise_function(rng):
    x, dy = leaf(rng, 2, 5), rng.standard_normal((2, 5))
    y = ops.softmax(x)
    with named(ops.softmax, "x: cross terms dropped").planted():
        np.testing.assert_allclose(grad(y, x, dy), dy * y.data * (1 - y.data), rtol=1e-12)


def test_n_minus_1_is_the_mean_over_one_too_few(rng):
    x, dy = leaf(rng, 2, 5), rng.standard_normal(2)
    with named(ops.mean, "x: n-1").planted():
        np.testing.assert_allclose(grad(x.mean(axis=-1), x, dy), np.repeat(dy[:, None] / 4, 5, axis=1), rtol=1e-12)


def test_upstream_ignored_is_right_for_a_cotangent_of_ones_only(rng):
    x = leaf(rng, 4)
    with named(ops.sin, "x: upstream ignored").planted():
        for dy in (np.ones(4), rng.standard_normal(4)):
            np.testing.assert_array_equal(grad(ops.sin(x), x, dy), np.cos(x.data))


def test_exchanged_gradients_of_other_shapes_raise_the_usual_shape_error(rng):
    x, w = leaf(rng, 5, 3), leaf(rng, 3, 2)
    with named(ops.linear, "x and w exchanged").planted(), pytest.raises(NanogradError, match="rule of linear"):
        grad(ops.linear(x, w), [x, w], np.ones((5, 2)))


def test_a_tape_recorded_before_the_mistake_was_planted_can_still_be_walked(rng):
    b, dy = leaf(rng, 2), rng.standard_normal((3, 2))
    y = leaf(rng, 3, 2) + b
    with named(ops.add, "b: no broadcast sum").planted():
        np.testing.assert_allclose(grad(y, b, dy), dy.sum(axis=0))  # nothing on it says what b's shape was


def test_a_mistake_can_use_inputs_that_the_rule_does_not_receive(rng):
    x, w = leaf(rng, 5, 3), leaf(rng, 3, 2)
    with named(ops.linear, "b: no broadcast sum").planted():
        dx, dw = grad(ops.linear(x, w), [x, w], np.ones((5, 2)))  # no b
    np.testing.assert_allclose(dw, x.data.T @ np.ones((5, 2)))


@pytest.mark.parametrize("name", ["multiply", "power", "tanh", "matmul", "getitem", "mean", "where", "concatenate"])
def test_mistakes_are_the_same_under_higher_order(name):
    of = registry[name]
    case = max(list(draw_cases(of, np.random.default_rng(0), 12)), key=lambda case: case.size)
    call, arrays = case.on(of)
    for mutant in planned(name):
        leaves = [Tensor(x, requires_grad=True) for x in arrays]
        with mutant.planted(), higher_order():
            y = call(*leaves)
            try:
                found = grad(y, leaves, np.random.default_rng(1).uniform(0.5, 1.5, y.shape))
            except NanogradError:
                assert mutant.name.endswith("exchanged")
                continue
        with mutant.planted():
            for plain, recorded in zip(gradients(of, case), found):
                np.testing.assert_allclose(recorded.data, plain, rtol=1e-12, err_msg=mutant.name)


def test_an_op_whose_gradient_is_zero_has_no_mistakes():
    @op("y = 0*x", "x̄ = 0*ȳ")
    def nought(x):
        """Nothing.  x (*) -> y (*)"""
        return 0 * x

    @nought.backward
    def nought_backward(dy):
        return 0 * dy

    del registry[f"{__name__}.nought"]
    assert mutants(nought) == []


def test_an_op_without_a_rule_is_refused(monkeypatch):
    mutant = named(ops.exp, "x: sign")
    monkeypatch.setattr(ops.exp, "rule", None)
    with pytest.raises(GraphError, match="no rule"):
        mutants(ops.exp)
    with pytest.raises(GraphError, match="has no rule any more"), mutant.planted():
        pass


def test_an_op_whose_inputs_cannot_be_drawn_is_refused(monkeypatch):
    monkeypatch.setattr(ops.embedding, "samples", None)
    with pytest.raises(NanogradError, match="declare samples"):
        mutants(ops.embedding)
