"""`nanograd-llm train`: a GPT learns to write from a text."""

from __future__ import annotations

import contextlib
import shlex
import time
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from nanograd_llm.cli.progress import show
from nanograd_llm.errors import ConfigError


def train(
    file: Path | None = None,
    /,
    *,
    preset: Literal["nano", "distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = "nano",
    steps: int | None = None,
    minutes: float | None = None,
    out: Path | None = None,
    checkpoint_every: int | None = None,
    evaluate_every: int | None = None,
    tokenizer: Literal["bpe", "bytes", "characters"] = "bpe",
    vocab_size: int | None = None,
    context_length: int | None = None,
    n_layer: int | None = None,
    n_head: int | None = None,
    n_embd: int | None = None,
    dropout: Annotated[float, Parameter(help="Dropout rate while training.")] = 0.0,
    batch_size: int | None = None,
    accumulate: int = 1,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    seed: int = 0,
    threads: int = 0,
    processes: bool = True,
) -> int:
    """Train a GPT on a text, then score it on the held-out tenth and let it write.

    Without arguments: the built-in corpus, a tokenizer trained on it, the preset nano, one minute.

    Parameters
    ----------
    file
        A UTF-8 text; the reference manual that CPython carries if not given.
    preset
        Sizes of the model, and the batch size, learning rate and weight decay that suit them.
    steps
        Length of the run. The same steps and number of threads give the same model, bit for bit.
    minutes
        Length of the run in time instead, start-up included; 1 if neither is given.
    out
        The run folder to make; runs/PRESET-N if not given.
    checkpoint_every
        Save every so many steps; at the end only if not given.
    evaluate_every
        Score the held-out text every so many steps; five times a run if not given.
    tokenizer
        bpe is trained on the text.
    vocab_size
        Tokens of the bpe; 1024 if not given.
    context_length
        Tokens a model sees at once; the preset's if not given, as the next three.
    n_layer
        Blocks.
    n_head
        Attention heads of a block.
    n_embd
        Channels.
    batch_size
        Windows a step; the preset's if not given.
    accumulate
        Work through each batch in so many pieces a thread, to save memory.
    learning_rate
        At its peak; the preset's if not given.
    weight_decay
        On matrices only; the preset's if not given.
    seed
        Decides the first weights, every batch and every dropout mask.
    threads
        Workers that the batch is split over; 0 is one a core.
    processes
        Have them be forked processes, faster for small models, where the system can fork; the bits are the same.
    """
    spent = time.process_time()  # what starting up has cost
    from nanograd_llm.models import GPTConfig
    from nanograd_llm.runs import TextConfig, TextRun, recipe

    if steps is not None and minutes is not None:
        raise ConfigError("steps and minutes are both given; give the length of the run in one of them")
    sizes = dict(context_length=context_length, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    model = GPTConfig.preset(preset, dropout=dropout, **{k: v for k, v in sizes.items() if v is not None})
    if vocab_size is not None and tokenizer != "bpe":
        raise ConfigError(f"vocab_size is for the tokenizer bpe; {tokenizer} has the vocabulary it has")
    text = TextConfig(None if file is None else str(file), tokenizer, 1024 if vocab_size is None else vocab_size)
    config = recipe(
        preset,
        steps=steps,
        minutes=1.0 if steps is None and minutes is None else minutes,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        threads=threads,
        processes=processes,
    )
    began = time.monotonic()
    run = TextRun(
        out,
        text,
        model,
        config,
        name=preset,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
    )
    spent += time.monotonic() - began
    with contextlib.closing(run.train(spent=spent)) as events:
        code = show(run, events)
    folder = shlex.quote(str(run.folder.path))
    words = run.tokenizer.decode(run.ids[:24]).split()[:3] if file is not None else ["The", "statement"]
    if not all(word.isprintable() and "\N{REPLACEMENT CHARACTER}" not in word for word in words):
        words = ["The"]
    prompt = " ".join(words).lstrip("-")[:40] or "The"  # what begins with a dash would be an option
    print(f"\nRun folder: {folder}\nNext:       nanograd-llm generate {folder} {shlex.quote(prompt)}")
    return code
