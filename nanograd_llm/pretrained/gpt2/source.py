"""Which form of GPT-2 lies at a path: the names of the files say it, and for a single file its first bytes.

model.safetensors, or its .index.json and shards      Hugging Face, with config.json
pytorch_model.bin, or its .index.json and shards      Hugging Face of old, with config.json
model.ckpt.index, .data-00000-of-00001                OpenAI, with hparams.json
ckpt.pt                                               nanoGPT
gpt2_124M.bin and the like                            llm.c
model.npz                                             `save_gpt2(..., form="numpy")`, with config.json
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.atomic import storage_errors
from nanograd_llm.files.mapped import map_file, named_file
from nanograd_llm.pretrained.gpt2.llmc import MAGIC
from nanograd_llm.pretrained.gpt2.tokenizer import ADDED, OWN, PAIRS, SINGLE
from nanograd_llm.pretrained.hub import KNOWN, find_by_name
from nanograd_llm.settings import nearest, require_type

# In the order in which they are looked for in a folder: Hugging Face's own order, then the others.
FILES = {
    "model.safetensors": "safetensors",
    "model.safetensors.index.json": "sharded safetensors",
    "pytorch_model.bin": "torch",
    "pytorch_model.bin.index.json": "sharded torch",
    "model.ckpt.index": "openai",
    "ckpt.pt": "nanogpt",
    "model.npz": "numpy",
}
LLMC_NAME = re.compile(r"gpt2_\w+\.bin")
SETTINGS = ("config.json", "hparams.json", "config.toml", "checkpoint")  # the last two: a run's, TensorFlow's pointer
TOKENIZERS = (*PAIRS[0], *PAIRS[1], SINGLE, OWN, ADDED, "tokenizer_config.json")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a pretrained model lies. form: a value of FILES, or llmc. weights: the file that is read first.

    links_into: a folder that links in `folder` may lead into.
    """

    form: str
    weights: Path
    links_into: Path | None = None

    @property
    def folder(self) -> Path:
        return self.weights.parent

    def file(self, name: str) -> Path:
        """The path of a file beside the weights. Raises BadFileError where that is a link that leads elsewhere."""
        return named_file(self.folder, name, str(self.folder), links_into=self.links_into)


def find_source(source: str | os.PathLike[str]) -> Source:
    """The model at a path, a folder or a file, or else of a name: see `hub.find_by_name`.

    Raises StorageError where nothing is there, also for a name that no model has, BadFileError where it is no model.
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
    if is_name and not ("/" in name and path.parent.is_dir()):  # runs/nano-7 is meant as a path where runs/ is one
        if "/" not in name and name not in KNOWN:
            near = nearest(name, KNOWN)
            hint = f"; did you mean {near!r}?" if near else f", one of {', '.join(KNOWN)}"
            raise StorageError(f"{name!r} is no file or folder here, and no name of a model that is known{hint}")
        folder, blobs = find_by_name(name)
        return _in_folder(folder, blobs)
    raise StorageError(f"{path}: no such file or folder")


def _in_folder(folder: Path, links_into: Path | None = None) -> Source:
    for name, form in FILES.items():
        if (folder / name).exists():
            return Source(form, named_file(folder, name, str(folder), links_into=links_into), links_into)
    if (folder / "hparams.json").exists():  # a checkpoint under another name than OpenAI's
        index = sorted(folder.glob("*.index"))
        if index:
            return Source("openai", index[0], links_into)
    llmc = _llmc_files(folder)
    if len(llmc) > 1:
        raise BadFileError(f"{folder}: holds {len(llmc)} models of llm.c; give one of them: {', '.join(llmc)}")
    if llmc:
        return Source("llmc", folder / llmc[0], links_into)
    if (folder / "config.toml").exists():
        raise BadFileError(f"{folder}: holds a run of nanograd_llm; open it with nanograd_llm.open_model")
    raise StorageError(
        f"{folder}: holds no run of nanograd_llm, and no weights of GPT-2; looked for {', '.join(FILES)} and "
        "gpt2_124M.bin"
    )


def names_of_a_model(folder: Path, *, with_tokenizer: bool) -> list[str]:
    """Which files of a model, of any form or a part of one, lie in `folder`; its weights come first.

    with_tokenizer: those of a tokenizer count as well.
    """
    fixed = (*FILES, *SETTINGS, *(TOKENIZERS if with_tokenizer else ()))
    return [name for name in fixed if os.path.lexists(folder / name)] + _llmc_files(folder)


def _llmc_files(folder: Path) -> list[str]:
    with storage_errors(f"{folder}: cannot read", "check its permissions"):
        return sorted(name for name in os.listdir(folder) if LLMC_NAME.fullmatch(name))


def _form_of_file(path: Path) -> str:
    if path.name.endswith(".safetensors.index.json"):
        return "sharded safetensors"
    if path.name.endswith(".bin.index.json"):
        return "sharded torch"
    by_suffix = {".safetensors": "safetensors", ".index": "openai", ".pt": "nanogpt", ".npz": "numpy"}
    if path.suffix in by_suffix:
        return by_suffix[path.suffix]
    begin = map_file(path)[:4].tobytes()
    if begin == MAGIC.to_bytes(4, "little"):
        return "llmc"
    if path.suffix in (".bin", ".pth"):
        return "torch"  # whose reader says what is wrong with it, if anything is
    raise BadFileError(
        f"{path}: no weights of GPT-2 by its name; known are .safetensors, .bin, .pth, .pt, .npz, .index, .index.json"
    )
