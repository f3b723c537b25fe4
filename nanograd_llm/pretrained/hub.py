"""A model by its name: in Hugging Face's cache on this machine, else fetched by huggingface_hub (the extra `hub`).

HF_HOME/hub/models--ORG--NAME/refs/main               the commit that `main` stood for
                              snapshots/COMMIT/...    its files, links into
                              blobs/...               the contents
"""

from __future__ import annotations

import os
from pathlib import Path

from nanograd_llm.errors import StorageError

# The names that everyone uses, the organisations that keep the models today, and the size of their weights in bytes.
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
    """The folder of `gpt2`, `distilgpt2` ... or `ORG/NAME`: from the cache, else fetched into it.

    Raises StorageError that says what to fetch and where to put it, where neither is possible.
    """
    repository = KNOWN[name][0] if name in KNOWN else name
    return _cached(name) or _cached(repository) or _fetched(repository, name)


def cache_folder() -> Path:
    """Where Hugging Face's libraries keep what they fetch: HF_HUB_CACHE, or `hub` in HF_HOME."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def _cached(repository: str) -> Path | None:
    """The newest snapshot of a repository that has its config and weights."""
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
        raise StorageError(_advice(repository, name, "huggingface_hub, which fetches it, is not installed")) from None
    try:
        for weights in (SAFETENSORS, TORCH):
            folder = Path(snapshot_download(repository, allow_patterns=[*BESIDE, *weights]))
            if any((folder / file).exists() for file in _WEIGHTS):
                return folder
    except (OSError, ValueError, RuntimeError) as error:  # what the hub's own errors and those of the net derive from
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        raise StorageError(_advice(repository, name, f"fetching it failed: {reason}")) from None
    raise StorageError(f"{repository}: has no {', no '.join(_WEIGHTS)}: no weights that can be read")


def _advice(repository: str, name: str, reason: str) -> str:
    size = f", {KNOWN[name][1] / 1e6:,.0f} MB" if name in KNOWN else ""
    return (
        f"{name}: is no path here, not in the cache {cache_folder()}, and {reason}. Where there is a net, "
        f"`pip install huggingface_hub` and say the same again. Or fetch config.json, vocab.json, merges.txt and "
        f"model.safetensors{size} from https://huggingface.co/{repository}, put them into one folder, and give its path"
    )
