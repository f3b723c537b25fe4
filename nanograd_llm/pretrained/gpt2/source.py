"""Find the form of a GPT-2 at a path, from the names of its files; for a single file also from its first bytes.

model.safetensors, or its .index.json and shards      Hugging Face, with config.json
pytorch_model.bin, or its .index.json and shards      older Hugging Face, with config.json
model.ckpt.index, .data-00000-of-00001                OpenAI, with hparams.json
the file that `checkpoint` names                      gpt-2-simple, with hparams.json
ckpt.pt                                               nanoGPT, with meta.pkl if its tokens are characters
gpt2_124M.bin, model_00001000.bin and the like        llm.c
model.npz                                             `save_gpt2(..., form="numpy")`, with config.json
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.atomic import read_bytes, require_complete, storage_errors
from nanograd_llm.files.mapped import map_file
from nanograd_llm.files.shards import beside
from nanograd_llm.pretrained import weights
from nanograd_llm.pretrained.gpt2.llmc import MAGIC
from nanograd_llm.pretrained.gpt2.tokenizer import ADDED, CONFIG, META, OWN, PAIRS, SINGLE, SPECIAL_NAMES
from nanograd_llm.pretrained.hub import KNOWN, find_by_name
from nanograd_llm.settings import listed, nearest, require_type

# In the order in which a folder is searched.
FILES = {**weights.FILES, "model.ckpt.index": "openai", "ckpt.pt": "nanogpt"}
LLMC_NAME = re.compile(r"gpt2_\w+\.bin|model_\d{8}\.bin")
OF_OTHERS = (
    "give another model as a folder with its files, or by its whole name, such as "
    "sentence-transformers/all-MiniLM-L6-v2"
)
POINTER = "checkpoint"  # of TensorFlow
SETTINGS = ("config.json", "generation_config.json", "hparams.json", "config.toml", POINTER)
TOKENIZERS = (*PAIRS[0], *PAIRS[1], SINGLE, OWN, META, ADDED, CONFIG, SPECIAL_NAMES)


class Source(NamedTuple):
    """The place of a pretrained model. form: a value of FILES, or llmc. weights: the file that is read first."""

    form: str
    weights: Path


def find_source(source: str | os.PathLike[str]) -> Source:
    """The model at a path, which is a folder or a file; or else the model of a name: see `hub.find_by_name`.

    Raises StorageError if nothing is there, also for an unknown name, BadFileError if it is not a model.
    """
    require_type("source", source, (str, os.PathLike), "a path or a name")
    path = Path(source)
    with storage_errors(f"{path}: cannot read", "check the path and its permissions"):
        is_folder, is_file = os.path.isdir(path), os.path.lexists(path)
    if is_folder:
        return _in_folder(path)
    if is_file:
        return Source(_form_of_file(path), path)
    name = os.fspath(source)
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith(".")
    if is_name and not ("/" in name and path.parent.is_dir()):  # runs/nano-7 is a path if the folder runs exists
        if "/" not in name and name not in KNOWN:
            near = nearest(name, KNOWN)
            others = f"known names are {', '.join(KNOWN)}; give a run by its folder, such as runs/nano-1, or "
            hint = f"did you mean {near!r}?" if near else others + OF_OTHERS.removeprefix("give ")
            raise StorageError(f"{name!r} is neither a file nor a folder here, nor a known name; {hint}")
        return _in_folder(find_by_name(name))
    raise StorageError(f"{path}: no such file or folder; check the path")


def _in_folder(folder: Path) -> Source:
    require_complete(folder)
    if (folder / "hparams.json").exists() and (folder / POINTER).is_file():
        pointed = _pointed(folder / POINTER)
        if pointed is not None:
            return Source("openai", pointed)
    for name, form in FILES.items():
        if (folder / name).exists():
            return Source(form, folder / name)
    if (folder / "hparams.json").exists():  # a checkpoint whose name is not OpenAI's
        index = sorted(folder.glob("*.index"))
        if len(index) > 1:
            raise BadFileError(f"{folder}: holds {listed([path.name for path in index])}; give one of them")
        if index:
            return Source("openai", index[0])
    llmc = _llmc_model(_llmc_files(folder), folder)
    if len(llmc) > 1:
        raise BadFileError(f"{folder}: holds {len(llmc)} models of llm.c; give one of them: {', '.join(llmc)}")
    if llmc:
        return Source("llmc", folder / llmc[0])
    if (folder / "config.toml").exists():
        raise BadFileError(f"{folder}: holds a run of nanograd_llm; open it with nanograd_llm.open_model")
    if (folder / weights.ADAPTER).exists():
        remedy = "give it to its model with ng.load_lora(model, folder)"
        raise BadFileError(f"{folder}: holds an adapter of PEFT, which is no model; {remedy}")
    raise StorageError(
        f"{folder}: holds no run of nanograd_llm, and no weights of GPT-2; looked for {', '.join(FILES)} and "
        "gpt2_124M.bin"
    )


def _pointed(pointer: Path) -> Path | None:
    """The index that TensorFlow's file `checkpoint` names, as in model_checkpoint_path: "model-1000"; None if missing.

    Of an absolute path, which comes from another machine, only the file name is used. Raises BadFileError for a name
    that leads to another folder.
    """
    found = re.search(rb'^model_checkpoint_path: *"([^"\n]*)"', read_bytes(pointer, at_most=2**20), re.MULTILINE)
    name = found[1].decode("utf-8", "replace") if found else ""
    if name.startswith("/") or re.match(r"\w:", name):
        name = re.split(r"[/\\]", name)[-1]
    if not found or not name:
        return None
    index = beside(pointer, f"{name}.index")
    return index if index.exists() else None


def _llmc_model(names: list[str], folder: Path) -> list[str]:
    """The names of llm.c's models; of two precisions of one model, and of the steps of a run, only one is given."""
    names = [name for name in names if _begins_as_llmc(folder / name) is not False]
    names = [name for name in names if "_bf16." not in name or name.replace("_bf16.", ".") not in names]
    steps = [name for name in names if name.startswith("model_")]
    done = [name for name in steps if (folder / name.replace("model_", "DONE_").removesuffix(".bin")).exists()]
    return [name for name in names if name not in steps] + (done or steps)[-1:]


