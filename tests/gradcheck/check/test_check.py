"""The checker itself: wrong gradients do not pass, right ones do, and the report says where and by how much."""

from __future__ import annotations

import functools
import math
import re
import warnings

import numpy as np
import pytest

from nanograd_llm import nn, ops
from nanograd_llm.autograd.op import op as declare
from nanograd_llm.autograd.tensor import Parameter, Tensor, grad, registry
from nanograd_llm.errors import ConfigError, DtypeError, GraphError, NanogradError, ShapeError, SignatureError
from nanograd_llm.gradcheck import (
    GradientError,
    OpSummary,
    Summary,
    assert_gradients,
    attempt,
    check_gradient,
    check_op,
    every_op,
    gradcheck,
)
from nanograd_llm.gradcheck.check.report import Entry, Finding, Kink, Report
from nanograd_llm.ops import composed


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def layernorm_by_n_minus_1(dy, w, xhat, r):
    n = xhat.shape[-1]
    g = dy * w
    means = [np.mean(z, axis=-1, keepdims=True) for z in (g, g * xhat.reshape(dy.shape))]
    dx = r.reshape(*dy.shape[:-1], 1) * (g - means[0] - xhat.reshape(dy.shape) * means[1] * n / (n - 1))
    return dx, (dy * xhat.reshape(dy.shape)).reshape(-1, n).sum(0), dy.reshape(-1, n).sum(0)


def rows_put_instead_of_added(dy, w_shape, ids, onto):
    dw = np.zeros(w_shape)
    dw[ids] = dy
    return dw


def one_entry_off(dy, a, b, needs):
    da = dy * b
    da[517] *= 1 + 1e-9
    return da, dy * a


