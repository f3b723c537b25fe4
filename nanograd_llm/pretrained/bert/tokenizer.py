"""BERT's tokenizer, from the files beside a model.

tokenizer.json                Hugging Face's single file: pieces, rules, special tokens
vocab.txt                     the pieces alone, one a line, in the order of their ids
nanograd_tokenizer.json       a tokenizer of nanograd_llm of another kind
added_tokens.json             tokens that were added, with their ids
tokenizer_config.json, special_tokens_map.json    the rules, which override those of tokenizer.json, and the class

What these say is honoured, or refused by its name.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.files.atomic import read_bytes, write_atomically
from nanograd_llm.files.json import read_json_file
from nanograd_llm.pretrained.gpt2.tokenizer import (
    ADDED,
    CONFIG,
    MAX_VALUES,
    OWN,
    SINGLE,
    SPECIAL_NAMES,
    further_special,
    name_of,
    text_of,
)
from nanograd_llm.settings import counted
from nanograd_llm.text import Tokenizer, WordPieceTokenizer, load_tokenizer
from nanograd_llm.text.wordpiece import CONTINUES, MAX_WORD, SPECIAL, UNK

VOCAB = "vocab.txt"
MAX_BYTES = 2**26  # of vocab.txt; that of multilingual BERT has 1 MB
CLASSES = (None, "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "BertTokenizer")
# What the files call the settings of a WordPieceTokenizer.
IN_CONFIG = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def read_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer | None:
    """The tokenizer whose files lie in `folder`; None where there is none.

    Raises BadFileError for a file that is damaged, or says what no BERT tokenizer of WordPiece has.
    """
    folder = Path(folder)

    def table(name: str) -> dict[str, Any]:
        return read_json_file(folder / name, max_values=MAX_VALUES) if (folder / name).exists() else {}

    if (folder / OWN).exists():
        return load_tokenizer(folder / OWN)
    where = next((folder / name for name in (SINGLE, VOCAB) if (folder / name).exists()), None)
    if where is None:
        return None
    config = table(SPECIAL_NAMES) | table(CONFIG)
    tokens = [{"content": name, "id": i, "special": True} for name, i in table(ADDED).items()]
    settings: dict[str, Any] = {}
    try:
        if where.name == VOCAB:
            vocab = text_of(read_bytes(where, at_most=MAX_BYTES), str(where)).removesuffix("\n").split("\n")
            settings = {} if "do_lower_case" in config else _case_of(vocab, where)
        else:
            content = table(SINGLE)
            vocab, settings = _of_single_file(content)
            tokens += content.get("added_tokens") or []
        settings |= _of_config(config)
        tokens += [{**token, "id": int(i)} for i, token in config.get("added_tokens_decoder", {}).items()]
        return WordPieceTokenizer(*_with_added(vocab, tokens, config), **settings)
    except ConfigError as error:
        raise BadFileError(f"{where}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadFileError(f"{where}: it, or {CONFIG}, is not written as BERT's are: {error}") from None


def _case_of(vocab: list[str], where: Path) -> dict[str, Any]:
    """The setting lowercase, where no file says it: a model of lower-cased text has no piece with an upper-case letter.

    transformers would lower-case the text in any case; so a warning tells where it is kept.
    """
    upper = [piece for piece in vocab if piece != piece.lower() and not re.fullmatch(r"\[.+\]", piece)]
    if upper:
        warnings.warn(
            f"{where}: no do_lower_case beside it, and {counted(len(upper), 'piece')} with upper-case letters, such as "
            f"{upper[0]!r:.50}: texts are not lower-cased",
            stacklevel=3,
        )
    return {"lowercase": not upper}


def _of_single_file(content: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The pieces in the order of their ids, and the settings, of a tokenizer.json."""
    model, rules = content["model"], content["normalizer"] or {}
    before, after = content["pre_tokenizer"] or {}, content.get("post_processor") or {}
    expected = {
        "model": (model.get("type", "WordPiece"), ("WordPiece",)),
        "unk_token": (model.get("unk_token", UNK), (UNK,)),
        "continuing_subword_prefix": (model.get("continuing_subword_prefix", CONTINUES), (CONTINUES,)),
        "max_input_chars_per_word": (model.get("max_input_chars_per_word", MAX_WORD), (MAX_WORD,)),
        "normalizer": (rules.get("type"), ("BertNormalizer",)),
        "clean_text": (rules.get("clean_text", True), (True,)),
        "pre_tokenizer": (before.get("type"), ("BertPreTokenizer",)),
        "post_processor": (after.get("type"), (None, "BertProcessing", "TemplateProcessing")),
    }
    _require(expected)
    ids = model["vocab"]
    if sorted(ids.values()) != [*range(len(ids))]:
        raise ConfigError(f"the ids of vocab are not 0 to {len(ids) - 1}, each once")
    return sorted(ids, key=ids.__getitem__), {name: rules[name] for name in IN_CONFIG.values() if name in rules}


def _of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a tokenizer_config.json."""
    expected = {
        "tokenizer_class": (config.get("tokenizer_class"), CLASSES),
        "do_basic_tokenize": (config.get("do_basic_tokenize", True), (True,)),
        "never_split": (config.get("never_split") or None, (None,)),
    }
    for token in SPECIAL:
        key = f"{token[1:-1].lower()}_token"
        expected[key] = (name_of(config.get(key) or token), (token,))
    _require(expected)
    return {own: config[name] for name, own in IN_CONFIG.items() if name in config}


def _require(expected: Mapping[str, tuple[Any, tuple[Any, ...]]]) -> None:
    """Raise ConfigError with the first of these values that is not among those allowed."""
    for key, (value, allowed) in expected.items():
        if value not in allowed:
            raise ConfigError(f"{key} is {value!r:.100}; of BERT's tokenizers it is {allowed[-1]!r}")


def _with_added(vocab: list[str], tokens: list[Any], config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The pieces with those that were added behind them, and the special tokens that are BERT's alone."""
    for token in sorted(tokens, key=lambda token: token["id"]):
        name, i = name_of(token), token["id"]
        for key in ("special", "lstrip", "rstrip", "single_word"):
            if token.get(key, False) is not (key == "special"):
                raise ConfigError(f"{key} of the added token {name!r:.100} is {token.get(key)!r:.50}, not supported")
        vocab = [*vocab, name] if i == len(vocab) else vocab
        if not 0 <= i < len(vocab) or vocab[i] != name:
            raise ConfigError(f"the added token {name!r:.100} has the id {i}, which vocab does not give it")
    names = [*map(name_of, tokens), *further_special(config)]
    return vocab, [name for name in dict.fromkeys(names) if name not in SPECIAL]


def write_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike[str]) -> None:
    """Write vocab.txt and tokenizer_config.json, or `nanograd_tokenizer.json` for another kind. Raises StorageError."""
    folder = Path(folder)
    if not isinstance(tokenizer, WordPieceTokenizer):
        tokenizer.save(folder / OWN)
        return
    write_atomically(folder / VOCAB, "".join(f"{piece}\n" for piece in tokenizer.vocab).encode())
    settings = {name: getattr(tokenizer, own) for name, own in IN_CONFIG.items()}
    config = {"tokenizer_class": "BertTokenizer", **settings, "additional_special_tokens": tokenizer.added}
    write_atomically(folder / CONFIG, json.dumps(config, indent=2).encode() + b"\n")
