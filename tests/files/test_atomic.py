"""A file written atomically is the old one or the new one, whatever fails and whenever the process dies."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import nanograd_llm.files.atomic
from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.atomic import read_bytes, require_complete, write_atomically, written_together

PACKAGE_HOME = str(Path(nanograd_llm.files.atomic.__file__).parents[1])

KILLED_AT = """
import os, sys
from nanograd_llm.files.atomic import write_atomically

left = int(sys.argv[2])

def dying(call):
    def step(*args):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return call(*args)
    return step

write = os.write
os.write = lambda file, data: write(file, data[:4])  # short writes, so that the process can die between them
for name in ("open", "chmod", "write", "fsync", "close", "replace"):
    setattr(os, name, dying(getattr(os, name)))
write_atomically(sys.argv[1], b"new content")
"""


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, code: int, *, after: int = 0) -> None:
    """Make `os.<call>` fail with `code` after it has worked `after` times."""
    works, original = iter(range(after)), getattr(os, call)

    def refusing(*args: object) -> object:
        if next(works, None) is None:
            raise OSError(code, os.strerror(code))
        return original(*args)

    monkeypatch.setattr(os, call, refusing)


def test_a_missing_folder_is_said_to_be_made_first(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file .*; make its folder first"):
        write_atomically(tmp_path / "none" / "file", b"content")


def test_a_written_file_holds_the_content_and_no_other_file_is_left(tmp_path: Path) -> None:
    for content in (b"first", b"", b"second" * 100_000):
        write_atomically(tmp_path / "file", content)
        assert read_bytes(tmp_path / "file") == content
        assert os.listdir(tmp_path) == ["file"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:3]))
    write_atomically(tmp_path / "file", b"ten bytes.")
    assert (tmp_path / "file").read_bytes() == b"ten bytes."


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "chmod", "write", "fsync", "replace"])
def test_a_disk_error_leaves_the_previous_file_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"previous")
    with monkeypatch.context() as patch:
        refuse(patch, call, code)
        with pytest.raises(StorageError) as caught:
            write_atomically(path, b"new")
    assert caught.value.exit_code == 4
    assert str(path) in str(caught.value) and os.strerror(code) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"previous"
    assert os.listdir(tmp_path) == ["file"]


def test_a_disk_that_fills_up_during_a_write_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "file", os.write
    path.write_bytes(b"previous")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:2]))
        refuse(patch, "write", errno.ENOSPC, after=1)
        with pytest.raises(StorageError, match="No space left"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"previous"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_synced_is_reported_with_the_new_file_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    with monkeypatch.context() as patch:
        refuse(patch, "fsync", errno.EIO, after=1)
        with pytest.raises(StorageError, match="written, but a power loss may undo it"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_ctrl_c_during_a_write_discards_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    path.write_bytes(b"previous")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"previous"
    assert os.listdir(tmp_path) == ["file"]


def test_content_is_synced_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def record(name: str) -> None:
        original = getattr(os, name)

        def call(*args: object) -> object:
            folder = name == "fsync" and isinstance(args[0], int) and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            order.append("sync folder" if folder else name)
            return original(*args)

        monkeypatch.setattr(os, name, call)

    for name in ("write", "fsync", "replace"):
        record(name)
    write_atomically(tmp_path / "file", b"content")
    assert order == ["write", "fsync", "replace", "sync folder"]


def test_a_process_killed_at_any_step_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    seen = []
    for step in range(40):
        path.write_bytes(b"old content")
        command = [sys.executable, "-c", KILLED_AT, str(path), str(step)]
        ended = subprocess.run(command, cwd=PACKAGE_HOME, capture_output=True, text=True, check=False)
        seen.append(path.read_bytes())
        for leftover in tmp_path.glob(".*.tmp"):
            leftover.unlink()
        assert os.listdir(tmp_path) == ["file"]
        if ended.returncode != 9:
            break
    assert ended.returncode == 0, ended.stderr
    steps = len(seen)
    assert steps == 12  # open, chmod, 3 writes, fsync, close, replace, open, fsync, close; and one that is not killed
    assert seen == [b"old content"] * 8 + [b"new content"] * 4


def test_a_symlink_planted_at_the_temporary_name_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr(os, "urandom", lambda _: bytes.fromhex("0123456789abcdef"))
    (tmp_path / ".0123456789abcdef.tmp").symlink_to(victim)
    with pytest.raises(StorageError, match="File exists"):
        write_atomically(tmp_path / "file", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "file").exists()


def test_each_temporary_name_is_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (names.append(old), replace(old, new)))
    for _ in range(20):
        write_atomically(tmp_path / "file", b"")
    assert len(set(names)) == 20


def test_a_symlink_at_the_path_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "file").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new" and not (tmp_path / "file").is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask_and_an_existing_one_keeps_its_permissions(tmp_path: Path, umask: int) -> None:
    old = tmp_path / "old"
    old.touch()
    old.chmod(0o664)
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "new", b"")
        write_atomically(old, b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(old.stat().st_mode) == 0o664


@pytest.mark.parametrize("action", [lambda path: write_atomically(path, b"new"), read_bytes])
def test_a_folder_pipe_or_device_is_neither_read_nor_replaced(tmp_path: Path, action) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(StorageError, match="is not a regular file"):
            action(path)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_missing_folder_and_a_symlink_loop_are_storage_errors(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "plain").touch()
    for path in (
        tmp_path / "none" / "file",
        tmp_path / "loop",
        tmp_path / "loop" / "file",
        tmp_path / "plain" / "file",
    ):
        with pytest.raises(StorageError, match="cannot write"):
            write_atomically(path, b"new")
        with pytest.raises(StorageError):
            read_bytes(path)


def write_two(folder: Path) -> None:
    with written_together(folder) as place:
        write_atomically(place / "first", b"1")
        write_atomically(place / "second", b"2")


def test_files_written_together_are_added_to_those_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "other").write_bytes(b"mine")
    for folder, names in ((tmp_path / "a", ["first", "other", "second"]), (tmp_path / "b" / "c", ["first", "second"])):
        write_two(folder)
        assert sorted(os.listdir(folder)) == names
        assert (folder / "second").read_bytes() == b"2"


def test_a_new_folder_appears_in_one_step_with_all_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "link", errno.EPERM)
    seen, rename = [], os.rename
    monkeypatch.setattr(os, "rename", lambda old, new: (seen.append(new), rename(old, new)))
    with written_together(tmp_path / "a" / "b") as place:
        write_atomically(place / "first", b"1")
        write_atomically(place / "second", b"2")
        assert not (tmp_path / "a" / "b").exists()
    assert seen == [tmp_path / "a" / "b"]
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["first", "second"] and os.listdir(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("call", ["mkdir", "open", "write", "fsync", "replace"])
@pytest.mark.parametrize("after", range(4))
def test_if_one_of_the_files_written_together_fails_the_folder_is_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    for folder, left in ((tmp_path / "is" / "new", []), (tmp_path / "is", ["mine"])):
        for name in left:
            folder.mkdir()
            (folder / name).write_bytes(b"mine")
        with monkeypatch.context() as patch:
            refuse(patch, call, errno.ENOSPC, after=after)
            try:
                write_two(folder)
            except StorageError as error:
                assert os.strerror(errno.ENOSPC) in str(error) and ".tmp" not in str(error)
            else:
                return  # it makes fewer calls
        assert sorted(path.name for path in tmp_path.rglob("*")) == (["is", *left] if left else [])


def test_ctrl_c_leaves_none_of_the_files_written_together(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), written_together(tmp_path / "new") as place:
        write_atomically(place / "first", b"1")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_files_written_together_do_not_replace_a_file_that_appeared_meanwhile(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="b: already exists; choose another folder"),
        written_together(tmp_path) as p,
    ):
        for name in "abc":
            (p / name).write_text("ours")
        (tmp_path / "b").write_text("theirs")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "theirs"}


def test_files_written_together_do_not_go_through_a_link_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder := tmp_path / "folder").mkdir()
    (folder / "deep").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="cannot move the files there"), written_together(folder) as p:
        (p / "deep").mkdir()
        (p / "deep" / "a").touch()
    assert not [*(tmp_path / "elsewhere").iterdir()] and [path.name for path in folder.iterdir()] == ["deep"]


def test_files_can_be_written_together_on_a_disk_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "link", errno.EPERM)
    with written_together(tmp_path) as p:
        (p / "a").write_text("ours")
    assert (tmp_path / "a").read_text() == "ours"


def killed_while_writing_together(folder: Path) -> None:
    child = os.fork()
    if child == 0:
        with written_together(folder) as place:
            (place / "half").write_text("ours")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_killed_process_left_is_removed_by_the_next_one_also_if_that_fails(tmp_path: Path) -> None:
    for folder in (tmp_path / "new", tmp_path / "deep" / "new", tmp_path):
        killed_while_writing_together(folder)
        assert [*tmp_path.rglob(".*.tmp/half")]
        with pytest.raises(KeyboardInterrupt), written_together(folder):
            raise KeyboardInterrupt
        assert not [*tmp_path.rglob(".*.tmp")]
    killed_while_writing_together(tmp_path / "new")
    write_two(tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["deep", "new"] and sorted(os.listdir(tmp_path / "new")) == [
        "first",
        "second",
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("call", ["link", "mkdir", "rename", "fsync", "rmdir", "unlink"])
def test_files_moved_into_a_folder_are_all_there_or_refused_wherever_the_process_is_killed(
    tmp_path: Path, call: str, record_property: Callable[[str, object], None]
) -> None:
    names = [Path("a"), Path("deep/b"), Path("z")]
    for after in itertools.count():
        (folder := tmp_path / str(after)).mkdir()
        (folder / "mine").write_text("mine")
        if (child := os.fork()) == 0:
            with written_together(folder) as place:
                (place / "deep").mkdir()
                for name in names:
                    (place / name).write_text("ours")
                works, original = iter(range(after)), getattr(os, call)

                def dying(*args: object, **more: object) -> object:
                    return original(*args, **more) if next(works, None) is not None else os._exit(9)  # noqa: B023

                setattr(os, call, dying)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        there = [name for name in names if (folder / name).exists()]
        try:
            require_complete(folder)
            assert there in ([], names)
        except BadFileError as error:
            assert there and f"has {there[0].name}, but perhaps not all" in str(error)
            with written_together(folder) as place:
                (place / "other").touch()
            assert not any((folder / name).exists() for name in names)
        assert (folder / "mine").read_text() == "mine"
        if code == 0:
            break
    record_property("kill points", after)
    assert after >= 1


def test_what_another_process_is_writing_and_what_a_link_leads_to_are_not_removed(tmp_path: Path) -> None:
    victim, link, file = tmp_path / "victim", tmp_path / f".{16 * '0'}.tmp", tmp_path / f".{16 * '1'}.tmp"
    victim.mkdir()
    (victim / "mine").touch()
    link.symlink_to(victim)
    file.touch()
    with written_together(tmp_path / "first") as first:
        (first / "a").touch()
        write_two(tmp_path / "second")
        assert (first / "a").exists()
    assert (tmp_path / "first" / "a").exists() and (victim / "mine").exists() and link.is_symlink() and file.exists()


def test_the_parent_of_every_new_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(nanograd_llm.files.atomic, "_sync_folders", lambda _, folders: synced.extend(folders))
    with written_together(tmp_path / "new" / "deep") as p:
        (p / "a").write_text("ours")
    assert set(synced) == {tmp_path, tmp_path / "new", tmp_path / "new" / "deep"}
