"""The pages' shell blocks, run from top to bottom as a reader would: against a real log where one is spoken of."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ktlog.client import save_key
from ktlog.config import load_settings
from ktlog.demo.front import write_routes
from ktlog.durable import write_atomic
from ktlog.operator.create import load_public_keys
from ktlog.pkd.keys import encode_public_key
from ktlog.tlog.note import parse_vkey
from ktlog.tlog.policy import LogKey, format_policy
from tests.docs_commands import ROOT, Shell, walk
from tests.machine import need
from tests.running_log import DOMAIN, EVIL, GONE, ORIGIN, RunningLog, actor, running_log
from tests.tls_server import answer
from tests.witness_log import Log

pytestmark = pytest.mark.slow

VECTORS = ROOT / "docs" / "vectors" / "evidence"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Without a log."""
    made = Shell(tmp_path)
    yield made
    made.kill()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLog]:
    """One log for all pages that leave it whole. a01 is enrolled."""
    with running_log(tmp_path_factory.mktemp("log"), verifier=True, burndown_enabled=True, notice_seconds=1) as running:
        assert running.enrol("a01").status == 202
        yield running


@pytest.fixture
def beside(log: RunningLog, tmp_path: Path) -> Iterator[Shell]:
    """A shell in which the names of that log are those of the pages."""
    made = shell_of(log, tmp_path)
    yield made
    made.kill()


def shell_of(log: RunningLog, directory: Path) -> Shell:
    dial = json.loads((log.directory / "dial.json").read_bytes())
    dial["hosts"][GONE] = dial["hosts"][ORIGIN]
    dial["ca_file"] = str(log.directory / "front" / "ca.pem")
    write_atomic(directory / "dial.json", json.dumps(dial).encode())
    made = Shell(directory / "pages", {
        "keys.example.com": ORIGIN, "keys.example.social": ORIGIN, "example.social": DOMAIN, "ORIGIN": ORIGIN,
        "/var/lib/ktlog": str(log.settings.directory), "/srv/ktlog": str(log.settings.directory),
        "@alice@example.social": f"@a01@{DOMAIN}", "https://example.social/users/alice": actor("a01"),
    }, KTLOG_DIAL=str(directory / "dial.json"))
    settle(made)
    return made


def settle(shell: Shell) -> None:
    """Wait until everything is published and in the map."""
    shell.run("ktlog doctor --dir /var/lib/ktlog --wait 60")


def lead(log: RunningLog, name: str, address: str) -> None:
    """Have the TLS front lead *name* there."""
    front = log.directory / "front"
    write_routes(front, json.loads((front / "routes.json").read_bytes()) | {name: address})


def trust(log: RunningLog, shell: Shell) -> None:
    """Put the policies that the pages speak of into the directory where the commands are run."""
    shell.run("ktlog policy show --dir /var/lib/ktlog > trust.policy")
    shell.run("ktlog policy show --dir /var/lib/ktlog --for auditors > audit.policy")
    shell.run(f"export VKEY={shlex.quote(load_public_keys(log.settings).vkeys[-1])}")


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as found:
        return found.read()


# -- pages of which no log is needed


def test_the_readme(shell: Shell) -> None:
    """What is left of twelve commands in earnest; and a witness, which is told of that log."""
    names = ("keys.example.com", "w1.example.net", "w2.example.net", "v1.example.net")
    dial = {"hosts": dict.fromkeys(names, "127.0.0.1:1")}  # nobody is there
    (shell.here / "dial.json").write_text(json.dumps(dial))
    shell.run("export KTLOG_DIAL=$PWD/dial.json")
    for name, variable in (("w1", "VKEYS_OF_W1"), ("w2", "VKEYS_OF_W2"), ("v1", "VKEYS_OF_V1")):
        shell.run(f"ktlog-witness init --dir {name} --name {name}.example.net")
        shell.run(f'export {variable}="$(ktlog-witness vkeys --dir {name})"')
    (shell.root / "etc" / "nginx" / "conf.d").mkdir(parents=True)

    def introduce(shell: Shell) -> None:
        public = load_public_keys(load_settings(shell.root / "var" / "lib" / "ktlog"))
        shell.words["VKEY..."] = " ".join(public.vkeys)

    walk(
        "README.md", shell, before={"ktlog-witness add-log": introduce},
        says={"ktlog init": "Missing, before anybody gets a verified answer", "ktlog policy make": "2 of 2 witnesses and 1 of 1 verifiers",
              "ktlog doctor": r"BAD +Unreachable|BAD +Reachable"},
        codes={"ktlog doctor": 5},  # nobody is reached, as it says
    )
    assert "server_name keys.example.com;" in (shell.root / "etc" / "nginx" / "conf.d" / "ktlog.conf").read_text()


