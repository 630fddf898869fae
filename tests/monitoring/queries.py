"""Every PromQL that this repository shows to people or gives to machines, and what is wrong with one."""

from __future__ import annotations

import json
import math
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import promql_parser as promql
import yaml

from monitoring import alerts

ROOT = Path(__file__).resolve().parents[2]
METRIC = re.compile(r"\b(?:qwen3|node|haproxy|process|scrape)_\w+|\bup\b")
COUNTER = re.compile(r"_(total|bucket|count|sum)$")
COMPARISONS = {">", "<", ">=", "<=", "==", "!="}
# Grafana's own variables, and those that a dashboard may declare: any value.
GRAFANA = (
    (r"\$\{?__(rate_)?interval(:\w+)?\}?", "5m"),
    (r"\$\{?__range(_s)?\}?", "1h"),
    (r"\$\{?\w+(:\w+)?\}?", ".*"),
)


@dataclass(frozen=True)
class Query:
    source: str
    text: str

    def __str__(self):
        return f"{self.source}: {' '.join(self.text.split())}"


def everywhere():
    """All queries: alerts, runbooks and other documents, the autoscaler's rules, dashboards."""
    return [*of_alerts(), *of_documents(), *of_the_autoscaler(), *of_dashboards()]


def of_alerts():
    for name, row in alerts.load().items():
        for record, expr in row.signals.items():
            yield Query(f"alerts.yml {name}", expr)
            yield Query(f"alerts.yml {name}", record)
        if row.absent is not None:
            yield Query(f"alerts.yml {name}", row.absent)


