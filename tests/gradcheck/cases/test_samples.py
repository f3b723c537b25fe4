"""Inputs drawn for an op fit its shape line and domain, and reach empty axes, missing inputs and broadcasting."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm import ops
from nanograd_llm.errors import NanogradError
from nanograd_llm.gradcheck import Case, Draw, draw_cases
from nanograd_llm.gradcheck.cases.samples import MANY, SWEEPS, derived, sweeps


def drawn(of, count=60, seed=0):
    return list(draw_cases(of, np.random.default_rng(seed), count))


def test_the_same_generator_draws_the_same_cases():
    for a, b in zip(drawn(ops.layernorm), drawn(ops.layernorm)):
        assert all(np.array_equal(x, y) for x, y in zip(a.inputs, b.inputs))


def test_every_sample_of_an_op_is_drawn_at_least_once():
    assert len(drawn(ops.getitem, count=1)) == len(list(ops.getitem.samples(Draw(np.random.default_rng(0)))))


def test_numbers_stay_within_the_domain_an_op_declares():
    values = np.concatenate([case.inputs[0].reshape(-1) for case in drawn(ops.log)])
    low, high = ops.log.domain["x"]
    assert low <= values.min() < values.max() <= high
    assert values.max() - values.min() > 0.9 * (high - low)


def test_shapes_reach_empty_axes_axes_of_one_no_axes_and_broadcasting():
    shapes = [tuple(np.shape(x) for x in case.inputs) for case in drawn(ops.add)]
    assert any(0 in a + b for a, b in shapes)
    assert any(1 in a + b for a, b in shapes)
    assert any(() in pair for pair in shapes)
    assert any(a != b and a and b for a, b in shapes)


def test_a_matrix_product_is_drawn_with_vectors_batches_and_an_empty_sum():
    shapes = [tuple(np.shape(x) for x in case.inputs) for case in drawn(ops.matmul, 200)]
    assert {len(a) for a, _ in shapes} >= {1, 2, 3}
    assert any(len(a) == 1 and len(b) == 1 for a, b in shapes)
    assert any(a[-1] == 0 for a, _ in shapes)


def test_an_input_that_may_be_left_out_is_drawn_both_ways():
    left_out = [case.inputs[2] is None for case in drawn(ops.linear)]
    assert 10 < sum(left_out) < 50


def test_an_op_that_takes_any_number_of_inputs_gets_different_numbers(own_op):
    @own_op("y = Σ x", "x̄ = ȳ")
    def total(*xs):
        """Sum of the inputs.  xs (*) -> y (*)"""
        return sum(xs)

    assert {len(case.inputs) for case in drawn(total)} == {1, 2, 3}


def test_an_op_that_cannot_be_drawn_from_its_shape_line_says_so(own_op):
    @own_op("y = x*k", "x̄ = ȳ*k")
    def times(x, *, k):
        """Multiple.  x (*) -> y (*)"""
        return x * k

    @own_op("y = x*k", "x̄ = ȳ*k", samples=lambda draw: [])
    def without(x):
        """Multiple.  x (*) -> y (*)"""
        return x

    with pytest.raises(NanogradError, match=r"samples=lambda draw: \[\(\(draw\(3, 4\),\), {'k': k}\), ...\] with"):
        drawn(times)
    with pytest.raises(NanogradError, match="empty"):
        drawn(without)


@pytest.mark.parametrize(
    "samples",
    {
        "an array": lambda draw: [draw(3)],
        "numbers": lambda draw: draw(3),
        "one pair, in no list": lambda draw: (draw(3), {}),
        "inputs alone": lambda draw: [(draw(3),)],
        "an array for inputs": lambda draw: [(draw(3), {})],
        "static arguments as a tuple": lambda draw: [((draw(3),), (2,))],
        "more than a pair": lambda draw: [((draw(3),), {}, {})],
        "nothing": lambda draw: None,
    }.values(),
)
def test_samples_that_are_no_pairs_of_inputs_and_static_arguments_are_refused(samples, own_op):
    @own_op("y = 2x", "x̄ = 2ȳ", samples=samples)
    def doubled(x):
        """Twice x.  x (*) -> y (*)"""
        return 2 * x

    with pytest.raises(NanogradError, match=r"op doubled.*\(inputs, static"):
        drawn(doubled)


def test_draws_stay_away_from_kinks_and_ties():
    for seed in range(100):
        draw = Draw(np.random.default_rng(seed))
        values = np.concatenate([draw(3, 4).reshape(-1), draw(4), draw(2, 2, 5).reshape(-1)])
        apart = np.abs(values[:, None] - np.append(values, [0, 1, -1]))
        np.fill_diagonal(apart, np.inf)
        assert apart.min() >= 0.01


def test_draws_are_roughly_standard_normal():
    draw = Draw(np.random.default_rng(0))
    values = np.stack([draw(2, 3, 4) for _ in range(300)])
    assert values.shape == (300, 2, 3, 4) and values.dtype == np.float64
    assert abs(values.mean()) < 0.2
    assert 0.8 < values.std() < 1.3


def test_integers_come_from_the_range_asked_for():
    values = Draw(np.random.default_rng(0)).integers(2, 5, (4, 50))
    assert values.shape == (4, 50) and set(values.reshape(-1)) == {2, 3, 4}


def test_a_case_reads_well_and_converts_its_floats():
    case = Case((np.ones((2, 3)), np.array([1]), None), {"axis": 0})
    assert str(case) == "((2, 3), (1,), None, axis=0)"
    assert case.size == 7 + 1
    assert [getattr(x, "dtype", None) for x in case.astype(np.float32).inputs] == [np.float32, np.int64, None]


def test_an_op_is_swept_densely_over_the_numbers_around_zero_and_over_all_magnitudes():
    found = {case.region: case.inputs[0] for case in sweeps(ops.sin, drawn(ops.sin), np.random.default_rng(0))}
    assert set(found) == set(SWEEPS)
    assert all(x.size > MANY / 2 for x in found.values())
    assert np.diff(np.sort(found["grid"], axis=None), prepend=-10, append=10).max() < 0.05
    for region, (low, high) in SWEEPS.items():
        if low < high:
            powers = np.sort(np.log10(np.abs(found[region])), axis=None)
            assert np.diff(powers, prepend=low, append=high).max() < 0.05 and (found[region] < 0).any()


def test_every_axis_of_the_shape_line_is_once_long():
    sizes = [
        [np.shape(x) for x in case.inputs] for case in sweeps(ops.matmul, drawn(ops.matmul), np.random.default_rng(0))
    ]
    assert {axis for a, _ in sizes for axis in range(-len(a), 0) if a[axis] > 100} >= {-1, -2}
    assert any(b[-1] > 100 for _, b in sizes)


def test_other_shapes_are_derived_from_the_cases_of_an_op():
    found = derived(ops.attention, drawn(ops.attention, 1))
    queries, keys = zip(*((case.inputs[0].shape, case.inputs[1].shape) for case in found))
    assert {len(shape) for shape in queries} >= {2, 3, 4, 5}
    assert any(shape[-2] == 1 for shape in keys)
    squares = [case.inputs for case in derived(ops.matmul, drawn(ops.matmul, 12))]
    assert any(a.ndim > 1 and a.shape[-1] == a.shape[-2] > 1 for a, _ in squares)


def test_derived_copies_along_a_leading_axis_differ():
    (most,) = [case for case in derived(ops.layernorm, drawn(ops.layernorm, 1)) if case.inputs[0].ndim == 5]
    assert not np.array_equal(*most.inputs[0])
    assert all(x.ndim == 1 for x in most.inputs[1:])


def test_derived_cases_have_ids_of_int32_axes_from_the_other_end_and_negative_divisors():
    ids = [case.inputs[1] for case in derived(ops.embedding, drawn(ops.embedding, 1))]
    assert any(x.dtype == np.int32 for x in ids) and any(x.ndim == 3 for x in ids)
    assert any("dtype=int32" in str(case) for case in derived(ops.getitem, drawn(ops.getitem, 1)))
    assert -2 in [case.static.get("axis") for case in derived(ops.softmax, drawn(ops.softmax, 1))]
    assert any((case.inputs[1] < 0).any() for case in derived(ops.divide, drawn(ops.divide, 12)))


def test_cases_that_an_op_refuses_are_not_derived(own_op):
    @own_op("y = log x", "x̄ = ȳ/x", domain={"x": (0.5, 2.0)})
    def of_two_rows(x):
        """Of two rows.  x (n, m) -> y (n, m)"""
        if len(x) != 2:
            raise NanogradError("expected two rows")
        return np.log(x)

    found = derived(of_two_rows, [Case((np.full((2, 3), 1.5),))])
    assert [case.inputs[0].shape for case in found] == [(2, 1), (2, 2)]
    assert all((case.inputs[0] > 0).all() for case in found)
