"""Whole commands on a GPU: runs of each task are trained, resumed and used there, on a strict stand-in for CuPy."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import strict_cupy

from nanograd_llm import use_device
from nanograd_llm.backend.arrays import SCALARS_WIDEN
from nanograd_llm.cli import main

pytestmark = pytest.mark.skipif(SCALARS_WIDEN, reason="CuPy needs NumPy 2")

SIZES = "--n-layer 1 --n-head 2 --n-embd 4 --context-length 32 --batch-size 2"
WORDS = tuple("the cat sees a dog and the dog sees a cat near an old green house".split())
USES = {
    "language-model": ["generate {run} cat --max-new-tokens 3", "eval {run} {text}"],
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
