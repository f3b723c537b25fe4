"""Layer functions beyond right gradients: extreme values, masks, and how much is held at once."""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
import tracemalloc
import warnings

import numpy as np
import pytest

from nanograd_llm import ops
from nanograd_llm.autograd.modes import higher_order
from nanograd_llm.autograd.tensor import Tensor, array_of, grad, registry
from nanograd_llm.backend.threads import blas_threads
from nanograd_llm.errors import ConfigError, DtypeError, IndexRangeError, ShapeError
from nanograd_llm.ops import composed

INF = np.inf


def leaf(values, dtype=np.float64):
    return Tensor(np.array(values, dtype=dtype), requires_grad=True)


@pytest.mark.parametrize("form", [ops.softmax, composed.softmax])
def test_a_fully_masked_softmax_row_gives_zeros_and_zero_gradient(form):
    x = leaf([[-INF, -INF], [0.0, -INF]])
    y = form(x)
    assert y.data.tolist() == [[0, 0], [1, 0]]
    assert grad(y, x, np.array([[3.0, 5.0], [7.0, 11.0]])).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("form", [ops.logsumexp, composed.logsumexp])
def test_a_fully_masked_logsumexp_is_minus_infinity_with_zero_gradient(form):
    x = leaf([[-INF, -INF], [1.0, -INF]])
    y = form(x)
    assert y.data.tolist() == [-INF, 1]
    assert grad(y, x, np.array([3.0, 5.0])).tolist() == [[0, 0], [5, 0]]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("form", [ops.cross_entropy, composed.cross_entropy])
def test_a_fully_masked_row_has_infinite_loss_and_zero_gradient(form, smoothing):
    logits = leaf([[-INF, -INF, -INF], [0.5, 1.0, 2.0]])
    other = leaf([[0.5, 1.0, 2.0]])
    with np.errstate(all="raise"):
        loss = form(logits, np.array([1, 2]), label_smoothing=smoothing)
        gradient = grad(loss, logits)
    assert loss.item() == INF
    expected = grad(form(other, np.array([2]), label_smoothing=smoothing), other)
    np.testing.assert_allclose(gradient, [[0, 0, 0], expected[0] / 2], rtol=1e-15)


def test_under_higher_order_a_fully_masked_row_has_zero_gradient():
    logits = leaf([[-INF, -INF], [0.0, 0.0]])
    with higher_order():
        gradient = grad(ops.cross_entropy(logits, np.array([1, 0])), logits)
    assert gradient.data.tolist() == [[0, 0], [-0.25, 0.25]]


def test_a_row_of_minus_infinite_logits_has_no_gradient_in_linear_cross_entropy():
    x, w = leaf([[-1e200], [0.0]]), leaf([[1e200], [2e200]])
    with np.errstate(over="ignore"):  # the product: both logits of the first row are -inf
        loss = ops.linear_cross_entropy(x, w, np.array([1, 0]))
    dx, dw = grad(loss, [x, w])
    assert loss.item() == INF
    np.testing.assert_allclose(dx, [[0], [0.25e200]])
    assert dw.tolist() == [[0], [0]]


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5, math.nan, True, "0.1"])
@pytest.mark.parametrize("form", [ops.cross_entropy, composed.cross_entropy])
def test_a_label_smoothing_outside_its_range_is_refused(form, smoothing):
    with pytest.raises(ConfigError, match="0 ≤ label_smoothing < 1"):
        form(np.zeros((1, 3)), np.array([0]), label_smoothing=smoothing)
    with pytest.raises(ConfigError, match="0 ≤ label_smoothing < 1"):
        ops.linear_cross_entropy(np.zeros((1, 2)), np.zeros((3, 2)), np.array([0]), label_smoothing=smoothing)


