"""The text room as a whole: cheap to import, its own floor, and its examples are true."""

import ast
import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nanograd_llm.text

FOLDER = Path(nanograd_llm.text.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
OTHERS = {"numpy", "tiktoken", "regex"}


def test_importing_text_loads_neither_tiktoken_nor_the_corpus():
    code = "import sys, nanograd_llm.text; print({'tiktoken', 'regex', 'pydoc_data'} & set(sys.modules))"
    env = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
    shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_text_knows_numpy_tiktoken_and_the_errors_only(file):
    allowed = set(sys.stdlib_module_names) | OTHERS
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            ours = name == "nanograd_llm.errors" or name.startswith("nanograd_llm.text")
            assert ours or name.split(".")[0] in allowed, name


@pytest.mark.parametrize("name", ["corpora", "bpe", "tokenizers", "windows"])
def test_examples_in_docstrings_are_true(name):
    failed, tried = doctest.testmod(importlib.import_module(f"nanograd_llm.text.{name}"))
    assert tried > 0
    assert failed == 0


def test_every_public_name_exists():
    for name in nanograd_llm.text.__all__:
        assert hasattr(nanograd_llm.text, name)
