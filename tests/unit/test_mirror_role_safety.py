"""What a mirror must never do: forget, sign what it does not hold, or be somebody else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

from ktlog.errors import Conflict, KtlogError, StoreError
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.cosignature import subtree_message
from ktlog.tlog.encoding import decode_base64, encode_base64
from ktlog.tlog.note import parse_note
from ktlog.tlog.subtree import prove_subtree
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from tests.mirror_site import NAME, Site, check_copy, check_cosigned, entry, format_line, tree_of
from tests.witness_log import NOW, Log
from witness import limits
from witness.cli import main
from witness.config import WitnessDir
from witness.keys import load_signers
from witness.mirror import HOOKS, SAVED
from witness.mirrorclient import upload
from witness.mirrordir import MirrorDir, check_apart, derive_mirror_signers
from witness.mirrorstore import MirrorStore
from witness.mirrorweb import open_mirror
from witness.mirrorwire import parse_info
from witness.store import WitnessStore
from witness.witness import Witness


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    yield site
    site.mirror.close()


def test_a_failed_write_is_the_last(site: Site) -> None:
    assert site.submit(0, 300).status == 200
    blocked = site.paths.logs / "blocked"
    blocked.write_bytes(b"")
    site.mirror._files(site.log.origin)[0].root = blocked / "no"
    assert site.add(0, 300).status == 503
    site.mirror._opened.clear()
    assert site.add(0, 300).status == 503 and site.submit(300, 301).status == 503
    assert site.client.get("/readyz").status_code == 503 and site.client.get("/livez").status_code == 200
    site.restart()
    assert site.add(0, 300).status == 200


def test_nothing_is_signed_that_the_disk_does_not_hold(site: Site) -> None:
    assert site.submit(0, 300).status == 200
    assert site.add(0, 300, packages=1).status == 202
    tile = next(site.paths.logs.rglob("tile/0/000"))
    tile.chmod(0o644)
    tile.write_bytes(bytes(256 * 32))
    site.restart()
    assert site.add(256, 300).status == 503
    assert site.state().latest is None


def test_files_that_went_missing_are_found_out_at_the_start(site: Site) -> None:
    site.upload(300)
    shutil.rmtree(next(site.paths.logs.glob("*/tile/0")))
    with pytest.raises(StoreError) as caught:
        site.restart()
    assert caught.value.name == "Corrupt"


def test_an_older_record_is_refused(site: Site) -> None:
    site.upload(5)
    site.mirror.close()
    old = site.paths.database.read_bytes()
    site.start()
    site.upload(9)
    site.mirror.close()
    new = site.paths.database.read_bytes()
    site.paths.database.write_bytes(old)
    with pytest.raises(StoreError) as caught:
        open_mirror(site.directory)
    assert caught.value.name == "RecordRolledBack" and "mirror.db" in str(caught.value)
    site.paths.database.unlink()
    with pytest.raises(StoreError) as caught:
        open_mirror(site.directory)
    assert caught.value.name == "MirrorDatabaseMissing"
    site.paths.database.write_bytes(new)
    site.paths.mark.unlink()
    with pytest.raises(StoreError) as caught:
        open_mirror(site.directory)
    assert caught.value.name == "MarkMissing" and "set-mirror-mark" in caught.value.hint
    assert not site.paths.mark.exists()


def test_a_record_without_the_last_cosignature_is_refused(site: Site) -> None:
    site.upload(5)
    site.mirror.close()
    old = site.paths.database.read_bytes()
    site.start()
    site.clock.now += 61
    assert site.add(5, 5).status == 200
    site.mirror.close()
    site.paths.database.write_bytes(old)
    with pytest.raises(StoreError) as caught:
        open_mirror(site.directory)
    assert caught.value.name == "RecordRolledBack"


def test_sizes_never_fall_whatever_the_caller_does(site: Site) -> None:
    site.upload(300)
    site.mirror.close()
    for statement in (
        "UPDATE checkpoints SET revision = revision + 1, size = 299", "UPDATE pending SET revision = revision + 1, size = 299",
        "UPDATE checkpoints SET revision = revision + 1, root = zeroblob(32)", "UPDATE held SET next_entry = 299",
        "DELETE FROM checkpoints", "DELETE FROM pending", "DELETE FROM held", "DELETE FROM logs", "UPDATE mirror SET name = 'x'",
    ):
        store = MirrorStore.open(site.paths.database)
        with pytest.raises(StoreError), store.writing() as database:
            database.execute(statement)
        store.close()
    site.start()


def test_a_checkpoint_of_entries_that_are_not_held_is_not_recorded(site: Site) -> None:
    assert site.submit(0, 300).status == 200
    with pytest.raises(StoreError):
        site.mirror.store.record_checkpoint(site.state().pending, 0)
    site.restart()
    assert site.state().latest is None


def test_a_fork_freezes_the_log_for_witness_and_mirror(site: Site) -> None:
    assert site.submit(0, 300).status == 200
    forked = site.post("add-checkpoint", site.log.submission(300, 300, root=b"\x2a" * 32, proof=[]))
    assert forked.status == 422
    store = WitnessStore.open(site.directory.database, read_only=True)
    assert store.log(site.log.origin).frozen is not None and store.count_evidence() == 1
    store.close()
    assert site.submit(300, 301).status == 403
    assert site.add(0, 300).status == 403
    assert site.state().latest is None


def test_a_witness_that_runs_beside_it_notices_the_freeze(site: Site) -> None:
    store = WitnessStore.open(site.directory.database)
    store.keep_mark(site.directory.mark)
    beside = Witness(store, load_signers(site.directory, store.name), clock=site.clock)
    assert beside.add_checkpoint(site.log.submission(0, 300)).status == 200
    assert beside.add_checkpoint(site.log.submission(300, 301)).status == 200
    assert site.submit(0, 300).status == 200
    assert site.post("add-checkpoint", site.log.submission(300, 300, root=b"\x2a" * 32, proof=[])).status == 422
    assert beside.add_checkpoint(site.log.submission(301, 302)).status == 403
    store.close()
    store = WitnessStore.open(site.directory.database)
    store.keep_mark(site.directory.mark)  # which was not told of the evidence, and catches up
    store.close()


def test_a_witness_that_cosigned_nothing_yet_notices_the_freeze_too(site: Site) -> None:
    store = WitnessStore.open(site.directory.database)
    store.keep_mark(site.directory.mark)
    beside = Witness(store, load_signers(site.directory, store.name), clock=site.clock)
    assert beside.add_checkpoint(site.log.submission(5, 7, proof=[])).status == 409  # from here on it is in memory
    assert site.submit(0, 300).status == 200
    assert site.post("add-checkpoint", site.log.submission(300, 300, root=b"\x2a" * 32, proof=[])).status == 422
    assert beside.add_checkpoint(site.log.submission(0, 300)).reason == "LogFrozen"
    assert store.log(site.log.origin).latest is None
    store.close()


def test_what_a_key_signed_that_was_retired_since_is_not_cosigned(tmp_path) -> None:
    """Neither an upload that begins after it, nor one that is under way."""
    def retire(name: str = SAVED) -> None:
        if name == SAVED:
            store = WitnessStore.open(site.directory.database, beside_daemon=True)
            store.retire_keys([(site.log.origin, vkey) for vkey in site.log.vkeys], NOW, "stolen", leave_none=True)
            store.close()

    site = Site(tmp_path, retire)
    assert site.submit(0, 300).status == 200
    assert (site.add(0, 300).status, site.state().latest, site.state().next_entry) == (403, None, 300)
    forked = site.post("add-checkpoint", site.log.submission(300, 300, root=b"\x2a" * 32, proof=[]))
    for refused in (site.add(256, 300), site.submit(300, 310), site.submit(300, 300), forked):
        assert (refused.status, refused.body[:10]) == (403, b"RetiredKey")
    new = Log(site.log.origin, seed=2)
    store = WitnessStore.open(site.directory.database, beside_daemon=True)
    (caught,) = store.convictions()
    assert caught.retired_key and not caught.freezes, "it is kept, and who stole the key freezes no log"
    store.add_log(new.origin, new.vkeys, NOW)
    store.close()
    assert site.add(256, 300).status == 403
    assert site.post("add-checkpoint", new.submission(300, 300)).status == 200
    site.log = new
    site.restart()
    assert site.add(256, 300).status == 200
    check_copy(site.fetch, new, 300)
    site.mirror.close()


def test_a_frozen_logs_entries_are_not_even_kept(site: Site) -> None:
    assert site.submit(0, 300).status == 200
    site.post("add-checkpoint", site.log.submission(300, 300, root=b"\x2a" * 32, proof=[]))
    assert site.add(0, 300, packages=1).status == 403
    assert site.state().next_entry == 0


def test_a_log_that_forks_during_its_upload_is_not_signed_for(tmp_path) -> None:
    def reach(name: str) -> None:
        if name == SAVED:
            assert site.post("add-checkpoint", site.log.submission(300, 300, root=b"\x2a" * 32, proof=[])).status == 422

    site = Site(tmp_path, reach)
    assert site.submit(0, 300).status == 200
    assert site.add(0, 300).status == 403
    assert (site.state().next_entry, site.state().latest) == (300, None)
    site.mirror.close()


def test_entries_are_not_shown_before_their_checkpoint_is_cosigned(site: Site) -> None:
    site.upload(300)
    assert site.submit(300, 1000).status == 200
    assert site.add(300, 1000, packages=2).status == 202
    assert list(site.paths.logs.rglob("tile/entries/001"))
    for path in ("tile/entries/001", "tile/0/001", "tile/0/002", "tile/1/000.p/3"):
        assert site.get(path).status_code == 404, path
    assert site.fetch("tile/entries/001.p/44") and site.fetch("tile/1/000.p/1")


def test_a_checkpoint_is_recorded_only_after_the_one_it_was_judged_by(site: Site, monkeypatch) -> None:
    assert site.submit(0, 300).status == 200
    with pytest.raises(Conflict):
        site.mirror.store.record_pending(site.state().pending)
    assert site.submit(300, 301).status == 200
    with pytest.raises(Conflict):
        site.mirror.store.record_pending(replace(site.state().pending, revision=2))
    record = site.mirror.store.record_pending

    def beaten(pending) -> None:
        monkeypatch.undo()
        record(replace(pending, checkpoint=replace(pending.checkpoint, size=302, root=site.log.root(302))))
        record(pending)

    monkeypatch.setattr(site.mirror.store, "record_pending", beaten)
    reply = site.submit(301, 303)
    assert (reply.status, reply.body) == (409, b"302\n")  # judged anew, by what is pending now
    assert site.state().pending.checkpoint.size == 302


def test_the_mirror_checkpoint_is_not_taken_back_by_an_upload_that_was_overtaken(site: Site) -> None:
    assert site.submit(0, 300).status == 200
    site.upload(700)
    answer = site.mirror._commit(site.log.origin, site.mirror.store.earlier(site.log.origin, 300))
    assert (answer.status, parse_info(answer.body).size) == (409, 700)
    assert site.state().latest.checkpoint.size == 700
    assert site.submit(700, 701).status == 200  # it goes on


def test_a_checkpoint_that_is_forgotten_as_pending_is_signed_again(site: Site) -> None:
    site.upload(5)
    for size in range(5, 25):
        assert site.submit(size, size + 1).status == 200
    assert site.mirror.store.earlier(site.log.origin, 5) is None
    site.clock.now += 61
    check_cosigned(site, site.add(5, 5).body, 5)


def test_a_forged_checkpoint_changes_nothing(site: Site) -> None:
    assert site.submit(0, 300).status == 200
    stranger = Log(seed=7)
    assert site.post("add-checkpoint", stranger.submission(300, 400)).status == 403
    assert site.post("add-checkpoint", site.log.submission(300, 400, proof=[bytes(32)])).status == 422
    assert site.state().pending.checkpoint.size == 300


def test_subtrees_are_signed_for_the_mirrors_own_checkpoints_alone(site: Site) -> None:
    site.upload(300)
    leaves = leaf_reader([hash_leaf(entry(site.log, index)) for index in range(300)])
    note = parse_note(site.fetch("checkpoint"))
    (ours,) = [line for line in note.signatures if (line.name, line.key_id) == (NAME, site.vkeys[1].key_id)]
    (theirs,) = [line for line in note.signatures if line.key_id == site.log.vkeys[1].key_id]
    subtree_hash = root_hash(44, leaf_reader([hash_leaf(entry(site.log, index)) for index in range(256, 300)]))
    proof = prove_subtree(256, 300, 300, leaves)
    head = "subtree 256 300\n" + "".join(f"{encode_base64(one)}\n" for one in (subtree_hash, *proof)) + "\n"

    def ask(line) -> object:
        return site.post("sign-subtree", head.encode() + note.text + b"\n" + format_line(line))

    assert ask(theirs).status == 403
    reply = ask(ours)
    assert reply.status == 200
    message = subtree_message(NAME, 0, site.log.origin, 256, 300, subtree_hash)
    site.vkeys[1].mldsa44.verify(decode_base64(reply.body.decode().strip()), message)


def test_so_many_subtrees_of_one_log_and_no_more(site: Site, monkeypatch) -> None:
    monkeypatch.setattr(limits, "SUBTREES_BURST", 3.0)
    site.upload(300)
    note = parse_note(site.fetch("checkpoint"))
    (ours,) = [line for line in note.signatures if (line.name, line.key_id) == (NAME, site.vkeys[1].key_id)]
    root = encode_base64(parse_signed_checkpoint(site.fetch("checkpoint"))[1].root)
    body = f"subtree 0 300\n{root}\n\n".encode() + note.text + b"\n" + format_line(ours)
    asked = [site.post("sign-subtree", body) for _ in range(4)]
    assert [one.status for one in asked] == [200, 200, 200, 429]
    assert asked[3].body.startswith(b"TooManySubtrees: ")


def test_a_mirror_is_another_cosigner_than_its_witness(site: Site) -> None:
    store = WitnessStore.open(site.directory.database, read_only=True)
    own = {str(vkey) for vkey in site.vkeys}
    check_apart(NAME, own, store.name, set(store.vkeys))  # made of the same seed
    for name, vkeys in ((store.name, own), (NAME, own | {store.vkeys[0]})):
        with pytest.raises(KtlogError) as caught:
            check_apart(name, vkeys, store.name, set(store.vkeys))
        assert caught.value.name == "SameCosigner"
    store.close()
    assert {str(one.vkey) for one in derive_mirror_signers(bytes(32), store.name)}.isdisjoint(store.vkeys)


def test_every_hook_is_passed_in_order(tmp_path) -> None:
    names = []
    site = Site(tmp_path, names.append)
    site.upload(5)
    site.mirror.close()
    assert [name for name in names if name in HOOKS] == list(HOOKS)


def test_paths_that_are_no_tiles(site: Site) -> None:
    site.upload(300)
    for path in ("tile/0/../../../mirror.db", "tile/0/001.p/45", "tile/0/001.p/43", "tile/0/1", "tile/64/000", "tile/0/001", "tile/"):
        assert site.get(path).status_code == 404, path


def test_an_unfinished_init_is_begun_anew(tmp_path) -> None:
    paths = MirrorDir(WitnessDir(tmp_path))
    (paths.begin().path / "ed25519.key").write_bytes(b"")
    assert not paths.exists()
    made = paths.begin()
    assert [path.name for path in made.path.iterdir()] == ["logs"]
    paths.finish(made)
    with pytest.raises(StoreError) as caught:
        paths.begin()
    assert caught.value.name == "MirrorExists"


def test_check_mirror_reads_everything(site: Site) -> None:
    site.upload(300)
    site.upload(700)
    arguments = ["check-mirror", "--dir", str(site.directory.path), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert json.loads(result.stdout) == {"checked": {site.log.origin: 700}}
    for name in ("tile/entries/001", "tile/0/000", "tile/entries/002.p/188"):
        file = next(site.paths.logs.glob(f"*/{name}"))
        right = file.read_bytes()
        file.chmod(0o644)
        for wrong in (right[:9] + bytes((right[9] ^ 1,)) + right[10:], right[:-1]):
            file.write_bytes(wrong)
            assert CliRunner().invoke(main, arguments).exit_code == 8, name
        file.write_bytes(right)
    assert CliRunner().invoke(main, arguments).exit_code == 0


def test_upload_stops_when_a_mirror_makes_no_progress(site: Site) -> None:
    def post(endpoint: str, body: bytes, headers):
        reply = site.post(endpoint, body, headers)
        if endpoint == "add-entries":
            reply.status, reply.body = 202, b"300\n0\n\n"
        return reply

    with pytest.raises(KtlogError) as caught:
        upload(post, tree_of(site.log, 300), site.log.note(300))
    assert caught.value.name == "NoProgress"


class Died(BaseException):
    """The process ended here."""


@pytest.mark.parametrize("hook", HOOKS)
def test_an_upload_that_died_anywhere_is_gone_on_with(tmp_path, hook: str) -> None:
    """What was answered before holds, nothing is shown that was not signed, and the same requests finish it."""
    site = Site(tmp_path)
    site.upload(300)
    site.mirror.close()

    def reach(name: str) -> None:
        if name == hook:
            raise Died

    site.start(reach)
    with pytest.raises((Died, AssertionError)):
        reply = site.submit(300, 700)
        assert reply.status == 200
        reply = site.add(300, 700)
        assert reply.status == 200
    site.restart()
    size = parse_signed_checkpoint(site.fetch("checkpoint"))[1].size
    assert size == (700 if hook == HOOKS[-1] else 300)
    check_copy(site.fetch, site.log, size)
    lines = site.upload(700)
    check_cosigned(site, b"".join(map(format_line, lines)), 700)
    site.mirror.close()
