"""The commands that show what happens inside a model: what they print, and what they refuse in one line."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm import inference
from nanograd_llm.cli import main
from nanograd_llm.files.safetensors import read_safetensors, write_safetensors
from nanograd_llm.pretrained.opening import save_pretrained
from nanograd_llm.runs import RunFolder
from nanograd_llm.see import watch
from nanograd_llm.tasks.classification import LabelledTextConfig
from nanograd_llm.tasks.registry import reading_of
from nanograd_llm.training.trainer import Trainer

TINY = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--context-length", "16", "--batch-size", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("runs") / "tiny")
    assert main(["train", "--steps", "4", "--out", path, *TINY, "--held-out", "0.01", "--vocab-size", "270"]) == 0
    return path


def told(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """(stdout, stderr) with stderr being one line at most."""
    out, err = capsys.readouterr()
    assert err.count("\n") <= 1 and "Traceback" not in err
    return out, err


def test_step_obeys_commands_from_a_pipe(run: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\nu wte\n"))
    assert main(["step", run, "The cat", "--op", "3"]) == 0
    out, _ = told(capsys)
    assert out.startswith(
        "GPT.loss: 15 op calls, 16 leaves; constants: tokens, targets\nh for help\n"
        "-> forward 3 layernorm in blocks.0.ln_1  (fused: o opens it)\n"
    )
    assert "-> forward 4 linear in blocks.0.attention.qkv" in out and "is the sum of 2 uses" in out


def test_step_writes_a_script_that_runs_by_itself(run: str, tmp_path: Path, capsys) -> None:
    script = tmp_path / "backward.py"
    assert main(["step", run, "The cat", "--script", str(script)]) == 0
    assert told(capsys)[0] == f"wrote {script} and backward.npz; run it: python {script}\n"
    found = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True)
    assert found.stdout.endswith("arrays are the same, bit for bit\n")


def test_step_writes_a_page_with_the_tokens(run: str, tmp_path: Path, capsys) -> None:
    assert main(["step", run, "The cat", "--html", str(tmp_path / "step.html")]) == 0
    assert told(capsys)[0] == f"wrote {tmp_path}/step.html; open it in a browser\n"
    assert '"tokens":[["T' in (tmp_path / "step.html").read_text("utf-8")


def test_look_prints_the_surprise_the_flow_and_the_uses_and_writes_a_page(run: str, tmp_path: Path, capsys) -> None:
    page = tmp_path / "look.html"
    assert main(["look", run, "The cat", "--html", str(page)]) == 0
    out, _ = told(capsys)
    assert "how surprised it is" in out and "into block 0" in out and "lookup (0 embedding)" in out
    assert out.endswith(f"wrote {page}; open it in a browser\n")
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert main(["look", run, "The cat", "--html", str(tmp_path / "look.txt")]) == 2
    assert "a page ends in .html" in told(capsys)[1]


@pytest.mark.parametrize("command", [["look", "--html"], ["step", "--html"], ["step", "--script"], ["plot", "--png"]])
def test_a_file_in_a_folder_that_is_not_there_is_refused_before_the_work(command: list[str], tmp_path: Path, capsys):
    path = tmp_path / "none" / f"a.{command[1].removeprefix('--').replace('script', 'py')}"
    assert main([command[0], "no run", *["the cat"][: command[0] != "plot"], command[1], str(path)]) == 4
    said = f"{path}: cannot write: the folder {path.parent} is not there; make it, or choose another name"
    assert said in told(capsys)[1]


SENTENCES = ["the cat sees the house.", "a dog sees the cat.", "the dog does not see the house."] * 4
MARIAN = ["--no-norm-first", "--positions", "sinusoidal_halves"]  # as models of Marian have it
PAIRS = [("the cat", "le chat"), ("the dog", "le chien"), ("a cat", "un chat"), ("a dog", "un chien")]


@pytest.fixture(scope="module")
def models(run: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small model of every kind that open_model opens, by name: runs of one step, and pretrained ones."""
    folder = tmp_path_factory.mktemp("models")
    sizes = [*TINY, "--steps", "1", "--held-out", "0.2"]
    (folder / "lines.txt").write_text("\n".join(SENTENCES))
    (folder / "pairs.tsv").write_text("\n".join(f"{one} {i}\t{other} {i}" for i in range(5) for one, other in PAIRS))
    rows = ["text,label", *(f"the {word} {i},{word}" for i in range(20) for word in ("cat", "dog"))]
    (folder / "texts.csv").write_text("\n".join(rows))
    asked = [{"prompt": f"Say {i}.", "completion": str(i)} for i in range(9)]
    pairs = [{"prompt": f"Say {i}.", "chosen": str(i), "rejected": "no"} for i in range(9)]
    for name, lines in (("asked.jsonl", asked), ("pairs.jsonl", pairs)):
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
    further = ["--steps", "1", "--batch-size", "2", "--init", run]
    commands = {
        "masked-words": ["--task", "masked-words", str(folder / "lines.txt"), "--lines", *sizes],
        "translation": ["--task", "translation", str(folder / "pairs.tsv"), *sizes, *MARIAN],
        "classification": ["--task", "classification", str(folder / "texts.csv"), "--vocab-size", "270", *sizes],
        "instruction": ["--task", "instruction", str(folder / "asked.jsonl"), *further],
        "preference": ["--task", "preference", str(folder / "pairs.jsonl"), *further],
        "lora": ["--lora-rank", "2", "--held-out", "0.01", *further],
    }
    made = {"language-model": run}
    for name, given in commands.items():
        made[name] = str(folder / name)
        assert main(["train", *given, "--out", made[name]]) == 0, name
    for name in ("language-model", "masked-words", "translation"):
        made[f"pretrained {name}"] = str(folder / f"pretrained-{name}")
        opened = ng.open_model(made[name])
        save_pretrained(opened.model(), made[f"pretrained {name}"], opened.tokenizer())
    opened, plain = ng.open_model(made["masked-words"]), {"masked_word_head": False}
    for name, kind in (("similarity", ng.BERT), ("pretrained classification", ng.BERT)):
        made[name] = str(folder / name.replace(" ", "-"))
        config = dataclasses.replace(opened.config, **plain, pooler=name != "similarity")
        save_pretrained(kind(config, seed=0), made[name], opened.tokenizer())
    weights = Path(made["pretrained classification"]) / "model.safetensors"
    head = {"classifier.weight": np.ones((2, 16), np.float32), "classifier.bias": np.zeros(2, np.float32)}
    write_safetensors(weights, {**{name: x.copy() for name, x in read_safetensors(weights).items()}, **head}, {})
    return made


