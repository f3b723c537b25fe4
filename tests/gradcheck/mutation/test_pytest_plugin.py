"""The score of a user's tests: strong tests notice every mistake; what weak tests do not notice is listed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from nanograd_llm.autograd.op import keys_of
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.gradcheck.mutation import pytest_plugin
from nanograd_llm.gradcheck.mutation.backward_rules import backward_rules

pytest_plugins = ["pytester"]

SOFT = '''
import numpy as np
import nanograd_llm as ng
from nanograd_llm.gradcheck import assert_gradients

@ng.op("y = exp x / Σ exp x", "x̄ = y*(ȳ - Σ ȳ*y)")
def soft(x):
    """Softmax.  x (..., C) -> y (..., C)"""
    e = np.exp(x)
    return e / e.sum(axis=-1, keepdims=True)

@soft.backward
def soft_backward(dy, y):
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))

X = np.arange(6.0).reshape(2, 3) ** 2 / 10
'''
STRONG = """
def test_strong():
    assert_gradients(soft, X)
"""
FUNCTIONS = """
import numpy as np
from nanograd_llm.gradcheck import assert_gradient, backward_rule

X, W = np.arange(6.0).reshape(2, 3) / 5, np.cos(np.arange(12.0)).reshape(3, 4)

class Linear:
    def __init__(self):
        self.W, self.b = W.copy(), W[0].copy()

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    @backward_rule
    def backward(self, dout):
        self.dW = self.x.T @ dout
        self.db = dout.sum(axis=0)
        return dout @ self.W.T

@backward_rule(cotangent=None)
def slope(x):
    return 1 - np.tanh(x) ** 2
"""
STRONG_FUNCTIONS = """
def test_layer():
    assert_gradient(Linear(), X, explain=False)

def test_slope():
    assert_gradient(np.tanh, slope, X, explain=False)
"""
WEAK_FUNCTIONS = """
def test_layer():
    layer = Linear()
    layer.forward(X)
    assert layer.backward(np.ones((2, 4))).shape == X.shape and layer.dW[0, 0] > 0

def test_slope():
    assert (slope(X) > 0).all()
"""
WEAK = """
def test_weak():
    x = ng.Tensor(X, requires_grad=True)
    soft(x).sum().backward()
    assert np.allclose(x.grad, 0)
"""
MISTAKES = 9  # in the rule of soft, without the small one


@pytest.fixture(autouse=True)
def only_the_package_has_ops():
    """The tests that run inside this one register their ops in the same registry."""
    before, rules_before = dict(registry), dict(backward_rules)
    remove_others()
    yield
    remove_others()
    registry.update(before)
    backward_rules.update(rules_before)


def remove_others():
    for name, op in [*registry.items()]:
        if not op.__module__.startswith("nanograd_llm."):
            del registry[name]
    backward_rules.clear()


@pytest.fixture
def score(pytester):
    """Run pytest on a file of tests, with the plugin; (the result, its output)."""

    def run(source, *options, **how):
        path = pytester.makepyfile(test_user=source)
        result = pytester.runpytest_inprocess(
            *("-p", "nanograd_llm.gradcheck.mutation.pytest_options", "-p", "no:cacheprovider"),
            *("-W", "ignore:Module already imported"),  # by the tests around this one, where pip installed with -e
            *(path, *options),
            **how,
        )
        return result, result.stdout.str() + result.stderr.str()

    return run


def test_a_check_with_random_cotangents_notices_every_mistake(score):
    result, said = score(SOFT + STRONG, "--gradient-mutants", "--gradient-mutants-min=100")
    assert result.ret == 0
    result.assert_outcomes(passed=1)
    assert f"soft  {MISTAKES} of {MISTAKES} mistakes noticed" in said
    assert f"score: 100 % ({MISTAKES} of {MISTAKES} mistakes noticed)" in said
    assert "not noticed:" not in said and "warning" not in said


def test_the_mistakes_that_a_sum_of_softmax_does_not_notice_are_listed(score):
    result, said = score(SOFT + WEAK, "--gradient-mutants", "--gradient-mutants-min=50")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1)
    assert "not noticed: the gradient of x is twice what it should be" in said
    assert "not noticed: the gradient of x has the wrong sign" in said
    assert "not noticed: the gradient of x is zero\n" in said
    assert "    by test_user.py::test_weak\n" in said
    assert "below the 50 % of --gradient-mutants-min" in said


def test_without_a_threshold_the_score_only_informs(score):
    result, said = score(SOFT + WEAK, "--gradient-mutants")
    assert result.ret == 0 and "not noticed:" in said and "score: " in said


def test_one_strong_test_beside_a_weak_one_is_enough(score):
    result, said = score(SOFT + WEAK + STRONG, "--gradient-mutants", "--gradient-mutants-min=100")
    assert result.ret == 0 and "score: 100 %" in said


def test_the_small_mistake_is_planted_on_demand(score):
    loose = """
