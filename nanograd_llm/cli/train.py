"""`nanograd-llm train`: a GPT learns to write from a text."""

from __future__ import annotations

import contextlib
import shlex
import time
from pathlib import Path
from typing import Literal

from nanograd_llm.cli.options import NOTHING, Given, options, with_options
from nanograd_llm.cli.progress import show
from nanograd_llm.cli.terminal import waiting, written
from nanograd_llm.models.gpt import GPTConfig
from nanograd_llm.runs.run import RunConfig
from nanograd_llm.tasks.language_model import TextConfig
from nanograd_llm.training.config import TrainConfig

PRESETS = "the preset's"


@with_options(
    run=options(RunConfig, "Run"),
    text=options(TextConfig, "Text", without=["file", "window", "model"]),
    model=options(
        GPTConfig,
        "Model",
        without=["vocab_size", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"],
        shown={
            **dict.fromkeys(("n_layer", "n_head", "n_embd"), PRESETS),
            "context_length": f"{PRESETS}; with --init it is that of a window, 128",
        },
    ),
    train=options(
        TrainConfig,
        "Training",
        shown={
            "steps": None,
            "minutes": 1.0,
            "batch_size": f"{PRESETS}; 8 with --init",
            "learning_rate": f"{PRESETS}; with --init 5e-5 for 768 channels, more for fewer",
            "weight_decay": f"{PRESETS}; 0.1 with --init",
        },
    ),
)
def train(
    file: Path | None = None,
    /,
    *,
    config: Path | None = None,
    preset: Literal["nano", "distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] | None = None,
    out: Path | None = None,
    run: Given = NOTHING,
    text: Given = NOTHING,
    model: Given = NOTHING,
    train: Given = NOTHING,
) -> int:
    """Train a GPT on a text, from fresh weights or a model's, then score it on the held-out tenth and let it write.

    Without arguments: the built-in corpus, a tokenizer trained on it, the preset nano, one minute.

    Parameters
    ----------
    file
        A UTF-8 text; the reference manual that CPython carries if not given.
    config
        A TOML file of settings, with the tables [run], [text], [model] and [train] that the config.toml of a run has;
        that of a run makes the run again. Options override it.
    preset
        Sizes of the model, and the batch size, learning rate and weight decay that suit them; nano if not given.
    out
        The run folder to make; runs/PRESET-N if not given, or runs/tuned-N with --init.
    """
    spent = time.process_time()  # what starting up has cost
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
