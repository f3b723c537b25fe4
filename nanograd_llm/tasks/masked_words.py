"""Masked words: words of a text are hidden, and a BERT learns to fill them in from the words on both sides.

Of the words that are hidden, most become [MASK], some a random word, and some stay, so that the model does not
trust every word that it sees (Devlin et al. 2018). Words are hidden whole, with all their pieces.
"""

# B batch, T time, N rows

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nanograd_llm.backend.randomness import generator
from nanograd_llm.errors import ConfigError, ShapeError
from nanograd_llm.inference.embed import encoded
from nanograd_llm.inference.fill import hidden_logits, hidden_places
from nanograd_llm.inference.sampling import log_probabilities
from nanograd_llm.models.bert import BERT, BERTConfig
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.models.inputs import padded
from nanograd_llm.models.transformer import take_arrays
from nanograd_llm.settings import IGNORE_INDEX, Settings, counted, setting, shown
from nanograd_llm.tasks.grammar import builtin_pairs
from nanograd_llm.tasks.reading import Reading, require_targets
from nanograd_llm.tasks.task import Report, Request, Sample, Score, Tuning
from nanograd_llm.tasks.text_task import TextSettings, TextTask, part_of, spread
from nanograd_llm.text import GPT2Tokenizer, Tokenizer, WordPieceTokenizer
from nanograd_llm.text.corpora import split_text, text_hash
from nanograd_llm.text.sources import read_lines, read_source, require_plain
from nanograd_llm.text.wordpiece import MASK, SPECIAL
from nanograd_llm.training.config import TrainConfig

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened

AGREEMENT = ("does", "do", "not")  # of the built-in sentences: what decides these words stands on both their sides
SCORE_TOKENS = 4096  # that are scored at once


class HidingTextConfig(TextSettings):
    """Which text, and how it becomes rows of ids. Raises ConfigError naming the field that cannot be."""

    lines: bool = setting("Take each line of the file for itself; else windows of all its text.", default=False)
    vocab_size: int = setting("Tokens of the vocabulary at most, which is learned from the text.", default=1024, low=6)

    def read(self, report: Report = lambda doing, share: None) -> tuple[list[str], list[str]]:
        """The texts to train on and those held out. report: as for `read_source`."""
        if self.file is None:
            learned_pairs, held_out_pairs, _ = builtin_pairs()
            return [f"{english}." for english, _ in learned_pairs], [f"{english}." for english, _ in held_out_pairs]
        if not self.lines:
            learned, held_out = split_text(read_source(self.file, report), self.held_out)
            return [learned], [held_out]
        lines = read_lines(self.file, report)
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


