"""A run: what it writes into its folder, how it ends, and that it can be opened again."""

from __future__ import annotations

import os
import re
import signal

import numpy as np
import pytest

from nanograd_llm import Parameter
from nanograd_llm.errors import BadFileError, ConfigError, NonFiniteError, StorageError
from nanograd_llm.models import GPTConfig
from nanograd_llm.nn import Module
from nanograd_llm.runs import RunFolder, open_model
from nanograd_llm.runs.prepare import prepare_run, resume_run
from nanograd_llm.runs.run import Run, Sampled, Saved, Scored
from nanograd_llm.runs.stopping import SIGNALS
from nanograd_llm.tasks import LanguageModelling, Score, Task, TextConfig
from nanograd_llm.training import StepRecord, TrainConfig

TINY = GPTConfig(vocab_size=1, context_length=16, n_layer=1, n_head=2, n_embd=16)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog sat on the cat. " * 60, encoding="utf-8")
    return TextConfig(str(path), vocab_size=300)


@pytest.fixture(autouse=True)
def no_bursts(monkeypatch):
    """Each signal counts on its own, also where one test follows another at once."""
    monkeypatch.setattr("nanograd_llm.runs.stopping.BURST", 0)


def short(**changes):
    return TrainConfig(**{"steps": 6, "batch_size": 4, "workers": 2, **changes})


def new_run(folder, text, training, **settings):
    return Run(folder / "run", LanguageModelling(text, TINY, training), **settings)


def test_a_run_opens_from_its_folder_as_it_was_trained(tmp_path, text):
    run = new_run(tmp_path, text, short())
    list(run.train())
    opened = open_model(tmp_path / "run")
    model, tokenizer = opened.model(), opened.tokenizer()
    assert model.config == run.task.model.config
    assert not model.training
    for name, array in run.task.model.state_dict().items():
        assert np.array_equal(model.state_dict()[name], array), name
    assert tokenizer.encode("the dog").tolist() == run.task.tokenizer.encode("the dog").tolist()


def test_a_run_yields_every_step_score_sample_and_checkpoint(tmp_path, text):
    events = list(new_run(tmp_path, text, short(), evaluate_every=3, checkpoint_every=2).train())
    assert [e.step for e in events if isinstance(e, StepRecord)] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events if isinstance(e, Saved)] == [2, 4, 6]
    assert [e.step for e in events if isinstance(e, Scored)] == [3, 6]
    assert [e.step for e in events if isinstance(e, Sampled)] == [3, 6]


def test_metrics_have_a_line_for_every_step_with_all_numbers(tmp_path, text):
    run = new_run(tmp_path, text, short())
    list(run.train())
    steps = [m for m in RunFolder.open(tmp_path / "run").read_metrics() if "loss" in m]
    assert [m["step"] for m in steps] == [1, 2, 3, 4, 5, 6]
    assert [m["items"] for m in steps] == [4 * 16 * n for n in range(1, 7)]
    for name in ("loss", "learning_rate", "gradient_norm", "items_per_second"):
        assert all(m[name] > 0 for m in steps), name


def test_the_config_file_says_how_to_make_the_run_again(tmp_path, text):
    run = new_run(tmp_path, text, short(seed=5))
    config = RunFolder.open(tmp_path / "run").read_config()
    assert TextConfig(**config["text"]) == text
    assert GPTConfig(**config["model"]) == run.task.model.config
    assert TrainConfig(**config["train"]) == short(seed=5)


def test_two_runs_of_the_same_settings_have_the_same_bits(tmp_path, text):
    states = []
    for name in ("one", "two"):
        list(new_run(tmp_path / name, text, short()).train())
        states.append((tmp_path / name / "run" / "checkpoints" / "step-00000006.safetensors").read_bytes())
    assert states[0] == states[1]


