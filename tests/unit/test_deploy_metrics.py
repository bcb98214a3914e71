"""The dashboard and the alert rules name no metric that nobody serves."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from types import ModuleType

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


SELECTOR = re.compile(r"\b(ktlog_[a-z_]+)\{([^}]*)\}")
MATCHER = re.compile(r'([a-z_]+)(=~?|!=)"([^"]*)"')


@pytest.mark.parametrize("expression", [one for one in EXPRESSIONS if SELECTOR.search(one)])
def test_every_label_of_the_logs_own_is_served(expression: str) -> None:
    """And a value that is fixed: `stage="sequencd"` would never fire."""
    page = log_metrics(NUMBERS).decode()
    for name, text in SELECTOR.findall(expression):
        rows = [dict(re.findall(r'([a-z_]+)="([^"]*)"', row)) for row in re.findall(rf"^{name}(\{{.*\}}) ", page, re.MULTILINE)]
        for label, how, value in MATCHER.findall(text):
            if label in ("job", "instance") or not rows:
                continue  # Prometheus's own; or a metric of another daemon
            assert all(label in row for row in rows), label
            open_ended = name == "ktlog_refused_total"  # whose codes come as they come
            assert how != "=" or open_ended or value in {row[label] for row in rows}, value


def labels_in(module: ModuleType, prefix: str) -> dict[str, set[str]]:
    """The labels of each metric that *module* adds to a page: from its source, for some come in some states only."""
    found: dict[str, set[str]] = {}
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
        if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("add", "add_histograms") or len(call.args) < 3:
            continue
        within = [node for loop in loops if call in ast.walk(loop) for node in ast.walk(loop.iter)]
        within += [node for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and call in ast.walk(one)
                   for inner in one.body if isinstance(inner, ast.FunctionDef) for node in ast.walk(inner)]
        first = call.args[0]
        names = [first.value] if isinstance(first, ast.Constant) else [
            node.elts[0].value for node in within if isinstance(node, ast.Tuple) and isinstance(node.elts[0], ast.Constant)
        ]
        keys = {key.value for node in [*ast.walk(call), *within] if isinstance(node, ast.Dict)
                for key in node.keys if isinstance(key, ast.Constant)}
        for name in names:
            found.setdefault(f"{prefix}{name}", set()).update(keys)
    return found


def labels() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in log_metrics(NUMBERS).decode().splitlines():
        if not row.startswith("#"):
            found.setdefault(row.partition("{")[0].split()[0], set()).update(re.findall(r'([a-z_]+)="', row))
    for module, prefix in (
        (witness_metrics, "ktlog_witness_"), (auditor.watch, "ktlog_auditor_"), (auditor.outbox, "ktlog_auditor_"),
    ):
        found |= labels_in(module, prefix)
    return found


SHOWN = [(rule["expr"], str(rule["annotations"])) for group in RULES for rule in group["rules"]]
SHOWN += [(target["expr"], target.get("legendFormat", "")) for panel in BOARD["panels"] for target in panel["targets"]]


def test_labels_are_found_in_the_source() -> None:
    found = labels()
    assert found["ktlog_auditor_findings_open"] == {"origin", "name", "class"}
    assert found["ktlog_auditor_log_failed"] == found["ktlog_witness_replay_wrong"] == {"origin"}
    assert found["ktlog_witness_request_seconds"] == {"endpoint"} and found["ktlog_witness_forks_total"] == set()


@pytest.mark.parametrize(("expression", "words"), SHOWN)
def test_every_label_that_is_asked_for_or_shown_is_served(expression: str, words: str) -> None:
    known, bare = labels(), {"job", "instance", "le"}
    # What an operator gives has the labels of its left side.
    left = [OURS.findall(re.sub(r"\{[^}]*\}", "", part))[:1] for part in expression.split(" or ")]
    of_all = set.intersection(*({label for name in names for label in known.get(name.removesuffix("_bucket"), ())} for names in left))
    for name, text in SELECTOR.findall(expression):
        assert {label for label, _, _ in MATCHER.findall(text)} <= known[name] | bare, name
    groups = {label for text in re.findall(r"by \(([^)]*)\)", expression) for label in text.split(", ")}
    assert groups <= of_all | bare
    shown = set(re.findall(r"\{\{ ?(?:\$labels\.)?([a-z_]+) ?\}\}", words))
    assert shown <= (groups if "by (" in expression else of_all) | bare


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


FIRED = [
    ("KtlogDown", {'up{job="ktlog"}': "0x60"}, {'up{job="ktlog"}': "1x60"}, 10),
    ("KtlogNotCosigned", {'ktlog_witnesses_fresh{log="log"}': "0x60"}, {'ktlog_witnesses_fresh{log="log"}': "1x60"}, 20),
    ("KtlogMapNotCosigned", {'ktlog_witnesses_fresh{log="map"}': "0x60"}, {'ktlog_witnesses_fresh{log="map"}': "1x60"}, 20),
    ("KtlogCheckpointOld", {'ktlog_checkpoint_age_seconds{log="log"}': "1800+60x60", "ktlog_heartbeat_seconds": "600x60"},
     {'ktlog_checkpoint_age_seconds{log="log"}': "900x60", "ktlog_heartbeat_seconds": "600x60"}, 20),
    # An idle log whose heartbeat comes once a day.
    ("KtlogCheckpointOld", {'ktlog_checkpoint_age_seconds{log="map"}': "88000x60", "ktlog_heartbeat_seconds": "86400x60"},
     {'ktlog_checkpoint_age_seconds{log="map"}': "86000x60", "ktlog_heartbeat_seconds": "86400x60"}, 20),
    ("KtlogPaused", {"ktlog_paused": "1x120"}, {"ktlog_paused": "0x120"}, 90),
    ("KtlogCosignerMissing", {'ktlog_witness_cosign_age_seconds{log="log",witness="w"}': "3700x120"},
     {'ktlog_witness_cosign_age_seconds{log="log",witness="w"}': "3500x120"}, 90),
    ("KtlogEntriesWait", {'ktlog_entries{stage="sequenced"}': "5000x60", 'ktlog_entries{stage="published"}': "3000x60"},
     {'ktlog_entries{stage="sequenced"}': "5000x60", 'ktlog_entries{stage="published"}': "4000x60"}, 20),
    ("KtlogMapBehind", {'ktlog_entries{stage="published"}': "5000x60", 'ktlog_entries{stage="mapped"}': "3000x60"},
     {'ktlog_entries{stage="published"}': "5000x60", 'ktlog_entries{stage="mapped"}': "4000x60"}, 20),
    ("KtlogOverloaded", {'ktlog_refused_total{by="web",code="overloaded"}': "0+120x60"},
     {'ktlog_refused_total{by="web",code="overloaded"}': "0+30x60"}, 40),
    ("KtlogBadSignatures", {'ktlog_refused_total{by="web",code="bad_token_signature"}': "0+120x60"},
     {'ktlog_refused_total{by="web",code="not_found"}': "0+120x60"}, 40),
    ("KtlogDiskFull", {"ktlog_free_bytes": "1000000000x60"}, {"ktlog_free_bytes": "2000000000x60"}, 20),
    ("KtlogAlarmsWait", {"ktlog_auditor_alarms_oldest_waiting_seconds": "3700x60"},
     {"ktlog_auditor_alarms_oldest_waiting_seconds": "3500x60"}, 20),
    ("KtlogWitnessDown", {'up{job="ktlog-witness"}': "1x60", "ktlog_witness_ready": "0x60"},
     {'up{job="ktlog-witness"}': "1x60", "ktlog_witness_ready": "1x60"}, 20),
    ("KtlogWitnessFork", {'ktlog_witness_forks_total{origin="x"}': "0x20 1x60"}, {'ktlog_witness_forks_total{origin="x"}': "1x80"}, 40),
    ("KtlogWitnessRecordFailed", {"ktlog_witness_record_failed": "1x60"}, {"ktlog_witness_record_failed": "0x60"}, 10),
    ("KtlogVerifierFoundWrong", {'ktlog_witness_replay_wrong{origin="x"}': "1x60"},
     {'ktlog_witness_replay_wrong{origin="x"}': "0x60"}, 10),
    # The test's time begins at 0, and a sample is of the minute that it is in.
    ("KtlogClockOff", {"ktlog_time_seconds": "45+60x60"}, {"ktlog_time_seconds": "15+60x60"}, 20),
    ("KtlogClockOff", {"ktlog_time_seconds": "-45+60x60"}, {"ktlog_time_seconds": "-15+60x60"}, 20),
    ("KtlogAuditorFinding", {'ktlog_auditor_findings_open{origin="x",name="Fork",class="Forked"}': "1x60"},
     {'ktlog_auditor_findings_open{origin="x",name="NoAnswer",class="Unreachable"}': "1x60"}, 20),
    ("KtlogAuditorFailing", {'ktlog_auditor_looked_timestamp_seconds{origin="x"}': "0x200"},
     {'ktlog_auditor_looked_timestamp_seconds{origin="x"}': "0+60x200"}, 180),
    ("KtlogAuditorDown", {"ktlog_auditor_ready": "0x60"}, {"ktlog_auditor_ready": "1x60"}, 20),
    ("KtlogBackupOld", {"ktlog_backup_timestamp_seconds": "0x3200"}, {"ktlog_backup_timestamp_seconds": "60000x3200"}, 3_000),
    ("KtlogMirrorStale", {'ktlog_mirror_success_timestamp_seconds{origin="x"}': "0x500"},
     {'ktlog_mirror_success_timestamp_seconds{origin="x"}': "0+60x500"}, 450),
    ("KtlogMirrorStopped", {'ktlog_mirror_stopped{origin="x"}': "1x60"}, {'ktlog_mirror_stopped{origin="x"}': "0x60"}, 20),
    ("KtlogFetchesBlocked", {"ktlog_ssrf_blocked_total": "0+120x60"}, {"ktlog_ssrf_blocked_total": "0+6x60"}, 40),
]
"""Of each alert the series by which it fires, and by which it does not."""


def test_every_alert_is_seen_to_fire() -> None:
    assert {alert for alert, *_ in FIRED} == {rule["alert"] for group in RULES for rule in group["rules"]}


@pytest.mark.parametrize(("alert", "bad", "good", "minutes"), FIRED)
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
