"""verify.html in a real browser, opened from a disk: it gives the specification's verdicts, and asks nobody.

In each of its states axe-core finds nothing, and a phone shows all of it, light and dark.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import COSIGNATURE_ED25519, COSIGNATURE_MLDSA44, ED25519, Signer, sign_checkpoint, signer_from_seed
from ktlog.tlog.proof import TlogProof, format_proof
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_inclusion, root_hash
from ktlog.web.verifypage import verify_page
from tests.machine import need

need("chromium")

from axe_playwright_python.sync_playwright import Axe  # noqa: E402  they need what was just asked for

from tests.browser import chromium  # noqa: E402

pytestmark = pytest.mark.slow

VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "vectors" / "map-v1.json").read_text(encoding="utf-8"))
LOOKUPS = {lookup["name"]: lookup for lookup in VECTORS["lookups"]}
ORIGIN = "keys.example.com"
ANYBODY = {"Access-Control-Allow-Origin": "*"}


def signer(name: str, algorithm: int) -> Signer:
    return signer_from_seed(name, algorithm, bytes([algorithm]) + name.encode().ljust(31, b"\0")[:31])


LOG = [signer(ORIGIN, ED25519), signer(ORIGIN, COSIGNATURE_MLDSA44)]
WITNESSES = [signer("w1.example", COSIGNATURE_ED25519), signer("w2.example", COSIGNATURE_MLDSA44)]
POLICY = "".join(f"log {one.vkey}\n" for one in LOG) + "".join(
    f"witness w{number} {one.vkey}\n" for number, one in enumerate(WITNESSES)
) + "group witnesses all w0 w1\nquorum witnesses\n"
ENTRIES = [f"entry {number}".encode() for number in range(7)]
READ = leaf_reader([hash_leaf(entry) for entry in ENTRIES])


def checkpoint(size: int, root: bytes | None = None, *, witnesses: int = 2, at: int | None = None) -> bytes:
    made = Checkpoint(ORIGIN, size, root or root_hash(size, READ))
    return sign_checkpoint(made, [*LOG, *WITNESSES[:witnesses]], int(time.time()) if at is None else at)


class Page:
    """The page, as its reader has it."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def check(self, *files: bytes, policy: str = POLICY, paste: bytes = b"", actor: str = "") -> tuple[str, str]:
        """The verdict's state, and all its text."""
        self.page.fill("#policy", policy)
        self.page.fill("#paste", paste.decode())
        self.page.fill("#actor", actor)
        self.page.set_input_files("#files", [
            {"name": f"file{number}", "mimeType": "application/octet-stream", "buffer": data}
            for number, data in enumerate(files)
        ])
        return self._press("#check")

    def _press(self, button: str) -> tuple[str, str]:
        self.page.evaluate("document.getElementById('verdict').dataset.state = ''")
        self.page.click(button)
        self.page.wait_for_selector(",".join(f'#verdict[data-state="{state}"]' for state in ("ok", "warn", "bad", "none")))
        return self.page.get_attribute("#verdict", "data-state"), self.page.inner_text("#verdict")

    def ask(self, log: str, actor: str) -> tuple[str, str]:
        self.page.fill("#policy", POLICY)
        self.page.fill("#log", log)
        self.page.fill("#actor", actor)
        return self._press("#ask")

    def pin(self) -> None:
        self.page.fill("#policy", POLICY)
        self._press("#pin")

    def forget(self) -> None:
        self._press("#forget")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "verify.html"
    path.write_bytes(verify_page())
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Page]:
    context = browser.new_context()
    opened = context.new_page()
    asked, said = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(file.as_uri())
    yield Page(opened)
    assert [url for url in asked if not url.startswith(("file:", "blob:", "http://127.0.0.1:9/"))] == []
    assert said == []
    context.close()


def test_the_specification_s_vectors(browser: Any, file: Path) -> None:
    """Each answer and each refusal of docs/vectors/map-v1.json, under its class and name."""
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(file.as_uri())
    wrong = opened.evaluate(_RUN_VECTORS, VECTORS)
    assert wrong == []
    context.close()