# A kind of model, its text and targets, and the name that the remark, the loss and the result of `look` have.
READ = {
    "language-model": (["the cat"], "GPT.loss"),
    "pretrained language-model": (["the cat"], "GPT.loss"),
    "lora": (["the cat"], "GPT.loss"),
    "masked-words": (["the [MASK] sees", "--target", "cat"], "BERT.loss"),
    "pretrained masked-words": (["the [MASK] sees"], "BERT.loss"),
    "translation": (["the cat", "--target", "le chat"], "EncoderDecoder.loss"),
    "pretrained translation": (["the cat"], "EncoderDecoder.loss"),
    "classification": (["the cat", "--target", "dog"], "Classifier.loss"),
    "pretrained classification": (["the cat"], "Classifier.loss"),
    "instruction": (["Say 1.", "--target", "1"], "GPT.loss"),
    "preference": (["Say 1.", "--target", "1", "--target", "no"], "PreferenceGPT.loss"),
    "similarity": (["the cat", "--target", "a dog"], "distance"),
}


@pytest.mark.parametrize("kind", READ)
def test_step_and_look_take_every_kind_of_model(kind: str, models, tmp_path: Path, monkeypatch, capsys) -> None:
    given, loss = READ[kind]
    monkeypatch.setattr(sys, "stdin", io.StringIO("c\n"))
    capsys.readouterr()
    assert main(["step", models[kind], *given]) == 0
    out, err = told(capsys)
    assert f"{loss}: " in out and "every rule agrees along two random directions" in out and not err
    assert main(["look", models[kind], *given, "--html", str(tmp_path / "look.html")]) == 0
    seen, err = told(capsys)
    assert "gradient flow: the norm of the stream's cotangent" in seen and "the token table, use by use" in seen
    assert ("how surprised it is" in seen) != (kind == "similarity") != ("no surprise" not in seen) and not err
    wanted = "--target" not in given and "language-model" not in kind and kind != "lora"
    assert ("no --target is given" in out) == ("no --target is given" in seen) == wanted


