"""Files, locks and secrets that survive what they must."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ktlog import durable
from ktlog.errors import StoreError, UsageError


def run(code: str, *arguments: object, kill_at: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python *code* in a process of its own, which may be told to kill itself."""
    environment = dict(os.environ)
    if kill_at is not None:
        environment[durable.KILL_VARIABLE] = kill_at
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60,
        env=environment, check=False,
    )


# Kill points

REACH = "import sys; from ktlog.durable import reach\nfor name in sys.argv[1:]: reach(name); print(name)"


@pytest.mark.parametrize(
    ("kill_at", "printed"),
    [
        (None, ["a", "b", "b", "c"]), ("z", ["a", "b", "b", "c"]), ("a", []), ("b", ["a"]), ("b:1", ["a"]),
        ("b:2", ["a", "b"]), ("b:3", ["a", "b", "b", "c"]), ("c", ["a", "b", "b"]),
    ],
)
def test_the_environment_chooses_where_a_process_dies(kill_at: str | None, printed: list[str]) -> None:
    result = run(REACH.replace("print(name)", "print(name, flush=True)"), "a", "b", "b", "c", kill_at=kill_at)
    assert result.stdout.split() == printed
    assert result.returncode == (0 if printed[-1:] == ["c"] else -signal.SIGKILL)


@pytest.mark.parametrize("kill_at", ["a:", "a:0", "a:-1", "a:x", "a:1:2", "a:+1", "a:\u0663"])
def test_a_bad_count_is_said_instead_of_ignored(monkeypatch: pytest.MonkeyPatch, kill_at: str) -> None:
    monkeypatch.setenv(durable.KILL_VARIABLE, kill_at)
    with pytest.raises(UsageError, match="BadKillPoint"):
        durable.reach("a")
    durable.reach("b")


# Files


def test_write_atomic_replaces_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write_atomic(path, b"one")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"one", 0o644)
    durable.write_atomic(str(path), b"", mode=0o600)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"", 0o600)
    assert os.listdir(tmp_path) == ["file"]


def test_a_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        durable.write_atomic(tmp_path / "file", b"one", mode=0o644)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_missing_directory_is_an_error_with_a_name(tmp_path: Path) -> None:
    for write in (durable.write_atomic, durable.write_once, durable.write_secret):
        with pytest.raises(StoreError) as caught:
            write(tmp_path / "none" / "file", b"x")
        assert caught.value.name == "MissingStore"
    with pytest.raises(StoreError, match="MissingStore"):
        durable.sync_directory(tmp_path / "none")
    assert not os.listdir(tmp_path)


def test_writing_onto_a_directory_fails_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(StoreError, match="InputOutput"):
        durable.write_atomic(tmp_path / "file", b"x")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["write", "fsync", "rename"])