def test_loose():
    x, dy, u = ng.Tensor(X, requires_grad=True), np.sin(1 + 5 * X), np.cos(1 + 3 * X)
    slope = (soft(X + 1e-6 * u) - soft(X - 1e-6 * u)) / 2e-6
    assert np.isclose(np.sum(ng.grad(soft(x), x, dy) * u), np.sum(dy * slope), rtol=1e-6)
"""
    assert "score: 100 %" in score(SOFT + loose, "--gradient-mutants")[1]
    said = score(SOFT + loose, "--gradient-mutants", "--gradient-mutants-sharp")[1]
    assert "not noticed: the gradient of x is 1 + 1e-9 times what it should be" in said
    assert f"({MISTAKES} of {MISTAKES + 1} mistakes noticed)" in said


def test_an_op_whose_rule_no_test_runs_is_named(score):
    result, said = score(SOFT + "def test_forward():\n    assert soft(X).shape == X.shape\n", "--gradient-mutants")
    assert f"soft  0 of {MISTAKES} mistakes noticed: no test runs its rule" in said
    assert "score: 0 %" in said


def test_only_tests_that_run_the_rule_are_run_beginning_with_the_one_that_noticed_last(score, pytester):
    source = """
import numpy as np
import nanograd_llm as ng
from nanograd_llm.gradcheck import assert_gradients
X = np.linspace(0.1, 0.8, 6).reshape(2, 3)
def note(name):
    with open("runs", "a") as file:
        file.write(name + "\\n")
def test_sin():
    note("sin")
    assert_gradients(ng.ops.sin, X)
def test_tanh():
    note("tanh")
    assert_gradients(ng.ops.tanh, X)
def test_blind():
    note("blind")
    ng.ops.tanh(ng.Tensor(X, requires_grad=True)).sum().backward()
def test_neither():
    note("neither")
"""
    result, said = score(source, "--gradient-mutants=sin,tanh", "--gradient-mutants-min=100")
    assert result.ret == 0
    assert "sin   8 of 8 mistakes noticed" in said and "tanh  8 of 8 mistakes noticed" in said
    runs = (pytester.path / "runs").read_text().split()
    assert (runs.count("sin"), runs.count("tanh"), runs.count("neither")) == (1 + 8, 1 + 8, 1)
    assert runs.count("blind") <= 2  # as it is, and for the first mistake


def test_tests_that_fail_by_themselves_are_not_scored(score):
    result, said = score(SOFT + STRONG + "def test_no():\n    assert 0\n", "--gradient-mutants")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=1)
    assert "not scored: some tests fail without a planted mistake" in said and "score:" not in said


def test_a_fixture_is_set_up_and_torn_down_for_each_mistake(score):
    fixture = """
import pytest
made, gone = [], []
@pytest.fixture(scope="session")
def gradient():
    made.append(1)
    x = ng.Tensor(X, requires_grad=True)
    yield ng.grad(soft(x), x, X)
    gone.append(1)
def test_fixture(gradient):
    assert len(made) == len(gone) + 1
    y = soft(X)
    assert np.allclose(gradient, y * (X - (X * y).sum(axis=-1, keepdims=True)), rtol=1e-12)
"""
    assert "score: 100 %" in score(SOFT + fixture, "--gradient-mutants")[1]


def test_hypothesis_stores_no_example_of_a_mistake_that_was_planted(score, pytester):
    drawn = """
from hypothesis import given, settings, strategies
from hypothesis.database import DirectoryBasedExampleDatabase
class TestDrawn:
    @settings(database=DirectoryBasedExampleDatabase("examples"), derandomize=False, max_examples=5)
    @given(strategies.integers(0, 9))
    def test_drawn(self, seed):
        assert_gradients(soft, np.random.default_rng(seed).standard_normal((2, 3)))
"""
    result, said = score(SOFT + drawn, "--gradient-mutants", "--gradient-mutants-min=100")
    assert result.ret == 0
    assert [path for path in (pytester.path / "examples").rglob("*") if path.is_file()] == []


def test_a_training_loop_that_a_mistake_makes_endless_counts_as_noticed(score, monkeypatch):
    monkeypatch.setattr(pytest_plugin, "_MORE_SECONDS", 0.2)
    endless = """
