"""The contract between a task and a run: all that a run needs to know of what it trains, and how one is made."""

from __future__ import annotations

import abc
import dataclasses
import glob
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nanograd_llm.errors import ConfigError
from nanograd_llm.nn.module import Module
from nanograd_llm.settings import Settings, require_type
from nanograd_llm.tasks.reading import Reading
from nanograd_llm.text.bpe import Report
from nanograd_llm.text.sources import weighted, with_field
from nanograd_llm.training.config import TrainConfig
from nanograd_llm.training.trainer import StepRecord

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened

Tables = Mapping[str, Mapping[str, Any]]  # settings by table and name
FILES = ("file", "target", "held_out_file", "data")  # settings that are paths, or several with weights
SAME_ROWS = "held_out_loss_on_the_same_rows"  # as every score of the run, where the last one is on more rows
# what else a run writes into metrics.jsonl
TAKEN = {*StepRecord.__dataclass_fields__, "flops", "share_of_limit", "scored_share", SAME_ROWS}


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of a model on held-out data: one figure, and further numbers.

    name: what the figure is, such as "bits per byte". also: further numbers by name, such as loss and perplexity.
    measured_on: in words, which part of the held-out data was scored.
    percent: names of the numbers that are percentages.
    remark: what the figure means, where that is known.
    advice: to train longer, and how, where that may raise the figure.
    share: of the held-out data, how much was scored.
    Raises ConfigError for a name that metrics.jsonl has already, such as "loss"; DtypeError for what is no number.
    """

    name: str
    figure: float
    also: Mapping[str, float] = dataclasses.field(default_factory=dict)
    measured_on: str = "all that is held out"
    percent: Collection[str] = ()
    remark: str = ""
    share: float = 1.0
    advice: str = ""

    def __post_init__(self) -> None:
        for name, number in {self.name: self.figure, **self.also}.items():
            require_type("the name of a score", name, str, "a str")
            require_type(f"the score {name!r}", number, Real, "a number, such as float(loss.data)")
        names = self.metrics()
        if taken := sorted(TAKEN & {*names}):
            raise ConfigError(
                f"a score has the name {taken[0]!r}, which metrics.jsonl has already; give it another name, such as "
                f"'held-out {taken[0]}'"
            )
        if len(names) <= len(self.also):
            raise ConfigError(f"two numbers of the score {self.name!r} have one name in metrics.jsonl; rename one")

    def __str__(self) -> str:
        """
        >>> print(Score("bits per byte", 1.25, {"loss": 3.5}))
        1.250 bits per byte (loss 3.500)
        >>> print(Score("exact match", 99.1, {"loss": 0.01}, percent=["exact match"]))
        exact match 99.1 % (loss 0.010)
        """
        others = [
            f"{name} {number:.1f} %" if name in self.percent else f"{name} {number:.3f}"
            for name, number in self.also.items()
        ]
        return self.figure_of(self.metrics()) + (f" ({', '.join(others)})" if others else "")

    def metrics(self) -> dict[str, float]:
        """A record for metrics.jsonl: the figure first, then the others as held_out_NAME; percentages say so."""
        numbers = {self.name: self.figure} | {f"held_out_{name}": number for name, number in self.also.items()}
        percent = {*self.percent, *(f"held_out_{name}" for name in self.percent)}
        return {
            f"{name}_percent".replace(" ", "_") if name in percent else name.replace(" ", "_"): number
            for name, number in numbers.items()
        }

    @staticmethod
    def figure_of(metrics: Mapping[str, float]) -> str:
        """The figure in words, from a record that `metrics` made."""
        key, figure = next(iter(metrics.items()))
        name = key.removesuffix("_percent").replace("_", " ")
        return f"{name} {figure:.1f} %" if key.endswith("_percent") else f"{figure:.3f} {name}"


@dataclasses.dataclass(frozen=True)
class Sample:
    """Something that a model made. title: what it was given, as a line above. text: what it made.

    files: to be written into the run folder, each text by its name.
    """

    title: str
    text: str
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Request:
    """What a task is to be made of: settings by table, each checked by itself; a table without settings is empty.

    settings: all that are given, by the caller or in a settings file, such as the config.toml of another run.
    asked: those that the caller gave. written: those of `file`, the settings file.
    preset: the name of one, or None. start: the model to train further, or None for fresh weights.
    report: called with what is being done, and the share of it that is done. is_shown: only to show its first batch.
    """

    settings: Tables
    asked: Tables
    written: Tables
    file: str = ""
    preset: str | None = None
    start: Opened | None = None
    report: Report = lambda doing, share: None
    is_shown: bool = False

    def refuse(self, **decided: Collection[str]) -> None:
        """Raise ConfigError where a preset is asked for, or one of these settings: the model to start from has them.

        decided: names of settings by table.
        """
        found = [name for table, names in decided.items() for name in self.asked[table] if name in names]
        found += ["preset"] if self.preset else []
        if found:
            raise ConfigError(f"init takes {', '.join(found)} from the model; leave that out")

    def config_further(
        self, config: Any, free: Collection[str], *, but: Collection[str] = (), **decided: Collection[str]
    ) -> Any:
        """The config of the model to start from, whose settings `free` are as given, or else their defaults.

        but: settings that may be given besides, for another purpose. decided: as for `refuse`.
        Raises ConfigError for a size that is given, or is another one in the file.
        """
        self.refuse(model={*self.asked["model"]} - {*free, *but}, **decided)
        self.require_sizes(config, free)
        given = self.settings["model"]
        return dataclasses.replace(config, **{name: given.get(name, getattr(type(config), name)) for name in free})

    def require_sizes(self, config: Any, free: Collection[str]) -> None:
        """Raise ConfigError where the file has another size than this config of the model to start from."""
        assert self.start is not None
        for name, value in self.written["model"].items():
            if name not in free and value != getattr(config, name):
                is_now = f"{getattr(config, name)} in {self.start.source}"
                raise ConfigError(f"{name} is {value} in {self.file}, but {is_now}; leave it out")

    def text_further(self, tuning: Tuning, context_length: int) -> dict[str, Any]:
        """The settings [text] to train a model further: a context_length that is given is that of a window."""
        asked = self.asked["model"].get("context_length")
        own = {} if asked is None else {"window": asked}
        return {"window": min(tuning.window or context_length, context_length), **self.settings["text"], **own}

    def require_start(self, *kinds: type[Module]) -> None:
        """Raise ConfigError unless the model to start from is of one of these classes."""
        assert self.start is not None
        if not issubclass(self.start.model_class, kinds):
            expected = " or ".join(f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}" for kind in kinds)
            found = f"{self.start.source}, a model of the class {self.start.model_class.__name__}"
            raise ConfigError(f"init is {found}; this task goes on from {expected}")


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What suits training a model further, where it is not given.

    rate: the peak of the learning rate for 768 channels, which falls with their number to this power.
    batch_sizes: of a model of up to 256 channels, and of a wider one. also: other settings of [train].
    window: tokens of a text that are read at once, where the model takes more; None for all.
    """

    rate: float
    power: int = 1
    batch_sizes: tuple[int, int] = (8, 8)
    also: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    window: int | None = None

    def settings(self, n_embd: int) -> dict[str, Any]:
        """The settings [train] for a model with this many channels."""
        rate = self.rate * (768 / n_embd) ** self.power
        return {"learning_rate": rate, "batch_size": self.batch_sizes[n_embd > 256], **self.also}

    def described(self) -> dict[str, str]:
        """The same for any model, in words.

        >>> Tuning(8e-5, power=2, batch_sizes=(32, 8)).described()
        {'learning_rate': '8e-05 * (768 / n_embd)²', 'batch_size': '32, or 8 for more than 256 channels'}
        """
        narrow, wide = self.batch_sizes
        by_width = ("", " * 768 / n_embd", " * (768 / n_embd)²")[self.power]
        sizes = f"{narrow}" + (f", or {wide} for more than 256 channels" if wide != narrow else "")
        window = {} if self.window is None else {"context_length": f"{self.window}, or the model's if smaller,"}
        return {"learning_rate": f"{self.rate:g}{by_width}", "batch_size": sizes, **self.also, **window}


