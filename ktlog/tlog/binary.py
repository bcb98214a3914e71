"""Big-endian numbers and length-prefixed strings: how the binary formats are read.

Spec: directory map v1, preamble and §5.
"""

from __future__ import annotations

from ktlog.errors import EncodingError


def u8(number: int) -> bytes:
    return number.to_bytes(1, "big")


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def s8(data: bytes) -> bytes:
    return u8(len(data)) + data


def s16(data: bytes) -> bytes:
    return u16(len(data)) + data


def s32(data: bytes) -> bytes:
    return u32(len(data)) + data


class Reader:
    """Takes a byte string apart, from the front. *error* names what it raises: ``EncodingError(error)``."""

    def __init__(self, data: bytes, error: str) -> None:
        self._data = data
        self._offset = 0
        self._error = error

    def refuse(self, what: str) -> EncodingError:
        return EncodingError(self._error, what)

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._offset

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise self.refuse("it is cut short")
        taken = self._data[self._offset : self._offset + count]
        self._offset += count
        return taken

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def u8(self) -> int:
        return self.number(1)

    def u16(self) -> int:
        return self.number(2)

    def u32(self) -> int:
        return self.number(4)

    def u64(self) -> int:
        return self.number(8)

    def s8(self) -> bytes:
        return self.take(self.u8())

    def s16(self) -> bytes:
        return self.take(self.u16())

    def s32(self) -> bytes:
        return self.take(self.u32())

    def end(self) -> None:
        if self.left:
            raise self.refuse(f"{self.left} bytes follow its end")