@pytest.mark.parametrize("form", [ops.gelu, composed.gelu, ops.gelu_exact, composed.gelu_exact, ops.silu])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations_of_large_inputs_are_x_or_0_with_slope_1_or_0(form, dtype):
    size = np.array([1e2, 1e5, 1e15, 1e20, 1e30, 1e38], dtype=dtype)
    x = leaf(np.concatenate([size, -size]), dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = form(x)
        gradient = grad(y, x, np.ones(12, dtype=dtype))
    atol = 1e-40 if form is ops.silu else 0  # silu(-100) is -4e-42
    np.testing.assert_allclose(y.data, [*size.tolist(), *[0] * 6], rtol=0, atol=atol)
    np.testing.assert_allclose(gradient, [1] * 6 + [0] * 6, rtol=0, atol=atol)


def test_erf_never_overflows():
    x = leaf([-1e30, -1e5, 1e5, 1e30], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        y = ops.erf(x)
        assert grad(y, x, np.ones(4, np.float32)).tolist() == [0] * 4
    assert y.data.tolist() == [-1, -1, 1, 1]


@pytest.mark.parametrize("axis", [None, (0, 1), (-1, 0)])
def test_a_softmax_over_all_axes_is_one_over_the_flat_array(axis):
    rng = np.random.default_rng(0)
    values, cotangent = rng.standard_normal((2, 2, 3))
    for form in (ops.softmax, ops.log_softmax, ops.logsumexp):
        x, flat = leaf(values), leaf(values.ravel())
        y, z = form(x, axis=axis), form(flat)
        np.testing.assert_allclose(y.data.ravel(), z.data.ravel(), rtol=1e-14)
        dy = cotangent if y.shape else cotangent[0, 0]
        np.testing.assert_allclose(grad(y, x, dy).ravel(), grad(z, flat, np.ravel(dy).reshape(z.shape)), rtol=1e-13)


@pytest.mark.parametrize("form", [ops.softmax, ops.log_softmax, ops.logsumexp])
@pytest.mark.parametrize("axis", [2, -3, (0, 0), True, 1.0])
def test_a_softmax_over_an_axis_that_does_not_exist_is_refused(form, axis):
    with pytest.raises(ShapeError, match="ax"):
        form(np.ones((2, 3)), axis=axis)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_logits_are_exact(dtype, size):
    x = np.array([[size, -size, 0], [-size, -size, -size]], dtype=dtype)
    assert ops.softmax(x).tolist() == [[1, 0, 0], [dtype(1) / dtype(3)] * 3]
    expected = np.array([[0, -2 * size, -size], [-math.log(3)] * 3], dtype=dtype)
    np.testing.assert_allclose(ops.log_softmax(x), expected, rtol=4 * np.finfo(dtype).eps)
    loss = ops.cross_entropy(x, np.array([1, 0]))
    assert loss == pytest.approx((2 * size + math.log(3)) / 2, rel=float(4 * np.finfo(dtype).eps))


def as_linear(logits, targets, **static):
    """cross_entropy of these logits by linear_cross_entropy, with an identity matrix as the table."""
    return ops.linear_cross_entropy(logits, np.eye(logits.shape[-1], dtype=logits.dtype), targets, **static)


FAR_APART = [
    ([[1000, 999]], 0, math.log1p(math.exp(-1))),
    ([[15, 0]], 0, math.log1p(math.exp(-15))),
    ([[15, 0]], 1, 15 + math.log1p(math.exp(-15))),
    ([[0, 40, 0, -3]], 1, math.log1p(2 * math.exp(-40) + math.exp(-43))),
    ([[7, 7, -20]], 0, math.log(2) + math.log1p(math.exp(-27) / 2)),
    ([[-60, -75], [-75, -60]], [0, 1], math.log1p(math.exp(-15))),
]


@pytest.mark.parametrize("higher", [False, True], ids=["fused", "composed"])
@pytest.mark.parametrize("form", [ops.cross_entropy, as_linear])
@pytest.mark.parametrize(("logits", "target", "expected"), FAR_APART, ids=str)
def test_a_loss_in_float32_is_exact_whatever_its_size_and_the_logits_offset(logits, target, expected, form, higher):
    targets = np.broadcast_to(target, len(logits))
    for offset in (0, 64, -1024):
        x = leaf(np.array(logits) + offset, np.float32)
        with higher_order() if higher else contextlib.nullcontext():
            assert form(x, targets).item() == pytest.approx(expected, rel=3e-7)
            smooth = form(x, targets, label_smoothing=0.25).item()
        rows = np.log(np.sum(np.exp(np.array(logits) - np.max(logits)), axis=-1)) - np.mean(logits - np.max(logits), -1)
        assert smooth == pytest.approx(0.75 * expected + 0.25 * rows.mean(), rel=1e-6)


@pytest.mark.parametrize("higher", [False, True], ids=["fused", "composed"])
def test_log_softmax_and_logsumexp_in_float32_are_exact_where_one_term_outweighs_the_others(higher):
    x = leaf([[15.0, 0.0], [0.0, -15.0]], np.float32)
    with higher_order() if higher else contextlib.nullcontext():
        small = math.log1p(math.exp(-15))
        np.testing.assert_allclose(ops.log_softmax(x).data, [[-small, -15 - small]] * 2, rtol=3e-7)
        np.testing.assert_allclose(ops.logsumexp(x).data, [15 + small, small], rtol=3e-7)


def test_softmax_of_logits_around_1e4_is_as_exact_as_around_0():
    small = np.array([[0.0, 1.0, -2.0]])
    np.testing.assert_array_equal(ops.softmax(small + 1e4), ops.softmax(small))


@pytest.mark.parametrize("gelu", [ops.gelu, ops.gelu_exact])
def test_a_nan_changes_neither_a_large_neighbour_nor_its_slope(gelu):
    x = Tensor(np.array([np.nan, 1e30, -1e30], np.float32), requires_grad=True)
    y = gelu(x)
    y.backward(np.ones(3, np.float32))
    assert y.data[1:].tolist() == [x.data[1], 0] and x.grad[1:].tolist() == [1, 0]


def test_gelu_is_the_tanh_form_and_gelu_exact_the_other():
    x = np.linspace(-4, 4, 101)
    tanh_form = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x])
    np.testing.assert_allclose(ops.gelu(x), tanh_form, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(ops.gelu_exact(x), exact, rtol=1e-12, atol=1e-15)
    assert np.abs(tanh_form - exact).max() > 1e-4


def test_erf_in_float32_is_right_to_a_few_units_in_the_last_place_and_ends_at_one():
    x = np.concatenate([np.linspace(-5, 5, 20_001), [1e-30, 1e30, np.inf, -np.inf]]).astype(np.float32)
    exact = np.array([math.erf(v) for v in x.astype(float)])
    y = ops.erf(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, exact, rtol=6 * 2.0**-24, atol=0)
    assert (np.abs(y[np.abs(x) >= 4.9]) == 1).all() and (np.abs(y) <= 1).all()
    assert np.isnan(ops.erf(np.float32(np.nan)))


def test_erf_has_full_double_precision():
    x = np.concatenate([np.linspace(-7, 7, 2801), [0.0, 1e-300, 0.46875, 4.0, 1e30]])
    exact = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(ops.erf(x), exact, rtol=1e-15, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ignored_targets_change_neither_the_mean_nor_any_gradient(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 5))
    with_ignored = leaf(logits)
    kept = leaf(logits[[0, 2]])
    loss = ops.cross_entropy(with_ignored, np.array([1, -100, 4]), label_smoothing=smoothing)
    expected = ops.cross_entropy(kept, np.array([1, 4]), label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-15)
    gradient = grad(loss, with_ignored)
    assert not gradient[1].any()
    np.testing.assert_allclose(gradient[[0, 2]], grad(expected, kept), rtol=1e-14)


@pytest.mark.parametrize("form", [ops.cross_entropy, composed.cross_entropy])
def test_invalid_targets_are_refused(form):
    logits = np.zeros((2, 3))
    with pytest.raises(IndexRangeError, match="0 to 2; got 0 to 3"):
        form(logits, np.array([0, 3]))
    with pytest.raises(IndexRangeError, match="got -1"):
        form(logits, np.array([0, -1]))
    with pytest.raises(DtypeError, match="integers"):
        form(logits, np.array([0.0, 1.0]))
    with pytest.raises(ShapeError, match=r"expected \(2,\)"):
        form(logits, np.array([[0, 1]]))
    with pytest.raises(ShapeError, match="logits come first"):
        form(np.array([0, 1]), logits)
    with pytest.raises(ShapeError, match="none of 2 targets counts"):
        form(logits, np.array([-100, -100]))


def peak_of(f):
    tracemalloc.start()
    f()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_gpt2_vocabulary_at_1024_tokens_never_holds_all_logits():
    rng = np.random.default_rng(0)
    x = leaf(rng.standard_normal((1024, 32)), np.float32)
    w = leaf(rng.standard_normal((50257, 32)) * 0.1, np.float32)
    targets = rng.integers(50257, size=1024)
    all_logits = 4 * 1024 * 50257
    assert peak_of(lambda: grad(ops.linear_cross_entropy(x, w, targets), [x, w])) < 100e6 < all_logits / 2


@pytest.mark.parametrize(("channels", "kept"), [(6, "dw"), (7, "dlogits"), (9, "dlogits")])
def test_linear_cross_entropy_keeps_the_smaller_gradient_and_gives_that_of_its_composition(channels, kept):
    rng = np.random.default_rng(0)
    x, w = leaf(rng.standard_normal((7, channels))), leaf(rng.standard_normal((11, channels)))
    targets = np.array([1, 10, -100, 0, 5, 5, -100])
    loss = ops.linear_cross_entropy(x, w, targets)
    names = list(inspect.signature(ops.linear_cross_entropy.rule).parameters)[1:]
    saved = dict(zip(names, loss._node.saved))
    assert {name: saved[name] is not None for name in ("dw", "dlogits")} == {
        "dw": kept == "dw",
        "dlogits": kept != "dw",
    }
    cotangent = np.asarray(0.7)
    expected = grad(composed.linear_cross_entropy(x, w, targets), [x, w], cotangent)
    out = [np.full(t.shape, np.nan) for t in (x, w)]
    for found in (grad(loss, [x, w], cotangent, retain_graph=True), grad(loss, [x, w], cotangent, out=out)):
        for one, other in zip(found, expected):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("channels", "frozen"), [(3, False), (9, True)])
