"""A run: what lands in the folder, and that it comes back."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from nanograd_llm.errors import BadFileError, ConfigError, NonFiniteError, ShapeError, StorageError
from nanograd_llm.models import GPTConfig
from nanograd_llm.models.gpt import PRESETS
from nanograd_llm.runs import RunFolder, open_model
from nanograd_llm.runs.run import RECIPES, Saved, Scored, TextConfig, TextRun, Wrote, recipe
from nanograd_llm.training import StepRecord, TrainConfig

TINY = GPTConfig(vocab_size=1, context_length=16, n_layer=1, n_head=2, n_embd=16)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog sat on the cat. " * 60, encoding="utf-8")
    return TextConfig(str(path), vocab_size=300)


def short(**changes):
    return TrainConfig(**{"steps": 6, "batch_size": 4, "threads": 2, **changes})


def test_a_run_comes_back_from_its_folder_as_it_was_trained(tmp_path, text):
    run = TextRun(tmp_path / "run", text, TINY, short())
    list(run.train())
    opened = open_model(tmp_path / "run")
    model, tokenizer = opened.model(), opened.tokenizer()
    assert model.config == run.model.config
    assert not model.training
    for name, array in run.model.state_dict().items():
        assert np.array_equal(model.state_dict()[name], array), name
    assert tokenizer.encode("the dog").tolist() == run.tokenizer.encode("the dog").tolist()


def test_the_model_takes_its_vocabulary_from_the_tokenizer(tmp_path, text):
    run = TextRun(tmp_path / "run", text, TINY, short())
    assert run.model.config.vocab_size == run.tokenizer.vocab_size


def test_a_run_tells_of_every_step_scores_writes_and_saves(tmp_path, text):
    events = list(TextRun(tmp_path / "run", text, TINY, short(), evaluate_every=3, checkpoint_every=2).train())
    assert [e.step for e in events if isinstance(e, StepRecord)] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events if isinstance(e, Saved)] == [2, 4, 6]
    assert [e.step for e in events if isinstance(e, Scored)] == [3, 6]
    assert [e.step for e in events if isinstance(e, Wrote)] == [3, 6]


def test_metrics_hold_a_line_for_every_step_with_all_that_was_asked_for(tmp_path, text):
    run = TextRun(tmp_path / "run", text, TINY, short())
    list(run.train())
    steps = [m for m in RunFolder.open(tmp_path / "run").read_metrics() if "loss" in m]
    assert [m["step"] for m in steps] == [1, 2, 3, 4, 5, 6]
    assert [m["tokens"] for m in steps] == [4 * 16 * n for n in range(1, 7)]
    for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second"):
        assert all(m[name] > 0 for m in steps), name


def test_the_config_file_says_how_to_make_the_run_again(tmp_path, text):
    run = TextRun(tmp_path / "run", text, TINY, short(seed=5))
    config = RunFolder.open(tmp_path / "run").read_config()
    assert TextConfig(**config["text"]) == text
    assert GPTConfig(**config["model"]) == run.model.config
    assert TrainConfig(**config["train"]) == short(seed=5)


def test_two_runs_of_the_same_settings_have_the_same_bits(tmp_path, text):
    states = []
    for name in ("one", "two"):
        list(TextRun(tmp_path / name, text, TINY, short()).train())
        states.append((tmp_path / name / "checkpoints" / "step-00000006.safetensors").read_bytes())
    assert states[0] == states[1]


def test_an_earlier_checkpoint_can_be_asked_for(tmp_path, text):
    run = TextRun(tmp_path / "run", text, TINY, short(), checkpoint_every=2)
    list(run.train())
    early = open_model(run.folder.checkpoint_path(2)).model()
    assert not np.array_equal(early.wte.data, run.model.wte.data)


@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])
def test_every_kind_of_tokenizer_trains(tmp_path, text, tokenizer):
    run = TextRun(tmp_path / "run", TextConfig(text.file, tokenizer), TINY, short())
    scored = [e for e in run.train() if isinstance(e, Scored)]
    assert 0 < scored[-1].evaluation.bits_per_byte < 9


def test_a_run_learns(tmp_path, text):
    run = TextRun(tmp_path / "run", text, TINY, short(steps=60, learning_rate=1e-2))
    before = run.score().bits_per_byte
    list(run.train())
    assert run.score().bits_per_byte < before / 2


def test_an_existing_run_is_not_written_over(tmp_path, text):
    TextRun(tmp_path / "run", text, TINY, short()).folder.close()
    with pytest.raises(StorageError, match="already holds a run"):
        TextRun(tmp_path / "run", text, TINY, short())


def test_a_text_shorter_than_a_window_is_refused_before_training(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("too short", encoding="utf-8")
    with pytest.raises(ShapeError, match="too few"):
        TextRun(tmp_path / "run", TextConfig(str(path), "bytes"), TINY, short())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"tokenizer": "bpee"}, "did you mean 'bpe'"), ({"vocab_size": 10}, "vocab_size"), ({"held_out": 0}, "held_out")],
)
def test_a_wrong_text_setting_is_named(settings, field):
    with pytest.raises(ConfigError, match=field):
        TextConfig(**settings)


def test_a_foreign_key_in_the_config_file_is_refused_with_the_nearest_name(tmp_path, text):
    list(TextRun(tmp_path / "run", text, TINY, short()).train())
    path = tmp_path / "run" / "config.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("n_layer", "n_layers"), encoding="utf-8")
    with pytest.raises(BadFileError, match="n_layers.*did you mean 'n_layer'"):
        open_model(tmp_path / "run").model()


def test_a_checkpoint_of_another_size_is_refused(tmp_path, text):
    list(TextRun(tmp_path / "run", text, TINY, short()).train())
    path = tmp_path / "run" / "config.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("n_embd = 16", "n_embd = 32"), encoding="utf-8")
    with pytest.raises(BadFileError, match=r"(?s)wte is \(275, 16\).*expected \(275, 32\)"):
        open_model(tmp_path / "run").model()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_and_saves(tmp_path, text, number):
    run = TextRun(tmp_path / "run", text, TINY, short(steps=1000))
    before = signal.getsignal(number)
    for event in run.train():
        if isinstance(event, StepRecord) and event.step == 3:
            os.kill(os.getpid(), number)
    assert run.stopped_by == number
    assert list(RunFolder.open(tmp_path / "run").checkpoints()) == [3]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ("", "vocab_size, no context_length, no n_layer, no n_head, no n_embd"),
        ("[model]\nn_head = 2\nn_layer = 1\nn_embd = 8\n", "vocab_size, no context_length"),
    ],
)
def test_a_config_without_a_field_is_a_bad_file_that_names_it(tmp_path, text, content, missing):
    run = TextRun(tmp_path / "run", text, TINY, short())
    run.folder.config_path.write_text(content, encoding="utf-8")
    with pytest.raises(BadFileError, match=rf"config\.toml \[model\]: has no {missing}; take"):
        open_model(tmp_path / "run").model()


def test_a_signal_while_the_text_is_scored_ends_the_run_without_another_step(tmp_path, text):
    run = TextRun(tmp_path / "run", text, TINY, short(steps=1000), evaluate_every=2)
    kinds = []
    for event in run.train():
        kinds.append(type(event).__name__)
        if isinstance(event, Scored):
            os.kill(os.getpid(), signal.SIGINT)
    assert kinds == ["StepRecord", "StepRecord", "Scored", "Saved"]


def test_what_a_second_interrupt_breaks_into_is_saved_all_the_same(tmp_path, text):
    run = TextRun(tmp_path / "run", text, TINY, short(steps=1000))
    with pytest.raises(KeyboardInterrupt):
        for _event in run.train():
            raise KeyboardInterrupt
    assert list(RunFolder.open(tmp_path / "run").checkpoints()) == [1]


def test_a_second_interrupt_ends_at_once(tmp_path, text):
    run = TextRun(tmp_path / "run", text, TINY, short(steps=1000))
    events = run.train()
    next(events)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        signal.getsignal(signal.SIGINT)  # a place for the handler to run
    events.close()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, text):
    run = TextRun(tmp_path / "run", text, TINY, short(), checkpoint_every=2, evaluate_every=100)
    with pytest.raises(NonFiniteError, match=r"step 5: the loss is nan.*blocks\.0"):
        for event in run.train():
            if isinstance(event, StepRecord) and event.step == 4:
                run.model.blocks[0].mlp.up.weight.data[0, 0] = np.nan
    assert list(RunFolder.open(tmp_path / "run").checkpoints()) == [2, 4]


def test_a_loss_that_explodes_saves_the_weights_before_it(tmp_path, text):
    run = TextRun(tmp_path / "run", text, TINY, short(learning_rate=1e18, warmup=0.0))
    with pytest.raises(NonFiniteError, match=r"The weights of step (\d) are in .*step-0000000\1"):
        list(run.train())
    assert len(RunFolder.open(tmp_path / "run").checkpoints()) == 1


def test_a_follower_that_goes_away_loses_nothing(tmp_path, text):
    events = TextRun(tmp_path / "run", text, TINY, short()).train()
    next(events)
    next(events)
    events.close()
    assert list(RunFolder.open(tmp_path / "run").checkpoints()) == [2]


@pytest.mark.parametrize("setting", ["evaluate_every", "checkpoint_every"])
@pytest.mark.parametrize("value", [0, -1, True])
def test_an_interval_below_one_is_refused_before_anything_is_made(tmp_path, text, setting, value):
    with pytest.raises(ConfigError, match=setting):
        TextRun(tmp_path / "run", text, TINY, short(), **{setting: value})
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_named_or_refused(tmp_path, text):
    run = TextRun(tmp_path / "run", text, TINY, short())
    run.model.ln_f.bias.data[0] = np.nan
    run.folder.save_checkpoint(1, run.trainer.state_dict(), {})
    with pytest.warns(UserWarning, match="NaN or infinity in ln_f.bias"):
        open_model(tmp_path / "run").model()
    with pytest.raises(BadFileError, match="NaN or infinity in ln_f.bias"):
        open_model(tmp_path / "run").model(strict=True)


def test_a_recipe_is_changed_by_what_is_given():
    assert recipe("nano", steps=5, seed=None) == TrainConfig(steps=5, processes=True, **RECIPES["nano"])
    with pytest.raises(ConfigError, match="did you mean 'nano'"):
        recipe("nanno")


def test_every_preset_has_a_recipe():
    assert RECIPES.keys() == PRESETS.keys()
