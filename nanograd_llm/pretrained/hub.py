"""Find a model by its name: in Hugging Face's cache, or else downloaded by huggingface_hub (the extra `hub`).

HF_HOME/hub/models--ORG--NAME/refs/main               the commit of the branch `main`
                              snapshots/COMMIT/...    its files, which are links to
                              blobs/...               the contents
"""

from __future__ import annotations

import os
from pathlib import Path

from nanograd_llm.errors import StorageError

# The short names, the repositories that hold the models today, and the size of their weights in bytes.
KNOWN = {
    "gpt2": ("openai-community/gpt2", 548_105_171),
    "gpt2-medium": ("openai-community/gpt2-medium", 1_519_984_962),
    "gpt2-large": ("openai-community/gpt2-large", 3_247_159_078),
    "gpt2-xl": ("openai-community/gpt2-xl", 6_431_829_964),
    "distilgpt2": ("distilbert/distilgpt2", 352_824_413),
}
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")
BESIDE = (
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
)
_WEIGHTS = (*SAFETENSORS[:2], *TORCH[:2])


def find_by_name(name: str) -> Path:
    """The folder of `gpt2`, `distilgpt2` ... or `ORG/NAME`, in the cache; it is downloaded if it is not there.

    Raises StorageError if it cannot be downloaded; the error says what to download and where to put it.
    """
    repository = KNOWN[name][0] if name in KNOWN else name
    return _cached(name) or _cached(repository) or _fetched(repository, name)


def cache_folder() -> Path:
    """The folder where Hugging Face's libraries keep downloads: HF_HUB_CACHE, or `hub` in HF_HOME."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def _cached(repository: str) -> Path | None:
    """The newest snapshot of a repository, or None if it lacks the config or the weights."""
    top = cache_folder() / f"models--{repository.replace('/', '--')}"
    try:
        commit = (top / "refs" / "main").read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    folder = top / "snapshots" / commit
    if commit.isalnum() and (folder / "config.json").exists() and any((folder / name).exists() for name in _WEIGHTS):
        return folder
    return None


def _fetched(repository: str, name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise StorageError(_advice(repository, name, "pip install huggingface_hub to download it")) from None
    try:
        for weights in (SAFETENSORS, TORCH):
            folder = Path(snapshot_download(repository, allow_patterns=[*BESIDE, *weights]))
            if any((folder / file).exists() for file in _WEIGHTS):
                return folder
    except (OSError, ValueError, RuntimeError) as error:  # base classes of the hub's errors and of network errors
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:80]
        raise StorageError(_advice(repository, name, f"the download failed: {reason}; try again")) from None
    raise StorageError(f"{repository}: has no weights that can be read; looked for {', '.join(_WEIGHTS)}")


def _advice(repository: str, name: str, reason: str) -> str:
    size = f" ({KNOWN[name][1] / 1e6:,.0f} MB)" if name in KNOWN else ""
    # any other name has a slash in it, and is more often a path that was mistyped, or is of another directory
    absent = "not" if name in KNOWN else "no such path here; check it, or change directory; and no model"
    return (
        f"{name}: {absent} in the cache {cache_folder()}; {reason}, or give a folder with the files of "
        f"https://huggingface.co/{repository}{size}"
    )
