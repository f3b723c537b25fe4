"""What a GPT does with a text: its surprise token by token, its attention, and gradients read as tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from nanograd_llm.errors import ConfigError
from nanograd_llm.models.gpt import GPT


def tokens_and_targets(model: GPT, ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """A text's ids as a batch of one for `loss`: all but the last, and for each the next.  (1, T), (1, T)

    Raises ConfigError for fewer than two ids, or more than fit into the context and one more.
    """
    length = model.config.context_length
    if not 2 <= len(ids) <= length + 1:
        raise ConfigError(f"the text has {len(ids)} tokens; this model can be looked at on 2 to {length + 1}")
    row = np.asarray(ids)[None]
    return row[:, :-1], row[:, 1:]
