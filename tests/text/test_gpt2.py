"""GPT-2's vocabulary: its alphabet, any order of ids, and errors that name what does not fit together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nanograd_llm.errors import BadFileError, ConfigError, IndexRangeError
from nanograd_llm.text import BPETokenizer, ByteTokenizer, CharTokenizer, GPT2Tokenizer, load_tokenizer
from nanograd_llm.text.gpt2 import ALPHABET, spell, unspell

BPE = BPETokenizer.train("the thin theory, then the other " * 5, 270)
PLAIN = GPT2Tokenizer.of(BPE)
TEXT = "the theory\tthen é 漢🙂\n\n  <|endoftext|> the\x00\x7f"


def changed(vocab: dict[str, Any], **settings: Any) -> GPT2Tokenizer:
    return GPT2Tokenizer({**PLAIN.vocab, **vocab}, PLAIN.merges, **settings)


def test_the_alphabet_has_a_printable_character_for_every_byte() -> None:
    assert len(set(ALPHABET.values())) == 256
    assert all(character.isprintable() and character != " " for character in ALPHABET.values())
    assert spell(b" \n\x00a") == "ĠĊĀa"
    assert unspell(spell(bytes(range(256)))) == bytes(range(256))
    with pytest.raises(ConfigError, match="has the character ' ', which is not in GPT-2's alphabet"):
        unspell("a b")


def test_it_encodes_as_the_bpe_tokenizer_that_it_is_made_from() -> None:
    assert PLAIN.encode(TEXT).tolist() == BPE.encode(TEXT).tolist()
    assert PLAIN.encode(TEXT, allow_special=True).tolist() == BPE.encode(TEXT, allow_special=True).tolist()
    assert PLAIN.decode(PLAIN.encode(TEXT)) == TEXT
    assert (PLAIN.vocab_size, PLAIN.end_of_text) == (BPE.vocab_size, BPE.end_of_text)


def test_any_order_of_ids_is_followed() -> None:
    size = PLAIN.vocab_size
    reversed_ids = GPT2Tokenizer({piece: size - 1 - i for piece, i in PLAIN.vocab.items()}, PLAIN.merges)
    assert reversed_ids.encode(TEXT).tolist() == [size - 1 - i for i in PLAIN.encode(TEXT).tolist()]
    assert reversed_ids.decode(reversed_ids.encode(TEXT)) == TEXT
    assert reversed_ids.end_of_text == 0


def test_end_of_text_is_one_id_only_where_special_tokens_are_allowed() -> None:
    assert PLAIN.end_of_text not in PLAIN.encode("a<|endoftext|>b")
    assert PLAIN.encode("a<|endoftext|>b", allow_special=True).tolist() == [97, PLAIN.end_of_text, 98]
    assert PLAIN.decode([PLAIN.end_of_text]) == "<|endoftext|>"


def test_other_special_tokens_are_decoded_and_never_encoded() -> None:
    more = changed({"<pad>": 270, "[MASK]": 271, "<|é|>": 272})
    assert more.decode([270, 271, 272]) == "<pad>[MASK]<|é|>"
    assert max(more.encode("<pad>[MASK]<|é|>", allow_special=True)) < 270


def test_an_added_token_is_one_id_everywhere_and_a_special_one_only_if_allowed() -> None:
    tokens = {"<sp>": 270, "the end": 271, "the": PLAIN.vocab["the"]}
    more = changed(tokens, added={"<sp>": True, "the end": False, "the": False})
    assert more.encode("<sp>the end", allow_special=True).tolist() == [270, 271]
    assert more.encode("x the end.").tolist() == [*PLAIN.encode("x "), 271, *PLAIN.encode(".")]
    assert 270 not in more.encode("<sp>the end")
    assert more.decode([271, 270]) == "the end<sp>"
    with pytest.raises(ConfigError, match="vocab lacks added tokens: 'x y'"):
        changed({}, added={"x y": False})


def test_one_more_special_token_gets_the_first_id_that_stands_for_nothing() -> None:
    for before, size in ((PLAIN, 271), (PLAIN.changed(vocab_size=300), 300)):
        more = before.with_special("[MASK]")
        assert (more.vocab_size, more.special_id("[MASK]"), more.end_of_text) == (size, 270, PLAIN.end_of_text)
        assert more.encode("the[MASK]", allow_special=True).tolist() == [*PLAIN.encode("the"), 270]
        assert more.encode(TEXT).tolist() == PLAIN.encode(TEXT).tolist()


def test_a_space_is_put_before_a_text_that_does_not_begin_with_white_space() -> None:
    spaced = PLAIN.changed(add_prefix_space=True)
    for text in ("the other", " the other", "\tthe", ""):
        expected = text if text[:1] in (" ", "\t", "") else f" {text}"
        assert spaced.encode(text).tolist() == PLAIN.encode(expected).tolist()
    parts = spaced.encode("the<|endoftext|>the", allow_special=True).tolist()
    the = PLAIN.encode(" the").tolist()
    assert parts == [*the, PLAIN.end_of_text, *the]


def test_the_ids_of_padding_decode_to_nothing() -> None:
    padded = PLAIN.changed(vocab_size=300)
    assert (padded.vocab_size, padded.end_of_text) == (300, PLAIN.end_of_text)
    assert padded.decode([299, 97, 270]) == "a"
    assert padded.encode(TEXT).tolist() == PLAIN.encode(TEXT).tolist()
    with pytest.raises(IndexRangeError):
        padded.decode([300])
    with pytest.raises(ConfigError, match="vocab_size must be an integer of at least 270"):
        PLAIN.changed(vocab_size=269)


@pytest.mark.parametrize(
    "tokenizer",
    [
        PLAIN,
        PLAIN.changed(vocab_size=300),
        changed({"<pad>": 270}),
        changed({"<sp>": 270, "new word": 271}, added={"<sp>": True, "new word": False}, end_of_text=270),
        PLAIN.changed(add_prefix_space=True),
    ],
    ids=str,
)
def test_a_saved_tokenizer_is_loaded_as_it_was(tokenizer: GPT2Tokenizer, tmp_path: Any) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert isinstance(again, GPT2Tokenizer)
    assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert (again.vocab_size, again.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
    assert (again.added, again.add_prefix_space) == (tokenizer.added, tokenizer.add_prefix_space)
    assert again.vocab == tokenizer.vocab and again.merges == tokenizer.merges


def test_a_byte_tokenizer_becomes_a_vocabulary_without_merges() -> None:
    assert GPT2Tokenizer.of(ByteTokenizer()).encode("é").tolist() == [195, 169]
    assert GPT2Tokenizer.of(PLAIN) is PLAIN
    with pytest.raises(ConfigError, match="is not made of bytes and merges"):
        GPT2Tokenizer.of(CharTokenizer("ab"))


def without(piece: str) -> dict[str, int]:
    """The vocabulary without a piece; later ids are reduced by one, so that there is no gap."""
    removed = PLAIN.vocab[piece]
    return {name: i - (i > removed) for name, i in PLAIN.vocab.items() if name != piece}


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ({**PLAIN.vocab, "a": 98}, None, "gives the id 98 to two pieces"),
        ({**PLAIN.vocab, "<x>": 271}, None, "has a gap: no piece has the id 270"),
        ({**PLAIN.vocab, "<x>": -1}, None, "has a gap: no piece has the id 270"),
        ({**PLAIN.vocab, "<x>": 270.0}, None, "an id that is not an integer: '<x>': 270.0"),
        ({**PLAIN.vocab, "<x>": True}, None, "an id that is not an integer: '<x>': True"),
        ({**PLAIN.vocab, "<x>": "270"}, None, "an id that is not an integer: '<x>': '270'"),
        (without("a"), None, "lacks bytes, or results of merges: 'a'"),
        (without("Ġ"), None, "lacks bytes, or results of merges: 'Ġ'"),
        (without("the"), None, "lacks bytes, or results of merges: 'the'"),
        ({**PLAIN.vocab, "thing": 270}, None, "pieces that no merge makes: 'thing'; do the merges belong"),
        (PLAIN.vocab, PLAIN.merges[:-1], "pieces that no merge makes"),
        (PLAIN.vocab, [("t", "x y"), *PLAIN.merges[1:]], "has the character ' '"),
        (PLAIN.vocab, [*PLAIN.merges[1:]], r"merges\[0\] joins"),
        (PLAIN.vocab, [*PLAIN.merges, PLAIN.merges[0]], r"merges\[13\] makes .* which merges\[0\] made"),
    ],
)
def test_a_vocab_and_merges_that_do_not_fit_are_refused_by_name(vocab: Any, merges: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPT2Tokenizer(vocab, PLAIN.merges if merges is None else merges)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab": []}, "vocab must be an object and merges a list"),
        ({"merges": ["a  b"]}, "'a  b' is not a merge"),
        ({"merges": ["a"]}, "'a' is not a merge"),
        ({"merges": [3]}, "3 is not a merge"),
        ({"merges": [["a", ""]]}, "is not a merge"),
        ({"vocab_size": 12}, "vocab_size must be an integer of at least 270"),
        ({"vocab_size": 270.0}, "vocab_size must be an integer"),
        ({"vocab_size": 400_000_000}, "vocab_size must be an integer of at most 65,806"),
        ({"added": ["a"]}, "added must be an object with the values true and false"),
        ({"added": {"a": 1}}, "added must be an object with the values true and false"),
        ({"add_prefix_space": 1}, "add_prefix_space true or false"),
        ({"end_of_text": 270}, "end_of_text must be an integer of at most 269"),
        ({"added_tokens": {}}, "its keys are"),
    ],
)
def test_a_damaged_saved_file_is_refused(changes: dict[str, Any], message: str, tmp_path: Any) -> None:
    PLAIN.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8")) | changes
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BadFileError, match=message):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_word_of_a_megabyte_and_odd_texts_are_encoded() -> None:
    word = "the" * 350_000
    assert PLAIN.decode(PLAIN.encode(word)) == word
    assert PLAIN.decode(PLAIN.encode("\ud83d\ude00 \ud83d")) == "😀 \ufffd"
