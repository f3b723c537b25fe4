"""Load a tokenizer from a file that `Tokenizer.save` wrote, and check that `save` could have written it."""

from __future__ import annotations

import os

from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.files.atomic import read_bytes
from nanograd_llm.settings import require_choice, shown
from nanograd_llm.text.gpt2 import GPT2Tokenizer
from nanograd_llm.text.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from nanograd_llm.text.wordpiece import WordPieceTokenizer
from nanograd_llm.text.words import WordTokenizer

MAX_VALUES = 2**20  # about 300,000 merges
TOKENIZERS = (ByteTokenizer, CharTokenizer, BPETokenizer, GPT2Tokenizer, WordPieceTokenizer, WordTokenizer)
KINDS = {kind.kind: kind for kind in TOKENIZERS}


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote to `path`.

    Raises BadFileError, which says what was found, for a file that `save` would not have written; StorageError if the
    file cannot be read.
    """
    from nanograd_llm.files.json import BYTES_A_VALUE, read_json_object  # training alone reads no JSON

    where = f"{path} is not a tokenizer that nanograd_llm saved"
    text = read_bytes(path, at_most=BYTES_A_VALUE * MAX_VALUES)
    content = read_json_object(text, where, max_values=MAX_VALUES)
    try:
        require_choice("kind", content.get("kind"), KINDS)
        kind = KINDS[content["kind"]]
        keys = {"kind", "vocab_size", *kind.fields}
        if set(content) - {*kind.optional} != keys:
            raise ConfigError(f"its keys are {sorted(content)!s:.200}; expected {sorted(keys)}")
        tokenizer, declared = kind._restored(content), content["vocab_size"]
        if type(declared) is not int or declared != tokenizer.vocab_size:
            raise ConfigError(f"its vocab_size is {shown(declared)}, but it has {tokenizer.vocab_size} tokens")
    except ConfigError as error:
        raise BadFileError(f"{where}: {error}; bring the file back, or train again") from error
    return tokenizer
