"""Questions to another process over a pipe: what fails there, and its own end, are errors here."""

from __future__ import annotations

import contextlib
import pickle
from typing import TYPE_CHECKING, Any

from nanograd_llm.errors import NanogradError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


def send(pipe: Connection, message: Any) -> None:
    """Send a question or an answer. That nobody is there any more shows where the next message is waited for."""
    with contextlib.suppress(ConnectionError):
        pipe.send(message)


def receive(pipe: Connection, ended: str) -> Any:
    """The next answer; an error is raised. `ended` is what NanogradError says where the other process is gone."""
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionError):
        raise NanogradError(ended) from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def told(error: Exception) -> Exception:
    """An error as it can be sent: ours and MemoryError as they are, where pickle can make them again."""
    with contextlib.suppress(Exception):
        if isinstance(error, (NanogradError, MemoryError)):
            return pickle.loads(pickle.dumps(error))
    return NanogradError(f"{type(error).__name__}: {error}")
