"""The text of a model while it is generated, and a text that a person and a model write in turn."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nanograd_llm.errors import IndexRangeError
from nanograd_llm.inference.generate import stream
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.models.gpt import GPT
from nanograd_llm.text import Tokenizer


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: ArrayLike,
    *,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    cache: bool = True,
) -> Iterator[str]:
    """Yields what the model writes after `prompt`, ids (T), in pieces of whole characters, until it ends the text.

    Raises as `stream` does.
    """
    written = stream(model, prompt, max_new_tokens=max_new_tokens, sampling=sampling, cache=cache)
    new = (token for (token,) in written if token is not None)
    return tokenizer.decode_stream(itertools.takewhile(lambda token: token != tokenizer.end_of_text, new))


def default_prompt(tokenizer: Tokenizer) -> str:
    """The prompt if none is given: a new line, or the first token of a tokenizer that has no new line.

    It is not the end-of-text token: few models but GPT-2 were trained with that.
    """
    return _line_end(tokenizer) or tokenizer.decode([0])


def _line_end(tokenizer: Tokenizer) -> str:
    """A new line, or "" if the tokenizer has no id for it, as may be the case for one of characters."""
    try:
        tokenizer.encode("\n")
    except IndexRangeError:
        return ""
    return "\n"


class Conversation:
    """A text that a person and a model write in turn; the model sees the last part of it, as long as its context.

    max_new_tokens: of one reply, which ends earlier at an empty line, or if the model ends the text.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, max_new_tokens: int = 60, sampling: Sampling | None = None):
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        self.ids = np.zeros(0, np.int32)
        self._line_end = _line_end(tokenizer)

    def reply(self, text: str) -> Generator[str, None, None]:
        """Add a line of text, then what the model writes after it, which is yielded in pieces.

        After an empty line the model continues its own text. Of a reply that the caller ends early, what was yielded is
        kept. Raises IndexRangeError, and adds nothing, if the tokenizer lacks a character of the line.
        """
        if text:
            self._add(text + self._line_end)
        elif not len(self.ids):
            self._add(default_prompt(self.tokenizer))
        settings: Any = {"max_new_tokens": self.max_new_tokens, "sampling": self.sampling}
        written, reply, shown = "", "", 0
        try:
            for piece in stream_text(self.model, self.tokenizer, self.ids, **settings):
                written += piece
                reply, ended, _ = written.lstrip("\n").partition("\n\n")
                reply = reply.rstrip("\n")  # a line end is held back: the reply may end with it
                yield reply[shown:]
                shown = len(reply)
                if ended:
                    break
        finally:
            self._add(reply + self._line_end)

    def _add(self, text: str) -> None:
        self.ids = np.concatenate([self.ids, self.tokenizer.encode(text)])
