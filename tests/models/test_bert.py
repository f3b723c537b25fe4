"""BERT by its definition, its masks, its heads, and what cannot be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from nanograd_llm import BERT, GPT, BERTConfig, GPTConfig, checked, grad, ops
from nanograd_llm.errors import ConfigError, DtypeError, IndexRangeError, NonFiniteError, ShapeError
from nanograd_llm.training import TrainConfig, Trainer

SIZES = {"vocab_size": 13, "context_length": 8, "n_layer": 2, "n_head": 2, "n_embd": 6}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_inner": 5, "type_vocab_size": 3},
    {"layer_norm_epsilon": 0.1},
    {"activation": "gelu"},
    {"norm_first": True},
]
each_variant = pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: ",".join(changes) or "plain")
LENGTHS = np.array([7, 3, 5])


def shaken(dtype: Any = np.float64, **changes: Any) -> BERT:
    """A model all of whose parameters, biases and norms included, are far from their special initial values."""
    model, rng = BERT(BERTConfig(**{**SIZES, **changes})).astype(dtype), np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * rng.standard_normal(parameter.shape)
    return model


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(13, size=(3, 7))


@pytest.fixture
def types() -> np.ndarray:
    return np.random.default_rng(1).integers(2, size=(3, 7))


@pytest.fixture
def targets() -> np.ndarray:
    targets = np.random.default_rng(9).integers(13, size=(3, 7))
    targets[np.random.default_rng(2).random((3, 7)) < 0.6] = -100
    targets[0, 0], targets[1, 3:], targets[2, 5:] = 4, -100, -100
    return targets


def bert_by_definition(w: dict[str, np.ndarray], row: np.ndarray, kinds: np.ndarray, c: BERTConfig) -> np.ndarray:
    """Logits (T, V) of one text without padding, one head and one query at a time, as the paper defines them."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scaled = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + c.layer_norm_epsilon)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def affine(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def activation(h: np.ndarray) -> np.ndarray:
        if c.activation == "gelu":
            return 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        return 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))

    def attend(x: np.ndarray, block: str) -> np.ndarray:
        q, k, v = np.split(affine(x, f"{block}.attention.qkv"), 3, axis=-1)
        heads = []
        for qh, kh, vh in zip(*(np.split(part, c.n_head, axis=-1) for part in (q, k, v))):
            weights = [np.exp(kh @ query / math.sqrt(len(query))) for query in qh]
            heads.append(np.array([weight @ vh / weight.sum() for weight in weights]))
        return affine(np.concatenate(heads, axis=-1), f"{block}.attention.out")

    def think(x: np.ndarray, block: str) -> np.ndarray:
        return affine(activation(affine(x, f"{block}.mlp.up")), f"{block}.mlp.down")

    x = w["wte"][row] + w["wpe"][: len(row)] + w["wtype"][kinds]
    if not c.norm_first:
        x = norm(x, "norm")
    for i in range(c.n_layer):
        for part, ln in ((attend, f"blocks.{i}.ln_1"), (think, f"blocks.{i}.ln_2")):
            block = f"blocks.{i}"
            x = x + part(norm(x, ln), block) if c.norm_first else norm(x + part(x, block), ln)
    if c.norm_first:
        x = norm(x, "norm")
    x = norm(activation(affine(x, "head.transform")), "head.norm")
    return x @ w["wte"].T + w["head.bias"]


