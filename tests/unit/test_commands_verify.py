"""``ktlog verify`` of an entry: a C2SP .tlog-proof, the entry's bytes and a policy, as the explorer's page has it."""

from __future__ import annotations

import html
import json
import re
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ktlog import cli
from ktlog.pkd.keys import decode_root
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import COSIGNATURE_ED25519, ED25519, sign_checkpoint, signer_from_seed
from ktlog.tlog.proof import format_proof, parse_proof
from tests.explorer_site import Site
from tests.operator_world import ORIGIN
from tests.pkd_samples import ALICE, quick_argon2  # noqa: F401
from tests.reading_log import fill, reading_log

WITNESSES = [signer_from_seed(f"w{number}.example", COSIGNATURE_ED25519, bytes([number]) * 32) for number in range(3)]
OTHER, OTHER_MAP, IMPOSTOR = (
    signer_from_seed(name, ED25519, b"o" * 32) for name in ("other.example", "other.example/map", ORIGIN)
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with reading_log(tmp_path_factory.mktemp("verify") / "log") as log:
        fill(log.desk)
        log.publish()
        yield Site(log)


def entry_files(site, folder) -> None:
    """Entry 5 as its page hands it out, but cosigned, and a policy that trusts this log and these witnesses."""
    proof = parse_proof(site.ask("/e/5.tlog-proof").data)
    at = int(time.time())
    note, checkpoint = parse_signed_checkpoint(proof.checkpoint_bytes)
    more = sign_checkpoint(checkpoint, WITNESSES[:2], at).removeprefix(note.text + b"\n")
    (folder / "5.tlog-proof").write_bytes(format_proof(replace(proof, checkpoint_bytes=proof.checkpoint_bytes + more)))
    (folder / "5.leaf").write_bytes(site.ask("/e/5.leaf").data)
    logs = [f"log {vkey}" for vkey in site.json("/about")["vkeys"]]
    cosigners = [f"witness w{number} {signer.vkey}" for number, signer in enumerate(WITNESSES)]
    lines = [*logs, *cosigners, "group witnesses 2 w0 w1 w2", "quorum witnesses", ""]
    (folder / "log.policy").write_text("\n".join(lines))


@pytest.fixture
def verify(site, tmp_path, monkeypatch, capsys):
    """Run ``ktlog verify`` beside the files of entry 5: its exit code, and what it printed."""
    entry_files(site, tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ktlog", "verify", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return (left.value.code, *capsys.readouterr())

    return run


CHECK = ("5.tlog-proof", "--entry", "5.leaf", "--policy", "log.policy")


def test_the_commands_of_an_entry_check_it(site, verify):
    text = html.unescape(re.search(r'aria-label="Commands that check this entry">(.*?)</pre>', site.ask("/e/5").text, re.DOTALL)[1])
    *fetch, check = map(shlex.split, text.splitlines())
    assert fetch == [["curl", "-sSO", f"https://{ORIGIN}/e/5.{kind}"] for kind in ("tlog-proof", "leaf")]
    assert check == ["ktlog", "verify", *CHECK]
    code, out, err = verify(*check[2:])
    assert code == 0 and "tree-size: 11\n" in out and "cosigners: w0.example, w1.example" in out, err
    found = json.loads(verify(*CHECK, "--json")[1])
    shown = site.json("/e/5")
    assert (found["answer"], found["origin"], found["leaf-index"]) == ("logged", ORIGIN, 5)
    assert found["leaf-hash"] == shown["leaf-hash"] and decode_root(found["merkle-root"]).hex() == shown["root"]


@pytest.mark.parametrize("place", [0, 40, -1])
def test_an_entry_with_one_bit_changed_is_not_logged(verify, tmp_path, place):
    flip(tmp_path / "5.leaf", place)
    code, out, err = verify(*CHECK)
    assert (code, out) == (5, "") and "BadInclusionProof" in err


def test_a_proof_with_one_bit_changed_proves_nothing(verify, tmp_path):
    file = tmp_path / "5.tlog-proof"
    whole = file.read_bytes()
    # All but the signature lines: a line of somebody unknown counts for nothing, and takes nothing away.
    for place in range(0, whole.index("\n\n— ".encode()), 7):
        flip(file, place)
        code, out, err = verify(*CHECK)
        assert code in (2, 5) and not out and "internal" not in err.lower(), (place, err)
        file.write_bytes(whole)
    # In the last cosignature another letter of base64, for what is none is refused by another name.
    place = len(whole) - 9
    file.write_bytes(whole[:place] + (b"B" if whole[place : place + 1] == b"A" else b"A") + whole[place + 1 :])
    code, out, err = verify(*CHECK)
    assert (code, out) == (5, "") and "BadCosignature" in err


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(("change", "code", "name"), [
    (lambda text: "", 2, "BadPolicy"),
    (lambda text: text.replace("quorum witnesses", "quorum none"), 6, "UnsafePolicy"),
    (lambda text: text.replace("witnesses 2", "witnesses 1"), 6, "UnsafePolicy"),
    (lambda text: re.sub(r"log [^\n]*\n", "", text), 5, "WrongLog"),
    (lambda text: re.sub(r"log [^\n]*\n", "", text) + f"log {OTHER.vkey}\n", 5, "WrongLog"),
    (lambda text: re.sub(r"log [^\n]*\n", "", text) + f"log {IMPOSTOR.vkey}\n", 5, "BadLogSignature"),
    (lambda text: f"log {OTHER_MAP.vkey}\n" + text, 6, "UnsafePolicy"),
    (lambda text: text.replace("witnesses 2", "witnesses 3"), 6, "TooFewWitnesses"),
])
def test_a_policy_that_does_not_vouch_for_an_entry(verify, tmp_path, change, code, name):
    file = tmp_path / "log.policy"
    file.write_text(change(file.read_text()))
    left, out, err = verify(*CHECK)
    assert (left, out) == (code, "") and name in err


@pytest.mark.parametrize("option", [
    ["--actor", ALICE], ["--origin", ORIGIN], ["--checkpoint", "5.leaf"], ["--max-age", "3600"], ["--pq"],
    ["--export-proof", "x"],
])
def test_what_is_said_of_bundles_is_refused_for_a_proof(verify, option):
    code, out, err = verify(*CHECK, *option)
    assert (code, out) == (2, "") and f"NoBundle: {option[0]}" in err
    assert not Path("x").exists()


def test_a_proof_and_its_entry_go_together(verify):
    for words, name in (
        (["5.tlog-proof"], "NoEntry"), (["5.tlog-proof", "--entry", "none"], "NoFile"),
        (["5.leaf", "--entry", "5.leaf"], "NoProof"), (["5.leaf"], "MalformedBundle"),
    ):
        code, out, err = verify(*words, "--policy", "log.policy")
        assert code in (2, 5) and not out and name in err
