"""A function that is named as a backward rule does what it did, and makes the mistakes that are planted in it."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from nanograd_llm.errors import SignatureError
from nanograd_llm.gradcheck import backward_rule, check_gradient
from nanograd_llm.gradcheck.mutation.backward_rules import backward_rules

R = np.random.default_rng(0)
X, W, B = R.normal(size=(3, 4)), R.normal(size=(4, 5)), R.normal(size=5)


@pytest.fixture(autouse=True)
def no_rules_are_left():
    before = dict(backward_rules)
    yield
    backward_rules.clear()
    backward_rules.update(before)


def affine_vjp(dy, x, w, b):
    """The three gradients."""
    return dy @ w.T, x.T @ dy, dy.sum(axis=0)


def mutants_of(call: Any, rule: Any) -> dict[str, Any]:
    """The mutants that one call of the rule shows, by name."""
    (target,) = [target for target in backward_rules.values() if target.function is inspect.unwrap(rule)]
    target.rule = target.observed
    call()
    target.rule = target.function
    return {mutant.name: mutant for mutant in target.mutants()}


def test_a_backward_rule_does_what_the_function_did() -> None:
    rule = backward_rule(affine_vjp)
    dy = R.normal(size=(3, 5))
    assert rule.__doc__ == "The three gradients." and inspect.signature(rule) == inspect.signature(affine_vjp)
    assert all(map(np.array_equal, rule(dy, X, W, B), affine_vjp(dy, X, W, b=B)))
    assert check_gradient(lambda x, w, b: x @ w + b, X, W, B, vjp=rule).passed


def test_every_mistake_in_a_function_is_one_that_a_check_notices() -> None:
    rule = backward_rule(affine_vjp)
    found = mutants_of(lambda: rule(R.normal(size=(3, 5)), X, W, b=B), rule)
    for name in ("factor 2", "sign", "dropped", "transposed", "last lost", "shifted", "= for +="):
        assert f"the gradient of w: {name}" in found
    assert "the gradient of b: no broadcast sum" in found and "the gradient of w: no broadcast sum" not in found
    assert "terms with w dropped" not in found  # it would be the same as the gradient of x: dropped
    for mutant in found.values():
        with mutant.planted():
            assert not check_gradient(lambda x, w, b: x @ w + b, X, W, B, vjp=rule, explain=False).passed, mutant.name
    assert check_gradient(lambda x, w, b: x @ w + b, X, W, B, vjp=rule).passed


def test_results_that_belong_to_no_input_by_number_are_counted_from_one() -> None:
    rule = backward_rule(lambda dy, x: (dy * x, dy + x))
    found = mutants_of(lambda: rule(X, X), rule)
    assert "result 1 of 2: factor 2" in found and "result 2 of 2: factor 2" in found
    assert not any("result 0" in name for name in found)


def test_a_mistake_in_a_stored_gradient_changes_nothing_else() -> None:
    class Layer:
        def __init__(self):
            self.dw = np.zeros((4, 5))

        @backward_rule
        def backward(self, dy):
            self.dw += X.T @ dy
            return dy @ W.T

    dy = R.normal(size=(3, 5))
    found = mutants_of(lambda: Layer().backward(dy), Layer.backward)
    layer = Layer()
    with found["the stored dw: factor 2"].planted():
        dx = layer.backward(dy)
    np.testing.assert_allclose(layer.dw, 2 * X.T @ dy)
    np.testing.assert_array_equal(dx, dy @ W.T)


def test_the_rule_is_restored_after_an_exception() -> None:
    rule = backward_rule(affine_vjp)
    dy = R.normal(size=(3, 5))
    mutant = mutants_of(lambda: rule(dy, X, W, B), rule)["the gradient of x: sign"]
    with pytest.raises(ZeroDivisionError), mutant.planted():
        np.testing.assert_array_equal(rule(dy, X, W, B)[0], -dy @ W.T)
        raise ZeroDivisionError
    np.testing.assert_array_equal(rule(dy, X, W, B)[0], dy @ W.T)


def test_a_function_without_a_cotangent_has_the_mistakes_that_need_none() -> None:
    slope = backward_rule(lambda x: 1 - np.tanh(x) ** 2, cotangent=None)
    found = mutants_of(lambda: slope(X), slope)
    assert "the gradient of x: factor 2" in found
    assert not [name for name in found if "upstream" in name or "=" in name]


def test_float32_stays_float32_and_numbers_stay_numbers() -> None:
    rule = backward_rule(lambda dy, x, k: (dy * k, (dy * x).sum()))
    x = X.astype(np.float32)
    found = mutants_of(lambda: rule(x, x, 2.0), rule)
    with found["the gradient of x: sign"].planted():
        dx, dk = rule(x, x, 2.0)
    assert dx.dtype == np.float32 and isinstance(dk, np.floating)


@pytest.mark.parametrize(
    ("function", "how", "message"),
    [
        (3, {}, "backward_rule takes a function that computes gradients; got 3"),
        (np.sin, {}, "backward_rule takes a function"),
        (affine_vjp, {"cotangent": "dz"}, r"has no parameter 'dz' as its cotangent; it has \['dy', 'x', 'w', 'b'\]"),
    ],
)
def test_what_cannot_be_a_backward_rule_is_refused(function: Any, how: Any, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        backward_rule(function, **how)


@pytest.mark.parity
def test_mistakes_are_planted_in_the_backward_of_an_autograd_function() -> None:
    torch = pytest.importorskip("torch")

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @backward_rule
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            return 2 * x * dy

    x = torch.tensor(X, requires_grad=True)
    found = mutants_of(lambda: (Square.apply(x) * torch.tensor(X + 1)).sum().backward(), Square.backward)
    assert len(found) >= 7
    for mutant in found.values():
        with mutant.planted():
            assert not check_gradient(Square, x, explain=False).passed, mutant.name


@pytest.mark.parity
def test_mistakes_are_planted_in_the_bwd_of_jax_where_numbers_are_known() -> None:
    jax = pytest.importorskip("jax")

    @jax.custom_vjp
    def square(x):
        return x * x

    bwd = backward_rule(lambda x, dy: (2 * x * dy,), cotangent="dy")
    square.defvjp(lambda x: (x * x, x), bwd)
    x = jax.numpy.asarray(X)
    (target,) = backward_rules.values()
    assert not mutants_of(lambda: jax.jit(jax.grad(lambda x: square(x).sum()))(x), bwd) and target.is_traced
    found = mutants_of(lambda: jax.vjp(square, x)[1](x + 1), bwd)
    assert len(found) >= 7
    for mutant in found.values():
        with mutant.planted():
            assert not check_gradient(square, x, explain=False).passed, mutant.name
