"""Ops of two operands give each one its gradient, summed over the axes along which it was broadcast."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm import Tensor, ops
from nanograd_llm.gradcheck import assert_gradients

OPS = [ops.add, ops.subtract, ops.multiply, ops.divide, ops.power, ops.maximum, ops.minimum, ops.logaddexp]


@pytest.mark.parametrize("shapes", [((3, 4), (3, 4)), ((2, 3, 4), (3, 1)), ((1, 4), (2, 3, 1))], ids=str)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_gradients_of_operands_that_broadcast_are_right(op, shapes, rng):
    a, b = (rng.uniform(0.5, 2, shape) for shape in shapes)
    assert_gradients(op, a, b)
    assert_gradients(op, b, a)


def where(a, b):
    return ops.where(np.array([True, False]), a, b)


@pytest.mark.parametrize("op", [*OPS, where], ids=lambda op: getattr(op, "name", "where"))
@pytest.mark.parametrize("shape", [(2,), ()])
def test_a_python_number_beside_float32_stays_float32(op, shape):
    x = np.full(shape, 0.5, np.float32)
    assert {op(x, 1.5).dtype, op(1.5, x).dtype, op(Tensor(x), 1.5).dtype, op(2, Tensor(x)).dtype} == {x.dtype}