def test_the_quickstart(shell: Shell) -> None:
    (shell.root / "etc" / "bash_completion.d").mkdir(parents=True)
    walk("quickstart.md", shell)
    shell.run("bash -n /etc/bash_completion.d/ktlog && test -s /usr/local/share/man/man1/ktlog-serve.1")


def test_checking_in_a_browser(shell: Shell) -> None:
    walk("verify-page.md", shell)
    told = shell.run("ktlog verify-page --hash").split()[0]
    assert told == hashlib.sha256((shell.here / "verify.html").read_bytes()).hexdigest()
    walk("releases.md", shell, says={"sha256sum": told})


def test_running_a_log(shell: Shell) -> None:
    shell.run("ktlog init --dir /var/lib/ktlog --origin keys.example.com && ktlog-witness init --dir w --name w1.example.net")
    shell.run('ktlog policy make --dir /var/lib/ktlog --witness "$(ktlog-witness vkeys --dir w)"')
    key = shell.root / "var" / "lib" / "ktlog" / "keys" / "fetch-rsa.pem"
    key.unlink()  # a log that was made before has none
    shell.words["DIR"] = str(shell.root / "var" / "lib" / "ktlog")
    walk("running.md", shell, says={"ktlog config show": r"checkpoint_interval_ms\W+1000"})
    assert key.stat().st_mode & 0o777 == 0o600
    assert "fetch" in shell.run("ktlog keys list --dir DIR")


def test_keys(shell: Shell) -> None:
    """A yearly rotation, of which the witness is told before the old key is retired."""
    shell.run("ktlog init --dir log --origin keys.example.com > vkeys && ktlog-witness init --dir w --name w1.example.net")
    shell.run("ktlog-witness add-log --dir w $(head -n 2 vkeys)")
    shell.words["DIR"] = "log"

    def tell(shell: Shell) -> None:
        changed = json.loads(shell.run("ktlog keys rotate checkpoint --dir DIR --json"))["keys"]
        shell.run(f"ktlog-witness add-log --dir w {' '.join(shlex.quote(key['new']) for key in changed)}")
        shell.words |= {"DIR": "w", "OLD-VKEY": shlex.quote(changed[0]["old"])}

    walk("keys.md", shell, before={"ktlog-witness retire-key": tell}, says={"ktlog keys rotate": "leaf: replaced"})
    assert "trusts no more keys.example.com+" in shell.run("ktlog-witness list-logs --dir w")


def test_a_witness(log: RunningLog, tmp_path: Path) -> None:
    """The list of logs is this test's, and so is the log that forks; no bastion answers."""
    need("ssh-agent")
    with tempfile.TemporaryDirectory(prefix="ktlog-") as short:
        listed = Log("listed.example")
        log.evil_documents["/log-list.1"] = answer(
            f"logs/v0\n\nvkey {listed.vkeys[0]}\nqpd 100\ncontact nobody\n".encode(), content_type="text/plain",
        )
        shell = Shell(tmp_path / "pages", {
            "lists.example.net": EVIL, "bastion.example.net": "localhost:1", "bastion.example.org:8443": "localhost:2",
            "/run/ktlog-witness": short,  # a socket's path must not be long
        }, KTLOG_DIAL=str(log.directory / "dial.json"))
        (shell.root / "root").mkdir()
        try:
            walk_a_witness(shell, listed)
        finally:
            for process in re.findall(r"SSH_AGENT_PID=(\d+)", "".join(shell.said)):
                os.kill(int(process), signal.SIGTERM)
            shell.kill()


def walk_a_witness(shell: Shell, listed: Log) -> None:
    witness = "/var/lib/ktlog-witness"

    def fork(shell: Shell) -> None:
        """The log that is on the list shows the witness two trees of one size."""
        shell.start(f"ktlog-witness serve --dir {witness} --listen 127.0.0.1:8099")
        for body in (listed.submission(0, 3), listed.submission(3, 3, root=bytes(32))):
            (shell.here / "body").write_bytes(body)
            shell.run("curl -s --data-binary @body http://127.0.0.1:8099/add-checkpoint")
        shell.words |= {"ORIGIN": listed.origin, "VKEY": shlex.quote(str(listed.vkeys[0]))}

    def take_the_file(shell: Shell) -> None:
        (file,) = (shell.here / "evidence").iterdir()
        shell.words["FILE"] = file.name

    def begin_anew(shell: Shell) -> None:
        shell.stop(f"ktlog-witness serve --dir {witness}")
        shell.run(f"rm -r {witness}/")

    walk(
        "witness.md", shell,
        before={
            "ktlog-witness pull-logs": lambda shell: shell.run(f"ktlog-witness init --dir {witness} --name w9.example.net"),
            "ktlog-witness evidence": fork, "ktlog-auditor verify-evidence": take_the_file,
            "ktlog-witness bastion-key": lambda shell: shell.stop(f"ktlog-witness serve --dir {witness}"),
            f"ktlog-witness init --dir {witness}": begin_anew,
        },
        typed={"ssh-keygen": "\n\n"},
        says={"curl -s --retry 9": "w1.example.net", "ktlog-witness pull-logs": listed.origin},
    )


