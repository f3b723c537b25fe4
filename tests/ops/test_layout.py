"""Ops that move numbers: axes given as one number, splitting, and lists as indices and inputs."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm import Tensor, grad, ops
from nanograd_llm.errors import ShapeError


def leaf(values):
    return Tensor(np.array(values, dtype=np.float64), requires_grad=True)


def test_transpose_treats_axis_0_as_an_axis_and_not_as_none():
    x = leaf([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    with pytest.raises(ShapeError, match=r"transpose got \(2, 3\)"):
        x.transpose(0)
    assert (
        x.transpose().shape == x.transpose(None).shape == x.transpose(1, 0).shape == x.transpose((1, 0)).shape == (3, 2)
    )


@pytest.mark.parametrize("axes", [0, -1])
def test_a_vector_transposed_by_its_one_axis_has_a_gradient(axes):
    x = leaf([1.0, 2.0])
    assert grad(ops.transpose(x, axes=axes), x, np.array([3.0, 4.0])).tolist() == [3, 4]


@pytest.mark.parametrize("integer", [int, np.int64, np.uint8])
def test_split_accepts_any_kind_of_integer(integer):
    assert [part.data.tolist() for part in ops.split(leaf([1, 2, 3]), integer(3))] == [[1], [2], [3]]
    assert [part.shape for part in ops.split(leaf(np.ones(600)), integer(3))] == [(200,)] * 3


def test_split_cuts_an_axis_of_size_zero_into_as_many_empty_parts():
    x = leaf(np.ones((2, 0)))
    parts = ops.split(x, 3, axis=-1)
    assert [part.shape for part in parts] == [(2, 0)] * 3
    assert grad(parts[1], x, np.ones((2, 0))).shape == (2, 0)


@pytest.mark.parametrize("index", [[0, 1], ([0, 1],), [[0, 1]], (slice(None), [0, 1])])
def test_a_list_used_as_index_may_be_changed_before_backward(index):
    x = leaf(np.arange(9).reshape(3, 3))
    y = x[index]
    cotangent = np.ones(y.shape)
    expected = grad(y, x, cotangent, retain_graph=True)
    indices = index[-1] if isinstance(index, tuple) or isinstance(index[0], list) else index
    indices[:] = [2, 2]
    np.testing.assert_array_equal(grad(y, x, cotangent), expected)


def test_a_tensor_in_an_index_acts_as_its_array():
    x = leaf([1.0, 2.0, 3.0])
    assert x[Tensor(np.array([2, 0]))].data.tolist() == [3, 1]


def test_ops_accept_lists_like_arrays():
    assert ops.softmax([0.0, 0.0]).tolist() == [0.5, 0.5]
    np.testing.assert_array_equal(ops.layernorm([1.0, 3.0], [2.0, 2.0], (0.5, 0.5), eps=0.0), [-1.5, 2.5])
    assert ops.embedding([[1.0], [2.0]], [1, 0]).tolist() == [[2], [1]]
    with pytest.raises(ShapeError, match="softmax got"):
        ops.softmax([[1.0], [2.0, 3.0]])
