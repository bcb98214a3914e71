import json
import signal
import socket
import subprocess
import sys
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.client.keyfile import load_http_key
from ktlog.demo.front import write_routes
from ktlog.demo.instance import (
    InstanceSettings,
    create_app,
    http_key_id,
    is_direct_message,
    load_instance,
    prepare_instance,
    read_messages,
    read_token,
)
from ktlog.demo.pki import create_pki
from ktlog.errors import KtlogError, MessageRejected, NotLogged, Unreachable
from ktlog.wire.actor import ED25519, actor_key, fetch_actor, parse_actor
from ktlog.wire.fetch import Dial, Fetcher
from ktlog.wire.fetch import Response as FetchedResponse
from ktlog.wire.httpsig import sign_request
from ktlog.wire.webfinger import actor_of_jrd, resolve_handle

DOMAIN = "alpha.example"
ALICE = f"https://{DOMAIN}/users/alice"


@pytest.fixture
def app(tmp_path):
    prepare_instance(tmp_path, DOMAIN, ["alice", "bob"])
    return create_app(load_instance(tmp_path), tmp_path).test_client()


LOG_ACTOR = "https://keys.alpha.example/users/pubkeydir"
LOG_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def note(**changes):
    members = {"type": "Note", "attributedTo": LOG_ACTOR, "to": [ALICE], "content": "x", **changes}
    return {"type": "Create", "actor": LOG_ACTOR, "object": members}


def test_prepare_and_load(tmp_path):
    paths = prepare_instance(tmp_path, DOMAIN, ["alice", "bob"])
    assert sorted(paths) == ["alice", "bob"]
    settings = load_instance(tmp_path)
    assert settings.domain == DOMAIN
    for user, path in paths.items():
        assert path.stat().st_mode & 0o777 == 0o600
        assert load_http_key(path).public_key().public_bytes_raw() == settings.users[user]
    assert settings.users["alice"] != settings.users["bob"]


def test_a_prepared_key_is_never_replaced(tmp_path):
    path = prepare_instance(tmp_path, DOMAIN, ["alice"])["alice"]
    before = path.read_bytes()
    with pytest.raises(KtlogError) as caught:
        prepare_instance(tmp_path, DOMAIN, ["alice"])
    assert caught.value.name == "SecretExists"
    assert path.read_bytes() == before


@pytest.mark.parametrize(("domain", "user"), [
    ("Alpha.example", "alice"), ("127.0.0.1", "alice"), (DOMAIN, ""), (DOMAIN, "../alice"), (DOMAIN, "Alice"), (DOMAIN, "a/b"),
])
def test_names_that_cannot_be(tmp_path, domain, user):
    with pytest.raises(KtlogError):
        prepare_instance(tmp_path, domain, [user])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{}", '{"domain":"alpha.example","users":[]}', '{"domain":"x","users":{"a":"AAAA"}}'])
def test_settings_that_are_none(tmp_path, text):
    (tmp_path / "instance.json").write_text(text)
    with pytest.raises(KtlogError) as caught:
        load_instance(tmp_path)
    assert caught.value.name == "BadInstance"


def test_the_actor_document_is_one_that_we_read(app, tmp_path):
    response = app.get("/users/alice")
    assert response.content_type == "application/activity+json"
    actor = parse_actor(response.get_json(force=True), ALICE)
    assert actor.inbox == f"{ALICE}/inbox"
    (key,) = actor.assertion_method
    assert (key.id, key.controller, key.algorithm) == (http_key_id(ALICE), ALICE, ED25519)
    assert key.public_key == load_instance(tmp_path).users["alice"]
    assert app.get("/users/carol").status_code == 404


def test_webfinger_answers_for_its_own_users_only(app):
    resource = f"acct:bob@{DOMAIN}"
    response = app.get("/.well-known/webfinger", query_string={"resource": resource})
    assert response.content_type == "application/jrd+json"
    assert actor_of_jrd(response.get_json(force=True), resource) == f"https://{DOMAIN}/users/bob"
    for other in (f"acct:carol@{DOMAIN}", "acct:bob@beta.example", "bob", "", "https://beta.example/users/bob"):
        assert app.get("/.well-known/webfinger", query_string={"resource": other}).status_code == 404
    assert app.get("/.well-known/webfinger").status_code == 404


