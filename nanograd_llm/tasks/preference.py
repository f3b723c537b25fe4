"""Preferences: of two answers to a question, a GPT learns to prefer the chosen one (DPO; see `PreferenceGPT`).

The reference is the model before training: the log-probabilities that it gives to all answers are computed once. They
keep the trained model near to what it was. They are computed in evaluation mode, so the loss of the pairs begins at
log 2.
"""

# N pairs, T time

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.errors import NanogradError
from nanograd_llm.models.gpt import GPTConfig
from nanograd_llm.models.preference import PreferenceGPT
from nanograd_llm.settings import setting
from nanograd_llm.tasks.answering import Answering, ExamplesConfig, Row, padded_rows, rows_to_read
from nanograd_llm.tasks.questions import POLITE, is_polite
from nanograd_llm.tasks.reading import Reading, require_targets
from nanograd_llm.tasks.task import Report, Score, Tuning
from nanograd_llm.tasks.text_task import model_of, spread

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened

ROUNDING = 1e-4  # of a log-probability of an answer, or a millionth of it if that is more

MEANING = "the margin is the reward of the chosen answer minus that of the rejected one"


class PreferenceConfig(ExamplesConfig):
    """Which pairs of answers, and how strongly they are learned. Raises ConfigError naming the field."""

    file: str | None = setting(
        "A .json or .jsonl of pairs: each has a prompt or an instruction, the chosen answer and the rejected one; "
        "built-in questions if not given.",
        default=None,
    )
    beta: float = setting("Holds the model near what it was before: the larger, the nearer.", default=0.1, low=1e-6)
    supervised: float = setting(
        "Weight of the loss of the chosen answer, which is added so that its probability does not fall.",
        default=4.0,
    )