_RUN_VECTORS = """async (vectors) => {
  const K = KtlogVerify, bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), wrong = [];
  const unhex = (text) => Uint8Array.from(text.match(/../g), (pair) => parseInt(pair, 16));
  function changed(data, sections) {
    const found = new Map();
    for (let at = 16; at < data.length;) {
      const size = new DataView(data.buffer).getUint32(at + 1);
      found.set(data[at], data.slice(at + 5, at + 5 + size));
      at += 5 + size;
    }
    for (const [kind, body] of Object.entries(sections)) if (body === null) found.delete(+kind); else found.set(+kind, bytes(body));
    const parts = [...found].sort((a, b) => a[0] - b[0]).flatMap(([kind, body]) => [Uint8Array.of(kind), K.u32(body.length), body]);
    return K.join(data.slice(0, 16), ...parts);
  }
  async function run(lookup, how = {}) {
    const policy = await K.parsePolicy(how.policy ?? vectors.policy), now = how.now ?? vectors.now, maxAge = vectors["max-age"];
    let data = bytes(lookup.bundle);
    if (how.sections) data = changed(data, how.sections);
    if (how.truncate) data = data.slice(0, -how.truncate);
    if (how.append) data = K.join(data, unhex(how.append));
    K.checkSafe(policy, true);
    const bundle = K.parseBundle(data), opened = await K.openCheckpoint(policy, K.utf8(how.checkpoint ?? vectors.checkpoint), now);
    K.checkFresh(opened, now, maxAge);
    return K.checkBundle(bundle, opened, how["actor-id"] ?? lookup["actor-id"], { now, maxAge, config: vectors.config });
  }
  for (const lookup of vectors.lookups) {
    const got = await run(lookup), want = lookup.answer;
    const same = got.outcome === want.outcome && (want.version === undefined || got.version === want.version)
      && (want["key-ids"] === undefined || String(got.keys.map((key) => key.keyId)) === String(want["key-ids"]));
    if (!same) wrong.push(lookup.name);
  }
  for (const refusal of vectors.refusals) {
    const lookup = vectors.lookups.find((one) => one.name === refusal.from);
    const got = await run(lookup, refusal).then(() => ["accepted"], (error) => [error.kind, error.name, error.message]);
    if (got[0] !== refusal.class || got[1] !== refusal.name) wrong.push([refusal.what, ...got]);
  }
  return wrong;
}"""


def test_a_lookup_as_a_person_does_it_and_one_flipped_bit(page: Page) -> None:
    page.page.evaluate(f"Date.now = () => {VECTORS['now']}000 + 30000")
    lookup = LOOKUPS["two keys"]
    bundle, note = base64.b64decode(lookup["bundle"]), VECTORS["checkpoint"].encode()
    about = {"policy": VECTORS["policy"], "paste": note, "actor": lookup["actor-id"]}
    state, said = page.check(bundle, **about)
    assert state == "ok" and "has 2 keys and no others" in said
    for at in range(20, len(bundle), 211):
        flipped = bytearray(bundle)
        flipped[at] ^= 1 << at % 8
        state, said = page.check(bytes(flipped), **about)
        assert state in ("bad", "warn"), f"byte {at}: {said}"
    state, said = page.check(bundle, **about | {"actor": LOOKUPS["present"]["actor-id"]})
    assert (state, "CommitmentMismatch" in said) == ("bad", True)
    state, said = page.check(bundle, **about | {"actor": ""})
    assert state == "none"


def test_both_kinds_of_signature(page: Page) -> None:
    note = checkpoint(5)
    state, said = page.check(paste=note)
    assert state == "ok" and "Cosigned by w1.example, w2.example" in said and "with 2 keys that you pinned" in said
    for line in range(5, 9):
        lines = note.decode().split("\n")
        at = len(lines[line - 1]) - 10
        lines[line - 1] = lines[line - 1][:at] + ("A" if lines[line - 1][at] != "A" else "B") + lines[line - 1][at + 1:]
        state, said = page.check(paste="\n".join(lines).encode())
        assert state == "bad" and ("BadLogSignature" in said or "BadCosignature" in said)


