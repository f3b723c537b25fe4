"""`nanograd-llm eval`: score a model on a text."""

from __future__ import annotations

from nanograd_llm.cli.options import Device, Model
from nanograd_llm.cli.terminal import waiting
from nanograd_llm.settings import counted


def evaluate(model: Model, text: str, /, *, stride: int | None = None, device: Device = "cpu") -> None:
    """Score a model on a text: loss, perplexity and bits per byte, over sliding windows; every byte is scored once.

    With the tokenizer characters, which has no end-of-text token to put first, the first character is not scored.

    Parameters
    ----------
    text
        A UTF-8 text file, a folder, a pattern in quotes such as "docs/**/*.md", a .jsonl or .gz file, or - for standard
        input, as for train.
    stride
        Tokens by which the window moves; half a window if not given. A smaller stride is slower, and gives each token
        more context.
    """
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.errors import ConfigError
    from nanograd_llm.inference import evaluate_text
    from nanograd_llm.models.gpt import GPT
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.text import read_source

    use_device(device)
    opened = open_model(model)
    if not issubclass(opened.model_class, GPT):
        raise ConfigError(
            f"{opened.source} is a model of the class {opened.model_class.__name__}, and eval scores language models, "
            "a GPT; nanograd-llm info shows the last score of a run on what was held out"
        )
    with waiting("reading and encoding the text") as progress:
        content = read_source(text, lambda doing, share: progress(share, doing))
        tokenizer, loaded = opened.tokenizer(), opened.model()
        found = evaluate_text(
            loaded, content, tokenizer, stride=stride, progress=lambda share: progress(share, "scoring")
        )
    print(
        f"loss           {found.loss:.4f} nats per token\n"
        f"perplexity     {found.perplexity:.2f}\n"
        f"bits per byte  {found.bits_per_byte:.4f}\n"
        f"over           {counted(found.tokens, 'token')}, {counted(found.bytes, 'byte')}"
    )