def _begins_as_llmc(path: Path) -> bool | None:
    """Whether a file begins with llm.c's magic number for models; None for an empty one."""
    begin = map_file(path)[:4].tobytes()
    return begin == MAGIC.to_bytes(4, "little") if begin else None


def names_of_a_model(folder: Path, *, with_tokenizer: bool) -> list[str]:
    """The names of all files in `folder` that belong to a model of any form; weights come first.

    with_tokenizer: also those of a tokenizer.
    """
    fixed = (*FILES, *SETTINGS, *(TOKENIZERS if with_tokenizer else ()))
    return [name for name in fixed if os.path.lexists(folder / name)] + _llmc_files(folder)


def _llmc_files(folder: Path) -> list[str]:
    with storage_errors(f"{folder}: cannot read", "check its permissions"):
        return sorted(name for name in os.listdir(folder) if LLMC_NAME.fullmatch(name))


def _form_of_file(path: Path) -> str:
    by_name = weights.form_by_name(path) or {".index": "openai", ".pt": "nanogpt"}.get(path.suffix)
    if by_name not in (None, "torch"):
        return by_name
    if _begins_as_llmc(path):
        return "llmc"  # its files end in .bin as well
    if by_name:
        return by_name
    raise BadFileError(
        f"{path}: is no model; expected a folder, such as a run's, or a file of weights, whose name ends in "
        ".safetensors, .bin, .pth, .ckpt, .pt, .npz, .index or .index.json"
    )
