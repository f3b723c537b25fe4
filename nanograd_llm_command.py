"""The front door of the command `nanograd-llm`: while the package loads, Ctrl-C is one line and code 130 as later on.

This lies outside the package, whose first import loads NumPy; and it is a handler, not an exception, since an import
that is broken into can hide an exception or print it.
"""

from __future__ import annotations

import os
import signal


def main() -> int:
    """Run the command line; returns the exit code."""
    is_ignored = signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # as under nohup

    def ready() -> None:
        if not is_ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        if not is_ignored:
            signal.signal(signal.SIGINT, _stop)
        from nanograd_llm.cli import main

        return main(ready=ready)
    except KeyboardInterrupt:  # a second one, while the first is told of
        _stop()
        return 130


def _stop(*_: object) -> None:
    os.write(2, b"\n" * os.isatty(2) + b"nanograd-llm: stopped\n")  # past every buffer
    os._exit(130)
