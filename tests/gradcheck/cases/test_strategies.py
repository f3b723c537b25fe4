"""What the strategies draw: shapes, layouts, numbers and whole cases, for tests of one's own ops."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis.extra.numpy import array_shapes

from nanograd_llm import ops
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.errors import ConfigError
from nanograd_llm.gradcheck import LAYOUTS, GradientError, assert_case, mutants, strategies

NAMES = sorted(registry)


@given(strategies.arrays(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3), layout=strategies.layouts()))
def test_arrays_lie_away_from_kinks_in_any_layout(x):
    assert x.dtype == np.float64
    assert np.abs(x[..., None] - [0, 1, -1]).min(initial=1) >= 0.01


@given(strategies.arrays((3, 4), domain=(0.5, 2.0)))
def test_arrays_keep_their_domain(x):
    assert x.shape == (3, 4) and 0.5 <= x.min() <= x.max() <= 2


def test_arrays_can_lie_at_kinks():
    x = find(strategies.arrays((2, 3), kinks=True), lambda x: 0 in x and 1 in x)
    assert x.shape == (2, 3)


@given(strategies.layouts())
def test_layouts_are_those_of_gradcheck(layout):
    assert layout in LAYOUTS


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6)
@given(data=strategies.st.data())
def test_every_case_of_every_op_keeps_its_promises(name, data):
    assert_case(registry[name], data.draw(strategies.cases(registry[name])))


@pytest.mark.parametrize(
    "wanted",
    [
        lambda case: any(np.size(x) == 0 for x in case.inputs),
        lambda case: np.shape(case.inputs[0]) != np.shape(case.inputs[1]),
        lambda case: case.layouts[1:] == ("negative strides",),
        lambda case: case.layouts[1:] == ("zero strides",),
        lambda case: case.needs == (False, True),
        lambda case: case.same == (0, 1),
    ],
)
def test_cases_reach_empty_axes_broadcasting_layouts_masks_and_one_tensor_given_twice(wanted):
    assert wanted(find(strategies.cases(ops.multiply), wanted))


def test_an_input_that_may_be_left_out_is_drawn_both_ways():
    for left_out in (True, False):
        find(strategies.cases(ops.linear), lambda case, left_out=left_out: (case.inputs[2] is None) == left_out)


def test_a_wrong_rule_is_found_and_shrunk_to_a_small_case(own_op):
    @own_op("y = Σ x²", "x̄ = 2ȳ*x")
    def squares(x):
        """Sum of squares over the last axis.  x (..., n) -> y (...)"""
        return (x * x).sum(axis=-1)

    @squares.backward
    def squares_backward(dy, x):
        return 2 * dy[..., None] * x * (1 if x.shape[-1] < 3 else 1 + 1e-9)

    @given(strategies.cases(squares))
    def test(case):
        try:
            assert_case(squares, case)
        except GradientError:
            failing.append(case)
            raise

    failing = []
    with pytest.raises(GradientError):
        test()
    assert np.shape(failing[-1].inputs[0]) == (3,) and not failing[-1].layouts


@pytest.mark.parametrize("name", ["multiply", "softmax"])
def test_a_test_of_one_line_notices_every_mutant(name):
    @settings(max_examples=100, phases=[Phase.generate])  # what is found need not be shrunk
    @given(strategies.cases(registry[name]))
    def test(case):
        assert_case(registry[name], case)

    test()
    for mutant in mutants(registry[name]):
        with mutant.planted(), pytest.raises(Exception):  # noqa: B017, an op error, or whatever a rule that cannot run raises
            test()


def test_without_hypothesis_one_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "nanograd_llm.gradcheck.cases.strategies")
    with pytest.raises(ConfigError, match="pip install"):
        importlib.import_module("nanograd_llm.gradcheck.cases.strategies")
    monkeypatch.undo()
    importlib.import_module("nanograd_llm.gradcheck.cases.strategies")
