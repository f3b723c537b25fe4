"""All parameters in one array: each parameter becomes a view into it, and an update is one pass over its blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nanograd_llm.engine import Parameter
from nanograd_llm.errors import DtypeError, GraphError

BLOCK = 2**15  # numbers at a time: a block's parameters, gradient, moments and scratch stay in the cache


@dataclasses.dataclass(frozen=True)
class Block:
    """A piece of the flat layout: `place` in the flat array, `part` of segment number `segment`."""

    segment: int
    part: slice
    place: slice


class FlatParameters:
    """One array `data` that holds these parameters, matrices first; their `.data` are views of it from now on.

    Matrices (and tables) come first because weight decay acts on them and not on biases and norms: `decayed` is how
    many numbers at the front they take. Moments and the like are arrays of the same layout: `views(array)`. A gradient
    comes in `segments` of it, so that none of its large arrays is copied. `blocks` cut the layout for work in passes.
    """

    def __init__(self, parameters: Sequence[Parameter]):
        self.parameters = sorted(parameters, key=lambda p: p.ndim < 2)
        dtypes = {p.dtype for p in self.parameters}
        if len(dtypes) != 1:
            raise DtypeError(f"parameters of one dtype are wanted; got {sorted(map(str, dtypes))}; use model.astype")
        self.decayed = sum(p.size for p in self.parameters if p.ndim >= 2)
        self.data = np.concatenate([p.data.reshape(-1) for p in self.parameters])
        for parameter, view in zip(self.parameters, self.views(self.data)):
            parameter.data = view
        self.blocks = self._cut()

    def require_tied(self) -> None:
        """Raise GraphError where a parameter has been given another array: what is done here would not reach it."""
        if any(p.data.base is not self.data for p in self.parameters):
            raise GraphError(
                "a parameter no longer lies in this flat array (after model.astype, or under another trainer); "
                "make a new trainer for the model, or write into parameter.data[...]"
            )

    def views(self, array: np.ndarray) -> list[np.ndarray]:
        """The part of a flat array that belongs to each parameter, in the parameter's shape."""
        ends = np.cumsum([p.size for p in self.parameters])
        return [array[end - p.size : end].reshape(p.shape) for p, end in zip(self.parameters, ends)]

    def segments(self, gradients: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Gradients, one for each of `parameters`, as one-dimensional arrays that follow each other in this layout.

        Each matrix is a segment, as it lies; all biases and norms together are the last one.
        """
        matrices = [g.reshape(-1) for g in gradients if g.ndim >= 2]
        return [*matrices, np.concatenate([self.data[:0], *(g.reshape(-1) for g in gradients if g.ndim < 2)])]

    def _cut(self) -> list[Block]:
        sizes = [p.size for p in self.parameters if p.ndim >= 2]
        blocks, begin = [], 0
        for number, size in enumerate([*sizes, len(self.data) - self.decayed]):
            for start in range(0, size, BLOCK):
                stop = min(start + BLOCK, size)
                blocks.append(Block(number, slice(start, stop), slice(begin + start, begin + stop)))
            begin += size
        return blocks