def test_linear_cross_entropy_in_many_blocks_equals_one(monkeypatch, channels, frozen):
    rng = np.random.default_rng(0)
    x, w = leaf(rng.standard_normal((7, channels))), leaf(rng.standard_normal((11, channels)))
    w.requires_grad = not frozen
    wanted = [x] if frozen else [x, w]
    targets = np.array([1, 10, -100, 0, 5, 5, -100])
    whole = ops.linear_cross_entropy(x, w, targets, label_smoothing=0.1)
    expected = [whole.item(), *grad(whole, wanted)]
    monkeypatch.setattr("nanograd_llm.ops.fused._BLOCK_NUMBERS", 22)  # two rows at a time
    blocks = ops.linear_cross_entropy(x, w, targets, label_smoothing=0.1)
    for found, value in zip([blocks.item(), *grad(blocks, wanted)], expected):
        np.testing.assert_allclose(found, value, rtol=1e-13, atol=1e-16)


def test_layernorm_of_a_number_is_refused():
    with pytest.raises(ShapeError, match="w has shape"):
        ops.layernorm(5.0, np.ones(3), np.ones(3))


@pytest.mark.parametrize("threads", [1, 2])
def test_layernorm_in_pieces_equals_its_definition_whatever_the_threads(monkeypatch, threads):
    monkeypatch.setattr("nanograd_llm.ops.fused._CACHED", 4)  # two rows at a time
    monkeypatch.setattr("nanograd_llm.backend.threads._WORTH_THREADS", 0)
    rng = np.random.default_rng(0)
    x, w, b = (leaf(rng.standard_normal(shape)) for shape in ((7, 4), 4, 4))
    x.data[3] += 1e9  # a row whose mean is far from 0, in the second piece
    cotangent = rng.standard_normal((7, 4))
    with blas_threads(threads):
        y = ops.layernorm(x, w, b)
        found = [y.data, *grad(y, [x, w, b], cotangent)]
    defined = composed.layernorm(x, w, b)
    for one, other in zip(found, [defined.data, *grad(defined, [x, w, b], cotangent)]):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("many", [512, 100])  # blocks of 32 queries, and of 64
