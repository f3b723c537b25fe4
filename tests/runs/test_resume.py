"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanograd_llm.cli import main
from nanograd_llm.errors import BadFileError, ConfigError, StorageError
from nanograd_llm.runs import RunFolder
from nanograd_llm.runs.prepare import prepare_run, resume_run
from nanograd_llm.runs.run import require_unfinished
from nanograd_llm.runs.scoring import score_run
from nanograd_llm.tasks import registry

LINES = [f"the {a} cat {b} the {c} dog\tle chat {a} {b} le chien {c}" for a in "xyz" for b in "uvw" for c in "pqrs"]
SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.2, "seed": 3, "workers": 2, "batch_size": 6}
TASKS = {
    "language-model": {"context_length": 16, "vocab_size": 300, "accumulate": 2, **SIZES},
    "masked-words": {"context_length": 16, "vocab_size": 200, **SIZES},
    "translation": SIZES,
    "classification": {"context_length": 16, "vocab_size": 300, **SIZES},
}
FURTHER = {  # a row of data of the tasks that go on from a model
    "instruction": {"prompt": "{0} {1}", "completion": "{0}."},
    "preference": {"prompt": "{0} {1}", "chosen": "{0}.", "rejected": "{1}."},
}
DATA = {  # the name of a file, and what is in it
    "translation": ("text.tsv", "\n".join(LINES)),
    "classification": (
        "text.csv",
        "text,label\n" + "\n".join(f"{line[:9]} {i},{'ab'[i % 2]}" for i, line in enumerate(LINES)),
    ),
}
STEPS = 8


def takes_file(task):
    return any("file" in kind.setting_types for kind in registry.task_named(task).tables.values())


def prepared(folder, task="language-model", **options):
    """A run of the task in the folder, beside its data."""
    name, content = DATA.get(task, ("text.txt", "\n".join(LINES * 20)))
    data = folder / name
    if not data.exists():
        data.write_text(content, encoding="utf-8")
    length = {} if "minutes" in options else {"steps": STEPS}
    file = {"file": str(data)} if takes_file(task) else {}
    options = {"task": task, **file, "checkpoint_every": 2, **length, **TASKS[task], **options}
    return prepare_run(folder / "run", options=options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The last checkpoint of a run that was not stopped, for each task that is asked for; trained once."""

    @functools.cache
    def trained(task="language-model"):
        run = prepared(tmp_path_factory.mktemp("whole"), task)
        list(run.train())
        return last(run.folder.path)

    return trained


def stopped(folder, task="language-model", at=3, **options):
    """The folder of a run that was stopped after a step; the run was saved then."""
    run = prepared(folder, task, **options)
    events = run.train()
    while run.trainer.steps_done < at:
        next(events)
    events.close()
    return run.folder.path


def test_every_task_is_resumed_in_a_test_of_this_file():
    assert {*TASKS, *FURTHER} == {*registry.TASKS}


@pytest.mark.parametrize("task", FURTHER)
def test_a_resumed_run_keeps_its_start_also_where_that_was_trained_further(tmp_path, task):
    base = prepared(tmp_path, "language-model", steps=3, context_length=64)
    list(base.train())
    rows = [json.dumps({k: form.format(a, b) for k, form in FURTHER[task].items()}) for a in "abcdef" for b in "xyz"]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), "utf-8")
    options = {"task": task, "init": str(base.folder.path), "steps": 4, "batch_size": 4, "workers": 2}
    for name, stop in (("whole", 4), ("parts", 2)):
        run = prepare_run(tmp_path / name, options={**options, "file": str(tmp_path / "rows.jsonl")})
        events = run.train()
        while run.trainer.steps_done < stop:
            next(events)
        list(events) if name == "whole" else events.close()
    list(resume_run(base.folder.path, options={"steps": 5}).train())
    list(resume_run(tmp_path / "parts").train())
    assert last(tmp_path / "parts") == last(tmp_path / "whole")


def last(path):
    folder = RunFolder.open(path)
    return folder.checkpoint_path(max(folder.checkpoints())).read_bytes()


@pytest.mark.parametrize("at", [1, 4, STEPS - 1])
@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_ends_with_the_bytes_of_one_that_was_not_stopped(tmp_path, task, at, whole):
    path = stopped(tmp_path, task, at)
    assert list(RunFolder.open(path).checkpoints())[-1] == at
    list(resume_run(path).train())
    assert last(path) == whole(task)


def test_metrics_and_samples_of_a_resumed_run_are_those_of_one_that_was_not_stopped(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    list(prepared(tmp_path / "whole", steps=20).train())
    path = stopped(tmp_path / "parts", at=7, steps=20)
    RunFolder.open(path).checkpoint_path(7).unlink()  # as if it had been killed: step 6 was saved, step 7 recorded
    list(resume_run(path).train())
    records = [
        [
            {name: value for name, value in record.items() if name not in ("items_per_second", "share_of_limit")}
            for record in folder
        ]
        for folder in (RunFolder.open(tmp_path / name / "run").read_metrics() for name in ("whole", "parts"))
    ]
    assert records[0] == records[1]
    samples = [(tmp_path / name / "run" / "samples.txt").read_bytes() for name in ("whole", "parts")]
    assert samples[0] == samples[1] and samples[0].count(b"--- step") >= 2


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path, whole):
    path = prepared(tmp_path).folder.path
    code = """
import os, signal, sys
from nanograd_llm.runs import RunFolder
from nanograd_llm.runs.prepare import resume_run, prepare_run
run = prepare_run(sys.argv[1] + "/again", file=sys.argv[1] + "/run/config.toml")
for event in run.train():
    if run.trainer.steps_done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(path.parent)], check=False)
    assert killed.returncode == -signal.SIGKILL
    again = path.parent / "again"
    assert list(RunFolder.open(again).checkpoints()) == [2, 4]
    list(resume_run(again).train())
    assert last(again) == whole()


