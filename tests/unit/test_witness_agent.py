"""Keys of a witness that are not in its directory: in an ssh-agent, or in credentials of the service manager."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ktlog.credential import read_credential
from ktlog.errors import EncodingError, StoreError, UsageError
from ktlog.tlog.note import Note, open_note, parse_signature_lines, parse_vkey
from tests.machine import need, program
from tests.unit.test_witness_cli import run, run_json
from tests.witness_log import Log
from witness import agent as agents
from witness.about import Said, describe, format_text
from witness.agent import Agent, AgentKey, parse_identities, parse_signature
from witness.config import WitnessDir
from witness.keys import KeySources, derive_signers, parse_credentials
from witness.web import open_witness

NAME = "example.com/w1"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")
PUBLIC = KEY.public_key().public_bytes_raw()


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def identities(*keys: bytes) -> bytes:
    """An answer that lists Ed25519 *keys*, after one of another kind."""
    listed = [string(string(b"ssh-rsa") + string(b"\x03") + string(b"\x05")) + string(b"old")]
    listed += [string(string(b"ssh-ed25519") + string(key)) + string(b"mine") for key in keys]
    return b"\x0c" + len(listed).to_bytes(4, "big") + b"".join(listed)


def signed(signature: bytes, kind: bytes = b"ssh-ed25519") -> bytes:
    return b"\x0e" + string(string(kind) + string(signature))


@pytest.fixture
def short():
    """A directory with a short path: that of a Unix socket has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="ktlog-") as path:
        yield Path(path)


class FakeAgent:
    """Answers each question by *answer*, framed; bytes with a frame of their own where it returns a tuple."""

    def __init__(self, path: Path, answer) -> None:
        self.path, self.answer, self.connections = path, answer, 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection, connection.makefile("rb") as stream:
                while head := stream.read(4):
                    answer = self.answer(stream.read(int.from_bytes(head, "big")))
                    if answer is None:
                        break
                    connection.sendall(answer[0] if isinstance(answer, tuple) else string(answer))

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def fake(short):
    made = []

    def make(answer) -> tuple[Agent, FakeAgent]:
        server = FakeAgent(short / f"s{len(made)}", answer)
        client = Agent(server.path)
        made.append((client, server))
        return client, server

    yield make
    for client, server in made:
        client.close()
        server.stop()


def honest(message: bytes) -> bytes | None:
    if message == b"\x0b":
        return identities(PUBLIC)
    blob = string(string(b"ssh-ed25519") + string(PUBLIC))
    assert message[:1] == b"\x0d" and message[1:].startswith(blob) and message.endswith(bytes(4))
    data = message[1 + len(blob) : -4]
    assert len(data) - 4 == int.from_bytes(data[:4], "big")
    return signed(KEY.sign(data[4:]))


# --- the protocol


def test_it_lists_ed25519_keys_and_signs_over_one_connection(fake):
    client, server = fake(honest)
    assert client.list_keys() == (AgentKey(PUBLIC, "mine"),)
    assert client.sign(PUBLIC, b"data") == client.sign(PUBLIC, b"data") == KEY.sign(b"data")
    assert server.connections == 1


def test_a_connection_that_broke_is_made_anew(fake):
    turns = iter((honest, lambda message: None, honest))
    client, server = fake(lambda message: next(turns)(message))
    client.sign(PUBLIC, b"1")
    assert client.sign(PUBLIC, b"2") == KEY.sign(b"2")
    assert server.connections == 2


@pytest.mark.parametrize(("answer", "name"), [
    (b"\x05", "AgentRefused"),
    (identities(PUBLIC), "AgentBroken"),  # not what was asked
    (signed(KEY.sign(b"other")), "AgentBroken"),
    (signed(bytes(63)), "AgentBroken"),
    (signed(KEY.sign(b"data"), b"ssh-rsa"), "AgentBroken"),
    (signed(KEY.sign(b"data")) + b"x", "AgentBroken"),
    ((bytes(4),), "AgentBroken"),
    ((b"\xff\xff\xff\xff",), "AgentBroken"),
    (None, "AgentUnreachable"),
])
def test_what_is_no_signature_is_refused(fake, answer, name):
    client, _ = fake(lambda message: answer)
    with pytest.raises(StoreError) as caught:
        client.sign(PUBLIC, b"data")
    assert caught.value.name == name