# -- pages about a log that runs


def test_enrolling(log: RunningLog, beside: Shell) -> None:
    beside.words |= {
        "https://example.social/users/alice": actor("a02"), "@alice@example.social": f"@a02@{DOMAIN}",
        "https://example.social/users/mod": actor("a03"), "mldsa44:…": log.get("/api/info").json()["public-key"],
    }
    trust(log, beside)
    assert log.enrol("a03").status == 202
    save_key(beside.here / "mod.key", log.keys["a03"])
    for user, name in (("a02", "alice"), ("a03", "mod")):
        shutil.copy(log.directory / "instance" / "keys" / f"{user}.key", beside.here / f"{name}-http.key")

    def lose_it_again(shell: Shell) -> None:
        """After the token nothing is left to burn down."""
        shell.run("ktlog key new --out another.key")
        shell.run("ktlog submit add-key --log keys.example.social --actor https://example.social/users/alice"
                  " --key another.key --http-key alice-http.key")

    walk(
        "enrolling.md", beside, before={"ktlog lookup": settle, "ktlog submit burn-down": lose_it_again},
        says={"ktlog lookup": "1 active key", "ktlog receipt verify": r"leaf-index: \d"},
    )


def test_looking_up(log: RunningLog, beside: Shell) -> None:
    trust(log, beside)
    state = beside.here.parent / "home" / ".local" / "share" / "ktlog"
    state.mkdir(parents=True)
    (state / "domains.toml").write_text(f'[domains]\n"{DOMAIN}" = "{ORIGIN}"\n')
    walk("looking-up.md", beside, says={"ktlog lookup": "1 active key", "ktlog watch": "1 key"})


def test_every_day(log: RunningLog, beside: Shell) -> None:
    beside.words["alice"] = "a01"
    (beside.here / "domain_blocks.csv").write_text("#domain,#severity\nbad.example,suspend\n")
    walk("operating.md", beside, says={
        "ktlog doctor": "Nothing is bad|All is well", "ktlog admin actors": actor("a01"),
        "ktlog admin list": r"(?s)(?=.*spam\.example.*floods)(?=.*bad\.example.*of my server)",
    })
    assert log.enrol("a06").status == 202  # the pause is over


def test_backups(tmp_path: Path) -> None:
    with running_log(tmp_path) as log:
        assert log.enrol("a01").status == 202
        shell, old = shell_of(log, tmp_path), log.settings.directory

        def lose_the_disk(shell: Shell) -> None:
            (shell.root / "media").mkdir()
            shutil.copytree(old / "keys", shell.root / "media" / "keys")
            log.processes.stop("log")
            shutil.rmtree(old)

        walk("backup.md", shell, before={"ktlog restore": lose_the_disk}, says={"ktlog restore": "is the log again: 1 entry,"})
        shell.run("ktlog fsck --dir /srv/ktlog")


def test_erasing(log: RunningLog, beside: Shell) -> None:
    assert log.enrol("a05").status == 202
    beside.words["https://example.com/users/alice"] = actor("a05")
    told = f"ktlog shred --dir /srv/ktlog {actor('a05')} --preview && echo may go || true"
    log.wait("the end of the notice", lambda: "may go" in beside.run(told))
    walk("erasing.md", beside, typed={"ktlog shred": "y\n"}, says={"ktlog shred": "2 attributes in 1 entry go"})
    assert actor("a05").encode() not in log.settings.database.read_bytes()


def test_a_mirror(log: RunningLog, beside: Shell) -> None:
    beside.words |= {"log.example.org": ORIGIN, "m1.example.net": GONE}
    witness = "/var/lib/ktlog-witness"
    vkeys = shlex.join(load_public_keys(log.settings).vkeys)
    beside.run(f"ktlog-witness init --dir {witness} --name w9.example.net && ktlog-witness add-log --dir {witness} {vkeys}")
    lead(log, GONE, beside.address("127.0.0.1:7381"))

    def lose_the_mark(shell: Shell) -> None:
        shell.stop("ktlog-witness serve-mirror")
        shell.run(f"rm {witness}/mirror/high-water")

    walk("mirror.md", beside, before={"ktlog-witness set-mirror-mark": lose_the_mark})
    assert f"cosigned at size {log.published_size()}" in beside.run(f"ktlog-witness list-mirrored --dir {witness}")


