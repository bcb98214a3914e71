"""A log gets new keys: what is told, what is kept, what is destroyed, and that a death on the way does no harm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from click.testing import CliRunner

from ktlog.commands.keys import command
from ktlog.config import Settings, write_settings
from ktlog.durable import FileLock
from ktlog.errors import Invalid, KtlogError, StoreError
from ktlog.operator import rotate as rotate_module
from ktlog.operator.create import check_public_keys, create_log, load_public_keys
from ktlog.operator.custody import local_custody
from ktlog.operator.hpkekeys import load_hpke_keys, open_hpke
from ktlog.operator.keys import PURPOSES, destroy_old, load_seed, old_paths, public_text
from ktlog.operator.migrate import finish_move
from ktlog.operator.rotate import (
    HOOKS,
    OVERLAP_SECONDS,
    check_signing_keys,
    check_web_keys,
    newest_keys,
    read_changes,
    rotate,
    settle,
)
from ktlog.operator.service import Service
from ktlog.operator.stopped import LOCKS
from ktlog.pkd.entry import leaf_key_hash, verify_entry
from ktlog.pkd.hpke import DecapsulationKey, seal_message
from ktlog.pkd.keychanges import KINDS, parse_changes, successors, verify_changes
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.note import Note, open_note, parse_vkey
from ktlog.tlog.policy import format_policy
from ktlog.tlog.tree import EMPTY_ROOT
from ktlog.web.context import Context
from tests.operator_world import NOW, ORIGIN, WITNESS_NAMES, Clock, FakeWitness, witness_policy
from tests.store_samples import Draft, append

DAY = 86_400


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Settings:
    settings = create_log(tmp_path_factory.mktemp("made") / "log", ORIGIN, "spec", bytes(32))
    with SqliteStore.open(settings.database, origin=ORIGIN) as store:
        append(store, *(Draft(f"entry {n}") for n in range(3)))
    return settings


@pytest.fixture
def settings(made, tmp_path) -> Settings:
    """A stopped log with three entries, copied: its RSA key takes long to make."""
    shutil.copytree(made.directory, tmp_path / "log")
    return replace(made, directory=tmp_path / "log")


def name_of(action) -> str:
    with pytest.raises(KtlogError) as caught:
        action()
    return caught.value.name


def key_files(settings: Settings) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in settings.keys.iterdir()}


def check(settings: Settings, now: int = NOW) -> None:
    """Whatever starts next uses the keys that are told of, and no others."""
    public = check_public_keys(settings, local_custody(settings, lambda: now).public)
    check_signing_keys(settings, public)
    check_web_keys(settings)
    newest = newest_keys(read_changes(settings))
    for purpose in PURPOSES:
        public_half = public_text(settings.origin, purpose, load_seed(settings.keys, purpose))
        assert newest.get(purpose, public_half) == public_half
    assert not [path for path in settings.keys.iterdir() if path.suffix == ".next"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in settings.keys.iterdir())


# --- each kind


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_rotation_leaves(settings, kind):
    before, public = key_files(settings), load_public_keys(settings)
    change = rotate(settings, kind, "yearly", NOW)
    with SqliteStore.open(settings.database, read_only=True) as store:
        assert (change.tree_size, change.root) == (3, store.state().root)
    assert (change.kind, change.reason, change.time, change.until) == (kind, "yearly", NOW, NOW + OVERLAP_SECONDS[kind])
    published = settings.key_changes.read_bytes()
    assert settings.key_changes.stat().st_mode & 0o777 == 0o644
    assert parse_changes(published) == (change,)
    verify_changes((change,), ORIGIN)
    after = key_files(settings)
    names = {"fetch-rsa.pem"} if kind == "fetch" else set(KINDS[kind])
    assert {name for name in before if before[name] != after[name]} == names
    aside = {f"{name}.until-{change.until}": before[name] for name in names} if OVERLAP_SECONDS[kind] else {}
    assert {name: after[name] for name in after.keys() - before.keys()} == aside
    new = load_public_keys(settings)
    assert new.leaf_keys[:1] == public.leaf_keys and len(new.leaf_keys) == 1 + (kind == "leaf")
    assert (new.vkeys != public.vkeys, new.map_vkeys != public.map_vkeys) == (kind == "checkpoint", kind == "map")
    assert new.retired_vkeys == (public.vkeys if kind == "checkpoint" else ())
    assert new.retired_map_vkeys == (public.map_vkeys if kind == "map" else ())
    # Whoever has pinned an old key finds the new one.
    for old, now in ((public.vkeys, new.vkeys), (public.map_vkeys, new.map_vkeys)):
        found = successors((change,), tuple(map(parse_vkey, old)))
        assert [str(one.new) for one in found] == ([] if old == now else list(now))
    check(settings)


def test_a_year_of_them(settings):
    """Each again and again, in one chain; what is over is destroyed by whatever comes next."""
    public = load_public_keys(settings)
    for number, kind in enumerate((*KINDS, *KINDS)):
        rotate(settings, kind, "", NOW + number * 400 * DAY)
    changes = read_changes(settings)
    assert [change.number for change in changes] == list(range(12))
    assert len(load_public_keys(settings).leaf_keys) == 3
    assert [str(one.new) for one in successors(changes, tuple(map(parse_vkey, public.vkeys)))][-2:] == list(
        load_public_keys(settings).vkeys
    )
    last = NOW + 12 * 400 * DAY
    settle(settings, last)
    assert not [name for name in key_files(settings) if ".until-" in name]
    check(settings, last)


def test_entries_of_the_old_leaf_key_and_of_the_new(settings):
    old = local_custody(settings, lambda: NOW).sign_entries([b"old"])[0]
    rotate(settings, "leaf", "", NOW)
    new = local_custody(settings, lambda: NOW).sign_entries([b"new"])[0]
    keys = {leaf_key_hash(key): key for key in load_public_keys(settings).leaf_keys}
    verify_entry(old, b"old", keys)
    verify_entry(new, b"new", keys)
    del keys[leaf_key_hash(load_public_keys(settings).leaf_keys[0])]
    with pytest.raises(Invalid, match="BadLeafSignature"):
        verify_entry(old, b"old", keys)


def test_both_checkpoint_keys_sign_until_the_old_one_s_time_is_over(settings):
    old = tuple(map(parse_vkey, load_public_keys(settings).vkeys))
    text = format_checkpoint(Checkpoint(ORIGIN, 0, EMPTY_ROOT))
    until = rotate(settings, "checkpoint", "", NOW, 10).until
    new = tuple(map(parse_vkey, load_public_keys(settings).vkeys))
    clock = [NOW]
    heads = local_custody(settings, lambda: clock[0]).log_heads
    assert heads.vkeys() == (*new, *old)
    for now, vkeys in ((NOW, (*new, *old)), (until - 1, (*new, *old)), (until, new)):
        clock[0] = now
        note = Note(text, heads.sign(text, ()))
        assert tuple(one.vkey for one in open_note(note, (*new, *old))) == vkeys == heads.vkeys()
        assert len(note.signatures) == len(vkeys)


def test_messages_to_the_old_hpke_key_are_read_for_a_while(settings):
    old = DecapsulationKey.from_seed(load_seed(settings.keys, "hpke"))
    sealed = seal_message(old.encapsulation_key, b"to the old key")
    until = rotate(settings, "hpke", "", NOW).until
    clock = [NOW]
    keys = load_hpke_keys(settings.keys, lambda: clock[0])
    assert keys.encapsulation_key != old.encapsulation_key
    assert open_hpke(keys, seal_message(keys.encapsulation_key, b"to the new one")) == b"to the new one"
    assert open_hpke(keys, sealed) == open_hpke(old, sealed) == b"to the old key"
    clock[0] = until
    with pytest.raises(Invalid, match="HpkeOpenFailed"):
        open_hpke(keys, sealed)
    assert [path.name for path in destroy_old(settings.keys, until)] == [f"hpke.until-{until}"]
    assert old_paths(settings.keys, "hpke") == ()
    clock[0] = NOW
    with pytest.raises(Invalid, match="HpkeOpenFailed"):
        open_hpke(keys, sealed)  # the process has forgotten it, too


def test_a_stolen_key_goes_at_once(settings):
    for kind in ("hpke", "checkpoint"):
        change = rotate(settings, kind, "stolen", NOW, 0)
        assert change.until == change.time
    assert not [name for name in key_files(settings) if ".until-" in name]
    check(settings)


# --- what it refuses


@pytest.mark.parametrize("lock", LOCKS)
def test_not_while_the_log_runs(settings, lock):
    before = key_files(settings)
    with FileLock(settings.directory / lock):
        assert name_of(lambda: rotate(settings, "leaf", "", NOW)) == "Locked"
        assert name_of(lambda: settle(settings, NOW)) == "Locked"
    assert key_files(settings) == before
    assert not settings.key_changes.exists()


def test_root_leaves_nothing_of_its_own_in_another_users_log(settings, monkeypatch):
    """A log that never ran has no locks yet, and could not open root's."""
    if os.geteuid() == 0:
        os.chown(settings.directory, 65534, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    before = sorted(os.listdir(settings.directory))
    for lock in LOCKS:
        (settings.directory / lock).unlink(missing_ok=True)
    for refuse in (
        lambda: rotate(settings, "leaf", "", NOW), lambda: settle(settings, NOW), lambda: finish_move(settings),
    ):
        with pytest.raises(StoreError) as caught:
            refuse()
        assert caught.value.name == "OtherUser" and "runuser -u " in caught.value.hint
    assert sorted(os.listdir(settings.directory)) == [name for name in before if name not in LOCKS]


def test_what_it_does_not_do(settings):
    assert name_of(lambda: rotate(settings, "root", "", NOW)) == "UnknownKind"
    assert name_of(lambda: rotate(settings, "leaf", "a\nb", NOW)) == "BadReason"
    assert name_of(lambda: rotate(settings, "leaf", "x" * 201, NOW)) == "BadReason"
    rotate(settings, "leaf", "", NOW)
    assert name_of(lambda: rotate(settings, "leaf", "", NOW - 1)) == "ClockWentBack"
    (settings.keys / "fetch-rsa.pem").unlink()
    assert name_of(lambda: rotate(settings, "fetch", "", NOW)) == "NoFetchKey"
    published = settings.key_changes.read_bytes()
    for damaged in (published.replace(b'"kind":"leaf"', b'"kind":"hpke"'), published[10:], published + published):
        settings.key_changes.write_bytes(damaged)
        assert name_of(lambda: rotate(settings, "hpke", "", NOW)) == "BadKeyChanges"
        assert name_of(lambda: check_web_keys(settings)) == "BadKeyChanges"
        assert settings.key_changes.read_bytes() == damaged


@pytest.mark.parametrize("kind", ["leaf", "checkpoint", "map"])
def test_lines_that_are_gone_stop_the_log(settings, kind):
    """Or the next rotation would begin a second history, which whoever knows the first one takes for a thief's."""
    rotate(settings, kind, "", NOW)
    rotate(settings, "hpke", "", NOW)
    lines = settings.key_changes.read_bytes()
    settings.key_changes.unlink()
    assert name_of(lambda: check(settings)) == "KeyChangesLost"
    assert name_of(lambda: rotate(settings, "http", "", NOW)) == "KeyChangesLost"
    assert not settings.key_changes.exists()
    settings.key_changes.write_bytes(lines)
    check(settings)


def test_what_could_not_be_read_again_is_not_written(settings):
    assert name_of(lambda: rotate(settings, "leaf", "", NOW, 2**70)) == "BadKeyChange"
    assert not settings.key_changes.exists()
    rotate(settings, "leaf", "", NOW)
    check(settings)


def test_two_rotations_in_one_second_keep_both_old_keys(settings):
    before = [load_seed(settings.keys, "checkpoint-ed25519")]
    first = rotate(settings, "checkpoint", "", NOW)
    before.append(load_seed(settings.keys, "checkpoint-ed25519"))
    second = rotate(settings, "checkpoint", "", NOW)
    assert second.until == first.until + 1
    kept = {path.read_bytes() for path, _ in old_paths(settings.keys, "checkpoint-ed25519")}
    assert kept == set(before)
    assert len(local_custody(settings, lambda: NOW).log_heads.vkeys()) == 6


def test_a_log_does_not_run_with_a_key_that_has_a_successor(settings):
    """An old key put back over the new one, whoever did it."""
    policy = witness_policy([FakeWitness(WITNESS_NAMES[0], 10, Clock())], 1)
    settings.publish_policy.write_bytes(format_policy(policy))
    before, public = key_files(settings), (settings.directory / "public-keys.json").read_bytes()
    for kind in ("leaf", "checkpoint", "map"):
        rotate(settings, kind, "", NOW, 0)
        after = key_files(settings)
        for name in KINDS[kind]:
            (settings.keys / name).write_bytes(before[name])
        assert name_of(lambda: Service(settings)) == "KeysDiffer"
        now = (settings.directory / "public-keys.json").read_bytes()
        (settings.directory / "public-keys.json").write_bytes(public)
        if kind == "leaf":
            assert name_of(lambda: Service(settings)) == "RotationUnfinished"
        (settings.directory / "public-keys.json").write_bytes(now)
        for name in KINDS[kind]:
            (settings.keys / name).write_bytes(after[name])
        Service(settings)._store.close()  # with the right one it would
    for kind in ("hpke", "http"):
        rotate(settings, kind, "", NOW, 0)
        after = key_files(settings)
        (settings.keys / KINDS[kind][0]).write_bytes(before[KINDS[kind][0]])
        assert name_of(lambda: Context(settings, load_public_keys(settings))) == "RotationUnfinished"
        (settings.keys / KINDS[kind][0]).write_bytes(after[KINDS[kind][0]])
    Context(settings, load_public_keys(settings))


# --- a death on the way

RUN = """
import sys
from pathlib import Path
from ktlog.config import load_settings
from ktlog.operator.rotate import rotate
rotate(load_settings(Path(sys.argv[1])), sys.argv[2], "a drill", int(sys.argv[3]))
"""


def rotate_until_dead(settings: Settings, kind: str, hook: str) -> None:
    write_settings(settings)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(settings.directory), kind, str(NOW)],
        env={**os.environ, "KTLOG_KILL_AT": hook}, check=False, capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(("kind", "hook"), [
    *(("checkpoint", hook) for hook in (*HOOKS, "rotate.put_aside:2", "rotate.switched:2")),
    *(("checkpoint", f"durable.{step}:{count}") for step in ("staged", "named") for count in (1, 2, 3, 4)),
    ("hpke", "rotate.announced"), ("leaf", "rotate.switched"), ("http", "rotate.put_aside"),
])
def test_killed_while_it_rotates(settings, kind, hook):
    before, public = key_files(settings), load_public_keys(settings)
    rotate_until_dead(settings, kind, hook)
    announced = read_changes(settings)
    assert len(announced) in (0, 1)
    for purpose in KINDS[kind]:  # no file has a key that is neither the old one nor the announced one
        now = public_text(settings.origin, purpose, load_seed(settings.keys, purpose))
        old = public_text(settings.origin, purpose, before[purpose])
        assert now in (old, newest_keys(announced).get(purpose, old))
    if not announced:
        assert load_public_keys(settings) == public
        check_signing_keys(settings, check_public_keys(settings, local_custody(settings, lambda: NOW).public))
        change = rotate(settings, kind, "again", NOW)
    else:
        change = announced[0]
        settle(settings, NOW)
    assert read_changes(settings) == (change,)
    aside = {path.name: path.read_bytes() for purpose in KINDS[kind] for path, _ in old_paths(settings.keys, purpose)}
    assert aside == (
        {f"{name}.until-{change.until}": before[name] for name in KINDS[kind]} if OVERLAP_SECONDS[kind] else {}
    )
    check(settings)
    assert settle(settings, NOW) == ()


