"""Actor ids as the log sees them."""

from __future__ import annotations

import pytest

from ktlog.errors import MessageRejected
from ktlog.pkd.identity import actor_domain, check_actor_id, check_directory_url


@pytest.mark.parametrize(("actor_id", "domain"), [
    ("https://example.com/users/alice", "example.com"),
    ("https://example.com:443/users/alice", "example.com"),
    ("https://a-1.example.com/@alice", "a-1.example.com"),
    ("https://xn--mnchen-3ya.example/", "xn--mnchen-3ya.example"),
    ("https://example.com/u?id=%C3%A9/..&x=?", "example.com"),
    ("https://example.com/users/...", "example.com"),
    ("https://example.com/" + "a" * 2028, "example.com"),
])
def test_canonical_ids_stay_as_they_are(actor_id, domain) -> None:
    assert check_actor_id(actor_id) == actor_id
    assert actor_domain(actor_id) == domain


@pytest.mark.parametrize("actor_id", [
    "", "https://", "https://example.com", "https:///users/alice", "https://example/users/alice",
    "HTTPS://example.com/u", "http://example.com/u", "https://EXAMPLE.com/u", "https://example.com./u",
    "https://.example.com/u", "https://-a.example.com/u", "https://a_b.example.com/u", "https://example.com:80/u",
    "https://example.com:0443/u", "https://example.com:/u", "https://user@example.com/u", "https://10.0.0.1/u",
    "https://0x7f.1/u", "https://[::1]/u", "https://example.com/u#key", "https://example.com/a b",
    "https://example.com/%2", "https://example.com/%GG", "https://example.com/\u00e9", "https://example.com/a\\b",
    "https://example.com/a|b", "https://example.com/./u", "https://example.com/a/..", "https://example.com/%2E%2e/u",
    "https://example.com/u\n", " https://example.com/u", "https://example.com?u", "https://example.com/" + "a" * 2029,
    "https://" + "a." * 126 + "com/u", "https://" + "a" * 64 + ".com/u", "acct:alice@example.com",
])
def test_everything_else_is_refused(actor_id) -> None:
    for check in (check_actor_id, actor_domain):
        with pytest.raises(MessageRejected) as caught:
            check(actor_id)
        assert caught.value.code == "bad_actor_id"


def test_a_directory_needs_no_path() -> None:
    for url in ("https://keys.example.com", "https://keys.example.com:443", "https://keys.example.com/pkd/"):
        assert check_directory_url(url) == url
    for url in ("https://keys.example.com?x", "keys.example.com", "http://keys.example.com", "https://localhost"):
        with pytest.raises(MessageRejected) as caught:
            check_directory_url(url)
        assert caught.value.code == "bad_request"
