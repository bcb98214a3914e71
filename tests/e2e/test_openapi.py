"""The OpenAPI document and the running application say the same.

schemathesis makes requests from the document, good ones and bad ones, and holds every answer against it:
a status, a header, a member or a type that the document does not promise is a failure. Nothing here can be
accepted (no request carries a signature that verifies), and no answer may be a server's error.
"""

from __future__ import annotations

import copy
import json
import re
from importlib.resources import files
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error, positive_data_acceptance
from schemathesis.core.failures import FailureGroup

from ktlog.bench.reads import web_worker
from ktlog.config import write_settings
from ktlog.errors import EncodingError
from ktlog.pkd.keys import ZERO_ROOT, encode_root
from ktlog.tlog.encoding import encode_base64url
from ktlog.web.app import create_app
from ktlog.wire.actor_id import parse_actor_id
from tests.operator_world import ORIGIN
from tests.pkd_samples import ALICE, quick_argon2  # noqa: F401
from tests.reading_log import AGE_ID, OTHER_ID, fill, key_id, reading_log

DOCUMENT = json.loads(files("ktlog.web").joinpath("openapi.json").read_text(encoding="utf-8"))
EXAMPLES = 6
"""For each operation and test; more find nothing new."""

LONGEST_TARGET = 8_000

schema = schemathesis.openapi.from_dict(DOCUMENT)
schema.config.generation.update(max_examples=EXAMPLES, deterministic=True, database="none")
schema.config.phases.coverage.enabled = False


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    with reading_log(tmp_path_factory.mktemp("openapi") / "log") as log:
        write_settings(log.settings)
        fill(log.desk)
        log.publish()
        log.publish_map()
        yield log


@pytest.fixture(scope="module")
def base_url(log):
    """Where the web worker of the log listens: a process of its own, as in production, without a sequencer."""
    with web_worker(log.settings) as connection:
        yield f"http://{connection.host}:{connection.port}"


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_in_the_document(case, base_url):
    if len(case.formatted_path) > LONGEST_TARGET:
        return  # the HTTP server refuses it, before the application sees anything
    excluded = []
    if case.method == "POST":
        excluded.append(positive_data_acceptance)  # no schema says what decrypts, or is signed
    if case.path == "/readyz":
        excluded.append(not_a_server_error)  # there is no sequencer
    case.call_and_validate(base_url=base_url, headers={"Host": ORIGIN}, excluded_checks=excluded)


def known_values(log) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """(path template, its parameters, query) of requests that have an answer."""
    root = encode_root(log.desk.store.root_after(4))
    actor, size = {"actor_id": ALICE}, log.desk.size
    return [
        ("/api/actor/{actor_id}", actor, {}),
        ("/api/actor/{actor_id}", actor, {"tree-size": "3"}),
        ("/api/actor/{actor_id}/keys", actor, {}),
        ("/api/actor/{actor_id}/keys", actor, {"include-proofs": "true", "tree-size": "4"}),
        ("/api/actor/{actor_id}/keys", actor, {"include-proofs": "true", "tree-size": "4", "history-after": "2"}),
        ("/api/actor/{actor_id}/key/{key_id}", actor | {"key_id": key_id(0)}, {}),
        ("/api/actor/{actor_id}/key/{key_id}", actor | {"key_id": key_id(2)}, {}),
        ("/api/actor/{actor_id}/auxiliary", actor, {}),
        ("/api/actor/{actor_id}/auxiliary/{aux_data_id}", actor | {"aux_data_id": AGE_ID}, {}),
        ("/api/actor/{actor_id}/auxiliary/{aux_data_id}", actor | {"aux_data_id": OTHER_ID}, {}),
        ("/api/history/since/{last_hash}", {"last_hash": ZERO_ROOT}, {}),
        ("/api/history/since/{last_hash}", {"last_hash": root}, {}),
        ("/api/history/view/{hash}", {"hash": root}, {}),
        ("/tile/{level}/{number}.p/{width}", {"level": "0", "number": "000", "width": str(size)}, {}),
        ("/tile/entries/{number}.p/{width}", {"number": "000", "width": str(size)}, {}),
        ("/records/{number}.p/{width}", {"number": "000", "width": str(size)}, {}),
        ("/map/checkpoint/{size}", {"size": "2"}, {}),
        ("/map/tile/{level}/{number}.p/{width}", {"level": "0", "number": "000", "width": "2"}, {}),
        ("/map/tile/entries/{number}.p/{width}", {"number": "000", "width": "2"}, {}),
        ("/map/updates/{number}", {"number": "001"}, {}),
        ("/map/bundle/{actor_id}", actor, {}),
        ("/map/bundle/{actor_id}", actor, {"aux": "true", "full": "true", "checkpoint": "true"}),
        ("/map/bundle/{actor_id}", {"actor_id": f"{ALICE}-whom-nobody-knows"}, {"full": "false"}),
        ("/.well-known/webfinger", {}, {"resource": f"acct:pubkeydir@{ORIGIN}"}),
    ]


NEEDS_MORE = {
    *(path for path in DOCUMENT["paths"] if path.startswith("/api/replica/")),  # tests/unit/test_web_replicas.py
    "/api/status/{message_hash}",  # below
    "/tile/{level}/{number}", "/tile/entries/{number}", "/records/{number}",  # 256 entries
    "/map/tile/{level}/{number}", "/map/tile/entries/{number}",  # 256 leaves
    "/erasures/{number}", "/erasures/{number}.p/{width}",  # erasures
    "/readyz",  # a sequencer
}


