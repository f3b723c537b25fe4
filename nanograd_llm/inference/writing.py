"""The text of a model while it is generated, and a text or a dialogue that a person and a model write in turn."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from nanograd_llm.errors import ConfigError, IndexRangeError
from nanograd_llm.inference.generate import generate, stream
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.models.gpt import GPT
from nanograd_llm.settings import require_several
from nanograd_llm.text import Tokenizer

if TYPE_CHECKING:
    from nanograd_llm.text.template import Template


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: ArrayLike,
    *,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    cache: bool = True,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Yields what the model writes after `prompt`, ids (T), in pieces of whole characters, until it ends the text.

    stop: texts that end it as well; they are left out. Raises as `stream` does, and DtypeError for a str as `stop`.
    """
    require_several("stop", stop)
    written = stream(model, prompt, max_new_tokens=max_new_tokens, sampling=sampling, cache=cache)
    new = (token for (token,) in written if token is not None)
    pieces = tokenizer.decode_stream(itertools.takewhile(lambda token: token != tokenizer.end_of_text, new))
    return before_stop(pieces, stop) if stop else pieces


def write_texts(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[ArrayLike],
    *,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    cache: bool = True,
    stop: Sequence[str] = (),
) -> list[str]:
    """What the model writes after each prompt, of any lengths, as one batch; see `stream_text`."""
    require_several("stop", stop)
    ends = () if tokenizer.end_of_text is None else tokenizer.end_of_text
    rows = generate(model, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop=ends, cache=cache)
    texts = [tokenizer.decode(row) for row in rows]
    return ["".join(before_stop([text], stop)) for text in texts] if stop else texts


def before_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The text of these pieces up to the first of the texts `stop`. What may be the beginning of one waits.

    >>> list(before_stop(["one", " t", "wo", " th", "ree"], ["thr"]))
    ['one', ' ', 'two', ' ']
    """
    rest, longest = "", max(map(len, stop))
    for piece in pieces:
        rest += piece
        ends = [place for place in map(rest.find, stop) if place >= 0]
        if ends:
            rest = rest[: min(ends)]
            break
        waits = max(n for n in range(longest) if n == 0 or any(text.startswith(rest[-n:]) for text in stop))
        if len(rest) > waits:
            yield rest[: len(rest) - waits]
            rest = rest[len(rest) - waits :]
    if rest:
        yield rest


def unescaped(stop: str) -> str:
    r"""A text for `before_stop` as it is typed in a shell, where a new line is \n. Raises ConfigError for no text.

    >>> unescaped(r"\n\n")
    '\n\n'
    """
    try:
        text = codecs.decode(stop.encode("latin-1", "backslashreplace"), "unicode_escape")
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise ConfigError(f"stop is '{stop:.100}'; give a text, such as '\\n\\n'; a backslash is written '\\\\'")
    return text


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


class Dialogue:
    """Questions of a person and answers of a model that was trained with this template, each ended by end-of-text.

    The model sees as many turns as it has learned from, if its context has room; the oldest are left out first.
    max_new_tokens: of one answer, which ends earlier if the model ends it.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        template: Template,
        *,
        max_new_tokens: int = 200,
        sampling: Sampling | None = None,
    ):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        self.turns: list[np.ndarray] = []  # ids of a question and its answer

    def reply(self, text: str) -> Generator[str, None, None]:
        """Ask a question; yields the answer in pieces. Of an answer that the caller ends early, what came is kept.

        An empty line asks nothing. Raises IndexRangeError, and keeps nothing, if the tokenizer lacks a character of it.
        """
        if not text.strip():
            return
        question = self.tokenizer.encode(self.template.fill(text))
        context = self.model.config.context_length
        room = context - min(self.max_new_tokens, context // 2) - len(question)
        while self.turns and (len(self.turns) >= self.template.turns or sum(map(len, self.turns)) > room):
            del self.turns[0]
        answer: list[int] = []

        def kept() -> Iterator[int]:
            for (token,) in stream(self.model, prompt, max_new_tokens=self.max_new_tokens, sampling=self.sampling):
                if token is None or token == self.tokenizer.end_of_text:
                    return
                answer.append(token)
                yield token

        prompt = np.concatenate([*self.turns, question])
        try:
            yield from self.tokenizer.decode_stream(kept())
        finally:
            end = [] if self.tokenizer.end_of_text is None else [self.tokenizer.end_of_text]
            self.turns.append(np.array([*question, *answer, *end], np.int32))
