"""`nanograd-llm generate`: a model continues a prompt."""

from __future__ import annotations

import dataclasses
import secrets
import sys

from nanograd_llm.cli.options import NOTHING, Given, Model, options, with_options
from nanograd_llm.cli.terminal import accept_any_input, written
from nanograd_llm.inference import Sampling, stream_text
from nanograd_llm.inference.sampling import PROSE
from nanograd_llm.inference.writing import default_prompt


@with_options(sampling=options(Sampling, "Sampling", shown={**vars(PROSE), "seed": "a random one"}))
def generate(
    model: Model,
    prompt: str | None = None,
    /,
    *,
    max_new_tokens: int = 200,
    cache: bool = True,
    sampling: Given = NOTHING,
) -> None:
    """Continue a prompt with a model; the text appears while it is generated.

    Parameters
    ----------
    prompt
        The text to continue; if not given, what is piped in, else a new line, or the first token of a tokenizer that
        has no new line. Put a prompt that begins with a dash last, after " -- ".
    max_new_tokens
        Tokens to write; fewer if the model ends the text.
    cache
        Keep keys and values instead of computing them again, which is faster; the text is the same.
    """
    from nanograd_llm.models.gpt import GPT
    from nanograd_llm.runs.opening import open_model

    opened = open_model(model, GPT)
    tokenizer, loaded = opened.tokenizer(), opened.model()
    if prompt is None and not sys.stdin.isatty():
        accept_any_input()
        prompt = sys.stdin.read().removesuffix("\n")
    prompt = prompt or default_prompt(tokenizer)
    ids = tokenizer.encode(prompt)
    strategy = dataclasses.replace(PROSE, **{"seed": secrets.randbelow(10**6), **sampling})
    pieces = stream_text(loaded, tokenizer, ids, max_new_tokens=max_new_tokens, sampling=strategy, cache=cache)
    print(written(prompt + next(pieces, "")), end="", flush=True)  # an error comes before it
    for piece in pieces:
        print(written(piece), end="", flush=True)
    print(flush=True)
    if "seed" not in sampling and strategy.temperature > 0:
        print(f"to get this text again, add --seed {strategy.seed}", file=sys.stderr)
