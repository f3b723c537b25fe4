"""Translation: an encoder-decoder learns from pairs of sentences, and is scored on pairs that were held out.

A batch is (source, target_in, target): target_in begins with end-of-text, target ends with it. The same id fills up the
shorter sources, so one vocabulary with one special token serves all.
"""

# B batch, S source time, T target time

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nanograd_llm.backend.threads import blas_threads
from nanograd_llm.errors import ConfigError, ShapeError
from nanograd_llm.inference.translate import show_attention, translate
from nanograd_llm.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from nanograd_llm.models.inputs import padded
from nanograd_llm.settings import IGNORE_INDEX, Settings, counted, setting, shown
from nanograd_llm.tasks.grammar import builtin_pairs
from nanograd_llm.tasks.reading import Reading, require_targets
from nanograd_llm.tasks.task import Report, Request, Sample, Score, Tuning
from nanograd_llm.tasks.text_task import TextTask, first_words, mean_loss, model_of, part_of, spread
from nanograd_llm.text import BPETokenizer, Tokenizer, WordTokenizer
from nanograd_llm.text.corpora import text_hash, warn_of_repeated
from nanograd_llm.text.pairs import Pairs, read_pairs
from nanograd_llm.training.config import TrainConfig

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened

SCORED_AT_ONCE = 250
SHOWN = 20  # words of a translation whose attention is shown


