"""A training step shared out: each worker runs forward and backward on its rows, on one core, then updates its blocks.

Splitting the batch speeds up every op at once and leaves the engine serial. Shares are weighted by the targets that
count in them and added in a fixed order, so the same number of workers gives the same bits.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.modes import checked, state
from nanograd_llm.autograd.tensor import Parameter, Tensor, grad
from nanograd_llm.backend.randomness import noise
from nanograd_llm.backend.threads import blas_threads, cpu_count
from nanograd_llm.errors import NanogradError, ShapeError
from nanograd_llm.nn.module import Module
from nanograd_llm.ops.composed import count_targets
from nanograd_llm.training.adamw import AdamW, Rates
from nanograd_llm.training.team import Processes, Threads

Loss = Callable[[Any, Any], Tensor]
# Elsewhere a fork is missing (Windows), or unsafe once the system's own libraries are in use (macOS).
CAN_FORK = sys.platform.startswith("linux")
Piece = tuple[tuple[int, ...], np.ndarray, np.ndarray]  # key of its noise, tokens, targets


class Workers:
    """Workers that take the steps of `optimizer` together, each on one core; the caller is one of them.

    count: how many; 0 for one a core. pieces: each share is worked through in this many pieces, one after the other,
    which bounds the memory (gradient accumulation). processes: work in forked processes, on Linux and where the
    model can be told from a changed one; the optimizer's arrays must be shared.
    """

    def __init__(self, optimizer: AdamW, count: int = 0, pieces: int = 1, *, processes: bool = False):
        self.optimizer, self.flat = optimizer, optimizer.flat
        self.count = count or cpu_count()
        self.pieces = pieces
        self.gradients = [self.flat.zeros() for _ in range(self.count)]  # each worker's own; the sum is the first
        self.loss: Loss | None = None
        self.threads = Threads(self.count)
        self.processes = Processes(self.count) if processes and CAN_FORK and self.count > 1 else None
        self.home = os.getpid()
        self.is_torn = False  # has an update failed, and left some blocks a step ahead of others?
        self.team: Threads | Processes = self.threads
        self.are_new = False  # the processes, which have taken no step yet

    def start(self, loss: Loss) -> None:
        """Have everybody ready to compute with this loss; the first step would do it otherwise.

        Raises NanogradError in a process forked from the one that these workers were made in.
        """
        if os.getpid() != self.home:
            raise NanogradError(
                f"this trainer's workers belong to process {self.home}, which this process was forked from; make a new "
                "trainer here"
            )
        self.team = self._team_for(loss)

    def loss_and_gradient(
        self, loss: Loss, tokens: np.ndarray, targets: np.ndarray, key: Sequence[int]
    ) -> tuple[float, float]:
        """The mean loss over all targets that count, and the length of its gradient, which is kept for `update`.

        key: what the noise of dropout follows from, such as (seed, step); the number of the piece is added to it.
        A worker that fails ends the call with its error once all have ended. `checked()` reaches all of them.
        """
        tokens, targets = np.asarray(tokens), np.asarray(targets)
        if len(tokens) != len(targets):
            raise ShapeError(f"tokens {tokens.shape} and targets {targets.shape} must have the same number of rows")
        count = count_targets(targets)
        if count == 0:
            raise ShapeError(f"none of the {targets.size} targets of this batch counts; leave the batch out")
        self.flat.require_tied()
        self.start(loss)
        shares = min(self.count, len(tokens))
        rows = np.array_split(np.arange(len(tokens)), min(shares * self.pieces, len(tokens)))
        pieces = [((*key, n), tokens[r[0] : r[-1] + 1], targets[r[0] : r[-1] + 1]) for n, r in enumerate(rows)]
        with blas_threads(1 if shares > 1 else self.count):
            tasks = [(worker, pieces[worker::shares], count, state.checked) for worker in range(shares)]
            losses = self.team.run(self.compute_share, tasks)
            if self.are_new:
                self._require_unchanged(loss)
            with np.errstate(over="ignore"):  # a sum of squares beyond the dtype is infinite, as the caller will see
                squares = self.team.run(self.add_shares, [(worker, shares) for worker in range(self.count)])
        return sum(losses), math.sqrt(sum(squares))

    def update(self, learning_rate: float, scale: float) -> None:
        """Take the optimizer's step against the gradient that was computed last, times `scale`."""
        rates = self.optimizer.next_rates(learning_rate, scale)
        self.is_torn = True
        self.team.run(self.update_blocks, [(worker, rates) for worker in range(self.count)])
        self.is_torn = False

    @property
    def gradient(self) -> np.ndarray:
        """What `loss_and_gradient` computed last, in the layout of `flat`; valid until its next call."""
        return self.gradients[0]

    def compute_share(self, worker: int, pieces: Sequence[Piece], count: int, is_checked: bool) -> float:
        """What these pieces add to a mean over `count` targets; their part of the gradient goes to the worker's own."""
        assert self.loss is not None
        total, views, is_first = 0.0, self.flat.views(self.gradients[worker]), True
        for key, tokens, targets in pieces:
            share = count_targets(targets) / count
            if share == 0:
                continue
            # a number that is not finite shows in the result, so NumPy need not warn of it
            with noise(*key), checked(is_checked), np.errstate(all="ignore"):
                y = self.loss(tokens, targets)
                if not isinstance(y, Tensor) or y.shape != ():
                    raise ShapeError(f"a loss is a Tensor of one number, such as a mean; this one is {y!r}")
                cotangent = np.asarray(share, dtype=y.dtype)
                if is_first:
                    grad(y, self.flat.parameters, cotangent, out=views)
                else:
                    for view, gradient in zip(views, grad(y, self.flat.parameters, cotangent)):
                        view += gradient
            is_first = False
            total += share * y.item()
        if is_first:
            self.gradients[worker][:] = 0
        return total

    def add_shares(self, worker: int, shares: int) -> float:
        """Sum all gradients into the first, in this worker's blocks; returns the sum of squares there."""
        squares = 0.0
        for block in self.flat.blocks(worker, self.count):
            here = self.gradient[block]
            for other in self.gradients[1:shares]:
                here += other[block]
            squares += float(np.vdot(here, here))
        return squares

    def update_blocks(self, worker: int, rates: Rates) -> None:
        self.optimizer.update(self.flat.blocks(worker, self.count), self.gradient, rates)

    def _team_for(self, loss: Loss) -> Threads | Processes:
        """Processes if they are wanted and see this loss as it is, else threads."""
        self.loss = loss
        if self.processes is None or state.checked:
            return self.threads
        try:
            mark = fingerprint(loss, self.flat.parameters)
        except Exception as error:  # whatever an object raises that does not want to be pickled
            warnings.warn(f"training in threads, since processes could miss a change: {error}", stacklevel=2)
            self.processes = None
            return self.threads
        self.are_new = self.processes.prepare(self, mark) or self.are_new
        return self.processes

    def _require_unchanged(self, loss: Loss) -> None:
        """Go on in threads where a first step in processes has changed the model: in theirs that is lost."""
        self.are_new = False
        if self.processes is None:
            return
        try:
            is_changed = fingerprint(loss, self.flat.parameters) != self.processes.forked_from
        except Exception:
            is_changed = True
        if is_changed:
            warnings.warn(
                "the loss writes into the model, which other processes do not see: training goes on in threads, and "
                "what all workers but one wrote in this step is lost; use processes=False",
                stacklevel=3,
            )
            self.processes = None


