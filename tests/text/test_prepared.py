"""Prepared folders: token files in nanoGPT's form, read window by window, and split by text."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import signal
import sys
import tracemalloc

import numpy as np
import pytest

from nanograd_llm.cli import main
from nanograd_llm.errors import BadFileError, ConfigError, NanogradError, StorageError
from nanograd_llm.models.gpt import GPTConfig
from nanograd_llm.runs.prepare import prepare_run, resume_run
from nanograd_llm.tasks import LanguageModelling, TextConfig
from nanograd_llm.text import (
    BPETokenizer,
    ByteTokenizer,
    TokenFiles,
    epoch_windows,
    load_tokenizer,
    mixed_windows,
    open_prepared,
    prepare,
    random_windows,
    sliding_windows,
)
from nanograd_llm.text.prepared import prepared_hash
from nanograd_llm.text.sources import PARTS, documents, is_prepared
from nanograd_llm.training import TrainConfig

SIZES = GPTConfig(vocab_size=1, context_length=16, n_layer=1, n_head=2, n_embd=16)
SHORT = TrainConfig(steps=1, batch_size=3, workers=1)
TEXTS = [f"text {i}: " + "the cat sat on the mat. " * 5 for i in range(40)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return str(path)


@pytest.fixture
def prepared(tmp_path, source):
    prepare([source], tmp_path / "data", "bytes")
    return tmp_path / "data"


def texts_in(row, end=256):
    """The texts that a row of ids holds."""
    cuts = np.flatnonzero(row == end)
    return [ByteTokenizer().decode(part[part != end]) for part in np.split(row, cuts + 1) if len(part)]


def test_every_text_is_in_one_of_the_two_files_and_ends_with_end_of_text(prepared):
    train, val = open_prepared([prepared], 257)
    learned, held_out = texts_in(train[:]), texts_in(val[:])
    assert sorted(learned + held_out) == sorted(TEXTS)
    assert len(held_out) == 4 and [text for text in TEXTS if text in learned] == learned
    assert int(train[-1:][0]) == int(val[-1:][0]) == 256


def test_which_texts_are_held_out_follows_from_the_seed(tmp_path, source, prepared):
    for name, seed in (("same", 0), ("other", 1)):
        prepare([source], tmp_path / name, "bytes", seed=seed)
    assert prepared_hash(tmp_path / "same") == prepared_hash(prepared) != prepared_hash(tmp_path / "other")


def test_a_long_file_is_split_between_lines_and_nothing_is_lost(tmp_path):
    (tmp_path / "long.txt").write_text("".join(f"line {i}\n" for i in range(20_000)))
    found = prepare([str(tmp_path / "long.txt")], tmp_path / "data", "bytes", held_out=0.2)
    train, val = open_prepared([tmp_path / "data"], 257)
    parts = texts_in(train[:]) + texts_in(val[:])
    assert all(part.endswith("\n") for part in parts)
    assert sorted("".join(parts).split("\n"))[1:] == sorted(f"line {i}" for i in range(20_000))
    assert found["val"]["texts"] == 2 and found["train"]["texts"] == 9
    assert found["train"]["bytes"] + found["val"]["bytes"] == (tmp_path / "long.txt").stat().st_size


def test_the_files_are_those_that_numpy_reads_and_their_description_is_true(prepared):
    row = np.fromfile(prepared / "val.bin", np.uint16)
    assert np.array_equal(row, open_prepared([prepared], 257)[1][:])
    assert load_tokenizer(prepared / "nanograd_tokenizer.json").has_same_ids(ByteTokenizer())


def test_a_vocabulary_beyond_16_bits_is_written_in_32(tmp_path, source):
    class Wide(ByteTokenizer):
        def encode(self, text, *, allow_special=False):
            return super().encode(text) + np.int32(2**17)

    wide = Wide()
    wide._table += [b""] * 2**18
    assert prepare([source], tmp_path / "wide", wide)["prepared"]["dtype"] == "uint32"
    row = open_prepared([tmp_path / "wide"], 2**19)[0][:100]
    assert row.min() >= 2**17 and row.dtype == np.int32


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_a_tokenizer_is_made_of_all_texts(tmp_path, source, kind):
    prepare([source], tmp_path / "data", kind, vocab_size=280 if kind == "bpe" else None)
    tokenizer = load_tokenizer(tmp_path / "data" / "nanograd_tokenizer.json")
    train, val = open_prepared([tmp_path / "data"], tokenizer.vocab_size)
    assert tokenizer.decode(train[:20]) in TEXTS[0] + TEXTS[1]
    if kind == "bpe":
        assert tokenizer.has_same_ids(BPETokenizer.train(TEXTS, 280))


def test_a_tokenizer_that_is_none_of_the_kinds_is_refused(tmp_path, source):
    with pytest.raises(ConfigError, match="tokenizer must be one of bpe, bytes, characters; got 'bpee'; did you mean"):
        prepare([source], tmp_path / "data", "bpee")
    with pytest.raises(ConfigError, match="vocab_size applies to the tokenizer bpe, not to bytes"):
        prepare([source], tmp_path / "data", "bytes", vocab_size=300)
    assert not (tmp_path / "data").exists()


def test_no_source_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="prepare needs at least one source; give files or folders"):
        prepare([], tmp_path / "out")


def test_several_sources_and_standard_input_are_prepared_together(tmp_path, source, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a piped text\n" * 300)))
    prepare([source, "-"], tmp_path / "data", "bpe", vocab_size=300)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        *(f"{part}.bin" for part in PARTS),
        "nanograd_tokenizer.json",
        "prepared.toml",
    }
    tokenizer = load_tokenizer(tmp_path / "data" / "nanograd_tokenizer.json")
    train, _ = open_prepared([tmp_path / "data"], tokenizer.vocab_size)
    text = tokenizer.decode(train[:])
    assert "a piped text" in text and "the cat sat" in text


def test_memory_does_not_grow_with_the_text(tmp_path):
    peaks = []
    for megabytes in (6, 18):
        path = tmp_path / f"{megabytes}.txt"
        with path.open("w") as file:
            for i in range(megabytes * 8):
                file.write(f"line {i} of words and words\n" * 5000)
        tracemalloc.start()
        prepare([str(path)], tmp_path / str(megabytes), "bytes")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"held_out": 1e-4}, "held_out=0.0001 of 40 texts leaves none to score; give a share of at least 0.027, or"),
        ({"held_out": 0.0}, "held_out must be a finite number"),
    ],
)
def test_a_share_that_leaves_nothing_is_refused_and_nothing_is_left(tmp_path, source, settings, said):
    with pytest.raises(ConfigError, match=said):
        prepare([source], tmp_path / "data", "bytes", **settings)
    assert not (tmp_path / "data").exists() and len(list(tmp_path.iterdir())) == 1


def test_the_share_that_is_named_where_none_is_left_to_score_leaves_one(tmp_path):
    for count in range(2, 10):
        (tmp_path / f"{count}.txt").write_text("the cat sat on the mat\n" * 20 * count)
        with pytest.raises(ConfigError, match="leaves none to score; give a share of at least") as refused:
            prepare([str(tmp_path / f"{count}.txt")], tmp_path / f"data-{count}", "bytes", held_out=0.002)
        share = float(re.findall(r"at least ([\d.]+)", str(refused.value))[0])
        made = prepare([str(tmp_path / f"{count}.txt")], tmp_path / f"data-{count}", "bytes", held_out=share)
        assert made["val"]["texts"] == 1


def test_of_one_text_no_share_can_be_held_out_and_more_are_asked_for(tmp_path):
    (tmp_path / "one.txt").write_text("the cat sat\n")
    with pytest.raises(ConfigError, match=r"of 1 text leaves none to .*; give more texts, or a longer one$"):
        prepare([str(tmp_path / "one.txt")], tmp_path / "data", "bytes")


def test_a_source_that_is_no_text_leaves_nothing(tmp_path, source):
    (tmp_path / "bad.txt").write_bytes(b"fine\n" * 10 + b"\xff\n")
    with pytest.raises(BadFileError, match="bad.txt is not UTF-8: byte 0xff at offset 50"):
        prepare([source, str(tmp_path / "bad.txt")], tmp_path / "data", "bytes")
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_killed_prepare_left_is_removed_by_the_next_one_also_if_that_fails(tmp_path, source):
    before = sorted(tmp_path.iterdir())
    for others, left in ((["no such file"], []), ([source], [tmp_path / "data"])):
        child = os.fork()
        if child == 0:
            prepare([source], tmp_path / "data", "bytes", report=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        os.waitpid(child, 0)
        assert [*tmp_path.glob(".*.tmp/train.bin")]
        with contextlib.nullcontext() if left else pytest.raises(StorageError):
            prepare(others, tmp_path / "data", "bytes")
        assert sorted(tmp_path.iterdir()) == sorted(before + left)


@pytest.mark.parametrize("limit", [10, 3000])
def test_where_the_disk_is_full_one_error_says_so_and_nothing_is_left(tmp_path, source, limit):
    resource = pytest.importorskip("resource")  # a limit for files stands for a full disk
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(StorageError, match="cannot write: File too large; nothing was written; free some space"):
            prepare([source], tmp_path / "data", "bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.iterdir()) == before


def test_prepared_files_are_not_written_over(prepared, source):
    with pytest.raises(StorageError, match="already holds a prepared text"):
        prepare([source], prepared, "bytes")


def test_a_folder_that_holds_anything_is_refused_before_a_text_is_read(tmp_path, source, prepared):
    with pytest.raises(StorageError, match=r"is not empty \(it has data\); choose another folder"):
        prepare(["no such file"], tmp_path, "bytes")
    (tmp_path / "empty").mkdir()
    prepare([source], tmp_path / "empty", "bytes")
    assert is_prepared(tmp_path / "empty")


def test_texts_beside_prepared_files_are_not_read_and_a_warning_names_them(prepared):
    (prepared / "notes.md").write_text("a text")
    with pytest.warns(UserWarning, match=f"train.bin and val.bin are taken, and not 1 other file.*{prepared}/notes.md"):
        open_prepared([prepared], 257)


def test_windows_of_files_are_those_of_their_ids(prepared):
    train, _ = open_prepared([prepared], 257)
    for take in (random_windows, epoch_windows):
        for step in range(3):
            settings = dict(context_length=8, batch_size=5, seed=1, step=step)
            assert np.array_equal(take(train, **settings), take(train[:], **settings))
    rows = np.array([0, 7, 100])
    settings = dict(context_length=8, stride=4, count_once=True, rows=rows)
    assert np.array_equal(sliding_windows(train, **settings), sliding_windows(train[:], **settings))


def test_several_files_are_one_row(tmp_path):
    for name, ids, dtype in (("a", [1, 2, 3], "<u2"), ("b", [4, 5], "<u4")):
        np.array(ids, dtype).tofile(tmp_path / name)
    row = TokenFiles([(tmp_path / "a", "uint16"), (tmp_path / "b", "uint32")], 6)
    for first in range(6):
        for last in range(7):
            assert row[first:last].tolist() == [1, 2, 3, 4, 5][first:last]
    assert len(row) == 5


def damaged_files():
    return {
        "is empty; expected ids of 2 bytes": b"",
        "has 5 bytes, the last of which is half an id": b"12345",
        "id 65535 at place 2 is outside the vocabulary of 257": b"\0\0\0\0\xff\xff",
    }


@pytest.mark.parametrize(("said", "content"), damaged_files().items())
def test_a_token_file_that_cannot_be_is_refused(tmp_path, said, content):
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(BadFileError, match=said):
        TokenFiles([(tmp_path / "train.bin", "uint16")], 257)[:]


def test_what_is_no_regular_file_is_refused(tmp_path):
    for path in (tmp_path, "/dev/zero", tmp_path / "missing"):
        with pytest.raises(StorageError, match="not a regular file|no such file"):
            TokenFiles([(path, "uint16")], 257)


def test_a_file_that_is_cut_short_while_it_is_used_is_an_error_and_ends_no_process(prepared):
    train, _ = open_prepared([prepared], 257)
    with (prepared / "train.bin").open("r+b") as file:
        file.truncate(100)
    assert len(train[:50]) == 50
    with pytest.raises(BadFileError, match="train.bin: was cut short since it was opened"):
        random_windows(train, context_length=8, batch_size=5, seed=1, step=0)


def test_an_epoch_has_every_window_once_and_each_has_another_order():
    ids = np.arange(103)
    for batch_size in (1, 4, 7):
        starts = np.concatenate(
            [
                epoch_windows(ids, context_length=5, batch_size=batch_size, seed=3, step=step)[0][:, 0]
                for step in range(40 // batch_size + 1)
            ]
        )
        first, second = starts[:20], starts[20:40]
        for epoch in (first, second):
            assert len({*epoch.tolist()}) == 20 and set(np.diff(sorted(epoch))) == {5}
        assert first.tolist() != second.tolist() and first.tolist() != sorted(first)


def test_windows_are_drawn_by_the_weights_of_their_sources():
    zeros, ones = np.zeros(50, int), np.ones(30, int)
    drawn = [
        mixed_windows([zeros, ones], [3, 1], context_length=4, batch_size=50, seed=0, step=step) for step in range(40)
    ]
    assert 0.22 < np.mean([tokens for tokens, _ in drawn]) < 0.28
    again = mixed_windows([zeros, ones], [3, 1], context_length=4, batch_size=50, seed=0, step=7)
    assert np.array_equal(again, drawn[7])


def test_a_run_on_a_prepared_folder_is_resumed_bit_for_bit_and_refused_where_a_bit_has_changed(tmp_path, prepared):
    options = {"data": [f"{prepared}:2", f"{prepared}:1"], "steps": 6, "n_layer": 1, "n_head": 2, "n_embd": 16}
    for name, stop in (("whole", 6), ("parts", 3)):
        run = prepare_run(tmp_path / name, options={**options, "dropout": 0.1, "workers": 1})
        events = run.train()
        while run.trainer.steps_done < stop:
            next(events)
        list(events) if name == "whole" else events.close()
    list(resume_run(tmp_path / "parts").train())
    last = [(tmp_path / name / "checkpoints" / "step-00000006.safetensors").read_bytes() for name in ("whole", "parts")]
    assert last[0] == last[1]
    content = bytearray((prepared / "train.bin").read_bytes())
    content[100] ^= 1
    (prepared / "train.bin").write_bytes(content)
    with pytest.raises(BadFileError, match="train.bin: is not what prepared.toml says"):
        resume_run(tmp_path / "parts", options={"steps": 9})
    (prepared / "prepared.toml").unlink()
    with pytest.raises(ConfigError, match="its data have changed since the run began"):
        resume_run(tmp_path / "parts", options={"steps": 9})


def nanogpt_folder(folder, characters=None):
    """What nanoGPT's prepare.py writes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part in PARTS:
        rng.integers(len(characters or range(50257)), size=300).astype(np.uint16).tofile(folder / f"{part}.bin")
    if characters:
        meta = {
            "vocab_size": len(characters),
            "itos": dict(enumerate(characters)),
            "stoi": {character: i for i, character in enumerate(characters)},
        }
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def test_a_folder_of_nanogpt_is_trained_on_as_it_is(tmp_path):
    letters = LanguageModelling(TextConfig(str(nanogpt_folder(tmp_path / "char", "abcde"))), SIZES, SHORT)
    assert letters.model.config.vocab_size == 5 and letters.batch(0)[0].shape == (3, 16)
    words = LanguageModelling(TextConfig(str(nanogpt_folder(tmp_path / "gpt2"))), SIZES, SHORT)
    assert words.model.config.vocab_size == 50257
    assert is_prepared(tmp_path / "char") and letters.describe()["held out"] == "300 tokens"


