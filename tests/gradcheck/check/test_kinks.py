"""Where a function bends, the check says so, and holds the rule to the slopes on both sides."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm import ops
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.gradcheck import check_gradient, gradcheck


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def scaled_at(op, place, factor):
    """The op's rule with one entry of its gradient made wrong."""
    rule = registry[op].rule

    def wrong(dy, *saved):
        gradient = np.array(rule(dy, *saved))
        gradient[place] *= factor
        return gradient

    return wrong


AT_ZERO = np.array([0.0, 1.0, -2.0])


@pytest.mark.parametrize(
    ("f", "inputs", "places"),
    {
        "absolute at zero": (ops.absolute, (AT_ZERO,), [(0,)]),
        "clip at a bound": (lambda x: ops.clip(x, low=-2.0, high=5.0), (AT_ZERO,), [(2,)]),
        "a tie of max": (ops.max, (np.array([1.0, -1.0, 1.0]),), [(0,), (2,)]),
        "equal arguments of maximum": (ops.maximum, (AT_ZERO, AT_ZERO + [0, 1, 1]), [(0,)]),
        "inside a longer function": (lambda x: ops.sum(ops.exp(ops.absolute(x))), (AT_ZERO - 1,), [(1,)]),
    }.values(),
)
def test_a_kink_is_told_with_its_place(f, inputs, places):
    report = gradcheck(f, *inputs)
    assert report.passed, report
    finding = report.findings[0]
    assert finding.verdict == "at a kink"
    assert [kink.index for kink in finding.kinks] == places


def test_the_report_says_both_slopes_and_what_the_rule_picks():
    text = str(gradcheck(lambda x: ops.sum(ops.absolute(x)), AT_ZERO))
    assert "at a kink" in text and "kink at [0]" in text and "a value between" in text


@pytest.mark.parametrize(
    ("slope", "said"), [(1.0, "from the right"), (-1.0, "from the left"), (0.3, "a value between")]
)
def test_a_rule_may_pick_either_slope_or_a_value_between(slope, said, monkeypatch):
    monkeypatch.setattr(registry["absolute"], "rule", lambda dy, x: dy * np.where(x == 0, slope, np.sign(x)))
    report = gradcheck(lambda x: ops.sum(ops.absolute(x)) * 1.0, AT_ZERO)
    assert report.passed
    signed = {"from the right": "from the left", "from the left": "from the right"}
    assert said in str(report) or signed.get(said, said) in str(report)


def test_a_value_outside_both_slopes_is_wrong(monkeypatch):
    monkeypatch.setattr(registry["absolute"], "rule", lambda dy, x: dy * np.where(x == 0, 1.01, np.sign(x)))
    report = gradcheck(ops.absolute, AT_ZERO)
    assert [finding.verdict for finding in report.findings] == ["wrong"]
    assert "neither of" in str(report)


def test_a_wrong_entry_beside_a_kink_is_still_wrong(monkeypatch):
    monkeypatch.setattr(registry["absolute"], "rule", scaled_at("absolute", 1, 1 + 1e-9))
    report = gradcheck(ops.absolute, AT_ZERO)
    assert [finding.verdict for finding in report.findings] == ["wrong"]
    assert report.findings[0].worst.index == (1,)


def test_a_kink_among_many_entries_is_found():
    x = normal(3000)
    x[[17, 2222]] = 0
    finding = gradcheck(lambda x: ops.sum(ops.absolute(x)), x).findings[0]
    assert finding.verdict == "at a kink"
    assert [kink.index for kink in finding.kinks] == [(17,), (2222,)]


def test_with_more_kinks_than_can_be_looked_at_the_check_cannot_tell():
    finding = gradcheck(ops.absolute, np.zeros(100)).findings[0]
    assert finding.verdict == "cannot tell" and "bends" in finding.reason


def test_a_kink_a_little_away_is_none():
    assert [f.verdict for f in gradcheck(ops.absolute, np.array([1e-3, 1.0, -1.0])).findings] == ["right"]


@pytest.mark.parametrize(
    "f",
    {
        "exp": lambda x: ops.exp(-x * x),
        "tanh": ops.tanh,
        "cubic": lambda x: x * x * x,
        "three halves": lambda x: ops.power(x * x, 1.5),
        "nothing but rounding": lambda x: ops.layernorm(x, np.ones(5), np.zeros(5)).sum(),
    }.values(),
)
def test_a_smooth_function_has_no_kink(f):
    for seed in range(7):
        assert gradcheck(f, 10 ** np.float64(seed - 3) * normal(4, 5, seed=seed), seed=seed).findings[0].kinks == ()


