"""Questions, answers and pairs of answers, read from every form that people keep them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nanograd_llm.errors import BadFileError
from nanograd_llm.text.examples import Example, Turn, read_examples

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
MORE = [*CHAT, {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def written(folder: Path, *rows: Any, form: str = ".json") -> Path:
    path = folder / f"x{form}"
    text = json.dumps(rows) if form == ".json" else "\n\n".join(map(json.dumps, rows)) + "\n"
    path.write_text(text, "utf-8")
    return path


def one(instruction: str, answer: str, input: str = "", rejected: str = "") -> Example:
    return Example((Turn(instruction, input, answer),), rejected)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"instruction": "Sort.", "input": "2 1", "output": " 1 2\n", "text": "?"}, one("Sort.", "1 2", "2 1")),
        ({"instruction": "Sort 2 1.", "output": "1 2"}, one("Sort 2 1.", "1 2")),
        ({"prompt": "Hi", "completion": " Hello"}, one("Hi", "Hello")),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, one("Hi", "Hello")),
        ({"messages": CHAT}, one("Hi", "Hello")),
        ({"conversations": SHARED}, one("Hi", "Hello")),
        ({"messages": [{"role": "system", "content": "Be short."}, *CHAT]}, one("Be short.\n\nHi", "Hello")),
        ({"messages": MORE}, Example((Turn("Hi", "", "Hello"), Turn("Why?", "", "So.")))),
    ],
)
@pytest.mark.parametrize("form", [".json", ".jsonl"])
def test_each_form_of_questions_is_read(row: Any, found: Example, form: str, tmp_path: Path) -> None:
    assert read_examples(written(tmp_path, row, row, form=form)) == [found, found]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, one("Hi", "Hello", rejected="No")),
        ({"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": MORE[3:]}, one("Hi", "Hello", rejected="So.")),
        ({"chosen": CHAT, "rejected": [CHAT[0], MORE[3]]}, one("Hi", "Hello", rejected="So.")),
        ({"prompt": "Hi", "chosen": CHAT, "rejected": [CHAT[0], MORE[3]]}, one("Hi", "Hello", rejected="So.")),
        (
            {"instruction": "Sort.", "input": "2 1", "output": "?", "chosen": "1 2", "rejected": "2 1"},
            one("Sort.", "1 2", "2 1", "2 1"),
        ),
        ({"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": {"from": "gpt", "value": "No"}},
         one("Hi", "Hello", rejected="No")),
        ({"prompt": MORE[:3], "chosen": "So.", "rejected": "No"},
         Example((Turn("Hi", "", "Hello"), Turn("Why?", "", "So.")), "No")),
    ],
)  # fmt: skip
def test_each_form_of_pairs_is_read(row: Any, found: Example, tmp_path: Path) -> None:
    assert read_examples(written(tmp_path, row), pairs=True) == [found]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "Hi", "answer": "Hello"},
            "row 2: its keys are 'question', 'answer'; expected instruction, output; or",
        ),
        ({}, "row 2: has no keys; expected"),
        ({"instruction": "Hi", "output": " "}, "row 2: output gives no answer"),
        ({"instruction": "", "output": "x"}, "row 2: a message of the user is empty"),
        ({"instruction": 3, "output": "x"}, "row 2: instruction has 3; expected a text, or messages"),
        ({"messages": CHAT[:1]}, "row 2: messages gives no answer"),
        ({"messages": CHAT[1:]}, "row 2: has no question before its answer"),
        ({"messages": [CHAT[0], *CHAT]}, "row 2: 'Hi' is out of turn"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "expected a text, or messages with a role and a content"),
        ([1], "row 2: expected a JSON object"),
    ],
)
def test_a_row_that_is_no_question_with_an_answer_is_refused(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=message):
        read_examples(written(tmp_path, {"prompt": "a", "completion": "b"}, row))


def test_a_content_in_parts_is_their_text_and_a_part_without_text_is_refused(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "value": "hello"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}]
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"messages": chat}]), "utf-8")
    assert read_examples(path) == [Example((Turn("Say hello", "", "Hello"),))]
    chat[0]["content"] = [{"type": "image", "image": "x.png"}]
    path.write_text(json.dumps([{"messages": chat}]), "utf-8")
    with pytest.raises(
        BadFileError, match="row 1: messages has .*; expected a text, or messages with a role and a cont"
    ):
        read_examples(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "Hello "}, "row 1: chosen and rejected are equal, 'Hello'"),
        (
            {"prompt": "Hi", "completion": "Hello"},
            "row 1: its keys are 'prompt', 'completion'; expected .*chosen, rejected",
        ),
        ({"prompt": "Hi", "chosen": "", "rejected": "a"}, "row 1: chosen gives no answer"),
        ({"prompt": "Hi", "chosen": "a", "rejected": " "}, "row 1: rejected gives no answer"),
        ({"chosen": CHAT, "rejected": MORE}, "row 1: chosen and rejected differ before their last messages"),
    ],
)
def test_a_row_that_is_no_pair_is_refused(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=message):
        read_examples(written(tmp_path, row), pairs=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n', "x.jsonl, line 2: not valid JSON"),
        ("x.jsonl", b"\n \n", "has no row"),
        ("x.json", b"[]", "has no row"),
        ("x.json", b'{"prompt": "a"}', r"expected a list of rows \[{...}, ...\]; found dict"),
        ("x.json", b'[{"prompt": "a"},\n {"prompt" "b"}]', "not valid JSON: .* line 2"),
        ("x.csv", b"a,b", "expected a .json with a list of rows, or a .jsonl with a row on each line"),
    ],
)
def test_a_file_of_another_form_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFileError, match=message):
        read_examples(tmp_path / name)
