"""``ktlog init --store``: the log begins in a database, or nothing of it does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ktlog.cli import ktlog
from ktlog.config import Settings, load_settings
from ktlog.errors import KtlogError, UsageError
from ktlog.operator.stores import map_exists, map_pending, open_log, open_map, remove_map, signed_head
from ktlog.store.pgdocuments import PgDocument
from ktlog.store.postgres import PostgresStore

pytestmark = pytest.mark.slow


def _init(directory: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        ktlog, ["init", "--dir", str(directory), "--origin", "keys.example.com", "--json", *arguments]
    )


def _error(result: Result) -> KtlogError:
    assert isinstance(result.exception, KtlogError), result.output
    return result.exception


def test_a_log_begins_in_a_database(postgres_url: str, tmp_path: Path) -> None:
    result = _init(tmp_path / "log", "--store", postgres_url)
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["origin"] == "keys.example.com"
    settings = load_settings(tmp_path / "log")
    assert settings.store == postgres_url
    assert not list((tmp_path / "log").glob("*.db"))
    with open_log(settings) as store:
        assert isinstance(store, PostgresStore)
        assert (store.origin, store.state().size) == ("keys.example.com", 0)
    assert map_exists(settings)
    open_map(settings, read_only=True).close()
    assert isinstance(signed_head(settings), PgDocument)
    assert map_pending(settings).read() is None
    remove_map(settings)
    assert not map_exists(settings)


def test_a_database_in_use_is_found_out_before_anything_is_made(postgres_url: str, tmp_path: Path) -> None:
    assert _init(tmp_path / "one", "--store", postgres_url).exit_code == 0
    assert _error(_init(tmp_path / "two", "--store", postgres_url)).name == "StoreExists"
    assert not (tmp_path / "two").exists()
    nowhere = f"postgresql:///x?host={tmp_path}"
    assert _error(_init(tmp_path / "two", "--store", nowhere)).name == "CannotOpen"
    assert not (tmp_path / "two").exists()


def test_the_url_in_a_file(postgres_url: str, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"{postgres_url}\n")
    file.chmod(0o640)
    assert _error(_init(tmp_path / "log", "--store-file", str(file))).name == "UnsafeSecret"
    file.chmod(0o600)
    assert _init(tmp_path / "log", "--store-file", str(file)).exit_code == 0
    with open_log(load_settings(tmp_path / "log"), read_only=True) as store:
        assert store.state().size == 0
    file.write_text("two words")
    with pytest.raises(UsageError, match="BadStore"):
        open_log(load_settings(tmp_path / "log"))
    file.unlink()
    with pytest.raises(KtlogError, match="MissingSecret"):
        open_log(load_settings(tmp_path / "log"))


@pytest.mark.parametrize("fields", [
    {"store": "mysql://x/y"}, {"store": "x"}, {"store": "postgresql://a:b@c/d"}, {"store": "postgresql:///d?password=b"},
    {"store": "postgresql:///d", "store_file": "f"}, {"store": "postgresql://[x/d"},
])
def test_settings_that_cannot_be(fields: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="BadSetting"):
        Settings(tmp_path, "keys.example.com", "spec", **fields)


def test_without_the_driver_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("ktlog.store.pg", "ktlog.store.postgres"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    error = _error(_init(tmp_path / "log", "--store", "postgresql:///d"))
    assert (error.name, error.hint) == ("MissingExtra", "pip install 'ktlog[postgres]'")
    assert not (tmp_path / "log").exists()
