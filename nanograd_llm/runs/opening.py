"""A model from wherever it lies: the folder of a run or any pretrained GPT-2; they open alike."""

from __future__ import annotations

import os
from pathlib import Path

from numpy.typing import DTypeLike

from nanograd_llm.models.gpt import GPT
from nanograd_llm.pretrained import load_gpt2, load_gpt2_tokenizer
from nanograd_llm.pretrained.gpt2.load import weights_dtype
from nanograd_llm.runs.folder import RunFolder, run_of_checkpoint
from nanograd_llm.runs.run import load_run_model
from nanograd_llm.settings import require_type
from nanograd_llm.text import Tokenizer, load_tokenizer


def find_run(source: str | os.PathLike[str]) -> tuple[Path, int | None] | None:
    """The folder of a run, finished or not, and None for its newest checkpoint, or the step of the one given.

    None where `source` is neither the folder of a run nor a checkpoint in one.
    """
    require_type("source", source, (str, os.PathLike), "a path or a name")
    if os.path.exists(Path(source) / "config.toml"):  # no name is too long for this
        return Path(source), None
    return run_of_checkpoint(source)


def is_run(source: str | os.PathLike[str]) -> bool:
    """Is this the folder of a run, or a checkpoint of one?"""
    return find_run(source) is not None


def load_model(
    source: str | os.PathLike[str], *, dtype: DTypeLike = "float32", strict: bool = False
) -> tuple[GPT, Tokenizer]:
    """The model at `source`, in evaluation mode, and its tokenizer. All as for `load_model_alone`."""
    model = load_model_alone(source, dtype=dtype, strict=strict)
    if is_run(source):
        return model, load_model_tokenizer(source)
    return model, load_gpt2_tokenizer(source, model.config.vocab_size)


def load_model_alone(source: str | os.PathLike[str], *, dtype: DTypeLike = "float32", strict: bool = False) -> GPT:
    """The model at `source`, in evaluation mode, which need not have a tokenizer.

    source: the folder of a run (its newest checkpoint), a checkpoint in it, or whatever `load_gpt2` takes: a folder, a
        file, or a name.
    dtype: of the parameters, float32 or float64; those of another are converted.
    strict: refuse weights that are not finite; otherwise a warning names them.
    Raises what `load_run` and `load_gpt2` raise.
    """
    if run := find_run(source):
        path, step = run
        dtype = weights_dtype(dtype)
        model = load_run_model(RunFolder.open(path), step, strict=strict)
        if model.wte.dtype != dtype:
            model.astype(dtype)
        return model
    return load_gpt2(source, dtype=dtype, strict=strict)


def load_model_tokenizer(source: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of the model at `source`, without the model. Raises as `load_model` does."""
    run = find_run(source)
    return load_gpt2_tokenizer(source) if run is None else load_tokenizer(RunFolder.open(run[0]).tokenizer_path)
