"""Runs side by side: what differs, what they reached, and pictures of their losses."""

import dataclasses
import math
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

from nanograd_llm.cli import main
from nanograd_llm.errors import BadFileError
from nanograd_llm.files.png import smoothed
from nanograd_llm.runs import RunFolder
from nanograd_llm.runs.compare import differences, history, loss_picture, remarks, sparkline
from nanograd_llm.runs.prepare import prepare_run
from nanograd_llm.tasks.task import SAME_ROWS

SIZES = {"n_layer": 1, "n_head": 2, "context_length": 8, "tokenizer": "bytes", "workers": 1, "steps": 6}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("the cat sat on the mat. " * 80, encoding="utf-8")
    for n_embd in (8, 16):
        options = {**SIZES, "file": str(folder / "text.txt"), "n_embd": n_embd, "evaluate_every": 3}
        list(prepare_run(folder / f"wide-{n_embd}<&>", options=options).train())
    return sorted(folder.glob("wide-*"), reverse=True)  # wide-8 first


def test_the_history_of_a_run_is_that_of_its_metrics(runs):
    found, records = history(runs[0]), RunFolder.open(runs[0]).read_metrics()
    steps = [record for record in records if "loss" in record]
    assert found.steps == 6 and found.losses.tolist() == [record["loss"] for record in steps]
    assert found.items.tolist() == [record["items"] for record in steps]
    each = np.diff(found.items, prepend=0) / [record["items_per_second"] for record in steps]
    assert np.allclose(np.diff(found.seconds, prepend=0), each)
    scores = [record.get(SAME_ROWS, record["held_out_loss"]) for record in records if "held_out_loss" in record]
    assert any(SAME_ROWS in record for record in records)  # the last score is on more of what is held out
    assert found.held_out[:, 2].tolist() == scores and found.held_out[:, 0].tolist() == [found.items[2], found.items[5]]
    assert re.fullmatch(r"\d\.\d{3} bits per byte", found.figure)


def test_only_settings_that_differ_are_listed(runs):
    assert differences([history(path) for path in runs]) == {"model.n_embd": ["8", "16"]}
    assert differences([history(runs[0])] * 2) == {}
    of_lines = [dataclasses.replace(history(runs[0]), settings={"a.template": text}) for text in ("x\n", "y")]
    assert differences(of_lines) == {"a.template": ["x\\n", "y"]}


def test_a_setting_that_two_tables_have_is_shown_with_its_table(runs, monkeypatch, capsys):
    tables = {"text.vocab_size": ["300", "301"], "model.vocab_size": ["300", "290"], "train.steps": ["1", "2"]}
    monkeypatch.setattr("nanograd_llm.runs.compare.differences", lambda histories: tables)
    monkeypatch.setattr("nanograd_llm.cli.compare.ABREAST", 1)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["compare", *map(str, runs)]) == 0
    assert "text.vocab_size=301, model.vocab_size=290, steps=2\n" in capsys.readouterr().out


def test_the_picture_is_xml_with_a_curve_for_each_run_and_axis_and_a_dot_for_each_score(runs):
    picture = ElementTree.fromstring(loss_picture([history(path) for path in runs]))
    tags = [element.tag.rpartition("}")[2] for element in picture.iter()]
    assert tags.count("polyline") == 4 and tags.count("circle") == 8
    text = " ".join(picture.itertext())
    assert "tokens trained on" in text and runs[0].name in text and str(runs[0]) not in text
    assert "dot: loss on held-out data" in text and "different tasks" not in text


def test_curves_of_many_runs_look_different_and_other_tokenizers_are_noted(runs):
    one = history(runs[0])
    other = dataclasses.replace(one, settings={**one.settings, "text.tokenizer": "characters"})
    picture = ElementTree.fromstring(loss_picture([one] * 13 + [other]))
    lines = [element for element in picture.iter() if element.tag.endswith("}line")]
    assert len({(line.get("stroke"), line.get("stroke-dasharray")) for line in lines}) == len(lines) == 14
    assert "different tasks or tokenizers" in " ".join(picture.itertext())


def test_a_point_of_a_curve_lies_where_its_numbers_say(runs):
    one = history(runs[0])
    picture = ElementTree.fromstring(loss_picture([one]))
    curve = next(element for element in picture.iter() if element.tag.endswith("polyline"))
    x, y = np.array([point.split(",") for point in curve.get("points").split()], float).T
    assert np.allclose(np.diff(x) / np.diff(one.items), np.ptp(x) / np.ptp(one.items), atol=0.05)
    assert np.array_equal(np.argsort(-y), np.argsort(one.losses))  # up is more


def test_every_run_folder_holds_its_picture(runs):
    for path in runs:
        assert (path / "loss.svg").read_text("utf-8") == loss_picture([history(path)])


