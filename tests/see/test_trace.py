"""A recorded pass has the numbers of an untraced one, under their names, and adds up."""

from __future__ import annotations

import cProfile
import math
import re
import sys

import numpy as np
import pytest
from passes import LAYERS, OPS, by_hand, differences, layer_passes, op_passes, same_bits, small_gpt

import nanograd_llm as ng
from nanograd_llm.backend.randomness import noise
from nanograd_llm.errors import GraphError, NanogradError, ShapeError
from nanograd_llm.see.record import added


def expression(a, b, c):
    h1 = a * b
    h2 = h1 + c
    return ng.ops.tanh(h2)


def sums_of_uses_differ(trace) -> list[str]:
    return [v.label for v in trace.values() if v.uses and not same_bits(added(v.uses), v.grad)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPS)
def test_every_op_gives_the_same_bits_traced(name: str, dtype: str) -> None:
    for f, inputs, cotangent in op_passes(name, 3, dtype):
        trace = ng.trace(f, *inputs, cotangent=cotangent)
        assert differences(trace, f, inputs, cotangent) == []
        assert sums_of_uses_differ(trace) == []


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_every_layer_and_model_gives_the_same_bits_traced(layer: type) -> None:
    for f, inputs, cotangent in layer_passes(layer):
        trace = ng.trace(f, *inputs, cotangent=cotangent)
        assert differences(trace, f, inputs, cotangent) == []
        assert sums_of_uses_differ(trace) == []


def test_a_model_with_dropout_gives_the_same_loss_and_gradients_traced() -> None:
    model, tokens, targets = small_gpt(dropout=0.2)
    with noise(7):
        loss = model.loss(tokens, targets)
    loss.backward()
    before = {name: p.grad for name, p in model.named_parameters()}
    with noise(7):
        trace = ng.trace(model.loss, tokens, targets)
    assert same_bits(trace.result.array, loss.data)
    assert trace.grads.keys() == before.keys()
    assert all(same_bits(trace.grads[name], grad) for name, grad in before.items())
    assert all(p.grad is before[name] for name, p in model.named_parameters())


def test_the_cotangents_are_those_that_a_hook_sees() -> None:
    seen = []

    def f(x, y):
        h = x * y
        h.register_hook(lambda dh: seen.append(dh.copy()))
        return (h * h + h).sum()

    trace = ng.trace(f, np.array([1.0, 2.0]), np.array([3.0, 5.0]))
    assert same_bits(trace.value("h").grad, seen[0])
    assert [use.call.op.name for use in trace.uses("h")] == ["add", "multiply", "multiply"]


def test_a_hook_that_replaces_a_cotangent_is_noted_and_its_array_shown() -> None:
    def f(x):
        h = x * x
        h.register_hook(lambda dh: 2 * dh)
        return h.sum()

    trace = ng.trace(f, np.array([3.0]))
    assert trace.value("h").hooked and not trace.value("x").hooked
    assert trace.value("h").grad == 2 and trace.grads["x"] == 12


def test_floats_are_float64_leaves_named_like_the_arguments() -> None:
    trace = ng.trace(expression, 2.0, -0.5, 1.5)
    assert list(trace.grads) == ["a", "b", "c"]
    assert trace.grads["a"].dtype == np.float64
    slope = 1 - np.tanh(0.5) ** 2
    np.testing.assert_allclose([trace.grads[n] for n in "abc"], [-0.5 * slope, 2 * slope, slope], rtol=1e-14)


def test_the_table_shows_names_modules_norms_uses_and_the_place_of_each_rule() -> None:
    model, tokens, targets = small_gpt()
    lines = str(ng.trace(model.loss, tokens, targets)).splitlines()
    assert lines[0] == "GPT.loss: 15 op calls, 16 leaves; constants: tokens, targets"
    assert lines[1].split() == ["op", "module", "shape", "|y|", "|ȳ|", "uses", "rule"]
    (row,) = [line for line in lines if "ln_1" in line]
    assert row.split()[:2] == ["3", "layernorm"] and "blocks.0.ln_1" in row and "(1, 5, 8)" in row
    assert "nanograd_llm/ops/fused.py:" in row
    assert "0  multiply h1 " in str(ng.trace(expression, 2.0, -0.5, 1.5))