def test_the_loss_of_a_text_is_that_of_the_task(models) -> None:
    def loss(kind: str, text: str, *targets: str) -> float:
        reading = reading_of(ng.open_model(models[kind]), text, targets)
        return float(reading.loss(*reading.batch).item())

    model, tokenizer = (getattr(ng.open_model(models["instruction"]), part)() for part in ("model", "tokenizer"))
    prompt, answer = tokenizer.encode("Say 1.\n\n"), [*tokenizer.encode("1"), tokenizer.end_of_text]
    logp = ng.ops.log_softmax(model(np.array([[*prompt, *answer[:-1]]])).data)[0]
    assert loss("instruction", "Say 1.", "1") == pytest.approx(-np.mean([logp[-2, answer[0]], logp[-1, answer[1]]]))
    model, tokenizer = (getattr(ng.open_model(models["translation"]), part)() for part in ("model", "tokenizer"))
    end, target = tokenizer.end_of_text, tokenizer.encode("le chat").tolist()
    logp = ng.ops.log_softmax(model(tokenizer.encode("the cat")[None], np.array([[end, *target]])).data)[0]
    assert loss("translation", "the cat", "le chat") == pytest.approx(-logp[range(3), [*target, end]].mean(), rel=1e-5)
    vectors = inference.embed(ng.open_model(models["similarity"]).sentence_encoder(), *embedded(models["similarity"]))
    assert loss("similarity", "the cat", "a dog") == pytest.approx(1 - vectors[0] @ vectors[1], abs=1e-5)
    assert loss("lora", "the cat") == pytest.approx(loss("language-model", "the cat"), abs=0.1)


def test_a_preference_begins_at_log_2_where_nothing_was_learned(models) -> None:
    reading = reading_of(ng.open_model(models["preference"]), "Say 1.", ["1", "no"])
    model = reading.loss.__self__
    start = ng.open_model(models["language-model"]).model().state_dict()
    model.load_state_dict({name: x.copy() for name, x in start.items()})
    model.supervised = 0.0
    assert reading.loss(*reading.batch).item() == pytest.approx(np.log(2), abs=1e-5)


def embedded(source: str) -> Any:
    return ng.open_model(source).tokenizer(), ["the cat", "a dog"]


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("language-model", ["the cat", "--target", "x"], "this model takes no target"),
        ("masked-words", ["the cat"], "the text has no [MASK]; write [MASK] there in place of a word"),
        ("masked-words", ["a [MASK]", "--target", "cat dog"], "the text has 1 [MASK]; give as many words; got"),
        ("classification", ["the cat", "--target", "cow"], "target must be one of cat, dog"),
        ("preference", ["Say 1.", "--target", "1"], "--target with the chosen answer and --target with the rejected"),
        ("similarity", ["the cat"], "give --target with another text, which it is compared with; got 0 targets"),
        ("translation", ["the cat", "--target", "a", "--target", "b"], "for what the model says itself; got 2 targets"),
        ("instruction", ["Say 1. " * 9], "with its template; the model takes 16 with the answer"),
    ],
)
def test_a_target_that_a_task_has_no_use_for_is_refused(models, capsys, kind: str, given: list[str], said: str) -> None:
    for command in ("step", "look"):
        capsys.readouterr()
        assert main([command, models[kind], *given]) == 2
        assert said in told(capsys)[1]


def test_plot_shows_the_curves_of_runs_and_what_watch_wrote(run: str, tmp_path: Path, capsys) -> None:
    watched, page = str(tmp_path / "watched"), tmp_path / "plot.html"
    assert main(["train", "--steps", "4", "--watch", "2", "--out", watched, *TINY, "--held-out", "0.01"]) == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "watched" / "watch.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    capsys.readouterr()
    assert main(["plot", run, watched, "--html", str(page)]) == 0
    out, _ = told(capsys)
    assert [line.split()[0] for line in out.splitlines()] == [run, "loss", "rate", "gradient", watched, "loss", "rate",
        "gradient", "wrote"]  # fmt: skip
    assert "update ÷ weight" in page.read_text("utf-8")