def test_too_few_stale_and_unsafe_look_different(page: Page) -> None:
    assert page.check(paste=checkpoint(5, witnesses=1))[0] == "warn"
    state, said = page.check(paste=checkpoint(5, at=int(time.time()) - 4000))
    assert state == "warn" and said.startswith("Stale")
    state, said = page.check(paste=checkpoint(5), policy=POLICY.replace("group witnesses all", "group witnesses any"))
    assert state == "bad" and "unsafe" in said
    assert page.check(paste=checkpoint(5), policy="")[0] == "none"
    assert page.check()[0] == "none"


def test_it_remembers_what_it_saw(page: Page) -> None:
    page.pin()
    assert page.check(paste=checkpoint(5))[0] == "ok"
    state, said = page.check(paste=checkpoint(5, root=bytes(32)))
    assert state == "bad" and "TwoRoots" in said and "Save both checkpoints" in said
    state, said = page.check(paste=checkpoint(3))
    assert state == "warn" and "RolledBack" in said
    state, said = page.check(paste=checkpoint(7))
    assert state == "ok" and "no proof of that was given" in said
    page.forget()
    assert page.check(paste=checkpoint(3))[0] == "ok"


def test_what_another_policy_vouched_for_is_not_remembered(page: Page) -> None:
    """Whoever has somebody check a checkpoint under made-up keys must not have the honest log called a liar."""
    page.pin()
    stranger = signer_from_seed(ORIGIN, ED25519, bytes(32))
    witness = signer_from_seed("w9.example", COSIGNATURE_ED25519, bytes([9] * 32))
    policy = f"log {stranger.vkey}\nwitness w9 {witness.vkey}\ngroup witnesses all w9\nquorum witnesses\n"
    note = sign_checkpoint(Checkpoint(ORIGIN, 5, bytes(32)), [stranger, witness], int(time.time()))
    state, said = page.check(paste=note, policy=policy)
    assert state == "ok" and "not one that this browser remembers" in said, said
    assert page.check(paste=checkpoint(5))[0] == "ok"


@pytest.mark.parametrize("actor", [
    "@alice@example.social", "https://Example.social/users/alice", "https://example.com/users/alice#x", "https://example.com:8443/users/alice",
    "http://example.com/users/alice", "https://example.com/a/../users/alice", "https://127.0.0.1/alice",
])
def test_what_is_no_actor_id_is_not_absent(page: Page, actor: str) -> None:
    page.page.evaluate(f"Date.now = () => {VECTORS['now']}000 + 30000")
    bundle = base64.b64decode(LOOKUPS["never enrolled"]["bundle"])
    state, said = page.check(bundle, policy=VECTORS["policy"], paste=VECTORS["checkpoint"].encode(), actor=actor)
    assert state == "none" and said.startswith("Not checked") and "Name an actor, such as https://" in said


@pytest.mark.parametrize("actor", ["", "  ", "@alice@example.social", "example.social/users/alice"])
def test_who_is_no_actor_is_not_asked_about(page: Page, actor: str) -> None:
    asked = []
    page.page.on("request", lambda request: asked.append(request.url))
    state, said = page.ask("http://127.0.0.1:9", actor)
    assert state == "none" and said.startswith("Not checked") and "such as https://example.social/users/alice" in said
    assert asked == []
    page.page.route("http://127.0.0.1:9/**", lambda route: route.fulfill(body=b"no bundle", headers=ANYBODY))
    assert page.ask("http://127.0.0.1:9", LOOKUPS["present"]["actor-id"])[0] == "bad"
    assert len(asked) == 1, "a request is seen"


