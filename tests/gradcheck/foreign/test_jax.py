"""Functions of JAX are handed over as they are; they run in 64 bits, whatever the user's configuration says.

pip install ".[test]" jax && pytest -m parity tests/gradcheck/foreign
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanograd_llm.errors import DtypeError, NanogradError, SignatureError
from nanograd_llm.gradcheck import check_gradient, gradcheck

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def jax() -> Any:
    return pytest.importorskip("jax")


@pytest.fixture(scope="module")
def x(jax: Any) -> Any:
    return jax.random.normal(jax.random.key(0), (2, 3))


def verdicts(report: Any) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in report.findings}


def scaled_square(jax: Any, factor: float) -> Any:
    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, x), lambda x, dy: (factor * 2 * x * dy,))
    return square


def mlp(jax: Any) -> Any:
    return lambda params, x: jax.numpy.tanh(x @ params["w"] + params["b"]).sum()


@pytest.mark.parametrize("factor", [1, 1 + 1e-9])
def test_a_custom_vjp_is_checked_by_complex_step(jax: Any, x: Any, factor: float) -> None:
    report = check_gradient(scaled_square(jax, factor), x)
    assert verdicts(report) == {"x": "right" if factor == 1 else "wrong"}
    assert report.findings[0].method == "complex step"
    assert ["test_jax.py:" in culprit.rule for culprit in report.culprits] == [True] * (factor != 1)


def test_one_inside_a_compiled_function_is_checked_too(jax: Any, x: Any) -> None:
    for factor, verdict in ((1, "right"), (2, "wrong")):
        square = scaled_square(jax, factor)
        assert verdicts(check_gradient(jax.jit(lambda x, f=square: 3 * f(x)), x)) == {"x": verdict}


def test_the_leaves_of_a_dict_of_parameters_are_checked_and_named(jax: Any, x: Any) -> None:
    params = {"w": jax.numpy.ones((3, 2)), "b": jax.numpy.zeros(2)}
    f = mlp(jax)
    assert verdicts(check_gradient(f, params, x)) == {"params['w']": "right", "params['b']": "right", "x": "right"}
    assert check_gradient(f, jax.grad(f, argnums=(0, 1)), params, x).passed
    assert not check_gradient(f, jax.grad(lambda p, x: 1.001 * f(p, x), argnums=(0, 1)), params, x).passed


@pytest.fixture(scope="module")
def layer_class(jax: Any) -> Any:
    @jax.tree_util.register_pytree_node_class
    class Layer:
        def __init__(self, w, b, name="first"):
            self.w, self.b, self.name = w, b, name

        def tree_flatten(self):
            return (self.w, self.b), self.name

        @classmethod
        def tree_unflatten(cls, name, parts):
            return cls(*parts, name)

        def __call__(self, x):
            return jax.numpy.tanh(x @ self.w + self.b)

    return Layer


def test_the_arrays_of_a_class_that_is_registered_with_jax_are_checked(jax: Any, x: Any, layer_class: Any) -> None:
    layer = layer_class(jax.numpy.ones((3, 1)), jax.numpy.zeros(1))
    how = {"jacobian": 0, "explain": False}
    assert verdicts(check_gradient(layer, x, **how)) == {"w": "right", "b": "right", "x": "right"}
    report = check_gradient(lambda layer, x: layer(x) * jax.lax.stop_gradient(layer.b + 1), layer, x, **how)
    assert "wrong" in verdicts(report).values() and "right" in verdicts(report).values()


def test_the_arrays_of_such_a_class_have_gradients_by_hand_too(jax: Any, x: Any, layer_class: Any) -> None:
    layer = layer_class(jax.numpy.ones((3, 1)), jax.numpy.zeros(1))
    loss = lambda layer, x: layer(x).sum()  # noqa: E731
    for factor, passes in ((1, True), (1.001, False)):
        gradient = jax.grad(lambda *inputs, factor=factor: factor * loss(*inputs), argnums=(0, 1))
        assert check_gradient(loss, gradient, layer, x, jacobian=0, explain=False).passed == passes


def test_numpy_arrays_may_be_given_and_the_configuration_stays(jax: Any) -> None:
    before = jax.config.jax_enable_x64
    assert check_gradient(lambda x: jax.numpy.sin(x), np.ones(3)).passed
    assert jax.config.jax_enable_x64 == before


def test_a_gradient_that_is_stopped_is_wrong(jax: Any, x: Any) -> None:
    report = check_gradient(lambda x: jax.lax.stop_gradient(x) * x, x)
    assert "looks like: off by the factor 0.5" in str(report)
    assert "no gradient goes through jax.lax.stop_gradient" in report.notes


def test_a_function_that_refuses_complex_numbers_is_checked_by_differences(jax: Any, x: Any) -> None:
    report = check_gradient(lambda x: (x.max(axis=1), x.argmax(axis=1)), x)
    assert report.passed and report.findings[0].method == "differences"


def test_the_rounding_of_float32_inside_a_function_is_no_mistake_and_hides_no_large_one(jax: Any, x: Any) -> None:
    def narrow(f):
        return lambda x: f(x.astype("float32")).astype("float64")

    assert "wrong" not in verdicts(check_gradient(narrow(jax.numpy.tanh), x[:1], jacobian=0)).values()
    assert verdicts(check_gradient(narrow(scaled_square(jax, 1.01)), x[:1], jacobian=0)) == {"x": "wrong"}


def test_what_cannot_be_checked_is_one_clear_error(jax: Any, x: Any) -> None:
    with pytest.raises(DtypeError, match=r"returned an array of int64 \(\)"):
        check_gradient(lambda x: x.argmax(), x)
    with pytest.raises(NanogradError, match="raised TypeError: dot_general requires contracting dimensions"):
        check_gradient(lambda x: x @ x, x)
    with pytest.raises(DtypeError, match="bfloat16, too coarse"):
        check_gradient(lambda x: x.astype("bfloat16"), x)
    with pytest.raises(SignatureError, match=r"is missing: .*; a function of JAX takes jax.numpy.array\(x\)"):
        check_gradient(lambda x: jax.lax.stop_gradient(x) * x, np.ones(3))
    with pytest.raises(SignatureError, match="sin is a function of JAX: check_gradient takes it"):
        gradcheck(jax.numpy.sin, x)