# op, the wrong rule, inputs, the inputs whose gradient it makes wrong
WRONG = {
    "factor 2": ("multiply", lambda dy, a, b, needs: (2 * dy * b, dy * a), (normal(2, 3), normal(3)), "a"),
    "sign": ("subtract", lambda dy, needs: (dy, dy), (normal(2, 3), normal(2, 3)), "b"),
    "term dropped": ("softmax", lambda dy, y, axis: dy * y, (normal(3, 4),), "x"),
    "off by 1e-3": (
        "softmax",
        lambda dy, y, axis: y * (dy - 1.001 * (dy * y).sum(axis, keepdims=True)),
        (normal(3, 4),),
        "x",
    ),
    "transposed": ("matmul", lambda dy, a, b, needs: (dy @ b, a.T @ dy), (normal(3, 3), normal(3, 3, seed=1)), "a"),
    "by N-1": ("layernorm", layernorm_by_n_minus_1, (normal(4, 256), normal(256), normal(256, seed=1)), "x"),
    "no sum over the broadcast axis": ("add", lambda dy: (dy, dy[0]), (normal(2, 3), normal(3)), "b"),
    "upstream ignored": ("exp", lambda dy, y: y, (normal(2, 3),), "x"),
    "upstream squared": ("exp", lambda dy, y: dy * dy * y, (normal(2, 3),), "x"),
    "contribution lost": (
        "embedding",
        rows_put_instead_of_added,
        (normal(5, 3), np.array([[4, 0, 4], [2, 4, 1]])),
        "w",
    ),
    "rules swapped": ("divide", lambda dy, b, y, needs: (-dy * y / b, dy / b), (normal(3), 2 + normal(3) ** 2), "a b"),
    "constant gradient": ("sin", lambda dy, x: dy, (normal(4),), "x"),
    "no gradient": ("tanh", lambda dy, y: dy * 0, (normal(4),), "x"),
    "of integers": ("relu", lambda dy, y: np.where(y > 0, 1, 0), (normal(2, 3),), "x"),
    "of booleans": ("relu", lambda dy, y: y > 0, (normal(2, 3),), "x"),
    "not a number": ("tanh", lambda dy, y: dy * np.nan, (normal(4),), "x"),
    "one entry of 1000 by 1e-9": ("multiply", one_entry_off, (normal(1000), normal(1000, seed=1)), "a"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_rule_is_found_and_the_input_named(mistake, monkeypatch):
    name, rule, inputs, wrong = WRONG[mistake]
    assert gradcheck(registry[name], *inputs).passed
    monkeypatch.setattr(registry[name], "rule", rule)
    for seed in range(2):
        report = gradcheck(registry[name], *inputs, seed=seed)
        assert not report.passed
        assert [f.name for f in report.findings if f.verdict == "wrong"] == wrong.split()


def test_one_wrong_entry_of_1000_is_found_and_pointed_at(monkeypatch):
    name, rule, inputs, _ = WRONG["one entry of 1000 by 1e-9"]
    monkeypatch.setattr(registry[name], "rule", rule)
    for seed in range(2):
        finding = gradcheck(registry[name], normal(1000, seed=seed), normal(1000, seed=seed + 1), seed=seed).findings[0]
        assert (finding.verdict, finding.worst.index) == ("wrong", (517,))


@pytest.mark.parametrize("part", [1e-3, 1e-4, 1e-9])
def test_a_wrong_entry_is_found_beside_1000_that_are_much_larger(part, monkeypatch):
    name, rule, (a, b), _ = WRONG["one entry of 1000 by 1e-9"]
    b = np.where(np.arange(1000) == 517, part, b)
    assert not any("may be rounding" in note for note in gradcheck(registry[name], a, b).notes)
    monkeypatch.setattr(registry[name], "rule", rule)
    assert gradcheck(registry[name], a, b).findings[0].worst.index == (517,)


def test_an_all_ones_cotangent_tests_nothing_of_softmax_and_a_random_one_does(monkeypatch):
    x = normal(3, 4)
    leaf = Tensor(x, requires_grad=True)
    right = grad(ops.softmax(leaf).sum(), leaf)
    rule = registry["softmax"].rule
    monkeypatch.setattr(registry["softmax"], "rule", lambda dy, y, axis: 1000 * rule(dy, y, axis))
    wrong = grad(ops.softmax(leaf).sum(), leaf)
    assert np.abs(right).max() < 1e-15
    assert np.abs(wrong).max() < 1e-12  # .sum().backward() sees nothing
    assert gradcheck(lambda x: ops.softmax(x).sum(), x).passed
    assert not gradcheck(ops.softmax, x).passed


@pytest.mark.parametrize(
    ("f", "inputs"),
    {
        "a gradient of zero": (lambda x: ops.softmax(x).sum(), (normal(3, 4),)),
        "a gradient and a result of zero": (lambda x: ops.layernorm(x, np.ones(5), np.zeros(5)).sum(), (normal(3, 5),)),
        "almost no gradient left": (ops.layernorm, (normal(3, 2), normal(2), normal(2, seed=1))),
        "saturated": (ops.softmax, (100 * normal(3, 5),)),
        "saturated tanh": (ops.tanh, (10 * normal(3, 5),)),
        "very large": (ops.log_softmax, (1e4 * normal(3, 5),)),
        "very small and very large": (ops.multiply, (1e-9 * normal(3, 5), 1e9 * normal(5))),
        "many terms": (ops.mean, (normal(300, 500),)),
        "a tie": (ops.max, (np.array([1.0, 1.0, -1.0]),)),
        "a kink with the mean slope": (ops.absolute, (np.array([0.0, 1.0, -1.0]),)),
        "deep": (lambda x: functools.reduce(lambda x, _: ops.tanh(1.5 * x) + ops.sin(x), range(30), x), (normal(4),)),
        "no axes": (ops.multiply, (normal(), normal(seed=1))),
        "no entries": (ops.multiply, (normal(0, 3), normal(3))),
        "no dependence": (lambda x: Tensor(np.ones(3)), (normal(3),)),
    }.values(),
)
def test_hard_but_right_gradients_pass(f, inputs):
    for seed in range(3):
        report = gradcheck(f, *inputs, seed=seed)
        assert report.passed, report


def test_second_order_finds_what_first_order_cannot_see(monkeypatch):
    def rule(dy, y, x):  # the right value, but cut off from the tape: its own gradient is lost
        return dy * Tensor(y.data) if isinstance(y, Tensor) else dy * y

    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: rule(dy, y, None))
    assert gradcheck(ops.exp, normal(3)).passed
    report = gradcheck(ops.exp, normal(3), order=2)
    assert [(f.order, f.name) for f in report.findings if f.verdict == "wrong"] == [(2, "x")]


def test_second_order_checks_the_gradient_by_its_cotangent_too(monkeypatch):
    def rule(dy, x):
        return (dy if not isinstance(dy, Tensor) else Tensor(dy.data)) * ops.cos(x)

    monkeypatch.setattr(registry["sin"], "rule", rule)
    report = gradcheck(ops.sin, normal(3), order=2)
    assert [f.name for f in report.findings if f.verdict == "wrong"] == ["cotangent"]


def test_the_report_says_where_the_worst_entry_is_and_by_how_much(monkeypatch):
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: dy * y * np.where(np.arange(6) == 4, 2.0, 1.0))
    with pytest.raises(GradientError) as caught:
        assert_gradients(ops.exp, normal(3, 6))
    finding = caught.value.report.findings[0]
    assert finding.worst.index[1] == 4
    assert finding.worst.analytic == pytest.approx(2 * finding.worst.numeric, rel=1e-12)
    assert finding.relative_error > 1e-2 > finding.tolerance
    for words in ("exp", "x (3, 6)", "wrong", "worst at", "ratio 2", "complex step"):
        assert words in str(caught.value)


def test_the_gradient_of_one_number_is_shown_as_on_paper(monkeypatch):
    monkeypatch.setattr(registry["multiply"], "rule", lambda dy, a, b, needs: (dy * b, 3 * dy * a))
    worst = gradcheck(ops.multiply, 2.0, -5.0).findings[1].worst
    assert str(worst) == "the gradient is 6, the function gives 2, ratio 3, for ȳ = 1"


