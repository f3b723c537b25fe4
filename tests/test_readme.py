"""The README tells the truth: its Python runs as it stands, and its commands exist with the options it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import nanograd_llm

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("")).splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("nanograd-llm")]


def as_shown(report: str) -> list[str]:
    """The lines of a report without what is rounding alone, which no two machines share, and without line numbers."""
    package = str(Path(nanograd_llm.__file__).parent)
    report = re.sub(r"(right, off by )\S+( where )\S+", r"\1#\2#", report.replace(package, "nanograd_llm"))
    report = re.sub(r"(\.py:)\d+", r"\1#", report)
    return re.sub(r"( where )\S+( is rounding)", r"\1#\2", report).rstrip().splitlines()


def test_the_python_of_the_readme_runs_in_order_and_prints_its_report(capsys):
    namespace: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert "bits_per_byte" in capsys.readouterr().out
    printed = iter(as_shown(str(namespace["report"])))
    (shown,) = [as_shown(block) for block in blocks("text") if block.startswith("gradients of loss")]
    missing = [line for line in shown if line.strip() != "..." and line not in printed]  # each behind the one before
    assert not missing, f"{missing[0]}: the report reads otherwise"
    assert namespace["model"].wte.grad is not None
    (line,) = re.findall(r"`(assert_split_invariant\(.*\))`", README)
    exec(f"from nanograd_llm.gradcheck import assert_split_invariant\n{line}", namespace)


@pytest.mark.parametrize("command", commands())
def test_every_option_the_readme_shows_exists(command, capsys):
    from nanograd_llm.cli import main

    _, name, *words = shlex.split(command)
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in shown


def test_every_example_the_readme_lists_is_there_and_no_other():
    examples = {path.name for path in (Path(__file__).parent.parent / "examples").glob("*.py")}
    assert set(re.findall(r"^\| `(\d\d_\w+\.py)`", README, flags=re.MULTILINE)) == examples


def test_the_house_lists_every_room():
    package = Path(__file__).parent.parent / "nanograd_llm"
    if not package.exists():  # where the installed package is tested, its source may be elsewhere
        import nanograd_llm

        package = Path(nanograd_llm.__file__).parent
    house = README.partition("## The house")[2]
    for path in package.iterdir():
        if path.is_dir() and not path.name.startswith("__"):
            assert f"`{path.name}/" in house, path.name
