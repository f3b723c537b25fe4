"""Instructions: a GPT that continues text learns to answer a question, and to end there (supervised fine-tuning).

The loss counts the tokens of the answer and its end of text; the prompt is read, but not learned.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from nanograd_llm.backend.randomness import generator
from nanograd_llm.models.gpt import TRAINING_ONLY, GPTConfig
from nanograd_llm.settings import setting
from nanograd_llm.tasks.answering import ANSWER, PROMPT, Answering, ExamplesConfig, Row
from nanograd_llm.tasks.questions import COUNT
from nanograd_llm.tasks.task import Score, Tuning
from nanograd_llm.tasks.text_task import mean_loss, spread


class InstructionConfig(ExamplesConfig):
    """Which questions and answers, and what of them is learned. Raises ConfigError naming the field."""

    include_prompt: bool = setting("Count the tokens of the prompt in the loss as well.", default=False)
    turns: int = setting(
        "Put 1 to N questions with their answers into a row, drawn at random, so that the model also learns to "
        "answer the later questions of a chat.",
        default=1,
        low=1,
    )


class Instructions(Answering):
    """A GPT learns to answer questions; see `Answering`."""

    name, table, pairs = "instruction", "instructions", False
    tuning, most = Tuning(8e-5, power=2, batch_sizes=(32, 8)), (COUNT, COUNT)
    tables = {"instructions": InstructionConfig, "model": GPTConfig}
    hidden = {"instructions": (), "model": tuple({*GPTConfig.setting_types} - {*TRAINING_ONLY})}
    examples: InstructionConfig

    def begin(self) -> None:
        """See `Answering.begin`; the template says how many turns are learned: as many as there is room for."""
        sizes = np.cumsum(sorted(len(row.ids) for (row,) in self.learned)) - 1
        turns = min(self.examples.turns, max(1, int((sizes <= self.max_length).sum())))
        self.template = dataclasses.replace(self.template, turns=turns * self.template.turns)
        super().begin()

    def rows_of(self, step: int) -> list[Row]:
        """The rows of a step, each of some questions."""
        c, turns = self.training, self.examples.turns
        drawn = self.drawn(step, len(self.learned), turns).reshape(c.batch_size, turns)
        counts = generator(c.seed, step).integers(1, turns + 1, c.batch_size)
        return [self._joined(some[:count]) for some, count in zip(drawn, counts)]

    def _joined(self, which: np.ndarray) -> Row:
        """These rows one after the other, as many of them as there is room for."""
        rows = [self.learned[i][0] for i in which]
        sizes = np.cumsum([len(row.ids) for row in rows]) - 1
        rows = rows[: max(1, int((sizes <= self.max_length).sum()))]
        return Row(*map(np.concatenate, zip(*rows)))

    def texts(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens and targets (B, T) of a step."""
        return self.padded(self.rows_of(step), (ANSWER, PROMPT) if self.examples.include_prompt else (ANSWER,))

    def score(self, rows: int | None = None) -> Score:
        """How many answers are exactly the reference; beside it how many end, and the loss of the references."""
        chosen = [self.held_out[i][0] for i in spread(len(self.held_out), rows)]
        found = list(self.answers(chosen))
        right = [self.is_right(answer, row) for row, (answer, _) in zip(chosen, found)]
        loss = mean_loss(self.model, map(self.padded, self.portions(chosen)))
        also = {"answers that end": 100 * float(np.mean([ended for _, ended in found])), "loss": loss}
        names = ("exact match", "answers that end")
        return Score(names[0], 100 * float(np.mean(right)), also, **self.measured_on(chosen), percent=names)