@pytest.mark.parametrize(
    ("analytic", "numeric", "words"),
    [
        (0.25, 0.25 * (1 + 1e-12), "the gradient is 0.25, the function gives 0.25000000000025, ratio 1 - 1.0e-12"),
        (1e-3, 2e-17, "the gradient is 0.001, the function gives 2e-17, for a"),
        (-0.0, 3.0, "the gradient is 0, the function gives 3, for a"),
        (np.nan, 3.0, "the gradient is nan, the function gives 3, for a"),
    ],
)
def test_an_entry_shows_as_many_digits_as_differ_and_a_ratio_that_says_something(analytic, numeric, words):
    assert words in str(Entry((), analytic, numeric))


def test_a_range_of_inputs_shows_as_many_digits_as_differ():
    assert "values of x between 1 and 1.0001" in str(gradcheck(ops.exp, np.array([1.0, 1.0001])))


def test_each_method_and_its_reason_is_one_part_of_the_note():
    coarse = Finding(1, "x", (3,), "right", 0.0, 1e-14, "differences", 1e-3, "each entry compared", why="it says so")
    fine = Finding(1, "w", (3,), "right", 0.0, 1e-14, "complex step", 1e-30, "each entry compared")
    text = str(Report("f", (coarse, fine)))
    assert "from its values alone, of w by complex step; of x by differences, because it says so" in text


@pytest.mark.parametrize(
    ("tolerance", "kinks", "words"),
    [
        (2.0, (), "right, the gradient is zero up to rounding: check it where it is larger too; each entry compared"),
        (0.0, (), "right, the function's slopes and the gradient are zero, and a mistake that is"),
        (
            0.0,
            (Kink((0,), -1, 1, 0, True),),
            "at a kink, the function's slopes and the gradient are zero elsewhere, and",
        ),
        (0.0, (Kink((0,), -1, 1, 0, True),) * 2, "at a kink, as every entry is"),
    ],
)
def test_a_gradient_of_zero_is_called_that(tolerance, kinks, words):
    verdict = "at a kink" if kinks else "right"
    finding = Finding(1, "x", (2,), verdict, 0.7, tolerance, "", 0.0, "each entry compared", kinks=kinks)
    assert words in str(finding)


def test_inputs_that_hold_integers_are_named_as_not_checked():
    report = gradcheck(lambda x, ids, n: ops.embedding(x, ids) * n, normal(4, 2), np.array([0, 2]), np.array(3))
    assert "not checked, as they hold integers: ids, n" in report.notes
    assert not any("integers" in note for note in gradcheck(ops.embedding, normal(4, 2), np.array([0, 2])).notes)


def test_a_gradient_that_is_zero_up_to_rounding_is_right_without_a_note_on_its_digits():
    def normalised(x, b):
        off = (x + b) - (x + b).mean(axis=0)
        return off / ops.sqrt((off * off).mean(axis=0))

    report = gradcheck(normalised, normal(6, 4), normal(4))
    assert "the result does not change with it" in report.findings[1].reason
    assert report.passed and not any("digits" in note for note in report.notes)


def test_where_the_forward_overflows_the_rule_is_not_blamed(own_op):
    @own_op("y = log(1 + exp x)", "x̄ = ȳ*exp x/(1 + exp x)")
    def softplus(x):
        """Softplus.  x (*) -> y (*)"""
        return np.log1p(np.exp(x))

    softplus.backward(lambda dy, x: dy * ops.exp(x) / (1 + ops.exp(x)))
    report = gradcheck(softplus, np.array([1.0, 1000.0, -2.0]))
    assert not report.problems and "its result is inf at [1]; the other entries are right" in str(report)
    assert gradcheck(softplus, np.array(1000.0)).findings[0].reason.endswith("its result is inf")


def test_numbers_for_a_random_cotangent_say_so_and_those_of_a_rule_that_is_right_for_one_name_it(monkeypatch):
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: y)
    assert str(gradcheck(ops.exp, normal(3)).findings[0].worst).endswith(", for a random ȳ")
    worst = gradcheck(ops.exp, 0.0).findings[0].worst
    assert worst.analytic == 1 and worst.numeric != 1
    assert f"for ȳ = {worst.numeric:.6g}" in str(worst)


def test_a_function_that_leaves_the_tape_by_float_is_told_what_leaves_it():
    with pytest.raises(GraphError, match=r"returned float; .* dict of Tensors; float\(\), .item\(\), .data and"):
        gradcheck(lambda x: math.exp(x[0]), normal(3))


def test_a_wrong_gradient_is_an_assertion_and_an_error_of_ours():
    assert issubclass(GradientError, AssertionError)
    assert issubclass(GradientError, NanogradError)


