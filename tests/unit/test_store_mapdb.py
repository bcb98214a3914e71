"""The map in a SQLite file: what no other store of it has to promise. The rest is tests/contract/test_map_contract.py."""

from __future__ import annotations

from ktlog.keymap.output import MapConfig, format_config
from ktlog.store.mapcontract import Dead, Live, MapState
from ktlog.store.mapdb import SqliteMapStore

CONFIG = format_config(MapConfig("keys.example.com", "spec"))


def update(store: SqliteMapStore, change: Live | Dead) -> MapState:
    return store.update(
        [change], expected=store.state(), input_size=1, erasures=0, make_leaf=lambda root: b"leaf " + root
    )


def test_an_erased_value_leaves_no_bytes(tmp_path):
    path = tmp_path / "map.db"
    SqliteMapStore.create(path, "keys.example.com", CONFIG)
    store = SqliteMapStore.open(path, origin="keys.example.com", config=CONFIG)
    index, secret = b"\x01" * 32, b"https://example.com/users/very-secret"
    update(store, Live(index, bytes(32), secret, bytes(16), b"h"))
    update(store, Dead(index, b"\x01" * 32, 2, 1, 0))
    store.close()
    SqliteMapStore.open(path, origin="keys.example.com", config=CONFIG).close()
    assert secret not in path.read_bytes()
