"""The trainer minimises the `loss` of any Module, one step at a time.

A step is forward, backward, clip, and the optimizer's update. Everything random in it follows from (seed, step), so
the same settings give the same run.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nanograd_llm.autograd.checked import require_finite
from nanograd_llm.autograd.modes import checked
from nanograd_llm.backend.arrays import allow_tf32, device_of, to_device, to_host
from nanograd_llm.backend.lazy import absent
from nanograd_llm.backend.processes import deferred_ctrl_c
from nanograd_llm.backend.threads import keep_heap
from nanograd_llm.errors import BadFileError, DeviceError, GraphError, NanogradError, NonFiniteError
from nanograd_llm.nn.layers import Linear
from nanograd_llm.nn.module import Module, require_fit
from nanograd_llm.ops.layout import array_like
from nanograd_llm.settings import counted, nearest, require_known, require_type
from nanograd_llm.training.adamw import AdamW
from nanograd_llm.training.config import TrainConfig
from nanograd_llm.training.muon import Muon
from nanograd_llm.training.schedule import scheduled
from nanograd_llm.training.team import Processes, make_team
from nanograd_llm.training.workers import Workers

Batches = Callable[[int], Sequence[Any]]
_INSTEAD = {  # PyTorch's and Keras's name, or a setting -> what to use
    **dict.fromkeys(("fit", "train"), "step(tokens, targets) for each batch, or run(batches) for all steps"),
    **dict.fromkeys(("zero_grad", "backward"), "step(tokens, targets), which does it"),
    **{name: f"Trainer(model, TrainConfig({name}=...))" for name in TrainConfig.setting_types},
    "lr": "Trainer(model, TrainConfig(learning_rate=...))",
}
MOMENTS = ("adamw.m.", "adamw.v.", "muon.u.")  # before the name of a parameter that is trained, in a state


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one step did.

    items: how many items that count, such as tokens, were trained on since the start. loss: the mean over those of this
    step, before its update. gradient_norm: before clipping. items_per_second: in this step. progress: the share of the
    run that is done, 0 to 1.
    """

    step: int
    items: int
    loss: float
    learning_rate: float
    gradient_norm: float
    items_per_second: float
    progress: float


def _in_config(name: str, value: Any) -> str:
    """How to give an argument that is a setting of TrainConfig; "" for another."""
    known = nearest(name, TrainConfig.setting_types)
    return f"write Trainer(model, TrainConfig({known}={value!r:.50}))" if known else ""


def required_batch(batch: Any) -> Sequence[Any]:
    """The batch itself. Raises DtypeError where it is no tuple, such as one array, whose rows are no arrays."""
    require_type("a batch", batch, (tuple, list), "a tuple of arrays, such as (x, y), or (x,) for one")
    return batch  # type: ignore[no-any-return]


