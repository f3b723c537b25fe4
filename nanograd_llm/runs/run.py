"""A run trains a task and writes the results into a folder.

It decides, for any task, when to score, when to save, and how to end without losing anything.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nanograd_llm.backend.threads import cpu_count, operations_per_second
from nanograd_llm.errors import BadFileError, ConfigError, DtypeError, NonFiniteError, StorageError, WorkerError
from nanograd_llm.files.atomic import read_bytes, write_atomically
from nanograd_llm.nn import lora
from nanograd_llm.runs.compare import history, loss_picture
from nanograd_llm.runs.folder import HASH_NAME, RunFolder, next_run_path
from nanograd_llm.runs.operations import step_operations
from nanograd_llm.runs.stopping import SIGNALS, StopRequest, handling
from nanograd_llm.runs.tables import RunConfig
from nanograd_llm.settings import counted, require_type, shown
from nanograd_llm.tasks.task import SAME_ROWS, Sample, Score, Task
from nanograd_llm.training.trainer import StepRecord, Trainer, required_batch


@dataclasses.dataclass(frozen=True)
class Scored:
    """The score of the model on held-out data after `step`."""

    step: int
    score: Score


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A sample of what the model makes after `step`."""

    step: int
    sample: Sample


@dataclasses.dataclass(frozen=True)
class Saved:
    """The checkpoint of `step` was saved at `path`."""

    step: int
    path: Path


SLOW_START = 0.2  # share of the time from which it is said that reading took it
SAVED_AT_ONCE = 2**27  # bytes of a checkpoint that is written in about a second
SECONDS_UNSAVED = 300  # between checkpoints, if checkpoint_every is not given
UNTRAINED = {"workers": "0", "rows": "0"}  # the metadata of a run that ended before its first checkpoint
LEAST_ROWS = 8  # that a score is computed on
LAST_ROWS = 128  # that the last score of a run of steps is computed on at least, if the model is small
RISEN = 1.05  # times the lowest loss on held-out data: above that the last one is worse, not only by chance
LEAST_NUMBERS = 300_000_000  # parameters times rows, which take some tenths of a second

Stored = TypeVar("Stored")
Event = StepRecord | Scored | Sampled | Saved


