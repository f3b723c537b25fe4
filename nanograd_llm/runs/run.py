"""A run: from a text to a trained GPT in a folder, and from the folder back to the model.

This is where the rooms meet: text becomes ids, a trainer improves a model on random windows of them, the held-out part
says how well it goes, and everything worth keeping lands in a RunFolder.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np

from nanograd_llm.errors import ConfigError, NonFiniteError, ShapeError
from nanograd_llm.inference.evaluate import Evaluation, evaluate
from nanograd_llm.inference.generate import generate
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.runs.folder import RunFolder, next_run_path
from nanograd_llm.runs.opening import Opened
from nanograd_llm.settings import require_choice, require_int, require_number
from nanograd_llm.text import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    builtin_corpus,
    random_windows,
    read_text,
    split_text,
)
from nanograd_llm.training.config import TrainConfig
from nanograd_llm.training.trainer import StepRecord, Trainer

# nano: found by trying, for a minute on the built-in corpus: it is read a dozen times, so strong decay helps.
# The others: learning rates of GPT-3 models of their size (Brown et al. 2020, table 2.1 and appendix B).
RECIPES: dict[str, dict[str, Any]] = {
    "nano": dict(batch_size=8, learning_rate=2e-3, weight_decay=1.0),
    "distilgpt2": dict(batch_size=8, learning_rate=6e-4),
    "gpt2": dict(batch_size=8, learning_rate=6e-4),
    "gpt2-medium": dict(batch_size=8, learning_rate=3e-4),
    "gpt2-large": dict(batch_size=8, learning_rate=2.5e-4),
    "gpt2-xl": dict(batch_size=8, learning_rate=2e-4),
}


def recipe(preset: str, **changes: Any) -> TrainConfig:
    """The TrainConfig that suits a preset, with these fields changed; a change that is None is none."""
    require_choice("preset", preset, RECIPES)
    return _training(RECIPES[preset], changes)


def fine_tuning(model: GPTConfig, **changes: Any) -> TrainConfig:
    """The TrainConfig to train a model further, with these fields changed; a change that is None is none.

    The learning rate is 5e-5 for the 768 channels of GPT-2, as is usual, and falls with the width.
    """
    return _training(dict(batch_size=8, learning_rate=5e-5 * 768 / model.n_embd), changes)


def _training(own: dict[str, Any], changes: dict[str, Any]) -> TrainConfig:
    given = {name: value for name, value in changes.items() if value is not None}
    return TrainConfig(**({"processes": True} | own | given))


TOKENIZERS = ("bpe", "bytes", "characters", "model")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Which text, and how it becomes ids. Raises ConfigError naming the field that cannot be.

    file: a UTF-8 text file; None for the built-in corpus, the reference manual that every CPython carries.
    tokenizer: bpe (trained on the text, `vocab_size` tokens), bytes, characters, or model: that of the model that is
        trained further.
    held_out: the share at the end of the text that is never trained on.
    """

    file: str | None = None
    tokenizer: str = "bpe"
    vocab_size: int = 1024
    held_out: float = 0.1

    def __post_init__(self) -> None:
        require_choice("tokenizer", self.tokenizer, TOKENIZERS)
        require_int("vocab_size", self.vocab_size, 257)
        require_number("held_out", self.held_out, 0.001, 0.9)

    def read(self) -> tuple[str, str]:
        """The text to train on and the text held out."""
        text = builtin_corpus() if self.file is None else read_text(self.file)
        return split_text(text, self.held_out)

    def make_tokenizer(self, text: str) -> Tokenizer:
        """The tokenizer, trained on `text` where it learns."""
        if self.tokenizer == "model":
            raise ConfigError("tokenizer is model, but there is no model to start from; give one, or another tokenizer")
        if self.tokenizer == "bytes":
            return ByteTokenizer()
        if self.tokenizer == "characters":
            return CharTokenizer.train(text)
        return BPETokenizer.train(text, self.vocab_size)


@dataclasses.dataclass(frozen=True)
class Scored:
    """The held-out text was scored after `step`."""

    step: int
    evaluation: Evaluation


