"""Settings in TOML are read as they were written; any other file is refused quickly and with little memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.toml import MAX_BYTES, MAX_DOTS, read_toml, write_toml


def test_tables_are_read_as_written_but_none_is_left_out_and_numpy_numbers_become_pythons(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    tables = {"train": {"seed": 2**64 - 1, "rate": 3e-4, "fast": True, "minutes": None}, "text": {"file": 'a"\\é\n'}}
    write_toml(path, {**tables, "model": {"n_layer": np.int64(4)}})
    del tables["train"]["minutes"]
    assert read_toml(path) == {**tables, "model": {"n_layer": 4}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[model]\nn = 1\nn = 2", "is not valid TOML: "),
        (b"[model\n", "is not valid TOML: "),
        (b"[m]\na = \xff", "is not valid TOML: "),
        (b"[m]\na = " + b"[" * 50_000, "is not valid TOML: "),
        (b"[m]\na = " + b"9" * 5_000, "is not valid TOML: "),
        (b"n = 1", "'n' is 1; expected a table: put it under a line such as [model]"),
        (b"[[m]]\nn = 1", "'m' is [{'n': 1}]; expected a table"),
        (b"[m]\na = [1]", "'a' is [1]; expected a string, a list of strings, a number of 64 bits, true or false"),
        (b"[m]\na.b = 1", "'a' is {'b': 1}; expected a string"),
        (b"[m]\na = 2020-01-01", "'a' is datetime.date(2020, 1, 1); expected a string"),
        (b"[m]\na = 0x" + b"f" * 60_000, "'a' is int too large to show; expected a string, a list of strings"),
        (b"[m]\na = 0x1" + b"0" * 16, "'a' is 18446744073709551616; expected a string, a list of strings"),
        (b'[m]\n"\\u001b[2J" = []', "'\\x1b[2J' is []"),
        (b"[m]\n" + b".".join([b"a"] * 3_000) + b" = 1", f"a line has more than {MAX_DOTS} dots"),
        (b"[" + b".".join([b"a"] * 30_000) + b"]\n", f"a line has more than {MAX_DOTS} dots"),
        (b"[m]\n" + b".".join([b"a"] * 100_000) + b" = 1", f"it has more than {MAX_BYTES:,} bytes"),
        (b"[m]\na = 0x" + b"f" * 100_000, f"it has more than {MAX_BYTES:,} bytes"),
    ],
    ids=lambda value: None if isinstance(value, str) else value[:20].decode("latin-1"),
)
def test_a_file_that_is_not_settings_gives_one_short_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(BadFileError) as caught:
        read_toml(tmp_path / "x.toml")
    found = str(caught.value).removeprefix(f"{tmp_path / 'x.toml'}: ")
    assert message in found and len(found) < 300
    assert found.isprintable() or "TOML" in found


def test_a_sparse_file_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "x.toml").open("wb") as file:
        os.truncate(file.fileno(), 3 * 2**30)
    with pytest.raises(BadFileError, match="it has more than 65,536 bytes"):
        read_toml(tmp_path / "x.toml")


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_missing_file_or_a_folder_is_a_storage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError):
        read_toml(tmp_path / name)
