"""How a run is shown: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import sys
from collections.abc import Iterator

import numpy as np

from nanograd_llm.backend.threads import pinned_blas
from nanograd_llm.cli.terminal import folded, row, written
from nanograd_llm.runs.compare import sparkline
from nanograd_llm.runs.progress import QUOTE, Bar, numbers
from nanograd_llm.runs.run import Event, Run, Sampled, Saved, Scored
from nanograd_llm.training.trainer import StepRecord


def show(run: Run, events: Iterator[Event]) -> int:
    """Show a run until it ends; returns the exit code: 0, or 143 if SIGTERM ended it, 129 if SIGHUP did."""
    for name, line in run.task.describe().items():
        print(row(name, line))
    if run.adapters is not None:
        trained = sum(parameter.size for parameter in run.task.model.trainable_parameters())
        without = f"; no folder adapter: {run.no_adapter}" if run.no_adapter else ""
        print(row("LoRA", f"rank {run.adapters.rank}: {trained:,} parameters are trained{without}"))
    print(row("training", f"batches of {run.task.training.batch_size}, {run.trainer.workers}"), flush=True)
    pinned = pinned_blas()
    if pinned:
        print(f"warning: {pinned} is set, which can slow training down; unset it to use every core", file=sys.stderr)
    run.on_stop, measured_on, remark, advice, share = _say_stopping, "", "", "", 1.0
    losses: list[float] = []
    display = (Bar if sys.stdout.isatty() else _Lines)(run.task.model.loss_items)
    with display.shown:
        for event in events:
            if isinstance(event, StepRecord):
                display.step(event)
                losses.append(event.loss)
            elif isinstance(event, Scored):
                if event.score.measured_on != measured_on:
                    measured_on = event.score.measured_on
                    display.say(f"scored on {measured_on}")
                display.say(f"step {event.step:>6}: held out {event.score}")
                share, figure = event.score.share, event.score.figure_of(event.score.metrics())
                meaning, advice = event.score.remark, event.score.advice
                if not math.isfinite(event.score.figure):
                    meaning, advice = "not a finite number, so it says nothing about the model", ""
                remark = meaning and f"{figure}, on {measured_on}: {meaning}"
            elif isinstance(event, Sampled):
                display.say(f"{event.sample.title}:")
                display.quote(event.sample.text.strip())
            elif isinstance(event, Saved):
                display.say(f"step {event.step:>6}: saved {event.path}")
    if losses:  # of the whole run, also of what came before it was resumed
        losses = [record["loss"] for record in run.folder.read_metrics() if "loss" in record]
        print(row("loss", f"{sparkline(np.array(losses))} {losses[0]:.3f} to {losses[-1]:.3f}"))
    if measured_on:
        more = f"; nanograd-llm eval {shlex.quote(str(run.folder.path))} scores all" if share < 1 else ""
        print(written(row("scored on", f"{measured_on}, in the last score{more}")))
    if rate := run.suggested_rate():
        print(row("rate", f"the loss fell fastest at a learning rate of {rate:.2g}; try --learning-rate {rate:.1g}"))
    if run.is_stuck:
        scores = "score was" if run.config.patience == 1 else f"{run.config.patience} scores were"
        print(f"stopped early: the last {scores} not better")
    if run.config.keep is not None and run.best in (saved := run.folder.checkpoints()):
        print(row("best", str(saved[run.best])))
    if run.stopped_by is None and not run.is_test:
        rises = run.overfitting()  # to train longer is no advice for a model that learns its data by heart
        for closing in filter(None, ("; ".join(filter(None, (remark, "" if rises else advice))), rises)):
            print(folded(closing))
    if run.stopped_by is not None:
        name = "Ctrl-C" if run.stopped_by is signal.SIGINT else run.stopped_by.name
        print(f"stopped early by {name}; everything up to here is saved")
    return 0 if run.stopped_by in (None, signal.SIGINT) else 128 + run.stopped_by


def _say_stopping(number: signal.Signals, interrupts: bool) -> None:
    """Written directly to stderr, since this runs within the handler of the signal."""
    again = b"; press Ctrl-C again to stop at once" if number is signal.SIGINT else b""
    doing = b"stopping now" if interrupts else b"stopping after this step, then saving" + again
    with contextlib.suppress(OSError):  # a closed terminal
        os.write(2, b"\n" + doing + b"\n")


class _Lines:
    """Plain lines, one for each tenth of the run, for files and pipes."""

    def __init__(self, items: str = "items") -> None:
        self.items, self.tenths, self.shown = items, -1, contextlib.nullcontext()

    def step(self, record: StepRecord) -> None:
        if int(record.progress * 10) > self.tenths:
            self.tenths = int(record.progress * 10)
            loss, speed = numbers(record, self.items)
            self.say(f"step {record.step:>6}: {record.progress:4.0%}, {loss}, {speed}")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def quote(self, text: str) -> None:
        self.say("\n".join(QUOTE + line for line in text.splitlines()))
