"""README and CONTRIBUTING are correct: their Python runs, and their commands and options exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import nanograd_llm

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(block for page in PAGES for block in blocks(page, "")).splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("nanograd-llm")]


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("README.md", ["bits_per_byte", "gradients of loss: right"]),
        ("CONTRIBUTING.md", [r"softsign .* right", "Gate .* right"]),
    ],
)
def test_the_python_of_a_page_runs_in_order(page: str, printed: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(nanograd_llm.__path__[0]).parent), "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", "\n".join(blocks(page, "python"))]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert all(re.search(words, done.stdout) for words in printed)


@pytest.mark.parametrize("command", commands())
def test_every_option_that_is_shown_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from nanograd_llm.cli import main

    _, name, *words = shlex.split(command)
    task = words[words.index("--task") :][:2] if "--task" in words else []  # which has options of its own
    assert main([name, *task, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in shown


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGES[page])
    assert links and all((ROOT / link).exists() for link in links)


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
