"""Sinks: what arrives at real servers on loopback, and what hostile text in an alarm cannot do there."""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import hmac
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from xml.etree import ElementTree

import pytest

from auditor.outbox import Delivered
from auditor.sinks import parse_sinks
from auditor.sinks.mail import compose
from auditor.sinks.mastodon import status_text
from auditor.sinks.terminal import Terminal
from ktlog.errors import StoreError, Unreachable, UsageError
from ktlog.wire.fetch import Fetcher
from tests.mail_server import MailServer
from tests.tls_server import HOST, TlsServer, answer

SECRET = bytes(range(32))
SECRET_TEXT = b"whsec_" + base64.b64encode(SECRET)
HOSTILE = (
    "x\r\nBcc: all@evil.example\r\n\r\n<script>alert(1)</script> ]]> &amp; \x1b]0;owned\x07\x1b[2J\u202e"
    " @mallory@evil.example #tag \x00\ud800 \ufffe"
)


def document(sentence: str = "AddKey for alice", **more: object) -> dict[str, object]:
    return {
        "schema": "ktlog-alarm/1", "id": "ab" * 16, "time": 1_800_000_000, "origin": "keys.alpha.example",
        "kind": "event", "name": "AddKey", "sentence": sentence, "subjects": ["https://alpha.example/users/alice"],
        "tlog_proof": "c2sp.org/tlog-proof@v1\n", **more,
    }


def nothing(count: int) -> list[Delivered]:
    return []


def secret(tmp_path: Path, text: bytes, mode: int = 0o600) -> str:
    path = tmp_path / "secret"
    path.write_bytes(text + b"\n")
    path.chmod(mode)
    return "secret"


class Receiver(HTTPServer):
    """Keeps (path, headers, body) of each POST, and answers *status*."""

    status = 200

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, {name.lower(): text for name, text in self.headers.items()}, body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.shutdown()
    server.server_close()


def one(tmp_path: Path, fetcher=Fetcher.from_environment, **row: object):
    return parse_sinks({"s": row}, tmp_path, fetcher)["s"]


# Settings


@pytest.mark.parametrize(("row", "said"), [
    ({"type": "pigeon"}, "type is one of"),
    ({"type": "terminal", "colour": True}, "no setting 'colour'"),
    ({"type": "terminal", "findings": "yes"}, "true or false"),
    ({"type": "atom"}, "file is missing"),
    ({"type": "webhook", "url": "http://hooks.example/", "secret_file": "secret"}, "https URL"),
    ({"type": "webhook", "url": "http://127.0.0.1:80/", "secret_file": "secret"}, "https URL"),
    ({"type": "webhook", "url": "http://192.0.2.1:80/", "secret_file": "secret", "allow_loopback": True}, "loopback"),
    ({"type": "webhook", "url": "https://10.0.0.1/", "secret_file": "secret"}, "host name"),
    ({"type": "mail", "host": "mail.example", "security": "none", "from": "a@b.example", "to": "c@d.example"},
     "without TLS"),
    ({"type": "mail", "host": "mail.example", "from": "a@b.example", "to": "c@d.example, e@f.example"},
     "one plain address"),
    ({"type": "mail", "host": "mail.example", "from": "a@b.example\nBcc: x@y.example", "to": "c@d.example"},
     "one line"),
    ({"type": "mastodon", "instance": "https://m.example", "to": "nobody", "token_file": "secret"}, "handle"),
])
def test_settings_that_are_not_right_are_refused(tmp_path: Path, row: dict[str, object], said: str) -> None:
    secret(tmp_path, SECRET_TEXT)
    with pytest.raises(UsageError, match=said) as caught:
        one(tmp_path, **row)
    assert caught.value.name == "BadSink"


