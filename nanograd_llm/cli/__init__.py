"""The command line `nanograd-llm`: one file per command. It has no logic of its own: Python can do all that it does.

Exit codes: 0 done; 1 a check failed or numbers stopped being finite; 2 usage; 3 a bad file; 4 input or output;
129 SIGHUP, 130 Ctrl-C, 141 the reader of the output has ended, 143 SIGTERM.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from nanograd_llm.errors import NanogradError
from nanograd_llm.runs.stopping import handling
from nanograd_llm.settings import printable

COMMANDS = {  # with examples for the help page; each is a function in a file of the same name
    "train": [
        "train",
        "train my_text.txt --minutes 5 --n-layer 4",
        "train my_text.txt --init gpt2 --steps 100",
        "train --task translation --minutes 3",
        "train --task instruction --init runs/nano-1",
    ],
    "generate": ['generate runs/nano-1 "The statement"', 'generate gpt2 "Once" --temperature 0.5 --seed 1'],
    "chat": ["chat runs/nano-1"],
    "translate": ['translate runs/translation-1 "the small cat does not see the house" --beam 4'],
    "fill": ['fill runs/masked-words-1 "The [MASK] sees the house."'],
    "classify": ['classify runs/classification-1 "Return the event loop."', "classify runs/mine --file texts.txt"],
    "embed": ['embed MiniLM "a cat sleeps" "a dog barks"', "embed MiniLM --file lines.txt --out vectors.npy"],
    "search": ['search MiniLM "how do I open a file?" --file lines.txt'],
    "info": ["info runs", "info runs/nano-1", "info gpt2"],
    "compare": ["compare runs/nano-1 runs/nano-2", "compare runs/nano-* --svg losses.svg"],
    "prepare": [
        "prepare my_text.txt --out data",
        'prepare "books/*.txt" --tokenizer gpt2 --out books',
    ],
    "tokenize": ['tokenize "the cat sat" --model runs/nano-1', 'tokenize "the cat sat"'],
    "convert": ["convert runs/nano-1 --to hf --out my-model"],
    "step": [
        'step runs/nano-1 "the cat sat"',
        'step runs/nano-1 "the cat sat" --html step.html',
        'step runs/nano-1 "the cat sat" --script backward.py',
    ],
    "look": ['look runs/nano-1 "the cat sat on the mat"', 'look gpt2 "the cat sat" --html look.html'],
    "plot": ["plot runs/nano-1", "plot runs/nano-* --html plot.html"],
    "gradcheck": ["gradcheck", "gradcheck --op softmax", "gradcheck --model runs/nano-1"],
    "bench": ["bench toy", "bench toy --against torch"],
    "eval": ["eval runs/nano-1 my_text.txt", "eval runs/nano-1", "eval runs/classification-1 more.csv"],
    "doctor": ["doctor"],
}
MOST, LEAST = 300, 40  # characters of an error, and of a word in it that is shortened
# where the argument - is standard input
STDIN = {*"train generate eval prepare translate fill classify tokenize embed search".split()}
PIPED = "generate", "translate", "fill", "classify", "embed"  # which take a text after the model, or from a pipe
MODEL_FIRST = *PIPED, "search", "eval", "step", "look"
NAMES = "train", "eval", "prepare", "info", "compare", "plot", "chat", "convert"  # whose arguments are no texts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. Every error is one line on stderr."""
    words, running = sys.argv[1:] if arguments is None else arguments, [True]

    def interrupt(*_: Any) -> None:
        if running:
            raise KeyboardInterrupt

    with handling([signal.SIGINT], interrupt):
        try:
            try:
                return _run(words)
            except RuntimeError as error:
                if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C in a `__set_name__`, before Python 3.12
                    raise KeyboardInterrupt from None
                raise
            finally:
                running.clear()  # from here on Ctrl-C does nothing: the error of the first one is being shown
        except NanogradError as error:
            swapped = _swapped(words)
            return _fail(swapped or str(error), 2 if swapped else error.exit_code)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except MemoryError as error:
            return _fail(f"not enough memory: {error}; choose a smaller model, batch or context", 4)
        except OSError as error:
            return _fail(f"cannot write the output: {error}", 4)
        except KeyboardInterrupt as error:
            print()  # the output may have stopped in the middle of a line
            return _fail(f"stopped. {error}".removesuffix(". "), 130)