def test_the_last_checkpoint_is_written_again_where_it_was_damaged(tmp_path):
    path = prepared(tmp_path).folder.path
    folder = RunFolder.open(path)
    list(prepare_run(tmp_path / "again", file=folder.config_path).train())
    folder = RunFolder.open(tmp_path / "again")
    good = folder.checkpoint_path(STEPS).read_bytes()
    folder.checkpoint_path(STEPS).write_bytes(good[:-1])
    list(resume_run(folder.path).train())
    assert folder.checkpoint_path(STEPS).read_bytes() == good


@pytest.mark.parametrize("name", ["checkpoints", "adapter", "metrics.jsonl", "samples.txt"])
def test_a_run_is_not_written_through_a_link(tmp_path, name):
    path = stopped(tmp_path)
    if (path / name).exists():
        (path / name).rename(tmp_path / name)
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(StorageError, match=f"{name}: is a link"):
        resume_run(path)


def test_data_that_were_moved_are_given_by_their_new_name(tmp_path, whole):
    path = stopped(tmp_path)
    (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
    with pytest.raises(StorageError, match="text.txt: no such file"):
        resume_run(path)
    list(resume_run(path, options={"file": str(tmp_path / "moved.txt")}).train())
    assert last(path) == whole()
    assert RunFolder.open(path).read_config()["text"]["file"] == str(tmp_path / "moved.txt")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path, whole):
    run = prepared(tmp_path)
    run.folder.close()
    list(resume_run(run.folder.path).train())
    assert last(run.folder.path) == whole()


def test_fewer_steps_than_are_done_are_refused_with_both_numbers(tmp_path):
    with pytest.raises(ConfigError, match="3 steps are done, more than the 2 asked for; give a larger total"):
        resume_run(stopped(tmp_path, at=3), options={"steps": 2})


def test_a_run_of_standard_input_cannot_be_resumed(tmp_path):
    path = stopped(tmp_path)
    config = path / "config.toml"
    config.write_text(config.read_text("utf-8").replace(f'file = "{tmp_path}/text.txt"', 'file = "-"'), "utf-8")
    with pytest.raises(ConfigError, match="learned from standard input, which is gone; give the same text as a file"):
        resume_run(path)


def test_a_resumed_run_can_be_made_longer_and_its_config_says_so(tmp_path):
    path = stopped(tmp_path, at=2)
    list(resume_run(path, options={"steps": STEPS + 3}).train())
    assert max(RunFolder.open(path).checkpoints()) == STEPS + 3
    assert RunFolder.open(path).read_config()["train"]["steps"] == STEPS + 3
    with pytest.raises(ConfigError, match=f"all {STEPS + 3} steps of this run are done; give a larger total"):
        resume_run(path)
    assert resume_run(path, options={"steps": STEPS + 4}).folder.path == path  # its lock was released


