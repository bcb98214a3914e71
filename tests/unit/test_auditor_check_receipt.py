"""``ktlog-auditor check-receipt``: a promise kept, one not kept yet, and one that was broken."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from client_log import NOW, ORIGIN, Network
from client_world import remembering_argon2id

from auditor import cli
from auditor.commands import check_receipt
from auditor.convict import conviction
from auditor.evidence.judge import Known
from ktlog.pkd import attributes
from ktlog.pkd.keys import encode_public_key
from tests import evidence_world as lies


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    monkeypatch.setattr("time.time", lambda: NOW)

    def asked(log, receipt: bytes, *words: str, key: int = 0) -> tuple[int, str]:
        network = Network(log)
        network.replace("/keys", lies.key_changes(lies.honest()))
        monkeypatch.setattr(check_receipt, "fetcher", lambda dial: nullcontext(network))
        (tmp_path / "receipt").write_bytes(receipt)
        monkeypatch.setattr(sys, "argv", [
            "ktlog-auditor", "check-receipt", str(tmp_path / "receipt"), "--vkey", str(lies.vkeys(log)[1]),
            "--http-key", encode_public_key(lies.HTTP_PUBLIC[key]), "--dir", str(tmp_path / "dir"), "--json", *words,
        ])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return left.value.code or 0, out

    return asked


def test_kept_late_and_broken(ask, tmp_path: Path) -> None:
    one, other = lies.twin()
    receipt = lies.receipt(one, 3)
    code, out = ask(one, receipt)
    assert code == 0 and json.loads(out)["kept"] is True
    code, out = ask(lies.honest(), receipt)
    assert code == 9 and "NotYetPublished" in out and not list((tmp_path / "dir" / "evidence").iterdir())
    code, out = ask(other, receipt)
    assert code == 7 and "BrokenPromise" in out
    (path,) = (tmp_path / "dir" / "evidence").iterdir()
    # The log's own history of keys is in the file, so whoever reads it needs the checkpoint key alone.
    assert conviction(path.read_bytes(), Known(lies.vkeys(one), now=NOW))["origin"] == ORIGIN


def test_a_receipt_by_another_key_says_nothing_about_the_log(ask) -> None:
    one, other = lies.twin()
    assert ask(other, lies.receipt(one, 3), key=1)[0] == 5
    assert ask(other, b"{}")[0] == 2
