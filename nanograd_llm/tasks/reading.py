"""One text as a task reads it: the batch that it becomes, what the model should say, and the bytes of each token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.errors import ConfigError
from nanograd_llm.settings import counted, shown
from nanograd_llm.text.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text as a batch of one row for the loss of a model, in evaluation mode: what `step` and `look` look at.

    loss: the model's, of the arrays of `batch`. texts: the tokens of each text that the model reads, as bytes.
    outputs: the bytes of each thing that the model can say, by number: of a token, or of the name of a class.
    remark: what the model was taken to be expected to say, where the caller did not tell.
    """

    loss: Callable[..., Tensor]
    batch: tuple[Any, ...]
    texts: Sequence[Sequence[bytes]]
    outputs: Callable[[int], bytes]
    remark: str = ""

    @classmethod
    def of(
        cls,
        loss: Callable[..., Tensor],
        batch: tuple[Any, ...],
        tokenizer: Tokenizer,
        *rows: Iterable[Any],
        outputs: Callable[[int], bytes] | None = None,
        said: str | None = None,
    ) -> Reading:
        """The reading of texts with these ids. outputs: tokens if not given. said: by the model, where that is what it
        should say."""
        remark = ""
        if said is not None:
            remark = f"no --target is given, so the target is what the model says itself: {shown(said, 100)}"
        texts = [[tokenizer.decode_bytes([int(i)]) for i in ids] for ids in rows]
        return cls(loss, batch, texts, outputs or (lambda i: tokenizer.decode_bytes([i])), remark)


def require_targets(targets: Sequence[str], known: Sequence[str], needed: int = 0) -> None:
    """Raise ConfigError unless there are as many targets as `known` has, in words, or none, or at least `needed`."""
    if len(targets) not in {needed, len(known)}:
        takes = "this model takes no target: the text says what comes next"
        if known:
            takes = f"give {' and '.join(f'--target with {what}' for what in known)}"
            takes += "" if needed else ", or none, for what the model says itself"
        raise ConfigError(f"{takes}; got {counted(len(targets), 'target')}")
