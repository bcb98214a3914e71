"""A backup comes back only if nobody has seen more than it holds; what it lacks is recovered from a mirror."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from ktlog.commands import restore as command_module
from ktlog.config import Settings, load_settings, write_settings
from ktlog.errors import Invalid, PolicyUnmet, StoreError, Unreachable
from ktlog.operator.backup import back_up, check_files, format_manifest, generations, hash_file, prune, read_manifest
from ktlog.operator.create import create_log, ensure_map, load_public_keys
from ktlog.operator.fsck import check_log
from ktlog.operator.fsckurl import examine_url
from ktlog.operator.head import SignedHead, load_signed_head
from ktlog.operator.keys import load_checkpoint_signers
from ktlog.operator.mirror import Mirror
from ktlog.operator.restore import Request, choose, restore
from ktlog.operator.sources import load_sources
from ktlog.pkd.actors import Status
from ktlog.pkd.messages import AddKey
from ktlog.store import schema
from ktlog.store.documents import FileDocument
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Note, format_note, parse_vkey
from ktlog.tlog.policy import LogKey, Policy, format_policy
from ktlog.web.app import create_app
from ktlog.wire.fetch import Fetcher, Response
from tests.map_world import MAP
from tests.mirror_world import everything
from tests.operator_world import NOW, ORIGIN, respond
from tests.pkd_samples import public, quick_argon2  # noqa: F401
from tests.whole_log import HUGO, WholeLog, resume

pytestmark = pytest.mark.usefixtures("quick_argon2")

OTHER = "keys.mirror.example"
IVAN = "https://example.com/users/ivan"


class World:
    """The log, a mirror of it, and the network between them and the cosigners. ``lost`` takes the log's disk away."""

    def __init__(self, directory: Path, base: World | None = None) -> None:
        self.directory = directory
        self.served: list[WholeLog] = []
        self.down: set[str] = set()
        self.clients: dict[str, Callable[[str], Response]] = {}
        self.seen: dict[tuple[str, str], bytes] = {}
        """By host and origin, the newest note that a cosigner cosigned."""
        self.keys = directory / "keys"
        if base is None:
            self.log = WholeLog(directory / "log")
            self.listen()
            self.log.fill()
            shutil.copytree(self.log.settings.keys, self.keys)
        else:
            shutil.copytree(base.directory, directory, dirs_exist_ok=True)
            self.seen = dict(base.seen)
            self.log = resume(base.log, directory / "log")
            self.listen()
        self.target = directory / "backups"
        self.serve(ORIGIN, self.log.settings)

    def listen(self) -> None:
        """Note what the cosigners are shown."""
        self.posted, self.log.network.post = self.log.network.post, self.post

    def serve(self, host: str, settings) -> None:
        client = create_app(settings).test_client()

        def answer(path: str) -> Response:
            found = client.get(path, headers={"Host": settings.origin})
            return Response(found.status_code, {k.lower(): v for k, v in found.headers}, found.data, path)

        self.clients[host] = answer

    def mirror(self) -> str:
        """Mirror the log as it is now, and say where that is served."""
        settings = replace(load_settings(self.log.settings.directory), directory=self.directory / "other", origin=OTHER)
        if not settings.directory.exists():
            create_log(settings.directory, OTHER, "spec", bytes([9]) * 32)
            settings = Settings(settings.directory, OTHER, "spec", replicas=ORIGIN, rate_limit_exempt="127.0.0.0/8")
            write_settings(settings)
            ensure_map(settings)
            settings.replica_directory.mkdir()
            vkey = parse_vkey(load_public_keys(self.log.settings).vkeys[1])
            policy = Policy((LogKey(vkey),), self.log.policy.witnesses, self.log.policy.groups, self.log.policy.quorum)
            (settings.replica_directory / f"{ORIGIN}.policy").write_bytes(format_policy(policy))
        settings = load_settings(settings.directory)
        (source,) = load_sources(settings)
        mirror = Mirror(source, self, self.log.clock)
        mirror.poll()
        mirror.close()
        self.serve(OTHER, settings)
        self.log_clock(settings)
        return f"https://{OTHER}/api/replica/{source.id}"

    def log_clock(self, settings) -> None:
        """The mirror's plaintext is shown for seven days after it was heard: let the mirror's clock be the log's."""
        path = settings.replica_directory / ORIGIN / "status.json"
        status = json.loads(path.read_bytes())
        path.write_text(json.dumps(status | {"last_success": int(time.time())}))

    def lose(self) -> None:
        del self.clients[ORIGIN]

    # As a fetcher

    def get(self, url: str, *, max_bytes: int | None = None) -> Response:
        parts = urlsplit(url)
        if parts.netloc in self.down:
            raise Unreachable("Refused", url)
        if parts.netloc in self.clients:
            return self.clients[parts.netloc](parts.path)
        for origin in (ORIGIN, MAP):
            digest = hashlib.sha256(origin.encode()).hexdigest()
            if url.endswith(f"/{digest}/checkpoint") and (parts.netloc, origin) in self.seen:
                return respond(200, self.seen[parts.netloc, origin])
        if any(cosigner.url == f"https://{parts.netloc}" for cosigner in self.log.witnesses):
            return respond(404)
        raise Unreachable("Refused", url)

    def post(self, url: str, body: bytes, headers=None) -> Response:
        if urlsplit(url).netloc in self.down:
            raise Unreachable("Refused", url)
        answer = self.posted(url, body, headers)
        note = body.partition(b"\n\n")[2]
        if answer.status == 200:
            self.seen[urlsplit(url).netloc, parse_signed_checkpoint(note)[1].origin] = note
        return answer

    def restore(self, **options):
        options = {"keys": self.keys} | options
        request = Request(choose(self.target, options.pop("name", None)), self.directory / "new", **options)
        return restore(request, self, self.log.clock)

    def serve_restored(self) -> WholeLog:
        """The publisher and the map's cycle over the restored directory, with the same cosigners as ever."""
        log = resume(self.log, self.directory / "new")
        self.served.append(log)
        return log


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("base"))
    yield made
    made.log.close()


