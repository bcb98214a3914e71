"""PKD's REST API about one actor: its keys and auxiliary data, and the proofs of both.

Every answer is as of a published tree: the newest one, or with ``tree-size=N`` the one of a checkpoint
that the client holds. Whom the log does not know, or knows no more, is a 404.

``merkle-root`` is the root that the inclusion proof leads to. A proof against the root at the time
of the message, as the specification has it, would say nothing about the tree that the witnesses
saw. ``revoke-root`` names the entry that ended a key: the root of the tree which it completed, good
for ``history/view``.
"""

from __future__ import annotations

from typing import TypeVar

from flask import Blueprint, Response

from ktlog.errors import EncodingError, MessageRejected
from ktlog.operator.reader import ActorReader, History, HistoryRow, ItemAnswer, Tree
from ktlog.pkd.actors import Aux, Key
from ktlog.pkd.keys import encode_public_key, encode_root, pkd_root
from ktlog.tlog.encoding import decode_base64url, encode_base64url, parse_decimal
from ktlog.web.api import answer_json, asked_tree, encode_proof, log_view, one_argument, path_segment
from ktlog.web.files import preimage_text
from ktlog.wire.actor_id import parse_actor_id

Answer = TypeVar("Answer")

ID_BYTES = 32
"""Of a key id and of an auxiliary data id, before base64url."""

actors = Blueprint("actors", __name__, url_prefix="/api/actor")


def requested_actor(encoded: str) -> str:
    """The actor id of a path segment.

    Raises:
        EncodingError: not a canonical actor id.
    """
    return parse_actor_id(path_segment(encoded))


def requested_id(encoded: str) -> str:
    """The key id or auxiliary data id of a path segment.

    Raises:
        EncodingError: not 32 bytes in canonical base64url.
    """
    text = path_segment(encoded)
    decode_base64url(text, ID_BYTES)
    return text


def known(found: Answer | None) -> Answer:
    """*found*, if there is an answer.

    Raises:
        MessageRejected: ``not_found``. One text for who never was here and who was erased.
    """
    if found is None:
        raise MessageRejected("not_found", "this log knows no such thing at this tree size")
    return found


@actors.get("/<encoded>")
def actor(encoded: str) -> Response:
    actor_id, tree = requested_actor(encoded), asked_tree()
    held = known(log_view().reader.held_at(actor_id, tree.size))
    return answer_json("actor/info", {
        "actor-id": actor_id, "count-aux": len(held.aux), "count-keys": len(held.keys), "tree-size": tree.size,
    })


@actors.get("/<encoded>/keys")
def keys(encoded: str) -> Response:
    """The actor's active keys. ``include-proofs=true`` adds the messages that touched the actor, so that
    a client can replay them: the first page of them, and with ``history-after`` a later one, without keys."""
    actor_id, tree = requested_actor(encoded), asked_tree()
    wants, after = one_argument("include-proofs"), one_argument("history-after")
    if wants not in (None, "true", "false"):
        raise EncodingError("BadQuery", "include-proofs must be true or false")
    later_than = None if after is None else parse_decimal(after)
    if wants == "true" and later_than is not None:
        return _later_page(actor_id, tree, later_than)
    return answer_json(
        "actor/get-keys", known(keys_members(log_view().reader, actor_id, tree, with_history=wants == "true"))
    )


def keys_members(reader: ActorReader, actor_id: str, tree: Tree, *, with_history: bool) -> dict[str, object] | None:
    """What there is to say about the actor's keys, and with the first page of its history; None of who is unknown."""
    answer = reader.answer(actor_id, tree.size, tree.published_size, with_history=with_history)
    if answer is None:
        return None
    root = pkd_root(answer.tree_size, answer.root)
    members: dict[str, object] = {
        "actor-id": actor_id,
        "tree-size": answer.tree_size,
        "merkle-root": root,
        "public-keys": [
            {
                **_key_members(key),
                "tree-size": answer.tree_size,
                "inclusion-proof": encode_proof(answer.key_proofs[key.leaf_index]),
                "merkle-root": root,
            }
            for key in answer.held.keys
        ],
    }
    if answer.history is not None:
        members |= _history_members(answer.history)
    return members


