"""SQLite's own calls on files, each passing ``Calls.around``: a layer above SQLite's VFS for this platform.

SQLite takes its file methods from a table that whoever opens a file may replace. This one is the platform's, with
xWrite, xSync and xTruncate led through Python, and xOpen and xDelete beside them. The library is the one that the
``sqlite3`` module is linked to, found through ctypes.

Source: https://www.sqlite.org/c3ref/vfs.html and https://www.sqlite.org/c3ref/io_methods.html.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p, cast
from typing import Any

from tests.faults.calls import Calls, flip
from tests.faults.disk import Disk

OK, FULL, CANTOPEN = 0, 13, 14
IOERR = {"db.read": 266, "db.write": 778, "db.sync": 1034, "db.truncate": 1546, "db.delete": 2570}
OPEN_CREATE, OPEN_READWRITE, OPEN_WAL, OPEN_MAIN_JOURNAL = 0x4, 0x2, 0x80000, 0x800


class _Methods(Structure):
    _fields_ = [("version", c_int)] + [
        (name, c_void_p)
        for name in (
            "close", "read", "write", "truncate", "sync", "size", "lock", "unlock", "reserved", "control", "sector",
            "device", "shm_map", "shm_lock", "shm_barrier", "shm_unmap", "fetch", "unfetch",
        )
    ]


class _Vfs(Structure):
    _fields_ = [
        ("version", c_int), ("file_size", c_int), ("longest", c_int), ("next", c_void_p), ("name", c_char_p),
        ("data", c_void_p),
    ] + [
        (name, c_void_p)
        for name in (
            "open", "delete", "access", "full", "dl_open", "dl_error", "dl_sym", "dl_close", "randomness", "sleep",
            "time", "last_error", "time64", "set_call", "get_call", "next_call",
        )
    ]


_CLOSE = CFUNCTYPE(c_int, c_void_p)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)

_kept: list[Any] = []  # what C points to must not be collected


class _Shim:
    def __init__(self, calls: Calls, vfs: _Vfs) -> None:
        self.calls = calls
        self.vfs = vfs
        self.address = ctypes.addressof(vfs)
        self.paths: dict[int, str] = {}
        self.new_journals: set[int] = set()
        self.tables: dict[int, tuple[_Methods, Any]] = {}
        self.open_file = _OPEN(vfs.open)
        self.delete_file = _DELETE(vfs.delete)

    def open(self, _vfs: int, name: int, file: int, flags: int, out: int) -> int:
        path = os.fsdecode(cast(name, c_char_p).value) if name else ""
        if not self.calls.below(path) or not flags & OPEN_READWRITE:
            return self._open(name, file, flags, out, "")
        there = os.path.lexists(path)
        return self.calls.around(
            "db.open", path, lambda: self._open(name, file, flags, out, path, not there),
            # A file that was opened and is said not to be must not stay open; "done" is "fail" here.
            lambda _error: self._refuse_open(file),
            before=lambda disk: disk.keep(path) if there else None,
            learn=lambda disk, _half: None if there or not os.path.lexists(path) else disk.made(path),
        )

    def _open(self, name: int, file: int, flags: int, out: int, path: str, fresh: bool = False) -> int:
        code = self.open_file(self.address, name, file, flags, out)
        if code == OK and path:
            pointer = cast(file, POINTER(c_void_p))
            self.paths[file] = path
            self.new_journals.discard(file)
            if fresh and flags & (OPEN_WAL | OPEN_MAIN_JOURNAL):
                self.new_journals.add(file)  # whose directory SQLite syncs with its first sync
            pointer[0] = ctypes.addressof(self._table(pointer[0]))
        return code

    def _refuse_open(self, file: int) -> int:
        pointer = cast(file, POINTER(c_void_p))
        if file in self.paths and pointer[0]:
            _CLOSE(cast(pointer[0], POINTER(_Methods)).contents.close)(file)
            del self.paths[file]
        pointer[0] = None
        return CANTOPEN

    def _table(self, methods: int) -> _Methods:
        if methods not in self.tables:
            table = _Methods.from_buffer_copy(cast(methods, POINTER(_Methods)).contents)
            write, truncate, sync = _WRITE(table.write), _TRUNCATE(table.truncate), _SYNC(table.sync)
            own = (
                _WRITE(lambda file, data, count, at: self.write(write, file, data, count, at)),
                _TRUNCATE(lambda file, length: self.truncate(truncate, file, length)),
                _SYNC(lambda file, flags: self.sync(sync, file, flags)),
            )
            table.write, table.truncate, table.sync = (cast(one, c_void_p).value for one in own)
            self.tables[methods] = table, own
        return self.tables[methods][0]

    def write(self, write: Any, file: int, data: int, count: int, at: int) -> int:
        path = self.paths.get(file)
        if path is None:
            return write(file, data, count, at)
        content = ctypes.string_at(data, count)
        half = max(1, count // 2)

        def put(other: bytes) -> int:
            return write(file, cast(ctypes.create_string_buffer(other, len(other)), c_void_p), len(other), at)

        return self.calls.around(
            "db.write", path, lambda: write(file, data, count, at), self._refuse("db.write"),
            # Half a page and no word of it would be SQLite's mistake: a short write is one that failed.
            half=lambda: put(content[:half]) or IOERR["db.write"], flipped=lambda: put(flip(content)),
            learn=lambda disk, torn: disk.wrote(path, at, content[:half] if torn else content),
        )

    def truncate(self, truncate: Any, file: int, length: int) -> int:
        path = self.paths.get(file)
        if path is None:
            return truncate(file, length)
        return self.calls.around(
            "db.truncate", path, lambda: truncate(file, length), self._refuse("db.truncate"),
            learn=lambda disk, _half: disk.truncated(path, length),
        )

    def sync(self, sync: Any, file: int, flags: int) -> int:
        path = self.paths.get(file)
        if path is None:
            return sync(file, flags)

        def learn(disk: Disk, _half: bool) -> None:
            disk.synced(path)
            if file in self.new_journals:
                self.new_journals.discard(file)
                disk.synced(os.path.dirname(path))

        return self.calls.around("db.sync", path, lambda: sync(file, flags), self._refuse("db.sync"), learn=learn)

    def delete(self, _vfs: int, name: bytes, sync: int) -> int:
        path = os.fsdecode(name)
        if not self.calls.below(path) or not os.path.lexists(path):
            return self.delete_file(self.address, name, sync)

        def learn(disk: Disk, _half: bool) -> None:
            disk.removed(path)
            if sync:
                disk.synced(os.path.dirname(path))

        return self.calls.around(
            "db.delete", path, lambda: self.delete_file(self.address, name, sync), self._refuse("db.delete"),
            before=lambda disk: disk.keep(path), learn=learn,
        )

    def _refuse(self, call: str) -> Any:
        return lambda error: FULL if error in ("ENOSPC", "EDQUOT") and call != "db.sync" else IOERR[call]


def install(calls: Calls) -> None:
    """Make it the VFS that every new connection of this process uses."""
    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype = POINTER(_Vfs)
    library.sqlite3_vfs_find.argtypes = [c_char_p]
    library.sqlite3_vfs_register.argtypes = [POINTER(_Vfs), c_int]
    original = library.sqlite3_vfs_find(None).contents
    shim = _Shim(calls, original)
    own = _Vfs.from_buffer_copy(original)
    callbacks = (_OPEN(shim.open), _DELETE(shim.delete))
    own.name, own.next = b"faults", None
    own.open, own.delete = (cast(one, c_void_p).value for one in callbacks)
    if library.sqlite3_vfs_register(ctypes.byref(own), 1) != OK:
        raise RuntimeError("SQLite takes no other VFS")
    _kept.extend([library, original, shim, own, callbacks])
