"""The BPE trainer equals its definition, splits words as GPT-2 does, and can train on a word of a megabyte."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanograd_llm.errors import ConfigError
from nanograd_llm.text import BPETokenizer, builtin_corpus, train_bpe
from nanograd_llm.text.bpe import SPLIT_PATTERN

GPT2_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # as GPT-2's encoder.py has it
)
SPACES = " \n\t\r\x0b\x0c\x1c\x85\u00a0\u2003\u3000"


def join(word, left, right):
    """Every `left` followed by `right` joined, from the left."""
    joined = []
    for piece in word:
        if joined and piece == right and joined[-1] == left:
            joined[-1] = left + right
            # A piece just made never joins again within one merge: left + right is longer than left.
        else:
            joined.append(piece)
    return joined


def definition(text, vocab_size):
    """BPE training by its definition: count all pairs again for every merge."""
    words = Counter(regex.findall(GPT2_PATTERN, text))
    words = [([bytes([byte]) for byte in word.encode()], count) for word, count in words.items()]
    ids = {bytes([byte]): byte for byte in range(256)}
    merges = []
    while len(merges) < vocab_size - 257:
        pairs = Counter()
        for word, count in words:
            for left, right in pairwise(word):
                pairs[left, right] += count
        if not pairs or max(pairs.values()) < 2:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        merges.append((left, right))
        ids[left + right] = 256 + len(merges) - 1
        words = [(join(word, left, right), count) for word, count in words]
    return merges


def test_the_example_of_wikipedia_is_reproduced():
    assert train_bpe("aaabdaaabac", 256 + 3 + 1) == [(b"a", b"a"), (b"a", b"b"), (b"aa", b"ab")]


@settings(derandomize=True, deadline=None)
@given(st.text("ab c'1.\né", max_size=80), st.integers(257, 280))
@example("aaaaaaaaaaaaaaaaaaaaaaaaaaa", 270)
@example("abababab babababa aabbaabb", 270)
def test_training_equals_its_definition(text, vocab_size):
    assert train_bpe(text, vocab_size) == definition(text, vocab_size)


def test_training_equals_its_definition_on_the_manual():
    text = builtin_corpus()[:8000]
    assert train_bpe(text, 400) == definition(text, 400)


def test_among_equally_frequent_pairs_the_smaller_ids_merge_first():
    assert train_bpe("cd\nab\ncd\nab", 258) == [(b"a", b"b")]
    assert train_bpe("bd\nba\nbd\nba", 258) == [(b"b", b"a")]


def test_training_stops_when_no_pair_occurs_twice():
    assert train_bpe("abc", 1024) == []
    assert train_bpe("", 1024) == []
    assert BPETokenizer.train("abc abc", 1024).vocab_size < 1024


def test_a_vocabulary_of_1024_on_the_manual_is_full_and_the_same_each_time():
    merges = train_bpe(builtin_corpus(), 1024)
    assert len(merges) == 1024 - 257
    assert merges == train_bpe(builtin_corpus(), 1024)


@settings(derandomize=True)
@given(st.text(SPACES + "a1'se!é", max_size=30))
def test_the_words_are_the_same_as_gpt2s(text):
    assert regex.findall(SPLIT_PATTERN, text) == regex.findall(GPT2_PATTERN, text)


@pytest.mark.parametrize("n", [1, 2, 998, 999, 1000, 1001, 1998, 1999, 5000])
@pytest.mark.parametrize("rest", ["", "a", "!", "\n"])
def test_long_white_space_is_split_as_gpt2_does(n, rest):
    text = "x" + " " * n + rest
    assert regex.findall(SPLIT_PATTERN, text) == regex.findall(GPT2_PATTERN, text)


def test_a_word_of_a_megabyte_trains():
    merges = train_bpe("a" * 1_000_000, 1024)
    assert merges[:3] == [(b"a", b"a"), (b"aa", b"aa"), (b"aaaa", b"aaaa")]
    assert max(len(left + right) for left, right in merges) == 2**19


@pytest.mark.parametrize("word", ["a", " ", "\n", "1", "!", "é"])
def test_a_megabyte_of_one_character_is_encoded(word):
    text = word * 1_000_000 + "x"
    tokenizer = BPETokenizer.train("aaaa    \n\n\n\n1111!!!!éééé", 280)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_surrogates_and_nul_in_the_training_text_do_not_stop_training():
    assert train_bpe("\ud800\ud800 \x00\x00\x00", 260) == train_bpe("\ufffd\ufffd \x00\x00\x00", 260)


@pytest.mark.parametrize("vocab_size", [256, 0, -1, True, 300.0, "300", None])
def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused(vocab_size):
    with pytest.raises(ConfigError, match=r"vocab_size must be an integer of at least 257"):
        train_bpe("text", vocab_size)


def test_several_texts_give_the_merges_of_all_their_words_together():
    texts = ["the cat sat\n", "on the mat\n", "the cats\n"] * 5
    assert train_bpe(iter(texts), 290) == train_bpe("".join(texts), 290)


def test_learning_reports_the_share_that_is_done():
    told = []
    train_bpe(builtin_corpus()[:20_000], 700, lambda doing, share: told.append(share))
    assert told == sorted(told) and len(told) == 4 and 0 < told[0] < told[-1] < 1


@pytest.mark.thorough
@pytest.mark.parametrize("word", ["0123456789", "a", " ", "e\u0301\u0302"])
def test_a_word_of_ten_megabytes_trains_and_is_encoded(word):
    rng = np.random.default_rng(0)
    text = "".join(np.array(list(word))[rng.integers(len(word), size=10**7)]) if len(word) == 10 else word * 10**7
    tokenizer = BPETokenizer(train_bpe(text[: 10**7], 1000))
    assert tokenizer.decode(tokenizer.encode(text[: 10**7])) == text[: 10**7]
