"""The same requests to three witnesses: ours, litewitness and omniwitness. Where they differ, the table says so."""

from __future__ import annotations

import http.client
from urllib.parse import urlencode

import pytest

from ktlog.tlog.note import ED25519, Note, open_note, parse_signature_lines, parse_vkey
from tests.interop_peers import SECONDS, litewitness
from tests.machine import need
from tests.witness_log import Log, join

HASH = b"\x2a" * 32
EXTENDED = "extension lines"
NAMES = ("ours", "litewitness", "omniwitness")


class Asked:
    """A witness: where it is, its keys, and how it is told of a log."""

    def __init__(self, port: int, vkeys, follow) -> None:
        self.port, self.vkeys, self.follow = port, tuple(vkeys), follow

    def post(self, path: str, body: bytes, content_type: str = "text/plain") -> tuple[int, str | None, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request("POST", path, body, {"Content-Type": content_type})
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def witnesses(built, tessera, our_witness, tmp_path_factory):
    need("ssh-agent")
    keys = [tessera.ask("key", name="omni.example", type=algorithm) for algorithm in (4, 6)]
    omni = int(tessera.ask("omniwitness", keys=[key["skey"] for key in keys])["address"].rpartition(":")[2])

    def tell_omniwitness(log: Log) -> None:
        form = urlencode({"origin": log.origin, "vkey": str(log.vkeys[0])}).encode()
        assert asked["omniwitness"].post("/test-add-log", form, "application/x-www-form-urlencoded")[0] == 200

    with litewitness(built, tmp_path_factory.mktemp("side") / "lite", "lite.example") as lite:
        asked = {
            "ours": Asked(our_witness.port, our_witness.vkeys, lambda log: our_witness.add_log(str(log.vkeys[0]))),
            "litewitness": Asked(
                lite.port, [parse_vkey(lite.vkey)], lambda log: lite.add_log(log.origin, str(log.vkeys[0]))
            ),
            "omniwitness": Asked(omni, [parse_vkey(key["vkey"]) for key in keys], tell_omniwitness),
        }
        yield asked


LOG, FORKING = (Log(f"example.com/{name}", algorithms=(ED25519,)) for name in ("same", "forking"))
STEPS: list[tuple[str, bytes, int | tuple[int, int, int]]] = [
    ("an empty tree with another root", LOG.submission(0, 0, root=HASH), (422, 200, 422)),
    ("an old size before there is any", LOG.submission(1, 3), (409, 409, 200)),
    ("the first", LOG.submission(0, 3), (200, 200, 409)),
    ("an old size above the checkpoint's", join(5, [], LOG.note(3)), 400),
    ("an old size that is not the record's", LOG.submission(0, 5), 409),
    ("no proof", LOG.submission(3, 5, proof=[]), 422),
    ("a wrong proof", LOG.submission(3, 5, proof=[HASH] * 2), 422),
    ("a proof for the same size", LOG.submission(3, 3, proof=[HASH]), 422),
    ("growth", LOG.submission(3, 5), 200),
    ("the same again", LOG.submission(5, 5), 200),
    ("a smaller tree", LOG.submission(3, 3), 409),
    ("64 hashes", LOG.submission(5, 9, proof=[HASH] * 64), (400, 400, 422)),
    ("an old size with a zero before it", join("05", [], LOG.note(5)), (400, 200, 200)),
    ("no old size", LOG.submission(5, 9).replace(b"old 5\n", b""), 400),
    ("nothing", b"", 400),
    ("a signature that does not verify", LOG.submission(5, 9).replace(b"\n9\n", b"\n8\n"), (403, 403, 500)),
    ("a log that nobody knows", Log("example.com/nobody").submission(0, 1), 404),
    ("a key that nobody trusts", Log(LOG.origin, seed=9).submission(5, 9), (403, 403, 500)),
    (EXTENDED, LOG.submission(5, 9, extensions=("more",)), (400, 200, 200)),
    ("a log that will fork", FORKING.submission(0, 3), 200),
    ("the same size, another root", FORKING.submission(3, 3, root=HASH), 422),
    ("what it had before", FORKING.submission(3, 5), (403, 200, 200)),
]


def test_what_each_answers(witnesses):
    for asked in witnesses.values():
        asked.follow(LOG)
        asked.follow(FORKING)
    seen, expected = {}, {}
    for what, body, statuses in STEPS:
        wanted = statuses if isinstance(statuses, tuple) else (statuses,) * 3
        expected[what] = dict(zip(NAMES, wanted, strict=True))
        answers = {name: witnesses[name].post("/add-checkpoint", body) for name in NAMES}
        seen[what] = {name: answer[0] for name, answer in answers.items()}
        for name, (status, content_type, answered) in answers.items():
            if status == 409:
                assert content_type == "text/x.tlog.size", (what, name)
                assert answered.endswith(b"\n") and answered[:-1].isdigit(), (what, name)
            if status == 200:
                note = Note(body.partition(b"\n\n")[2].rpartition(b"\n\n")[0] + b"\n", parse_signature_lines(answered))
                # A cosignature of type 06 covers no extension lines.
                vkeys = [vkey for vkey in witnesses[name].vkeys if what != EXTENDED or vkey.algorithm == 4]
                assert {one.vkey for one in open_note(note, vkeys)} == set(vkeys), (what, name)
    print(*(f"| {what} | {' | '.join(map(str, by_name.values()))} |" for what, by_name in seen.items()), sep="\n")
    assert seen == expected
