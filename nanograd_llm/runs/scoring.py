"""Score a run on what it held out, or any language model on texts, a part of them, or a prepared folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import shlex
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nanograd_llm.errors import ConfigError
from nanograd_llm.files.atomic import read_bytes, storage_errors
from nanograd_llm.inference.evaluate import TextScores, score_texts, score_windows
from nanograd_llm.inference.likelihood import Choices, answer_choices
from nanograd_llm.models.gpt import GPT
from nanograd_llm.runs.opening import OpenedRun, open_model
from nanograd_llm.runs.prepare import made_again
from nanograd_llm.runs.run import require_same_files
from nanograd_llm.settings import counted, require_int
from nanograd_llm.tasks.language_model import require_tokenizer
from nanograd_llm.tasks.registry import DEFAULT
from nanograd_llm.tasks.task import Report, Score
from nanograd_llm.text import Tokenizer
from nanograd_llm.text.examples import read_choices
from nanograd_llm.text.prepared import TokenFiles, open_prepared
from nanograd_llm.text.sources import BETWEEN, is_prepared, named_texts, require_plain, weighted, with_field

PathLike = str | os.PathLike[str]


@np.errstate(all="ignore")  # a number that is not finite shows in the score
def score_run(
    path: PathLike, report: Report = lambda doing, share: None, rows: int | None = None, files: Sequence[str] = ()
) -> Score:
    """The score of the run at `path`, or of one of its checkpoints, of any task, on what it held out.

    files: score these instead, of the form that the run learned from; see `are_rows`.
    rows: score only this many windows, texts or pairs, evenly spread and always the same, as during training.
    Raises as `open_model` does, and ConfigError where `path` is no run, or its data have changed since it began.
    """
    if rows is not None:
        require_int("rows", rows, 1)
    opened = open_model(path)
    if not isinstance(opened, OpenedRun):
        raise ConfigError(f"{opened.source} is not a run, so it has no held-out text; give a text")
    with warnings.catch_warnings():
        if files:
            warnings.simplefilter("ignore")  # they are about the file that it learned from
        task = made_again(opened.folder, {}, report)[0]
    reads_others = issubclass(opened.model_class, GPT) and not files
    require_same_files(
        task, opened.path, ", or give another text to score" if reads_others else ", which a score needs"
    )
    names = " ".join(files)
    if files:
        task.hold_out(*files)
        for file in files:
            _warn_if_trained_on(opened, file)
    vars(task)["model"] = opened.model()
    part = "" if rows is None else f"{counted(rows, 'row')} of "
    scoring = f"scoring {part}{names or 'what is held out'}"
    if "held out" in (described := task.describe()) and not files:
        scoring += f", {described['held out']}"
    report(scoring, 0)
    task.progress = functools.partial(report, scoring)
    score = task.score(rows)
    if files:
        score = dataclasses.replace(score, measured_on=f"{score.measured_on.replace('held-out ', '')} of {names}")
    return score


def are_rows(source: PathLike, files: Sequence[str]) -> bool:
    """Are these for the task of the run at `source`, and not texts for its language model? A GPT reads both."""
    opened = open_model(source)
    if not isinstance(opened, OpenedRun) or opened.task_name == DEFAULT:
        return False
    return not issubclass(opened.model_class, GPT) or all(file.lower().endswith((".json", ".jsonl")) for file in files)


@np.errstate(all="ignore")
def score_model(
    source: PathLike,
    texts: Sequence[str],
    choices: Sequence[PathLike] = (),
    *,
    stride: int | None = None,
    rows: int | None = None,
    top: int = 0,
    report: Report = lambda doing, share: None,
) -> tuple[TextScores | None, Choices | None]:
    """Score the language model at `source` on texts, read one after the other, and on questions; None for none of them.

    texts: sources as for `named_texts`; or a prepared folder, for its held-out part. choices: files as `read_choices`
    takes them. stride, top: as for `score_texts`. rows: score only so many windows of all texts together, evenly spread
    and always the same. report: called with what is done, and the share of it; with 0 when something begins.
    Raises as these do, as `open_model` does, and ConfigError for a model that is no GPT, a mix of these, or a file of
    rows.
    """
    require_int("top", top, 0)
    for name, value in (("rows", rows), ("stride", stride)):
        if value is not None:
            require_int(name, value, 1)
    if not texts and (name := "top" if top else "stride" if stride else "rows" if rows else ""):
        raise ConfigError(f"{name} is for a text, and none is given; give one, or leave {name} out")
    prepared = [text for text in texts if is_prepared(text)]
    if prepared and len(texts) > 1:
        raise ConfigError(f"{prepared[0]} is a prepared folder, which is scored by itself; give it alone")
    if top and (rows or prepared):
        raise ConfigError("top needs all of a text: it cannot be used with rows or a prepared folder; leave it out")
    opened = open_model(source)
    if not issubclass(opened.model_class, GPT):
        raise ConfigError(
            f"{opened.source} is a model of the class {opened.model_class.__name__}, and eval scores language models, "
            "a GPT, on texts; of another model it scores a run, on what it held out or on a file, without choices, "
            "stride and top"
        )
    require_plain(texts, option="", task=opened.task_name)
    tokenizer, model = opened.tokenizer(), opened.model()
    part, found, answered = "" if rows is None else f"{counted(rows, 'window')} of ", None, None
    if choices:
        questions = [question for path in choices for question in read_choices(path)]
        progress = functools.partial(report, "answering the questions")
        answered = answer_choices(model, tokenizer, questions, progress=progress)
    if prepared:
        require_tokenizer(prepared[0], tokenizer, opened.source)
        ids = open_prepared(prepared, tokenizer.vocab_size)[1]
        doing = f"scoring {part}the held-out part of {prepared[0]}, {counted(len(ids), 'token')}"
        report(doing, 0)
        progress = functools.partial(report, doing)
        found = TextScores(score_windows(model, ids, tokenizer, stride=stride, windows=rows, progress=progress))
    elif texts:
        sizes, names, piped = dict[str, int](), list[str](), list[tuple[str, str]]()
        for text in texts:  # all are read before the first is scored, so that a wrong one is found out at once
            digest, between = hashlib.sha256(), ""
            for path, content in named_texts(text, report):
                digest.update((between + content).encode())
                between = BETWEEN
                names.append(name := path + text.removeprefix(with_field(text)[0]))
                sizes[name] = len(content)
                piped += [(path, content)] if path == "-" else []
            if isinstance(opened, OpenedRun):
                _warn_if_trained_on(opened, text, digest.hexdigest())
        total, before = sum(sizes[name] for name in names), 0
        report(f"scoring {part}{counted(len(names), 'text')}, {counted(total, 'character')}", 0)
        named = ((name, content) for name in names for _, content in (piped if name == "-" else named_texts(name)))
        if rows is None:

            def advance(name: str, share: float) -> None:
                nonlocal before
                report(f"scoring {name}", (before + share * sizes[name]) / total)
                before += sizes[name] if share == 1 else 0

            found = score_texts(model, named, tokenizer, stride=stride, top=top, progress=advance)
        else:
            progress = functools.partial(report, "scoring")
            with _stored(named, tokenizer) as ids:
                found = TextScores(score_windows(model, ids, tokenizer, stride=stride, windows=rows, progress=progress))
    return found, answered


def _warn_if_trained_on(run: OpenedRun, text: str, digest: str = "") -> None:
    """Warn where a run has learned from this path, from a folder that it is in, or from these characters."""
    has_hash = bool(digest) and run.folder.hash_path.exists()
    known = read_bytes(run.folder.hash_path, at_most=10_000)[:64] if has_hash else b""
    sources = [source for table in run.settings.values() for source in (table.get("file"), *table.get("data", ()))]
    learned = {os.path.realpath(with_field(weighted(source)[0])[0]) for source in sources if source}
    place = Path(os.path.realpath(with_field(text)[0]))
    is_source = text != "-" and bool(learned & {*map(str, (place, *place.parents))})
    if is_source or (known and digest.encode() == known):
        warnings.warn(
            f"{text}: this run was trained on it, so the score flatters the model; nanograd-llm eval "
            f"{shlex.quote(run.source)} scores what was held out",
            stacklevel=3,
        )


@contextlib.contextmanager
def _stored(texts: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> Iterator[TokenFiles]:
    """The ids of texts, each after its name, in a temporary file, as they may be larger than the memory."""
    with tempfile.TemporaryDirectory() as folder, storage_errors(f"{folder}: cannot write", "make room"):
        path, between = Path(folder, "ids"), ""
        with open(path, "wb") as file:
            for _, text in texts:
                file.write(tokenizer.encode(between + text).astype("<u4").tobytes())
                between = BETWEEN
        yield TokenFiles([(path, "uint32")], tokenizer.vocab_size)
