"""What the tasks of answers share: a GPT reads a prompt, and learns what follows it, up to the end of text.

A prompt and its answer are tokenized apart, so no token crosses the border between them; a model that answers gets the
prompt in the same tokens. Every token has a role, by which it counts in the loss or not.

B batch, T time, N rows
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from nanograd_llm.backend.threads import blas_threads
from nanograd_llm.errors import ConfigError, ShapeError
from nanograd_llm.inference.generate import generate
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.models.gpt import GPT, TRAINING_ONLY, GPTConfig
from nanograd_llm.settings import IGNORE_INDEX, Settings, counted, setting, shown
from nanograd_llm.tasks.questions import builtin_examples, without_politeness
from nanograd_llm.tasks.reading import Reading, require_targets
from nanograd_llm.tasks.task import Report, Request, Sample
from nanograd_llm.tasks.text_task import TextTask, part_of, spread, the_one
from nanograd_llm.text.corpora import text_hash
from nanograd_llm.text.examples import Example, read_examples
from nanograd_llm.text.template import TEMPLATES, Template, template_beside
from nanograd_llm.training.config import TrainConfig

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened

PROMPT, ANSWER, IGNORED = range(3)  # roles of tokens: an answer is ignored where it only leads to a later one
ROLES = "prompt", "answer", "ignored"
AT_ONCE = 2**14  # tokens of rows that are computed together
SHOWN = 4  # rows of a batch that are shown


class ExamplesConfig(Settings):
    """Which questions and answers, and how they become rows of ids. Raises ConfigError naming the field."""

    file: str | None = setting(
        "A .json or .jsonl in a form of Alpaca, of prompt and completion, or of messages; built-in questions if not "
        "given.",
        default=None,
    )
    template: str | None = setting(
        f"Text of a prompt, with {{instruction}} and {{input}}, or the name of one ({', '.join(TEMPLATES)}); that of "
        "the model, or plain, if not given.",
        default=None,
    )
    max_length: int | None = setting(
        "Tokens of a row, prompt and answer; the model's context_length if not given.", default=None, low=2
    )
    too_long: str = setting(
        "What to do with rows over max_length: refuse the file, leave these rows out, or cut the beginning of their "
        "prompts.",
        default="refuse",
        choices=("refuse", "leave-out", "truncate"),
    )
    held_out: float = setting(
        "Share of the questions, chosen by their hash, that is scored and never trained on.",
        default=0.1,
        low=0.001,
        high=0.9,
    )


class Row(NamedTuple):
    """Tokens of a prompt and its answer, with the role of each."""

    ids: np.ndarray
    roles: np.ndarray

    @property
    def prompt_length(self) -> int:
        """How many tokens there are before the last answer."""
        return int(np.flatnonzero(self.roles != ANSWER)[-1]) + 1

    @property
    def prompt(self) -> np.ndarray:
        """The tokens before the last answer."""
        return self.ids[: self.prompt_length]

    @property
    def answer(self) -> np.ndarray:
        """The tokens of the last answer, without its end of text."""
        return self.ids[self.prompt_length : -1]


class Answering(TextTask):
    """What `Instructions` and `Preferences` have in common, each a `Task`.

    examples: the questions and answers. model: the config of the start, where dropout and the like may differ.
    is_shown: only the first batch is to be shown: what training needs beside it is not computed.
    Raises ConfigError for a model without an end of text, ShapeError for rows that are too long, or that teach nothing.
    """

    table: ClassVar[str]  # the name of its settings
    tables: ClassVar[Mapping[str, type[Settings]]]
    pairs: ClassVar[bool]  # does an example have a rejected answer?
    free: ClassVar[Collection[str]] = TRAINING_ONLY  # settings of the model that may differ from the start's
    most: ClassVar[tuple[int, int]]  # of the built-in questions: how many are learned and held out at most
    used_by, builtin = "chat", "questions"
    model_class: ClassVar[type[GPT]] = GPT

    @classmethod
    def made(cls, request: Request) -> Any:
        """See `Task.made`."""
        start = request.start
        if start is None:
            raise ConfigError(
                f"the task {cls.name} starts from a trained model, such as runs/nano-1; give it with init"
            )
        request.require_start(GPT)
        request.refuse(model={*request.asked["model"]} - {*cls.free})
        model = request.config_further(start.config, TRAINING_ONLY)
        examples: Any = cls.tables[cls.table](**request.settings[cls.table])
        training, shows = cls.training_of(request), request.is_shown
        return cls(examples, model, training, start=start, is_shown=shows, report=request.report)

    @classmethod
    def reading(cls, opened: Opened[Any], text: str, targets: Sequence[str], **how: Any) -> Reading:
        """See `Task.reading`: the text is a question, and the target its answer, which alone is learned."""
        require_targets(targets, ["the answer"])
        model, tokenizer = opened.model(**how), opened.tokenizer()
        (row,) = rows = rows_to_read(opened, model, text, targets)
        said = None if targets else tokenizer.decode(row.answer).strip()
        return Reading.of(model.loss, padded_rows(rows, tokenizer.end_of_text), tokenizer, row.ids[:-1], said=said)

    def __init__(
        self,
        examples: ExamplesConfig,
        model: GPTConfig,
        training: TrainConfig,
        *,
        start: Opened[Any],
        is_shown: bool = False,
        report: Report = lambda doing, share: None,
    ):
        super().__init__(training, start, report, **{self.table: examples})
        self.max_length = examples.max_length or model.context_length
        if self.max_length > model.context_length:
            raise ConfigError(f"max_length is {self.max_length}; the model takes {model.context_length} tokens at most")
        larger = f"give a max_length of up to {model.context_length}"
        more_room = larger if self.max_length < model.context_length else "start from a model of a larger context"
        self.tokenizer = start.tokenizer()
        if self.tokenizer.end_of_text is None:
            raise ConfigError(f"{self.init}: its tokenizer has no end of text, by which an answer ends")
        self.end = self.tokenizer.end_of_text
        own, asked = template_beside(start.path), examples.template
        if own is None or asked not in (None, own.text):  # config.toml holds the text alone, not its turns
            own = Template.of(asked or "plain")
        self.examples = dataclasses.replace(examples, template=own.text)
        self.parts = {self.table: self.examples}
        if examples.file is None:
            both = split_by_hash(builtin_examples(pairs=self.pairs), examples.held_out, self.source)
            learned, held_out = (part[:most] for part, most in zip(both, self.most))
        else:
            found = read_examples(examples.file, pairs=self.pairs)
            learned, held_out = split_by_hash(found, examples.held_out, self.source)
        self.digest = text_hash(repr(learned), repr(held_out))
        turns = max(len(one.turns) for one in learned)
        self.template = dataclasses.replace(own, turns=max(turns, own.turns if self.pairs else 1))
        report("encoding the rows", 0)
        self.shortened = self.left_out = 0
        self.learned, self.held_out = (self._fitting(part, more_room) for part in (learned, held_out))
        self.model = self.make_model(model)
        self.model.load_state_dict(start.model().state_dict(), assign=True)
        self.begin()
        if not is_shown:
            self.compute(report)

    def hold_out(self, *files: str) -> None:
        """See `Task.hold_out`: a file of the form of the one that was learned from."""
        self.source = the_one(files)
        self.examples = dataclasses.replace(self.examples, file=self.source)
        self.held_out = self._fitting(read_examples(self.source, pairs=self.pairs))

    def make_model(self, config: GPTConfig) -> GPT:
        """The model, without weights."""
        return GPT(config, seed=None)

    def compute(self, report: Report) -> None:
        """Compute what training needs beside the rows: nothing, but for `Preferences`."""

    def begin(self) -> None:
        """Look at the first batch. Raises ShapeError unless an answer counts in it, and its end of text with it."""
        targets = self.texts(0)[1]
        if not (targets != IGNORE_INDEX).any():
            raise ShapeError("no token of the first batch counts in the loss, so nothing would be learned")
        if not (targets == self.end).any():
            raise ShapeError("no end of text counts in the loss, so the model would never learn to end its answers")

    def _fitting(self, examples: list[Example], more_room: str = "") -> list[tuple[Row, ...]]:
        """Each example as rows, one for each of its answers, that are not longer than max_length.

        more_room: what makes it larger, if anything may.
        """
        rows = [self._encode(example) for example in examples]
        over = np.array([max(len(row.ids) for row in one) - 1 - self.max_length for one in rows])
        if (over > 0).any() and self.examples.too_long == "refuse":
            place = int(over.argmax())
            raise ShapeError(
                f"{self.source}: {(over > 0).sum():,} of {len(rows):,} rows have more than {self.max_length} tokens, "
                f"up to {over[place] + self.max_length:,} ({shown(examples[place].turns[-1].instruction, 40)}); "
                + (f"set too_long to truncate or leave-out, or {more_room}" if more_room else "give shorter ones")
            )
        found = []
        for one, cut in zip(rows, over):
            if cut <= 0:
                found.append(one)
            elif self.examples.too_long == "truncate" and all(cut < row.prompt_length for row in one):
                self.shortened += 1
                found.append(tuple(Row(row.ids[cut:], row.roles[cut:]) for row in one))
            else:
                self.left_out += 1
        if not found:
            raise ShapeError(
                f"{self.source}: no row fits into {self.max_length} tokens, with its template; give shorter rows"
                + (f", or {more_room}" if more_room else "")
            )
        return found

    def _encode(self, example: Example) -> tuple[Row, ...]:
        """A row for each answer: its prompt, with all turns before, the answer, and the end of text."""
        parts: list[tuple[np.ndarray, int]] = []
        for turn in example.turns:
            parts.append((self.tokenizer.encode(self.template.fill(turn.instruction, turn.input)), PROMPT))
            parts.append((self._ended(turn.answer), ANSWER))
        if not example.rejected:
            return (_joined(parts),)
        parts = [(ids, IGNORED if role == ANSWER else role) for ids, role in parts[:-1]] + parts[-1:]
        return _joined(parts), _joined([*parts[:-1], (self._ended(example.rejected), ANSWER)])

    def _ended(self, answer: str) -> np.ndarray:
        return np.append(self.tokenizer.encode(answer), np.int32(self.end))

    def padded(self, rows: Sequence[Row], learned: Sequence[int] = (ANSWER,)) -> tuple[np.ndarray, np.ndarray]:
        """See `padded_rows`."""
        return padded_rows(rows, self.end, learned)

    def rows_of(self, step: int) -> list[Row]:
        """The rows of a batch before they are padded."""
        raise NotImplementedError

    def texts(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens and targets of a step, a pure function of the seed and the step."""
        raise NotImplementedError

    def batch(self, step: int) -> tuple[np.ndarray, ...]:
        """See `Task.batch`; tokens and targets come first."""
        return self.texts(step)

    def show_batch(self) -> str:
        """The tokens of the first rows of the first batch, by role, and whether they count in the loss."""
        rows, (_, targets) = self.rows_of(0), self.texts(0)
        flat, lines = targets.reshape(len(rows), -1), []
        for number, (row, wanted) in enumerate(zip(rows[:SHOWN], flat), 1):
            counts = np.append(False, wanted[: len(row.ids) - 1] != IGNORE_INDEX)
            which = ("rejected", "chosen")[number % 2] if self.pairs else ""
            counting = "made unlikely" if which == "rejected" else "learned"
            learned = f"{counted(len(row.ids), 'token')}, {counts.sum()} {counting}"
            lines.append(f"row {number} of {len(rows)}{which and ', '}{which}: {learned}")
            changes = np.flatnonzero(np.diff(row.roles * 2 + counts)) + 1
            for part in np.split(np.arange(len(row.ids)), changes):
                role = ROLES[row.roles[part[0]]] + (f", {counting}" if counts[part[0]] else "")
                pieces = " ".join(repr(self.tokenizer.decode([i])) for i in row.ids[part])
                lines.append(f"  {role:<22} {pieces}")
            lines.append(f"  {'padding':<22} {counted(len(wanted) + 1 - len(row.ids), 'token')}")
        return "\n".join(lines)

    def describe(self) -> dict[str, str]:
        """The examples, the template and the model."""
        noun = "pair" if self.pairs else "row"
        cut = [f"{counted(self.shortened, 'prompt')} truncated"] if self.shortened else []
        cut += [f"{self.left_out:,} left out"] if self.left_out else []
        long = f"; of more than {self.max_length} tokens: {', '.join(cut)}" if cut else ""
        return {
            f"{noun}s": f"{self.source}: {counted(len(self.learned), noun)}, {len(self.held_out):,} held out{long}",
            "template": repr(self.template.text),
            "tokenizer": str(self.tokenizer),
            "model": self.sizes(),
        }

    def portions(self, rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """The rows, as many at a time as are computed together."""
        return self.at_a_time(max(1, AT_ONCE // self.max_length), rows)

    def measured_on(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Which part of the held-out rows that is, in words and as a number: two fields of a Score."""
        return part_of(len(rows), len(self.held_out), f"held-out {'pair' if self.pairs else 'question'}")

    def answers(self, rows: Sequence[Row]) -> Iterator[tuple[str, bool]]:
        """What the model answers, always the likeliest token, and whether it ended within twice the longest answer."""
        most = 2 * max(len(row.answer) + 1 for row in rows)
        for some in self.portions(rows):
            prompts = [row.prompt for row in some]
            with blas_threads(1):  # a step of decoding is small: threads would wait for each other
                greedy = Sampling(temperature=0)
                written = generate(self.model, prompts, max_new_tokens=most, sampling=greedy, stop=self.end)
            yield from ((self.tokenizer.decode(ids).strip(), len(ids) < most) for ids in written)

    def sample(self, *, last: bool = False) -> Sample:
        """Held-out questions, the reference, and what the model answers."""
        rows = [self.held_out[i][0] for i in spread(len(self.held_out), 6 if last else 2)]
        lines = []
        for row, (answer, ended) in zip(rows, self.answers(rows)):
            lines += [f"question   {self.tokenizer.decode(row.prompt).strip()}", f"reference  {self.reference(row)}"]
            lines += [f"it answers {answer or '(nothing)'}{'' if ended else ' … (no end)'}", ""]
        return Sample("questions that it was not trained on", "\n".join(lines))

    def reference(self, row: Row) -> str:
        """The right answer."""
        return self.tokenizer.decode(row.answer).strip()

    def is_right(self, answer: str, row: Row) -> bool:
        """Is it the reference? One to a built-in question may be polite or not."""
        if self.examples.file is None:
            return without_politeness(answer) == without_politeness(self.reference(row))
        return answer == self.reference(row)

    def save_beside(self, folder: Path) -> None:
        """Write the tokenizer, the hash of the data and the template."""
        super().save_beside(folder)
        self.template.save(folder)


def rows_to_read(opened: Opened[Any], model: GPT, text: str, targets: Sequence[str]) -> list[Row]:
    """A row for each answer to a question, in the model's template; if none is given, for what the model answers.

    Raises ConfigError for a question that leaves no room for an answer.
    """
    tokenizer, length = opened.tokenizer(), model.config.context_length
    template = template_beside(opened.path) or Template.of("plain")
    prompt = tokenizer.encode(template.fill(text))
    answers = [tokenizer.encode(target) for target in targets]
    room = length - len(prompt)
    if room < max(map(len, answers), default=0):
        tokens = counted(len(prompt), "token")
        raise ConfigError(f"the question has {tokens} with its template; the model takes {length} with the answer")
    end: Any = tokenizer.end_of_text
    if not answers:
        written = generate(model, prompt, max_new_tokens=room, sampling=Sampling(temperature=0), stop=end)
        answers = [np.array(written[0], np.int32)]
    ends = [np.append(answer, np.int32(end)) for answer in answers]
    return [_joined([(prompt, PROMPT), (answer, ANSWER)]) for answer in ends]


def padded_rows(rows: Sequence[Row], end: Any, learned: Sequence[int] = (ANSWER,)) -> tuple[np.ndarray, np.ndarray]:
    """tokens and targets (N, T) of rows: the target of a token is the next one, if its role is learned.

    end: the end of text, which fills up the shorter rows.
    """
    tokens = np.full((len(rows), max(len(row.ids) for row in rows) - 1), end, np.int32)
    targets = np.full(tokens.shape, IGNORE_INDEX, np.int32)
    for row, (ids, roles) in enumerate(rows):
        tokens[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = np.where(np.isin(roles[1:], learned), ids[1:], IGNORE_INDEX)
    return tokens, targets


def split_by_hash(examples: list[Example], share: float, where: str) -> tuple[list[Example], list[Example]]:
    """Those to learn from and those held out: equal questions on the same side, whatever the order of the file."""
    hashes = np.array([zlib.crc32("\0".join(one.turns[0][:2]).encode("utf-8", "replace")) for one in examples])
    bound = np.sort(hashes)[max(1, round(share * len(hashes))) - 1]
    learned, held_out = ([examples[i] for i in np.flatnonzero(side)] for side in (hashes > bound, hashes <= bound))
    if not learned:
        if len(examples) > 1 and len({*hashes}) == 1:
            raise ShapeError(f"{where}: all {len(examples):,} rows ask the same question; give different ones")
        raise ShapeError(
            f"{where}: has {counted(len(examples), 'row')}, and held_out={share} leaves no question to learn from"
        )
    return learned, held_out


def _joined(parts: Sequence[tuple[np.ndarray, int]]) -> Row:
    ids = np.concatenate([part for part, _ in parts])
    return Row(ids, np.concatenate([np.full(len(part), role, np.int8) for part, role in parts]))
