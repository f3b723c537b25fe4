"""Labelled texts: what each form of file gives, one clear line for each that cannot be read, and the built-in ones."""

from __future__ import annotations

import csv
import re
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from nanograd_llm.errors import BadFileError, NanogradError, StorageError
from nanograd_llm.text.examples import read_examples
from nanograd_llm.text.labelled import MODULES, builtin_docstrings, load_labels, read_labelled, save_labels
from nanograd_llm.text.pairs import read_pairs

TEXTS = [("a good film", "good"), ("dull, and long", "bad"), ("two\nlines", "good"), ('the "best"', "bad")]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def test_every_form_gives_the_texts_and_their_labels_in_order(tmp_path: Path) -> None:
    csv = 'id,label,text\r\n1,good,a good film\r\n2,bad,"dull, and long"\n3,good,"two\nlines"\n\n4,bad,"the ""best"""\n'
    assert read_labelled(write(tmp_path, "x.csv", "\ufeff" + csv)) == TEXTS
    lines = [f'{{"text": {one!r}, "label": "{name}", "id": 3}}'.replace("'", '"') for one, name in TEXTS[:2]]
    lines += ['{"label": "good", "text": "two\\nlines"}', "", '{"label": "bad", "text": "the \\"best\\""}']
    assert read_labelled(write(tmp_path, "x.jsonl", "\n".join(lines))) == TEXTS
    tsv = write(tmp_path, "x.tsv", 'what\ttext\ngood\ta good film\nbad\tdull, and long\nbad\tthe "best"\n')
    assert read_labelled(tsv, label="what") == [TEXTS[0], TEXTS[1], TEXTS[3]]
    for number, (one, name) in enumerate(TEXTS):
        (tmp_path / "folder" / name).mkdir(parents=True, exist_ok=True)
        write(tmp_path / "folder" / name, f"{number}.txt", one)
    write(tmp_path / "folder", "README", "not a text")
    write(tmp_path / "folder" / "bad", ".hidden", b"\xff")
    assert sorted(read_labelled(tmp_path / "folder")) == sorted(TEXTS)


def test_a_pair_that_occurs_again_is_left_out_and_spaces_around_it_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", "text,label\na, x  y\n a ,x y\na,z\n")
    with pytest.warns(UserWarning, match="x.csv: 1 of 3 rows occurs again and is left out"):
        assert read_labelled(path) == [("a", "x y"), ("a", "z")]


def test_what_utf8_cannot_hold_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path, "x.jsonl", '{"text": "a \\ud83d\\ude00 \\ud83d", "label": "\\udc00"}\n')
    assert read_labelled(path) == [("a \U0001f600 \ufffd", "\ufffd")]


