"""The search box: it leads to what was asked for, or says what it understood and did not find."""

from __future__ import annotations

from urllib.parse import urlencode

from flask import Blueprint, Response

from ktlog.errors import KtlogError
from ktlog.pkd.actors import Status
from ktlog.store.contracts import LogStore
from ktlog.web.api import one_argument
from ktlog.web.context import context
from ktlog.web.explorer.answer import Page, finish, show
from ktlog.web.explorer.explorer import actor_url
from ktlog.web.explorer.search import Asked, likely_actor_ids, understand
from ktlog.web.explorer.sorry import failed
from ktlog.words import count_entries

RESULTS = 20

finding = Blueprint("explorer_search", __name__)


@finding.errorhandler(KtlogError)
def on_error(error: KtlogError) -> Response:
    return failed(error)


@finding.get("/search")
def search() -> Response:
    text = (one_argument("q") or "").strip()
    asked = understand(text)
    places: list[tuple[str, str]] = []
    if asked is not None:
        with context().store.snapshot():
            places = find(context().store, asked)
    if len(places) == 1:
        response = finish(Response(status=303), names_actors=True)
        response.headers["Location"] = places[0][0]
        return response
    return not_found(text, asked, places)


def find(store: LogStore, asked: Asked) -> list[tuple[str, str]]:
    """(path, words) of the pages that *asked* may mean; at most RESULTS. Nobody outside is asked."""
    found: dict[str, str] = {}
    if asked.leaf_index is not None and asked.leaf_index < store.state().size:
        found[f"/e/{asked.leaf_index}"] = f"entry {asked.leaf_index:,}"
    for actor_id in _actors(store, asked):
        handle = "" if asked.handle is None else "?" + urlencode({"handle": f"@{asked.handle[0]}@{asked.handle[1]}"})
        found[actor_url(actor_id) + handle] = actor_id
    for root in asked.roots:
        size = store.size_of_root(root)
        if size is not None:
            found[f"/checkpoints?old={size}"] = f"the root after {count_entries(size)}"
        leaf_index = store.seen(root)
        if leaf_index is not None:
            found[f"/e/{leaf_index}"] = f"the message with this hash, entry {leaf_index:,}"
    return list(found.items())[:RESULTS]


def _actors(store: LogStore, asked: Asked) -> list[str]:
    """Actors of the log that are asked for by name, by a key or by an id."""
    if asked.actor_id is not None:
        if _is_known(store, asked.actor_id) or "/@" not in asked.actor_id:
            return [asked.actor_id]  # its page says it, when it was erased or never was
        # What people copy from a browser is often the page of a profile, and not the actor's id.
        domain, _, user = asked.actor_id.removeprefix("https://").partition("/@")
        return [name for name in likely_actor_ids(user, domain) if _is_known(store, name)] or [asked.actor_id]
    if asked.handle is not None:
        return [name for name in likely_actor_ids(*asked.handle) if _is_known(store, name)]
    holders = [name for print_ in asked.fingerprints for name in store.holders(print_)[:RESULTS]]
    return [*holders, *(store.owners(asked.item_id, RESULTS) if asked.item_id is not None else ())]


def _is_known(store: LogStore, actor_id: str) -> bool:
    actor = store.actor(actor_id)
    return actor is not None and actor.status != Status.ERASED


def not_found(text: str, asked: Asked | None, places: list[tuple[str, str]]) -> Response:
    status = 300 if places else 200 if not text or asked is not None and asked.domain else 404
    members = {
        "asked": text[:200], "understood": None if asked is None else asked.words,
        "found": [{"path": path, "words": words} for path, words in places],
        "handle": None if asked is None or asked.handle is None else f"@{asked.handle[0]}@{asked.handle[1]}",
        "domain": None if asked is None else asked.domain,
    }
    return show(Page("search", "Search", members, status))
