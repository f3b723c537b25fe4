"""Every registered op of the package is checked, on a few cases.

`nanograd-llm gradcheck`, which `.ci/run` starts, takes more cases, plants mistakes in the rules, and finds the cause of
a wrong gradient. Tests of ops do not look for it, since `--gradient-mutants` makes hundreds of them fail on purpose.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from refusals import refusal_problems

import nanograd_llm.ops
from nanograd_llm.autograd.tensor import Tensor, grad, registry
from nanograd_llm.gradcheck import every_op
from nanograd_llm.gradcheck.cases import samples
from nanograd_llm.gradcheck.cases.samples import Case
from nanograd_llm.gradcheck.check import promises

NAMES = sorted(name for name, op in registry.items() if op.__module__.startswith(nanograd_llm.ops.__name__))
FUSED = [name for name in NAMES if registry[name].equals is not None]


def test_every_op_has_a_rule_and_inputs_that_it_can_be_checked_with():
    for name in NAMES:
        assert registry[name].rule is not None and drawn(name), name


def test_every_op_is_handed_out_by_the_package_of_ops():
    assert [name for name in NAMES if getattr(nanograd_llm.ops, name, None) is not registry[name]] == []


@pytest.mark.parametrize("name", [name for name in NAMES if registry[name].static_defaults])
def test_every_static_argument_takes_another_value_than_its_default_in_some_case(name):
    cases = list(samples.draw_cases(registry[name], np.random.default_rng(0), 60))
    for argument, default in registry[name].static_defaults.items():
        is_varied = any(repr(case.static.get(argument, default)) != repr(default) for case in cases)
        assert is_varied, f"{argument} is {default!r} in all cases; vary it in samples="


@functools.cache
def drawn(name: str) -> list[Case]:
    return list(samples.draw_cases(registry[name], np.random.default_rng(0), 8))


def test_the_registry_holds_primitive_and_fused_ops():
    assert {"add", "matmul", "getitem", "embedding", "layernorm", "cross_entropy"} <= set(NAMES)
    assert {"softmax", "layernorm", "cross_entropy", "attention"} <= set(FUSED)


@pytest.mark.parametrize("name", NAMES)
def test_the_shape_line_is_true(name):
    op = registry[name]
    for case in drawn(name):
        assert op.shape_problem(case.inputs, case.static, op(*case.inputs, **case.static).shape) is None


@pytest.mark.parametrize("name", NAMES)
def test_invalid_calls_are_refused(name):
    found = [refusal_problems(registry[name], case) for case in drawn(name)]
    assert [problem for problems, _ in found for problem in problems] == []
    assert sum(refused for _, refused in found) > 0


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_right(name):
    for number, case in enumerate(drawn(name)):
        report = every_op.check_case(registry[name], case, seed=number, explain=False)
        assert report.passed, f"{case}\n{report}"


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_gradients_are_right(name):
    cases = every_op.higher_order_cases(drawn(name))[:2]
    assert cases, "give the op a sample of at most 128 numbers"
    for number, case in enumerate(cases):
        report = every_op.check_case(registry[name], case, order=2, seed=number, explain=False)
        assert report.passed, f"{case}\n{report}"


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_preserved(name):
    assert [problem for case in drawn(name) for problem in promises.dtype_problems(registry[name], case)] == []


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_op_equals_its_composition(name):
    assert [problem for case in drawn(name) for problem in promises.equality_problems(registry[name], case)] == []


@pytest.mark.parametrize("name", [name for name in NAMES if len(registry[name].differentiable) > 1])
def test_a_gradient_does_not_depend_on_which_others_are_needed(name):
    op = registry[name]
    for case in drawn(name):
        y, leaves = recorded(op, case, range(len(case.inputs)))
        cotangent = np.asarray(np.random.default_rng(1).standard_normal(y.shape))
        together = dict(zip(leaves, grad(y, leaves.values(), cotangent)))
        for place, gradient in together.items():
            y, leaf = recorded(op, case, [place])
            np.testing.assert_array_equal(grad(y, leaf[place], cotangent), gradient, err_msg=f"input {place}, {case}")


def recorded(op, case, places):
    """The op's result, and the leaves at these positions that have a gradient."""
    leaves = {i: Tensor(case.inputs[i], requires_grad=True) for i, _ in samples.differentiated(op, case) if i in places}
    return op(*[leaves.get(i, x) for i, x in enumerate(case.inputs)], **case.static), leaves


@pytest.mark.parametrize("name", ["multiply", "divide", "power", "tanh", "erf", "matmul", "softmax", "layernorm"])
def test_third_order_is_right(name):
    case = min(every_op.higher_order_cases(drawn(name)), key=lambda case: (case.size < 4, case.size))
    report = every_op.check_case(registry[name], case, order=3)
    assert report.passed, report
