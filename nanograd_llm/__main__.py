"""The program: `python -m nanograd_llm` is `nanograd-llm`."""

import signal
import sys
from collections.abc import Sequence


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this process, and end it. Before and after it, Ctrl-C leaves no traceback."""
    is_heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if is_heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from nanograd_llm.cli import main

    if is_heard:  # what main gives back at its end: the last of a burst then changes no exit code
        signal.signal(signal.SIGINT, lambda *_: None)
    code = main(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    run()