class Preferences(Answering):
    """A GPT learns to prefer the chosen answer of each pair to the rejected one; see `Answering`.

    It is trained without dropout, since the reference has none. Raises NanogradError if the loss does not begin at
    log 2.
    """

    name, table, pairs = "preference", "preferences", True
    tuning, most = Tuning(1.5e-6, power=2, batch_sizes=(16, 4)), (2_000, 1_000)
    model_class = PreferenceGPT
    free = ("recompute_activations",)
    tables = {"preferences": PreferenceConfig, "model": GPTConfig}
    hidden = {"preferences": (), "model": tuple({*GPTConfig.setting_types} - {*free})}
    examples: PreferenceConfig
    model: PreferenceGPT

    @classmethod
    def reading(cls, opened: Opened[Any], text: str, targets: Sequence[str], **how: Any) -> Reading:
        """See `Task.reading`: the targets are the chosen answer and the rejected one; the reference is the start.

        Raises as `open_model` does where the model that the run started from cannot be opened.
        """
        require_targets(targets, ["the chosen answer", "the rejected one"], needed=2)
        run: Any = opened
        model, tokenizer, own = run.model(**how), run.tokenizer(), run.settings["preferences"]
        model.beta, model.supervised = own["beta"], own["supervised"]
        rows = rows_to_read(run, model, text, targets)
        tokens, wanted = (array[None] for array in padded_rows(rows, tokenizer.end_of_text))  # (1, 2, T)
        start: PreferenceGPT = model_of(PreferenceGPT, model.config, run.start(), 0).eval()
        with no_grad():
            reference = start.log_probabilities(tokens, wanted).numpy()
        return Reading.of(model.loss, (tokens, wanted, reference), tokenizer, *(row.ids[:-1] for row in rows))

    def make_model(self, config: GPTConfig) -> PreferenceGPT:
        """The model, without weights and without dropout."""
        config = dataclasses.replace(config, dropout=0.0)
        return PreferenceGPT(config, seed=None, beta=self.examples.beta, supervised=self.examples.supervised)

    def compute(self, report: Report) -> None:
        """Compute the reference. Raises NanogradError if the loss is not log 2."""
        began, pairs = time.monotonic(), [*self.learned, *self.held_out]
        reference = self._log_probabilities(pairs, lambda share: report("computing the reference", share))
        self.learned_reference, self.held_out_reference = np.split(reference, [len(self.learned)])
        self.model.train()
        rewards = self.model.rewards(*self.batch(0)).numpy()
        loss = float(np.log1p(np.exp(rewards[:, 1] - rewards[:, 0])).mean())
        rounding = max(ROUNDING, 1e-6 * float(np.abs(self.learned_reference).max()))
        if not abs(loss - math.log(2)) <= self.model.beta * rounding:
            raise NanogradError(f"the loss begins at {loss:.6f} instead of log 2, so the reference is of another model")
        self.untimed = time.monotonic() - began

    def hold_out(self, *files: str) -> None:
        """See `Answering.hold_out`. The model is still the reference."""
        super().hold_out(*files)
        self.held_out_reference = self._log_probabilities(self.held_out)

    def _log_probabilities(
        self, pairs: Sequence[tuple[Row, ...]], progress: Callable[[float], object] = lambda share: None
    ) -> np.ndarray:
        """Of the chosen and the rejected answers, in evaluation mode, (pairs, 2). progress: called with the share."""
        self.model.eval()
        found, size = [], self.training.batch_size
        with no_grad():
            for end in range(size, len(pairs) + size, size):
                found.append(self.model.log_probabilities(*self.padded_pairs(pairs[end - size : end])).numpy())
                progress(min(1.0, end / len(pairs)))
        return np.concatenate(found)

    def padded_pairs(self, pairs: Sequence[tuple[Row, ...]]) -> tuple[np.ndarray, np.ndarray]:
        """tokens and targets (N, 2, T) of pairs of rows."""
        tokens, targets = self.padded([row for pair in pairs for row in pair])
        return tokens.reshape(len(pairs), 2, -1), targets.reshape(len(pairs), 2, -1)

    def rows_of(self, step: int) -> list[Row]:
        """The rows of a step, the chosen answer of each pair before the rejected one."""
        return [row for i in self.drawn(step, len(self.learned)) for row in self.learned[i]]

    def texts(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens and targets (B, 2, T) of a step."""
        return self.padded_pairs([self.learned[i] for i in self.drawn(step, len(self.learned))])

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens and targets (B, 2, T), reference (B, 2) of a step, a pure function of the seed and the step."""
        return *self.texts(step), self.learned_reference[self.drawn(step, len(self.learned))]

    def score(self, rows: int | None = None) -> Score:
        """Rewards of held-out pairs; of the built-in ones first how many answers are polite, and right."""
        which = spread(len(self.held_out), rows)
        chosen = [self.held_out[i] for i in which]
        log_p = self._log_probabilities(chosen, self.progress)
        rewards = self.model.beta * (log_p - self.held_out_reference[which])
        margins = rewards[:, 0] - rewards[:, 1]
        also = {
            "reward accuracy": 100 * float((margins > self.model.beta * ROUNDING).mean()),
            "margin": float(margins.mean()),
            "log p chosen": float(log_p[:, 0].mean()),
            "log p rejected": float(log_p[:, 1].mean()),
        }
        names = ("polite answers", "right answers", "reward accuracy")
        if self.examples.file is not None:
            return Score(names[2], also.pop(names[2]), also, **self.measured_on(chosen), percent=names, remark=MEANING)
        answers = [answer for answer, _ in self.answers([row for row, _ in chosen])]
        right = [self.is_right(answer, row) for answer, (_, row) in zip(answers, chosen)]
        also = {names[1]: 100 * float(np.mean(right))} | also
        polite = 100 * float(np.mean([is_polite(answer) for answer in answers]))
        remark = f"a polite answer ends with {POLITE!r}; {MEANING}"
        return Score(names[0], polite, also, **self.measured_on(chosen), percent=names, remark=remark)
