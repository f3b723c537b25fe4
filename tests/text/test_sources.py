"""Sources of text: files, folders, patterns, JSON lines, gzip and standard input become one text."""

import gzip
import io
import json
import os
import sys

import pytest

from nanograd_llm.errors import BadFileError, ConfigError, StorageError
from nanograd_llm.tasks.task import absolute_path
from nanograd_llm.text import read_source, sources
from nanograd_llm.text.sources import named_texts


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "docs" / "more").mkdir(parents=True)
    (tmp_path / "docs" / "b.txt").write_text("second")
    (tmp_path / "docs" / "a.md").write_text("first", "utf-8")
    (tmp_path / "docs" / "more" / "c.txt").write_text("third")
    (tmp_path / "docs" / ".hidden").write_text("hidden")
    (tmp_path / "docs" / "logo.png").write_bytes(b"\x89PNG\xff\xfe")
    return tmp_path / "docs"


def test_a_folder_gives_all_its_texts_in_order_and_names_what_is_no_text(folder):
    with pytest.warns(UserWarning, match=f"^left out 1 of 4 files: {folder}/logo.png is not UTF-8: byte 0x89"):
        assert read_source(str(folder)) == "first\n\n\nsecond\n\n\nthird"


def test_files_of_a_folder_that_are_no_text_are_counted_by_reason(folder):
    for name in ("a", "b", "c"):
        (folder / f"{name}.py").touch()
    (folder / "d.jsonl").write_text('{"text": "one"}\n{"words": "two"}\n')
    with pytest.warns(UserWarning) as told:
        read_source(str(folder))
    (message,) = [str(warning.message) for warning in told]
    assert "left out 5 of 8 files: " in message and "a.py is empty; expected text (and 2 more)" in message
    assert "logo.png is not UTF-8" in message and "d.jsonl, line 2: has no text" in message


def test_the_texts_of_each_file_come_as_one_with_its_path(folder):
    (folder / "d.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (folder / "e.txt").touch()
    found = [(os.path.relpath(path, folder), text) for path, text in named_texts(str(folder))]
    more = os.path.join("more", "c.txt")
    assert found == [("a.md", "first"), ("b.txt", "second"), ("d.jsonl", "one\n\n\ntwo"), (more, "third")]


def test_a_pattern_gives_the_files_that_match(folder):
    assert read_source(f"{folder}/**/*.txt") == "second\n\n\nthird"
    (folder / "more" / "a.txt").touch()
    with pytest.warns(UserWarning, match="left out 2 of 5 files: .*/logo.png is not UTF-8.*/a.txt is empty"):
        assert read_source(f"{folder}/**/*.*") == read_source(str(folder))
    assert read_source(f"{folder}/a.md") == "first"
    (folder / "odd[1].txt").write_text("a name may look like a pattern")
    assert read_source(f"{folder}/odd[1].txt") == "a name may look like a pattern"


def test_a_file_that_is_no_text_is_refused_where_it_was_asked_for(folder):
    with pytest.raises(BadFileError, match="logo.png is not UTF-8"):
        read_source(f"{folder}/logo.png")
    with pytest.raises(StorageError, match="no file matches this pattern; check it"):
        read_source(f"{folder}/*.tex")


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(StorageError, match="has no text among 0 files"):
        read_source(str(tmp_path))
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(StorageError, match="has no text among 1 file; .*a.jsonl, line 1: has no text"):
        read_source(str(tmp_path))


def test_json_lines_and_gzip_are_unpacked(tmp_path):
    lines = "\n".join(json.dumps({"text": text, "id": 1}) for text in ("one", "zwei ö")) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines, "utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"plain"))
    assert read_source(f"{tmp_path}/a.jsonl") == read_source(f"{tmp_path}/b.jsonl.gz") == "one\n\n\nzwei ö"
    assert read_source(f"{tmp_path}/c.txt.gz") == "plain"


def test_a_line_of_json_may_be_longer_than_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 5)
    texts = ["one", "a long text " * 40, "", "ö" * 30]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    assert list(sources.documents(f"{tmp_path}/a.jsonl")) == texts