class MaskedWords(TextTask):
    """A BERT fills in words that were hidden in rows of a text; a `Task`.

    text: what to learn from. hiding: which words are hidden. model: the sizes; vocab_size follows the tokenizer.
    start: a model to train further: a BERT, or a GPT, whose tokenizer, tables, blocks and last norm are taken; they see
        both sides from then on, and the head is fresh.
    Raises ConfigError for settings that exclude each other, ShapeError for a text without enough words.
    """

    name, used_by, builtin = "masked-words", "fill", "sentences"
    tables = {"text": HidingTextConfig, "hiding": HidingConfig, "model": BERTConfig}
    hidden = {
        "text": ("window",),
        "model": ("vocab_size", "type_vocab_size", "layer_norm_epsilon", "masked_word_head", "pooler"),
    }
    model_class = BERT
    fresh = dict(context_length=64, n_layer=2, n_head=4, n_embd=128, batch_size=64, learning_rate=2e-3)
    tuning = Tuning(2e-4, batch_sizes=(16, 16), window=128)

    @classmethod
    def made(cls, request: Request) -> MaskedWords:
        """See `Task.made`. With a start, context_length is that of a row: the sizes are the model's."""
        words, hiding, start = request.settings["text"], HidingConfig(**request.settings["hiding"]), request.start
        training = cls.training_of(request)
        require_plain([request.asked["text"].get("file")])
        if start is None:
            return cls(HidingTextConfig(**words), hiding, cls.fresh_config(request), training, report=request.report)
        request.require_start(BERT, GPT)
        config = _config_of(start.config)
        vocab_size = request.written["model"].get("vocab_size", config.vocab_size)  # it follows the tokenizer
        config = dataclasses.replace(config, vocab_size=vocab_size)
        model = request.config_further(config, ("dropout",), but=("context_length",), text=("vocab_size",))
        text = HidingTextConfig(**request.text_further(cls.tuning, model.context_length))
        return cls(text, hiding, model, training, start=start, report=request.report)

    @classmethod
    def reading(cls, opened: Opened[Any], text: str, targets: Sequence[str], **how: Any) -> Reading:
        """See `Task.reading`: the target is the word at each [MASK] of the text."""
        require_targets(targets, ["the words that are hidden"])
        model, tokenizer = opened.model(**how), opened.tokenizer()
        tokens, hidden = hidden_places(model, tokenizer, text)
        said = hidden_logits(model, tokens, hidden)[:, : tokenizer.known].argmax(axis=1)
        if targets:
            whole, given = text, targets[0].split()
            for word in given:
                whole = whole.replace(MASK, word, 1)
            (ids,) = encoded([whole], tokenizer, model.config.context_length, allow_special=True)
            if len(given) != text.count(MASK):
                wanted = f"the text has {text.count(MASK)} {MASK}; give as many words"
                raise ConfigError(f"{wanted}; got {shown(targets[0])}")
            if len(ids) != tokens.shape[1] or (ids != tokens[0])[~hidden[0]].any():
                raise ConfigError(
                    f"with {shown(targets[0])} the text is cut into other pieces; give words of one piece each"
                )
            said = ids[hidden[0]]
        batch = tokens, np.full_like(tokens, IGNORE_INDEX)
        batch[1][hidden] = said
        words = None if targets else " ".join(tokenizer.decode([i]).strip() for i in said)
        return Reading.of(model.loss, batch, tokenizer, tokens[0], said=words)

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
        super().__init__(training, start, report, text=text, hiding=hiding)
        self.text, self.hiding = text, hiding
        self.longest = text.length(model.context_length)
        learned, held_out = text.read(report)
        self.digest = text_hash(*learned, *held_out)
        self.take_tokenizer(start, report, lambda: WordPieceTokenizer.train("\n".join(learned), text.vocab_size))
        self.tokenizer = _with_mask(self.tokenizer)
        special = [self.tokenizer.special_id(token) for token in SPECIAL]
        self.is_special = np.arange(self.tokenizer.vocab_size) >= self.tokenizer.known  # (V,): never hidden
        self.is_special[[i for i in (*special, self.tokenizer.end_of_text) if i is not None]] = True
        self.ordinary = np.flatnonzero(~self.is_special)
        self.mask = int(self.tokenizer.encode(MASK, allow_special=True)[0])
        report("encoding the text", 0)
        self.learned, self.held_out = self._rows(learned), self._rows(held_out)
        counts = np.bincount(np.concatenate(self.learned), minlength=self.tokenizer.vocab_size)
        counts = 1 + np.where(self.is_special, 0, counts)
        self.unigram = np.log(counts / counts.sum())  # the baseline: how frequent each piece is
        model = dataclasses.replace(model, vocab_size=self.tokenizer.vocab_size, masked_word_head=True)
        self.model = BERT(model, seed=training.seed)
        if start is not None:
            _take_weights(self.model, start.model())

    def hold_out(self, *files: str) -> None:
        """See `Task.hold_out`: any texts, or lines where lines were learned."""
        require_plain(files, option="")
        self.text = dataclasses.replace(self.text, file=files[0])
        texts = ([read_source(file)] if not self.text.lines else read_lines(file) for file in files)
        self.held_out = self._rows([*itertools.chain.from_iterable(texts)])

    def _rows(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of the texts, in rows that the model takes."""
        room = self.longest - len(self.tokenizer.wrap([]))
        cut = (ids[at : at + room] for ids in map(self.tokenizer.encode, texts) for at in range(0, len(ids), room))
        rows = [self.tokenizer.wrap(row) for row in cut if not self.is_special[row].all()]
        if not rows:
            raise ShapeError(f"{self.source}: a part, learned or held out, has no words to hide; give more text")
        return rows

    def _take(self, rows: list[np.ndarray], which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens (B, T), with 0 behind a row; words (B, T), the number of each token's word; lengths (B,)

        The number is -1 for padding and for special tokens such as [CLS] and [UNK], which are never hidden.
        """
        tokens, lengths = padded([rows[i] for i in which])
        is_word = ~self.is_special[tokens] & (np.arange(tokens.shape[1]) < lengths[:, None])
        follows = np.pad(is_word[:, :-1], ((0, 0), (1, 0)))
        begins = is_word & ~(self.tokenizer.continues[tokens] & follows)
        return tokens, np.where(is_word, begins.cumsum(axis=1) - 1, -1), lengths

    def describe(self) -> dict[str, str]:
        """The text, the tokenizer and the model."""
        learned, held_out = (counted(len(rows), "row") for rows in (self.learned, self.held_out))
        return {
            "text": f"{self.text.file or 'sentences of the built-in grammar'}: {learned}, {held_out} held out",
            "tokenizer": str(self.tokenizer),
            "model": self.sizes(),
        }

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens and targets (B, T), lengths (B,) of a step."""
        tokens, words, lengths = self._take(self.learned, self.drawn(step, len(self.learned)))
        rng, h = generator(self.training.seed, step), self.hiding
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
        total = len(self.held_out)
        which = np.unique(spread(total, rows))
        tokens, words, lengths = self._take(self.held_out, which)
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
        part = part_of(len(which), total, "held-out row")
        part["measured_on"] = f"{len(hidden):,} hidden pieces in {part['measured_on']}"
        name, figure = "hidden pieces right", 100 * float(right.mean())
        remark = "unigrams are a baseline, which knows only how frequent each piece is"
        if figure <= also["unigrams"]:
            remark = f"no better than unigrams ({also['unigrams']:.1f} %), which know only how frequent each piece is"
        if self.text.file is None:
            remark += f"; {'/'.join(AGREEMENT)} is the share of these words, each hidden alone, that is right"
        return Score(name, figure, also, **part, percent=(name, "unigrams", "/".join(AGREEMENT)), remark=remark)

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
        for rows in self.at_a_time(size, np.arange(len(tokens))):
            hidden = targets[rows] != IGNORE_INDEX
            log_p = log_probabilities(self._logits(tokens[rows], hidden, lengths[rows]))
            wanted = targets[rows][hidden]
            nats.append(-log_p[np.arange(len(log_p)), wanted])
            right.append(log_p.argmax(axis=1) == wanted)
        return np.concatenate(nats), np.concatenate(right)

    def _logits(self, tokens: np.ndarray, hidden: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return hidden_logits(self.model, tokens, hidden, lengths)[:, : self.tokenizer.known]

    def sample(self, *, last: bool = False) -> Sample:
        """Held-out rows with hidden words, and how the model fills them in."""
        which = np.linspace(0, len(self.held_out) - 1, 5 if last else 2).astype(int)
        tokens, words, lengths = self._take(self.held_out, which)
        shown, targets = self._hide(tokens, words, generator(1), self.hiding.hidden, 1.0, 0.0)
        self.model.eval()
        filled = iter(self._logits(shown, targets != IGNORE_INDEX, lengths).argmax(axis=1))
        lines = []
        for row in shown:
            text = self._text(row)
            parts = text.split(MASK)
            guesses = [f"[{self.tokenizer.decode([next(filled)]).strip()}]" for _ in parts[1:]]
            lines.append(f"{text}\n-> {''.join(a + b for a, b in zip(parts, [*guesses, '']))}")
        return Sample("hidden words, and in brackets what it fills in", "\n".join(lines))

    def _text(self, row: np.ndarray) -> str:
        is_seen = ~self.is_special[row] | (row == self.mask)
        return " ".join(self.tokenizer.decode(row[is_seen]).replace(MASK, f" {MASK}").split())

    def example(self) -> str:
        """A text with one word hidden."""
        if self.text.file is None:
            return f"The {MASK} sees the house."
        tokens, words, _ = self._take(self.held_out, np.array([0]))
        row, number = tokens[0], words[0]
        at = number == min(1, number.max())
        first = at & (np.cumsum(at) == 1)  # one [MASK], however many pieces the word has
        return self._text(np.where(first, self.mask, row)[(0 <= number) & (number < 12) & (~at | first)]).lstrip("-")


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


def _config_of(config: Any) -> BERTConfig:
    """The config of the BERT that is made from a model with this config."""
    if isinstance(config, BERTConfig):
        return dataclasses.replace(config, masked_word_head=True, pooler=False)
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise ConfigError("init scales its attention as no BERT does (scale_attn_...); start from another model")
    same = {*BERTConfig.setting_types} & {*GPTConfig.setting_types} - {"dropout"}
    return BERTConfig(**{name: getattr(config, name) for name in same}, norm_first=True)


def _take_weights(model: BERT, start: Any) -> None:
    """Use the weights of the start; what it lacks, such as a head, stays fresh, and [MASK] begins as the mean token."""
    arrays = start.state_dict()
    if isinstance(start, GPT):
        arrays = {name.replace("ln_f.", "norm."): x for name, x in arrays.items()}
        model.wtype.data[...] = 0
    table = arrays["wte"]
    missing = np.tile(table.mean(axis=0), (model.config.vocab_size - len(table), 1))
    take_arrays(model, {**arrays, "wte": np.concatenate([table, missing])})
