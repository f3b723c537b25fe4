"""Every mistake in every rule, planted in an op, a layer and a whole GPT: the report names the op and the line."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig, nn, ops
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.errors import NanogradError
from nanograd_llm.gradcheck import draw_cases, gradcheck, mutants

NAMES = sorted(name for name, op in registry.items() if op.__module__.startswith(ops.__name__))
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 7, (3, 5))


def gpt():
    model = GPT(GPTConfig(vocab_size=7, context_length=4, n_layer=1, n_head=2, n_embd=4), seed=0).astype(np.float64)
    for parameter in model.parameters():  # as they start, many are all zeros or ones
        parameter.data = 0.5 * RNG.standard_normal(parameter.shape) + (parameter.data == 1)
    return model


WHOLE = {
    "a layer": (nn.MLP(4, rng=RNG).astype(np.float64), (RNG.standard_normal((3, 4)),), ["linear", "gelu"]),
    "a GPT": (
        gpt().loss,
        (IDS[:, :-1], IDS[:, 1:]),
        ["layernorm", "linear", "gelu", "multi_head_attention", "linear_cross_entropy", "embedding", "getitem", "add"],
    ),
}


def blamed(mutant, f, inputs):
    """(op, rule) of each culprit with this mistake planted; None where it does not show."""
    with mutant.planted():
        try:
            report = gradcheck(f, *inputs, jacobian=0)
        except NanogradError as error:  # a gradient of the wrong shape, or none, is refused with the name of the op
            assert f"the rule of {mutant.op.name} " in str(error)
            return {(mutant.op.name, written_at(mutant.op))}
    if report.passed:
        return None
    return {(culprit.op, culprit.rule) for culprit in report.culprits}


def written_at(op):
    code = inspect.unwrap(op.rule).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_each_mistake_in_an_op_is_traced_to_its_rule(name):
    op = registry[name]
    largest = sorted(draw_cases(op, np.random.default_rng(0), 60), key=lambda case: -case.size)
    for mutant in mutants(op):
        found = (blamed(mutant, *case.on(op)) for case in largest)
        assert next((one for one in found if one), None) == {(name, written_at(op))}, mutant.name


@pytest.mark.thorough
@pytest.mark.parametrize(("place", "name"), [(place, name) for place, (_, _, names) in WHOLE.items() for name in names])
def test_each_mistake_that_shows_in_a_layer_or_a_gpt_is_traced_to_its_rule(place, name):
    f, inputs, _ = WHOLE[place]
    given = [mutant for mutant in mutants(registry[name]) if "kv" not in mutant.name]  # attention to itself has none
    found = [blamed(mutant, f, inputs) for mutant in given]
    assert [one for one in found if one is not None] == [{(name, written_at(registry[name]))}] * (
        len(found) - found.count(None)
    )
    assert found.count(None) <= 1  # such as = for +=, where nothing is read twice


def test_some_of_them_are_traced_in_a_gpt():
    """A few parameters are checked, one of which each of these mistakes changes: a check of all takes twice as long."""
    _, inputs, names = WHOLE["a GPT"]
    model = gpt().freeze()
    block = model.blocks[0]
    for parameter in (model.wte, model.wpe, block.ln_1.bias, block.attention.qkv.bias):
        parameter.requires_grad = True
    for name in names:
        for mutant in mutants(registry[name])[1::20]:
            assert blamed(mutant, model.loss, inputs) == {(name, written_at(registry[name]))}, mutant.name
