"""Ways to break a rule that docs/conformance.md cites, and the cited test that must notice.

``old`` is exact text that occurs once in ``file``; ``new`` takes its place. Each is the kind of slip that
a later change could make, and none of them makes the code fall over at once: only a test can tell.
"""

from __future__ import annotations

from dataclasses import dataclass

STATE, REPLAY, MESSAGES = "tests/unit/test_pkd_state.py", "tests/unit/test_pkd_replay.py", "tests/unit/test_pkd_messages.py"
REFUSALS, ATTRIBUTES, HPKE = "tests/unit/test_pkd_refusals.py", "tests/unit/test_pkd_attributes.py", "tests/unit/test_pkd_hpke.py"
KEYS, TOKEN, ENTRY = "tests/unit/test_pkd_keys.py", "tests/unit/test_pkd_token.py", "tests/unit/test_pkd_entry.py"
CANONICAL, PAE = "tests/unit/test_pkd_canonical.py", "tests/unit/test_pkd_pae.py"
ADMISSION, SEQUENCER = "tests/unit/test_operator_admission.py", "tests/unit/test_operator_sequencer.py"
ACTIVITY, HTTPSIG = "tests/unit/test_operator_activity.py", "tests/unit/test_wire_httpsig.py"
ACTOR_ID, WEBFINGER = "tests/unit/test_wire_actor_id.py", "tests/unit/test_wire_webfinger.py"
BUILD, TREES, ED = "tests/unit/test_client_build.py", "tests/property/test_tlog_trees.py", "tests/unit/test_tlog_ed25519.py"
RULES, THREATS, TREE = "tests/unit/test_conformance_rules.py", "tests/e2e/test_threat_model.py", "tests/unit/test_tlog_tree.py"


@dataclass(frozen=True)
class Mutation:
    """requirement: a number of the page, whose row cites test (file, function)."""

    requirement: str
    test: tuple[str, str]
    file: str
    old: str
    new: str

    @property
    def name(self) -> str:
        return f"{self.requirement} {self.test[1]}"


def _all(file: str, *rows: tuple[str, str, str, str, str]) -> list[Mutation]:
    return [Mutation(number, (test_file, test), file, old, new) for number, test_file, test, old, new in rows]


