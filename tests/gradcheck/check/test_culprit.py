"""A wrong gradient of a whole function is traced to the op, the module and the line that are at fault."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig, Tensor, grad, nn, ops
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.gradcheck import gradcheck

TOKENS = np.random.default_rng(0).integers(0, 7, (2, 4))
TARGETS = np.random.default_rng(1).integers(0, 7, (2, 4))
HERE = Path(__file__).name


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def doubled(name, monkeypatch):
    rule = registry[name].rule

    def wrong(dy, *saved):
        gradients = rule(dy, *saved)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return tuple(None if g is None else 2 * g for g in gradients)

    monkeypatch.setattr(registry[name], "rule", wrong)
    return wrong


def gpt(n_layer=2):
    return GPT(GPTConfig(vocab_size=7, context_length=4, n_layer=n_layer, n_head=2, n_embd=4))


@pytest.mark.parametrize(
    ("name", "module", "called"),
    [
        ("gelu", "blocks.0.mlp", "activation("),
        ("layernorm", "blocks.0.ln_1", "layernorm("),
        ("multi_head_attention", "blocks.0.attention", "multi_head_attention("),
        ("embedding", "", "embedding("),
    ],
)
def test_in_a_whole_gpt_the_op_the_module_and_the_line_are_named(name, module, called, monkeypatch):
    wrong = doubled(name, monkeypatch)
    model = gpt()
    model.freeze()
    model.wte.requires_grad = True  # below every op, and one parameter shows the mistake as well as thirty
    report = gradcheck(model.loss, TOKENS, TARGETS, jacobian=0)
    assert not report.passed
    assert [culprit.op for culprit in report.culprits] == [name] * len(report.culprits) != []
    first = report.culprits[0]
    assert f"in module {module}," in first.place if module else "in module" not in first.place
    path, line = first.place.rpartition("called at ")[2].rsplit(":", 1)
    assert "nanograd_llm" in path and called in Path(path).read_text("utf-8").splitlines()[int(line) - 1]
    assert first.rule == f"{__file__}:{inspect.unwrap(wrong).__code__.co_firstlineno}"
    assert "factor 2" in first.pattern
    assert f"culprit: the rule of {name} is wrong" in str(report)


def test_in_a_users_function_the_line_of_the_user_is_named(monkeypatch):
    doubled("tanh", monkeypatch)

    def f(x, w):
        h = x @ w
        return ops.tanh(h).sum()

    place = gradcheck(f, normal(2, 3), normal(3, 4)).culprits[0].place
    line = inspect.getsourcelines(f)[1] + 2
    assert place == f"tanh((2, 4)), called at {__file__}:{line}"


def test_the_line_of_an_op_that_is_checked_by_itself_is_that_of_the_check(monkeypatch):
    doubled("tanh", monkeypatch)
    assert HERE in gradcheck(ops.tanh, normal(3)).culprits[0].place


def test_a_mistake_of_the_second_order_is_traced_too(monkeypatch):
    def wrong(dy, y):  # the right value, but cut off from the tape
        return dy * Tensor(y.data) if isinstance(y, Tensor) else dy * y

    monkeypatch.setattr(registry["exp"], "rule", wrong)
    report = gradcheck(lambda x: ops.exp(ops.sin(x)), normal(3), order=2)
    assert [culprit.op for culprit in report.culprits] == ["exp"]


def test_where_every_rule_is_right_the_report_says_that_the_mistake_is_between_them():
    report = gradcheck(lambda x: ops.exp(x) * Tensor(ops.sin(x).data), normal(3))
    assert not report.passed and report.culprits == ()
    assert "a .data, .detach(), .item() or float() on the way" in str(report)


def test_a_layer_with_a_wrong_op_names_the_op(monkeypatch):
    doubled("linear", monkeypatch)
    report = gradcheck(nn.MLP(4, rng=np.random.default_rng(0)), normal(3, 4))
    assert report.culprits[0].op == "linear"
    assert set(report.culprits[0].inputs) == {"x", "w", "b"}


def test_a_right_function_has_no_culprit():
    assert gradcheck(gpt().loss, TOKENS, TARGETS, jacobian=0).culprits == ()


def test_the_first_op_that_widens_float32_is_noted():
    def f(x):
        return (ops.exp(x) * np.ones(3)).sum()  # the array is float64

    report = gradcheck(f, normal(3).astype(np.float32))
    assert report.passed
    assert any("float32 widens to float64 in multiply" in note and HERE in note for note in report.notes)
    assert not any("widens" in note for note in gradcheck(ops.exp, normal(3).astype(np.float32)).notes)


def test_a_rich_report_has_its_verdict_in_colour():
    text = gradcheck(ops.exp, normal(3)).__rich__()
    assert any("green" in str(span.style) for span in text.spans)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (3, "each entry compared"),
        (1000, "each entry compared for 4 random ȳ"),
        (
            10000,
            "4 random directions compared; all 10,000 entries would take 10,000 evaluations: take smaller inputs for "
            "them",
        ),
    ],
)
def test_the_report_says_which_numbers_were_compared_and_what_all_would_have_cost(size, said):
    finding = gradcheck(ops.exp, normal(size)).findings[0]
    assert finding.compared == said and said in str(finding)


def test_a_small_entry_that_hides_behind_large_ones_is_found_where_the_jacobian_is_compared_whole(monkeypatch):
    rule = registry["multiply"].rule

    def wrong(dy, a, b, needs):
        da, db = rule(dy, a, b, needs)
        return None if da is None else da * np.where(np.arange(30) == 0, 1 + 1e-6, 1), db

    monkeypatch.setattr(registry["multiply"], "rule", wrong)
    a, b = normal(30), np.array([1e-9, *np.ones(29)])
    assert gradcheck(ops.multiply, a, b, jacobian=0).findings[0].verdict == "right"
    assert gradcheck(ops.multiply, a, b).findings[0].verdict == "wrong"
    leaf = Tensor(a, requires_grad=True)
    assert grad(leaf * b, leaf, np.ones(30))[0] != b[0]


def test_of_many_wrong_inputs_the_first_are_shown_in_full_and_the_others_named(monkeypatch):
    doubled("cross_entropy", monkeypatch)
    doubled("linear_cross_entropy", monkeypatch)
    report = gradcheck(gpt(n_layer=1).loss, TOKENS, TARGETS, jacobian=0)
    wrong = [finding for finding in report.findings if finding.verdict == "wrong"]
    assert len(wrong) > 12
    assert str(report).count("worst at") == 8
    (rest,) = [line for line in str(report).splitlines() if "and not shown" in line]
    assert all(f"{finding.name} wrong" in rest for finding in wrong[8:])


def test_an_input_of_a_module_has_the_name_that_its_forward_gives_it():
    report = gradcheck(nn.MLP(4, rng=np.random.default_rng(0)), normal(3, 4))
    assert report.findings[0].name == "x"


def test_an_op_with_a_straight_through_estimate_is_named_where_the_function_is_wrong_by_it(own_op):
    @own_op("y = round x", "x̄ = ȳ")
    def rounded(x):
        """Nearest integers.  x (*) -> y (*)"""
        return np.round(x)

    @rounded.backward
    def rounded_backward(dy):
        return dy

    x = np.array([0.3, 1.2, -1.7])
    assert "moves in steps" in gradcheck(rounded, x).findings[0].reason
    (culprit,) = gradcheck(lambda x: (rounded(x) - x) * x, x).culprits
    assert culprit.op == "rounded" and "moves in steps" in culprit.pattern
