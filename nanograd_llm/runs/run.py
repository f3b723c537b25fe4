"""A run: a task is trained, and what comes of it is kept in a folder.

Here is what all runs have in common: when to score, when to save, and how to end without losing anything.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nanograd_llm.errors import NonFiniteError
from nanograd_llm.runs.folder import RunFolder, next_run_path
from nanograd_llm.runs.stopping import StopRequest
from nanograd_llm.settings import Settings, setting
from nanograd_llm.tasks.task import Sample, Score, Task
from nanograd_llm.training.trainer import StepRecord, Trainer


@dataclasses.dataclass(frozen=True)
class Scored:
    """After `step` the model was scored on what was held out."""

    step: int
    score: Score


@dataclasses.dataclass(frozen=True)
class Sampled:
    """After `step` the model made `sample`."""

    step: int
    sample: Sample


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint of `step` lies at `path`."""

    step: int
    path: Path


Event = StepRecord | Scored | Sampled | Saved


class RunConfig(Settings):
    """How a run goes besides its task and training. Raises ConfigError naming the field that cannot be."""

    init: str | None = setting(
        "Go on from this model's weights, with its tokenizer: the folder of a run, or a pretrained model: a folder, a "
        "file or a name, such as gpt2.",
        default=None,
    )
    evaluate_every: int | None = setting(
        "Score the held-out part every N steps; five times a run if not given.", default=None, low=1
    )
    checkpoint_every: int | None = setting(
        "Save a checkpoint every N steps; at the end only if not given.", default=None, low=1
    )


class Run:
    """A new run of a task in the folder `out`, or in the next `runs/NAME-N` where that is None.

        run = Run("runs/mine", LanguageModelling(TextConfig(), GPTConfig.preset("nano"), recipe("nano", minutes=1)))
        for event in run.train():
            ...

    settings: of `RunConfig`.
    Raises StorageError where the folder cannot be made; a folder that was made is left as empty as it was found.
    """

    def __init__(self, out: str | os.PathLike[str] | None, task: Task, name: str = "run", **settings: Any):
        self.task = task
        self.config = RunConfig(task.init, **settings)
        self.stopped_by: signal.Signals | None = None  # the signal that ended training early
        self.on_stop: Callable[[signal.Signals], None] | None = None  # called within the handler of that signal
        self.trainer = Trainer(task.model, task.training)
        self.folder = RunFolder.create(next_run_path(name=name) if out is None else out)
        with self.folder.emptied_on_failure():
            task.save_beside(self.folder.path)
            train = dataclasses.asdict(task.training)
            if task.training.minutes is not None:
                del train["steps"]
            self.folder.write_config({"run": dataclasses.asdict(self.config), **task.config, "train": train})

    def train(self, *, spent: float = 0.0) -> Generator[Event, None, None]:
        """Train to the end; yields what happens as it happens. spent: seconds of the time limit already used up.

        Ctrl-C, SIGTERM and SIGHUP let what is under way (a step, a score) end, then save and end the run without a
        last score; a second Ctrl-C breaks into what is under way, and only saves. Whatever else ends the run, what was
        learned is saved first, if it is finite.
        """
        with self.folder, StopRequest(self.on_stop) as stop:
            try:
                yield from self._train(stop, spent)
            except BaseException as error:  # also Ctrl-C, or the end of the caller's loop, such as a closed pipe
                if not (self._is_unsaved() and self.trainer.is_whole and self._is_finite()):
                    raise
                saved = self._save()
                if isinstance(error, NonFiniteError):
                    raise NonFiniteError(f"{error}. The weights of step {saved.step} are in {saved.path}") from None
                raise

    def _train(self, stop: StopRequest, spent: float) -> Iterator[Event]:
        c, fifths = self.config, 0
        if self.task.init is not None:
            yield self._score()
        for record in self.trainer.run(self.task.batch, spent=spent):
            self.folder.append_metrics(dataclasses.asdict(record))
            yield record
            if stop.requested or record.progress == 1:
                break
            before, fifths = fifths, int(record.progress * 5)
            if fifths > before if c.evaluate_every is None else record.step % c.evaluate_every == 0:
                yield self._score()
                if not stop.requested:
                    yield from self._sample()
            if stop.requested:
                break
            if c.checkpoint_every is not None and record.step % c.checkpoint_every == 0:
                yield self._save()
        self.stopped_by = stop.requested
        if self._is_unsaved():
            yield self._save()
        if not self.stopped_by:
            yield self._score()
            yield from self._sample(last=True)

    def _score(self) -> Scored:
        scored = Scored(self.trainer.steps_done, self.task.score())
        self.folder.append_metrics({"step": scored.step, **scored.score.metrics()})
        return scored

    def _sample(self, *, last: bool = False) -> Iterator[Sampled]:
        sample = self.task.sample(last=last)
        if sample is not None:
            self.folder.append_sample(self.trainer.steps_done, f"{sample.title}:\n{sample.text}")
            yield Sampled(self.trainer.steps_done, sample)

    def _save(self) -> Saved:
        step = self.trainer.steps_done
        if not self._is_finite():
            raise NonFiniteError(
                f"step {step} made the weights NaN or infinite, so they are not saved; use an "
                "older checkpoint, if there is one, or train again with a lower learning rate"
            )
        return Saved(step, self.folder.save_checkpoint(step, self.trainer.state_dict(), {}))

    def _is_unsaved(self) -> bool:
        return self.trainer.steps_done > 0 and self.trainer.steps_done not in self.folder.checkpoints()

    def _is_finite(self) -> bool:
        return bool(np.isfinite(self.trainer.optimizer.flat.data).all())
