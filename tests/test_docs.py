"""README, CONTRIBUTING and the site are correct: Python runs, commands exist, no word of a lesson is missing."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import nanograd_llm

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
GUIDES = sorted((DOCS / "guides").glob("*.md"))
LESSONS = sorted((ROOT / "examples").glob("*.py"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(block for page in (*PAGES, DOCS / "index.md", *GUIDES) for block in blocks(page, "")).splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("nanograd-llm")]


@pytest.mark.parametrize("command", dict.fromkeys(commands()))
def test_every_option_that_is_shown_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from nanograd_llm.cli import main

    _, name, *words = shlex.split(command)
    task = words[words.index("--task") :][:2] if "--task" in words else []  # which has options of its own
    assert main([name, *task, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in shown


@pytest.mark.parametrize(
    ("page", "printed"),
    [(PAGES[0], ["bits per byte", "gradients of loss: right"]), (PAGES[1], [r"softsign .* right", "Gate .* right"])],
)
def test_the_python_of_a_page_runs_in_order_also_again(page: Path, printed: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(nanograd_llm.__path__[0]).parent), "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", "\n".join(blocks(page, "python"))]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        assert all(re.search(words, done.stdout) for words in printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_python_of_a_page_deletes_nothing(page: Path) -> None:
    assert not re.search(r"rmtree|unlink|os\.remove", "".join(blocks(page, "python")))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert links and all((ROOT / link).exists() for link in links)


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_python_of_a_guide_runs_in_order(guide: Path) -> None:
    namespace: dict[str, object] = {}
    for block in blocks(guide, "{code-cell} python"):
        exec(compile(block, guide.name, "exec"), namespace)


@pytest.mark.parametrize("page", sorted((DOCS / "api").glob("*.md")), ids=lambda path: path.stem)
def test_a_page_of_the_api_read_as_a_file_says_what_it_is_of_and_where_to_read_the_names(page: Path) -> None:
    title, how, about, *_ = page.read_text(encoding="utf-8").split("\n\n")
    assert "sphinx-build docs docs/_build/html" in how and how.startswith("% ")
    module = how.rpartition("python -m pydoc ")[2]
    assert importlib.import_module(module).__doc__ and f"{{public-names}} {module}\n" in page.read_text(
        encoding="utf-8"
    )
    assert not about.startswith("```")


def test_the_house_lists_every_room() -> None:
    (house,) = [guide.read_text(encoding="utf-8") for guide in GUIDES if guide.stem == "house"]
    rooms = [path for path in Path(nanograd_llm.__path__[0]).iterdir() if path.is_dir() and path.name[0] != "_"]
    assert len(rooms) > 10
    for room in rooms:
        assert f"`{room.name}/`" in house


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.replace("\\", "").lower())


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_page_of_the_course_has_every_word_and_title_of_its_lesson(
    lesson: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nbformat", reason='needs the extra "docs"')
    monkeypatch.syspath_prepend(DOCS)
    course = importlib.import_module("course")
    source = lesson.read_text(encoding="utf-8")
    cells = course.read(source).cells
    assert words("\n".join(cell.source for cell in cells)) == words(source.replace('"""0', '"""'))
    titles = [cell.source.splitlines()[0] for cell in cells if cell.cell_type == "markdown"]
    assert titles[1:] == [f"## {title}" for title in re.findall("^# %% (.*)$", source, flags=re.MULTILINE)]