def test_the_worst_entry_of_many_is_found_too(monkeypatch):
    monkeypatch.setattr(
        registry["sin"], "rule", lambda dy, x: dy * np.cos(x) * np.where(np.arange(5000) == 3210, -1, 1)
    )
    assert gradcheck(ops.sin, normal(5000)).findings[0].worst.index == (3210,)


def test_a_function_that_drops_the_imaginary_part_does_not_confirm_the_rule_that_forgets_it_too():
    def half(x):
        return x * Tensor(x.data.real)  # to the complex step and to the tape alike, x times a constant

    report = gradcheck(half, 1 + normal(3) ** 2)
    assert report.findings[0].verdict == "wrong"
    assert "not analytic" in report.findings[0].why


def test_float32_inputs_are_checked_as_float64_copies_and_the_report_says_so():
    x = Tensor(normal(2, 3).astype(np.float32), requires_grad=True)
    report = gradcheck(ops.exp, x)
    assert report.passed
    assert report.relative_error() < 1e-14
    assert "float32 inputs were checked as float64 copies" in str(report)
    assert x.dtype == np.float32 and x.grad is None


def test_integers_none_and_tensors_without_gradient_are_constants():
    assert [f.name for f in gradcheck(ops.embedding, normal(5, 2), np.array([1, 1])).findings] == ["w"]
    assert [f.name for f in gradcheck(ops.linear, normal(5, 2), Tensor(normal(2, 3)), None).findings] == ["x"]


def test_inputs_of_an_op_that_takes_any_number_are_numbered():
    report = gradcheck(functools.partial(ops.stack, axis=1), normal(2), normal(2, seed=1))
    assert [f.name for f in report.findings] == ["xs[0]", "xs[1]"]


class Affine:
    """What a layer looks like to a checker."""

    def __init__(self):
        self.weight, self.bias = Parameter(normal(3, 2).astype(np.float32)), Parameter(normal(2))

    def named_parameters(self):
        return iter([("weight", self.weight), ("bias", self.bias)])

    def __call__(self, x):
        return ops.tanh(ops.linear(x, self.weight, self.bias))


def test_parameters_that_a_module_holds_are_checked_by_name_and_given_back(monkeypatch):
    layer = Affine()
    arrays = layer.weight.data, layer.bias.data
    report = gradcheck(layer, normal(4, 3), order=2)
    assert report.passed
    assert [f.name for f in report.findings if f.order == 1] == ["x", "weight", "bias"]
    assert layer.weight.data is arrays[0] and layer.bias.data is arrays[1]
    assert [f.name for f in gradcheck(layer.__call__, normal(4, 3)).findings] == ["x", "weight", "bias"]
    monkeypatch.setattr(registry["linear"], "rule", lambda dy, x, w, needs, into: (dy @ w.T, x.T @ dy, dy[0]))
    assert [f.name for f in gradcheck(layer, normal(4, 3)).findings if f.verdict == "wrong"] == ["bias"]


def test_arrays_are_given_back_when_the_function_fails():
    leaf = Parameter(normal(3).astype(np.float32))
    array = leaf.data
    calls = []

    def f():
        calls.append(1)
        if len(calls) > 4:
            raise ValueError("enough")
        return leaf * leaf

    with pytest.raises(ValueError, match="enough"):
        gradcheck(f)
    assert leaf.data is array


@pytest.mark.parametrize(("off", "verdict"), [(0.0, "right"), (0.01, "wrong"), (1.0, "wrong")])
def test_where_the_function_computes_in_float32_the_check_has_as_many_digits(off, verdict):
    def f(x):
        return ((1 + off) * x - off * x.detach()).astype(np.float32).tanh().astype(np.float64)

    report = gradcheck(f, normal(3))
    assert [finding.verdict for finding in report.findings] == [verdict]
    assert (verdict == "right") == any("right to about" in note for note in report.notes)


def test_where_the_function_is_not_finite_the_check_cannot_tell():
    with np.errstate(invalid="ignore"):
        report = gradcheck(ops.log, np.array([-1.0, 1.0]))
    (finding,) = report.findings
    assert (finding.verdict, finding.why) == ("cannot tell", "")
    assert (
        finding.reason
        == "the function's own numbers are not finite: its result is nan at [0]; the other entries are right"
    )
    (finding,) = gradcheck(ops.sqrt, np.array([1.0, 0.0])).findings
    said = "the function's own numbers are not finite: it has no finite slope at [1], where x is 0"
    assert (finding.verdict, finding.reason) == ("cannot tell", said + "; the other entries are right")


def test_a_mistake_beside_an_entry_without_a_finite_slope_is_found(monkeypatch):
    right = ops.sqrt.rule
    monkeypatch.setattr(ops.sqrt, "rule", lambda dy, y: right(dy, y) * np.where(y > 1.5, 1.001, 1))
    (finding,) = gradcheck(ops.sqrt, np.array([1.0, 0.0, 4.0])).findings
    assert finding.verdict == "wrong" and finding.worst.index == (2,)


