"""What must hold of gradients whatever their values: the same again, the same alone, nothing from nothing, symmetry."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm import Tensor, ops
from nanograd_llm.autograd.tensor import Parameter, registry
from nanograd_llm.gradcheck import check_gradient, gradcheck


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


COTANGENTS = {
    "clipped at 1e8": lambda dy: np.clip(dy, -1e8, 1e8),
    "below 1e-12 flushed": lambda dy: np.where(np.abs(dy) < 1e-12, 0, dy),
    "below a millionth of the largest flushed to zero": lambda dy: np.where(
        np.abs(dy) < 1e-6 * np.abs(dy).max(), 0, dy
    ),
    "its length kept below 1e9": lambda dy: dy * min(1, 1e9 / max(1, np.sqrt((dy * dy).sum()))),
}


@pytest.mark.parametrize("name", COTANGENTS)
def test_a_rule_is_linear_over_24_orders_of_magnitude(name, monkeypatch):
    right = registry["cumsum"].rule
    monkeypatch.setattr(registry["cumsum"], "rule", lambda dy, axis: right(COTANGENTS[name](dy), axis))
    assert "the rule is not linear in ȳ" in gradcheck(ops.cumsum, normal(3, 4), axis=-1).problems[0]


def in_float32(change):
    return lambda rule: lambda dy, *saved: change(rule(dy, *saved), dy) if dy.dtype == np.float32 else rule(dy, *saved)


def last_row(g, dy):
    return np.concatenate([g[:-1], g[-1:] * np.float32(1 + 1e-5)])


NARROW = {
    "a sum larger by 1e-5": (ops.sum, in_float32(lambda g, dy: g * np.float32(1 + 1e-5))),
    "a tanh smaller by 3e-6": (ops.tanh, in_float32(lambda g, dy: g * np.float32(1 - 3e-6))),
    "a last row larger by 1e-5": (ops.sin, in_float32(last_row)),
    "larger by 1e-2 where the cotangent is not contiguous": (
        ops.tanh,
        in_float32(lambda g, dy: g if dy.flags.c_contiguous else g * np.float32(1.01)),
    ),
}


@pytest.mark.parametrize("name", NARROW)
def test_a_small_mistake_in_float32_alone_is_a_problem(name, monkeypatch):
    op, make = NARROW[name]
    arguments = {"axis": -1} if op is ops.sum else {}
    assert gradcheck(op, normal(3, 4), **arguments).passed
    monkeypatch.setattr(op, "rule", make(op.rule))
    assert gradcheck(op, normal(3, 4), **arguments).problems[0].startswith("in float32")


def test_a_rule_that_computes_in_the_dtype_of_its_first_call_is_wrong(monkeypatch):
    kept = []

    def rule(dy, x):
        kept.append(dy.dtype)
        return (dy.astype(kept[0]) / x.astype(kept[0])).astype(dy.dtype)

    monkeypatch.setattr(registry["log"], "rule", rule)
    assert not gradcheck(ops.log, np.abs(normal(3))).passed


def test_a_rule_that_returns_an_array_that_it_keeps_is_a_problem(monkeypatch):
    right, zeros = registry["relu"].rule, np.zeros(3)

    def rule(dy, x):
        return right(dy, x) if (x > 0).any() or dy.dtype != zeros.dtype or dy.shape != (3,) else zeros

    monkeypatch.setattr(registry["relu"], "rule", rule)
    report = gradcheck(ops.relu, -np.abs(normal(3)))
    assert "the rule of relu gives another gradient in a later call" in report.problems[0]


def test_a_right_gradient_in_float16_is_no_problem():
    def tanh(x):
        return np.tanh(x.astype(np.float16) if x.dtype.kind == "f" else x)

    for scale in (0.1, 1, 3):
        report = check_gradient(
            tanh, scale * normal(3, 4), vjp=lambda dy, x: (dy * (1 - tanh(x) ** 2)).astype(np.float16)
        )
        assert not report.problems and report.findings[0].verdict != "wrong", report


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("use", [lambda w: w * w * w, lambda w: ops.tanh(w) * w, lambda w: w / ops.sqrt((w * w).sum())])
def test_a_parameter_that_a_function_holds_may_be_used_several_times(use, dtype):
    rng = np.random.default_rng(0)
    w = Parameter(rng.standard_normal((4, 3)).astype(dtype))
    assert (report := gradcheck(lambda x: x @ use(w), rng.standard_normal((5, 4)))).passed, report
