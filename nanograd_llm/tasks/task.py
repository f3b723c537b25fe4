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
    """How good a model is on what was held out: one figure, and further numbers beside it.

    name: what the figure counts, in words, such as "bits per byte". also: the others, such as loss and perplexity.
    measured_on: in words, what of the held-out part was scored.
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
        """The same for metrics.jsonl: the figure first, the others as numbers of the held-out part."""
        names = {f"held_out_{name}": number for name, number in self.also.items()}
        return {self.name.replace(" ", "_"): self.figure} | names


@dataclasses.dataclass(frozen=True)
class Sample:
    """Something that a model made. title: what it was given, and what follows. text: what it made."""

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
        """For a person: what is learned, from what and by what; a line for each."""

    def batch(self, step: int) -> tuple[Any, ...]:
        """The arrays of a step, a pure function of the seed and the step."""

    def score(self, rows: int | None = None) -> Score:
        """How good the model is on what was held out: on this many rows of it, always the same; on all for None."""

    def sample(self, *, last: bool = False) -> Sample | None:
        """Something that the model makes, more of it at the `last`; None where there is nothing to see."""

    def example(self) -> str:
        """Something to give that command: a text that does not begin with a dash."""

    def save_beside(self, folder: Path) -> None:
        """Write into the run folder what the model cannot be used without, such as its tokenizer."""
