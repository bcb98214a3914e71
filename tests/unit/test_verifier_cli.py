"""A verifier's directory from the command line: what it is made of, and what it is kept apart from."""

from __future__ import annotations

import json
import sqlite3

import pytest
from click.testing import CliRunner

from ktlog.tlog.note import COSIGNATURE_ED25519, signer_from_seed
from tests.verifier_world import MAP, NAME, ORIGIN, signers
from witness import cli
from witness.config import WitnessDir
from witness.replays import ReplayStore, Verdict
from witness.store import WitnessStore

LOG_KEYS = [str(signer.vkey) for signer in signers(ORIGIN, 1)]
MAP_KEYS = [str(signer.vkey) for signer in signers(MAP, 11)]
URL = f"https://{ORIGIN}"


def run(*arguments: object):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def refused(name: str, code: int, *arguments: object) -> None:
    result = run(*arguments)
    assert (result.exit_code, name in result.stderr) == (code, True), result.stderr


@pytest.fixture
def empty(tmp_path):
    path = tmp_path / "v"
    assert run("init", "--dir", path, "--name", NAME).exit_code == 0
    return path


@pytest.fixture
def verifier(empty):
    assert run("add-log", "--dir", empty, "--replay", URL, *LOG_KEYS, *MAP_KEYS).exit_code == 0
    return empty


def test_vkeys_are_those_that_init_printed(tmp_path):
    made = run("init", "--dir", tmp_path / "v", "--name", NAME).stdout.splitlines()[1:]
    assert run("vkeys", "--dir", tmp_path / "v").stdout.splitlines() == made
    found = json.loads(run("vkeys", "--dir", tmp_path / "v", "--json").stdout)
    assert found == {"name": NAME, "vkeys": made}
    refused("NoWitness", 8, "vkeys", "--dir", tmp_path / "none")


def test_what_is_replayed_is_listed(verifier):
    again = run("add-log", "--dir", verifier, "--replay", f"{URL}/", *LOG_KEYS, *MAP_KEYS, "--json")
    assert json.loads(again.stdout) == {"origin": ORIGIN, "map": MAP, "url": URL, "added": []}
    found = json.loads(run("list-logs", "--dir", verifier, "--json").stdout)
    assert found["replayed"] == {ORIGIN: URL} and found["wrong"] == {}
    assert [log["origin"] for log in found["logs"]] == [ORIGIN, MAP]
    assert f"replayed from {URL}" in run("list-logs", "--dir", verifier).stdout


def test_a_log_that_was_caught_is_shown(verifier, tmp_path):
    assert run("evidence", "--dir", verifier).stdout == "No log was caught.\n"
    store = WitnessStore.open(WitnessDir(verifier).database)
    ReplayStore(store).record_verdict(MAP, Verdict("MapMismatch", "leaf 3: another map", 1_800_000_000, b"{}"))
    store.close()
    assert "WRONG, and never cosigned again: MapMismatch: leaf 3" in run("list-logs", "--dir", verifier).stdout
    assert "--save" in run("evidence", "--dir", verifier).stdout
    WitnessDir(verifier).evidence.mkdir()
    kept = WitnessDir(verifier).evidence / f"{ORIGIN}.json"
    kept.write_bytes(b"{}")
    assert run("evidence", "--dir", verifier).stdout == (
        f"{ORIGIN}: MapMismatch, caught 2027-01-15T08:00:00Z: leaf 3: another map\n  {kept}\n"
    )
    found = json.loads(run("evidence", "--dir", verifier, "--save", tmp_path / "to", "--json").stdout)
    assert found == {"evidence": [], "caught": [{
        "origin": ORIGIN, "name": "MapMismatch", "message": "leaf 3: another map", "recorded": 1_800_000_000,
        "file": str(tmp_path / "to" / kept.name),
    }]}
    assert (tmp_path / "to" / kept.name).read_bytes() == b"{}"


@pytest.mark.parametrize("keys", [LOG_KEYS, MAP_KEYS, [*LOG_KEYS, *MAP_KEYS, str(signers("example.org/log", 3)[0].vkey)]],
                         ids=["no key of the map", "no key of the log", "a third log"])