def of_documents():
    """Blocks of promql, and code within a line that names a metric and is PromQL."""
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.split():
        if not (ROOT / name).exists():
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        for block in re.findall(r"^```promql\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            yield Query(name, block.strip())
        for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
            if re.search(r"\bqwen3_\w+_(?:total|seconds|bytes|ratio|depth|running|up|info)\b", span) and parsed(span):
                yield Query(name, span)


def of_the_autoscaler(path=ROOT / "infra/prometheus_adapter.yml"):
    """What prometheus-adapter makes of its templates."""
    for rule in yaml.safe_load(path.read_text(encoding="utf-8"))["rules"]:
        series = rule["seriesQuery"]
        yield Query(path.name, series)
        filled = rule["metricsQuery"].replace("<<.Series>>", series.partition("{")[0]).replace("<<.GroupBy>>", "pod")
        yield Query(path.name, filled.replace("<<.LabelMatchers>>", 'namespace="qwen3",pod=~"web1-0|web2-0"'))


def of_dashboards(folder=ROOT / "monitoring/dashboards"):
    """Panels, rows of panels, and the variables that ask Prometheus."""

    def targets(node):
        if isinstance(node, dict):
            if isinstance(node.get("expr"), str):
                yield node["expr"]
            for value in node.values():
                yield from targets(value)
        elif isinstance(node, list):
            for value in node:
                yield from targets(value)

    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for expr in targets(content):
            yield Query(path.name, expr)
        for variable in content.get("templating", {}).get("list", []):
            asked = variable.get("query")
            asked = asked.get("query", "") if isinstance(asked, dict) else str(asked or "")
            if match := re.fullmatch(r"label_values\((.+),\s*(\w+)\)", asked):
                yield Query(path.name, f"count by ({match[2]}) ({match[1]})")


def plain(text):
    """Without Grafana's variables."""
    for pattern, value in GRAFANA:
        text = re.sub(pattern, value, text)
    return text


def parsed(text):
    try:
        return promql.parse(text)
    except ValueError:
        return None


def nodes(expr):
    found = []
    promql.walk(expr, found.append)
    return found


def unfiltered(expr):
    """What a threshold is compared with: an alert's condition is empty while all is well."""
    while isinstance(expr, promql.ParenExpr):
        expr = expr.expr
    if (
        isinstance(expr, promql.BinaryExpr)
        and str(expr.op) in COMPARISONS
        and isinstance(expr.rhs, promql.NumberLiteral)
    ):
        return unfiltered(expr.lhs)
    return expr


def metrics(text):
    """Names that a query reads; of a recorded signal, those that it is made of."""
    signals = {record: expr for row in alerts.load().values() for record, expr in row.signals.items()}
    found = set()
    for node in nodes(promql.parse(text)):
        if isinstance(node, promql.VectorSelector):
            found |= metrics(signals[node.name]) if node.name in signals else {node.name}
    return found


@dataclass(frozen=True)
class Run:
    """A site that was idle, then had work and trouble, then was idle again; Unix times."""

    site: object
    began: float
    worked: float
    rested: float
    ended: float
    moving: frozenset
    steady: dict


def problems(query, run):
    """What is wrong with ``query``, judged by what Prometheus saw in ``run``; nothing if all is well."""
    text = plain(query.text)
    expr = parsed(text)
    if expr is None:
        return ["is no PromQL"]
    return unknown_series(expr, run) or unknown_labels(expr, run) or unmoved(text, expr, run)


def seen(run, text):
    """Series that ``text`` had at any time of the run."""
    return run.site.query_range(run.site.times.shortened(text), run.began, run.ended)


def unknown_series(expr, run):
    selectors = [node for node in nodes(expr) if isinstance(node, promql.VectorSelector)]
    return [f"nothing is {each}" for each in selectors if not seen(run, each.prettify())]


def unknown_labels(expr, run):
    """Labels to group or match by that no series of the query has: PromQL groups by them without a word."""
    known, asked = {"__name__"}, set()
    for node in nodes(expr):
        if isinstance(node, promql.VectorSelector):
            known |= {label for series in seen(run, node.prettify()) for label in series["metric"]}
        elif isinstance(node, promql.Call) and node.func.name == "label_replace":
            known.add(node.args[1].val)
        elif isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            asked |= set(node.modifier.labels)
        elif isinstance(node, promql.BinaryExpr) and node.modifier is not None:
            asked |= set(node.modifier.matching.labels if node.modifier.matching else ())
            asked |= set(node.modifier.group_labels or ())
    return [f"no series has the label {label}" for label in sorted(asked - known)]


def unmoved(text, expr, run):
    names = metrics(text)
    if unclassified := names - run.moving - set(run.steady):
        return [f"say whether load moves it, in test_queries.py: {', '.join(sorted(unclassified))}"]
    values = {}
    for series in seen(run, unfiltered(expr).prettify()):
        for at, value in series["values"]:
            if not math.isnan(float(value)):
                values[at] = values.get(at, 0.0) + float(value)
    if not values:
        return ["is empty"]
    if not names & run.moving:
        return []
    before = max((value for at, value in values.items() if at < run.worked), default=-math.inf)
    most = max((value for at, value in values.items() if at >= run.worked), default=-math.inf)
    least = min((value for at, value in values.items() if run.worked <= at), default=math.inf)
    lowest_before = min((value for at, value in values.items() if at < run.worked), default=math.inf)
    falls_first = names <= FALLING
    if falls_first:
        return [] if least < lowest_before else ["does not fall when the engine is away"]
    if not most > before:
        return ["does not rise under load"]
    if not must_fall(expr):
        return []
    last = max((value for at, value in values.items() if at > run.ended - 2 * run.site.times.scrape), default=-math.inf)
    # A counter without its rate has at the end what it had when the load was over, however low its course was then.
    at_rest = [value for at, value in values.items() if abs(at - run.rested) <= run.site.times.scrape]
    stands = any(map(COUNTER.search, names)) and 0 < max(at_rest, default=0) <= last
    return ["does not fall when the load is over"] if stands or last > most / 2 else []


FALLING = {"qwen3_engine_up"}
"""1 while all is well."""


def must_fall(expr):
    """Not what is shown as a counter on purpose, nor what looks back farther than the run."""
    if isinstance(expr, promql.VectorSelector) and COUNTER.search(expr.name):
        return False
    windows = [node.range.total_seconds() for node in nodes(expr) if isinstance(node, promql.MatrixSelector)]
    recorded = [
        alerts.seconds(text)
        for node in nodes(expr)
        if isinstance(node, promql.VectorSelector)
        for row in alerts.load().values()
        for text in alerts.WINDOW.findall(row.signals.get(node.name, ""))
    ]
    return max([*windows, *recorded], default=0) <= 300
