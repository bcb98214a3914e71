"""The dashboard and the alert rules name no metric that nobody serves."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

import auditor.outbox
import auditor.watch
from ktlog.operator.numbers import format_metrics as log_metrics
from tests.machine import need, program
from tests.unit.test_operator_numbers import NUMBERS
from witness import metrics as witness_metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "ktlog.rules.yml").read_text(encoding="utf-8"))["groups"]
BOARD = json.loads((DEPLOY / "grafana" / "ktlog.json").read_text(encoding="utf-8"))
EXPRESSIONS = [rule["expr"] for group in RULES for rule in group["rules"]]
EXPRESSIONS += [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
OURS = re.compile(r"\b(?:ktlog|process)_[a-z_]+")


def served() -> set[str]:
    """Every metric's name, from the pages themselves; those that a witness has in some states only, from its source."""
    lines = log_metrics(NUMBERS).decode().splitlines()
    names = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    source = Path(witness_metrics.__file__).read_text(encoding="utf-8")
    names |= {f"ktlog_witness_{name}" for name in re.findall(r'page\.add\(\s*"([a-z_]+)"', source)}
    names |= {f"ktlog_witness_{name}_bucket" for name in re.findall(r'add_histograms\(\s*"([a-z_]+)"', source)}
    for module in (auditor.watch, auditor.outbox):
        found = re.findall(r'"([a-z_]+)", "(?:gauge|counter)"', Path(module.__file__).read_text(encoding="utf-8"))
        assert found, module
        names |= {f"ktlog_auditor_{name}" for name in found}
    names |= {f"{name}_bucket" for name in names if name.endswith("fetch_seconds")}
    return names | {"process_cpu_seconds_total", "process_resident_memory_bytes"}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_is_served(expression: str) -> None:
    named = set(OURS.findall(re.sub(r"\{[^}]*\}", "", expression)))
    assert named or expression.startswith("up{"), "no metric of ours"
    assert named <= served()


def test_every_alert_says_what_to_do() -> None:
    alerts = [rule for group in RULES for rule in group["rules"]]
    assert len(alerts) >= 10
    assert max(Counter(rule["alert"] for rule in alerts).values()) == 1
    for rule in alerts:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".") and rule["annotations"]["do"]


def test_every_document_that_an_alert_names_is_there() -> None:
    named = set(re.findall(r"docs/[a-z-]+\.md", (DEPLOY / "prometheus" / "ktlog.rules.yml").read_text(encoding="utf-8")))
    assert named and all((DEPLOY.parent / name).exists() for name in named)


RULES_FILE = DEPLOY / "prometheus" / "ktlog.rules.yml"


def promtool(*words: object) -> subprocess.CompletedProcess[str]:
    need("promtool")
    return subprocess.run([program("promtool"), *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    done = promtool("check", "rules", RULES_FILE)
    assert done.returncode == 0, done.stderr
    (tmp_path / "bent.yml").write_text(RULES_FILE.read_text(encoding="utf-8").replace("abs(", "abz(", 1), encoding="utf-8")
    assert promtool("check", "rules", tmp_path / "bent.yml").returncode != 0


@pytest.mark.parametrize(("alert", "bad", "good", "minutes"), [
    ("KtlogDown", {'up{job="ktlog"}': "0x60"}, {'up{job="ktlog"}': "1x60"}, 10),
    ("KtlogNotCosigned", {'ktlog_witnesses_fresh{log="log"}': "0x60"}, {'ktlog_witnesses_fresh{log="log"}': "1x60"}, 20),
    ("KtlogCheckpointOld", {'ktlog_checkpoint_age_seconds{log="log"}': "1800+60x60"},
     {'ktlog_checkpoint_age_seconds{log="log"}': "900x60"}, 20),
    # The test's time begins at 0, and a sample is of the minute that it is in.
    ("KtlogClockOff", {"ktlog_time_seconds": "45+60x60"}, {"ktlog_time_seconds": "15+60x60"}, 20),
    ("KtlogClockOff", {"ktlog_time_seconds": "-45+60x60"}, {"ktlog_time_seconds": "-15+60x60"}, 20),
    ("KtlogAuditorFinding", {'ktlog_auditor_findings_open{origin="x",name="Fork",class="Forked"}': "1x60"},
     {'ktlog_auditor_findings_open{origin="x",name="NoAnswer",class="Unreachable"}': "1x60"}, 20),
    ("KtlogAuditorFailing", {'ktlog_auditor_looked_timestamp_seconds{origin="x"}': "0x200"},
     {'ktlog_auditor_looked_timestamp_seconds{origin="x"}': "0+60x200"}, 180),
    ("KtlogAuditorDown", {"ktlog_auditor_ready": "0x60"}, {"ktlog_auditor_ready": "1x60"}, 20),
    ("KtlogFetchesBlocked", {"ktlog_ssrf_blocked_total": "0+120x60"}, {"ktlog_ssrf_blocked_total": "0+6x60"}, 40),
])
def test_an_alert_fires_when_it_should_and_then_only(
    tmp_path: Path, alert: str, bad: dict[str, str], good: dict[str, str], minutes: int
) -> None:
    def fires(series: dict[str, str]) -> bool:
        """promtool takes what alerts are expected, labels and all; so it is asked whether there are none."""
        (tmp_path / "test.yml").write_text(json.dumps({"rule_files": [str(RULES_FILE)], "evaluation_interval": "1m", "tests": [{
            "interval": "1m", "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [{"eval_time": f"{minutes}m", "alertname": alert, "exp_alerts": []}],
        }]}), encoding="utf-8")
        done = promtool("test", "rules", tmp_path / "test.yml")
        assert done.returncode == 0 or alert in done.stdout + done.stderr, done.stderr
        return done.returncode != 0

    assert (fires(bad), fires(good)) == (True, False)


def test_panels_do_not_lie_on_each_other() -> None:
    taken = Counter(
        (x, y) for panel in BOARD["panels"] for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    )
    assert max(taken.values()) == 1
    assert max(x for x, _ in taken) < 24