@pytest.fixture
def world(base, tmp_path):
    made = World(tmp_path, base)
    yield made
    for log in (made.log, *made.served):
        log.close()

def back(world: World, **options) -> Path:
    return back_up(world.log.settings, world.target, now=world.log.clock, **options)[0]


def more(world: World) -> None:
    """What happens after the backup: entries, an erasure, and more."""
    log = world.log
    log.enrol_many(3, first=500)
    log.cycle()
    log.forget(HUGO)
    log.cycle()
    log.desk.send(AddKey(IVAN, public("i"), NOW + 50), "i")
    log.cycle()


def refused(world: World, name: str, **options) -> StoreError:
    with pytest.raises((StoreError, PolicyUnmet, Invalid)) as caught:
        world.restore(**options)
    assert caught.value.name == name, caught.value
    assert not (world.directory / "new" / "ktlog.toml").exists()
    return caught.value


def test_a_backup_of_a_log_that_stood_still_comes_back_and_goes_on(world):
    back(world)
    world.lose()
    done = world.restore()
    assert (done.size, done.recovered, done.unknown) == (14, (0, 0), ())
    log = world.serve_restored()
    assert check_log(log.settings) == []
    log.desk.send(AddKey(IVAN, public("i"), NOW + 50), "i")
    log.cycle()
    log.cycle()
    assert log.publisher.published_size == 15
    assert log.leaves()[-1].input_size == 15
    assert check_log(log.settings) == []