def _run(arguments: Sequence[str]) -> int:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a question mark for a character that the console lacks
    warnings.showwarning = _warn

    from cyclopts import App, CycloptsError, Parameter

    from nanograd_llm import __version__
    from nanograd_llm.cli.usage import as_typed, explained, flag_before, help_formatter, usage

    if "" in arguments and arguments[0] in NAMES:
        return _fail("an argument is empty, as a shell variable may be; give a name, or leave it out", 2)
    if arguments[:1] == ["help"]:
        arguments = [*(word for word in arguments[1:2] if word != "help"), "--help"]
    app = App(
        name="nanograd-llm",
        help="Train a GPT in NumPy, from scratch or from GPT-2, and generate text with it.",
        version=__version__,
        help_epilogue="Start with `nanograd-llm train`: it takes a minute, and ends with the next command to type.",
        suppress_keyboard_interrupt=False,  # main handles it
        help_formatter=help_formatter(shutil.get_terminal_size().columns),
    )
    for name, examples in COMMANDS.items():
        function = "evaluate" if name == "eval" else name  # eval is a function of Python's own
        command: Any = f"nanograd_llm.cli.{function}:{function}"  # imported when used
        if name == "train" and arguments[:1] == ["train"] and {"--help", "-h"} & {*arguments}:
            from nanograd_llm.cli.train import help_of

            command, examples = help_of(arguments)
        epilogue = "Examples:\n\n" + "  \n".join(f"`nanograd-llm {example}`" for example in examples or COMMANDS[name])
        app.command(command, name=name, help_epilogue=epilogue)
    app.register_install_completion_command(help="Let the shell complete commands and options.")
    if not arguments or arguments[0] in ("--help", "-h"):
        for name in COMMANDS:
            app[name]  # import it, for the first line of its help
    elif arguments[0] in COMMANDS and {"--help", "-h"} & {*arguments}:
        shown = app[arguments[0]]
        assert shown.default_command is not None
        shown.usage = usage(arguments[0], shown.default_command)
    app.default_parameter = Parameter(converter=_convert)
    if arguments and arguments[0] in STDIN and "-" in arguments and "--" not in arguments:
        arguments = _with_stdin(arguments)
        if sys.stdin.isatty():  # typed before a bar is shown, which would be drawn over it
            _say("type or paste the text; Ctrl-D at the beginning of a line ends it")
            sys.stdin = io.TextIOWrapper(io.BytesIO(sys.stdin.buffer.read()), "utf-8")
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _fail(explained(error, COMMANDS), 2)
    except NanogradError as error:
        if error.exit_code != 3:  # which names the settings of a file
            known = app[arguments[0]].assemble_argument_collection()
            if misread := flag_before(str(error).partition(": no such file")[0], arguments, known):
                return _fail(misread, 2)
            error.args = (as_typed(str(error), [name for argument in known for name in argument.names]),)
        raise
    except SystemExit as error:  # how rich ends if the reader of its output has ended
        raise BrokenPipeError from error
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _with_stdin(arguments: Sequence[str]) -> list[str]:
    """The arguments with each - for standard input where it is not taken for an option.

    >>> _with_stdin(["classify", "runs/a", "-", "--top", "2"]), _with_stdin(["classify", "runs/a", "--file", "-"])
    (['classify', 'runs/a', '--top', '2', '--', '-'], ['classify', 'runs/a', '--file=-'])
    """
    words: list[str] = []
    for word in arguments:
        if word == "-" and words[-1:] == ["--file"]:
            words[-1] += "=-"
        else:
            words.append(word)
    return [*(word for word in words if word != "-"), "--", "-"] if "-" in words else words


def _swapped(arguments: Sequence[str]) -> str:
    """What to say where a model is given after a text or a file instead of before it; "" elsewhere."""
    from nanograd_llm.text.sources import WEIGHTS, written

    if len(arguments) < 3 or arguments[0] not in MODEL_FIRST or not os.path.isdir(arguments[2]):
        return ""
    name, first, model = arguments[:3]
    try:
        is_model = written(model) in ("a run", "the folder of a model")
        if not is_model or WEIGHTS.fullmatch(os.path.basename(first)) or (os.path.isdir(first) and written(first)):
            return ""
    except OSError:  # a folder that cannot be read
        return ""
    is_content = os.path.isfile(first) and name in PIPED  # a file in place of the text in it
    right = shlex.join([name, model]) + (f" < {shlex.quote(first)}" if is_content else f" {shlex.quote(first)}")
    return f"MODEL comes first: nanograd-llm {right}"


def _convert(kind: Any, tokens: Sequence[Any]) -> Any:
    """Cyclopts' conversion of a value, but a fraction is refused for an integer, not rounded, and an empty path."""
    from cyclopts import convert

    if Path in (kind, *get_args(kind)) and not tokens[0].value:
        raise ValueError  # it would be the folder where the command runs
    if int in (kind, *get_args(kind)) and float not in get_args(kind):
        return int(tokens[0].value)
    return convert(kind, tokens)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")


def _fail(message: str, code: int) -> int:
    _say(_in_one_line(message))
    return code


def _in_one_line(message: str) -> str:
    """A message on one line of at most MOST characters: long words lose their middles, the first ones first, as the
    remedy is at the end; if that is not enough, so does the line. A path at the very end is to be copied: it stays.

    >>> _in_one_line(f"/{'deep/' * 60}text.txt: no such file; check the path")[-45:]
    '/deep…/text.txt: no such file; check the path'
    >>> len(_in_one_line("xyz" * 1000)), _in_one_line("two\\nlines")
    (300, 'two lines')
    >>> len(_in_one_line("many words " * 10**5))  # in time that grows with the words, not with their square
    300
    """
    words = printable(message).split()
    excess = len(" ".join(words)) - MOST
    for place, word in enumerate(words):
        if excess <= 0:
            break
        least = LEAST if place < len(words) - 1 else MOST // 2
        words[place] = _shortened(word, max(least, len(word) - excess))
        excess -= len(word) - len(words[place])
    line = " ".join(words)
    return line if len(line) <= MOST else f"{line[: MOST // 2 - 3]} … {line[-MOST // 2 :]}"


def _shortened(word: str, most: int) -> str:
    """A word of at most `most` characters without its middle; of a path the name of the file stays, if it is short."""
    name = word[word.rstrip("/").rfind("/") :] if "/" in word else ""
    end = name if 0 < len(name) < most - 10 else word[-(most // 2) :]
    return word if len(word) <= most else f"{word[: most - 1 - len(end)]}…{end}"


def _say(message: str) -> None:
    """A line on stderr; on a terminal it is wrapped between words."""
    line = f"nanograd-llm: {printable(message)}"
    if sys.stderr.isatty():
        import textwrap

        width = max(20, shutil.get_terminal_size().columns - 1)
        line = textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
    print(line, file=sys.stderr)
