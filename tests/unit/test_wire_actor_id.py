import pytest

from ktlog.errors import EncodingError
from ktlog.wire.actor_id import (
    actor_domain,
    canonical_actor_id,
    parse_actor_id,
    parse_handle,
    parse_host,
    parse_https_url,
    site_of,
)


@pytest.mark.parametrize(("host", "site"), [
    ("alpha.example", "alpha.example"), ("a.b.alpha.example", "alpha.example"), ("x.alpha.co.uk", "alpha.co.uk"),
    ("alpha.co.uk", "alpha.co.uk"), ("co.uk", "co.uk"), ("a.b.org.au", "b.org.au"), ("a.info.au", "info.au"),
])
def test_who_owns_many_names(host, site):
    assert site_of(host) == site


@pytest.mark.parametrize("text", [
    "https://alpha.example/users/alice",
    "https://alpha.example/@Alice",
    "https://alpha.example/",
    "https://alpha.example/?author=1",
    "https://alpha.example:443/users/alice",
    "https://xn--bcher-kva.example/users/%C3%A9",
    "https://a.b.c.d.example/users/..alice",
    "https://alpha.example/users//alice",
])
def test_an_actor_id_comes_back_unchanged(text):
    assert parse_actor_id(text) == text
    assert str(parse_https_url(text)) == text


BAD_URLS = [
    "", "alpha.example/users/a", "http://alpha.example/users/a", "HTTPS://alpha.example/users/a",
    "https:/alpha.example/users/a", "https://alpha.example", "https:///users/a",
    # who is asked, as whom, and where
    "https://user@alpha.example/users/a", "https://user:pw@alpha.example/users/a", "https://alpha.example:/a",
    "https://alpha.example:8443/users/a", "https://alpha.example:0443/users/a", "https://alpha.example:443:443/a",
    "https://alpha.example\\@evil.example/a", "https://alpha.example%2eevil.example/a",
    # addresses, in every spelling that some resolver takes
    "https://127.0.0.1/a", "https://127.1/a", "https://0x7f.1/a", "https://0x7f000001/a", "https://2130706433/a",
    "https://0177.0.0.1/a", "https://127.0.0.1./a", "https://1.2.3.0x4/a", "https://[::1]/a",
    "https://[::ffff:127.0.0.1]/a", "https://[fe80::1%25eth0]/a", "https://1.1.1.1.in-addr.4/a",
    # host names
    "https://localhost/a", "https://Alpha.example/a", "https://alpha.example./a", "https://alpha..example/a",
    "https://-alpha.example/a", "https://alpha-.example/a", "https://al_pha.example/a", "https://b\u00fccher.example/a",
    "https://" + "a" * 64 + ".example/a", "https://" + "a." * 127 + "example/a",
    # targets
    "https://alpha.example/a#main-key", "https://alpha.example/a b", "https://alpha.example/a\n", "https://alpha.example/%",
    "https://alpha.example/%zz", "https://alpha.example/\u00e9", "https://alpha.example/a\x00", "https://alpha.example/<a>",
    "https://alpha.example/../a", "https://alpha.example/a/./b", "https://alpha.example/a/%2e%2E/b",
    "https://alpha.example?author=1", " https://alpha.example/a",
]


@pytest.mark.parametrize("text", BAD_URLS)
def test_no_actor_id(text):
    with pytest.raises(EncodingError) as caught:
        parse_actor_id(text)
    assert caught.value.name == "BadActorId"
    with pytest.raises(EncodingError) as caught:
        parse_https_url(text)
    assert caught.value.name == "BadUrl"


def test_length_limit():
    longest = "https://alpha.example/" + "a" * (2048 - len("https://alpha.example/"))
    assert parse_actor_id(longest) == longest
    with pytest.raises(EncodingError):
        parse_actor_id(longest + "a")


def test_only_the_scheme_is_ever_repaired():
    assert canonical_actor_id("http://alpha.example/Users/A%2f") == "https://alpha.example/Users/A%2f"
    for text in ("http://Alpha.example/users/a", "ftp://alpha.example/users/a", "@a@alpha.example"):
        with pytest.raises(EncodingError):
            canonical_actor_id(text)


def test_actor_domain():
    assert actor_domain("https://alpha.example:443/users/a") == "alpha.example"
    with pytest.raises(EncodingError):
        actor_domain("https://alpha.example")


@pytest.mark.parametrize(("text", "expected"), [
    ("@alice@alpha.example", ("alice", "alpha.example")),
    ("alice@alpha.example", ("alice", "alpha.example")),
    ("@Al.ice-1_~+@ALPHA.example", ("Al.ice-1_~+", "alpha.example")),
    ("@alice@B\u00fccher.example", ("alice", "xn--bcher-kva.example")),
])
def test_handles(text, expected):
    assert parse_handle(text) == expected


@pytest.mark.parametrize("text", [
    "", "@", "@alice", "alice", "@@alpha.example", "@alice@", "@@alice@alpha.example", "@alice@alpha.example@evil.example",
    "@alice@127.0.0.1", "@alice@[::1]", "@alice@localhost", "@alice@alpha.example/x", "@alice@alpha.example:443",
    "@al/ice@alpha.example", "@al ice@alpha.example", "@al\u0131ce@alpha.example", "@alice@a\u2024b\u0000.example",
    "@" + "a" * 65 + "@alpha.example", "acct:alice@alpha.example",
])
def test_no_handles(text):
    with pytest.raises(EncodingError) as caught:
        parse_handle(text)
    assert caught.value.name == "BadHandle"


def test_errors_show_hostile_text_harmlessly():
    with pytest.raises(EncodingError) as caught:
        parse_host("\x1b[2J\u202e" + "x" * 10_000)
    assert caught.value.message.isascii() and caught.value.message.isprintable()
    assert len(caught.value.message) < 300
