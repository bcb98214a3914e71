"""Whatever is hashed, both libraries give the same bytes: a log may change from one to the other at any time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ktlog.pkd.argon2 import by_cryptography, by_sodium


@settings(max_examples=12, deadline=None)
@given(password=st.binary(max_size=4096), salt=st.binary(min_size=16, max_size=16))
def test_the_libraries_agree(password, salt):
    assert by_sodium(password, salt) == by_cryptography(password, salt)
