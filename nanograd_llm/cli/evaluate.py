"""`nanograd-llm eval`: score a model on texts, or on questions with choices."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from cyclopts import Parameter

from nanograd_llm.cli.options import Device, Model
from nanograd_llm.cli.terminal import waiting, written
from nanograd_llm.settings import printable

SHOWN = 20  # documents in the table at most


def evaluate(
    model: Model,
    /,
    *texts: str,
    stride: int | None = None,
    rows: int | None = None,
    top: int = 0,
    choices: Annotated[list[str], Parameter(consume_multiple=True, negative=(), show_default=False)] = [],  # noqa: B006
    device: Device = "cpu",
) -> None:
    """Score a model on texts: loss, perplexity and bits per byte, over sliding windows; every byte is scored once.

    Without a text, a run of any task is scored on what it held out. The interval is a 95 % interval, from
    resampled blocks. With the tokenizer characters, which has no end-of-text token to put first, the first character
    of a text is not scored.

    Parameters
    ----------
    texts
        UTF-8 text files, folders, patterns in quotes such as "docs/**/*.md", .gz or .jsonl files (FILE.jsonl#FIELD
        for another field than "text"), a column of a table as FILE.csv#COLUMN, or - for standard input, as for train.
        Each file gets one line of output. A folder that `nanograd-llm prepare` made is scored on its held-out part.
        For a run of another task than language-model: a file of the form that it learned from, such as rows.csv.
    stride
        Tokens by which the window moves; half a window if not given. A smaller stride is slower, and gives each token
        more context.
    rows
        Score only N windows of a text, or N of the held-out texts or pairs: evenly spread, and always the same, as
        during training; all if not given.
    top
        Show the N tokens with the highest losses, each after its context.
    choices
        Answer questions in place of a text: a .jsonl of HellaSwag's form, each line such as
        {"ctx": "the cat", "endings": ["flew", "sat"], "label": 1}; labels count from 0; none if not given.
    """
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.runs.compare import short_names
    from nanograd_llm.runs.scoring import are_rows, score_model, score_run

    use_device(device)
    with waiting("opening the model") as tell:

        def report(doing: str, share: float) -> None:
            tell(doing, share)
            if doing.startswith("scoring") and not share:
                print(written(doing), flush=True)

        others = choices or stride is not None or top
        if is_run := not others and (not texts or are_rows(model, texts)):
            score = score_run(model, report, rows, texts)
        else:
            found, answered = score_model(model, texts, choices, stride=stride, rows=rows, top=top, report=report)
    if is_run:
        print(f"{score}\nover {score.measured_on}")
        return
    if answered is not None:
        print(answered)
    if found is None:
        return
    if len(found.each) > 1:
        names, scores = zip(*found.each)
        _table([*zip(short_names(names), scores)])
    print(found.whole)
    for token in found.hardest:
        _show_token(*token)


def _table(rows: list[tuple[str, Any]]) -> None:
    """Each text with its score, the worst first."""
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("text", *(Column(name, justify="right") for name in ("tokens", "bytes", "bits per byte")))
    for name, found in sorted(rows, key=lambda row: -row[1].bits_per_byte)[:SHOWN]:
        table.add_row(printable(name), f"{found.tokens:,}", f"{found.bytes:,}", f"{found.bits_per_byte:.4f}")
    Console(highlight=False, markup=False).print(table)
    if len(rows) > SHOWN:
        print(f"and {len(rows) - SHOWN:,} more texts with lower scores")


def _show_token(loss: float, before: str, token: str) -> None:
    """A line of a token after its context; on a terminal its colour goes from yellow to red with the loss."""
    if not sys.stdout.isatty():
        print(f"{loss:7.2f}  {before!r} -> {token!r}")
        return
    from rich.console import Console
    from rich.text import Text

    green = int(max(0, 220 - 15 * loss))
    line = Text(f"{loss:7.2f}  {printable(repr(before)[1:-1])}")
    line.append(printable(repr(token)[1:-1]), style=f"bold rgb(255,{green},60)")
    Console(highlight=False).print(line)
