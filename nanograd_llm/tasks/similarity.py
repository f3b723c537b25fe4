"""Similarity: a model that makes vectors of texts, and how near two texts are to each other. Nothing here trains it."""

# C channels

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanograd_llm import ops
from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.inference.embed import encoded
from nanograd_llm.models.inputs import padded
from nanograd_llm.tasks.reading import Reading, require_targets

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened


class Similarity:
    """How far the vectors of two texts are from pointing the same way."""

    @classmethod
    def reading(cls, opened: Opened[Any], text: str, targets: Sequence[str], **how: Any) -> Reading:
        """See `Task.reading`: the target is another text, and the loss 1 - the cosine of the two."""
        require_targets(targets, ["another text, which it is compared with"], needed=1)
        model, tokenizer = opened.sentence_encoder(**how), opened.tokenizer()  # type: ignore[attr-defined]
        rows = encoded([text, *targets], tokenizer, model.max_length)

        def distance(tokens: Any, lengths: Any) -> Tensor:
            a, b = model(tokens, lengths)  # each (C,)
            return 1.0 - ops.sum(a * b) / ops.sqrt(ops.sum(a * a) * ops.sum(b * b))

        return Reading.of(distance, padded(rows), tokenizer, *rows, outputs=lambda i: b"")
