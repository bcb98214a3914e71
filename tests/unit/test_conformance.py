"""Conformance: the published vectors and our own pass; whatever is changed in them is found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ktlog import conformance
from ktlog.conformance import Failure, format_report, parse_vectors, replay
from ktlog.errors import EncodingError
from ktlog.pkd.keys import encode_public_key
from tests.pkd_samples import ALICE, public, remembered_argon2  # noqa: F401 - the fixture works by being here
from tests.vector_maker import STORIES, make_vectors

Case = dict[str, Any]
NEVER_ENROLLED = "https://example.com/users/ghost"
"""Listed by a published case with an empty state: whether it is listed shows nowhere else."""

STEP_TEXTS = (
    "merkle-root-before", "merkle-root-after", "protocol-message", "signed-message", "hpke-wrapped-message",
    "merkle-leaf", "expected-error",
)


@pytest.fixture(scope="module")
def own(remembered_argon2) -> dict[str, Any]:  # noqa: F811
    return make_vectors()


@pytest.fixture(scope="module")
def published(vectors) -> dict[str, Any]:
    return parse_vectors((vectors / "pkd-vectors-0.9.0.json").read_bytes())


def failures(case: Case) -> list[dict[str, Any]]:
    return replay({"test-cases": [case]}).as_dict()["failures"]


# --- what passes


def test_the_ten_published_cases_pass(published) -> None:
    report = replay(published)
    assert report.as_dict() == {"cases": 10, "steps": 23, "failed": 0, "failures": []}
    lines = format_report(report).splitlines()
    assert len(lines) == 11 and all(line.startswith("ok ") for line in lines[:10])
    assert lines[-1] == "10 cases, 23 steps, 0 failed"


def test_our_own_cases_pass_and_have_all_ten_actions(own) -> None:
    report = replay(own)
    assert report.as_dict()["failures"] == []
    assert report.as_dict()["steps"] == sum(len(story) for story in STORIES.values())
    actions = {line[0].action for story in STORIES.values() for line in story if line[2] is None}
    assert len(actions) == 10


def test_members_that_nothing_depends_on_may_be_missing(own) -> None:
    for case in own["test-cases"]:
        changed = copy.deepcopy(case)
        del changed["seed"], changed["steps"][0]["description"]
        assert failures(changed) == []


def test_a_key_that_is_gone_may_still_be_listed_as_revoked(own) -> None:
    changed = copy.deepcopy(next(case for case in own["test-cases"] if case["name"] == "the-other-seven"))
    listed = changed["final-mapping"]["actors"][ALICE]
    assert listed["public-keys"] == []
    listed["public-keys"] = {"A" * 43: {"public-key": encode_public_key(public("c")), "revoked": True}}
    assert failures(changed) == []


# --- what is corrupted


def flip(text: str, place: int) -> str:
    """*text* with another character at *place*; an empty text gets one."""
    if not text:
        return "A"
    place = min(place, len(text) - 1)
    return text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1:]


def changed_steps(case: Case, fractions: tuple[float, ...]) -> Iterator[tuple[str, Case]]:
    for number, step in enumerate(case["steps"]):
        for name in STEP_TEXTS:
            for fraction in fractions if step.get(name) else (0.0,):
                text = step.get(name, "")
                changed = copy.deepcopy(case)
                changed["steps"][number][name] = flip(text, int(fraction * max(0, len(text) - 1)))
                yield f"steps[{number}].{name}@{fraction}", changed
        changed = copy.deepcopy(case)
        changed["steps"][number]["expect-fail"] = not step["expect-fail"]
        yield f"steps[{number}].expect-fail", changed
        if "expected-error" in step:
            changed = copy.deepcopy(case)
            del changed["steps"][number]["expected-error"]
            yield f"steps[{number}] without expected-error", changed


def moved_steps(case: Case) -> Iterator[tuple[str, Case]]:
    """A step missing, twice, or in another's place. A refusal missing at the end leaves no trace."""
    steps = case["steps"]
    for number, step in enumerate(steps):
        if len(steps) > 1 and not (number == len(steps) - 1 and step["expect-fail"]):
            yield f"without step {number}", case | {"steps": steps[:number] + steps[number + 1:]}
        yield f"step {number} twice", case | {"steps": steps[:number + 1] + steps[number:]}
        if number:
            swapped = [*steps[:number - 1], step, steps[number - 1], *steps[number + 1:]]
            yield f"steps {number - 1} and {number} swapped", case | {"steps": swapped}


