"""Classification: a head on a GPT or a BERT learns which class a text is of, and is scored on texts held out.

Beside its accuracy stand those of two baselines: always the commonest class, and a bag of words.
"""

# B batch, T time, N texts, K classes

from __future__ import annotations

import dataclasses
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanograd_llm.errors import BadFileError, ConfigError, ShapeError
from nanograd_llm.inference.embed import encoded
from nanograd_llm.models.bert import BERT
from nanograd_llm.models.gpt import GPT, PRESETS, TRAINING_ONLY
from nanograd_llm.models.heads import Classifier, ClassifierConfig
from nanograd_llm.models.inputs import padded
from nanograd_llm.pretrained.bert.load import OpenedBERT
from nanograd_llm.settings import Settings, counted, listed, nearest, require_choice, setting, shown
from nanograd_llm.tasks.bag_of_words import NaiveBayes
from nanograd_llm.tasks.confusion import class_table, confusion_matrix, confusion_picture
from nanograd_llm.tasks.reading import Reading, require_targets
from nanograd_llm.tasks.task import Report, Request, Sample, Score, Tuning
from nanograd_llm.tasks.text_task import TextSettings, TextTask, first_words, part_of, spread, the_one
from nanograd_llm.text import BPETokenizer
from nanograd_llm.text.corpora import text_hash
from nanograd_llm.text.labelled import LABELS, Labelled, builtin_docstrings, load_labels, read_labelled, save_labels
from nanograd_llm.training.config import TrainConfig

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened

MOST_CLASSES = 1000
SCORED_AT_ONCE = 250
LAYERS = ("all", "last", "head")


def classifier_of(opened: Any, **how: Any) -> tuple[Classifier, list[str], int]:
    """The classifier of an opened model, the names of its classes, and how many tokens of a text it reads.

    how: for `opened.model`. Raises ConfigError for a classifier of one class.
    """
    if isinstance(opened, OpenedBERT):
        model = opened.classifier(**how)
        if model.config.classes < 2:
            raise ConfigError(f"{opened.source} has one class: it gives a text a score and no class")
        return model, opened.class_names(model.config.classes), opened.config.context_length
    names = load_labels(opened.path / LABELS, opened.config.classes)
    window = opened.settings.get("text", {}).get("window")
    return opened.model(**how), names, window or opened.config.context_length


class LabelledTextConfig(TextSettings):
    """Which texts, and where their labels are. Raises ConfigError naming the field that cannot be."""

    file: str | None = setting(
        "A .csv, .tsv or .jsonl with a column for the text and one for its label, or a folder with a folder for each "
        "label; if not given, docstrings of Python, each with its module.",
        default=None,
    )
    text_column: str = setting("The name of the column of the texts.", default="text")
    label_column: str = setting("The name of the column of their labels.", default="label")
    held_out: float = setting("Share of the texts that is scored, never trained on.", default=0.2, low=0.001, high=0.9)
    held_out_file: str | None = setting(
        "Score the texts of this file, which has the form of FILE; if not given, a share of FILE is held out.",
        default=None,
    )
    vocab_size: int = setting("Tokens of the bpe that a fresh model gets.", default=1024, low=257)
    window: int | None = setting("Tokens that are read of a text; the model's context if None.", default=None, low=3)

    def read(self) -> tuple[Labelled, Labelled]:
        """The texts to train on and those held out: a text that occurs twice is on one side only."""
        if self.file is None and self.held_out_file is not None:
            raise ConfigError(f"held_out_file is {self.held_out_file}, but no file to train on is given")
        columns = self.text_column, self.label_column
        remedy = "--text-column and --label-column say which to take, or rename them"
        found = builtin_docstrings() if self.file is None else read_labelled(self.file, *columns, remedy)
        own = [name for name in ("text_column", "label_column") if getattr(self, name) != getattr(type(self), name)]
        if own and not any(file and os.path.isfile(file) for file in (self.file, self.held_out_file)):
            what = self.file or "the built-in text"
            raise ConfigError(f"{own[0]} is {getattr(self, own[0])}, but {what} has no columns; leave it out")
        texts, labels = map(set, zip(*found))
        if len(labels) > len(texts):
            raise BadFileError(
                f"{self.file}: has {counted(len(texts), 'different text')} and {len(labels):,} different labels; are "
                f"the columns swapped? {remedy}"
            )
        if self.held_out_file is not None:
            learned, other = {text for text, _ in found}, read_labelled(self.held_out_file, *columns)
            scored = [(text, label) for text, label in other if text not in learned]
            if len(scored) < len(other):
                both = counted(len(other) - len(scored), "text")
                warnings.warn(f"{self.held_out_file}: {both} also in {self.file}, not scored", stacklevel=2)
            if not scored:
                raise BadFileError(f"{self.held_out_file}: all its texts are in {self.file} as well; give others")
            return found, scored
        parts: tuple[Labelled, Labelled] = [], []
        for text, label in found:  # decided by the text alone, so that more texts change no side
            parts[zlib.crc32(text.encode()) < self.held_out * 2**32].append((text, label))
        if not all(parts):
            raise ShapeError(
                f"{self.file}: has {counted(len(texts), 'different text')}, and held_out={self.held_out} leaves none "
                f"to {'train on' if parts[1] else 'score'}; give more texts, or others to score as held_out_file"
            )
        return parts


