"""The head of an answer has one meaning, or the answer is refused."""

from __future__ import annotations

import pytest
from tls_server import HOST, TlsServer

from ktlog.errors import Unreachable
from ktlog.wire.fetch import Fetcher
from ktlog.wire.head import MAX_INFORMATIONAL, joined_fields

URL = f"https://{HOST}/a"


def response(*lines: str, status: str = "HTTP/1.1 200 OK", body: str = "ok") -> bytes:
    return "\r\n".join([status, *lines, "", body]).encode("latin-1")


def get(server: TlsServer, fetcher: Fetcher, *parts: bytes | None):
    server.behave = lambda _: list(parts)
    return fetcher.get(URL)


def refused(server: TlsServer, fetcher: Fetcher, *parts: bytes | None) -> None:
    with pytest.raises(Unreachable) as caught:
        get(server, fetcher, *parts)
    assert caught.value.name == "Broken"


LENGTH = "Content-Length: 2"


@pytest.mark.parametrize("name", [
    "Content-Length", "Content-Type", "Content-Encoding", "Location", "Content-Digest", "Signature", "Signature-Input",
    "Retry-After", "Date",
])
def test_a_header_with_one_meaning_is_there_once(server, fetcher, name):
    value = "2" if name == "Content-Length" else "identity"
    once = [LENGTH] if name != "Content-Length" else []
    assert get(server, fetcher, response(*once, f"{name}: {value}")).status == 200
    refused(server, fetcher, response(*once, f"{name}: {value}", "A: b", f"{name.upper()}: {value}"))


def test_other_headers_are_joined(server, fetcher):
    found = get(server, fetcher, response(LENGTH, "Vary: Accept", "vary: Signature", "Set-Cookie: a", "Set-Cookie: b"))
    assert (found.headers["vary"], found.headers["set-cookie"]) == ("Accept, Signature", "a, b")
    assert joined_fields({"A": "1", "b": "2"}) == {"a": "1", "b": "2"}


@pytest.mark.parametrize("status", [
    "HTTP/0.9 200 OK", "HTTP/1.2 200 OK", "HTTP/2 200", "HTTP/1.1 +200 OK", "HTTP/1.1 0200 OK", "HTTP/1.1  200 OK",
    "HTTP/1.1 20 OK", "HTTP/1.1 2000 OK", "HTTP/1.1 200\tOK", "http/1.1 200 OK", " HTTP/1.1 200 OK", "ICY 200 OK",
    "HTTP/1.1 2_0 OK", "HTTP/1.1 \xb2\xb2\xb2 OK", "HTTP/1.1 000 OK", "HTTP/1.1 099 OK", "HTTP/1.1 OK", "HTTP/1.1",
    "HTTP/1.1 200 " + "x" * 70_000,
])
def test_status_lines_that_are_none(server, fetcher, status):
    refused(server, fetcher, response(LENGTH, status=status), None)


@pytest.mark.parametrize("status", ["HTTP/1.1 200 OK", "HTTP/1.0 200 OK", "HTTP/1.1 200 ", "HTTP/1.1 200"])
def test_status_lines(server, fetcher, status):
    assert get(server, fetcher, response(LENGTH, status=status), None).body == b"ok"


def test_no_head_at_all(server, fetcher):
    """HTTP/0.9 had none: the body is all there is."""
    refused(server, fetcher, b"<html>hello</html>", None)
    refused(server, fetcher, None)


@pytest.mark.parametrize("lines", [
    (LENGTH, "no colon here", "X: y"), (LENGTH, "Bad name: x", "X: y"), (LENGTH, ": x"), (LENGTH, "X : y"),
    (LENGTH, "X: a", " folded"), (LENGTH, "X: a", "\tfolded"), (LENGTH, "X: a\0b"),
    (" first: x", LENGTH),
])
def test_headers_that_parse_in_two_ways(server, fetcher, lines):
    refused(server, fetcher, response(*lines), None)


@pytest.mark.parametrize("lines", [
    ("Transfer-Encoding: chunked", LENGTH), (LENGTH, "Transfer-Encoding: chunked"), ("Transfer-Encoding: gzip, chunked",),
    ("Transfer-Encoding: identity",), ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), ("Transfer-Encoding: xchunked",),
])
def test_two_opinions_on_where_the_body_ends(server, fetcher, lines):
    refused(server, fetcher, response(*lines, body="2\r\nok\r\n0\r\n\r\n"), None)


def test_a_chunked_body(server, fetcher):
    assert get(server, fetcher, response("Transfer-Encoding: Chunked", body="2\r\nok\r\n0\r\n\r\n")).body == b"ok"


@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints", "199 X"])
def test_informational_answers_are_passed_over(server, fetcher, status):
    """And what follows is the answer to this request, not to the next one on the connection."""
    hint = f"HTTP/1.1 {status}\r\nLink: </style.css>; rel=preload\r\n\r\n".encode()
    server.behave = lambda request: [hint * 2 + response("Content-Length: 4", body=f"{request.target[:4]:4}")]
    for target in ("/one", "/two"):
        found = fetcher.get(f"https://{HOST}{target}")
        assert (found.status, found.body.decode(), "link" in found.headers) == (200, target, False)
    assert server.connections == 1


def test_informational_answers_without_end(server, fetcher):
    hint = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    assert get(server, fetcher, hint * MAX_INFORMATIONAL + response(LENGTH)).body == b"ok"
    refused(server, fetcher, hint * (MAX_INFORMATIONAL + 1) + response(LENGTH), None)


def test_nobody_asked_to_switch_protocols(server, fetcher):
    refused(server, fetcher, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", None)


@pytest.mark.parametrize("size", [0, 5, 7_000])
def test_bytes_beyond_the_answer_answer_nothing_else(server, fetcher, size):
    """A second answer, unasked for, in the same TLS record: the next request must not get it."""
    poison = response("Content-Length: 9000", body="p" * 9_000)
    server.behave = lambda request: [
        response(f"Content-Length: {size}", body="x" * size) + poison if request.target == "/a" else response(LENGTH)
    ]
    for _ in range(3):
        assert fetcher.get(URL).body == b"x" * size
        assert fetcher.get(f"https://{HOST}/b").body == b"ok"