def test_endless():
    x = ng.Tensor(X, requires_grad=True)
    while ng.grad(soft(x), x, X)[0, 0] > 0:
        pass
"""
    result, said = score(SOFT + endless, "--gradient-mutants")
    assert result.ret == 0 and "not noticed: the gradient of x has the wrong sign" not in said


def test_ctrl_c_leaves_no_mistake_behind(score):
    interrupted = """
def test_interrupted():
    x = ng.Tensor(X, requires_grad=True)
    if np.abs(ng.grad(soft(x), x, np.ones(X.shape))).max() > 1e-9:
        raise KeyboardInterrupt
"""
    result, said = score(SOFT + interrupted, "--gradient-mutants", no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "not scored: interrupted before every mistake was tried" in said
    (soft,) = (registry[key] for key in keys_of("soft", registry))
    assert soft.rule.__name__ == "soft_backward" and not hasattr(soft.rule, "__wrapped__")


def test_without_the_option_nothing_happens(score):
    result, said = score(SOFT + WEAK)
    assert result.ret == 0 and "gradient mutants" not in said and "score" not in said


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (SOFT + STRONG, ["--gradient-mutants=sofmax"], "no op or @backward_rule 'sofmax'; did you mean 'softmax'?"),
        (SOFT + STRONG, ["--gradient-mutants", "."], "'.' is a path; write --gradient-mutants=own ."),
        ("def test_x(): pass", ["--gradient-mutants"], "these tests declare no op and no @backward_rule of their own;"),
        (SOFT + STRONG, ["--gradient-mutants", "--gradient-mutants-min=101"], "a percentage from 0 to 100; got 101"),
        (SOFT + STRONG, ["--gradient-mutants-min=100"], "-min does nothing without --gradient-mutants"),
        (SOFT + STRONG, ["--gradient-mutants-min=0"], "-min does nothing without --gradient-mutants"),
        (SOFT + STRONG, ["--gradient-mutants-sharp"], "-sharp does nothing without --gradient-mutants"),
        (SOFT + STRONG, ["--gradient-mutants", "--pdb"], "leave out --pdb"),
        (SOFT.replace("soft(x)", "soft(x, *, n)") + STRONG, ["--gradient-mutants"], "op soft has constants or static"),
        (SOFT[: SOFT.index("@soft.backward")] + WEAK, ["--gradient-mutants"], "op soft has no rule"),
    ],
)
def test_bad_use_gets_one_line_that_says_what_to_do(score, source, options, message):
    result, said = score(source, *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in said and "Traceback" not in said


def test_workers_of_xdist_are_refused(score):
    pytest.importorskip("xdist")
    result, said = score(SOFT + STRONG, "--gradient-mutants", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "leave out -n" in said


def test_pytest_starts_without_numpy_where_the_option_is_not_given():
    source = "import sys, nanograd_llm.gradcheck.mutation.pytest_options; print({'numpy', 'pytest'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def test_mistakes_are_planted_in_functions_that_are_named_as_backward_rules(score):
    result, said = score(FUNCTIONS + STRONG_FUNCTIONS, "--gradient-mutants", "--gradient-mutants-sharp")
    assert result.ret == 0
    assert "score: 100 %" in said
    assert re.search(r"Linear\.backward  (\d\d) of \1 mistakes noticed", said)
    assert re.search(r"slope            (\d) of \1 mistakes noticed", said)


def test_the_mistakes_in_functions_that_weak_tests_do_not_notice_are_listed(score):
    result, said = score(FUNCTIONS + WEAK_FUNCTIONS, "--gradient-mutants", "--gradient-mutants-min=90")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "not noticed: the stored db is twice what it should be" in said
    assert "not noticed: the gradient of x is twice what it should be" in said
    assert "not noticed: the stored dW has the wrong sign" not in said


def test_a_backward_rule_that_no_test_calls_is_named(score):
    _, said = score(FUNCTIONS + WEAK_FUNCTIONS.partition("def test_slope")[0], "--gradient-mutants")
    assert "0 of 0 mistakes noticed: no test calls it" in said
    assert "--gradient-mutants=slope" not in said
    _, said = score(FUNCTIONS + STRONG_FUNCTIONS, "--gradient-mutants=slope")
    assert "slope  " in said and "Linear" not in said
