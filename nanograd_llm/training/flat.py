"""All parameters in one array: each parameter becomes a view into it, so that optimizer and clipping are one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nanograd_llm.autograd.tensor import Parameter
from nanograd_llm.backend.arrays import library
from nanograd_llm.errors import DeviceError, DtypeError, GraphError

BLOCK = 2**15  # numbers at a time: a block's parameters, gradient, moments and scratch stay in the cache


class FlatParameters:
    """One array `data` that holds these parameters, matrices first; their `.data` are views of it from now on.

    Matrices (and tables) come first because weight decay acts on them and not on biases and norms: `decayed` is their
    number of elements. Gradients, moments and the like are arrays of the same layout: `views(array)`.
    """

    def __init__(self, parameters: Sequence[Parameter], *, shared: bool = False):
        """shared: put this array, and those that `zeros` returns, into memory that forked processes share."""
        self.parameters = sorted(parameters, key=lambda p: p.ndim < 2)
        dtypes = {p.dtype for p in self.parameters}
        if len(dtypes) != 1:
            raise DtypeError(f"all parameters must have one dtype; got {sorted(map(str, dtypes))}; use model.astype")
        devices = {p.device for p in self.parameters}
        if len(devices) != 1:
            raise DeviceError("some parameters are on the CPU, some on a GPU; move all of them: model.to('cuda')")
        self.device = devices.pop()
        self.decayed = sum(p.size for p in self.parameters if p.ndim >= 2)
        self.dtype, self.size, self.shared = dtypes.pop(), sum(p.size for p in self.parameters), shared
        self.data = self.zeros()
        for parameter, view in zip(self.parameters, self.views(self.data)):
            view[...] = parameter.data
            parameter.data = view

    def zeros(self, start: int = 0) -> np.ndarray:
        """An array of this layout from `start` on, for a gradient or a moment, on the device of the parameters."""
        count = self.size - start
        if not self.shared:
            return library(self.device).zeros(count, self.dtype)
        import mmap

        size = max(1, count * self.dtype.itemsize)
        try:
            memory = mmap.mmap(-1, size)  # anonymous memory, which a fork shares
        except OSError as error:
            raise MemoryError(f"cannot allocate {size / 2**20:,.0f} MiB of shared memory: {error.strerror}") from None
        return np.frombuffer(memory, dtype=self.dtype, count=count)

    def blocks(self, worker: int, workers: int) -> list[slice]:
        """A worker's share of the layout, in blocks that fit the cache; on a GPU one block for all."""
        if self.device != "cpu":
            return [slice(0, self.size)]
        return [slice(i, i + BLOCK) for i in range(worker * BLOCK, self.size, workers * BLOCK)]

    def require_views(self) -> None:
        """Raise GraphError if a parameter has another array by now, which an update of `data` would not change."""
        if any(p.data.base is not self.data for p in self.parameters):
            raise GraphError(
                "a parameter no longer lies in this flat array (after model.astype or model.to, or under another "
                "trainer); make a new trainer for the model, or write into parameter.data[...]"
            )

    def views(self, array: np.ndarray) -> list[np.ndarray]:
        """The part of a flat array that belongs to each parameter, in the parameter's shape.

        An array that starts later has the parameters that end in it.
        """
        ends = np.cumsum([p.size for p in self.parameters]) - (self.size - len(array))
        return [array[end - p.size : end].reshape(p.shape) for p, end in zip(self.parameters, ends) if end >= p.size]
