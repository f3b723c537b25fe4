"""The contract between a task and a run: all that a run needs to know of what it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nanograd_llm.nn.module import Module
from nanograd_llm.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of a model on held-out data: one figure, and further numbers.

    name: what the figure is, such as "bits per byte". also: further numbers by name, such as loss and perplexity.
    measured_on: in words, which part of the held-out data was scored.
    """

    name: str
    figure: float
    also: Mapping[str, float] = dataclasses.field(default_factory=dict)
    measured_on: str = "all that is held out"

    def __str__(self) -> str:
        """
        >>> print(Score("bits per byte", 1.25, {"loss": 3.5}))
        1.250 bits per byte (loss 3.500)
        """
        others = ", ".join(f"{name} {number:.3f}" for name, number in self.also.items())
        return f"{self.figure:.3f} {self.name}" + (f" ({others})" if others else "")

    def metrics(self) -> dict[str, float]:
        """A record for metrics.jsonl: the figure first, then the other numbers as held_out_NAME."""
        names = {f"held_out_{name}": number for name, number in self.also.items()}
        return {self.name.replace(" ", "_"): self.figure} | names


@dataclasses.dataclass(frozen=True)
class Sample:
    """Something that a model made. title: what it was given, as a line above. text: what it made."""

    title: str
    text: str


class Task(Protocol):
    """What a model is trained to do: to make its `loss(*batch)` smaller.

    training: how, and for how long. used_by: the command that uses the model.
    init: where the weights come from, which are then scored before the first step as well; None for fresh ones.
    """

    training: TrainConfig
    init: str | None
    used_by: str

    @property
    def model(self) -> Module: ...

    @property
    def config(self) -> Mapping[str, Mapping[str, Any]]:
        """All other settings, as tables for the config.toml of the run."""

    def describe(self) -> Mapping[str, str]:
        """Lines for a person, by name: what the model learns, from what, and how large it is."""

    def batch(self, step: int) -> tuple[Any, ...]:
        """The arrays of a step, a pure function of the seed and the step."""

    def score(self, rows: int | None = None) -> Score:
        """The score on held-out data. rows: score only this many rows, always the same; None for all."""

    def sample(self, *, last: bool = False) -> Sample | None:
        """A sample of what the model makes, a longer one if it is the `last`; None if there is nothing to show."""

    def example(self) -> str:
        """An argument for the command `used_by`: a text that does not begin with a dash."""

    def save_beside(self, folder: Path) -> None:
        """Write into the run folder what belongs to the model, such as its tokenizer."""
