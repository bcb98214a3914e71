"""Every reading endpoint, over the application itself: its shape, its proofs, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from urllib.parse import quote

import pytest

from ktlog.operator.reader import HISTORY_PAGE_ROWS
from ktlog.operator.shred import plan_for
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.entry import LogEntry, encode_entry, leaf_key_hash
from ktlog.pkd.keys import ZERO_ROOT, decode_public_key, decode_root, encode_public_key, encode_root, verify_mldsa44
from ktlog.pkd.messages import AddKey
from ktlog.store.contracts import Cosignature
from ktlog.tlog.encoding import decode_base64url
from ktlog.tlog.tree import EMPTY_ROOT, hash_leaf, verify_inclusion
from ktlog.web import history as history_module
from ktlog.web.app import create_app
from ktlog.wire.fetch import Fetcher
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import (
    ALICE,
    BOB,
    CAROL,
    public,
    quick_argon2,  # noqa: F401
    revoke_by_token,
)
from tests.reading_log import AGE, AGE_ID, DAVE, OTHER_ID, ReadingLog, fill, key_id, reading_log

NOBODY = "https://example.com/users/nobody"
SIZE = 11


class Api:
    """The application, asked as a client would."""

    def __init__(self, log: ReadingLog) -> None:
        self.log = log
        self.client = create_app(log.settings).test_client()

    def get(self, target: str, status: int = 200):
        answer = self.client.get(target, headers={"Host": ORIGIN})
        assert answer.status_code == status, answer.data[:500]
        return json.loads(answer.data)

    def refusal(self, target: str) -> tuple[int, str, str]:
        answer = self.client.get(target, headers={"Host": ORIGIN})
        body = json.loads(answer.data)
        assert body["!pkd-context"] == "fedi-e2ee:v1/api/error"
        return answer.status_code, body["error"], body["code"]

    def actor(self, actor_id: str, rest: str = "", status: int = 200):
        return self.get(f"/api/actor/{quote(actor_id, safe='')}{rest}", status)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with reading_log(tmp_path_factory.mktemp("reading") / "log") as log:
        fill(log.desk)
        log.publish()
        yield Api(log)


@pytest.mark.parametrize("target", [
    "/api/info", "/api/history", f"/api/actor/{quote(ALICE, safe='')}/keys", f"/api/actor/{quote(NOBODY, safe='')}/keys",
    f"/map/bundle/{quote(ALICE, safe='')}", "/checkpoint", "/tile/0/000", "/records/000", "/nodeinfo/2.1",
    "/.well-known/nodeinfo", "/nothing", "/", "/verify.html",
])
def test_a_page_of_any_site_may_read_what_the_log_says_and_its_signatures(api, target):
    answer = api.client.get(target, headers={"Host": ORIGIN, "Origin": "https://app.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert {"Signature", "Signature-Input"} <= set(answer.headers["Access-Control-Expose-Headers"].split(", "))
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("target", ["/users/pubkeydir/inbox", "/api/revoke", "/checkpoints"])
def test_what_a_page_of_another_site_sends_is_not_answered_to_it(api, target):
    for method in ("post", "options"):
        answer = getattr(api.client, method)(target, headers={"Host": ORIGIN, "Origin": "https://app.example"})
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


@pytest.fixture
def fresh(tmp_path):
    with reading_log(tmp_path / "log") as log:
        yield Api(log)


def check_proof(api: Api, leaf_index: int, tree_size: int, proof: list[str], root: str) -> None:
    """The entry is in the tree of that size, whose root the log really had."""
    store = api.log.desk.store
    assert decode_root(root) == store.root_after(tree_size)
    leaf = store.leaf_hashes(leaf_index, leaf_index + 1)[0]
    verify_inclusion(leaf, leaf_index, tree_size, [decode_base64url(node, 32) for node in proof], decode_root(root))


# --- actors


def test_actor(api):
    assert api.actor(ALICE) == {
        "!pkd-context": "fedi-e2ee:v1/api/actor/info", "actor-id": ALICE, "count-aux": 1, "count-keys": 1,
        "tree-size": SIZE,
    }
    for name in (BOB, CAROL, DAVE):
        assert api.actor(name)["count-keys"] == 0


def test_keys(api):
    found = api.actor(ALICE, "/keys")
    assert set(found) == {"!pkd-context", "actor-id", "tree-size", "merkle-root", "public-keys"}
    (listed,) = found["public-keys"]
    assert set(listed) == {
        "created", "key-id", "leaf-index", "tree-size", "inclusion-proof", "merkle-root", "public-key",
    }
    assert (listed["key-id"], listed["created"]) == (key_id(2), str(NOW + 2))
    assert listed["public-key"] == encode_public_key(public("c"))
    check_proof(api, 2, listed["tree-size"], listed["inclusion-proof"], listed["merkle-root"])
    assert api.actor(CAROL, "/keys")["public-keys"] == []


def test_a_read_asks_nobody_else(api, monkeypatch):
    """An instance that is gone takes no answer about its actors along."""
    asked: list[object] = []
    for name in ("get", "post"):
        monkeypatch.setattr(Fetcher, name, lambda *asking, **_: asked.append(asking))
    for tail in ("", "/keys", "/keys?include-proofs=true", "/auxiliary"):
        assert api.actor(ALICE, tail)["actor-id"] == ALICE
    assert asked == []


def test_keys_with_what_a_replayer_needs(api):
    found = api.actor(ALICE, "/keys?include-proofs=true")
    assert [row["leaf-index"] for row in found["history"]] == [0, 2, 3, 4, 5, 6]
    for row in found["history"]:
        check_proof(api, row["leaf-index"], SIZE, row["inclusion-proof"], found["merkle-root"])
    assert "history" not in api.actor(ALICE, "/keys?include-proofs=false")


def test_a_history_is_read_page_by_page(api, monkeypatch):
    whole = api.actor(ALICE, "/keys?tree-size=7&include-proofs=true")
    assert (len(whole["history"]), whole["history-next"]) == (6, None)
    monkeypatch.setattr("ktlog.operator.reader.HISTORY_PAGE_ROWS", 4)
    page = api.actor(ALICE, "/keys?include-proofs=true&tree-size=7")
    assert page == whole | {"history": whole["history"][:4], "history-next": 4}
    later = api.actor(ALICE, "/keys?include-proofs=true&tree-size=7&history-after=4")
    # The keys were on the first page.
    assert later == {name: whole[name] for name in ("!pkd-context", "actor-id", "tree-size", "merkle-root")} | {
        "history": whole["history"][4:], "history-next": None,
    }
    assert api.actor(ALICE, f"/keys?include-proofs=true&history-after={2**63 - 1}")["history"] == []
    # Whoever asks for no history gets the keys, and whoever is not known is not.
    assert api.actor(ALICE, "/keys?tree-size=7&history-after=4") == api.actor(ALICE, "/keys?tree-size=7")
    api.actor(NOBODY, "/keys?include-proofs=true&history-after=4", 404)
    api.actor(DAVE, "/keys?include-proofs=true&history-after=4&tree-size=9", 404)


def test_a_page_of_a_history_has_at_most_a_hundred_rows():
    assert HISTORY_PAGE_ROWS == 100


def test_an_older_tree(api):
    found = api.actor(ALICE, "/keys?tree-size=5")
    assert [key["leaf-index"] for key in found["public-keys"]] == [0, 2]
    for key in found["public-keys"]:
        check_proof(api, key["leaf-index"], 5, key["inclusion-proof"], key["merkle-root"])
    assert api.actor(ALICE, "?tree-size=5")["count-aux"] == 2
    assert api.actor(ALICE, "/auxiliary?tree-size=4")["auxiliary"][0]["aux-id"] == AGE_ID


def test_an_active_key(api):
    found = api.actor(ALICE, f"/key/{key_id(2)}")
    check_proof(api, 2, found.pop("tree-size"), found.pop("inclusion-proof"), found.pop("merkle-root"))
    assert found == {
        "!pkd-context": "fedi-e2ee:v1/api/actor/key-info", "actor-id": ALICE, "created": str(NOW + 2),
        "key-id": key_id(2), "leaf-index": 2, "public-key": encode_public_key(public("c")), "revoked": None,
        "revoke-root": None, "revoke-action": None, "revoke-leaf-index": None, "revoke-inclusion-proof": None,
    }


@pytest.mark.parametrize(("actor", "leaf_index", "end", "action", "when"), [
    (ALICE, 0, 5, "RevokeKey", NOW + 5),
    (BOB, 1, 7, "MoveIdentity", NOW + 7),
    (CAROL, 1, 8, "RevokeKeyThirdParty", NOW + 7),  # a token has no time: the greatest before it
    (DAVE, 9, 10, "BurnDown", NOW + 9),
])
def test_a_key_that_was_taken_away(api, actor, leaf_index, end, action, when):
    found = api.actor(actor, f"/key/{key_id(leaf_index)}")
    check_proof(api, leaf_index, SIZE, found["inclusion-proof"], found["merkle-root"])
    check_proof(api, end, SIZE, found["revoke-inclusion-proof"], found["merkle-root"])
    assert (found["revoke-leaf-index"], found["revoke-action"], found["revoked"]) == (end, action, str(when))
    # revoke-root leads to the message that did it.
    seen = api.get(f"/api/history/view/{found['revoke-root']}")
    assert (seen["leaf-index"], parse_json(seen["encrypted-message"])["action"]) == (end, action)


def test_auxiliary_data(api):
    assert api.actor(ALICE, "/auxiliary") == {
        "!pkd-context": "fedi-e2ee:v1/api/actor/aux-info", "actor-id": ALICE, "tree-size": SIZE,
        "auxiliary": [{"aux-id": AGE_ID, "aux-type": "age-v1", "created": str(NOW + 3), "leaf-index": 3}],
    }
    found = api.actor(ALICE, f"/auxiliary/{AGE_ID}")
    check_proof(api, 3, found["tree-size"], found["inclusion-proof"], found["merkle-root"])
    assert (found["!pkd-context"], found["aux-data"]) == ("fedi-e2ee:v1/api/actor/get-aux", AGE)
    assert (found["revoked"], found["revoke-root"]) == (None, None)
    gone = api.actor(ALICE, f"/auxiliary/{OTHER_ID}")
    assert (gone["aux-data"], gone["revoked"], gone["revoke-leaf-index"]) == ("other", str(NOW + 6), 6)
    check_proof(api, 6, SIZE, gone["revoke-inclusion-proof"], gone["merkle-root"])


@pytest.mark.parametrize("rest", ["", "/keys", "/keys?include-proofs=true", "/auxiliary", f"/key/{'A' * 43}",
                                  f"/auxiliary/{'A' * 43}"])
def test_who_is_not_here(api, rest):
    """One answer for all of them, whatever is asked and why there is nothing."""
    found = api.actor(NOBODY, rest, 404)
    assert (found["error"], found["code"]) == ("not_found", "not_found")
    known = f"/api/actor/{quote(ALICE, safe='')}{rest}"
    if "A" * 43 in rest:
        assert api.get(known, 404) == found
    assert api.actor(DAVE, f"{rest}{'&' if '?' in rest else '?'}tree-size=9", 404) == found  # came with entry 9


@pytest.mark.parametrize("target", [
    "/api/actor/alice", "/api/actor/http%3A%2F%2Fexample.com%2Fa", "/api/actor/%C3%A9", "/api/actor/%ff",
    f"/api/actor/{quote(quote(ALICE, safe=''), safe='')}", "/api/actor/https%3A%2F%2FEXAMPLE.com%2Fa",
    f"/api/actor/{quote(ALICE, safe='')}/key/short", f"/api/actor/{quote(ALICE, safe='')}/key/{'A' * 42}B",
    f"/api/actor/{quote(ALICE, safe='')}/auxiliary/{'A' * 43}%3D",
    f"/api/actor/{quote(ALICE, safe='')}/keys?tree-size=+5", f"/api/actor/{quote(ALICE, safe='')}/keys?tree-size=1_0",
    f"/api/actor/{quote(ALICE, safe='')}?tree-size=05", f"/api/actor/{quote(ALICE, safe='')}?tree-size=5&tree-size=6",
    f"/api/actor/{quote(ALICE, safe='')}/keys?include-proofs=yes",
    f"/api/actor/{quote(ALICE, safe='')}/keys?include-proofs=true&history-after=-1",
    f"/api/actor/{quote(ALICE, safe='')}/keys?include-proofs=true&history-after=01",
    f"/api/actor/{quote(ALICE, safe='')}/keys?include-proofs=true&history-after={2**64}",
    f"/api/actor/{quote(ALICE, safe='')}/keys?include-proofs=true&history-after=1&history-after=2",
])
def test_what_is_malformed(api, target):
    assert api.refusal(target) == (400, "invalid_request", "bad_request")


def test_slashes_that_are_not_escaped_are_another_address(api):
    assert api.refusal(f"/api/actor/{ALICE}")[0] == 404


@pytest.mark.parametrize("size", ["0", str(SIZE + 1)])
@pytest.mark.parametrize("rest", ["", "/keys", "/auxiliary", f"/key/{'A' * 43}", f"/auxiliary/{'A' * 43}"])
def test_a_tree_that_is_not_published(api, rest, size):
    target = f"/api/actor/{quote(ALICE, safe='')}{rest}?tree-size={size}"
    assert api.refusal(target) == (404, "not_found", "not_published")


def test_before_anything_is_published(fresh):
    fresh.log.desk.send(AddKey(ALICE, public("a"), NOW))
    for rest in ("", "/keys", "/auxiliary", f"/key/{key_id(0)}"):
        assert fresh.refusal(f"/api/actor/{quote(ALICE, safe='')}{rest}") == (404, "not_found", "not_published")


def test_what_is_pending_changes_no_answer_about_an_actor(fresh):
    fresh.log.desk.send(AddKey(ALICE, public("a"), NOW))
    fresh.log.publish()
    fresh.log.desk.send(AddKey(ALICE, public("b"), NOW + 1))
    assert fresh.actor(ALICE)["count-keys"] == 1
    assert len(fresh.actor(ALICE, "/keys")["public-keys"]) == 1
    fresh.actor(ALICE, f"/key/{key_id(1)}", 404)
    rows = fresh.actor(ALICE, "/keys?include-proofs=true")["history"]
    assert [row["inclusion-proof"] is None for row in rows] == [False, True]
    fresh.log.publish()
    assert fresh.actor(ALICE)["count-keys"] == 2


def test_answers_may_not_be_kept(api):
    answer = api.client.get(f"/api/actor/{quote(ALICE, safe='')}/keys", headers={"Host": ORIGIN})
    assert answer.headers["Cache-Control"] == "no-store"


# --- history


def test_the_newest_root(api, fresh):
    found = api.get("/api/history")
    assert (found["tree-size"], found["created"]) == (SIZE, str(NOW + 9))
    assert decode_root(found["merkle-root"]) == api.log.desk.store.root_after(SIZE)
    empty = fresh.get("/api/history")
    assert (empty["tree-size"], empty["created"], empty["merkle-root"]) == (0, "0", ZERO_ROOT)


def test_since_lists_what_came_after_in_order(api):
    rows = api.get(f"/api/history/since/{encode_root(api.log.desk.store.root_after(1))}")["records"]
    assert [row["leaf-index"] for row in rows] == list(range(1, SIZE))
    everything = api.get(f"/api/history/since/{ZERO_ROOT}")
    assert everything["records"][1:] == rows
    assert everything["tree-size"] == SIZE
    assert api.get(f"/api/history/since/{rows[-1]['merkle-root']}")["records"] == []


def test_since_gives_enough_to_make_the_tree_again(api):
    hashes = []
    for row in api.get(f"/api/history/since/{ZERO_ROOT}")["records"]:
        preimage = row["encrypted-message"].encode()
        key_hash, signature = decode_base64url(row["dir-publickeyhash"]), decode_base64url(row["dir-signature"])
        entry = encode_entry(SPEC, LogEntry(hashlib.sha256(preimage).digest(), signature, key_hash))
        hashes.append(hash_leaf(entry))
        assert decode_root(row["merkle-root"]) == api.log.desk.store.root_after(row["leaf-index"] + 1)
        assert parse_json(preimage)["action"]
    assert tuple(hashes) == api.log.desk.store.leaf_hashes(0, SIZE)


def test_since_goes_page_by_page(api, monkeypatch):
    monkeypatch.setattr(history_module, "PAGINATION_LIMIT", 4)
    root, seen = ZERO_ROOT, []
    while records := api.get(f"/api/history/since/{root}")["records"]:
        assert len(records) <= 4
        seen += [row["leaf-index"] for row in records]
        root = records[-1]["merkle-root"]
    assert seen == list(range(SIZE))


def test_a_page_has_a_hundred_entries():
    assert history_module.PAGINATION_LIMIT == 100


@pytest.mark.parametrize("endpoint", ["since", "view"])
@pytest.mark.parametrize(("root", "expected"), [
    (encode_root(bytes(31) + b"\x01"), (404, "not_found", "unknown_root")),
    (encode_root(EMPTY_ROOT), (404, "not_found", "unknown_root")),  # C2SP's empty root is none of PKD's
    ("pkd-mr-v1:" + "A" * 42, (400, "invalid_request", "bad_request")),
    ("pkd-mr-v1:" + "A" * 42 + "B", (400, "invalid_request", "bad_request")),
    ("A" * 43, (400, "invalid_request", "bad_request")),
    ("pkd-mr-v1%253A" + "A" * 43, (400, "invalid_request", "bad_request")),
    ("%ff", (400, "invalid_request", "bad_request")),
])
def test_a_root_that_the_log_never_had(api, endpoint, root, expected):
    """An empty page would look as if nothing were missing."""
    assert api.refusal(f"/api/history/{endpoint}/{root}") == expected


def test_the_zero_root_has_no_entry_to_view(api):
    assert api.refusal(f"/api/history/view/{ZERO_ROOT}") == (404, "not_found", "unknown_root")


def test_the_colon_of_a_root_may_be_escaped(api):
    root = encode_root(api.log.desk.store.root_after(3))
    for endpoint in ("view", "since"):
        raw, escaped = (api.get(f"/api/history/{endpoint}/{text}") for text in (root, quote(root, safe="")))
        assert raw | {"current-time": ""} == escaped | {"current-time": ""}


def test_view_shows_the_entry_of_a_root(api):
    store = api.log.desk.store
    for leaf_index in range(SIZE):
        found = api.get(f"/api/history/view/{encode_root(store.root_after(leaf_index + 1))}")
        assert (found["leaf-index"], found["tree-size"]) == (leaf_index, leaf_index + 1)
        check_proof(api, leaf_index, leaf_index + 1, found["inclusion-proof"], found["merkle-root"])
        assert decode_base64url(found["merkle-leaf"]) == store.entries(leaf_index, leaf_index + 1)[0]
        assert found["rewrapped-keys"] is None
        # The directory signed the hash of what it published, with a key that it names.
        (leaf_key,) = (decode_public_key(key) for key in api.get("/leaf-keys")["leaf-keys"])
        message_hash = hashlib.sha256(found["encrypted-message"].encode()).digest()
        if leaf_key_hash(leaf_key) == decode_base64url(found["dir-publickeyhash"]):
            verify_mldsa44(leaf_key, decode_base64url(found["dir-signature"]), message_hash)
        else:  # the sequencer of these tests has a key of its own
            verify_mldsa44(public("leaf"), decode_base64url(found["dir-signature"]), message_hash)


def test_view_decrypts_the_message(api):
    store = api.log.desk.store
    found = api.get(f"/api/history/view/{encode_root(store.root_after(4))}")
    sealed, shown = parse_json(found["encrypted-message"]), found["message"]
    assert shown["message"] == {"actor": ALICE, "aux-type": "age-v1", "aux-data": AGE, "time": str(NOW + 3)}
    assert {name: value for name, value in shown.items() if name != "message"} == {
        name: value for name, value in sealed.items() if name != "message"
    }
    token = api.get(f"/api/history/view/{encode_root(store.root_after(9))}")["message"]
    assert set(token) == {"action", "revocation-token"}
    assert token["action"] == revoke_by_token("b").action


def test_view_reaches_beyond_what_is_published(fresh):
    fresh.log.desk.send(AddKey(ALICE, public("a"), NOW))
    fresh.log.publish()
    fresh.log.desk.send(AddKey(BOB, public("b"), NOW), "b")
    root = fresh.get("/api/history")["merkle-root"]
    found = fresh.get(f"/api/history/view/{root}")
    assert found["leaf-index"] == 1
    check_proof(fresh, 1, 2, found["inclusion-proof"], root)


def test_view_lists_cosignatures(fresh):
    fresh.log.desk.send(AddKey(ALICE, public("a"), NOW))
    store = fresh.log.desk.store
    root = encode_root(store.root_after(1))
    assert fresh.get(f"/api/history/view/{root}")["cosignatures"] == []
    store.add_cosignature(Cosignature(1, root, "https://w.example", '{"a":"b"}', NOW))
    assert fresh.get(f"/api/history/view/{root}")["cosignatures"] == [
        {"witness": "https://w.example", "cosigned": '{"a":"b"}', "time": str(NOW)},
    ]


def test_a_message_of_which_something_was_erased_is_null(api):
    record = api.log.desk.store.records(3, 4)[0]
    assert history_module.decrypted(record)["message"]["aux-data"] == AGE
    assert history_module.decrypted(replace(record, plain=dict(record.plain) | {"actor": None})) is None
    assert history_module.decrypted(replace(record, withheld=True)) is None


def test_an_erased_actor_is_not_told_from_one_who_never_was(fresh):
    fill(fresh.log.desk)
    fresh.log.publish()
    store = fresh.log.desk.store
    store.erase(plan_for(store, store.actor(ALICE)), store.state())
    for rest in ("", "/keys", "/keys?include-proofs=true", "/keys?tree-size=5", "/auxiliary", f"/key/{key_id(0)}",
                 f"/key/{key_id(2)}", f"/auxiliary/{AGE_ID}"):
        assert fresh.actor(ALICE, rest, 404) == fresh.actor(NOBODY, rest, 404)
    # What she signed as an operator still took Dave's key.
    assert fresh.actor(DAVE, f"/key/{key_id(9)}")["revoke-action"] == "BurnDown"
    seen = fresh.get(f"/api/history/view/{encode_root(store.root_after(1))}")
    assert seen["message"] is None
    assert ALICE not in json.dumps([seen, fresh.get(f"/api/history/since/{ZERO_ROOT}")])
    check_proof(fresh, 0, 1, seen["inclusion-proof"], seen["merkle-root"])


# --- what the directory says about itself


def test_extensions(api):
    (found,) = api.get("/api/extensions")["extensions"]
    assert found["id"] == "age-v1"
    assert found["version"] and found["ref"].startswith("https://")


def test_replicas(api):
    assert api.get("/api/replicas")["replicas"] == []
    assert api.refusal("/api/replica/abc/history") == (404, "not_found", "not_found")
    assert api.refusal(f"/api/replica/abc/actor/{quote(ALICE, safe='')}/keys")[0] == 404


def test_info(api):
    found = api.get("/api/info")
    assert found["actor"] == f"pubkeydir@{ORIGIN}"
    assert found["burndown-enabled"] is False
    assert len(decode_public_key(found["public-key"])) == 1312
    assert found["non-conformant"] == []


def test_server_public_key(api):
    assert len(decode_base64url(api.get("/api/server-public-key")["hpke-public-key"], 1216)) == 1216
