"""Masked words: words of a text are hidden, and a BERT learns to fill them in from what stands on both sides.

Of the words that are hidden, most become [MASK], some a random word, and some stay, so that the model cannot take a
word for granted where it sees one (Devlin et al. 2018). Words are hidden whole, with all their pieces.
"""

# B batch, T time, N rows

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanograd_llm.backend.randomness import generator
from nanograd_llm.errors import ConfigError, ShapeError
from nanograd_llm.inference.fill import MASK, hidden_logits
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.models.bert import BERT, BERTConfig
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.settings import IGNORE_INDEX, Settings, counted, setting
from nanograd_llm.tasks.grammar import pairs
from nanograd_llm.tasks.language_model import absolute_path
from nanograd_llm.tasks.task import Report, Request, Sample, Score
from nanograd_llm.text import GPT2Tokenizer, Tokenizer, WordPieceTokenizer
from nanograd_llm.text.corpora import read_lines, read_text, split_text
from nanograd_llm.text.wordpiece import SPECIAL
from nanograd_llm.training.config import TrainConfig

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened

SIZES = dict(context_length=64, n_layer=2, n_head=4, n_embd=128)
TRAINING = dict(batch_size=64, learning_rate=2e-3)
FURTHER = dict(batch_size=16)
AGREEMENT = ("does", "do", "not")  # of the built-in sentences: what decides these words stands on both their sides
SCORE_TOKENS = 4096  # that are scored at once


class HidingTextConfig(Settings):
    """Which text, and how it becomes rows of ids. Raises ConfigError naming the field that cannot be."""

    file: str | None = setting("A UTF-8 text; sentences of the built-in grammar if not given.", default=None)
    lines: bool = setting("Take each line of the file for itself; else windows of all its text.", default=False)
    vocab_size: int = setting("Tokens of the vocabulary at most, which is learned from the text.", default=1024, low=6)
    held_out: float = setting(
        "Share at the end of the text that is scored and never trained on.", default=0.1, low=0.001, high=0.9
    )
    window: int | None = setting("Tokens of a row; the model's context_length if not given.", default=None, low=3)

    def read(self) -> tuple[list[str], list[str]]:
        """The texts to train on and those held out."""
        if self.file is None:
            sentences = [f"{pair.english}." for pair in pairs(21_000)[0]]
            return sentences[:20_000], sentences[20_000:]
        if not self.lines:
            learned, held_out = split_text(read_text(self.file), self.held_out)
            return [learned], [held_out]
        lines = read_lines(self.file)
        cut = min(len(lines) - 1, math.ceil(len(lines) * (1 - self.held_out)))
        return lines[:cut], lines[cut:]