def test_plot_shows_the_first_and_the_last_values_of_a_long_run_as_train_does(run: str, tmp_path: Path, capsys) -> None:
    shutil.copytree(run, tmp_path / "run")
    rest = {"items": 1, "items_per_second": 1, "learning_rate": 0.1, "gradient_norm": 1}
    records = [{"step": step, "loss": 8 / step, **rest} for step in range(1, 2001)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["plot", str(tmp_path / "run")]) == 0
    assert " 8 to 0.004\n" in told(capsys)[0]


def test_plot_draws_the_curves_and_what_watch_wrote_as_png(run: str, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    sizes = []
    for name, watching in (("_a $x_$ b", []), ("watched", ["--watch", "1"])):  # no mathematics, and in the legend
        path, picture = str(tmp_path / name), tmp_path / f"{name}.png"
        assert main(["train", "--steps", "4", *watching, "--out", path, *TINY, "--held-out", "0.01"]) == 0
        for _ in range(2):  # an earlier picture is replaced
            assert main(["plot", run, path, "--png", str(picture)]) == 0
        assert told(capsys)[0].endswith(f"wrote {picture}\n")
        content = picture.read_bytes()
        assert content[:4] == b"\x89PNG" and content[12:16] == b"IHDR"
        sizes.append([int.from_bytes(content[at : at + 4], "big") for at in (16, 20)])
    layers = len(RunFolder(tmp_path / "watched").read_watched()[-1]["update"])
    assert sizes == [[1400, 700], [1400, 700 + 150 + 16 * layers + 250]]


def test_a_png_without_matplotlib_or_over_a_text_is_refused(run: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "precious.png").write_text("precious")
    for command in ("plot", "compare"):
        assert main([command, run, "--png", str(tmp_path / "new.png")]) == 2
        assert told(capsys)[1].endswith("a PNG needs matplotlib: pip install matplotlib\n")
        assert main([command, run, "--png", str(tmp_path / "precious.png")]) == 4
        assert "was not written by this command" in told(capsys)[1]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"precious.png": "precious"}


def test_a_watched_run_has_the_same_losses(run: str, tmp_path: Path) -> None:
    path = tmp_path / "watched"
    given = ["--steps", "4", "--watch", "1", "--out", str(path), *TINY, "--held-out", "0.01", "--vocab-size", "270"]
    assert main(["train", *given]) == 0
    records = [RunFolder(folder).read_metrics() for folder in (Path(run), path)]
    losses = [[record["loss"] for record in one if "loss" in record] for one in records]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.parametrize("same", [False, True])
def test_the_activations_are_those_of_the_batch_that_the_step_trained_on(
    tmp_path: Path, monkeypatch, capsys, same: bool
) -> None:
    trained, watched = [], []
    step, activations = Trainer._step, watch.activations

    def noted(self, batch, *rest):
        trained.append([np.asarray(array).tolist() for array in batch])
        return step(self, batch, *rest)

    def seen(model, batch):
        watched.append([np.asarray(array).tolist() for array in batch])
        return activations(model, batch)

    monkeypatch.setattr(Trainer, "_step", noted)
    monkeypatch.setattr(watch, "activations", seen)
    given = ["--steps", "4", "--watch", "1", "--out", str(tmp_path / "run"), *TINY, "--held-out", "0.01"]
    assert main(["train", *given, *(["--same-batch"] if same else [])]) == 0
    assert watched == trained and len(watched) == 4 and (watched[0] == watched[1]) == same


