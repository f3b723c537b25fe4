"""Whole commands on a GPU: runs of each task are trained, resumed and used there, on a strict stand-in for CuPy."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import strict_cupy

from nanograd_llm import GPT, GPTConfig, ops, save_gpt2, use_device
from nanograd_llm.backend.arrays import SCALARS_WIDEN, xp
from nanograd_llm.cli import main

pytestmark = pytest.mark.skipif(SCALARS_WIDEN, reason="CuPy needs NumPy 2")

SIZES = "--n-layer 1 --n-head 2 --n-embd 4 --context-length 32 --batch-size 2"
WORDS = tuple("the cat sees a dog and the dog sees a cat near an old green house".split())
USES = {
    "language-model": [
        *("generate {run} cat --max-new-tokens 3", "eval {run} {text}", "train --resume {run} --watch 1 --steps 4"),
        *("look {run} 'the cat'", "step {run} 'the cat' --html {folder}/step.html"),
    ],
    "masked-words": ["fill {run} 'The [MASK] sees a dog.'", "embed {run} cat --out {folder}/v.npy"],
    "translation": ["translate {run} cat --beam 2 --max-new-tokens 3"],
    "classification": ["classify {run} 'a cat'"],
}


@pytest.mark.parametrize("task", USES)
def test_a_run_on_a_gpu_is_trained_resumed_and_used(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strict_cupy.installed(monkeypatch)
    text, run = tmp_path / "text", tmp_path / "run"
    lines = [" ".join(WORDS[n % 7 :: 1 + n % 3]) + f" {'.' * (1 + n % 4)}" for n in range(60)]
    text = text.with_suffix({"translation": ".tsv", "classification": ".csv"}.get(task, ".txt"))
    if task == "translation":
        lines = [f"{line} {n}\t{n} {line}" for n, line in enumerate(lines)]
    if task == "classification":
        lines = ["text,label", *(f"{line} {n},{'ab'[n % 2]}" for n, line in enumerate(lines))]
    text.write_text("\n".join(lines) + "\n")
    commands = [
        f"train {text} --task {task} --steps 2 --norms-every 1 --out {run} {SIZES}",
        f"train --resume {run} --steps 3",
        *(use.format(run=run, text=text, folder=tmp_path) for use in USES[task]),
    ]
    with use_device("cpu"):
        for command in commands:
            before = strict_cupy.state.waits
            assert main([*shlex.split(command), "--device", "cuda"]) == 0, capsys.readouterr().err
            assert strict_cupy.state.waits > before, "it was computed on the GPU"


def test_a_pass_on_a_gpu_is_no_script_and_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strict_cupy.installed(monkeypatch)
    save_gpt2(GPT(GPTConfig(vocab_size=50257, context_length=8, n_layer=1, n_head=1, n_embd=2), seed=0), tmp_path / "m")
    with use_device("cpu"):
        assert main(["step", str(tmp_path / "m"), "a b", "--script", str(tmp_path / "a.py"), "--device", "cuda"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "record it on the CPU: --device cpu" in err
    assert not (tmp_path / "a.py").exists()


def test_the_ops_are_checked_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    strict_cupy.installed(monkeypatch)
    with use_device("cpu"):
        assert main(["gradcheck", "--op", "tanh", "--cases", "3", "--order", "1", "--device", "cuda"]) == 0
        assert strict_cupy.state.waits > 0
        rule = ops.tanh.rule
        assert rule is not None
        monkeypatch.setattr(ops.tanh, "rule", lambda dy, y: rule(dy, y) * (1 + 1e-9 * (xp(dy) is not np)))
        assert main(["gradcheck", "--op", "tanh", "--cases", "3", "--order", "1", "--device", "cuda"]) == 1
    assert "the rule of tanh is wrong for x" in capsys.readouterr().out
