"""A question over a pipe gets its answer, the error there, or one line on the end of the other process."""

from __future__ import annotations

from multiprocessing import Pipe

import pytest

from nanograd_llm.backend.pipes import receive, send, told
from nanograd_llm.errors import NanogradError, ShapeError


def test_what_is_sent_is_received_and_an_error_is_raised() -> None:
    here, there = Pipe()
    send(there, (1, "two"))
    assert receive(here, "gone") == (1, "two")
    send(there, told(ShapeError("two rows")))
    with pytest.raises(ShapeError, match="^two rows$"):
        receive(here, "gone")


def test_an_end_that_is_gone_shows_where_the_answer_is_missing() -> None:
    here, there = Pipe()
    there.close()
    send(here, "question")
    with pytest.raises(NanogradError, match="^gone$"):
        receive(here, "gone")
