import functools
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest

from nanograd_llm import Parameter, Tensor, nn, open_model
from nanograd_llm.cli import COMMANDS, main
from nanograd_llm.errors import BadFileError, ConfigError, DtypeError
from nanograd_llm.runs import Run
from nanograd_llm.runs.prepare import prepare_run, resume_run
from nanograd_llm.runs.tables import task_of
from nanograd_llm.settings import Settings, setting
from nanograd_llm.tasks import Score, Task, task_named
from nanograd_llm.tasks.registry import TASKS, USES, complete_tasks
from nanograd_llm.tasks.task import Tuning
from nanograd_llm.tasks.text_task import TextTask
from nanograd_llm.training import TrainConfig


def test_the_metrics_of_a_score_say_which_numbers_are_percentages_and_the_figure_can_be_read_back():
    score = Score("exact match", 99.12, {"word accuracy": 99.8, "loss": 0.01}, percent=("exact match", "word accuracy"))
    metrics = score.metrics()
    assert metrics == {"exact_match_percent": 99.12, "held_out_word_accuracy_percent": 99.8, "held_out_loss": 0.01}
    assert Score.figure_of(metrics) == "exact match 99.1 %"
    assert Score.figure_of(Score("bits per byte", 1.25).metrics()) == "1.250 bits per byte"


def test_a_task_learns_from_every_row_once_before_it_learns_from_one_again_and_each_time_in_another_order():
    task = SimpleNamespace(training=TrainConfig(batch_size=4, steps=10))
    draw = functools.partial(TextTask.drawn, task)
    drawn = np.concatenate([draw(step, 10) for step in range(5)])  # (20,): two epochs of ten rows
    first, second = drawn[:10].tolist(), drawn[10:].tolist()
    assert sorted(first) == sorted(second) == [*range(10)] and first != second
    assert draw(2, 10).tolist() == drawn[8:12].tolist()  # whatever was drawn before
    assert sorted(draw(0, 6, each=3).tolist()) == sorted([*range(6)] * 2)


class LineConfig(Settings):
    size: int = setting("Numbers in an x.", default=3, low=1)


class Line(nn.Module):
    def __init__(self, config, *, seed=None):
        self.config, self.w = config, Parameter(np.zeros(config.size, np.float32))

    def loss(self, x, y):
        error = x @ self.w - y
        return (error * error).mean()


class Regression(Task):
    """A task that says no more than a task must."""

    name, model_class, tables = "regression", Line, {"model": LineConfig}

    def batch(self, step):
        x = np.random.default_rng(step).normal(size=(8, self.model.config.size)).astype(np.float32)
        return x, x @ np.ones(x.shape[1], np.float32)

    def score(self, rows=None):
        return Score("largest error", float(np.abs(self.model.w.data - 1).max()))


@pytest.fixture
def regression(monkeypatch):
    """Registers a class, Regression if none is given, as the task of this name."""

    def register(kind=Regression):
        monkeypatch.setitem(TASKS, "regression", kind)

    return register


def test_a_task_that_says_only_what_it_must_is_trained_resumed_opened_and_scored_by_its_name(
    regression, tmp_path, capsys, monkeypatch
):
    regression()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mine.py"])
    assert main(["train", "--task", "regression", "--steps", "20", "--learning-rate", "0.3", "--workers", "1"]) == 0
    assert "Next:       python mine.py eval runs/regression-1\n" in capsys.readouterr().out
    list(resume_run("runs/regression-1", options={"steps": 40}).train())
    opened = open_model("runs/regression-1")
    assert opened.config == LineConfig(size=3) and np.abs(opened.model().w.data - 1).max() < 0.5
    assert main(["eval", "runs/regression-1"]) == main(["info", "runs/regression-1"]) == 0
    assert "largest error" in (shown := capsys.readouterr().out) and "tokenizer" not in shown
    assert main(["train", "--task", "regression", "--help"]) == 0
    assert "nanograd-llm train --task regression" in capsys.readouterr().out
    assert "--init STR" not in shown and "--lora" not in shown
    assert main(["eval", "runs/regression-1", "a.csv"]) == 2
    assert "the task regression is scored on what the run held out alone; give no file" in capsys.readouterr().err
    for command in ("step", "look"):
        assert main([command, "runs/regression-1", "a text"]) == 2
        assert "the task regression, which reads no text" in capsys.readouterr().err
    assert main(["train", "--task", "regression", "--init", "runs/regression-1"]) == 2
    assert "the task regression does not start from a model" in capsys.readouterr().err
    settings = tmp_path / "runs/regression-1/config.toml"
    settings.write_text(settings.read_text("utf-8").replace("size = 3\n", "size = 2000000000\n"), "utf-8")
    with pytest.raises(BadFileError, match="its sizes need over 2,000,000,000 numbers"):
        open_model("runs/regression-1").model()


