"""Tokenizers: decoding undoes encoding, tiktoken equals the merges in order, and saved files are checked."""

import codecs
import errno
import json
import os

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from nanograd_llm.errors import BadFileError, ConfigError, DtypeError, IndexRangeError, ShapeError, StorageError
from nanograd_llm.text import END_OF_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer, builtin_corpus, load_tokenizer
from nanograd_llm.text.bpe import SPLIT_PATTERN
from nanograd_llm.text.corpora import well_formed

CORPUS = builtin_corpus()
BPE = BPETokenizer.train(CORPUS, 600)
BYTES = ByteTokenizer()
CHARACTERS = CharTokenizer.train(CORPUS)
ALL = [BYTES, CHARACTERS, BPE]
EVERY_TEXT = [BYTES, BPE]

any_text = st.text(st.characters(codec=None))  # surrogates too
known_text = st.text(st.sampled_from(CHARACTERS.characters))
english = st.lists(st.sampled_from(CORPUS[:20_000].split(" "))).map(" ".join)


def apply_in_order(merges, text):
    """BPE encoding by its definition: within each word, apply every merge, in order, from the left."""
    pieces = []
    for word in regex.findall(SPLIT_PATTERN, text):
        parts = [bytes([byte]) for byte in word.encode()]
        for left, right in merges:
            i = 0
            while i + 1 < len(parts):
                if (parts[i], parts[i + 1]) == (left, right):
                    parts[i : i + 2] = [left + right]
                i += 1
        pieces += parts
    return pieces


@pytest.mark.parametrize("tokenizer", EVERY_TEXT, ids=repr)
@settings(derandomize=True, deadline=None)
@given(any_text)
@example("\x00")
@example(END_OF_TEXT)
@example("\ud800")
@example("\U0001f600 naïve\r\n")
def test_decoding_undoes_encoding_for_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == well_formed(text)


@settings(derandomize=True, deadline=None)
@given(known_text)
def test_decoding_undoes_encoding_for_text_of_known_characters(text):
    assert CHARACTERS.decode(CHARACTERS.encode(text)) == text


@pytest.mark.parametrize("tokenizer", ALL, ids=repr)
def test_ids_are_one_row_of_int32_within_the_vocabulary(tokenizer):
    ids = tokenizer.encode(CORPUS)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == CORPUS


@pytest.mark.parametrize("tokenizer", ALL, ids=repr)
def test_an_empty_text_has_no_ids(tokenizer):
    ids = tokenizer.encode("")
    assert (ids.shape, ids.dtype) == ((0,), np.int32)
    assert tokenizer.decode(ids) == tokenizer.decode([]) == ""


def test_the_vocab_size_includes_end_of_text():
    assert (BYTES.vocab_size, BYTES.end_of_text) == (257, 256)
    assert (BPE.vocab_size, BPE.end_of_text) == (600, 599)
    assert len(BPE.merges) == 600 - 257
    assert (CHARACTERS.vocab_size, CHARACTERS.end_of_text) == (len(set(CORPUS)), None)


@pytest.mark.parametrize("tokenizer", EVERY_TEXT, ids=repr)
def test_end_of_text_is_a_token_only_where_allowed(tokenizer):
    text = f"one{END_OF_TEXT}{END_OF_TEXT} two"
    end = tokenizer.end_of_text
    assert end not in tokenizer.encode(text)
    allowed = tokenizer.encode(text, allow_special=True)
    one, two = tokenizer.encode("one"), tokenizer.encode(" two")
    assert allowed.dtype == np.int32
    assert allowed.tolist() == [*one, end, end, *two]
    assert tokenizer.decode(allowed) == text


def test_end_of_text_is_ordinary_text_if_the_vocabulary_has_no_such_token():
    tokenizer = CharTokenizer.train(END_OF_TEXT)
    assert tokenizer.encode(END_OF_TEXT, allow_special=True).tolist() == tokenizer.encode(END_OF_TEXT).tolist()


