"""The decoder computes what the model computes, in each form of GPT, and is not used for any other model."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig, Tensor, checked
from nanograd_llm.errors import NonFiniteError, ShapeError
from nanograd_llm.inference import Sampling, generate
from nanograd_llm.inference.decoder import Decoder, NormStep, OneNormStep, can_decode
from nanograd_llm.nn import MLP, Block, Dropout, LayerNorm

SIZES = dict(vocab_size=13, context_length=9, n_layer=3, n_head=2, n_embd=16)


def gpt(dtype: Any = np.float64, **changes: Any) -> GPT:
    """A model all of whose parameters are far from their special initial values."""
    model, rng = GPT(GPTConfig(**{**SIZES, **changes})).astype(dtype), np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data += (0.3 * rng.standard_normal(parameter.shape)).astype(dtype)
    model.eval()
    return model


FORMS: list[dict[str, Any]] = [
    {},
    {"activation": "gelu_exact"},
    {"n_inner": 20, "layer_norm_epsilon": 0.1},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"tie_word_embeddings": False},
    {"n_head": 1, "n_embd": 5},  # odd; of only 3 numbers, almost equal, a layer norm would magnify rounding
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_each_token_has_the_logits_of_the_model(form: dict[str, Any], rows: int, dtype: str) -> None:
    model = gpt(dtype, **form)
    text = np.random.default_rng(0).integers(13, size=(rows, 9))
    caches = model.new_caches(rows)
    model.next_logits(text[:, :2], caches)
    decoder = Decoder(model, caches)
    for n in range(2, 9):
        logits = decoder(text[:, n])
        assert logits.dtype == dtype
        exact = model.next_logits(text[:, : n + 1])
        np.testing.assert_allclose(logits, exact, rtol=0, atol=np.abs(exact).max() * 40 * np.finfo(dtype).eps)
    with pytest.raises(ShapeError, match="the caches are full, with 9 tokens"):
        decoder(text[:, 0])


@pytest.mark.parametrize("size", [1, 30])
def test_scores_of_any_size_have_the_weights_of_the_model(size: float) -> None:
    model, text = gpt(), np.random.default_rng(0).integers(13, size=(1, 9))
    for block in model.blocks:
        block.attention.qkv.weight.data *= size
    caches = model.new_caches(1)
    decoder = Decoder(model, caches)
    scores = []
    for n in range(9):
        logits = decoder(text[:, n])
        q, _, _ = np.split(decoder.blocks[0].attention.qkv.out, 3)
        keys = caches[0].keys[0, :, : n + 1]
        scores.append(np.abs(keys @ q.reshape(2, 8, 1)).max())
        exact = model.next_logits(text[:, : n + 1])
        np.testing.assert_allclose(logits, exact, rtol=0, atol=np.abs(exact).max() * 2e-13)
    assert (max(scores) > 709) == (size == 30)  # whose exponential would overflow


@pytest.mark.parametrize("score", [62.0, 70.0, 78.0, 86.0, 95.0])
def test_large_values_do_not_overflow_beside_large_scores(score: float) -> None:
    model = gpt("float32")
    qkv = model.blocks[0].attention.qkv
    qkv.weight.data[...] = 0
    assert qkv.bias is not None
    queries, keys, values = qkv.bias.data.reshape(3, 2, 8)
    queries[...] = keys[...] = [[np.sqrt(score / np.sqrt(8))], [0]]  # the score of one head, and of the other
    values[...] = 1e5
    model.blocks[0].attention.out.weight.data /= 1e5
    caches = model.new_caches(1)
    decoder, text = Decoder(model, caches), np.arange(9)[None]
    for n in range(3):
        exact = model.next_logits(text[:, : n + 1])
        np.testing.assert_allclose(decoder(text[:, n]), exact, rtol=0, atol=np.abs(exact).max() * 1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_row_beside_a_large_offset_is_normalised_as_in_the_model(rows: int) -> None:
    rng, layer = np.random.default_rng(5), LayerNorm(768)
    x = (rng.standard_normal((rows, 768)) + 10_000).astype(np.float32)
    found = OneNormStep(layer, x[0])(x[0]) if rows == 1 else NormStep(layer, x)(x)
    exact = layer.astype(np.float64)(x.astype(np.float64)).data
    np.testing.assert_allclose(found.reshape(exact.shape), exact, rtol=0, atol=5e-6)


def test_the_decoder_reads_the_models_own_arrays() -> None:
    model = gpt()
    caches = model.new_caches(1)
    decoder = Decoder(model, caches)
    for parameter in model.parameters():
        parameter.data.flags.writeable = False  # as those of a mapped file are
    before = decoder(np.array([1])).copy()
    for parameter in model.parameters():
        parameter.data.flags.writeable = True
        parameter.data *= 0
    caches[0].length = caches[1].length = caches[2].length = 0
    assert before.any()
    assert not decoder(np.array([1])).any()


class Other(LayerNorm):
    """Another class, though it computes the same."""


def derived(model: GPT) -> None:
    model.ln_f = Other(16).astype(np.float64).eval()


def replaced(model: GPT) -> None:
    model.blocks[1].mlp.forward = lambda x: MLP.forward(model.blocks[1].mlp, x) * 2.0  # type: ignore[method-assign]


def hidden(model: GPT) -> None:
    original = model.hidden
    model.hidden = lambda *args: original(*args) * 2.0  # type: ignore[method-assign]


def mixed(model: GPT) -> None:
    model.wpe.data = model.wpe.data.astype(np.float32)


def training(model: GPT) -> None:
    model.blocks[0].dropout = model.blocks[0].mlp.dropout
    model.blocks[0].mlp.dropout.training = True


def embedding_norm(model: GPT) -> None:
    model.dropout = LayerNorm(16).astype(np.float64).eval()  # type: ignore[assignment]


def no_last_norm(model: GPT) -> None:
    model.ln_f = Dropout(0).eval()  # type: ignore[assignment]


def shallow(model: GPT) -> None:
    model.blocks.pop()


def post_norm(model: GPT) -> None:
    model.blocks[1] = Block(16, 2, norm_first=False).astype(np.float64).eval()


def not_causal(model: GPT) -> None:
    model.blocks[1] = Block(16, 2, causal=False).astype(np.float64).eval()


def looks_at_a_context(model: GPT) -> None:
    model.blocks[1] = Block(16, 2, cross=True).astype(np.float64).eval()


CHANGES = [derived, replaced, hidden, mixed, training, embedding_norm, no_last_norm, shallow, post_norm, not_causal]


@pytest.mark.parametrize("change", [*CHANGES, looks_at_a_context])
def test_a_model_with_a_changed_part_cannot_be_decoded(change: Any) -> None:
    model = gpt()
    assert can_decode(model)
    change(model)
    assert not can_decode(model)


def test_checked_mode_looks_at_every_op() -> None:
    model = gpt()
    model.blocks[1].mlp.up.bias.data[3] = np.inf
    with checked(), pytest.raises(NonFiniteError, match=r"in module blocks\.1\.mlp\.up"):
        generate(model, [1], max_new_tokens=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_one_error_and_no_warning(bad: float) -> None:
    model = gpt()
    model.blocks[2].attention.qkv.bias.data[3] = bad
    with warnings.catch_warnings(), pytest.raises(NonFiniteError, match="look for NaN in the weights"):
        warnings.simplefilter("error")
        generate(model, [1, 2], max_new_tokens=2)
    assert can_decode(model)
    model.blocks[2].attention.qkv.bias.data[3] = 0
    model.wte.data[4] = bad
    with warnings.catch_warnings(), pytest.raises(NonFiniteError, match="look for NaN in the weights"):
        warnings.simplefilter("error")
        generate(model, [4], max_new_tokens=2)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_part_that_was_replaced_changes_what_is_written(rows: int) -> None:
    model = gpt()
    plain = generate(model, [[1, 2]] * rows, max_new_tokens=7, sampling=Sampling(temperature=0))

    def forward(x: Any) -> Tensor:
        return LayerNorm.forward(model.ln_f, x) * -1.0

    model.ln_f.forward = forward  # type: ignore[method-assign]
    other = generate(model, [[1, 2]] * rows, max_new_tokens=7, sampling=Sampling(temperature=0))
    assert other == generate(model, [[1, 2]] * rows, max_new_tokens=7, sampling=Sampling(temperature=0), cache=False)
    assert other != plain