def test_the_hooks_are_in_the_order_in_which_they_are_reached(settings, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(rotate_module, "reach", seen.append)
    rotate(settings, "hpke", "", NOW)
    assert tuple(seen) == HOOKS


# --- the command


def test_the_command(settings):
    write_settings(settings)
    run, kept = CliRunner().invoke, settings.directory / "kept"
    at = ["--dir", str(settings.directory)]
    assert json.loads(run(command, ["list", *at, "--json"]).stdout)["changes"] == []
    result = run(command, ["rotate", "map", *at, "--reason", "yearly"])
    assert result.exit_code == 0, result.output
    public = load_public_keys(settings)
    assert all(vkey in result.output for vkey in public.map_vkeys)
    assert f"log {public.map_vkeys[1]} https://{ORIGIN}/map" in result.output
    summary = json.loads(run(command, ["rotate", "leaf", *at, "--json", "--overlap-days", "0"]).stdout)
    assert (summary["kind"], summary["tree-size"], summary["number"]) == ("leaf", 3, 1)
    shown = run(command, ["list", *at])
    assert "yearly" in shown.output and public.vkeys[0] in shown.output
    assert max(map(len, shown.stdout.splitlines())) < 150
    listed = json.loads(run(command, ["list", *at, "--json"]).stdout)
    assert len(listed["changes"]) == 2
    current = {key["purpose"]: key["key"] for key in listed["keys"] if key["current"]}
    assert current == {
        purpose: public_text(settings.origin, purpose, (settings.keys / name).read_bytes())
        for purpose, name in ((one, "fetch-rsa.pem" if one == "fetch-rsa" else one) for kind in KINDS.values() for one in kind)
    }
    old = {key["purpose"]: (key["key"], key["until"]) for key in listed["keys"] if not key["current"]}
    assert old.keys() == {"map-ed25519", "map-mldsa44", "leaf"}
    assert old["map-mldsa44"][0] == load_public_keys(settings).retired_map_vkeys[1]
    settings.keys.rename(kept)
    assert shown.stdout.count("current") == 9 and "not in this directory" in run(command, ["list", *at]).stdout
    kept.rename(settings.keys)
    assert "nothing is to be done" in run(command, ["settle", *at]).output
    assert run(command, ["rotate", "nothing", *at]).exit_code == 2


def test_one_reader_for_many_threads(settings):
    """The old key is dropped under the readers' feet; nobody sees half a list."""
    old = DecapsulationKey.from_seed(load_seed(settings.keys, "hpke"))
    until = rotate(settings, "hpke", "", NOW).until
    clock = iter([*(NOW for _ in range(40)), *(until for _ in range(400))])
    lock = threading.Lock()

    def now() -> int:
        with lock:
            return next(clock)

    keys = load_hpke_keys(settings.keys, now)
    sealed, results = seal_message(old.encapsulation_key, b"x"), []

    def read() -> None:
        for _ in range(20):
            try:
                results.append(open_hpke(keys, sealed))
            except Invalid:
                results.append(None)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80 and set(results) == {b"x", None}



def test_a_running_log_destroys_what_is_over(settings):
    """The sequencer's process does it; it removes, and reads nothing."""
    settings.publish_policy.write_bytes(
        format_policy(witness_policy([FakeWitness(WITNESS_NAMES[0], 10, Clock())], 1))
    )
    rotate(settings, "hpke", "", 1)
    service = Service(settings)
    assert [name for name in key_files(settings) if ".until-" in name]
    service._keep_house()
    service._store.close()
    assert not [name for name in key_files(settings) if ".until-" in name]