def fingerprint(loss: Loss, parameters: Sequence[Parameter]) -> bytes:
    """All that a model's loss depends on but its code and the numbers of its parameters, as pickle sees it.

    Attributes of the classes of its modules are part of it.

    Raises PicklingError, or what an object in it raises, where pickle cannot see it, or a parameter has a hook or is
    none of `parameters`.
    """
    places = {id(parameter): number for number, parameter in enumerate(parameters)}

    seen: set[type] = set()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, type) and issubclass(value, Module) and value not in seen:
                seen.add(value)  # pickle names a class only; what hangs on it may change as well
                return value.__qualname__, _class_attributes(value)
            if not isinstance(value, Parameter):
                return None
            if value._hooks:
                raise pickle.PicklingError("a parameter has a hook")
            if id(value) not in places:
                raise pickle.PicklingError("a parameter came to the model after its trainer was made")
            return places[id(value)], value.requires_grad

    file = io.BytesIO()
    Pickler(file).dump(loss)
    return file.getvalue()


def _class_attributes(kind: type) -> dict[str, Any]:
    """What a class and those it derives from hold, but their code."""
    held = {name: value for base in reversed(kind.__mro__[:-1]) for name, value in vars(base).items()}
    return {
        name: value
        for name, value in held.items()
        if not (name.startswith(("__", "_abc_")) or callable(value) or _is_code(value))
    }


def _is_code(value: Any) -> bool:
    return hasattr(type(value), "__get__")  # a function, property or the like


def pinned_blas() -> str | None:
    """The environment variable that fixes the number of BLAS threads, as NAME=VALUE; None where none does."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name)), None)