def test_a_verifier(log: RunningLog, beside: Shell) -> None:
    public = load_public_keys(log.settings)
    beside.words["VKEY VKEY VKEY VKEY"] = shlex.join(public.vkeys + public.map_vkeys)
    status: dict[str, Any] = {}

    def has_read() -> bool:
        status.update(json.loads(fetch(f"http://{beside.address('127.0.0.1:8082')}/replays"))["logs"][0])
        return status["entries-derived"] == log.published_size()

    walk("verifying.md", beside, after=lambda shell: shell.wait("the replay", has_read, lambda: str(status)))
    assert status["violations"] == 0


def test_postgresql(tmp_path: Path, postgres: Any) -> None:
    databases = [postgres.new_database() for _ in range(2)]
    shell = Shell(tmp_path, {
        "postgresql://ktlog@db.example.com/ktlog_keys?sslmode=verify-full": shlex.quote(databases[0]),
        "postgresql://ktlog@db.example.com/ktlog_keys": shlex.quote(databases[1]), "DIR": "log",
    })

    def make_another(shell: Shell) -> None:
        shell.words["DIR"] = "on-sqlite"
        shell.run("ktlog init --dir DIR --origin keys.example.com")

    try:
        walk("postgresql.md", shell, before={"ktlog migrate-store": make_another})
        assert "postgresql://" in (shell.here / "on-sqlite" / "ktlog.toml").read_text()
    finally:
        for url in databases:
            postgres.drop_database(url)


# -- the auditor's pages


@pytest.fixture(scope="module")
def vectors() -> dict[str, Any]:
    return json.loads((VECTORS / "known.json").read_bytes())


def test_auditing(shell: Shell, vectors: dict[str, Any]) -> None:
    """What is not run by tests/unit/test_docs_pages.py."""
    shutil.copy(VECTORS / "two-roots.json", shell.here)
    shell.run(f"export VKEY={shlex.quote(vectors['vkeys'][1])}")
    walk("auditing.md", shell)


def test_evidence(log: RunningLog, beside: Shell, vectors: dict[str, Any]) -> None:
    for path in VECTORS.glob("*.json"):
        shutil.copy(path, beside.here)
    beside.run(f"export VKEY={shlex.quote(vectors['vkeys'][1])}")
    known = tuple(LogKey(parse_vkey(vkey)) for vkey in vectors["vkeys"])
    (beside.here / "audit.policy").write_bytes(format_policy(replace(log.policy, logs=known)))

    def send_something(shell: Shell) -> None:
        """An actor's message, whose receipt is kept; then an audit, under the policy of the log that took it."""
        trust(log, shell)
        http_key = log.directory / "instance" / "keys" / "a04.key"
        shell.run("ktlog key new --out alice.key")
        shell.run(f"ktlog submit add-key --log ORIGIN --actor {actor('a04')} --key alice.key --http-key {http_key}"
                  " --receipt receipt.json")
        settle(shell)
        shell.words["mldsa44:…"] = log.get("/api/info").json()["public-key"]
        audited = json.loads(shell.run("ktlog-auditor audit ORIGIN --dir ./audits --policy audit.policy --json"))
        assert audited["ok"] and audited["map"]["leaves"] > 1

    walk("evidence.md", beside, before={"ktlog-auditor check-receipt": send_something})
    assert "no fault" in (beside.here / "report.html").read_text()


def test_watching_and_alarms(log: RunningLog, beside: Shell) -> None:
    """One watch for both pages; the hook is this test's own server."""
    trust(log, beside)
    place = beside.root / "var" / "lib" / "ktlog-watch"
    place.mkdir(parents=True)
    shutil.copy(beside.here / "audit.policy", place)
    log.evil_documents["/hook"] = answer(b"", 204)
    (place / "watch.toml").write_text(
        f'[[log]]\nlog = "{ORIGIN}"\npolicy = "audit.policy"\n'
        f'[sinks.hook]\ntype = "webhook"\nurl = "https://{EVIL}/hook"\nsecret_file = "hook.secret"\n'
    )
    beside.run("(umask 077; echo \"whsec_$(openssl rand -base64 32)\" > /var/lib/ktlog-watch/hook.secret)")
    beside.run(f"export OPERATOR_KEY={encode_public_key(log.keys['a01'].public_key)}")

    def save_an_alarm(shell: Shell) -> None:
        told: list[dict[str, Any]] = []

        def is_told() -> bool:
            deliveries = json.loads(shell.run("ktlog-auditor alarms --dir ./watch --json"))["deliveries"]
            told[:] = [one["alarm"] for one in deliveries if one["alarm"]["kind"] == "event"]
            return bool(told)

        shell.wait("an alarm", is_told)
        (shell.here / "alarm.json").write_text(json.dumps(told[0]))

    walk("watching.md", beside, says={"ktlog-auditor findings --dir /var/lib/ktlog-watch --nagios": "OK"})
    walk("alarms.md", beside, before={"ktlog-auditor verify-alarm": save_an_alarm})
