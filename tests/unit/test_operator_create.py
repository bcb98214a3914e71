"""``ktlog init``: a directory that is a log, or nothing."""

from __future__ import annotations

import json
import sqlite3
import stat

import pytest
from click.testing import CliRunner

from ktlog.commands import init
from ktlog.config import Settings, load_settings
from ktlog.errors import KtlogError, StoreError, UsageError
from ktlog.keymap.output import format_config, parse_config
from ktlog.operator.create import check_origin, create_log, load_public_keys
from ktlog.operator.keys import (
    FETCH_KEY,
    PURPOSES,
    create_keys,
    derive_seed,
    load_checkpoint_signers,
    load_leaf_key,
    load_seed,
)
from ktlog.operator.stores import map_config
from ktlog.pkd.keys import encode_public_key
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, parse_vkey

ORIGIN = "keys.example.com"
SEED = bytes(range(32))


def name_of(action) -> str:
    with pytest.raises(KtlogError) as caught:
        action()
    return caught.value.name


def test_a_new_log(tmp_path):
    directory = tmp_path / "deep" / "log"
    settings = create_log(directory, ORIGIN, "spec", SEED)
    assert load_settings(directory, None, {}) == settings
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {path.name for path in directory.iterdir()} == {
        "keys", "ktlog.toml", "log.db", "map.db", "public-keys.json", "tiles",
    }
    with SqliteStore.open(settings.database, origin=ORIGIN) as store:
        assert (store.origin, store.dialect, store.state().size) == (ORIGIN, "spec", 0)


def test_what_the_map_begins_with_may_be_chosen(tmp_path):
    directory = tmp_path / "log"
    arguments = ["--dir", str(directory), "--origin", ORIGIN, "--heartbeat-seconds", "30", "--notice-seconds", "60"]
    assert CliRunner().invoke(init.command, arguments).exit_code == 0
    settings = load_settings(directory, None, {})
    assert (settings.heartbeat_seconds, settings.notice_seconds) == (30, 60)
    with sqlite3.connect(settings.map_database) as database:
        ((config,),) = database.execute("SELECT leaf FROM output_leaves")
    assert (parse_config(config).heartbeat, parse_config(config).notice) == (30, 60)


def test_key_files_are_private_different_and_the_seed_is_not_kept(tmp_path):
    settings = create_log(tmp_path / "log", ORIGIN, "spec", SEED)
    assert stat.S_IMODE(settings.keys.stat().st_mode) == 0o700
    assert {path.name for path in settings.keys.iterdir()} == {*PURPOSES, FETCH_KEY}
    seeds = {purpose: load_seed(settings.keys, purpose) for purpose in PURPOSES}
    for path in settings.keys.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(path.read_bytes()) == 32 or path.name == FETCH_KEY
    assert len(set(seeds.values()) | {SEED}) == len(PURPOSES) + 1
    for path in (tmp_path / "log").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SEED not in content
            assert SEED.hex().encode() not in content
            # No secret but in its own file: what the web workers may read holds none.
            assert sum(seed in content for seed in seeds.values()) == (path.parent == settings.keys and path.name != FETCH_KEY)


def test_a_seed_fixes_every_key_and_the_origin_enters(tmp_path):
    logs = [
        create_log(tmp_path / name, origin, "spec", seed)
        for name, origin, seed in (
            ("one", ORIGIN, SEED), ("same", ORIGIN, SEED), ("origin", "keys.example.net", SEED),
            ("seed", ORIGIN, b"\x01" * 32), ("random", ORIGIN, None), ("random2", ORIGIN, None),
        )
    ]
    vkeys = [load_public_keys(settings).vkeys for settings in logs]
    assert vkeys[0] == vkeys[1]
    assert len({vkey for pair in vkeys for vkey in pair}) == 10
    # Written by this project: whoever changes the derivation changes what a seed file in a test stands for.
    assert vkeys[0][0] == "keys.example.com+21f08f7d+ASwyYWMPNY5FNDdqKFIKe8jo2SZs6k9I5MWEAitJMNlA"
    for purpose in PURPOSES:
        found = {load_seed(settings.keys, purpose) for settings in logs}
        assert len(found) == 5


def test_derivation_is_injective_in_origin_and_purpose():
    """Length-prefixed: moving a character from one to the other is another key."""
    seeds = {derive_seed(SEED, origin, purpose) for origin, purpose in (
        ("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc"), ("ab", "c\0"),
    )}
    assert len(seeds) == 5


def test_public_keys_are_those_of_the_private_ones(tmp_path):
    settings = create_log(tmp_path / "log", ORIGIN, "spec", None)
    public = load_public_keys(settings)
    signers = load_checkpoint_signers(settings.keys, ORIGIN)
    assert [parse_vkey(text) for text in public.vkeys] == [signer.vkey for signer in signers]
    assert [signer.vkey.algorithm for signer in signers] == [ED25519, COSIGNATURE_MLDSA44]
    assert {signer.vkey.name for signer in signers} == {ORIGIN}
    assert public.leaf_keys == (load_leaf_key(settings.keys).public,)


# --- refusals


