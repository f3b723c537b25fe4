"""The check of every op says what is wrong with one, and a table says it of all."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm import ops
from nanograd_llm.engine import Tensor, grad, registry
from nanograd_llm.errors import ConfigError, GraphError
from nanograd_llm.gradcheck import OpSummary, check_all, check_op, scaled_rule
from nanograd_llm.op import op
from nanograd_llm.shapes import ShapeLine


def test_ops_that_are_right_pass_and_the_table_has_a_line_for_each():
    summary = check_all(["add", "softmax"], cases=4)
    assert summary.passed
    lines = str(summary).splitlines()
    assert lines[0].split() == ["op", "cases", "order", "1", "order", "2", "x1.01", "verdict"]
    assert [line.split()[0] for line in lines[1:3]] == ["add", "softmax"]
    assert all(line.endswith("caught  right") for line in lines[1:3])
    assert lines[-1] == "2 of 2 ops are right"
    for one in summary.ops:
        assert max(one.errors) < 1e-11 and len(one.errors) == 2


def test_without_names_every_op_is_checked():
    assert [one.name for one in check_all(order=1, cases=1).ops] == list(registry)


def test_an_unknown_op_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'softmax'"):
        check_all(["sofmax"])


@pytest.mark.parametrize("setting", [{"cases": 0}, {"cases": -1}, {"cases": 2.0}, {"order": 0}, {"order": -1}])
def test_a_check_of_nothing_is_refused(setting):
    (name,) = setting
    with pytest.raises(ConfigError, match=f"{name} must be an integer of at least 1"):
        check_all(["exp"], **setting)
    with pytest.raises(ConfigError, match=f"{name} must be an integer of at least 1"):
        check_op(ops.exp, **setting)


def test_an_op_of_which_no_case_was_checked_has_not_passed():
    found = OpSummary("exp", 0, (0.0,), True, ())
    assert not found.passed and found.verdict == "not checked"


@pytest.mark.parametrize("name", ["multiply", "softmax"])
def test_a_wrong_rule_fails_and_the_table_explains(name):
    with scaled_rule(registry[name], 2):
        summary = check_all([name], order=1, cases=3)
    assert not summary.passed
    assert summary.ops[0].verdict == "wrong"
    assert "ratio 2" in str(summary)
    assert check_all([name], order=1, cases=3).passed


def test_a_fused_rule_that_leaves_its_composition_fails(monkeypatch):
    monkeypatch.setattr(ops.gelu, "equals", lambda x: ops.gelu_exact.equals(x))
    assert any("composition" in problem for problem in check_op(ops.gelu, order=1, cases=2).problems)


def test_a_shape_line_that_is_not_true_fails(monkeypatch):
    monkeypatch.setattr(ops.exp, "shape_line", ShapeLine("x (..., n) -> y (...)"))
    assert any("the line says" in problem for problem in check_op(ops.exp, order=1, cases=5).problems)


def test_a_rule_that_widens_float32_fails(monkeypatch):
    monkeypatch.setattr(ops.exp, "rule", lambda dy, y: dy.astype(np.float64) * y)
    problems = check_op(ops.exp, order=1, cases=2).problems
    assert problems and all("the gradient of input 0 is float64" in problem for problem in problems)


def test_a_forward_that_widens_float32_fails(monkeypatch):
    monkeypatch.setattr(
        ops.exp, "forward", lambda x: np.exp(x) * np.ones((), np.float64).reshape(1)[0:1].sum(keepdims=True)
    )
    assert any("the result is float64" in problem for problem in check_op(ops.exp, order=1, cases=2).problems)


def test_a_check_that_is_blind_to_a_rule_is_no_pass():
    @op("y = 0*x", "x̄ = 0*ȳ")
    def nought(x):
        """Nothing.  x (*) -> y (*)"""
        return 0 * x

    @nought.backward
    def nought_backward(dy):
        return 0 * dy

    try:
        found = check_op(nought, cases=3)
    finally:
        del registry["nought"]
    assert not found.problems and not found.passed
    assert found.verdict == "blind to a rule scaled by 1.01"


def test_a_scaled_rule_scales_and_comes_back_whatever_happens():
    x = Tensor(np.ones(2), requires_grad=True)
    rule = ops.exp.rule
    with pytest.raises(ZeroDivisionError), scaled_rule(ops.exp, 3):
        np.testing.assert_allclose(grad(ops.exp(x), x, np.ones(2)), 3 * np.e)
        1 / 0  # noqa: B018
    assert ops.exp.rule is rule


def test_an_op_without_a_rule_cannot_be_scaled(monkeypatch):
    monkeypatch.setattr(ops.exp, "rule", None)
    with pytest.raises(GraphError, match="no rule"), scaled_rule(ops.exp, 3):
        pass
