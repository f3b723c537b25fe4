"""Embedding: a text becomes a vector, near those of similar texts, so that texts can be searched by meaning.

N texts, C channels
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nanograd_llm.errors import ShapeError
from nanograd_llm.nn.module import evaluating
from nanograd_llm.settings import counted, require_int, require_several, require_type
from nanograd_llm.text import Tokenizer

if TYPE_CHECKING:
    from nanograd_llm.models.heads import SentenceEncoder


def embed(
    encoder: SentenceEncoder, tokenizer: Tokenizer, texts: Sequence[str], *, truncate: bool = False, name: str = ""
) -> np.ndarray:
    """The vector of each text, of length 1 where the encoder normalises.  N texts -> array (N, C)

        vectors = embed(SentenceEncoder(model), tokenizer, ["the cat sleeps", "a sleeping cat"])

    A vector does not depend on the other texts: those of the same length are computed together, without padding,
    in evaluation mode.
    truncate: keep the first tokens of a text that is too long. name: of a single text, for errors.
    Raises ShapeError, with the number of the text, for one that has no words, or more tokens than the encoder takes.
    """
    from nanograd_llm.models.heads import SentenceEncoder

    require_type("encoder", encoder, SentenceEncoder, "a SentenceEncoder of a BERT or a GPT")
    ids = encoded(texts, tokenizer, encoder.max_length, truncate=truncate, name=name)
    with evaluating(encoder.modules()):
        return encoder.embed(ids)


def nearest(vectors: np.ndarray, query: np.ndarray, top: int = 5) -> list[tuple[int, float]]:
    """The rows of vectors (N, C) that are most like query (C): the place of each and its cosine, best first.

    >>> nearest(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), np.array([0.0, 1.0]), top=2)
    [(1, 1.0), (2, 0.8)]
    """
    require_int("top", top, 1)
    similar = vectors @ query / np.maximum(np.linalg.norm(vectors, axis=1) * np.linalg.norm(query), 1e-12)
    return [(place, float(similar[place])) for place in np.argsort(-similar, kind="stable")[:top].tolist()]


def encoded(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    longest: int,
    *,
    truncate: bool = False,
    allow_special: bool = False,
    name: str = "",
) -> list[np.ndarray]:
    """The ids of each text, wrapped as the model expects them.

    longest: tokens that the model takes. truncate: keep the first of a longer text; a warning counts these texts.
    allow_special: as for `encode`. name: of a single text, for errors.
    Raises ShapeError, with the number of the text, for one that has no tokens, or more than that; DtypeError for a str.
    """
    require_several("texts", texts)
    around = len(tokenizer.wrap([]))
    found, cut = [], 0
    for number, text in enumerate(texts, 1):
        what = name or f"text {number}"
        ids = tokenizer.encode(text, allow_special=allow_special)
        if not len(ids) or not text.strip():
            raise ShapeError(
                f"{what} is {text!r:.60}, which has no words; {'give another' if name else 'leave it out'}"
            )
        if len(ids) + around > longest and not truncate:
            raise ShapeError(
                f"{what} has {len(ids) + around} tokens, and the model takes {longest}; shorten it, "
                "or give --truncate (truncate=True) to keep its first tokens"
            )
        found.append(tokenizer.wrap(ids[: longest - around]))
        cut += len(ids) + around > longest
    if cut:
        warnings.warn(
            f"{counted(cut, 'text')} of more than {longest} tokens: only the first ones are read", stacklevel=2
        )
    return found
