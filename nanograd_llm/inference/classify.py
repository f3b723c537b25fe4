"""Classification: which class is a text of?

N texts, K classes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nanograd_llm.inference.embed import encoded
from nanograd_llm.nn.module import evaluating
from nanograd_llm.settings import require_type
from nanograd_llm.text import Tokenizer

if TYPE_CHECKING:
    from nanograd_llm.models.heads import Classifier


def classify(
    model: Classifier, tokenizer: Tokenizer, texts: Sequence[str], *, longest: int | None = None
) -> np.ndarray:
    """The probability of each class, by their numbers.  N texts -> array (N, K)

        model, tokenizer, names, _ = open_classifier("runs/classification-1")
        found = classify(model, tokenizer, ["what a film"])
        print(names[found[0].argmax()])

    It depends on no other text, and is computed in evaluation mode. longest: tokens that are read of a text, those of
    the model's context if None; a warning counts the texts that are longer. Raises ShapeError, with the number of the
    text, for one without words.
    """
    from nanograd_llm.models.heads import Classifier

    require_type("model", model, Classifier, "a Classifier")
    ids = encoded(texts, tokenizer, longest or model.config.context_length, truncate=True)
    with evaluating(model.modules()):
        return model.probabilities(ids)
