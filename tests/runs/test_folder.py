"""A run's folder keeps what is written, lets one process write, and refuses folders that are no run."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import nanograd_llm.files.atomic
from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.runs import folder as run_folder
from nanograd_llm.runs.folder import RunFolder, next_run_path

PACKAGE_HOME = str(Path(nanograd_llm.files.atomic.__file__).parents[1])

HOLDER = """
import sys
from nanograd_llm.runs.folder import RunFolder
run = RunFolder.create(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path):
    with RunFolder.create(tmp_path / "run") as run:
        run.write_config({"model": {"n_layer": 4}})
        run.tokenizer_path.write_text("{}", encoding="utf-8")
        yield run


@pytest.fixture
def other_process(tmp_path: Path):
    """Another process that starts a run in the folder "taken", and holds its lock until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "taken")]
    with subprocess.Popen(command, cwd=PACKAGE_HOME, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


def test_a_new_run_has_its_layout_and_opens_again(run: RunFolder) -> None:
    again = RunFolder.open(run.path)
    assert again.read_config() == {"model": {"n_layer": 4}}
    assert again.read_metrics() == []
    assert again.checkpoints() == {}
    assert sorted(os.listdir(run.path)) == ["checkpoints", "config.toml", "lock", "tokenizer.json"]


def test_a_run_is_not_overwritten_by_another(run: RunFolder) -> None:
    run.close()
    with pytest.raises(StorageError, match="already holds a run; choose another folder"):
        RunFolder.create(run.path)
    assert run.read_config() == {"model": {"n_layer": 4}}


def test_a_folder_of_other_things_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(StorageError, match="is not empty"):
        RunFolder.create(tmp_path)
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_an_empty_folder_and_one_left_by_a_start_that_failed_can_become_a_run(tmp_path: Path) -> None:
    for _ in range(2):
        RunFolder.create(tmp_path).close()


@pytest.mark.parametrize("name", ["plain", "plain/run", "loop", "loop/run", "x" * 300])
def test_a_path_that_cannot_hold_a_run_is_refused_with_exit_code_4(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain").write_bytes(b"content")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError) as caught:
        RunFolder.create(tmp_path / name)
    assert caught.value.exit_code == 4
    assert str(tmp_path / name) in str(caught.value) and "choose another folder" in str(caught.value)
    assert (tmp_path / "plain").read_bytes() == b"content"


@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_an_unwritable_place_is_found_when_the_run_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StorageError, match="Permission denied; choose another folder"):
            RunFolder.create(tmp_path / "run")


def test_a_folder_that_is_no_run_is_refused_naming_what_is_missing(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(StorageError, match="none: no such run; check the path"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(StorageError, match=f"is a folder of runs; it holds 'run'; .* such as {run.path}"):
        RunFolder.open(tmp_path)
    run.config_path.unlink()
    with pytest.raises(StorageError, match=r"it has no config.toml, no checkpoints"):
        RunFolder.open(tmp_path)
    with pytest.raises(StorageError, match=r"it has no config.toml$"):
        RunFolder.open(run.path)


def test_a_second_writer_is_refused_with_the_pid_of_the_first(tmp_path: Path, other_process) -> None:
    with pytest.raises(StorageError, match=f"process {other_process.pid} is writing to this run") as caught:
        RunFolder.create(tmp_path / "taken")
    assert caught.value.exit_code == 4


def test_an_error_about_a_run_in_progress_names_its_process(tmp_path: Path, other_process) -> None:
    (tmp_path / "taken" / "config.toml").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match=f"process {other_process.pid} is writing to this run; wait for it"):
        RunFolder.create(tmp_path / "taken")
    with pytest.raises(StorageError, match=f"no checkpoint yet; process {other_process.pid} is training it"):
        RunFolder.open(tmp_path / "taken").load_checkpoint()


def test_a_run_that_is_being_written_can_be_read(run: RunFolder) -> None:
    run.append_metrics({"step": 1})
    assert RunFolder.open(run.path).read_metrics() == [{"step": 1}]


def test_a_folder_that_another_start_just_took_is_refused(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run"):
        with pytest.raises(StorageError, match=f"process {os.getpid()} is writing to this run"):
            RunFolder.create(tmp_path / "run")


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, other_process) -> None:
    other_process.kill()
    other_process.wait()
    with RunFolder.create(tmp_path / "taken"):
        assert (tmp_path / "taken" / "lock").read_text() == str(os.getpid())


def test_a_symlink_planted_as_the_lock_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError, match="cannot make a run folder there"):
        RunFolder.create(tmp_path / "run")
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_hard_link_planted_as_the_lock_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "run").mkdir()
    os.link(tmp_path / "victim", tmp_path / "run" / "lock")
    with pytest.raises(StorageError, match="lock: is a hard link to another file; remove it"):
        RunFolder.create(tmp_path / "run")
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_link_planted_as_the_folder_of_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="checkpoints: is a link; remove it"):
        RunFolder.create(tmp_path / "run")


def test_temporary_files_of_a_killed_process_are_removed_by_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    left = [tmp_path / f".{16 * '0'}.tmp", tmp_path / "checkpoints" / ".0123456789abcdef.tmp"]
    for path in left:
        path.write_bytes(b"half")
    RunFolder.create(tmp_path).close()
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("missing", ["fcntl", "locks"])
def test_without_locks_on_the_system_a_run_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if missing == "fcntl":
        monkeypatch.setattr(run_folder, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", unsupported)
    with RunFolder.create(tmp_path / "run") as run:
        run.write_config({})
        assert run.read_config() == {}


def test_config_comes_back_as_it_was_and_none_is_left_out(run: RunFolder) -> None:
    config = {
        "model": {"preset": "nano", "n_layer": 4, "dropout": 0.1, "tied": True},
        "train": {"learning_rate": 3e-4, "seed": 2**64 - 1, "minutes": None},
        "data": {"file": 'a "quoted" \\ näme\n.txt', "held_out": 0.1},
    }
    run.write_config(config)
    del config["train"]["minutes"]
    assert run.read_config() == config


@pytest.mark.parametrize(
    "content",
    [
        b"import os; os.mkdir('ran')",
        b"a = 1\na = 2",
        b"a = \xff",
        b"a = " + b"[" * 50_000,
        b"a = " + b"9" * 5_000,
        b"a = 1e",
    ],
    ids=["code", "key twice", "not UTF-8", "deep", "long number", "cut"],
)
def test_a_config_that_is_not_toml_is_a_bad_file_and_is_not_executed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(run.path)
    run.config_path.write_bytes(content)
    with pytest.raises(BadFileError, match="config.toml: is not valid TOML") as caught:
        run.read_config()
    assert caught.value.exit_code == 3
    assert not (run.path / "ran").exists()


def test_numbers_of_numpy_are_written_to_the_config_as_numbers(run: RunFolder) -> None:
    run.write_config({"model": {"n_layer": np.int64(4)}})
    assert run.read_config() == {"model": {"n_layer": 4}}


def test_a_setting_outside_a_table_is_a_bad_file(run: RunFolder) -> None:
    run.config_path.write_text("model = 3\n", encoding="utf-8")
    with pytest.raises(BadFileError, match=r"config.toml: 'model' is 3; expected a table"):
        run.read_config()


def test_metrics_are_a_line_each_and_come_back(run: RunFolder) -> None:
    records = [
        {"step": 10, "tokens": 7_680, "loss": 3.25, "learning_rate": 1e-3, "gradient_norm": 0.5},
        {"step": 20, "items": 15_360, "loss": np.float32(2.5), "items_per_second": np.int64(30_000)},
    ]
    for number, record in enumerate(records, 1):
        run.append_metrics(record)
        assert run.metrics_path.read_bytes().count(b"\n") == number  # on its way to the disk at once
    assert run.read_metrics() == records


def test_nan_and_infinity_are_valid_json_and_come_back(run: RunFolder) -> None:
    def no_constants(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    run.append_metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32("nan"), "step": 1})
    line = json.loads(run.metrics_path.read_text(encoding="utf-8"), parse_constant=no_constants)
    assert line == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": "NaN", "step": 1}
    (record,) = run.read_metrics()
    assert math.isnan(record["a"]) and record["b"] == math.inf and record["c"] == -math.inf


def test_a_metrics_line_cut_by_a_kill_is_left_out(run: RunFolder) -> None:
    run.append_metrics({"step": 1})
    with run.metrics_path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    assert run.read_metrics() == [{"step": 1}]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "",
        '{"a":' * 100_000,
        *("[1]", "3", "null"),
        *('{"loss": 2.5}', '{"step": true}', '{"step": null}', '{"step": [2]}', '{"step": "2"}'),
        *(f'{{"step": 2, "loss": {value}}}' for value in ('"high"', "null", "false", "[]", "{}", '"2"', "9" * 400)),
    ],
    ids=lambda line: line[:30],
)
def test_a_bad_metrics_line_is_named_by_its_number(run: RunFolder, line: str) -> None:
    run.append_metrics({"step": 1})
    with run.metrics_path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(BadFileError, match=r"metrics.jsonl, line 2: not a metrics record"):
        run.read_metrics()


def test_metrics_on_a_full_disk_are_a_storage_error(run: RunFolder) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs a device that is always full")
    run.metrics_path.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left on device; make room, then train again"):
        run.append_metrics({"step": 1})


def test_samples_are_kept_for_any_text_of_the_model(run: RunFolder) -> None:
    run.append_sample(10, "The élan\r\n")
    run.append_sample(20, "\ud800 \0")
    expected = "--- step 10\nThe élan\r\n\n\n--- step 20\n\\ud800 \0\n\n"
    assert run.samples_path.read_bytes().decode("utf-8") == expected


def test_the_newest_checkpoint_is_that_of_the_highest_step_for_any_file_times(run: RunFolder) -> None:
    now = time.time()
    for age, step in enumerate((100, 9, 123_456_789, 20)):
        os.utime(run.save_checkpoint(step, {"w": np.array(step)}, {}), (now + age, now + age))
    (run.checkpoints_path / "step-99999999999.safetensors.bak").touch()
    assert list(run.checkpoints()) == [9, 20, 100, 123_456_789]
    assert run.checkpoint_path(9).name == "step-00000009.safetensors"
    assert run.load_checkpoint()[0]["w"] == 123_456_789
    assert run.load_checkpoint(20)[0]["w"] == 20


def test_old_checkpoints_stay_when_the_new_one_cannot_be_written(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run.save_checkpoint(1, {}, {})
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError):
            run.save_checkpoint(2, {}, {})
    assert list(run.checkpoints()) == [1]
    run.load_checkpoint()


def test_a_damaged_checkpoint_names_the_newest_older_one_that_is_whole(run: RunFolder) -> None:
    for step in (1, 2, 3):
        run.save_checkpoint(step, {"w": np.zeros(3)}, {})
    for step, hint in ((3, "step 2 is whole"), (2, "step 1 is whole")):
        path = run.checkpoint_path(step)
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        with pytest.raises(BadFileError, match=hint):
            run.load_checkpoint(step)
    with pytest.raises(BadFileError, match="step 1 is whole"):
        run.load_checkpoint()
    run.checkpoint_path(1).write_bytes(b"")
    with pytest.raises(BadFileError, match="no older checkpoint is whole"):
        run.load_checkpoint()


def test_a_missing_checkpoint_is_a_storage_error_that_lists_what_there_is(run: RunFolder) -> None:
    with pytest.raises(StorageError, match="has no checkpoint: the run ended"):
        run.load_checkpoint()
    run.save_checkpoint(5, {}, {})
    with pytest.raises(StorageError, match="no checkpoint of step 4; it has 5"):
        run.load_checkpoint(4)


def test_default_run_folders_count_up_and_never_collide(tmp_path: Path) -> None:
    base = tmp_path / "runs"
    assert next_run_path(base) == base / "run-1"
    assert next_run_path(base, "nano") == base / "nano-1"
    (base / "run-11").touch()
    (base / "run-x").touch()
    assert [next_run_path(base).name for _ in range(2)] == ["run-12", "run-13"]


def test_where_another_run_took_the_number_the_next_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run-1").mkdir()
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(()))  # run-1 appears only after the folder was listed
    assert next_run_path(tmp_path) == tmp_path / "run-2"


def test_a_folder_that_cannot_hold_runs_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    for base in (tmp_path / "plain", tmp_path / "plain" / "runs"):
        with pytest.raises(StorageError, match="name one with --out"):
            next_run_path(base)