def test_attention_to_many_keys_equals_its_definition(monkeypatch, many):
    monkeypatch.setattr(sys.modules[ops.attention.__module__], "MANY", many)
    rng = np.random.default_rng(0)
    q, k, v = inputs = [leaf(rng.standard_normal((2, 150, 3))) for _ in range(3)]
    cotangent = rng.standard_normal((2, 150, 3))
    y, defined = ops.attention(q, k, v, causal=True), composed.attention(q, k, v, causal=True)
    np.testing.assert_allclose(y.data, defined.data, rtol=1e-12, atol=1e-14)
    for one, other in zip(grad(y, inputs, cotangent), grad(defined, inputs, cotangent)):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)


def test_attention_computes_no_gradient_or_value_from_the_future():
    rng = np.random.default_rng(0)
    n = 150  # more than two blocks
    q, k, v = (leaf(rng.standard_normal((n, 4))) for _ in range(3))
    cotangent = np.zeros((n, 4))
    cotangent[70] = 1
    for gradient in grad(ops.attention(q, k, v, causal=True), [q, k, v], cotangent):
        assert gradient[70].any()
        assert not gradient[71:].any()


def test_attention_with_more_queries_than_keys_is_refused():
    with pytest.raises(ShapeError, match="3 queries and 2 keys"):
        ops.attention(np.zeros((3, 2)), np.zeros((2, 2)), np.zeros((2, 2)), causal=True)


