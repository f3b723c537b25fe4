"""The package is built as designed: imports go one way, every file states its idea, importing it loads little."""

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

# What each room may import, besides itself. Every name on the right is defined above: imports go one way.
KNOWS: dict[str, set[str]] = {}
KNOWS["errors"] = set()
KNOWS["settings"] = {"errors"}
KNOWS["backend"] = {"errors"}
KNOWS["files"] = {"errors", "settings"}
KNOWS["autograd"] = {"errors", "backend"}
KNOWS["ops"] = {"errors", "settings", "backend", "autograd"}
KNOWS["text"] = {"errors", "settings", "backend", "files"}
KNOWS["nn"] = {*KNOWS["ops"], "ops"}
KNOWS["models"] = {*KNOWS["nn"], "nn"}
KNOWS["training"] = {*KNOWS["nn"], "nn"}  # no model, no file
KNOWS["inference"] = {*KNOWS["models"], "models", "text"}
KNOWS["pretrained"] = {*KNOWS["models"], "models", "files", "text"}
KNOWS["gradcheck"] = {*KNOWS["models"], "models"}
KNOWS["see"] = {*KNOWS["models"], "models", "files", "gradcheck"}
KNOWS["tasks"] = {*KNOWS["models"], "models", "text", "training", "inference", "pretrained"}  # and no run
KNOWS["runs"] = {*KNOWS["tasks"], "tasks", "files"}
KNOWS["bench"] = {*KNOWS["runs"], "runs", "gradcheck", "see"}
KNOWS["cli"] = {*KNOWS["bench"], "bench", "nanograd_llm"}
KNOWS["__main__"] = {"cli"}
# These know less than their room: the check of one function is for any function of Tensors.
KNOWS_LESS = {f"gradcheck.{part}": {"nn", "models"} for part in ("check", "cases", "mutation", "every_op")}
OUTSIDE = {"text": {"numpy", "tiktoken", "regex"}}  # all that a room may import from outside the standard library
LOADED_ONLY_WHEN_USED = {
    *("tiktoken", "rich", "cyclopts", "regex", "threadpoolctl", "hypothesis"),
    *("hashlib", "secrets", "multiprocessing", "concurrent", "numpy.random"),
}
KNOWS_LESS["gradcheck.foreign"] = {"nn", "models"}
NEEDS = {"nanograd_llm.gradcheck.foreign.pytorch": "torch", "nanograd_llm.gradcheck.foreign.jax_arrays": "jax"}


def module_name(path: Path) -> str:
    parts = ("nanograd_llm", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source: str, module: str, *, is_package: bool = False, with_names: bool = False) -> set[str]:
    """Every module that `source` imports, by full name, anywhere in the file.

    with_names: of `from A import b`, give A.b, which may be a module or a name in it; otherwise A.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            is_split = with_names or origin == "nanograd_llm"
            found.update([f"{origin}.{alias.name}" for alias in node.names] if is_split else [origin])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in {"importlib.import_module", "import_module", "__import__"}:
                found.add(str(node.args[0].value))
    return found


def breaches(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """The imports of the source that are not allowed, in words."""
    if module == "nanograd_llm":  # it has every public name
        return []
    room = module.split(".")[1]
    if room not in KNOWS:
        return [f"{room} has no place in the house; give it one in KNOWS"]
    known = KNOWS[room] | {room}
    for part, unknown in KNOWS_LESS.items():
        if module.startswith(f"nanograd_llm.{part}"):
            known = known - unknown
    found = []
    for imported in sorted(imports(source, module, is_package=is_package)):
        package, _, rest = imported.partition(".")
        if package == "nanograd_llm":
            target = rest.split(".")[0]
            right = target in known if target in KNOWS else "nanograd_llm" in known  # else a name of its own
        else:
            right = package in sys.stdlib_module_names or package in OUTSIDE.get(room, {package})
            right = right and (package != "cupy" or module == "nanograd_llm.backend.arrays")
        if not right:
            found.append(f"{module} imports {imported}")
    return found


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty if there are none."""
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        found = next(filter(None, (follow(below, [*path, module]) for below in sorted(arrows[module]))), [])
        done.add(module)
        return found

    return next(filter(None, (follow(module, []) for module in arrows)), [])


