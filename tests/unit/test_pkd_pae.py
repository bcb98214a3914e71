"""Pre-authentication encoding: known answers from PASETO's definition."""

from __future__ import annotations

import pytest

from ktlog.errors import EncodingError
from ktlog.pkd.pae import le64, pae, prefixed, utf8


# Source of the first three: PASETO, Common Implementation Details, "PAE Definition".
@pytest.mark.parametrize(
    ("pieces", "encoded"),
    [
        ([], "0000000000000000"),
        ([b""], "01000000000000000000000000000000"),
        ([b"test"], "0100000000000000040000000000000074657374"),
        (["a", "bc"], "02000000000000000100000000000000610200000000000000" "6263"),
        (["é"], "01000000000000000200000000000000c3a9"),
    ],
)
def test_known_answers(pieces, encoded):
    assert pae(pieces).hex() == encoded


def test_the_border_between_pieces_is_part_of_the_encoding():
    assert len({pae(["ab", "c"]), pae(["a", "bc"]), pae(["abc"]), pae(["abc", ""]), pae(["", "abc"])}) == 5


def test_text_and_its_utf8_bytes_are_one_thing():
    assert pae(["actor", "é"]) == pae([b"actor", "é".encode()])


def test_le64_keeps_the_top_bit_clear():
    assert le64(0) == bytes(8)
    assert le64(256) == b"\x00\x01" + bytes(6)
    assert le64(2**63 - 1) == b"\xff" * 7 + b"\x7f"
    for number in (-1, 2**63, 2**64):
        with pytest.raises(AssertionError):
            le64(number)


def test_half_a_surrogate_pair_is_refused():
    for function in (utf8, prefixed, lambda text: pae([text])):
        with pytest.raises(EncodingError) as error:
            function("\ud800")
        assert error.value.name == "BadText"