def test_whoever_restores_is_warned_of_two_copies_that_run(world, monkeypatch):
    """The command's own words: nothing but these stands between a drill beside a running log and two histories."""
    back(world)
    world.lose()
    monkeypatch.setattr(Fetcher, "from_environment", classmethod(lambda cls, **_: world))
    monkeypatch.setattr(command_module.time, "time", lambda: world.log.clock())
    new = world.directory / "new"
    words = [str(world.target), "--dir", str(new), "--keys", str(world.keys)]
    done = CliRunner().invoke(command_module.command, words)
    assert done.exit_code == 0, done.exception
    assert f"{new} is the log again: 14 entries, 0 of them recovered" in done.stderr and done.stdout == ""
    assert "two copies that run sign two histories, and that convicts the log for ever" in done.stderr
    assert "drill, remove it" in done.stderr and "secret keys are not there" not in done.stderr
    shutil.rmtree(new)
    (world.keys / "leaf").rename(world.directory / "leaf")
    done = CliRunner().invoke(command_module.command, words)
    assert re.search(r"secret keys are not there yet: .* credentials \(leaf\)\.", done.stderr)
    shutil.rmtree(new)
    done = CliRunner().invoke(command_module.command, [*words, "--json"])
    assert json.loads(done.stdout)["size"] == 14 and done.stderr == ""


def test_a_copy_that_is_behind_is_refused_and_says_what_is_lost(world):
    back(world)
    more(world)
    world.lose()
    error = refused(world, "BackupBehind")
    assert "entries 14 to 17" in error.message
    assert world.log.store.root_after(18).hex() in error.message
    assert "ktlog.toml" in {path.name.removesuffix(".restoring") for path in (world.directory / "new").iterdir()}


def test_a_backup_that_an_older_release_took_comes_back(world):
    """With the schema of then, which differed in its number alone: the copy is brought up to date, the backup stays."""
    backup = back(world)
    with closing(sqlite3.connect(backup / "log.db")) as database:
        database.execute("UPDATE log_meta SET schema_version = 6, oldest_code = 6")
        database.execute("DELETE FROM _sqlite_migrations WHERE name = ?", (schema.STEPS[6].name,))
        database.commit()
    manifest = read_manifest(backup)
    files = manifest.files | {"log.db": hash_file(backup / "log.db")}
    (backup / "MANIFEST.json").write_bytes(format_manifest(replace(manifest, files=files)))
    world.lose()
    assert world.restore().size == 14
    assert check_log(world.serve_restored().settings) == []
    assert list(check_files(backup, read_manifest(backup))) == []
    assert not list((world.directory / "new").glob("*.schema-*")), "an erasure that is done again would not reach it"


def signed_heads(directory: Path) -> list[SignedHead | None]:
    return [load_signed_head(FileDocument(directory / name)) for name in ("signed-head.json", "map-signed-head.json")]


def test_what_is_lost_is_recovered_from_a_mirror_with_its_erasures(world):
    back(world)
    more(world)
    mirror = world.mirror()
    everything_before = everything(world.log.store)
    leaves = world.log.map.output_leaves(0, world.log.map.state().output.size)
    heads = signed_heads(world.log.settings.directory)
    world.lose()
    refused(world, "BackupBehind")
    done = world.restore(mirror=mirror)
    assert (done.size, done.recovered[0], done.map_size) == (18, 4, len(leaves))
    assert signed_heads(world.directory / "new") == heads, "with their times: nothing is signed before them"
    log = world.serve_restored()
    assert everything(log.store) == everything_before
    assert log.store.actor(HUGO).status == Status.ERASED
    assert HUGO.encode() not in log.settings.database.read_bytes()
    assert check_log(log.settings) == []
    assert log.map.output_leaves(0, len(leaves)) == leaves
    log.desk.send(AddKey(f"{IVAN}2", public("i2"), NOW + 60), "i2")
    log.cycle()
    log.cycle()
    assert log.publisher.published_size == 19
    assert check_log(log.settings) == []


def test_who_does_not_answer_may_have_seen_more(world):
    back(world)
    world.lose()
    world.down.add(urlsplit(world.log.witnesses[0].url).netloc)
    refused(world, "NotCompared")
    assert len(world.restore(accept_unknown=True).unknown) == 1