def _later_page(actor_id: str, tree: Tree, after: int) -> Response:
    """More of a history. The keys were on its first page; finding them again may cost as much as a replay."""
    view = log_view()
    page = known(view.reader.history(actor_id, tree, after))
    root = pkd_root(tree.size, view.store.root_after(tree.size))
    return answer_json("actor/get-keys", {
        "actor-id": actor_id, "tree-size": tree.size, "merkle-root": root, **_history_members(page),
    })


@actors.get("/<encoded>/key/<encoded_id>")
def key(encoded: str, encoded_id: str) -> Response:
    """One key, active or not any more."""
    actor_id, key_id, tree = requested_actor(encoded), requested_id(encoded_id), asked_tree()
    answer = known(log_view().reader.key(actor_id, key_id, tree))
    return answer_json("actor/key-info", {"actor-id": actor_id, **_item_members(answer)})


@actors.get("/<encoded>/auxiliary")
def auxiliary(encoded: str) -> Response:
    actor_id, tree = requested_actor(encoded), asked_tree()
    held = known(log_view().reader.held_at(actor_id, tree.size))
    return answer_json("actor/aux-info", {
        "actor-id": actor_id,
        "tree-size": tree.size,
        "auxiliary": [
            {"aux-id": aux.aux_id, "aux-type": aux.aux_type, "created": str(aux.created), "leaf-index": aux.leaf_index}
            for aux in held.aux
        ],
    })


@actors.get("/<encoded>/auxiliary/<encoded_id>")
def auxiliary_item(encoded: str, encoded_id: str) -> Response:
    """One piece of auxiliary data, active or not any more."""
    actor_id, aux_id, tree = requested_actor(encoded), requested_id(encoded_id), asked_tree()
    answer = known(log_view().reader.aux(actor_id, aux_id, tree))
    return answer_json("actor/get-aux", {"actor-id": actor_id, **_item_members(answer)})


def _key_members(key: Key) -> dict[str, object]:
    return {
        "created": str(key.created),
        "key-id": key.key_id,
        "leaf-index": key.leaf_index,
        "public-key": encode_public_key(key.public_key),
    }


def _aux_members(aux: Aux) -> dict[str, object]:
    return {
        "aux-data": aux.aux_data,
        "aux-id": aux.aux_id,
        "aux-type": aux.aux_type,
        "created": str(aux.created),
        "leaf-index": aux.leaf_index,
    }


def _item_members(answer: ItemAnswer) -> dict[str, object]:
    item, end = answer.spell.item, answer.spell.end
    return {
        **(_key_members(item) if isinstance(item, Key) else _aux_members(item)),
        "tree-size": answer.tree_size,
        "inclusion-proof": encode_proof(answer.proof),
        "merkle-root": pkd_root(answer.tree_size, answer.root),
        "revoked": None if end is None else str(end.created),
        "revoke-root": None if end is None else encode_root(end.root),
        # Not only a RevokeKey ends a key: also a BurnDown, a revocation token, and moving away.
        "revoke-action": None if end is None else end.action,
        "revoke-leaf-index": None if end is None else end.leaf_index,
        "revoke-inclusion-proof": None if answer.end_proof is None else encode_proof(answer.end_proof),
    }


def _history_members(page: History) -> dict[str, object]:
    return {"history": [_history_row(row) for row in page.rows], "history-next": page.more_after}


def _history_row(row: HistoryRow) -> dict[str, object]:
    return {
        "leaf-index": row.record.leaf_index,
        "role": row.role,
        "merkle-leaf": encode_base64url(row.record.entry),
        "encrypted-message": preimage_text(row.record),
        "plain": dict(row.record.plain),
        "inclusion-proof": None if row.proof is None else encode_proof(row.proof),
    }
