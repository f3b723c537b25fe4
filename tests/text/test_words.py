"""Words as tokens: each keeps the space before it, and what is not known is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nanograd_llm.errors import ConfigError, IndexRangeError
from nanograd_llm.text import WordTokenizer, load_tokenizer

TEXTS = ["je n'aime pas l'école, mais j'aime les amis.", "I don't like school; I like friends!"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_as_it_was(text: str) -> None:
    tokenizer = WordTokenizer.train(TEXTS)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text == "".join(tokenizer.decode_stream(ids.tolist()))
    assert tokenizer.end_of_text == 0 and 0 not in ids and ids.dtype == np.int32


def test_spaces_and_line_ends_are_one_space() -> None:
    tokenizer = WordTokenizer.train(TEXTS)
    assert tokenizer.decode(tokenizer.encode("  I \n like\t school ")) == "I like school"
    assert tokenizer.encode("").size == 0


def test_a_word_that_is_not_known_is_named_with_its_place_and_the_nearest() -> None:
    tokenizer = WordTokenizer.train(TEXTS)
    with pytest.raises(IndexRangeError, match=r"'schol', number 3 of 'I like schol', is not among the .* 'school'"):
        tokenizer.encode("I like schol")
    with pytest.raises(IndexRangeError, match="'9', .*; train on a text that has it"):
        tokenizer.encode("9")


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = WordTokenizer.train(TEXTS)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert isinstance(again, WordTokenizer) and again.words == tokenizer.words


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "one at least"), ([" b", " a"], "alphabetical"), ([" a", " a"], "each once"), (["a b"], "'a b' is no word")],
)
def test_words_that_cannot_be_a_vocabulary_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        WordTokenizer(words)
