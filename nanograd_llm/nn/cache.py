"""The key-value cache: while generating, what earlier tokens offered to attention is stored, not computed again."""

from __future__ import annotations

import numpy as np

from nanograd_llm.errors import ShapeError


class KeyValueCache:
    """Keys and values of one attention layer, in arrays made once for the whole context.

    B batch, H heads, T context_length, D head size: two arrays (B, H, T, D). `length` positions are filled: with
    self-attention by each new token, with cross-attention all at once by the context.
    """

    def __init__(self, batch: int, n_head: int, context_length: int, head_size: int, dtype: np.dtype | type):
        self.keys = np.empty((batch, n_head, context_length, head_size), dtype=dtype)
        self.values = np.empty_like(self.keys)
        self.length = 0

    def extend(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Append keys and values (B, H, t, D); return views of all that is stored, (B, H, length, D)."""
        end = self.length + keys.shape[2]
        if end > self.keys.shape[2]:
            raise ShapeError(
                f"the cache holds {self.keys.shape[2]} positions; {self.length} are filled and {keys.shape[2]} arrived"
            )
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.stored()

    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        """Views of all keys and values that are stored, (B, H, length, D) each."""
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]
