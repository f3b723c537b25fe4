"""Ctrl-C waits for the end of what must be whole, and reaches no process that was born deaf."""

from __future__ import annotations

import signal

import pytest

from nanograd_llm.backend.interrupts import born_deaf, ctrl_c_later


def test_ctrl_c_is_heard_once_the_block_has_ended() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        with ctrl_c_later():
            signal.raise_signal(signal.SIGINT)
            done.append("whole")
        done.append("never")
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_is_raised_and_the_handler_is_as_before() -> None:
    with pytest.raises(ZeroDivisionError), ctrl_c_later():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="there are no signal masks")
def test_the_mask_holds_within_the_block_only() -> None:
    def mask() -> set[int]:
        return signal.pthread_sigmask(signal.SIG_BLOCK, ())

    before = mask()
    with born_deaf(signal.SIGINT, signal.SIGTERM):
        assert {signal.SIGINT, signal.SIGTERM} <= mask()
    assert mask() == before