def test_values_calls_and_modules_are_found_by_number_and_name() -> None:
    model, tokens, targets = small_gpt()
    trace = ng.trace(model.loss, tokens, targets)
    assert trace[3].op.name == "layernorm" and trace[3].module == "blocks.0.ln_1"
    assert trace["wte"] is trace.leaves["wte"]
    assert [call.op.name for call in trace["blocks.0.mlp"]] == ["linear", "gelu", "linear"]
    assert trace.value("blocks.0.mlp") is trace[11].output
    assert trace[3].call_place.startswith("nanograd_llm/nn/layers.py:") and "ops.layernorm" in trace[3].source
    with pytest.raises(GraphError, match="nothing is called 'wt'; did you mean 'wte'"):
        trace["wt"]
    with pytest.raises(GraphError, match="nothing is called 'bb'; the pass has .*'wte', .* and [0-9]+ more$"):
        trace["bb"]
    with pytest.raises(GraphError, match="numbered from 0 to 14"):
        trace[15]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda trace: trace.terms(), 'terms got no call and no input; write trace.terms(9, "x", (0, 2, 5)): a call'),
        (lambda trace: trace.terms(1), 'terms got 1 and no input; write trace.terms(9, "x", (0, 2, 5)): a call'),
        (
            lambda trace: trace.terms("a"),
            """terms got 'a' and no input; write trace.terms(9, "x", (0, 2, 5)): a call""",
        ),
        (lambda trace: trace.html(0), "a page ends in .html, such as step.html; got 0"),
        (lambda trace: trace.script(None), "a script ends in .py, such as backward.py; got None"),
    ],
)
def test_a_call_with_too_little_or_another_type_says_the_right_one(call, said) -> None:
    with pytest.raises(NanogradError, match=re.escape(said)):
        call(ng.trace(expression, 2.0, -0.5, 1.5))


def test_a_call_is_found_by_the_name_of_the_value_that_it_made() -> None:
    trace = ng.trace(expression, 2.0, -0.5, 1.5)
    assert str(trace.terms("h1", "a")) == str(trace.terms(trace["h1"].made_by.number, "a"))
    with pytest.raises(GraphError, match="'a' is an input of the pass, which no call made"):
        trace.terms("a", "b")


def test_an_input_of_a_call_is_found_by_the_name_of_the_value_that_it_was_given() -> None:
    trace = ng.trace(lambda left, right: left * right + left * left, 2.0, 3.0)
    assert str(trace.terms(0, "left")) == str(trace.terms(0, "a"))
    with pytest.raises(GraphError, match="takes 'left' as a and b: give one of these"):
        trace.terms(1, "left")
    trace = ng.trace(lambda a, b: b - a, 2.0, 5.0)
    with pytest.raises(GraphError, match="your a is input 1 of subtract, which calls input 0 a: give 1 or 0"):
        trace.terms(0, "a")
    assert trace.terms(0, 1).sent == trace.grads["a"] == -1


def test_a_module_is_no_call() -> None:
    model, tokens, targets = small_gpt()
    with pytest.raises(GraphError, match="'blocks.0.attention' is a module: give a call in it, one of 4, 5, 6"):
        ng.trace(model.loss, tokens, targets).open("blocks.0.attention")


def test_a_call_a_value_and_a_use_are_shown_in_a_line() -> None:
    trace = ng.trace(expression, 2.0, -0.5, 1.5)
    assert repr(trace[1]) == "<call 1 add: a (), b () -> y ()>"
    assert repr(trace["h1"]) == "h1 () float64, norm 1; gradient of 1 use, norm 0.7864"
    assert repr(trace.uses("h1")) == "[<use in 1 add, as a: (), norm 0.7864>]"


def test_the_output_of_a_module_is_that_of_its_last_part() -> None:
    model = ng.models.Classifier.on(small_gpt()[0], 3)
    trace = ng.trace(model.loss, np.array([[4, 0, 3, 2, 4]]), np.array([1]))
    stream, last = trace[2].output, trace.value("model")
    assert stream.label == "the output of 2 add" and last is trace["model"][-1].output
    assert last.label == last.made_by.module == "model.ln_f"


def test_a_trace_of_one_call_and_one_leaf_is_counted_right_and_an_integer_is_no_leaf() -> None:
    trace = ng.trace(lambda x, n: x * n, 2.0, 3)
    assert repr(trace).startswith("<lambda>: 1 op call, 1 leaf; constants: n\n") and trace.grads == {"x": 3.0}
    with pytest.raises(GraphError, match="^'n' has no gradient: an integer is a constant: write 3.0 for 3$"):
        trace.nudge("n")


