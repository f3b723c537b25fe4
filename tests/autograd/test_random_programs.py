"""Random programs of shared, broadcast and discarded values: their gradients agree with the complex step."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm import Tensor, checked, grad, higher_order, ops

SHAPES = [(2, 3), (3,), (1, 3), (2, 1), (1, 1), ()]


def square_product(a, b):
    if b.shape in [(2, 3), (2, 1)]:
        return a
    return ops.matmul(ops.broadcast_to(a, shape=(2, 3)), ops.transpose(ops.broadcast_to(b, shape=(3, 3))))


STEPS = [
    ops.add,
    ops.multiply,
    ops.subtract,
    lambda a, b: ops.divide(a, ops.add(ops.multiply(b, b), 2.0)),
    lambda a, b: ops.multiply(a, a),
    lambda a, b: ops.sin(a),
    lambda a, b: ops.tanh(a),
    lambda a, b: ops.negative(a),
    lambda a, b: ops.sum(a, keepdims=True),
    lambda a, b: ops.mean(a, axis=-1, keepdims=True) if a.ndim else a,
    lambda a, b: ops.getitem(a, index=(..., [0, 0, -1])) if a.ndim else a,
    lambda a, b: ops.getitem(a, index=(..., slice(None, None, -1))) if a.ndim else a,
    lambda a, b: ops.reshape(ops.reshape(a, shape=(-1,)), shape=a.shape),
    lambda a, b: ops.transpose(ops.transpose(a)),
    lambda a, b: ops.broadcast_to(a, shape=(2, 3)),
    lambda a, b: ops.where(np.array([True, False, True]), a, b),
    lambda a, b: ops.sum(ops.stack(ops.broadcast_to(a, shape=(2, 3)), ops.broadcast_to(b, shape=(2, 3))), axis=0),
    square_product,
]


def program(seed: int):
    """A function of a list of inputs, Tensors or arrays, to a scalar; and the arrays to call it on."""
    rng = np.random.default_rng(seed)
    leaves = [rng.standard_normal(SHAPES[i]) for i in rng.integers(0, len(SHAPES), size=3)]
    plan = [(rng.integers(len(STEPS)), *rng.random(2)) for _ in range(12)]
    weight = rng.standard_normal((2, 3))

    def run(inputs):
        values = list(inputs)
        for step, one, other in plan:
            made = STEPS[step](values[int(one * len(values))], values[int(other * len(values))])
            values.append(made)
        last = [ops.sum(ops.multiply(ops.broadcast_to(v, shape=(2, 3)), weight)) for v in values[-3:]]
        return ops.add(ops.add(last[0], last[1]), last[2])

    return run, leaves


@pytest.mark.parametrize("seed", range(60))
def test_the_gradient_of_a_random_program_is_the_complex_step(seed):
    run, arrays = program(seed)
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    y = run(leaves)
    gradients = grad(y, leaves, retain_graph=True)
    rng = np.random.default_rng(seed + 1000)
    for _ in range(2):
        directions = [rng.standard_normal(a.shape) for a in arrays]
        slope = np.imag(run([a + 1e-30j * d for a, d in zip(arrays, directions)])) / 1e-30
        found = sum(np.sum(g * d) for g, d in zip(gradients, directions))
        scale = sum(np.sum(np.abs(g * d)) for g, d in zip(gradients, directions))
        assert abs(found - slope) <= 1e-12 * (scale + 1)


@pytest.mark.parametrize("seed", range(20))
def test_backward_grad_and_checked_mode_give_the_same_numbers(seed):
    run, arrays = program(seed)
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    y = run(leaves)
    together = grad(y, leaves, retain_graph=True)
    for leaf, gradient in zip(leaves, together):
        np.testing.assert_array_equal(grad(y, leaf, retain_graph=True), gradient)
    y.backward()
    for leaf, gradient in zip(leaves, together):
        np.testing.assert_array_equal(np.zeros(leaf.shape) if leaf.grad is None else leaf.grad, gradient)
    with checked():
        for again, gradient in zip(grad(run(leaves), leaves), together):
            np.testing.assert_array_equal(again, gradient)
    with higher_order():
        for again, gradient in zip(grad(run(leaves), leaves), together):
            np.testing.assert_allclose(again.data, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("seed", range(20))
def test_the_second_derivative_is_symmetric_and_agrees_with_differences(seed):
    run, arrays = program(seed)
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    rng = np.random.default_rng(seed + 2000)
    u, v = ([rng.standard_normal(a.shape) for a in arrays] for _ in range(2))

    def product(direction):
        with higher_order():
            gradients = grad(run(leaves), leaves)
            along = sum((g * d).sum() for g, d in zip(gradients, direction))
            return grad(along, leaves) if along.requires_grad else [Tensor(np.zeros(a.shape)) for a in arrays]

    def gradient_at(step):
        moved = [Tensor(a + step * d, requires_grad=True) for a, d in zip(arrays, u)]
        return grad(run(moved), moved)

    hu, hv = product(u), product(v)
    uhv, vhu = (sum(np.sum(d * h.data) for d, h in zip(ds, hs)) for ds, hs in ((u, hv), (v, hu)))
    assert uhv == pytest.approx(vhu, rel=1e-9, abs=1e-9)
    step = 1e-6
    for h, above, below in zip(hu, gradient_at(step), gradient_at(-step)):
        np.testing.assert_allclose(
            h.data, (above - below) / (2 * step), rtol=1e-5, atol=1e-5 * (1 + np.abs(above).max())
        )
