"""What must survive: files, locks and secrets. (For databases see ``ktlog.sqlitefile``.)

A file is durable when its bytes are on disk *and* its name is: the first takes an fsync of the
file, the second an fsync of the directory that names it. The functions here do both, holding the
directory open across the change so that the kernel cannot lose an error in between. An fsync that
failed is never repeated here, because a second one may lie about what is on disk: a file is written
anew, and a process that keeps a log had better stop.

Nothing here leaves ``OSError`` behind; it becomes ``StoreError``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import secrets
import signal
import stat
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from ktlog.errors import StoreError, UsageError

KILL_VARIABLE = "KTLOG_KILL_AT"
STOP_VARIABLE = "KTLOG_KILL_STOPS"
"""If the environment has it, a process is stopped at its kill point, and whoever wants to may let it go on."""

HOOKS = ("durable.staged", "durable.named")
"""Kill points of every file written here: its bytes are on disk under a temporary name; it has its
name, but the directory was not synced yet."""

_kill_counts: dict[str, int] = {}
_kill_lock = threading.Lock()


def reach(name: str) -> None:
    """A kill point for fault tests: die here, by SIGKILL, if the environment says so.

    ``KTLOG_KILL_AT=name`` kills the process the first time it gets to *name*, and
    ``KTLOG_KILL_AT=name:3`` the third time. Without the variable nothing happens. Whoever calls
    this lists the names it uses in a tuple ``HOOKS``, so that a test can try them all.

    Raises:
        UsageError: "BadKillPoint", the number is none.
    """
    wanted = os.environ.get(KILL_VARIABLE)
    if wanted is None:
        return
    wanted_name, colon, number = wanted.partition(":")
    if wanted_name != name:
        return
    if colon and not (number.isascii() and number.isdigit() and int(number) > 0):
        raise UsageError("BadKillPoint", f"{KILL_VARIABLE}={wanted}: after the colon comes a count from 1")
    with _kill_lock:
        _kill_counts[name] = _kill_counts.get(name, 0) + 1
        if _kill_counts[name] == (int(number) if colon else 1):
            if os.environ.get(STOP_VARIABLE):
                # By way of this thread: sent to the process, it may be another's to notice, while this one goes on.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            else:
                os.kill(os.getpid(), signal.SIGKILL)


# Files


def write_atomic(path: Path | str, data: bytes, mode: int = 0o644) -> None:
    """Make *path* hold *data*, durably; a reader sees the old content or the new, never a mix.

    Args:
        path: its directory must exist. An existing file is replaced.
        mode: permission bits of the new file, whatever the umask.

    Raises:
        StoreError: "MissingStore" without the directory, "DiskFull", "ReadOnly", "NoPermission",
            "InputOutput". The path then holds the old content, or after a failed sync of the
            directory perhaps the new.
    """
    path = Path(path)
    with file_errors(path), _open_directory(path.parent) as directory:
        temporary = _stage(directory, path.name, data, mode)
        try:
            os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            _discard(directory, temporary)
            raise
        reach("durable.named")
        os.fsync(directory)


def append_line(path: Path | str, line: bytes) -> None:
    """Add *line*, durably, to a file of lines that only grows; the file is made with mode 0600.

    A line that an earlier process did not finish is cut off first: whoever wrote it never heard that it
    was there. One writer at a time.

    Raises:
        StoreError: as ``write_atomic``. Then perhaps a part of the line is there, for the next call to cut.
    """
    path = Path(path)
    with file_errors(path), _open_directory(path.parent) as directory:
        handle = os.open(path.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        with os.fdopen(handle, "r+b") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.seek(whole)
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.fsync(directory)


def write_once(path: Path | str, data: bytes, mode: int = 0o444) -> None:
    """Make *path* hold *data*, durably and for ever. Writing the same bytes again does nothing.

    Raises:
        StoreError: "ImmutableChanged" if it holds anything else, and it stays so; otherwise as
            ``write_atomic``.
    """
    path = Path(path)
    with file_errors(path), _open_directory(path.parent) as directory:
        _place_once(directory, path, data, mode)
        os.fsync(directory)


def write_once_all(files: Mapping[Path, bytes], mode: int = 0o444) -> None:
    """``write_once`` for many files, each directory synced once. The directories must exist.

    Files get their names in the order given. After an error some may be there and some not; writing
    the same again completes them.
    """
    directories: dict[Path, int] = {}
    try:
        for path, data in files.items():
            with file_errors(path):
                if path.parent not in directories:
                    directories[path.parent] = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
                _place_once(directories[path.parent], path, data, mode)
        for parent, directory in directories.items():
            with file_errors(parent):
                os.fsync(directory)
    finally:
        for directory in directories.values():
            with suppress(OSError):  # what counts was synced, or its failure is on its way up
                os.close(directory)


def make_directories(root: Path, directory: Path, known: Collection[Path] = ()) -> None:
    """Make *directory*, somewhere below *root*, durably.

    Every directory on the way is synced, also one that exists: whoever made it may have died before
    it was. But not the names of *known* ones, which this process has made durable.
    """
    ancestors = [directory, *directory.parents]
    if root not in ancestors:
        raise AssertionError(f"{directory} is not below {root}")
    for new in reversed(ancestors[: ancestors.index(root)]):
        if new in known:
            continue
        with file_errors(new), _open_directory(new.parent) as parent:
            with suppress(FileExistsError):
                os.mkdir(new.name, 0o755, dir_fd=parent)
            os.fsync(parent)


def sync_directory(directory: Path | str) -> None:
    """Make the names in *directory* durable."""
    with file_errors(Path(directory)), _open_directory(Path(directory)) as handle:
        os.fsync(handle)


def read_file(path: Path | str) -> bytes | None:
    """Content of a file, or None when there is none."""
    with file_errors(Path(path)):
        try:
            return Path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def remove_leftovers(directory: Path) -> None:
    """Remove temporary files that an earlier process left behind when it died.

    Only for a directory that nobody else writes to: a living writer's would go as well.
    """
    with file_errors(directory):
        for entry in os.scandir(directory):
            if entry.name.startswith(".") and entry.name.endswith(".tmp"):
                with suppress(FileNotFoundError):
                    os.unlink(entry.path)


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` about *path* into a coded ``StoreError``."""
    try:
        yield
    except OSError as error:
        names = {
            errno.ENOENT: "MissingStore", errno.ENOTDIR: "MissingStore", errno.EROFS: "ReadOnly",
            errno.ENOSPC: "DiskFull", errno.EDQUOT: "DiskFull",
            errno.EACCES: "NoPermission", errno.EPERM: "NoPermission",
        }
        name = names.get(error.errno or 0, "InputOutput")
        raise StoreError(name, f"{path}: {error.strerror or error}") from error