def test_a_watched_run_that_was_killed_goes_on_and_can_be_plotted(tmp_path: Path, capsys) -> None:
    path, page = tmp_path / "run", tmp_path / "plot.html"
    given = ["--steps", "6", "--watch", "1", "--checkpoint-every", "2", "--out", str(path), *TINY, "--held-out", "0.01"]
    assert main(["train", *given]) == 0
    folder = RunFolder.open(path)
    whole = folder.read_watched()
    folder.checkpoint_path(6).unlink()
    folder.watch_path.write_bytes(folder.watch_path.read_bytes()[:-9])
    assert main(["plot", str(path), "--html", str(page)]) == 0 and len(folder.read_watched()) == 5
    assert main(["train", "--resume", str(path), "--watch", "1"]) == 0
    assert folder.read_watched() == whole
    folder.watch_path.write_text('{"step": 1}\n')
    assert main(["plot", str(path)]) == 3
    assert "watch.jsonl, line 1: not a record of train --watch" in told(capsys)[1]


def test_a_text_that_does_not_fit_is_refused_in_one_line(run: str, tmp_path: Path, capsys) -> None:
    for text in ("T", "a long text " * 20):
        assert main(["step", run, text]) == 2
        assert "; this model takes 2 to 17" in told(capsys)[1]
    assert main(["step", run, "The cat", "--op", "99"]) == 2
    assert "there is no call 99; they are numbered from 0 to 14" in told(capsys)[1]
    assert main(["step", run, "The cat", "--script", str(tmp_path / "a.txt")]) == 2
    assert "a script ends in .py" in told(capsys)[1]


# What each kind of run is scored on besides what it held out, and the beginning and end of what is printed.
MORE = {
    "masked-words": ("more.txt", "the cat sees the house.", "hidden pieces right", "1 row of"),
    "translation": ("more.tsv", "the cat 1\tle chat 1\nthe dog 0\tle chien 0", "exact match", "2 pairs of"),
    "classification": ("more.csv", "text,label\nthe cat,cat\na dog,dog\nno cat,cat", "accuracy", "3 texts of"),
    "instruction": ("more.json", '[{"prompt": "Say 1.", "completion": "1"}]', "exact match", "question of"),
    "preference": ("more.jsonl", '{"prompt": "1", "chosen": "1", "rejected": "2"}', "reward accuracy", "1 pair of"),
}


@pytest.mark.parametrize("task", MORE)
def test_a_run_is_scored_on_another_file_of_the_form_that_it_learned_from(task, models, tmp_path, capsys):
    name, content, figure, measured_on = MORE[task]
    (tmp_path / name).write_text(content)
    assert main(["eval", models[task], str(tmp_path / name)]) == 0
    out, _ = told(capsys)
    assert re.fullmatch(rf"scoring .*\n{figure} \d.*\nover .*{measured_on} {tmp_path / name}\n", out)


@pytest.mark.parametrize("task", ["translation", "classification", "instruction", "preference"])
def test_the_score_of_a_run_on_the_file_that_it_learned_from_is_called_flattering(task, models, capsys):
    settings = ng.open_model(models[task]).settings
    (file,) = (table["file"] for table in settings.values() if "file" in table)
    assert main(["eval", models[task], file]) == 0
    assert "this run was trained on it, so the score flatters the model" in told(capsys)[1]


def test_what_a_classifier_held_out_has_the_same_score_as_a_file_of_its_own(models, tmp_path, capsys):
    config = ng.open_model(models["classification"]).settings["text"]
    held_out = LabelledTextConfig(file=config["file"], held_out=config["held_out"]).read()[1]
    (tmp_path / "more.tsv").write_text("text\tlabel\n" + "\n".join("\t".join(pair) for pair in held_out))
    assert main(["eval", models["classification"]]) == main(["eval", models["classification"], f"{tmp_path}/more.tsv"])
    own, other = told(capsys)[0].split("accuracy ")[1:]
    assert own.split("\n")[0] == other.split("\n")[0]