def test_an_earlier_checkpoint_can_be_asked_for(tmp_path, text):
    run = new_run(tmp_path, text, short(), checkpoint_every=2)
    list(run.train())
    early = open_model(run.folder.checkpoint_path(2)).model()
    assert not np.array_equal(early.wte.data, run.task.model.wte.data)


@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])
def test_every_kind_of_tokenizer_trains(tmp_path, text, tokenizer):
    run = new_run(tmp_path, TextConfig(text.file, tokenizer), short())
    scored = [e for e in run.train() if isinstance(e, Scored)]
    assert 0 < scored[-1].score.figure < 9


def test_a_run_learns(tmp_path, text):
    run = new_run(tmp_path, text, short(steps=60, learning_rate=1e-2))
    before = run.task.score().figure
    list(run.train())
    assert run.task.score().figure < before / 2


def test_after_a_full_disk_at_the_start_the_same_folder_can_be_tried_again(tmp_path, text, monkeypatch):
    def full(self, config):
        raise StorageError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_config", full)
        with pytest.raises(StorageError, match="No space left"):
            new_run(tmp_path, text, short())
    list(new_run(tmp_path, text, short()).train())
    assert open_model(tmp_path / "run").tokenizer().vocab_size == 275


class Line(Task):
    """A task that no settings make: a line through the origin, with no text, no tokenizer and nothing to see."""

    name, used_by, config = "line", "predict", {"line": {"slope": 3.0}}

    def __init__(self, training):
        self.training, self.model = training, Slope()

    def batch(self, step):
        x = np.random.default_rng(step).normal(size=(4, 1)).astype(np.float32)
        return x, np.zeros((4, 1), np.int64)

    def score(self, rows=None):
        return Score("distance", abs(float(self.model.slope.data[0]) - 3))

    def save_beside(self, folder):
        (folder / "slope.txt").write_text("3", encoding="utf-8")


class Slope(Module):
    def __init__(self):
        self.slope = Parameter(np.zeros(1, np.float32))

    def forward(self, x):
        return self.slope * x

    def loss(self, x, _):
        error = self(x) - 3 * x
        return (error * error).mean()


def test_a_task_of_another_kind_is_trained_scored_and_saved_as_well(tmp_path):
    run = Run(tmp_path / "run", Line(short(steps=40, learning_rate=0.3)), checkpoint_every=20)
    events = list(run.train())
    assert [event.step for event in events if isinstance(event, Saved)] == [20, 40]
    assert not [event for event in events if isinstance(event, Sampled)]
    folder = RunFolder.open(tmp_path / "run")
    assert folder.read_config()["line"] == {"slope": 3.0} and (folder.path / "slope.txt").exists()
    distances = [record["distance"] for record in folder.read_metrics() if "distance" in record]
    assert distances[-1] < distances[0] / 2
    assert folder.load_checkpoint()[0]["slope"] == run.task.model.slope.data


def test_an_existing_run_is_not_overwritten(tmp_path, text):
    new_run(tmp_path, text, short()).folder.close()
    with pytest.raises(StorageError, match="already holds a run"):
        new_run(tmp_path, text, short())


def test_an_unknown_key_in_the_config_file_is_refused_with_the_nearest_name(tmp_path, text):
    list(new_run(tmp_path, text, short()).train())
    path = tmp_path / "run" / "config.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("n_layer", "n_layers"), encoding="utf-8")
    with pytest.raises(BadFileError, match="n_layers.*did you mean 'n_layer'"):
        open_model(tmp_path / "run").model()