def test_a_run_of_minutes_goes_on_with_the_time_that_is_left(tmp_path):
    path = stopped(tmp_path, at=2, minutes=60.0)
    run = resume_run(path)
    assert 0 < run.seconds < 3000 and run.trainer.config.minutes == 60
    events = run.train()
    assert run.seconds / 3600 <= next(events).progress < 1
    events.close()
    said = (
        "the time of this run, 0.5 minutes, is over: it has trained for 60 s; give a longer total, such as --minutes 2"
    )
    with pytest.raises(ConfigError, match=said):
        require_unfinished(run.folder, step=3, seconds=60.0, steps=10, minutes=0.5)


@pytest.mark.parametrize("task", [task for task in TASKS if takes_file(task)])
def test_a_run_whose_data_have_changed_is_not_resumed(tmp_path, task):
    path = stopped(tmp_path, task)
    (data,) = tmp_path.glob("text.*")
    data.write_text(data.read_text("utf-8").replace("cat", "cow", 1), encoding="utf-8")
    expected = r"its (data have changed|\w+\.json would be another one) since the run began; bring back the data"
    with pytest.raises(ConfigError, match=expected):
        resume_run(path)


def test_of_a_run_whose_text_is_now_too_short_the_change_is_named_as_the_cause(tmp_path):
    path = stopped(tmp_path, "language-model")
    (data,) = tmp_path.glob("text.*")
    data.write_text("the cat sat", encoding="utf-8")
    with pytest.raises(ConfigError, match="its data have changed since the run began; bring back the data"):
        resume_run(path)


@pytest.mark.parametrize("task", [task for task in TASKS if takes_file(task)])
def test_a_run_whose_data_have_changed_is_not_scored_on_others(tmp_path, task, capsys):
    path = stopped(tmp_path, task)
    (data,) = tmp_path.glob("text.*")
    before = data.read_text("utf-8")
    data.write_text(before.replace("cat", "cow"), encoding="utf-8")
    assert main(["eval", str(path)]) == 2
    assert "since the run began; bring back the data that it learned from" in capsys.readouterr().err
    data.write_text(before, encoding="utf-8")
    first, last = [score_run(one) for one in RunFolder.open(path).checkpoints().values()]
    assert score_run(path) == last != first


def test_a_model_that_is_no_run_has_nothing_held_out(capsys):
    assert main(["eval", str(Path(__file__).parents[1] / "fixtures" / "safetensors_float32")]) == 2
    assert "is not a run, so it has no held-out text; give a text" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_other_weights_of_its_data(tmp_path):
    texts = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    for path in texts:
        Path(path).write_text(f"{path} has words. " * 40)
    moved = str(tmp_path / "c.txt")
    Path(moved).write_text(Path(texts[1]).read_text())

    def weighed(*weights, of=texts):
        return [f"{path}{weight}" for path, weight in zip(of, weights)]

    run = prepared(tmp_path, file=None, data=weighed(":0.9", ":0.1"))
    next(events := run.train())
    events.close()
    for weights in ((":0.1", ":0.9"), ("", "")):
        with pytest.raises(ConfigError, match="the weights of data are others than in .*run; give each source"):
            resume_run(run.folder.path, options={"data": weighed(*weights)})
    list(resume_run(run.folder.path, options={"data": weighed(":.9", ":0.10", of=[texts[0], moved])}).train())


def test_settings_that_would_make_another_run_are_refused(tmp_path):
    path = stopped(tmp_path)
    with pytest.raises(ConfigError, match="resume takes batch_size from the run; leave that out"):
        resume_run(path, options={"batch_size": 7})


def test_a_run_that_is_being_written_is_not_resumed(tmp_path):
    path = stopped(tmp_path)
    with resume_run(path).folder, pytest.raises(StorageError, match=f"process {os.getpid()} is writing to this run"):
        resume_run(path)


def test_a_checkpoint_without_what_resuming_needs_is_refused_with_a_remedy(tmp_path):
    path = stopped(tmp_path)
    folder = RunFolder.open(path)
    for step in folder.checkpoints():
        folder.save_checkpoint(step, folder.load_checkpoint(step)[0], {})
    with pytest.raises(BadFileError, match="cannot resume; use --init"):
        resume_run(path)
