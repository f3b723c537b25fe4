"""A recorded pass, written as a script, gives the same bits in a Python without the package; else it is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from passes import LAYERS, OPS, Pass, layer_passes, op_passes, small_gpt

import nanograd_llm as ng
from nanograd_llm.errors import ConfigError, GraphError

RUNNER = """
import runpy, sys
sys.modules["nanograd_llm"] = None  # importing it fails
for path in sys.argv[1:]:
    try:
        runpy.run_path(path, run_name="__main__")
    except (SystemExit, Exception) as error:
        print(f"{path}: {type(error).__name__}: {error}")
"""
FACTOR = 3


@ng.op("y = 3 exp(-x²)", "x̄ = -2x*ȳ*y")
def bump(x):
    """A bell.  x (*) -> y (*)"""
    return ng.keep(_height(x), below=np.minimum(x, 0))


def _height(x, power=2):
    return FACTOR * np.exp(-(x**power))


@bump.backward
def bump_backward(dy, x, y, below):
    return dy * y * (-2 * (np.maximum(x, 0) + below)) * ng.ops.exp(0 * x)


def outputs(scripts: Iterable[Path]) -> list[str]:
    """What each of these scripts prints, run one after the other in a process without the package."""
    command = [sys.executable, "-I", "-c", RUNNER, *map(str, scripts)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def wrong(passes: Iterable[Pass], folder: Path) -> list[str]:
    """The lines that scripts of these passes print, but for those that all is the same."""
    scripts = []
    for f, inputs, cotangent in passes:
        scripts.append(folder / f"{len(scripts)}.py")
        ng.trace(f, *inputs, cotangent=cotangent).script(scripts[-1])
    lines = outputs(scripts)
    assert len(lines) >= len(scripts)
    return [line for line in lines if not line.endswith("arrays are the same, bit for bit")]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scripts_of_calls_of_every_op_give_the_same_bits(dtype: str, tmp_path: Path) -> None:
    assert wrong((found for name in OPS for found in list(op_passes(name, 1, dtype))[:1]), tmp_path) == []


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPS)
def test_scripts_of_twelve_calls_of_an_op_give_the_same_bits(name: str, dtype: str, tmp_path: Path) -> None:
    assert wrong(op_passes(name, 12, dtype, seed=1), tmp_path) == []


@pytest.mark.thorough
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_scripts_of_every_layer_and_model_give_the_same_bits(layer: type, tmp_path: Path) -> None:
    assert wrong(layer_passes(layer), tmp_path) == []


def test_the_script_of_a_gpt_with_dropout_gives_the_same_bits(tmp_path: Path) -> None:
    model, tokens, targets = small_gpt(dropout=0.2)
    ng.trace(model.loss, tokens, targets).script(tmp_path / "backward.py")
    command = [sys.executable, "-I", str(tmp_path / "backward.py")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "all 70 arrays are the same, bit for bit\n")
    text = (tmp_path / "backward.py").read_text()
    assert "nanograd_llm." not in text and "import nanograd" not in text


def test_the_script_of_an_op_of_ones_own_gives_the_same_bits(tmp_path: Path) -> None:
    trace = ng.trace(lambda x: (bump(x) * x).sum(), np.array([-1.0, 0.5]))
    trace.script(tmp_path / "own.py")
    assert outputs([tmp_path / "own.py"]) == ["all 8 arrays are the same, bit for bit"]


def test_names_of_leaves_that_the_script_uses_itself_do_no_harm(tmp_path: Path) -> None:
    def f(y0, dy1, dx0, kept0, np, recorded, sum, keep, forward):
        return (ng.ops.tanh(y0 * dy1) + ng.ops.sum(dx0 * kept0)) * np * recorded + sum * keep * forward

    values = [0.1 * i + 0.2 for i in range(8)]
    trace = ng.trace(f, *values[:2], np.ones(2), *values[2:])
    trace.script(tmp_path / "names.py")
    assert trace.grads["y0"] != 0 and list(trace.grads)[2] == "dx0"
    assert len(outputs([tmp_path / "names.py"])) == 1 and "bit for bit" in outputs([tmp_path / "names.py"])[0]


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("return dy * slope", "return dy * slope * 1.001", ["12 gelu_backward: dx"]),
        ("dx = (rows @ w.T)", "dx = (rows @ -w.T)", [f"{n} linear_backward: dx" for n in (13, 11, 7, 5)]),
        ("np.tanh(h, out=h)", "np.sin(h, out=h)", ["12 gelu: y", "12 gelu_backward: dx"]),  # it keeps the slope
        ("_subtract_targets(p", "_subtract_targets(p + 0", ["17 linear_cross_entropy_backward: d" + x for x in "xw"]),
    ],
)
def test_a_mistake_in_a_script_is_named_at_its_op_and_no_other(right, wrong, named, tmp_path: Path) -> None:
    model, tokens, targets = small_gpt(dropout=0.2)
    script = tmp_path / "backward.py"
    ng.trace(model.loss, tokens, targets).script(script)
    text = script.read_text()
    head, _, calls = text.partition("# what goes in")
    assert right in head
    script.write_text(head[::-1].replace(right[::-1], wrong[::-1], 1)[::-1] + "# what goes in" + calls)
    *lines, last, end = outputs([script])
    assert lines == [f"{name}: they differ" for name in named]
    assert last == f"{len(named)} of 70 arrays differ from the recorded ones" and end.endswith("SystemExit: 1")


def hooked(x):
    h = x * x
    h.register_hook(lambda dh: 2 * dh)
    return h.sum()


def test_what_a_script_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "no.py"
    with pytest.raises(GraphError, match="cannot hold the gradient of h: a hook replaced it"):
        ng.trace(hooked, np.array([3.0])).script(path)

    space: dict = {"ng": ng, "__name__": "made_up"}
    exec(
        "@ng.op('y = 2x', 'x̄ = 2ȳ')\ndef twice(x):\n    'Double.  x (*) -> y (*)'\n    return 2 * x\n"
        "@twice.backward\ndef rule(dy):\n    return 2 * dy\n",
        space,
    )
    with pytest.raises(GraphError, match="cannot hold the op twice: the source of twice is not found"):
        ng.trace(space["twice"], 1.0).script(path)

    lock = object()

    @ng.op("y = x", "x̄ = ȳ")
    def guarded(x):
        """The same.  x (*) -> y (*)"""
        return x + 0 * (lock is None)

    guarded.backward(lambda dy: dy)
    with pytest.raises(GraphError, match="cannot hold the op guarded: it uses lock, a object"):
        ng.trace(guarded, 1.0).script(path)
    with pytest.raises(ConfigError, match=r"a script ends in \.py, such as backward\.py; got .*backward.txt"):
        ng.trace(ng.ops.tanh, 1.0).script(tmp_path / "backward.txt")
    assert not list(tmp_path.iterdir())