def changed_ends(case: Case) -> Iterator[tuple[str, Case]]:
    def change(what: str, edit: Callable[[Case], None]) -> tuple[str, Case]:
        changed = copy.deepcopy(case)
        edit(changed["final-mapping"])
        return what, changed

    final = case["final-mapping"]
    tree = final["merkle-tree"]
    yield change("root", lambda f: f["merkle-tree"].update(root=flip(tree["root"], 20)))
    for step in (-1, 1):
        count = tree["leaf-count"] + step
        yield change(f"leaf-count{step:+}", lambda f, count=count: f["merkle-tree"].update({"leaf-count": count}))
    yield change("an extra leaf", lambda f: f["merkle-tree"]["leaves"].append("QQ"))
    for number, leaf in enumerate(tree["leaves"]):
        for place in (0, len(leaf) // 2, len(leaf) - 1):
            yield change(f"leaf {number}@{place}", lambda f, number=number, leaf=leaf, place=place:
                         f["merkle-tree"]["leaves"].__setitem__(number, flip(leaf, place)))
        yield change(f"no leaf {number}", lambda f, number=number: f["merkle-tree"]["leaves"].pop(number))
    for actor_id, actor in (final["actors"] or {}).items():
        yield change(f"fireproof {actor_id}", lambda f, a=actor_id, v=not actor["fireproof"]:
                     f["actors"][a].update(fireproof=v))
        yield change(f"aux {actor_id}", lambda f, a=actor_id:
                     f["actors"][a]["aux-data"].append({"aux-type": "x", "aux-data": "y"}))
        for number, aux in enumerate(actor["aux-data"]):
            for name in aux:
                yield change(f"{name} of {actor_id}", lambda f, a=actor_id, n=number, name=name, text=aux[name]:
                             f["actors"][a]["aux-data"][n].update({name: flip(text, 2)}))
        for key_id, key in (actor["public-keys"] or {}).items():
            yield change(f"revoked {key_id}", lambda f, a=actor_id, k=key_id:
                         f["actors"][a]["public-keys"][k].update(revoked=True))
            yield change(f"no key {key_id}", lambda f, a=actor_id, k=key_id: f["actors"][a]["public-keys"].pop(k))
            yield change(f"bad key-id {key_id}", lambda f, a=actor_id, k=key_id:
                         f["actors"][a]["public-keys"].update({k + "=": f["actors"][a]["public-keys"].pop(k)}))
            for place in (0, 8, 700, len(key["public-key"]) - 1):
                text = flip(key["public-key"], place)
                yield change(f"key {key_id}@{place}", lambda f, a=actor_id, k=key_id, text=text:
                             f["actors"][a]["public-keys"][k].update({"public-key": text}))
        if actor_id != NEVER_ENROLLED:
            yield change(f"no actor {actor_id}", lambda f, a=actor_id: f["actors"].pop(a))


def changed_keys(case: Case, fractions: tuple[float, ...]) -> Iterator[tuple[str, Case]]:
    for name, text in case["server-keys"].items():
        for fraction in fractions:
            changed = copy.deepcopy(case)
            changed["server-keys"][name] = flip(text, int(fraction * (len(text) - 1)))
            yield f"{name}@{fraction}", changed
    for label, identity in case["identities"].items():
        for kind in identity:
            for name, text in identity[kind].items():
                changed = copy.deepcopy(case)
                changed["identities"][label][kind][name] = flip(text, len(text) // 2)
                yield f"{label} {kind} {name}", changed


def sweep(case: Case, fractions: tuple[float, ...]) -> None:
    variants = [
        *changed_steps(case, fractions), *moved_steps(case), *changed_ends(case), *changed_keys(case, fractions),
    ]
    assert len(variants) > 20
    for what, changed in variants:
        assert failures(changed), f"{case['name']}: nobody noticed {what}"


@pytest.mark.parametrize("number", [
    pytest.param(number, marks=[pytest.mark.slow] if number else [], id=name) for number, name in enumerate(STORIES)
])
def test_no_change_to_our_own_cases_goes_unnoticed(own, number) -> None:
    sweep(own["test-cases"][number], (0.5,))


@pytest.mark.parametrize("number", range(10))
def test_no_change_to_a_published_case_goes_unnoticed(published, number) -> None:
    sweep(published["test-cases"][number], (0.5,))


def test_texts_are_compared_in_their_one_form(own) -> None:
    """The same JSON with a space in it is another text, also where nothing else is compared with it."""
    for case in own["test-cases"]:
        for number, step in enumerate(case["steps"]):
            for name in ("protocol-message", "signed-message"):
                if step[name]:
                    changed = copy.deepcopy(case)
                    changed["steps"][number][name] = step[name].replace(":", ": ", 1)
                    assert any(f["where"] == f"steps[{number}].{name}" for f in failures(changed)), (number, name)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_no_change_anywhere_in_a_published_text_goes_unnoticed(published, number) -> None:
    sweep(published["test-cases"][number], (0.0, 0.01, 0.03, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, 0.97, 0.99, 1.0))


# --- what a failure says


def one_failure(own, number: int, edit: Callable[[Case], None]) -> dict[str, Any]:
    changed = copy.deepcopy(own["test-cases"][number])
    edit(changed)
    found = failures(changed)
    assert found
    return found[0]


def test_a_failure_says_what_differs_and_where(own) -> None:
    steps = own["test-cases"][1]["steps"]
    leaf = steps[1]["merkle-leaf"]
    found = one_failure(own, 1, lambda c: c["steps"][1].update({"merkle-leaf": flip(leaf, 4)}))
    assert found["where"] == "steps[1].merkle-leaf" and "BadEntry" in found["got"]
    found = one_failure(own, 1, lambda c: c["steps"][1].update({"merkle-leaf": flip(leaf, 400)}))
    assert "BadLeafSignature" in found["got"]
    found = one_failure(own, 1, lambda c: c["steps"][4].update({"expected-error": "Actor has no keys"}))
    assert found == {
        "case": "moving", "where": "steps[4].expected-error", "expected": "'Actor has no keys'",
        "got": "'Actor has no enrolled keys'",
    }
    found = one_failure(own, 1, lambda c: c["steps"][4].update({"expect-fail": False}))
    assert found["where"] == "steps[4].expect-fail" and "actor_not_enrolled" in found["got"]
    root = steps[2]["merkle-root-after"]
    found = one_failure(own, 1, lambda c: c["steps"][2].update({"merkle-root-after": flip(root, 30)}))
    assert found["where"] == "steps[2].merkle-root-after" and repr(root) == found["got"]
    found = one_failure(own, 1, lambda c: c["final-mapping"]["actors"].popitem())
    assert found["where"] == "final-mapping.actors"


def test_a_long_difference_is_cut_to_where_it_is(own) -> None:
    text = own["test-cases"][1]["steps"][0]["protocol-message"]
    place = text.index('"time"')
    found = one_failure(own, 1, lambda c: c["steps"][0].update({
        "protocol-message": text[:place] + '"tame"' + text[place + 6:]
    }))
    assert found["where"] == "steps[0].protocol-message"
    assert f"at character {place + 2}" in found["expected"]
    assert '"time"' in found["expected"] and '"tame"' in found["got"] and len(found["got"]) < 60


def test_a_text_cut_short_differs_at_its_end() -> None:
    expected, got = conformance._difference("a" * 100, "a" * 99)
    assert expected.endswith("at character 99") and got == repr("…" + "a" * 16)


def test_an_attribute_that_encrypts_to_other_bytes_is_named(own) -> None:
    """The generator's own mistake, correctly signed and logged: a commitment to another root."""
    with pytest.MonkeyPatch.context() as patch:
        real = conformance.encrypt_attribute
        patch.setattr(conformance, "encrypt_attribute", lambda *a: flip(real(*a), 70) if a[1] == "actor" else real(*a))
        found = failures(own["test-cases"][1])
    assert found[0]["where"] == "steps[0].signed-message.message.actor"
    assert "at character 70" in found[0]["expected"]


def test_a_crash_is_a_failure_and_no_refusal(own) -> None:
    """Also where a refusal is expected, and even if the crash has the right words."""
    case = own["test-cases"][1]

    def crash(*_: Any) -> None:
        raise KeyError("Actor has no enrolled keys")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ktlog.pkd.replay.apply", crash)
        found = failures(case | {"steps": case["steps"][:1]})
    assert found == [{
        "case": "moving", "where": "steps[0]", "expected": "acceptance or a coded refusal",
        "got": "KeyError 'Actor has no enrolled keys'",
    }]


def test_a_step_that_goes_the_wrong_way_ends_its_case_but_not_the_others(own) -> None:
    changed = copy.deepcopy(own)
    changed["test-cases"][1]["steps"][0]["expect-fail"] = True
    report = replay(changed)
    assert report.failed == 1 and len(report.cases[1].failures) == 1
    text = format_report(report)
    assert text.splitlines()[1] == "FAIL  moving  (9 steps)"
    assert text.splitlines()[2].startswith("      steps[0].expect-fail: expected a refusal")
    assert text.splitlines()[-1].endswith("1 failed")
    assert str(Failure("here", "this", "that")) == "here: expected this, got that"


# --- files that are no vectors


@pytest.mark.parametrize("data", [
    b"", b"{", b"[]", b"null", b"{}", b'{"test-cases": []}', b'{"test-cases": {}}', b'{"test-cases": [1]}',
    b'{"test-cases": [{}]}', b'{"test-cases": [], "test-cases": []}', b"\xff", b'{"test-cases": 1.5}',
    b"[" * 100_000,
])
def test_files_without_cases(data) -> None:
    with pytest.raises(EncodingError, match="BadVectors"):
        parse_vectors(data)


def paths(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """Every place in a JSON value, containers first."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*at, key))


def test_a_file_with_anything_of_the_wrong_type_or_missing_is_refused_or_fails(own) -> None:
    """No traceback, whatever is put where; and nothing but what is not read passes."""
    case = own["test-cases"][0]
    assert case["name"] == "short" and not failures(case)
    unread = {"seed", "description"}
    passed = 0
    for path in list(paths(case))[1:]:
        for wrong in (None, 7, "", [], {}, ["x"], {"x": "y"}, "\ud800"):
            changed = copy.deepcopy(case)
            place = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = wrong
            try:
                report = replay({"test-cases": [changed]})
            except EncodingError as error:
                assert error.name == "BadVectors" and error.message
            else:
                passed += not report.failed
                assert report.failed or path[-1] in unread or path[0] == "name", path
    assert passed


@pytest.mark.parametrize(("member", "message"), [
    ("merkle-leaf", "test-cases[1].steps[0]: lacks 'merkle-leaf'"),
    ("expect-fail", "test-cases[1].steps[0]: lacks 'expect-fail'"),
])
def test_a_missing_member_is_named(own, member, message) -> None:
    changed = copy.deepcopy(own)
    del changed["test-cases"][1]["steps"][0][member]
    with pytest.raises(EncodingError) as caught:
        parse_vectors(json.dumps(changed).encode())
    assert caught.value.message == message
