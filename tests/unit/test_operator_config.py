"""ktlog.toml, the environment, flags: which one wins, and what none of them may say."""

from __future__ import annotations

import stat
from dataclasses import fields
from pathlib import Path

import pytest

from ktlog.config import Settings, load_settings, socket_path, write_settings
from ktlog.errors import StoreError, UsageError

MINIMAL = 'origin = "keys.example.com"\ndialect = "spec"\n'
NUMBERS = [field.name for field in fields(Settings) if type(field.default) is int]


def write(directory: Path, text: str = MINIMAL) -> Path:
    (directory / "ktlog.toml").write_text(text, encoding="utf-8")
    return directory


def load(directory: Path, flags=None, **environment: str) -> Settings:
    return load_settings(directory, flags, environment)


def refusal(directory: Path, flags=None, **environment: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(directory, flags, **environment)
    assert caught.value.exit_code == 2
    return caught.value


def test_defaults(tmp_path):
    settings = load(write(tmp_path))
    assert settings == Settings(tmp_path, "keys.example.com", "spec")
    assert (settings.url, settings.actor_id) == (
        "https://keys.example.com", "https://keys.example.com/users/pubkeydir"
    )
    assert {settings.database, settings.tiles, settings.keys, settings.publish_policy, settings.signed_head,
            settings.socket_record} == {
        tmp_path / name for name in ("log.db", "tiles", "keys", "publish.policy", "signed-head.json", "sequencer.addr")
    }
    assert settings.aux_type_names() == {"age-v1", "ssh-v2"}


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path):
    write(tmp_path, MINIMAL + 'workers = 3\nlisten = "127.0.0.1:1"\naux_types = "a b"\n')
    assert load(tmp_path).threads == 8
    assert load(tmp_path).workers == 3
    assert load(tmp_path, KTLOG_WORKERS="4").workers == 4
    assert load(tmp_path, {"workers": 5}, KTLOG_WORKERS="4").workers == 5
    assert load(tmp_path, {"workers": None, "listen": None}, KTLOG_WORKERS="4").workers == 4
    assert load(tmp_path, {"listen": "127.0.0.1:3"}, KTLOG_LISTEN="127.0.0.1:2").listen == "127.0.0.1:3"
    assert load(tmp_path, KTLOG_LISTEN="127.0.0.1:2").listen == "127.0.0.1:2"
    assert load(tmp_path).aux_type_names() == {"a", "b"}
    assert load(tmp_path, KTLOG_AUX_TYPES="").aux_type_names() == frozenset()


def test_the_process_s_own_environment_is_the_default(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setenv("KTLOG_HEARTBEAT_SECONDS", "77")
    assert load_settings(tmp_path).heartbeat_seconds == 77


def test_what_was_fixed_at_init_is_not_the_environment_s(tmp_path):
    settings = load(write(tmp_path), KTLOG_ORIGIN="evil.example", KTLOG_DIALECT="php", KTLOG_DIRECTORY="/")
    assert settings == Settings(tmp_path, "keys.example.com", "spec")


@pytest.mark.parametrize("value", ["", " 4", "4 ", "+4", "-4", "04", "1_000", "4.0", "0x4", "four", "٤", "4\n", "9" * 40])
def test_a_number_in_the_environment_has_one_form(tmp_path, value):
    error = refusal(write(tmp_path), KTLOG_WORKERS=value)
    assert "KTLOG_WORKERS" in error.message


@pytest.mark.parametrize("line", [
    'workers = "4"', "workers = 4.0", "workers = true", "workers = [4]", "workers = {}", "workers = 2026-01-01",
    "listen = 8080", "listen = true", "aux_types = []", 'heartbeat_seconds = "600"',
])
def test_types_in_the_file(tmp_path, line):
    error = refusal(write(tmp_path, MINIMAL + line + "\n"))
    assert error.name == "BadConfiguration"
    assert line.partition(" ")[0] in error.message


@pytest.mark.parametrize("line", ["worker = 4", 'directory = "/srv"', "WORKERS = 4", "[server]", "'' = 1"])
def test_settings_that_do_not_exist(tmp_path, line):
    assert refusal(write(tmp_path, MINIMAL + line + "\n")).name == "BadConfiguration"


def test_a_flag_that_does_not_exist_or_has_the_wrong_type(tmp_path):
    write(tmp_path)
    assert refusal(tmp_path, {"worker": 4}).name == "BadConfiguration"
    assert refusal(tmp_path, {"workers": "4"}).name == "BadConfiguration"
    assert refusal(tmp_path, {"workers": True}).name == "BadConfiguration"


@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "free_space_floor_mib"])
@pytest.mark.parametrize("value", [0, -1])
def test_every_number_is_at_least_one(tmp_path, name, value):
    error = refusal(write(tmp_path, MINIMAL + f"{name} = {value}\n"))
    assert (error.name, name in error.message) == ("BadSetting", True)
    if value == 0:
        assert refusal(write(tmp_path), **{f"KTLOG_{name.upper()}": "0"}).name == "BadSetting"