class Task(abc.ABC):
    """What a model is trained to do: to make its `loss(*batch)` smaller. The base class of every task.

    A class of tasks has at least a name, tables, model_class, and the methods batch and score. The rest has defaults:
    they suit a task that starts from fresh weights, and has nothing but these beside its settings.

    tables: the kinds of settings that it has besides [run] and [train], by table; [model] is the model's config.
    hidden: those of them that are no options of the command line, by table. A `file` is the command's argument.
    model_class: what it trains; `model_class(config, seed=None)` has no weights yet. The model has its `config`.
    presets: the names of sizes that are known, the first for where none is given; () where there are none.
    fresh: settings of a fresh model where they are not given, by name. tuning: of a model that is trained further; None
        where the task does not start from a model.
    used_by: the command that uses the model.
    progress: called with the share of a score that is done; may be replaced.
    training: how, and for how long. parts: the other settings but for the model's, by table.
    init: where the weights come from, which are then scored before the first step as well; None for fresh ones.
    untimed: seconds that the task took to compute what it is trained with, which do not count in the run's minutes.
    """

    name: str
    used_by: str = "eval"
    tables: ClassVar[Mapping[str, type[Settings]]]
    hidden: ClassVar[Mapping[str, Collection[str]]] = {}
    model_class: ClassVar[type[Any]]
    presets: ClassVar[tuple[str, ...]] = ()
    fresh: ClassVar[Mapping[str, Any]] = {}
    tuning: ClassVar[Tuning | None] = None
    training: TrainConfig
    model: Any
    parts: Mapping[str, Any]
    init: str | None = None
    untimed = 0.0
    progress: Callable[[float], object] = staticmethod(lambda share: None)

    @classmethod
    def made(cls, request: Request) -> Task:
        """The task of these settings, with its model and its data. Raises ConfigError where they do not fit."""
        return cls(cls.training_of(request), **{table: cls.part(request, table) for table in cls.tables})

    def __init__(self, training: TrainConfig, **parts: Any):
        self.training, self.parts = training, parts
        self.model = self.model_class(parts.pop("model"), seed=training.seed)

    @classmethod
    def training_of(cls, request: Request) -> TrainConfig:
        """The settings [train], and what suits the task where they are not given."""
        if request.start is None or cls.tuning is None:
            return cls.part(request, "train")
        return TrainConfig(**{**cls.tuning.settings(request.start.config.n_embd), **request.settings["train"]})

    @classmethod
    def part(cls, request: Request, table: str, **own: Any) -> Any:
        """The settings of a table; those of `own`, and what suits a fresh model, where they are not given."""
        kind: Any = {**cls.tables, "train": TrainConfig}[table]
        fresh = {name: value for name, value in cls.fresh.items() if name in kind.setting_types}
        given = {**own, **fresh, **request.settings[table]}
        needed = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
        if missing := [name for name in needed if name not in given]:
            raise ConfigError(f"the task {cls.name} needs a value for {', '.join(missing)}; give it")
        return kind(**given)

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """All settings but [train], as tables for config.toml. Raises ConfigError for a model without a config."""
        if not hasattr(self.model, "config"):
            found = f"the model {type(self.model).__name__} of the task {self.name}"
            raise ConfigError(f"{found} has no config; write self.config = config in its __init__")
        parts = {**self.parts, "model": self.model.config}
        tables = {name: dataclasses.asdict(part) for name, part in parts.items()}
        for table in tables.values():
            for key, value in table.items():
                if key in FILES and value:
                    table[key] = absolute_path(value) if isinstance(value, str) else [*map(absolute_path, value)]
        return tables

    def describe(self) -> Mapping[str, str]:
        """Lines for a person, by name: what the model learns, from what, and how large it is."""
        return {"model": f"{type(self.model).__name__}: {self.model.parameter_count():,} parameters"}

    @abc.abstractmethod
    def batch(self, step: int) -> tuple[Any, ...]:
        """The arrays of a step, a pure function of the seed and the step."""

    @abc.abstractmethod
    def score(self, rows: int | None = None) -> Score:
        """The score on held-out data. rows: score only this many rows, always the same; None for all."""

    def hold_out(self, *files: str) -> None:
        """Let these files be what is held out, so that they are scored. Raises ConfigError, and here always."""
        raise ConfigError(f"the task {self.name} is scored on what the run held out alone; give no file")

    def sample(self, *, last: bool = False) -> Sample | None:
        """A sample of what the model makes, a longer one if it is the `last`; None if there is nothing to show."""
        return None

    def example(self) -> str:
        """An argument for the command `used_by`: a text that does not begin with a dash; "" for none."""
        return ""

    def save_beside(self, folder: Path) -> None:  # noqa: B027
        """Write into the run folder what belongs to the model, such as its tokenizer."""

    @classmethod
    def reading(cls, opened: Opened[Any], text: str, targets: Sequence[str], **how: Any) -> Reading:
        """How a text becomes a batch for the loss of a model that was trained for this task.

        targets: what the model should say; if there are none, what it says itself. how: for `opened.model`.
        Raises ConfigError for targets that the task has no use for, for a text that does not fit, and here always.
        """
        raise ConfigError(f"{opened.source} is of the task {cls.name}, which reads no text; give another model")


def absolute_path(source: str) -> str:
    """An absolute path, since config.toml may be used in another folder; a name that is no path is unchanged.

    A field and a weight behind it stay.
    """
    path = with_field(weighted(source)[0])[0]
    is_path = os.path.exists(path) or glob.has_magic(path)
    return os.path.abspath(path) + source.removeprefix(path) if is_path else source