def test_whoever_sends_a_bundle_does_not_choose_the_log(page: Page) -> None:
    page.page.evaluate(f"Date.now = () => {VECTORS['now']}000 + 30000")
    lookup = LOOKUPS["present"]
    policy = f"log {signer_from_seed('other.example/map', ED25519, bytes(32)).vkey}\n" + VECTORS["policy"]
    about = {"policy": policy, "paste": VECTORS["checkpoint"].encode(), "actor": lookup["actor-id"]}
    bundle = base64.b64decode(lookup["bundle"])
    assert page.check(bundle, **about)[0] == "none"
    page.page.fill("#log", "https://other.example")
    state, said = page.check(bundle, **about)
    assert state == "bad" and "WrongLog" in said
    page.page.fill("#log", "https://keys.example.com")
    assert page.check(bundle, **about)[0] == "ok"


def test_no_file_hides_another(page: Page) -> None:
    page.page.evaluate(f"Date.now = () => {VECTORS['now']}000 + 30000")
    lookup, other = LOOKUPS["present"], LOOKUPS["two keys"]
    about = {"policy": VECTORS["policy"], "paste": VECTORS["checkpoint"].encode(), "actor": lookup["actor-id"]}
    bundles = [base64.b64decode(one["bundle"]) for one in (other, lookup)]
    state, said = page.check(*bundles, **about)
    assert state == "bad" and "TwoOfAKind" in said
    proof = format_proof(TlogProof(4, tuple(prove_inclusion(4, 7, READ)), checkpoint(7)))
    assert page.check(bundles[0], proof, ENTRIES[4], policy=POLICY, actor=lookup["actor-id"])[0] == "none"
    assert page.check(**about)[0] == "none"  # somebody is named, and no bundle is there


def test_pending_messages_are_no_plain_yes(page: Page) -> None:
    page.page.evaluate(f"Date.now = () => {VECTORS['now']}000 + 30000")
    pending = (1).to_bytes(8, "big") + (4).to_bytes(4, "big") + b"entr" + (2).to_bytes(4, "big") + b"{}" + bytes(2)
    section = bytes([12]) + len(pending).to_bytes(4, "big") + pending
    for name in ("present", "erased", "never enrolled"):
        lookup = LOOKUPS[name]
        about = {"policy": VECTORS["policy"], "paste": VECTORS["checkpoint"].encode(), "actor": lookup["actor-id"]}
        state, said = page.check(base64.b64decode(lookup["bundle"]) + section, **about)
        assert state == "warn" and said.startswith("Verified, but newer messages wait")
        state, said = page.check(base64.b64decode(lookup["bundle"]) + section[:-1], **about)
        assert state == "bad" and "MalformedBundle" in said


def test_a_late_answer_does_not_replace_a_newer_verdict(page: Page) -> None:
    waiting = []
    page.page.route("http://127.0.0.1:9/**", lambda route: waiting.append(route))
    page.page.fill("#policy", POLICY)
    page.page.fill("#log", "http://127.0.0.1:9")
    page.page.fill("#actor", LOOKUPS["present"]["actor-id"])
    page.page.click("#ask")
    page.page.wait_for_selector('#verdict[data-state="checking"]')
    state, _ = page.check(paste=checkpoint(5, root=bytes(32)).replace(b"w1.example", b"w3.example"))
    assert state == "warn"
    waiting[0].fulfill(status=200, body=base64.b64decode(LOOKUPS["present"]["bundle"]), headers=ANYBODY)
    page.page.wait_for_timeout(300)
    assert page.page.get_attribute("#verdict", "data-state") == "warn"
    page.page.fill("#actor", "x")
    assert page.page.get_attribute("#verdict", "data-state") == "none"


def test_damaged_memory_is_no_end(browser: Any, file: Path) -> None:
    context = browser.new_context()
    context.add_init_script(
        "try { localStorage.setItem('ktlog/policy', '{\"text\":\"x\"}'); localStorage.setItem('ktlog/heads', '[1]'); } catch {}"
    )
    opened = context.new_page()
    opened.goto(file.as_uri())
    assert Page(opened).check(paste=checkpoint(5))[0] == "ok"
    context.close()


