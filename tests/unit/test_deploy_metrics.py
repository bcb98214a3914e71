"""The dashboard and the alert rules name no metric that nobody serves."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from ktlog.operator.numbers import format_metrics as log_metrics
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


def test_panels_do_not_lie_on_each_other() -> None:
    taken = Counter(
        (x, y) for panel in BOARD["panels"] for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    )
    assert max(taken.values()) == 1
    assert max(x for x, _ in taken) < 24