WIDTH = r"the last axis must be 3 \* n_head \* D with D at least 1; it is"


@pytest.mark.parametrize("form", [ops.multi_head_attention, composed.multi_head_attention])
@pytest.mark.parametrize(
    ("shape", "n_head", "said"),
    [
        *(((1, 2, 6), n_head, f"n_head is {n_head}") for n_head in (0, -1, -2)),
        *(((*lead, 0), 2, f"{WIDTH} 0") for lead in ((2, 3), (0, 0))),
        ((1, 2, 18), 4, f"{WIDTH} 18, and n_head is 4"),
    ],
)
def test_self_attention_needs_heads_and_channels_that_they_divide(form, shape, n_head, said):
    with pytest.raises(ShapeError, match=said):
        form(np.zeros(shape), n_head=n_head, causal=True)


@pytest.mark.parametrize("lead", [(2,), (0,), (2, 0, 3)])
@pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
def test_a_normalised_axis_of_size_zero_gives_empty_results_and_gradients(name, lead):
    inputs = [leaf(np.zeros((*lead, 0))), *(leaf(np.zeros(0)) for _ in range(2 if name == "layernorm" else 1))]
    for form in (getattr(ops, name), getattr(composed, name)):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore" if form is getattr(composed, name) else "error"
            )  # the mean of an empty array
            y = form(*inputs)
            gradients = grad(y, inputs, np.zeros(y.shape))
        assert y.shape == (*lead, 0)
        assert [gradient.shape for gradient in gradients] == [x.shape for x in inputs]


@pytest.mark.parametrize("form", [ops.attention, composed.attention])
@pytest.mark.parametrize("lead", [(3,), (2, 3), (0,)])
def test_attention_over_queries_and_keys_without_channels_is_refused(form, lead):
    with pytest.raises(ShapeError, match=r"queries need at least one channel; got shape \(.*0\)"):
        form(np.zeros((*lead, 0)), np.zeros((*lead, 0)), np.zeros((*lead, 4)), causal=True)


@pytest.mark.parametrize("form", [ops.attention, composed.attention])
@pytest.mark.parametrize("shapes", [((3, 2), (3, 2), (3, 0)), ((0, 2), (4, 2), (4, 3)), ((0, 2), (0, 2), (0, 3))])
def test_attention_without_queries_or_value_channels_gives_empty_results(form, shapes):
    inputs = [leaf(np.ones(shape)) for shape in shapes]
    y = form(*inputs, causal=True)
    assert y.shape == (shapes[0][0], shapes[2][1])
    for x, gradient in zip(inputs, grad(y, inputs, np.ones(y.shape))):
        np.testing.assert_array_equal(gradient, np.zeros(x.shape))


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_a_dropout_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ConfigError, match="0 ≤ rate < 1"):
        ops.dropout(np.ones(3), rate=rate, seed=(0,))


def test_dropout_preserves_the_mean_and_drops_the_given_share():
    y = ops.dropout(np.ones((500, 500)), rate=0.3, seed=(1,))
    assert set(np.unique(y)) == {0, 1 / 0.7}
    assert (y == 0).mean() == pytest.approx(0.3, abs=0.01)
    np.testing.assert_array_equal(y, ops.dropout(np.ones((500, 500)), rate=0.3, seed=(1,)))
    assert (y != ops.dropout(np.ones((500, 500)), rate=0.3, seed=(2,))).any()