def test_inputs_without_entries_do_not_pass():
    report = gradcheck(ops.sin, np.zeros((0, 3)))
    assert not report.passed and report.problems == ("nothing was checked: no input has entries",)
    assert gradcheck(ops.multiply, np.zeros((0, 3)), np.ones(3)).passed


def test_a_report_reads_plainly(monkeypatch):
    report = gradcheck(ops.exp, normal(3, 4), order=2)
    lines = str(report).splitlines()
    assert lines[0] == "gradients of exp: right"
    assert lines[1].startswith("  x (3, 4): right, off by ") and lines[1].endswith("is rounding; each entry compared")
    assert lines[2] == "  order 2, the gradient of the gradient:"
    assert lines[-1] == (
        "  note: slopes of the function from its values alone, of x by complex step; of higher orders by differences"
    )
    report = gradcheck(ops.exp, np.array([1.0, np.nan]))
    assert str(report).splitlines() == ["gradients of exp: NOT CHECKED", "  problem: x holds NaN, first at [1]"]
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: dy * y * np.array([1.0, np.nan]))
    report = gradcheck(ops.exp, normal(2))
    assert "x (2,): wrong, the gradient is not finite where the function's slope is finite" in str(report)
    assert "checked at 1 of 2 values" in str(gradcheck(ops.tanh, np.array([1.0, np.inf])))


def overflowing(x):
    return ops.log(1 + ops.exp(x))


@pytest.mark.parametrize("x", [[800.0], [1.0, 800.0], [5000.0, 2.0], [1000.0], [712.0]], ids=str)
@pytest.mark.parametrize("f", [overflowing, ops.exp])
def test_where_the_forward_overflows_here_or_nearby_the_check_cannot_tell(f, x):
    with np.errstate(all="ignore"):
        report = gradcheck(f, np.array(x))
    (finding,) = report.findings
    assert (finding.verdict, report.culprits) == ("cannot tell", ())
    assert "the function's own numbers are not finite" in finding.reason
    assert f"x {finding.shape}: cannot tell, because {finding.reason}" in str(report).splitlines()[1]
    assert str(report).splitlines()[0].endswith(": CANNOT TELL") and "is rounding" not in str(report)


def test_where_it_overflows_only_nearby_wider_numbers_tell():
    assert gradcheck(overflowing, np.array([709.5])).passed


def test_a_mask_of_minus_infinity_is_no_overflow():
    mask = np.array([True, False, True])
    assert gradcheck(lambda x: ops.where(mask, x, -np.inf), normal(3)).passed


def test_a_result_in_float32_is_checked_as_one_that_is_widened_again():
    report = gradcheck(lambda x: x.astype(np.float32) * 3, normal(3))
    assert [f.verdict for f in report.findings] == ["right"]
    assert any("right to about" in note for note in report.notes)


def test_an_op_that_breaks_its_shape_line_is_not_right(own_op):
    @own_op("y = Σ x", "x̄ = ȳ")
    def total(x):
        """x (N) -> y (N)"""
        return np.sum(x)

    total.backward(lambda dy, x: dy + 0 * x)
    for f, x in ((total, normal(3)), (lambda x: total(x) * 2, normal(3)), (total, normal(2, 2))):
        report = gradcheck(f, x)
        assert not report.passed and {finding.verdict for finding in report.findings} == {"right"}
        assert re.search(r"the result of total\(.*, called at .* breaks the shape line x \(N\) -> y", str(report))
    assert "the result has shape () where the line says (3,)" in str(gradcheck(total, normal(3)))
    assert "x (2, 2): expected (N)" in str(gradcheck(total, normal(2, 2)))


@pytest.fixture
def doubles(own_op):
    @own_op("y = 2x", "x̄ = 2ȳ")
    def doubles(x):
        """x (*) -> y (*)"""
        x *= 2
        return x

    doubles.backward(lambda dy: 2 * dy)
    return doubles


@pytest.mark.parametrize("through", [lambda f, x: f(x), lambda f, x: f(x * 3) + x], ids=["input", "intermediate"])
@pytest.mark.parametrize("held", [False, True], ids=["given", "held"])
def test_a_forward_that_writes_into_its_input_is_reported_and_changes_nothing_of_the_callers(doubles, through, held):
    x = normal(3)
    leaf = Tensor(x, requires_grad=True)
    report = gradcheck(lambda: through(doubles, leaf)) if held else gradcheck(lambda x: through(doubles, x), x)
    assert not report.passed and "the forward of doubles writes into its input" in str(report)
    np.testing.assert_array_equal(x, normal(3))
    with pytest.raises(GradientError, match="the forward of doubles writes into its input"):
        assert_gradients(doubles, x)
    assert not every_op.check_op(doubles, cases=2).passed


def test_the_same_seed_gives_the_same_report():
    assert str(gradcheck(ops.layernorm, normal(3, 4), normal(4), normal(4, seed=1), seed=5)) == str(
        gradcheck(ops.layernorm, normal(3, 4), normal(4), normal(4, seed=1), seed=5)
    )