def without(*names, **others):
    """The attributes of Regression but for these."""
    return {k: v for k, v in vars(Regression).items() if k[0] != "_" and k not in names} | others


@pytest.mark.parametrize(
    ("bases", "attributes", "words"),
    [
        ((), {}, r"is no Task; write class NAME\(Task\)"),
        ((Task,), {}, "has no name, no tables, no model_class, no batch, no score; see Task"),
        ((Task,), without("score"), "has no score; see Task"),
        ((Task,), without(tables={}), 'has no "model" in its tables'),
        ((Task,), without(name="another"), "has the name 'another'"),
        ((Task,), without(score=lambda self: None), r": its .* too many .*; write def score\(self, rows=None\)"),
        ((Task,), without(batch=lambda self: None), r": its .* too many .*; write def batch\(self, step\)"),
        (
            (Task,),
            without(model_class=type("Old", (Line,), {"__init__": lambda self, config: None})),
            r": its model Old .* 'seed'; write def __init__\(self, config, \*, seed=None\)",
        ),
        ((Task,), without(name=3), ": its name must be a str; got 3"),
        ((Task,), without(tables=None), ": its tables must be a dict of Settings classes by table; got None"),
        ((Task,), without(tables={"model": Line}), ": its tables must be a dict of Settings"),
        ((Task,), without(model_class=lambda config: None), ": its model_class must be a class that is derived"),
        ((Task,), without(hidden=["size"]), ": its hidden must be a dict of tuples of names by table"),
        ((Task,), without(fresh=["size"]), ": its fresh must be a dict of settings by name"),
        ((Task,), without(presets="small"), ": its presets must be a tuple of names; got 'small'"),
        ((Task,), without(tuning={"rate": 1}), ": its tuning must be a Tuning, or None"),
        ((Task,), without(used_by=None), ": its used_by must be a str, the name of a command"),
        (
            (Task,),
            without(used_by="evel"),
            ": its used_by must be one of generate, .*; got 'evel'; did you mean 'eval'",
        ),
        ((Task,), without(hidden={"modle": ()}), ": its hidden: unknown 'modle', did you mean 'model'"),
        ((Task,), without(hidden={"model": ("sise",)}), ": its hidden model: unknown 'sise', did you mean 'size'"),
        ((Task,), without(fresh={"stepz": 3}), ": its fresh: unknown 'stepz', did you mean 'steps'"),
        (
            (Task,),
            without(tuning=Tuning(1.0, also={"stepz": 1})),
            ": its tuning: unknown 'stepz', did you mean 'steps'",
        ),
        ((Task,), without(batch=np.ones(3)), r": its batch must be a method; .*; write def batch\(self, step\)"),
        ((Task,), without(hold_out=lambda self: None), r": its hold_out .*; write def hold_out\(self, \*files\)"),
        ((Task,), without(sample=lambda self: None), r": its sample .*; write def sample\(self, \*, last=False\)"),
    ],
)
def test_the_class_of_a_task_is_refused_by_what_it_lacks(regression, bases, attributes, words):
    regression(type("Mine", bases, attributes))
    with pytest.raises(ConfigError, match=f"the class Mine of the task regression ?{words}"):
        task_named("regression")
    assert [task.name for task in complete_tasks()] == [name for name in TASKS if name != "regression"]


