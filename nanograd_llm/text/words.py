"""Whole words as tokens, for small languages: each with the space before it, as GPT-2's pieces have theirs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanograd_llm.errors import ConfigError, IndexRangeError
from nanograd_llm.settings import nearest, shown
from nanograd_llm.text.corpora import texts_of
from nanograd_llm.text.tokenizers import END_OF_TEXT, Tokenizer

WORD = re.compile(r" ?\w+['’]?| ?[^\w\s]")


class WordTokenizer(Tokenizer):
    """The words of some texts, in alphabetical order, and end-of-text, which is id 0. A word ends with its apostrophe.

    Spaces, also several, and line ends are one space each; none is kept at the beginning and the end of a text.

    >>> tokenizer = WordTokenizer.train(["je vois l'homme", "l'homme dort."])
    >>> tokenizer.words
    [' dort', ' je', " l'", ' vois', '.', 'homme']
    >>> tokenizer.decode(tokenizer.encode("l'homme   dort"))
    "l'homme dort"
    """

    kind = "words"
    fields = ("words",)

    def __init__(self, words: Iterable[str]) -> None:
        """Raises ConfigError if `words` are none, repeated, out of order, or no words as `WORD` cuts them."""
        self.words = list(words)
        if not self.words or self.words != sorted({*map(str, self.words)}):
            raise ConfigError("words must be texts, each once and in alphabetical order, one at least")
        if wrong := [word for word in self.words if not WORD.fullmatch(word)]:
            raise ConfigError(f"{shown(wrong[0], 100)} is no word: letters and digits, or one other character")
        super().__init__([END_OF_TEXT.encode(), *(word.encode("utf-8") for word in self.words)], end_of_text=0)
        self._ids = {word: i for i, word in enumerate(self.words, 1)}

    @classmethod
    def train(cls, texts: str | Iterable[str]) -> WordTokenizer:
        """The tokenizer of all words of these texts; what is encoded later may hold no others."""
        return cls(sorted({word for text in texts_of(texts) for word in _cut(text)}))

    def _encode_ordinary(self, text: str) -> NDArray[np.int32]:
        words = _cut(text)
        for place, word in enumerate(words):
            if word not in self._ids:
                near = nearest(word, self._ids)
                hint = f"; did you mean {near.strip()!r}?" if near else "; train on a text that has it"
                raise IndexRangeError(
                    f"the word {shown(word.strip(), 50)}, number {place + 1} of {shown(text, 60)}, is not among the "
                    f"{len(self.words):,} that are known{hint}"
                )
        return np.array([self._ids[word] for word in words], np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids (N,), as it was encoded but for the spaces. Raises as `decode_bytes`."""
        return super().decode(ids).removeprefix(" ")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids as they come."""
        pieces = super().decode_stream(ids)
        yield next(pieces, "").removeprefix(" ")
        yield from pieces


def _cut(text: str) -> list[str]:
    """The words of a text, each with the space before it; the first as if there were one.

    >>> _cut("n'aime pas, non")
    [" n'", 'aime', ' pas', ',', ' non']
    """
    return WORD.findall(" " + " ".join(text.split()))