@each_variant
def test_the_logits_of_real_tokens_are_berts_by_its_definition(
    tokens: np.ndarray, types: np.ndarray, changes: dict[str, Any]
) -> None:
    model = shaken(**changes)
    found, look = model(tokens, types, lengths=LENGTHS).data, model.look(tokens, types, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        expected = bert_by_definition(model.state_dict(), tokens[b, :length], types[b, :length], model.config)
        for logits in (found, look.logits):
            assert np.allclose(logits[b, :length], expected, rtol=1e-12, atol=1e-12)


@each_variant
def test_the_loss_is_the_mean_surprise_over_the_words_that_were_hidden(
    tokens: np.ndarray, targets: np.ndarray, changes: dict[str, Any]
) -> None:
    model = shaken(**changes)
    expected = ops.cross_entropy(model(tokens, lengths=LENGTHS), targets).item()
    assert model.loss(tokens, targets, LENGTHS).item() == pytest.approx(expected, rel=1e-12)
    assert model.loss_count(tokens, targets, LENGTHS) == (targets != -100).sum()


def test_lengths_and_a_mask_say_the_same(tokens: np.ndarray, targets: np.ndarray, types: np.ndarray) -> None:
    model, mask = shaken(), np.arange(7) < LENGTHS[:, None]
    assert np.array_equal(model(tokens, lengths=LENGTHS).data, model(tokens, key_mask=mask).data)
    by_lengths = model.loss(tokens, targets, LENGTHS, types).item()
    assert by_lengths == model.loss(tokens, targets, None, types, mask).item()


def test_without_types_all_tokens_are_of_the_first_kind(tokens: np.ndarray) -> None:
    model = shaken()
    assert np.allclose(model(tokens).data, model(tokens, np.zeros_like(tokens)).data, rtol=1e-12)
    assert not np.allclose(model(tokens).data, model(tokens, np.ones_like(tokens)).data)


def test_what_stands_in_padding_changes_nothing(tokens: np.ndarray, targets: np.ndarray) -> None:
    model = shaken()
    other = np.where(np.arange(7) < LENGTHS[:, None], tokens, 12 - tokens)
    for one, two in [
        (model(tokens, lengths=LENGTHS).data[1, :3], model(other, lengths=LENGTHS).data[1, :3]),
        (model.loss(tokens, targets, LENGTHS).data, model.loss(other, targets, LENGTHS).data),
    ]:
        assert np.array_equal(one, two)
    assert not np.allclose(model(tokens).data[1, :3], model(other).data[1, :3])


def test_the_gradient_without_padding_is_that_of_each_text_alone(tokens: np.ndarray, targets: np.ndarray) -> None:
    model = shaken()
    found = grad(model.loss(tokens, targets, LENGTHS), model.parameters())
    counts = (targets != -100).sum(axis=1)
    alone = [
        [count / counts.sum() * g for g in grad(model.loss(row[None, :n], goal[None, :n]), model.parameters())]
        for row, goal, n, count in zip(tokens, targets, LENGTHS, counts)
    ]
    for gradient, parts in zip(found, zip(*alone)):
        np.testing.assert_allclose(gradient, sum(parts), rtol=0, atol=1e-13)


def test_hidden_states_without_padding_are_the_same_for_real_tokens_and_zeros_elsewhere(tokens: np.ndarray) -> None:
    real = np.arange(7) < LENGTHS[:, None]
    hidden, whole = (shaken().hidden(tokens, lengths=LENGTHS, skip_padding=skip).data for skip in (True, False))
    assert (hidden.any(axis=-1) == real).all() and whole.any(axis=-1).all()
    np.testing.assert_allclose(hidden[real], whole[real], rtol=0, atol=1e-12)


def test_every_token_reaches_every_other(tokens: np.ndarray) -> None:
    model, changed = shaken(), tokens.copy()
    changed[:, 6] = (changed[:, 6] + 1) % 13
    assert (np.abs(model(tokens).data - model(changed).data).max(axis=-1) > 1e-6).all()


def test_attention_maps_are_rows_that_sum_to_one_over_real_tokens(tokens: np.ndarray) -> None:
    look = shaken().look(tokens, lengths=LENGTHS)
    assert [x.shape for x in look.hidden_states] == [(3, 7, 6)] * 3
    for weights in look.attention_maps:
        assert weights.shape == (3, 2, 7, 7)
        assert np.allclose(weights.sum(axis=-1), 1, rtol=1e-12)
        assert not weights[1, :, :, 3:].any() and (weights[1, :, :, :3] > 0).all()


def test_look_names_the_module_of_a_bad_weight_in_checked_mode(tokens: np.ndarray) -> None:
    model = shaken()
    model.head.norm.bias.data[2] = np.nan
    for call in (model, model.look):
        with checked(), pytest.raises(NonFiniteError, match=r"in module head\.norm, called at"):
            call(tokens)


def test_a_pooler_makes_one_vector_of_the_first_token(tokens: np.ndarray) -> None:
    model = shaken(pooler=True)
    hidden = model.hidden(tokens)
    expected = np.tanh(hidden.data[:, 0] @ model.pooler.weight.data + model.pooler.bias.data)
    assert np.allclose(model.pooled(hidden).data, expected, rtol=1e-12)


def test_the_parts_that_a_model_lacks_are_asked_for_by_name(tokens: np.ndarray, targets: np.ndarray) -> None:
    model = shaken(masked_word_head=False)
    assert not any(name.startswith(("head", "pooler")) for name, _ in model.named_parameters())
    for call in (model, model.look, lambda tokens: model.loss(tokens, targets)):
        with pytest.raises(ConfigError, match="no head that fills in words; use hidden"):
            call(tokens)
    with pytest.raises(ConfigError, match="no pooler; take the mean"):
        model.pooled(model.hidden(tokens))


def test_before_training_a_model_is_as_surprised_as_a_uniform_one(tokens: np.ndarray, targets: np.ndarray) -> None:
    assert BERT(BERTConfig(**SIZES)).loss(tokens, targets).item() == pytest.approx(math.log(13), abs=0.05)


def test_a_trainer_teaches_it_to_copy_a_neighbour() -> None:
    """The hidden token is the one that comes after it, which a causal model cannot see."""
    rng = np.random.default_rng(0)

    def batch(_: int) -> tuple[np.ndarray, ...]:
        tokens = rng.integers(1, 6, (16, 5))
        tokens[:, 2] = tokens[:, 1]
        targets = np.full((16, 5), -100)
        targets[:, 1], tokens[:, 1] = tokens[:, 1], 0
        return tokens, targets, np.full(16, 4)

    def losses(model: Any, wanted: slice) -> list[float]:
        trainer = Trainer(model, TrainConfig(steps=120, learning_rate=1e-2, workers=1))
        return [trainer.step(*batch(step)[wanted]) for step in range(120)]

    sizes: Any = {"vocab_size": 6, "context_length": 5, "n_layer": 1, "n_head": 2, "n_embd": 16}
    assert np.mean(losses(BERT(BERTConfig(**sizes)), slice(0, 3))[-20:]) < 0.5
    assert np.mean(losses(GPT(GPTConfig(**sizes)), slice(0, 2))[-20:]) > 1.4


def test_two_workers_give_the_gradient_of_one(tokens: np.ndarray, targets: np.ndarray) -> None:
    norms = []
    for workers in (1, 2):
        trainer = Trainer(shaken(), TrainConfig(steps=1, workers=workers, processes=False))
        trainer.workers.loss_and_gradient((tokens, targets, LENGTHS), (0,))
        norms.append(trainer.workers.gradient.copy())
    assert np.allclose(*norms, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("tokens", "given", "error", "message"),
    [
        (np.zeros((1, 9), int), {}, ShapeError, "context_length is 8 but 9 tokens were given; pass only the first"),
        (np.zeros(5, int), {}, ShapeError, r"tokens must be \(B, T\); got shape \(5,\); use tokens\[None\]"),
        ("The ", {}, DtypeError, "tokens are integer ids"),
        (np.array([[0, 13]]), {}, IndexRangeError, "token ids must be from 0 to 12; got 0 to 13"),
        (np.zeros((2, 3), int), {"lengths": [3]}, ShapeError, r"lengths are \(1,\), and tokens \(2, 3\)"),
        (np.zeros((2, 3), int), {"lengths": 3}, ShapeError, r"lengths are \(\), and tokens \(2, 3\)"),
        (np.zeros((2, 3), int), {"lengths": [3, 4]}, ShapeError, "lengths must be between 0 and 3; got 3 to 4"),
        (np.zeros((2, 3), int), {"key_mask": np.ones((2, 2), bool)}, ShapeError, r"key_mask is \(2, 2\), and tokens"),
        (np.zeros((2, 3), int), {"key_mask": np.ones((2, 3))}, DtypeError, "key_mask is boolean, .* got float64"),
        (np.zeros((2, 3), int), {"lengths": [3, 3], "key_mask": np.ones((2, 3), bool)}, ConfigError, "not both"),
        (np.zeros((2, 3), int), {"types": np.zeros(3, int)}, ShapeError, r"types \(3,\) do not fit tokens \(2, 3\)"),
        (np.zeros((1, 2), int), {"types": np.array([[0, 2]])}, IndexRangeError, "ids must be from 0 to 1; got 0 to 2"),
    ],
)
def test_inputs_that_cannot_be_are_refused(tokens: Any, given: dict[str, Any], error: type, message: str) -> None:
    model = shaken()
    for call in (model, model.hidden, model.look):
        with pytest.raises(error, match=message):
            call(tokens, **given)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (np.array([[0, 13]]), IndexRangeError, "target ids must be from 0 to 12; got 0 to 13"),
        (np.array([[1, 2, 3]]), ShapeError, r"targets \(1, 3\) do not fit tokens \(1, 2\)"),
        (np.array([[-100, -100]]), ShapeError, "none of 2 targets counts"),
    ],
)
def test_targets_that_cannot_be_are_refused(targets: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        shaken().loss(np.array([[0, 1]]), targets)


@pytest.mark.parametrize("field", [*SIZES, "type_vocab_size"])
@pytest.mark.parametrize("value", [0, -1, True, 2.0, "4"])
def test_a_size_that_cannot_be_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        BERTConfig(**{**SIZES, field: value})