def test_init_never_overwrites(tmp_path):
    directory = tmp_path / "log"
    create_log(directory, ORIGIN, "spec", SEED)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert name_of(lambda: create_log(directory, "keys.example.net", "spec", None)) == "DirectoryInUse"
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_a_directory_with_anything_in_it(tmp_path):
    (tmp_path / "unrelated").write_text("mine")
    assert name_of(lambda: create_log(tmp_path, ORIGIN, "spec", SEED)) == "DirectoryInUse"
    assert [path.name for path in tmp_path.iterdir()] == ["unrelated"]


def test_a_file_where_the_directory_should_be(tmp_path):
    (tmp_path / "log").write_text("mine")
    assert name_of(lambda: create_log(tmp_path / "log", ORIGIN, "spec", SEED)) in ("DirectoryInUse", "CannotCreate")
    assert name_of(lambda: create_log(tmp_path / "log" / "below", ORIGIN, "spec", SEED)) == "CannotCreate"
    assert (tmp_path / "log").read_text() == "mine"


def test_an_empty_directory_is_taken_and_closed_to_others(tmp_path):
    tmp_path.chmod(0o755)
    create_log(tmp_path, ORIGIN, "spec", SEED)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@pytest.mark.parametrize("origin", [
    "", "keys", "localhost", "Keys.example.com", "keys.example.com.", ".example.com", "keys..example.com",
    "keys.example.com/", "keys.example.com/log", "https://keys.example.com", "keys.example.com:443",
    "keys.example.com:8443", "user@keys.example.com", "keys.example.com?x", "keys.example.com#x", "keys example.com",
    "keys.example.com\n", "ключи.example.com", "keys_1.example.com", "-keys.example.com", "127.0.0.1", "[::1]",
    "0x7f.1", "keys.example.1", "a" * 64 + ".example.com", ".".join(["a" * 60] * 5), "keys.example.com+x",
    ".".join(["a" * 49] * 5) + ".ab",  # a host name, but O/map would be too long for a checkpoint
])
def test_an_origin_is_a_host_name_and_nothing_else(tmp_path, origin):
    with pytest.raises(UsageError, match="BadOrigin"):
        check_origin(origin)
    assert name_of(lambda: create_log(tmp_path / "log", origin, "spec", SEED)) == "BadOrigin"
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("origin", ["keys.example.com", "a.bc", "xn--e1afmkfd.example", "k-1.example.co.uk"])
def test_good_origins(origin):
    check_origin(origin)


def test_an_unknown_dialect_makes_nothing(tmp_path):
    assert name_of(lambda: create_log(tmp_path / "log", ORIGIN, "v0", SEED)) == "UnknownDialect"
    assert not (tmp_path / "log").exists()


def test_keys_are_never_written_twice(tmp_path):
    create_keys(tmp_path / "keys", ORIGIN, SEED)
    with pytest.raises(StoreError, match="KeysExist"):
        create_keys(tmp_path / "keys", ORIGIN, b"\x01" * 32)
    assert load_seed(tmp_path / "keys", "leaf") == derive_seed(SEED, ORIGIN, "leaf")


def test_a_key_file_that_others_may_read_is_not_used(tmp_path):
    settings = create_log(tmp_path / "log", ORIGIN, "spec", SEED)
    (settings.keys / "leaf").chmod(0o640)
    assert name_of(lambda: load_leaf_key(settings.keys)) == "UnsafeSecret"
    (settings.keys / "leaf").unlink()
    assert name_of(lambda: load_leaf_key(settings.keys)) == "MissingSecret"


@pytest.mark.parametrize("content", [
    "", "{}", "[]", "null", '{"vkeys":[],"leaf-keys":5}', '{"vkeys":5,"leaf-keys":[]}', '{"vkeys":[],"leaf-keys":[5]}',
    '{"vkeys":[],"leaf-keys":["mldsa44:x"]}', '{"vkeys":[],"leaf-keys":[null]}',
])
def test_a_damaged_list_of_public_keys(tmp_path, content):
    settings = create_log(tmp_path / "log", ORIGIN, "spec", SEED)
    (settings.directory / "public-keys.json").write_text(content)
    assert name_of(lambda: load_public_keys(settings)) == "BadPublicKeys"


def test_the_list_of_public_keys_is_plain_json(tmp_path):
    settings = create_log(tmp_path / "log", ORIGIN, "spec", SEED)
    found = json.loads((settings.directory / "public-keys.json").read_text())
    assert found["leaf-keys"] == [encode_public_key(load_leaf_key(settings.keys).public)]
    assert len(found["vkeys"]) == 2


@pytest.mark.parametrize(("setting", "seconds"), [
    ("heartbeat_seconds", 0), ("heartbeat_seconds", -1), ("heartbeat_seconds", 86_401), ("notice_seconds", 0),
])
def test_promises_that_no_reader_would_take_are_refused_before_they_are_made(tmp_path, setting, seconds):
    with pytest.raises(UsageError) as refusal:
        Settings(tmp_path, ORIGIN, "spec", **{setting: seconds})
    assert refusal.value.name == "BadSetting"
    longest = Settings(tmp_path, ORIGIN, "spec", heartbeat_seconds=86_400, notice_seconds=10**9)
    config = map_config(longest)
    assert parse_config(format_config(config)) == config
