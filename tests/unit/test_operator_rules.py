"""Whose messages are taken: the lists, the mode, the pause; where they are kept, and who knows of a change when."""

from __future__ import annotations

import pytest

from ktlog.errors import EncodingError, MessageRejected, StoreError, UsageError
from ktlog.operator.administration import Administration
from ktlog.operator.refusalbook import KEEP_SECONDS, ROWS_LIMIT, RefusalBook, RefusalKey
from ktlog.operator.rules import (
    ALLOW_LIST,
    LOOK_SECONDS,
    Note,
    Rules,
    RulesFile,
    RulesKeeper,
    RulesRow,
    allowed,
    blocked,
    check_name,
    check_reason,
    forgotten,
    format_rules,
    parse_rules,
)
from ktlog.store.documents import FileDocument

NOTE = Note("spam", 1_800_000_000)


def code(rules: Rules, domain: str | None) -> str:
    try:
        rules.check(domain)
    except MessageRejected as refusal:
        return refusal.code
    return "taken"


@pytest.mark.parametrize(("rules", "domain", "expected"), [
    (Rules(), "a.example", "taken"),
    (Rules(blocked={"a.example": NOTE}), "a.example", "instance_blocked"),
    (Rules(blocked={"a.example": NOTE}), "sub.a.example", "instance_blocked"),
    (Rules(blocked={"a.example": NOTE}), "nota.example", "taken"),
    (Rules(blocked={"sub.a.example": NOTE}), "a.example", "taken"),
    (Rules(blocked={"a.example": NOTE}, allowed={"good.a.example": NOTE}), "x.good.a.example", "taken"),
    (Rules(ALLOW_LIST), "a.example", "instance_not_allowed"),
    (Rules(ALLOW_LIST, allowed={"a.example": NOTE}), "sub.a.example", "taken"),
    (Rules(ALLOW_LIST, {"bad.a.example": NOTE}, {"a.example": NOTE}), "bad.a.example", "instance_blocked"),
    (Rules(ALLOW_LIST), None, "taken"),
    (Rules(paused=NOTE), None, "paused"),
    (Rules(paused=NOTE, allowed={"a.example": NOTE}), "a.example", "paused"),
])
def test_the_longest_name_decides(rules, domain, expected):
    assert code(rules, domain) == expected


def test_a_refusal_says_nothing_of_the_operators_reason_but_a_pause_does():
    with pytest.raises(MessageRejected) as refusal:
        Rules(blocked={"a.example": Note("private words", 1)}).check("a.example")
    assert "private" not in refusal.value.message
    with pytest.raises(MessageRejected, match="paused") as refusal:
        Rules(paused=Note("moving house", 1)).check(None)
    assert "moving house" in refusal.value.message


def test_an_instance_is_on_one_list_at_most_and_can_be_taken_off():
    rules = allowed(blocked(Rules(), ["a.example", "b.example"], NOTE), ["a.example"], NOTE)
    assert (set(rules.blocked), set(rules.allowed)) == ({"b.example"}, {"a.example"})
    assert parse_rules(format_rules(rules)) == rules
    assert forgotten(rules, ["a.example", "b.example"]) == Rules()
    with pytest.raises(MessageRejected, match="not_listed"):
        forgotten(rules, ["c.example"])


def test_the_lists_have_an_end(monkeypatch):
    monkeypatch.setattr("ktlog.operator.rules.INSTANCES_LIMIT", 2)
    full = allowed(blocked(Rules(), ["a.example"], NOTE), ["b.example"], NOTE)
    with pytest.raises(MessageRejected, match="too_many_instances"):
        blocked(full, ["c.example"], NOTE)
    assert code(blocked(full, ["b.example"], NOTE), "b.example") == "instance_blocked"


@pytest.mark.parametrize("wrong", ["", "com", "a.example/x", "a example", "192.0.2.1", "a..example", "https://a.example"])
def test_what_is_no_host_name_is_refused(wrong):
    with pytest.raises(UsageError, match="BadInstance"):
        check_name(wrong)
    assert check_name("A.Example") == "a.example"


def test_a_reason_is_a_line():
    assert check_reason("x" * 200)
    for wrong in ("x" * 201, "a\nb", "\x1b[31m"):
        with pytest.raises(UsageError, match="BadReason"):
            check_reason(wrong)


