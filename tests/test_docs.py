"""The site is correct: the Python of its guides runs, its commands exist, and no word of a lesson is missing."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

import nanograd_llm

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
LESSONS = sorted((DOCS.parent / "examples").glob("*.py"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(block for page in (DOCS / "index.md", *GUIDES) for block in blocks(page, "")).splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("nanograd-llm")]


@pytest.mark.parametrize("command", commands())
def test_every_option_the_guides_show_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from nanograd_llm.cli import main

    _, name, *words = shlex.split(command)
    task = words[words.index("--task") :][:2] if "--task" in words else []  # which has options of its own
    assert main([name, *task, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in shown


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
