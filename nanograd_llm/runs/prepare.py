"""A new run from settings: those asked for override a settings file, which overrides the preset or the model.

A settings file has the form of a run's config.toml, so the config.toml of a run makes the same run again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.files.toml import read_toml
from nanograd_llm.models.gpt import TRAINING_ONLY, GPTConfig
from nanograd_llm.runs.run import Run, RunConfig
from nanograd_llm.settings import Settings, check_keys, check_settings
from nanograd_llm.tasks.language_model import LanguageModelling, Report, TextConfig, fine_tuning, recipe
from nanograd_llm.training.config import TrainConfig

TABLES: dict[str, type[Settings]] = {"run": RunConfig, "text": TextConfig, "model": GPTConfig, "train": TrainConfig}
LENGTHS = {"steps", "minutes"}
TWO_LENGTHS = "steps and minutes are both given; give the length of the run in one of them"

PathLike = str | os.PathLike[str]
Tables = Mapping[str, Mapping[str, Any]]


def prepare_run(
    out: PathLike | None = None,
    asked: Tables | None = None,
    *,
    file: PathLike | None = None,
    preset: str | None = None,
    report: Report = lambda doing, share: None,
) -> Run:
    """The run of these settings, ready to train. Without any it is the preset nano for a minute.

    out: its folder; the next runs/PRESET-N, or runs/tuned-N for a model trained further, if not given.
    asked: settings by table, such as {"train": {"steps": 100}}; they override those of `file`, a settings file.
    preset: the sizes, batch size, learning rate and weight decay where they are not given; nano if None.
    report: as for `LanguageModelling`.

    With "init" under "run", an existing model is trained further: its sizes and its tokenizer are used, and
    "context_length" is the length of a training window.
    Raises ConfigError for settings that are out of range or contradict each other, BadFileError for those in the file.
    """
    check_keys(asked or {}, TABLES, "asked")
    asked = {name: dict((asked or {}).get(name, {})) for name in TABLES}
    for name, table in asked.items():
        check_settings(TABLES[name], table)
    if asked["train"].keys() >= LENGTHS:
        raise ConfigError(TWO_LENGTHS)
    written = {} if file is None else read_settings(file)
    tables = {name: {**written.get(name, {}), **asked[name]} for name in TABLES}
    train = tables["train"]
    if asked["train"].keys() & LENGTHS:  # it overrides a length in the file, also one of the other kind
        tables["train"] = {name: train[name] for name in train if name not in LENGTHS or name in asked["train"]}
    elif not train.keys() & LENGTHS:
        train["minutes"] = 1.0
    source = tables["run"].pop("init", None)
    if source is None:
        if preset is not None and "model" in written:
            raise ConfigError(f"preset is {preset}, but {file} has sizes under [model]; leave one of them out")
        task = _fresh(asked, tables, preset or "nano", report)
    else:
        decided = [name for name in asked["model"] if name not in (*TRAINING_ONLY, "context_length")]
        decided += ["preset"] if preset else []
        decided += [name for name in asked["text"] if name in ("tokenizer", "vocab_size")]
        if decided:
            raise ConfigError(f"init takes {', '.join(decided)} from the model; leave that out")
        task = _further(source, asked, tables, written.get("model", {}), file, report)
    return Run(out, task, "tuned" if source else preset or "nano", **tables["run"])


def _fresh(asked: Tables, tables: Tables, preset: str, report: Report) -> LanguageModelling:
    text = TextConfig(**tables["text"])
    if "vocab_size" in asked["text"] and text.tokenizer != "bpe":
        raise ConfigError(f"vocab_size applies to the tokenizer bpe, not to {text.tokenizer}; leave it out")
    if "vocab_size" in asked["model"] or "vocab_size" in tables["model"].keys() - tables["text"].keys():
        raise ConfigError("vocab_size under [model] follows the tokenizer; set it under [text]")
    model, train = GPTConfig.preset(preset, **tables["model"]), recipe(preset, **tables["train"])
    return LanguageModelling(text, model, train, report=report)


def _further(
    source: str, asked: Tables, tables: Tables, sizes: Mapping[str, Any], file: Any, report: Report
) -> LanguageModelling:
    """A task that trains the model at `source` further. sizes: those in the file, which must equal the model's."""
    from nanograd_llm.runs.opening import open_model  # which knows every format of pretrained models

    start = open_model(source)
    model = start.config
    for name, value in sizes.items():
        if name not in TRAINING_ONLY and value != getattr(model, name):
            raise ConfigError(f"{name} is {value} in {file}, but {getattr(model, name)} in {source}; leave it out")
    words = {"tokenizer": "model", "window": min(128, model.context_length), **tables["text"]}
    if "context_length" in asked["model"]:
        words["window"] = asked["model"]["context_length"]
    changes = {name: tables["model"].get(name, getattr(GPTConfig, name)) for name in TRAINING_ONLY}
    sizes_kept, train = dataclasses.replace(model, **changes), fine_tuning(model, **tables["train"])
    return LanguageModelling(TextConfig(**words), sizes_kept, train, start=start, report=report)


def read_settings(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """The tables of a settings file, each setting checked. Raises BadFileError that names the file and the setting."""
    tables = read_toml(path)
    try:
        check_keys(tables, TABLES, str(path))
        for name, table in tables.items():
            check_settings(TABLES[name], table, f"{path} [{name}]")
        if tables.get("train", {}).keys() >= LENGTHS:
            raise ConfigError(f"{path} [train]: {TWO_LENGTHS}")
    except ConfigError as error:
        raise BadFileError(str(error)) from None
    return tables