def check_answered(base_url, path, parameters, query) -> None:
    escaped = {name: quote(value, safe="") for name, value in parameters.items()}
    case = schema[path]["GET"].Case(path_parameters=escaped, query=dict(query))
    response = case.call(base_url=base_url, headers={"Host": ORIGIN})
    assert response.status_code == 200, (path, response.text[:300])
    case.validate_response(response)


def test_answers_with_contents_are_in_the_document(log, base_url):
    """What random ids never find: real actors, keys, roots and tiles. No reading endpoint is left out."""
    known = known_values(log)
    for path, parameters, query in known:
        check_answered(base_url, path, parameters, query)
    reading = {path for path, item in DOCUMENT["paths"].items() if "get" in item}
    plain = {path for path in reading - NEEDS_MORE if "{" not in path} - {"/.well-known/webfinger"}
    for path in sorted(plain):
        check_answered(base_url, path, {}, {})
    assert reading == plain | {path for path, _, _ in known} | NEEDS_MORE


def test_the_status_of_a_message(log, base_url):
    record = log.desk.store.records(0, 1)[0]
    check_answered(base_url, "/api/status/{message_hash}", {"message_hash": encode_base64url(record.unique_hash)}, {})


@pytest.mark.parametrize("change", [
    lambda found: (found["properties"].pop("created"), found["required"].remove("created")),
    lambda found: found["required"].append("more"),
    lambda found: found["properties"].update(created={"type": "integer"}),
    lambda found: found["properties"]["!pkd-context"].update(const="fedi-e2ee:v1/api/other"),
])
def test_an_answer_unlike_the_document_would_be_found(base_url, change):
    """The checks above see what they should."""
    other = copy.deepcopy(DOCUMENT)
    change(other["components"]["schemas"]["History"])
    case = schemathesis.openapi.from_dict(other)["/api/history"]["GET"].Case()
    with pytest.raises(FailureGroup):
        case.call_and_validate(base_url=base_url, headers={"Host": ORIGIN})


# --- the document and the routes


def normal(rule: str) -> str:
    """A route's or a document's path with every variable named alike."""
    return re.sub(r"\{[^}]*\}|<[^>]*>", "*", rule)


def routes(log) -> set[tuple[str, str]]:
    """(method, path) of every route; those over many segments or names spelled out as the document has them."""
    found = set()
    for rule in create_app(log.settings).url_map.iter_rules():
        if rule.endpoint.startswith(("explorer", "verifypage")):
            continue  # pages for people
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            any_of = re.search(r"<any\(([^)]*)\):\w+>", rule.rule)
            names = [name.strip(" '\"") for name in any_of[1].split(",")] if any_of else [""]
            found |= {(method, rule.rule.replace(any_of[0], name) if any_of else rule.rule) for name in names}
    return found


def test_every_route_is_in_the_document_and_the_other_way_round(log):
    documented = {
        (method.upper(), normal(path)) for path, item in DOCUMENT["paths"].items() for method in item
    }
    served = {(method, rule) for method, rule in routes(log)}
    open_ended = {(method, rule.partition("<path:")[0]) for method, rule in served if "<path:" in rule}
    plain = {(method, normal(rule)) for method, rule in served if "<path:" not in rule}
    assert plain <= documented, "the application has routes that the document lacks"
    for method, path in documented - plain:
        starts = [start for m, start in open_ended if m == method and path.startswith(normal(start))]
        assert starts, f"the document has {method} {path}, which the application lacks"
    for method, start in open_ended:
        assert any(m == method and path.startswith(normal(start)) for m, path in documented), start


def test_the_document_is_served_as_it_is_packaged(log):
    answer = create_app(log.settings).test_client().get("/api/openapi.json", headers={"Host": ORIGIN})
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    assert json.loads(answer.data) == DOCUMENT
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_every_reference_in_the_document_leads_somewhere_and_nothing_is_left_over():
    used = set(re.findall(r'"\$ref": "#/components/(\w+/\w+)"', json.dumps(DOCUMENT)))
    there = {f"{kind}/{name}" for kind, items in DOCUMENT["components"].items() for name in items}
    assert used == there


def test_actor_ids_that_the_document_allows_are_those_that_the_log_takes():
    pattern = re.compile(DOCUMENT["components"]["schemas"]["ActorId"]["pattern"])
    for text in (
        ALICE, "https://example.com/", "https://example.com:443/a?b=/../c", "https://a.b/%41", "https://example.com",
        "https://example.com/..", "https://example.com/a/../b", "https://example.com/a/%2e%2E", "https://example.com/a/.",
        "https://EXAMPLE.com/a", "http://example.com/a", "https://127.0.0.1/a", "https://example.com:8443/a",
        "https://example.com/a#b", "https://example.com/é", "https://localhost/a", "https://example.com/..a/.b",
    ):
        try:
            parse_actor_id(text)
            taken = True
        except EncodingError:
            taken = False
        assert bool(pattern.search(text)) == taken, text
        assert quote(text, safe="")  # and fits into a path
