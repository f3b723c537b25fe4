"""BERT's tokenizer from the files beside a model: the rules are honoured, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nanograd_llm.errors import BadFileError
from nanograd_llm.pretrained.bert.tokenizer import read_tokenizer, write_tokenizer
from nanograd_llm.text import CharTokenizer, WordPieceTokenizer
from nanograd_llm.text.wordpiece import SPECIAL

VOCAB = [*SPECIAL, "un", "##able", "able", "e", "été", "ete"]
TEXT = "Unable É ÉTÉ été"
SINGLE: dict[str, Any] = {
    "truncation": None,
    "added_tokens": [{"id": i, "content": name, "special": True, "lstrip": False} for i, name in enumerate(SPECIAL)],
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "TemplateProcessing", "single": []},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {piece: i for i, piece in enumerate(VOCAB)}},
}


def folder_of(path: Path, *, config: Any = None, single: Any = None, lines: str | None = None, **more: Any) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in {"tokenizer_config": config, "tokenizer": single, **more}.items():
        if content is not None:
            (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    if lines is not None:
        (path / "vocab.txt").write_bytes(lines.encode())
    return path


def words(found: Any, text: str = TEXT) -> list[str]:
    assert isinstance(found, WordPieceTokenizer)
    return [found.vocab[i] for i in found.encode(text, allow_special=True)]


LINES = "\n".join(VOCAB) + "\n"


@pytest.mark.parametrize("lines", [LINES, LINES[:-1], LINES.replace("\n", "\r\n"), "\ufeff" + LINES])
def test_a_vocab_txt_alone_is_uncased(lines: str, tmp_path: Path) -> None:
    assert words(read_tokenizer(folder_of(tmp_path, lines=lines))) == ["un", "##able", "e", "ete", "ete"]


def test_a_vocab_txt_with_upper_case_letters_is_cased_which_is_told(tmp_path: Path) -> None:
    cased = {"lines": LINES + "É\nUn\n"}
    with pytest.warns(UserWarning, match="do_lower_case.* 2 pieces with upper-case letters, such as 'É'"):
        found = read_tokenizer(folder_of(tmp_path / "silent", **cased))
    assert words(found, "Unable É été") == ["Un", "##able", "É", "été"]
    told = folder_of(tmp_path / "told", **cased, config={"do_lower_case": True})
    assert words(read_tokenizer(told), "Unable É") == ["un", "##able", "e"]


@pytest.mark.parametrize("form", [{"lines": LINES}, {"single": SINGLE}], ids=["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ["un", "##able", "e", "ete", "ete"]),
        ({"do_lower_case": True, "strip_accents": None}, ["un", "##able", "e", "ete", "ete"]),
        ({"do_lower_case": False}, ["[UNK]", "[UNK]", "[UNK]", "été"]),
        ({"strip_accents": False}, ["un", "##able", "[UNK]", "été", "été"]),
        (
            {"tokenizer_class": "BertTokenizer", "mask_token": {"content": "[MASK]"}},
            ["un", "##able", "e", "ete", "ete"],
        ),
    ],
)
def test_the_rules_of_the_config_are_honoured(form: Any, config: Any, expected: list[str], tmp_path: Path) -> None:
    assert words(read_tokenizer(folder_of(tmp_path, config=config, **form))) == expected


def test_the_rules_of_a_tokenizer_json_are_honoured(tmp_path: Path) -> None:
    cased = SINGLE | {"normalizer": SINGLE["normalizer"] | {"lowercase": False, "strip_accents": None}}
    assert words(read_tokenizer(folder_of(tmp_path, single=cased))) == ["[UNK]", "[UNK]", "[UNK]", "été"]


@pytest.mark.parametrize(
    "said",
    [
        {"single": SINGLE | {"added_tokens": [{"id": 11, "content": "[E1]", "special": True}]}},
        {"lines": LINES, "added_tokens": {"[E1]": 11}},
        {"lines": LINES + "[E1]\n", "config": {"additional_special_tokens": ["[E1]"]}},
        {"lines": LINES, "config": {"added_tokens_decoder": {"11": {"content": "[E1]", "special": True}}}},
    ],
    ids=["tokenizer.json", "added_tokens.json", "additional_special_tokens", "added_tokens_decoder"],
)
def test_further_special_tokens_are_known(said: Any, tmp_path: Path) -> None:
    found = read_tokenizer(folder_of(tmp_path, **said))
    assert words(found, "[E1]un [MASK]") == ["[E1]", "un", "[MASK]"]


def changed(**parts: Any) -> dict[str, Any]:
    return {name: {**SINGLE[name], **part} if isinstance(part, dict) else part for name, part in parts.items()}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"lines": LINES, "config": {"do_lower_case": "yes"}}, "lowercase must be True or False; got 'yes'"),
        ({"lines": LINES, "config": {"tokenizer_class": "RobertaTokenizer"}}, "tokenizer_class is 'RobertaTokenizer'"),
        ({"lines": LINES, "config": {"do_basic_tokenize": False}}, "do_basic_tokenize is False"),
        ({"lines": LINES, "config": {"never_split": ["x"]}}, r"never_split is \['x'\]"),
        ({"lines": LINES, "config": {"cls_token": "<s>"}}, r"cls_token is '<s>'; .* '\[CLS\]'"),
        ({"lines": LINES, "special_tokens_map": {"mask_token": "<m>"}}, "mask_token is '<m>'"),
        ({"lines": LINES, "config": {"additional_special_tokens": ["[E1]"]}}, "vocab lacks the special tokens"),
        ({"lines": LINES, "added_tokens": {"[E1]": 14}}, r"'\[E1\]' has the id 14, which vocab does not give"),
        ({"lines": LINES, "added_tokens": {"[E1]": "12"}}, "not written as BERT's are"),
        ({"lines": LINES, "config": {"added_tokens_decoder": {"x": {}}}}, "not written as BERT's are"),
        ({"lines": LINES, "config": {"added_tokens_decoder": {"5": {"content": "un"}}}}, "special of the added"),
        ({"lines": LINES + "un\n"}, "vocab gives two ids to 'un'"),
        ({"lines": "un\n\nable\n"}, r"vocab\[1\] is ''"),
        ({"lines": ""}, r"vocab\[0\] is ''"),
        ({"lines": "un\nable\n"}, r"vocab lacks the special tokens '\[PAD\]'"),
        ({"lines": "\0" * 100}, "vocab lacks the special tokens"),
        ({"single": {}}, "not written as BERT's are: 'model'"),
        ({"single": changed(model={"type": "BPE"})}, "model is 'BPE'"),
        ({"single": changed(model={"unk_token": "<unk>"})}, "unk_token is '<unk>'"),
        ({"single": changed(model={"continuing_subword_prefix": "@@"})}, "continuing_subword_prefix is '@@'"),
        ({"single": changed(model={"max_input_chars_per_word": 200})}, "max_input_chars_per_word is 200"),
        ({"single": changed(model={"vocab": {"a": 0, "b": 2}})}, "ids of vocab are not 0 to 1"),
        ({"single": changed(model={"vocab": {"a": 0, "b": "1"}})}, "not written as BERT's are"),
        ({"single": changed(model={"vocab": [1]})}, "not written as BERT's are"),
        ({"single": changed(normalizer={"type": "Lowercase"})}, "normalizer is 'Lowercase'"),
        ({"single": changed(normalizer={"clean_text": False})}, "clean_text is False"),
        ({"single": changed(normalizer=None)}, "normalizer is None"),
        ({"single": changed(pre_tokenizer={"type": "Whitespace"})}, "pre_tokenizer is 'Whitespace'"),
        ({"single": changed(post_processor={"type": "Roberta"})}, "post_processor is 'Roberta'"),
        (
            {"single": changed(added_tokens=[{"content": "un", "id": 5, "special": False}])},
            "special of the added token",
        ),
        ({"single": changed(added_tokens=[{"content": "un", "id": 5, "special": True, "lstrip": True}])}, "lstrip of"),
        ({"single": changed(added_tokens=[{"content": "un", "id": 6, "special": True}])}, "'un' has the id 6"),
        ({"single": changed(added_tokens=[{"content": 5, "id": 5, "special": True}])}, "content is 5"),
    ],
)
def test_what_is_not_berts_is_refused_by_name(files: Any, said: str, tmp_path: Path) -> None:
    if files.get("single"):
        files = files | {"single": SINGLE | files["single"]}
    folder_of(tmp_path, **files)
    with pytest.raises(BadFileError, match=said):
        read_tokenizer(tmp_path)


def test_a_vocab_txt_that_is_no_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n[UNK]\n\xff\n")
    with pytest.raises(BadFileError, match=r"vocab\.txt: line 3 is not UTF-8"):
        read_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
    "tokenizer",
    [
        WordPieceTokenizer(VOCAB),
        WordPieceTokenizer(VOCAB, lowercase=False),
        WordPieceTokenizer([*VOCAB, "[E1]"], ["[E1]"], strip_accents=False, handle_chinese_chars=False),
        CharTokenizer.train(TEXT + "[]1"),
    ],
    ids=str,
)
def test_a_tokenizer_that_was_written_is_read_again(tokenizer: Any, tmp_path: Path) -> None:
    write_tokenizer(tokenizer, tmp_path)
    again = read_tokenizer(tmp_path)
    assert type(again) is type(tokenizer)
    for name in (*tokenizer.fields, *tokenizer.optional):
        assert getattr(again, name) == getattr(tokenizer, name)


@pytest.mark.parity
@pytest.mark.parametrize("lowercase", [True, False])
def test_transformers_reads_what_is_written_and_writes_what_is_read(lowercase: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = WordPieceTokenizer([*VOCAB, "[E1]"], ["[E1]"], lowercase=lowercase)
    write_tokenizer(ours, tmp_path)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    text = f"{TEXT} [MASK]able [E1] x"
    expected = ours.wrap(ours.encode(text, allow_special=True)).tolist()
    assert theirs(text)["input_ids"] == expected
    theirs.save_pretrained(tmp_path / "again")
    again = read_tokenizer(tmp_path / "again")
    assert isinstance(again, WordPieceTokenizer)
    assert again.wrap(again.encode(text, allow_special=True)).tolist() == expected