@pytest.fixture
def log_actor(monkeypatch):
    """The document of the log's actor, wherever it is fetched; ``asked`` counts."""
    asked = []
    key = actor_key(f"{LOG_ACTOR}#main-key", LOG_ACTOR, ED25519, LOG_KEY.public_key().public_bytes_raw())
    document = {"id": LOG_ACTOR, "inbox": f"{LOG_ACTOR}/inbox", "assertionMethod": [key]}

    def get(_, url, **__):
        asked.append(url)
        found = document if url == LOG_ACTOR else {"id": url}
        return FetchedResponse(200, {"content-type": "application/activity+json"}, json.dumps(found).encode(), url)

    monkeypatch.setattr(Fetcher, "get", get)
    return asked


def send(app, data, path="/users/alice/inbox", content_type="application/activity+json", key=LOG_KEY, key_id=None):
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    headers = sign_request(
        "POST", f"https://{DOMAIN}{path}", {"Content-Type": content_type}, body, key_id or f"{LOG_ACTOR}#main-key", key,
        int(time.time()),
    )
    return app.post(path, data=body, headers=headers, environ_overrides={"RAW_URI": path}).status_code


def test_the_inbox_takes_what_its_sender_signed(app, tmp_path, log_actor):
    assert send(app, note()) == 202
    assert send(app, note(content="y", to=[ALICE, LOG_ACTOR])) == 202
    assert [message["object"]["content"] for message in read_messages(tmp_path, "alice")] == ["x", "y"]
    assert read_messages(tmp_path, "bob") == read_messages(tmp_path, "carol") == []
    assert log_actor == [LOG_ACTOR]


def test_the_inbox_takes_nobody_elses_word(app, tmp_path, log_actor):
    stranger = Ed25519PrivateKey.generate()
    unsigned = app.post(
        "/users/alice/inbox", data=json.dumps(note()), content_type="application/activity+json",
        environ_overrides={"RAW_URI": "/users/alice/inbox"},
    )
    assert unsigned.status_code == 401
    assert send(app, note(), key=stranger) == 401
    assert send(app, note(), key_id="https://evil.example/users/x#main-key") == 401
    other = "https://evil.example/users/x"
    assert send(app, {**note(attributedTo=other), "actor": other}) == 401
    assert read_messages(tmp_path, "alice") == []


def test_the_inbox_takes_direct_messages_only(app, tmp_path, log_actor):
    assert send(app, note(), path="/users/carol/inbox") == 404
    assert send(app, note(), content_type="application/json") == 415
    assert send(app, note(to=["https://alpha.example/users/bob"])) == 400
    assert send(app, b'{"type":"Create","type":"Create"}') == 400
    assert send(app, b"[]") == 400
    assert send(app, note(content="x" * (1 << 20))) == 413
    assert log_actor == []
    assert read_messages(tmp_path, "alice") == []


def test_is_direct_message():
    assert is_direct_message(note(), ALICE)
    assert is_direct_message(note(to=ALICE), ALICE)
    for other in (
        None, [], {}, {**note(), "type": "Like"}, {**note(), "actor": None}, note(type="Article"), note(content=None),
        note(to=[]), note(to=None), note(attributedTo=ALICE), note(attributedTo=None),
    ):
        assert not is_direct_message(other, ALICE)


CONTENT = '{"!pkd-context":"x"}'


def post(app, token, body=None, user="alice", scheme="Bearer "):
    data = json.dumps({"directory": "https://keys.alpha.example", "content": CONTENT} if body is None else body)
    return app.post(f"/users/{user}/outbox", data=data, headers={"Authorization": f"{scheme}{token}"})


