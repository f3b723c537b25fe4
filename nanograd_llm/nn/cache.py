"""The key-value cache: while generating, keys and values of earlier tokens are stored instead of computed again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nanograd_llm.backend.arrays import beside, library
from nanograd_llm.errors import ShapeError


class KeyValueCache:
    """Keys and values of one attention layer, in arrays allocated once for the whole context.

    B batch, H heads, T context_length, D head size: two arrays (B, H, T, D), of which `length` positions are filled.
    In self-attention each new token fills one; in cross-attention the context fills all at the first call.
    Both are views of `arrays` (2, B, H, T, D).
    """

    def __init__(
        self,
        batch: int,
        n_head: int,
        context_length: int,
        head_size: int,
        dtype: np.dtype | type,
        device: str = "cpu",
    ):
        self.arrays = library(device).empty((2, batch, n_head, context_length, head_size), dtype=dtype)
        self.keys, self.values = self.arrays
        self.length = 0

    def extend(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Append keys and values (B, H, t, D); return views of all stored ones, (B, H, length, D) each.

        Raises ShapeError if they exceed the context length.
        """
        end = self.claim(keys.shape[2])
        begin = end - keys.shape[2]
        self.keys[:, :, begin:end] = keys
        self.values[:, :, begin:end] = values
        return self.stored()

    def claim(self, count: int) -> int:
        """Count so many more positions as filled, which the caller fills; returns how many are. Raises ShapeError."""
        end = self.length + count
        if end > self.keys.shape[2]:
            raise ShapeError(
                f"the cache has {self.keys.shape[2]} positions, {self.length} of them filled; got {count} more"
            )
        self.length = end
        return end

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row i be what row rows[i] was; rows may be repeated or left out, as hypotheses of a beam search are."""
        old = self.arrays
        self.arrays = np.empty_like(old, shape=(2, len(rows), *old.shape[2:]))
        self.arrays[..., : self.length, :] = old[:, beside(rows, old), :, : self.length]
        self.keys, self.values = self.arrays

    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        """Views of all stored keys and values, (B, H, length, D) each."""
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]
