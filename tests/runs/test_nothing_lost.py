"""Nothing is lost: whatever a disk, a kill or a power cut does to a run, it goes on and ends with the same bits."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from disk import KILLED, WAYS, Disk, after_power_loss

from nanograd_llm.errors import NanogradError, StorageError
from nanograd_llm.runs import RunFolder
from nanograd_llm.runs.prepare import prepare_run, resume_run

STEPS = 6
SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 4, "context_length": 8, "tokenizer": "bytes", "batch_size": 4}
OPTIONS = {**SIZES, "dropout": 0.1, "workers": 1, "processes": False, "accumulate": 2, "epochs": True}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Samples are left out, and syncs, which no process sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanograd_llm.tasks.language_model.generate", lambda model, prompt, **_: [prompt])
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not stopped, and beside it one that was saved after two steps, under the name before."""
    folder = tmp_path_factory.mktemp("lost")
    (folder / "text.txt").write_text("the cat sat on the mat. " * 40)
    options = {**OPTIONS, "file": str(folder / "text.txt"), "steps": STEPS, "checkpoint_every": 2}
    list(prepare_run(folder / "whole", options=options).train())
    run = prepare_run(folder / "before", options=options)
    events = run.train()
    while run.trainer.steps_done < 3:
        next(events)
    events.close()  # saves step 3
    return folder


def final(path: Path) -> str:
    return hashlib.sha256(RunFolder.open(path).checkpoint_path(STEPS).read_bytes()).hexdigest()


def gone_on(path: Path, disk: Disk | None = None, **options: object) -> None:
    run = resume_run(path, options=options)
    if disk is None:
        list(run.train())
        return
    with disk.installed():
        list(run.train())


def copied(whole: Path, path: Path) -> Path:
    shutil.copytree(whole / "before", path)
    return path


def calls_of_a_run(whole: Path, path: Path, copies: Path | None = None, **options: object) -> list:
    disk = Disk(copied(whole, path), copies=copies)
    gone_on(path, disk, **options)
    disk.keep_copy()
    return disk.calls


def ends_as(expected: str, path: Path) -> None:
    """Whatever a run left in this folder, it ends with the expected bits."""
    if not RunFolder.open(path).checkpoint_path(STEPS).exists():
        gone_on(path)
        assert not [*path.rglob(".*.tmp")]
    assert final(path) == expected, path
    shutil.rmtree(path)