def test_a_local_of_the_package_does_not_take_the_name_of_an_argument() -> None:
    model = ng.nn.Sequential(ng.nn.Linear(2, 3, rng=np.random.default_rng(0)), ng.ops.tanh)
    trace = ng.trace(lambda x: ng.ops.sum(model(x)), np.array([[0, 1]]))
    with pytest.raises(GraphError, match="^'x' has no gradient: an array of int64 is a constant"):
        trace.nudge("x", (0, 0))


def test_where_a_function_makes_a_number_of_a_tensor_is_noted() -> None:
    def f(a):
        b = a * math.exp(a)
        return b * float(ng.Tensor(2.0))  # no gradient would go there

    line = f.__code__.co_firstlineno + 1
    note = "makes a number of a Tensor, by float, item or math; no gradient goes through it"
    assert ng.trace(f, 2.0).heading == f"f: 2 op calls, 1 leaf\nnote: test_trace.py:{line} {note}"


def test_a_name_that_a_loop_gives_to_several_values_is_refused_with_their_numbers() -> None:
    def f(x, w):
        h = x
        for _ in range(2):
            h = ng.ops.tanh(h * w)
        return h

    trace = ng.trace(f, 0.5, 2.0)
    assert trace[1].output.name == trace[3].output.name == "h"
    with pytest.raises(GraphError, match="name of several values: give the number of a call, one of 1, 3"):
        trace["h"]


def test_the_gradient_of_a_tied_table_is_the_sum_of_head_and_lookup() -> None:
    model, tokens, targets = small_gpt()
    trace = ng.trace(model.loss, tokens, targets)
    head, lookup = trace.uses("wte")
    assert str(head) == "14 linear_cross_entropy, as w" and str(lookup) == "0 embedding, as w"
    assert same_bits(head.gradient + lookup.gradient, trace.grads["wte"])
    assert not lookup.gradient[1].any() and head.gradient[1].any()  # token 1 is not in the text


def test_a_record_keeps_its_numbers_when_the_parameters_change() -> None:
    model, tokens, targets = small_gpt()
    trace = ng.trace(model.loss, tokens, targets)
    before = trace["wte"].array.copy(), float(trace.nudge("wte", (0, 0)).slope)
    model.wte.data *= 2
    assert same_bits(trace["wte"].array, before[0])
    assert float(trace.nudge("wte", (0, 0)).slope) == before[1]


def test_weights_that_nobody_can_write_into_are_not_copied() -> None:
    fixed = ng.Tensor(np.zeros(1), requires_grad=True)
    fixed.data = np.frombuffer(np.array([1.0, 2.0]).tobytes())
    asked = np.array([3.0, 4.0])
    asked.flags.writeable = False  # its owner may change that
    given = ng.Tensor(np.zeros(1), requires_grad=True)
    given.data = asked[:]
    trace = ng.trace(lambda: (fixed * given).sum())
    assert trace["fixed"].array is fixed.data and not np.shares_memory(trace["given"].array, asked)


def test_two_leaves_of_one_array_keep_gradients_of_their_own() -> None:
    array = np.array([1.0, 2.0])
    a, b = (ng.Tensor(array, requires_grad=True) for _ in range(2))
    trace = ng.trace(lambda: (a * a * b).sum())
    assert trace.grads["a"].tolist() == [2, 8] and trace.grads["b"].tolist() == [1, 4]


def test_a_trace_is_a_sequence_of_its_calls() -> None:
    trace = ng.trace(expression, 2.0, -0.5, 1.5)
    assert list(trace) == [call for call in trace] == trace.calls and len(trace) == 3  # noqa: C416
    assert [*reversed(trace)] == trace.calls[::-1] and trace[1] in trace


def test_a_mask_that_is_overwritten_between_two_calls_is_recorded_as_it_was_in_each() -> None:
    def f(x):
        mask = np.array([1.0, 0.0])
        first = x + mask
        mask[:] = 5.0
        return (first + mask).sum()

    trace = ng.trace(f, np.array([1.0, 2.0]))
    assert trace[0].inputs[1].array.tolist() == [1, 0] and trace[1].inputs[1].array.tolist() == [5, 5]