def test_a_class_that_cannot_be_loaded_does_not_stop_the_other_tasks(regression):
    regression("no_such_module Mine")
    assert [task.name for task in complete_tasks()] == [name for name in TASKS if name != "regression"]


class Sizes(Settings):
    width: int = setting("Numbers in an x.")


class Bare(Line):
    def __init__(self, config, *, seed=None):
        self.w = Parameter(np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"tables": {"model": Sizes}}, "the task regression needs a value for width; give it"),
        ({"__init__": lambda self, training, **parts: None}, "the task regression has no model; call super"),
        ({"model_class": Bare}, "the model Bare of the task regression has no config; write self.config = config"),
    ],
)
def test_a_model_without_its_sizes_or_its_config_is_refused_before_training(regression, tmp_path, attributes, words):
    regression(type("Mine", (Regression,), attributes))
    with pytest.raises(ConfigError, match=words):
        prepare_run(tmp_path / "run", options={"task": "regression", "steps": 1})
    assert not (tmp_path / "run" / "config.toml").exists()


def test_a_task_that_the_program_does_not_know_is_said_to_be_known_in_the_script_that_adds_it():
    with pytest.raises(ConfigError, match="got 'of my own'; a task of your own is known in the script that adds it"):
        task_named("of my own")


@pytest.mark.parametrize("name", ["step", "loss", "learning rate", "scored_share"])
def test_a_score_does_not_take_the_name_of_another_number_of_the_metrics(name):
    with pytest.raises(ConfigError, match=f"the name '{name.replace(' ', '_')}', which metrics.jsonl has already"):
        Score(name, 0.5)
    assert Score("held-out " + name, 0.5).metrics()


def test_a_score_is_of_numbers_with_a_name_each():
    with pytest.raises(DtypeError, match=r"the score 'error' must be a number, such as float\(loss.data\); got Tensor"):
        Score("error", Tensor(1.0))
    with pytest.raises(ConfigError, match="two numbers of the score 'held out loss' have one name"):
        Score("held out loss", 0.5, {"loss": 0.5})


def test_a_loss_that_is_no_number_is_never_the_best(regression, tmp_path):
    losses = itertools.chain([float("nan"), 2.0, 1.0, float("nan")], itertools.repeat(3.0))
    regression(type("Mine", (Regression,), {"score": lambda self, rows=None: Score("x", 1, {"loss": next(losses)})}))
    settings = {"task": "regression", "steps": 9, "evaluate_every": 1, "patience": 2, "workers": 1}
    run = prepare_run(tmp_path / "run", options=settings)
    list(run.train())
    assert run.best == 3 and run.is_stuck


@pytest.mark.parametrize(("patience", "said"), [(1, "the last score was not"), (2, "the last 2 scores were not")])
def test_a_run_that_stops_early_says_how_many_scores_were_not_better(regression, tmp_path, capsys, patience, said):
    losses = itertools.count(1.0)
    regression(type("Mine", (Regression,), {"score": lambda self, rows=None: Score("x", 1, {"loss": next(losses)})}))
    words = "train --task regression --steps 9 --evaluate-every 1 --workers 1 --patience".split()
    assert main([*words, str(patience), "--out", str(tmp_path / "run")]) == 0
    assert f"stopped early: {said} better\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"score": lambda self, rows=None: 0.5}, r"the score of a task must be a Score, such as Score\(.*; got 0.5"),
        ({"batch": lambda self, step: np.ones((8, 3))}, r"a batch must be a tuple of arrays, .*; got ndarray"),
        ({"sample": lambda self, *, last=False: "it says"}, "the sample of a task must be a Sample, or None; got 'it"),
    ],
)
def test_a_batch_a_score_or_a_sample_in_another_form_is_refused_with_the_form(regression, tmp_path, wrong, words):
    regression(type("Mine", (Regression,), wrong))
    with pytest.raises(DtypeError, match=words):
        list(prepare_run(tmp_path / "run", options={"task": "regression", "steps": 1}).train())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"describe": lambda self: "a line"}, "what describe of the task regression returns must be a dict of lines"),
        ({"describe": lambda self: {"model": 3}}, r"such as {\"model\": \"a line\"}; got {'model': 3}"),
        ({"example": lambda self: None}, "what example of the task regression returns must be a str"),
    ],
)
def test_what_a_task_says_of_itself_is_text_or_is_refused_before_training(regression, tmp_path, wrong, words):
    regression(type("Mine", (Regression,), wrong))
    with pytest.raises(DtypeError, match=words):
        prepare_run(tmp_path / "run", options={"task": "regression", "steps": 1})
    assert not (tmp_path / "run" / "config.toml").exists()


