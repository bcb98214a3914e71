"""Keys that a log was trusted under and is no more: what they still do, what they do not, and who says so."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from ktlog.errors import StoreError, UsageError
from ktlog.tlog.evidence import parse_evidence, verify_evidence
from tests.witness_log import NOW, Log
from tests.witness_site import Session
from witness import cli
from witness.loglist import ListedLog
from witness.pull import pull
from witness.store import MAX_EVIDENCE, WitnessStore
from witness.witness import CHECKED

OLD = Log(seed=1)
NEW = Log(seed=2)
BOTH = Log(seed=1)
BOTH.signers = OLD.signers + NEW.signers
FORKED = b"\x2a" * 32


@pytest.fixture
def session(tmp_path):
    session = Session(tmp_path)  # follows OLD
    yield session
    session.witness.store.close()


def retire(session, log: Log = OLD, **options):
    return session.witness.store.retire_keys([(log.origin, vkey) for vkey in log.vkeys], NOW, "stolen", **options)


def rotate(session) -> None:
    session.witness.store.add_log(NEW.origin, NEW.vkeys, NOW)
    retire(session)


def answer(response) -> tuple[int, str]:
    return response.status_code, response.data.decode().partition(":")[0]


def run(session, *arguments: str):
    return CliRunner().invoke(cli.main, [arguments[0], "--dir", str(session.directory.path), *arguments[1:]])


# --- what it does


def test_a_retired_key_is_a_stranger_s_and_the_record_goes_on(session):
    assert session.post(OLD.submission(0, 3)).status_code == 200
    rotate(session)
    assert answer(session.post(OLD.submission(3, 5))) == (403, "RetiredKey")
    assert session.post(NEW.submission(2, 5)).data == b"3\n"
    assert session.post(BOTH.submission(3, 5)).status_code == 200
    note = session.monitor().data.decode()
    assert [vkey.key_id for vkey in NEW.vkeys] and note.count(f"\u2014 {NEW.origin} ") == len(NEW.vkeys)
    assert session.post(OLD.submission(5, 6)).status_code == 403
    session.witness.store.close()
    session.start()
    assert answer(session.post(OLD.submission(5, 6))) == (403, "RetiredKey")
    log = session.witness.store.log(OLD.origin)
    assert (log.vkeys, log.retired) == (NEW.vkeys, OLD.vkeys)


def test_a_broken_line_under_it_spoils_nothing(session):
    rotate(session)
    (line,) = Log(seed=1, prefix=b"other", algorithms=(1,)).note(9).splitlines()[4:]
    body = NEW.submission(0, 3) + line + b"\n"  # an old key's line of another tree
    assert session.post(body).status_code == 200


def test_a_log_without_a_key_is_said_to_be_so_and_its_record_stays(session):
    session.post(OLD.submission(0, 3))
    with pytest.raises(UsageError) as caught:
        retire(session)
    assert caught.value.name == "LastKey"
    assert session.post(OLD.submission(3, 4)).status_code == 200  # nothing was retired
    assert len(retire(session, leave_none=True)) == 2
    assert retire(session, leave_none=True) == ()
    assert answer(session.post(OLD.submission(4, 5))) == (403, "RetiredKey")
    assert answer(session.post(NEW.submission(4, 5))) == (403, "NoTrustedSignature")
    assert session.monitor().status_code == 200
    session.witness.store.add_log(NEW.origin, NEW.vkeys, NOW)
    assert session.post(NEW.submission(0, 5)).data == b"4\n"


def test_all_or_none_and_only_what_was_trusted(session):
    stranger = Log(seed=9).vkeys[0]
    with pytest.raises(UsageError) as caught:
        session.witness.store.retire_keys([(OLD.origin, OLD.vkeys[0]), (OLD.origin, stranger)], NOW, "")
    assert caught.value.name == "UnknownKey"
    assert session.witness.store.log(OLD.origin).retired == ()
    assert session.submit(0, 1).status_code == 200


def test_nothing_of_it_can_be_undone_in_the_database(session):
    rotate(session)
    for statement in (
        "DELETE FROM retirements", "UPDATE retirements SET origin = 'x'", "UPDATE retirements SET retired = 1, restored = 2",
        "UPDATE retirements SET reason = '', restored = 1", "UPDATE retirements SET restored = NULL",
        "DELETE FROM retired_evidence",
    ):
        if "evidence" in statement:
            session.post(OLD.submission(0, 3))
        try:
            session.witness.store._connection.execute(statement)
        except Exception as error:
            assert type(error).__name__ == "IntegrityError", statement
        else:
            assert "evidence" in statement  # there is none
    assert session.witness.store.log(OLD.origin).retired == OLD.vkeys


# --- evidence


def test_two_roots_under_it_convict_it_and_freeze_nothing(session):
    """Who stole it can make such a fork; who signs for the log today must not suffer for that."""
    session.witness.store.add_log(NEW.origin, NEW.vkeys, NOW)
    assert session.post(BOTH.submission(0, 3)).status_code == 200
    retire(session)
    assert session.post(OLD.submission(3, 5)).status_code == 403  # from here on it is remembered, without its note
    for root in (FORKED, bytes(32)):
        assert answer(session.post(OLD.submission(3, 3, root=root))) == (403, "RetiredKey")
    (one,) = session.witness.store.convictions()
    assert (one.freezes, one.size, one.retired_key) == (False, 3, OLD.vkeys[1].key_id.hex())
    verify_evidence(parse_evidence(one.document), OLD.vkeys[1])
    shown = session.client.get(f"/{session.witness.store.log(OLD.origin).origin_hash}/evidence").json
    assert (len(shown["evidence"]), shown["frozen"]) == (1, False)
    assert session.post(NEW.submission(3, 4)).status_code == 200
    # The log itself is as liable as ever, at every size.
    assert session.post(NEW.submission(4, 4, root=FORKED)).status_code == 422
    assert [one.freezes for one in session.witness.store.convictions()] == [True, False]
    assert answer(session.post(NEW.submission(4, 5))) == (403, "LogFrozen")


def test_who_stole_it_takes_no_room_from_other_evidence(session):
    session.witness.store.add_log(NEW.origin, NEW.vkeys, NOW)
    session.post(BOTH.submission(0, 3))
    retire(session)
    session.post(OLD.submission(3, 3, root=FORKED))
    assert session.post(NEW.submission(3, 3, root=FORKED)).status_code == 422  # the same size, by the key of today
    assert sorted(one.freezes for one in session.witness.store.convictions()) == [False, True]
    assert session.witness.store.count_evidence() == 2 < MAX_EVIDENCE
    assert session.witness.store.count_writes() == session.witness.store._mark.count == 1 + 2 + 2


def test_what_convicted_before_freezes_still(session):
    session.post(OLD.submission(0, 3))
    session.post(OLD.submission(3, 3, root=FORKED))
    rotate(session)
    assert answer(session.post(NEW.submission(3, 4))) == (403, "LogFrozen")
    assert [one.freezes for one in session.witness.store.convictions()] == [True]


# --- while it happens


def test_a_submission_judged_before_is_not_recorded_after(session):
    """By this process, and by another one whose writing this process has not noticed."""
    session.witness.store.add_log(NEW.origin, NEW.vkeys, NOW)
    session.post(OLD.submission(0, 3))
    beside = WitnessStore.open(session.directory.database, beside_daemon=True)
    session.witness._reach = lambda name: (
        name == CHECKED and beside.retire_keys([(OLD.origin, vkey) for vkey in OLD.vkeys], NOW, "")
    )
    assert answer(session.post(OLD.submission(3, 5))) == (403, "RetiredKey")
    assert session.size() == 3
    session.witness._reach = lambda name: None
    assert session.post(NEW.submission(3, 5)).status_code == 200
    beside.add_log(OLD.origin, OLD.vkeys[:1], NOW, again=True)
    session.witness._reach = lambda name: (
        name == CHECKED and beside.retire_keys([(OLD.origin, OLD.vkeys[0])], NOW, "") and None
    )
    assert answer(session.post(Log(algorithms=(1,)).submission(5, 6))) == (403, "RetiredKey")
    beside.close()


def test_retired_before_the_first_cosignature_too(session):
    session.witness.store.add_log(NEW.origin, NEW.vkeys, NOW)
    session.witness._reach = lambda name: name == CHECKED and retire(session)
    assert answer(session.post(OLD.submission(0, 3))) == (403, "RetiredKey")
    assert session.size() is None


def test_a_copy_from_before_it_is_refused_once_something_was_recorded(session):
    """Else a restored copy would trust the thief again. The command beside the daemon has no hand on the mark."""
    session.post(OLD.submission(0, 3))
    session.witness.store.add_log(NEW.origin, NEW.vkeys, NOW)
    copy = session.directory.path / "copy"
    session.witness.store._connection.execute("VACUUM INTO ?", (str(copy),))
    beside = WitnessStore.open(session.directory.database, beside_daemon=True)
    beside.retire_keys([(OLD.origin, vkey) for vkey in OLD.vkeys], NOW, "")
    beside.close()
    session.post(NEW.submission(3, 5))
    assert session.witness.store._mark.count == session.witness.store.count_writes() == 2 + len(OLD.vkeys)
    session.witness.store.close()
    for name in ("witness.db-wal", "witness.db-shm"):
        (session.directory.path / name).unlink(missing_ok=True)
    copy.replace(session.directory.database)
    with pytest.raises(StoreError) as caught:
        session.start()
    assert caught.value.name == "RecordRolledBack"


# --- trusting it again


def test_it_is_trusted_again_by_the_operator_s_word_alone(session):
    session.post(OLD.submission(0, 3))
    rotate(session)
    with pytest.raises(UsageError) as caught:
        session.witness.store.add_log(OLD.origin, OLD.vkeys, NOW)
    assert caught.value.name == "KeyRetired"
    listed = ListedLog(OLD.origin, OLD.vkeys[0], 24, "")
    done = pull(session.witness.store, [listed], "list", NOW)
    assert done.added == () and "retired here" in done.warnings[0]
    assert session.witness.store.log(OLD.origin).retired == OLD.vkeys
    assert session.witness.store.add_log(OLD.origin, OLD.vkeys[:1], NOW, again=True) == OLD.vkeys[:1]
    assert session.witness.store.add_log(OLD.origin, OLD.vkeys[:1], NOW, again=True) == ()
    assert session.post(OLD.submission(3, 5)).status_code == 200
    assert session.witness.store.retire_keys([(OLD.origin, OLD.vkeys[0])], NOW, "") == ((OLD.origin, OLD.vkeys[0]),)
    assert session.post(OLD.submission(5, 6)).status_code == 403


# --- the command


def test_the_command_takes_a_vkey_its_short_name_or_an_origin(session):
    ed25519, mldsa = OLD.vkeys
    assert run(session, "add-log", *map(str, NEW.vkeys)).exit_code == 0
    first = run(session, "retire-key", str(ed25519), "--reason", "stolen")
    assert (first.exit_code, first.stdout) == (0, f"{OLD.origin}: trusts {OLD.origin}+{ed25519.key_id.hex()} no more\n")
    short = run(session, "retire-key", f"{OLD.origin}+{mldsa.key_id.hex()}", "--json")
    assert json.loads(short.stdout) == {
        "retired": [{"origin": OLD.origin, "vkey": str(mldsa)}], "left": {OLD.origin: list(map(str, NEW.vkeys))}
    }
    assert "nothing new" in run(session, "retire-key", str(mldsa)).stdout
    assert answer(session.post(OLD.submission(0, 3))) == (403, "RetiredKey")  # at once, in the daemon
    whole = run(session, "retire-key", OLD.origin)
    assert (whole.exit_code, "LastKey" in whole.stderr) == (2, True)
    last = run(session, "retire-key", OLD.origin, "--leave-none")
    assert (last.exit_code, "has no key left" in last.stderr) == (0, True)
    listed = run(session, "list-logs").stdout
    assert listed.count("trusts no more") == 4 and "NO KEY" in listed
    for unknown in ("nobody", str(Log(seed=9).vkeys[0])):
        assert run(session, "retire-key", unknown).exit_code == 2
    refused = run(session, "add-log", str(ed25519))
    assert (refused.exit_code, "KeyRetired" in refused.stderr) == (2, True)
    assert run(session, "add-log", str(ed25519), "--trust-again").exit_code == 0
    assert session.post(OLD.submission(0, 3)).status_code == 200


def test_a_key_of_several_logs_is_retired_for_each(session):
    shared = replace_origin("other.example")
    session.witness.store.add_log("other.example", OLD.vkeys, NOW)
    assert shared.vkeys == OLD.vkeys
    done = json.loads(run(session, "retire-key", str(OLD.vkeys[0]), "--json").stdout)
    assert sorted(one["origin"] for one in done["retired"]) == ["example.com/log", "other.example"]


def replace_origin(origin: str) -> Log:
    return Log(origin, key_name=OLD.origin)


def test_evidence_files_of_one_size_have_names_of_their_own(session, tmp_path):
    test_who_stole_it_takes_no_room_from_other_evidence(session)
    saved = run(session, "evidence", "--save", str(tmp_path / "saved"), "--json")
    files = [one["file"] for one in json.loads(saved.stdout)["evidence"]]
    assert len(set(files)) == len(list((tmp_path / "saved").iterdir())) == 2
    assert "under a key that was retired before" in run(session, "evidence").stdout