def test_one_that_hangs_is_given_up(fake, monkeypatch):
    monkeypatch.setattr(agents, "ANSWER_SECONDS", 0.05)
    held = threading.Event()
    client, _ = fake(lambda message: held.wait(30) and None)
    with pytest.raises(StoreError, match="AgentUnreachable"):
        client.list_keys()
    held.set()


def test_answers_are_parsed_strictly():
    good = identities(PUBLIC)[1:]
    assert parse_identities(good) == (AgentKey(PUBLIC, "mine"),)
    for broken in (
        *(good[:cut] for cut in range(len(good))), good + b"\0", b"\xff" * 4,
        identities(PUBLIC[:31])[1:], identities(PUBLIC + b"\0")[1:],
    ):
        with pytest.raises(EncodingError, match="BadAgentAnswer"):
            parse_identities(broken)
    good = signed(bytes(64))[1:]
    assert parse_signature(good) == bytes(64)
    for cut in range(len(good)):
        with pytest.raises(EncodingError, match="BadAgentAnswer"):
            parse_signature(good[:cut])


def test_without_an_agent(monkeypatch, short):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(StoreError, match="AgentUnreachable"):
        Agent.from_environment()
    with pytest.raises(StoreError, match="AgentUnreachable"):
        Agent(short / "none").list_keys()
    with pytest.raises(StoreError, match="AgentUnreachable"):
        Agent(short / ("x" * 200)).list_keys()


def test_which_key_a_new_witness_takes(fake):
    other = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x02").public_key().public_bytes_raw()
    held = [PUBLIC]
    client, _ = fake(lambda message: identities(*held))

    def taken(fingerprint=None) -> bytes:
        return derive_signers(bytes(32), NAME, KeySources(agent=client, agent_key=fingerprint))[0].vkey.public_key

    assert taken() == PUBLIC
    held.append(other)
    with pytest.raises(UsageError, match="ManyAgentKeys"):
        taken()
    assert taken(AgentKey(other, "").fingerprint) == other
    with pytest.raises(UsageError, match="NoSuchAgentKey"):
        taken("SHA256:other")
    held[:] = [b"\x01" + bytes(31)]  # small order
    with pytest.raises(UsageError, match="NoSuchAgentKey"):
        taken()


# --- a real one


@pytest.fixture
def ssh_agent(short, monkeypatch):
    """OpenSSH's own, with KEY in it."""
    need("ssh-agent")
    path = short / "agent"
    process = subprocess.Popen([program("ssh-agent"), "-D", "-a", str(path)], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()  # its environment, once it listens
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    private = short / "key"
    private.touch(mode=0o600)
    private.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    subprocess.run([program("ssh-add"), "-q", str(private)], check=True)
    yield private
    process.terminate()
    process.wait()


def test_a_witness_whose_only_key_is_in_a_real_agent(ssh_agent, tmp_path):
    told = subprocess.run([program("ssh-add"), "-l"], capture_output=True, text=True, check=True).stdout
    assert AgentKey(PUBLIC, "").fingerprint in told
    log, directory = Log(), tmp_path / "w"
    made = run("init", "--dir", directory, "--name", NAME, "--ssh-agent", "--ed25519-only")
    assert "no ML-DSA-44 key" in made.output and "SSH agent" in made.output
    assert not list(directory.glob("*.key"))
    (vkey,) = map(parse_vkey, run_json("vkeys", "--dir", directory)["vkeys"])
    assert (vkey.algorithm, vkey.public_key) == (4, PUBLIC)
    run_json("add-log", "--dir", directory, log.vkeys[0])
    with pytest.raises(StoreError, match="MissingSecret"):
        open_witness(WitnessDir(directory))
    witness = open_witness(WitnessDir(directory), keys=KeySources(agent=Agent.from_environment()))
    answer = witness.add_checkpoint(log.submission(0, 3))
    assert answer.status == 200
    text = log.note(3).partition(b"\n\n")[0] + b"\n"
    (verified,) = open_note(Note(text, parse_signature_lines(answer.body)), [vkey])
    assert verified.vkey == vkey
    assert "subtree" not in format_text(describe(witness.store, Said(), verifier=False))
    # Without its key it signs nothing, and says that it cannot; with it, again.
    subprocess.run([program("ssh-add"), "-q", "-D"], check=True)
    refused = witness.add_checkpoint(log.submission(3, 4))
    assert (refused.status, refused.reason) == (503, "AgentRefused")
    with pytest.raises(StoreError, match="AgentKeyMissing"):
        open_witness(WitnessDir(directory), keys=KeySources(agent=Agent.from_environment()))
    subprocess.run([program("ssh-add"), "-q", str(ssh_agent)], check=True)
    assert witness.add_checkpoint(log.submission(3, 4)).status == 200
    witness.store.close()


def test_the_ml_dsa_key_stays_in_its_file_beside_an_agent(ssh_agent, tmp_path):
    made = run_json("init", "--dir", tmp_path / "w", "--name", NAME, "--ssh-agent")
    assert [parse_vkey(vkey).algorithm for vkey in made["vkeys"]] == [4, 6]
    assert [path.name for path in (tmp_path / "w").glob("*.key")] == ["mldsa44.key"]
    witness = open_witness(WitnessDir(tmp_path / "w"), keys=KeySources(agent=Agent.from_environment()))
    assert {str(signer.vkey) for signer in witness.signers} == set(made["vkeys"])
    witness.store.close()


# --- credentials


@pytest.fixture
def credentials(tmp_path, monkeypatch):
    path = tmp_path / "credentials"
    path.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path))
    return path


