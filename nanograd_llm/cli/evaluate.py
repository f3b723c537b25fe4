"""`nanograd-llm eval`: score a model on texts, or on questions with choices."""

from __future__ import annotations

import functools
import sys
from typing import Annotated, Any

from cyclopts import Parameter

from nanograd_llm.cli.options import Device, Model
from nanograd_llm.cli.terminal import waiting, written
from nanograd_llm.settings import counted, printable

SHOWN = 20  # documents in the table at most
BEFORE = 60  # characters of context that are shown before a token


def evaluate(
    model: Model,
    /,
    *texts: str,
    stride: int | None = None,
    rows: int | None = None,
    top: int = 0,
    choices: Annotated[list[str], Parameter(consume_multiple=True, negative=())] = [],  # noqa: B006  as it is shown
    device: Device = "cpu",
) -> None:
    """Score a model on texts: loss, perplexity and bits per byte, over sliding windows; every byte is scored once.

    Without a text, a run of any task is scored on what it held out. The interval is of 95 %, from resampled
    blocks. With the tokenizer characters, which has no end-of-text token to put first, the first character is not
    scored.

    Parameters
    ----------
    texts
        UTF-8 text files, folders, patterns in quotes such as "docs/**/*.md", .gz or .jsonl files (FILE.jsonl#FIELD
        for another field than "text"), or - for standard input, as for train. Each file is a line of a table. Or a
        folder that `nanograd-llm prepare` made, for its held-out part.
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
    from nanograd_llm.errors import ConfigError
    from nanograd_llm.inference import (
        answer_choices,
        evaluation_of,
        hardest,
        interval,
        score_text,
        score_windows,
    )
    from nanograd_llm.models.gpt import GPT
    from nanograd_llm.runs.compare import short_names
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.runs.prepare import score_run
    from nanograd_llm.settings import require_int
    from nanograd_llm.tasks.language_model import require_tokenizer
    from nanograd_llm.text.examples import read_choices
    from nanograd_llm.text.prepared import open_prepared
    from nanograd_llm.text.sources import BETWEEN, is_prepared, named_texts

    require_int("top", top, 0)
    if rows is not None:
        require_int("rows", rows, 1)
    prepared = [text for text in texts if is_prepared(text)]
    if prepared and len(texts) > 1:
        raise ConfigError(f"{prepared[0]} is a prepared folder, which is scored by itself; give it alone")
    if top and (rows or prepared):
        raise ConfigError("top is for all of a text, and neither for rows nor for a prepared folder; leave it out")
    use_device(device)
    if not texts and not choices:
        with waiting("reading the held-out data") as tell:

            def report(doing: str, share: float) -> None:
                tell(doing, share)
                if doing.startswith("scoring") and not share:
                    print(written(doing), flush=True)

            score = score_run(model, report, rows)
        print(f"{score}\nover {score.measured_on}")
        return
    opened = open_model(model)
    if not issubclass(opened.model_class, GPT):
        raise ConfigError(
            f"{opened.source} is a model of the class {opened.model_class.__name__}, and eval scores language models, "
            "a GPT, on texts; a run of another task is scored on what it held out: give no text"
        )
    with waiting("opening the model") as tell:
        tokenizer, loaded = opened.tokenizer(), opened.model()
        if choices:
            questions = [question for path in choices for question in read_choices(path)]
            progress = functools.partial(tell, "answering the questions")
            answered = answer_choices(loaded, tokenizer, questions, progress=progress)
        scored: list[Any] = []
        found, between = None, None
        if prepared:
            require_tokenizer(prepared[0], tokenizer, opened.source)
            ids: Any = open_prepared(prepared, tokenizer.vocab_size)[1]
            print(written(f"scoring the held-out part of {prepared[0]}, {counted(len(ids), 'token')}"), flush=True)
            progress = functools.partial(tell, f"scoring {prepared[0]}")
            found = score_windows(loaded, ids, tokenizer, stride=stride, windows=rows, progress=progress)
        elif texts:
            contents = [named for text in texts for named in named_texts(text, tell)]
            total, done = sum(len(content) for _, content in contents), 0
            part = "" if rows is None else f"{counted(rows, 'window')} of "
            whole = f"{counted(len(contents), 'text')}, {counted(total, 'character')}"
            print(written(f"scoring {part}{whole}"), flush=True)
            if rows is not None:
                ids = tokenizer.encode(BETWEEN.join(content for _, content in contents))
                progress = functools.partial(tell, "scoring")
                found = score_windows(loaded, ids, tokenizer, stride=stride, windows=rows, progress=progress)
            for path, content in contents if rows is None else ():

                def advance(share: float, path: str = path, before: int = done, size: int = len(content)) -> None:
                    tell(f"scoring {path}", (before + share * size) / max(1, total))

                scored.append(score_text(loaded, content, tokenizer, name=path, stride=stride, progress=advance))
                done += len(content)
    if choices:
        print(answered)
    if len(scored) > 1:
        _table([(name, evaluation_of([text])) for name, text in zip(short_names([t.name for t in scored]), scored)])
    if scored:
        found, between = evaluation_of(scored), interval(scored)
    if found is None:
        return
    within = "" if between is None else f"  (95 %: {between[0]:.4f} to {between[1]:.4f})"
    print(
        f"loss           {found.loss:.4f} nats per token\n"
        f"perplexity     {found.perplexity:.2f}\n"
        f"bits per byte  {found.bits_per_byte:.4f}{within}\n"
        f"over           {counted(found.tokens, 'token')}, {counted(found.bytes, 'byte')}"
    )
    for text, place in hardest(scored, top):
        before = tokenizer.decode(text.ids[max(0, place - BEFORE) : place])[-BEFORE:]
        _show_token(float(text.losses[place]), before, tokenizer.decode(text.ids[place : place + 1]))


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