def test_a_secret_that_others_can_read_is_refused_and_never_shown(tmp_path: Path) -> None:
    row = {"type": "webhook", "url": "https://hooks.example/x", "secret_file": secret(tmp_path, SECRET_TEXT, 0o640)}
    with pytest.raises(StoreError) as caught:
        one(tmp_path, **row)
    assert caught.value.name == "UnsafeSecret"
    secret(tmp_path, b"whsec_bm90IGxvbmcgZW5vdWdo?")
    with pytest.raises(UsageError) as refused:
        one(tmp_path, **row)
    assert "bm90" not in refused.value.diagnostics()


# Webhook


def test_a_webhook_gets_json_whose_signature_a_receiver_can_check(tmp_path: Path, receiver: Receiver) -> None:
    sink = one(
        tmp_path, type="webhook", url=receiver.url, allow_loopback=True, secret_file=secret(tmp_path, SECRET_TEXT)
    )
    sink.send(document(HOSTILE), ["my key"], nothing)
    path, headers, body = receiver.got[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}" and headers["webhook-id"] == "ab" * 16
    assert json.loads(body) == {**document(HOSTILE), "reasons": ["my key"]} and path == "/hook"
    for status, name in ((500, "BadStatus"), (429, "BadStatus"), (404, "BadStatus"), (413, "TooLarge"),
                         (422, "AlarmRefused")):
        receiver.status = status
        with pytest.raises(Unreachable, match=f"answers {status}") as caught:
            sink.send(document(), [], nothing)
        assert caught.value.name == name


def test_a_webhook_on_the_internet_is_posted_by_the_fetchers_rules(tmp_path: Path, server: TlsServer) -> None:
    sink = one(
        tmp_path, lambda: Fetcher(server.dial()), type="webhook", url=f"https://{HOST}/hook",
        secret_file=secret(tmp_path, SECRET_TEXT),
    )
    sink.send(document(), [], nothing)
    assert server.requests[0].target == "/hook" and server.requests[0].method == "POST"
    server.behave = lambda request: answer(status=302, Location="https://other.example/")
    with pytest.raises(Unreachable, match="redirect"):
        sink.send(document(), [], nothing)


# Mail


def mail(tmp_path: Path, server: MailServer, **more: object):
    row = {
        "type": "mail", "host": "localhost", "port": server.port, "security": server.security,
        "from": "ktlog@mail.example", "to": "alice@mail.example", **more,
    }
    return one(tmp_path, **row)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pki")


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_mail_goes_over_tls_with_a_password_from_a_file(
    tmp_path: Path, certificates: Path, security: str
) -> None:
    server = MailServer(certificates, security)
    server.start()
    login = {"user": "ktlog", "password_file": secret(tmp_path, b"open sesame")}
    mail(tmp_path, server, ca_file=str(certificates / "ca.pem"), **login).send(document(), ["my key"], nothing)
    with pytest.raises(Unreachable) as caught:  # nobody vouches for the server: nothing is sent, the password least
        mail(tmp_path, server, **login).send(document(), [], nothing)
    server.stop()
    assert caught.value.name == "TlsFailed" and len(server.logins) == 1
    assert base64.b64decode(server.logins[0]) == b"\0ktlog\0open sesame"
    handed, = server.mails
    assert handed.encrypted and (handed.sender, handed.receivers) == ("ktlog@mail.example", ("alice@mail.example",))
    parsed = email.message_from_bytes(handed.data, policy=email.policy.default)
    assert parsed["Message-ID"] == f"<{'ab' * 16}@mail.example>" and parsed["Auto-Submitted"] == "auto-generated"
    text, alarm, proof = list(parsed.walk())[1:]
    assert "because of: my key" in text.get_content()
    assert json.loads(alarm.get_content()) == document() and proof.get_filename() == "entry.tlog-proof"


def test_a_server_that_offers_no_starttls_gets_no_mail(tmp_path: Path) -> None:
    server = MailServer(tmp_path)
    server.start()
    sink = mail(tmp_path, server, security="starttls")
    with pytest.raises(Unreachable):
        sink.send(document(), [], nothing)
    server.stop()
    assert not server.mails and not any(line.startswith(b"MAIL") for line in server.lines)