def test_a_proof_of_logging(page: Page) -> None:
    proof = format_proof(TlogProof(4, tuple(prove_inclusion(4, 7, READ)), checkpoint(7)))
    state, said = page.check(proof, ENTRIES[4])
    assert state == "ok" and "entry 4 of keys.example.com" in said
    state, said = page.check(proof, ENTRIES[3])
    assert state == "bad" and "BadInclusionProof" in said
    assert page.check(proof)[0] == "none"


def _lookup(page: Page, name: str, actor: str | None = None, **more: Any) -> tuple[str, str]:
    page.page.evaluate(f"Date.now = () => {VECTORS['now']}000 + 30000")
    about = {"policy": VECTORS["policy"], "paste": VECTORS["checkpoint"].encode()} | more
    return page.check(base64.b64decode(LOOKUPS[name]["bundle"]), actor=actor or LOOKUPS[name]["actor-id"], **about)


def _two_roots(page: Page) -> tuple[str, str]:
    page.pin()
    page.check(paste=checkpoint(5))
    return page.check(paste=checkpoint(5, root=bytes(32)))


STATES: dict[str, tuple[str, Callable[[Page], Any]]] = {
    "Not checked": ("none", lambda page: None),
    "Verified: present": ("ok", lambda page: _lookup(page, "two keys")),
    "Verified: never enrolled": ("ok", lambda page: _lookup(page, "never enrolled")),
    "FAILED\n": ("bad", lambda page: _lookup(page, "two keys", LOOKUPS["present"]["actor-id"])),
    "FAILED: the log lied": ("bad", _two_roots),
    "Stale": ("warn", lambda page: page.check(paste=checkpoint(5, at=int(time.time()) - 4000))),
    "Not enough cosigners": ("warn", lambda page: page.check(paste=checkpoint(5, witnesses=1))),
}
"""How each verdict begins, its state, and what the reader did."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("word", STATES)
def test_axe_finds_nothing_and_a_phone_shows_all_of_it(page: Page, word: str, scheme: str) -> None:
    state, done = STATES[word]
    page.page.emulate_media(color_scheme=scheme)
    done(page)
    assert (page.page.get_attribute("#verdict", "data-state"), page.page.inner_text("#verdict").startswith(word)) == (state, True)
    for width in (390, 1200):
        page.page.set_viewport_size({"width": width, "height": 900})
        page.page.locator("#verdict details").evaluate_all("all => all.forEach(one => { one.open = true; })")
        found = Axe().run(page.page)
        assert found.violations_count == 0, found.generate_report()
        assert len(found.response["passes"]) > 10, "axe looked at something"
        assert page.page.evaluate(BEYOND) == []


BEYOND = """[document.documentElement, ...document.querySelectorAll('main *:not(textarea, svg, svg *)')]
    .filter(one => one.scrollWidth > one.clientWidth && getComputedStyle(one).display !== 'inline').map(one => one.outerHTML.slice(0, 80))"""
"""What is wider than its place; a box to write in scrolls."""


@pytest.mark.parametrize(("harm", "rule"), [
    ("document.querySelector('#origin').style.color = '#bbb'", "color-contrast"),
    ("document.querySelector('label[for=actor]').remove(); document.querySelector('#actor').placeholder = ''", "label"),
])
def test_axe_would_find_it(page: Page, harm: str, rule: str) -> None:
    page.page.emulate_media(color_scheme="light")
    page.page.evaluate(harm)
    assert rule in [found["id"] for found in Axe().run(page.page).response["violations"]]


def test_a_phone_would_not_show_it(page: Page) -> None:
    page.page.set_viewport_size({"width": 390, "height": 900})
    page.page.evaluate("document.querySelector('#remembered').textContent = 'x'.repeat(200)")
    assert page.page.evaluate(BEYOND) == []
    page.page.evaluate("document.querySelector('#remembered').style.overflowWrap = 'normal'")
    assert page.page.evaluate(BEYOND) != []


def test_dark_is_dark(page: Page) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        page.page.emulate_media(color_scheme=scheme)
        seen[scheme] = page.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert min(seen["light"]) > 200 and max(seen["dark"]) < 60
