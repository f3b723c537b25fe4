"""Terms, nudges, compositions and digits agree with backward, and say so where they do not."""

from __future__ import annotations

import math
import warnings
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from passes import LAYERS, OPS, layer_passes, op_passes, small_gpt

import nanograd_llm as ng
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.errors import GraphError, IndexRangeError
from nanograd_llm.see.replay import Replay, nudge, terms, wrong_rules


@pytest.fixture(scope="module")
def gpt():
    model, tokens, targets = small_gpt()
    return ng.trace(model.loss, tokens, targets)


def test_a_term_is_a_cotangent_times_a_slope_and_the_largest_comes_first() -> None:
    trace = ng.trace(
        ng.ops.linear, np.array([[1.0, 2.0]]), np.array([[3.0, 5.0, 7.0], [0.5, 1, 2]]), cotangent=[[1, 10, 0]]
    )
    found = trace.terms(0, "x", (0, 0))
    assert found.terms == [((0, 1), 10.0, 5.0), ((0, 0), 1.0, 3.0), ((0, 2), 0.0, 7.0)]
    assert found.total == found.sent == 53 and found.agrees
    assert str(found).splitlines()[:2] == ["x̄[0,0] = Σ ȳ·∂y/∂x[0,0]: 3 terms", "  ȳ[0,1]·∂y[0,1]/∂x = 10·5 = 50"]


@pytest.mark.parametrize("name", OPS)
def test_the_terms_of_every_op_add_up_to_what_its_rule_sent(name: str) -> None:
    for f, inputs, cotangent in op_passes(name, 2, "float64"):
        (call,) = ng.trace(f, *inputs, cotangent=cotangent).calls
        for place, sent in enumerate(call.sent):
            if sent is not None and sent.size:
                index = tuple(int(i) for i in np.unravel_index(int(np.argmax(np.abs(sent))), sent.shape))
                trace = ng.trace(f, *inputs, cotangent=cotangent)
                assert trace.terms(0, place, index).agrees


def test_terms_tell_a_wrong_rule_and_its_entry() -> None:
    tanh = registry["tanh"]
    with patch.object(tanh, "rule", lambda dy, y: dy * (1 - y)):
        trace = ng.trace(lambda x: (ng.ops.tanh(x) * x).sum(), np.array([0.5, 2.0]))
    assert not trace.terms(0, "x", 0).agrees
    assert "they differ: the rule is wrong here" in str(trace.terms(0, "x", 0))
    assert trace.terms(1, "a", 0).agrees
    assert not trace.nudge("x", 0).agrees


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_at_a_kink_every_slope_between_the_left_and_the_right_one_agrees(slope: float) -> None:
    relu = registry["relu"]
    for factor, is_right in ((1.0, True), (1.001, False)):

        def rule(dy, y, factor=factor):
            return dy * np.where(y > 0, factor, slope)

        with patch.object(relu, "rule", rule):
            trace = ng.trace(lambda x: ng.ops.sum(ng.ops.relu(x)), np.array([0.0, 1.0]))
        assert trace.terms(0, "x", 0).agrees and trace.nudge("x", 0).agrees
        assert slope == 0.5 or "they agree: at a kink each slope from 0 to 1 is right" in str(trace.nudge("x", 0))
        assert nudge(trace, trace.value("x"), (0,), quick=True).agrees
        assert terms(trace[0], "x", 0, quick=True).agrees
        assert trace.terms(0, "x", 1).agrees == trace.nudge("x", 1).agrees == is_right


@pytest.mark.filterwarnings("error")
def test_the_terms_of_an_entry_do_not_depend_on_an_infinity_in_another_which_is_wrong() -> None:
    trace = ng.trace(lambda x: ng.ops.exp(x).sum(), np.array([0.0, 1.0]))
    with patch.object(trace[0], "sent", [np.array([1.0, np.inf])]):
        assert trace.terms(0, "x", 0).agrees and not trace.terms(0, "x", 1).agrees
        assert wrong_rules(trace) == [(trace[0], 0)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("f", "x", "finite", "others"),
    [
        (lambda x: ng.ops.sqrt(x).sum(), [-1.0, 4.0], [(1,)], [(0,)]),
        (lambda x: ng.ops.sqrt(x).sum(), [0.0, 4.0], [(1,)], [(0,)]),
        (lambda x: ng.ops.exp(x).sum(), [1000.0, 1.0], [(1,)], [(0,)]),
        (lambda x: -ng.ops.log(ng.ops.softmax(x)).mean(), [[800.0, 0.0], [1.0, 2.0]], [(1, 0)], [(0, 0)]),
        (lambda x: (2 / x).sum(), [0.0, 1.0], [(1,)], [(0,)]),
    ],
)
def test_right_rules_are_not_called_wrong_where_numbers_are_not_finite(
    f: Any, x: Any, finite: Any, others: Any
) -> None:
    with np.errstate(all="ignore"):
        trace = ng.trace(f, np.array(x))
    name = trace[0].input_name(next(place for place, sent in enumerate(trace[0].sent) if sent is not None))
    assert all("they agree within" in str(trace.terms(0, name, index)) for index in finite)
    assert all("they cannot be compared" in str(trace.terms(0, name, index)) for index in others)
    assert all("they cannot be compared" in str(trace.nudge("x", index)) for index in others)
    assert wrong_rules(trace) == []


