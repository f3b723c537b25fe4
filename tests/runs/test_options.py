"""Options of a run: which checkpoints are kept, when it stops by itself, what it measures, and where it goes on."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig
from nanograd_llm.bench.floor import flops
from nanograd_llm.bench.workloads import Workload
from nanograd_llm.cli import main
from nanograd_llm.errors import NonFiniteError, StorageError
from nanograd_llm.models.heads import Classifier
from nanograd_llm.runs import RunFolder
from nanograd_llm.runs.compare import history, loss_picture, loss_png
from nanograd_llm.runs.operations import step_operations
from nanograd_llm.runs.prepare import prepare_run, resume_run
from nanograd_llm.runs.run import Sampled, Scored
from nanograd_llm.runs.scoring import score_model, score_run
from nanograd_llm.training import scheduled
from nanograd_llm.training.schedule import SCHEDULES

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 16, "tokenizer": "bytes", "workers": 1}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog sat on the cat. " * 60)
    return str(path)


def run_of(text, **options):
    folder = os.path.dirname(text)
    return prepare_run(f"{folder}/run", options={"file": text, "steps": 12, "batch_size": 4, **SIZES, **options})


def records(run):
    return [record for record in run.folder.read_metrics() if "loss" in record]


def test_files_beside_data_are_refused(text, capsys):
    for files in ([text], [text, text]):
        assert main(["train", *files, "--data", f"{text}:0.7", f"{text}:0.3"]) == 2
        assert "FILE and --data are both given; give all sources in one of them" in capsys.readouterr().err


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_goes_from_its_warm_up_to_its_end(schedule):
    rates = np.array([scheduled(schedule, p, peak=2.0, warmup=0.1, final=0.05) for p in np.linspace(0, 1, 101)])
    if schedule == "range":
        assert rates[0] == pytest.approx(2e-5) and np.ptp(rates[1:] / rates[:-1]) < 1e-12
        return
    assert rates[0] == 0 and rates[10] == pytest.approx(2.0) == rates.max()
    middle = {"cosine": 1.05, "linear": 1.05, "constant": 2.0, "warmup-stable-decay": 2.0}[schedule]
    assert rates[55] == pytest.approx(middle)
    assert rates[-1] == pytest.approx(2.0 if schedule == "constant" else 0.1)
    assert (np.diff(rates[10:]) <= 1e-12).all()


def test_a_run_follows_its_schedule(text):
    run = run_of(text, schedule="linear", warmup=0.25, learning_rate=0.01)
    list(run.train())
    expected = [scheduled("linear", n / 12, peak=0.01, warmup=0.25, final=0.01) for n in range(1, 13)]
    assert [record["learning_rate"] for record in records(run)] == pytest.approx(expected)


def test_the_newest_checkpoints_and_the_best_are_kept(text, monkeypatch):
    run = run_of(text, keep=2, checkpoint_every=2, evaluate_every=3)
    losses = {3: 5.0, 6: 1.0, 9: 4.0, 12: 3.0}
    score = run.task.score
    monkeypatch.setattr(
        run.task,
        "score",
        lambda rows=None: type(s := score(rows))(s.name, s.figure, {"loss": losses[run.trainer.steps_done]}),
    )
    list(run.train())
    assert run.best == 6 and [*run.folder.checkpoints()] == [6, 10, 12]


def test_a_run_stops_early_after_scores_that_are_not_better_also_after_it_was_resumed(text, monkeypatch):
    losses = {3: 5.0, 6: 4.0, 9: 4.5, 12: 4.6, 15: 4.7, 18: 1.0}

    def scores(run):
        score = run.task.score
        monkeypatch.setattr(
            run.task,
            "score",
            lambda rows=None: type(s := score(rows))(s.name, s.figure, {"loss": losses.get(run.trainer.steps_done, 9)}),
        )
        return run

    options = {"steps": 30, "evaluate_every": 3, "patience": 3}
    run = scores(run_of(text, **options))
    list(run.train())
    assert run.is_stuck and run.trainer.steps_done == 15
    again = prepare_run(f"{os.path.dirname(text)}/again", options={"file": text, "batch_size": 4, **SIZES, **options})
    events = scores(again).train()
    while again.trainer.steps_done < 13:
        next(events)
    events.close()
    resumed = scores(resume_run(again.folder.path))
    list(resumed.train())
    assert resumed.trainer.steps_done == 15


def test_a_resumed_run_compares_losses_on_the_same_rows_as_before(text):
    run = run_of(text)
    scored = [event.score.metrics()["held_out_loss"] for event in run.train() if isinstance(event, Scored)]
    assert run.losses[12] != scored[-1]  # the last score is on more rows
    assert resume_run(run.folder.path, options={"steps": 14}).losses == run.losses


def test_a_run_that_diverges_says_so_once_without_warnings_of_numpy(text, recwarn):
    run = run_of(text, evaluate_every=1, learning_rate=1e5)
    with pytest.raises(NonFiniteError, match="learning rate"):
        list(run.train())
    for score in (lambda: score_run(run.folder.path), lambda: score_model(run.folder.path, [text])):
        with pytest.raises(NonFiniteError, match="too high a learning rate"):
            score()
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_samples_during_training_are_short_unless_long_ones_are_asked_for(text):
    sizes = []
    for long_samples in (False, True):
        options = {**SIZES, "file": text, "steps": 3, "evaluate_every": 1, "long_samples": long_samples}
        run = prepare_run(f"{text}-{long_samples}", options=options)
        sizes.append([len(event.sample.text) for event in run.train() if isinstance(event, Sampled)])
    assert max(sizes[0][:-1]) <= 60 < 100 < min(sizes[1][:-1]) and len(sizes[0]) == len(sizes[1]) > 2


def test_a_model_learns_same_batch_by_heart(text):
    run = run_of(text, same_batch=True, steps=150, learning_rate=0.02, weight_decay=0.0)
    list(run.train())
    losses = [record["loss"] for record in records(run)]
    assert losses[-1] < 0.2 * losses[0]
    assert np.array_equal(run.task.batch(0)[0], run.task.batch(0)[0])


def test_norms_of_gradients_and_updates_are_written_on_request_and_are_right(text):
    run = run_of(text, norms_every=4, accumulate=2)
    before = {}
    for event in run.train():
        flat = run.trainer.optimizer.flat.data
        if not isinstance(event, Scored) and getattr(event, "step", 0) == 3:
            before = flat.copy()
        if getattr(event, "step", 0) == 4 and hasattr(event, "loss"):
            update = np.linalg.norm(flat - before)
    found = records(run)
    having = [record for record in found if any(name.startswith("gradient_norm.") for name in record)]
    assert [record["step"] for record in having] == [4, 8, 12]
    gradients = [value for name, value in having[0].items() if name.startswith("gradient_norm.")]
    updates = [value for name, value in having[0].items() if name.startswith("update_norm.")]
    assert np.hypot.reduce(gradients) == pytest.approx(having[0]["gradient_norm"], rel=1e-5)
    assert np.hypot.reduce(updates) == pytest.approx(update, rel=1e-5)
    assert len(gradients) == len(updates) == len(run.task.model.parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_the_table_of_the_words_is_counted_where_words_are_predicted(frozen):
    gpt = GPT(GPTConfig(vocab_size=1000, context_length=8, n_layer=1, n_head=2, n_embd=8))
    classifier = Classifier.on(gpt, 2)
    for model in (gpt, classifier.model) if frozen else ():
        model.freeze()
    tokens, targets = np.zeros((2, 3, 8), int), np.zeros(3, int)
    forward_and_back = 4 if frozen else 6
    of_blocks = forward_and_back * 12 * 8 * 8 * 24 + 12 * 24 * 8 * 8 // 2
    assert step_operations(gpt, (tokens[0], tokens[1]), 24) == of_blocks + forward_and_back * 1000 * 8 * 24
    assert step_operations(classifier, (tokens[0], targets), 3) == of_blocks + 6 * 8 * 2 * 24


def test_metrics_have_the_operations_and_their_share_of_the_limit(text):
    run = run_of(text, steps=2)
    list(run.train())
    first, second = records(run)
    of_products = flops(Workload("tiny", run.task.model.config, 4, 16))
    assert first["flops"] == second["flops"] == of_products
    share = second["flops"] / first["items"] * second["items_per_second"] / run.limit
    assert second["share_of_limit"] == pytest.approx(share) and 0 < share < 2


def test_a_range_test_ends_when_the_loss_explodes_and_suggests_a_rate(text):
    run = run_of(text, schedule="range", steps=200, learning_rate=30.0)
    list(run.train())
    found = records(run)
    assert len(found) < 200 and found[-1]["loss"] > 2 * min(record["loss"] for record in found)
    assert 1e-4 < run.suggested_rate() < 1
    assert "in powers of ten above 3" in loss_picture([history(run.folder.path)])
    pytest.importorskip("matplotlib")
    assert loss_png([history(run.folder.path)]).startswith(b"\x89PNG")


def test_a_picture_of_losses_is_made_as_png(text):
    pytest.importorskip("matplotlib")
    run = run_of(text, steps=3)
    list(run.train())
    assert loss_png([history(run.folder.path)] * 2).startswith(b"\x89PNG")


def full_disk(monkeypatch, folder):
    """Every write below the folder fails, as on a full disk."""
    opened, real = os.open, open

    def no_room(path, flags, *rest, **more):
        if str(path).startswith(str(folder)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", no_room)
    assert real is open


def test_where_the_disk_is_full_a_run_goes_on_in_its_spare_folder(text, tmp_path, monkeypatch):
    run = run_of(text, checkpoint_every=5, spare=str(tmp_path / "spare"), dropout=0.1)
    events = run.train()
    while run.trainer.steps_done < 6:
        next(events)
    full_disk(monkeypatch, tmp_path / "run")
    with pytest.warns(UserWarning, match="No space left on device.* The run goes on in .*spare"):
        list(events)
    assert [*RunFolder.open(tmp_path / "run").checkpoints()] == [5]
    assert [*RunFolder.open(tmp_path / "spare").checkpoints()] == [10, 12]
    assert [record["step"] for record in records(run)] == [*range(1, 13)]
    monkeypatch.undo()
    list(resume_run(tmp_path / "spare", options={"steps": 14}).train())


@pytest.mark.parametrize("has_spare", [False, True])
def test_where_the_folder_vanishes_a_run_goes_on_in_its_spare_folder_or_says_so(text, tmp_path, has_spare):
    spare = {"spare": str(tmp_path / "spare")} if has_spare else {}
    run = run_of(text, checkpoint_every=5, **spare)
    events = run.train()
    while run.trainer.steps_done < 6:
        next(events)
    shutil.rmtree(tmp_path / "run")
    if has_spare:
        with pytest.warns(UserWarning, match="No such file or directory.* The run goes on in .*spare"):
            list(events)
        assert max(RunFolder.open(tmp_path / "spare").checkpoints()) == 12
    else:
        with pytest.raises(StorageError, match="No such file or directory"):
            list(events)


def test_a_spare_folder_that_cannot_be_used_is_refused_before_training(text, tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("precious")
    with pytest.raises(StorageError, match=r"spare cannot be used: .*used: is not empty \(it has notes.txt\); choose"):
        run_of(text, spare=str(used))
    for inside in ("run", "run/../run/", "run/spare"):
        with pytest.raises(StorageError, match="spare is in the folder of the run, .*; name another"):
            run_of(text, spare=str(tmp_path / inside))
    assert not (tmp_path / "run").exists()
    with pytest.raises(StorageError, match="spare cannot be used: .*: cannot make a run folder there: Not a directory"):
        run_of(text, spare=f"{text}/spare")
    run = run_of(text, spare=str(tmp_path / "spare"))
    next(events := run.train())
    events.close()
    with pytest.raises(StorageError, match="spare cannot be used: .*used: is not empty"):
        resume_run(tmp_path / "run", options={"spare": str(used)})
    list(resume_run(tmp_path / "run").train())


@pytest.fixture(params=[{}, {"keep": 1, "checkpoint_every": 1}])
def spared(text, tmp_path, monkeypatch, request):
    """A run with a spare folder that is saved after every step, and whose older checkpoints are removed."""
    monkeypatch.setattr("nanograd_llm.runs.run.SECONDS_UNSAVED", -1)
    return run_of(text, spare=str(tmp_path / "spare"), **request.param)


def test_a_run_in_its_spare_folder_leaves_the_checkpoints_of_the_failed_one(spared, tmp_path, monkeypatch):
    run, events, unlink = spared, spared.train(), Path.unlink
    while run.trainer.steps_done < 5:
        next(events)

    def read_only(path, **options):
        if path.parent.parent == tmp_path / "run":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        unlink(path, **options)

    before = [*run.folder.checkpoints()]
    monkeypatch.setattr(Path, "unlink", read_only)
    full_disk(monkeypatch, tmp_path / "run")
    with pytest.warns(UserWarning, match="The run goes on in .*spare"):
        list(events)
    assert [*RunFolder.open(tmp_path / "run").checkpoints()] == before
    assert [*run.folder.checkpoints()][-1] == 12 and len(run.folder.checkpoints()) <= 3


def test_where_an_old_checkpoint_cannot_be_removed_a_run_goes_on_in_its_spare_folder(spared, tmp_path, monkeypatch):
    unlink = Path.unlink

    def failing(path, **options):
        if path.parent == tmp_path / "run" / "checkpoints":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", failing)
    with pytest.warns(UserWarning, match="cannot be removed: .*The run goes on in .*spare"):
        list(spared.train())
    assert 12 in RunFolder.open(tmp_path / "spare").checkpoints()


def test_where_the_disk_is_full_the_adapter_goes_into_the_spare_folder(text, tmp_path, monkeypatch):
    list(run_of(text).train())
    adapted = {"init": str(tmp_path / "run"), "lora_rank": 2, "file": text, "steps": 4, "batch_size": 4, "workers": 1}
    spare = {"spare": str(tmp_path / "spare"), "checkpoint_every": 2}
    run = prepare_run(tmp_path / "adapted", options={**adapted, **spare})
    full_disk(monkeypatch, run.folder.adapter_path)
    with pytest.warns(UserWarning, match="The run goes on in .*spare"):
        list(run.train())
    assert (tmp_path / "spare" / "adapter" / "adapter_config.json").exists()


def test_without_a_spare_folder_a_full_disk_keeps_the_checkpoint_before_it(text, tmp_path, monkeypatch):
    run = run_of(text, checkpoint_every=5)
    events = run.train()
    while run.trainer.steps_done < 6:
        next(events)
    full_disk(monkeypatch, tmp_path / "run")
    with pytest.raises(StorageError, match="No space left on device"):
        list(events)
    assert [*RunFolder.open(tmp_path / "run").checkpoints()] == [5]
    monkeypatch.undo()
    list(resume_run(tmp_path / "run").train())