def test_second_order_beside_a_kink_is_checked():
    report = gradcheck(lambda x: ops.absolute(x) + x * x, AT_ZERO, order=2)
    assert report.passed
    assert [f.verdict for f in report.findings if f.name == "x"] == ["at a kink", "at a kink"]


@pytest.mark.parametrize("x", [[1.0, 1 + 2e-14, 0.5], [2 + 2e-14, 2.0, 1.0, -1.0]])
def test_near_ties_that_no_step_parts_are_not_called_wrong_along_any_direction(x):
    for seed in range(30):  # along some directions two near ties move together
        report = gradcheck(ops.max, np.array(x), seed=seed, explain=False)
        assert report.passed, report


def parabola_with_straight_arms(x):
    size = ops.absolute(x)
    return ops.where(size.data < 1, x * x / 2, size - 0.5)


BENT_GRADIENTS = {
    "relu² at 0": (lambda x: ops.relu(x) * ops.relu(x), [0.3, 0.0], "at a kink"),
    "relu² near 0": (lambda x: ops.relu(x) * ops.relu(x), [0.3, 1e-6], "right"),
    "relu² of a difference": (
        lambda x: ops.relu(x[0] - x[1]) * ops.relu(x[0] - x[1]),
        [0.3, 0.3 - 1e-12],
        "cannot tell",
    ),
    "at the end of a parabola": (parabola_with_straight_arms, [1.0, 0.3, -1.0], "at a kink"),
    "near the end of a parabola": (parabola_with_straight_arms, [0.9995, 0.99999], "right"),
    "nearer to the end of a parabola": (parabola_with_straight_arms, [1 - 1e-12, 0.3], "cannot tell"),
}


@pytest.mark.parametrize("name", BENT_GRADIENTS)
def test_where_only_the_gradient_bends_the_second_order_says_so(name):
    f, x, verdict = BENT_GRADIENTS[name]
    for seed in range(2):
        report = gradcheck(f, np.array(x), order=2, seed=seed)
        assert [f.verdict for f in report.findings] == ["right", verdict, "right"], report


@pytest.mark.parametrize(
    ("at_zero", "elsewhere", "verdict"),
    [(0.5, 2.0, "at a kink"), (2.01, 2.0, "wrong"), (-0.01, 2.0, "wrong"), (0.5, 2.0 + 1e-6, "wrong")],
)
def test_at_a_bend_of_the_gradient_the_second_derivative_is_held_to_both_slopes(at_zero, elsewhere, verdict, own_op):
    @own_op("y = 2x if x > 0, else 0", "x̄ = 2ȳ if x > 0, else 0")
    def doubled(x):
        """Twice what is positive.  x (*) -> y (*)"""
        return 2 * np.maximum(x, 0)

    @doubled.backward
    def doubled_backward(dy, x):
        return dy * np.where(x == 0, at_zero, elsewhere * (x > 0))

    @own_op("y = x² if x > 0, else 0", "x̄ = 2 ȳ x if x > 0, else 0")
    def squared(x):
        """The square of what is positive.  x (*) -> y (*)"""
        return np.where(x.real > 0, x * x, 0)

    @squared.backward
    def squared_backward(dy, x):
        return dy * doubled(x)

    report = gradcheck(squared, np.array([0.3, 0.0]), order=2)
    assert report.findings[1].verdict == verdict, report


def test_the_slopes_of_ties_are_those_of_their_kinks(own_op):
    @own_op("y = max x", "x_bar = ?")
    def largest(x):
        """The largest number.  x (N) -> y ()"""
        return x.max()

    largest.backward(lambda dy, x, y: dy * (x == y))
    report = gradcheck(largest, np.array([1.0, 2.0, 2.0]))
    slope = report.findings[0].kinks[0].right
    (problem,) = report.problems
    assert (
        f"x[1], x[2] add up to {2 * slope:.6g}; moved together they change the result with slope {slope:.6g}" in problem
    )
    assert "the function's slopes and the gradient are zero" in str(report)
    (culprit,) = report.culprits
    assert culprit.op.endswith("largest") and __file__ in culprit.place and culprit.rule.startswith(__file__)


def test_ties_of_equal_size_and_other_sign_share_one_gradient():
    def gradient(x, share):
        return np.sign(x) * (np.abs(x) == np.abs(x).max()) * share

    x = np.array([3.0, -3.0, 1.0])
    for share in (0.5, [1, 0, 0], [0, 1, 0]):
        assert check_gradient(lambda x: np.abs(x).max(), lambda x, share=share: gradient(x, share), x).passed
    report = check_gradient(lambda x: np.abs(x).max(), lambda x: gradient(x, 1), x)
    assert not report.passed and "x[0], x[1], each times its entry's sign, add up to 2" in report.problems[0]