@pytest.mark.parametrize("x", [1e-5, 1e-7, 1e-10])
@pytest.mark.parametrize("f", [lambda x: 1 / x, lambda x: -ng.ops.log(x), lambda x: ng.ops.tanh(1e5 * x)])
def test_an_entry_that_is_much_smaller_than_1_is_moved_by_parts_of_itself(f: Any, x: float) -> None:
    trace = ng.trace(f, x)
    assert "they agree" in str(trace.nudge("x"))
    place = next(place for place, sent in enumerate(trace[0].sent) if sent is not None)
    assert "they agree" in str(trace.terms(0, place))
    with patch.object(trace[0], "sent", [sent if sent is None else 2 * sent for sent in trace[0].sent]):
        assert not trace.terms(0, place).agrees


def test_a_rule_that_sends_nan_where_the_forward_has_a_slope_is_wrong() -> None:
    with patch.object(registry["tanh"], "rule", lambda dy, y: np.where(y > 0.9, np.nan, dy * (1 - y * y))):
        trace = ng.trace(lambda x: ng.ops.tanh(x).sum(), np.array([0.5, 2.0]))
    assert trace.terms(0, "x", 0).agrees and not trace.terms(0, "x", 1).agrees
    assert wrong_rules(trace) == [(trace[0], 0)]


@pytest.mark.parametrize(("slope", "is_right"), [(0.0, True), (1.0, True), (-0.01, False), (1.01, False)])
def test_a_slope_at_a_kink_that_lies_outside_is_wrong(slope: float, is_right: bool) -> None:
    with patch.object(registry["relu"], "rule", lambda dy, y: dy * np.where(y > 0, 1.0, slope)):
        trace = ng.trace(lambda x: ng.ops.sum(ng.ops.relu(x)), np.array([0.0, 1.0]))
    assert trace.terms(0, "x", 0).agrees == trace.nudge("x", 0).agrees == is_right
    assert (wrong_rules(trace) == []) == is_right


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPS)
def test_the_rule_of_every_op_agrees_along_random_directions(name: str, dtype: str) -> None:
    for f, inputs, cotangent in op_passes(name, 3, dtype):
        assert wrong_rules(ng.trace(f, *inputs, cotangent=cotangent)) == []


def test_a_rule_that_is_wrong_in_one_entry_of_192_is_found(gpt) -> None:
    assert wrong_rules(gpt) == []
    call = gpt[4]
    for place in (0, 1):
        sent = call.sent[place].copy()
        smallest = np.unravel_index(int(np.argmin(np.abs(sent))), sent.shape)
        sent[smallest] += 0.1 * np.abs(sent).max()
        with patch.object(call, "sent", [sent if i == place else g for i, g in enumerate(call.sent)]):
            assert wrong_rules(gpt) == [(call, place)]


