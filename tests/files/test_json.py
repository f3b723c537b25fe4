"""Plain JSON is read; anything else is refused, and the error says what is wrong."""

from __future__ import annotations

import pytest

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.json import MAX_BYTES, MAX_VALUES, read_json_object, read_json_rows


def test_a_plain_object_is_read():
    text = '{"a": [1, -2.5, "é"], "b": {"c": null}}'
    assert read_json_object(text.encode(), "x") == {"a": [1, -2.5, "é"], "b": {"c": None}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "b": 2, "a": 1}', "duplicate key 'a'"),
        (b'{"a": {"b": 1, "b": 1}}', "duplicate key 'b'"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5,000 digits"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": 1} {', "Extra data"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"", "Expecting value"),
        (b"[1]", "expected a JSON object {...}; found list"),
        (b" " * (MAX_BYTES + 1), "at most"),
        (b'{"a": [' + b"[]," * MAX_VALUES + b"[]]}", "at most"),
    ],
)
def test_json_that_is_not_plain_is_refused(text, message):
    with pytest.raises(BadFileError, match="x: ") as caught:
        read_json_object(text, "x")
    assert message in str(caught.value)


def test_a_fault_in_a_line_of_json_lines_has_one_line_number(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": 2,}\n')
    with pytest.raises(BadFileError, match=r"x\.jsonl, line 2: not valid JSON: [^:]*, at column \d+$"):
        list(read_json_rows(tmp_path / "x.jsonl"))