def test_keys_move_into_credentials_and_no_other_key_is_signed_with(credentials, tmp_path):
    directory = WitnessDir(tmp_path / "w")
    made = run_json("init", "--dir", directory.path, "--name", NAME)
    for kind in ("ed25519", "mldsa44"):
        shutil.move(directory.key_file(kind), credentials / f"w.{kind}")
    sources = KeySources(parse_credentials(("ed25519=w.ed25519", "mldsa44=w.mldsa44"), ("ed25519", "mldsa44")))
    witness = open_witness(directory, keys=sources)
    assert {str(signer.vkey) for signer in witness.signers} == set(made["vkeys"])
    witness.store.close()
    (credentials / "w.ed25519").write_bytes(bytes(32))
    with pytest.raises(StoreError, match="KeyMismatch"):
        open_witness(directory, keys=sources)


def test_a_new_witness_takes_its_keys_from_credentials(credentials, tmp_path):
    (credentials / "one").write_bytes(bytes(31) + b"\x01")
    (credentials / "one").chmod(0o440)  # as an access list looks
    made = run_json("init", "--dir", tmp_path / "w", "--name", NAME, "--credential", "ed25519=one")
    assert parse_vkey(made["vkeys"][0]).public_key == PUBLIC
    assert [path.name for path in (tmp_path / "w").glob("*.key")] == ["mldsa44.key"]


def test_what_is_no_credential_is_refused(credentials, monkeypatch):
    for text in ("ed25519", "x=y", "ed25519=", "ed25519=../x", "ed25519=.", "=x"):
        with pytest.raises(UsageError, match="BadCredential"):
            parse_credentials((text,), ("ed25519",))
    with pytest.raises(UsageError, match="BadCredential"):
        parse_credentials(("ed25519=a", "ed25519=b"), ("ed25519",))
    os.symlink("/dev/null", credentials / "link")
    os.mkfifo(credentials / "pipe", 0o600)
    (credentials / "open").write_bytes(bytes(32))
    (credentials / "open").chmod(0o604)
    (credentials / "short").write_bytes(bytes(31))
    (credentials / "hex").write_bytes(b"00" * 32)
    for path in ("short", "hex"):
        (credentials / path).chmod(0o600)
    expected = {"none": "MissingSecret", "link": "InputOutput", "pipe": "UnsafeSecret", "open": "UnsafeSecret",
                "short": "BadSecret", "hex": "BadSecret"}
    for name, error in expected.items():
        with pytest.raises(StoreError) as caught:
            read_credential(name, 32)
        assert caught.value.name == error, name
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(StoreError, match="NoCredentials"):
        read_credential("none", 32)


def test_init_says_in_json_what_was_refused(monkeypatch, tmp_path):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    result = run("init", "--dir", tmp_path / "w", "--name", NAME, "--ssh-agent", "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["name"]) == (8, "AgentUnreachable")
    assert not (tmp_path / "w").exists()
    result = run("init", "--dir", tmp_path / "w", "--name", NAME, "--agent-key", "SHA256:x")
    assert (result.exit_code, "NoSshAgent" in result.stderr) == (2, True)