@pytest.mark.parametrize(("place", "shape"), [(1, (500, 500)), (0, (8, 500))])
def test_a_wrong_sign_in_one_entry_of_a_large_gradient_is_found(place: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype("float32") for shape in ((8, 500), (500, 500)))
    trace = ng.trace(ng.ops.matmul, x, w, cotangent=rng.standard_normal((8, 500)).astype("float32"))
    assert wrong_rules(trace) == []
    sent = trace[0].sent[place].copy()
    assert sent.shape == shape
    middle = np.argsort(np.abs(sent), axis=None)[sent.size // 2]
    sent.flat[middle] *= -1
    with patch.object(trace[0], "sent", [sent if i == place else g for i, g in enumerate(trace[0].sent)]):
        assert wrong_rules(trace) == [(trace[0], place)]


def test_nudges_agree_at_entries_of_every_value_of_a_gpt(gpt) -> None:
    rng = np.random.default_rng(0)
    for value in gpt.values():
        replay = Replay(gpt, value)
        for _ in range(3):
            index = tuple(int(rng.integers(0, n)) for n in value.array.shape)
            found = nudge(gpt, value, index, replay)
            assert found.agrees, str(found)


@pytest.mark.thorough
def test_nudges_agree_at_every_entry_of_a_gpt(gpt) -> None:
    for value in gpt.values():
        replay = Replay(gpt, value)
        assert all(nudge(gpt, value, index, replay).agrees for index in np.ndindex(value.array.shape))


def test_a_nudge_would_notice_a_gradient_that_is_off_by_a_thousandth(gpt) -> None:
    value = gpt.value("blocks.0.ln_1")
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(np.abs(value.grad))), value.grad.shape))
    with patch.object(value, "grad", value.grad * np.float32(1.001)):
        assert not gpt.nudge("blocks.0.ln_1", index).agrees


def test_a_nudge_is_described_in_words(gpt) -> None:
    words = str(gpt.nudge("wte", (4, 0)))
    assert (
        words.startswith("wte[4,0] is ")
        and "; backward says " in words
        and ": they agree within the rounding of " in words
    )


FUSED = [name for name in OPS if registry[name].equals is not None]


@pytest.mark.parametrize("name", FUSED)
def test_every_fused_op_opens_into_the_composition_it_equals(name: str) -> None:
    for f, inputs, cotangent in op_passes(name, 3, "float64"):
        trace = ng.trace(f, *inputs, cotangent=cotangent)
        opened = trace.open(0)
        np.testing.assert_allclose(opened.result.array, trace.result.array, rtol=1e-9, atol=1e-9)
        call = trace[0]
        assert list(opened.grads) == [call.input_name(i) for i, need in enumerate(call.needs) if need]
        for leaf, sent in zip(opened.leaves.values(), (g for g in call.sent if g is not None)):
            np.testing.assert_allclose(leaf.grad, sent, rtol=1e-7, atol=1e-9)


def test_an_opened_op_has_its_lines_in_the_composition_and_none_opens_a_primitive(gpt) -> None:
    opened = gpt.open(3)
    assert opened.title == "layernorm, opened" and len(opened) == 10
    assert all(call.file.endswith("composed.py") for call in opened.calls)
    assert opened["centred"].made_by.source == "centred = x - mean(x, axis=-1, keepdims=True)"
    with pytest.raises(GraphError, match="multiply is made of no other ops: read its rule in"):
        opened.open(3)


def test_the_shadow_of_a_float32_gpt_has_its_digits_and_that_of_float64_loses_none(gpt) -> None:
    rows = gpt.shadow().rows
    assert len(rows) == len(gpt)
    assert all(5 < min(row.own, row.all, row.own_gradient, row.all_gradient) for row in rows)
    assert all(row.all <= row.own + 1.5 for row in rows)
    exact = ng.trace(lambda a: ng.ops.tanh(a * a), 0.5).shadow()
    assert all(row.own == row.all == math.inf for row in exact.rows)
    assert str(exact).endswith("recorded in float64 itself: there is nothing wider beside it")


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_the_shadow_of_every_layer_and_model_counts_digits_without_a_warning(layer: type) -> None:
    f, inputs, cotangent = next(layer_passes(layer))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        rows = ng.trace(f, *inputs, cotangent=cotangent).shadow().rows
    assert rows and all(12 < min(row.own, row.all, row.own_gradient, row.all_gradient) for row in rows)


def test_a_float16_cast_is_named_as_the_op_that_loses_the_most_digits() -> None:
    rng = np.random.default_rng(0)

    def f(x, w):
        h = ng.ops.tanh(x @ w)
        return (h.astype("float16").astype("float32") @ w).sum()

    arrays = [rng.standard_normal((4, 4)).astype("float32") for _ in range(2)]
    found = ng.trace(f, *arrays).shadow()
    assert found.worst.number == 2 and found.worst_backward.number == 3  # ȳ of the second is cast back to float16
    assert "by itself 2 cast loses the most forward, 3 cast backward" in str(found)


