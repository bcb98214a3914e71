"""The witness directory and the seed file."""

from __future__ import annotations

import stat

import pytest

from ktlog.durable import read_seed_file
from ktlog.errors import StoreError, UsageError
from witness.config import WitnessDir


def test_a_new_directory_is_0700_and_so_is_an_empty_one(tmp_path):
    for path in (tmp_path / "a" / "new", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir(mode=0o755)
        WitnessDir(path).make()
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_an_occupied_directory_is_refused_and_left_as_it_is(tmp_path):
    occupied = tmp_path / "occupied"
    occupied.mkdir(mode=0o755)
    (occupied / "file").write_text("mine")
    with pytest.raises(StoreError) as caught:
        WitnessDir(occupied).make()
    assert caught.value.name == "WitnessExists"
    assert stat.S_IMODE(occupied.stat().st_mode) == 0o755
    assert [path.name for path in occupied.iterdir()] == ["file"]


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        WitnessDir(tmp_path / "file").make()


def test_check_tells_a_missing_witness_from_a_missing_database(tmp_path):
    with pytest.raises(StoreError) as caught:
        WitnessDir(tmp_path / "none").check()
    assert caught.value.name == "NoWitness"
    with pytest.raises(StoreError) as caught:
        WitnessDir(tmp_path).check()
    assert caught.value.name == "DatabaseMissing"


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_seed_is_64_hex_digits_and_at_most_a_line_end(tmp_path, ending):
    path = tmp_path / "seed"
    path.write_bytes(b"00" * 31 + b"fF" + ending.encode())
    assert read_seed_file(path) == bytes(31) + b"\xff"


@pytest.mark.parametrize(
    "content", [b"", b"00" * 31, b"00" * 33, b"0x" + b"00" * 31, b" " + b"00" * 32, b"00" * 32 + b"\n\n",
                b"0 " * 32, bytes(32), b"gg" * 32, b"\xef\xbb\xbf" + b"00" * 32]
)
def test_any_other_seed_file_is_refused(tmp_path, content):
    path = tmp_path / "seed"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_seed_file(path)
    assert caught.value.name == "BadSeedFile"


def test_a_seed_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError):
        read_seed_file(tmp_path / "seed")