def test_keys_of_a_log_and_of_its_map(empty, keys):
    refused("NotOneLog", 2, "add-log", "--dir", empty, "--replay", URL, *keys)
    assert json.loads(run("list-logs", "--dir", empty, "--json").stdout)["logs"] == []


@pytest.mark.parametrize("url", ["http://keys.example.com", "https://keys.example.com:8443", "https://127.0.0.1",
                                 "https://keys.example.com/?log=1", "keys.example.com"])
def test_addresses_that_no_log_is_read_at(empty, url):
    refused("BadAddress", 2, "add-log", "--dir", empty, "--replay", url, *LOG_KEYS, *MAP_KEYS)


def test_its_own_key_and_keys_of_cosigners(empty):
    signer = signer_from_seed(MAP, COSIGNATURE_ED25519, bytes(32))
    refused("NotALogKey", 2, "add-log", "--dir", empty, "--replay", URL, *LOG_KEYS, signer.vkey)


def test_witness_and_verifier_share_no_directory(verifier, tmp_path):
    other = str(signers("example.org/log", 3)[0].vkey)
    refused("VerifierDirectory", 2, "add-log", "--dir", verifier, other)
    refused("VerifierDirectory", 2, "serve", "--dir", verifier, "--listen", "127.0.0.1:0")
    run("init", "--dir", tmp_path / "w", "--name", "w1.example.com")
    refused("WitnessDirectory", 2, "serve", "--replay", "--dir", tmp_path / "w", "--listen", "127.0.0.1:0")
    assert run("add-log", "--dir", tmp_path / "w", other).exit_code == 0
    refused("WitnessDirectory", 2, "add-log", "--dir", tmp_path / "w", "--replay", URL, *LOG_KEYS, *MAP_KEYS)
    refused("WitnessDirectory", 2, "serve", "--replay", "--dir", tmp_path / "w", "--listen", "127.0.0.1:0")


def test_a_witness_made_by_an_older_release_stays_one(empty):
    assert run("add-log", "--dir", empty, LOG_KEYS[0]).exit_code == 0
    with sqlite3.connect(empty / "witness.db") as database:
        database.executescript(
            "DROP TRIGGER witness_no_update; UPDATE witness SET schema_version = 1, oldest_reader = 1;"
            "DROP TABLE sightings; DROP TABLE checked; DROP TABLE digests; DROP TABLE verdicts; DROP TABLE heads;"
            "DROP TABLE replays"
        )
    database.close()
    refused("WitnessDirectory", 2, "serve", "--replay", "--dir", empty, "--listen", "127.0.0.1:0")
    refused("WitnessDirectory", 2, "add-log", "--dir", empty, "--replay", URL, *LOG_KEYS, *MAP_KEYS)
    assert run("add-log", "--dir", empty, LOG_KEYS[1]).exit_code == 0
    assert "replayed" not in json.loads(run("list-logs", "--dir", empty, "--json").stdout)
    refused("WitnessDirectory", 2, "serve", "--replay", "--dir", empty, "--listen", "127.0.0.1:0")


def test_a_retired_key_of_a_verifier_reads_no_more_and_still_says_what_was_seen(verifier):
    done = run("retire-key", "--dir", verifier, LOG_KEYS[0], "--reason", "stolen")
    assert (done.exit_code, "Restart the verifier" in done.stdout) == (0, True), done.stderr
    store = WitnessStore.open(verifier / "witness.db", read_only=True)
    (replay,) = ReplayStore(store).replays()
    store.close()
    assert [str(vkey) for vkey in replay.log.retired] == [LOG_KEYS[0]]
    assert [str(vkey) for vkey in replay.log.vkeys] == LOG_KEYS[1:] and not replay.map_log.retired
    refused("LastKey", 2, "retire-key", "--dir", verifier, ORIGIN)
    refused("VerifierDirectory", 2, "retire-key", "--dir", verifier, ORIGIN, "--leave-none")
    refused("KeyRetired", 2, "add-log", "--dir", verifier, "--replay", URL, *LOG_KEYS, *MAP_KEYS)
    again = run("add-log", "--dir", verifier, "--replay", URL, *LOG_KEYS, *MAP_KEYS, "--trust-again")
    assert again.exit_code == 0, again.stderr