def test_a_nan_that_float64_does_not_have_leaves_no_digits() -> None:
    trace = ng.trace(lambda x: ng.ops.exp(x).sum(), np.array([0.0, 1.0], "float32"))
    output = trace[0].output
    with patch.object(output, "array", np.array([np.nan, output.array[1]], "float32")):
        shadow = trace.shadow()
    row = shadow.rows[0]
    assert row.own == row.all == -math.inf and shadow.worst is trace[0]
    assert str(shadow).splitlines()[1].split()[2:4] == ["none", "none"]


def test_an_exercise_is_exact_close_or_says_what_it_looks_like(gpt, capsys) -> None:
    wte, up = gpt.grads["wte"], gpt.grads["blocks.0.mlp.up.bias"]
    names = "wte", "blocks.0.mlp.up.bias"

    def said(answers) -> str:
        right = gpt.check(answers)
        verdict, line = capsys.readouterr().out.splitlines()
        assert verdict.endswith(": right") == right != verdict.endswith(": not yet right")
        return line.strip()

    assert said({names[0]: wte}) == "exact, to the last bit"
    assert said({names[0]: wte * np.float32(1 + 3e-7)}).startswith("close, at most ")
    assert said({names[0]: -wte}).endswith("the sign is wrong")
    assert said({names[0]: 2 * wte}).endswith("it is 2 times the gradient")
    assert said({names[0]: wte.T}).endswith("it is transposed")
    assert said({names[1]: gpt[9].cotangent}).endswith("sum it over axis 0, 1")
    head = gpt.uses("wte")[0].gradient
    assert "part from 14 linear_cross_entropy, as w alone; the gradient is the sum of 2 uses" in said({names[0]: head})
    assert said({names[1]: gpt.grads["blocks.0.mlp.up.bias"][::-1]}).startswith("at (")
    assert said({"blocks.0.ln_1.weight": gpt.grads["blocks.0.ln_2.weight"]}).endswith(
        "gradient of blocks.0.ln_2.weight"
    )
    assert up.shape == (32,)


def test_the_gradient_of_a_variable_is_checked_by_its_name_after_d(capsys) -> None:
    def f(x, w):
        logits = x * w
        return (logits * logits).sum()

    trace = ng.trace(f, np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    assert trace.check(dlogits=2 * np.array([3.0, 8.0]), dw=np.array([6.0, 32.0]))
    assert capsys.readouterr().out == "logits: right\n  exact, to the last bit\nw: right\n  exact, to the last bit\n"
    with pytest.raises(GraphError, match="the gradient of logits is given as dlogits="):
        trace.check(logits=1)
    with pytest.raises(GraphError, match="check needs at least one gradient"):
        trace.check({})


def test_an_exercise_may_be_a_function_whose_error_is_printed(capsys) -> None:
    trace = ng.trace(lambda x: x * x, 3.0)

    def exercise_1_backward():
        raise ValueError("mine")

    def solution_1_backward(*, slope=6.0):
        return np.array(slope)

    assert not trace.check({"x": exercise_1_backward}) and trace.check({"x": solution_1_backward})
    assert capsys.readouterr().out == "Exercise 1: not yet right: mine\nSolution 1: right\n  exact, to the last bit\n"


SHARED = np.array([6.0])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: None, "nothing was returned; the gradient is an array of shape (1,)"),
        (lambda: "6", "no array of numbers was returned"),
        (lambda: [[1.0], [1.0, 2.0]], "no array of numbers was returned"),
        (lambda: SHARED.__iadd__(0), "it writes into an array that it has not made; use a copy"),
    ],
    ids=["nothing", "a text", "rows of two lengths", "a write into an array of the lesson"],
)
def test_an_answer_that_is_no_gradient_is_said_in_one_line(answer, said, capsys) -> None:
    assert not ng.trace(lambda x: x * x, np.array([3.0]), cotangent=np.ones(1)).check({"x": answer})
    assert said in capsys.readouterr().out and SHARED.flags.writeable


def test_an_entry_outside_an_array_is_refused(gpt) -> None:
    with pytest.raises(IndexRangeError, match=r"index 5 is out of range for axis 0 of wte, which has shape \(5, 8\)"):
        gpt.nudge("wte", (5, 0))
    masked = ng.trace(ng.ops.softmax, np.array([0.0, -np.inf]), cotangent=np.ones(2))
    for ask in (masked.nudge, lambda name, index: masked.terms(0, name, index)):
        with pytest.raises(GraphError, match=r"x\[1\] is -inf; only a finite entry can be moved"):
            ask("x", 1)
    with pytest.raises(GraphError, match="sends no gradient to 'targets', only to its inputs x, w"):
        gpt.terms(14, "targets", (0, 0))