def test_a_checkpoint_of_another_size_is_refused(tmp_path, text):
    list(new_run(tmp_path, text, short()).train())
    path = tmp_path / "run" / "config.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("n_embd = 16", "n_embd = 32"), encoding="utf-8")
    with pytest.raises(BadFileError, match=r"(?s)wte is \(275, 16\).*expected \(275, 32\)"):
        open_model(tmp_path / "run").model()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_run_after_the_step_and_saves(tmp_path, text, number):
    run = new_run(tmp_path, text, short(steps=1000))
    before = signal.signal(number, signal.default_int_handler)  # nohup has SIGHUP ignored
    try:
        for event in run.train():
            if isinstance(event, StepRecord) and event.step == 3:
                os.kill(os.getpid(), number)
        assert run.stopped_by == number
        assert list(RunFolder.open(tmp_path / "run").checkpoints()) == [3]
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ("", "vocab_size, no context_length, no n_layer, no n_head, no n_embd"),
        ("[model]\nn_head = 2\nn_layer = 1\nn_embd = 8\n", "vocab_size, no context_length"),
    ],
)
def test_a_config_without_a_field_is_a_bad_file_that_names_it(tmp_path, text, content, missing):
    run = new_run(tmp_path, text, short())
    run.folder.config_path.write_text(content, encoding="utf-8")
    with pytest.raises(BadFileError, match=rf"config\.toml \[model\]: has no {missing}; restore"):
        open_model(tmp_path / "run").model()


def test_a_signal_that_is_ignored_stays_ignored(tmp_path, text):
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("needs SIGHUP")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        for _ in new_run(tmp_path, text, short()).train():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert list(RunFolder.open(tmp_path / "run").checkpoints()) == [6]