def test_the_outbox_delivers_for_whoever_is_logged_in(app, tmp_path, monkeypatch):
    sent = []

    def delivered(_, log_url, actor_id, key, key_id, content, now, random):
        sent.append((log_url, actor_id, key.public_key().public_bytes_raw(), key_id, content))
        return {"leaf-index": 0}

    monkeypatch.setattr("ktlog.demo.instance.deliver", delivered)
    response = post(app, read_token(tmp_path, "alice"))
    assert (response.status_code, response.get_json()) == (202, {"leaf-index": 0})
    public = load_instance(tmp_path).users["alice"]
    assert sent == [("https://keys.alpha.example", ALICE, public, http_key_id(ALICE), CONTENT)]


def test_the_outbox_of_somebody_else(app, tmp_path, monkeypatch):
    monkeypatch.setattr("ktlog.demo.instance.deliver", lambda *_: pytest.fail("delivered"))
    alices = read_token(tmp_path, "alice")
    for token, user, scheme in (
        ("", "alice", "Bearer "), (read_token(tmp_path, "bob"), "alice", "Bearer "), (alices, "bob", "Bearer "),
        (alices, "carol", "Bearer "), (alices, "alice", ""), (alices.upper(), "alice", "Bearer "), ("\xe9", "alice", "Bearer "),
    ):
        assert post(app, token, user=user, scheme=scheme).status_code == 401
    assert app.post("/users/alice/outbox", data="{}").status_code == 401
    for body in ([], {}, {"directory": "https://keys.alpha.example"}, {"directory": "https://a.example", "content": 5}, "x"):
        assert post(app, alices, body=body).status_code == 400


@pytest.mark.parametrize(("failure", "status", "code"), [
    (MessageRejected("key_exists", "no"), 400, "key_exists"), (Unreachable("Timeout", "slow"), 502, "log_unreachable"),
])
def test_the_outbox_passes_on_what_the_log_says(app, tmp_path, monkeypatch, failure, status, code):
    def fail(*_):
        raise failure

    monkeypatch.setattr("ktlog.demo.instance.deliver", fail)
    response = post(app, read_token(tmp_path, "alice"))
    assert (response.status_code, response.get_json()["code"]) == (status, code)


def test_over_https_behind_the_front(tmp_path):
    prepare_instance(tmp_path / "instance", DOMAIN, ["alice"])
    pki = create_pki(tmp_path / "front", [DOMAIN])
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    for listener in listeners:
        listener.set_inheritable(True)
    address = listeners[1].getsockname()[:2]
    write_routes(tmp_path / "front", {DOMAIN: f"127.0.0.1:{listeners[0].getsockname()[1]}"})
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"ktlog.demo.{name}", "--dir", str(tmp_path / name), "--listen", f"fd://{listener.fileno()}"],
            pass_fds=(listener.fileno(),), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name, listener in zip(("instance", "front"), listeners, strict=True)
    ]
    for listener in listeners:
        listener.close()
    try:
        fetcher = Fetcher(Dial({DOMAIN: address}, str(pki.ca_file)), timeout=20)
        assert resolve_handle(fetcher, f"@Alice@{DOMAIN}".lower()) == ALICE
        settings = load_instance(tmp_path / "instance")
        assert fetch_actor(fetcher, ALICE).assertion_method[0].public_key == settings.users["alice"]
        with pytest.raises(NotLogged):
            resolve_handle(fetcher, f"@carol@{DOMAIN}")
        with pytest.raises(Unreachable):
            fetch_actor(fetcher, f"https://{DOMAIN}/users/carol")
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        said = [(process.communicate(timeout=20), process.returncode) for process in processes]
    assert said == [(("", ""), 0)] * 2


def test_a_directory_that_was_not_prepared(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ktlog.demo.instance", "--dir", str(tmp_path), "--listen", "127.0.0.1:0"],
        capture_output=True, text=True, timeout=30,
    )
    assert done.returncode == 8
    assert "Traceback" not in done.stderr


def test_settings_name_actors():
    assert InstanceSettings(DOMAIN, {}).actor_id("alice") == ALICE