def arrows_of(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which of these modules each of them imports."""
    found = {}
    for module, source in sources.items():
        is_package = any(other.startswith(f"{module}.") for other in sources)
        names = imports(source, module, is_package=is_package, with_names=True)
        found[module] = {longest_known(name, sources) for name in names} - {None, module}
    return found  # type: ignore[return-value]


def longest_known(name: str, modules: dict[str, str]) -> str | None:
    """The module that `from A import b` loads: A.b where that is a module, else A."""
    return next((known for known in (name, name.rpartition(".")[0]) if known in modules), None)


def private_names(source: str) -> list[str]:
    """Names with a leading underscore that are imported from a file of the package."""
    return [
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("nanograd_llm"))
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]


def test_every_room_may_import_only_rooms_above_it() -> None:
    rooms = list(KNOWS)
    for room, known in KNOWS.items():
        assert known - {"nanograd_llm"} <= set(rooms[: rooms.index(room)])


def test_the_package_has_no_other_modules_at_its_root() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__", "__main__", "errors", "settings"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(arrows_of({module: path.read_text(encoding="utf-8") for module, path in MODULES.items()})) == []


def test_a_circle_would_be_found() -> None:
    sources = {
        "p.a": "from p import b",
        "p.b": "def f():\n    from p.c import x",
        "p.c": "import p.a",
        "p.d": "import p.a",
    }
    assert circle(arrows_of(sources)) == ["p.a", "p.b", "p.c"]


@pytest.mark.parametrize("module", MODULES)
def test_no_private_name_is_imported_from_another_file(module: str) -> None:
    assert private_names(MODULES[module].read_text(encoding="utf-8")) == []


def test_a_private_name_from_another_file_would_be_found() -> None:
    source = (
        "from nanograd_llm.ops.fused import _rows\nfrom .layout import _index\nfrom nanograd_llm import __version__"
    )
    assert private_names(source) == ["_rows", "_index"]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    path = MODULES[module]
    source = path.read_text(encoding="utf-8")
    assert breaches(source, module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("autograd.tensor", "from nanograd_llm.ops import primitive"),
        ("autograd.tape", "def f():\n    import nanograd_llm.nn"),
        ("backend.arrays", "from nanograd_llm import autograd"),
        ("backend.threads", "import cupy"),
        ("errors", "from nanograd_llm.backend.arrays import xp"),
        ("files.safetensors", "from nanograd_llm.models.gpt import GPT"),
        ("files.torch", "from nanograd_llm.pretrained.gpt2 import names"),
        ("ops.fused", "from ..nn import layers"),
        ("ops.fused", "import cupy"),
        ("nn.layers", "from nanograd_llm import Tensor"),
        ("nn.layers", "from nanograd_llm.gradcheck import gradcheck"),
        ("gradcheck.check.check", "from nanograd_llm.nn import Module"),
        ("gradcheck.every_op", "from nanograd_llm.models.gpt import GPT"),
        ("gradcheck.every_layer", "from nanograd_llm.training.trainer import Trainer"),
        ("models.gpt", "from nanograd_llm.gradcheck import gradcheck"),
        ("models.gpt", "import importlib\nimportlib.import_module('nanograd_llm.training')"),
        ("models.gpt", "from nanograd_llm.text import Tokenizer"),
        ("training.trainer", "def f():\n    from nanograd_llm.models.gpt import GPT"),
        ("training.trainer", "from nanograd_llm.inference import generate"),
        ("training.trainer", "from nanograd_llm.files.atomic import write_atomically"),
        ("inference.generate", "from nanograd_llm import cli"),
        ("tasks.language_model", "from nanograd_llm.runs.folder import RunFolder"),
        ("runs.run", "import nanograd_llm.gradcheck"),
        ("runs.run", "import nanograd_llm.bench"),
        ("text.bpe", "from nanograd_llm.ops import exp"),
        ("text.bpe", "import safetensors"),
        ("novelty", ""),
    ],
)
def test_an_import_that_breaks_the_house_would_be_caught(module: str, source: str) -> None:
    assert len(breaches(source, f"nanograd_llm.{module}")) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli.gradcheck", "import nanograd_llm.gradcheck\nfrom nanograd_llm import GPT, __version__"),
        ("training.trainer", "from nanograd_llm.nn import Module\nfrom .adamw import AdamW"),
        ("ops.fused", "from . import composed\nfrom ..autograd.tensor import Tensor"),
        ("inference.generate", "from nanograd_llm.models import GPT\nimport rich"),
        ("text.bpe", "import regex, json\nfrom nanograd_llm.files import atomic"),
        ("backend.arrays", "import cupy"),
        ("gradcheck.every_layer", "import nanograd_llm.models\nfrom nanograd_llm.nn.module import Module"),
        ("gradcheck.cases.strategies", "import hypothesis"),
        ("cli.bench", "from nanograd_llm.bench import floor"),
        ("bench.detection", "from nanograd_llm.gradcheck import gradcheck"),
    ],
)
def test_an_import_that_the_house_allows_is_allowed(module: str, source: str) -> None:
    assert breaches(source, f"nanograd_llm.{module}") == []


def test_only_the_backend_names_cupy() -> None:
    named = [module for module, path in MODULES.items() if re.search(r"\bcupy\b", path.read_text(encoding="utf-8"))]
    assert set(named) <= {"nanograd_llm.backend.arrays"}


@pytest.mark.parametrize("module", MODULES)
def test_every_file_opens_with_its_idea(module: str) -> None:
    idea = ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    assert idea and len(idea.splitlines()[0]) > 20


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_in_docstrings_are_true(module: str) -> None:
    if module in NEEDS:
        pytest.importorskip(NEEDS[module])
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
            kept.update(Path(folder) / name for name in files if name != ".git")  # a file in a worktree
    return kept


def test_no_file_holds_a_path_of_one_machine() -> None:
    machine_path = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/|\b[A-Z]:\\Users")
    files = own_files()
    assert {Path(__file__), PACKAGE / "errors.py"} <= files
    assert [path for path in files if machine_path.search(path.read_text("utf-8", errors="ignore"))] == []


def loaded_by(statement: str, tmp_path: Path) -> set[str]:
    """The modules, and their packages, that a fresh interpreter has after this statement."""
    source = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}  # the package that these tests test
    command = [sys.executable, "-c", source]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    modules = json.loads(answer.stdout)
    return {*modules, *(name.partition(".")[0] for name in modules)}


@pytest.mark.parametrize(
    "module", ["nanograd_llm", "nanograd_llm.cli", "nanograd_llm.gradcheck.mutation.pytest_options"]
)
def test_importing_the_package_or_the_command_loads_no_numpy(module: str, tmp_path: Path) -> None:
    loaded = loaded_by(f"import {module}", tmp_path)
    assert module in loaded and "numpy" not in loaded


def test_the_names_of_the_package_load_nothing_heavier_than_numpy(tmp_path: Path) -> None:
    # what a model and its training can do without
    beyond = {"gradcheck", "runs", "tasks", "trace", "load_bert", "load_gpt2", "load_lora", "open_model"}
    beyond |= {"save_bert", "save_gpt2", "save_lora"}
    names = set(nanograd_llm.__all__) - beyond
    loaded = loaded_by(f"from nanograd_llm import {', '.join(sorted(names))}", tmp_path)
    assert "numpy" in loaded
    assert loaded & LOADED_ONLY_WHEN_USED == set()


def test_every_name_of_a_front_door_is_found_there() -> None:
    doors = ("gradcheck", "models", "tasks", "text", "training")
    for door in (nanograd_llm, *(importlib.import_module(f"nanograd_llm.{name}") for name in doors)):
        assert set(door.__all__) <= set(dir(door))
        assert all(getattr(door, name) is not None for name in door.__all__)
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            door.nonsense  # noqa: B018
