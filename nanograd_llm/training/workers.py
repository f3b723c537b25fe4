"""A training step in parallel: each worker computes the gradient of its rows, then updates its blocks of parameters.

Splitting the batch speeds up every op at once, and the engine stays serial. The loss is a mean over the items that
count, so each piece of a batch is weighted by the number of its items. Sums have a fixed order: the same number of
workers gives exactly the same numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nanograd_llm.autograd.modes import checked, modes
from nanograd_llm.autograd.tensor import Tensor, grad
from nanograd_llm.backend.arrays import to_device
from nanograd_llm.backend.randomness import noise
from nanograd_llm.backend.threads import blas_threads
from nanograd_llm.errors import DtypeError, GraphError, NanogradError, ShapeError
from nanograd_llm.nn.module import Module
from nanograd_llm.ops.layout import array_like
from nanograd_llm.training.adamw import AdamW, Rates
from nanograd_llm.training.team import Processes, Threads


class Piece(NamedTuple):
    """Some rows of a batch. key: seed of the noise of dropout. items: how many count."""

    key: tuple[int, ...]
    arrays: tuple[np.ndarray, ...]
    items: int


class Workers:
    """Takes the steps of `optimizer` on `model` with all members of `team`, each on one core.

    pieces: each worker computes its rows in this many pieces, one after the other, which saves memory (gradient
    accumulation). If the team has processes, the arrays of the optimizer must be shared.
    """

    def __init__(self, model: Module, optimizer: AdamW, team: Threads | Processes, pieces: int = 1):
        self.model, self.optimizer, self.flat = model, optimizer, optimizer.flat
        self.team, self.count, self.pieces = team, team.size, pieces
        self.gradients = [self.flat.zeros() for _ in range(self.count)]  # one per worker; the first becomes the sum
        self.views = [self.flat.views(gradient) for gradient in self.gradients]
        self.parameters = model.parameters()
        self.trained = [parameter.requires_grad for parameter in self.parameters]
        self.modules = [module for _, module in model.named_modules()]
        self.process = os.getpid()
        self.restart()  # now, before other threads start, whose locks a fork would copy

    def __str__(self) -> str:
        return str(self.team)

    def restart(self) -> None:
        """Start again with the model as it is now, after all its parameters were written."""
        self.is_complete = False  # were all parameters of the model there when its loss was first computed?
        self.half_updated = False  # after a failed update some blocks are a step ahead of others
        self.team.start(self)

    def loss_and_gradient(self, batch: Sequence[Any], key: Sequence[int]) -> tuple[float, float, int]:
        """The mean loss of a batch, the norm of its gradient, and how many items count.

        The gradient is kept for `update`. key: seed of the noise of dropout, such as (seed, step), to which the number
        of the piece is added. An error in a worker is raised here, after all workers have ended.
        """
        self._require_usable()
        pieces = self._split(batch, key)
        count = sum(piece.items for piece in pieces)
        if count == 0:
            raise ShapeError(f"none of the {self.model.loss_items} of this batch counts; leave the batch out")
        shares = min(self.count, len(pieces))
        training = [module.training for module in self.modules]
        with blas_threads(1 if shares > 1 else self.count):
            tasks = [(worker, pieces[worker::shares], count, training, modes().checked) for worker in range(shares)]
            try:
                losses = self.team.run(self.compute_share, tasks)
            except ShapeError as error:
                if len(pieces) > 1:
                    whole = ", ".join(str(array_like(array).shape) for array in batch)
                    error.args = (f"{error}; these are shapes of a worker's rows; the whole batch has {whole}",)
                raise
            with np.errstate(over="ignore"):  # a sum of squares that overflows is infinite, which the caller checks
                squares = self.team.run(self.add_shares, [(worker, shares) for worker in range(self.count)])
        return sum(losses), math.sqrt(sum(squares)), count

    def update(self, learning_rate: float, scale: float) -> None:
        """Take the optimizer's step with the last gradient that was computed, times `scale`."""
        rates = self.optimizer.next_rates(learning_rate, scale)
        self.half_updated = True
        with blas_threads(1):
            self.team.run(self.update_blocks, [(worker, rates) for worker in range(self.count)])
        self.half_updated = False

    @property
    def gradient(self) -> np.ndarray:
        """The last gradient that was computed, in the layout of `flat`; valid until the next one is."""
        return self.gradients[0]

    def compute_share(
        self, worker: int, pieces: Sequence[Piece], count: int, training: Sequence[bool], is_checked: bool
    ) -> float:
        """The part of these pieces in a mean over `count` items; their gradient is written to this worker's array."""
        for module, is_training in zip(self.modules, training):
            if module.training != is_training:
                module.training = is_training
        losses: list[tuple[float, Any]] = []
        views, is_first = self.views[worker], True
        for piece in pieces:
            if piece.items == 0:
                continue
            share = piece.items / count
            # no warnings of NumPy: a number that is not finite shows in the result
            with noise(*piece.key), checked(is_checked), np.errstate(all="ignore"), self.model.entered():
                y = self.model.loss(*piece.arrays)
                if not isinstance(y, Tensor) or y.shape != ():
                    kind = ShapeError if isinstance(y, Tensor) else DtypeError
                    raise kind(f"loss must return a Tensor of one number, such as a mean; it returned {y!r:.100}")
                self._require_complete()
                cotangent = np.full_like(y.data, share)
                if is_first:
                    grad(y, self.flat.parameters, cotangent, out=views)
                else:
                    for view, gradient in zip(views, grad(y, self.flat.parameters, cotangent)):
                        view += gradient
            is_first = False
            losses.append((share, y.data))
        if is_first:
            self.gradients[worker][:] = 0
        return sum(share * loss.item() for share, loss in losses)  # here, where it is the first to wait for a GPU

    def add_shares(self, worker: int, shares: int) -> float:
        """Add all gradients to the first, in this worker's blocks; returns the sum of squares of these blocks."""
        squares = 0.0
        for block in self.flat.blocks(worker, self.count):
            here = self.gradient[block]
            for other in self.gradients[1:shares]:
                here += other[block]
            squares += float(np.vdot(here, here))
        return squares

    def update_blocks(self, worker: int, rates: Rates) -> None:
        self.optimizer.share(worker, self.count, self.gradient, rates)

    def _split(self, batch: Sequence[Any], key: Sequence[int]) -> list[Piece]:
        """The batch in pieces of consecutive rows of about the same cost: workers times `pieces`, at most one a row."""
        arrays = [array_like(array) for array in batch]
        shapes = [array.shape for array in arrays]
        if () in shapes or not shapes:  # such as a loss, or nothing, as for PyTorch's optimizers
            got = f"shapes {shapes}" if shapes else "none"
            call = "step takes a batch, as in step(tokens, targets), and does forward, backward and update itself"
            raise ShapeError(f"a batch is arrays with a row for each example; got {got}; {call}")
        if len({shape[0] for shape in shapes}) != 1:
            raise ShapeError(
                f"the arrays of a batch must have the same number of rows (axis 0); got {', '.join(map(str, shapes))}"
            )
        # integers stay where they are: ids are checked before they are moved to a GPU
        arrays = [to_device(array, self.flat.device) if array.dtype.kind in "fc" else array for array in arrays]
        rows = len(arrays[0])
        number = max(1, min(min(self.count, rows) * self.pieces, rows))
        ends = [0, *_fair_ends(np.broadcast_to(self.model.loss_costs(*arrays), rows), number)]
        parts = [tuple([array[a:b] for array in arrays]) for a, b in zip(ends, ends[1:])]
        return [Piece((*key, n), part, int(self.model.loss_count(*part))) for n, part in enumerate(parts)]

    def _require_complete(self) -> None:
        """Raise GraphError where the first loss has made a parameter, which the optimizer does not have."""
        if not self.is_complete:
            known = {*map(id, self.parameters)}
            if late := [name for name, parameter in self.model.named_parameters() if id(parameter) not in known]:
                made = f"the parameter {', '.join(late)} was made after the trainer, which would not train it"
                raise GraphError(f"{made}; make it in __init__, or make the trainer later")
            self.is_complete = True

    def _require_usable(self) -> None:
        """Raise if the workers are those of another process, or parameters were frozen, unfrozen or replaced."""
        if os.getpid() != self.process:
            raise NanogradError(
                f"this trainer's workers belong to process {self.process}, which this process was forked from; make a "
                "new trainer here"
            )
        self.flat.require_views()
        if [parameter.requires_grad for parameter in self.parameters] != self.trained:
            raise GraphError("a parameter was frozen or unfrozen after its trainer was made; make a new trainer")


def _fair_ends(costs: np.ndarray, number: int) -> list[int]:
    """Where each of `number` runs of consecutive rows ends, none empty, whose costs (B,) are about the same in sum.

    >>> _fair_ends(np.array([1, 1, 1, 1]), 2), _fair_ends(np.array([1, 1, 1, 9, 2, 2]), 2), _fair_ends(np.zeros(3), 3)
    ([2, 4], [4, 6], [1, 2, 3])
    """
    rows, goals = len(costs), np.arange(1, number) / number
    middles = np.cumsum(costs) - costs / 2  # a row belongs to the run in which its middle lies
    order = np.arange(1, number)
    ends = np.searchsorted(middles, goals * costs.sum(), side="right")
    ends = np.maximum.accumulate(np.maximum(ends, order) - order) + order  # at least one row each,
    return [*np.minimum(ends, rows - number + order).tolist(), rows]  # also in those after it
