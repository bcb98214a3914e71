"""Our log asks other implementations' witnesses and ours, and publishes only what all of them cosigned.

Then others read what it published: the checkpoint with its cosignatures, every tile and every entry.
"""

from __future__ import annotations

import socket
import time
from base64 import b64decode
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from ktlog.operator.create import load_public_keys
from ktlog.operator.stores import open_log, open_tiles
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import parse_vkey
from ktlog.tlog.policy import format_policy
from tests.interop_peers import SECONDS, PeerRefused, litewitness
from tests.machine import need
from tests.running_log import ORIGIN, running_log

LITE, OMNI = "lite.witness.example", "omni.witness.example"


@pytest.fixture(scope="module")
def log(built, tessera, tmp_path_factory):
    """A log that has published three enrolments, with all its witnesses."""
    need("ssh-agent")
    path = tmp_path_factory.mktemp("our-log")
    keys = [tessera.ask("key", name=OMNI, type=algorithm) for algorithm in (4, 6)]
    address = tessera.ask("omniwitness", keys=[key["skey"] for key in keys])["address"]
    with litewitness(built, path / "lite", LITE) as lite:

        def others(public):
            # Both know one key of a log; ours signs with two, and they set the other line aside.
            for origin, vkeys in ((ORIGIN, public.vkeys), (f"{ORIGIN}/map", public.map_vkeys)):
                lite.add_log(origin, vkeys[0])
                form = urlencode({"origin": origin, "vkey": vkeys[0]}).encode()
                assert urlopen(f"http://{address}/test-add-log", form, timeout=SECONDS).status == 200
            return {
                LITE: ((parse_vkey(lite.vkey),), f"127.0.0.1:{lite.port}"),
                OMNI: (tuple(parse_vkey(key["vkey"]) for key in keys), address),
            }

        with running_log(path, others=others) as running:
            for user in ("a01", "a02", "a03"):
                assert running.enrol(user).status == 202
            running.wait_published(3)
            running.wait("its map", lambda: map_note(running) is not None)
            yield running


def log_vkeys(log) -> tuple[str, ...]:
    return load_public_keys(log.settings).vkeys


def published(log) -> bytes:
    return open_tiles(log.settings, read_only=True).checkpoint()


def map_note(log) -> bytes | None:
    answer = log.get("/map/checkpoint")
    return answer.body if answer.status == 200 else None


def test_the_witnesses_of_three_implementations_cosign_both_of_its_logs(log):
    assert len(log.policy.witnesses) == 5  # litewitness has one key, the two others one of each kind
    for note in (published(log), map_note(log)):
        lines = log.policy.open_cosignatures(parse_signed_checkpoint(note)[0])
        assert {line.vkey for line in lines} == {witness.vkey for witness in log.policy.witnesses.values()}
        assert all(abs(line.timestamp - time.time()) < SECONDS for line in lines)


def test_others_verify_its_checkpoint_and_its_cosignatures(log, tessera, torchwood):
    with open_log(log.settings, read_only=True) as store:
        state = store.state()
    note = published(log).decode()
    vkeys = [str(witness.vkey) for witness in log.policy.witnesses.values()]
    log_vkey = log_vkeys(log)[0]
    read = tessera.ask("verify", note=note, origin=ORIGIN, log=log_vkey, cosigners=vkeys)
    assert (read["size"], b64decode(read["root"])) == (state.size, state.root)
    assert len([one for one in read["verified"] if "time" in one]) == 5
    ed25519 = [vkey for vkey in vkeys if parse_vkey(vkey).algorithm == 4]
    policy = f"log {log_vkey}\n" + "".join(f"witness w{n} {vkey}\n" for n, vkey in enumerate(ed25519))
    policy += "group all-three all w0 w1 w2\nquorum all-three\n"
    assert torchwood.ask("verify", note=note, policy=policy)["size"] == state.size


def test_others_find_its_own_publish_policy_met(log, tessera):
    policy = format_policy(log.policy).decode()
    answer = tessera.ask("policy", policy=policy, note=published(log).decode())
    assert answer["satisfied"] is True
    without = [line for line in published(log).decode().splitlines(keepends=True) if LITE not in line]
    assert tessera.ask("policy", policy=policy, note="".join(without))["satisfied"] is False
    with pytest.raises(PeerRefused):
        tessera.ask("policy", policy=policy.replace("quorum ", "quorum no-such-"), note="")


def test_others_read_every_tile_and_entry(log, tessera, torchwood):
    vkey = log_vkeys(log)[0]
    place = {"address": f"127.0.0.1:{log.port}", "ca": str(log.directory / "front" / "ca.pem")}
    assert tessera.ask("check", url=f"https://{ORIGIN}", origin=ORIGIN, log=vkey, **place) == {"entries": 3}
    read = torchwood.ask("read", url=f"https://{ORIGIN}", origin=ORIGIN, log=vkey, index=1, **place)
    with open_log(log.settings, read_only=True) as store:
        stored = store.entries(0, 3)
    assert tuple(map(b64decode, read["entries"])) == stored


def test_it_starts_again_beside_them_and_goes_on(log):
    """Before it signs it asks each whether it has seen more; two of the three have nothing to read that from."""
    (port,) = (one.port for one in log.processes.running() if one.name == "log")
    log.processes.stop("log")
    listener = socket.create_server(("127.0.0.1", port))
    listener.set_inheritable(True)
    log.processes.start("log", "ktlog", ["serve", "--dir", str(log.settings.directory)], listener)
    log.wait("the log to be ready", log.is_ready)
    assert log.enrol("a04").status == 202
    log.wait_published(4)
    lines = log.policy.open_cosignatures(parse_signed_checkpoint(published(log))[0])
    assert len(lines) == 5
