"""Reading thousands of damaged files breaks no rule of the oracle, and the oracle notices each rule that is broken."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import fuzz
import numpy as np
import pytest
from oracle import Breach, read_watched

from nanograd_llm.errors import BadFileError, ConfigError

INPUTS = 6_000 // len(fuzz.FORMATS)
LONG = 100_000


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_damaged_files_break_no_rule(name, tmp_path):
    outcomes, broken = fuzz.run(name, range(INPUTS), tmp_path)
    assert broken == []
    assert outcomes["read"] and outcomes["BadFileError"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_very_many_damaged_files_break_no_rule(name, tmp_path):
    assert fuzz.run(name, range(INPUTS, INPUTS + LONG), tmp_path)[1] == []


@pytest.mark.parametrize("case", sorted(path.name for path in fuzz.CASES.glob("*-*")))
def test_files_that_once_broke_a_rule_do_not_any_more(case, tmp_path):
    name = case.rpartition("-")[0]
    assert not isinstance(fuzz.read_input(name, fuzz.FORMATS[name].seeds[0], tmp_path), Exception)
    files = {path.name: path.read_bytes() for path in (fuzz.CASES / case).iterdir()}
    fuzz.read_input(name, files, tmp_path)  # raises Breach for a rule that is broken


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_an_input_is_the_same_every_time(name):
    assert fuzz.make_input(name, 7) == fuzz.make_input(name, 7) != fuzz.make_input(name, 8)


def opens_elsewhere(path):
    return (path.parent.parent / "elsewhere").read_bytes()


def writes(path):
    path.write_bytes(b"")


def works_long(path):
    total = 0
    for number in range(10**9):
        total += number
        if number % 10**6 == 0 and os.times().user > works_long.until:
            return total


VIOLATIONS = {
    "opens elsewhere": opens_elsewhere,
    "writes": writes,
    "executes": lambda path: exec("1"),
    "evaluates": lambda path: eval("1 + 1"),
    "imports": lambda path: __import__("antigravity_of_no_one"),
    "starts a process": lambda path: subprocess.run([sys.executable, "--version"], check=True),
    "asks the shell": lambda path: os.system("true"),
    "connects": lambda path: socket.socket().close(),
    "raises another error": lambda path: {}["x"],
    "raises an error of usage": lambda path: (_ for _ in ()).throw(ConfigError("x")),
    "raises a page of text": lambda path: (_ for _ in ()).throw(BadFileError("x" * 10_000)),
    "gives what can be written to": lambda path: {"x": np.zeros(1)},
    "gives more than there is": lambda path: np.broadcast_to(np.float32(1), (10**6,)),
    "gives objects": lambda path: np.broadcast_to(np.array(None, object), (1,)),
    "works long": works_long,
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_the_oracle_notices(violation, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "file").write_bytes(b"content")
    (tmp_path / "elsewhere").write_bytes(b"secret")
    works_long.until = os.times().user + 1.2
    with pytest.raises(Breach):
        read_watched(VIOLATIONS[violation], folder / "file", folder)


def test_the_oracle_lets_a_reader_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert read_watched(Path.read_bytes, tmp_path / "file", tmp_path) == b"content"