@pytest.mark.parametrize(
    "call", [lambda x, b: ops.linear(x, np.eye(3, dtype=np.float32), b), lambda x, b: ops.layernorm(x, b, b)]
)
def test_a_wider_bias_widens_the_result_as_in_numpy(call):
    x = np.ones((2, 3), dtype=np.float32)
    assert call(x, np.ones(3)).dtype == np.float64
    assert call(x, np.ones(3, dtype=np.float32)).dtype == np.float32


def test_under_higher_order_the_composition_replaces_the_fused_op():
    x = leaf([[0.5, -1.0, 2.0]])
    with higher_order():
        assert ops.softmax(x)._node.op.name != "softmax"
    assert ops.softmax(x)._node.op.name == "softmax"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", [ops.attention, composed.attention])
def test_a_later_key_that_is_not_finite_changes_no_earlier_token(form, bad):
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 5, 4))
    before = form(q, k, v, causal=True)
    k[:, -1] = bad
    with np.errstate(invalid="ignore"):
        after = form(q, k, v, causal=True)
    assert np.array_equal(after[:, :-1], before[:, :-1])


@pytest.mark.parametrize("size", [3e3, -3e3])  # of float32; an exponential of such scores overflows, or all vanish
@pytest.mark.parametrize("causal", [True, False])
def test_a_query_with_large_scores_is_attended_for_as_defined_and_changes_no_other_query(causal, size):
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 40, 4), dtype=np.float32)
    k[..., 0] = 1
    before = ops.attention(q, k, v, causal=causal)
    q[:, 7, 0] = size
    after = ops.attention(q, k, v, causal=causal)
    np.testing.assert_allclose(after, composed.attention(q, k, v, causal=causal).data, rtol=2e-3, atol=2e-4)
    others = np.arange(40) != 7
    assert np.array_equal(after[:, others], before[:, others])


def test_causal_attention_is_as_defined_where_all_keys_that_a_block_of_queries_adds_are_padding():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 40, 4))
    mask = ops.sequence_mask([31, 5], 40)
    expected = composed.attention(q, k, v, mask, causal=True).data
    np.testing.assert_allclose(ops.attention(q, k, v, mask, causal=True), expected, rtol=1e-12, atol=1e-14)


FORMS = pytest.mark.parametrize("form", [ops.attention, composed.attention], ids=["fast", "definition"])
LENGTHS = ops.sequence_mask([70, 33, 0], 80)  # more queries than one block; the last keys are padding in all sequences
LEFT = LENGTHS[:, ::-1]


def attended(form, mask, q, k, v, **static):
    """y and the gradients of q, k and v."""
    inputs = [leaf(x) for x in (q, k, v)]
    y = form(*inputs, mask, **static)
    return [y.data, *grad(y, inputs, np.random.default_rng(1).standard_normal(y.shape))]


@pytest.fixture
def qkv():
    return np.random.default_rng(0).standard_normal((3, 3, 80, 4))  # of three sequences