def test_a_leaf_that_changes_while_it_is_recorded_is_refused() -> None:
    w = ng.Tensor(np.array([1.0]), requires_grad=True)

    def f():
        y = w * 2
        w.data[:] = 7.0
        return (y * w).sum()

    with pytest.raises(GraphError, match=r"a leaf of shape \(1,\) was changed while trace recorded"):
        ng.trace(f)


def test_a_tensor_that_retains_its_gradient_is_recorded_as_any() -> None:
    def f(x):
        h = x * x
        h.retain_grad()
        return h.sum()

    assert ng.trace(f, np.array([3.0])).grads["x"] == 6


def test_a_profiler_that_runs_goes_on_and_the_numbers_are_the_same() -> None:
    profile = cProfile.Profile()
    profile.enable()
    trace = ng.trace(expression, 2.0, -0.5, 1.5)
    assert sys.getprofile() is profile
    profile.disable()
    assert sys.getprofile() is None
    assert trace.grads == ng.trace(expression, 2.0, -0.5, 1.5).grads


def test_a_pass_is_recorded_inside_checked_and_no_grad_as_well() -> None:
    model, tokens, targets = small_gpt()
    plain = ng.trace(model.loss, tokens, targets)
    for block in (ng.checked(), ng.no_grad()):
        with block:
            trace = ng.trace(model.loss, tokens, targets)
        assert all(same_bits(a, b) for a, b in zip(trace.grads.values(), plain.grads.values()))


def test_recomputed_blocks_are_recorded_op_by_op() -> None:
    model, tokens, targets = small_gpt(recompute_activations=True)
    assert len(ng.trace(model.loss, tokens, targets)) == 15


def test_what_cannot_be_recorded_is_refused() -> None:
    x = ng.Tensor([1.0], requires_grad=True)
    h = x * x
    with pytest.raises(GraphError, match="uses a Tensor that multiply had computed before"):
        ng.trace(lambda: (h * 2).sum())
    with pytest.raises(GraphError, match="returned a float"):
        ng.trace(lambda a: 1.0, 2.0)
    with pytest.raises(GraphError, match="needs no gradient"):
        ng.trace(lambda: ng.Tensor([1.0]) * 2)
    with pytest.raises(GraphError, match="returned one of its inputs"):
        ng.trace(lambda a: a, 2.0)
    with pytest.raises(ShapeError, match=r"returned shape \(2,\); give trace\(..., cotangent="):
        ng.trace(ng.ops.tanh, np.ones(2))
    with pytest.raises(ShapeError, match=r"the cotangent has shape \(3,\)"):
        ng.trace(ng.ops.tanh, np.ones(2), cotangent=np.ones(3))
    with ng.higher_order(), pytest.raises(GraphError, match="outside higher_order"):
        ng.trace(ng.ops.tanh, 1.0)


def test_the_walk_by_hand_would_notice_a_wrong_record() -> None:
    trace = ng.trace(expression, 2.0, -0.5, 1.5)
    args = tuple(np.asarray(x) for x in (2.0, -0.5, 1.5))
    assert differences(trace, expression, args, 1.0) == []
    trace.calls[1].sent[0] = trace.calls[1].sent[0] * (1 + 1e-15)
    assert differences(trace, expression, args, 1.0) == ["a gradient of 1 add"]
    assert len(by_hand(expression, args, 1.0)[1]) == 3


def test_a_result_or_an_integer_in_place_of_a_function_and_a_float_is_explained() -> None:
    with pytest.raises(GraphError, match="trace takes a function and its arguments, .*; got a Tensor"):
        ng.trace(ng.Tensor(2.0))
    with pytest.raises(GraphError, match="an integer is a constant: write 3.0 for 3"):
        ng.trace(lambda w: w * w, 3)
    with pytest.raises(GraphError, match="a float given by name is a constant: write 3.0 for w=3.0, at its place"):
        ng.trace(lambda w: w * w, w=3.0)
    with pytest.raises(GraphError, match=re.escape("a list is a constant: write np.array([0.5, 2.0])")):
        ng.trace(lambda w: ng.ops.sum(w), [0.5, 2.0])


def test_arrays_given_by_name_are_leaves() -> None:
    trace = ng.trace(lambda a, b: ng.ops.mean((a - b) ** 2), b=np.ones(2), a=np.array([2.0, -1.0]))
    assert {name: g.tolist() for name, g in trace.grads.items()} == {"b": [-1.0, 2.0], "a": [1.0, -2.0]}