@pytest.mark.parametrize("kept", [{"train.bin", "prepared.toml"}, {"val.bin"}, {"prepared.toml"}])
def test_a_prepared_folder_that_lacks_a_token_file_is_refused_not_learned_as_text(kept, tmp_path):
    folder = nanogpt_folder(tmp_path / "char", "abcde")
    (folder / "prepared.toml").write_text("[prepared]\n")
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    missing = " and ".join(name for name in ("train.bin", "val.bin") if name not in kept)
    for read in (lambda: TextConfig(str(folder)).is_prepared, lambda: [*documents(str(folder))]):
        with pytest.raises(BadFileError, match=f"is a prepared folder without {missing}; prepare it again"):
            read()


def test_code_in_a_meta_pkl_does_not_run(tmp_path):
    folder = nanogpt_folder(tmp_path / "char", "abcde")

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (folder / "meta.pkl").write_bytes(pickle.dumps({"itos": Bomb(), "stoi": {}}))
    with pytest.raises(BadFileError, match="meta.pkl"):
        LanguageModelling(TextConfig(str(folder)), SIZES, SHORT)
    assert not (tmp_path / "ran").exists()


def test_sources_that_do_not_fit_together_are_refused(tmp_path, prepared, source):
    letters = nanogpt_folder(tmp_path / "char", "abcde")
    for data, said in [
        ([str(prepared), source], "texts.jsonl is not prepared, but other sources are"),
        ([str(prepared), str(letters)], r"char was prepared with CharTokenizer\(vocab_size=5\), not the tokenizer of"),
        ([f"{prepared}:1", str(prepared)], "give each source a weight above 0, or none of them one"),
        ([f"{prepared}:0", f"{prepared}:1"], "give each source a weight above 0"),
        ([], "data must be one or more strings"),
    ]:
        with pytest.raises(NanogradError, match=said):
            LanguageModelling(TextConfig(data=data), SIZES, SHORT)
    for option in ("tokenizer", "vocab_size", "held_out"):
        value = {"tokenizer": "bytes", "vocab_size": 300, "held_out": 0.2}[option]
        with pytest.raises(ConfigError, match=f"own tokenizer and held-out part; leave {option} out"):
            prepare_run(tmp_path / "run", options={"file": str(prepared), option: value, "steps": 1})
    with pytest.raises(ConfigError, match="takes every window once, whatever the weights of data; leave one"):
        TextConfig(data=["a:1", "b:2"], epochs=True)
    with pytest.raises(ConfigError, match="file and data are both given"):
        TextConfig("a", data=["a:1"])