@pytest.mark.parametrize(
    ("f", "inputs", "error", "words"),
    {
        "nothing to check": (ops.exp, (Tensor(normal(3)),), GraphError, "no input that requires a gradient"),
        "integers": (
            lambda i: Tensor(normal(3))[i],
            (np.array([1, 2]),),
            GraphError,
            "it got ndarray of int64; give it a float array",
        ),
        "integers alone": (ops.exp, (np.array([1, 2]),), GraphError, "it got ndarray of int64; give it a float array"),
        "array": (lambda x: x.data * 2, (normal(3),), GraphError, "returned ndarray"),
        "nothing": (lambda x: None, (normal(3),), GraphError, "returned NoneType"),
        "not float": (lambda x: x.astype(np.int64), (normal(3),), DtypeError, "int64"),
        "complex": (ops.exp, (1j * normal(3),), DtypeError, "complex"),
        "dropout without a seed": (nn.Dropout(0.4), (normal(9),), GraphError, "seed|noise"),
        "not repeatable": (
            lambda x: x * np.random.default_rng().standard_normal(3),
            (normal(3),),
            GraphError,
            "other numbers .* seed its random numbers in each call, as by np.random.default_rng\\(0\\)",
        ),
    }.values(),
)
def test_bad_use_gets_an_error_that_says_what_to_do(f, inputs, error, words):
    with pytest.raises(error, match=words):
        gradcheck(f, *inputs)


@pytest.mark.parametrize("order", [0, -1, 1.0, True])
def test_order_counts_from_one(order):
    with pytest.raises(ConfigError, match="order must be an integer of at least 1"):
        gradcheck(ops.exp, normal(3), order=order)


@pytest.mark.parametrize(
    "parts",
    [
        [normal(3), normal(2)],
        (normal(3), Tensor(normal(2))),
        [Tensor(normal(3), requires_grad=True), Tensor(normal(3), requires_grad=True)],
        [[normal(3)], [normal(2)]],
    ],
    ids=["arrays", "mixed", "Tensors", "nested"],
)
def test_a_list_that_is_no_one_array_is_refused_with_the_way_to_check_its_parts(parts):
    with pytest.raises(ShapeError, match="pass its parts as separate inputs"):
        gradcheck(ops.concatenate, parts)


def test_a_list_of_index_arrays_of_different_shapes_is_handed_on_as_it_is():
    index = (np.array([[0], [1]]), np.array([0, 2, 1]))
    assert [f.name for f in gradcheck(lambda x, i: x[i], normal(2, 3), index).findings] == ["x"]


def test_parts_of_unequal_length_are_checked_as_separate_inputs():
    assert gradcheck(lambda a, b: ops.concatenate([a, b]), normal(3), normal(2)).passed


def test_a_composition_is_checked_like_any_function():
    assert gradcheck(composed.gelu, normal(3, 4), order=2).passed


@declare("y = (x - t)**2", "x̄ = 2ȳ*(x - t)", constants=("t",))
def squared_distance(x, t):
    """From targets.  x (*), t (*) -> y (*)"""
    return (x - t) ** 2


@squared_distance.backward
def squared_distance_backward(dy, x, t):
    return 2 * dy * (x - t)


del registry[f"{__name__}.squared_distance"]  # else other tests would check it too


@pytest.mark.parametrize("target", [np.array([0.5, 1.5]), [0.5, 1.5], Tensor([0.5, 1.5], requires_grad=True), 0.5])
def test_the_constants_of_an_op_are_not_checked(target):
    for f in (squared_distance, functools.partial(squared_distance)):
        report = gradcheck(f, np.array([1.0, 3.0]), target)
        assert report.passed, report
        assert [finding.name for finding in report.findings] == ["x"]
        assert "t is declared a constant: no gradient goes to it" in report.notes


def test_an_op_of_constants_alone_has_nothing_to_check():
    with pytest.raises(GraphError, match="squared_distance has no input that requires a gradient"):
        gradcheck(functools.partial(squared_distance, Tensor(1.0)), np.array(0.5))


def test_keyword_arguments_go_to_the_function():
    x = np.arange(6.0).reshape(2, 3)
    report = gradcheck(ops.softmax, x, axis=0, order=2)
    assert report.passed and report.function == "softmax"
    assert report.findings[0].compared == "each entry compared" and report.findings[0].name == "x"
    assert_gradients(ops.sum, x, axis=1, keepdims=True)
    assert_gradients(lambda x, scale: x * scale, x, scale=3.0)
    with pytest.raises(GradientError):
        assert_gradients(lambda x, *, shift: (x + shift).detach() * 1.0 + x, x, shift=1.0)
    with pytest.raises(GraphError, match="no input that requires a gradient; it got float, int"):
        gradcheck(lambda a, b: a * b, a=2.0, b=3)


