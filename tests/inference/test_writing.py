"""Text while it is generated: whole characters, an end, and a conversation that keeps all that was said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig
from nanograd_llm.errors import ConfigError, IndexRangeError
from nanograd_llm.inference import Conversation, Dialogue, Sampling, generate, stream_text, writing
from nanograd_llm.inference.writing import default_prompt, unescaped
from nanograd_llm.text import ByteTokenizer, CharTokenizer, Tokenizer
from nanograd_llm.text.template import Template

BYTES = ByteTokenizer()
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> GPT:
    return GPT(GPTConfig(vocab_size=257, context_length=32, n_layer=1, n_head=2, n_embd=16), seed=1)


def spoken(monkeypatch: pytest.MonkeyPatch, *replies: str) -> list[str]:
    """Make the model say these replies, one a call, a byte a token; returns the texts that it was shown."""
    shown: list[str] = []
    waiting = iter(replies)

    def stream(_: Any, ids: Any, **settings: Any) -> Any:
        shown.append(BYTES.decode(ids))
        tokens = BYTES.encode(next(waiting), allow_special=True).tolist()
        return iter([[token] for token in tokens[: settings["max_new_tokens"]]])

    monkeypatch.setattr(writing, "stream", stream)
    return shown


def test_the_text_is_that_of_the_generated_tokens(model: GPT) -> None:
    ids = BYTES.encode("hello")
    (new,) = generate(model, ids, max_new_tokens=20, sampling=GREEDY)
    assert "".join(stream_text(model, BYTES, ids, max_new_tokens=20, sampling=GREEDY)) == BYTES.decode(new)


def test_the_text_ends_where_the_model_says_so(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken(monkeypatch, "one<|endoftext|>two")
    assert "".join(stream_text(model, BYTES, BYTES.encode("x"), max_new_tokens=99)) == "one"


def test_a_character_of_several_tokens_comes_whole(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken(monkeypatch, "é漢")
    pieces = list(stream_text(model, BYTES, BYTES.encode("x"), max_new_tokens=99))
    assert [piece for piece in pieces if piece] == ["é", "漢"]


def test_a_conversation_shows_the_model_all_that_was_said(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = spoken(monkeypatch, "hello\n\nmore", "fine", "and on")
    talk = Conversation(model, BYTES)
    assert "".join(talk.reply("Hi.")) == "hello"  # a reply ends at an empty line
    assert "".join(talk.reply("How are you?")) == "fine"
    assert "".join(talk.reply("")) == "and on"  # an empty line adds nothing
    assert shown == ["Hi.\n", "Hi.\nhello\nHow are you?\n", "Hi.\nhello\nHow are you?\nfine\n"]


def test_a_reply_may_begin_with_empty_lines_and_is_streamed(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken(monkeypatch, "\n\n\nso\nit\n\nis")
    pieces = list(Conversation(model, BYTES).reply("Hi."))
    assert len(pieces) > 3
    assert "".join(pieces).strip("\n") == "so\nit"


def test_a_reply_has_its_limit_and_the_first_line_may_be_empty(model: GPT) -> None:
    talk = Conversation(model, BYTES, max_new_tokens=5, sampling=GREEDY)
    assert len(BYTES.encode("".join(talk.reply("")))) <= 15  # five bytes, perhaps each a replaced one
    assert talk.ids[0] == 10


def test_of_a_reply_that_ends_early_the_conversation_keeps_what_was_yielded(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = spoken(monkeypatch, "hello", "again")
    talk = Conversation(model, BYTES)
    reply = talk.reply("Hi.")
    assert next(reply) + next(reply) == "he"
    reply.close()  # type: ignore[attr-defined]
    list(talk.reply("And?"))
    assert shown == ["Hi.\n", "Hi.\nhe\nAnd?\n"]


def test_a_conversation_outgrows_the_context(model: GPT) -> None:
    talk = Conversation(model, BYTES, max_new_tokens=10, sampling=GREEDY)
    for _ in range(6):
        list(talk.reply("a line of text"))
    assert len(talk.ids) > 3 * 32
    assert talk.ids.dtype == np.int32


@pytest.mark.parametrize(
    ("tokenizer", "text"), [(BYTES, "\n"), (CharTokenizer("\t\nab"), "\n"), (CharTokenizer("ab"), "a")]
)
def test_a_text_without_a_prompt_begins_with_a_new_line_where_there_is_one(tokenizer: Tokenizer, text: str) -> None:
    assert default_prompt(tokenizer) == text


def test_a_conversation_works_with_a_tokenizer_that_has_no_new_line() -> None:
    tokenizer = CharTokenizer("abc")
    model = GPT(GPTConfig(vocab_size=3, context_length=32, n_layer=1, n_head=2, n_embd=16), seed=1)
    talk = Conversation(model, tokenizer, max_new_tokens=3, sampling=GREEDY)
    assert len("".join(talk.reply("abba"))) == 3
    assert tokenizer.decode(talk.ids).startswith("abba") and len(talk.ids) == 7
    talk = Conversation(model, tokenizer, max_new_tokens=3, sampling=GREEDY)
    assert len("".join(talk.reply(""))) == 3
    assert len(talk.ids) == 4


def test_a_line_that_the_tokenizer_cannot_read_adds_nothing_to_a_conversation() -> None:
    model = GPT(GPTConfig(vocab_size=3, context_length=32, n_layer=1, n_head=2, n_embd=16), seed=1)
    talk = Conversation(model, CharTokenizer("abc"), max_new_tokens=3)
    list(talk.reply("ab"))
    before = talk.ids.tolist()
    with pytest.raises(IndexRangeError, match="character 'x' at position 1"):
        list(talk.reply("axe"))
    assert talk.ids.tolist() == before


# A text that ends what is written


def test_a_stop_text_is_read_with_its_escapes_and_one_that_says_no_text_is_refused() -> None:
    assert [unescaped(text) for text in (r"\n\n", "Ü€", r"a\\", r"\x41")] == ["\n\n", "Ü€", "a\\", "A"]
    for text in ("", "\\", r"\x", r"\N{no name}"):
        with pytest.raises(ConfigError, match=r"stop is '.*'; give a text, such as"):
            unescaped(text)


# A dialogue


def test_a_dialogue_shows_the_model_each_turn_in_its_template_and_its_end(model: GPT, monkeypatch: Any) -> None:
    shown = spoken(monkeypatch, "no<|endoftext|>more", "yes<|endoftext|>")
    talk = Dialogue(model, BYTES, Template("Q {instruction}\nA ", turns=9), max_new_tokens=10)
    assert "".join(talk.reply("Hi")) == "no"
    assert "".join(talk.reply(" ")) == ""
    assert "".join(talk.reply("So")) == "yes"
    assert shown == ["Q Hi\nA ", "Q Hi\nA no<|endoftext|>Q So\nA "]


def test_a_dialogue_leaves_out_its_oldest_turns_where_there_is_no_room(model: GPT, monkeypatch: Any) -> None:
    shown = spoken(monkeypatch, *["1234<|endoftext|>"] * 4)
    talk = Dialogue(model, BYTES, Template("{instruction}:", turns=9), max_new_tokens=16)
    for question in ("a", "b", "c", "d"):
        list(talk.reply(question))
    assert [text.replace("<|endoftext|>", ".") for text in shown] == [
        "a:",
        "a:1234.b:",
        "a:1234.b:1234.c:",
        "b:1234.c:1234.d:",
    ]


def test_a_reply_of_a_dialogue_that_ends_early_keeps_what_came(model: GPT, monkeypatch: Any) -> None:
    shown = spoken(monkeypatch, "abcdef", "x")
    talk = Dialogue(model, BYTES, Template("{instruction}:", turns=2))
    reply = talk.reply("a")
    assert next(reply) + next(reply) == "ab"
    reply.close()
    list(talk.reply("b"))
    assert shown[1].replace("<|endoftext|>", ".") == "a:ab.b:"


def test_a_dialogue_shows_no_more_turns_than_the_model_has_learned_from(model: GPT, monkeypatch: Any) -> None:
    shown = spoken(monkeypatch, *["1<|endoftext|>"] * 4)
    for turns in (1, 2):
        talk = Dialogue(model, BYTES, Template("{instruction}:", turns=turns))
        for question in ("a", "b"):
            list(talk.reply(question))
    assert [text.replace("<|endoftext|>", ".") for text in shown] == ["a:", "b:", "a:", "a:1.b:"]
