"""From tokens to text as it is written, and a text that a person and a model write in turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

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
    seed: int = 0,
    cache: bool = True,
) -> Iterator[str]:
    """What the model writes after `prompt`, ids (T), in pieces of whole characters, up to the end of the text.

    Raises as `stream` does.
    """
    written = stream(model, prompt, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, cache=cache)
    new = (token for (token,) in written if token is not None)
    return tokenizer.decode_stream(itertools.takewhile(lambda token: token != tokenizer.end_of_text, new))


class Conversation:
    """A text that a person and a model write in turn; the model sees all of it, as far as its context reaches.

    max_new_tokens: of one reply, which ends earlier at an empty line or the end of the text.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        max_new_tokens: int = 60,
        sampling: Sampling | None = None,
        seed: int = 0,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.sampling, self.seed = max_new_tokens, sampling, seed
        self.ids = np.zeros(0, np.int32)

    def reply(self, text: str) -> Iterator[str]:
        """Add a line of text, and what the model writes after it, piece by piece. An empty line lets it go on."""
        line = f"{text}\n" if text or not len(self.ids) else ""
        self._add(line)
        reply = ""
        pieces = stream_text(
            self.model,
            self.tokenizer,
            self.ids,
            max_new_tokens=self.max_new_tokens,
            sampling=self.sampling,
            seed=self.seed,
        )
        shown = 0
        for piece in pieces:
            reply += piece
            begin = len(reply) - len(reply.lstrip("\n"))
            end = reply.find("\n\n", begin)
            reply = reply if end < 0 else reply[:end]
            ready = len(reply.rstrip("\n"))  # a line end waits for what follows it: it may be the reply's own end
            yield reply[shown:ready]
            shown = max(shown, ready)
            if end >= 0:
                break
        self._add(reply.rstrip("\n") + "\n")

    def _add(self, text: str) -> None:
        self.ids = np.concatenate([self.ids, self.tokenizer.encode(text)])