def failed(path: Path, point: int, way: str) -> int:
    """Go on with the run in a process of its own, which fails at this call; returns its exit code."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            gone_on(path, Disk(path, point, way))
        except NanogradError as error:
            code = error.exit_code
        except BaseException:
            code = 99
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fails_at(whole: Path, tmp_path: Path, points: list[tuple[int, str]], record_property) -> None:
    expected = final(whole / "whole")
    for point, way in points:
        path = copied(whole, tmp_path / f"{point}-{way}")
        code = failed(path, point, way)
        assert code == (4 if way in ("EIO", "ENOSPC") else KILLED) or (code == 0 and way in ("EIO", "ENOSPC")), (
            point,
            way,
            code,
        )
        ends_as(expected, path)
    record_property("kill points", len(points))


def test_a_run_that_is_killed_before_in_or_after_any_call_of_the_disk_ends_with_the_same_bits(
    whole, tmp_path, record_property
):
    count, expected = len(calls_of_a_run(whole, tmp_path / "run", tmp_path / "copies")), final(whole / "whole")
    assert count > 100 and len(states := [*(tmp_path / "copies").iterdir()]) > 150
    for path in states:
        ends_as(expected, path)
    record_property("kill points", 3 * count)


@pytest.mark.parametrize("way", ["EIO", "ENOSPC"])
def test_a_run_in_which_any_call_of_the_disk_fails_says_so_and_can_go_on_to_the_same_bits(
    whole, tmp_path, record_property, way
):
    count, expected = len(calls_of_a_run(whole, tmp_path / "counted")), final(whole / "whole")
    for point in range(count):
        path = copied(whole, tmp_path / str(point))
        with contextlib.suppress(StorageError):
            gone_on(path, Disk(path, point, way))
        ends_as(expected, path)
    record_property("kill points", count)


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_dies_at_any_call_of_the_disk_in_any_way_leaves_a_run_that_goes_on(
    whole, tmp_path, record_property
):
    count = len(calls_of_a_run(whole, tmp_path / "counted"))
    fails_at(whole, tmp_path, [(point, way) for point in range(count) for way in WAYS], record_property)


def test_after_a_power_cut_a_checkpoint_is_whole_and_the_run_can_go_on(whole, tmp_path, record_property):
    path = tmp_path / "run"
    calls = calls_of_a_run(whole, path, keep=1)  # so that the old one is removed
    assert any(name == "unlink" for name, _, _ in calls)
    shutil.rmtree(path)
    copied(whole, path)
    before = {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    states, promised, renamed = [], 3, 3
    for count in range(len(calls) + 1):
        name, where, data = calls[count - 1] if count else ("", "", None)
        if name == "replace" and data.endswith(".safetensors"):
            renamed = int(data[-20:-12])
        if name == "fsync" and where.endswith("checkpoints"):
            promised = renamed  # from here on no power cut may undo it
        for state in after_power_loss(calls[:count], before):
            if (promised, state) not in states[-200:]:
                states.append((promised, state))
    seen = set()
    for number, (promised, state) in enumerate(states):
        for file in path.rglob("*"):
            if file.is_file():
                file.unlink()
        for name, content in state.items():
            Path(name).write_bytes(content)
        folder = RunFolder.open(path)
        step, _, _ = folder.newest_whole()
        assert step >= promised
        seen.add(step)
        assert folder.read_metrics()
        if number % (len(states) // 12) == 0 and step < STEPS:
            gone_on(path)
            assert final(path) == final(whole / "whole")
    assert seen >= {3, 4, STEPS} and len(states) > 300
    record_property("kill points", len(states))


def damages(content: bytes, every: int) -> list[bytes]:
    cut = [content[:length] for length in range(0, len(content), every)]
    flipped = []
    for place in range(0, len(content), every):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        flipped.append(bytes(changed))
    return cut + flipped


def damaged_checkpoints(whole: Path, tmp_path: Path, every: int, record_property) -> None:
    path = copied(whole, tmp_path / "run")
    folder = RunFolder.open(path)
    newest = folder.checkpoint_path(3)
    good = newest.read_bytes()
    bad = damages(good, every)
    for content in bad:
        newest.write_bytes(content)
        assert folder.newest_whole()[0] == 2
    run = resume_run(path)
    assert (run.trainer.steps_done, run.damaged) == (2, 3)
    list(run.train())
    assert final(path) == final(whole / "whole") and 3 not in folder.checkpoints()
    record_property("bad inputs", len(bad))


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before_it(whole, tmp_path, record_property):
    damaged_checkpoints(whole, tmp_path, 97, record_property)


@pytest.mark.thorough
def test_a_checkpoint_with_any_byte_changed_or_cut_is_passed_over(whole, tmp_path, record_property):
    damaged_checkpoints(whole, tmp_path, 1, record_property)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "nanograd_llm", "train", *words]


def killed_at_random(tmp_path: Path, kills: int, steps: int, record_property) -> None:
    """Kill the command at random moments, or one of its workers alone, and go on, as often as is asked for."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 400)
    sizes = [word for name, value in SIZES.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    first = ["text.txt", *sizes, "--steps", str(steps), "--checkpoint-every", "7", "--evaluate-every", "100"]
    first += ["--dropout", "0.1", "--accumulate", "2", "--epochs", "--workers", "2", "--processes", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start(*words: str) -> subprocess.Popen:
        return subprocess.Popen(
            command(*words), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    assert start(*first, "whole").wait() == 0
    draw, path, end = random.Random(kills), tmp_path / "parts", f"checkpoints/step-{steps:08}.safetensors"
    done, workers_killed = 0, 0
    while True:
        process = start("--resume", "parts") if (path / "config.toml").exists() else start(*first, "parts")
        if done < kills:
            checkpoints = len([*path.glob("checkpoints/*")])
            deadline = time.monotonic() + 60
            while len([*path.glob("checkpoints/*")]) <= checkpoints and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(draw.random() * 0.05)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            workers = children.read_text().split() if children.exists() and process.poll() is None else []
            if done % 3 == 2 and workers:
                os.kill(int(workers[-1]), signal.SIGKILL)
                workers_killed += 1
                err = process.communicate(timeout=60)[1]
                assert process.returncode in (0, 1) and err.count("\n") <= 1, err
            else:
                process.kill()
                process.wait()
            done += 1
        elif process.wait() == 0:
            break
        if (path / end).exists():
            break
    last = [(tmp_path / name / end).read_bytes() for name in ("whole", "parts")]
    assert last[0] == last[1]
    assert workers_killed or kills < 3 or not Path("/proc").exists()
    record_property("kill points", done)


def test_a_command_that_is_killed_at_random_moments_ends_with_the_same_bits(tmp_path, record_property):
    killed_at_random(tmp_path, 3, 150, record_property)


@pytest.mark.thorough
def test_a_command_that_is_killed_thirty_times_ends_with_the_same_bits(tmp_path, record_property):
    killed_at_random(tmp_path, 30, 400, record_property)