@pytest.mark.parametrize("part", ["score", "sample"])
@pytest.mark.parametrize("steps", [6, 1000])
def test_a_signal_interrupts_a_score_or_a_sample_at_once_and_saves(tmp_path, text, monkeypatch, part, steps):
    run = new_run(tmp_path, text, short(steps=steps), evaluate_every=3 if steps > 6 else 100)
    notified, after = [], []

    def slow(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            signal.getsignal(signal.SIGINT)  # a place for the handler to run
        after.append("it went on")

    monkeypatch.setattr(run.task, part, slow)
    run.on_stop = lambda number, interrupts: notified.append((number, interrupts))
    events = list(run.train())
    assert notified == [(signal.SIGINT, True)] and not after
    assert run.stopped_by == signal.SIGINT
    last = 3 if steps > 6 else 6
    assert max(event.step for event in events) == last
    assert list(RunFolder.open(tmp_path / "run").checkpoints()) == [last]


def test_a_checkpoint_is_saved_every_few_minutes_and_the_last_two_of_them_are_kept(tmp_path, text, monkeypatch):
    monkeypatch.setattr("nanograd_llm.runs.run.SECONDS_UNSAVED", 0)
    events = list(new_run(tmp_path, text, short(), evaluate_every=100).train())
    assert [event.step for event in events if isinstance(event, Saved)] == [1, 2, 3, 4, 5, 6]
    assert list(RunFolder.open(tmp_path / "run").checkpoints()) == [4, 5, 6]


@pytest.mark.parametrize(("every", "steps"), [(None, 250), (10, 40)])
def test_scores_take_a_tenth_of_the_steps_at_most_on_the_same_rows_each_time(tmp_path, every, steps, monkeypatch):
    """A row that is trained on costs two that are scored."""
    (tmp_path / "text.txt").write_text(" ".join(map(str, range(40_000))), "utf-8")
    monkeypatch.setattr("nanograd_llm.runs.run.LEAST_NUMBERS", 0)
    run = new_run(tmp_path, TextConfig(str(tmp_path / "text.txt"), "bytes"), short(steps=steps), evaluate_every=every)
    scored = [event.score.measured_on for event in run.train() if isinstance(event, Scored)]
    windows = {250: 40, 40: 8}[steps]  # a fifth of 250 steps, or 10 steps, each of 4 rows; a fifth of these
    (found,) = set(scored)
    tokens = int(re.match(r"(\d+) of the [\d,]+ held-out tokens$", found)[1])
    assert (windows - 1) * 8 + 16 >= tokens > (windows - 2) * 8
    assert len(scored) in (4, 5)


def test_the_last_score_of_a_short_run_is_on_more_rows_which_do_not_grow_without_end_for_a_tiny_model(tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(map(str, range(40_000))), "utf-8")
    run = new_run(tmp_path, TextConfig(str(tmp_path / "text.txt"), "bytes"), short(steps=10))
    rows, score = [], run.task.score
    run.task.score = lambda count: (rows.append(count), score(count))[1]
    scored = [event for event in run.train() if isinstance(event, Scored)]
    assert rows == [8] * 5 + [128] and len(scored) == 5
    assert all(run.losses[event.step] == event.score.also["loss"] for event in scored[:-1])
    assert run.losses[10] != scored[-1].score.also["loss"]  # that of the same rows as before


def test_all_of_a_short_text_is_scored_at_the_last(tmp_path, text):
    *_, last = [event.score for event in new_run(tmp_path, text, short()).train() if isinstance(event, Scored)]
    assert re.match(r"all [\d,]+ held-out tokens$", last.measured_on)


def test_a_run_of_minutes_from_another_model_times_its_first_score(tmp_path, text):
    list(new_run(tmp_path, text, short()).train())
    asked = {"run": {"init": str(tmp_path / "run")}, "text": {"file": text.file}, "train": {"minutes": 0.02}}
    run = prepare_run(tmp_path / "further", asked)
    scores = [event for event in run.train() if isinstance(event, Scored)]
    first, *before, last = (int(re.search(r"[\d,]+", e.score.measured_on)[0].replace(",", "")) for e in scores)
    assert scores[0].step == 0 and {first, *before} == {first}
    assert last >= first  # it has more time


def test_a_signal_between_score_and_sample_ends_the_run_without_another_step(tmp_path, text):
    run = new_run(tmp_path, text, short(steps=1000), evaluate_every=2)
    kinds = []
    for event in run.train():
        kinds.append(type(event).__name__)
        if isinstance(event, Scored):
            os.kill(os.getpid(), signal.SIGINT)
    assert kinds == ["StepRecord", "StepRecord", "Scored", "Saved"]


def test_a_run_that_a_second_ctrl_c_interrupts_is_saved(tmp_path, text):
    run = new_run(tmp_path, text, short(steps=1000))
    with pytest.raises(KeyboardInterrupt):
        for _event in run.train():
            raise KeyboardInterrupt
    assert list(RunFolder.open(tmp_path / "run").checkpoints()) == [1]


def test_a_second_ctrl_c_ends_at_once_and_the_error_says_where_the_weights_are(tmp_path, text):
    run = new_run(tmp_path, text, short(steps=1000))
    batch, steps = run.task.batch, []

    def interrupted(step):
        steps.append(step)
        if step == 2:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                signal.getsignal(signal.SIGINT)  # a place for the handler to run
        return batch(step)

    run.task.batch = interrupted
    with pytest.raises(KeyboardInterrupt, match=r"^The weights of step 2 are in .*step-00000002\.safetensors$"):
        list(run.train())
    assert steps == [0, 1, 2] and list(RunFolder.open(tmp_path / "run").checkpoints()) == [2]


def test_a_second_ctrl_c_leaves_a_large_model_unsaved_with_the_previous_checkpoint_whole(tmp_path, text, monkeypatch):
    monkeypatch.setattr("nanograd_llm.runs.run.SAVED_AT_ONCE", 1)
    run = new_run(tmp_path, text, short(steps=1000), checkpoint_every=2)
    batch = run.task.batch

    def pressed_twice(step):
        for _ in range(2 * (step == 3)):
            os.kill(os.getpid(), signal.SIGINT)
        return batch(step)

    monkeypatch.setattr(run.task, "batch", pressed_twice)
    with pytest.raises(KeyboardInterrupt):
        list(run.train())
    assert RunFolder.open(tmp_path / "run").newest_whole()[0] == 2


def test_a_third_ctrl_c_leaves_at_once_with_the_previous_checkpoint_whole(tmp_path, text, monkeypatch):
    run = new_run(tmp_path, text, short(steps=1000), checkpoint_every=2)
    batch, fsync = run.task.batch, os.fsync

    def pressed_twice(step):
        for _ in range(2 * (step == 3)):
            os.kill(os.getpid(), signal.SIGINT)
        return batch(step)

    def pressed_again(file):
        if run.trainer.steps_done == 3:
            os.kill(os.getpid(), signal.SIGINT)
        fsync(file)

    monkeypatch.setattr(run.task, "batch", pressed_twice)
    monkeypatch.setattr(os, "fsync", pressed_again)
    with pytest.raises(KeyboardInterrupt):
        list(run.train())
    assert list(RunFolder.open(tmp_path / "run").checkpoints()) == [2]
    assert RunFolder.open(tmp_path / "run").newest_whole()[0] == 2
    assert not [*(tmp_path / "run").rglob(".*.tmp")]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, text):
    run = new_run(tmp_path, text, short(), checkpoint_every=2, evaluate_every=100)
    with pytest.raises(NonFiniteError, match=r"step 6: the loss is nan.*blocks\.0"):
        for event in run.train():
            if isinstance(event, StepRecord) and event.step == 5:
                run.task.model.blocks[0].mlp.up.weight.data[0, 0] = np.nan
    assert list(RunFolder.open(tmp_path / "run").checkpoints()) == [2, 4]


