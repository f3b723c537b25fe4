"""WordPiece cuts every text as the library `tokenizers` does, and its trainer joins the most frequent pairs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_wordpiece import FILE, RULES, random_string, theirs, vocabulary

from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.text import WordPieceTokenizer, builtin_corpus, load_tokenizer
from nanograd_llm.text.wordpiece import SPECIAL

STORED = json.loads(FILE.read_text("ascii"))
SMALL = WordPieceTokenizer([*SPECIAL, "un", "##aff", "##able", "!", "."])


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_the_ids_are_those_of_tokenizers(rules: dict[str, Any]) -> None:
    tokenizer = WordPieceTokenizer(STORED["vocab"], **rules)
    expected = [ids[RULES.index(rules)] for ids in STORED["ids"]]
    assert [tokenizer.encode(text).tolist() for text in STORED["strings"]] == expected


def test_the_stored_table_is_of_many_words_and_all_scripts() -> None:
    ids = [i for rows in STORED["ids"] for i in rows[0]]
    assert len(ids) > 3000 and 0.02 < ids.count(SPECIAL.index("[UNK]")) / len(ids) < 0.5
    assert len({character for text in STORED["strings"] for character in text}) > 1000


@pytest.mark.parity
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_ten_thousand_strings_of_all_scripts_are_cut_and_decoded_as_by_tokenizers(rules: dict[str, Any]) -> None:
    pytest.importorskip("tokenizers")
    rng = random.Random(1)
    strings = [random_string(rng) for _ in range(10_000)]
    vocab = vocabulary(strings)
    ours, reference = WordPieceTokenizer(vocab, **rules), theirs(vocab, **rules)
    for text in strings:
        ids = reference.encode(text).ids
        assert ours.encode(text).tolist() == ids, repr(text)
        assert ours.decode(ids).strip() == reference.decode(ids, skip_special_tokens=False).strip()


def test_special_tokens_are_found_only_where_they_are_allowed() -> None:
    text = "un[MASK] [SEP]able"
    unk = SMALL.unk
    assert SMALL.encode(text).tolist() == [5, unk, unk, unk, unk, unk, unk, unk]
    assert SMALL.encode(text, allow_special=True).tolist() == [5, SMALL.mask, SMALL.sep, unk]
    more = WordPieceTokenizer([*SMALL.vocab, "[E1]"], ["[E1]"])
    assert more.encode("[E1]un", allow_special=True).tolist() == [10, 5]


def test_the_special_tokens_are_known_by_name() -> None:
    assert [SMALL.pad, SMALL.unk, SMALL.cls, SMALL.sep, SMALL.mask] == [0, 1, 2, 3, 4]
    turned = WordPieceTokenizer(["un", *reversed(SPECIAL)])
    assert [turned.pad, turned.unk, turned.cls, turned.sep, turned.mask] == [5, 4, 3, 2, 1]


def test_a_text_is_wrapped_in_cls_and_sep() -> None:
    wrapped = SMALL.wrap(SMALL.encode("unable"))
    assert wrapped.tolist() == [2, 5, 7, 3] and wrapped.dtype == np.int32
    assert SMALL.wrap([]).tolist() == [2, 3]
    assert SMALL.decode(wrapped) == "[CLS] unable [SEP]"


def test_it_knows_which_pieces_continue_a_word() -> None:
    known = WordPieceTokenizer([*SMALL.vocab, "é", "##é", "漢", "##"])
    assert [piece for piece, does in zip(known.vocab, known.continues) if does] == ["##aff", "##able", "##é"]


def test_a_decoded_text_has_its_words_apart_and_its_pieces_together() -> None:
    assert SMALL.decode(SMALL.encode(" UNAFFABLE un. ")) == "unaffable un."
    assert "".join(SMALL.decode_stream([5, 6, 7, 5])) == " unaffable un"
    assert SMALL.pieces("unable!") == [(5, b" un"), (7, b"able"), (8, b"!")]


@given(st.text(st.characters(codec=None)))
def test_any_text_has_ids_and_what_is_decoded_is_encoded_so_again(text: str) -> None:
    tokenizer = WordPieceTokenizer(STORED["vocab"])
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.encode(tokenizer.decode(ids), allow_special=True).tolist() == ids.tolist()


def test_a_text_without_words_has_no_ids() -> None:
    for text in ("", " \n\t", "\0\0\0", "\u200b"):
        assert SMALL.encode(text).tolist() == []


def test_training_joins_the_most_frequent_pair_within_words() -> None:
    tokenizer = WordPieceTokenizer.train("low low low lower lower new", 5 + 10 + 4)
    alphabet = ["##e", "##o", "##r", "##w", "l", "n"]
    assert tokenizer.vocab == [*SPECIAL, *alphabet, "##ow", "low", "##er", "lower"]


def test_training_goes_on_until_every_word_that_occurs_twice_is_one_piece() -> None:
    text = "The cat sees the house. The house sees a naïve cat! A naive one."
    tokenizer = WordPieceTokenizer.train(text)
    assert [piece.decode() for _, piece in tokenizer.pieces("The cat sees the house")] == [
        *(" the", " cat", " sees", " the", " house")
    ]
    assert tokenizer.unk not in tokenizer.encode(text)
    assert WordPieceTokenizer.train(text, lowercase=False).encode("The the")[0] != tokenizer.encode("the")[0]


def test_training_on_the_manual_fills_its_vocabulary_and_covers_the_manual() -> None:
    text = builtin_corpus()[:100_000]
    tokenizer = WordPieceTokenizer.train(text, 500)
    assert tokenizer.vocab_size == 500
    assert tokenizer.unk not in tokenizer.encode(text)


@pytest.mark.parametrize("vocab_size", [4, 9, -1, True, 9.5, None])
def test_a_vocabulary_too_small_for_the_characters_is_refused(vocab_size: Any) -> None:
    with pytest.raises(ConfigError, match="vocab_size must be an integer of at least 10"):
        WordPieceTokenizer.train("abcde ab", vocab_size)


@pytest.mark.parametrize(
    "tokenizer",
    [
        SMALL,
        WordPieceTokenizer([*SMALL.vocab, "[E1]", "É"], ["[E1]"], lowercase=False, handle_chinese_chars=False),
        WordPieceTokenizer(STORED["vocab"], strip_accents=False),
    ],
    ids=str,
)
def test_it_comes_back_from_the_file_that_a_run_keeps(tokenizer: WordPieceTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert isinstance(again, WordPieceTokenizer)
    for name in (*again.fields, *again.optional):
        assert getattr(again, name) == getattr(tokenizer, name)
    for text in ("unÉ [E1] 漢字", *STORED["strings"][:50]):
        assert again.encode(text, allow_special=True).tolist() == tokenizer.encode(text, allow_special=True).tolist()


@pytest.mark.parametrize(
    ("vocab", "settings", "said"),
    [
        (["un"], {}, r"vocab lacks the special tokens '\[PAD\]', '\[UNK\]'"),
        ([], {}, "vocab lacks the special tokens"),
        ([*SPECIAL, "un", "un"], {}, "vocab gives two ids to 'un', 5 and 6"),
        ([*SPECIAL, ""], {}, r"vocab\[5\] is ''; expected a text"),
        ([*SPECIAL, 3], {}, r"vocab\[5\] is 3; expected a text"),
        ([*SPECIAL, "\ud800"], {}, r"vocab\[5\] is '\\ud800'"),
        (SPECIAL, {"lowercase": 1}, "lowercase must be True or False; got 1"),
        (SPECIAL, {"strip_accents": "no"}, "strip_accents must be True or False; got 'no'"),
        (SPECIAL, {"added": ["[E1]"]}, r"vocab lacks the special tokens '\[E1\]'"),
    ],
)
def test_what_cannot_be_a_vocabulary_is_refused_by_name(vocab: Any, settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        WordPieceTokenizer(vocab, **settings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab": "abc"}, "vocab must be a list of texts"),
        ({"vocab": [*SPECIAL, 1]}, "vocab must be a list of texts"),
        ({"added": "[E1]"}, "added must be a list of texts"),
        ({"vocab_size": 9}, "vocab_size must be an integer of at least 10"),
        ({"vocab_size": 10 + 2**16 + 1}, "vocab_size must be an integer of at most"),
        ({"lowercase": None}, "lowercase must be True or False"),
        ({"other": 1}, "its keys are"),
    ],
)
def test_a_saved_file_that_was_changed_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    SMALL.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BadFileError, match=said):
        load_tokenizer(tmp_path / "tokenizer.json")
