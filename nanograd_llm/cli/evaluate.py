"""`nanograd-llm eval`: how well does a model know a text?"""

from __future__ import annotations

import sys
from pathlib import Path


def evaluate(model: str, text: Path, /, *, stride: int | None = None) -> None:
    """Score a model on a text: loss, perplexity and bits per byte, over sliding windows; every byte counts once.

    With the tokenizer characters, which has no end of text to put before it, the first character is not judged.

    Parameters
    ----------
    model
        The folder of a run, or a pretrained model: a folder, a file or a name, such as gpt2.
    text
        A UTF-8 text file.
    stride
        Tokens that the window moves by; half a window if not given. Smaller is slower, and gives each token more
        context to be judged by.
    """
    from nanograd_llm.cli.words import counted
    from nanograd_llm.inference import evaluate_text
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.text import read_text

    content = read_text(text)
    opened = open_model(model)
    tokenizer, loaded = opened.tokenizer(), opened.model()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("scoring", total=1.0)
            found = evaluate_text(
                loaded, content, tokenizer, stride=stride, progress=lambda done: bar.update(task, completed=done)
            )
    else:
        found = evaluate_text(loaded, content, tokenizer, stride=stride)
    print(
        f"loss           {found.loss:.4f} nats a token\n"
        f"perplexity     {found.perplexity:.2f}\n"
        f"bits per byte  {found.bits_per_byte:.4f}\n"
        f"over           {counted(found.tokens, 'token')}, {counted(found.bytes, 'byte')}"
    )