def test_a_witness_that_shows_nothing_tells_how_far_it_is_when_offered_less(world):
    back(world)
    more(world)
    world.lose()
    world.seen.clear()
    error = refused(world, "BackupBehind")
    assert "entries 14 to 17" in error.message


def test_a_copy_of_another_history_is_refused_for_ever(world):
    back(world)
    world.lose()
    host = urlsplit(world.log.witnesses[0].url).netloc
    signers = load_checkpoint_signers(world.keys, ORIGIN)
    text = format_checkpoint(Checkpoint(ORIGIN, 13, bytes(32)))
    world.seen[host, ORIGIN] = format_note(Note(text, tuple(signer.sign(text, NOW) for signer in signers)))
    refused(world, "TwoHistories")


def test_a_newer_journal_erases_again(world):
    back(world)
    world.log.forget(HUGO)  # and then, before anything was published of it, the disk is lost
    journal = world.directory / "journal.jsonl"
    journal.write_bytes(world.log.settings.journal.read_bytes())
    world.lose()
    done = world.restore(journal=journal)
    assert done.erasures == 1
    log = world.serve_restored()
    assert log.store.actor(HUGO).status == Status.ERASED


def test_a_damaged_backup_is_refused(world):
    path = back(world)
    world.lose()
    data = (path / "log.db").read_bytes()
    (path / "log.db").write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    assert "log.db" in refused(world, "BackupDamaged").message


def test_nothing_is_overwritten(world):
    back(world)
    world.lose()
    (world.directory / "new").mkdir()
    (world.directory / "new" / "log.db").write_bytes(b"")
    refused(world, "DirectoryInUse")


def test_an_old_copy_that_is_served_without_asking_is_refused_by_the_guards(world):
    """Whoever copies the files by hand meets the witnesses' answer at the start."""
    path = back(world)
    more(world)
    world.lose()
    shutil.copytree(path, world.directory / "new")
    shutil.copytree(world.keys, world.directory / "new" / "keys")
    log = world.serve_restored()
    with pytest.raises(PolicyUnmet, match="NotCompared"):
        log.publisher.publish_if_due()
    assert log.leaves()[-1].input_size == 14
    (world.directory / "new" / "signed-head.json").unlink()
    with pytest.raises(StoreError, match="SignedHeadLost"):
        world.serve_restored()


@pytest.mark.slow
def test_a_second_backup_links_what_did_not_change(world):
    world.log.enrol_many(260)
    world.log.cycle()
    first, second = back(world), back(world)
    full = "tiles/tile/entries/000"
    assert (first / full).stat().st_ino == (second / full).stat().st_ino
    assert (first / full).stat().st_ino != (world.log.settings.directory / full).stat().st_ino
    assert list(check_files(second, read_manifest(second))) == []


def test_backups_stand_side_by_side_and_old_ones_are_pruned(world):
    first = back(world)
    more(world)
    second = back(world, with_keys=True)
    for path in (first, second):
        manifest = read_manifest(path)
        assert list(check_files(path, manifest)) == []
        assert set(manifest.files) == {
            str(one.relative_to(path)) for one in path.rglob("*") if one.is_file() and one.name != "MANIFEST.json"
        }
    assert not read_manifest(first).keys and not (first / "keys").exists()
    assert (second / "keys" / "leaf").stat().st_mode & 0o777 == 0o600
    assert HUGO.encode() in (first / "log.db").read_bytes()
    assert prune(world.target, erased=True) == [first]
    assert generations(world.target) == [second]


def test_published_files_are_checked_from_outside(world):
    assert examine_url(f"https://{ORIGIN}", world).kept == []
    mirror = world.mirror()
    assert examine_url(mirror, world).kept == []
    path = world.log.settings.tiles / "tile" / "0" / "000.p" / "14"
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert [one.name for one in examine_url(f"https://{ORIGIN}", world).kept] == ["TileDamaged"]
