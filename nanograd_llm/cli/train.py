"""`nanograd-llm train`: a GPT learns to write from a text."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from nanograd_llm.cli.progress import show
from nanograd_llm.errors import ConfigError

if TYPE_CHECKING:
    from nanograd_llm.models import GPTConfig
    from nanograd_llm.pretrained.opened import Opened
    from nanograd_llm.tasks import TextConfig
    from nanograd_llm.training import TrainConfig


def train(
    file: Path | None = None,
    /,
    *,
    init: str | None = None,
    preset: Literal["nano", "distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    out: Path | None = None,
    checkpoint_every: int | None = None,
    evaluate_every: int | None = None,
    tokenizer: Literal["bpe", "bytes", "characters"] | None = None,
    vocab_size: int | None = None,
    context_length: int | None = None,
    n_layer: int | None = None,
    n_head: int | None = None,
    n_embd: int | None = None,
    dropout: Annotated[float, Parameter(help="Dropout rate while training.")] = 0.0,
    batch_size: int | None = None,
    accumulate: int = 1,
    checkpoint_activations: bool = False,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    seed: int = 0,
    threads: int = 0,
    processes: bool = True,
) -> int:
    """Train a GPT on a text, from fresh weights or a model's, then score it on the held-out tenth and let it write.

    Without arguments: the built-in corpus, a tokenizer trained on it, the preset nano, one minute.

    Parameters
    ----------
    file
        A UTF-8 text; the reference manual that CPython carries if not given.
    init
        Go on from this model's weights, with its tokenizer: the folder of a run, or a pretrained model: a folder, a
        file or a name, such as gpt2.
    preset
        Sizes of the model, and the batch size, learning rate and weight decay that suit them; nano if not given.
    steps
        Length of the run. The same steps and number of threads give the same model, bit for bit.
    minutes
        Length of the run in time instead, start-up included; 1 if neither is given.
    out
        The run folder to make; runs/PRESET-N if not given, or runs/tuned-N with --init.
    checkpoint_every
        Save every so many steps; at the end only if not given.
    evaluate_every
        Score the held-out text every so many steps; five times a run if not given.
    tokenizer
        bpe, which is trained on the text, if not given.
    vocab_size
        Tokens of the bpe; 1024 if not given.
    context_length
        Tokens a model sees at once; the preset's if not given, as the next three. With --init the tokens of a window
        that is trained on, at most what the model takes; 128 if not given.
    n_layer
        Blocks.
    n_head
        Attention heads of a block.
    n_embd
        Channels.
    batch_size
        Windows a step; the preset's if not given, 8 with --init.
    accumulate
        Work through each batch in so many pieces a thread, to save memory.
    checkpoint_activations
        Keep only what enters each block and compute the rest again in backward, to save more memory for a third more
        time; the bits are the same.
    learning_rate
        At its peak; the preset's if not given. With --init 5e-5 for 768 channels, more for fewer.
    weight_decay
        On matrices only; the preset's if not given, 0.1 with --init.
    seed
        Decides the first weights, every batch and every dropout mask.
    threads
        Workers that the batch is split over; 0 is one a core.
    processes
        On Linux, have them be forked processes, faster for small models; the bits are the same as with threads.
    """
    spent = time.process_time()  # what starting up has cost
    from nanograd_llm.runs import Run
    from nanograd_llm.tasks import LanguageModelling

    if steps is not None and minutes is not None:
        raise ConfigError("steps and minutes are both given; give the length of the run in one of them")
    began = time.monotonic()
    sizes = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    length = dict(steps=steps, minutes=1.0 if steps is None and minutes is None else minutes)
    rates = dict(batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay)
    config = dict(**length, **rates, accumulate=accumulate, seed=seed, threads=threads, processes=processes)
    if init is None:
        text, model, training, start = _fresh(file, preset, tokenizer, vocab_size, context_length, sizes, config)
    else:
        fixed = sizes | dict(preset=preset, tokenizer=tokenizer, vocab_size=vocab_size)
        given = [f"--{name.replace('_', '-')}" for name, value in fixed.items() if value is not None]
        if given:
            raise ConfigError(f"{', '.join(given)}: with --init these are the model's; leave them out")
        text, model, training, start = _further(file, init, config)
    task = LanguageModelling(
        text,
        dataclasses.replace(model, dropout=dropout, checkpoint_activations=checkpoint_activations),
        training,
        start=start,
        window=None if start is None else min(128, model.context_length) if context_length is None else context_length,
    )
    name = "tuned" if start else preset or "nano"
    run = Run(out, task, name, evaluate_every=evaluate_every, checkpoint_every=checkpoint_every)
    spent += time.monotonic() - began
    with contextlib.closing(run.train(spent=spent)) as events:
        code = show(run, events)
    folder = shlex.quote(str(run.folder.path))
    words = task.tokenizer.decode(task.ids[:24]).split()[:3] if file is not None else ["The", "statement"]
    if not all(word.isprintable() and "\N{REPLACEMENT CHARACTER}" not in word for word in words):
        words = ["The"]
    prompt = " ".join(words).lstrip("-")[:40] or "The"  # what begins with a dash would be an option
    print(f"\nRun folder: {folder}\nNext:       nanograd-llm generate {folder} {shlex.quote(prompt)}")
    return code


def _fresh(
    file: Path | None,
    preset: str | None,
    tokenizer: str | None,
    vocab_size: int | None,
    context_length: int | None,
    sizes: dict[str, Any],
    config: dict[str, Any],
) -> tuple[TextConfig, GPTConfig, TrainConfig, None]:
    """What a run from fresh weights is made of."""
    from nanograd_llm.models import GPTConfig
    from nanograd_llm.tasks import TextConfig, recipe

    preset, tokenizer = preset or "nano", tokenizer or "bpe"
    given = {name: value for name, value in sizes.items() if value is not None}
    if context_length is not None:
        given["context_length"] = context_length
    model = GPTConfig.preset(preset, **given)
    if vocab_size is not None and tokenizer != "bpe":
        raise ConfigError(f"vocab_size is for the tokenizer bpe; {tokenizer} has the vocabulary it has")
    text = TextConfig(None if file is None else str(file), tokenizer, 1024 if vocab_size is None else vocab_size)
    return text, model, recipe(preset, **config), None


def _further(file: Path | None, init: str, config: dict[str, Any]) -> tuple[TextConfig, GPTConfig, TrainConfig, Opened]:
    """What a run from a model's weights is made of."""
    from nanograd_llm.runs import open_model
    from nanograd_llm.tasks import TextConfig, fine_tuning

    opened = open_model(init)
    text = TextConfig(None if file is None else str(file), "model")
    return text, opened.config, fine_tuning(opened.config, **config), opened