def test_a_label_may_be_a_number_and_another_column_may_be_there_twice(tmp_path: Path) -> None:
    assert read_labelled(write(tmp_path, "x.jsonl", '{"text": "a", "label": 1}\n')) == [("a", "1")]
    assert read_labelled(write(tmp_path, "x.csv", "v1,v2,,\nham,hello,,\n"), "v2", "v1") == [("hello", "ham")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "x.csv",
            "v1,v2\nham,hello\n",
            r"x.csv: has no column 'text'; the first line must name the columns; it has 'v1', ",
        ),
        ("x.csv", "texts,label\na,b\n", r"; it has 'texts', 'label' .did you mean 'texts'\?."),
        ("x.csv", "text,label,text\na,b,c\n", r"two columns are named 'text'; rename one; .* it has 'text', 'label', "),
        ("x.csv", "text,label\na,b\nc,d,e\n", r"line 3: has 3 columns, and the header 2; put a text that holds a "),
        ("x.csv", "text,label\na\n", r"line 2: has 1 column, and the header 2"),
        ("x.tsv", "text\tlabel\na\tb\tc\n", r"line 2: has 3 columns, and the header 2; a text has no tab"),
        ("x.csv", 'text,label\n"a,b\n', r"line 2: unexpected end of data; close each quote, and write a quote inside"),
        (
            "x.csv",
            'text,label\na,b\n"c,d\ne,f\n',
            r"line 3: unexpected end.* goes on to line 4, so a quote may",
        ),
        ("x.csv", 'text,label\n"c,d\ne,f\n"g",h\n', r"line 2: ',' expected after .*; the row goes on to line 4, so"),
        ("x.csv", 'text,label\n"a\nb",c\n"c\nd",e,f\n', r"line 4: has 3 columns, and the header 2"),
        ("x.csv", 'text,label\n"a" b,c\n', r"line 2: ',' expected after '\"'"),
        (
            "x.csv",
            "text,label\n ,b\nc,d\n,\n",
            r"line 2: the text is empty; complete that, or remove it; 1 more row without a text or a label",
        ),
        ("x.csv", "text,label\na,\n", r"x.csv, line 2: the label is empty; complete that, or remove it"),
        ("x.csv", "text,label\n", r"x.csv: has no texts; give a row for each"),
        ("x.csv", b"text,label\n\xff,b\n", r"x.csv is not UTF-8: byte 0xff at offset 11"),
        ("x.csv", "", r"x.csv is empty"),
        ("x.jsonl", '{"text": "a", "label": "b"}\n{"text": "a"}', r"line 2: has no column 'label'; it has 'text'; "),
        ("x.jsonl", '{"text": null, "label": "b"}', r"line 1: text is None and label 'b'; expected a string, and"),
        ("x.jsonl", '{"text": "a", "label": 0.5}', r"line 1: text is 'a' and label 0.5; expected"),
        ("x.jsonl", '{"text": "a", "text": "b", "label": "c"}', r"line 1: not valid JSON: duplicate key 'text'"),
        ("x.jsonl", "[1]", r"x.jsonl, line 1: expected a JSON object"),
        ("x.jsonl", "[" * 9999, r"x.jsonl, line 1: "),
        ("x.txt", "a\tb\n", r"x.txt: labelled texts come from a .csv, .tsv or .jsonl, or a folder with a folder for"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_the_place(
    name: str, content: str | bytes, said: str, tmp_path: Path
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(NanogradError, match=said) as caught:
        read_labelled(path)
    assert isinstance(caught.value, BadFileError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_long_article_is_a_cell_like_any_other(tmp_path: Path, name: str) -> None:
    article, sign = "word " * 60_000 + "end", "," if name == "a.csv" else "\t"
    before = csv.field_size_limit()
    assert read_labelled(write(tmp_path, name, f"text{sign}label\n{article}{sign}long\n")) == [(article, "long")]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "sign", "expected"),
    [("a.csv", ";", "a comma"), ("a.csv", "\t", "a comma; name it .tsv"), ("a.tsv", ",", "a tab")],
)
def test_another_sign_between_the_columns_is_named(tmp_path: Path, name: str, sign: str, expected: str) -> None:
    (tmp_path / name).write_text(f"text{sign}label\none{sign}a\n")
    with pytest.raises(BadFileError, match=re.escape(f"{sign!r} between its columns; expected {expected};")):
        read_labelled(tmp_path / name)


def test_folders_without_texts_and_files_in_them_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(BadFileError, match="has no folders with files in them; expected a folder for each label"):
        read_labelled(tmp_path)
    write(tmp_path / "a", "1.txt", b"caf\xe9")
    with pytest.raises(BadFileError, match=r"1.txt is not UTF-8"):
        read_labelled(tmp_path)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("a.csv", "check the path"), ("tickets", "check the path"), ("-", "standard input is not read here; give a file")],
)
@pytest.mark.parametrize("read", [read_labelled, read_pairs, read_examples])
def test_a_name_of_any_form_is_first_said_not_to_be_there(
    name: str, remedy: str, read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=f"^{name}: no such file; {remedy}$"):
        read(name)


def test_the_built_in_texts_are_docstrings_of_twelve_modules_each_once() -> None:
    found = builtin_docstrings()
    assert {label for _, label in found} == {*MODULES}
    assert len(found) > 2000 and len({text for text, _ in found}) == len(found)
    assert all(20 <= len(text) <= 400 and "\n" not in text for text, _ in found)
    assert any(label == "asyncio" and "event loop" in text for text, label in found)


def test_a_python_without_its_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(StorageError, match="has no sources of Python's modules, the built-in texts; give a file inste"):
        builtin_docstrings()


def test_labels_are_saved_and_damage_to_them_is_refused(tmp_path: Path) -> None:
    names = ["A01.1", "cs.LG", "ü"]
    save_labels(tmp_path / "labels.json", names)
    assert load_labels(tmp_path / "labels.json", 3) == names
    for content, said in (
        ('{"labels": ["a", "b"]}', "has 2 different labels; the model has 3 classes"),
        ('{"labels": ["a", "b", "a"]}', "has 2 different labels; the model has 3 classes"),
        ('{"labels": [1, 2, 3]}', "expected a list of strings"),
        ("{}", "its labels are None; expected a list of strings"),
    ):
        with pytest.raises(BadFileError, match=said):
            load_labels(write(tmp_path, "labels.json", content), 3)
