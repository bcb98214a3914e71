"""A mirrored log over HTTP: the source's answers, signed by us, verifiable under the policy for the source."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.resources import files
from urllib.parse import quote

import jsonschema_rs
import pytest

from ktlog.client.erasures import ErasureLog
from ktlog.client.page import parse_actor_page, parse_leaf_keys
from ktlog.client.replay import History, check_carried, check_listed, check_rows, replay
from ktlog.client.verify import check_cosigned, open_head
from ktlog.config import write_settings
from ktlog.errors import Unreachable, UsageError
from ktlog.operator import mirror as mirror_module
from ktlog.operator.create import create_log
from ktlog.operator.mirror import Mirror
from ktlog.operator.sources import PLAINTEXT_SECONDS, load_sources, load_status, save_status
from ktlog.pkd.keys import ZERO_ROOT, derive_key_id, encode_root
from ktlog.pkd.messages import AddKey, aux_data_id
from ktlog.tlog.encoding import decode_base64url
from ktlog.web.app import create_app
from tests.mirror_world import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    EVERYBODY,
    MIRROR_ORIGIN,
    SourceLog,
    make_mirror,
    mirror_settings,
)
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import public, quick_argon2  # noqa: F401

SIZE = 17
DOCUMENT = json.loads(files("ktlog.web").joinpath("openapi.json").read_text(encoding="utf-8"))


class Site:
    """A source, and another log that mirrors it and is asked here. Its clock is the real one, so *now* is too."""

    def __init__(self, directory) -> None:
        self.log = SourceLog(directory / "source").fill().publish()
        with_policy = mirror_settings(directory / "policies", self.log)
        self.settings = replace(
            create_log(directory / "log", MIRROR_ORIGIN, "spec", bytes(32)), replicas=ORIGIN,
            rate_limit_exempt="127.0.0.0/8",
        )
        with_policy.replica_directory.rename(self.settings.replica_directory)
        write_settings(self.settings)
        (self.source,) = load_sources(self.settings)
        self.mirror = Mirror(self.source, self.log, self.log.clock)
        app = create_app(self.settings)
        app.extensions["ktlog"].replicas._now = self.log.clock
        self.client = app.test_client()
        self.base = f"/api/replica/{self.source.id}"

    def ask(self, target: str):
        return self.client.get(target, headers={"Host": MIRROR_ORIGIN})

    def get(self, target: str):
        answer = self.ask(target)
        assert answer.status_code == 200, answer.data[:500]
        return json.loads(answer.data)

    def code(self, target: str) -> tuple[int, str]:
        answer = self.ask(target)
        return answer.status_code, json.loads(answer.data)["code"]

    def original(self, target: str):
        answer = self.log._client.get(target, headers={"Host": ORIGIN})
        assert answer.status_code == 200, answer.data[:500]
        return json.loads(answer.data)

    def close(self) -> None:
        self.mirror.close()
        self.log.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"))
    made.mirror.poll()
    yield made
    made.close()


@pytest.fixture
def fresh(tmp_path):
    made = Site(tmp_path)
    yield made
    made.close()


def of(actor_id: str, rest: str = "") -> str:
    return f"/actor/{quote(actor_id, safe='')}{rest}"


def key_id(leaf_index: int) -> str:
    return derive_key_id(ORIGIN, leaf_index)


MIRRORED = [
    ("ActorInfo", of(ALICE)),
    ("ActorKeys", of(ALICE, "/keys")),
    ("ActorKeys", of(CAROL, "/keys?include-proofs=true")),
    ("ActorKeys", of(ALICE, "/keys?tree-size=2")),
    ("KeyInfo", of(ALICE, f"/key/{key_id(0)}")),  # revoked
    ("KeyInfo", of(CAROL, f"/key/{key_id(2)}")),  # moved in
    ("KeyInfo", of(DAVE, f"/key/{key_id(6)}")),  # burned
    ("AuxiliaryList", of(CAROL, "/auxiliary")),
    ("Auxiliary", of(CAROL, f"/auxiliary/{aux_data_id('test', chr(98) + 'ob' + chr(39) + 's')}")),
    ("History", "/history"),
    ("HistorySince", f"/history/since/{ZERO_ROOT}"),
]


@pytest.mark.parametrize(("schema", "target"), MIRRORED)
def test_a_mirror_answers_as_its_source_does(site, schema, target):
    found, wanted = site.get(site.base + target), site.original("/api" + target)
    jsonschema_rs.validator_for(DOCUMENT | {"$ref": f"#/components/schemas/{schema}"}).validate(found)
    replica = found.pop("replica")
    for answer in (found, wanted):
        answer.pop("current-time", None)
    assert found == wanted
    assert (replica["id"], replica["ref"]) == (site.source.id, f"https://{ORIGIN}")
    head = open_head(replica["checkpoint"].encode(), site.source.log)
    assert head.size == SIZE and check_cosigned(head, site.source.policy, NOW, 3600).names


def test_every_mirrored_path_is_tested_and_described(site):
    start = "/api/replica/{replica_id}/"
    described = {path for path in DOCUMENT["paths"] if path.startswith((f"{start}actor/", f"{start}history"))}
    assert len(described) == len({schema for schema, _ in MIRRORED}) == 7
    for path in ("/extensions", "/info", "/replicas", "/revoke", f"/history/view/{ZERO_ROOT}", "/server-public-key", "/"):
        assert site.ask(site.base + path).status_code == 404, path


@pytest.mark.parametrize(
    "path", ["checkpoint", f"tile/0/000.p/{SIZE}", f"tile/entries/000.p/{SIZE}", f"records/000.p/{SIZE}", "erasures"]
)
def test_published_files_are_those_of_the_source(site, path):
    answer = site.ask(f"{site.base}/{path}")
    assert answer.status_code == 200
    assert answer.data == site.log.get(f"https://{ORIGIN}/{path}").body


def test_files_that_are_not_there_are_not_found(site):
    for path in ("tile/0/001.p/1", "tile/entries/000.p/18", "records/000.p/18", "records/000", "erasures/000.p/1",
                 "map/checkpoint", "map/tile/entries/000.p/1"):
        assert site.ask(f"{site.base}/{path}").status_code == 404, path
    assert site.ask(f"{site.base}/records/x").status_code == 400
    keys = json.loads(site.ask(f"{site.base}/leaf-keys").data)
    assert keys == json.loads(site.log.get(f"https://{ORIGIN}/leaf-keys").body)


def test_the_answer_is_signed_by_the_mirror_for_the_request_that_was_made(site):
    answer = site.ask(site.base + of(ALICE, "/keys"))
    signed = answer.headers["Signature-Input"]
    assert f'keyid="https://{MIRROR_ORIGIN}/users/pubkeydir#main-key"' in signed and '"@target-uri";req' in signed


def test_a_client_verifies_the_answer_under_its_policy_for_the_source(site):
    """All that a lookup checks, with nothing but the mirror's answer and the source's leaf keys."""
    body = site.ask(site.base + of(ALICE, "/keys?include-proofs=true")).data
    head = open_head(json.loads(body)["replica"]["checkpoint"].encode(), site.source.log)
    check_cosigned(head, site.source.policy, NOW, 3600)
    page = parse_actor_page(body, ALICE, head.size)
    leaf_keys = parse_leaf_keys(site.log.get(f"https://{ORIGIN}/leaf-keys").body)
    rows = check_rows(page, page.rows, head, leaf_keys)
    erasures = ErasureLog(ORIGIN, ())
    carried = check_carried(ORIGIN, [], leaf_keys)
    replayed = replay(ORIGIN, ALICE, {ALICE: History(rows, head.size)}, erasures, carried)
    check_listed(replayed.actor, page.keys)
    assert [key.public_key for key in replayed.actor.keys] == [public("a2")]


def test_replicas(site):
    found = site.get("/api/replicas")
    jsonschema_rs.validator_for(DOCUMENT | {"$ref": "#/components/schemas/Replicas"}).validate(found)
    (listed,) = found["replicas"]
    assert listed == {
        "id": site.source.id, "ref": f"https://{ORIGIN}", "tree-size": SIZE, "last-success": str(NOW), "error": None,
        "commitments-checked": site.mirror.status.checked, "commitments": site.mirror.status.total, "taken": 0,
    }
    assert decode_base64url(site.source.id) == hashlib.sha256(ORIGIN.encode()).digest()


def test_an_unknown_id_and_a_mirror_that_has_nothing_yet(fresh):
    assert fresh.code("/api/replica/abc/history") == (404, "not_found")
    assert fresh.code(fresh.base + "/history") == (404, "not_published")
    assert fresh.get("/api/replicas")["replicas"][0]["tree-size"] == 0
    fresh.mirror.poll()
    assert fresh.get(fresh.base + "/history")["tree-size"] == SIZE


def test_the_erased_are_nobody_here_too(fresh):
    fresh.mirror.poll()
    assert fresh.get(fresh.base + of(ALICE))["count-keys"] == 1
    fresh.log.erase(ALICE)
    fresh.log.erase(BOB)
    fresh.mirror.poll()
    for actor_id in (ALICE, BOB):
        for rest in ("", "/keys", f"/key/{key_id(0)}", "/auxiliary"):
            assert fresh.code(fresh.base + of(actor_id, rest)) == (404, "not_found")
    found = fresh.get(fresh.base + of(CAROL, "/keys?include-proofs=true"))
    assert found["history"][0]["plain"] == {"new-actor": CAROL, "old-actor": None}
    assert fresh.get(fresh.base + of(CAROL, f"/key/{key_id(2)}"))["revoked"] is None
    assert fresh.get("/api/replicas")["replicas"][0]["taken"] > 0


def test_what_names_an_actor_is_not_shown_when_the_source_was_not_heard_of(fresh):
    fresh.mirror.poll()
    fresh.log.clock.now += PLAINTEXT_SECONDS
    assert fresh.get(fresh.base + of(ALICE))["count-keys"] == 1
    fresh.log.clock.now += 1
    for actor_id in EVERYBODY:
        for rest in ("", "/keys", f"/key/{key_id(0)}", "/auxiliary", f"/auxiliary/{key_id(0)}"):
            assert fresh.code(fresh.base + of(actor_id, rest)) == (503, "replica_stale")
    assert len(fresh.get(fresh.base + f"/history/since/{ZERO_ROOT}")["records"]) == SIZE, "all of it ciphertext"
    assert fresh.code(fresh.base + f"/records/000.p/{SIZE}") == (503, "replica_stale")
    assert fresh.ask(fresh.base + f"/tile/entries/000.p/{SIZE}").status_code == 200
    fresh.log.publish()
    fresh.mirror.poll()
    assert fresh.get(fresh.base + of(ALICE))["count-keys"] == 1


@pytest.mark.parametrize("doubt", [{"erasing": True}, {"stopped": True}, {"error": "RecordWithheld"}])
def test_what_names_an_actor_is_not_shown_in_doubt(site, doubt):
    before = load_status(site.source)
    try:
        save_status(site.source, replace(before, **doubt))
        assert site.code(site.base + of(ALICE)) == (503, "replica_stale")
        assert site.get(site.base + "/history")["tree-size"] == SIZE
        save_status(site.source, replace(before, error="Timeout"))
        assert site.get(site.base + of(ALICE))["count-keys"] == 1
    finally:
        save_status(site.source, before)


def test_what_is_not_verified_to_the_end_is_not_shown(fresh, monkeypatch):
    """Pages are stored as they hold; until the whole tree does, the older checkpoint is the newest."""
    fresh.mirror.poll()
    fresh.log.desk.send(AddKey(BOB, public("b2"), NOW + 50), "b2")
    fresh.log.publish()

    def dies(_self, _head) -> None:
        raise Unreachable("Timeout", "it died here")

    with monkeypatch.context() as patch:
        patch.setattr(mirror_module.Mirror, "_show", dies)
        with pytest.raises(Unreachable):
            fresh.mirror.poll()
    newer = encode_root(fresh.log.store.root_after(SIZE + 1))
    assert fresh.get(fresh.base + "/history")["tree-size"] == SIZE
    assert fresh.code(fresh.base + f"/history/since/{newer}") == (404, "unknown_root")
    assert len(fresh.get(fresh.base + f"/history/since/{ZERO_ROOT}")["records"]) == SIZE
    assert fresh.get(fresh.base + of(BOB, "/keys"))["public-keys"] == []
    assert fresh.code(fresh.base + of(BOB, f"/keys?tree-size={SIZE + 1}")) == (404, "not_published")
    fresh.mirror.poll()
    assert [key["leaf-index"] for key in fresh.get(fresh.base + of(BOB, "/keys"))["public-keys"]] == [SIZE]


# --- which logs


def test_no_log_is_mirrored_without_a_policy_that_is_safe(tmp_path):
    log = SourceLog(tmp_path / "source")
    settings = mirror_settings(tmp_path / "mirror", log)
    path = settings.replica_directory / f"{ORIGIN}.policy"
    text = path.read_text()
    assert [source.log.origin for source in load_sources(settings)] == [ORIGIN]

    def name_of(**changes: str) -> str:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - its class is not the point
            load_sources(replace(settings, **changes))
        return caught.value.name

    assert name_of(replicas=MIRROR_ORIGIN) == "BadReplica"
    assert name_of(replicas="KEYS.example.com") == "BadOrigin"
    assert name_of(replicas="keys.other.example") == "NoReplicaPolicy"
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("log ")) + "\n")
    assert name_of() == "BadReplicaPolicy"
    path.write_text("\n".join(line for line in text.splitlines() if line.startswith("log ")) + "\nquorum none\n")
    assert name_of() == "UnsafePolicy"
    path.write_text("nonsense\n")
    assert name_of() == "BadReplicaPolicy"
    assert load_sources(replace(settings, replicas="")) == ()
    log.close()


@pytest.mark.parametrize("text", ["[]", "{}", "nonsense", '{"tree_size":true}'])
def test_a_damaged_status_shows_nobody(fresh, text):
    fresh.mirror.poll()
    good = fresh.source.status.read_text()
    fresh.source.status.write_text(text)
    assert fresh.code(fresh.base + of(ALICE)) == (503, "unavailable")
    fresh.source.status.write_text(good.replace(f'"last_success": {NOW}', '"last_success": "1"'))
    assert fresh.code(fresh.base + of(ALICE)) == (503, "unavailable")


def test_an_unsafe_name_leads_nowhere(tmp_path):
    log = SourceLog(tmp_path / "source")
    make_mirror(tmp_path / "mirror", log).close()
    for origin in ("../x", "a/b", "127.0.0.1", "keys.example.com:443"):
        with pytest.raises(UsageError):
            load_sources(replace(mirror_settings(tmp_path / quote(origin, safe=""), log), replicas=origin))
    log.close()