def test_what_is_no_task_is_refused(tmp_path):
    with pytest.raises(DtypeError, match="task must be a Task, which nanograd_llm.tasks has; got"):
        Run(tmp_path / "run", Line(LineConfig()))


@pytest.mark.parametrize("option", ["steps", "out", "init", "watch", "lora_rank"])
def test_a_setting_of_a_task_with_a_name_that_train_has_is_refused(regression, tmp_path, capsys, option):
    own = {"__annotations__": {option: "int"}, option: setting("A number.", default=3)}
    regression(type("Mine", (Regression,), {"tables": {"model": type("Own", (LineConfig,), own)}}))
    assert main(["train", "--task", "regression", "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    assert f"Own.{option} of the task regression has a name that " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "meant"), [("classify", "classification"), ("fill", "masked-words"), ("dpo", "preference")]
)
def test_what_a_task_is_called_elsewhere_is_answered_with_its_name(given, meant):
    with pytest.raises(ConfigError, match=f"got '{given}'; did you mean '{meant}'?"):
        task_named(given)


def test_what_uses_a_model_are_commands():
    assert {*USES} <= {*COMMANDS}


@pytest.mark.parametrize("name", TASKS)
def test_the_class_of_every_task_is_complete(name):
    assert task_of(name).name == name


FAST = {"learning_rate": 0.1}  # so that the loss on what it learns from falls in three steps


@pytest.mark.parametrize(
    ("losses", "settings", "words"),
    [
        (
            [2.0, 1.0, 1.2],
            FAST,
            "lowest at step 2 .1.000., and is 1.200 now, on the same rows: .* by heart; --keep 1 also saves the best",
        ),
        (
            [2.0, 1.0, 1.2],
            {**FAST, "keep": 1},
            "the model of step 2 is .*/step-00000002.safetensors, --patience",
        ),
        ([2.0, 1.0, 1.02], {}, "^$"),
        ([2.0, 1.0, 1.2], {"learning_rate": 1e-9}, "^$"),  # nor has the loss on what it learns from fallen
        ([2.0, 1.0, 1.2], {**FAST, "patience": 5}, "--keep 1 also saves the best model, more data"),
        ([2.0, 1.0, float("inf")], {}, "^$"),
        (
            [1.0, 2.0, 1.2],
            {"learning_rate": 100.0},
            "is 1.200 now, on the same rows: this training made the model worse; try a lower",
        ),
        ([2.0, 1.0, 1.2], {"schedule": "range"}, "^$"),
        ([2.0, 1.0, 1.2], {**FAST, "same_batch": True}, "^$"),  # to learn that batch by heart is what was asked for
        ([0.002, 0.001, 0.0025], {}, "^$"),  # the loss on what it learns from is no lower
        (
            [0.0004, 0.0001, 0.0025],
            FAST,
            "^$",
        ),  # nor is it here than the lowest held-out loss: it has not ended learning
    ],
)
def test_a_run_says_at_its_end_that_the_held_out_loss_has_risen_and_what_helps(
    regression, tmp_path, losses, settings, words
):
    def batch(self, step):
        x, y = Regression.batch(self, 0)
        return x, y / 10

    def score(self, rows=None):
        return Score("x", 1, {"loss": losses[min(step, len(losses)) - 1]})

    step = 0
    regression(type("Mine", (Regression,), {"batch": batch, "score": score}))
    options = {"task": "regression", "steps": 3, "evaluate_every": 1, "workers": 1, **settings}
    run = prepare_run(tmp_path / "run", options=options)
    for event in run.train():
        step = getattr(event, "step", step)
    assert re.search(words, run.overfitting())
