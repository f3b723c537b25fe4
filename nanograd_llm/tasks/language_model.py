"""Language modelling: a GPT learns to continue a text, and is scored on the part of it that was held out."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nanograd_llm.errors import ConfigError, ShapeError
from nanograd_llm.inference.evaluate import evaluate
from nanograd_llm.inference.generate import generate
from nanograd_llm.inference.sampling import PROSE
from nanograd_llm.models.gpt import GPT, PRESETS, TRAINING_ONLY, GPTConfig
from nanograd_llm.pretrained.gpt2.tokenizer import gpt2_tokenizer, read_tokenizer
from nanograd_llm.settings import counted, require_choice, setting, shown
from nanograd_llm.tasks.reading import Reading, require_targets
from nanograd_llm.tasks.task import Report, Request, Sample, Score, Tuning
from nanograd_llm.tasks.text_task import TextSettings, TextTask, first_words, model_of, part_of
from nanograd_llm.text import Tokenizer, epoch_windows, mixed_windows, random_windows
from nanograd_llm.text.corpora import builtin_corpus, nul_remark, split_text, text_hash
from nanograd_llm.text.prepared import TokenFiles, make_tokenizer, open_prepared, prepared_hash
from nanograd_llm.text.sources import is_prepared, read_source, require_plain, weighted
from nanograd_llm.training.config import TrainConfig

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened

# Limits in characters: of a longer text only evenly spread pieces are used, so that a short run is short for any text.
LEARNED_A_MINUTE = 2**24  # more than the fastest model reads
LEARNED_AT_LEAST = TOKENIZER_SAMPLE = 2**22
SCORED_AT_MOST = 2**20

# nano: tuned for a minute on the built-in corpus, which is read a dozen times, so strong weight decay helps.
# The others: learning rates of GPT-3 models of their size (Brown et al. 2020, table 2.1 and appendix B).
RECIPES: dict[str, dict[str, Any]] = {
    "nano": dict(batch_size=8, optimizer="muon", learning_rate=6e-3, weight_decay=1.0),
    "distilgpt2": dict(batch_size=8, learning_rate=6e-4),
    "gpt2": dict(batch_size=8, learning_rate=6e-4),
    "gpt2-medium": dict(batch_size=8, learning_rate=3e-4),
    "gpt2-large": dict(batch_size=8, learning_rate=2.5e-4),
    "gpt2-xl": dict(batch_size=8, learning_rate=2e-4),
}


def recipe(preset: str, **changes: Any) -> TrainConfig:
    """The TrainConfig that suits a preset, with these fields changed; None leaves a field unchanged."""
    require_choice("preset", preset, RECIPES)
    return TrainConfig(**RECIPES[preset] | {name: value for name, value in changes.items() if value is not None})


class TextConfig(TextSettings):
    """Which text, and how it is turned into ids. Raises ConfigError that names the field."""

    tokenizer: str = setting(
        "bpe is trained on the text; with --init, the tokenizer is the model's.",
        default="bpe",
        choices=("bpe", "bytes", "characters", "model", "prepared"),
    )
    vocab_size: int = setting(
        "Tokens that bpe learns: the 256 bytes, end of text, and pairs that it merges.",
        default=1024,
        low=257,
        why="256 bytes and end of text",
    )

    data: tuple[str, ...] | None = setting(
        "Several sources in place of one: files, folders, patterns, or prepared folders. To draw windows in given "
        "proportions, give all a weight, such as a.txt:0.7 b:0.3. One source if not given.",
        default=None,
    )
    epochs: bool = setting(
        "Take every window of the text once, in random order, before any comes again; otherwise windows are at "
        "random places.",
        default=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None and self.file is not None:
            raise ConfigError("file and data are both given; give all sources in one of them")
        if self.weights is not None and self.epochs:
            raise ConfigError("epochs takes every window once, whatever the weights of data; leave one of them out")

    @property
    def sources(self) -> list[str | None]:
        """What is read; None is the built-in corpus."""
        return [self.file] if self.data is None else [weighted(source)[0] for source in self.data]

    @property
    def is_prepared(self) -> bool:
        """Is one of the sources a prepared folder? Then all must be."""
        return any(source is not None and is_prepared(source) for source in self.sources)

    @property
    def weights(self) -> list[float] | None:
        """The weight of each source, if they have some. Raises ConfigError unless all or none have one above 0."""
        found = [weighted(source)[1] for source in self.data or ()]
        given = [weight for weight in found if weight]
        if any(weight is not None for weight in found) and len(given) < len(found):
            raise ConfigError(f"data is {shown(self.data)}; give each source a weight above 0, or none of them one")
        return given or None

    def read(self, report: Report = lambda doing, share: None) -> list[tuple[str, str]]:
        """Of each source the text to train on and the text held out. report: as for `read_source`."""
        texts = (builtin_corpus() if source is None else read_source(source, report) for source in self.sources)
        return [split_text(text, self.held_out) for text in texts]

    def make_tokenizer(self, text: str) -> Tokenizer:
        """The tokenizer; bpe and characters are trained on `text`."""
        if self.tokenizer == "model":
            raise ConfigError("tokenizer is model, but there is no model to start from; give one, or another tokenizer")
        if self.tokenizer == "prepared":
            raise ConfigError(
                "tokenizer is prepared, but the text is no prepared folder; give one, or another tokenizer"
            )
        sample = pieces_of(text, TOKENIZER_SAMPLE) if self.tokenizer == "bpe" else [text]
        return make_tokenizer(self.tokenizer, ["".join(sample)], self.vocab_size)


def pieces_of(text: str, size: int) -> list[str]:
    """The text in pieces. Of more than `size` characters, pieces of that many in all, spread evenly over the text."""
    length = 2**20 if len(text) <= size else 2**16
    count = math.ceil(len(text) / length)
    kept = count if len(text) <= size else max(1, size // length)
    starts = [i * count // kept * length for i in range(kept)]
    return [text[start : start + length] for start in starts]


def tokenizer_of(folder: str) -> Tokenizer:
    """The tokenizer of a prepared folder."""
    return read_tokenizer(folder) or gpt2_tokenizer()


def require_tokenizer(folder: str, tokenizer: Tokenizer, source: str) -> None:
    """Raise ConfigError unless the ids of a prepared folder mean what they do to this tokenizer, that of `source`."""
    if not tokenizer.has_same_ids(found := tokenizer_of(folder)):
        kind = f"another {found} than that" if repr(found) == repr(tokenizer) else f"{found}, not the tokenizer"
        remedy = f"prepare it with --tokenizer {shlex.quote(source)}"
        raise ConfigError(f"{folder} was prepared with {kind} of {source}; {remedy}")


class LanguageModelling(TextTask):
    """A GPT predicts the next token at every place of random windows of a text; a `Task`.

    text: what to learn from. model: the sizes; vocab_size follows the tokenizer. training: how, and for how long.
    start: a model to train further; `model` is then its config, where dropout and the like may differ, and
        `text.tokenizer` is "model".

    Of a text longer than such a run can read, evenly spread pieces are trained on, and scored.
    Raises ConfigError for settings that exclude each other, ShapeError for a text shorter than a window.
    """

    name, used_by, builtin = "language-model", "generate", "corpus"
    tables = {"text": TextConfig, "model": GPTConfig}
    hidden = {
        "text": ("window",),
        "model": ("vocab_size", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
    }
    model_class = GPT
    presets = tuple(RECIPES)
    fresh = PRESETS[presets[0]] | RECIPES[presets[0]]
    tuning = Tuning(5e-5, window=128)  # as is usual for GPT-2

    @classmethod
    def made(cls, request: Request) -> LanguageModelling:
        """See `Task.made`. With a start, context_length is that of a window: the sizes are the model's."""
        words, sizes, train = (request.settings[table] for table in ("text", "model", "train"))
        start = request.start
        require_plain([request.asked["text"].get("file"), *(request.asked["text"].get("data") or ())])
        if start is None:
            preset, text = request.preset or cls.presets[0], TextConfig(**words)
            cls._refuse_prepared(text, request)
            if request.written["text"].get("tokenizer") == text.tokenizer == "prepared" and not text.is_prepared:
                raise ConfigError(
                    f'{request.file} has tokenizer = "prepared", but {text.sources[0] or "the built-in corpus"} is no '
                    "prepared folder; give one, or another tokenizer"
                )
            if "vocab_size" in request.asked["text"] and text.tokenizer != "bpe":
                raise ConfigError(f"vocab_size applies to the tokenizer bpe, not to {text.tokenizer}; leave it out")
            if "vocab_size" in request.asked["model"] or "vocab_size" in sizes.keys() - words.keys():
                raise ConfigError("vocab_size under [model] follows the tokenizer; set it under [text]")
            model = GPTConfig.preset(preset, **sizes)
            return cls(text, model, recipe(preset, **train), report=request.report)
        request.require_start(GPT)
        decided = ("tokenizer", "vocab_size")
        model = request.config_further(start.config, TRAINING_ONLY, but=("context_length",), text=decided)
        text = TextConfig(**{"tokenizer": "model", **request.text_further(cls.tuning, model.context_length)})
        cls._refuse_prepared(text, request)
        return cls(text, model, cls.training_of(request), start=start, report=request.report)

    @classmethod
    def reading(cls, opened: Opened[Any], text: str, targets: Sequence[str], **how: Any) -> Reading:
        """See `Task.reading`: each token but the last predicts the next. Raises ConfigError for a target."""
        require_targets(targets, ())
        tokenizer, length = opened.tokenizer(), opened.config.context_length
        ids = tokenizer.encode(text)
        if not 2 <= len(ids) <= length + 1:
            tokens = counted(len(ids), "token")
            raise ConfigError(f"the text has {tokens}; this model takes 2 to {length + 1}")
        return Reading.of(opened.model(**how).loss, (ids[None, :-1], ids[None, 1:]), tokenizer, ids[:-1])

    @staticmethod
    def _refuse_prepared(text: TextConfig, request: Request) -> None:
        """Raise ConfigError where settings are asked for that a prepared folder has decided."""
        asked = {"tokenizer", "vocab_size", "held_out"} & {*request.asked["text"]}
        if asked and text.is_prepared:
            decided = f"{text.sources[0]} was prepared with its own tokenizer and held-out part"
            raise ConfigError(f"{decided}; leave {min(asked)} out")

    def __init__(
        self,
        text: TextConfig,
        model: GPTConfig,
        training: TrainConfig,
        *,
        start: Opened | None = None,
        report: Report = lambda doing, share: None,
    ):
        self.context_length = text.length(model.context_length)
        if (start is None) != (text.tokenizer != "model"):
            raise ConfigError(f'tokenizer must be "model" if there is a start, and only then; got {text.tokenizer!r}')
        if text.is_prepared and start is None:
            text = dataclasses.replace(text, tokenizer="prepared")
        super().__init__(training, start, report, text=text)
        self.text, self._nuls = text, 0
        self._share = 1.0  # of the held-out text that is encoded
        self.rows: list[np.ndarray | TokenFiles]  # one, or one for each weight
        self.held_out_ids: np.ndarray | TokenFiles
        (self._open if text.is_prepared else self._read)(start, report)
        if start is None:
            model = dataclasses.replace(model, vocab_size=self.tokenizer.vocab_size)
        self.model: GPT = model_of(GPT, model, start, training.seed)

    def named_source(self) -> str:
        return " ".join(self.parts["text"].data or ()) or super().named_source()

    def _read(self, start: Opened | None, report: Report) -> None:
        """Read the texts, and turn them into ids."""
        text, c = self.text, self.training
        pairs = text.read(report)
        learned, held_out = ("".join(parts) for parts in zip(*pairs))
        self.digest, self._nuls = text_hash(*itertools.chain(*pairs)), learned.count("\0")
        # characters of the whole text, so that all of the held-out part can be scored
        known = learned + held_out if text.tokenizer == "characters" else learned
        self.take_tokenizer(start, report, lambda: text.make_tokenizer(known))
        most = LEARNED_A_MINUTE * c.minutes if c.minutes else 8 * c.steps * c.batch_size * self.context_length
        texts = [learned] if text.weights is None else [learned for learned, _ in pairs]
        found = [self._encode(one, max(LEARNED_AT_LEAST, int(most)), "trained on", report) for one in texts]
        self.rows, self._learned = [ids for ids, _, _ in found], "; ".join(words for _, words, _ in found)
        self.held_out_ids, self._held_out, self._share = self._encode(held_out, SCORED_AT_MOST, "held out", report)
        self._require_length(min(map(len, (*texts, held_out))))

    def _open(self, start: Opened | None, report: Report) -> None:
        """Open prepared folders."""
        folders = [str(source) for source in self.text.sources]
        if others := [folder for folder in folders if not is_prepared(folder)]:
            raise ConfigError(f"{others[0]} is not prepared, but other sources are; prepare all, or none")
        self.tokenizer = tokenizer_of(folders[0]) if start is None else start.tokenizer()
        for folder in folders:
            require_tokenizer(folder, self.tokenizer, folders[0] if start is None else start.source)
        digests = [prepared_hash(folder, report) for folder in folders]
        self.digest = digests[0] if len(folders) == 1 else text_hash(*digests)
        V = self.tokenizer.vocab_size
        learned, self.held_out_ids = open_prepared(folders, V)
        self.rows = [learned] if self.text.weights is None else [open_prepared([one], V)[0] for one in folders]
        self._require_length()
        self._learned = "; ".join(counted(len(row), "token") for row in self.rows)
        self._held_out = counted(len(self.held_out_ids), "token")

    def _encode(self, text: str, size: int, part: str, report: Report) -> tuple[np.ndarray, str, float]:
        """The ids of at most `size` characters of a text, how many that are, in words, and which share of the text."""
        pieces = pieces_of(text, size)
        encoded: list[np.ndarray] = []
        for piece in pieces:
            report(f"encoding the text {part}", len(encoded) / len(pieces))
            encoded.append(self.tokenizer.encode(piece))
        ids = np.concatenate(encoded)
        used = sum(map(len, pieces))
        sample = (
            "" if used == len(text) else f" from {used:,} of its {len(text):,} characters, as a short run needs no more"
        )
        return ids, f"{counted(len(ids), 'token')}{sample}", used / len(text)

    def _require_length(self, characters: int = 0) -> None:
        """Raise ShapeError unless a window fits in each part. characters: of the shortest, where they are known."""
        parts = [*((len(row), "trained on") for row in self.rows), (len(self.held_out_ids), "held out")]
        (size, part), T = min(parts), self.context_length
        if size <= T:
            ways = ["a longer text"] + [f"a context_length of at most {size - 1}"] * (size > 1)
            ways += ["a larger held_out"] * (bool(characters) and part == "held out" and min(parts[:-1])[0] > 2 * T + 2)
            ways += ["the tokenizer bytes, which makes more tokens"] * (self.text.tokenizer == "bpe" and characters > T)
            raise ShapeError(
                f"{self.source}: the part to be {part} has {counted(size, 'token')}; a window of {T} and its targets "
                f"need {T + 1}; give {', or '.join(ways)}"
            )

    def describe(self) -> dict[str, str]:
        """The text, the tokenizer and the model."""
        is_own = self.context_length == self.model.config.context_length
        windows = "" if is_own else f", in windows of {self.context_length}"
        return {
            "text": f"{self.source.removeprefix('the ')}: trained on {self._learned}{windows}{nul_remark(self._nuls)}",
            "held out": f"{'' if self.text.is_prepared else f'its last {self.text.held_out:.0%}: '}{self._held_out}",
            "tokenizer": f"{self.tokenizer}{self._shortage()}",
            "model": self.sizes(),
        }

    def _shortage(self) -> str:
        """A remark if the vocabulary is smaller than was asked for."""
        asked = self.text.vocab_size
        if self.text.tokenizer != "bpe" or self.tokenizer.vocab_size >= asked:
            return ""
        return f", not the {asked:,} asked for: no further pair within a word occurs twice"

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets) of a step, each (batch_size, context_length)."""
        c = self.training
        settings: Any = dict(context_length=self.context_length, batch_size=c.batch_size, seed=c.seed, step=step)
        if self.text.weights is not None:
            return mixed_windows(self.rows, self.text.weights, **settings)
        return (epoch_windows if self.text.epochs else random_windows)(self.rows[0], **settings)

    def score(self, rows: int | None = None) -> Score:
        """Bits per byte of the held-out text, in windows that overlap by half."""
        T, ids, total = self.context_length, self.held_out_ids, len(self.held_out_ids) - 1
        sizes: Any = {"context_length": T, "stride": max(1, T // 2), "windows": rows}
        found = evaluate(self.model, ids, self.tokenizer, **sizes, progress=self.progress)
        also = {"loss": found.loss, "perplexity": found.perplexity}
        part = part_of(found.tokens, total, "held-out token")
        remark, advice = "", ""
        if self.text.sources == [None] and self.init is None:
            remark, advice = self._remark(found.bits_per_byte)
        if self._share < 1:
            part["measured_on"] += ", which are pieces of a longer text"
            part["share"] *= self._share
        return Score("bits per byte", found.bits_per_byte, also, **part, remark=remark, advice=advice)

    def _remark(self, bits_per_byte: float) -> tuple[str, str]:
        """What a model of the built-in corpus writes at this score, and how to get a better one."""
        if bits_per_byte < 1.8:
            return "recognisable English, with little sense", ""
        found = "mostly nonsense" if bits_per_byte > 2.2 else "words, with little grammar"
        longer = f"{5 * (self.training.minutes or 1):g}"
        return f"{found}; near 1.7 it is recognisable English", f"try --minutes {longer}"

    def sample(self, *, last: bool = False) -> Sample:
        """What the model writes after the first words of the held-out text that are whole."""
        size = self.context_length // 8 + 1
        first = [self.tokenizer.decode([i]) for i in self.held_out_ids[:100]]  # the text may be cut within a word
        begins = (n for n in range(1, len(first)) if first[n][:1].isspace() or first[n - 1][-1:].isspace())
        begin = next(begins, 0)
        prompt = self.held_out_ids[begin : begin + size]
        (ids,) = generate(self.model, prompt, max_new_tokens=200 if last else 60, sampling=PROSE)
        return Sample(f"after {self.tokenizer.decode(prompt).strip()!r} it writes", self.tokenizer.decode(ids))

    def example(self) -> str:
        """The first words of the text that was trained on; of several texts those of the one with the most there."""
        ids = self.rows[0][:24]
        longest = max(np.split(ids, np.flatnonzero(self.tokenizer.sizes(ids) == 0)), key=len)  # from end to end of text
        first = self.tokenizer.decode(longest[self.tokenizer.sizes(longest) > 0])
        words = first.split()[:3] if self.text.sources != [None] else ["The", "statement"]
        is_plain = all(word.isprintable() and "\N{REPLACEMENT CHARACTER}" not in word for word in words)
        return (first_words(" ".join(words).lstrip("-"), 40) if is_plain else "") or "The"