@dataclasses.dataclass(frozen=True)
class Wrote:
    """After `step` the model went on from `prompt` with `text`."""

    step: int
    prompt: str
    text: str


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint of `step` lies at `path`."""

    step: int
    path: Path


Event = StepRecord | Scored | Wrote | Saved


class TextRun:
    """A new run in the folder `out`, or in the next `runs/NAME-N` where that is None.

    Everything is read, checked and written down before the first step.

        run = TextRun("runs/mine", TextConfig(), GPTConfig.preset("nano"), recipe("nano", minutes=1))
        for event in run.train():
            ...

    start: a model to train further, as `open_model` gives it; `model` is then its config, dropout and the like changed
        at will, `text.tokenizer` is "model", and the held-out text is scored before the first step as well.
    window: tokens of a window that is trained on or scored, at most the model's context_length, which it is if not
        given.
    evaluate_every, checkpoint_every: steps; without them the held-out text is scored at every fifth of the run, and a
        checkpoint saved at the end only.

    The model's vocab_size follows the tokenizer. Raises StorageError where the folder cannot be made, ShapeError where
    the text, or its held-out part, is shorter than a window.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None,
        text: TextConfig,
        model: GPTConfig,
        train: TrainConfig,
        name: str = "run",
        *,
        start: Opened | None = None,
        window: int | None = None,
        evaluate_every: int | None = None,
        checkpoint_every: int | None = None,
    ):
        length = "context_length of a window"
        counts = {"evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every, length: window}
        for field, number in counts.items():
            if number is not None:
                require_int(field, number, 1)
        if window is not None and window > model.context_length:
            raise ConfigError(
                f"{length} is {window}; the model takes at most {model.context_length} tokens at "
                "once; give that or less"
            )
        if (start is None) != (text.tokenizer != "model"):
            raise ConfigError(f'tokenizer must be "model" with a start and only then; got {text.tokenizer!r}')
        self.start = start
        self.evaluate_every, self.checkpoint_every = evaluate_every, checkpoint_every
        self.config, self.text = train, text
        self.stopped_by: signal.Signals | None = None  # the signal that ended training early
        self.on_stop: Callable[[signal.Signals], None] | None = None  # called within the handler of that signal
        learned, held_out = text.read()
        if start is not None:
            self.tokenizer = start.tokenizer()
        else:  # an alphabet is no knowledge of a text: with all its characters, the held-out part can be scored
            self.tokenizer = text.make_tokenizer(learned + held_out if text.tokenizer == "characters" else learned)
        self.ids = self.tokenizer.encode(learned)
        self.held_out_ids = self.tokenizer.encode(held_out)
        self.context_length = window or model.context_length
        for part, ids in (("trained on", self.ids), ("held out", self.held_out_ids)):
            if len(ids) <= self.context_length:
                raise ShapeError(
                    f"{text.file or 'the built-in corpus'}: the part to be {part} comes to {len(ids)} tokens of "
                    f"{text.tokenizer}, too few for context_length={self.context_length}; give a longer text, a "
                    "smaller context_length, or a tokenizer that makes more tokens of it, such as bytes"
                )
        if start is None:
            self.model = GPT(dataclasses.replace(model, vocab_size=self.tokenizer.vocab_size), seed=train.seed)
        else:
            self.model = GPT(model, seed=None)
            self.model.load_state_dict(start.model().state_dict(), assign=True)
        self.trainer = Trainer(self.model, train)
        self.folder = RunFolder.create(next_run_path(name=name) if out is None else out)
        self.tokenizer.save(self.folder.tokenizer_path)
        asdict = dataclasses.asdict
        config = {"text": asdict(text), "model": asdict(self.model.config), "train": asdict(train)}
        self.folder.write_config(config if start is None else config | {"init": {"source": start.source}})

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets) of a step: a pure function of the seed and the step."""
        c = self.config
        return random_windows(
            self.ids, context_length=self.context_length, batch_size=c.batch_size, seed=c.seed, step=step
        )

    def score(self) -> Evaluation:
        """The held-out text, scored with windows that overlap by half."""
        stride = max(1, self.context_length // 2)
        return evaluate(
            self.model, self.held_out_ids, self.tokenizer, context_length=self.context_length, stride=stride
        )

    def write(self, tokens: int = 60) -> tuple[str, str]:
        """The first words of the held-out text, and what the model writes after them."""
        prompt = self.held_out_ids[: self.context_length // 8 + 1]
        (ids,) = generate(self.model, prompt, max_new_tokens=tokens, sampling=Sampling(temperature=0.8, top_p=0.95))
        return self.tokenizer.decode(prompt), self.tokenizer.decode(ids)

    def train(self, *, spent: float = 0.0) -> Generator[Event, None, None]:
        """Train to the end; yields what happens as it happens.

        spent: seconds of the time limit already used up.

        Ctrl-C and SIGTERM let what is under way (a step, a score) end, then save and end the run without a last score;
        a second Ctrl-C breaks into what is under way, and only saves. Whatever else ends it early, what was learned is
        saved first, if it is finite.
        """
        with self.folder, StopRequest(self.on_stop) as stop:
            try:
                fifths = 0
                if self.start is not None:
                    yield self._scored()
                for record in self.trainer.run(self.batch, spent=spent):
                    self.folder.append_metrics(dataclasses.asdict(record))
                    yield record
                    if stop.requested or record.progress == 1:
                        break
                    before, fifths = fifths, int(record.progress * 5)
                    is_due = fifths > before if self.evaluate_every is None else record.step % self.evaluate_every == 0
                    if is_due:
                        yield self._scored()
                        if not stop.requested:
                            yield self._wrote()
                    if stop.requested:
                        break
                    if self.checkpoint_every is not None and record.step % self.checkpoint_every == 0:
                        yield self._saved()
                self.stopped_by = stop.requested
                if self._is_unsaved():
                    yield self._saved()
                if not self.stopped_by:
                    yield self._scored()
                    yield self._wrote(200)
            except BaseException as error:  # also Ctrl-C, or the end of whoever follows the run, such as a closed pipe
                trainer = self.trainer
                if not (self._is_unsaved() and trainer.is_whole and np.isfinite(trainer.optimizer.flat.data).all()):
                    raise
                saved = self._saved()
                if isinstance(error, NonFiniteError):
                    raise NonFiniteError(f"{error}. The weights of step {saved.step} are in {saved.path}") from None
                raise

    def _is_unsaved(self) -> bool:
        return self.trainer.steps_done > 0 and self.trainer.steps_done not in self.folder.checkpoints()

    def _scored(self) -> Scored:
        step, evaluation = self.trainer.steps_done, self.score()
        self.folder.append_metrics(
            {"step": step, "held_out_loss": evaluation.loss, "bits_per_byte": evaluation.bits_per_byte}
        )
        return Scored(step, evaluation)

    def _wrote(self, tokens: int = 60) -> Wrote:
        wrote = Wrote(self.trainer.steps_done, *self.write(tokens))
        self.folder.append_sample(wrote.step, wrote.prompt + wrote.text)
        return wrote

    def _saved(self) -> Saved:
        step = self.trainer.steps_done
        return Saved(step, self.folder.save_checkpoint(step, self.trainer.state_dict(), {}))


class StopRequest:
    """While this block is open, Ctrl-C and SIGTERM ask the run to end instead of breaking into a step.

    `requested` is the signal that came, or None; `notify` is called with the first, within its handler. A second
    Ctrl-C raises KeyboardInterrupt. Outside the main thread, where Python delivers no signals, it changes nothing.
    """

    requested: signal.Signals | None = None

    def __init__(self, notify: Callable[[signal.Signals], None] | None = None):
        self.notify = notify

    def __enter__(self) -> StopRequest:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: Any) -> None:
        if self.requested is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.requested = self.requested is None, signal.Signals(number)
        if first and self.notify is not None:
            self.notify(self.requested)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
