"""The encoder-decoder is that of the paper: held to its definition in plain NumPy, one row and one head at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanograd_llm import EncoderDecoder, EncoderDecoderConfig, grad, ops
from nanograd_llm.errors import ConfigError, IndexRangeError, ShapeError
from nanograd_llm.gradcheck import gradcheck
from nanograd_llm.gradcheck.check.invariance import assert_split_invariant
from nanograd_llm.models.encoder_decoder import sinusoids
from nanograd_llm.nn import LayerNorm

SIZES: dict[str, Any] = dict(vocab_size=11, context_length=8, n_layer=2, n_head=2, n_embd=8, n_inner=12)
KINDS: dict[str, dict[str, Any]] = {
    "pre-norm": {},
    "as in the paper": {"norm_first": False, "activation": "relu", "label_smoothing": 0.1},
    "as Marian's": {"norm_first": False, "activation": "silu", "positions": "sinusoidal_halves", "head_bias": True},
    "all apart": {
        "source_vocab_size": 9,  # rows of padding are drawn from all ids
        "n_decoder_layer": 1,
        "tie_word_embeddings": False,
        "positions": "learned",
        "scale_embedding": False,
    },
}
SOURCE = np.array([[3, 1, 4, 1, 5], [2, 6, 0, 0, 0], [5, 3, 5, 0, 0]])
TARGET_IN = np.array([[0, 2, 7, 1], [0, 8, 2, 8], [0, 3, 3, 3]])
TARGET = np.array([[2, 7, 1, 0], [8, 2, 8, 0], [3, 0, -100, -100]])


def shaken(dtype: Any = np.float64, **changes: Any) -> EncoderDecoder:
    """A model all of whose parameters are far from their special initial values."""
    model, rng = EncoderDecoder(EncoderDecoderConfig(**{**SIZES, **changes})).astype(dtype), np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * rng.standard_normal(parameter.shape)
    model.eval()
    return model


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    return shaken(**request.param)


def by_definition(model: EncoderDecoder, source: np.ndarray, target_in: np.ndarray) -> np.ndarray:
    """The logits (T, V) of one source (S,) without padding, and what is written so far (T,)."""
    c, w = model.config, model.state_dict()
    shared, halves = c.source_vocab_size is None, c.positions == "sinusoidal_halves"

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.layer_norm_epsilon)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def affine(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
        heads = []
        for qh, kh, vh in zip(*(np.split(part, c.n_head, axis=-1) for part in (q, k, v))):
            scores = qh @ kh.T / np.sqrt(qh.shape[-1])
            if causal:
                scores[np.triu_indices(len(scores), 1)] = -np.inf
            p = np.exp(scores)
            heads.append(p / p.sum(-1, keepdims=True) @ vh)
        return np.concatenate(heads, -1)

    def add(x: np.ndarray, norm_name: str, part: Any) -> np.ndarray:
        return x + part(norm(x, norm_name)) if c.norm_first else norm(x + part(x), norm_name)

    def block(x: np.ndarray, name: str, context: np.ndarray | None) -> np.ndarray:
        def own(x: np.ndarray) -> np.ndarray:
            q, k, v = np.split(affine(x, f"{name}.attention.qkv"), 3, -1)
            return affine(attend(q, k, v, context is not None), f"{name}.attention.out")

        def cross(x: np.ndarray) -> np.ndarray:
            k, v = np.split(affine(context, f"{name}.cross_attention.kv"), 2, -1)
            return affine(attend(affine(x, f"{name}.cross_attention.q"), k, v, False), f"{name}.cross_attention.out")

        def mlp(x: np.ndarray) -> np.ndarray:
            h = affine(x, f"{name}.mlp.up")
            act = {"relu": lambda h: np.maximum(h, 0), "silu": lambda h: h / (1 + np.exp(-h))}
            gelu = lambda h: 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))  # noqa: E731
            return affine(act.get(c.activation, gelu)(h), f"{name}.mlp.down")

        x = add(x, f"{name}.ln_1", own)
        if context is not None:
            x = add(x, f"{name}.ln_cross", cross)
        return add(x, f"{name}.ln_2", mlp)

    def embed(ids: np.ndarray, table: str, positions: str) -> np.ndarray:
        x = w[table][ids] * (np.sqrt(c.n_embd) if c.scale_embedding else 1)
        if c.positions == "learned":
            return x + w[positions][: len(ids)]
        for p in range(len(ids)):
            for i in range(c.n_embd // 2):
                angle = p / 10000 ** (2 * i / c.n_embd)
                x[p, i if halves else 2 * i] += np.sin(angle)
                x[p, i + c.n_embd // 2 if halves else 2 * i + 1] += np.cos(angle)
        return x

    x = embed(source, "source_table", "source_positions")
    for i in range(c.n_layer):
        x = block(x, f"encoder.{i}", None)
    memory = norm(x, "encoder_norm") if c.norm_first else x
    target_table = "source_table" if shared else "target_table"
    x = embed(target_in, target_table, "target_positions")
    for i in range(c.n_decoder_layer or c.n_layer):
        x = block(x, f"decoder.{i}", memory)
    x = norm(x, "decoder_norm") if c.norm_first else x
    logits = x @ w[target_table if c.tie_word_embeddings else "head"].T
    return logits + w["head_bias"] if c.head_bias else logits


def test_the_logits_are_those_of_the_papers_definition_and_padding_changes_nothing(model: EncoderDecoder) -> None:
    logits = model(SOURCE, TARGET_IN).data
    for row, source, target_in in zip(logits, SOURCE, TARGET_IN):
        np.testing.assert_allclose(row, by_definition(model, source[source != 0], target_in), rtol=0, atol=1e-12)


def test_the_loss_without_padding_has_the_value_and_gradients_of_the_padded_definition(model: EncoderDecoder) -> None:
    target = np.array([[2, -100, 7, 0], [8, 0, -100, -100], [-100, 3, 0, -100]])
    wrt = model.parameters()
    loss = model.loss(SOURCE, TARGET_IN, target)
    expected = ops.cross_entropy(model(SOURCE, TARGET_IN), target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-13)
    for found, gradient in zip(grad(loss, wrt), grad(expected, wrt)):
        np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-13)


def test_the_loss_computes_only_tokens_that_reach_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    norm = LayerNorm.forward
    monkeypatch.setattr(LayerNorm, "forward", lambda self, x: rows.append(x.size // 8) or norm(self, x))
    shaken(n_layer=1).loss(SOURCE, TARGET_IN, TARGET)
    assert rows == [10] * 3 + [10] * 4  # of 15 places in SOURCE, and of 12 in TARGET


def test_lengths_and_the_padding_id_say_the_same(model: EncoderDecoder) -> None:
    lengths = (SOURCE != 0).sum(axis=1)
    assert np.array_equal(model(SOURCE, TARGET_IN).data, model(SOURCE, TARGET_IN, lengths).data)
    filled = np.where(SOURCE == 0, 6, SOURCE)  # with lengths, it does not matter what stands in the padding
    assert np.array_equal(model(SOURCE, TARGET_IN).data, model(filled, TARGET_IN, lengths).data)


def test_a_later_token_of_the_target_never_changes_earlier_logits(model: EncoderDecoder) -> None:
    changed = TARGET_IN.copy()
    changed[:, 2] += 1
    one, other = model(SOURCE, TARGET_IN).data, model(SOURCE, changed).data
    assert np.array_equal(one[:, :2], other[:, :2]) and not np.allclose(one[:, 2:], other[:, 2:])


def test_the_loss_is_the_mean_surprise_over_the_targets_that_count(model: EncoderDecoder) -> None:
    p = ops.log_softmax(model(SOURCE, TARGET_IN)).data
    counted = TARGET != -100
    wanted = -np.take_along_axis(p, np.where(counted, TARGET, 0)[..., None], -1)[..., 0][counted].mean()
    assert model.loss(SOURCE, TARGET_IN, TARGET).item() == pytest.approx(wanted, abs=1e-12)
    assert model.loss_count(SOURCE, TARGET_IN, TARGET) == counted.sum()


def test_labels_are_smoothed_while_training_only() -> None:
    model = shaken(label_smoothing=0.3)
    plain = model.loss(SOURCE, TARGET_IN, TARGET).item()
    model.train()
    p = ops.log_softmax(model(SOURCE, TARGET_IN)).data[TARGET != -100]
    assert model.loss(SOURCE, TARGET_IN, TARGET).item() == pytest.approx(0.7 * plain - 0.3 * p.mean(), abs=1e-12)


@pytest.mark.thorough  # its specimens are checked in every run
def test_every_gradient_is_right(model: EncoderDecoder) -> None:
    assert gradcheck(model.loss, SOURCE, TARGET_IN, TARGET, order=1, jacobian=0).passed


def test_the_gradient_does_not_depend_on_neighbours_or_padding(model: EncoderDecoder) -> None:
    def loss(both: Any, target: Any) -> Any:
        return model.loss(both[:, :5], both[:, 5:], target)

    assert_split_invariant(loss, (np.concatenate([SOURCE, TARGET_IN], axis=1), TARGET), columns=False)
    wider = np.pad(SOURCE, ((0, 0), (0, 3)))
    one, other = (model.loss(source, TARGET_IN, TARGET) for source in (SOURCE, wider))
    assert one.item() == pytest.approx(other.item(), abs=1e-13)


def test_cached_tokens_get_the_logits_of_forward_and_the_source_is_read_once(model: EncoderDecoder) -> None:
    memory, mask = model.encode(SOURCE)
    caches = model.new_caches(3, 5)
    logits = model(SOURCE, TARGET_IN).data
    for t in range(4):
        found = model.next_logits(TARGET_IN[:, t : t + 1], None if t else memory.data, mask, caches)
        np.testing.assert_allclose(found, logits[:, t], rtol=0, atol=1e-12)
    assert {(own.length, cross.length) for own, cross in caches} == {(4, 5)}


def test_look_shows_what_forward_computes_and_all_three_kinds_of_maps(model: EncoderDecoder) -> None:
    look, c = model.look(SOURCE, TARGET_IN), model.config
    assert np.array_equal(look.logits, model(SOURCE, TARGET_IN).data)
    depth = c.n_decoder_layer or c.n_layer
    assert [m.shape for m in look.encoder_maps] == [(3, 2, 5, 5)] * c.n_layer
    assert [m.shape for m in look.decoder_maps] == [(3, 2, 4, 4)] * depth
    assert [m.shape for m in look.cross_maps] == [(3, 2, 4, 5)] * depth
    assert (len(look.encoder_states), len(look.decoder_states)) == (c.n_layer + 1, depth + 1)
    for maps in (*look.encoder_maps, *look.decoder_maps, *look.cross_maps):
        np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-12)
    for maps in (*look.encoder_maps, *look.cross_maps):
        assert not maps.swapaxes(1, 3)[SOURCE == 0].any()  # nobody looks at padding
    assert all(not np.triu(maps, 1).any() for maps in look.decoder_maps)


def test_attention_maps_are_the_weights_that_a_block_uses() -> None:
    model = shaken()
    block, look = model.decoder[0], model.look(SOURCE, TARGET_IN)
    memory, _ = model.encode(SOURCE)
    x = model.decoder[0]._add(block.ln_1, block.attention, model._embed_target(TARGET_IN, 0))
    values = np.split(block.cross_attention.kv(memory).data, 2, axis=-1)[1]  # type: ignore[union-attr]
    heads = values.reshape(3, 5, 2, 4).swapaxes(1, 2)
    mixed = (look.cross_maps[0] @ heads).swapaxes(1, 2).reshape(3, 4, 8)
    context_mask = SOURCE != 0
    wanted = block.cross_attention(block.ln_cross(x), memory, context_mask)  # type: ignore[misc]
    np.testing.assert_allclose(block.cross_attention.out(mixed).data, wanted.data, atol=1e-12)  # type: ignore[union-attr]


def test_one_vocabulary_has_one_table_for_source_target_and_head() -> None:
    model = EncoderDecoder(EncoderDecoderConfig(**SIZES))
    assert model.target_table is model.source_table is model.head_table
    assert sum("table" in name for name, _ in model.named_parameters()) == 1
    apart = EncoderDecoder(EncoderDecoderConfig(**SIZES, source_vocab_size=5, tie_word_embeddings=False))
    assert len({id(table) for table in (apart.source_table, apart.target_table, apart.head_table)}) == 3


def test_sinusoids_are_sines_and_cosines_in_turn_or_in_halves() -> None:
    turn, halves = sinusoids(np.arange(4), 6), sinusoids(np.arange(4), 6, halves=True)
    assert np.array_equal(np.concatenate([turn[:, 0::2], turn[:, 1::2]], axis=1), halves)
    assert turn[3, 2] == pytest.approx(np.sin(3 / 10000 ** (2 / 6))) and turn[3, 1] == pytest.approx(np.cos(3))
    assert sinusoids(np.arange(2), 5).shape == (2, 5)


@pytest.mark.parametrize(
    ("source", "target_in", "error", "said"),
    [
        (np.ones((1, 9), int), TARGET_IN[:1], ShapeError, "is 8 but 9 tokens were given; give a shorter source"),
        (SOURCE[:1], np.ones((1, 9), int), ShapeError, "is 8 but 9 tokens were given; give a shorter target"),
        (SOURCE[:1], np.ones((1, 0), int), ShapeError, "a target begins with start_id"),
        (SOURCE[:1] + 9, TARGET_IN[:1], IndexRangeError, "token ids must be from 0 to 10; got 10 to 14"),
        (SOURCE[0], TARGET_IN[:1], ShapeError, r"use tokens\[None\] for a single sequence"),
    ],
)
def test_what_the_model_cannot_take_is_refused(source: Any, target_in: Any, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        shaken()(source, target_in)


@pytest.mark.parametrize(
    ("field", "value"), [("n_layer", 0), ("positions", "rotary"), ("label_smoothing", 1.0), ("n_head", 3)]
)
def test_a_size_that_cannot_be_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        EncoderDecoderConfig(**{**SIZES, field: value})


@pytest.mark.filterwarnings("error")
def test_targets_that_are_the_decoders_own_input_give_a_warning() -> None:
    model = shaken()
    model.loss(SOURCE, TARGET_IN, TARGET)
    with pytest.warns(UserWarning, match="the targets are the tokens themselves"):
        model.loss(SOURCE[:2], TARGET[:2], TARGET[:2])
    with pytest.warns(UserWarning, match="the targets are the tokens one place before"):
        model.loss(SOURCE[:2], TARGET[:2], TARGET_IN[:2])