@pytest.mark.parametrize("tokenizer", ALL, ids=repr)
def test_a_lone_surrogate_is_read_as_the_replacement_character(tokenizer):
    if tokenizer is CHARACTERS:
        tokenizer = CharTokenizer.train("a\ufffd")
    assert tokenizer.encode("a\udc80").tolist() == tokenizer.encode("a\ufffd").tolist()


@pytest.mark.parametrize("tokenizer", ALL, ids=repr)
def test_only_str_is_encoded(tokenizer):
    with pytest.raises(DtypeError, match="got bytes"):
        tokenizer.encode(b"bytes")


@pytest.mark.parametrize("tokenizer", ALL, ids=repr)
def test_an_id_outside_the_vocabulary_is_named(tokenizer):
    for wrong in (-1, tokenizer.vocab_size, 2**40):
        with pytest.raises(IndexRangeError, match=rf"id {wrong} at position 2 .* {tokenizer.vocab_size} tokens"):
            tokenizer.decode([0, 1, wrong])


@pytest.mark.parametrize("ids", [[1.0], ["a"], [True], [2**70]])
def test_ids_that_are_not_integers_are_refused(ids):
    with pytest.raises(DtypeError, match="ids must be integers"):
        BYTES.decode(ids)


@pytest.mark.parametrize("ids", [65, [[65, 66]]])
def test_only_one_row_of_ids_is_decoded(ids):
    with pytest.raises(ShapeError, match="one row"):
        BYTES.decode(ids)


def test_incomplete_utf8_decodes_to_the_replacement_character():
    assert BYTES.decode([0xC3]) == "\ufffd"
    assert BYTES.decode([0xC3, 0x21]) == "\ufffd!"
    assert BYTES.decode_bytes([0xC3]) == b"\xc3"


@settings(derandomize=True, deadline=None)
@given(st.text())
def test_decode_bytes_streams_text_token_by_token(text):
    decoder = codecs.getincrementaldecoder("utf-8")()
    assert "".join(decoder.decode(BPE.decode_bytes([i])) for i in BPE.encode(text)) == text


@pytest.mark.parametrize("tokenizer", ALL, ids=repr)
def test_pieces_are_the_ids_with_their_bytes(tokenizer):
    text = "The “quoted” statement"
    pieces = tokenizer.pieces(text)
    assert [i for i, _ in pieces] == tokenizer.encode(text).tolist()
    assert b"".join(piece for _, piece in pieces) == text.encode()
    assert all(tokenizer.decode_bytes([i]) == piece for i, piece in pieces)


def test_a_piece_continues_a_word_where_it_begins_with_a_letter_or_a_digit():
    pieces = BPE.pieces("The statement's 3rd naïve, re-raised")
    words = "".join(("" if BPE.continues[i] else "|") + piece.decode("latin-1") for i, piece in pieces)
    assert words.encode("latin-1").decode() == "The| statement|'s| 3rd| naïve|,| re|-raised"
    assert BYTES.continues[list("aé7".encode())].all() and not BYTES.continues[list(b" .\n")].any()


def test_a_vocabulary_without_cls_and_sep_wraps_nothing_around_a_text():
    assert BYTES.wrap(BYTES.encode("ab")).tolist() == [97, 98]
    assert (BPE.special_id("[MASK]"), BPE.special_id(END_OF_TEXT)) == (None, 599)


def test_an_unknown_character_is_named_with_its_position():
    with pytest.raises(IndexRangeError, match="character 'é' at position 3 is not among the 3 characters"):
        CharTokenizer.train("abc").encode("abcéd")


@pytest.mark.parametrize("character", ["\x00", "\U0010ffff"])
def test_a_character_beyond_either_end_of_the_vocabulary_is_unknown(character):
    with pytest.raises(IndexRangeError, match="at position 0"):
        CharTokenizer.train("abc").encode(character)


@pytest.mark.parametrize("characters", ["", "aa", "ba", "a\ud800", None, ["a"]])
def test_characters_must_be_in_order_without_duplicates(characters):
    with pytest.raises(ConfigError, match="characters"):
        CharTokenizer(characters)


