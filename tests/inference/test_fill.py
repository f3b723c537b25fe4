"""Filling in: the likeliest words for a mask are those of the model's own logits; what cannot be filled is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.errors import ConfigError, DtypeError, ShapeError
from nanograd_llm.inference import fill
from nanograd_llm.inference.fill import hidden_logits
from nanograd_llm.models import BERT, BERTConfig
from nanograd_llm.text import BPETokenizer, GPT2Tokenizer, Tokenizer, WordPieceTokenizer
from nanograd_llm.text.wordpiece import SPECIAL

WORDS = WordPieceTokenizer([*SPECIAL, "the", "cat", "##s", "sees", "house", ".", "a"])
PIECES = GPT2Tokenizer.of(BPETokenizer.train("the cat sees the house " * 9, 270)).with_special("[MASK]")


def model_of(tokenizer: Tokenizer, **changes: object) -> BERT:
    sizes = {"context_length": 12, "n_layer": 1, "n_head": 2, "n_embd": 8}
    model = BERT(BERTConfig(vocab_size=tokenizer.vocab_size, **sizes | changes), seed=1)  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.data[...] *= 8
    return model.eval()


MODEL = model_of(WORDS)


def test_the_guesses_are_the_likeliest_of_the_models_own_distribution() -> None:
    (guesses,) = fill(MODEL, WORDS, "The [MASK] sees the house.", top=4)
    ids = WORDS.wrap(WORDS.encode("the [MASK] sees the house.", allow_special=True))
    logits = MODEL(ids[None]).data[0, ids.tolist().index(WORDS.mask)].astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum()
    best = np.argsort(-p)[:4].tolist()
    assert [guess.id for guess in guesses] == best
    assert [guess.word for guess in guesses] == [WORDS.vocab[i] for i in best]
    assert [guess.probability for guess in guesses] == pytest.approx(p[best].tolist(), rel=1e-5)


def test_each_mask_is_judged_and_all_pieces_together_have_the_probability_one() -> None:
    found = fill(MODEL, WORDS, "[MASK] cats [MASK]", top=99)
    assert len(found) == 2 and all(len(guesses) == WORDS.vocab_size for guesses in found)
    assert sum(guess.probability for guess in found[0]) == pytest.approx(1)
    assert {guess.word for guess in found[0]} == {*WORDS.vocab}


def test_the_space_before_a_mask_belongs_to_the_word_that_is_hidden() -> None:
    for tokenizer in (WORDS, PIECES):
        model = model_of(tokenizer)
        assert fill(model, tokenizer, "the  [MASK] sees") == fill(model, tokenizer, "the[MASK] sees")
    words = {guess.word for guess in fill(model_of(PIECES), PIECES, "the [MASK] sees", top=999)[0]}
    assert {"cat", "##e", "' '", "[MASK]"} <= words


@pytest.mark.parametrize("tokenizer", [WORDS, PIECES], ids=["WordPiece", "BPE"])
def test_padded_ids_are_never_proposed_and_all_others_have_the_probability_one(tokenizer: Any) -> None:
    padded = tokenizer.changed(vocab_size=tokenizer.vocab_size + 6)
    (guesses,) = fill(model_of(padded), padded, "the [MASK] sees", top=9999)
    assert sorted(guess.id for guess in guesses) == [*range(tokenizer.vocab_size)]
    assert sum(guess.probability for guess in guesses) == pytest.approx(1)


def test_words_that_the_model_does_not_know_are_counted() -> None:
    with pytest.warns(UserWarning, match="2 words of the text cannot be cut"):
        fill(MODEL, WORDS, "the dog [MASK] dogs")


def test_the_logits_of_hidden_places_do_not_depend_on_padding() -> None:
    tokens = np.array([[2, 4, 6, 3, 0, 0], [2, 5, 4, 7, 8, 3]])
    both = hidden_logits(MODEL, tokens, tokens == WORDS.mask, lengths=np.array([4, 6]))
    alone = hidden_logits(MODEL, tokens[:1, :4], tokens[:1, :4] == WORDS.mask)
    assert np.abs(both[0] - alone[0]).max() <= 1e-5 * np.abs(alone).max()


def test_a_text_too_long_is_refused_or_cut() -> None:
    text = "[MASK] " + "cat " * 20
    with pytest.raises(ShapeError, match=r"text 1 has 23 tokens, and the model takes 12; shorten it.*--truncate"):
        fill(MODEL, WORDS, text)
    assert fill(MODEL, WORDS, text, truncate=True) == fill(MODEL, WORDS, "[MASK] " + "cat " * 9)
    with pytest.raises(ConfigError, match=r"^the part of the text that is kept has no"):
        fill(MODEL, WORDS, "cat " * 20 + "[MASK]", truncate=True)


@pytest.mark.parametrize(
    ("text", "case"), [("the cat", ""), ("the [mask] sees", ", in capital letters,"), ("the MASK", "")]
)
def test_a_text_without_a_mask_is_refused(text: str, case: str) -> None:
    with pytest.raises(ConfigError, match=rf"^the text has no \[MASK\]; write \[MASK\]{case} there in place of a word"):
        fill(MODEL, WORDS, text)


@pytest.mark.parametrize("text", ["", " \n", "\0\0\0"])
def test_an_empty_text_is_refused(text: str) -> None:
    with pytest.raises(ShapeError, match="text 1 is .* which has no words"):
        fill(MODEL, WORDS, text)


def test_a_model_without_a_head_or_a_mask_is_refused() -> None:
    with pytest.raises(ConfigError, match="no head that fills in words.*train --task masked-words --init"):
        fill(model_of(WORDS, masked_word_head=False), WORDS, "a [MASK]")
    with pytest.raises(ConfigError, match=r"tokenizer has no \[MASK\]"):
        fill(MODEL, BPETokenizer([]), "a [MASK]")
    gpt = ng.GPT(ng.GPTConfig(vocab_size=12, context_length=4, n_layer=1, n_head=1, n_embd=4))
    with pytest.raises(DtypeError, match="model must be a BERT"):
        fill(gpt, WORDS, "a [MASK]")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="top must be an integer of at least 1"):
        fill(MODEL, WORDS, "a [MASK]", top=0)