@FORMS
@pytest.mark.parametrize("mask", [LENGTHS, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_contents_of_padding_change_no_bit_and_have_no_gradient(form, mask, causal, qkv):
    before = attended(form, mask, *qkv, causal=causal)
    qkv[1:, ~mask] = 1e30 * qkv[1:, ~mask]
    after = attended(form, mask, *qkv, causal=causal)
    for a, b in zip(before, after):
        np.testing.assert_array_equal(a, b)
    assert not before[2][~mask].any() and not before[3][~mask].any()
    assert before[2][mask].any() and before[3][mask].any()


@FORMS
@pytest.mark.parametrize("causal", [True, False])
def test_attention_of_a_padded_sequence_is_that_of_the_sequence_alone(form, causal, qkv):
    def run(cotangent, mask, *arrays):
        inputs = [leaf(x) for x in arrays]
        y = form(*inputs, mask, causal=causal)
        return [y.data, *grad(y, inputs, cotangent)]

    cotangent = np.random.default_rng(1).standard_normal((3, 80, 4)) * LENGTHS[..., None]  # no loss in padding
    together = run(cotangent, LENGTHS, *qkv)
    for number, length in enumerate([70, 33]):
        alone = run(cotangent[number, :length], None, *qkv[:, number, :length])
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a[number, :length], b, rtol=1e-11, atol=1e-13)


@FORMS
@pytest.mark.parametrize("keys", [2, 0])
def test_a_query_that_sees_no_key_gives_zeros_and_has_no_gradient(form, keys):
    q, k, v = np.ones((2, 3, 4)), np.ones((2, keys, 4)), np.ones((2, keys, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for result in attended(form, np.zeros((2, keys), bool), q, k, v, causal=False):
            assert not result.any()
    causal = attended(form, np.array([False, True]), q[:, :2], v[:, :2, :4], v[:, :2, :4], causal=True) if keys else []
    for result in causal[:1]:  # the first query sees the first key only, which is padding
        assert not result[:, 0].any() and result[:, 1].all()


def test_keys_that_are_padding_in_every_sequence_are_not_read(qkv):
    qkv[1:, :, 70:] = np.nan
    assert all(np.isfinite(x).all() for x in attended(ops.attention, LENGTHS, *qkv, causal=False))


@pytest.mark.parametrize("padded", [False, True])
def test_attention_to_itself_and_to_a_copy_of_itself_are_the_same(padded):
    qkv = np.random.default_rng(0).standard_normal((3, 5, 12))
    mask = ops.sequence_mask([5, 2, 3], 5) if padded else None
    x, q, kv = leaf(qkv), leaf(qkv[..., :4]), leaf(qkv[..., 4:])
    cotangent = np.random.default_rng(1).standard_normal((3, 5, 4))
    both = [ops.multi_head_attention(x, None, mask, n_head=2, causal=False)]
    both += [ops.multi_head_attention(q, kv, mask, n_head=2, causal=False)]
    np.testing.assert_allclose(both[0].data, both[1].data, rtol=1e-14)
    joined = np.concatenate(grad(both[1], [q, kv], cotangent), axis=-1)
    np.testing.assert_allclose(grad(both[0], x, cotangent), joined, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("mask", "error", "said"),
    [
        (np.ones((2, 3)), DtypeError, "key_mask must be boolean, True where a key is real; got float64"),
        (np.ones((2, 3), dtype=np.int64), DtypeError, "use key_mask != 0"),
        (np.ones((2, 4), dtype=bool), ShapeError, "key_mask"),
        (np.ones((3, 3), dtype=bool), ShapeError, "key_mask"),
    ],
)
def test_a_mask_that_does_not_fit_the_keys_is_refused(mask, error, said):
    x = np.ones((2, 3, 4))
    with pytest.raises(error, match=said):
        ops.attention(x, x, x, mask, causal=False)
    with pytest.raises(error, match=said):
        ops.multi_head_attention(np.ones((2, 3, 12)), None, mask, n_head=2, causal=False)


@pytest.mark.parametrize("form", [ops.multi_head_attention, composed.multi_head_attention])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 8), (2, 3, 12)])
def test_keys_and_values_that_do_not_fit_the_queries_are_refused(form, shape):
    with pytest.raises(ShapeError, match=r"do not fit queries \(2, 5, 4\); expected \(2, 3, 8\)"):
        form(np.ones((2, 5, 4)), np.ones(shape), n_head=2, causal=False)


@pytest.mark.parametrize(
    ("lengths", "error", "said"),
    [
        ([1, -1], ShapeError, "lengths must be between 0 and 3; got -1 to 1"),
        ([4, 1], ShapeError, "lengths must be between 0 and 3; got 1 to 4"),
        ([1.0, 2.0], DtypeError, "lengths must be integers, .* got float64"),
    ],
)
def test_invalid_lengths_are_refused(lengths, error, said):
    with pytest.raises(error, match=said):
        ops.sequence_mask(lengths, 3)