def test_the_encoding_is_a_tiktoken_encoding():
    assert isinstance(BPE.encoding, tiktoken.Encoding)
    assert BPE.encoding.n_vocab == BPE.vocab_size
    assert BPE.encoding.eot_token == BPE.end_of_text
    text = CORPUS[:1000] + END_OF_TEXT
    assert BPE.encode(text, allow_special=True).tolist() == BPE.encoding.encode(text, allowed_special="all")


@settings(derandomize=True, deadline=None, max_examples=50)
@given(english | known_text | st.text(st.characters(exclude_categories=["Cs", "Cn"])))
def test_tiktoken_equals_the_merges_applied_in_order(text):
    assert [piece for _, piece in BPE.pieces(text)] == apply_in_order(BPE.merges, text)


def test_tiktoken_equals_the_merges_applied_in_order_on_the_manual():
    text = CORPUS[100_000:105_000]
    assert [piece for _, piece in BPE.pieces(text)] == apply_in_order(BPE.merges, text)


merges_of_a_and_b = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=10)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(merges_of_a_and_b, st.text("ab", max_size=14))
@example([(0, 0), (0, 2)], "aaaa")
@example([(0, 0), (2, 0), (2, 2)], "aaaaaaa")
@example([(0, 1), (0, 0), (1, 2)], "aabaab")
def test_merges_are_refused_exactly_if_tiktoken_would_not_follow_them(pairs, text):
    tokens = [b"a", b"b"]
    merges = []
    for left, right in pairs:
        merges.append((tokens[left % len(tokens)], tokens[right % len(tokens)]))
        tokens.append(b"".join(merges[-1]))
    assume(len(set(tokens)) == len(tokens))
    reachable = all(apply_in_order(merges, token.decode()) == [token] for token in tokens)
    if reachable:
        assert [piece for _, piece in BPETokenizer(merges).pieces(text)] == apply_in_order(merges, text)
    else:
        with pytest.raises(ConfigError, match="can never happen"):
            BPETokenizer(merges)


def test_merges_are_shown_as_readable_lines():
    tokenizer = BPETokenizer([(b"t", b"h"), (b"\n", b" "), (b"\xe2", b"\x80")])
    assert tokenizer.show_merges().splitlines() == [
        "0: 't' + 'h' -> 'th'",
        "1: '\\n' + ' ' -> '\\n '",
        "2: b'\\xe2' + b'\\x80' -> b'\\xe2\\x80'",
    ]
    assert len(BPE.show_merges(7).splitlines()) == 7


@pytest.mark.parametrize("tokenizer", ALL, ids=repr)
def test_a_saved_tokenizer_encodes_as_before(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(loaded) is type(tokenizer)
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.end_of_text == tokenizer.end_of_text
    assert loaded.encode(CORPUS[:5000]).tolist() == tokenizer.encode(CORPUS[:5000]).tolist()
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def test_a_loaded_bpe_keeps_its_merges_in_order(tmp_path):
    BPE.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).merges == BPE.merges


