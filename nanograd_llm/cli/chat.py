"""`nanograd-llm chat`: a person and a model write a text in turn."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from nanograd_llm.cli.generate import SAMPLING
from nanograd_llm.cli.options import NOTHING, Device, Given, Model, with_options
from nanograd_llm.cli.terminal import keep_bytes_of_stdin, piped, write_pieces
from nanograd_llm.inference import Conversation, Dialogue
from nanograd_llm.inference.sampling import strategy_of
from nanograd_llm.settings import printable


@with_options(sampling=SAMPLING)
def chat(model: Model, /, *, max_new_tokens: int = 60, device: Device = "cpu", sampling: Given = NOTHING) -> None:
    """Take turns with a model: you write a line, it writes the next.

    Ctrl-C ends a reply; at the prompt Ctrl-C or Ctrl-D ends the chat. A GPT that was trained on text continues text,
    also after an empty line; it does not answer questions. One that was trained on instructions answers them. It sees
    as many earlier turns as it was trained with.

    Parameters
    ----------
    max_new_tokens
        Tokens of a reply; it ends earlier at an empty line, or if the model ends the text.
    """
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.errors import BadFileError, IndexRangeError
    from nanograd_llm.models.gpt import GPT
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.text.template import template_beside

    use_device(device)
    opened = open_model(model, GPT)
    tokenizer, loaded = opened.tokenizer(), opened.model()
    template = template_beside(opened.path)
    strategy = strategy_of(sampling, answers=template is not None)
    settings: Any = {"max_new_tokens": max_new_tokens, "sampling": strategy}
    conversation: Conversation | Dialogue
    if template is None:
        conversation = Conversation(loaded, tokenizer, **settings)
    else:
        conversation = Dialogue(loaded, tokenizer, template, **settings)
    keep_bytes_of_stdin()
    prompt = ""
    if sys.stdin.isatty():
        does = "continues" if template is None else "answers"
        print(f"Type a line; the model {does} it. Ctrl-C ends a reply; at the prompt Ctrl-C or Ctrl-D ends the chat.")
        prompt = "> "
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  for the arrow keys, which edit the line or recall earlier ones
    while True:
        try:
            line = input(prompt)
        except EOFError:
            print(end="\n" if prompt else "")
            break
        try:
            tokenizer.encode(line := piped(line, "this line"))
        except (BadFileError, IndexRangeError) as error:  # not UTF-8, or not known to the model; the next may be fine
            print(f"nanograd-llm: {printable(str(error))}", file=sys.stderr)
            continue
        with contextlib.closing(conversation.reply(line)) as reply:
            try:
                write_pieces(reply)
            except KeyboardInterrupt:
                if not prompt:
                    raise
        print()