@pytest.mark.parametrize("damaged", [
    b"", b"{}", b"[]", format_rules(Rules()).replace(b"open", b"shut"), format_rules(Rules()).replace(b'"1"', b'"2"'),
    format_rules(Rules(blocked={"a.example": NOTE})).replace(b"a.example", b"a example"),
    format_rules(Rules(paused=NOTE)).replace(b"1800000000", b"-1"),
])
def test_damaged_rules_let_nobody_in(tmp_path, damaged):
    path = tmp_path / "rules.json"
    path.write_bytes(damaged)
    document = FileDocument(path)
    with pytest.raises(StoreError, match="BadRules"):
        RulesKeeper(document)
    with pytest.raises(StoreError, match="BadRules"):
        RulesFile(path, document.read).rules()


def test_a_change_is_known_to_other_processes_at_once_and_after_a_restart(tmp_path):
    path = tmp_path / "rules.json"
    document = FileDocument(path)
    keeper, reader = RulesKeeper(document), RulesFile(path, document.read)
    assert reader.rules() == Rules()
    for name in ("a.example", "b.example"):
        changed = keeper.change(lambda rules, name=name: blocked(rules, [name], NOTE))
        assert reader.rules() == changed == RulesKeeper(document).rules
    assert reader.rules() is reader.rules(), "it is read when it was replaced, and not for each message"
    assert path.stat().st_mode & 0o777 == 0o600


def test_rules_in_a_database_are_read_twice_a_second_at_most():
    now, stored, reads = [0.0], [None], []

    def read():
        reads.append(now[0])
        return stored[0]

    reader = RulesRow("somewhere", read, lambda: now[0])
    assert reader.rules() == reader.rules() == Rules()
    stored[0] = format_rules(Rules(ALLOW_LIST))
    now[0] += LOOK_SECONDS
    assert reader.rules() == reader.rules() == Rules(ALLOW_LIST)
    assert reads == [0.0, LOOK_SECONDS]


# --- who was refused


def test_refusals_are_counted_by_reason_and_instance_and_forgotten():
    book = RefusalBook()
    spam, other = RefusalKey("web", "bad_signature", "a.example", True), RefusalKey("web", "too_large")
    book.add(spam, 100)
    book.add(other, 200)
    book.add(spam, 300, 4)
    assert [(row.key, row.count, row.first, row.last) for row in book.rows(300)] == [
        (spam, 5, 100, 300), (other, 1, 200, 200)
    ]
    assert [row.key for row in book.rows(201 + KEEP_SECONDS)] == [spam]
    book.forget(["a.example"])
    assert [row.key for row in book.rows(300)] == [other]


def test_a_crowd_of_instances_takes_no_more_memory():
    book = RefusalBook()
    for number in range(ROWS_LIMIT + 5):
        book.add(RefusalKey("web", "bad_signature", f"i{number}.example"), number)
    rows = book.rows(ROWS_LIMIT + 5)
    assert len(rows) == ROWS_LIMIT
    assert (rows[0].key.instance, rows[-1].key.instance) == (f"i{ROWS_LIMIT + 4}.example", "i5.example")


@pytest.mark.parametrize("request_", [
    {}, {"act": "bless"}, {"act": ["block"]}, {"act": "mode", "mode": "closed"}, {"act": "mode"},
    {"act": "pause"}, {"act": "pause", "reason": 7},
    *({"act": act, "instances": names, "reason": "spam"} for act in ("block", "allow", "forget") for names in (
        "a.example", [], ["a.example"] * 501, None, [7], ["a.example", "no host"], {"a.example": 1},
    )),
    {"act": "block", "instances": ["a.example"]},
])
def test_what_is_no_act_changes_nothing(tmp_path, request_):
    keeper = RulesKeeper(FileDocument(tmp_path / "rules"))
    acts = Administration(keeper, RefusalBook(), lambda: 5)
    with pytest.raises(EncodingError) as refusal:
        acts.plan(request_)
    assert refusal.value.name == "BadRequest"
    assert keeper.rules == Rules() and not (tmp_path / "rules").exists()
    acts.plan({"act": "block", "instances": ["a.example"] * 500, "reason": "spam"})()
    assert set(keeper.rules.blocked) == {"a.example"}
