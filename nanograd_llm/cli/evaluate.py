"""`nanograd-llm eval`: how well does a model know a text?"""

from __future__ import annotations

from pathlib import Path

from nanograd_llm.cli.options import Model
from nanograd_llm.cli.terminal import waiting
from nanograd_llm.settings import counted


def evaluate(model: Model, text: Path, /, *, stride: int | None = None) -> None:
    """Score a model on a text: loss, perplexity and bits per byte, over sliding windows; every byte counts once.

    With the tokenizer characters, which has no end of text to put before it, the first character is not judged.

    Parameters
    ----------
    text
        A UTF-8 text file.
    stride
        Tokens that the window moves by; half a window if not given. Smaller is slower, and gives each token more
        context to be judged by.
    """
    from nanograd_llm.inference import evaluate_text
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.text import read_text

    content = read_text(text)
    opened = open_model(model)
    tokenizer, loaded = opened.tokenizer(), opened.model()
    with waiting("scoring") as progress:
        found = evaluate_text(loaded, content, tokenizer, stride=stride, progress=progress)
    print(
        f"loss           {found.loss:.4f} nats a token\n"
        f"perplexity     {found.perplexity:.2f}\n"
        f"bits per byte  {found.bits_per_byte:.4f}\n"
        f"over           {counted(found.tokens, 'token')}, {counted(found.bytes, 'byte')}"
    )
