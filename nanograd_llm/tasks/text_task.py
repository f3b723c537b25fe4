"""What the tasks that learn from texts share: their settings, what they tell and save, and how they score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.errors import ConfigError
from nanograd_llm.nn.module import Module
from nanograd_llm.settings import Settings, counted, setting
from nanograd_llm.tasks.task import Request, Task, Tuning, absolute_path
from nanograd_llm.text.bpe import Report
from nanograd_llm.text.corpora import save_hash
from nanograd_llm.text.tokenizers import Tokenizer
from nanograd_llm.text.windows import epoch_rows
from nanograd_llm.training.config import TrainConfig

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened

SIZES = ("n_layer", "n_head", "n_embd", "context_length")  # that are shown to a person


class TextSettings(Settings):
    """Which text, as every task of one has it. Raises ConfigError that names the field."""

    file: str | None = setting(
        'A UTF-8 text, a folder, a pattern in quotes such as "docs/**/*.md", a .gz or .jsonl file (FILE.jsonl#FIELD '
        'for another field than "text"), a column of a table as FILE.csv#COLUMN, or - for standard input; Python\'s '
        "reference manual, or for masked-words built-in sentences, if not given.",
        default=None,
    )
    _: dataclasses.KW_ONLY
    held_out: float = setting(
        "Share of the text, at its end, that is scored and never trained on.", default=0.1, low=0.001, high=0.9
    )
    window: int | None = setting(
        "Tokens of a window that is trained on or scored; the model's context_length if not given.", default=None, low=1
    )

    def length(self, context_length: int) -> int:
        """Tokens of a window. Raises ConfigError for more than the model takes."""
        if self.window is not None and self.window > context_length:
            raise ConfigError(
                f"context_length is {self.window} for a window, but the model takes at most {context_length} tokens; "
                "give that or less"
            )
        return self.window or context_length


class TextTask(Task):
    """What the tasks that learn from texts share: what they tell, and what they save.

    training: how, and for how long. start: a model to train further, as `open_model` gives it. report: called with what
    is being done, and the share of it that is done.
    builtin: what the text is where no file is given.
    digest: a hash of what is learned from and scored, by which a resumed run knows its data.
    """

    builtin: ClassVar[str]
    tuning: ClassVar[Tuning]
    digest: str
    tokenizer: Tokenizer

    @classmethod
    def fresh_config(cls, request: Request) -> Any:
        """The config of a fresh model: the settings [model], and what suits the task where they are not given."""
        return cls.part(request, "model", vocab_size=1)  # the tokenizer decides its vocab_size

    def __init__(self, training: TrainConfig, start: Opened | None, report: Report, **parts: Any):
        self.training, self.parts = training, parts
        self.init = None if start is None else absolute_path(start.source)
        self.source = self.named_source()
        report(f"reading {self.source}", 0)

    def named_source(self) -> str:
        """What is learned from, for a person."""
        return next(iter(self.parts.values())).file or f"the built-in {self.builtin}"

    def take_tokenizer(self, start: Opened | None, report: Report, train: Callable[[], Tokenizer]) -> None:
        """Use the tokenizer of the model to start from, or train one."""
        report("reading the tokenizer" if start else "training the tokenizer", 0)
        self.tokenizer = start.tokenizer() if start else train()

    def drawn(self, step: int, rows: int, each: int = 1) -> np.ndarray:
        """Which of so many rows a step learns from: in an epoch each comes once.  -> (B * each,)

        each: rows that make one of the batch. A pure function of the seed and the step.
        """
        c = self.training
        return epoch_rows(rows, batch_size=c.batch_size * each, seed=c.seed, step=step)[0]

    def sizes(self) -> str:
        """The sizes of the model, for a person."""
        sizes = ", ".join(f"{name}={getattr(self.model.config, name)}" for name in SIZES)
        return f"{sizes}: {self.model.parameter_count():,} parameters"

    def at_a_time(self, size: int, rows: Any) -> Iterator[Any]:
        """The rows, so many of them at a time; tells `progress` after each."""
        for end in range(size, len(rows) + size, size):
            yield rows[end - size : end]
            self.progress(min(1.0, end / len(rows)))

    def save_beside(self, folder: Path) -> None:
        """Write the tokenizer, and the hash of the data."""
        self.tokenizer.save(folder / "tokenizer.json")
        save_hash(folder / "text.sha256", self.digest, absolute_path(self.source))


def the_one(files: Sequence[str]) -> str:
    """The file of a task that is scored on one. Raises ConfigError for more."""
    if len(files) > 1:
        raise ConfigError(f"{files[1]} is a second file; this task is scored on one at a time")
    return files[0]


def model_of(kind: type[Any], config: Any, start: Opened | None, seed: int) -> Any:
    """A model with the weights of the one to start from, or with fresh ones."""
    if start is None:
        return kind(config, seed=seed)
    model = kind(config, seed=None)
    model.load_state_dict(start.model().state_dict(), assign=True)
    return model


def mean_loss(model: Module, batches: Iterable[tuple[Any, ...]]) -> float:
    """The mean loss in evaluation mode over all items of these batches that count."""
    model.eval()
    total, count = 0.0, 0
    with no_grad():
        for batch in batches:
            here = model.loss_count(*batch)
            total, count = total + model.loss(*batch).item() * here, count + here
    return total / count


def first_words(text: str, most: int) -> str:
    """The beginning of a text on one line, at most so many characters, cut between words if there is a space.

    >>> first_words("a cat  sleeps", 8), first_words("caterpillar", 5)
    ('a cat', 'cater')
    """
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    return line[: most + 1].rpartition(" ")[0] or line[:most]


def spread(total: int, count: int | None) -> np.ndarray:
    """The numbers of so many of all rows, evenly spread; of all for None."""
    return np.linspace(0, total - 1, min(total, count or total)).astype(int)


def part_of(count: int, total: int, what: str) -> dict[str, Any]:
    """How many of all things were scored, in words and as a share: two fields of a `Score`.

    >>> part_of(5, 2000, "held-out pair")
    {'measured_on': '5 of the 2,000 held-out pairs', 'share': 0.0025}
    >>> [part_of(count, count, "held-out row")["measured_on"] for count in (2, 1)]
    ['all 2 held-out rows', 'the 1 held-out row']
    """
    part = f"{count:,} of the" if count < total else "all" if total > 1 else "the"
    return {"measured_on": f"{part} {counted(total, what)}", "share": count / total}