def test_a_run_without_a_step_has_an_empty_picture(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_config({"run": {"task": "language-model"}})
    found = history(folder.path)
    assert found.steps == 0 and found.figure == ""
    ElementTree.fromstring(loss_picture([found]))
    assert sparkline(found.losses) == ""


def test_losses_that_are_not_finite_leave_a_gap(runs):
    losses = np.array([2.0, np.nan, 1.0, np.inf])
    assert sparkline(losses) == "█▁"
    assert np.array_equal(smoothed(np.arange(329.0), 200), [*np.arange(0.5, 327, 2), 328])  # two steps each
    assert len(smoothed(np.arange(1000.0), 10)) == 10 and smoothed(np.arange(1000.0), 10).mean() == 499.5


@pytest.mark.parametrize("numbers", ["", ', "items": 3', ', "items": 3, "items_per_second": 0'])
def test_a_record_without_its_numbers_is_refused(tmp_path, numbers):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_config({})
    folder.metrics_path.write_text(f'{{"step": 1, "loss": 2{numbers}}}\n')
    with pytest.raises(BadFileError, match="metrics.jsonl: step 1 has no usable"):
        history(folder.path)


def test_compare_prints_a_table_and_writes_the_picture(runs, tmp_path, capsys):
    assert main(["compare", *map(str, runs), "--svg", str(tmp_path / "losses.svg")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"model\.n_embd +│ 8 +│ 16 ", out) and out.count("bits per byte") == 2
    assert (tmp_path / "losses.svg").read_text("utf-8").startswith("<svg")


def test_more_than_three_runs_are_rows_with_short_names(runs, capsys):
    assert main(["compare", *map(str, runs * 2)]) == 0
    out = capsys.readouterr().out
    assert str(runs[0].parent) not in out and re.search(r"│ +wide-16<&> +│", out)
    assert "trained on" in out and "tokens" in out and re.search(r"^wide-8<&> +n_embd=8$", out, re.MULTILINE)


def test_scores_on_other_data_or_other_shares_of_it_are_remarked_on(runs):
    one = history(runs[0])
    assert re.fullmatch(r"[0-9a-f]{64}", one.text) and 0 < one.share <= 1
    assert remarks([one, history(runs[1])]) == []
    assert "different data" in remarks([one, dataclasses.replace(one, text="f" * 64)])[0]
    assert (
        "different data" in remarks([one, dataclasses.replace(one, settings={**one.settings, "text.held_out": 0.5})])[0]
    )
    shared = [dataclasses.replace(one, path=path, share=share) for path, share in (("x/a", 1.0), ("x/b", 0.254))]
    assert "on different shares of the held-out data: a 100 %, b 25 %." in remarks(shared)[0]
    assert remarks([dataclasses.replace(one, share=share) for share in (0.2501, 0.2499, math.nan)]) == []


def test_where_columns_have_no_room_runs_are_rows_and_nothing_is_cut(runs, tmp_path, capsys, monkeypatch):
    for number, path in enumerate(runs):
        shutil.copytree(path, copy := tmp_path / f"a-run-with-a-long-name-{number}")
        config = copy / "config.toml"
        name = f"/a/long/path/of/files/{number}/text.txt"
        config.write_text(re.sub('file = ".*"', f'file = "{name}"', config.read_text("utf-8")), "utf-8")
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["compare", *map(str, sorted(tmp_path.glob("a-*")))]) == 0
    out = capsys.readouterr().out
    assert "…" not in out and all(f"file=/a/long/path/of/files/{number}/text.txt" in out for number in (0, 1))


@pytest.mark.parametrize("name", ["precious.txt", "x.png", "drawing.svg"])
def test_compare_writes_over_no_file_but_its_own_picture(name, runs, tmp_path, capsys):
    (tmp_path / name).write_text("precious")
    assert main(["compare", *map(str, runs), "--svg", str(tmp_path / name)]) == 4
    assert (tmp_path / name).read_text() == "precious" and name in capsys.readouterr().err
    for _ in range(2):
        assert main(["compare", *map(str, runs), "--svg", str(tmp_path / "own.svg")]) == 0


@pytest.mark.parametrize("width", [42, 30])
def test_compare_on_a_narrow_terminal_shows_lines_and_breaks_no_word(width, runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["compare", *map(str, runs)]) == 0
    out = capsys.readouterr().out.splitlines()
    for path, n_embd in zip(runs, (8, 16)):
        at = out.index(path.name)
        assert f"  model.n_embd: {n_embd}" in out[at:] and "  steps: 6" in out[at:]


@pytest.mark.parametrize("command", ["compare", "plot"])
def test_metrics_that_were_cut_or_deleted_are_remarked_on(command, runs, tmp_path, capsys):
    cut = shutil.copytree(runs[0], tmp_path / "cut")
    (cut / "metrics.jsonl").unlink()
    assert main([command, str(runs[0])]) == 0
    assert "deleted" not in capsys.readouterr().out
    assert main([command, str(cut)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "metrics.jsonl: was cut or deleted: it ends at step 0, a checkpoint is of step 6" in out


def test_compare_of_what_is_no_run_is_one_line(tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 4
    assert "is not a run of nanograd_llm" in capsys.readouterr().err