def test_a_failed_step_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failing: str) -> None:
    path = tmp_path / "file"
    durable.write_atomic(path, b"old")

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(StoreError, match="DiskFull"):
            durable.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_short_writes_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data[:3])))
    durable.write_atomic(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_bytes_are_synced_before_they_get_a_name_and_the_name_after(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events: list[str] = []
    fsync, rename, link = os.fsync, os.rename, os.link

    def spy_fsync(handle: int) -> None:
        events.append("sync directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        fsync(handle)

    def spy(event: str, call):  # noqa: ANN001, ANN202
        def wrapper(*arguments, **options):  # noqa: ANN002, ANN003, ANN202
            events.append(event)
            return call(*arguments, **options)

        return wrapper

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy("name", rename))
    monkeypatch.setattr(os, "link", spy("name", link))
    for write in (durable.write_atomic, durable.write_once, durable.write_secret):
        events.clear()
        write(tmp_path / write.__name__, b"x")
        assert events == ["sync file", "name", "sync directory"]
    events.clear()
    durable.write_once(tmp_path / "write_once", b"x")
    assert events == ["sync directory"]  # whoever wrote it may have died before it was


WRITE = "import sys; from ktlog import durable; durable.write_atomic(sys.argv[1], sys.argv[2].encode()); print('done')"


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize(("hook", "after"), [("durable.staged", "before"), ("durable.named", "new")])
def test_a_kill_leaves_the_old_content_or_the_new(
    tmp_path: Path, before: bytes | None, hook: str, after: str
) -> None:
    assert hook in durable.HOOKS
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    result = run(WRITE, path, "new", kill_at=hook)
    assert (result.returncode, result.stdout) == (-signal.SIGKILL, "")
    assert durable.read_file(path) == (b"new" if after == "new" else before)
    assert run(WRITE, path, "again").stdout == "done\n"
    assert path.read_bytes() == b"again"
    durable.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_every_kill_point_of_a_file_is_tried_above() -> None:
    assert durable.HOOKS == ("durable.staged", "durable.named")


def test_write_once_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write_once(path, b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    durable.write_once(path, b"one")
    for other in (b"two", b"on", b"one!", b""):
        with pytest.raises(StoreError) as caught:
            durable.write_once(path, other)
        assert caught.value.name == "ImmutableChanged"
        assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]


def test_write_once_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"one")
    (tmp_path / "file").symlink_to(tmp_path / "target")
    with pytest.raises(StoreError):
        durable.write_once(tmp_path / "file", b"one")


def test_of_two_writers_of_one_name_the_first_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, link = tmp_path / "file", os.link

    def be_late(*arguments, **options):  # noqa: ANN002, ANN003, ANN202
        if not path.exists():
            path.write_bytes(b"the other's")
        return link(*arguments, **options)

    monkeypatch.setattr(os, "link", be_late)
    with pytest.raises(StoreError, match="ImmutableChanged"):
        durable.write_once(path, b"mine")
    assert path.read_bytes() == b"the other's"
    assert os.listdir(tmp_path) == ["file"]


def test_many_files_cost_one_sync_for_each_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    files = {tmp_path / name / str(number): b"x" for name in ("a", "b") for number in range(4)}
    synced: list[bool] = []
    fsync = os.fsync

    def spy(handle: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    durable.write_once_all(files)
    assert synced == [False] * 8 + [True] * 2
    assert all(path.read_bytes() == b"x" for path in files)


def test_new_directories_are_synced_into_their_parents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    durable.make_directories(tmp_path, tmp_path / "a" / "b")
    assert synced == [path.stat().st_ino for path in (tmp_path, tmp_path / "a")]
    durable.make_directories(tmp_path, tmp_path / "a" / "b")
    assert len(synced) == 4
    with pytest.raises(AssertionError):
        durable.make_directories(tmp_path / "a", tmp_path / "b")


def test_read_file_tells_absence_from_content(tmp_path: Path) -> None:
    assert durable.read_file(tmp_path / "file") is None
    assert durable.read_file(tmp_path / "none" / "file") is None
    (tmp_path / "file").write_bytes(b"")
    assert durable.read_file(tmp_path / "file") == b""
    assert durable.read_file(tmp_path / "file" / "below") is None
    with pytest.raises(StoreError, match="InputOutput"):
        durable.read_file(tmp_path)


def test_remove_leftovers_takes_nothing_else(tmp_path: Path) -> None:
    names = [".file.00.tmp", "file.tmp", ".hidden", "file"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    durable.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])


# Locks

HOLD = """
import sys
from ktlog.durable import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_keeps_another_process_out_until_that_one_dies(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        with pytest.raises(StoreError) as caught:
            durable.FileLock(path).acquire()
        assert caught.value.name == "Locked"
        assert str(child.pid) in caught.value.hint
        child.kill()
        child.wait()
    with durable.FileLock(path) as lock:
        assert lock.held
        assert path.read_text() == f"{os.getpid()}\n"
    assert not lock.held


def test_two_lock_objects_exclude_each_other_in_one_process(tmp_path: Path) -> None:
    one, other = durable.FileLock(tmp_path / "lock"), durable.FileLock(tmp_path / "lock")
    one.acquire()
    for lock in (one, other):
        with pytest.raises(StoreError, match="Locked"):
            lock.acquire()
    one.release()
    one.release()
    with other:
        assert other.held


def test_a_lock_in_a_missing_directory_is_an_error_with_a_name(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="MissingStore"):
        durable.FileLock(tmp_path / "none" / "lock").acquire()


# Secrets


def test_a_secret_is_written_once_and_read_by_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "seed"
    durable.write_secret(path, bytes(range(32)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert durable.read_secret(path, 32) == bytes(range(32))
    for data in (bytes(32), bytes(range(32))):
        with pytest.raises(StoreError, match="SecretExists"):
            durable.write_secret(path, data)
    assert durable.read_secret(path, 32) == bytes(range(32))
    assert os.listdir(tmp_path) == ["seed"]


def test_a_secret_of_another_user_is_refused_with_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "seed"
    durable.write_secret(path, bytes(32))
    owner = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    for read in (durable.read_secret, durable.check_secret):
        with pytest.raises(StoreError) as caught:
            read(path, 32)
        assert caught.value.name == "UnsafeSecret" and f"runuser -u {owner} -- " in caught.value.hint
    assert durable.name_user(2**31 - 7) == str(2**31 - 7)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644, 0o660])
def test_a_secret_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "seed"
    durable.write_secret(path, bytes(32))
    path.chmod(mode)
    with pytest.raises(StoreError) as caught:
        durable.read_secret(path, 32)
    assert caught.value.name == "UnsafeSecret"
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_has_exactly_its_size(tmp_path: Path, size: int) -> None:
    durable.write_secret(tmp_path / "seed", bytes(size))
    with pytest.raises(StoreError, match="BadSecret"):
        durable.read_secret(tmp_path / "seed", 32)


def test_a_secret_is_a_file_that_exists(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="MissingSecret"):
        durable.read_secret(tmp_path / "seed", 32)
    with pytest.raises(StoreError):
        durable.read_secret(tmp_path, 32)


def test_a_secret_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    durable.write_secret(tmp_path / "seed", bytes(32))
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(StoreError, match="another user"):
        durable.read_secret(tmp_path / "seed", 32)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_seed_file_holds_one_line_of_hex(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "seed").write_bytes(bytes(range(32)).hex().encode() + end)
    assert durable.read_seed_file(tmp_path / "seed") == bytes(range(32))


@pytest.mark.parametrize("data", [b"", b"0" * 63, b"0" * 65, b" " + b"0" * 64, b"0" * 64 + b"\n\n", b"0x" + b"0" * 62])
def test_anything_else_is_no_seed_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "seed").write_bytes(data)
    for path in (tmp_path / "seed", tmp_path / "none"):
        with pytest.raises(UsageError, match="BadSeedFile"):
            durable.read_seed_file(path)


# Lines


def test_lines_are_added_and_the_file_is_the_owner_s(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    durable.append_line(path, b"one")
    durable.append_line(path, b"two")
    assert path.read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("before", "after"), [(b"", b"x\n"), (b"one\nha", b"one\nx\n"), (b"half", b"x\n"), (b"\n", b"\nx\n")])
def test_a_line_without_its_end_gives_way(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(before)
    durable.append_line(path, b"x")
    assert path.read_bytes() == after


def test_lines_are_not_added_through_a_link_nor_without_a_directory(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"kept\n")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(StoreError):
        durable.append_line(tmp_path / "link", b"x")
    assert (tmp_path / "target").read_bytes() == b"kept\n"
    with pytest.raises(StoreError, match="MissingStore"):
        durable.append_line(tmp_path / "none" / "journal", b"x")


def test_importing_this_module_needs_no_database() -> None:
    result = run("import sys; sys.modules['sqlite3'] = None; import ktlog.durable; print('imported')")
    assert result.stdout == "imported\n"
