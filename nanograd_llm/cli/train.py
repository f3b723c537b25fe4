"""`nanograd-llm train`: train a GPT on a text."""

from __future__ import annotations

import contextlib
import shlex
import time
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from nanograd_llm.cli.options import NOTHING, Given, options, with_options
from nanograd_llm.cli.progress import show
from nanograd_llm.cli.terminal import waiting, written
from nanograd_llm.models.gpt import PRESETS, GPTConfig
from nanograd_llm.runs.run import RunConfig
from nanograd_llm.tasks.language_model import RECIPES, TextConfig
from nanograd_llm.training.config import TrainConfig

SIZES = ", ".join(f"{name} {sizes['n_layer']} x {sizes['n_embd']}" for name, sizes in PRESETS.items())
OF_PRESET = {name: f"the preset's, {value} for nano" for name, value in {**PRESETS["nano"], **RECIPES["nano"]}.items()}


@with_options(
    run=options(RunConfig, "Run"),
    text=options(TextConfig, "Text", without=["file", "window", "model"]),
    model=options(
        GPTConfig,
        "Model",
        without=["vocab_size", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"],
        shown={
            **OF_PRESET,
            "context_length": f"{OF_PRESET['context_length']}; with --init the length of a training window, 128",
        },
    ),
    train=options(
        TrainConfig,
        "Training",
        shown={
            "steps": None,
            "minutes": 1.0,
            "batch_size": f"{OF_PRESET['batch_size']}; 8 with --init",
            "learning_rate": f"{OF_PRESET['learning_rate']}; with --init 5e-5 * 768 / n_embd",
            "weight_decay": f"{OF_PRESET['weight_decay']}; 0.1 with --init",
        },
    ),
)
def train(
    file: Path | None = None,
    /,
    *,
    config: Path | None = None,
    preset: Annotated[
        Literal["nano", "distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] | None,
        Parameter(
            help="Sizes of the model, and the batch size, learning rate and weight decay that suit them; nano if not "
            f"given. Blocks x channels: {SIZES}."
        ),
    ] = None,
    out: Path | None = None,
    run: Given = NOTHING,
    text: Given = NOTHING,
    model: Given = NOTHING,
    train: Given = NOTHING,
) -> int:
    """Train a GPT on a text, from new weights or those of a model; then score it on held-out text and let it write.

    Without arguments: the built-in corpus, a tokenizer trained on it, the preset nano, one minute.

    Parameters
    ----------
    file
        A UTF-8 text file; the Python reference manual, which comes with CPython, if not given.
    config
        A TOML file of settings, in the form of a run's config.toml: tables [run], [text], [model] and [train]. The
        config.toml of a run makes the run again. Options override it.
    out
        The folder to make for the run; runs/PRESET-N if not given, or runs/tuned-N with --init.
    """
    spent = time.process_time()  # seconds that starting Python took
    from nanograd_llm.runs.prepare import prepare_run

    began = time.monotonic()
    asked = {"run": run, "text": text if file is None else {**text, "file": str(file)}, "model": model, "train": train}
    with waiting("starting", lines=True) as tell:
        prepared = prepare_run(out, asked, file=config, preset=preset, report=lambda doing, share: tell(share, doing))
    spent += time.monotonic() - began
    with contextlib.closing(prepared.train(spent=spent)) as events:
        code = show(prepared, events)
    folder = shlex.quote(str(prepared.folder.path))
    example = shlex.quote(prepared.task.example())
    print(written(f"\nRun folder: {folder}\nNext:       nanograd-llm {prepared.task.used_by} {folder} {example}"))
    return code