class HidingConfig(Settings):
    """Which words are hidden, and how. Raises ConfigError naming the field that cannot be."""

    hidden: float = setting("Share of the words of a row that is hidden; one at least.", default=0.15, low=0.01, high=1)
    as_mask: float = setting("Share of the hidden words that becomes [MASK].", default=0.8, high=1)
    as_random: float = setting("Share of them that becomes random pieces; the rest stays.", default=0.1, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.as_mask + self.as_random > 1:
            raise ConfigError(f"as_mask {self.as_mask} and as_random {self.as_random} are more than 1 together")


class Rows:
    """Rows of ids of different lengths, stored one after the other.

    ids: of all rows. words: for each id, the number of its word in its row; -1 for special tokens such as [CLS] and
    [UNK], which are never hidden. lengths, starts: of each row.
    """

    def __init__(self, rows: Sequence[np.ndarray], tokenizer: Tokenizer, special: np.ndarray):
        self.lengths = np.array([len(row) for row in rows])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.ids = np.concatenate(rows)
        is_word = ~np.isin(self.ids, special)
        follows = np.append(False, is_word[:-1])  # a word, in the same row
        follows[self.starts] = False
        begins = is_word & ~(tokenizer.continues[self.ids] & follows)
        number = np.cumsum(begins)
        before = np.repeat(number[self.starts] - begins[self.starts], self.lengths)
        self.words = np.where(is_word, number - before - 1, -1)

    def take(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens (B, T), with 0 behind a row; words (B, T), -1 there; lengths (B,)"""
        lengths = self.lengths[which]
        places = np.arange(lengths.max())
        real = places < lengths[:, None]
        at = np.where(real, self.starts[which][:, None] + places, 0)  # (B, 1) + (T,) -> (B, T)
        return np.where(real, self.ids[at], 0), np.where(real, self.words[at], -1), lengths


class MaskedWords:
    """A BERT fills in words that were hidden in rows of a text; a `Task`.

    text: what to learn from. hiding: which words are hidden. model: the sizes; vocab_size follows the tokenizer.
    training: how, and for how long. start: a model to train further, as `open_model` gives it: a BERT, or a GPT, whose
        tokenizer, tables, blocks and last norm are taken; they see both sides from then on, and the head is fresh.
    report: called with what is being done, and the share of it that is done.
    Raises ConfigError for settings that exclude each other, ShapeError for a text without enough words.
    """

    name, used_by = "masked-words", "fill"
    tables = {"text": HidingTextConfig, "hiding": HidingConfig, "model": BERTConfig}
    hidden = {
        "text": ("window",),
        "model": ("vocab_size", "type_vocab_size", "layer_norm_epsilon", "masked_word_head", "pooler"),
    }
    model_class = BERT
    presets = ()

    @classmethod
    def made(cls, request: Request) -> MaskedWords:
        """See `NamedTask.made`. With a start, context_length is that of a row: the sizes are the model's."""
        words, hiding, sizes, train = (request.settings[table] for table in (*cls.tables, "train"))
        if request.start is None:
            model = BERTConfig(**{"vocab_size": 1, **SIZES, **sizes})
            training = TrainConfig(**{**TRAINING, **train})
            return cls(HidingTextConfig(**words), HidingConfig(**hiding), model, training, report=request.report)
        request.require_start(BERT, GPT)
        request.refuse(model={*request.asked["model"]} - {"dropout", "context_length"}, text=("vocab_size",))
        model = _config_of(request.start.config, dropout=sizes.get("dropout", 0.0))
        request.require_sizes(model, ("dropout", "vocab_size"))
        words = {"window": min(128, model.context_length), **words}
        if "context_length" in request.asked["model"]:
            words["window"] = request.asked["model"]["context_length"]
        training = TrainConfig(**{**FURTHER, "learning_rate": 2e-4 * 768 / model.n_embd, **train})
        text = HidingTextConfig(**words)
        return cls(text, HidingConfig(**hiding), model, training, start=request.start, report=request.report)

    def __init__(
        self,
        text: HidingTextConfig,
        hiding: HidingConfig,
        model: BERTConfig,
        training: TrainConfig,
        *,
        start: Opened | None = None,
        report: Report = lambda doing, share: None,
    ):
        self.longest = model.context_length if text.window is None else text.window
        if self.longest > model.context_length:
            raise ConfigError(f"a row is to have {self.longest} tokens; the model takes {model.context_length} at most")
        self.text, self.hiding, self.training = text, hiding, training
        self.init = None if start is None else absolute_path(start.source)
        report(f"reading {text.file or 'the built-in sentences'}", 0)
        learned, held_out = text.read()
        report("reading the tokenizer" if start else "training the tokenizer", 0)
        if start is None:
            self.tokenizer: Tokenizer = WordPieceTokenizer.train("\n".join(learned), text.vocab_size)
        else:
            self.tokenizer = _with_mask(start.tokenizer())
        special = [self.tokenizer.special_id(token) for token in SPECIAL]
        self.special = np.array([i for i in (*special, self.tokenizer.end_of_text) if i is not None])
        self.ordinary = np.setdiff1d(np.arange(self.tokenizer.vocab_size), self.special)
        self.mask = int(self.tokenizer.encode(MASK, allow_special=True)[0])
        report("encoding the text", 0)
        self.learned, self.held_out = self._rows(learned), self._rows(held_out)
        counts = 1 + np.bincount(self.learned.ids[self.learned.words >= 0], minlength=self.tokenizer.vocab_size)
        self.unigram = np.log(counts / counts.sum())  # the baseline: how frequent each piece is
        model = dataclasses.replace(model, vocab_size=self.tokenizer.vocab_size, masked_word_head=True)
        self.model = BERT(model, seed=training.seed)
        if start is not None:
            _take_weights(self.model, start.model())

    def _rows(self, texts: list[str]) -> Rows:
        room, rows = self.longest - len(self.tokenizer.wrap([])), []
        for text in texts:
            ids = self.tokenizer.encode(text)
            rows += [ids[start : start + room] for start in range(0, len(ids), room)]
        rows = [self.tokenizer.wrap(row) for row in rows if not np.isin(row, self.special).all()]
        if not rows:
            where = self.text.file or "the built-in sentences"
            raise ShapeError(f"{where}: no words to hide, learned from or held out; give a longer text")
        return Rows(rows, self.tokenizer, self.special)

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """The tables of the text, of the hiding and of the model's sizes."""
        file = self.text.file and absolute_path(self.text.file)
        parts = {"text": self.text, "hiding": self.hiding, "model": self.model.config}
        tables = {name: dataclasses.asdict(part) for name, part in parts.items()}
        return tables | {"text": tables["text"] | {"file": file}}

    def describe(self) -> dict[str, str]:
        """The text, the tokenizer and the model."""
        learned, held_out = (counted(len(rows.lengths), "row") for rows in (self.learned, self.held_out))
        sizes = ", ".join(f"{name}={getattr(self.model.config, name)}" for name in SIZES)
        return {
            "text": f"{self.text.file or 'sentences of the built-in grammar'}: {learned}, {held_out} held out",
            "tokenizer": str(self.tokenizer),
            "model": f"{sizes}: {self.model.parameter_count():,} parameters",
        }

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens and targets (B, T), lengths (B,) of a step."""
        c = self.training
        rng = generator(c.seed, step)
        tokens, words, lengths = self.learned.take(rng.integers(len(self.learned.lengths), size=c.batch_size))
        h = self.hiding
        return *self._hide(tokens, words, rng, h.hidden, h.as_mask, h.as_random), lengths

    def _hide(
        self, tokens: np.ndarray, words: np.ndarray, rng: Any, share: float, as_mask: float, as_random: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """tokens with words hidden, and what was there, IGNORE_INDEX elsewhere.  (B, T) -> (B, T), (B, T)"""
        counts = words.max(axis=1) + 1  # (B,)
        order = rng.random((len(words), counts.max()))
        order[np.arange(counts.max()) >= counts[:, None]] = np.inf
        rank = order.argsort(axis=1).argsort(axis=1)
        chosen = rank < np.maximum(1, np.rint(share * counts))[:, None]  # (B, words)
        fate = rng.random(chosen.shape)
        hidden = np.take_along_axis(chosen, words, axis=1) & (words >= 0)
        fate = np.take_along_axis(fate, words, axis=1)  # one for all pieces of a word
        random = self.ordinary[rng.integers(len(self.ordinary), size=tokens.shape)]
        replaced = np.where(fate < as_mask, self.mask, np.where(fate < as_mask + as_random, random, tokens))
        return np.where(hidden, replaced, tokens), np.where(hidden, tokens, IGNORE_INDEX)

    def score(self, rows: int | None = None) -> Score:
        """How many hidden pieces are filled in rightly, all hidden words shown as [MASK]; beside it the baseline.

        The baseline always says the commonest piece, and expects each as often as it was in the text learned from.
        """
        total = len(self.held_out.lengths)
        which = np.unique(np.linspace(0, total - 1, min(rows or total, total)).astype(int))
        tokens, words, lengths = self.held_out.take(which)
        shown, targets = self._hide(tokens, words, generator(0, len(which)), self.hiding.hidden, 1.0, 0.0)
        nats, right = self._judge(shown, targets, lengths)
        hidden = targets[targets != IGNORE_INDEX]
        also = {
            "loss": float(nats.mean()),
            "unigrams": 100 * float((hidden == self.unigram.argmax()).mean()),
            "loss of unigrams": -float(self.unigram[hidden].mean()),
        }
        if self.text.file is None:
            also["/".join(AGREEMENT)] = self._agreement(tokens, lengths)
        measured_on = f"{len(hidden):,} hidden pieces in {len(which):,} of the {total:,} held-out rows"
        name, figure = "hidden pieces right", 100 * float(right.mean())
        return Score(name, figure, also, measured_on, percent=(name, "unigrams", "/".join(AGREEMENT)))

    def _agreement(self, tokens: np.ndarray, lengths: np.ndarray) -> float:
        """How many of the words of AGREEMENT are filled in rightly, in %, each hidden alone."""
        ids = [i for word in AGREEMENT for i in self.tokenizer.encode(word).tolist()]
        rows, places = np.nonzero(np.isin(tokens, ids))
        shown, targets = tokens[rows], np.full((len(rows), tokens.shape[1]), IGNORE_INDEX)
        targets[np.arange(len(rows)), places] = tokens[rows, places]
        shown[np.arange(len(rows)), places] = self.mask
        return 100 * float(self._judge(shown, targets, lengths[rows])[1].mean()) if len(rows) else math.nan

    def _judge(self, tokens: np.ndarray, targets: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each target that counts: its loss in nats, and whether it is the likeliest piece."""
        self.model.eval()
        nats, right, size = [], [], max(1, SCORE_TOKENS // tokens.shape[1])
        for start in range(0, len(tokens), size):
            rows = slice(start, start + size)
            hidden = targets[rows] != IGNORE_INDEX
            p = Sampling().probabilities(hidden_logits(self.model, tokens[rows], hidden, lengths[rows]))
            wanted = targets[rows][hidden]
            nats.append(-np.log(np.maximum(p[np.arange(len(p)), wanted], 1e-300)))
            right.append(p.argmax(axis=1) == wanted)
        return np.concatenate(nats), np.concatenate(right)

    def sample(self, *, last: bool = False) -> Sample:
        """Held-out rows with hidden words, and how the model fills them in."""
        which = np.linspace(0, len(self.held_out.lengths) - 1, 5 if last else 2).astype(int)
        tokens, words, lengths = self.held_out.take(which)
        shown, targets = self._hide(tokens, words, generator(1), self.hiding.hidden, 1.0, 0.0)
        hidden, filled = targets != IGNORE_INDEX, shown.copy()
        self.model.eval()
        filled[hidden] = hidden_logits(self.model, shown, hidden, lengths).argmax(axis=1)
        lines = [f"{self._text(row)}\n-> {self._text(full)}" for row, full in zip(shown, filled)]
        return Sample("hidden words, and what it fills in", "\n".join(lines))

    def _text(self, row: np.ndarray) -> str:
        is_seen = ~np.isin(row, self.special) | (row == self.mask)
        return " ".join(self.tokenizer.decode(row[is_seen]).replace(MASK, f" {MASK}").split())

    def example(self) -> str:
        """A text with one word hidden."""
        if self.text.file is None:
            return f"The {MASK} sees the house."
        tokens, words, _ = self.held_out.take(np.array([0]))
        row, number = tokens[0], words[0]
        at = number == min(1, number.max())
        first = at & (np.cumsum(at) == 1)  # one [MASK], however many pieces the word has
        return self._text(np.where(first, self.mask, row)[(0 <= number) & (number < 12) & (~at | first)]).lstrip("-")

    def save_beside(self, folder: Path) -> None:
        """Write the tokenizer."""
        self.tokenizer.save(folder / "tokenizer.json")


def _with_mask(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, with [MASK] added where it has none."""
    if tokenizer.special_id(MASK) is not None:
        return tokenizer
    try:
        return GPT2Tokenizer.of(tokenizer).with_special(MASK)
    except ConfigError:
        raise ConfigError(
            f"{tokenizer} has no room for {MASK}; start from a model whose tokenizer is bpe or bytes"
        ) from None


def _config_of(config: Any, dropout: float) -> BERTConfig:
    """The config of the BERT that is made from a model with this config."""
    if isinstance(config, BERTConfig):
        return dataclasses.replace(config, dropout=dropout, masked_word_head=True, pooler=False)
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise ConfigError("init scales its attention as no BERT does (scale_attn_...); start from another model")
    same = {*BERTConfig.setting_types} & {*GPTConfig.setting_types} - {"dropout"}
    return BERTConfig(**{name: getattr(config, name) for name in same}, norm_first=True, dropout=dropout)


def _take_weights(model: BERT, start: Any) -> None:
    """Copy the parameters that the start has as well; the others, such as a head, keep their fresh values."""
    arrays, own = start.state_dict(), model.state_dict()
    if isinstance(start, GPT):
        arrays = {name.replace("ln_f.", "norm."): x for name, x in arrays.items()}
        own["wtype"][...] = 0
    rows = len(arrays["wte"])
    own["wte"][:rows] = arrays["wte"]
    own["wte"][rows:] = arrays["wte"].mean(axis=0)  # [MASK], if it is new
    for name, x in own.items():
        if name in arrays and name != "wte":
            x[...] = arrays[name]