class Trainer:
    """Trains the parameters of `model` that are not frozen, to minimise `model.loss(*batch)`.

        trainer = Trainer(model, TrainConfig(learning_rate=1e-3))
        loss = trainer.step(tokens, targets)

    The loss is a Tensor (), a mean over the items that count, and `model.loss_count(*batch)` says how many do. A batch
    is one or more arrays, which are split along axis 0 over the workers. Each piece is weighted by the number of items
    that count in it, so the loss is that of the whole batch.

    The trained parameters become views of one flat array. Worker processes copy the model when the trainer is made.
    They share the values of the trained parameters, and follow train() and eval(); any other later change is not seen,
    and what the loss writes into the model stays in that worker. Where this matters, use processes=False.

    A step puts a model that is in evaluation mode into training mode; if only parts of it are in evaluation mode, they
    stay there. A step whose loss or gradient is not finite changes nothing: it is run again in `checked()` mode, and
    NonFiniteError names the op that gave the first such number. Raises GraphError if there is nothing to train.
    """

    def __init__(self, model: Module, config: TrainConfig | None = None, **other: Any):
        require_known(other, "Trainer", "config", _in_config)
        require_type("model", model, Module, "a Module")
        require_type("config", config, (TrainConfig, type(None)), "a TrainConfig")
        trained = model.trainable_parameters()
        if not trained:
            frozen = len(model.parameters())
            found = f"all its {frozen} parameters are frozen" if frozen else "it has no parameters"
            remedy = (
                "unfreeze() the parts to train" if frozen else "assign Parameter(array) to an attribute in __init__"
            )
            raise GraphError(f"this {type(model).__name__} has nothing to train: {found}; {remedy}")
        self.model = model
        self.config = c = config or TrainConfig()
        keep_heap()
        on_gpu = any(parameter.device != "cpu" for parameter in trained)
        if on_gpu:
            if c.workers > 1:
                raise DeviceError(f"workers is {c.workers}, but a model on a GPU has one worker; set workers to 1")
            if c.processes:
                raise DeviceError("processes is True, but a model on a GPU has one worker; set processes to False")
            allow_tf32(c.allow_tf32)
        team = make_team(1 if on_gpu else c.workers, None if on_gpu else c.processes)
        linear = [m.weight for _, m in model.named_modules() if isinstance(m, Linear)]
        make = functools.partial(Muon, matrices=linear) if c.optimizer == "muon" else AdamW
        self.optimizer = make(
            trained,
            beta1=c.beta1,
            beta2=c.beta2,
            eps=c.eps,
            weight_decay=c.weight_decay,
            shared=isinstance(team, Processes),
        )
        self.steps_done = 0
        self.items_seen = 0
        self.workers = Workers(model, self.optimizer, team, c.accumulate)
        self._stepping = threading.Lock()

    def __repr__(self) -> str:
        return f"Trainer({type(self.model).__name__}, step {self.steps_done} of {self.config.steps}, {self.workers})"

    if not TYPE_CHECKING:  # type checkers would think that a Trainer has every attribute

        def __getattr__(self, name: str) -> Any:
            if name in _INSTEAD:
                raise absent(f"{type(self).__name__!r} object", name, _INSTEAD)
            return object.__getattribute__(self, name)  # raises the error that led here

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _INSTEAD and name not in ("optimizer", "workers"):  # a learning rate would have no effect
            raise absent(f"{type(self).__name__!r} object", name, _INSTEAD)
        object.__setattr__(self, name, value)

    def step(self, *batch: Any) -> float:
        """One step on a batch; returns the loss before it.  batch: arrays or lists with the same number of rows

        Past the `steps` of the config, the learning rate stays at its last value; the first such step warns, unless the
        schedule is constant.
        """
        record = self._step(batch, self._steps_progress)
        if record.step == self.config.steps + 1 and self.config.schedule != "constant":
            warnings.warn(
                f"step {record.step:,} of {self.config.steps:,}: the schedule is over, and the learning rate stays at "
                f"{record.learning_rate:.3g}; give TrainConfig more steps",
                stacklevel=2,
            )
        return record.loss

    def run(self, batches: Batches, *, spent: float = 0.0) -> Iterator[StepRecord]:
        """Take steps until `steps` of the config are done, or its `minutes` are over; yields a record after each.

        batches: step -> the arrays of its batch, such as (tokens, targets).
        spent: seconds of `minutes` already used up. The time that the caller takes between records counts as well.
        Raises NanogradError if all steps were done before.
        """
        if self.config.minutes is None and self.steps_done >= self.config.steps:
            raise NanogradError(
                f"all {counted(self.config.steps, 'step')} of this trainer are done; to go on, make a trainer with "
                "more steps, and give its load_state_dict the state_dict of this one"
            )
        start, minutes = time.monotonic() - spent, self.config.minutes

        def clock_progress(_step: int) -> float:
            assert minutes is not None
            return (time.monotonic() - start) / (60 * minutes)

        progress = self._steps_progress if minutes is None else clock_progress
        if minutes is not None and not self.steps_done:  # at least one step, even if the time is over
            yield self._step(required_batch(batches(0)), progress)
        while progress(self.steps_done) < 1:
            yield self._step(required_batch(batches(self.steps_done)), progress)

    def _steps_progress(self, step: int) -> float:
        """The share of the run that is done after `step` steps."""
        return step / self.config.steps

    def _step(self, batch: Sequence[Any], progress: Callable[[int], float]) -> StepRecord:
        if not self._stepping.acquire(blocking=False):
            raise GraphError("another thread is in a step of this trainer; take one step at a time")
        try:
            began = time.monotonic()
            self._require_whole()
            c = self.config
            key = (c.seed, self.steps_done)
            if not self.model.training:
                self.model.train()
            loss, norm, count = self.workers.loss_and_gradient(batch, key)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._raise_non_finite(batch, key, loss, norm)
            # a step uses the learning rate at its end: at the start of the run it is 0
            at_end = progress(self.steps_done + 1)
            learning_rate = scheduled(c.schedule, at_end, peak=c.learning_rate, warmup=c.warmup, final=c.final)
            with deferred_ctrl_c():  # for some milliseconds parameters and counters do not match
                self.workers.update(learning_rate, scale=min(1.0, c.max_norm / norm) if norm else 1.0)
                self.steps_done += 1
                self.items_seen += count
            rate = count / (time.monotonic() - began)
            done = min(1.0, progress(self.steps_done))
            return StepRecord(self.steps_done, self.items_seen, loss, learning_rate, norm, rate, done)
        finally:
            self._stepping.release()

    def _raise_non_finite(self, batch: Sequence[Any], key: tuple[int, int], loss: float, norm: float) -> None:
        """Raise NonFiniteError naming the op with the first bad number, and what brought it: batch or parameter."""
        numbers = f"the loss is {loss:.4g} and the gradient's norm {norm:.4g}"
        found = f"step {self.steps_done + 1}: {numbers}; nothing was updated"
        advice = "Lower learning_rate, and train from the beginning or an earlier checkpoint"
        cause = f"The sum of the gradient's squares overflows. {advice}"
        given = {f"array {i} of the batch": array_like(array) for i, array in enumerate(batch)}
        given |= {f"parameter {name}": parameter.data for name, parameter in self.model.named_parameters()}
        try:
            for what, array in given.items():
                require_finite(array, what, [array])  # -inf may be a mask
        except NonFiniteError as error:
            advice = f"The cause: {error}"
        try:
            with checked():
                self.workers.loss_and_gradient(batch, key)
        except NanogradError as error:
            cause = f"{error}. {advice}"
        raise NonFiniteError(f"{found}. {cause}")  # here, so that it does not keep the replay's tape alive

    @property
    def is_whole(self) -> bool:
        """Do all parameters belong to the same step? They do not after a worker failed during an update."""
        return not self.workers.half_updated

    def _require_whole(self) -> None:
        if not self.is_whole:
            raise NanogradError(
                f"an update failed after step {self.steps_done}, so the parameters are half updated; load a checkpoint"
            )

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs, by name: all parameters, both moments of the trained ones, the counters.

        Raises NanogradError if the parameters are half updated.
        """
        self._require_whole()
        return {name: to_host(array) for name, array in self._state().items()}

    def _state(self) -> dict[str, Any]:
        """As `state_dict`, the arrays themselves."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        state = self.model.arrays()
        state |= {kind + names[id(p)]: view for kind, p, view in self.optimizer.moments()}
        state["steps_done"] = np.asarray(self.steps_done, dtype=np.int64)
        state["items_seen"] = np.asarray(self.items_seen, dtype=np.int64)
        return state

    def load_state_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from what `state_dict` returned.

        Raises ShapeError with every name that does not fit, BadFileError if a counter or second moment is negative, or
        a moment is not finite; then nothing has changed.
        """
        own = self._state()
        require_fit(own, arrays, "this trainer")
        names = ("steps_done", "items_seen", *(name for name in own if name.startswith(MOMENTS[1])))
        if bad := [name for name in names if (arrays[name] < 0).any()]:
            raise BadFileError(f"negative numbers in {', '.join(bad)}, which training never gives; use another state")
        if bad := [name for name in own if name.startswith(MOMENTS) and not np.isfinite(arrays[name]).all()]:
            raise BadFileError(
                f"NaN or infinity in {', '.join(bad)}, which every later step would keep; use another state"
            )
        for name, array in own.items():
            array[...] = to_device(arrays[name], device_of(array))
        self.steps_done = self.optimizer.steps = int(arrays["steps_done"])
        self.items_seen = int(arrays["items_seen"])
        self.workers.restart()
