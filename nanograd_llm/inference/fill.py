"""Filling in: the words that a BERT expects at each [MASK].

B batch, T time, V vocabulary, N places
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.errors import ConfigError
from nanograd_llm.inference.embed import encoded
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.nn.module import evaluating
from nanograd_llm.settings import counted, require_int, require_type
from nanograd_llm.text import Tokenizer

if TYPE_CHECKING:
    from nanograd_llm.models.bert import BERT


class Guess(NamedTuple):
    """A piece that may stand at a place: its id, the piece as text, ## before one that continues a word."""

    id: int
    word: str
    probability: float


def fill(model: BERT, tokenizer: Tokenizer, text: str, *, top: int = 5, truncate: bool = False) -> list[list[Guess]]:
    """The `top` likeliest pieces for each [MASK] of a text: a list for each, the likeliest piece first.

    Each mask is filled in while the others stay hidden. truncate: keep the first tokens of a text that is too long.
    A warning counts the words that are unknown to the model; padded ids of its vocabulary are never proposed.
    Raises ConfigError where the text has no [MASK], or the model no head to fill in words or no [MASK] to be shown,
    ShapeError where the text is longer than the model's context.
    """
    from nanograd_llm.models.bert import BERT
    from nanograd_llm.text.wordpiece import UNK

    require_int("top", top, 1)
    require_type("model", model, BERT, "a BERT")
    require_type("text", text, str, "a str, of one text")
    tokens, hidden = hidden_places(model, tokenizer, text, truncate=truncate)
    ids = tokens[0]
    unknown = int((ids == tokenizer.special_id(UNK)).sum()) if UNK not in text else 0
    if unknown:
        warnings.warn(f"{counted(unknown, 'word')} of the text cannot be cut into the model's pieces", stacklevel=2)
    probabilities = Sampling().probabilities(hidden_logits(model, tokens, hidden)[:, : tokenizer.known])
    best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
    return [[Guess(i, _word(tokenizer, i), float(p[i])) for i in row.tolist()] for row, p in zip(best, probabilities)]


def hidden_places(
    model: BERT, tokenizer: Tokenizer, text: str, *, truncate: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a text with [MASK], and where that stands, both (1, T). Raises as `fill` does."""
    from nanograd_llm.text.wordpiece import MASK

    mask = tokenizer.special_id(MASK)
    if mask is None:
        raise ConfigError(f"this model's tokenizer has no {MASK}, so it cannot be asked for a word")
    text = re.sub(rf"\s+{re.escape(MASK)}", MASK, text)  # a space belongs to the word that is hidden
    (ids,) = encoded([text], tokenizer, model.config.context_length, truncate=truncate, allow_special=True)
    tokens, hidden = ids[None], ids[None] == mask
    if not hidden.any():
        where = "the part of the text that is kept" if MASK in text else "the text"
        case = ", in capital letters," if MASK.lower() in text.lower() else ""
        raise ConfigError(f"{where} has no {MASK}; write {MASK}{case} there in place of a word")
    return tokens, hidden


def hidden_logits(model: BERT, tokens: Any, hidden: np.ndarray, lengths: Any = None) -> np.ndarray:
    """The logits at the places where hidden (B, T) is True, in order.  tokens (B, T) -> array (N, V)

    They are computed in evaluation mode, without recording. lengths (B,): how many tokens of each row are real.
    Raises ConfigError where the model has no head.
    """
    if model.head is None:
        raise ConfigError(
            "this BERT has no head that fills in words, since its file has none; train one with "
            "`nanograd-llm train --task masked-words --init MODEL`"
        )
    with no_grad(), evaluating(model.modules()):
        return model.head(model.hidden(tokens, lengths=lengths)[np.nonzero(hidden)], model.wte).numpy()


def _word(tokenizer: Tokenizer, i: int) -> str:
    piece = tokenizer.decode_bytes([i]).decode("utf-8", "replace")
    return f"##{piece}" if tokenizer.continues[i] else piece.strip() or repr(piece)
