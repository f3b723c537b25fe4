"""What the files of sentence-transformers say of the vectors of sentences: applied, or refused by name.

modules.json                        the steps: Transformer, Pooling, and perhaps Normalize
1_Pooling/config.json               which tokens a vector is made of
sentence_bert_config.json           how many tokens a text may have
config_sentence_transformers.json   words that are put before each text
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.atomic import read_bytes
from nanograd_llm.files.json import read_json_file, read_json_object
from nanograd_llm.files.shards import beside
from nanograd_llm.pretrained.config_json import refuse_unsupported

FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
POOLINGS = {"mean_tokens": "mean", "cls_token": "first", "lasttoken": "last", "mean": "mean", "cls": "first"}


def sentence_settings(folder: Path) -> dict[str, Any]:
    """The pooling, normalise and max_length for `SentenceEncoder`, from these files; nothing where there are none.

    Raises BadFileError for a step or a setting that is not supported, or a file that is damaged.
    """
    path = folder / "modules.json"
    if not path.exists():
        return {}
    content = read_bytes(path, at_most=2**20)
    listed = read_json_object(b'{"modules":%b}' % content, str(path))["modules"]
    try:
        steps = [(step["type"].rpartition(".")[-1], step["path"]) for step in listed]
    except (TypeError, KeyError, AttributeError):
        raise BadFileError(f"{path}: expected a list of steps, each with a type and a path") from None
    kinds = [kind for kind, _ in steps]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or steps[0][1] != "":
        raise BadFileError(
            f"{path}: the steps are {steps!r:.200}; supported are Transformer in this folder, Pooling, and Normalize"
        )
    length, prompts = folder / "sentence_bert_config.json", folder / "config_sentence_transformers.json"
    settings = _table(length)
    refuse_unsupported(settings, {"do_lower_case": (False, None)}, str(length))
    refuse_unsupported(_table(prompts), {"default_prompt_name": (None,)}, str(prompts))
    longest = settings.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise BadFileError(f"{length}: max_seq_length is {longest!r:.50}; expected an integer of at least 1")
    pooling = _pooling(beside(path, steps[1][1]) / "config.json")
    return {"pooling": pooling, "normalise": "Normalize" in kinds, "max_length": longest}


def sentence_files(folder: Path) -> dict[str, bytes]:
    """The contents of these files, by their names in the folder; nothing where there are none. Raises as above."""
    if not sentence_settings(folder):
        return {}
    paths = [folder / name for name in FILES] + [*folder.glob("*_Pooling/config.json")]
    return {str(path.relative_to(folder)): read_bytes(path, at_most=2**20) for path in paths if path.exists()}


def _pooling(path: Path) -> str:
    prefix, table = "pooling_mode_", _table(path)
    chosen = [key.removeprefix(prefix) for key, value in table.items() if key.startswith(prefix) and value is not False]
    chosen += [table["pooling_mode"]] if "pooling_mode" in table else []
    if len(chosen) != 1 or str(chosen[0]) not in POOLINGS:
        raise BadFileError(f"{path}: the pooling is {chosen!r:.100}; supported is one of {', '.join(POOLINGS)}")
    return POOLINGS[chosen[0]]


def _table(path: Path) -> dict[str, Any]:
    return read_json_file(path) if path.exists() else {}
