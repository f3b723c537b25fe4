"""`nanograd-llm prepare`: texts become files of token ids, which `train` reads without holding them in memory."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nanograd_llm.cli.terminal import row, waiting, written
from nanograd_llm.settings import counted, nearest, shown


def prepare(
    sources: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    out: Path,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    held_out: float = 0.1,
    seed: int = 0,
) -> None:
    """Turn texts into files of token ids, which train takes; the texts may be larger than the memory.

    The folder has train.bin and val.bin in the form of nanoGPT, the tokenizer, and a description. Each text ends with
    the end-of-text token.

    Parameters
    ----------
    sources
        What to read: UTF-8 text files, folders, patterns in quotes such as "docs/**/*.md", .gz or .jsonl files
        (FILE.jsonl#FIELD for another field than "text"), a column of a table as FILE.csv#COLUMN, or - for standard
        input.
    out
        The folder to make, which is new or empty.
    tokenizer
        bpe or characters, trained on the texts; bytes; or the tokenizer of a run, of a prepared folder (give the
        folder), or of a pretrained model, such as gpt2.
    vocab_size
        Tokens that bpe learns; 1024 if not given. GPT-2 has 50257.
    held_out
        Share of the texts that is scored and never trained on. The parts of a long file count as texts.
    seed
        Chooses which texts are held out.
    """
    from nanograd_llm.errors import ConfigError
    from nanograd_llm.pretrained import gpt2_tokenizer
    from nanograd_llm.pretrained.hub import KNOWN
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.tasks.language_model import tokenizer_of
    from nanograd_llm.text import Tokenizer
    from nanograd_llm.text import prepare as prepare_texts
    from nanograd_llm.text.corpora import nul_remark
    from nanograd_llm.text.prepared import KINDS
    from nanograd_llm.text.sources import is_prepared

    made: Tokenizer | str = tokenizer
    if tokenizer not in KINDS:
        if tokenizer not in KNOWN and "/" not in tokenizer and not Path(tokenizer).exists():
            near = nearest(tokenizer, KINDS)
            hint = f"; did you mean {near}?" if near else f"; got {shown(tokenizer)}"
            raise ConfigError(f"tokenizer must be one of {', '.join(KINDS)}, or a model, such as a run or gpt2{hint}")
        if tokenizer != "gpt2":
            made = tokenizer_of(tokenizer) if is_prepared(tokenizer) else open_model(tokenizer).tokenizer()
        else:
            made = gpt2_tokenizer()
    with waiting("starting") as tell:
        found = prepare_texts(sources, out, made, vocab_size=vocab_size, held_out=held_out, seed=seed, report=tell)
    print(row("tokenizer", found["prepared"]["tokenizer"]))
    for name, part in (("train", found["train"]), ("held out", found["val"])):
        sizes = f"{counted(part['tokens'], 'token')}, {counted(part['bytes'], 'byte')}"
        print(row(name, f"{counted(part['texts'], 'text')}: {sizes}{nul_remark(part['nuls'])}"))
    print(written(f"wrote {out}; next: nanograd-llm train {shlex.quote(str(out))}"))
