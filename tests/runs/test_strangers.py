"""A run folder of a stranger, or of a very long run, takes little time and memory; its errors are one short line."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc

import pytest

from nanograd_llm.cli import MOST, main
from nanograd_llm.errors import BadFileError
from nanograd_llm.runs import RunFolder


@pytest.fixture
def folder(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.write_config({"run": {"task": "language-model"}})
    run.close()
    return run


def test_the_last_step_and_score_are_found_from_the_end(folder):
    for step in range(1, 8):
        folder.append_metrics({"step": step, "loss": step / 2})
        if step in (3, 6):
            folder.append_metrics({"step": step, "bits_per_byte": step * 1.0})
    folder.metrics_path.open("a").write('{"step": 8, "lo')
    assert folder.last_metrics() == ({"step": 7, "loss": 3.5}, {"step": 6, "bits_per_byte": 6.0})
    assert folder.last_metrics(5) == ({"step": 5, "loss": 2.5}, {"step": 3, "bits_per_byte": 3.0})
    assert folder.last_metrics(0) == ({}, {})
    folder.metrics_path.write_text("")
    assert folder.last_metrics() == ({}, {})


@pytest.mark.parametrize("size", [1, 7, 100, 10**6])
def test_blocks_of_any_size_give_the_same_lines(folder, monkeypatch, size):
    for step in range(30):
        folder.append_metrics({"step": step, "loss": 0.5} if step % 7 else {"step": step, "bits_per_byte": 1.5})
    monkeypatch.setattr("nanograd_llm.runs.folder.MOST_LINE", max(size, 60))
    assert folder.last_metrics() == ({"step": 29, "loss": 0.5}, {"step": 28, "bits_per_byte": 1.5})


def test_of_metrics_of_a_million_lines_little_is_read(folder, capsys):
    line = json.dumps({"step": 1, "items": 512, "loss": 3.25, "learning_rate": 1e-3}) + "\n"
    with folder.metrics_path.open("w") as file:
        file.write(json.dumps({"step": 0, "bits_per_byte": 2.5}) + "\n")
        for _ in range(100):
            file.write(line * 10_000)
    tracemalloc.start()
    try:
        steps, score = folder.last_metrics()
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert steps["loss"] == 3.25 and score["bits_per_byte"] == 2.5
    assert main(["info", str(folder.path.parent)]) == 0
    assert "no checkpoint; 2.500 bits per byte at step 0" in capsys.readouterr().out


def test_metrics_of_gigabytes_of_nothing_are_refused_before_they_are_read(folder):
    with folder.metrics_path.open("wb") as file:
        file.truncate(3 * 2**30)
    tracemalloc.start()
    try:
        with pytest.raises(BadFileError, match="more than 1,073,741,824 bytes"):
            RunFolder.open(folder.path).read_metrics()
        with pytest.raises(BadFileError, match="a line of more than 1,048,576 bytes"):
            folder.last_metrics()
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("left", [bytes(40), b"\0\0--- st", b"a text without a head\n"])
def test_samples_that_a_power_cut_damaged_do_not_stop_a_run(folder, left):
    folder.samples_path.write_bytes(left + b"\n--- step 3\none\n\n")
    folder.append_sample(4, "two")
    folder.forget_after(3)
    assert folder.samples_path.read_text() == "--- step 3\none\n\n"


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "x" * 5000],
        ["train", "y" * 5000 + ".txt"],
        ["z" * 5000],
        ["train", "a word " * 700],
        ["train", "a.txt", "--tokenizer", "q" * 400],
        ["train", *(f"{'folder/' * 30}text-{i}.txt" for i in range(9))],
    ],
)
def test_an_error_is_one_line_of_limited_length_whatever_arrived(words, capsys):
    assert main(words) in (2, 4)
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line.removeprefix("nanograd-llm: ")) <= MOST == 300


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "gpt2-xl", "x"],
        ["embed", "sentence-transformers/all-MiniLM-L6-v2", "x"],
        ["train", "--init", "MiniLM"],
    ],
)
def test_the_advice_on_a_model_that_is_not_here_is_shown_whole(words, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", "/home/someone/.cache/huggingface/hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 4
    assert "…" not in (err := capsys.readouterr().err) and "or " in err


def test_a_long_path_in_an_error_keeps_its_beginning_its_file_and_what_is_wrong(capsys):
    assert main(["info", f"/models/{'deep/' * 200}my-model.safetensors"]) == 4
    kept = r"nanograd-llm: /models/deep/deep.*…/my-model\.safetensors: .*no such file or folder; check the path\n"
    assert re.fullmatch(kept, capsys.readouterr().err)


def test_an_error_with_two_paths_of_usual_length_keeps_both_file_names(capsys):
    first, second = (f"/home/someone/{'a-folder-of-texts/' * 9}{name}.svg" for name in "pq")
    assert main(["compare", first, second]) == 4
    assert "/p.svg" in (err := capsys.readouterr().err) and len(err) <= 315


def test_a_run_whose_metrics_a_power_cut_left_as_nuls_can_be_read(folder):
    folder.append_metrics({"step": 1, "loss": 2.0})
    with folder.metrics_path.open("ab") as file:
        file.write(bytes(300) + b'1.0}\n{"step": 2, "loss": 1.5}\n' + bytes(100))
    assert [record["step"] for record in folder.read_metrics()] == [1, 2]
    assert folder.last_metrics()[0]["step"] == 2