FLOAT_ONLY = {
    "dropout": lambda x: ops.dropout(x, rate=0.5),
    "softmax": ops.softmax,
    "log_softmax": ops.log_softmax,
    "logsumexp": ops.logsumexp,
    "cross_entropy": lambda x: ops.cross_entropy(x, 1),
    "linear_cross_entropy": lambda x: ops.linear_cross_entropy(x, np.eye(4), 1),
    "gelu": ops.gelu,
    "gelu_exact": ops.gelu_exact,
    "silu": ops.silu,
    "sigmoid": ops.sigmoid,
    "layernorm": lambda x: ops.layernorm(x, np.ones(4), np.zeros(4)),
    "rmsnorm": lambda x: ops.rmsnorm(x, np.ones(4)),
    "attention": lambda x: ops.attention(x[None], x[None], x[None], causal=True),
}


@pytest.mark.parametrize("higher", [False, True], ids=["fused", "composed"])
@pytest.mark.parametrize("name", FLOAT_ONLY)
def test_integers_are_computed_as_the_same_floats(name, higher):
    f = FLOAT_ONLY[name]
    with higher_order() if higher else contextlib.nullcontext(), np.errstate(all="raise"):
        for dtype in (np.int64, np.uint8, bool):
            x = np.array([1, 2, 3, 4]).astype(dtype)
            for given in (x, Tensor(x)):
                np.testing.assert_allclose(array_of(f(given)), array_of(f(Tensor(x.astype(np.float64)))), rtol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "gelu", "gelu_exact", "silu", "dropout"])
def test_layer_functions_accept_scalars_forward_and_backward(name):
    static = {"axis": None} if "axis" in registry[name].static_defaults else {}
    for dtype in (np.float32, np.float64):
        x, row = leaf(3.0, dtype), leaf([3.0], dtype)
        y, of_row = registry[name](x, **static), registry[name](row, **static)
        assert y.dtype == dtype and y.shape == () and y.item() == of_row.data.item()
        gradient = grad(y, x, np.array(2.0, dtype))
        assert gradient.dtype == dtype and gradient.shape == ()
        assert gradient == grad(of_row, row, np.full(of_row.shape, 2.0, dtype))


def test_cross_entropy_has_class_weights_and_reductions():
    logits, targets = np.log([[1.0, 2, 3], [1, 1, 2], [1, 1, 1]]), np.array([2, 0, -100])
    each, weight = np.array([math.log(2), math.log(4), 0]), np.array([3.0, 0.0, 1.0])
    np.testing.assert_allclose(ops.cross_entropy(logits, targets, reduction="none"), each, rtol=1e-12)
    np.testing.assert_allclose(ops.cross_entropy(logits, targets, reduction="sum"), each.sum(), rtol=1e-12)
    weighted = ops.cross_entropy(logits, targets, reduction="none", weight=weight)
    np.testing.assert_allclose(weighted, [each[0], 3 * each[1], 0], rtol=1e-12)
    mean = ops.cross_entropy(logits, targets, weight=weight.tolist())
    np.testing.assert_allclose(mean, (each[0] + 3 * each[1]) / 4, rtol=1e-12)
    assert ops.cross_entropy(logits, np.full(3, -100), reduction="sum") == 0


@pytest.mark.parametrize("form", [ops.cross_entropy, composed.cross_entropy])
def test_an_invalid_reduction_or_weight_is_refused(form):
    logits, targets = np.zeros((2, 3)), np.array([0, 1])
    with pytest.raises(ConfigError, match="reduction must be one of mean, sum, none; got 'summ'; did you mean 'sum'"):
        form(logits, targets, reduction="summ")
    with pytest.raises(ShapeError, match=r"weight has shape \(2,\); expected one for each class, \(3,\)"):
        form(logits, targets, weight=[1.0, 2.0])
    with pytest.raises(ConfigError, match="weight= or label_smoothing=, not both"):
        form(logits, targets, weight=[1.0, 2.0, 3.0], label_smoothing=0.1)
    with pytest.raises(ShapeError, match="a mean needs at least one"):
        form(logits, targets, weight=[0.0, 0.0, 3.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_scores_far_above_the_largest_exponent_are_subtracted_in_every_dtype(dtype: type) -> None:
    far = dtype(2 * np.log(np.finfo(dtype).max))
    q, k, v = (np.array(x, dtype) for x in ([[far]], [[1], [-1], [1]], [[2], [5], [4]]))
    np.testing.assert_allclose(ops.attention(q, k, v, causal=False, scale=1.0), [[3]], rtol=1e-6)