class TuningConfig(Settings):
    """Which part of the model is trained. Raises ConfigError naming the field that cannot be."""

    train_layers: str = setting(
        "Train all of the model; the last block, the last norm and the head; or the head alone.",
        default="all",
        choices=LAYERS,
    )


class Classification(TextTask):
    """A classifier learns the labels of texts; a `Task`.

    text: what to learn from. tuning: which layers. model: the sizes; vocab_size and classes follow the texts.
    start: a model to train further: a GPT or a BERT, which gets a fresh head, or a Classifier that knows these labels;
        `model` is then its config, where dropout and pooling may differ.
    Raises ConfigError for settings that exclude each other, BadFileError for texts of one class only, or held-out texts
    of a class that is not trained on.
    """

    name, used_by, builtin = "classification", "classify", "docstrings"
    tables = {"text": LabelledTextConfig, "tuning": TuningConfig, "model": ClassifierConfig}
    hidden = {
        "text": ("window",),
        "model": (
            *("vocab_size", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings", "encoder"),
            *("classes", "type_vocab_size", "norm_first", "masked_word_head", "pooler", "layer_norm_epsilon"),
        ),
    }
    model_class = Classifier
    fresh = PRESETS["nano"] | dict(context_length=128, batch_size=16, learning_rate=1e-3)
    tuning = Tuning(2.8e-5, power=2, batch_sizes=(16, 16), window=256)

    @classmethod
    def made(cls, request: Request) -> Classification:
        """See `Task.made`. With a start, context_length is what is read of a text: the sizes are the model's."""
        words, tuning, sizes = (request.settings[table] for table in cls.tables)
        start = request.start
        if start is None:
            model = cls.fresh_config(request)
        else:
            request.require_start(GPT, BERT, Classifier)
            model = start.config
            if not isinstance(model, ClassifierConfig):
                classes = request.written["model"].get("classes", 2)  # those of the texts replace them
                model = ClassifierConfig.of(model, classes, sizes.get("pooling", "mean"))
            elif "pooling" in request.asked["model"]:
                raise ConfigError(f"init takes pooling, {model.pooling}, from the classifier; leave that out")
            also = ("context_length", "pooling")
            model = request.config_further(model, TRAINING_ONLY, but=also, text=("vocab_size",))
            words = request.text_further(cls.tuning, model.context_length)
        parts = LabelledTextConfig(**words), TuningConfig(**tuning)
        return cls(*parts, model, cls.training_of(request), start=start, report=request.report)

    @classmethod
    def reading(cls, opened: Opened[Any], text: str, targets: Sequence[str], **how: Any) -> Reading:
        """See `Task.reading`: the target is the name of a class."""
        require_targets(targets, ["the class"])
        model, names, longest = classifier_of(opened, **how)
        tokenizer = opened.tokenizer()
        (ids,) = encoded([text], tokenizer, longest, truncate=True)
        label = targets[0] if targets else names[model.probabilities([ids])[0].argmax()]
        require_choice("target", label, names)
        batch = ids[None], np.array([names.index(label)])
        said = None if targets else label
        return Reading.of(model.loss, batch, tokenizer, ids, outputs=lambda i: names[i].encode(), said=said)

    def __init__(
        self,
        text: LabelledTextConfig,
        tuning: TuningConfig,
        model: ClassifierConfig,
        training: TrainConfig,
        *,
        start: Opened | None = None,
        report: Report = lambda doing, share: None,
    ):
        self.longest = text.length(model.context_length)
        super().__init__(training, start, report, text=text, tuning=tuning)
        self.text = text
        learned, held_out = text.read()
        self.digest = text_hash(repr(learned), repr(held_out))
        is_known = start is not None and start.model_class is Classifier
        self.names = sorted({label for _, label in learned})
        if start is not None and is_known:
            self.names = load_labels(start.path / LABELS, start.config.classes)
        self._require_classes(learned, held_out, is_known=is_known)
        learned_text = "\n".join(words for words, _ in learned)
        self.take_tokenizer(start, report, lambda: BPETokenizer.train(learned_text, text.vocab_size))
        report("encoding the texts", 0)
        rows, targets = self._encode(learned + held_out)
        self.rows, self.targets = rows[: len(learned)], targets[: len(learned)]
        self._bayes = NaiveBayes([words for words, _ in learned], self.targets, len(self.names))
        self._take_held_out(held_out, rows[len(learned) :], targets[len(learned) :])
        self._judged = np.zeros((len(self.names), len(self.names)), int)  # the confusion matrix of the last score
        model = dataclasses.replace(model, vocab_size=self.tokenizer.vocab_size, classes=len(self.names))
        self.model = Classifier(model, seed=training.seed)
        if start is not None:
            self.model.take(start.model())
        if tuning.train_layers != "all":
            self.model.freeze()
            for part in self.model.top(blocks=1 if tuning.train_layers == "last" else 0):
                part.unfreeze()

    def _encode(self, texts: Labelled) -> tuple[list[np.ndarray], np.ndarray]:
        """The ids of each text, and the numbers of their labels."""
        rows = encoded([words for words, _ in texts], self.tokenizer, self.longest, truncate=True)
        return rows, np.array([self.names.index(label) for _, label in texts])

    def _take_held_out(self, texts: Labelled, rows: list[np.ndarray], targets: np.ndarray) -> None:
        self.held_out_texts = [words for words, _ in texts]
        self.held_out_rows, self.held_out_targets = rows, targets
        self.baselines = {  # what each says of the held-out texts
            "majority": np.full(len(texts), np.bincount(self.targets).argmax()),
            "naive Bayes": self._bayes.guess(self.held_out_texts),
        }

    def hold_out(self, *files: str) -> None:
        """See `Task.hold_out`: a file of the form of the one that was learned from."""
        self.text = dataclasses.replace(self.text, held_out_file=the_one(files))
        found = read_labelled(files[0], self.text.text_column, self.text.label_column)
        self._require_classes([], found, is_known=True)
        self._take_held_out(found, *self._encode(found))

    def _require_classes(self, learned: Labelled, held_out: Labelled, *, is_known: bool) -> None:
        """Raise BadFileError unless there are two classes, not too many, and all held-out ones are known."""
        if len(self.names) < 2:
            raise BadFileError(f"{self.source}: all texts have the label {self.names[0]!r}; give texts of two classes")
        if len(self.names) > MOST_CLASSES:
            raise BadFileError(
                f"{self.source}: has {len(self.names):,} different labels, such as {shown(self.names[0], 60)}; at most "
                f"{MOST_CLASSES:,} are learned; --label-column names the column"
            )
        for side, file in ((learned, self.text.file), (held_out, self.text.held_out_file or self.text.file)):
            if unknown := sorted({label for _, label in side} - {*self.names}):
                count = counted(sum(label in unknown for _, label in side), "text")
                near = nearest(unknown[0], self.names)
                why = f"which the model does not know: it knows {listed(self.names)}; leave these out"
                if not is_known:
                    count, why = (
                        f"{count} held out",
                        "which no text to train on has; leave these out, or give more of them",
                    )
                why += f", or write {near!r} for {unknown[0]!r}" if near else ""
                raise BadFileError(f"{file or self.source}: {count} with the label {listed(unknown)}, {why}")

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """The tables of the texts, of the tuning and of the model's sizes: of its encoder only those that it has."""
        head = {name: getattr(self.model.config, name) for name in ("encoder", "classes", "pooling")}
        return super().config | {"model": head | dataclasses.asdict(self.model.model.config)}

    def describe(self) -> dict[str, str]:
        """The texts, the tokenizer and the model."""
        kind = f"{self.model.config.encoder.upper()}, pooling={self.model.config.pooling}, {self.sizes()}"
        count, trained = self.model.parameter_count(), sum(p.size for p in self.model.trainable_parameters())
        part = f", of which {trained:,} are trained" if trained < count else ""
        return {
            "texts": f"{self.source}: {len(self.rows):,} to train on, of {len(self.names)} classes",
            "held out": counted(len(self.held_out_rows), "text"),
            "tokenizer": str(self.tokenizer),
            "model": f"{kind}{part}",
        }

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens (B, T), targets (B,), lengths (B,) of a step."""
        chosen = self.drawn(step, len(self.rows))
        tokens, lengths = padded([self.rows[i] for i in chosen])
        return tokens, self.targets[chosen], lengths

    def score(self, rows: int | None = None) -> Score:
        """How many held-out texts get their label, and how many do by the baselines."""
        total = len(self.held_out_rows)
        which = np.unique(spread(total, rows))
        self.model.eval()
        parts, targets = self.at_a_time(SCORED_AT_ONCE, which), self.held_out_targets[which]
        p = np.concatenate([self.model.probabilities([self.held_out_rows[i] for i in some]) for some in parts])
        guesses = p.argmax(axis=1)
        self._judged = confusion_matrix(targets, guesses, len(self.names))
        accuracy = 100 * float((guesses == targets).mean())
        baselines = {name: 100 * float((found[which] == targets).mean()) for name, found in self.baselines.items()}
        loss = float(np.log(1 / np.maximum(p[np.arange(len(p)), targets], 1e-30)).mean())
        remark = self._remark({name: found for name, found in baselines.items() if found >= accuracy}, accuracy == 100)
        also, part = {**baselines, "loss": loss}, part_of(len(which), total, "held-out text")
        c = self.training
        longer = f"--minutes {5 * c.minutes:g}" if c.minutes else f"--steps {5 * c.steps}"
        advice = f"train longer, e.g. {longer}" if remark and accuracy < 100 else ""
        return Score("accuracy", accuracy, also, **part, percent=("accuracy", *baselines), remark=remark, advice=advice)

    def _remark(self, better: Mapping[str, float], is_perfect: bool) -> str:
        """Which baselines are not exceeded. better: their accuracies."""
        if not better:
            return ""
        seen = {"majority": "which always says the commonest class", "naive Bayes": "which sees only word counts"}
        names = ", and ".join(f"{name} ({found:.1f} %), {seen[name]}" for name, found in better.items())
        if is_perfect:
            return f"all held-out texts are labelled right, also by {names}; harder texts would show which is better"
        return f"not above {names}"

    def sample(self, *, last: bool = False) -> Sample:
        """A held-out text, its label and what the model says; at the last a table of the classes, and a picture."""
        if last:
            if not self._judged.any():
                self.score()
            picture = {"confusion.svg": confusion_picture(self._judged, self.names)}
            return Sample("held-out texts by class", class_table(self._judged, self.names), picture)
        self.model.eval()
        (p,) = self.model.probabilities(self.held_out_rows[:1])
        said = ", ".join(f"{self.names[k]} {p[k]:.0%}" for k in np.argsort(-p, kind="stable")[:3])
        label = self.names[self.held_out_targets[0]]
        return Sample(f"of {shown(self.held_out_texts[0], 100)}, which is {label}, it says", said)

    def example(self) -> str:
        """A text to classify, on one line."""
        return first_words(self.held_out_texts[0].lstrip("-"), 80) or "a text"

    def save_beside(self, folder: Path) -> None:
        """Also write the names of the classes."""
        super().save_beside(folder)
        save_labels(folder / LABELS, self.names)
