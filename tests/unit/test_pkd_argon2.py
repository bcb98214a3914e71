"""Two libraries, one function: which of them is there changes how long it takes, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from nacl.exceptions import RuntimeError as SodiumFailed

from ktlog.pkd import argon2
from ktlog.pkd.argon2 import argon2id, by_cryptography, by_sodium

LIBRARIES = pytest.mark.parametrize("library", [by_cryptography, by_sodium, argon2id])


@LIBRARIES
@pytest.mark.parametrize(("password", "salt", "expected"), [
    # Pinned by this project: libsodium's and OpenSSL's answers, which agree.
    (b"", b"\0" * 16, "2998de47e116994b545a75fa0f9b3624c7c63258d0db364b6dc709fa023db4dc"),
    (b"password", b"0123456789abcdef", "1c804af134552681ffd28493688de34f36209c219493dde8b5ecb6b745674b1d"),
])
def test_known_answers(library, password, salt, expected):
    assert library(password, salt).hex() == expected


@LIBRARIES
def test_other_threads_go_on_meanwhile(library):
    """A thread that would not let go of the interpreter inside the call is seen at its beginning and end at once."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(600.0)  # nobody gives way but where it waits, or leaves Python
    try:
        for _ in range(50):  # of which one must catch it in the middle
            passed: list[str] = []

            def work(passed: list[str] = passed) -> None:
                passed.append("begun")
                library(b"x", b"\1" * 16)
                passed.append("ended")

            thread = threading.Thread(target=work)
            thread.start()
            while not passed:
                time.sleep(0)
            seen = list(passed)
            thread.join()
            if seen == ["begun"]:
                return
        pytest.fail("it holds the interpreter")
    finally:
        sys.setswitchinterval(interval)


def test_without_memory(monkeypatch):
    def fail(*_):
        raise SodiumFailed("Unexpected failure in key derivation")

    monkeypatch.setattr(argon2._sodium, "crypto_pwhash_alg", fail)
    with pytest.raises(MemoryError):
        argon2id(b"x", bytes(16))


def test_where_pynacl_is_not_installed():
    """What a client with cryptography and requests alone gets: the same bytes."""
    code = (
        "import sys; sys.modules['nacl'] = None\n"
        "from ktlog.pkd import argon2\n"
        "assert argon2._sodium is None\n"
        "print(argon2.argon2id(b'password', b'0123456789abcdef').hex())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == by_sodium(b"password", b"0123456789abcdef").hex()
