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
from tests.pkd_samples import remembered_argon2  # noqa: F401 - the fixture works by being here
from tests.vector_maker import STORIES, make_vectors

Case = dict[str, Any]
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
            yield change(f"bad key-id {key_id}", lambda f, a=actor_id, k=key_id, key=key:
                         f["actors"][a]["public-keys"].update({k + "=": key}))
            for place in (0, 8, 700, len(key["public-key"]) - 1):
                text = flip(key["public-key"], place)
                yield change(f"key {key_id}@{place}", lambda f, a=actor_id, k=key_id, text=text:
                             f["actors"][a]["public-keys"][k].update({"public-key": text}))
        if actor["public-keys"] or actor["fireproof"] or len(case["steps"]) > 1:
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
        if what == f"no actor {next(reversed(case['final-mapping']['actors'] or {'': 0}))}" and not (
            _was_enrolled(case, what.removeprefix("no actor "))
        ):
            continue
        assert failures(changed), f"{case['name']}: nobody noticed {what}"


def _was_enrolled(case: Case, actor_id: str) -> bool:
    """Whether the story touched the actor at all; one that it did not may be listed or not."""
    report = failures(case | {"final-mapping": case["final-mapping"] | {"actors": []}})
    return any(failure["got"] == repr(actor_id) for failure in report)


@pytest.mark.parametrize("number", range(len(STORIES)), ids=list(STORIES))
def test_no_change_to_our_own_cases_goes_unnoticed(own, number) -> None:
    sweep(own["test-cases"][number], (0.5,))


@pytest.mark.parametrize("number", range(10))
def test_no_change_to_a_published_case_goes_unnoticed(published, number) -> None:
    sweep(published["test-cases"][number], (0.5,))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_no_change_anywhere_in_a_published_text_goes_unnoticed(published, number) -> None:
    sweep(published["test-cases"][number], (0.0, 0.01, 0.03, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, 0.97, 0.99, 1.0))
