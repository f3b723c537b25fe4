"""Classification: which class is a text of?

N texts, K classes
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from nanograd_llm.errors import ShapeError
from nanograd_llm.models.heads import Classifier
from nanograd_llm.settings import counted, require_type
from nanograd_llm.text import Tokenizer


def classify(
    model: Classifier, tokenizer: Tokenizer, texts: Sequence[str], *, longest: int | None = None
) -> np.ndarray:
    """The probability of each class, in the order of `model.config.names`.  N texts -> array (N, K)

        names, found = model.config.names, classify(model, tokenizer, ["what a film"])
        print(names[found[0].argmax()])

    It depends on no other text. longest: tokens that are read of a text, those of the model's context if None; a
    warning says how many texts are longer. Raises ShapeError, with the number of the text, for one that has no words.
    """
    require_type("model", model, Classifier, "a Classifier")
    model.eval()
    rows, cut = first_tokens(texts, tokenizer, longest or model.config.context_length)
    if cut:
        warnings.warn(f"{counted(cut, 'text')} longer than the model reads: the first tokens decide", stacklevel=2)
    return model.probabilities(rows)


def first_tokens(texts: Sequence[str], tokenizer: Tokenizer, longest: int) -> tuple[list[np.ndarray], int]:
    """The first ids of each text, wrapped as the model expects them, `longest` at most; and of how many more was there.

    Raises ShapeError, with the number of the text, for one that has no tokens.
    """
    room, rows, cut = longest - len(tokenizer.wrap([])), [], 0
    for number, text in enumerate(texts, 1):
        ids = tokenizer.encode(text)
        if not text.strip() or not len(ids):
            raise ShapeError(f"text {number} is {text!r:.60}, which has no words; leave it out")
        rows.append(tokenizer.wrap(ids[:room]))
        cut += len(ids) > room
    return rows, cut
