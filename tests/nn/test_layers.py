"""The basic layers: results, initial values, and when dropout is active."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanograd_llm import Tensor, grad, nn
from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.backend.randomness import noise
from nanograd_llm.errors import ConfigError, GraphError, ShapeError
from nanograd_llm.ops import sequence_mask


def test_linear_is_x_w_plus_b_over_the_last_axis(rng: np.random.Generator) -> None:
    layer = nn.Linear(3, 5, rng=rng).astype(np.float64)
    layer.bias.data[:] = rng.standard_normal(5)
    x = rng.standard_normal((2, 4, 3))
    assert np.allclose(layer(x).data, x @ layer.weight.data + layer.bias.data, rtol=1e-14)


def test_linear_keeps_the_variance_and_starts_without_bias(rng: np.random.Generator) -> None:
    layer = nn.Linear(400, 300, rng=rng)
    assert layer.weight.data.std() == pytest.approx(1 / 20, rel=0.02)
    assert not layer.bias.data.any()
    assert nn.Linear(2, 2, bias=False).bias is None


def test_embedding_looks_rows_up(rng: np.random.Generator) -> None:
    table = nn.Embedding(7, 3, rng=rng)
    ids = np.array([[0, 6, 6]])
    assert np.array_equal(table(ids).data, table.weight.data[ids])


def test_layernorm_starts_as_mean_zero_variance_one(rng: np.random.Generator) -> None:
    y = nn.LayerNorm(64)(rng.standard_normal((5, 64)) * 3 + 7).data
    assert np.allclose(y.mean(axis=-1), 0, atol=1e-6)
    assert np.allclose(y.var(axis=-1), 1, atol=1e-4)


def test_rmsnorm_starts_as_root_mean_square_one(rng: np.random.Generator) -> None:
    y = nn.RMSNorm(64)(rng.standard_normal((5, 64)) * 3 + 7).data
    assert np.allclose((y * y).mean(axis=-1), 1, atol=1e-4)


def test_the_same_generator_gives_the_same_weights() -> None:
    a, b = (nn.MLP(4, rng=np.random.default_rng(3)) for _ in range(2))
    assert all(np.array_equal(p.data, q.data) for p, q in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 4), nn.LayerNorm(4), nn.RMSNorm(4), nn.MLP(4, dropout=0.5), nn.Block(4, 2, dropout=0.5)]
)
def test_a_float32_layer_stays_float32(layer: Any, rng: np.random.Generator) -> None:
    x = Tensor(rng.standard_normal((2, 3, 4), dtype=np.float32), requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    assert y.dtype == np.float32
    cotangent = rng.standard_normal(y.shape, dtype=np.float32)
    assert {g.dtype for g in grad(y, [x, *layer.parameters()], cotangent)} == {np.dtype(np.float32)}


def test_dropout_zeroes_the_given_share_and_scales_up_the_rest() -> None:
    y = nn.Dropout(0.25)(np.ones(10_000, np.float32))
    kept = y != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.02)
    assert np.allclose(y[kept], 4 / 3)


def test_dropout_is_determined_by_the_noise_block() -> None:
    dropout, x = nn.Dropout(0.5), np.ones((3, 50), np.float32)

    def two_masks(*key: int) -> list[bytes]:
        with noise(*key):
            return [dropout(x).tobytes(), dropout(x).tobytes()]

    assert two_masks(1, 2) == two_masks(1, 2)
    assert len({*two_masks(1, 2), *two_masks(1, 3), *two_masks(2, 2)}) == 6
    assert dropout(x).tobytes() != dropout(x).tobytes()  # a random mask each time


@pytest.mark.parametrize("dropout", [nn.Dropout(0.5).eval(), nn.Dropout(0.0)])
def test_dropout_changes_nothing_in_eval_mode_or_at_rate_zero(dropout: nn.Dropout) -> None:
    x = Tensor(np.ones(5))
    assert dropout(x) is x


@pytest.mark.parametrize("rate", [1.0, -0.1, 1.5, float("nan"), True, "0.1", None])
def test_an_invalid_dropout_rate_is_refused(rate: Any) -> None:
    with pytest.raises(ConfigError, match="dropout must be a finite number with 0 ≤ dropout < 1"):
        nn.Dropout(rate)


def test_a_block_adds_attention_and_mlp_of_the_normalised_stream(rng: np.random.Generator) -> None:
    block = nn.Block(8, 2, rng=rng).astype(np.float64)
    x = rng.standard_normal((2, 5, 8))
    middle = x + block.attention(block.ln_1(x)).data
    assert np.allclose(block(x).data, middle + block.mlp(block.ln_2(middle)).data, rtol=1e-13)


def test_a_post_norm_block_normalises_after_each_addition(rng: np.random.Generator) -> None:
    block = nn.Block(8, 2, norm_first=False, causal=False, rng=rng).astype(np.float64)
    x, mask = rng.standard_normal((2, 5, 8)), sequence_mask([5, 3], 5)
    middle = block.ln_1(x + block.attention(x, None, mask).data).data
    assert np.allclose(block(x, None, mask).data, block.ln_2(middle + block.mlp(middle).data).data, rtol=1e-13)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_block_attends_to_its_context_between_attention_and_mlp(norm_first: bool, rng: np.random.Generator) -> None:
    block = nn.Block(8, 2, norm_first=norm_first, cross=True, rng=rng).astype(np.float64)
    x, context, mask = rng.standard_normal((2, 5, 8)), rng.standard_normal((2, 3, 8)), sequence_mask([1, 3], 3)

    def add(norm: Any, part: Any, x: np.ndarray) -> np.ndarray:
        return np.asarray((x + part(norm(x)).data) if norm_first else norm(x + part(x).data).data)

    y = add(block.ln_1, block.attention, x)
    y = add(block.ln_cross, lambda x: block.cross_attention(x, context, mask), y)
    assert np.allclose(block(x, context, None, mask).data, add(block.ln_2, block.mlp, y), rtol=1e-13)


# The key-value cache


def test_a_cache_appends_and_returns_all_stored_keys(rng: np.random.Generator) -> None:
    cache = nn.KeyValueCache(2, 3, 6, 4, np.float32)
    keys, values = rng.standard_normal((2, 2, 3, 6, 4), dtype=np.float32)
    for start, end in [(0, 3), (3, 4), (4, 6)]:
        stored = cache.extend(keys[:, :, start:end], values[:, :, start:end])
        assert cache.length == end
        assert np.array_equal(stored[0], keys[:, :, :end])
        assert np.array_equal(stored[1], values[:, :, :end])


def test_a_full_cache_refuses_more_and_does_not_change(rng: np.random.Generator) -> None:
    cache = nn.KeyValueCache(1, 1, 3, 2, np.float64)
    two = rng.standard_normal((1, 1, 2, 2))
    cache.extend(two, two)
    with pytest.raises(ShapeError, match="the cache has 3 positions, 2 of them filled; got 2 more"):
        cache.extend(two, two)
    assert cache.length == 2


def test_attention_with_a_cache_equals_attention_without(rng: np.random.Generator) -> None:
    layer = nn.MultiHeadAttention(8, 2, rng=rng).astype(np.float64)
    x = rng.standard_normal((3, 7, 8))
    cache = nn.KeyValueCache(3, 2, 7, 4, np.float64)
    with no_grad():
        parts = [layer(x[:, start:end], cache=cache).data for start, end in [(0, 4), (4, 5), (5, 7)]]
    assert np.allclose(np.concatenate(parts, axis=1), layer(x).data, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_block_with_caches_equals_a_block_without_and_reads_its_context_once(
    norm_first: bool, rng: np.random.Generator
) -> None:
    block = nn.Block(8, 2, norm_first=norm_first, cross=True, rng=rng).astype(np.float64)
    x, context = rng.standard_normal((3, 7, 8)), rng.standard_normal((3, 4, 8))
    mask, context_mask = sequence_mask([7, 7, 6], 7)[:, ::-1], sequence_mask([4, 1, 3], 4)
    cache, cross_cache = nn.KeyValueCache(3, 2, 7, 4, np.float64), nn.KeyValueCache(3, 2, 4, 4, np.float64)
    with no_grad():
        parts = []
        for start, end in [(0, 4), (4, 5), (5, 7)]:
            given = context if start == 0 else None
            caches = {"cache": cache, "cross_cache": cross_cache}
            parts.append(block(x[:, start:end], given, mask[:, :end], context_mask, **caches).data)
    whole = block(x, context, mask, context_mask).data
    assert np.allclose(np.concatenate(parts, axis=1), whole, rtol=1e-12, atol=1e-14)


def test_a_cache_is_refused_while_recording(rng: np.random.Generator) -> None:
    layer = nn.MultiHeadAttention(8, 2, rng=rng)
    with pytest.raises(GraphError, match=r"inside no_grad\(\)"):
        layer(rng.standard_normal((1, 2, 8), dtype=np.float32), cache=nn.KeyValueCache(1, 2, 4, 4, np.float32))
