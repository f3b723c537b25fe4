"""`nanograd-llm chat`: write a text in turn with a model."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import secrets
import sys

from nanograd_llm.cli.options import NOTHING, Given, Model, options, with_options
from nanograd_llm.cli.terminal import written
from nanograd_llm.inference import Conversation, Sampling
from nanograd_llm.inference.sampling import PROSE
from nanograd_llm.settings import printable


@with_options(sampling=options(Sampling, "Sampling", shown={**vars(PROSE), "seed": "a fresh one"}))
def chat(model: Model, /, *, max_new_tokens: int = 60, sampling: Given = NOTHING) -> None:
    """Type a line, and the model goes on from it and all before; an empty line lets it go on. Ctrl-D ends.

    A GPT that was trained on text continues text; it was not taught to answer.

    Parameters
    ----------
    max_new_tokens
        Tokens of a reply; it ends earlier at an empty line, or where the model ends the text.
    """
    from nanograd_llm.errors import IndexRangeError
    from nanograd_llm.runs.opening import open_model

    opened = open_model(model)
    tokenizer, loaded = opened.tokenizer(), opened.model()
    strategy = dataclasses.replace(PROSE, **{"seed": secrets.randbelow(10**6), **sampling})
    conversation = Conversation(loaded, tokenizer, max_new_tokens=max_new_tokens, sampling=strategy)
    if isinstance(sys.stdin, io.TextIOWrapper):
        with contextlib.suppress(io.UnsupportedOperation):  # a program has read from it before, in its own way
            sys.stdin.reconfigure(errors="replace")  # what is no text is read as U+FFFD
    prompt = ""
    if sys.stdin.isatty():
        print("Type a line; the model goes on from it. Ctrl-D ends.")
        prompt = "> "
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  the arrow keys edit the line and bring back earlier ones
    while True:
        try:
            line = input(prompt)
        except EOFError:
            print(end="\n" if prompt else "")
            break
        try:
            tokenizer.encode(line)
        except IndexRangeError as error:  # nothing is lost by it: the next line may be one that the model can read
            print(f"nanograd-llm: {printable(str(error))}", file=sys.stderr)
            continue
        for piece in conversation.reply(line):
            print(written(piece), end="", flush=True)
        print()