@contextmanager
def _open_directory(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


def _stage(directory: int, name: str, data: bytes, mode: int) -> str:
    """Write *data*, synced, under a temporary name in the same directory; return that name."""
    temporary = f".{name}.{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    handle = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view):]
            os.fchmod(handle, mode)
            os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException:
        _discard(directory, temporary)
        raise
    reach("durable.staged")
    return temporary


def _place_once(directory: int, path: Path, data: bytes, mode: int) -> None:
    """Give *data* the name *path* unless the name is taken; the caller syncs the directory."""
    if _already_there(directory, path, data):
        return
    temporary = _stage(directory, path.name, data, mode)
    try:
        # A link refuses to replace a file, where a rename would do it without a word.
        os.link(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
    except FileExistsError:
        if not _already_there(directory, path, data):
            raise AssertionError(f"{path}: exists and does not exist") from None
    finally:
        _discard(directory, temporary)
    reach("durable.named")


def _already_there(directory: int, path: Path, data: bytes) -> bool:
    try:
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
    except FileNotFoundError:
        return False
    with os.fdopen(handle, "rb") as file:
        if file.read(len(data) + 1) != data:
            raise StoreError(
                "ImmutableChanged", f"{path}: exists with other content, which must never change",
                hint="Something wrote to this directory, or an older state was restored. Do not delete the "
                     "file before you know which.",
            )
    return True


def _discard(directory: int, name: str) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=directory)


# Locks and secrets


class FileLock:
    """An exclusive lock on a file, for one process at a time; a context manager.

    The kernel gives it up when the process dies, so none is ever left behind. It belongs to the open
    file: a forked child shares it, and it is free once parent and child have both let go. The file
    stays, and holds the owner's process id for people to read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        return self._handle is not None

    def acquire(self) -> None:
        """Take the lock, without waiting.

        Raises:
            StoreError: "Locked" when another process, or another lock object here, has it.
        """
        if self._handle is not None:
            raise StoreError("Locked", f"{self.path}: this lock is held already")
        with file_errors(self.path):
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode("ascii"), 0)
            except BlockingIOError:
                owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
                os.close(handle)
                raise StoreError(
                    "Locked", f"{self.path}: in use by another process",
                    hint=f"It says that it is process {owner}." if owner else "",
                ) from None
            except BaseException:
                os.close(handle)
                raise
        self._handle = handle

    def release(self) -> None:
        """Let go. Doing so twice does nothing."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with file_errors(self.path):
                os.close(handle)

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def read_secret(path: Path | str, size: int) -> bytes:
    """Read a secret of exactly *size* bytes that nobody else may read.

    Raises:
        StoreError: "MissingSecret"; "UnsafeSecret" if it is no regular file, belongs to another user,
            or its mode lets group or others do anything; "BadSecret" for another length.
    """
    secret = read_secret_file(path, size)
    if len(secret) != size:
        raise StoreError("BadSecret", f"{path}: must hold exactly {size} bytes")
    return secret


def read_secret_file(path: Path | str, maximum_bytes: int) -> bytes:
    """Read a secret of at most *maximum_bytes* that nobody else may read.

    Raises:
        StoreError: as ``read_secret``; "BadSecret" if it is longer.
    """
    path = Path(path)
    with file_errors(path):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _missing(path) from None
        with os.fdopen(handle, "rb") as file:
            _check_safe(path, os.fstat(file.fileno()))
            secret = file.read(maximum_bytes + 1)
    if len(secret) > maximum_bytes:
        raise StoreError("BadSecret", f"{path}: must hold {maximum_bytes} bytes at most")
    return secret


def check_secret(path: Path | str, size: int) -> None:
    """What ``read_secret`` would refuse by, without a look at the secret: for a process that must not hold it.

    Raises:
        StoreError: as ``read_secret``.
    """
    path = Path(path)
    with file_errors(path):
        try:
            found = path.stat()
        except FileNotFoundError:
            raise _missing(path) from None
    _check_safe(path, found)
    if found.st_size != size:
        raise StoreError("BadSecret", f"{path}: must hold exactly {size} bytes")


def _missing(path: Path) -> StoreError:
    return StoreError(
        "MissingSecret", f"{path}: no such file",
        hint="Restore it from where your secrets are kept, or put right what names it: nothing makes it again.",
    )


def _check_safe(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise StoreError("UnsafeSecret", f"{path}: not a regular file")
    if found.st_uid != os.geteuid():
        owner = name_user(found.st_uid)
        raise StoreError(
            "UnsafeSecret", f"{path}: belongs to another user, {owner}",
            hint=f"Run this as that user: runuser -u {owner} -- COMMAND",
        )
    if found.st_mode & 0o077:
        raise StoreError(
            "UnsafeSecret", f"{path}: open to others (mode {found.st_mode & 0o777:04o})",
            hint=f"If nobody else has read it: chmod 600 {path}",
        )


def name_user(number: int) -> str:
    """What the user with this id is called; the number in digits for one who has no name here."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


_SEED_HEX = re.compile(rb"[0-9a-fA-F]{64}\r?\n?")


def read_seed_file(path: Path | str) -> bytes:
    """The 32 bytes that *path* holds in hex, on one line: what ``init --seed-file`` takes.

    Its mode is the caller's business, unlike a stored key's: the file is read once and not kept.

    Raises:
        UsageError: "BadSeedFile".
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError("BadSeedFile", f"cannot read {path}: {error.strerror}") from None
    if _SEED_HEX.fullmatch(data) is None:
        raise UsageError("BadSeedFile", f"{path} must hold 32 bytes in hex (64 digits) and nothing else")
    return bytes.fromhex(data.decode("ascii").strip())


def write_secret(path: Path | str, data: bytes) -> None:
    """Store a new secret with mode 0600. Never replaces one, not even by the same bytes.

    Raises:
        StoreError: "SecretExists", or as ``write_atomic``.
    """
    path = Path(path)
    with file_errors(path), _open_directory(path.parent) as directory:
        temporary = _stage(directory, path.name, data, 0o600)
        try:
            os.link(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except FileExistsError:
            raise StoreError("SecretExists", f"{path}: exists, and is not replaced") from None
        finally:
            _discard(directory, temporary)
        reach("durable.named")
        os.fsync(directory)
