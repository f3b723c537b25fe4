"""Embedding: a vector is the mean of its own text's hidden states, whatever texts are beside it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.errors import DtypeError, ShapeError
from nanograd_llm.inference import classify, embed, fill, nearest, stream_text, write_texts
from nanograd_llm.models import BERT, BERTConfig, Classifier, SentenceEncoder
from nanograd_llm.text import ByteTokenizer, Tokenizer, WordPieceTokenizer
from nanograd_llm.text.wordpiece import SPECIAL

WORDS = WordPieceTokenizer([*SPECIAL, "the", "cat", "##s", "sees", "house", ".", "a"])
BYTES = ByteTokenizer()
SIZES = {"context_length": 12, "n_layer": 2, "n_head": 2, "n_embd": 8}
ENCODERS: list[tuple[SentenceEncoder, Tokenizer]] = [
    (SentenceEncoder(BERT(BERTConfig(vocab_size=12, **SIZES), seed=1)), WORDS),
    (SentenceEncoder(ng.GPT(ng.GPTConfig(vocab_size=257, **SIZES), seed=1)), BYTES),
]
TEXTS = ["the cat", "a house.", "cats", "the cat sees", "a cat a cat", "the cat"]
each_encoder = pytest.mark.parametrize(("encoder", "tokenizer"), ENCODERS, ids=["BERT", "GPT"])


@each_encoder
def test_a_vector_is_the_mean_of_the_last_hidden_states_at_length_one(
    encoder: SentenceEncoder, tokenizer: Tokenizer
) -> None:
    for text, vector in zip(TEXTS, embed(encoder, tokenizer, TEXTS)):
        mean = encoder.model.hidden(tokenizer.wrap(tokenizer.encode(text))[None]).data[0].mean(axis=0)
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


@each_encoder
def test_a_vector_does_not_depend_on_the_texts_beside_it(encoder: SentenceEncoder, tokenizer: Tokenizer) -> None:
    together = embed(encoder, tokenizer, TEXTS)
    assert together.shape == (6, 8) and together[0] == pytest.approx(together[5], abs=1e-6)
    for text, vector in zip(TEXTS, together):
        assert embed(encoder, tokenizer, [text])[0] == pytest.approx(vector, abs=1e-6)
    assert np.allclose(embed(encoder, tokenizer, TEXTS[::-1]), together[::-1], atol=1e-6)


def test_a_single_text_in_place_of_several_is_refused_with_the_list_to_give() -> None:
    (encoder, words), (writer, tokenizer) = ENCODERS
    calls: list[Callable[[], object]] = [
        lambda: embed(encoder, words, "cat"),
        lambda: classify(Classifier.on(encoder.model, 2), words, "cat"),
        lambda: stream_text(writer.model, tokenizer, [1], stop="cat"),
        lambda: write_texts(writer.model, tokenizer, [[1]], stop="cat"),
    ]
    for call in calls:
        with pytest.raises(DtypeError, match=r"must be a list of texts, got a str; give \['cat'\]"):
            call()
    with pytest.raises(DtypeError, match="text must be a str, of one text; got \\['a"):
        fill(encoder.model, words, ["a [MASK]"])  # type: ignore[arg-type]


def test_special_tokens_in_a_text_are_text() -> None:
    encoder, tokenizer = ENCODERS[0]
    assert np.array_equal(*embed(encoder, tokenizer, ["a [SEP]", "a ( sep )"]))


@each_encoder
def test_a_text_too_long_is_refused_by_its_number_or_cut(encoder: SentenceEncoder, tokenizer: Tokenizer) -> None:
    long = "a a a a a a a a a a a a a"
    with pytest.raises(ShapeError, match=r"text 2 has \d+ tokens, and the model takes 12; shorten it"):
        embed(encoder, tokenizer, ["cat", long])
    cut = embed(encoder, tokenizer, ["cat", long], truncate=True)
    assert np.array_equal(cut[1], embed(encoder, tokenizer, [long + " a"], truncate=True)[0])


def test_the_encoder_may_take_less_than_its_model() -> None:
    encoder = SentenceEncoder(ENCODERS[0][0].model, max_length=4)
    with pytest.raises(ShapeError, match="text 1 has 5 tokens, and the model takes 4"):
        embed(encoder, WORDS, ["a a a"])


@pytest.mark.parametrize("text", ["", "\0\0", " "])
def test_a_text_without_words_is_refused_by_its_number(text: str) -> None:
    with pytest.raises(ShapeError, match="text 2 is .* which has no words; leave it out"):
        embed(ENCODERS[0][0], WORDS, ["a", text])


def test_only_an_encoder_embeds() -> None:
    with pytest.raises(DtypeError, match="encoder must be a SentenceEncoder"):
        embed(ENCODERS[0][0].model, WORDS, ["a"])  # type: ignore[arg-type]


def test_the_nearest_rows_come_first_and_the_length_of_a_vector_does_not_count() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [-1.0, 0.0], [0.0, 0.0]])
    assert nearest(vectors, np.array([0.0, 5.0]), top=3) == [(1, 1.0), (2, pytest.approx(0.8)), (0, 0.0)]
    assert [place for place, _ in nearest(vectors, np.array([1.0, 0.0]), top=9)] == [0, 2, 1, 4, 3]