@pytest.mark.parametrize("step", [4, 6])
def test_weights_that_a_step_made_infinite_are_not_saved(tmp_path, text, step):
    run = new_run(tmp_path, text, short(), checkpoint_every=2, evaluate_every=100)
    with pytest.raises(NonFiniteError, match=f"step {step} made the weights NaN or infinite"):
        for event in run.train():
            if isinstance(event, StepRecord) and event.step == step:
                run.task.model.ln_f.bias.data[0] = np.inf
    assert list(RunFolder.open(tmp_path / "run").checkpoints()) == list(range(2, step, 2))


def test_a_loss_that_explodes_saves_the_weights_before_it(tmp_path, text):
    run = new_run(tmp_path, text, short(learning_rate=1e18, warmup=0.0))
    with pytest.raises(NonFiniteError, match=r"The weights of step (\d) are in .*step-0000000\1"):
        list(run.train())
    assert len(RunFolder.open(tmp_path / "run").checkpoints()) == 1
    with pytest.raises(NonFiniteError, match="Lower learning_rate, and train from the beginning or an earlier"):
        list(resume_run(tmp_path / "run").train())  # which takes the learning rate from the run


def test_where_the_caller_stops_early_the_weights_are_saved(tmp_path, text):
    events = new_run(tmp_path, text, short()).train()
    next(events)
    next(events)
    events.close()
    assert list(RunFolder.open(tmp_path / "run").checkpoints()) == [2]


@pytest.mark.parametrize("setting", ["evaluate_every", "checkpoint_every"])
@pytest.mark.parametrize("value", [0, -1, True])
def test_an_interval_below_one_is_refused_before_anything_is_made(tmp_path, text, setting, value):
    with pytest.raises(ConfigError, match=setting):
        new_run(tmp_path, text, short(), **{setting: value})
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_a_warning_or_refused(tmp_path, text):
    run = new_run(tmp_path, text, short())
    run.task.model.ln_f.bias.data[0] = np.nan
    run.folder.save_checkpoint(1, run.trainer.state_dict(), {})
    with pytest.warns(UserWarning, match="NaN or infinity in ln_f.bias"):
        open_model(tmp_path / "run").model()
    with pytest.raises(BadFileError, match="NaN or infinity in ln_f.bias"):
        open_model(tmp_path / "run").model(strict=True)


def test_there_are_no_more_workers_than_rows_of_a_batch(tmp_path, text, monkeypatch):
    monkeypatch.setattr("nanograd_llm.runs.run.cpu_count", lambda: 64)
    run = new_run(tmp_path, text, short(batch_size=3, workers=0))
    assert run.trainer.workers.count == 3
    assert run.folder.read_config()["train"]["workers"] == 0
