"""Settings asked for override a settings file, which overrides a preset; a run's config.toml makes the run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.models.gpt import PRESETS
from nanograd_llm.runs.prepare import prepare_run, read_settings
from nanograd_llm.runs.run import Run
from nanograd_llm.tasks import LanguageModelling, recipe
from nanograd_llm.training import TrainConfig

SIZES = {"context_length": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog sat on the cat. " * 60, "utf-8")
    return str(tmp_path / "text.txt")


@pytest.fixture
def asked(text: str) -> dict[str, dict[str, Any]]:
    return {
        "text": {"file": text, "tokenizer": "bytes"},
        "model": SIZES,
        "train": {"steps": 4, "batch_size": 2, "workers": 1},
        "run": {"checkpoint_every": 2, "evaluate_every": 3},
    }


def trained(run: Run) -> bytes:
    list(run.train())
    return run.folder.checkpoint_path(run.task.training.steps).read_bytes()


def test_without_settings_it_is_the_preset_nano_for_a_minute(tmp_path: Path, text: str) -> None:
    run = prepare_run(tmp_path / "run", {"text": {"file": text, "vocab_size": 300}})
    assert {name: getattr(run.task.model.config, name) for name in SIZES} == {
        name: PRESETS["nano"][name] for name in SIZES
    }
    assert run.task.training == recipe("nano", minutes=1.0)


def test_the_config_of_a_run_makes_it_again_to_the_bit(tmp_path: Path, asked: Any) -> None:
    first = prepare_run(tmp_path / "run", asked)
    bits = trained(first)
    again = prepare_run(tmp_path / "again", file=first.folder.config_path)
    assert again.task.training == first.task.training and again.task.model.config == first.task.model.config
    assert trained(again) == bits
    assert list(again.folder.checkpoints()) == [2, 4]
    assert again.folder.config_path.read_bytes() == first.folder.config_path.read_bytes()


def test_the_config_of_a_run_from_another_model_makes_it_again_to_the_bit(tmp_path: Path, asked: Any) -> None:
    trained(prepare_run(tmp_path / "start", asked))
    further = {"run": {"init": str(tmp_path / "start")}, "text": {"file": asked["text"]["file"]}, "train": {"steps": 2}}
    first = prepare_run(tmp_path / "run", {**further, "model": {"context_length": 8, "dropout": 0.1}})
    assert (
        first.task.context_length == 8
        and first.task.model.config.context_length == 16
        and first.task.model.config.dropout == 0.1
    )
    own = LanguageModelling.tuning.settings(first.task.model.config.n_embd)
    assert first.task.training == TrainConfig(steps=2, **own)
    bits = trained(first)
    assert trained(prepare_run(tmp_path / "again", file=first.folder.config_path)) == bits


def test_settings_asked_for_override_the_file_and_the_file_overrides_the_preset(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[train]\nminutes = 2\nlearning_rate = 0.5\nseed = 7\n[text]\ntokenizer = "bytes"\n', "utf-8")
    asked = {"text": {"file": text}, "train": {"seed": 8, "steps": 3}, "model": SIZES}
    run = prepare_run(tmp_path / "run", asked, file=file, preset="gpt2")
    assert (run.task.training.seed, run.task.training.learning_rate, run.task.training.batch_size) == (8, 0.5, 8)
    assert (run.task.training.steps, run.task.training.minutes) == (
        3,
        None,
    )  # of the two lengths the one that was asked for
    assert run.task.text.tokenizer == "bytes"
    run = prepare_run(tmp_path / "other", {**asked, "train": {}}, file=file)
    assert (run.task.training.minutes, run.task.training.learning_rate) == (2, 0.5)


def test_the_config_of_a_run_makes_it_again_in_any_folder(tmp_path: Path, asked: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    list(prepare_run("start", asked | {"text": {"file": "text.txt", "tokenizer": "bytes"}}).train())
    first = prepare_run("run", {"run": {"init": "start"}, "text": {"file": "text.txt"}, "train": {"steps": 1}})
    monkeypatch.chdir(tmp_path.parent)
    again = prepare_run(tmp_path / "again", file=tmp_path / "run" / "config.toml")
    newest = max((tmp_path / "start" / "checkpoints").iterdir())
    assert again.task.init == first.task.init == str(newest)


def test_a_run_by_the_clock_has_no_steps_in_its_config(tmp_path: Path, asked: Any) -> None:
    run = prepare_run(tmp_path / "run", asked | {"train": {"minutes": 0.5, "workers": 1}})
    assert "steps" not in run.folder.read_config()["train"]
    assert prepare_run(tmp_path / "again", file=run.folder.config_path).task.training == run.task.training


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[modle]\nn_layer = 1", ": unknown 'modle', did you mean 'model'?"),
        ("[model]\nn_layers = 1", " [model]: unknown 'n_layers', did you mean 'n_layer'?"),
        ("[model]\nn_layer = 1.5", " [model]: n_layer must be an integer of at least 1; got 1.5"),
        ('[train]\nlearning_rate = "fast"', " [train]: learning_rate must be a finite number with 0 ≤"),
        ("[train]\nlearning_rate = 1e999", " [train]: learning_rate must be a finite number"),
        ("[train]\nbatch_size = true", " [train]: batch_size must be an integer of at least 1; got True"),
        (
            '[text]\ntokenizer = "bpee"',
            " [text]: tokenizer must be one of bpe, bytes, characters, model, prepared; got 'bpee'",
        ),
        ("[text]\nfile = 3", " [text]: file must be a string; got 3"),
        ("[run]\ncheckpoint_every = 0", " [run]: checkpoint_every must be an integer of at least 1; got 0"),
        ("[train]\nsteps = 3\nminutes = 1", " [train]: steps and minutes are both given; give the length"),
    ],
)
def test_a_wrong_setting_in_a_file_is_a_bad_file_that_names_file_table_and_setting(
    tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "x.toml").write_text(content, "utf-8")
    with pytest.raises(BadFileError) as caught:
        read_settings(tmp_path / "x.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'x.toml'}{said}")
    with pytest.raises(BadFileError):
        prepare_run(tmp_path / "run", file=tmp_path / "x.toml")
    assert not (tmp_path / "run").exists()


def test_an_unknown_table_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="asked: unknown 'trian', did you mean 'train'"):
        prepare_run(asked={"trian": {"steps": 3}})


def test_a_preset_together_with_sizes_in_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[model]\nn_layer = 1", "utf-8")
    with pytest.raises(ConfigError, match=r"preset is gpt2, but .*x.toml has sizes under \[model\]; leave one"):
        prepare_run(tmp_path / "run", file=tmp_path / "x.toml", preset="gpt2")


def test_sizes_in_a_file_that_are_not_those_of_the_model_are_refused(tmp_path: Path, asked: Any) -> None:
    trained(prepare_run(tmp_path / "start", asked))
    (tmp_path / "x.toml").write_text(f'[run]\ninit = "{tmp_path / "start"}"\n[model]\nn_layer = 3\n', "utf-8")
    with pytest.raises(ConfigError, match="n_layer is 3 in .*x.toml, but 1 in .*start.*; leave it out"):
        prepare_run(tmp_path / "run", {"text": {"file": asked["text"]["file"]}}, file=tmp_path / "x.toml")


@pytest.mark.parametrize("where", ["file", "asked"])
def test_a_vocabulary_size_under_model_is_refused_with_the_place_where_to_set_it(tmp_path: Path, where: str) -> None:
    (tmp_path / "x.toml").write_text("[model]\nvocab_size = 500", "utf-8")
    settings = {"file": tmp_path / "x.toml"} if where == "file" else {"asked": {"model": {"vocab_size": 500}}}
    with pytest.raises(ConfigError, match=r"vocab_size under \[model\] follows the tokenizer; set it under \[text\]"):
        prepare_run(tmp_path / "run", **settings)


def test_a_task_that_is_not_known_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    said = "task must be one of language-model.*; got 'language-modle'; did you mean 'language-model'"
    with pytest.raises(ConfigError, match=said):
        prepare_run(tmp_path / "run", {"run": {"task": "language-modle"}})
    (tmp_path / "x.toml").write_text('[run]\ntask = "language-modle"\n', "utf-8")
    with pytest.raises(BadFileError, match=rf"x.toml \[run\]: {said}"):
        prepare_run(tmp_path / "run", file=tmp_path / "x.toml")
    with pytest.raises(ConfigError, match=said):
        prepare_run(tmp_path / "run", options={"task": "language-modle"})


def test_options_find_their_tables(tmp_path: Path, text: str) -> None:
    options = {"file": text, "tokenizer": "bytes", **SIZES, "steps": 1, "batch_size": 2}
    run = prepare_run(tmp_path / "run", options=options)
    config = run.folder.read_config()
    assert config["run"]["task"] == "language-model"
    assert (config["text"]["tokenizer"], config["model"]["n_embd"], config["train"]["steps"]) == ("bytes", 16, 1)
