"""What PostgreSQL can do to a log in the middle of a write, and what is left of it: all of a batch, or nothing."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator

import psycopg
import pytest

from ktlog.errors import Conflict, StoreError
from ktlog.store.contracts import AMBIGUOUS
from ktlog.store.postgres import PostgresStore
from tests.cutting_proxy import CuttingProxy
from tests.postgres_server import Cluster, database_name, own_cluster
from tests.store_samples import ALICE, ORIGIN, Backend, Draft, append, dump, enrol, make_batch, make_key

pytestmark = pytest.mark.slow


@pytest.fixture
def backend(postgres_log: str) -> Iterator[Backend]:
    """The contract's fixture, of this store alone."""
    opened: list[PostgresStore] = []

    def handle(**options: bool) -> PostgresStore:
        opened.append(PostgresStore.open(postgres_log, origin=ORIGIN, **options))
        return opened[-1]

    yield Backend(handle(), lambda: handle(read_only=True))
    for store in opened:
        store.close()


@pytest.fixture
def proxy(postgres: Cluster) -> Iterator[CuttingProxy]:
    made = CuttingProxy(postgres)
    yield made
    made.close()


def _terminate(cluster: Cluster, url: str) -> int:
    """End all sessions of the handles, as an administrator does, and return how many."""
    return len(cluster.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE application_name = 'ktlog' AND datname = '{database_name(url)}'"
    ))


def test_two_writers_are_fenced(postgres_log: str) -> None:
    with PostgresStore.open(postgres_log) as old, PostgresStore.open(postgres_log) as new:
        assert old.claim_epoch() == 1
        append(old, Draft("by the old one"))
        mine = old.state()
        assert new.claim_epoch() == 2
        before = dump(new)
        with pytest.raises(Conflict, match="Fenced"):
            old.commit(make_batch(mine, Draft("too late")))
        assert dump(new) == before
        append(new, Draft("by the new one"))
        assert old.state() == new.state()


