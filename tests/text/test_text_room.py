"""The text room is fast to import."""

import os
import subprocess
import sys
from pathlib import Path

import nanograd_llm.text


def test_importing_text_loads_neither_tiktoken_nor_the_corpus():
    code = "import sys, nanograd_llm.text; print({'tiktoken', 'regex', 'pydoc_data'} & set(sys.modules))"
    env = os.environ | {"PYTHONPATH": str(Path(nanograd_llm.text.__file__).parents[2])}
    shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