def test_the_floor_of_free_space_may_be_none_at_all(tmp_path):
    assert load(write(tmp_path, MINIMAL + "free_space_floor_mib = 0\n")).free_space_floor_mib == 0
    assert refusal(write(tmp_path, MINIMAL + "free_space_floor_mib = -1\n")).name == "BadSetting"


def test_the_time_window_is_the_specification_s_at_most(tmp_path):
    assert load(write(tmp_path, MINIMAL + "time_window_seconds = 2592000\n")).time_window_seconds == 2_592_000
    assert refusal(write(tmp_path, MINIMAL + "time_window_seconds = 2592001\n")).name == "BadSetting"


@pytest.mark.parametrize("settings", [
    {"role": "leader", "store": "postgresql:///ktlog"}, {"role": "web"}, {"role": "sequencer"},
])
def test_roles_are_for_a_log_on_several_machines(tmp_path, settings):
    with pytest.raises(UsageError, match="role"):
        Settings(tmp_path, "keys.example.com", "spec", **settings)
    assert Settings(tmp_path, "keys.example.com", "spec", role="web", store="postgresql:///ktlog").role == "web"


@pytest.mark.parametrize("dialect", ["Spec", "", "v1", "spec "])
def test_unknown_dialects(tmp_path, dialect):
    assert refusal(write(tmp_path, f'origin = "keys.example.com"\ndialect = "{dialect}"\n')).name == "UnknownDialect"


@pytest.mark.parametrize("text", [
    "", 'origin = "keys.example.com"\n', 'dialect = "spec"\n', "not toml", 'origin = "a"\norigin = "b"\n', "\x00",
    'origin = 5\ndialect = "spec"\n',
])
def test_a_file_that_says_too_little_or_nonsense(tmp_path, text):
    assert refusal(write(tmp_path, text)).name == "BadConfiguration"


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "ktlog.toml").write_bytes(b'origin = "\xff\xfe"\n')
    assert refusal(tmp_path).name == "BadConfiguration"


def test_no_file(tmp_path):
    with pytest.raises(StoreError) as caught:
        load_settings(tmp_path, environment={})
    assert (caught.value.name, "ktlog init" in caught.value.hint) == ("NoSuchLog", True)
    (tmp_path / "ktlog.toml").mkdir()
    assert refusal(tmp_path).name == "BadConfiguration"


def test_written_and_read_again(tmp_path):
    settings = Settings(tmp_path, "keys.example.com", "php", workers=7, aux_types="a b", listen="[::1]:80")
    write_settings(settings)
    path = tmp_path / "ktlog.toml"
    assert load(tmp_path) == settings
    text = path.read_text()
    # Whoever opens the file sees every setting there is, the untouched ones as comments.
    for field in fields(Settings):
        if field.name != "directory":
            assert f"{field.name} = " in text
    assert "# threads = 8" in text
    assert "\nworkers = 7" in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_socket_s_path_stays_short(tmp_path):
    short = Settings(Path("/run/ktlog"), "keys.example.com", "spec")
    assert socket_path(short) == Path("/run/ktlog").resolve() / "sequencer.sock"
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    path = socket_path(Settings(deep, "keys.example.com", "spec"))
    try:
        assert len(str(path).encode()) <= 100
        assert path.parent != deep
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        path.parent.rmdir()
