"""A vector or a class for a whole text: what each pooling takes, and that neither padding nor neighbours matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanograd_llm import BERT, GPT, BERTConfig, GPTConfig, ops
from nanograd_llm.backend.threads import blas_threads
from nanograd_llm.errors import ConfigError, DtypeError, ShapeError
from nanograd_llm.models import Classifier, SentenceEncoder
from nanograd_llm.models.heads import POOLINGS, batches_by_length, text_vectors
from nanograd_llm.training import TrainConfig, Trainer

SIZES: dict[str, Any] = {"vocab_size": 13, "context_length": 8, "n_layer": 2, "n_head": 2, "n_embd": 6}
LENGTHS = np.array([7, 3, 5])
TOKENS = np.random.default_rng(0).integers(13, size=(3, 7))


def shaken(model: Any) -> Any:
    rng = np.random.default_rng(1)
    for parameter in model.astype(np.float64).parameters():
        parameter.data += 0.3 * rng.standard_normal(parameter.shape)
    return model


def bert() -> BERT:
    return shaken(BERT(BERTConfig(**SIZES, masked_word_head=False, pooler=True)))


def gpt() -> GPT:
    return shaken(GPT(GPTConfig(**SIZES)))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_pooling_takes_what_it_says_of_real_tokens(pooling: str) -> None:
    model = bert()
    hidden = model.hidden(TOKENS, lengths=LENGTHS)
    found = text_vectors(model, pooling, TOKENS, LENGTHS).data
    for b, length in enumerate(LENGTHS):
        x = hidden.data[b, :length]
        expected = {"mean": x.mean(axis=0), "first": x[0], "last": x[-1], "pooled": model.pooled(hidden).data[b]}
        assert np.allclose(found[b], expected[pooling], rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "pooling"), [(bert, pooling) for pooling in POOLINGS] + [(gpt, "mean"), (gpt, "first"), (gpt, "last")]
)
def test_a_vector_does_not_depend_on_padding_or_neighbours(make: Any, pooling: str) -> None:
    model = make()
    together = text_vectors(model, pooling, TOKENS, LENGTHS).data
    for b, length in enumerate(LENGTHS):
        alone = text_vectors(model, pooling, TOKENS[b : b + 1, :length]).data
        assert np.allclose(together[b], alone[0], rtol=1e-10, atol=1e-12)


def test_embedding_texts_of_any_lengths_keeps_their_order() -> None:
    encoder, rng = SentenceEncoder(bert()), np.random.default_rng(3)
    texts = [rng.integers(13, size=length) for length in (3, 8, 1, 3, 5, 3, 8)]
    for batch_tokens in (1, 6, 1000):
        found = encoder.embed(texts, batch_tokens=batch_tokens)
        assert found.shape == (7, 6)
        assert np.allclose((found**2).sum(axis=1), 1, rtol=1e-12)
        for text, vector in zip(texts, found):
            assert np.allclose(vector, encoder(text[None]).data[0], rtol=1e-10)
    assert encoder.embed([]).shape == (0, 6)


def test_threads_that_share_out_the_batches_give_the_vectors_of_one() -> None:
    encoder, rng = SentenceEncoder(shaken(BERT(BERTConfig(**{**SIZES, "n_embd": 64})))), np.random.default_rng(3)
    texts = [rng.integers(13, size=rng.integers(1, 9)) for _ in range(1500)]
    with blas_threads(1):
        alone = encoder.embed(texts, batch_tokens=256)
    assert np.allclose(encoder.embed(texts, batch_tokens=256), alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_thread_gets_as_many_batches_of_about_as_many_tokens(threads: int) -> None:
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(20, 60, 300).tolist(), *[30] * 200]
    batches = batches_by_length(lengths, 800, threads)
    assert sorted(place for batch in batches for place in batch) == list(range(500))
    by_batch = [[lengths[place] for place in batch] for batch in batches]
    assert len(batches) % threads == 0 and len(batches) - threads < sum(lengths) / 800 <= len(batches)
    assert all(abs(sum(sizes) - sum(lengths) / len(batches)) < 60 for sizes in by_batch)
    assert [size for sizes in by_batch for size in sizes] == sorted(lengths, reverse=True)


def test_few_texts_make_one_batch_but_a_long_one_and_short_ones_do_not() -> None:
    assert batches_by_length([2, 3, 1], 6, 2) == [[1, 0, 2]]
    assert batches_by_length([], 6, 2) == []
    assert batches_by_length([40, 500, 300, 30], 1000, 2) == [[1, 2], [0, 3]]


def test_without_normalising_a_vector_is_the_plain_mean() -> None:
    model = bert()
    plain = SentenceEncoder(model, normalise=False)(TOKENS, LENGTHS).data
    length = np.sqrt((plain**2).sum(axis=-1, keepdims=True))
    assert not np.allclose(length, 1)
    assert np.allclose(SentenceEncoder(model)(TOKENS, LENGTHS).data, plain / length, rtol=1e-12)


def test_the_loss_of_a_classifier_is_a_mean_over_the_texts_that_count() -> None:
    model = Classifier.on(bert(), 4)
    targets = np.array([3, -100, 0])
    assert model.loss(TOKENS, targets, LENGTHS).item() == pytest.approx(
        ops.cross_entropy(model(TOKENS, LENGTHS), targets).item(), rel=1e-12
    )
    assert model.loss_count(TOKENS, targets, LENGTHS) == 2


@pytest.mark.parametrize("make", [bert, gpt])
def test_a_trainer_teaches_a_classifier_which_token_a_text_has(make: Any) -> None:
    model = Classifier.on(make().astype(np.float32), 2)
    trainer = Trainer(model, TrainConfig(steps=60, learning_rate=1e-2, workers=1))
    rng, losses = np.random.default_rng(4), []
    for _ in range(60):
        tokens, lengths = rng.integers(0, 12, (16, 6)), rng.integers(2, 7, 16)
        targets = rng.integers(0, 2, 16)
        tokens[targets == 1, 1] = 12
        losses.append(trainer.step(tokens, targets, lengths))
    assert np.mean(losses[-10:]) < 0.3 < np.mean(losses[:5])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: text_vectors(bert(), "mean", TOKENS, [7, 0, 5]), ShapeError, "a text has no token at all"),
        (lambda: text_vectors(bert(), "mean", np.zeros((2, 0), int)), ShapeError, "a text has no token at all"),
        (lambda: text_vectors(gpt(), "pooled", TOKENS), ConfigError, "a GPT has no pooler"),
        (lambda: text_vectors(gpt(), "mean", TOKENS, None, TOKENS), ConfigError, "leave out types"),
        (lambda: Classifier.on(bert(), 2, pooling="max"), ConfigError, "pooling must be one of mean, first, last"),
        (lambda: Classifier.on(gpt(), 2, pooling="pooled"), ConfigError, "a GPT has no pooler; take the mean"),
        (lambda: Classifier.on(bert(), 0), ConfigError, "classes must be an integer of at least 1"),
        (lambda: Classifier(bert()), DtypeError, "for an existing model: Classifier.on"),
        (lambda: SentenceEncoder(bert()).embed([[1]], batch_tokens=0), ConfigError, "batch_tokens"),
        (lambda: SentenceEncoder(bert()).embed([[1] * 9]), ShapeError, "a text may have 8 tokens; got 9"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