def test_what_strangers_wrote_makes_no_header_and_no_second_receiver(tmp_path: Path) -> None:
    server = MailServer(tmp_path)
    server.start()
    mail(tmp_path, server).send(
        document(HOSTILE, name=HOSTILE, origin=HOSTILE, subjects=[HOSTILE]), [HOSTILE], nothing
    )
    server.refuse = b"550 no such user Bcc: x"
    with pytest.raises(Unreachable, match="answers 550$"):
        mail(tmp_path, server).send(document(), [], nothing)
    server.stop()
    handed, = server.mails
    assert handed.receivers == ("alice@mail.example",) and handed.data.isascii()
    parsed = email.message_from_bytes(handed.data, policy=email.policy.default)
    assert parsed["Bcc"] is None and parsed["To"] == "alice@mail.example"
    assert len(parsed.keys()) == len(set(parsed.keys()))
    assert "\x1b" not in list(parsed.walk())[1].get_content()


def test_a_mail_is_the_same_bytes_but_for_its_boundary() -> None:
    first, second = (compose(document(), [], "a@b.example", "c@d.example") for _ in range(2))
    assert first["Message-ID"] == second["Message-ID"] and first["Date"] == second["Date"]


# Atom


def test_the_feed_is_well_formed_whatever_is_in_it_bounded_and_deterministic(tmp_path: Path) -> None:
    sink = one(tmp_path, type="atom", file="feed.xml", entries=2, title="A & B <c>")
    kept = [Delivered(document(HOSTILE, id=f"{number:032x}", name=HOSTILE), (HOSTILE,)) for number in range(9)]
    seen = []
    for _ in range(2):
        sink.send(kept[0].document, [HOSTILE], lambda count: kept[:count])
        seen.append((tmp_path / "feed.xml").read_bytes())
    assert seen[0] == seen[1]
    name = "{http://www.w3.org/2005/Atom}"
    feed = ElementTree.fromstring(seen[0])
    entries = feed.findall(f"{name}entry")
    assert feed.findtext(f"{name}title") == "A & B <c>" and len(entries) == 2
    assert len({entry.findtext(f"{name}id") for entry in entries}) == 2
    content = entries[0].find(f"{name}content")
    assert content.attrib == {"type": "text"} and not list(content) and "<script>" in content.text


# Mastodon


def test_a_direct_message_mentions_nobody_but_its_receiver(tmp_path: Path, receiver: Receiver) -> None:
    sink = one(
        tmp_path, type="mastodon", instance=receiver.url.removesuffix("/hook"), allow_loopback=True,
        to="@alice@alpha.example", token_file=secret(tmp_path, b"token-of-the-auditor"),
    )
    sink.send(document(HOSTILE, subjects=["https://alpha.example/@bob"]), ["@eve"], nothing)
    path, headers, body = receiver.got[0]
    posted = json.loads(body)
    assert path == "/api/v1/statuses" and posted["visibility"] == "direct"
    assert headers["authorization"] == "Bearer token-of-the-auditor" and headers["idempotency-key"] == "ab" * 16
    assert posted["status"].startswith("@alice@alpha.example ") and posted["status"].count("@") == 2
    assert len(status_text(document("y" * 400), ["z" * 200], ("a", "b.example"), 300)) == 300


# Terminal


def test_the_terminal_shows_nothing_that_moves_a_cursor() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Terminal("t", stream=stream).send(document(HOSTILE, subjects=[HOSTILE], name=HOSTILE), [HOSTILE], nothing)
    stream.seek(0)
    shown = stream.read()
    assert shown.startswith("ALARM: x??Bcc") and all(part.isprintable() for part in shown.split("\n"))
    stream.close()
    with pytest.raises(Unreachable):
        Terminal("t", stream=stream).send(document(), [], nothing)


def test_the_terminal_is_there_unasked() -> None:
    assert set(parse_sinks({})) == {"terminal"}
    with pytest.raises(UsageError):
        parse_sinks({"Bad Name": {"type": "terminal"}})