def test_another_field_of_json_lines_is_named_behind_a_hash(tmp_path, monkeypatch):
    rows = [{"body": "one", "id": 1}, {"body": "two", "id": 2}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert read_source(f"{tmp_path}/a.jsonl#body") == read_source(f"{tmp_path}/b.jsonl.gz#body") == "one\n\n\ntwo"
    assert read_source(f"{tmp_path}/*.jsonl#body") == "one\n\n\ntwo"
    monkeypatch.chdir(tmp_path)
    assert absolute_path("a.jsonl#body:0.5") == f"{tmp_path}/a.jsonl#body:0.5"
    (tmp_path / "a.jsonl#id").write_text("a name may hold a hash")
    assert read_source(f"{tmp_path}/a.jsonl#id") == "a name may hold a hash"


def test_a_missing_field_of_json_lines_is_refused_with_those_there_are(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 3, "by": "", "body": "one"}\n')
    with pytest.raises(
        BadFileError, match=r"""line 1: has no text under "text"; its fields are 'id', 'by', 'body'; """
    ) as told:
        read_source(f"{tmp_path}/a.jsonl")
    assert str(told.value).endswith(f"name the one with the text behind a #: {tmp_path}/a.jsonl#body")
    (tmp_path / "b.jsonl").write_text('{"the body": "one"}\n')
    with pytest.raises(BadFileError, match="behind a #: .*/b.jsonl#'the body'$"):  # as a shell takes it
        read_source(f"{tmp_path}/b.jsonl")


def test_a_column_of_a_table_is_a_text_for_each_row_if_it_is_named_and_the_table_one_text_otherwise(tmp_path):
    rows = 'id,body\n1,"one,\n ""two"""\n\n2,zwei ö\n'
    (tmp_path / "a.csv").write_text(rows, "utf-8")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + rows.replace("\n", "\r\n").encode()))
    for name in ("a.csv#body", "b.csv.gz#body", "a*.csv#body"):
        first, second = sources.documents(f"{tmp_path}/{name}")
        assert first.replace("\r", "") == 'one,\n "two"' and second == "zwei ö"
    assert read_source(f"{tmp_path}/a.csv") == rows
    with pytest.raises(BadFileError, match=r'a.csv, line 2: has no text under "text"; its fields are .*a.csv#body$'):
        read_source(f"{tmp_path}/a.csv#text")
    (tmp_path / "c.csv").write_text(rows + "3,a,b\n", "utf-8")
    with pytest.raises(BadFileError, match="c.csv, line 6: has 3 columns, and the header 2; put a text that holds a"):
        read_source(f"{tmp_path}/c.csv#body")


@pytest.mark.parametrize(("name", "sign"), [("a.tsv", "\t"), ("A.TSV", "\t"), ("B.CSV", ","), ("b.tsv.gz", "\t")])
def test_a_column_is_read_of_a_table_with_tabs_too_and_in_any_case_of_the_name(tmp_path, name, sign):
    rows = f"id{sign}body\n1{sign}one\n2{sign}zwei ö\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(rows) if name.endswith(".gz") else rows)
    assert [*sources.documents(f"{tmp_path}/{name}#body")] == ["one", "zwei ö"]
    assert name.endswith(".gz") or read_source(f"{tmp_path}/{name}") == rows.decode()


@pytest.mark.parametrize("line", ['{"txt": "x"}', '{"text": 3}', "[1]", "text", "[" * 100_000])
def test_a_json_line_without_text_is_named_by_its_number(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(BadFileError, match=r"a.jsonl, line 2"):
        read_source(f"{tmp_path}/a.jsonl")


@pytest.mark.parametrize("damage", [lambda packed: b"no gzip", lambda packed: packed[:-9], lambda packed: packed * 2])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    (tmp_path / "a.txt.gz").write_bytes(damage(gzip.compress(b"text" * 100)))
    with pytest.raises(BadFileError, match="cannot be unpacked"):
        read_source(f"{tmp_path}/a.txt.gz")


def test_standard_input_is_read(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("piped ö".encode())))
    assert read_source("-") == "piped ö"


def test_the_folders_of_runs_and_models_in_a_folder_are_no_text(folder):
    written = {"nano-1": ("config.toml", "samples.txt", "checkpoints/a.txt"), "gpt2": ("config.json", "merges.txt")}
    for name, files in (written | {"data": ("prepared.toml", "train.bin"), "settings": ("config.json",)}).items():
        for file in files:
            (folder / "runs" / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "runs" / name / file).write_text(f"of {name}")
    (folder / "runs" / "gpt2" / "model.safetensors").write_text("weights")
    (folder / "logo.png").unlink()
    runs = folder / "runs"
    with pytest.warns(
        UserWarning, match=f"^left out the folder {runs}/data, .* prepared folder, no text .and 2 more.$"
    ):
        assert read_source(str(folder)) == "first\n\n\nsecond\n\n\nthird\n\n\nof settings"
    with pytest.warns(UserWarning, match=f"^left out the folder {runs}/gpt2, .* of a model, no text .and 1 more.$"):
        assert read_source(f"{folder}/**/*.txt") == "second\n\n\nthird"
    assert read_source(f"{runs}/nano-1/*.txt") == read_source(f"{runs}/nano-1/samples.txt") == "of nano-1"


@pytest.mark.parametrize("files", [("config.toml", "checkpoints"), ("config.json", "model.safetensors")])
def test_the_folder_of_a_run_or_model_is_not_taken_for_texts(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("written")
    with pytest.raises(ConfigError, match=r"no text; train --init .* trains it further; .* name them: \".*\*\.txt\"$"):
        read_source(str(tmp_path))
