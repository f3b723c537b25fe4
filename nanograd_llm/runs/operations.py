"""How many floating-point operations a step takes: those of its matrix products, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nanograd_llm.models import EncoderDecoder
from nanograd_llm.nn import MultiHeadAttention


def step_operations(model: Any, batch: Sequence[np.ndarray], items: int) -> int:
    """The operations of a step on a batch of arrays, the first of ids (..., T).  items: how many count

    A weight takes 2 operations for each token forward and 4 backward, 2 where it is frozen (Kaplan et al. 2020); so
    does, in a model that predicts words, the table of the words for each item. Attention of each token to S others
    takes 12·S·C in each layer, half of that where it is causal (Chowdhery et al. 2022, appendix B). Padding takes none,
    but for that of the rows in S.
    """
    costs = model.loss_costs(*batch)
    source = target = int(np.sum(costs)) if np.max(costs) > 1 else batch[0].size  # tokens
    if isinstance(model, EncoderDecoder):
        source = int(np.count_nonzero(batch[0] != model.config.pad_id))
        target -= source
    elif len(batch) > 2 and batch[2].ndim == 1:  # the lengths of the rows
        source = target = int(batch[2].sum())
    count = 0
    if hasattr(model, "head_table"):
        count += (6 if model.head_table.requires_grad else 4) * model.head_table.size * items
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name.rpartition(".")[2] in ("weight", "A", "B"):  # no table, of which a row is taken
            tokens = source if name.startswith("encoder.") else target
            count += (6 if parameter.requires_grad else 4) * parameter.size * tokens
    for name, module in model.named_modules():
        if isinstance(module, MultiHeadAttention):
            tokens = source if name.startswith("encoder.") else target
            others = batch[-1 if name.startswith("decoder.") and not module.cross else 0].shape[-1]
            count += 12 * tokens * others * module.out.weight.shape[1] // (2 if module.causal else 1)
    return count
