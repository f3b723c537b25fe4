"""The program: `python -m nanograd_llm` is `nanograd-llm`."""

import signal
import sys


def run() -> None:
    """Run the command line of this process. Before and after it, Ctrl-C leaves no traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from nanograd_llm.cli import main

    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    run()