class PairsConfig(Settings):
    """Which pairs, and how they become ids. Raises ConfigError naming the field that cannot be."""

    file: str | None = setting(
        "A .tsv, .po or .mo, or a file of source lines; an English-French grammar if not given.", default=None
    )
    target: str | None = setting(
        "A file whose lines are the translations of those of FILE; FILE has both if not given.", default=None
    )
    vocabulary: str = setting(
        "words of both languages, or bpe trained on both; with --init, the vocabulary is that of the model.",
        default="words",
        choices=("words", "bpe", "model"),
    )
    vocab_size: int = setting("Tokens of the bpe.", default=1024, low=257)
    held_out: float = setting(
        "Share at the end of the file that is scored and never trained on.", default=0.05, low=0.001, high=0.9
    )

    def read(self) -> tuple[Pairs, Pairs, Pairs]:
        """The pairs to train on, those held out, and those of words that never stand together in the former."""
        if self.file is None:
            if self.target is not None:
                raise ConfigError(
                    f"target is {self.target}, but no source is given; give the file of its lines as well"
                )
            return builtin_pairs()
        given = read_pairs(self.file, self.target)
        found = list(dict.fromkeys(given))
        warn_of_repeated(self.file, len(given), len(found))
        count = max(1, round(self.held_out * len(found)))
        if count >= len(found):
            pairs = counted(len(found), "different pair")
            raise ShapeError(f"{self.file} has {pairs}; held_out={self.held_out} leaves none to learn; give more pairs")
        return found[:-count], found[-count:], []


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """Pairs as ids, each without special tokens."""

    sources: list[np.ndarray]
    targets: list[np.ndarray]

    def batch(self, rows: Sequence[int] | np.ndarray, special: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source, target_in, target) of these rows: (B, S), (B, T), (B, T)"""
        sources, targets = [self.sources[i] for i in rows], [self.targets[i] for i in rows]
        ends = [np.append(target, special) for target in targets]
        source, target = padded(sources, special)[0], padded(ends, IGNORE_INDEX)[0]
        target_in = np.full_like(target, special)
        target_in[:, 1:] = np.where(target[:, :-1] == IGNORE_INDEX, special, target[:, :-1])
        return source, target_in, target


class Translation(TextTask):
    """An encoder-decoder learns to write the target of a source; a `Task`.

    pairs: what to learn from. model: the sizes; vocab_size follows the tokenizer. fit_context: so does context_length
        the longest pair.
    start: a model to train further; `model` is then its config, where dropout and label_smoothing may differ, and
        `pairs.vocabulary` is "model".

    Raises ShapeError for a pair that is longer than the model's context_length, IndexRangeError for a word that the
    model to start from does not know.
    """

    name, used_by, builtin = "translation", "translate", "grammar"
    tables = {"pairs": PairsConfig, "model": EncoderDecoderConfig}
    hidden = {"pairs": (), "model": ("vocab_size", "source_vocab_size", "pad_id", "start_id", "end_id", "head_bias")}
    model_class = EncoderDecoder
    fresh = dict(n_layer=2, n_head=4, n_embd=128, context_length=64, batch_size=32, learning_rate=2e-3, beta2=0.98)
    tuning = Tuning(3e-4, power=0, batch_sizes=(32, 32), also={"beta2": 0.98})

    @classmethod
    def made(cls, request: Request) -> Translation:
        """See `Task.made`."""
        pairs, start, training = request.settings["pairs"], request.start, cls.training_of(request)
        if start is None:
            if "vocab_size" in request.asked["pairs"] and pairs.get("vocabulary") != "bpe":
                raise ConfigError("vocab_size is for the vocabulary bpe; one of words has all words of the text")
            model, fit = cls.fresh_config(request), "context_length" not in request.settings["model"]
            return cls(PairsConfig(**pairs), model, training, fit_context=fit, report=request.report)
        request.require_start(EncoderDecoder)
        free, decided = ("dropout", "label_smoothing"), ("vocabulary", "vocab_size")
        model = request.config_further(start.config, free, pairs=decided)
        return cls(PairsConfig(**{"vocabulary": "model", **pairs}), model, training, start=start, report=request.report)

    @classmethod
    def reading(cls, opened: Opened[Any], text: str, targets: Sequence[str], **how: Any) -> Reading:
        """See `Task.reading`: the target is a translation of the text."""
        require_targets(targets, ["the translation"])
        model, tokenizer = opened.model(**how), opened.tokenizer()
        c, source = model.config, tokenizer.encode(text)
        made = targets or [tokenizer.decode(translate(model, source)[0])]
        target = [*tokenizer.encode(made[0])][: c.context_length - 1]
        target_in = [c.start_id, *target]
        batch = source[None], np.array([target_in]), np.array([[*target, c.end_id]])
        return Reading.of(model.loss, batch, tokenizer, source, target_in, said=None if targets else made[0])

    def __init__(
        self,
        pairs: PairsConfig,
        model: EncoderDecoderConfig,
        training: TrainConfig,
        *,
        start: Opened | None = None,
        fit_context: bool = False,
        report: Report = lambda doing, share: None,
    ):
        if (start is None) != (pairs.vocabulary != "model"):
            raise ConfigError(f'vocabulary must be "model" if (and only if) there is a start; got {pairs.vocabulary!r}')
        super().__init__(training, start, report, pairs=pairs)
        self.pairs = pairs
        learned, held_out, unseen = pairs.read()
        self.digest = text_hash(*map(repr, (learned, held_out, unseen)))
        self.take_tokenizer(start, report, lambda: self._trained_tokenizer(learned, held_out + unseen))
        if self.tokenizer.end_of_text is None:
            raise ConfigError(f"{self.init}: its tokenizer has no end of text, by which a translation ends")
        self.end = self.tokenizer.end_of_text
        self.learned, self.held_out, self.unseen = map(self._encode, (learned, held_out, unseen))
        if fit_context:
            model = dataclasses.replace(model, context_length=max(model.context_length, self._longest()[0]))
        self._require_fitting(model, "give a larger context_length, or " if start is None else "")
        if start is None:
            ids: Any = {"vocab_size": self.tokenizer.vocab_size}
            ids |= dict.fromkeys(("pad_id", "start_id", "end_id"), self.end)
            model = dataclasses.replace(model, **ids)
        self.model: EncoderDecoder = model_of(EncoderDecoder, model, start, training.seed)

    def _trained_tokenizer(self, learned: Pairs, held_out: Pairs) -> Tokenizer:
        if self.pairs.vocabulary == "bpe":
            return BPETokenizer.train("\n".join(side for pair in learned for side in pair), self.pairs.vocab_size)
        # a list of words is no knowledge of how they are translated: with all of them, what is held out can be scored
        return WordTokenizer.train(side for pair in learned + held_out for side in pair)

    def _encode(self, pairs: Pairs) -> _Encoded:
        return _Encoded(*([self.tokenizer.encode(pair[side]) for pair in pairs] for side in (0, 1)))

    def hold_out(self, *files: str) -> None:
        """See `Task.hold_out`: a file of pairs, or two, of the lines of each language."""
        if len(files) > 2:
            raise ConfigError(f"{files[2]} is a third file; give one of pairs, or two, of the lines of each language")
        self.held_out, self.unseen = self._encode(list(dict.fromkeys(read_pairs(*files)))), self._encode([])
        self._require_fitting(self.model.config)

    def _require_fitting(self, model: EncoderDecoderConfig, more_room: str = "") -> None:
        """Raise ShapeError for a pair that is longer than the model's context. more_room: what makes it larger."""
        longest, which = self._longest()
        if longest > model.context_length:
            raise ShapeError(
                f"context_length is {model.context_length}, but the pair {shown(which, 60)} has {longest} tokens; "
                f"{more_room}remove the pair"
            )

    def _longest(self) -> tuple[int, str]:
        """Of all pairs: the tokens of the longest side, and the source. A target has one more for its end."""
        length, source = max(
            (max(len(one), len(other) + 1), tuple(one.tolist()))
            for pairs in (self.learned, self.held_out, self.unseen)
            for one, other in zip(pairs.sources, pairs.targets)
        )
        return length, self.tokenizer.decode(source)

    def describe(self) -> dict[str, str]:
        """The pairs, the tokenizer and the model."""
        also = f", and {len(self.unseen.sources):,} of nouns and adjectives never seen together"
        source = self.pairs.file or "built-in grammar, English to French"
        return {
            "pairs": f"{source}: {counted(len(self.learned.sources), 'pair')}",
            "held out": f"{counted(len(self.held_out.sources), 'pair')}{also if self.unseen.sources else ''}",
            "tokenizer": str(self.tokenizer),
            "model": self.sizes(),
        }

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source, target_in, target) of a step, a pure function of the seed and the step."""
        return self.learned.batch(self.drawn(step, len(self.learned.sources)), self.end)

    def score(self, rows: int | None = None) -> Score:
        """How many of the translations, each word the likeliest, are exactly the reference."""
        chosen = spread(len(self.held_out.sources), rows)
        with blas_threads(1):  # a step of decoding is small: threads would wait for each other more than they compute
            exact, words, outputs = self._translated(self.held_out, chosen)
            also = {"word accuracy": 100 * words}
            if self.unseen.sources:
                also["never seen together"] = (
                    100 * self._translated(self.unseen, spread(len(self.unseen.sources), rows))[0]
                )
            if importlib.util.find_spec("sacrebleu"):
                also["BLEU"] = _bleu(outputs, [self.tokenizer.decode(self.held_out.targets[i]) for i in chosen])
            also["loss"] = self._loss(chosen)
        part = part_of(len(chosen), len(self.held_out.sources), "held-out pair")
        percent = ("exact match", "word accuracy", "never seen together")
        return Score("exact match", 100 * exact, also, **part, percent=percent)

    def _translated(self, pairs: _Encoded, rows: np.ndarray) -> tuple[float, float, list[str]]:
        """The share that is exactly right, the share of the words that is right in its place, and the outputs."""
        outputs: list[list[int]] = []
        for some in self.at_a_time(SCORED_AT_ONCE, rows):
            outputs += translate(self.model, [pairs.sources[i] for i in some])
        references = [pairs.targets[i].tolist() for i in rows]
        right = sum(a == b for one, other in zip(outputs, references) for a, b in zip(one, other))
        total = sum(max(len(one), len(other)) for one, other in zip(outputs, references))
        exact = sum(map(list.__eq__, outputs, references)) / len(rows)
        return exact, right / max(total, 1), [self.tokenizer.decode(output) for output in outputs]

    def _loss(self, rows: np.ndarray) -> float:
        """Mean cross-entropy of a target's tokens, given those before."""
        parts = (rows[start : start + SCORED_AT_ONCE] for start in range(0, len(rows), SCORED_AT_ONCE))
        return mean_loss(self.model, (self.held_out.batch(part, self.end) for part in parts))

    def sample(self, *, last: bool = False) -> Sample:
        """A source, its reference and what the model makes of it; at the last also which words it looked at."""
        source, reference = self.held_out.sources[0], self.held_out.targets[0]
        (output,) = translate(self.model, source)
        wrote = self.tokenizer.decode(output) or "(nothing)"
        lines = [f"reference   {self.tokenizer.decode(reference)}", f"it writes   {wrote}"]
        if last:
            context = self.model.config.context_length  # which an output that does not end fills
            look = self.model.look(source[None], [[self.end, *output][:context]])
            heads = look.cross_maps[-1][0].mean(axis=0)  # (H, T, S) -> (T, S)
            made, given = ([self.tokenizer.decode([i]) for i in ids] for ids in ([*output, self.end][:context], source))
            lines += ["each word, and where the last block looked:", show_attention(made[:SHOWN], given, heads[:SHOWN])]
            lines += [f"... and {len(made) - SHOWN} more"] if len(made) > SHOWN else []
        return Sample(f"of {self.tokenizer.decode(source)!r}", "\n".join(lines))

    def example(self) -> str:
        """A sentence to translate."""
        if self.pairs.file is None:
            return "the small cat does not see the house"
        return first_words(self.tokenizer.decode(self.held_out.sources[0]).lstrip("-"), 80)


def _bleu(outputs: list[str], references: list[str]) -> float:
    """Corpus BLEU as sacreBLEU defines it (Post 2018)."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu(outputs, [references]).score)
