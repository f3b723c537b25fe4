"""float16 is computed in float32 inside, so no sum overflows or loses digits; and float32 beside a large offset."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest

from nanograd_llm import Tensor, nn, ops
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.backend.arrays import SCALARS_WIDEN
from nanograd_llm.gradcheck.cases import samples
from nanograd_llm.ops import composed

V = 4000


def as_half(x):
    return x.astype(np.float16) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x


def with_gradients(function, arrays):
    """The first result of a function of arrays, and the gradient of each input."""
    tensors = [Tensor(x, requires_grad=True) for x in arrays]
    y = function(*tensors)
    y.backward(np.cos(np.arange(y.size)).reshape(y.shape).astype(np.float16).astype(y.dtype))
    return [y.numpy(), *(x.grad for x in tensors)]


def agrees(function, *arrays):
    half = [as_half(np.asarray(x)) for x in arrays]
    single = [x.astype(np.float32) if x.dtype == np.float16 else x for x in half]
    for found, expected in zip(with_gradients(function, half), with_gradients(function, single)):
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def random(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape)


x, row = random(8, V), np.ones(V)
LONG = {
    "sum of rows": (lambda a: ops.sum(a, axis=1), np.abs(x)),
    "sum of columns": (lambda a: ops.sum(a, axis=0), np.abs(x.T)),
    "mean": (lambda a: ops.mean(a, axis=0), x.T + 20),
    "var": (lambda a: ops.var(a, axis=-1), x + 20),
    "cumsum": (lambda a: ops.cumsum(a, axis=-1), np.abs(x)),
    "softmax": (ops.softmax, x),
    "log_softmax": (ops.log_softmax, x),
    "layernorm": (ops.layernorm, 10 * x + 50, row, row),
    "layernorm of large numbers": (ops.layernorm, 3000 * x, row, row),
    "rmsnorm": (ops.rmsnorm, 3000 * x, row),
    "matmul": (lambda a, b: a @ b, x, random(V, 8)),
    "einsum": (lambda a, b: ops.einsum("ij,jk->ik", a, b), x, random(V, 8)),
    "linear": (ops.linear, x, random(V, 8), random(8)),
    "a row that is broadcast": (lambda a, b: a + b, random(V, 8), random(8)),
    "cross_entropy": (lambda a: ops.cross_entropy(a, np.arange(8)), 3 * x),
    "embedding": (lambda a: ops.embedding(a, np.zeros(V, int)), random(4, 8)),
    "attention": (lambda q, k, v: ops.attention(q, k, v, causal=True), *random(3, 2, 2, 300, 8)),
    "gelu_exact": (ops.gelu_exact, 10 * x),
    "gelu": (ops.gelu, 10 * x),
    "mse": (ops.mse, 20 * x, x),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_sum_or_a_large_number_in_float16_is_as_in_float32(name):
    agrees(*LONG[name])


@pytest.mark.parametrize("name", sorted(set(registry) - {"cast"}))
def test_every_op_gives_in_float16_what_float32_gives_rounded(name):
    op = registry[name]
    for case in samples.draw_cases(op, np.random.default_rng(0), 3):
        inputs, static = case.inputs, case.static
        half = [as_half(np.asarray(a)) if isinstance(a, np.ndarray) else a for a in inputs]
        single = [a.astype(np.float32) if getattr(a, "dtype", None) == np.float16 else a for a in half]
        found, expected = op(*half, **static), op(*single, **static)
        assert found.dtype == (np.float16 if expected.dtype == np.float32 else expected.dtype)
        assert np.array_equal(found, expected.astype(found.dtype), equal_nan=True)


HALF = np.arange(3, dtype=np.float16)


@pytest.mark.parametrize("other", [2, 2.0, True, np.float16(2), np.arange(3, dtype=np.int8), HALF > 0, HALF])
@pytest.mark.parametrize("op", [ops.add, ops.multiply])
def test_the_dtype_is_float16_where_it_is_in_numpy(op, other):
    assert op(HALF, other).dtype == op(Tensor(HALF), other).dtype == (HALF + other).dtype == np.float16


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("op", [ops.add, ops.multiply, ops.matmul, ops.mse])
def test_beside_a_wider_array_the_dtype_is_as_in_numpy(op, dtype):
    if SCALARS_WIDEN and op is ops.matmul:
        pytest.skip("NumPy 1 takes the dtype of a result without axes from its value")
    other = np.arange(3).astype(dtype)
    assert op(HALF, other).dtype == op(Tensor(HALF), other).dtype == (HALF + other).dtype


@pytest.mark.parametrize("number", [np.float32(2), np.float64(2), [2.0, 2.0, 2.0]])
def test_a_number_or_list_beside_a_tensor_of_float16_takes_its_dtype(number):
    assert (Tensor(HALF) * number).dtype == np.float16


def test_float16_that_was_pickled_is_computed_in_float32_too():
    rows = (200 * random(3, 64)).astype(np.float16)
    ones, zeros = np.ones(64, np.float16), np.zeros(64, np.float16)
    pickled = pickle.loads(pickle.dumps([rows, ones, zeros]))
    assert pickled[0].dtype is not rows.dtype
    expected = ops.layernorm(rows, ones, zeros)
    np.testing.assert_array_equal(ops.layernorm(*pickled), expected)
    np.testing.assert_array_equal(ops.layernorm(*map(Tensor, pickled)).data, expected)


@pytest.mark.parametrize("layer", [nn.LayerNorm(64), nn.RMSNorm(64), nn.Linear(64, 8), nn.MultiHeadAttention(64, 4)])
def test_a_layer_of_float16_gives_float16_and_agrees_with_float32(layer):
    numbers = random(2, 16, 64).astype(np.float16)
    expected = layer.astype(np.float32)(numbers.astype(np.float32)).numpy()
    found = layer.astype(np.float16)(numbers).numpy()
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2 * np.abs(expected).max())


@pytest.mark.parametrize("layernorm", [ops.layernorm, composed.layernorm])
@pytest.mark.parametrize("C", [64, 768])
def test_layernorm_in_float32_is_exact_beside_an_offset_of_10_000(C, layernorm):
    single = [a.astype(np.float32) for a in (random(64, C) + 10_000, random(C), random(C))]
    for found, expected in zip(*(with_gradients(layernorm, a) for a in (single, [a.astype(float) for a in single]))):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_row_beside_a_large_offset_changes_no_bit_of_the_other_rows():
    rows, w, b = (a.astype(np.float32) for a in (random(5, 64), random(64), random(64)))
    alone = ops.layernorm(rows, w, b)
    rows[2] += 10_000
    together = ops.layernorm(rows, w, b)
    np.testing.assert_array_equal(np.delete(together, 2, axis=0), np.delete(alone, 2, axis=0))


@pytest.mark.parametrize("factor", [1, random(64)])
def test_layernorm_of_the_largest_numbers_of_float32_gives_no_warning(factor):
    rows = (np.full((2, 64), 1.5 * 2.0**127) * np.sign(factor)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = ops.layernorm(rows, np.ones(64, np.float32), np.zeros(64, np.float32))
    assert np.isfinite(y).all()