def test_another_tokenizer_of_the_same_size_is_called_that_with_a_remedy_that_works(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # short paths: an error has at most 300 characters

    def prepare(name, out, *how):
        return main(["prepare", f"{name}.txt", "--out", out, "--held-out", "0.3", *how])

    for name, text in (("a", "the cat sat\n"), ("b", "a dog ran\n")):
        (tmp_path / f"{name}.txt").write_text(text * 200)
        assert prepare(name, name, "--vocab-size", "260") == 0
    capsys.readouterr()
    assert main(["train", "a", "b", "--out", "run"]) == 2
    said = "b was prepared with another BPETokenizer(vocab_size=260) than that of a; prepare it with --tokenizer a"
    assert said in capsys.readouterr().err
    assert prepare("b", "c", "--tokenizer", "a") == 0
    tokenizers = [load_tokenizer(tmp_path / name / "nanograd_tokenizer.json") for name in "ac"]
    assert tokenizers[0].has_same_ids(tokenizers[1])


def test_several_texts_are_trained_on_together_by_weight_or_by_length(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} " * 2000)
    names = [str(tmp_path / f"{name}.txt") for name in "ab"]
    joined = LanguageModelling(TextConfig(data=names, tokenizer="bytes"), SIZES, SHORT)
    assert len(joined.rows) == 1 and len(joined.rows[0]) == 7200 and len(joined.held_out_ids) == 800
    weighted = TextConfig(data=[f"{name}:{weight}" for name, weight in zip(names, (0.9, 0.1))], tokenizer="bytes")
    task = LanguageModelling(weighted, SIZES, TrainConfig(steps=1, batch_size=500, workers=1))
    tokens, _ = task.batch(0)
    assert len(task.rows) == 2 and 0.85 < np.mean((tokens == ord("a")).any(axis=1)) < 0.95
    assert task.config["text"]["data"] == [f"{name}:{weight}" for name, weight in zip(names, (0.9, 0.1))]


def test_a_prepared_folder_is_not_read_as_texts(prepared):
    with pytest.raises(ConfigError, match="is a prepared folder, which only the task language-model takes"):
        list(documents(str(prepared)))


def test_an_order_of_epochs_reads_every_window_once(tmp_path):
    (tmp_path / "a.txt").write_text("".join(map(str, range(3000))))
    config = TextConfig(str(tmp_path / "a.txt"), tokenizer="bytes", epochs=True)
    task = LanguageModelling(config, SIZES, SHORT)
    count = (len(task.rows[0]) - 1) // 16
    rows = np.concatenate([task.batch(step)[0] for step in range(count // 3)])
    assert len({row.tobytes() for row in rows}) == len(rows) > 200
