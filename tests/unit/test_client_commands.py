"""`ktlog lookup`, `ktlog key` and `ktlog submit`, as somebody types them."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from dataclasses import replace

import pytest
from client_log import DOMAIN, NOW, ORIGIN, Network, TinyLog, actor, key, make_policy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from ktlog import cli
from ktlog.client import load_key, load_token, save_key
from ktlog.client.build import (
    Built,
    add_aux_data,
    add_key,
    build_envelope,
    burn_down,
    enrol,
    revoke_key,
    seal,
)
from ktlog.pkd.actions import aux_data_id
from ktlog.pkd.hpke import open_message
from ktlog.pkd.keys import key_hash
from ktlog.pkd.messages import open_message_attributes, parse_wire
from ktlog.pkd.token import parse_token
from ktlog.tlog.evidence import parse_evidence, verify_evidence
from ktlog.tlog.policy import format_policy
from ktlog.wire.actor import ED25519, ML_DSA_44, actor_key
from ktlog.wire.fetch import Fetcher, Response
from ktlog.wire.httpsig import verify_request
from ktlog.wire.httpsig_response import Exchange, content_digest, sign_response
from ktlog.wire.webfinger import ACTIVITY_JSON

ALICE = actor("alice")
HTTP_KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
LOG_ACTOR = f"https://{ORIGIN}/users/pubkeydir"
LOG_KEYS = (
    (f"{LOG_ACTOR}#main-key", ED25519, Ed25519PrivateKey.from_private_bytes(bytes([8]) * 32)),
    (f"{LOG_ACTOR}#pq-key", ML_DSA_44, MLDSA44PrivateKey.from_seed_bytes(bytes([8]) * 32)),
)


class Inbox(Network):
    """A network whose log takes messages, after it checked the HTTP signature, and signs its answers."""

    def get(self, url, **options):
        if url != LOG_ACTOR:
            return super().get(url, **options)
        listed = [
            actor_key(name, LOG_ACTOR, algorithm, private.public_key().public_bytes_raw())
            for name, algorithm, private in LOG_KEYS
        ]
        document = {"id": LOG_ACTOR, "type": "Service", "inbox": f"{LOG_ACTOR}/inbox", "assertionMethod": listed}
        return Response(200, {"content-type": ACTIVITY_JSON}, json.dumps(document).encode(), url)

    def post(self, url, body, headers=None, **_):
        log = self.logs[ORIGIN]
        assert url == f"{log.url}/users/pubkeydir/inbox"
        self.key_ids, self.sent = [], body

        def resolve(key_id):
            self.key_ids.append(key_id)
            return HTTP_KEY.public_key()

        verify_request("POST", url, list(headers.items()), body, resolve, int(time.time()))
        activity = json.loads(body)
        envelope = json.loads(activity["object"]["content"])
        assert envelope["actor"] == activity["actor"]
        wire = parse_wire(log.dialect, open_message(log.hpke, envelope["encrypted-message"]))
        message = open_message_attributes(log.dialect, wire, commitments=True)
        members = json.loads(open_message(log.hpke, envelope["encrypted-message"]))
        receipt = log.accept(Built(message, {k: v for k, v in members.items() if k != "padding"}, log.dialect, None))
        self.change(receipt)
        answer = Exchange(
            "POST", url, 202, {"content-type": "application/json"}, json.dumps(receipt).encode(),
            headers["Content-Digest"],
        )
        made = sign_response(answer, [(name, private) for name, _, private in LOG_KEYS], int(time.time()))
        signed = {name.lower(): value for name, value in made.items()}
        return Response(202, {**answer.headers, **signed}, answer.body, url)

    def change(self, receipt):
        """The log's last chance to lie."""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A person's directory, a network, and `run`, which types a command."""

    class Desk:
        def __init__(self):
            self.log = TinyLog()
            self.network = Inbox(self.log)
            self.network.handles[f"alice@{DOMAIN}"] = ALICE
            self.policy = tmp_path / "trust.policy"
            self.policy.write_bytes(format_policy(make_policy([self.log])))
            for number in (1, 2):
                save_key(tmp_path / f"{number}.key", key(number))
            (tmp_path / "http.key").write_text(HTTP_KEY.private_bytes_raw().hex())
            (tmp_path / "http.key").chmod(0o600)

        def path(self, name):
            return str(tmp_path / name)

        def run(self, capsys, *arguments):
            monkeypatch.setattr(sys, "argv", ["ktlog", *arguments])
            code = 0
            try:
                cli.main()
            except SystemExit as end:
                code = end.code or 0
            out, err = capsys.readouterr()
            return code, out, err

        def lookup(self, capsys, *arguments, name=f"@alice@{DOMAIN}"):
            return self.run(
                capsys, "lookup", name, "--policy", str(self.policy), "--state", self.path("state"),
                "--domain", f"{DOMAIN}={ORIGIN}", *arguments,
            )

        def submit(self, capsys, action, *arguments, sender=ALICE, log=ORIGIN):
            return self.run(
                capsys, "submit", action, "--log", log, "--actor", sender,
                "--http-key", self.path("http.key"), *arguments,
            )

    found = Desk()
    monkeypatch.setattr(Fetcher, "from_environment", classmethod(lambda cls, *_, **__: found.network))
    return found


def say(log, build, *arguments):
    return log.accept(build(*arguments, recent_root=log.recent(), now=NOW))


def publish(desk):
    desk.log.publish(now=int(time.time()))


# lookup


def test_lookup_prints_keys_and_what_was_checked(desk, capsys):
    say(desk.log, enrol, ALICE, key(1))
    say(desk.log, add_aux_data, ALICE, "note", "red \x1b[31m text", key(1))
    publish(desk)
    code, out, err = desk.lookup(capsys)
    assert (code, err) == (0, "")
    assert out.startswith(f"@alice@{DOMAIN}\n  is {ALICE}\n")
    assert desk.log.actors[ALICE].keys[0].key_id in out
    assert "\nChecked:\n" in out
    assert "\nNot proven:\n" in out
    assert "Gone since" not in out
    assert "\x1b" not in out


def test_lookup_in_json(desk, capsys):
    say(desk.log, enrol, ALICE, key(1))
    publish(desk)
    code, out, _ = desk.lookup(capsys, "--json")
    answer = json.loads(out)
    assert (code, answer["answer"], answer["actor-id"], answer["tree-size"]) == (0, "present", ALICE, 1)
    assert [(row["public-key"], row["usable"]) for row in answer["keys"]] == [(key(1).public_text, True)]
    assert answer["not-proven"]


def test_lookup_shouts_about_a_reset_and_a_pending_revocation(desk, capsys):
    root = actor("root")
    say(desk.log, enrol, ALICE, key(1))
    say(desk.log, enrol, root, key(9))
    publish(desk)
    desk.lookup(capsys)
    gone = desk.log.actors[ALICE].keys[0].key_id
    say(desk.log, burn_down, ALICE, root, key(9))
    say(desk.log, enrol, ALICE, key(2))
    say(desk.log, add_key, ALICE, key(3).public_key, key(2))
    publish(desk)
    say(desk.log, revoke_key, ALICE, key(3).public_key, key(2))
    code, out, _ = desk.lookup(capsys)
    assert code == 0
    assert "RESET: enrolment after a BurnDown" in out
    assert out.count("NOT USABLE") == 1
    assert out.count("new since your last lookup") == 2
    assert f"Gone since your last lookup:\n  {gone}\n" in out
    assert "RevokeKey as entry 5" in out


def test_failures_exit_with_their_class(desk, capsys):
    say(desk.log, enrol, ALICE, key(1))
    publish(desk)
    assert desk.lookup(capsys, "--domain", "nonsense")[0] == 2
    assert desk.lookup(capsys, name=actor("nobody"))[0] == 4
    assert desk.lookup(capsys, name=actor("alice", "other.example"))[0] == 2
    desk.network.break_("/checkpoint")
    assert desk.lookup(capsys)[0] == 3
    desk.network.replace("/checkpoint", desk.log.sign(now=NOW))
    code, out, err = desk.lookup(capsys, "--json")
    assert (code, json.loads(out)["error"]["name"]) == (9, "OldCosignatures")
    assert "OldCosignatures" in err
    desk.network.replace("/checkpoint", desk.log.sign(now=int(time.time()), witnesses=1))
    assert desk.lookup(capsys)[0] == 6
    desk.network.replace("/checkpoint", b"?")
    assert desk.lookup(capsys)[0] == 5


@pytest.mark.parametrize("place", [None, "evidence"])
def test_a_fork_leaves_evidence(desk, capsys, place):
    say(desk.log, enrol, ALICE, key(1))
    publish(desk)
    desk.lookup(capsys)
    desk.log.entries[0] = b"another"
    publish(desk)
    arguments = ["--evidence-dir", desk.path(place)] if place else []
    code, out, err = desk.lookup(capsys, *arguments)
    assert (code, out) == (7, "")
    path = re.search(r"evidence written to (\S+)", err)[1]
    assert path.startswith(desk.path(place or "state/evidence"))
    with open(path, "rb") as file:
        evidence = parse_evidence(file.read())
    verify_evidence(evidence, make_policy([desk.log]).logs[0].vkey)
    code, out, err = desk.lookup(capsys, *arguments)
    assert (code, out) == (7, "")
    assert "Convicted" in err
    assert desk.path(f"state/convicted/{ORIGIN}.json") in err


# key


def test_key_new_and_show(desk, capsys):
    code, out, _ = desk.run(capsys, "key", "new", "--out", desk.path("my.key"), "--json")
    made = json.loads(out)
    assert code == 0
    assert desk.run(capsys, "key", "new", "--out", desk.path("my.key"))[0] == 8
    code, out, _ = desk.run(capsys, "key", "show", desk.path("my.key"))
    assert out.splitlines() == [made["public-key"], f"sha256 {made['sha256']}"]
    with open(desk.path("my.key")) as file:
        assert file.read().strip() not in out
    assert desk.run(capsys, "key", "show", desk.path("none.key"))[0] == 8


def test_what_a_new_key_says(desk, capsys):
    code, out, err = desk.run(capsys, "key", "new", "--out", desk.path("my own.key"))
    assert code == 0
    made = load_key(desk.path("my own.key"))
    fingerprint, short = out.splitlines()
    assert fingerprint == f"sha256 {key_hash(made.public_key).hex()}"
    assert made.public_text.startswith(short.removesuffix("…")) and 40 < len(short) < 60
    assert f"Saved the secret to {desk.path('my own.key')}" in err
    words = shlex.split(err.strip().rpartition(": ")[2])
    assert words[:3] == ["ktlog", "key", "revocation-token"] and desk.run(capsys, *words[1:])[0] == 0
    assert parse_token(load_token(desk.path("my own.token"))).public_key == made.public_key
    assert "my own.key" in desk.run(capsys, "key", "new", "--out", desk.path("my own.key"))[2]


def test_key_revocation_token(desk, capsys):
    code, out, _ = desk.run(capsys, "key", "revocation-token", desk.path("1.key"))
    assert (code, parse_token(out.strip()).public_key) == (0, key(1).public_key)
    code, text, _ = desk.run(capsys, "key", "revocation-token", desk.path("1.key"), "--json")
    shown = json.loads(text)
    assert (code, parse_token(shown["revocation-token"]).public_key) == (0, key(1).public_key)
    assert shown["sha256"] == key_hash(key(1).public_key).hex()


# submit


def test_a_life_submitted(desk, capsys):
    """Every message that an inbox takes, in an order that the rules allow."""
    one, two = desk.path("1.key"), desk.path("2.key")
    log, data = desk.log, "age1example"
    code, out, err = desk.submit(capsys, "add-key", "--key", one)
    assert (code, err) == (0, "")
    assert out == "accepted: the log signed this message as an entry; as entry 0, the log says\n"
    assert desk.network.key_ids == [f"{ALICE}#main-key"]
    steps = [
        ("add-key", "--public-key", key(2).public_text, "--sign-with", one),
        ("fireproof", "--sign-with", two),
        ("undo-fireproof", "--sign-with", two),
        ("add-aux-data", "--type", "age-v1", "--data", data, "--sign-with", two),
        ("revoke-aux-data", "--type", "age-v1", "--id", aux_data_id("age-v1", data), "--sign-with", two),
        ("revoke-key", "--key", one, "--sign-with", two),
    ]
    for step in steps:
        assert desk.submit(capsys, *step)[0] == 0, step
    assert [held.public_key for held in log.actors[ALICE].keys] == [key(2).public_key]
    alicia = actor("alicia")
    assert desk.submit(capsys, "move-identity", "--from", ALICE, "--sign-with", two, sender=alicia)[0] == 0
    assert desk.network.key_ids == [f"{alicia}#main-key"]
    code, out, _ = desk.submit(capsys, "revoke-third-party", "--key", two, "--json", log=log.url + "/")
    assert (code, json.loads(out)["leaf-index"]) == (0, 8)
    assert log.actors[alicia].keys == ()


@pytest.mark.parametrize("option", ["--token", "--token-file"])
def test_a_token_from_the_command_line_or_a_file(desk, capsys, tmp_path, option):
    token = key(1).revocation_token()
    (tmp_path / "token").write_text(token + "\n")
    say(desk.log, enrol, ALICE, key(1))
    assert desk.submit(capsys, "revoke-third-party")[0] == 2
    assert desk.submit(capsys, "revoke-third-party", "--token", token, "--key", desk.path("1.key"))[0] == 2
    value = token if option == "--token" else str(tmp_path / "token")
    assert desk.submit(capsys, "revoke-third-party", option, value)[0] == 0
    assert desk.log.actors[ALICE].keys == ()


def test_a_finished_envelope(desk, capsys, tmp_path):
    built = enrol(ALICE, key(1), recent_root=desk.log.recent(), now=NOW)
    (tmp_path / "envelope").write_text(build_envelope(ALICE, seal(built, desk.log.hpke.encapsulation_key)))
    code, out, _ = desk.submit(capsys, "raw", str(tmp_path / "envelope"), "--http-key-id", f"{ALICE}#other")
    assert (code, desk.network.key_ids) == (0, [f"{ALICE}#other"])
    assert "not checked" in out
    assert desk.submit(capsys, "raw", str(tmp_path / "none"))[0] == 2


def test_what_the_log_answered_to_another_message_is_no_answer_to_a_finished_envelope(desk, capsys, tmp_path, monkeypatch):
    built = enrol(ALICE, key(1), recent_root=desk.log.recent(), now=NOW)
    (tmp_path / "envelope").write_text(build_envelope(ALICE, seal(built, desk.log.hpke.encapsulation_key)))
    sign = sign_response
    monkeypatch.setattr(
        "test_client_commands.sign_response",
        lambda answer, keys, now: sign(replace(answer, request_digest=content_digest(b"older")), keys, now),
    )
    code, out, err = desk.submit(capsys, "raw", str(tmp_path / "envelope"))
    assert (code, out) == (3, "") and "BadReceipt" in err


def test_a_false_receipt_is_not_success(desk, capsys):
    desk.network.change = lambda receipt: receipt.update({"merkle-leaf": receipt["merkle-leaf"][:-4] + "AAAA"})
    code, out, err = desk.submit(capsys, "add-key", "--key", desk.path("1.key"))
    assert (code, out) == (5, "")
    assert "BadLeafSignature" in err


def test_options_that_do_not_fit(desk, capsys):
    assert desk.submit(capsys, "add-key")[0] == 2
    assert desk.submit(capsys, "add-key", "--public-key", key(2).public_text)[0] == 2
    assert desk.submit(capsys, "add-key", "--key", desk.path("1.key"), "--public-key", key(2).public_text)[0] == 2
    same = desk.path("1.key")
    assert desk.submit(capsys, "revoke-key", "--key", same, "--sign-with", same)[0] == 2
    assert desk.submit(capsys, "fireproof", "--sign-with", same, sender="alice")[0] == 5
    assert desk.log.size == 0