@pytest.mark.parametrize("name", ["missing/tokenizer.json", ".", "nul\x00"])
def test_a_path_that_cannot_be_written_is_a_storage_error(tmp_path, name):
    with pytest.raises(StorageError, match="cannot write|not a regular file"):
        BYTES.save(tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_only_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "tokenizer.json"
    CHARACTERS.save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(StorageError, match="No space left"):
        BYTES.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def test_a_missing_tokenizer_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        load_tokenizer(tmp_path / "tokenizer.json")


def bpe(*merges, vocab_size=None, **more):
    size = 257 + len(merges) if vocab_size is None else vocab_size
    return json.dumps({"kind": "bpe", "vocab_size": size, "merges": merges} | more)


def characters(value, vocab_size=2):
    return json.dumps({"kind": "characters", "vocab_size": vocab_size, "characters": value})


BAD_FILES = {
    "not JSON": ("{", "Expecting"),
    "not an object": ("[1]", "found list"),
    "nested too deep": ("[" * 100_000, "nested too deeply"),
    "an integer of 5,000 digits": ('{"kind": "bytes", "vocab_size": ' + "1" * 5000 + "}", "5,000 digits"),
    "no kind": ('{"vocab_size": 257}', r"kind must be one of bytes, characters, bpe, gpt2, wordpiece, words; got None"),
    "unknown kind": ('{"kind": "unigram"}', "kind must be .*; got 'unigram'"),
    "kind is not a string": ('{"kind": ["bpe"]}', r"kind must be .*; got \['bpe'\]"),
    "key missing": ('{"kind": "bpe", "vocab_size": 257}', r"expected \['kind', 'merges', 'vocab_size'\]"),
    "key unknown": (bpe(more=1), r"keys are \['kind', 'merges', 'more', 'vocab_size'\]"),
    "key twice": ('{"kind": "bytes", "kind": "bpe"}', "duplicate key 'kind'"),
    "vocab_size beyond the tokens": (bpe(["a", "b"], vocab_size=259), "vocab_size is 259, but it has 258 tokens"),
    "vocab_size is a float": ('{"kind": "bytes", "vocab_size": 257.0}', "vocab_size is 257.0"),
    "vocab_size is a bool": (characters("a", True), "vocab_size is True"),
    "vocab_size is NaN": ('{"kind": "bytes", "vocab_size": NaN}', "NaN is not a JSON number"),
    "character twice": (characters("aa"), "'a' before 'a'"),
    "characters out of order": (characters("ba"), "'b' before 'a'"),
    "characters are not a string": (characters(["a", "b"]), r"characters is \['a', 'b'\]"),
    "surrogate among the characters": (characters("a\ud800"), "surrogates"),
    "merges are not a list": (json.dumps({"kind": "bpe", "vocab_size": 257, "merges": {}}), "merges is a dict"),
    "merge of one": (bpe(["a"]), r"merges\[0\] is \['a'\]; expected two strings"),
    "merge of numbers": (bpe(["a", "b"], [1, 2]), r"merges\[1\] is \[1, 2\]"),
    "merge of a character that is not a byte": (bpe(["a", "…"]), r"merges\[0\] is"),
    "merge of nothing": (bpe(["a", ""]), r"merges\[0\] joins '', which no earlier merge makes"),
    "merge before its part": (bpe(["th", "e"], ["t", "h"]), r"merges\[0\] joins 'th', which no earlier merge makes"),
    "token twice": (
        bpe(["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]),
        r"merges\[3\] makes 'abc', which merges\[2\]",
    ),
    "merges swapped": (
        bpe(["h", "e"], ["t", "h"], ["th", "e"]),
        r"merges\[2\] \('th' \+ 'e'\) can never happen: merges\[0\] \('h' \+ 'e'\) comes first",
    ),
}


@pytest.mark.parametrize(("content", "found"), BAD_FILES.values(), ids=BAD_FILES)
def test_the_error_for_a_bad_tokenizer_file_says_what_was_found(content, found, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(BadFileError, match=rf"(?s)tokenizer\.json is not a tokenizer.*({found})"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_file_cut_at_any_byte_is_refused(tmp_path):
    content = bpe(["a", "b"])
    for length in range(len(content)):
        (tmp_path / "tokenizer.json").write_text(content[:length], encoding="utf-8")
        with pytest.raises(BadFileError, match=r"tokenizer\.json"):
            load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["plain", "é, 漢字 and \N{GRINNING FACE}", ""])
def test_a_stream_of_ids_gives_the_text_without_a_broken_character(text):
    tokenizer = ByteTokenizer()
    pieces = list(tokenizer.decode_stream(tokenizer.encode(text).tolist()))
    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_a_stream_that_ends_inside_a_character_gives_the_replacement_character():
    assert "".join(ByteTokenizer().decode_stream([104, 195])) == "h\N{REPLACEMENT CHARACTER}"


def test_ids_given_to_encode_are_named() -> None:
    with pytest.raises(DtypeError, match=r"encode takes a str, got list; ids are encoded already"):
        ByteTokenizer().encode([1, 2])  # type: ignore[arg-type]
