"""Gradients of plain NumPy functions are checked as the engine's own are, however they are handed over."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm
from nanograd_llm import ops
from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.errors import DtypeError, GraphError, NanogradError, ShapeError, SignatureError
from nanograd_llm.gradcheck import GradientError, assert_gradient, check_gradient
from nanograd_llm.gradcheck.check import progress
from nanograd_llm.gradcheck.foreign.function import WithGradient
from nanograd_llm.gradcheck.foreign.library import Library

PACKAGE = Path(nanograd_llm.__path__[0])
R = np.random.default_rng(0)
X, W, B = R.normal(size=(3, 4)), R.normal(size=(4, 5)), R.normal(size=5)


def affine(x, w, b):
    return x @ w + b


def affine_vjp(dy, x, w, b):
    return dy @ w.T, x.T @ dy, dy.sum(axis=0)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_vjp(dy, x):
    y = softmax(x)
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


def softmax_jacobian(x):
    y = softmax(x)
    return np.diag(y) - np.outer(y, y)


def tanh_slope(x):
    return 1 - np.tanh(x) ** 2


@dataclasses.dataclass(frozen=True)
class Parameters:
    w: Any
    b: Any
    name: str | None


def verdicts(report: Any) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in report.findings}


RIGHT = {
    "the gradient of a number": lambda: check_gradient(lambda x: (x**3).sum(), lambda x: 3 * x**2, X),
    "the derivative of each entry": lambda: check_gradient(np.sin, np.cos, X),
    "a Jacobian": lambda: check_gradient(softmax, softmax_jacobian, X[0]),
    "a vjp by name": lambda: check_gradient(affine, X, W, B, vjp=affine_vjp),
    "a vjp told by its signature": lambda: check_gradient(affine, affine_vjp, X, W, B),
    "a backward with a cache": lambda: check_gradient(
        lambda x, w: (x @ w, (x, w)), X, W, backward=lambda dy, cache: (dy @ cache[1].T, cache[0].T @ dy)
    ),
    "numbers in and out": lambda: check_gradient(lambda x, y: x * y**2, lambda x, y: (y**2, 2 * x * y), 1.5, -0.5),
    "whole numbers as a gradient": lambda: check_gradient(lambda x, y: 3 * x + 2 * y, lambda x, y: (3, 2), 1.5, 2.5),
    "a list of one array": lambda: check_gradient(softmax, X, vjp=lambda dy, x: [softmax_vjp(dy, x)]),
    "a list of numbers": lambda: check_gradient(lambda x: x @ x, lambda x: (2 * x).tolist(), X[0]),
    "a constant input left out": lambda: check_gradient(
        lambda x, i: x[i].sum(), lambda x, i: np.add.at(g := np.zeros_like(x), i, 1) or g, X, np.array([0, 2, 0])
    ),
    "None for a constant input": lambda: check_gradient(lambda x, n: x**n, lambda x, n: (n * x ** (n - 1), None), X, 3),
    "a dict of parameters": lambda: check_gradient(
        lambda p, x: x @ p["w"] + p["b"],
        {"w": W, "b": B},
        X,
        vjp=lambda dy, p, x: ({"b": dy.sum(axis=0), "w": x.T @ dy}, dy @ p["w"].T),
    ),
    "a dataclass of parameters": lambda: check_gradient(
        lambda p, x: x @ p.w + p.b,
        Parameters(W, B, "first"),
        X,
        vjp=lambda dy, p, x: (Parameters(x.T @ dy, dy.sum(axis=0), None), dy @ p.w.T),
    ),
    "a result of two parts": lambda: check_gradient(
        lambda x: {"squares": x**2, "sum": x.sum(), "places": x.argmax()},
        X,
        vjp=lambda dy, x: dy["squares"] * 2 * x + dy["sum"],
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_gradient_is_right_however_it_is_given(name: str) -> None:
    report = RIGHT[name]()
    assert report.passed, report
    assert {finding.method for finding in report.findings} == {"complex step"}
    assert [note.split()[:2] for note in report.notes] == [["checked", "at"]]


WRONG = {
    "factor": ("off by the factor 2", lambda: check_gradient(softmax, X, vjp=lambda dy, x: 2 * softmax_vjp(dy, x))),
    "sign": ("the sign is wrong", lambda: check_gradient(np.cos, np.sin, X)),
    "a billionth": ("", lambda: check_gradient(np.sin, lambda x: np.cos(x) * (1 + 1e-9), X)),
    "upstream": (
        "what comes from upstream is ignored",
        lambda: check_gradient(np.tanh, X, vjp=lambda dy, x: tanh_slope(x)),
    ),
    "mean": (
        "the gradient is that of a mean over an axis of size 3, the function takes a sum",
        lambda: check_gradient(affine, X, W, B, vjp=lambda dy, x, w, b: (dy @ w.T, x.T @ dy, dy.mean(axis=0))),
    ),
    "nothing": ("no gradient arrives at all", lambda: check_gradient(lambda x, y: x @ y, lambda x, y: (y, None), B, B)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_is_wrong_and_its_pattern_recognised(name: str) -> None:
    pattern, check = WRONG[name]
    report = check()
    assert not report.passed
    assert "wrong" in verdicts(report).values()
    assert pattern in str(report)


def test_the_report_says_where_the_wrong_gradient_is_computed() -> None:
    report = check_gradient(affine, X, W, B, vjp=lambda dy, x, w, b: (dy @ w.T, x.T @ dy, dy.mean(axis=0)))
    assert verdicts(report) == {"x": "right", "w": "right", "b": "wrong"}
    (culprit,) = report.culprits
    assert culprit.inputs == ("b",)
    assert re.fullmatch(r".*test_check_gradient\.py:\d+", culprit.rule)


def test_assert_gradient_raises_with_the_report() -> None:
    assert_gradient(np.sin, np.cos, X)
    with pytest.raises(GradientError, match="the sign is wrong"):
        assert_gradient(np.cos, np.sin, X)


def test_a_setting_that_keeps_its_default_is_noted() -> None:
    def total(x, axis=0, *, keepdims=False, out=None):
        return x.sum(axis=axis, keepdims=keepdims)

    notes = check_gradient(total, X, vjp=lambda dy, x: np.broadcast_to(dy, x.shape)).notes
    assert "checked with axis=0, keepdims=False only: to check other values, give them as inputs" in notes
    assert not any("only" in note for note in check_gradient(np.sin, np.cos, X).notes)


def test_a_kink_is_told_from_a_mistake() -> None:
    x = np.array([0.0, 1.0, -1.0])
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    assert verdicts(check_gradient(relu, lambda x: 1.0 * (x > 0), x)) == {"x": "at a kink"}
    report = check_gradient(relu, lambda x: np.where(x == 0, 3.0, x > 0), x)
    assert "neither of them nor a value between" in str(report)


def test_a_function_that_refuses_complex_numbers_is_checked_by_differences() -> None:
    def by_hand(x):
        return np.array([float(a) ** 2 for a in x])

    report = check_gradient(by_hand, lambda x: 2 * x, B)
    assert report.passed and report.findings[0].method == "differences"
    assert not check_gradient(by_hand, lambda x: 2 * x * (1 + 1e-6), B).passed


def test_derivatives_of_the_entries_are_explained_where_the_result_mixes_entries() -> None:
    report = check_gradient(softmax, lambda x: softmax(x) * (1 - softmax(x)), X)  # the diagonal alone
    assert verdicts(report) == {"x": "wrong"}
    assert any("where the result mixes entries, write vjp" in note for note in report.notes)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x, y: y, r"returned an array of float64 \(5,\) for 2 inputs \(x, y\); return one array for each"),
        (lambda x, y: (y, x, y), r"returned a tuple of 3 for 2 inputs \(x, y\)"),
        (lambda x, y: (y, x[:2]), r"returned an array \(2,\) for y \(5,\); expected \(5,\)"),
        (lambda x, y: (y, np.outer(x, x)), r"for y \(5,\); expected \(5,\)"),
        (lambda x, y: None, r"returned None; return one array for each input"),
        (lambda x, y: (y, 1j * x), r"returned an array of complex128 \(5,\) for y; a gradient is a float array"),
        (lambda x, y: (y, "x"), r"returned a value of type str for y"),
        (lambda x, y: (y, np.array([object()])), r"returned an array of object \(1,\) for y"),
        (lambda x, y: x @ x.T[:2], r"raised ValueError: .* \(it got x \(5,\) float64, y \(5,\) float64\)"),
    ],
)
def test_a_gradient_that_cannot_be_is_one_clear_error(returned: Any, message: str) -> None:
    with pytest.raises(NanogradError, match=message) as caught:
        check_gradient(lambda x, y: x @ y, B, B, gradient=returned)
    assert "\n" not in str(caught.value)


def test_a_gradient_that_was_not_summed_says_so() -> None:
    with pytest.raises(ShapeError, match=r"an array \(3, 5\) for b \(5,\); expected \(5,\); sum over the axes"):
        check_gradient(affine, X, W, B, vjp=lambda dy, x, w, b: (dy @ w.T, x.T @ dy, dy))


def test_a_gradient_of_a_dict_has_the_same_keys() -> None:
    with pytest.raises(NanogradError, match=r"returned a dict of \['b'\] for p; it should be a dict of \['w'\], as p"):
        check_gradient(lambda p: p["w"].sum(), lambda p: {"b": p["w"]}, {"w": W})


@pytest.mark.parametrize(
    ("f", "came"),
    [
        (lambda x: x.astype(int), r"an array of int64 \(3, 4\)"),
        (lambda x: None, "None"),
        (lambda x: object(), "a value of type object"),
        (lambda x: "y", "a value of type str"),
        (lambda x: 1j * x, r"an array of complex128 \(3, 4\)"),
        (lambda x: (None, 1), "a tuple of 2"),
    ],
)
def test_a_result_that_is_no_float_is_one_clear_error(f: Any, came: str) -> None:
    with pytest.raises(DtypeError, match=f"returned {came}; a function to check returns a float array"):
        check_gradient(f, np.cos, X)


def test_a_bent_function_of_float32_is_not_called_straight() -> None:
    report = check_gradient(lambda x: np.tanh(x.astype(np.float32)), tanh_slope, np.array([0.3, 0.9]))
    assert report.passed and not any("straight" in note for note in report.notes)


class Called:
    """A loss of the form that is called, and has no forward."""

    def __call__(self, x: Any) -> Any:
        return (x * x).mean()

    def backward(self) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "how", "message"),
    [
        ((np.sin, np.cos, np.arange(3)), {}, r"sin has no input to check; it got an array of int64 \(3,\)"),
        ((np.sin, np.cos, [1, 2]), {}, "it got a list of 2 numbers of int"),
        ((np.tanh, tanh_slope(X), X), {}, "if the first array is the gradient, give the function that computes it"),
        ((np.tanh, X), {"gradient": tanh_slope(X)}, "gradient= is an array of float64 .*; give the function"),
        (
            (affine, lambda dy, cache: dy, X, W, B),
            {},
            r"the gradient is called as gradient\(\*inputs\), .* or backward= if it is called as backward\(dy, cache\)",
        ),
        ((np.tanh, tanh_slope, X), {"unused": ["W"]}, "unused= names 'W', which tanh does not have"),
        ((affine, affine_vjp, X, W, B), {"unused": [1]}, "unused= names 1, .*; it may name 'x', 'w', 'b'"),
        (
            (affine, X, W, B),
            {"vjp": lambda dy, x, w, b: dy @ w.T},
            r"for 3 inputs \(x, w, b\); return .* each, or name inputs that are constants, as in unused=\['b'\]",
        ),
        ((np.sin, np.cos), {}, "sin has no input to check; it got none"),
        ((np.sin, np.cos, 1j * X), {}, "is complex; give its real and imaginary parts"),
        (
            (np.sin, X),
            {},
            "the gradient of sin is missing: give it directly behind the function, .* gradient=, vjp=, backward=",
        ),
        ((np.sin, np.cos, X), {"vjp": np.cos}, "a gradient is given once; got gradient= and vjp="),
        ((3, X), {}, "takes a function or a layer first; got a value of type int"),
        ((X, np.sin), {}, r"got an array of float64 \(3, 4\); the function comes first$"),
        (
            (np.tanh, X),
            {"grad": tanh_slope},
            "check_gradient has no grad; it takes gradient=, .* functools.partial",
        ),
        (
            (np.sin, X),
            {"backward": lambda dy, cache: dy},
            r"sin returned an array .*; with backward= it returns a pair",
        ),
        ((np.tanh, X, tanh_slope), {}, "tanh raised TypeError: .*; give it directly behind the function, as in"),
        ((Called(), X), {}, "Called has a backward and no forward; rename its __call__ to forward"),
        ((np.tanh,), {}, "the gradient of tanh is missing, and tanh raised TypeError: .*; give it directly behind"),
        ((np.sin, np.cos, Tensor(X)), {}, "an input is a Tensor of this package, .*; give check_gradient its .data"),
        ((ops.tanh, X), {}, r"tanh is an op of this engine, which gradcheck checks: gradcheck\(ops.tanh, ...\)"),
        (
            (np.tanh, X),
            {"vjp": lambda x: x},
            r"vjp= is called as vjp\(dy, \*inputs\), here with 2 arguments; <lambda>\(x\) does not take them",
        ),
        (
            (lambda x: np.tanh(x), lambda x: x[0], X),  # a ufunc of NumPy 1 does not know the name x
            {},
            r"the lambda given as gradient= returned an array \(4,\) for x \(3, 4\); expected \(3, 4\), the derivative "
            r"of each entry by itself, or \(3, 4, 3, 4\), the Jacobian$",
        ),
    ],
)
def test_a_call_that_has_no_meaning_is_one_clear_error(arguments: Any, how: Any, message: str) -> None:
    with pytest.raises((GraphError, DtypeError, SignatureError, NanogradError), match=message):
        check_gradient(*arguments, **how)


def squares(y, target):
    return ((y - target) ** 2).mean()


@pytest.mark.parametrize("unused", [["target"], "target"])
@pytest.mark.parametrize("returned", [lambda g: g, lambda g: (g, None)], ids=["alone", "with None"])
@pytest.mark.parametrize("form", ["gradient", "vjp", "backward"])
def test_a_float_input_that_is_unused_needs_no_gradient(form: str, returned: Any, unused: Any) -> None:
    def gradient(y, target):
        return returned(2 * (y - target) / y.size)

    def vjp(dy, y, target):
        return returned(dy * 2 * (y - target) / y.size)

    if form == "backward":
        report = check_gradient(
            lambda y, target: (squares(y, target), (y, target)),
            X,
            X + 1,
            backward=lambda dy, both: vjp(dy, *both),
            unused=unused,
        )
    else:
        report = check_gradient(squares, X, X + 1, **{form: {"gradient": gradient, "vjp": vjp}[form]}, unused=unused)
    assert report.passed and [*verdicts(report)] == ["y"]


def test_none_for_a_float_input_that_moves_the_result_is_wrong_and_says_how_to_name_a_constant() -> None:
    report = check_gradient(squares, lambda y, target: (2 * (y - target) / y.size, None), X, X + 1)
    assert verdicts(report) == {"y": "right", "target": "wrong"}
    assert any("returned None for target: if target is a constant, pass unused=['target']" in n for n in report.notes)


def test_a_vjp_whose_first_argument_is_called_like_an_input_is_told_what_it_gets() -> None:
    def cube(x):
        return x**3

    report = check_gradient(cube, X, vjp=lambda x, dy: dy * 3 * x**2)
    assert any("its first argument, here x, is the cotangent" in note for note in report.notes)
    assert not any("cotangent" in note for note in check_gradient(cube, X, vjp=lambda dy, x: dy * 3 * x**2).notes)


def test_a_function_that_writes_into_its_input_is_a_problem() -> None:
    def shifted(x):
        x -= x.max()
        return np.exp(x)

    before = X.copy()
    report = check_gradient(shifted, np.exp, X)
    assert not report.passed
    assert report.problems[0].startswith("shifted writes into x, which belongs to its caller; write into a copy")
    assert np.array_equal(X, before)


def test_a_rule_that_writes_into_its_cotangent_is_noted() -> None:
    def relu_vjp(dy, x):
        dy[x < 0] = 0
        return dy

    report = check_gradient(lambda x: np.maximum(x, 0), X, vjp=relu_vjp)
    assert report.passed
    assert any("relu_vjp writes into its cotangent" in note for note in report.notes)


def test_a_function_whose_calls_differ_is_refused() -> None:
    with pytest.raises(GraphError, match=r"gives other numbers .* as by np.random.default_rng\(0\)$"):
        check_gradient(lambda x: x * R.normal(), np.ones_like, X)


def test_a_rule_whose_calls_differ_does_not_pass() -> None:
    report = check_gradient(np.sin, lambda x: np.cos(x) + 1e-3 * R.normal(), X)
    assert not report.passed and not report.findings and "CANNOT" not in str(report)
    assert len(report.problems) == 1 and "draws random numbers" in report.problems[0]
    assert not any("stored" in note for note in report.notes)
    assert not any("float32" in note for note in report.notes)
    report = check_gradient(np.sin, X, vjp=lambda dy, x: dy * (np.cos(x) + 1e-3 * R.normal()))
    assert "draws random numbers" in report.problems[0] and not any("stored" in note for note in report.notes)


def test_a_cache_that_a_later_call_overwrites_is_a_problem() -> None:
    buffer = np.empty((3, 4))

    def squares(x):
        buffer[...] = x
        return x**2, buffer

    report = check_gradient(squares, X, backward=lambda dy, cache: dy * 2 * cache)
    assert not report.passed
    assert "when squares was called again in between" in report.problems[0]
    assert check_gradient(lambda x: (x**2, x.copy()), X, backward=lambda dy, cache: dy * 2 * cache).passed


@pytest.mark.parametrize("form", ["gradient", "vjp"])
def test_a_rule_that_uses_what_the_function_stored_is_right_and_noted(form: str) -> None:
    stored = {}

    def squares(x):
        stored["x"] = x
        return x**2

    rules = {"gradient": lambda x: 2 * stored["x"], "vjp": lambda dy, x: dy * 2 * stored["x"]}
    report = check_gradient(squares, X, **{form: rules[form]})
    assert report.passed
    assert any("uses what the last call of squares stored" in note for note in report.notes)


@pytest.mark.parametrize("x", [1e200, 1e-200])
def test_a_function_whose_numbers_leave_the_range_of_floats_is_not_said_to_compute_in_float32(x: float) -> None:
    assert not any("float32" in note for note in check_gradient(np.square, lambda x: 2 * x, x).notes)


def single_only(x):
    assert x.dtype == np.float32
    return np.tanh(x)


def cast_inside(x):
    return np.tanh(x.astype(np.float32)).astype(np.float64)


@pytest.mark.parametrize("f", [single_only, cast_inside])
@pytest.mark.parametrize(("factor", "verdict"), [(1, "right"), (1.01, "wrong"), (2, "wrong"), (-1, "wrong")])
def test_a_function_of_float32_only_is_checked_to_the_digits_that_it_has(f: Any, factor: float, verdict: str) -> None:
    report = check_gradient(f, lambda x: factor * tanh_slope(x), X.astype(np.float32))
    assert verdicts(report) == {"x": verdict}
    assert any("whose rounding hides small mistakes" in note for note in report.notes)
    assert (verdict == "right") == bool(re.search("x is right to about [3-6] digits", str(report)))


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "right"), (1.01, "wrong")])
def test_a_function_that_rounds_one_of_its_inputs_to_float32_is_checked_to_the_digits_that_it_has(
    factor: float, verdict: str
) -> None:
    w = np.random.default_rng(1).normal(size=(4, 3))
    report = check_gradient(
        lambda x, w: x.astype(np.float32) @ w, X, w, vjp=lambda dy, x, w: (factor * dy @ w.T, x.T @ dy)
    )
    assert verdicts(report) == {"x": verdict, "w": "right"}


def test_a_kink_in_float32_is_told_from_a_mistake() -> None:
    def relu(x):
        return np.maximum(x.astype(np.float32), 0)

    x = np.array([0.0, 1.0, -1.0])
    assert verdicts(check_gradient(relu, lambda x: 1.0 * (x > 0), x)) == {"x": "at a kink"}
    assert verdicts(check_gradient(relu, lambda x: np.where(x == 0, 3.0, x > 0), x)) == {"x": "wrong"}


def test_a_gradient_in_float32_is_not_called_wrong_for_its_rounding() -> None:
    report = check_gradient(np.tanh, lambda x: tanh_slope(x).astype(np.float32), X)
    assert verdicts(report) != {"x": "wrong"}
    assert any("the gradient of x that tanh gives is float32" in note for note in report.notes)


def test_float32_inputs_are_checked_in_float64() -> None:
    report = check_gradient(np.tanh, tanh_slope, X.astype(np.float32))
    assert report.passed
    assert "float32 inputs were checked as float64 copies" in report.notes


def test_a_function_that_does_not_run_on_what_it_was_given_says_why() -> None:
    with pytest.raises(NanogradError, match=r"single_only raised AssertionError: .* \(it got x \(3, 4\) float64\)"):
        check_gradient(single_only, tanh_slope, X)


@pytest.mark.parametrize("size", [(), (1, 1)])
def test_single_numbers_are_checked_too(size: tuple[int, ...]) -> None:
    x = np.full(size, 0.5)
    assert check_gradient(np.sin, np.cos, x).passed
    assert not check_gradient(np.sin, lambda x: 2 * np.cos(x), x).passed


def test_where_all_inputs_are_empty_nothing_was_checked_and_it_does_not_pass() -> None:
    report = check_gradient(np.sin, lambda x: 5 * x, np.zeros((0, 3)))
    assert report.problems == ("nothing was checked: no input has entries",) and not report.passed
    report = check_gradient(lambda x, y: x.sum() + y**2, np.zeros((0, 3)), B, vjp=lambda dy, x, y: (1 + x, 2 * dy * y))
    assert report.passed and "x has no entries" in report.notes


@pytest.mark.parametrize("n", [np.array([2, 3, 2, 1, 4]), 2])
def test_an_integer_for_which_a_gradient_is_returned_does_not_pass(n: Any) -> None:
    def power(x, n):
        return x**n

    report = check_gradient(power, B, n, vjp=lambda dy, x, n: (dy * n * x ** (n - 1), np.ones(5)))
    assert verdicts(report) == {"x": "right"} and not report.passed
    assert report.problems == ("n is integer, so its gradient was not checked: give floats",)
    assert check_gradient(power, B, n, vjp=lambda dy, x, n: (dy * n * x ** (n - 1), None)).passed


def test_a_gradient_by_short_differences_is_not_said_to_compute_in_float32() -> None:
    report = check_gradient(lambda x: np.sin(x).sum(), lambda x: (np.sin(x + 1e-8) - np.sin(x)) / 1e-8, X)
    assert verdicts(report)["x"] in ("wrong", "cannot tell")  # its rounding is as large as its mistake
    assert not any("float32" in note for note in report.notes)
    report = check_gradient(lambda x: np.tanh(x), lambda x: 2 * (1 - np.tanh(x) ** 2), np.array([10.0, 20]))
    assert verdicts(report) == {"x": "wrong"} and not any("float32" in note for note in report.notes)


def test_seconds_are_handed_on() -> None:
    report = check_gradient(lambda x: x**2, lambda x: 2 * x, X, seconds=0)
    assert report.passed and re.search(r"give seconds=\d+ for them", report.findings[0].compared)
    assert_gradient(lambda x: x**2, lambda x: 2 * x, X, seconds=5)


def test_neither_pytorch_nor_jax_is_imported_for_a_function_of_numpy(tmp_path: Path) -> None:
    for name in ("torch", "jax"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    source = "import numpy as np; from nanograd_llm.gradcheck import *; assert_gradient(np.sin, np.cos, np.ones(3))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])}
    subprocess.run([sys.executable, "-c", source], env=environment, check=True)


WIDE = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps


@pytest.mark.skipif(not WIDE, reason="longdouble is float64 here")
@pytest.mark.parametrize(
    ("f", "rule", "runs"),
    [
        (np.tanh, tanh_slope, True),
        (lambda x: np.tanh(x.astype(float)), tanh_slope, False),
        (np.tanh, lambda x: tanh_slope(x).astype(float), False),
        (single_only, tanh_slope, False),
    ],
)
def test_longdouble_is_handed_on_only_where_all_computes_in_it(f: Any, rule: Any, runs: bool) -> None:
    foreign = WithGradient(f, [X.astype(np.float32)], ["x"], Library(), rule)
    foreign.settle()
    x = X.astype(np.longdouble)
    if runs:
        assert foreign.run([x]).dtype == foreign.pull(x, [x])[0].dtype == np.longdouble
    else:
        with pytest.raises(DtypeError, match="does not compute in longdouble throughout; use float64"):
            foreign.run([x])


def test_a_check_lets_no_warning_of_the_function_through() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check_gradient(lambda x: np.log(x), lambda x: 1 / x, np.array([1.0, 2.0, -1.0, 0.0]))
    assert verdicts(report) == {"x": "cannot tell"}


def test_the_arrays_of_the_caller_stay_as_they_are_whatever_is_called_with_them() -> None:
    def doubles(x):
        x *= 2
        return x

    x, slope = X.copy(), tanh_slope(X)
    for arguments in ((np.tanh, slope, x), (doubles, x), (doubles, [x, {"b": slope}])):
        with pytest.raises(NanogradError, match="the gradient of .* is missing"):
            check_gradient(*arguments)
    assert np.array_equal(x, X) and np.array_equal(slope, tanh_slope(X))


def test_a_problem_names_the_line_of_the_caller_and_a_tie_the_gradient_at_fault() -> None:
    def naive(x):
        return np.exp(-x) / (1 + np.exp(-x)) ** 2

    report = check_gradient(lambda x: 1 / (1 + np.exp(-x)), naive, np.array([1.0, -800.0]))
    assert any(f"called at {__file__}" in problem for problem in report.problems)
    report = check_gradient(np.max, lambda x: 1.0 * (x == x.max()), np.array([1.0, 2.0, 2.0]))
    assert "add up to" in report.problems[0]
    assert __file__ in report.culprits[0].rule


def test_a_gradient_that_is_rounded_to_float32_inside_is_compared_as_float32() -> None:
    def rounded(dy, x):
        return (dy * tanh_slope(x)).astype(np.float32).astype(np.float64)

    report = check_gradient(np.tanh, X, vjp=rounded)
    assert report.passed, report
    assert any("computes in float32" in note for note in report.notes)
    wrong = check_gradient(np.tanh, X, vjp=lambda dy, x: 1.001 * rounded(dy, x))
    assert verdicts(wrong) == {"x": "wrong"}


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("factor", [1.0, -1.0, 1.01])
def test_a_bias_of_zeros_is_checked_also_where_the_function_saturates(scale: float, factor: float) -> None:
    W, x = np.random.default_rng(5).normal(size=(4, 2)), scale * X[:, :1] * np.ones(4)

    def vjp(dy: Any, x: Any, b: Any) -> tuple[Any, Any]:
        z = dy * tanh_slope(x @ W + b)
        return z @ W.T, factor * z.sum(axis=0)

    report = check_gradient(lambda x, b: np.tanh(x @ W + b), x, np.zeros(2), vjp=vjp)
    assert verdicts(report)["b"] == ("right" if factor == 1 else "wrong")


def of_three(x, w, b):
    return np.tanh(x @ w + b)


def of_three_vjp(dy, x, w, b, factor=1.0):
    z = dy * (1 - of_three(x, w, b) ** 2)
    return z @ w.T, factor * (x.T @ z), z.sum(axis=0).astype(np.float32)


def test_one_float32_gradient_leaves_the_others_checked_to_all_digits():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((4, 3)), rng.standard_normal((3, 2)), np.zeros(2)
    right = check_gradient(of_three, *inputs, vjp=of_three_vjp)
    assert right.passed and [finding.tolerance > 1e-9 for finding in right.findings] == [False, False, True]
    assert any("the gradient of b that of_three gives is float32" in note for note in right.notes)
    found = check_gradient(of_three, *inputs, vjp=functools.partial(of_three_vjp, factor=1 + 1e-9))
    assert [finding.verdict for finding in found.findings] == ["right", "wrong", "right"]


NOT_FINITE = {
    "sqrt at zero": (np.sqrt, lambda x: 0.5 / np.sqrt(x), [0.0, 1, 4]),
    "log of zero": (np.log, lambda x: 1 / x, [0.0, 1, 4]),
    "log of a negative number": (np.log, lambda x: 1 / x, [-1.0, 1, 4]),
    "one over zero": (lambda x: 1 / x, lambda x: -1 / x**2, [0.0, 1, 4]),
    "exp that overflows": (np.exp, np.exp, [800.0, 1, 4]),
}


@pytest.mark.parametrize(("f", "gradient", "x"), NOT_FINITE.values(), ids=NOT_FINITE)
def test_entries_beside_one_that_is_not_finite_are_checked_to_all_digits(f, gradient, x):
    (right,) = check_gradient(f, gradient, np.array(x)).findings
    assert right.verdict == "cannot tell" and right.reason.endswith("; the other entries are right")
    (wrong,) = check_gradient(f, lambda x: gradient(x) * [1, 1, 1 + 1e-9], np.array(x)).findings
    assert wrong.verdict == "wrong" and wrong.worst.index == (2,)


def test_a_check_in_which_one_evaluation_takes_long_leaves_out_what_it_can_and_says_so(monkeypatch):
    calls = []

    def slow(x):
        calls.append(1)
        return np.tanh(x)

    x = np.random.default_rng(0).standard_normal(3000)
    assert check_gradient(slow, lambda x: 1 - np.tanh(x) ** 2, x, seconds=1e9).passed
    whole = len(calls)
    calls.clear()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(len(calls)))  # as if each took a second
    report = check_gradient(slow, lambda x: 1 - np.tanh(x) ** 2, x, seconds=20)
    assert report.passed and len(calls) <= 40 < whole  # within twice the time
    assert report.findings[0].compared.startswith("1 random direction compared")
    assert any("not all was tested" in note for note in report.notes)
    assert (
        check_gradient(slow, lambda x: (1 - np.tanh(x) ** 2) * (1 + 1e-9), x, seconds=20).findings[0].verdict == "wrong"
    )


def test_a_function_that_overflows_on_complex_numbers_only_is_checked_by_differences() -> None:
    def softplus(x):
        return np.log(1 + np.exp(x)) if np.iscomplexobj(x) else np.logaddexp(0, x)

    x = np.array([1534.5, 2.0, -3.0])
    assert check_gradient(softplus, lambda x: 1 / (1 + np.exp(-x)), x).passed
    assert not check_gradient(softplus, lambda x: 1.001 / (1 + np.exp(-x)), x).passed


@pytest.mark.parametrize("factor", [1, 2, 0, -1, 1 + 1e-6])
def test_a_gradient_of_1e_122_is_checked_to_its_digits(factor: float) -> None:
    def loss(x, b):
        t = x + b
        return (np.log(1 + np.exp(-t)) if np.iscomplexobj(t) else np.logaddexp(0, -t)).mean()

    def loss_vjp(dy, x, b):
        z = -dy / (1 + np.exp(x + b)) / x.size
        return factor * z, z.sum(axis=0)

    report = check_gradient(loss, np.array([[280.0, 281.5], [280.7, 279.9]]), np.zeros(2), vjp=loss_vjp)
    assert [finding.verdict for finding in report.findings] == ["right" if factor == 1 else "wrong", "right"]


@pytest.mark.parametrize(("factor", "verdict"), [(1, "right"), (1.05, "wrong")])
def test_a_gross_mistake_is_found_where_only_differences_in_float64_serve(factor: float, verdict: str) -> None:
    def normalised(x):  # np.var takes the size of complex numbers, so that no complex step serves
        if x.real.dtype.itemsize > 8:
            raise TypeError("no longdouble, as in JAX")
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5)

    def jacobian(x):
        h, std = x - x.mean(), np.sqrt(x.var() + 1e-5)
        return factor * ((np.eye(x.size) - 1 / x.size) / std - np.outer(h, h) / x.size / std**3)

    assert verdicts(check_gradient(normalised, jacobian, X[0])) == {"x": verdict}


@pytest.mark.parametrize(("factor", "verdict"), [(1, "right"), (1.001, "wrong")])
@pytest.mark.parametrize("spread", [1e-3, 1e-5, 1e-7])
def test_a_slope_that_np_var_loses_on_complex_numbers_is_no_mistake(spread: float, factor: float, verdict: str) -> None:
    def normalised(x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5)

    def jacobian(x):
        h, std = x - x.mean(), np.sqrt(x.var() + 1e-5)
        return factor * ((np.eye(x.size) - 1 / x.size) / std - np.outer(h, h) / x.size / std**3)

    assert verdicts(check_gradient(normalised, jacobian, 1 + spread * X[0])) == {"x": verdict}


def only_float64(x):
    if x.real.dtype.itemsize > 8:
        raise TypeError("no longdouble, as in JAX")
    return x


def test_a_bump_that_differences_step_over_makes_no_right_gradient_wrong() -> None:
    def bump(x, width):
        return np.exp(-(((x - 1) / width) ** 2))

    for width, verdict in (1e-8, "right"), (1e-10, "cannot tell"):  # no step is as short as the second
        report = check_gradient(
            lambda x, width=width: only_float64(x) + bump(x, width),
            lambda x, width=width: 1 - 2 * (x - 1) / width**2 * bump(x, width),
            np.array([1 + width / 2, 0.3, -2.0]),
        )
        assert verdicts(report) == {"x": verdict}


@pytest.mark.parametrize("mistake", [1e-3, 1e-6, 1e-9])
def test_a_mistake_is_found_where_two_pieces_join_with_equal_slopes(mistake: float) -> None:
    def huber(x):
        return np.where(np.abs(only_float64(x).real) <= 1, x * x / 2, np.where(x.real > 0, x, -x) - 0.5)

    x = np.array([1.0, 0.3, -2.0])
    right = np.clip(x, -1, 1)
    assert verdicts(check_gradient(huber, lambda x: right, x)) == {"x": "right"}
    assert verdicts(check_gradient(huber, lambda x: right * (1 + mistake), x)) == {"x": "wrong"}


def by_its_length(x):
    return x / float(np.sqrt((x * x).sum()))


def by_its_length_vjp(dy, x):
    n = np.sqrt((x * x).sum())
    y = x / n
    return (dy - y * (dy * y).sum()) / n


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "right"), (1 + 1e-6, "wrong"), (1.001, "wrong"), (1.01, "wrong")]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_float_inside_a_function_hides_no_mistake_of_a_millionth(factor, verdict, seed):
    x = np.random.default_rng(seed).normal(size=(3, 4))
    report = check_gradient(by_its_length, x, vjp=lambda dy, x: factor * by_its_length_vjp(dy, x), seed=seed)
    assert report.findings[0].verdict == verdict, report


@pytest.mark.parametrize(("bend", "x"), [(1000.0, 1000.0001), (1e6, 1e6 + 0.05), (-1e6, -1e6 + 0.05)])
def test_half_of_a_gradient_is_wrong_where_the_function_bends_a_little_away(bend, x):
    def relu(p):
        return np.maximum(p - bend, 0).sum()

    assert verdicts(check_gradient(relu, lambda p: np.array([1.0]), np.array([x]))) == {"p": "right"}
    report = check_gradient(relu, lambda p: np.array([0.5]), np.array([x]))
    assert verdicts(report) == {"p": "wrong"} and report.findings[0].kinks == ()
    assert report.findings[0].worst.numeric == pytest.approx(1, rel=1e-6)


def test_slopes_beside_a_kink_that_change_with_the_step_call_no_right_gradient_wrong():
    x = np.array([1.0, 2.0])
    report = check_gradient(lambda x: np.sin(1e9 * only_float64(x).real), lambda x: 1e9 * np.cos(1e9 * x), x)
    assert verdicts(report) == {"x": "cannot tell"}


FAR = 1e6


def huber(p):
    d = np.abs(p - FAR)
    return np.where(d < 0.01, (p - FAR) ** 2 / 0.02, d - 0.005).sum()


FAR_FROM_ZERO = {
    "huber": (huber, lambda p: np.clip((p - FAR) / 0.01, -1, 1), [0.3, -3.0]),
    "quantile": (
        lambda p: np.maximum(0.9 * (p - FAR), -0.1 * (p - FAR)).mean(),
        lambda p: np.where(p > FAR, 0.9, -0.1) / p.size,
        [1.0, -0.3, 0.2, -2.0],
    ),
    "pooling": (lambda p: only_float64(p).reshape(-1, 2).max(1).sum(), None, [0.3, -0.2, 0.5, 1.2, -0.7, 0.9, -2, 1]),
}


@pytest.mark.parametrize(("f", "gradient", "away"), FAR_FROM_ZERO.values(), ids=FAR_FROM_ZERO)
def test_slopes_of_a_function_that_bends_nearby_are_known_far_from_zero(f, gradient, away):
    x = FAR + np.array(away)
    right = gradient(x) if gradient else (x == np.repeat(x.reshape(-1, 2).max(1), 2)) * 1.0
    assert verdicts(check_gradient(f, lambda p: right, x)) == {"p": "right"}
    wrong = check_gradient(f, lambda p: right * np.where(np.arange(x.size) == 1, 1.01, 1) + 1e-2 * (right == 0), x)
    assert verdicts(wrong) == {"p": "wrong"} and wrong.findings[0].relative_error <= 1
    assert wrong.findings[0].worst.numeric == pytest.approx(right[wrong.findings[0].worst.index], abs=1e-6)


def test_a_kink_of_a_number_is_shown_with_the_slopes_on_paper():
    text = str(check_gradient(lambda x: abs(x), lambda x: 3.0, 0.0))
    assert "kink: slope -1 to the left, 1 to the right; the gradient is 3, neither" in text
    assert "wrong, off by 5.0e-01 where 1.0e-06 is rounding" in text


def test_a_kink_of_an_array_is_shown_with_the_slopes_of_its_own_entry():
    text = str(check_gradient(np.abs, lambda x: np.where(x == 0, 5, np.sign(x)), np.array([0.0, 1.0])))
    assert "kink at [0]: slope -1 to the left, 1 to the right; the gradient is 5, neither" in text
    assert "wrong, off by 6.7e-01 where 1.0e-06 is rounding" in text


def test_ties_are_shown_with_the_slope_on_paper():
    problems = check_gradient(np.max, lambda x: (x == x.max()) * 1.0, np.array([2.0, 2.0, 1.0])).problems
    assert "add up to 2; moved together they change the result with slope 1:" in problems[0]


def test_the_worst_entry_of_a_function_of_each_entry_is_the_number_of_the_gradient():
    text = str(check_gradient(np.square, lambda x: x, np.array([1.0, 2.0])))
    assert "the gradient is 2, the function gives 4, ratio 0.5, for ȳ = 1 at [1]" in text


def test_no_factor_is_named_where_each_row_has_its_own():
    x = np.random.default_rng(1).normal(size=(3, 4)) * [[0.00387], [0.00469], [0.00062]]
    without_length = lambda dy, x: np.sqrt((x * x).sum(-1, keepdims=True)) * by_rows_vjp(dy, x)  # noqa: E731
    assert "factor" not in str(check_gradient(by_rows, x, vjp=without_length))


def by_rows(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def by_rows_vjp(dy, x):
    n = np.sqrt((x * x).sum(-1, keepdims=True))
    y = x / n
    return (dy - y * (dy * y).sum(-1, keepdims=True)) / n


TARGETS = np.array([0.0, 1, 1, 0, 0, 1])


@pytest.mark.parametrize(
    ("f", "gradient"),
    [
        (
            lambda z: (np.maximum(z, 0) - z * TARGETS + np.log1p(np.exp(-np.abs(z)))).mean(),
            lambda z: ((z > 0) - TARGETS) / 6,
        ),
        (lambda z: z / (1 + np.exp(-z)), lambda z: (z > 0) * 1.0),
    ],
)
def test_a_function_that_saturates_at_all_inputs_gets_a_note_also_where_it_is_analytic_there(f, gradient):
    report = check_gradient(f, gradient, np.array([1500.0, -900, 400, -1200, 700, -300]))
    assert report.passed and any("is flat or straight, and nearer to zero it is not" in note for note in report.notes)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("f", [np.round, np.floor, np.sign, lambda x: np.where(x > 0, 1.0, 0.0)])
def test_a_straight_through_estimate_of_a_function_that_moves_in_steps_cannot_be_told(f, scale):
    x = scale * np.array([0.3007, 1.2003, -1.7001])
    (finding,) = check_gradient(f, np.ones_like, x).findings
    assert finding.verdict == "cannot tell" and "moves in steps" in finding.reason
    assert check_gradient(f, np.zeros_like, x).passed


RESTING = [
    lambda x: np.maximum(x, 0),
    lambda x: 0 * x + 3,
    lambda x: np.tanh(300 * x),
    lambda x: np.minimum(np.maximum(x - 5, 0), 1),
    lambda x: np.clip(1e3 * x, 0, 1),
]


@pytest.mark.parametrize("f", RESTING)
def test_a_gradient_where_the_function_only_rests_is_wrong(f):
    assert verdicts(check_gradient(f, np.ones_like, np.array([-0.4, -1.2]))) == {"x": "wrong"}


def test_where_a_function_that_writes_into_its_input_is_written_is_said():
    def centred(x):
        x -= x.mean()
        return x

    problem = check_gradient(centred, lambda x: np.ones_like(x), np.array([1.0, 2.0])).problems[0]
    assert re.search(r"centred writes into x, .* it is written at .*test_check_gradient.py:\d+$", problem)


def test_a_rule_that_is_not_linear_says_for_which_cotangent_and_how_large_the_gradient_is():
    problems = check_gradient(np.sin, X, vjp=lambda dy, x: np.abs(dy) * np.cos(x)).problems
    assert re.search(r"not linear in ȳ: for -1e\+00 ȳ the gradient of x is not -1e\+00 times", problems[0]), problems


def cholesky_vjp(dy, a):
    """I. Murray, "Differentiation of the Cholesky decomposition" (2016); NumPy reads the lower triangle alone."""
    lower = np.linalg.cholesky(a)
    inner, inverse = np.tril(lower.T @ dy), np.linalg.inv(lower)
    np.fill_diagonal(inner, np.diag(inner) / 2)
    whole = inverse.T @ inner @ inverse
    return np.tril(whole + whole.T) - np.diag(np.diag(whole))


def entropy(p):
    assert np.isclose(p.sum(), 1), "probabilities must sum to one"
    return -(p * np.log(p)).sum()


B4 = R.normal(size=(4, 4))
PARTLY_DEFINED = [
    (np.linalg.cholesky, {"vjp": cholesky_vjp}, B4 @ B4.T + np.eye(4)),
    (math.acos, {"gradient": lambda x: -1 / math.sqrt(1 - x * x)}, 0.9),
    (entropy, {"gradient": lambda p: -np.log(p) - 1}, np.array([0.2, 0.3, 0.5])),
]


@pytest.mark.parametrize(("f", "how", "x"), PARTLY_DEFINED, ids=["cholesky", "acos", "entropy"])
def test_a_function_that_raises_where_it_is_not_defined_is_checked_nearer_by(f, how, x):
    ((form, rule),) = how.items()
    report = check_gradient(f, x, **how)
    assert report.passed, report
    assert any("points farther away were left out, where it is not defined" in note for note in report.notes)
    wrong = check_gradient(f, x, **{form: lambda *arrays: 1.1 * rule(*arrays)})
    assert [finding.verdict for finding in wrong.findings] == ["wrong"]


def nearly_singular(condition: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    q, p = (np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(2))
    return q @ np.diag(np.logspace(0, -np.log10(condition), 4)) @ p


@pytest.mark.parametrize("condition", [1e6, 1e8])
def test_right_gradients_of_a_nearly_singular_matrix_are_not_called_wrong(condition):
    a = nearly_singular(condition, 1)
    report = check_gradient(lambda a: np.linalg.slogdet(a)[1], lambda a: np.linalg.inv(a).T, a)
    assert report.findings[0].verdict == "right" if condition == 1e6 else "wrong" not in str(report), report
    assert "bends" not in str(report) and "kink" not in str(report)


@pytest.mark.parametrize(("condition", "seed"), [(1e6, 0), (1e8, 0), (1e8, 1)])
def test_the_gradient_of_a_badly_conditioned_inverse_is_right_to_as_many_digits_as_hold(condition, seed):
    def vjp(dy, a, factor=1.0):
        return -factor * np.linalg.inv(a).T @ dy @ np.linalg.inv(a).T

    a = nearly_singular(condition, seed)
    assert check_gradient(np.linalg.inv, a, vjp=vjp).passed
    wrong = check_gradient(np.linalg.inv, a, vjp=functools.partial(vjp, factor=1.01), explain=False)
    assert wrong.findings[0].verdict == "wrong"


def test_a_remainder_at_a_million_is_never_called_wrong():
    for seed in range(6):
        x = np.random.default_rng(seed).normal(size=5) * 1e6
        assert verdicts(check_gradient(lambda x: np.mod(x, 7.0), np.ones_like, x, seed=seed)) != {"x": "wrong"}


def test_gradients_may_come_in_a_dict_by_the_names_of_the_inputs():
    def vjp(dy, x, w, factor=1.0):
        return {"w": factor * dy * x, "x": dy * w}

    x, w = np.array([0.3, -1.2]), np.array([2.0, 0.7])
    assert check_gradient(lambda x, w: x * w, x, w, vjp=vjp).passed
    assert verdicts(check_gradient(lambda x, w: x * w, x, w, vjp=functools.partial(vjp, factor=2.0))) == {
        "x": "right",
        "w": "wrong",
    }


def test_an_error_in_a_rule_says_its_line():
    def vjp(dy, x):
        return dy.sum(axis=5)

    line = vjp.__code__.co_firstlineno + 1
    with pytest.raises(NanogradError, match=rf"raised AxisError.*raised at .*test_check_gradient.py:{line}"):
        check_gradient(np.tanh, np.ones(3), vjp=vjp)


def test_a_rule_without_a_cotangent_is_asked_for_it():
    with pytest.raises(SignatureError, match="is the cotangent dy, its first argument, missing"):
        check_gradient(np.tanh, np.ones(3), vjp=lambda x: 1 - np.tanh(x) ** 2)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-3])
def test_the_log_determinant_near_the_identity_is_never_called_wrong(scale):
    for seed in range(3):
        x = scale * np.random.default_rng(seed).normal(size=(4, 2))
        report = check_gradient(
            lambda x: np.linalg.slogdet(x.T @ x + np.eye(2))[1], lambda x: 2 * x @ np.linalg.inv(x.T @ x + np.eye(2)), x
        )
        assert verdicts(report) != {"x": "wrong"}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("size", [np.linalg.norm, lambda x: np.abs(x).sum(), lambda x: np.std(x)])
def test_a_size_taken_as_constant_is_wrong_though_a_complex_step_agrees_with_it(size: Any, scale: float) -> None:
    """The size of complex numbers is a real number, so a complex step takes it for constant as well."""
    x = scale * np.random.default_rng(0).normal(size=5)
    report = check_gradient(lambda x: x / size(only_float64(x)), lambda dy, x: dy / size(x), x)
    assert verdicts(report) == {"x": "wrong"}


def test_a_dict_of_gradients_has_the_names_of_the_inputs_also_of_one() -> None:
    a = np.array([0.5, -2.0])
    assert verdicts(check_gradient(lambda a: a * a, lambda dy, a: {"a": 2 * dy * a}, a)) == {"a": "right"}
    with pytest.raises(NanogradError, match=r"for 1 input \(a\); return one array for each, or a dict by these names"):
        check_gradient(lambda a: a * a, lambda dy, a: {"da": 2 * dy * a}, a)


@pytest.mark.parametrize("beta", [1.3, 30.0])
def test_that_a_term_of_swish_vanishes_is_noted_also_where_beta_is_an_input(beta):
    def vjp(dy, x, beta):
        s = 1 / (1 + np.exp(-beta * x))
        return dy * s, dy @ (x * x * s * (1 - s))  # without the term βx σ(1-σ)

    report = check_gradient(lambda x, beta: x / (1 + np.exp(-beta * x)), 1e3 * np.array([1.0, 1.4]), beta, vjp=vjp)
    assert report.passed and any("at these values of x the function is flat or straight" in n for n in report.notes)


def test_of_a_wrong_gradient_no_slope_is_computed_twice_or_to_more_digits_than_an_explanation_takes():
    calls = 0

    def forward(x, w):
        nonlocal calls
        calls += 1
        y, h = np.zeros(x.shape), np.zeros(x.shape[0])  # so that differences are used
        for t in range(x.shape[1]):
            y[:, t] = h = np.tanh(x[:, t] + h @ w)
        return y, (x, w, y)

    def backward(dy, cache):
        x, w, y = cache
        dx, dw, dh = np.zeros(x.shape), np.zeros(w.shape), 0.0
        for t in reversed(range(x.shape[1])):
            dx[:, t] = dz = (dy[:, t] + dh) * (1 - y[:, t] ** 2)
            dw += np.outer(y[:, t - 1], dz) if t else 0.0
            dh = 1.1 * (w @ dz)
        return dx, dw

    rng = np.random.default_rng(0)
    report = check_gradient(forward, rng.normal(size=(4, 8)), rng.normal(size=(4, 4)), backward=backward)
    assert [finding.verdict for finding in report.findings] == ["wrong", "wrong"]
    assert "28 of 32 entries are wrong" in report.findings[0].pattern and calls < 9000


@pytest.mark.parametrize(("factor", "verdict"), [(1, "right"), (1.5, "wrong")])
@pytest.mark.parametrize(
    ("f", "gradient", "x"),
    [
        (np.tanh, lambda x: 1 / np.cosh(x) ** 2, [5.0]),
        (lambda x: np.tanh(np.float32(0.3) * x), lambda x: 0.3 / np.cosh(0.3 * x) ** 2, [15.0, 75.0]),
        (lambda x: x * x / (1 + x * x), lambda x: 2 * x / (1 + x * x) ** 2, [100.0, 50.0]),
        (np.cos, lambda x: -np.sin(x), [0.1, -0.07]),
    ],
)
def test_a_function_that_rounds_to_float32_is_checked_where_that_leaves_digits(f, gradient, x, factor, verdict):
    report = check_gradient(
        lambda x: f(x.astype(np.float32)).astype(float), lambda x: factor * gradient(x), np.array(x)
    )
    assert verdicts(report) == {"x": verdict}
    assert "<lambda> computes in float32, whose rounding hides small mistakes" in report.notes


def test_a_function_that_rounds_to_float32_is_known_also_where_it_refuses_numbers_near_zero():
    def log(x):
        if (x < 1).any():
            raise ValueError("too small")
        return np.log(x.astype(np.float32)).astype(float)

    report = check_gradient(log, lambda x: 1 / x, np.array([1.5, 3.0]))
    assert report.passed and "log computes in float32, whose rounding hides small mistakes" in report.notes


@pytest.mark.parametrize("grain", [1e4, 1024.0])
def test_a_function_that_moves_in_steps_is_not_taken_for_one_of_float32(grain):
    report = check_gradient(lambda x: np.round(x * grain) / grain, lambda x: 1 + 0 * x, np.array([1.23, -7.7]))
    assert verdicts(report) == {"x": "cannot tell"} and "moves in steps" in report.findings[0].reason