def test_arrays_and_tensors_given_by_name_are_checked_under_their_names():
    def distance(x, target, *, scale, power=2.0):
        return ops.sum((scale * x - target.detach()) ** power)

    x, scale = np.arange(1.0, 4.0), Tensor(np.ones(3), requires_grad=True)
    report = gradcheck(distance, x, target=x + 1, scale=scale, power=2.0, order=2)
    verdicts = {finding.name: finding.verdict for finding in report.findings if finding.order == 1}
    assert verdicts == {"x": "right", "target": "wrong", "scale": "right"}


def test_a_keyword_argument_that_the_function_does_not_take_is_refused_with_what_gradcheck_takes():
    for f in (ops.exp, lambda x: x * 2):
        with pytest.raises(SignatureError, match="ordr.*gradcheck's own are order=, .*unused=$"):
            gradcheck(f, np.ones(2), ordr=2)


def test_an_array_of_a_module_that_is_no_parameter_is_noted_but_not_what_a_forward_keeps():
    class Scaled(nn.Module):
        def __init__(self):
            self.scale = np.full(3, 2.0)

        def forward(self, x):
            self.last = x.data
            return x * self.scale

    notes = gradcheck(Scaled(), np.ones(3)).notes
    assert [note for note in notes if "Parameter" in note] == [
        "Scaled.scale is an array and no Parameter, so it is neither trained nor saved"
    ]


@pytest.mark.parametrize(("scale", "is_said"), [(1e6, True), (1e3, True), (1.0, False)])
@pytest.mark.parametrize("f", [ops.gelu, ops.silu, lambda x: x * ops.sigmoid(1.5 * x)], ids=["gelu", "silu", "swish"])
def test_a_function_that_is_straight_at_all_points_compared_is_noted(f, scale, is_said):
    report = gradcheck(f, scale * np.array([-1.0, 0.5, 1.2, -0.3]))
    assert report.passed
    assert any("is flat or straight" in note for note in report.notes) == is_said


@pytest.mark.parametrize("f", [ops.relu, lambda x: 3 * x, ops.exp, lambda x: ops.sum(x * x)])
def test_a_function_whose_slopes_are_all_compared_gets_no_note_that_it_is_straight(f):
    assert not any("straight" in note for note in gradcheck(f, np.array([-3.0, 0.5, 1.2])).notes)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "right"), (1.001, "wrong")])
def test_a_rule_that_returns_float32_is_compared_as_float32(factor, verdict, own_op):
    @own_op("y = tanh x", "x_bar = dy(1 - y^2)")
    def narrow_tanh(x):
        """Tanh.  x (*) -> y (*)"""
        return np.tanh(x)

    narrow_tanh.backward(lambda dy, y: (factor * dy * (1 - y * y)).astype(np.float32))
    report = gradcheck(narrow_tanh, normal(3, 4))
    assert report.findings[0].verdict == verdict, report
    assert not report.problems
    assert any("narrow_tanh gives is float32, though its input is float64" in note for note in report.notes)


def test_the_cast_that_the_check_itself_makes_is_not_said_to_widen():
    layer = nn.Linear(3, 2, rng=np.random.default_rng(0))
    x = normal(4, 3).astype(np.float32)
    notes = gradcheck(lambda: layer(x)).notes
    assert any("float32 inputs were checked" in note for note in notes)
    assert not any("widens" in note for note in notes)


def test_the_region_says_equal_values_once_and_how_many_inputs_are_left_out():
    report = gradcheck(lambda *x: sum(y.sum() for y in x), *(np.ones(3) * i for i in range(6)))
    assert "3 values of x[1] that are all 1" in report.notes[0]
    assert report.notes[0].endswith(", and 2 more inputs")


def test_an_input_without_entries_is_not_called_right():
    assert "not checked, it has no entries" in str(gradcheck(ops.tanh, np.ones((0, 3))))


def test_what_is_shown_as_rounding_is_what_decided():
    for x in ([[300.0, 0, -300]], [[1e3, 1e3 + 1, 0]], [[36.0, 40]], [[1e6, -1e6]]):
        for op in (ops.softmax, ops.log_softmax, ops.tanh, ops.gelu, ops.sin):
            (finding,) = gradcheck(op, np.array(x)).findings
            assert finding.verdict == "right" and finding.relative_error <= finding.tolerance, str(finding)


def test_a_right_gradient_that_is_known_to_few_digits_says_to_how_many_it_was_checked():
    assert "right, to about 8 digits: off by" in str(gradcheck(ops.tanh, np.array([40.0, -70])))
    assert "digits" not in str(gradcheck(ops.tanh, np.array([0.3])))


