"""Each step of the attention lesson equals the one before for suitable weights, forward and backward, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from nanograd_llm import Tensor, checked, grad, nn, ops
from nanograd_llm.backend.randomness import noise
from nanograd_llm.errors import ConfigError, ShapeError

B, T, C, H = 2, 5, 6, 3


def results(layer: nn.Module, x: np.ndarray, parameters: list[Any] | None = None) -> list[np.ndarray]:
    """y, its gradient with respect to x and to the parameters, all under one random cotangent."""
    leaf = Tensor(x, requires_grad=True)
    y = layer(leaf)
    cotangent = np.random.default_rng(5).standard_normal(y.shape)
    return [y.data, *grad(y, [leaf, *(layer.parameters() if parameters is None else parameters)], cotangent)]


def close(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(np.allclose(a, b, rtol=1e-12, atol=1e-13) for a, b in zip(found, expected, strict=True))


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((B, T, C))


def double(layer: nn.Module) -> Any:
    return layer.astype(np.float64)


def test_two_tokens_attend_as_computed_on_paper() -> None:
    # One head, C = 1: q = 2x, k = x, v = 3x for tokens x = (0, 1). Scores q kᵀ = [[0, 0], [0, 2]].
    # Causal: the first row sees itself; the second has weights (1, e²)/(1 + e²). With x = (0, 1), v = (0, 3).
    layer = double(nn.CausalAttention(1, 1))
    for linear, weight in ((layer.query, 2.0), (layer.key, 1.0), (layer.value, 3.0)):
        linear.weight.data[:] = weight
    x = np.array([[[0.0], [1.0]]])
    p = math.exp(2) / (1 + math.exp(2))
    assert np.allclose(layer.weights(x).data, [[[1, 0], [1 - p, p]]], rtol=1e-15)
    assert np.allclose(layer(x).data, [[[0], [3 * p]]], rtol=1e-15)


def test_self_attention_with_identity_weights_is_the_simplified_one(x: np.ndarray) -> None:
    simple, learned = nn.SimplifiedSelfAttention(), double(nn.SelfAttention(C, C))
    for layer, scale in ((learned.query, C**0.25), (learned.key, C**0.25), (learned.value, 1.0)):
        layer.weight.data[:] = scale * np.eye(C)  # the two fourth roots undo the division by √C
    assert np.allclose(learned.weights(x).data, simple.weights(x).data, rtol=1e-13)
    assert close(results(learned, x, []), results(simple, x))


def test_causal_attention_is_self_attention_over_the_tokens_so_far(x: np.ndarray, rng: np.random.Generator) -> None:
    full, causal = double(nn.SelfAttention(C, 4, rng=rng)), double(nn.CausalAttention(C, 4))
    causal.load_state_dict(full.state_dict())
    for t in range(T):
        so_far = full(x[:, : t + 1]).data[:, t]
        assert np.allclose(causal(x).data[:, t], so_far, rtol=1e-12)


def test_causal_attention_is_self_attention_under_a_mask(x: np.ndarray, rng: np.random.Generator) -> None:
    class Masked(nn.SelfAttention):
        def scores(self, x: Any) -> Tensor:
            return super().scores(x) + np.triu(np.full((T, T), -1e9), 1)

    masked, causal = double(Masked(C, 4, rng=rng)), double(nn.CausalAttention(C, 4))
    causal.load_state_dict(masked.state_dict())
    assert close(results(causal, x), results(masked, x))


def batched_from(heads: nn.MultiHeadList) -> Any:
    """The batched layer with the weights of a list of heads."""
    batched = double(nn.MultiHeadAttention(C, len(heads.heads)))
    parts = [getattr(head, part) for part in ("query", "key", "value") for head in heads.heads]
    batched.load_state_dict(
        {
            "qkv.weight": np.concatenate([part.weight.data for part in parts], axis=1),
            "qkv.bias": np.concatenate([part.bias.data for part in parts]),
            "out.weight": heads.out.weight.data,
            "out.bias": heads.out.bias.data,
        }
    )
    return batched


def head_list(rng: np.random.Generator, n_head: int = H, **options: Any) -> Any:
    heads = double(nn.MultiHeadList(C, n_head, rng=rng, **options))
    for parameter in heads.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    return heads


@pytest.mark.parametrize("n_head", [1, 2, 3, 6])
def test_the_batched_layer_equals_a_list_of_heads(n_head: int, x: np.ndarray, rng: np.random.Generator) -> None:
    heads = head_list(rng, n_head)
    batched = batched_from(heads)
    y, dx, dqkv, dqkv_bias, dout, dout_bias = results(batched, x)
    parts = [getattr(head, part) for part in ("query", "key", "value") for head in heads.heads]
    wanted = [*(part.weight for part in parts), *(part.bias for part in parts), *heads.out.parameters()]
    expected = results(heads, x, wanted)
    n = len(parts)
    joined = [np.concatenate(expected[2 : 2 + n], axis=1), np.concatenate(expected[2 + n : 2 + 2 * n])]
    assert close([y, dx, dqkv, dqkv_bias, dout, dout_bias], [*expected[:2], *joined, *expected[2 + 2 * n :]])
    assert np.allclose(batched.weights(x).data, heads.weights(x).data, rtol=1e-12)


def test_a_single_batched_head_equals_causal_attention(x: np.ndarray, rng: np.random.Generator) -> None:
    causal = double(nn.CausalAttention(C, C, bias=True, rng=rng))
    batched = double(nn.MultiHeadAttention(C, 1))
    parts = (causal.query, causal.key, causal.value)
    batched.qkv.weight.data[:] = np.concatenate([part.weight.data for part in parts], axis=1)
    batched.out.weight.data[:] = np.eye(C)
    assert close(results(batched, x, []), results(causal, x, []))


# Padding and context


MASK = ops.sequence_mask([T, 2], T)


def test_without_causal_a_head_is_self_attention(x: np.ndarray, rng: np.random.Generator) -> None:
    single = double(nn.SelfAttention(C, C, rng=rng))
    batched = double(nn.MultiHeadAttention(C, 1, causal=False))
    parts = (single.query, single.key, single.value)
    batched.qkv.weight.data[:] = np.concatenate([part.weight.data for part in parts], axis=1)
    batched.out.weight.data[:] = np.eye(C)
    assert close(results(batched, x, []), results(single, x, []))
    assert np.allclose(batched.weights(x).data[:, 0], single.weights(x).data, rtol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_a_padded_text_has_the_attention_of_the_text_alone(
    causal: bool, x: np.ndarray, rng: np.random.Generator
) -> None:
    layer = double(nn.MultiHeadAttention(C, H, causal=causal, rng=rng))
    together, weights = layer(x, None, MASK).data, layer.weights(x, None, MASK).data
    for number, length in enumerate([T, 2]):
        alone = x[number : number + 1, :length]
        assert np.allclose(together[number, :length], layer(alone).data[0], rtol=1e-12)
        assert np.allclose(weights[number, :, :length, :length], layer.weights(alone).data[0], rtol=1e-12)
        assert not weights[number, :, :, length:].any()


def crossing_from(layer: Any) -> Any:
    """A cross-attention layer with the weights of a self-attention layer."""
    state = layer.state_dict()
    for name in ("qkv.weight", "qkv.bias"):
        joined = state.pop(name)
        state[name.replace("qkv", "q")], state[name.replace("qkv", "kv")] = joined[..., :C], joined[..., C:]
    cross = double(nn.MultiHeadAttention(C, H, cross=True))
    cross.load_state_dict(state)
    return cross


@pytest.mark.parametrize("causal", [False, True])
def test_rows_of_real_tokens_attend_as_they_do_in_a_padded_batch(causal: bool, rng: np.random.Generator) -> None:
    mask = np.array([[True, True, False], [True, False, True]])
    x, layer = rng.standard_normal((2, 3, 4)), nn.MultiHeadAttention(4, 2, causal=causal).astype(np.float64)
    assert np.allclose(layer(x[mask], None, mask).data, layer(x, None, mask).data[mask], rtol=1e-12)
    cross, own = nn.MultiHeadAttention(4, 2, cross=True).astype(np.float64), mask[:, ::-1]
    padded = cross(x, x, mask).data
    assert np.allclose(cross(x[own], x[mask], mask, own).data, padded[own], rtol=1e-12)
    assert np.allclose(cross(x[own], x, mask, own).data, padded[own], rtol=1e-12)
    with pytest.raises(ShapeError, match=r"4 real tokens \(N, C\) need a mask \(B, T\) with as many True; got None"):
        layer(x[mask])


def test_a_text_that_is_its_own_context_is_self_attention(x: np.ndarray, rng: np.random.Generator) -> None:
    layer = double(nn.MultiHeadAttention(C, H, causal=False, rng=rng))
    cross = crossing_from(layer)
    for mask in (None, MASK):
        assert np.allclose(cross(x, x, mask).data, layer(x, None, mask).data, rtol=1e-12)
        assert np.allclose(cross.weights(x, x, mask).data, layer.weights(x, None, mask).data, rtol=1e-12)


def test_forward_is_the_weights_times_the_values_for_each_form(x: np.ndarray, rng: np.random.Generator) -> None:
    context, mask = rng.standard_normal((B, 3, C)), ops.sequence_mask([1, 3], 3)
    layer = double(nn.MultiHeadAttention(C, H, cross=True, scale=0.3, rng=rng))
    values = layer.kv(context).data[..., C:].reshape(B, 3, H, C // H).swapaxes(1, 2)  # (B, S, C) -> (B, H, S, D)
    mixed = layer.weights(x, context, mask).data @ values
    assert np.allclose(layer(x, context, mask).data, layer.out(mixed.swapaxes(1, 2).reshape(x.shape)).data, rtol=1e-12)


def test_a_context_is_required_with_cross_and_refused_without_it(x: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="made with cross=True and needs a context"):
        double(nn.MultiHeadAttention(C, H, cross=True))(x)
    for layer in (nn.MultiHeadAttention(C, H), nn.Block(C, H)):
        with pytest.raises(ShapeError, match="made without cross=True and takes no context"):
            double(layer)(x, x)


@pytest.mark.parametrize(
    "unused",
    [
        {"context": np.ones((B, 2, C))},
        {"context_mask": np.ones((B, 2), bool)},
        {"cross_cache": nn.KeyValueCache(B, H, 2, 2, float)},
    ],
)
def test_a_block_without_cross_attention_refuses_every_argument_of_it(x: np.ndarray, unused: dict) -> None:
    with pytest.raises(ShapeError, match="made without cross=True and takes no context, context_mask or cross_cache"):
        double(nn.Block(C, H))(x, **unused)


STAGES = [
    nn.SimplifiedSelfAttention(),
    nn.SelfAttention(C, 4, rng=np.random.default_rng(1)),
    nn.CausalAttention(C, 4, rng=np.random.default_rng(2)),
    nn.MultiHeadList(C, H, rng=np.random.default_rng(3)),
    nn.MultiHeadAttention(C, H, rng=np.random.default_rng(4)),
    nn.MultiHeadAttention(C, H, causal=False, rng=np.random.default_rng(5)),
]
named = pytest.mark.parametrize("layer", STAGES, ids=lambda layer: type(layer).__name__)
causal_named = pytest.mark.parametrize("layer", STAGES[2:5], ids=lambda layer: type(layer).__name__)


@named
def test_the_weights_of_a_row_sum_to_one(layer: Any, x: np.ndarray) -> None:
    weights = layer.weights(Tensor(x)).data
    assert weights.shape[-2:] == (T, T)
    assert (weights >= 0).all()
    assert np.allclose(weights.sum(axis=-1), 1, rtol=1e-12)


@causal_named
def test_weights_of_later_tokens_are_zero(layer: Any, x: np.ndarray) -> None:
    assert not np.triu(layer.weights(x).data, 1).any()


@causal_named
def test_later_tokens_never_change_earlier_outputs(layer: Any, x: np.ndarray, rng: np.random.Generator) -> None:
    before = layer(x).data
    for t in range(1, T):
        changed = x.copy()
        changed[:, t:] = 100 * rng.standard_normal((B, T - t, C))
        after = layer(changed).data
        assert np.array_equal(after[:, :t], before[:, :t])
        assert not np.allclose(after[:, t:], before[:, t:])


@pytest.mark.parametrize("layer", [*STAGES[:2], STAGES[5]], ids=lambda layer: type(layer).__name__)
def test_without_a_mask_later_tokens_do_change_earlier_outputs(layer: Any, x: np.ndarray) -> None:
    changed = x.copy()
    changed[:, -1] += 1
    assert not np.allclose(layer(Tensor(changed)).data[:, 0], layer(Tensor(x)).data[:, 0])


@pytest.mark.parametrize("batched", [False, True])
def test_dropout_of_the_weights_is_repeatable_under_noise(
    batched: bool, x: np.ndarray, rng: np.random.Generator
) -> None:
    layer = nn.MultiHeadAttention(C, H, dropout=0.4, rng=rng) if batched else head_list(rng, dropout=0.4)
    double(layer)

    def run(*key: int) -> bytes:
        with noise(*key):
            return b"".join(r.tobytes() for r in results(layer, x))

    assert run(1, 2) == run(1, 2)
    assert run(1, 2) != run(1, 3)
    assert layer.eval() and run(1, 2) == run(1, 3)


def test_dropped_weights_are_zero_and_the_kept_ones_scaled_up(rng: np.random.Generator) -> None:
    layer = double(nn.CausalAttention(2, 2, dropout=0.5))
    layer.value.weight.data[:] = np.eye(2)
    x = np.zeros((1, 4, 2))
    x[0, :, 0] = 1  # equal scores: row t has weights 1/(t+1), each doubled or dropped
    layer.query.weight.data[:] = 0
    with noise(3):
        y = layer(x).data[0, :, 0]
    assert y.tolist() == pytest.approx([2 * kept / (t + 1) for t, kept in enumerate(np.round(y * [1, 2, 3, 4] / 2))])
    assert len(set(y.tolist())) > 1


@pytest.mark.parametrize("n_head", [0, -1, 4, True, 2.0])
@pytest.mark.parametrize("layer", [nn.MultiHeadList, nn.MultiHeadAttention])
def test_heads_that_do_not_divide_the_channels_are_refused(layer: Any, n_head: Any) -> None:
    with pytest.raises(ConfigError, match="n_head"):
        layer(C, n_head)


@named
def test_every_stage_runs_in_checked_mode(layer: Any, rng: np.random.Generator) -> None:
    x = Tensor(rng.standard_normal((B, T, C), dtype=np.float32), requires_grad=True)
    with checked():
        layer.weights(x)
        ops.sum(layer(x)).backward()
