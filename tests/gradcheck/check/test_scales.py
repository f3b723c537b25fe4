"""A right gradient is right at every scale, and a wrong one is not: functions that cancel, saturate, jump or bend."""

from __future__ import annotations

import itertools
import re
import types
import warnings

import numpy as np
import pytest

from nanograd_llm import Tensor, nn, no_grad, ops
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.errors import GraphError
from nanograd_llm.gradcheck import check_gradient, check_layer, check_op, gradcheck
from nanograd_llm.gradcheck.check import progress, rounding


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


MASK = np.where(np.arange(4) < 2, 0, -100.0)
RIGHT = {
    "gelu where its h rounds to nothing": (ops.gelu, [-8, 0.3]),
    "log_softmax": (ops.log_softmax, [[0, 30, -20.0]]),
    "a saturated softmax": (ops.softmax, 300 * normal(3, 5)),
    "scores without 1/√D": (lambda q, k, v: ops.softmax(q @ k.mT * 10) @ v, *(normal(4, 5, seed=i) for i in range(3))),
    "an additive mask": (lambda x: ops.softmax(x + MASK), normal(3, 4)),
    "1/x of mixed sizes": (lambda x: 1 / x, [1e-3, -1e3]),
    "a bump far away": (lambda x: ops.exp(-(x - 1000) * (x - 1000)), [1000.3, 999.5]),
    "√(1 + x²) - 1": (lambda x: ops.sqrt(1 + x * x) - 1, [1e-4, -2e-4]),
    "a large number added and taken away": (lambda x: (x + 1e8) - 1e8, [1.0, 2]),
    "(exp x - 1)/x": (lambda x: (ops.exp(x) - 1) / x, [1e-6, 2e-6]),
    "a target that is nearly certain": (lambda x: ops.cross_entropy(x, [0]), [[20.0, 0, 1]]),
    "log of sigmoid": (lambda x: ops.log(ops.sigmoid(x)), [36.0, 37]),
    "max of a giant and a dwarf": (ops.max, [1.33e241, 1.4e-310]),
    "tanh of mixed sizes": (ops.tanh, [0.5, 1e27]),
    "log": (ops.log, [0.01, 10]),
    "sqrt": (ops.sqrt, [0.01, 10]),
    "sin far out": (ops.sin, [1e6, 1e6 + 1]),
    "max of near ties": (ops.max, [1, 1 + 5e-7]),
    "x³ at 0": (lambda x: x * x * x, np.zeros(3)),
    "sort": (ops.sort, normal(2000)),
    "floor near a step": (lambda x: Tensor(np.floor(x.data)) * x, [4.001]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_gradient_is_called_right_without_a_warning(name):
    f, *inputs = RIGHT[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = gradcheck(f, *(np.asarray(x, float) for x in inputs))
    assert report.passed, report


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_vjp(dy, x):
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x * x))


def softmax(x):
    e = np.exp(x - x.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_vjp(dy, x):
    y = softmax(x)
    return y * (dy - (y * dy).sum(-1, keepdims=True))


LARGE_SCORES = (
    [[-0.00503, -18.8, -1.31, 0.0524], [0.002, 32.1, 583, 251], [-0.00736, -0.117, -0.0941, 4.16]],
    [[-1240, 0.372, -16.8, -31.9], [-1190, 1.85, 1.33, -24.1]],
    [[-0.0592, 1.29, -25, -96.3, -0.382], [33.1, -0.0232, 855, -100, 17.6]],
)
CANCELS_WITHIN = {  # to a few units of the last place, in one kind of number, and at all points nearby
    "gelu, in float32": (ops.gelu, None, [-37.3, -5.411, -202]),
    "gelu, in float64": (ops.gelu, None, [-4.350357572363772, -233.59481292775618, -33.271766349781025]),
    "attention": (lambda q, k, v: ops.attention(q, k, v, causal=False), None, *LARGE_SCORES),
    "gelu in NumPy": (gelu, gelu_vjp, [-4.558851793515838, -648.1392263791842, -642.3811479776061]),
    "softmax in NumPy": (softmax, softmax_vjp, [11.680000265971398, 0.012702697998490905, -6339.4913786255]),
}


@pytest.mark.parametrize("name", CANCELS_WITHIN)
def test_what_cancels_within_a_function_is_rounding(name):
    f, vjp, *inputs = CANCELS_WITHIN[name]
    inputs = [np.array(x, float) for x in inputs]
    for seed in range(6):
        report = gradcheck(f, *inputs, seed=seed) if vjp is None else check_gradient(f, *inputs, vjp=vjp, seed=seed)
        assert not report.problems and all(finding.verdict != "wrong" for finding in report.findings), report


COARSE = {
    "float16": lambda g: g.astype(np.float16).astype(float),
    "float32": lambda g: g.astype(np.float32).astype(float),
    "three digits": lambda g: np.round(g, 3),
}


@pytest.mark.parametrize("name", COARSE)
@pytest.mark.parametrize("shape", [(5,), (40, 40)])
def test_a_rule_that_is_coarse_in_float64_alone_is_wrong(name, shape):
    def rule(x):
        return COARSE[name](np.cos(x)) if x.dtype == np.float64 else np.cos(x)

    assert check_gradient(np.sin, rule, normal(*shape)).findings[0].verdict == "wrong"


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def layer_norm_vjp(dy, x):
    y = layer_norm(x)
    return (dy - dy.mean(-1, keepdims=True) - y * (dy * y).mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def log_det(a):
    return np.linalg.slogdet(a)[1]


ILL_CONDITIONED = {  # none is analytic: their slopes are found by differences
    "layer norm": (layer_norm, layer_norm_vjp, normal(3, 4) + 1e6),
    "std": (np.std, lambda dy, x: dy * (x - x.mean()) / x.size / np.std(x), normal(3, 4) + 1e6),
    "the rest of a division": (lambda x: np.mod(x, 1), lambda dy, x: dy, 1e4 * normal(5)),
    "log det": (log_det, lambda dy, a: dy * np.linalg.inv(a).T, np.ones((4, 4)) + 1e-4 * normal(4, 4)),
}


@pytest.mark.parametrize("name", ILL_CONDITIONED)
def test_differences_tell_right_from_wrong_far_from_zero(name):
    f, vjp, x = ILL_CONDITIONED[name]
    assert check_gradient(f, x, vjp=vjp).passed
    for factor in (2, 1.01, 1 + 1e-4, 1 + 2e-6):
        report = check_gradient(f, x, vjp=lambda dy, x, factor=factor: factor * vjp(dy, x))
        assert report.findings[0].verdict == "wrong", report


@pytest.mark.parametrize("name", [name for name in RIGHT if name != "sort"])
def test_a_right_gradient_is_not_called_wrong_at_second_order(name):
    f, *inputs = RIGHT[name]
    report = gradcheck(f, *(np.asarray(x, float) for x in inputs), order=2)
    assert not report.problems and all(finding.verdict != "wrong" for finding in report.findings), report


@pytest.mark.parametrize("x", [[36.0, 40], [60.0, 70], [5.0, 45]])
def test_a_gradient_doubled_where_rounding_is_larger_than_it_does_not_pass(x, monkeypatch):
    rule = registry["exp"].rule
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: 2 * rule(dy, y))
    assert not gradcheck(lambda x: 1 / (1 + ops.exp(-x)), np.array(x)).passed


def test_without_wider_numbers_a_right_gradient_is_at_worst_in_doubt(monkeypatch):
    monkeypatch.setattr(rounding.Precisions, "wide", None)
    for name in RIGHT:
        f, *inputs = RIGHT[name]
        report = gradcheck(f, *(np.asarray(x, float) for x in inputs))
        assert not any(finding.verdict == "wrong" for finding in report.findings), report
    rule = registry["exp"].rule
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: (1 + 1e-9) * rule(dy, y))
    assert gradcheck(ops.exp, normal(3)).findings[0].verdict == "wrong"


TINY = {"exp": [0.0, -40, -1], "softmax": [0.0, -60, -1], "silu": [1.0, -42, -1]}


@pytest.mark.parametrize("factor", [2, 0.9, 1 + 1e-6])
@pytest.mark.parametrize("name", TINY)
def test_an_entry_far_below_the_rounding_of_others_is_compared_with_itself(name, factor, monkeypatch):
    op, x = registry[name], TINY[name]
    report = gradcheck(op, np.array(x))
    assert report.passed and not any("not seen" in note for note in report.notes)
    right = op.rule
    monkeypatch.setattr(op, "rule", lambda dy, *saved: right(dy, *saved) * np.where(np.arange(3) == 1, factor, 1))
    (finding,) = gradcheck(op, np.array(x)).findings
    assert finding.verdict == "wrong" and finding.worst.index == (1,) and "1 of 3 entries is wrong" in finding.pattern


def test_an_entry_too_small_to_be_compared_gets_a_note(monkeypatch):
    right = ops.exp.rule
    monkeypatch.setattr(ops.exp, "rule", lambda dy, y: right(dy, y) * np.where(y < 1e-50, 2, 1))
    notes = gradcheck(ops.exp, np.array([0.0, -120, -1])).notes
    assert any("entries of the gradient of x differ" in note and "not seen" in note for note in notes)


def test_a_jump_cannot_be_told():
    finding = gradcheck(lambda x: Tensor(np.floor(x.data)) * x, np.array([4.0])).findings[0]
    assert finding.verdict == "cannot tell" and "jumps" in finding.reason and "jump at [0]" in str(finding)


def test_second_order_near_a_kink_is_right():
    assert gradcheck(ops.absolute, np.array([3e-4, -1]), order=2).passed
    for seed in range(6):
        a, b = normal(4, 8, seed=seed), normal(8, 2, seed=seed + 100)
        report = gradcheck(lambda x, w, u: ops.relu(x @ w) @ u, normal(3, 4, seed=seed), a, b, order=2, jacobian=0)
        assert not any(finding.verdict == "wrong" for finding in report.findings), report


def test_the_digits_that_rounding_leaves_are_said():
    notes = gradcheck(lambda x: 1e3 * ops.tanh(x), np.array([15.0, 16])).notes
    assert any("leaves about 4 digits of the gradient" in note for note in notes)


class Cut(nn.Module):
    def __init__(self, how):
        self.table, self.head, self.how = nn.Embedding(5, 3), nn.Linear(3, 2), how

    def forward(self, ids):
        if self.how == "detach":
            return self.head(self.table(ids).detach())
        if self.how == "no_grad":
            with no_grad():
                x = self.table(ids)
            return self.head(x)
        return self.head(Tensor(np.ones((2, 3), np.float32)))


@pytest.mark.parametrize("how", ["detach", "no_grad"])
def test_parameters_before_a_cut_in_the_tape_are_listed_and_wrong(how):
    report = gradcheck(Cut(how), np.array([1, 2]))
    wrong = [finding.name for finding in report.findings if finding.verdict == "wrong"]
    assert wrong == ["table.weight"] and not report.passed


def test_a_parameter_that_nothing_uses_is_a_problem_unless_it_is_said_to_be_unused_or_frozen():
    report = gradcheck(Cut("unused"), np.array([1, 2]))
    assert "no gradient reaches the parameter table.weight" in report.problems[0]
    assert gradcheck(Cut("unused"), np.array([1, 2]), unused=["table.weight"]).passed
    module = Cut("unused")
    module.table.freeze()
    assert gradcheck(module, np.array([1, 2])).passed


def test_results_in_tuples_lists_and_dicts_are_all_checked(monkeypatch):
    assert gradcheck(lambda x: (ops.exp(x), {"a": [ops.sin(x), 3]}), normal(3)).passed
    monkeypatch.setattr(registry["sin"], "rule", lambda dy, x: dy)
    assert not gradcheck(lambda x: (ops.exp(x), {"a": [ops.sin(x), 3]}), normal(3)).passed


def test_nan_in_an_input_is_named_and_a_nan_gradient_names_its_op(monkeypatch):
    report = gradcheck(lambda x, w: x * w, np.ones(3), np.array([1, np.nan, 2]))
    assert report.problems == ("w holds NaN, first at [1]",) and not report.passed
    monkeypatch.setattr(registry["sin"], "rule", lambda dy, x: dy * np.nan)
    report = gradcheck(lambda x: ops.exp(ops.sin(x)), normal(3))
    assert "the rule of sin makes a NaN" in report.problems[0]
    assert "wrong, the gradient is not finite" in str(report) and "off by 0" not in str(report)


def test_a_rule_that_writes_into_its_cotangent_is_named(monkeypatch):
    def wrong(dy, x):
        dy *= np.cos(x)
        return dy

    monkeypatch.setattr(registry["sin"], "rule", wrong)
    report = gradcheck(lambda x: ops.exp(ops.sin(x)), normal(3))
    assert "the rule of sin writes into its cotangent" in str(report) and not report.passed
    assert "writes into its cotangent" in check_op(ops.sin, cases=1).problems[0]  # which is found before order 2 fails


def test_a_rule_that_raises_is_named(monkeypatch):
    def wrong(dy, x):
        raise KeyError("no such thing")

    monkeypatch.setattr(registry["sin"], "rule", wrong)
    with pytest.raises(GraphError, match="the rule of sin raises KeyError"):
        gradcheck(lambda x: ops.exp(ops.sin(x)), normal(3))


def test_dropout_without_a_seed_is_always_told():
    for _ in range(20):  # two masks of one entry are mostly the same
        with pytest.raises(GraphError, match="seed"):
            gradcheck(nn.Dropout(0.1), np.ones(1))


def test_the_report_says_where_it_was_checked():
    assert "checked at 2 values of x between -1 and 2" in gradcheck(ops.exp, np.array([-1.0, 2.0])).notes


def test_entries_are_left_out_where_they_would_take_too_long_and_the_report_says_so():
    finding = gradcheck(ops.exp, normal(50), seconds=0).findings[0]
    assert finding.verdict == "right" and re.search(r"give seconds=\d+ for them", finding.compared)


def test_a_slow_check_leaves_out_tests_and_the_search_for_culprits_and_says_so(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    notes = gradcheck(lambda x: ops.exp(x) * 2, normal(50), seconds=20).notes
    assert any("in 20 s not all was tested" in note for note in notes)
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: 2 * dy * y)
    report = gradcheck(lambda x: ops.exp(x) * 2, normal(50), seconds=20)
    assert report.findings[0].verdict == "wrong" and report.findings[0].worst and not report.culprits
    assert any("no time to look for the op calls at fault" in note for note in report.notes)


def test_a_module_of_ones_own_is_checked_as_it_is():
    assert check_layer(nn.Linear(3, 2), normal(4, 3), cases=20, order=1).passed
    assert check_layer(nn.Linear(3, 2), cases=20, order=1).passed


def test_a_wrong_op_says_why_once(monkeypatch):
    monkeypatch.setattr(registry["sin"], "rule", lambda dy, x: dy)
    found = check_op(ops.sin, order=1, cases=2)
    assert str(found).count("gradients of sin: NOT RIGHT") == 1
    assert str(found).endswith(f"\n    and {len(found.problems) - 1} more problems")


def soft(x):
    e = np.exp(x - x.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def centred(x):
    c = x - x.mean(axis=-1, keepdims=True)
    return c / np.sqrt((c * c).mean(axis=-1, keepdims=True))


def centred_vjp(dy, x):
    y, r = centred(x), 1 / np.sqrt(x.var(axis=-1, keepdims=True))
    return r * (dy - dy.mean(axis=-1, keepdims=True) - y * (dy * y).mean(axis=-1, keepdims=True))


# f, its vjp, x
SCALED = {
    "Σx²": (lambda x: (x**2).sum(), lambda dy, x: 2 * dy * x, normal(3, 4)),
    "x³": (lambda x: x**3, lambda dy, x: 3 * dy * x**2, normal(5)),
    "3x": (lambda x: 3 * x, lambda dy, x: 3 * dy, normal(3, 4)),
    "product": (lambda x: np.prod(x), lambda dy, x: dy * np.prod(x) / x, 0.1 + 0.2 * np.abs(normal(12))),
    "1/x²": (lambda x: 1 / x**2, lambda dy, x: -2 * dy / x**3, np.array([1.0, 2])),
    "softmax": (soft, lambda dy, x: soft(x) * (dy - (dy * soft(x)).sum(-1, keepdims=True)), normal(3, 4)),
    "saturated softmax": (
        soft,
        lambda dy, x: soft(x) * (dy - (dy * soft(x)).sum(-1, keepdims=True)),
        np.array([[0, 100, 400, 1000.0]]),
    ),
    "saturated tanh": (np.tanh, lambda dy, x: dy * (1 - np.tanh(x) ** 2), np.array([500.0, 1000])),
    "nearly saturated tanh": (np.tanh, lambda dy, x: dy * (1 - np.tanh(x) ** 2), np.array([20.0, 40])),
    "normalization": (centred, centred_vjp, normal(3, 5)),
    "a sum that cancels": (
        lambda x: (x - x.mean()) * x.sum(),
        lambda dy, x: x.sum() * (dy - dy.mean()) + (dy * (x - x.mean())).sum(),
        normal(5),
    ),
    "by differences": (lambda x: x.astype(float) ** 2, lambda dy, x: 2 * dy * x, normal(4)),
}


@pytest.mark.parametrize("factor", [1, 1.5, 1 + 1e-6])
@pytest.mark.parametrize("name", SCALED)
def test_a_function_or_its_inputs_times_a_number_get_the_same_verdict(name, factor):
    f, vjp, x = SCALED[name]
    expected = "right" if factor == 1 else "wrong"

    def verdict(outer, inner):
        report = check_gradient(
            lambda x: outer * f(x / inner),
            inner * x,
            vjp=lambda dy, x: factor * outer * vjp(dy, x / inner) / inner,
            explain=False,
        )
        return report.findings[0].verdict

    scales = (1e-30, 1e-10, 1e10, 1e30)
    found = {(a, b): verdict(a, b) for a, b in [(1, 1), *((s, 1) for s in scales), *((1, s) for s in scales)]}
    assert set(found.values()) == {expected}, found


def test_a_wrong_rule_of_an_op_is_wrong_at_small_and_large_inputs(own_op):
    @own_op("y = x²", "x̄ = 2ȳx")
    def square(x):
        """x (*) -> y (*)"""
        return x * x

    square.backward(lambda dy, x: 5 * dy * x)
    for scale in (1e-100, 1e-20, 1e-18, 1e20, 1e60):
        assert gradcheck(square, scale * normal(3, 4)).findings[0].verdict == "wrong"


def test_a_function_that_saturates_is_compared_nearer_to_zero_and_the_report_says_so():
    def tanh(factor):
        return check_gradient(np.tanh, np.array([500.0, 1000]), vjp=lambda dy, x: factor * dy * (1 - np.tanh(x) ** 2))

    right, wrong = tanh(1), tanh(2)
    assert right.passed and "times the inputs, as at the inputs themselves rounding hides it" in str(right)
    (finding,) = wrong.findings
    assert finding.verdict == "wrong" and finding.worst.analytic == pytest.approx(2 * finding.worst.numeric)
    assert "times the inputs, as at the inputs themselves rounding hides it" in str(finding)


@pytest.mark.parametrize(
    "f", [lambda x: np.maximum(x, 0), lambda x: 5 + x * (x > 0), lambda x: np.where(x > 0, x, -np.inf)]
)
def test_a_function_that_is_constant_has_a_right_gradient_of_zero(f):
    x = -np.abs(normal(3, 4))
    assert check_gradient(f, x, vjp=lambda dy, x: np.zeros_like(x)).passed
    assert check_gradient(f, x, vjp=lambda dy, x: dy).findings[0].verdict != "right"


def test_where_no_point_tells_the_check_cannot_tell():
    report = gradcheck(lambda x: (1e20 * x - 1e20 * x) + x, normal(3))
    assert [finding.verdict for finding in report.findings] == ["cannot tell"]
    assert "smaller than what rounding leaves" in report.findings[0].reason


@pytest.mark.parametrize("f", [np.exp, lambda x: np.exp(x).sum()], ids=["entries", "their sum"])
@pytest.mark.parametrize("largest", [30.0, 34.0])
def test_a_wrong_entry_beside_one_that_is_1e14_times_as_large_is_found(f, largest):
    x = np.array([1.0, largest])
    assert check_gradient(f, np.exp, x).passed
    report = check_gradient(f, lambda x: np.exp(x) * [0.5, 1], x)
    assert [finding.verdict for finding in report.findings] == ["wrong"]


def test_attention_whose_gradient_is_lost_between_large_scores_is_not_wrong():
    rng = np.random.default_rng(6)  # the softmax is 1 to all digits, and its slope is what they leave out
    q, k, v = rng.uniform(14, 19, (2, 65, 1)), 115730 + rng.normal(size=(2, 3, 1)), 161849 + rng.normal(size=(2, 3, 1))
    report = gradcheck(lambda q, k, v: ops.attention(q, k, v, causal=False), q, k, v, seed=6)
    assert not any(finding.verdict == "wrong" for finding in report.findings)
