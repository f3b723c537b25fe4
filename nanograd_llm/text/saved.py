"""A tokenizer from the file that `Tokenizer.save` wrote, held to what that tokenizer would save."""

from __future__ import annotations

import os
from typing import Any

from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.files.atomic import read_bytes
from nanograd_llm.files.json import BYTES_A_VALUE, read_json_object
from nanograd_llm.text.gpt2 import GPT2Tokenizer
from nanograd_llm.text.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

MAX_VALUES = 2**20  # some 300,000 merges


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote to `path`.

    Raises BadFileError, with what was found, for anything that `save` would not have written; StorageError if the file
    cannot be read.
    """
    where = f"{path} is not a tokenizer that nanograd_llm saved"
    content = read_bytes(path, at_most=BYTES_A_VALUE * MAX_VALUES)
    try:
        return _restore(read_json_object(content, where, max_values=MAX_VALUES))
    except ConfigError as error:
        raise BadFileError(f"{where}: {error}") from error


def _restore(content: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a parsed file, held to what that tokenizer would save. Raises ConfigError."""
    kinds: dict[str, type[Tokenizer]] = {
        cls.kind: cls for cls in (ByteTokenizer, CharTokenizer, BPETokenizer, GPT2Tokenizer)
    }
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"its kind is {kind!r}; expected one of {sorted(kinds)}")
    keys = {"kind", "vocab_size", *kinds[kind].fields}
    if set(content) != keys:
        raise ConfigError(f"its keys are {sorted(content)}; expected {sorted(keys)}")
    tokenizer = kinds[kind]._restored(content)
    declared = content["vocab_size"]
    if type(declared) is not int or declared != tokenizer.vocab_size:
        raise ConfigError(f"its vocab_size is {declared!r}, but it makes {tokenizer.vocab_size} tokens")
    return tokenizer