def test_a_writer_waits_for_the_other_ones_commit_and_loses(postgres_log: str) -> None:
    """Both began at the same state; the second blocks in its first statement until the first is decided."""
    with PostgresStore.open(postgres_log) as one, PostgresStore.open(postgres_log) as other:
        state = one.state()
        results: list[str] = []
        go = threading.Barrier(2)

        def write(store: PostgresStore, text: str) -> None:
            go.wait()
            try:
                store.commit(make_batch(state, Draft(text)))
                results.append("committed")
            except Conflict as conflict:
                results.append(conflict.name)

        threads = [threading.Thread(target=write, args=pair) for pair in ((one, "a"), (other, "b"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == ["StateMoved", "committed"]
        assert one.state().size == 1


def test_a_session_ended_between_two_writes_costs_one_error_and_nothing_else(
    backend: Backend, postgres: Cluster, postgres_log: str
) -> None:
    append(backend.store, Draft("one"))
    reader = backend.reader()
    before = dump(reader)
    assert _terminate(postgres, postgres_log) >= 2
    assert dump(reader) == before, "a read is begun again on another connection"
    batch = make_batch(backend.store.state(), enrol(ALICE, make_key("a")))
    with pytest.raises(StoreError) as caught:
        backend.store.commit(batch)
    assert caught.value.name == "ConnectionLost"
    assert dump(reader) == before
    backend.store.commit(batch)
    assert reader.state() == batch.state


def test_a_session_ended_inside_a_write_leaves_nothing(
    backend: Backend, postgres: Cluster, postgres_log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies when all is written and COMMIT was not said."""
    append(backend.store, Draft("one"))
    before = dump(backend.store)
    batch = make_batch(backend.store.state(), enrol(ALICE, make_key("a")))

    def insert_and_die(*_: object) -> None:
        _terminate(postgres, postgres_log)

    monkeypatch.setattr("ktlog.store.pgerasure.insert_traces", insert_and_die)
    with pytest.raises(StoreError) as caught:
        backend.store.commit(batch)
        pytest.fail("committed on a dead connection")
    # The session was ended while it waited for the next statement, which is COMMIT.
    assert caught.value.name == AMBIGUOUS
    monkeypatch.undo()
    with pytest.raises(StoreError, match="NeedsReopen"):
        backend.store.commit(batch)
    with PostgresStore.open(postgres_log) as again:
        assert dump(again) == before
        again.commit(batch)
        assert again.state() == batch.state


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_connection_lost_at_commit_is_ambiguous(
    postgres_log: str, proxy: CuttingProxy, how: str
) -> None:
    with PostgresStore.open(proxy.url(database_name(postgres_log))) as store:
        append(store, Draft("one"))
        batch = make_batch(store.state(), enrol(ALICE, make_key("a")))
        proxy.cut = how
        with pytest.raises(StoreError) as caught:
            store.commit(batch)
        assert caught.value.name == AMBIGUOUS
        assert proxy.cuts == 1
        for write in (lambda: store.commit(batch), store.claim_epoch, lambda: store.note_published(1, 5), store.scrub):
            with pytest.raises(StoreError, match="NeedsReopen"):
                write()
        stored = batch.state if how == "after" else batch.expected
        assert store.state() in (batch.expected, batch.state), "reads go on"
    with PostgresStore.open(postgres_log) as again:
        assert again.state() == stored, "opened for writing, it says what became of the batch"
        assert (again.actor(ALICE) is not None) == (how == "after")
        if how == "before":
            again.commit(batch)
        else:
            with pytest.raises(Conflict, match="StateMoved"):
                again.commit(batch)
        assert again.state() == batch.state


def test_a_new_writer_waits_until_an_open_commit_is_decided(postgres_log: str) -> None:
    """The one whose answer was lost may still be at work in the server."""
    opened = threading.Event()
    found: list[int] = []

    def open_again() -> None:
        with PostgresStore.open(postgres_log) as store:
            found.append(store.state().epoch)
        opened.set()

    with psycopg.connect(postgres_log) as late:
        late.execute("UPDATE ktlog.log_state SET epoch = 7, writes = writes + 1")
        thread = threading.Thread(target=open_again)
        thread.start()
        assert not opened.wait(0.3), "it did not wait for the other transaction"
        late.commit()
    thread.join()
    assert found == [7]


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_what_the_server_undid_is_tried_again(postgres: Cluster, postgres_log: str, state: str) -> None:
    """As servers do that are spread over machines. A sequence counts on when its transaction is undone."""
    database = database_name(postgres_log)
    postgres.sql(
        f"""CREATE SEQUENCE public.tries; CREATE FUNCTION public.undo() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF nextval('public.tries') < 4 THEN RAISE EXCEPTION 'again' USING ERRCODE = '{state}'; END IF;
        RETURN NULL; END $$; CREATE CONSTRAINT TRIGGER undo AFTER INSERT ON ktlog.entries DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION public.undo()""", database,
    )
    try:
        with PostgresStore.open(postgres_log) as store:
            batch = append(store, enrol(ALICE, make_key("a")))
            assert store.state() == batch.state
            assert postgres.sql("SELECT last_value FROM public.tries", database) == [(4,)]
            postgres.sql("CREATE OR REPLACE FUNCTION public.undo() RETURNS trigger LANGUAGE plpgsql AS $$"
                         f" BEGIN RAISE EXCEPTION 'always' USING ERRCODE = '{state}'; END $$", database)
            with pytest.raises(StoreError, match="Locked"):
                append(store, Draft("never"))
            assert store.state() == batch.state
    finally:
        postgres.sql("DROP TRIGGER undo ON ktlog.entries; DROP FUNCTION public.undo; DROP SEQUENCE public.tries", database)


def test_a_commit_that_warns_is_ambiguous(postgres: Cluster, postgres_log: str) -> None:
    """As that of a server which gave up waiting for its synchronous standby: stored here, and perhaps nowhere else."""
    database = database_name(postgres_log)
    postgres.sql(
        """CREATE FUNCTION public.warn() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE WARNING 'canceling wait for synchronous replication'; RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER warn AFTER INSERT ON ktlog.entries DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION public.warn()""", database,
    )
    try:
        with PostgresStore.open(postgres_log) as store:
            with pytest.raises(StoreError) as caught:
                append(store, Draft("one"))
            assert caught.value.name == AMBIGUOUS
            with pytest.raises(StoreError, match="NeedsReopen"):
                store.claim_epoch()
    finally:
        postgres.sql("DROP TRIGGER warn ON ktlog.entries; DROP FUNCTION public.warn", database)


def test_an_error_passed_over_inside_a_write_does_not_look_like_a_commit(postgres_log: str) -> None:
    with PostgresStore.open(postgres_log) as store:
        def work(db: psycopg.Connection) -> None:
            try:
                db.execute("SELECT 1/0")
            except psycopg.Error:
                pass

        with pytest.raises(StoreError, match="Refused"):
            store._connections.write(work)
        append(store, Draft("one"))


def test_a_lock_that_another_session_keeps_is_an_error_in_time(
    postgres_log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ktlog.store.pgconnections._SESSION", "SET search_path = ktlog; SET lock_timeout = '50ms'")
    with PostgresStore.open(postgres_log) as store, psycopg.connect(postgres_log) as other:
        other.execute("SELECT 1 FROM ktlog.log_state FOR UPDATE")
        with pytest.raises(StoreError, match="Locked"):
            store.claim_epoch()
        other.rollback()
        assert store.claim_epoch() == 1


def test_a_handle_is_of_one_process(postgres_log: str) -> None:
    with PostgresStore.open(postgres_log) as store:
        append(store, Draft("one"))
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()

        def child() -> None:
            for call in (store.state, store.claim_epoch, store.close):
                try:
                    call()
                    answers.put("answered")
                except StoreError as error:
                    answers.put(error.name)

        process = context.Process(target=child)
        process.start()
        process.join()
        assert [answers.get(), answers.get(), answers.get()] == ["WrongProcess"] * 2 + ["answered"]
        store.claim_epoch()  # over the connection that the child has closed for itself alone
        assert store.state().size == 1, "the child's end did not end the parent's connections"
        append(store, Draft("two"))


def test_a_server_that_dies_loses_nothing_that_was_acknowledged() -> None:
    """SIGQUIT: no process of it writes a byte more, and the next start recovers from the write-ahead log."""
    from tests.machine import need

    need("postgres")
    with own_cluster() as cluster:
        url = cluster.new_database()
        PostgresStore.create(url, ORIGIN, "spec").close()
        acknowledged: list[tuple[int, bytes]] = []
        enough = threading.Event()
        failures: list[str] = []

        def write(name: str) -> None:
            with PostgresStore.open(url) as store:
                for number in range(100_000):
                    try:
                        batch = append(store, Draft(f"{name} {number}"), enrol(f"{ALICE}-{name}-{number}"))
                    except StoreError as error:
                        failures.append(error.name)
                        return
                    acknowledged.extend((record.leaf_index, record.entry) for record in batch.records)
                    if len(acknowledged) > 60:
                        enough.set()

        for name in ("first", "second"):
            enough.clear()
            del acknowledged[:], failures[:]
            writer = threading.Thread(target=write, args=(name,))
            writer.start()
            assert enough.wait(60)
            cluster.stop(signal.SIGQUIT)
            writer.join()
            assert failures and failures[0] in (AMBIGUOUS, "ConnectionLost", "CannotOpen")
            cluster.start()
            with PostgresStore.open(url) as store:
                size = store.state().size
                entries = store.entries(0, size)
                assert len(acknowledged) > 60
                assert all(entries[leaf_index] == entry for leaf_index, entry in acknowledged)
                assert size - (acknowledged[-1][0] + 1) in (0, 2), "a batch is there whole, or not at all"
                assert len(store.actor_ids("", 10_000)) == size // 2