def test_no_hint_is_given_for_an_entry_that_is_off_by_less_than_any_contribution():
    def rule(dy, y, axis):
        g = y * (dy - (dy * y).sum(axis=axis, keepdims=True))
        g[1] *= 1 + 1e-9
        return g

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ops.softmax, "rule", rule)
        (finding,) = gradcheck(ops.softmax, np.array([0.4, 0.3, 0.1])).findings
    assert finding.verdict == "wrong" and finding.worst.index == (1,)
    assert finding.pattern == "no known mistake; 1 of 3 entries is wrong: [1]"


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_report_is_true_where_it_passed(factor):
    x = np.array([0.3, 0.4])
    assert bool(check_gradient(np.sin, lambda x: factor * np.cos(x), x)) is (factor == 1)


def test_a_call_that_breaks_its_shape_line_is_named_where_the_rule_cannot_run():
    @declare("y = x w", "x̄ = ȳ wᵀ;  w̄ = xᵀ ȳ")
    def project(x, w):
        """A product.  x (N, D), w (D, E) -> y (N, E)"""
        return x @ w

    project.backward(lambda dy, x, w: (dy @ w.T, x.T @ dy))
    report = gradcheck(project, np.ones((2, 2, 3)), np.ones((3, 4)))
    assert "test_check.py:" in report.problems[0] and "breaks the shape line x (N, D)" in report.problems[0]
    assert report.problems[1].startswith("with these shapes no more can be checked: in the rule of project")


def test_for_a_function_of_numpy_the_right_check_is_named():
    with pytest.raises(SignatureError, match=r"np.tanh is a function of NumPy.* check_gradient\(np.tanh, "):
        gradcheck(np.tanh, np.ones(3))


def test_what_off_by_means_is_said_where_a_gradient_is_wrong():
    x = np.array([0.3, 0.4])
    report = check_gradient(np.sin, lambda x: 2 * np.cos(x), x)
    assert "off by: |gradient - slope| ÷ (|gradient| + |slope|)" in str(report)


def test_why_differences_are_taken_is_said_once():
    def halves(a, b, c):
        return np.array(float((a * b * c).sum()))

    x = np.array([0.3, 0.4])
    text = str(check_gradient(halves, lambda a, b, c: (b * c, a * c, a * b), x, x, x))
    assert text.count("because") == 1


@pytest.mark.parametrize("error", [ValueError, NameError])
def test_an_error_below_a_rule_is_reported_with_the_deepest_line_in_its_file(error, own_op, capsys):
    def helper():
        raise error("mine")

    @own_op("y = 2x", "x̄ = 2ȳ")
    def twice(x):
        """x (*) -> y (*)"""
        return 2 * x

    @twice.backward
    def twice_backward(dy):
        return helper()

    assert not attempt(twice, normal(3))
    assert re.search(rf"mine.* at \S*test_check.py:{helper.__code__.co_firstlineno + 1}\n", capsys.readouterr().out)


def test_a_pattern_is_said_once_for_an_input_and_its_rule(monkeypatch):
    monkeypatch.setattr(registry["sin"], "rule", lambda dy, x: 2 * dy * ops.cos(x))
    report = gradcheck(ops.sin, np.array([0.3, 0.4]))
    assert report.culprits[0].pattern and str(report).count("looks like") == 1


def test_summaries_are_true_where_they_passed():
    assert check_op(ops.sin, cases=2)
    assert not OpSummary("sin", 2, (0.0,), 0, (), ("wrong",)) and not Summary(())


def warning_square(x):
    warnings.warn(f"of {x.shape}", stacklevel=1)
    return x * x


def test_a_function_that_warns_is_heard_once_in_each_check():
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"of \(3,\)") as shown:
            assert gradcheck(warning_square, np.ones(3), order=2).passed
        assert len(shown) == 1


def test_where_warnings_are_errors_that_of_a_function_is_raised():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match="of "):
            gradcheck(warning_square, np.ones(3))


class Cut(nn.Module):
    def __init__(self, cut):
        self.linear, self.unused, self.cut = nn.Linear(4, 3, rng=np.random.default_rng(0)), nn.Linear(2, 2), cut

    def forward(self, x):
        weight = self.linear.weight
        return ops.tanh(x @ (weight.data if self.cut else weight) + self.linear.bias)


class Holder:
    def __init__(self, model):
        self.models = [model]

    def loss(self, x):
        return self.models[0](x).sum()


@pytest.mark.parametrize(
    "held",
    [
        lambda model: lambda x: model(x).sum(),
        lambda model: functools.partial(lambda x, *, k: k(x).sum(), k=model),
        lambda model: Holder(model).loss,
        lambda model: lambda x: Holder(model).loss(x),
    ],
)
def test_a_parameter_that_is_cut_off_is_found_wherever_the_function_holds_its_module(held):
    right, wrong = (gradcheck(held(Cut(cut)), normal(2, 4)) for cut in (False, True))
    assert right.passed and [f.name.rpartition(".")[2] for f in right.findings] == ["x", "weight", "bias"]
    assert [(f.name.rpartition(".")[2], f.verdict) for f in wrong.findings if f.verdict != "right"] == [
        ("weight", "wrong")
    ]