def test_a_file_that_a_run_cannot_be_scored_on_is_refused_with_what_to_give(models, tmp_path, capsys):
    (tmp_path / "more.csv").write_text("text,label\na fox,fox\n")
    (tmp_path / "big.csv").write_text("text,label\na cat,Cat\n")
    (tmp_path / "columns.csv").write_text("review,stars\na cat,cat\n")
    more = str(tmp_path / "more.csv")
    for kind, files, said in (
        (
            "classification",
            [more],
            "more.csv: 1 text with the label 'fox', which the model does not know: it knows 'cat', 'dog'; leave",
        ),
        (
            "classification",
            [str(tmp_path / "big.csv")],
            "knows 'cat', 'dog'; leave these out, or write 'cat' for 'Cat'",
        ),
        (
            "classification",
            [str(tmp_path / "columns.csv")],
            "has no column 'text'; the first line must name the columns; it has 'review', 'stars'; rename its columns "
            "to text and label",
        ),
        ("classification", [more, more], "is a second file; this task is scored on one at a time"),
        ("translation", [more], "pairs come from a .tsv, .po or .mo; for two files of lines, give the target as well"),
        ("masked-words", [more], "more.csv#COLUMN is the text of one column, by its name in line 1, and - < "),
        ("instruction", [more], "more.csv#COLUMN is the text of one column, by its name in line 1, and - < "),
        ("pretrained classification", [more], "of another model it scores a run, on what it held out or on a file"),
        ("classification", [more, "--top", "3"], "on a file, without choices, stride and top"),
    ):
        assert main(["eval", models[kind], *files]) in (2, 3)
        assert said in told(capsys)[1]


def test_a_run_whose_data_were_moved_says_that_a_score_needs_them(models, tmp_path, capsys):
    shutil.copytree(models["classification"], tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text("utf-8").replace("texts.csv", "moved.csv"), "utf-8")
    assert main(["eval", str(tmp_path / "run")]) == 4
    said = "moved.csv: no such file; check the path; a score needs the data that the run learned from: bring them back"
    assert said in " ".join(told(capsys)[1].split())


@pytest.mark.parametrize(
    ("task", "others", "remedy"),
    [
        ("instruction", [], "or give another text to score"),
        ("instruction", ["more.json"], "which a score needs"),
        ("classification", [], "which a score needs"),
    ],
)
def test_a_run_whose_data_changed_is_told_to_give_another_text_only_where_none_is_given_and_it_can_read_one(
    task, others, remedy, models, tmp_path, capsys
):
    shutil.copytree(models[task], tmp_path / "run")
    (tmp_path / "run" / "text.sha256").write_text("0" * 64)
    (tmp_path / "more.json").write_text(MORE["instruction"][1])
    assert main(["eval", str(tmp_path / "run"), *(str(tmp_path / name) for name in others)]) == 2
    assert f"bring back the data that it learned from, {remedy}\n" in told(capsys)[1]


@pytest.mark.parametrize(
    ("kind", "name", "forms"),
    [
        ("instruction", "a.csv", "a run of instruction is scored on one .json or .jsonl; for another score, on text, "),
        ("preference", "a.tsv", "a run of preference is scored on one .json or .jsonl; for another score, on text, "),
        ("lora", "a.csv", "a.csv holds rows: a.csv#COLUMN is the text"),
        ("classification", "a.json", "labelled texts come from a .csv, .tsv or .jsonl, or a folder"),
        ("translation", "a.json", "pairs come from a .tsv, .po or .mo; for two files of lines"),
    ],
)
def test_rows_of_another_form_than_was_learned_are_answered_with_that_form(
    kind, name, forms, models, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("prompt,completion\nSay 1.,1\n")
    assert main(["eval", models[kind], name]) in (2, 3)
    err = told(capsys)[1]
    assert forms in err and (not name.endswith("sv") or f"{name}#COLUMN is the text of one column" in err)


def test_rows_beside_a_text_are_refused_as_rows(models, tmp_path, capsys):
    (tmp_path / "plain.txt").write_text("the cat sat on the mat. " * 9)
    (tmp_path / "more.json").write_text(MORE["instruction"][1])
    assert main(["eval", models["instruction"], str(tmp_path / "plain.txt"), str(tmp_path / "more.json")]) == 2
    assert "more.json holds rows: " in told(capsys)[1]


def test_a_run_of_instructions_is_scored_as_a_language_model_on_a_text(models, tmp_path, capsys):
    (tmp_path / "plain.txt").write_text("the cat sat on the mat. " * 9)
    assert main(["eval", models["instruction"], str(tmp_path / "plain.txt")]) == 0
    assert "bits per byte" in told(capsys)[0]
