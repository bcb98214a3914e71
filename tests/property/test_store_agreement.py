"""Random logs: the memory store and the SQLite store agree about everything, whatever is committed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlog.errors import StoreError
from ktlog.pkd.actors import Role
from ktlog.pkd.state import Change, HistoryLeaf
from ktlog.store.memory import MemoryStore
from ktlog.store.sqlite import SqliteStore
from tests.store_samples import ORIGIN, Draft, append, dump, hash_of, make_actor, make_aux, make_key

NAMES = [f"https://example.com/users/{name}" for name in "abc"]
KEYS = [make_key(f"key {number}", number) for number in range(5)]
AUX = [make_aux(f"aux {number}", f"text {number}" if number else None, number) for number in range(3)]

actors = st.builds(
    make_actor, st.sampled_from(NAMES), st.lists(st.sampled_from(KEYS), unique=True, max_size=4),
    st.lists(st.sampled_from(AUX), unique=True), fireproof=st.booleans(),
    version=st.integers(0, 2**32 - 1), generation_leaf=st.integers(0, 2**63 - 1),
    revoked=st.frozensets(st.sampled_from([hash_of("x"), hash_of("y"), hash_of("z")])),
)
steps = st.tuples(
    st.lists(actors, unique_by=lambda actor: actor.actor_id, max_size=3), st.booleans(),
    st.none() | st.sampled_from([hash_of("token 1"), hash_of("token 2")]), st.integers(0, 2**63 - 1),
    st.dictionaries(st.text(max_size=5).filter(lambda text: text.isprintable()), st.none() | st.text(max_size=5)),
    st.integers(0, 40),
)


def history(actors: list, moves: bool, known: set[str]) -> tuple[HistoryLeaf, ...]:
    """Two of them move, or nobody; three of them are no move, which both stores refuse.

    known: who has a history, without which nobody can move away; those of *actors* are added.
    """
    moves = moves and len(actors) > 1 and actors[0].actor_id in known
    roles = [Role.MOVED_OUT, Role.MOVED_IN, Role.SUBJECT] if moves else [Role.SUBJECT] * 3
    known.update(actor.actor_id for actor in actors)
    return tuple(HistoryLeaf(actor.actor_id, role) for actor, role in zip(actors, roles, strict=False))


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(steps, min_size=1, max_size=5), max_size=5))
def test_both_stores_agree_on_random_logs(tmp_path_factory: pytest.TempPathFactory, batches: list) -> None:
    memory = MemoryStore(ORIGIN, "spec")
    path = tmp_path_factory.mktemp("agree") / "log.sqlite"
    with SqliteStore.create(path, ORIGIN, "spec") as sqlite:
        for batch in batches:
            known = {actor_id for actor_id in NAMES if sqlite.history(actor_id)}
            drafts = [
                Draft(
                    f"message {number}", Change(tuple(new), history(new, moves, known), token), plain, time=time,
                )
                for new, moves, token, time, plain, number in batch
            ]
            results = []
            for store in (memory, sqlite):
                try:
                    append(store, *drafts)
                    results.append("committed")
                except StoreError as error:
                    results.append(f"{error.name} {getattr(error, 'stored', None)}")
            assert results[0] == results[1]
            assert dump(memory) == dump(sqlite)
            for token in (hash_of("token 1"), hash_of("token 2")):
                assert memory.token_revoked(token) == sqlite.token_revoked(token)
    with SqliteStore.open(path, read_only=True) as again:
        assert dump(again) == dump(memory)
