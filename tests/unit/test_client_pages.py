"""An actor's history comes in pages: all of them are read, and what does not fit together is no answer."""

from __future__ import annotations

import json

import pytest
from client_log import key
from client_world import ALICE, World, remembering_argon2id, say

from ktlog.client import page as page_module
from ktlog.client.build import fireproof
from ktlog.errors import Invalid, Stale, Unreachable
from ktlog.pkd import attributes


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    found = World(tmp_path)
    found.log.rows_a_page = 2
    return found


def asked(world) -> list[str]:
    return [url.partition("tree-size=")[2] for url in world.network.requests if "/keys?" in url]


def later(change):
    """Change pages that are not the first."""
    return lambda page: change(page) if "public-keys" not in page else None


def test_a_history_of_two_pages(world):
    """Alice has four messages; what they lead to is what one page with all of them leads to."""
    answer = world.lookup()
    assert asked(world) == ["6", "6&history-after=2"]
    world.log.rows_a_page = 100
    whole = world.lookup()
    assert (answer.keys, answer.version) == (whole.keys, whole.version)
    assert asked(world)[2:] == ["6"]


def test_pages_with_messages_that_are_not_published(world):
    say(world.log, fireproof, ALICE, key(3))
    world.log.rows_a_page = 3
    assert [item.action for item in world.lookup().pending] == ["Fireproof"]
    assert asked(world) == ["6", "6&history-after=3"]


LIES = {
    "the same page again": ("MalformedAnswer", lambda page, world: page.update(world.log.page(ALICE, 6))),
    "a page of another tree": ("MalformedAnswer", lambda page, _: page.update({"tree-size": 5})),
    "a page about somebody else": ("WrongActor", lambda page, _: page.update({"actor-id": ALICE + "x"})),
    "going on where nothing is": ("MalformedAnswer", lambda page, _: page.update({"history": [], "history-next": 9})),
    "going on somewhere else": ("MalformedAnswer", lambda page, _: page.update({"history-next": 3})),
    "no word of going on": ("MalformedAnswer", lambda page, _: page.pop("history-next")),
    "true as a place": ("MalformedAnswer", lambda page, _: page.update({"history-next": True})),
    # The keys that are listed do not follow from half of the messages.
    "an empty last page": ("UnlistedKey", lambda page, _: page.update({"history": [], "history-next": None})),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_later_page_that_does_not_fit(world, lie):
    name, change = LIES[lie]
    world.network.edit(later(lambda page: change(page, world)))
    world.refuses(Invalid, name)


def test_a_first_page_that_does_not_say_whether_it_is_all(world):
    world.network.edit(lambda page: page.pop("history-next"))
    world.refuses(Invalid, "MalformedAnswer")


def test_an_actor_who_is_gone_between_two_pages(world):
    body = b'{"!pkd-context":"fedi-e2ee:v1/api/error","error":"not_found","code":"not_found"}'

    def vanish(url):
        if "history-after" in url:
            world.network.replace(url.partition(world.log.origin)[2].partition("?")[0], body, 404)

    world.network.before = vanish
    error = world.refuses(Stale, "ErasedMeanwhile")
    assert "again" in error.hint


def test_a_log_that_stops_between_two_pages(world):
    world.network.before = lambda url: "history-after" in url and world.network.break_(
        url.partition(world.log.origin)[2].partition("?")[0])
    with pytest.raises(Unreachable, match="Timeout"):
        world.lookup()


def test_a_history_without_end_is_not_read_to_the_end(world, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_HISTORY_PAGES", 2)
    world.log.rows_a_page = 1
    world.refuses(Invalid, "HistoryTooLong")
    assert len(asked(world)) == 2
    monkeypatch.setattr(page_module, "MAX_HISTORY_PAGES", 4)
    assert world.lookup().keys


def read_pages(world, max_bytes):
    sizes: list[int] = []

    def read(after, limit):
        sizes.append(limit)
        return json.dumps(world.log.page(ALICE, 6, -1 if after is None else after)).encode()

    return sizes, lambda: page_module.read_all_pages(read, ALICE, 6, max_bytes)


def test_all_pages_together_are_bounded(world):
    first = len(json.dumps(world.log.page(ALICE, 6)).encode())
    sizes, call = read_pages(world, first)
    with pytest.raises(Invalid, match="HistoryTooLong"):
        call()
    assert sizes == [first]
    sizes, call = read_pages(world, first + 1000)
    assert [row.leaf_index for row in call().rows] == [1, 2, 3, 4]
    assert sizes == [first + 1000, 1000]  # what is left, for the one who reads to keep to
