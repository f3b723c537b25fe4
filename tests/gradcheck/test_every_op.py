"""The check of every op says what is wrong with one: its gradients, and the other promises that an op makes."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm import ops
from nanograd_llm.autograd.shapes import ShapeLine
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.errors import ConfigError
from nanograd_llm.gradcheck import (
    Case,
    GradientError,
    OpError,
    OpSummary,
    Summary,
    assert_case,
    check_all,
    check_op,
    gradcheck,
    mutants,
    table_head,
)
from nanograd_llm.gradcheck.cases import samples
from nanograd_llm.gradcheck.check.promises import equality_problems, layout_problems
from nanograd_llm.gradcheck.every_layer import layers
from nanograd_llm.gradcheck.every_op import surviving_mutants
from nanograd_llm.gradcheck.mutation.mutants import mutants_and_cases


def planted(name, title):
    """The mutant of an op that has this name."""
    (mutant,) = [mutant for mutant in mutants(registry[name]) if mutant.name == title]
    return mutant.planted()


def test_ops_that_are_right_pass_and_the_table_has_a_line_for_each():
    summary = Summary(tuple(check_op(registry[name], cases=30) for name in ("add", "softmax")))
    assert summary.passed
    lines = str(summary).splitlines()
    assert lines[0] == table_head(2)
    assert lines[0].split() == ["checked", "cases", "order", "1", "order", "2", "mutants", "verdict"]
    assert [line.split()[0] for line in lines[1:3]] == ["add", "softmax"]
    assert all(
        line.split()[-2:] == [f"{one.mutants}/{one.mutants}", "right"] for one, line in zip(summary.ops, lines[1:3])
    )
    assert lines[-1] == "2 of 2 are right"
    own = [name for name in registry if "." not in name]  # ops outside the package are MODULE.NAME
    longest = max([*own, *(layer.__name__ for layer in layers())], key=len)
    assert len(OpSummary(longest, 5000, (1e-16, 1e-12), 199, (), ()).line) <= 60  # columns of a narrow terminal
    for one in summary.ops:
        assert max(one.errors) < 1e-11 and len(one.errors) == 2
        assert one.mutants == len(mutants(registry[one.name])) and one.survivors == ()


@pytest.mark.parametrize("setting", [{"cases": 0}, {"cases": -1}, {"cases": 2.0}, {"order": 0}, {"order": -1}])
def test_a_check_of_nothing_is_refused(setting):
    (name,) = setting
    with pytest.raises(ConfigError, match=f"{name} must be an integer of at least 1"):
        check_op(ops.exp, **setting)


def test_an_op_of_which_no_case_was_checked_has_not_passed():
    found = OpSummary("exp", 0, (0.0,), 0, (), ())
    assert not found.passed and found.verdict == "not checked"
    assert not Summary(()).passed


@pytest.mark.parametrize("name", ["multiply", "softmax"])
def test_a_wrong_rule_fails_and_the_table_explains(name):
    title = next(mutant.name for mutant in mutants(registry[name]) if mutant.name.endswith("factor 2"))
    with planted(name, title):
        summary = Summary((check_op(registry[name], order=1, cases=8),))
    assert not summary.passed
    assert summary.ops[0].verdict == "wrong"
    assert "ratio 2" in str(summary)
    assert f"{name}: and " in str(summary)  # not all of it
    assert check_op(registry[name], order=1, cases=30).passed


def test_a_rule_that_is_wrong_by_a_billionth_fails():
    with planted("tanh", "x: scaled by 1 + 1e-9"):
        assert check_op(ops.tanh, order=1, cases=8).verdict == "wrong"


def test_a_rule_that_is_wrong_at_second_order_only_fails(monkeypatch):
    monkeypatch.setattr(ops.exp, "rule", lambda dy, y: dy * (y if isinstance(y, np.ndarray) else y.data))
    found = check_op(ops.exp, cases=8)
    assert found.errors[0] < 1e-13 and found.verdict == "wrong"
    assert check_op(ops.exp, order=1, cases=8).passed


@pytest.mark.parametrize("uses", ["keep", "NumPy"])
def test_an_op_whose_second_order_cannot_be_computed_is_right_at_order_1_and_does_not_pass_at_order_2(own_op, uses):
    @own_op("y = exp x", "x̄ = ȳ*y")
    def growth(x):
        """x (*) -> y (*)"""
        e = np.exp(x)
        return ng.keep(e, e=e) if uses == "keep" else e

    if uses == "keep":
        growth.backward(lambda dy, e: dy * e)
        why = "growth keeps 'e', which has no tape.*equals="
    else:
        growth.backward(lambda dy, x: dy * np.exp(x))
        why = r"np.exp does not take a Tensor.*use ops.exp\(...\)"
    found = check_op(growth, cases=8)
    assert not found.passed and len(found.problems) == 1
    assert found.verdict == "right at order 1, unknown at order 2"
    assert found.line.split()[2] != "-" == found.line.split()[3]
    (problem,) = found.problems
    assert ": CANNOT TELL" in problem and re.search(r"  x \(.*\): right,", problem)
    assert re.search(f"because order 2 could not be computed: .*{why}.*; pass order=1 to leave it out", problem)
    assert check_op(growth, cases=8, order=1).passed


def test_a_wrong_rule_whose_second_order_cannot_be_computed_is_wrong(own_op):
    @own_op("y = exp x", "x̄ = ȳ*y")
    def growth(x):
        """x (*) -> y (*)"""
        return np.exp(x)

    growth.backward(lambda dy, x: 2 * dy * np.exp(x))
    found = check_op(growth, cases=8)
    assert found.verdict == "wrong" and "order 2" not in found.problems[0]


def test_a_rule_that_clips_what_it_kept_in_place_is_wrong_and_that_is_the_first_problem(own_op):
    @own_op("y = Huber's loss of x", "x̄ = ȳ*min(max(x, -1), 1)")
    def huber(x):
        """x (*) -> y (*)"""
        size = ops.absolute(x)
        return np.where(size.real <= 1, x * x / 2, size - 0.5)

    @huber.backward
    def huber_backward(dy, x):
        x[x > 1], x[x < -1] = 1, -1
        return dy * x

    x = np.array([0.3, 2.0, -3.0])
    report = gradcheck(lambda x: huber(2 * x), x)
    assert not report.passed and "the rule of huber writes into" in report.problems[0]
    found = check_op(huber, cases=8)
    assert found.verdict == "wrong" and "it raises" not in str(found) and "CANNOT TELL" not in str(found)


def test_the_smallest_case_is_checked_at_order_2_where_all_are_large(own_op, monkeypatch):
    @own_op("y = exp x", "x̄ = ȳ*y", samples=lambda draw: [((draw(200),), {}), ((draw(150),), {})])
    def growth(x):
        """x (*) -> y (*)"""
        return np.exp(x)

    growth.backward(lambda dy, y: dy * (y if isinstance(y, np.ndarray) else y.data))
    monkeypatch.setattr(samples, "derived", lambda op, cases: [])
    assert check_op(growth, cases=4).verdict == "wrong"


def test_a_value_at_a_kink_that_no_side_has_fails(monkeypatch):
    assert check_op(ops.absolute, order=1, cases=30).passed
    rule = ops.absolute.rule
    monkeypatch.setattr(ops.absolute, "rule", lambda dy, x: np.where(x == 0, 7 * dy, rule(dy, x)))
    problems = check_op(ops.absolute, order=1, cases=30).problems
    assert problems and all("neither of them nor a value between" in problem for problem in problems)


def test_a_rule_that_gives_another_allowed_value_at_a_kink_each_time_fails(monkeypatch):
    rule, calls = ops.absolute.rule, []

    def fickle(dy, x):
        calls.append(1)
        return np.where(x == 0, dy * (len(calls) % 3) / 4, rule(dy, x))

    monkeypatch.setattr(ops.absolute, "rule", fickle)
    problems = check_op(ops.absolute, order=1, cases=30).problems
    assert any("two backward passes over one tape" in problem for problem in problems)


def test_a_fused_rule_that_leaves_its_composition_fails(monkeypatch):
    monkeypatch.setattr(ops.gelu, "equals", lambda x: ops.gelu_exact.equals(x))
    assert any("composition" in problem for problem in check_op(ops.gelu, order=1, cases=2).problems)


def test_a_loss_that_is_small_because_its_terms_cancel_is_not_called_different_from_its_composition():
    rng = np.random.default_rng(0)
    for seed in range(50):
        case = Case((np.array([[1.0, 0.0]]), np.array([[13 + rng.random(), 0.3], [0.1, 0.2]]), np.array([0])))
        assert equality_problems(ops.linear_cross_entropy, case, seed=seed) == []


@pytest.mark.parametrize("x", [np.array([0.3, -0.7]), np.array(0.3)])
def test_a_fused_op_that_is_off_by_a_billionth_fails(x, monkeypatch):
    equals = ops.silu.equals
    monkeypatch.setattr(ops.silu, "equals", lambda x: equals(x) * (1 + 1e-9))
    problems = equality_problems(ops.silu, Case((x,)))
    assert [problem.partition(" is ")[0] for problem in problems] == ["the result", "the gradient of x"]


def test_a_shape_line_that_is_not_true_fails(monkeypatch):
    monkeypatch.setattr(ops.exp, "shape_line", ShapeLine("x (..., n) -> y (...)"))
    assert any("the line says" in problem for problem in check_op(ops.exp, order=1, cases=5).problems)


def test_a_rule_that_widens_float32_fails(monkeypatch):
    monkeypatch.setattr(ops.exp, "rule", lambda dy, y: dy.astype(np.float64) * y)
    problems = check_op(ops.exp, order=1, cases=2).problems
    assert problems and all("the gradient of x is float64 for float32 inputs" in problem for problem in problems)
    assert "laid out" not in str(problems) and "convert it, by .astype(dy.dtype)" in problems[0]


def test_a_forward_that_widens_float32_fails(monkeypatch):
    monkeypatch.setattr(
        ops.exp, "forward", lambda x: np.exp(x) * np.ones((), np.float64).reshape(1)[0:1].sum(keepdims=True)
    )
    assert any("the result is float64" in problem for problem in check_op(ops.exp, order=1, cases=2).problems)


def test_an_op_without_a_rule_or_without_one_for_an_input_fails(monkeypatch):
    rule = ops.multiply.rule
    monkeypatch.setattr(ops.multiply, "rule", lambda *saved: (rule(*saved)[0], None))
    assert any("returned None for b," in problem for problem in check_op(ops.multiply, order=1, cases=2).problems)
    monkeypatch.setattr(ops.multiply, "rule", None)
    found = check_op(ops.multiply, cases=2)
    assert not found.passed and "no rule" in found.problems[0]
    assert found.line.split() == ["multiply", "0", "-", "-", "-", "wrong"]


def test_a_rule_that_reads_memory_in_its_own_order_fails(monkeypatch):
    def in_memory_order(dy, y):
        return (np.ravel(dy, "K") * np.ravel(y, "K")).reshape(y.shape)

    monkeypatch.setattr(ops.exp, "rule", in_memory_order)
    assert any("the layout of the inputs changes" in problem for problem in check_op(ops.exp, order=1).problems)


def test_a_forward_that_writes_into_its_input_fails(monkeypatch):
    def in_place(x):
        x *= 2
        return np.exp(x / 2)

    monkeypatch.setattr(ops.exp, "forward", in_place)
    case = Case((np.array([[0.3, -0.7], [1.2, 0.1]]),), layouts=("fortran",))
    assert layout_problems(ops.exp, case) == ["input 0 was written to"]
    case = Case((np.array([[0.3, -0.7], [1.2, 0.1]]),), layouts=("read-only",))
    assert "does not run on inputs in this layout" in layout_problems(ops.exp, case)[0]
    assert not check_op(ops.exp, order=1, cases=4).passed


def test_a_gradient_that_depends_on_which_others_are_wanted_fails(monkeypatch):
    rule = ops.multiply.rule

    def half_alone(dy, a, b, needs):
        return tuple(g if all(needs) or g is None else g / 2 for g in rule(dy, a, b, needs))

    monkeypatch.setattr(ops.multiply, "rule", half_alone)
    with pytest.raises((OpError, GradientError)):
        assert_case(ops.multiply, Case((np.array([0.3, -0.7]), np.array([1.2, 0.1])), needs=(True, False)))
    assert any("wanted" in problem for problem in check_op(ops.multiply, order=1, cases=40).problems)


def test_one_tensor_given_twice_must_get_both_gradients(monkeypatch):
    rule = ops.multiply.rule

    def last_one_counts(dy, a, b, needs):
        da, db = rule(dy, a, b, needs)
        return (0 * da, db) if a is b else (da, db)

    monkeypatch.setattr(ops.multiply, "rule", last_one_counts)
    case = Case((np.array([0.3, -0.7]), np.array([1.2, 0.1])))
    assert_case(ops.multiply, case)
    with pytest.raises((OpError, GradientError)):
        assert_case(ops.multiply, replace(case, same=(0, 1)))
    assert any("one Tensor as inputs" in problem for problem in check_op(ops.multiply, order=1, cases=40).problems)


def test_a_case_that_is_right_passes_and_a_wrong_one_shows_its_report(monkeypatch):
    case = Case((np.array([0.3, -0.7]), np.array([1.2, 0.1])), {}, ("read-only", "every other"), (False, True), (0, 1))
    assert_case(ops.multiply, case, order=2)
    with monkeypatch.context() as patched:
        patched.setattr(ops.multiply, "shape_line", ShapeLine("a (n), b (n) -> y ()"))
        with pytest.raises(GradientError, match="multiply.*the line says"):
            assert_case(ops.multiply, case)
    monkeypatch.setattr(ops.multiply, "forward", lambda a, b: (a * b).astype(np.result_type(a, np.float64)))
    with pytest.raises(OpError, match="multiply.*inputs 0 and 1 the same.*the result is float64"):
        assert_case(ops.multiply, case)


def test_a_check_that_is_blind_to_a_mistake_is_no_pass():
    found = OpSummary("exp", 200, (1e-16,), 8, ("x: sign",), ())
    assert not found.passed and found.verdict == "blind to x: sign: take more cases"
    assert "7/8" in str(found) and str(found).startswith(table_head(1))


def test_a_mutant_survives_where_no_case_shows_it():
    (sign,) = [mutant for mutant in mutants(ops.exp) if mutant.name == "x: sign"]
    assert surviving_mutants([sign], [Case((np.zeros((0,)),))]) == ["x: sign"]
    assert surviving_mutants([sign], [Case((np.zeros((0,)),)), Case((np.zeros(1),))]) == []


@pytest.mark.parametrize("name", ["maximum", "multiply", "power", "where", "matmul"])
def test_no_mutant_survives_however_few_cases_are_drawn(name):
    planted, telling = mutants_and_cases(registry[name])
    assert planted and len(telling) <= 6
    assert surviving_mutants(planted, telling) == []
    assert check_op(registry[name], order=1, cases=1).passed


def test_an_op_of_ones_own_is_checked_by_name_or_as_it_is(own_op):
    @own_op("y = 2x", "x̄ = 2ȳ")
    def twice(x):
        """Twice.  x (*) -> y (*)"""
        return 2 * x

    @twice.backward
    def twice_backward(dy):
        return 2 * dy

    assert check_op(twice, cases=20).passed


def test_a_notebook_shows_what_was_found_as_text():
    report, summary = gradcheck(ops.absolute, np.zeros(2)), check_all(["exp"], cases=1, order=1)
    for found in (report, report.findings[0], report.findings[0].kinks[0], summary, summary.ops[0]):
        assert repr(found) == str(found) and not repr(found).startswith(type(found).__name__)
    wrong = gradcheck(lambda x: x.detach() * x, np.ones(2))
    assert repr(wrong.findings[0].worst).startswith("worst at [")
    assert repr(wrong) == str(wrong) and "NOT RIGHT" in repr(wrong)


def test_a_static_argument_that_no_case_varies_is_noted():
    @ng.op("y = a*x", "x̄ = ȳ")
    def scaled(x, *, a=1.0):
        """A multiple.  x (*) -> y (*)"""
        return a * x

    scaled.backward(lambda dy: dy)  # wrong for every other a
    summary = check_op(scaled, cases=20)
    assert summary.notes == ("a was 1.0 in every case; give samples= to vary it",) and summary.notes[0] in str(summary)
    varied = ng.op("y = a*x", "x̄ = ȳ", samples=lambda draw: [((draw(2),), {"a": 3.0})])(scaled.forward)
    varied.backward(lambda dy: dy)
    assert not check_op(varied, cases=20).passed


def test_a_domain_is_advised_where_a_result_is_not_finite():
    @ng.op("y = log x", "x̄ = ȳ/x")
    def logarithm(x):
        """x (*) -> y (*)"""
        return np.log(x)

    logarithm.backward(lambda dy, x: dy / x)
    with np.errstate(all="ignore"):
        found = check_op(logarithm, cases=5)
    assert found.verdict == "cannot tell" and "CANNOT TELL" in str(found)
    (note,) = found.notes
    assert "declare the interval that it is for: @op(..., domain={'x': (0.5, 2.0)})" in note


def test_a_shape_line_that_the_ops_of_the_forward_refuse_is_a_problem_that_names_both(own_op):
    @own_op("y = a b", "ā = ȳ bᵀ;  b̄ = aᵀ ȳ")
    def own_product(a, b):
        """A product, of which the line has b transposed.  a (N, K), b (N, K) -> y (N, K)"""
        return ops.matmul(a, b)

    @own_product.backward
    def own_product_backward(dy, a, b):
        return ops.matmul(dy, b.T), ops.matmul(a.T, dy)

    problems = check_op(own_product, cases=10, order=1).problems
    refused = [problem for problem in problems if "it raises ShapeError: matmul got (3, 4)" in problem]
    assert refused and refused[0].endswith("; the shape line of own_product is a (N, K), b (N, K) -> y (N, K)")
