"""Grafana's dashboards: what the code makes is what is committed, and Grafana can show it.

That every query has names, labels and values, and moves under load, is judged in test_queries.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations

import jsonschema
import pytest

from infra import chart_schema
from monitoring import alerts, dashboards

DOCUMENTS = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in dashboards.FOLDER.glob("*.json")}
OWN = {"__rate_interval", "__interval", "__range"}
# Ids of Grafana's packages/grafana-data/src/valueFormats/categories.ts that are used here.
UNITS = {"none", "s", "bytes", "Bps", "reqps", "percentunit"}

# What Grafana's loader asks of a dashboard (its JSON model), as far as it is used here; more is an error.
_POSITION = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": 0, "maximum": 23},
        "y": {"type": "integer", "minimum": 0},
        "w": {"type": "integer", "minimum": 1, "maximum": 24},
        "h": {"type": "integer", "minimum": 1},
    },
    "required": ["x", "y", "w", "h"],
    "additionalProperties": False,
}
_SOURCE = {
    "type": "object",
    "properties": {"type": {"const": "prometheus"}, "uid": {"const": "${datasource}"}},
    "required": ["type", "uid"],
}
_ROW = {
    "properties": {"type": {"const": "row"}, "collapsed": {"const": False}, "panels": {"maxItems": 0}},
    "required": ["id", "type", "title", "gridPos", "panels"],
}
_PANEL = {
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "type": {"enum": ["timeseries", "stat", "heatmap"]},
        "title": {"type": "string", "minLength": 1},
        "description": {"type": "string", "minLength": 10, "pattern": r"\.$"},
        "datasource": _SOURCE,
        "gridPos": _POSITION,
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {"datasource": _SOURCE, "refId": {"pattern": "^[A-Z]$"}, "expr": {"minLength": 1}},
                "required": ["refId", "datasource", "expr", "legendFormat"],
            },
        },
        "fieldConfig": {
            "properties": {
                "defaults": {"properties": {"unit": {"type": "string", "minLength": 1}}, "required": ["unit"]},
                "overrides": {"type": "array"},
            },
            "required": ["defaults", "overrides"],
        },
    },
    "required": ["id", "type", "title", "description", "datasource", "gridPos", "targets", "fieldConfig", "options"],
}
SCHEMA = {
    "type": "object",
    "properties": {
        "uid": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"},
        "title": {"type": "string", "minLength": 1},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "panels": {
            "type": "array",
            "minItems": 2,
            "items": {"if": {"properties": {"type": {"const": "row"}}}, "then": _ROW, "else": _PANEL},
        },
        "templating": {"type": "object", "required": ["list"]},
        "time": {"type": "object", "required": ["from", "to"]},
    },
    "required": ["uid", "title", "description", "schemaVersion", "panels", "templating", "time"],
}


def faults(document):
    """What Grafana would show wrongly, or not at all."""
    found = [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(document)]
    if found:
        return found
    ids = [panel["id"] for panel in document["panels"]]
    found += [f"id {number} twice" for number in {number for number in ids if ids.count(number) > 1}]
    for one, other in combinations(document["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        if not (beside or above):
            found.append(f"{one['title']} lies on {other['title']}")
    found += [
        f"{panel['title']} sticks out" for panel in document["panels"] if sum(map(panel["gridPos"].get, "xw")) > 24
    ]
    defined = [variable["name"] for variable in document["templating"]["list"]]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([document["panels"], document["templating"]])))
    found += [f"${name} is not defined" for name in sorted(used - set(defined) - OWN - {"__all"})]
    found += [f"${name} is never used" for name in sorted(set(defined) - used)]
    for panel in document["panels"]:
        letters = [target["refId"] for target in panel.get("targets", ())]
        if len(letters) != len(set(letters)):
            found.append(f"{panel['title']} has a refId twice")
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "none")
        if unit not in UNITS and not re.fullmatch(r"suffix: \S.*", unit):
            found.append(f"{panel['title']}: unit {unit!r} is none of Grafana's")
    return found


def test_what_is_committed_is_what_the_code_makes(capsys):
    assert dashboards.main(["--check"]) == 0, "python -m monitoring.dashboards, and -m infra.chart_schema"
    assert json.loads(capsys.readouterr().out) == {"dashboards": 6, "changed": []}
    chart = {path.name: path.read_text() for path in (chart_schema.CHART / "files/dashboards").glob("*.json")}
    assert chart == dashboards.files()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_grafana_can_show_it(name):
    assert faults(DOCUMENTS[name]) == []


def test_six_dashboards_with_uids_of_their_own():
    assert {document["uid"] for document in DOCUMENTS.values()} == {
        *("qwen3-service-health", "qwen3-latency-objectives", "qwen3-tokens"),
        *("qwen3-engine", "qwen3-system", "qwen3-rollouts"),
    }


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda page: page["panels"][2].update(id=2), "id 2 twice"),
        (lambda page: page["panels"][2]["gridPos"].update(x=1), "lies on"),
        (lambda page: page["panels"][2].pop("description"), "'description' is a required property"),
        (lambda page: page["panels"][2].update(targets=[]), "[] should be non-empty"),
        (lambda page: page["panels"][2]["fieldConfig"]["defaults"].pop("unit"), "'unit' is a required property"),
        (lambda page: page["panels"][2]["fieldConfig"]["defaults"].update(unit="seconds"), "none of Grafana's"),
        (lambda page: page["panels"][2]["targets"][0].update(expr="up{pod='$pod'}"), "$pod is not defined"),
        (lambda page: page["panels"][2]["gridPos"].update(x=22), "sticks out"),
        (lambda page: page["panels"][2]["datasource"].update(uid="abc"), "'${datasource}' was expected"),
    ],
)
def test_a_planted_fault_is_found(spoil, said):
    page = json.loads(dashboards.files()["service-health.json"])
    spoil(page)

    assert any(said in each for each in faults(page)), faults(page)


def test_the_folder_follows_the_code_and_a_difference_is_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dashboards, "FOLDER", tmp_path)
    (tmp_path / "gone.json").write_text("{}")

    assert dashboards.main(["--check"]) == 1
    assert (tmp_path / "gone.json").exists()
    assert dashboards.main([]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(DOCUMENTS)
    capsys.readouterr()
    assert dashboards.main(["--check"]) == 0


def test_help_says_what_it_writes():
    done = subprocess.run(
        [sys.executable, "-m", "monitoring.dashboards", "--help"], capture_output=True, text=True, check=True
    )
    assert "monitoring/dashboards" in done.stdout


def test_lines_at_thresholds_are_the_alerts():
    steps = {
        panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
        for document in DOCUMENTS.values()
        for panel in document["panels"]
        if panel["type"] == "timeseries"
    }
    rows = alerts.load()
    assert steps["Latency of successful requests"] == rows["high_latency"].limit == 1.0
    assert steps["Memory of the limit"] == rows["memory_usage"].limit == 0.8
    assert steps["Time to first token"] == rows["time_to_first_token"].limit


def test_burn_rates_ask_for_every_window_of_the_alerts():
    [panel] = [
        panel for panel in DOCUMENTS["latency-objectives.json"]["panels"] if panel["title"] == "Errors burn rate"
    ]
    asked = " ".join(target["expr"] for target in panel["targets"])
    recorded = {
        signal for name, row in alerts.load().items() if name.startswith("error_budget_") for signal in row.signals
    }
    assert {record for record in recorded if record in asked} == recorded
    assert asked.count("* 100") == len(recorded)
