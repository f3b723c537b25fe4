"""WordPiece, the vocabulary of BERT: a word is cut from the left into the longest pieces that the vocabulary has.

A piece that continues a word is written with ## before it. With a vocabulary of `un`, `##aff` and `##able`:

    Unaffable!  ->  unaffable  !  ->  un ##aff ##able [UNK]    a word that cannot be cut is one [UNK]

Before that the text is split into words: control characters are dropped, letters are lower-cased and lose their
accents, and each punctuation character and each Chinese character is a word of its own. (Devlin et al. 2018,
tokenization.py; the pieces are those of Schuster and Nakajima, "Japanese and Korean Voice Search", 2012.)
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanograd_llm.errors import ConfigError
from nanograd_llm.settings import listed, require_int, shown
from nanograd_llm.text.bpe import learn_merges
from nanograd_llm.text.corpora import require_text, well_formed
from nanograd_llm.text.tokenizers import Tokenizer, require_size

SPECIAL = PAD, UNK, CLS, SEP, MASK = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"
MAX_WORD = 100  # characters; a longer word is [UNK]
CHINESE = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
ASCII_PUNCTUATION = {*map(chr, (*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127)))}
CLOSE = {".", "?", "!", ","}  # written without a space before them
MAX_KNOWN = 2**16  # words whose pieces are remembered


class WordPieceTokenizer(Tokenizer):
    """A vocabulary of WordPiece, in the order of its ids, and the rules by which a text becomes words.

    vocab: the pieces; among them [PAD], [UNK], [CLS], [SEP] and [MASK], whose ids are `pad`, `unk`, `cls`, `sep` and
        `mask`.
    lowercase: lower-case the text. strip_accents: remove accents; as `lowercase` if None.
    handle_chinese_chars: make each Chinese character a word.
    added: further special tokens of the vocabulary. `encode` finds special tokens in a text only with `allow_special`.
    vocab_size: may be larger than the vocabulary; the ids beyond it are padding, and decode to nothing.

    `encode` gives the ids of the text alone; `wrap` puts [CLS] before and [SEP] behind them, as BERT expects.
    Case, accents and white space are lost. Raises ConfigError that names the piece or setting that cannot be.

    >>> tokenizer = WordPieceTokenizer([*SPECIAL, "un", "##aff", "##able"])
    >>> tokenizer.encode("Unaffable!").tolist()
    [5, 6, 7, 1]
    >>> tokenizer.decode([5, 6, 7, 1])
    'unaffable [UNK]'
    """

    kind = "wordpiece"
    fields = ("vocab",)
    optional = ("lowercase", "strip_accents", "handle_chinese_chars", "added")

    def __init__(
        self,
        vocab: Sequence[str],
        added: Sequence[str] = (),
        vocab_size: int | None = None,
        *,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        handle_chinese_chars: bool = True,
    ):
        self.vocab, self.added = list(vocab), list(added)
        self.lowercase, self.handle_chinese_chars = lowercase, handle_chinese_chars
        self.strip_accents = lowercase if strip_accents is None else strip_accents
        for name in ("lowercase", "strip_accents", "handle_chinese_chars"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} must be True or False; got {shown(getattr(self, name), 50)}")
        self._ids = _ids_by_piece(self.vocab)
        missing = [token for token in (*SPECIAL, *self.added) if token not in self._ids]
        if missing:
            raise ConfigError(f"vocab lacks the special tokens {listed(missing)}")
        self.pad, self.unk, self.cls, self.sep, self.mask = (self._ids[token] for token in SPECIAL)
        super().__init__([_written(piece) for piece in self.vocab], None, vocab_size)
        self._longest = max(map(len, self.vocab))
        self._known: dict[str, list[int]] = {}
        self._cleaned = _Replaced(self._clean)
        self._split = _Replaced(self._lower_and_split)

    @classmethod
    def train(cls, text: str, vocab_size: int = 1024, *, lowercase: bool = True) -> WordPieceTokenizer:
        """Learn pieces from `text` up to `vocab_size` tokens, or until no pair of them occurs twice.

        The five special tokens come first, then the characters of the text, and then what joining the most frequent
        pair of pieces makes, as in `bpe`, within words. Raises ConfigError where the characters are too many.
        """
        require_text(text)
        words = Counter(cls(SPECIAL, lowercase=lowercase).words(well_formed(text)))
        spelled = {word: [word[0], *(CONTINUES + character for character in word[1:])] for word in words}
        pieces = sorted({piece for word in spelled.values() for piece in word})
        require_int("vocab_size", vocab_size, len(SPECIAL) + len(pieces))
        ids = {piece: i for i, piece in enumerate(pieces)}
        coded = {tuple(ids[piece] for piece in spelled[word]): count for word, count in words.items()}
        for left, right in learn_merges(coded, len(pieces), vocab_size - len(SPECIAL) - len(pieces)):
            pieces.append(pieces[left] + pieces[right].removeprefix(CONTINUES))
        return cls([*SPECIAL, *pieces], lowercase=lowercase)

    def words(self, text: str) -> list[str]:
        """The words of a well-formed text, before they are cut."""
        text = text.translate(self._cleaned)
        if self.strip_accents:
            text = unicodedata.normalize("NFD", text)
        return text.translate(self._split).split()

    def decode(self, ids: ArrayLike) -> str:
        """The words of ids (N,), a space between them, special tokens by their names. Raises as `decode_bytes`."""
        return super().decode(ids).removeprefix(" ")

    def _whole_tokens(self, allow_special: bool) -> dict[str, int]:
        return {token: self._ids[token] for token in (*SPECIAL, *self.added)} if allow_special else {}

    def _encode_ordinary(self, text: str) -> NDArray[np.int32]:
        ids: list[int] = []
        for word in self.words(text):
            cut = self._known.get(word)
            if cut is None:
                cut = self._cut(word)
                if len(self._known) < MAX_KNOWN:
                    self._known[word] = cut
            ids += cut
        return np.array(ids, np.int32)

    def _cut(self, word: str) -> list[int]:
        """The ids of the pieces of a word."""
        found: list[int] = []
        start = 0 if len(word) <= MAX_WORD else -1
        while 0 <= start < len(word):
            before = CONTINUES if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                if before + word[start:end] in self._ids:
                    found.append(self._ids[before + word[start:end]])
                    start = end
                    break
            else:
                start = -1
        return [self.unk] if start < 0 else found

    def _clean(self, character: str) -> str:
        kind = unicodedata.category(character)
        if character in "\t\n\r" or kind == "Zs":
            return " "
        if kind in ("Cc", "Cf", "Co") or character == "\N{REPLACEMENT CHARACTER}":
            return ""
        is_chinese = any(first <= ord(character) <= last for first, last in CHINESE)
        return f" {character} " if is_chinese and self.handle_chinese_chars else character

    def _lower_and_split(self, character: str) -> str:
        kind = unicodedata.category(character)
        if kind == "Mn" and self.strip_accents:
            return ""
        if kind[0] == "P" or character in ASCII_PUNCTUATION:
            return f" {character} "
        return character.lower() if self.lowercase else character

    @classmethod
    def _restored(cls, content: Mapping[str, Any]) -> WordPieceTokenizer:
        settings = {name: content[name] for name in cls.optional if name in content}
        for name in ("vocab", "added"):
            value = content.get(name, [])
            if not isinstance(value, list) or not all(isinstance(piece, str) for piece in value):
                raise ConfigError(f"{name} must be a list of texts")
        require_size(content["vocab_size"], len(content["vocab"]))
        return cls(content["vocab"], vocab_size=content["vocab_size"], **settings)


class _Replaced(dict[int, str]):
    """For `str.translate`: what each character becomes, computed when it is first looked up."""

    def __init__(self, rule: Callable[[str], str]):
        self._rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self._rule(chr(code))
        return self[code]


def _ids_by_piece(vocab: Sequence[str]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for i, piece in enumerate(vocab):
        if not isinstance(piece, str) or not piece or well_formed(piece) != piece:
            raise ConfigError(f"vocab[{i}] is {shown(piece, 100)}; expected a text of at least one character")
        if ids.setdefault(piece, i) != i:
            raise ConfigError(f"vocab gives two ids to {shown(piece, 100)}, {ids[piece]} and {i}")
    return ids


def _written(piece: str) -> bytes:
    """A piece as it stands in a decoded text: a word has the space before it."""
    if piece.startswith(CONTINUES) and piece != CONTINUES:
        return piece.removeprefix(CONTINUES).encode()
    return ("" if piece in CLOSE else " ").encode() + piece.encode()
