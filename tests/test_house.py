"""The house stands as designed: imports go one way, every file says its idea, the front door is light."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nanograd_llm

PACKAGE = Path(nanograd_llm.__path__[0])
REPOSITORY = Path(__file__).parents[1]

# Each floor stands on those above it in this list. Rooms on one floor do not know each other; files in one room may.
FLOORS = (
    ({"errors"},),
    ({"backend"}, {"randomness"}, {"storage"}, {"settings"}, {"pipes"}, {"interrupts"}),
    ({"engine", "tape", "op", "modes", "checked", "shapes"},),
    ({"ops"},),
    ({"nn"},),
    ({"models"},),
    ({"training"}, {"inference"}, {"pretrained"}, {"gradcheck"}),
    ({"runs", "sources"}, {"bench"}),
    ({"cli", "__main__"},),  # above bench: the command line has a command for it
)
FLOOR = {name: floor for floor, rooms in enumerate(FLOORS) for room in rooms for name in room}
ROOM = {name: room for rooms in FLOORS for room in rooms for name in room}
# `text` stands beside the engine: it needs none of it, and only what trains, generates or loads needs text.
TEXT_KNOWS = {"errors", "settings", "storage", "numpy", "tiktoken", "regex"}
LOADED_ONLY_WHEN_USED = {
    *("tiktoken", "safetensors", "rich", "cyclopts", "regex", "threadpoolctl", "hypothesis"),
    *("hashlib", "secrets", "multiprocessing", "concurrent", "numpy.random"),
}


def module_name(path: Path) -> str:
    parts = ("nanograd_llm", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Every module that `source` imports, by full name, wherever in the file the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found.update([f"{origin}.{alias.name}" for alias in node.names] if origin == "nanograd_llm" else [origin])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in {"importlib.import_module", "import_module", "__import__"}:
                found.add(str(node.args[0].value))
    return found


def breaches(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What of the source's imports goes against the house, in words."""
    if module == "nanograd_llm":  # the roof: it gives every public name a place
        return []
    part = module.split(".")[1]
    if part not in FLOOR and part != "text":
        return [f"{part} has no floor; give it one in FLOORS"]
    found = []
    for imported in sorted(imports(source, module, is_package=is_package)):
        package, _, rest = imported.partition(".")
        target = rest.split(".")[0]
        if package != "nanograd_llm":
            known = package in sys.stdlib_module_names or package in TEXT_KNOWS
            right = (package != "cupy" or part == "backend") and (part != "text" or known)
        elif target == part:
            right = True
        elif part == "text":
            right = target in TEXT_KNOWS
        elif target == "text":
            right = FLOOR[part] >= FLOOR["training"]
        elif target not in FLOOR:
            right = FLOOR[part] >= FLOOR["cli"]  # names of the roof itself
        elif target == "gradcheck":
            right = part in ROOM["cli"]
        elif (part, target) == ("training", "models"):
            right = False
        elif part == "gradcheck" and target in {"nn", "models"}:  # the checker is for any function of Tensors
            right = module == "nanograd_llm.gradcheck.every_layer"
        else:
            right = FLOOR[target] < FLOOR[part] or target in ROOM[part]
        if not right:
            found.append(f"{module} imports {imported}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    path = MODULES[module]
    source = path.read_text(encoding="utf-8")
    assert breaches(source, module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine", "from nanograd_llm.ops import primitive"),
        ("engine", "def f():\n    import nanograd_llm.nn"),
        ("backend", "from nanograd_llm import randomness"),
        ("errors", "from nanograd_llm.backend import xp"),
        ("ops.fused", "from ..nn import layers"),
        ("nn.layers", "from nanograd_llm import Tensor"),
        ("nn.layers", "from nanograd_llm.gradcheck import check"),
        ("gradcheck.check", "from nanograd_llm.nn import Module"),
        ("gradcheck.every_op", "from nanograd_llm.models.gpt import GPT"),
        ("gradcheck.every_layer", "from nanograd_llm.training.trainer import Trainer"),
        ("models.gpt", "from nanograd_llm.gradcheck import gradcheck"),
        ("models.gpt", "import importlib\nimportlib.import_module('nanograd_llm.training')"),
        ("models.gpt", "from nanograd_llm.text import Tokenizer"),
        ("training.trainer", "def f():\n    from nanograd_llm.models.gpt import GPT"),
        ("training.trainer", "from nanograd_llm.inference import generate"),
        ("inference.generate", "from nanograd_llm import cli"),
        ("bench", "import nanograd_llm.gradcheck"),
        ("text.bpe", "from nanograd_llm.backend import xp"),
        ("text.bpe", "import safetensors"),
        ("ops.fused", "import cupy"),
        ("backend", "from cupy import asnumpy\nfrom . import engine"),
        ("novelty", ""),
    ],
)
def test_an_import_that_breaks_the_house_would_be_caught(module: str, source: str) -> None:
    assert len(breaches(source, f"nanograd_llm.{module}")) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli.gradcheck", "import nanograd_llm.gradcheck\nfrom nanograd_llm import GPT"),
        ("training.trainer", "from nanograd_llm.text import Tokenizer\nfrom .checkpoint import load_checkpoint"),
        ("ops.fused", "from . import composed\nfrom ..engine import Tensor"),
        ("inference.generate", "from nanograd_llm.models import GPT\nimport rich"),
        ("text.bpe", "import regex, json\nfrom nanograd_llm import storage"),
        ("backend", "import cupy"),
        ("gradcheck.every_layer", "from nanograd_llm import nn\nfrom nanograd_llm.models.gpt import GPT"),
        ("gradcheck.strategies", "import hypothesis"),
        ("cli.bench", "from nanograd_llm.bench import floor"),
    ],
)
def test_an_import_that_the_house_allows_is_allowed(module: str, source: str) -> None:
    assert breaches(source, f"nanograd_llm.{module}") == []


def test_only_the_backend_names_cupy() -> None:
    named = [module for module, path in MODULES.items() if re.search(r"\bcupy\b", path.read_text(encoding="utf-8"))]
    assert set(named) <= {"nanograd_llm.backend"}


@pytest.mark.parametrize("module", MODULES)
def test_every_file_opens_with_its_idea(module: str) -> None:
    idea = ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    assert idea and len(idea.splitlines()[0]) > 20


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_in_docstrings_are_true(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def own_files() -> set[Path]:
    """The project's own files, and the package as it is installed: no caches, builds, runs or environments."""
    kept = set()
    for top in (REPOSITORY, PACKAGE):
        for folder, folders, files in os.walk(top):
            folders[:] = [
                name
                for name in folders
                if (not name.startswith(".") or name == ".ci")
                and name not in {"__pycache__", "build", "dist", "runs"}
                and not name.endswith(".egg-info")
                and not (Path(folder) / name / "pyvenv.cfg").exists()
            ]
            kept.update(Path(folder) / name for name in files)
    return kept


def test_no_file_holds_a_path_of_one_machine() -> None:
    machine_path = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/|\b[A-Z]:\\Users")
    files = own_files()
    assert {Path(__file__), PACKAGE / "errors.py"} <= files
    assert [path for path in files if machine_path.search(path.read_text("utf-8", errors="ignore"))] == []


def test_importing_the_package_loads_nothing_heavier_than_numpy(tmp_path: Path) -> None:
    source = "import json, sys, nanograd_llm; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}  # the package that these tests test
    command = [sys.executable, "-c", source]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    modules = json.loads(answer.stdout)
    loaded = {*modules, *(name.partition(".")[0] for name in modules)}
    assert "nanograd_llm" in loaded
    assert loaded & LOADED_ONLY_WHEN_USED == set()