MUTATIONS: tuple[Mutation, ...] = tuple(
    _all(
        "ktlog/pkd/state.py",
        ("ADDKEY-1", STATE, "test_add_key_refusals",
         "    elif signer != message.public_key:\n        raise reject(\"bad_signature\")\n", ""),
        ("ADDKEY-2", REPLAY, "test_other_refusals_with_real_signatures",
         "    if isinstance(message, AddKey) and _row(view, message.actor) and _verifies(message.public_key, wire):\n"
         "        raise reject(\"self_signed_not_allowed\")\n",
         "    if isinstance(message, AddKey) and _verifies(message.public_key, wire):\n        return message.public_key\n"),
        ("REVOKE-1", STATE, "test_revoke_key_refusals", "    if not remaining:\n        raise reject(\"last_key\")\n", ""),
        ("REVOKE-4", SEQUENCER, "test_a_rotation_in_one_batch", "    if not remaining:\n        raise reject(\"last_key\")\n", ""),
        ("REVOKE-2", STATE, "test_revoke_key_refusals",
         "    if signer == message.public_key:\n        raise reject(\"self_revocation\")\n", ""),
        ("REVOKE-5", STATE, "test_add_key_refusals",
         "(actor is not None and hashed in actor.revoked) or _is_token_revoked(view, hashed)", "_is_token_revoked(view, hashed)"),
        ("REVOKE-5", STATE, "test_a_revoked_key_does_not_come_back_with_a_move",
         "    if any(_cannot_return(view, target, key_hash(key.public_key)) for key in old.keys):\n"
         "        raise reject(\"key_revoked\")\n", ""),
        ("MOVE-1", STATE, "test_move_refusals",
         "    old, target = _enrolled(view, message.old_actor), _row(view, message.new_actor)\n    _signed_by(old, signer)\n",
         "    old, target = _enrolled(view, message.old_actor), _row(view, message.new_actor)\n"),
        ("MOVE-5", STATE, "test_move_refusals", "    if target is not None and target.keys:\n        raise reject(\"target_has_keys\")\n", ""),
        ("MOVE-6", STATE, "test_moving_carries_everything_and_leaves_nothing",
         "new = replace(new, aux=old.aux, fireproof", "new = replace(new, fireproof"),
        ("FIRE-1", STATE, "test_fireproof_and_back",
         "    if actor.fireproof == wanted:\n        raise reject(\"already_fireproof\" if wanted else \"not_fireproof\")\n", ""),
        ("FIRE-3", STATE, "test_burn_down_refusals", "    if actor.fireproof:\n        raise reject(\"actor_is_fireproof\")\n", ""),
        ("BURN-V-9", STATE, "test_burn_down_refusals",
         "    if actor_domain(message.actor) != actor_domain(message.operator):\n        raise reject(\"domain_mismatch\")\n", ""),
        ("BURN-V-10", STATE, "test_burn_down_refusals",
         "_enrolled(view, message.operator)\n    _signed_by(operator, signer)\n", "_enrolled(view, message.operator)\n"),
        ("BURN-V-13", STATE, "test_burn_down_empties_the_target_and_leaves_the_operator_alone",
         "return replace(actor, keys=(), aux=(), status=status", "return replace(actor, keys=(), status=status"),
        ("ADDAUX-A-1", STATE, "test_aux_refusals",
         "    if message.aux_id not in (None, computed):\n        raise reject(\"aux_id_mismatch\")\n", ""),
        ("REVAUX-V-7", STATE, "test_aux_refusals",
         "    if len(remaining) == len(actor.aux):\n        raise reject(\"unknown_aux\")\n", ""),
        ("REVAUX-1", STATE, "test_one_aux_datum_of_several_goes", "if (aux.aux_type, aux.aux_id) != named)", "if False)"),
        ("APP-PHP-3", STATE, "test_a_token_for_a_key_that_nobody_holds_adds_nothing",
         "    if not actors:\n        raise reject(\"unknown_token_key\")\n", ""),
        ("RKTP-V-4", STATE, "test_a_key_may_serve_two_actors_until_a_token_takes_it_from_both",
         "for actor_id in sorted(view.holders.get(hashed, ())):", "for actor_id in sorted(view.holders.get(hashed, ()))[:1]:"),
        ("RKTP-3", STATE, "test_a_token_keeps_fireproof_and_takes_aux_data_with_the_last_key",
         "_emptied(actor, Status.REVOKED, leaf_index)", "_emptied(replace(actor, fireproof=False), Status.REVOKED, leaf_index)"),
        ("ADDKEY-V-4", ADMISSION, "test_a_key_id_counts_as_far_as_it_points",
         "wire.key_id if use_key_id else None", "None"),
        ("ROOT-3", STATE, "test_the_window_is_exact_at_every_size", "math.ceil(2 * math.log2(tree_size) ** 2)",
         "math.ceil(math.log2(tree_size) ** 2)"),
        ("ROOT-4", STATE, "test_windows", "return 0 <= age <= recent_window(tree_size)", "return 0 <= age < recent_window(tree_size)"),
        ("ROOT-6", STATE, "test_the_zero_root_is_good_for_the_first_entry_only", "return age == tree_size == 0", "return age == tree_size"),
        ("APP-SPEC-12", STATE, "test_created_is_the_messages_time_or_the_greatest_before_it",
         "return greatest_time_so_far if message.time is None else message.time", "return message.time or 0"),
    )
    + _all(
        "ktlog/pkd/messages.py",
        ("HANDLE-4", REFUSALS, "test_another_context",
         "    if members.get(\"!pkd-context\") != PKD_CONTEXT:\n        raise reject(\"wrong_context\")\n", ""),
        ("MSG-1", REFUSALS, "test_every_member_is_needed_and_no_other_is_taken",
         "if not required <= names <= required | optional:", "if not required <= names:"),
        ("HANDLE-3", MESSAGES, "test_the_time_window_is_closed_and_two_sided",
         "abs(now - time) > window_seconds", "now - time > window_seconds"),
        ("ADDKEY-A-1", REFUSALS, "test_symmetric_keys_are_exactly_those_of_the_attributes",
         "set(members) != set(encrypted)", "not set(members) >= set(encrypted)"),
        ("REVAUX-A-1", REFUSALS, "test_revoking_aux_data_needs_a_name_for_it",
         "    if shape.one_of and not shape.one_of & set(body):\n", "    if False:\n"),
        ("SHRED-4", "tests/unit/test_client_answers.py", "test_a_lie_about_the_actor",
         "        if text is not None and wire.recent_root is not None:\n            check_commitment(dialect, name, wire.body[name],"
         " text, wire.recent_root)", "        pass"),
    )
    + _all(
        "ktlog/pkd/compose.py",
        ("SIG-3", MESSAGES, "test_signed_bytes_preimage_and_hash_of_a_fireproof",
         "\"!pkd-context\", PKD_CONTEXT, \"action\", action,", "\"action\", action, \"!pkd-context\", PKD_CONTEXT,"),
        ("PAD-3", MESSAGES, "test_padding_fills_up_to_a_kibibyte_at_every_length",
         "PADDING_MULTIPLE_BYTES = 1024", "PADDING_MULTIPLE_BYTES = 512"),
    )
    + _all(
        "ktlog/pkd/canonical.py",
        ("SIG-1", CANONICAL, "test_known_answers",
         "separators=(\",\", \":\"), sort_keys=True", "separators=(\",\", \":\"), sort_keys=False"),
    )
    + _all("ktlog/pkd/pae.py", ("PAE-2", PAE, "test_the_border_between_pieces_is_part_of_the_encoding",
                                "return len(data).to_bytes(8, \"little\") + data", "return data"))
    + _all(
        "ktlog/pkd/attributes.py",
        ("ATTDEC-2", ATTRIBUTES, "test_every_changed_byte_is_refused",
         "    if not hmac.compare_digest(_tag(dialect, name, key, sealed), sealed.tag):\n", "    if False:\n"),
        ("ATTDEC-4", ATTRIBUTES, "test_a_key_holder_cannot_commit_to_something_else",
         "    if not hmac.compare_digest(_commit(dialect, name, data, sealed.random, root), sealed.commitment):\n",
         "    if False:\n"),
        ("MISC-1", RULES, "test_tags_and_commitments_are_compared_in_constant_time",
         "not hmac.compare_digest(_tag(dialect, name, key, sealed), sealed.tag)", "_tag(dialect, name, key, sealed) != sealed.tag"),
        ("COMMIT-1", ATTRIBUTES, "test_commitment_known_answers",
         "argon2id(prefixed(root) + prefixed(name) + prefixed(plaintext), salt)",
         "argon2id(prefixed(name) + prefixed(root) + prefixed(plaintext), salt)"),
    )
    + _all(
        "ktlog/pkd/argon2.py",
        ("V1-1", ATTRIBUTES, "test_spec_equals_a_second_derivation", "PASSES = 3", "PASSES = 2"),
    )
    + _all(
        "ktlog/pkd/hpke.py",
        ("HPKE-1", HPKE, "test_messages_bind_info_and_the_key_id", ":v1:protocol-message\"", ":v1:protocol-messages\""),
        ("HPKE-2", HPKE, "test_key_id_is_an_hmac_under_the_key_itself",
         "hmac.digest(encapsulation_key, KEY_ID_MESSAGE, \"sha256\")", "hmac.digest(KEY_ID_MESSAGE, encapsulation_key, \"sha256\")"),
        ("PAD-6", HPKE, "test_a_message_sealed_without_the_key_id_is_refused",
         "return open_sealed(key, sealed, MESSAGE_INFO, key_id(key.encapsulation_key))",
         "return open_sealed(key, sealed, MESSAGE_INFO, b\"\")"),
        ("CRYPT-3", HPKE, "test_xwing_draft_vector", "dh_ciphertext + dh_public + _XWING_LABEL", "dh_public + dh_ciphertext + _XWING_LABEL"),
    )
    + _all(
        "ktlog/pkd/token.py",
        ("RKTP-V-3", TOKEN, "test_every_changed_byte_is_refused",
         "    except Invalid:\n        raise Invalid(\"BadTokenSignature\", \"the key that the token revokes did not sign it\") from None",
         "    except Invalid:\n        pass"),
        ("TOKEN-1", TOKEN, "test_layout", "b\"\\xfe\" * 32", "b\"\\xff\" * 32"),
    )
    + _all(
        "ktlog/pkd/entry.py",
        ("TLOG-2", ENTRY, "test_each_part_has_its_own_refusal",
         "    if not hmac.compare_digest(entry.message_hash, hashlib.sha256(preimage).digest()):\n", "    if False:\n"),
    )
    + _all("ktlog/pkd/dialects.py", ("TLOG-3", ENTRY, "test_spec_hashes_the_five_signed_members",
                                     "keeps_first=False,\n    hashed_fields=SIGNED_FIELDS,",
                                     "keeps_first=False,\n    hashed_fields=(*SIGNED_FIELDS, \"key-id\"),"))
    + _all(
        "ktlog/pkd/keys.py",
        ("KEYID-4", RULES, "test_a_key_id_says_nothing_about_its_key",
         "pae([KEY_ID_LABEL, origin, leaf_index.to_bytes(8, \"big\")])", "pae([KEY_ID_LABEL, leaf_index.to_bytes(8, \"big\")])"),
        ("ALGO-2", KEYS, "test_every_changed_byte_of_a_signature_is_refused",
         "    except InvalidSignature:\n        raise Invalid(\"BadMessageSignature\", \"the ML-DSA-44 signature does not verify\") from None",
         "    except InvalidSignature:\n        pass"),
    )
    + _all(
        "ktlog/tlog/ed25519.py",
        ("ALGO-1", ED, "test_small_order_keys_are_refused", "    if y in _SMALL_ORDER_Y:\n", "    if y in ():\n"),
    )
    + _all("ktlog/tlog/tree.py", ("PROOF-1", TREES, "test_every_inclusion_proof",
                                  "return inner, (index >> inner).bit_count()", "return inner, (index >> inner).bit_length()"))
    + _all(
        "ktlog/wire/httpsig.py",
        ("REST-4", HTTPSIG, "test_one_signature_does_not_count_twice",
         "    if len(set(algorithms)) != len(algorithms):\n", "    if False:\n"),
        ("APP-PHP-2", HTTPSIG, "test_components_that_must_be_covered",
         "        if not plain.issuperset(COMPONENTS):\n", "        if False and COMPONENTS:\n"),
    )
    + _all("ktlog/wire/actor.py", ("REST-2", "tests/unit/test_wire_actor.py", "test_codecs_of_others_are_none_of_ours",
                                   "            return algorithm, public_key\n    return None",
                                   "            return algorithm, public_key\n    return ED25519, data[-32:]"))
    + _all(
        "ktlog/wire/actor_id.py",
        ("ACTOR-2", ACTOR_ID, "test_only_the_scheme_is_ever_repaired", "text = \"https://\" + text[len(\"http://\"):]", "pass"),
        ("ACTOR-4", ACTOR_ID, "test_handles", "text.removeprefix(\"@\").partition(\"@\")", "text.partition(\"@\")"),
        ("ACTOR-7", ACTOR_ID, "test_an_actor_id_comes_back_unchanged",
         "    return HttpsUrl(host, colon + port, target)", "    return HttpsUrl(host, \"\", target)"),
    )
    + _all("ktlog/wire/webfinger.py", ("ACTOR-5", WEBFINGER, "test_documents_that_do_not",
                                       "        and is_activity_type(link[\"type\"])\n", ""))
    + _all(
        "ktlog/operator/activity.py",
        ("WIRE-1", ACTIVITY, "test_a_message_that_others_get_too",
         "inbox_actor not in named or any(address != inbox_actor for address in named)", "inbox_actor not in named"),
        ("WIRE-E-1", ACTIVITY, "test_contents_that_are_no_envelope",
         "    if set(fields) != {\"!pkd-context\", \"actor\", member}:\n", "    if False:\n"),
    )
    + _all(
        "ktlog/operator/admission.py",
        ("ADDKEY-V-5", ADMISSION, "test_who_may_speak_for_whom", "        if speaker != sender:\n", "        if False and sender:\n"),
        ("APP-PHP-1", ADMISSION, "test_whose_key_it_is", "            if envelope.actor != activity.actor:\n", "            if False:\n"),
        ("PMP-1", ADMISSION, "test_actions_that_do_not_come_in_here",
         "            if wire.action == BurnDown.action:\n", "            if False:\n"),
        ("HANDLE-2", ADMISSION, "test_the_time_window", "        check_time(wire.time, self._now(), window)\n", ""),
        ("MSG-5", ADMISSION, "test_a_token_may_come_in_plain_text_and_nothing_else_does",
         "            if wire.action not in _PLAINTEXT_ACTIONS:\n", "            if False:\n"),
        ("APP-PHP-16", ADMISSION, "test_argon2_comes_last",
         "        message = open_message_attributes(self._dialect, wire, commitments=False)",
         "        message = open_message_attributes(self._dialect, wire, commitments=True)"),
    )
    + _all(
        "ktlog/client/build.py",
        ("SHRED-1", BUILD, "test_keys_and_nonces_are_never_used_twice",
         "keys = {name: random(32) for name in names}", "keys = dict.fromkeys(names, random(32))"),
    )
    + _all(
        "ktlog/operator/sequencer.py",
        ("TM-RACE-1", THREATS, "test_parallel_enrollment_race_conditions",
         "return self.actors[actor_id] if actor_id in self.actors else self.store.actor(actor_id)",
         "return self.store.actor(actor_id)"),
        ("HANDLE-1", SEQUENCER, "test_signed_again_it_is_the_same_message",
         "        if known is not None:\n            return known\n", ""),
        ("ROOT-5", SEQUENCER, "test_a_root_grows_old",
         "            check_recent_root(self._roots.size_of, overlay.size, wire.recent_root)", "            pass"),
    )
    + _all("ktlog/operator/guard.py", ("RATE-3", "tests/unit/test_operator_guard.py", "test_the_wait_doubles_with_each_refusal",
                                       "self._base_ms << min(count - 1, 40)", "self._base_ms * count"))
    + _all(
        "ktlog/pkd/totp.py",
        ("TOTP-C-1", "tests/unit/test_pkd_totp.py", "test_rfc_6238_appendix_b_for_sha_512",
         "counter.to_bytes(8, \"big\"), \"sha512\")",
         "counter.to_bytes(8, \"big\"), \"sha256\")"),
        ("TOTP-V-1", "tests/unit/test_pkd_totp.py", "test_this_window_and_the_two_before_it_are_good",
         "PREVIOUS_WINDOWS = 2", "PREVIOUS_WINDOWS = 1"),
        ("TOTP-V-2", "tests/unit/test_pkd_totp.py", "test_a_password_counts_once_and_so_do_older_ones",
         "if matching[-1] <= last_window:", "if matching[-1] < last_window:"),
        ("TOTP-E-3", "tests/unit/test_pkd_totp.py", "test_one_right_password_is_not_enough",
         "_same(totp_code(secret, window), current_code) & _same(", "_same(totp_code(secret, window), current_code) | _same("),
    )
    + _all("ktlog/pkd/cosign.py", ("COSIGN-V-6", "tests/unit/test_pkd_cosign.py", "test_a_cosignature_for_another_directory",
                                   "    if not names_host(token.hostname, origin):\n", "    if False:\n"))
    + _all("ktlog/pkd/extensions/age_v1.py", ("AUXREQ-1", "tests/unit/test_pkd_extensions.py", "test_almost_an_age_recipient",
                                              "    if _polymod(expanded + groups) != 1:\n", "    if False and expanded:\n"))
    + _all(
        "ktlog/operator/directories.py",
        ("CHECK-V-6", "tests/unit/test_steps_of_checkpoint.py", "test_checkpoint_step_6_the_key_is_the_one_that_the_sender_has_now",
         "        if current != message.from_public_key:\n", "        if False and current:\n"),
    )
    + _all("ktlog/web/app.py", ("TM-DNS-1", "tests/unit/test_web_guarding.py", "test_other_hosts_are_refused",
                                "not in hosts:", "in ():"))
    + _all(
        "ktlog/wire/httpsig_response.py",
        ("TM-PQ-1", "tests/unit/test_wire_httpsig_response.py", "test_both_algorithms_are_wanted_unless_one_is_said_to_do",
         "    if not found or not found.keys() >= set(wanted):\n", "    if not found:\n"),
        ("APP-FEAT-32", "tests/unit/test_wire_httpsig_response.py",
         "test_an_answer_to_a_body_that_it_does_not_name_is_taken_by_nobody",
         "        wanted.add(_REQUEST_DIGEST)\n", "        wanted.add((\"@status\",))\n"),
    )
    + _all(
        "ktlog/web/signing.py",
        ("APP-FEAT-32", "tests/unit/test_web_guarding.py", "test_an_answer_to_one_body_is_none_to_another",
         "            exchange.method, exchange.url, exchange.request_digest, exchange.status,\n",
         "            exchange.method, exchange.url, None, exchange.status,\n"),
    )
    + _all("ktlog/web/history.py", ("GET-SINCE-3", "tests/unit/test_web_reading.py", "test_a_root_that_the_log_never_had",
                                    "    if not size or size > view.size():", "    if size is None or size > view.size():"))
    + _all("ktlog/operator/totp.py", ("TOTP-E-4", "tests/unit/test_operator_totp.py", "test_enrolling_twice_fails",
                                      "        if self._store.totp(domain) is not None:\n", "        if False and domain:\n"))
)
