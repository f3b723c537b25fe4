"""`nanograd-llm generate`: a trained model continues a prompt."""

from __future__ import annotations

import dataclasses
import secrets
import sys

from nanograd_llm.cli.options import NOTHING, Given, Model, options, with_options
from nanograd_llm.cli.terminal import written
from nanograd_llm.inference import Sampling, stream_text
from nanograd_llm.inference.sampling import PROSE
from nanograd_llm.inference.writing import opening


@with_options(sampling=options(Sampling, "Sampling", shown={**vars(PROSE), "seed": "a fresh one"}))
def generate(
    model: Model,
    prompt: str | None = None,
    /,
    *,
    max_new_tokens: int = 200,
    cache: bool = True,
    sampling: Given = NOTHING,
) -> None:
    """Continue a prompt with a model; the text appears as it is written.

    Parameters
    ----------
    prompt
        What to continue; a new line if not given, or the first character of an alphabet that has none. One that begins
        with a dash goes last, behind " -- ".
    max_new_tokens
        Tokens to write; the text ends earlier where the model says so.
    cache
        Keep keys and values instead of computing them again; the text is the same.
    """
    from nanograd_llm.runs.opening import open_model

    opened = open_model(model)
    tokenizer, loaded = opened.tokenizer(), opened.model()
    prompt = prompt or opening(tokenizer)
    ids = tokenizer.encode(prompt)
    strategy = dataclasses.replace(PROSE, **{"seed": secrets.randbelow(10**6), **sampling})
    pieces = stream_text(loaded, tokenizer, ids, max_new_tokens=max_new_tokens, sampling=strategy, cache=cache)
    print(written(prompt + next(pieces, "")), end="", flush=True)  # only once the first piece shows that all is well
    for piece in pieces:
        print(written(piece), end="", flush=True)
    print(flush=True)
    if "seed" not in sampling and strategy.temperature > 0:
        print(f"--seed {strategy.seed} writes this again", file=sys.stderr)
