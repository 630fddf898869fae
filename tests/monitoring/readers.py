"""The two readers of the one list, fed the same series: Prometheus' promtool and ``monitoring.watch``."""

from __future__ import annotations

import re
import subprocess

import yaml

from monitoring import alerts, render
from monitoring.watch import Rules

STALE = "stale"


def fires(tmp_path, name, series, minutes, rows=None, interval="1m"):
    """Which of ``minutes`` find the alert firing. Both readers say so, or the test ends here."""
    found = verdicts(tmp_path, series, max(minutes), rows, interval)
    return [minute for minute in minutes if any(alert == name for alert, _ in found[minute])]


def verdicts(tmp_path, series, last, rows=None, interval="1m", every=1):
    """Minute -> all that fires then, as pairs of name and labels; of every alert, the same from both readers."""
    rows = alerts.load() if rows is None else rows
    minutes = range(0, last + 1, every)
    prometheus = of_prometheus(tmp_path, series, minutes, rows, interval)
    watch = of_watch(series, minutes, rows, interval)
    differing = {
        minute: {
            "Prometheus alone": prometheus[minute] - watch[minute],
            "watch alone": watch[minute] - prometheus[minute],
        }
        for minute in minutes
        if prometheus[minute] != watch[minute]
    }
    assert differing == {}, differing
    return prometheus


def of_prometheus(tmp_path, series, minutes, rows, interval):
    rules, test = tmp_path / "rules.yml", tmp_path / "test.yml"
    rules.write_text(render.render(rows), encoding="utf-8")
    # ALERTS is what Alertmanager and dashboards see; promtool, told to expect nothing, says what it got.
    query = 'ALERTS{alertstate="firing"}'
    group = {
        "interval": interval,
        "input_series": [{"series": key, "values": text} for key, text in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": f"{minute}m"} for minute in minutes],
    }
    content = {"rule_files": [str(rules)], "evaluation_interval": f"{minutes.step}m", "tests": [group]}
    test.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = subprocess.run(["promtool", "test", "rules", test], capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    said = re.findall(r"time: (?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:0s)?,\s+exp: nil\s+got: (\{.*)", output)
    # Nothing else went wrong.
    assert (output.count("expr:"), done.returncode) == (len(said), 1 if said else 0), output
    found = {minute: set() for minute in minutes}
    for days, hours, rest, got in said:
        for text in re.findall(r"\{([^}]*)\}", got):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', text))
            alert = labels.pop("alertname")
            for own in ("__name__", "alertstate", "severity"):
                labels.pop(own)
            found[int(days or 0) * 1440 + int(hours or 0) * 60 + int(rest or 0)].add((alert, frozenset(labels.items())))
    return found


def of_watch(series, minutes, rows, interval):
    rules = Rules(rows)
    samples = sorted(
        (index * alerts.seconds(interval), key, value)
        for key, text in series.items()
        for index, value in enumerate(expanded(text))
        if value is not None
    )
    found = {}
    for minute in minutes:
        while samples and samples[0][0] <= minute * 60:
            at, key, value = samples.pop(0)
            name, _, labels = key.partition("{")
            identity = name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels))
            # A source of its own, so that a gap is a gap and only `stale` an end, as promtool has it.
            rules.store.put(at, {} if value == STALE else {identity: value}, key)
        rules.evaluate(minute * 60)
        found[minute] = {(event.alert, frozenset(event.labels.items())) for event in rules.firing}
    return found


def expanded(text):
    """The notation of promtool: 1+2x3 is 1 3 5 7, 4x2 is 4 4 4, _x2 is two gaps, stale is the end of a series."""
    values = []
    for word in text.split():
        if match := re.fullmatch(r"_(?:x(\d+))?", word):
            values += [None] * int(match[1] or 1)
        elif word == STALE:
            values.append(STALE)
        else:
            start, step, times = re.fullmatch(r"(-?[\d.]+)([+-][\d.]+)?(?:x(\d+))?", word).groups()
            values += [float(start) + index * float(step or 0) for index in range(int(times or 0) + 1)]
    return values
