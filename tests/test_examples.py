"""Each example has the form of the course and runs by itself, so its asserts hold.

Exercises fail as they are given, and their solutions pass. The glossary is sorted, and its Python runs.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nanograd_llm

COURSE = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
LESSONS = [path for path in COURSE if "# %% Exercise" in path.read_text(encoding="utf-8")]
IN_PLACE = " x.grad = gradient if x.grad is None else x.grad.__iadd__(gradient)  # not"
GLOSSARY = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text(encoding="utf-8")
each_example = pytest.mark.parametrize("example", COURSE, ids=lambda path: path.stem)
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)


def run(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in this folder as a user would, with the package under test.

    One thread for the products of matrices is enough: other tests run beside this one, and more threads wait for cores.
    """
    package = str(Path(nanograd_llm.__path__[0]).parent)
    environment = {**os.environ, "PYTHONPATH": package, "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, source], cwd=folder, env=environment, capture_output=True, encoding="utf-8")


def test_the_course_is_numbered_without_gaps() -> None:
    numbers = [re.match(r"(\d\d)_[a-z0-9_]+$", path.stem) for path in COURSE]
    assert [number and number[1] for number in numbers] == [f"{n:02}" for n in range(1, len(COURSE) + 1)]
    assert len(COURSE) >= 6


@each_example
def test_an_example_begins_with_its_number_and_its_idea(example: Path) -> None:
    lines = (ast.get_docstring(ast.parse(example.read_text(encoding="utf-8"))) or "").splitlines()
    assert lines[0].startswith(example.stem[:2] + "  ")
    assert any(line.startswith("The one idea: ") for line in lines)


@each_example
def test_an_example_has_cells_with_titles_and_asserts_what_it_teaches(example: Path) -> None:
    source = example.read_text(encoding="utf-8")
    cells = re.findall(r"^# %%(.*)$", source, flags=re.MULTILINE)
    assert len(cells) >= 4
    assert all(re.match(r" \S", title) for title in cells)
    assert sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source))) >= 3


@each_example
def test_an_example_runs_by_itself_writes_nothing_and_only_its_solutions_are_right(
    example: Path, tmp_path: Path
) -> None:
    answer = run(example, tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    assert 5 <= len(answer.stdout.splitlines()) <= 60  # enough to read, and no more
    assert list(tmp_path.iterdir()) == []
    source, printed = example.read_text(encoding="utf-8"), answer.stdout.splitlines()
    exercises = re.findall(r"^# %% Exercise (\d+): \S", source, flags=re.MULTILINE)
    assert exercises == re.findall(r"^# %% Solution (\d+)$", source, flags=re.MULTILINE)
    assert bool(exercises) == (example in LESSONS)
    for number in exercises:
        assert f"Exercise {number}: not yet right" in printed
        assert f"Solution {number}: right" in printed


@each_example
def test_an_example_uses_public_names_only(example: Path) -> None:
    names = {node.attr for node in ast.walk(ast.parse(example.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
    assert not [name for name in names if name.startswith("_") and not name.endswith("__")]


def test_the_course_begins_with_five_lessons_that_have_exercises() -> None:
    assert LESSONS[:5] == COURSE[:5]


def test_an_example_that_teaches_something_false_would_fail(tmp_path: Path) -> None:
    false = tmp_path / "false.py"
    false.write_text("import nanograd_llm as ng\nassert ng.ops.exp(0.0) == 0\n", encoding="utf-8")
    assert "AssertionError" in run(false, tmp_path).stderr


def test_the_glossary_is_in_alphabetical_order() -> None:
    terms = re.findall(r"^## (.+)$", GLOSSARY, flags=re.MULTILINE)
    assert terms == sorted(set(terms), key=str.lower)
    for term in ("Cotangent", "Adjoint", "Complex step", "Shape line", "Tape"):
        assert term in terms


def test_the_glossary_links_to_terms_that_it_has() -> None:
    anchors = {term.lower().replace(" ", "-") for term in re.findall(r"^## (.+)$", GLOSSARY, flags=re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", GLOSSARY)) <= anchors


def test_the_python_of_the_glossary_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", GLOSSARY, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), "glossary.md", "exec"), {})


@pytest.mark.parametrize(("body", "said"), [("raise ValueError('mine')", "mine"), ("return None", "nothing|None")])
@each_lesson
def test_an_exercise_that_raises_or_returns_nothing_does_not_end_the_lesson(
    lesson: Path, body: str, said: str, tmp_path: Path
) -> None:
    source = lesson.read_text(encoding="utf-8")
    broken, count = re.subn(r"(?m)^(def exercise_1_backward.*)$", rf"\1\n    {body}", source)
    (tmp_path / "lesson.py").write_text(broken, encoding="utf-8")
    answer = run(tmp_path / "lesson.py", tmp_path)
    assert count == 1 and answer.returncode == 0, answer.stderr
    assert re.search(rf"(?m)^Exercise 1: not yet right(: |\n  ).*({said})", answer.stdout)
    assert "Solution 1: right" in answer.stdout


@pytest.mark.parametrize(
    ("lesson", "number", "changes"),
    [
        ("02", 1, {"return dy[0]  # not": "return np.stack([dy[0], 2 * dy[1], 2 * x * dy[2]])  # not"}),
        ("04", 2, {"in tape:  # not": "in reversed(tape):  # not", " x.grad = gradient  # not": IN_PLACE}),
    ],
    ids=["no sum over the rows", "a write into a gradient that two inputs share"],
)
def test_an_answer_that_is_right_by_luck_only_is_not_called_right(
    lesson: str, number: int, changes: dict[str, str], tmp_path: Path
) -> None:
    (path,) = (path for path in LESSONS if path.stem.startswith(lesson))
    source = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    (tmp_path / "lesson.py").write_text(source, encoding="utf-8")
    answer = run(tmp_path / "lesson.py", tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert f"Exercise {number}: not yet right" in answer.stdout
