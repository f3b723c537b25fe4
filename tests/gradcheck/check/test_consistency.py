"""What must hold of gradients whatever their values: the same again, the same alone, nothing from nothing, symmetry."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm import Tensor, ops
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.gradcheck import gradcheck


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def test_two_passes_that_differ_are_a_problem(monkeypatch):
    calls = []

    def forgetful(dy, y):
        calls.append(1)
        return dy * y * (1 + (len(calls) % 2) * 1e-15)

    monkeypatch.setattr(registry["exp"], "rule", forgetful)
    report = gradcheck(ops.exp, normal(30))
    assert not report.passed
    assert "two backward passes" in str(report)


@pytest.mark.parametrize("call", [1, 2, 5, 6])
def test_a_mistake_in_only_one_of_the_first_calls_is_a_problem(call, monkeypatch):
    right, calls = registry["matmul"].rule, []

    def wrong_once(*received):
        calls.append(1)
        factor = 1 + 1e-6 * (len(calls) == call)
        return tuple(None if g is None else g * factor for g in right(*received))

    monkeypatch.setattr(registry["matmul"], "rule", wrong_once)
    report = gradcheck(ops.matmul, normal(3, 4), normal(4, 2))
    assert not report.passed
    assert f"in backward pass {call} of the check" in str(report)
    assert gradcheck(ops.matmul, normal(3, 4), normal(4, 2)).passed


def test_a_gradient_that_depends_on_which_others_are_wanted_is_a_problem(monkeypatch):
    monkeypatch.setattr(
        registry["multiply"], "rule", lambda dy, a, b, needs: (dy * b if needs[1] else 2 * dy * b, dy * a)
    )
    report = gradcheck(ops.multiply, normal(3), normal(3, seed=1))
    assert not report.passed
    assert "asked for alone" in str(report)


def test_a_hessian_that_is_not_symmetric_is_a_problem(monkeypatch):
    right = registry["multiply"].rule

    def lopsided(dy, a, b, needs):
        da, db = right(dy, a, b, needs)
        return (da, db * (1 + 1e-10)) if isinstance(dy, Tensor) and dy._node is not None else (da, db)

    monkeypatch.setattr(registry["multiply"], "rule", lopsided)
    report = gradcheck(lambda x, w: (ops.sin(x) * (w * x)).sum(), normal(4), normal(4, seed=1), order=2)
    assert any("Hessian is not symmetric" in problem for problem in report.problems)


def test_symmetric_hessians_are_no_problem():
    for seed in range(3):
        report = gradcheck(ops.softmax, 5 * normal(3, 4, seed=seed), order=2, seed=seed)
        assert report.passed, report


@pytest.mark.parametrize("sizes", ["all small", "mixed"])
def test_what_cancels_and_saturates_is_no_problem(sizes):
    """sin x/x near 0: the terms of its Hessian are 1e12 times as large as it is; and sin x becomes x, cos x one."""
    x = normal(3, 4)
    x *= 1e-6 if sizes == "all small" else 10 ** np.random.default_rng(0).uniform(-3, 3, x.shape)
    report = gradcheck(lambda x: ops.sin(x) / x, x, order=2, jacobian=0)
    assert not report.problems, report


def test_a_rule_that_makes_something_of_a_cotangent_of_zeros_is_a_problem(monkeypatch):
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: dy * y + 1e-14 * np.abs(y))
    report = gradcheck(ops.exp, normal(3))
    assert report.problems == ("a cotangent of zeros gives a gradient that is not zero, for x",)
    assert not report.passed


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_rule_that_ignores_its_cotangent_is_one_line_for_all_inputs(shape, monkeypatch):
    monkeypatch.setattr(registry["multiply"], "rule", lambda dy, a, b, needs: (b, a))
    report = gradcheck(ops.multiply, normal(*shape), normal(*shape, seed=1))
    said = "the gradient of a, b does not depend on the cotangent ȳ: the rule ignores what comes from upstream"
    assert report.problems == (said,)
    assert {f.pattern for f in report.findings} == {"what comes from upstream is ignored: the rule takes ȳ to be one"}


def test_of_each_input_only_the_first_broken_property_is_a_problem(monkeypatch):
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: y * (1 - dy**2))
    report = gradcheck(ops.exp, normal(3))
    assert report.problems == ("a cotangent of zeros gives a gradient that is not zero, for x",)


def test_an_infinite_slope_is_no_such_problem():
    with np.errstate(divide="ignore", invalid="ignore"):
        assert gradcheck(ops.sqrt, np.array([0.0, 1.0])).problems == ()


def test_an_input_that_the_result_does_not_depend_on_has_a_gradient_of_zeros():
    report = gradcheck(lambda x, unused: ops.exp(x), normal(3), normal(2))
    assert report.passed and [finding.name for finding in report.findings] == ["x", "unused"]