class Run:
    """A new run of a task in the folder `out`, or in the next `runs/NAME-N` if that is None.

        run = Run("runs/mine", LanguageModelling(TextConfig(), GPTConfig.preset("nano"), recipe("nano", minutes=1)))
        for event in run.train():
            ...

    adapters: settings of LoRA; then the model gets adapters, and only these and its fresh parts are trained.
    settings: of `RunConfig`.
    Raises StorageError if the folder cannot be made or written to, ConfigError for adapters where the task has frozen
    some of the weights; then no files are left in it.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None,
        task: Task,
        name: str = "run",
        adapters: lora.LoRAConfig | None = None,
        **settings: Any,
    ):
        self._set_up(task, adapters, settings)
        self.folder = RunFolder.create(next_run_path(name=name) if out is None else out)
        with self.folder.emptied_on_failure():
            task.save_beside(self.folder.path)
            self.write_config()

    def _set_up(
        self, task: Task, adapters: lora.LoRAConfig | None, settings: dict[str, Any], workers: int | None = None
    ) -> None:
        require_type("task", task, Task, "a Task, which nanograd_llm.tasks has")
        self.task, self.adapters = task, adapters
        self.config = RunConfig(task.name, task.init, **settings)
        self.stopped_by: signal.Signals | None = None  # the signal that ended training early
        self.on_stop: Callable[[signal.Signals, bool], None] | None = None  # see `StopRequest`
        self.seconds = 0.0  # that the run took before this process
        self.damaged: int | None = None  # the step of a newer checkpoint that a resumed run passed over
        self._rows: int | None = None  # of a score, once it is known
        self._drawn = 0.0  # when loss.svg was last written
        self.losses: dict[int, float] = {}  # on held-out data, by step
        self._lowest = math.inf  # loss of a step
        self.no_adapter = ""  # why the folder has no adapter in PEFT's form, where the model has adapters
        if not hasattr(task, "model"):
            raise ConfigError(f"the task {task.name} has no model; call super().__init__ in its __init__")
        _require_words(task)
        if adapters is not None:
            if len(task.model.trainable_parameters()) < len(task.model.parameters()):
                raise ConfigError("lora_rank freezes the model, and the task freezes some of it: leave one of them out")
            lora.add(task.model, **dataclasses.asdict(adapters), rng=np.random.default_rng((task.training.seed, 1)))
            from nanograd_llm.pretrained.peft import refusal

            self.no_adapter = refusal(task.model)
        if any(parameter.device != "cpu" for parameter in task.model.parameters()):
            workers = 1
        workers = task.training.workers or workers or min(cpu_count(), task.training.batch_size)  # a row for each
        self.trainer = Trainer(task.model, dataclasses.replace(task.training, workers=workers))
        self.limit = operations_per_second()

    @classmethod
    def resumed(cls, folder: RunFolder, task: Task, adapters: lora.LoRAConfig | None = None, **settings: Any) -> Run:
        """The run of this folder, which is locked, as it was when its newest whole checkpoint was saved.

        task: made of the same settings again; its training may be longer. Raises ConfigError where what it would write
        beside the model differs from what is there, such as its tokenizer or the hash of its text, or where the run is
        over; ShapeError, BadFileError where the checkpoint does not fit.
        """
        run = cls.__new__(cls)
        require_same_files(task, folder.path)
        step, arrays, metadata = folder.newest_whole() if folder.checkpoints() else (0, {}, UNTRAINED)
        try:
            workers, rows = int(metadata["workers"]), int(metadata["rows"])
            seconds = float(metadata.get("seconds", 0))
        except (KeyError, ValueError):
            raise BadFileError(
                f"{folder.checkpoint_path(step)}: was saved by a version that cannot resume; use --init "
                f"{shlex.quote(str(folder.path))}"
            ) from None
        require_unfinished(folder, step, seconds, task.training.steps, task.training.minutes)
        run._set_up(task, adapters, settings, workers or None)
        run.folder, run.seconds, run._rows = folder, seconds, rows or None
        if step:
            run.trainer.load_state_dict(arrays)
        run.damaged = max((newer for newer in folder.checkpoints() if newer > step), default=None)
        folder.forget_after(step)
        run.losses = {
            int(record["step"]): record.get(SAME_ROWS, record["held_out_loss"])
            for record in folder.read_metrics()
            if "held_out_loss" in record
        }
        return run

    def write_config(self) -> None:
        """Write config.toml, which makes this run again."""
        train = dataclasses.asdict(self.task.training)
        if self.task.training.minutes is not None:
            del train["steps"]
        tables = {"run": dataclasses.asdict(self.config), **self.task.config, "train": train}
        if self.adapters is not None:
            tables["lora"] = dataclasses.asdict(self.adapters)
        self.folder.write_config(tables)

    def train(self, *, spent: float = 0.0) -> Generator[Event, None, None]:
        """Train to the end; yields events as they happen. spent: seconds of the time limit that this process used up.

        On Ctrl-C, SIGTERM or SIGHUP the run finishes its current step, or interrupts a score, then saves and ends
        without a last score. A second Ctrl-C interrupts a step as well, and raises KeyboardInterrupt: with the path of
        what it saved, or with nothing where that would take long; the checkpoint before is whole. If anything else ends
        the run, the weights are saved first, if they are finite.
        """
        minutes = self.trainer.config.minutes
        if minutes and spent > SLOW_START * 60 * minutes:
            remedy = "give more minutes, or --steps, which do not depend on the time"
            warnings.warn(f"{spent:.3g} s of {60 * minutes:.3g} s went into reading the data; {remedy}", stacklevel=2)
        spent += self.seconds
        self._began = time.monotonic() - spent
        stop = StopRequest(self.on_stop)
        with handling(SIGNALS, stop.handle):
            try:
                yield from self._train(stop, spent)
            except BaseException as error:  # also Ctrl-C, or the end of the caller's loop, as at a closed pipe
                is_slow = 3 * self.trainer.optimizer.flat.data.nbytes > SAVED_AT_ONCE  # with its two moments
                is_impatient = is_slow and isinstance(error, KeyboardInterrupt)
                if is_impatient or not (self._is_unsaved() and self.trainer.is_whole and self._is_finite()):
                    raise
                saved = self._save()
                if isinstance(error, (NonFiniteError, WorkerError, KeyboardInterrupt)):
                    cause = f"{error}. " if str(error) else ""
                    raise type(error)(f"{cause}The weights of step {saved.step} are in {saved.path}") from None
                raise
            finally:
                self.folder.close()  # which may be the spare one by now

    def batch(self, steps_done: int) -> tuple[Any, ...]:
        """The arrays that the step after so many steps trains on."""
        return tuple(required_batch(self.task.batch(0 if self.config.same_batch else steps_done)))

    def append_watched(self, record: dict[str, Any]) -> None:
        """Add what `train --watch` found to the folder."""
        self._stored(lambda: self.folder.append_watched(record))

    def _train(self, stop: StopRequest, spent: float) -> Iterator[Event]:
        c, minutes, saved = self.config, self.trainer.config.minutes, time.monotonic()
        automatic = [*self.folder.checkpoints()]  # of a resumed run
        done = spent / (60 * minutes) if minutes else self.trainer.steps_done / self.trainer.config.steps
        fifths = int(5 * done)
        if self.task.init is not None and not self.trainer.steps_done:
            yield from self._score(stop)
        earlier: np.ndarray | None = None
        batch: list[Any] = []  # of the current step
        items_before = self.trainer.items_seen

        def next_batch(steps_done: int) -> list[Any]:
            batch[:] = self.batch(steps_done)
            return batch

        for record in self.trainer.run(next_batch, spent=spent):
            items, items_before = record.items - items_before, record.items
            flops = step_operations(self.task.model, batch, items)
            numbers = {**dataclasses.asdict(record), "flops": flops}
            numbers["share_of_limit"] = flops / items * record.items_per_second / self.limit
            if earlier is not None:
                numbers |= self._norms(earlier)
            every = c.norms_every
            earlier = self.trainer.optimizer.flat.data.copy() if every and (record.step + 1) % every == 0 else None
            self._stored(lambda: self.folder.append_metrics(numbers))  # noqa: B023  called at once
            yield record
            self._lowest = min(self._lowest, record.loss)
            exploded = self.trainer.config.schedule == "range" and record.loss > 2 * self._lowest
            if stop.requested or record.progress == 1 or exploded:
                break
            before, fifths = fifths, int(record.progress * 5)
            if fifths > before if c.evaluate_every is None else record.step % c.evaluate_every == 0:
                yield from self._score(stop)
                yield from self._sample(stop)
            if stop.requested or self.is_stuck:
                break
            if c.checkpoint_every is not None and record.step % c.checkpoint_every == 0:
                if self._is_unsaved():  # the best of several is saved with its score
                    yield self._save()
            elif c.checkpoint_every is None and time.monotonic() - saved > SECONDS_UNSAVED:
                yield self._save()
                saved = time.monotonic()
                automatic.append(record.step)
                if len(automatic) > 2 and c.keep is None:
                    self._remove(automatic.pop(0))
        if self._is_unsaved():
            yield self._save()
        yield from self._score(stop, last=True)
        self._stored(lambda: self._draw(last=True))
        yield from self._sample(stop, last=True)
        self.stopped_by = stop.requested

    def _score(self, stop: StopRequest, *, last: bool = False) -> Iterator[Scored | Saved]:
        """Score the model, unless the run is asked to end before or during that.

        The last score of a run of minutes is on as many rows as a twentieth of that time allows, that of a run of steps
        on as many as take some tenths of a second, so that a short run has a figure worth having as well.
        """

        @np.errstate(all="ignore")  # a number that is not finite shows in the score
        def compute() -> tuple[Score, float | None]:
            if self._rows is None:
                self._rows = self._rows_to_score()
            score = self._scored_on(self._rows)
            loss = score.metrics().get("held_out_loss")  # on the same rows each time
            if last and (minutes := self.trainer.config.minutes):
                _, score = self._most_rows(self._rows, score, 3 * minutes)
            elif last and self._rows < (rows := self._last_rows()):
                score = self._scored_on(rows)
            return score, loss

        if (found := stop.interruptible(compute)) is not None:
            score, loss = found
            scored = Scored(self.trainer.steps_done, score)
            record = {"step": scored.step, **score.metrics(), "scored_share": score.share}
            if loss is not None and loss != record["held_out_loss"]:
                record[SAME_ROWS] = loss
            self._stored(lambda: self.folder.append_metrics(record))
            self._stored(self._draw)
            yield scored
            if loss is not None:
                self.losses[scored.step] = loss
                if self.config.keep is not None and self.best == scored.step and self._is_unsaved():
                    yield self._save()

    def _scored_on(self, rows: int) -> Score:
        score = self.task.score(rows)
        require_type("the score of a task", score, Score, 'a Score, such as Score("accuracy", 0.5)')
        return score

    @property
    def best(self) -> int | None:
        """The step with the lowest loss on held-out data, the first of several; None without one."""
        finite = {step: math.inf if math.isnan(loss) else loss for step, loss in self.losses.items()}
        return min(finite, key=lambda step: (finite[step], step), default=None)

    @property
    def is_stuck(self) -> bool:
        """Have so many scores as `patience` in a row not been better than the best?"""
        after = [step for step in self.losses if step > (self.best or 0)]
        return self.config.patience is not None and len(after) >= self.config.patience

    @property
    def is_test(self) -> bool:
        """Is it a test, on one batch or of learning rates? What is held out then says nothing about the model."""
        return self.config.same_batch or self.trainer.config.schedule == "range"

    def overfitting(self) -> str:
        """Where the loss on held-out data ends clearly above its lowest, what that means and what helps; "" elsewhere.

        The losses are on the same rows. A test ends so whatever the model has learned.
        """
        best, last = self.best, max(self.losses, default=0)
        if best is None or not math.isfinite(self.losses[last]) or self.is_test:
            return ""
        if not self.losses[last] - self.losses[best] > (RISEN - 1) * abs(self.losses[best]) + 1e-3:
            return ""
        found = (
            f"the held-out loss was lowest at step {best} ({self.losses[best]:.3f}), "
            f"and is {self.losses[last]:.3f} now, on the same rows"
        )
        learned = [record["loss"] for record in self.folder.read_metrics() if "loss" in record]  # of each step
        width = max(1, len(learned) // 10)
        now, before = (float(np.mean(losses[-width:])) for losses in (learned, learned[: best or len(learned)]))
        if not best or now > before:
            return f"{found}: this training made the model worse; try a lower --learning-rate, or fewer steps"
        if now * RISEN > min(before, self.losses[best]):  # it knows what it learns from no better than the rest
            return ""
        saved = self.folder.checkpoints()
        remedy = f"the model of step {best} is {saved[best]}" if best in saved else "--keep 1 also saves the best model"
        dropout = " or --dropout 0.2" if "dropout" in type(self.task.model.config).__dataclass_fields__ else ""
        earlier = "--patience 2 stops early, " * (self.config.patience is None)
        return f"{found}: it learns its data by heart; {remedy}, {earlier}more data{dropout} helps"

    def suggested_rate(self) -> float | None:
        """Of a run with the schedule range, the learning rate at which the loss fell fastest; None for another run.

        The losses are smoothed over a twentieth of the steps.
        """
        if self.trainer.config.schedule != "range":
            return None
        records = [record for record in self.folder.read_metrics() if "loss" in record]
        rates, losses = (np.array([record[name] for record in records]) for name in ("learning_rate", "loss"))
        width = max(1, len(losses) // 20)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        slopes = smooth[width:] - smooth[:-width]
        return float(rates[int(slopes.argmin()) + width]) if len(slopes) else None

    def _norms(self, earlier: np.ndarray) -> dict[str, float]:
        """The norms of the last gradient, before clipping, and of the last update, of each parameter.

        earlier: the parameters before that update.
        """
        flat, names = self.trainer.optimizer.flat, {id(p): name for name, p in self.task.model.named_parameters()}
        return {
            f"{kind}_norm.{names[id(p)]}": float(np.linalg.norm(view))
            for kind, array in (("gradient", self.trainer.workers.gradient), ("update", flat.data - earlier))
            for p, view in zip(flat.parameters, flat.views(array))
        }

    def _stored(self, write: Callable[[], Stored]) -> Stored:
        """Write something; where the folder cannot be written to, go on in the spare one, if there is one."""
        try:
            return write()
        except StorageError as error:
            if self.config.spare is None:
                raise
            failed, spare = self.folder, RunFolder.create(self.config.spare)
            self.task.save_beside(spare.path)
            for path in (failed.metrics_path, failed.watch_path, failed.samples_path):
                if path.exists():
                    write_atomically(spare.path / path.name, read_bytes(path))
            self.config = dataclasses.replace(self.config, spare=None)
            self.folder = spare
            self.write_config()
            failed.close()
            warnings.warn(f"{error}. The run goes on in {spare.path}", stacklevel=2)
            return write()

    def _draw(self, *, last: bool = False) -> None:
        """Write loss.svg, at most every ten seconds before the end, since all metrics are read for it."""
        if last or not self._drawn or time.monotonic() - self._drawn > 10:
            self._drawn = time.monotonic()
            picture = loss_picture([history(self.folder.path)])
            write_atomically(self.folder.path / "loss.svg", picture.encode())

    def _rows_to_score(self) -> int:
        """How many rows are scored: as many as take a tenth of the time between two scores.

        Scoring two rows takes as long as training on one.
        """
        c, done = self.trainer.config, self.trainer.steps_done
        if c.minutes is None:
            steps = self.config.evaluate_every or math.ceil(c.steps / 5)
            return max(LEAST_ROWS, steps * c.batch_size // 5)
        if done:
            return max(LEAST_ROWS, done * c.batch_size // 5)
        first = self._scored_on(LEAST_ROWS)  # no step has been timed yet
        return self._most_rows(LEAST_ROWS, first, 60 * c.minutes / 100)[0]

    def _last_rows(self) -> int:
        """How many rows the last score of a run of steps is on at least: a function of the model's size alone."""
        return min(LAST_ROWS, LEAST_NUMBERS // self.task.model.parameter_count())

    def _most_rows(self, rows: int, score: Score, seconds: float) -> tuple[int, Score]:
        """How many rows were scored last, and their score: twice as many each time, until the seconds are over."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            before, score = score, self._scored_on(2 * rows)
            if score.measured_on == before.measured_on:  # all rows that are held out
                break
            rows *= 2
        return rows, score

    def _sample(self, stop: StopRequest, *, last: bool = False) -> Iterator[Sampled]:
        sampled = np.errstate(all="ignore")(self.task.sample)
        if (sample := stop.interruptible(lambda: sampled(last=last or self.config.long_samples))) is not None:
            require_type("the sample of a task", sample, Sample, "a Sample, or None")
            for name, content in sample.files.items():
                self._stored(lambda: write_atomically(self.folder.path / name, content.encode()))  # noqa: B023
            text = f"{sample.title}:\n{sample.text}"
            self._stored(lambda: self.folder.append_sample(self.trainer.steps_done, text))
            yield Sampled(self.trainer.steps_done, sample)

    def _save(self) -> Saved:
        step = self.trainer.steps_done
        if not self._is_finite():
            raise NonFiniteError(
                f"step {step} made the weights NaN or infinite, so they are not saved; use an "
                "older checkpoint, if there is one, or train again with a lower learning rate"
            )
        metadata = {"workers": str(self.trainer.config.workers), "rows": str(self._rows or 0)}
        if self.trainer.config.minutes is not None:  # else equal runs have equal files
            metadata["seconds"] = str(time.monotonic() - self._began)
        path = self._stored(lambda: self.folder.save_checkpoint(step, self.trainer.state_dict(), metadata))
        if self.config.keep is not None:
            saved = self.folder.checkpoints()
            for old in {*saved} - {*sorted(saved)[-self.config.keep :], self.best}:
                self._remove(old)
        if self.adapters is not None and not self.no_adapter:
            from nanograd_llm.pretrained.peft import save_lora

            self._stored(
                lambda: save_lora(self.task.model, self.folder.adapter_path, base=self.task.init, replace=True)
            )
        return Saved(step, path)

    def _remove(self, step: int) -> None:
        """Remove a checkpoint from the folder of now; what lies in a folder that failed stays there."""
        self._stored(lambda: self.folder.remove_checkpoint(step))

    def _is_unsaved(self) -> bool:
        return self.trainer.steps_done > 0 and self.trainer.steps_done not in self.folder.checkpoints()

    def _is_finite(self) -> bool:
        return bool(np.isfinite(self.trainer.optimizer.flat.data).all())


def _require_words(task: Task) -> None:
    """Raise DtypeError where what a task says of itself is no text, before anything is trained."""
    lines = task.describe()
    if not isinstance(lines, Mapping) or not all(isinstance(one, str) for line in lines.items() for one in line):
        form = 'a dict of lines by name, such as {"model": "a line"}'
        raise DtypeError(f"what describe of the task {task.name} returns must be {form}; got {shown(lines)}")
    require_type(f"what example of the task {task.name} returns", task.example(), str, 'a str, "" for none')


def require_unfinished(folder: RunFolder, step: int, seconds: float, steps: int, minutes: float | None) -> None:
    """Raise ConfigError where a run of this length, of which a checkpoint has this step and time, is over."""
    if minutes is None and step >= steps:
        more = f"all {counted(step, 'step')} of this run are done"
        more = more if step == steps else f"{counted(step, 'step')} are done, more than the {steps:,} asked for"
        raise ConfigError(f"{folder.path}: {more}; give a larger total, such as --steps {2 * step}")
    if minutes is not None and seconds >= 60 * minutes:
        raise ConfigError(
            f"{folder.path}: the time of this run, {counted(minutes, 'minute')}, is over: it has trained for "
            f"{seconds:,.0f} s; give a longer total, such as --minutes {max(1, round(seconds / 30))}"
        )


def require_same_files(task: Task, folder: Path, remedy: str = "") -> None:
    """Raise ConfigError where what the task saves beside its model differs from what lies in the folder.

    Data are compared by their hash; they may have another name by now. remedy: what helps where they have changed, in
    place of training further.
    """
    further = f", or train it further on others with --init {shlex.quote(str(folder))}"
    with tempfile.TemporaryDirectory() as name:
        task.save_beside(Path(name))
        for made in sorted(Path(name).iterdir()):
            there, found = folder / made.name, read_bytes(made)
            before = read_bytes(there) if there.exists() else b""
            if made.name == HASH_NAME:
                found, before = found[:64], before[:64]
            if found != before:
                what = "its data have changed" if made.name == HASH_NAME else f"its {made.name} would be another one"
                back = "bring back the data that it learned from"
                raise ConfigError(f"{folder}: {what} since the run began; {back}{remedy or further}")
