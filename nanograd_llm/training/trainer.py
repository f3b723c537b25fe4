"""The trainer: given a Module, it makes what the module's `loss` returns smaller, a step at a time.

It knows no GPT and no files. A step is forward, backward, clip, AdamW; everything random in it follows from
(seed, step), so the same settings give the same run.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from nanograd_llm.autograd.modes import checked
from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.backend.interrupts import ctrl_c_later
from nanograd_llm.backend.threads import keep_heap
from nanograd_llm.errors import NanogradError, NonFiniteError
from nanograd_llm.nn.module import Module, require_fit
from nanograd_llm.ops.composed import count_targets
from nanograd_llm.settings import require_type
from nanograd_llm.training.adamw import AdamW
from nanograd_llm.training.config import TrainConfig
from nanograd_llm.training.parallel import Workers
from nanograd_llm.training.schedule import warmup_cosine

Batches = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What a step did.

    tokens: targets learned from since the start. loss: nats a target, before the step. gradient_norm: before clipping.
    tokens_per_second: targets of this step over its duration. progress: share of the run that is done, 0 to 1.
    """

    step: int
    tokens: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    progress: float


class Trainer:
    """Trains `model`, whose `loss(tokens, targets)` is a mean over the targets that are not -100.

        trainer = Trainer(model, TrainConfig(learning_rate=1e-3))
        loss = trainer.step(tokens, targets)

    The model's parameters become views of one flat array. A step puts a model in eval mode into training mode; parts
    that were put into eval mode by themselves stay there. A step whose loss or gradient is not finite changes nothing:
    it is replayed in `checked()` mode and NonFiniteError names the op where the first bad number arose.
    """

    def __init__(self, model: Module, config: TrainConfig | None = None):
        require_type("model", model, Module, "a Module")
        require_type("config", config, (TrainConfig, type(None)), "a TrainConfig")
        self.model = model
        self.config = c = config or TrainConfig()
        self.optimizer = AdamW(
            model.parameters(),
            beta1=c.beta1,
            beta2=c.beta2,
            eps=c.eps,
            weight_decay=c.weight_decay,
            shared=c.processes,
        )
        self.workers = Workers(self.optimizer, c.threads, c.accumulate, processes=c.processes)
        self.steps_done = 0
        self.tokens_seen = 0
        keep_heap()
        self.workers.start(model.loss)  # now, since there are no other threads yet to be copied amid their work

    def step(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        """One step on a batch; returns the loss before it.  tokens, targets (B, ...) integers"""
        return self._step(tokens, targets, self._steps_progress).loss

    def run(self, batches: Batches, *, spent: float = 0.0) -> Iterator[StepRecord]:
        """Step after step until the run is over; a record after each.

        batches: step -> (tokens, targets).
        spent: seconds of `minutes` already used up. The time that the caller takes between records counts as well.
        """
        start, minutes = time.monotonic() - spent, self.config.minutes

        def clock_progress(_step: int) -> float:
            assert minutes is not None
            return (time.monotonic() - start) / (60 * minutes)

        progress = self._steps_progress if minutes is None else clock_progress
        if minutes is not None and not self.steps_done:  # one step at least, however late it is by the clock
            yield self._step(*batches(0), progress)
        while progress(self.steps_done) < 1:
            yield self._step(*batches(self.steps_done), progress)

    def _steps_progress(self, step: int) -> float:
        """The share of the run that is done after `step` steps."""
        return step / self.config.steps

    def _step(self, tokens: np.ndarray, targets: np.ndarray, progress: Callable[[int], float]) -> StepRecord:
        began = time.monotonic()
        self._require_whole()
        c = self.config
        key = (c.seed, self.steps_done)
        if not self.model.training:
            self.model.train()
        loss, norm = self.workers.loss_and_gradient(self.model.loss, tokens, targets, key)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._explain(tokens, targets, key, loss, norm)
        # a step takes the learning rate of where it ends, so that the first one is not idle
        ahead = progress(self.steps_done + 1)
        learning_rate = warmup_cosine(ahead, peak=c.learning_rate, warmup=c.warmup, final=c.final)
        count = count_targets(np.asarray(targets))
        with ctrl_c_later():  # some milliseconds in which numbers and counters are of no step
            self.workers.update(learning_rate, scale=min(1.0, c.max_norm / norm) if norm else 1.0)
            self.steps_done += 1
            self.tokens_seen += count
        rate = count / (time.monotonic() - began)
        done = min(1.0, progress(self.steps_done))
        return StepRecord(self.steps_done, self.tokens_seen, loss, learning_rate, norm, rate, done)

    def _explain(self, tokens: Any, targets: Any, key: tuple[int, int], loss: float, norm: float) -> None:
        """Raise NonFiniteError naming the op whose numbers first went wrong."""
        found = f"step {self.steps_done + 1}: the loss is {loss} and the gradient's norm {norm}; nothing was updated"

        def named_loss(tokens: Any, targets: Any) -> Tensor:
            with self.model.entered():
                return self.model.loss(tokens, targets)

        cause = "No single op overflows when the step is replayed: the sum of squares does"
        try:
            with checked():
                self.workers.loss_and_gradient(named_loss, tokens, targets, key)
        except NanogradError as error:
            cause = f"{error}. A lower learning rate may help"
        raise NonFiniteError(f"{found}. {cause}")  # here, so that it does not keep the replay's tape alive

    @property
    def is_whole(self) -> bool:
        """Are all numbers of the same step? Not once a worker has failed amid an update."""
        return not self.workers.is_torn

    def _require_whole(self) -> None:
        if not self.is_whole:
            raise NanogradError(
                f"an update failed after step {self.steps_done}, so the numbers are of no step; load a checkpoint"
            )

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs, by name: parameters, both moments, the counters.

        Raises NanogradError where the numbers are not whole.
        """
        self._require_whole()
        return self._state()

    def _state(self) -> dict[str, np.ndarray]:
        flat = self.optimizer.flat
        names = {id(p): name for name, p in self.model.named_parameters()}
        state = dict(self.model.state_dict())
        for prefix, array in (("adamw.m.", self.optimizer.m), ("adamw.v.", self.optimizer.v)):
            state |= {prefix + names[id(p)]: view for p, view in zip(flat.parameters, flat.views(array))}
        state["steps_done"] = np.asarray(self.steps_done, dtype=np.int64)
        state["tokens_seen"] = np.asarray(self.tokens_seen, dtype=np.int64)
        return state

    def load_state_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state_dict` gave; ShapeError lists every name that does not fit, and nothing has changed."""
        own = self._state()
        require_fit(own, arrays, "this trainer")
        for name, array in own.items():
            array[...] = arrays[name]
        self.steps_done = self.optimizer.steps = int(arrays["steps_done"])
        self.tokens_seen = int(arrays["tokens_seen"])
        self.workers.is_torn = False
