"""The plots of a report, as plain data that ``report.js`` draws. Frames in, dictionaries out.

A plot is ``{"height", "x": AXIS, "rows": [ROW], "traces": [TRACE], "bands": [...], "lines": [...]}``: rows share the x
axis and each has a y axis. An axis has ``title``, ``log``, ``percent``, ``zero`` (must be seen), ``range`` or
``categories``. A trace is a ``line``, ``points`` or ``bars`` with ``x``, ``y``, a ``colour`` and what is said of a
point (``hover``, with {x}, {y}, {text}).

However many requests there are, a plot holds a few thousand points at most: quantiles of a distribution, and of a
timeline the slowest requests, evenly spaced others, and the median of each moment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchmarks.stats import compare_pairs
from benchmarks.summary import HIGHER_IS_BETTER, EventGaps
from benchmarks.texts import TEXTS, Language, say

Plot = dict[str, Any]

# Told apart with every common colour blindness, and in grey.
COLOURS = {"a": "#2f6db5", "b": "#d9722b"}
INK, GOOD, BAD, UNSURE, MACHINE, CLIENT = "#1f2933", "#18794e", "#b42318", "#a15c07", "#9aa5b1", "#6b5ca5"
ANSWERS = {"PASS": GOOD, "FAIL": BAD, "NO VERDICT": UNSURE}
MOST_POINTS = 3000
CURVE = np.unique(np.concatenate([np.linspace(0, 1, 201), 1 - np.geomspace(1e-4, 0.01, 40)]))
"""Shares at which a distribution is drawn: evenly, and more closely in the slowest hundredth."""


def forest(summary: dict[str, Any], margin: float, lang: Language) -> Plot:
    """Gain of B over A for each pair, and the mean with both intervals; the axis is logarithmic."""
    comparison = summary["comparison"]
    higher = summary["primary"] in HIGHER_IS_BETTER

    def turn(ratio: float) -> float:
        return ratio if higher else 1 / ratio

    ratios = [turn(ratio) for ratio in comparison["ratios"]]
    names = [say("pair", lang, pair=number) for number in range(1, len(ratios) + 1)]
    ends_of_pairs = [
        sorted((turn(ends[0]), turn(ends[1]))) if ends else [ratio, ratio]
        for ends, ratio in zip(summary["pair_intervals"], ratios, strict=True)
    ]
    traces = [
        _trace("points", ratios, names, COLOURS["b"], error=ends_of_pairs, symbol="square", size=8, hover="{y}: {x}")
    ]
    everything = [*ratios, *(end for ends in ends_of_pairs for end in ends)]
    for key, name, width in (("t", "overall", 3.0), ("bootstrap", "overall_bootstrap", 1.6)):
        if comparison[key] is None:
            continue
        ends = sorted((turn(comparison[key]["low"]), turn(comparison[key]["high"])))
        everything += ends
        names.append(say(name, lang))
        hover = f"{{x}} ({ends[0]:.3f} - {ends[1]:.3f})"
        traces.append(
            _trace(
                *("points", [turn(comparison["ratio"])], [names[-1]], INK),
                error=[ends], symbol="diamond", size=13, width=width, hover=hover,
            )
        )  # fmt: skip
    span = [min(*everything, 1 - 1.2 * margin), max(*everything, 1 + 1.2 * margin)]
    return {
        "height": 90 + 26 * len(names),
        "x": {"title": say("forest_axis", lang), "log": True, "range": _padded(span)},
        "rows": [{"categories": names}],
        "traces": traces,
        "lines": [{"x": 1}],
        "bands": [{"from": 1 - margin, "to": 1}],
    }


def metrics_forest(summary: dict[str, Any], lang: Language) -> Plot | None:
    """Gain of B over A by each metric that every run could state, with its interval; None with fewer than two.

    Metrics that the verdict rests on have its colour; others are shown and decide nothing.
    """
    decided = {
        finding["values"]["metric"]: (finding["answer"], finding["values"].get("margin"))
        for finding in summary["findings"]
        if "metric" in finding["values"]
    }
    rows = summary["runs"]
    names: list[str] = []
    traces: list[dict[str, Any]] = []
    span = [0.95, 1.05]
    for metric in dict.fromkeys([summary["primary"], *decided, "qps", "latency_p50", "latency_avg"]):
        pairs: dict[int, dict[str, float]] = {}
        for row in rows:
            value = row.get("metrics", {}).get(metric, row.get(metric))
            if value:
                pairs.setdefault(row["pair"], {})[row["arm"]] = value
        whole = [both for _, both in sorted(pairs.items()) if len(both) == 2]
        if len(whole) < 2 or 2 * len(whole) < len(rows):
            continue
        found = compare_pairs(
            [both["a"] for both in whole], [both["b"] for both in whole], summary.get("level", 0.05), resamples=0
        )
        ends = (found.ratio, found.t.low, found.t.high)
        middle, low, high = ends if metric in HIGHER_IS_BETTER else (1 / ends[0], 1 / ends[2], 1 / ends[1])
        answer, margin = decided.get(metric, ("", None))
        names.append(say(metric, lang))
        traces.append(
            _trace(
                *("points", [middle], [names[-1]], ANSWERS.get(answer, INK)),
                error=[[low, high]], size=11, symbol="diamond" if answer else "hollow", width=3 if answer else 1.4,
                hover=f"{{y}}: {{x}} ({low:.3f} - {high:.3f})",
            )
        )  # fmt: skip
        span = [min(span[0], low), max(span[1], high)]
        if margin is not None:
            span[0] = min(span[0], 1 - margin)
            traces.append(
                _trace("points", [1 - margin], [names[-1]], BAD, symbol="tick", size=18, hover=f"{1 - margin:.3g}")
            )
    if len(names) < 2:
        return None
    return {
        "height": 80 + 40 * len(names),
        "x": {"title": say("forest_axis", lang), "log": True, "range": _padded(span)},
        "rows": [{"categories": names}],
        "traces": traces,
        "lines": [{"x": 1}],
    }


def candidates_forest(results: list[dict[str, Any]], labels: list[str], min_gain: float, lang: Language) -> Plot | None:
    """How many times as good as the reference each candidate is, with its interval; None where none was measured.

    Args:
        labels: Of ``results``, each another.
        min_gain: So much better, as a share, is worth a change.
    """
    measured = [(label, found) for label, found in zip(labels, results, strict=True) if found["low"] is not None]
    if not measured:
        return None
    traces = []
    span = [0.95, 1.05]
    for label, found in measured:
        low, high = found["low"], found["high"]
        span = [min(span[0], low), max(span[1], high)]
        traces.append(
            _trace(
                *("points", [found["gain"]], [label], ANSWERS.get(found["answer"], MACHINE)),
                error=[[low, high]], size=11, symbol="diamond", width=3,
                hover=f"{found['name']}: {{x}} ({low:.3f} - {high:.3f}), {say(found['metric'], lang)}",
            )
        )  # fmt: skip
    return {
        "height": 80 + 34 * len(measured),
        "x": {"title": say("candidate_gain", lang), "log": True, "range": _padded(span)},
        "rows": [{"categories": [label for label, _ in measured]}],
        "traces": traces,
        "lines": [{"x": 1}],
        "bands": [{"from": 1, "to": 1 + min_gain}] if min_gain else [],
    }


def cdf(records: pd.DataFrame, column: str, names: dict[str, str], lang: Language) -> Plot | None:
    """Share of successful requests for which ``column`` (seconds) was at most so long; None where none has it."""
    curves: dict[str, tuple[Any, Any]] = {}
    for arm in names:
        values = records.loc[records["ok"] & (records["arm"] == arm), column].dropna().to_numpy(float)
        if len(values):
            shares = CURVE if len(values) > len(CURVE) else np.linspace(0, 1, len(values))
            curves[arm] = (np.quantile(values, shares) * 1000, shares)
    return _distributions(curves, names, say("latency_axis", lang), say("share", lang))


def gaps_cdf(gaps: dict[str, EventGaps], names: dict[str, str], lang: Language) -> Plot | None:
    """Share of the gaps between two events of a stream that were at most so long; None where nothing was streamed."""
    shares = CURVE[1:]
    curves = {}
    for arm, found in gaps.items():
        if found.total:
            points = np.asarray(found.quantiles_ms(shares.tolist()))
            # Events that came together have no gap; a logarithmic axis ends somewhere.
            curves[arm] = (np.maximum(points, points[-1] / 1e4), shares)
    return _distributions(curves, names, say("gap_axis", lang), say("share_of_gaps", lang))


def load_against_latency(cells: list[dict[str, Any]], lang: Language) -> Plot | None:
    """Latency at each throughput that was tried, in the order of the load; None where cells say nothing of it."""
    rows = [cell for cell in cells if cell.get("qps") is not None and cell.get("latency_p50_ms") is not None]
    if len(rows) < 2:
        return None
    unit = "users" if rows[0].get("users") is not None else "rate_per_s"
    rows.sort(key=lambda cell: cell.get(unit) or 0)
    traces = []
    every: list[float] = []
    for key, name, dash in (("latency_p50_ms", "p50", ""), ("latency_p95_ms", "p95", "3 4")):
        known = [cell for cell in rows if cell.get(key) is not None]
        every += [cell[key] for cell in known]
        x, y = [_round(cell["qps"]) for cell in known], [_round(cell[key]) for cell in known]
        traces.append(_trace("line", x, y, COLOURS["a"], name=say(name, lang), dash=dash, width=1.8))
        for kept, colour, symbol in ((True, GOOD, "circle"), (False, BAD, "cross"), (None, UNSURE, "hollow")):
            at = [number for number, cell in enumerate(known) if cell.get("kept") is kept]
            texts = [_load_of(known[number], unit, lang) for number in at]
            traces.append(
                _trace(
                    *("points", [x[number] for number in at], [y[number] for number in at], colour),
                    symbol=symbol, size=9, text=texts, hover="{text}: {x}/s, {y} ms",
                )
            )  # fmt: skip
    return {
        "height": 380,
        "x": {"title": say("rate", lang), "zero": True},
        "rows": [{"title": say("latency_axis", lang), **_scale(every)}],
        "traces": traces,
    }


def series_over_time(series: list[dict[str, Any]], lang: Language) -> Plot | None:
    """Figures that were followed over time, one below the other, each with its slope where one was found."""
    shown = [each for each in series if any(value is not None for value in each["values"])]
    if not shown:
        return None
    rows, traces = [], []
    for row, each in enumerate(shown):
        key = f"soak_{each['name']}"
        name = say(key, lang) if key in TEXTS else str(each["name"]).replace("_", " ")
        rows.append({"heading": name + (f", {each['unit']}" if each.get("unit") else "")})
        known = [(at, value) for at, value in zip(each["at_s"], each["values"], strict=True) if value is not None]
        times, values = np.array([at for at, _ in known]), np.array([value for _, value in known], dtype=float)
        traces.append(_trace("points", times, values, COLOURS["a"], row=row, size=6, hover="{x} s: {y}"))
        if each.get("slope_per_hour") is not None and len(known) > 1:
            slope = each["slope_per_hour"] / 3600
            ends = times[[0, -1]]
            fitted = np.median(values - slope * times) + slope * ends
            colour = ANSWERS.get(str(each.get("verdict")), UNSURE)
            traces.append(_trace("line", ends, fitted, colour, row=row))
    return {"height": 60 + 130 * len(shown), "x": {"title": say("seconds_axis", lang)}, "rows": rows, "traces": traces}


def runs_in_order(table: list[dict[str, Any]], names: dict[str, str], lang: Language) -> Plot:
    """Requests per second of each run at the moment it was done; runs of a pair are joined."""
    rows = [row for row in table if row["qps"] is not None]
    traces = []
    for pair in sorted({row["pair"] for row in rows}):
        both = [row for row in rows if row["pair"] == pair]
        traces.append(
            _trace("line", [_middle(row) for row in both], [_round(row["qps"]) for row in both], MACHINE, width=1)
        )
    for arm, name in names.items():
        own = [row for row in rows if row["arm"] == arm]
        x, y = [_middle(row) for row in own], [_round(row["qps"]) for row in own]
        symbol = "circle" if arm == "a" else "square"
        traces.append(_trace("points", x, y, COLOURS[arm], name=name, symbol=symbol, size=10, hover="{x} s: {y}/s"))
    return {
        "height": 360,
        "x": {"title": say("seconds_axis", lang)},
        "rows": [{"title": say("rate", lang), "zero": True}],
        "traces": traces,
    }


def timeline(
    records: pd.DataFrame, samples: pd.DataFrame, names: dict[str, str], cpus: int | None, lang: Language
) -> Plot:
    """Latency of each request at the moment it was due; below it, on the same axis, who used how many CPUs, and the
    servers' memory. Warm-up and probes are grey.

    Args:
        records: Of all phases.
        cpus: Of the machine, whose samples are a share of all of them.
    """
    measured, outside = records[records["phase"] == "measure"], records[records["phase"] != "measure"]
    groups = [(say("warm_up", lang), MACHINE, outside)] if len(outside) else []
    groups += [(name, COLOURS[arm], measured[measured["arm"] == arm]) for arm, name in names.items()]
    traces: list[dict[str, Any]] = []
    every: list[float] = []
    for name, colour, rows in groups:
        good = rows[rows["ok"]]
        shown = thin_out(good, MOST_POINTS // len(groups))
        values = shown["latency_scheduled_s"].to_numpy(float) * 1000
        every += [float(values.min()), float(values.max())] if len(values) else []
        at = shown["scheduled_s"].to_numpy(float)
        traces.append(_trace("points", at, values, colour, name=name, size=4, opacity=0.5, hover="{x} s: {y} ms"))
        if len(good) > MOST_POINTS:
            traces.append(_trace("line", *_medians(good), colour, width=2.2))
    bad = measured[~measured["ok"]]
    if len(bad):
        shown = bad.iloc[_evenly(len(bad), MOST_POINTS // 3)]
        values = (shown["end_s"] - shown["scheduled_s"]).to_numpy(float) * 1000
        every += [float(values.min()), float(values.max())]
        at = shown["scheduled_s"].to_numpy(float)
        traces.append(
            _trace(
                *("points", at, values, BAD), name=say("failed", lang), symbol="cross", size=7,
                text=shown["error"].astype(str).tolist(), hover="{text}, {x} s",
            )
        )  # fmt: skip
    axes: list[dict[str, Any]] = [{"title": say("latency_axis", lang), "weight": 6, **_scale(every)}]
    sides = [
        (f"server_{arm}", name if len(names) > 1 else say("server", lang), COLOURS[arm]) for arm, name in names.items()
    ]
    machine = [("machine", say("machine_cpu", lang), MACHINE, (cpus or 1) / 100)]
    client = [("generator", say("generator", lang), CLIENT, 0.01)]
    loads = _lines(samples, "cpu_percent", [*machine, *((*side, 0.01) for side in sides), *client], len(axes))
    if loads:
        axes.append({"title": say("cpus_axis", lang), "weight": 2.4, "zero": True})
    memories = _lines(samples, "memory_used_mb", [(*side, 1.0) for side in sides], len(axes))
    if memories:
        axes.append({"title": "MiB", "weight": 2})
    known = {trace.get("name") for trace in traces}
    for line in (*loads, *memories):
        line["quiet"] = line["name"] in known  # one entry of the legend for each
        known.add(line["name"])
    return {
        "height": 290 + 100 * len(axes),
        "x": {"title": say("seconds_axis", lang)},
        "rows": axes,
        "traces": [*traces, *loads, *memories],
        "bands": _not_measured(records, lang),
    }


def f1_bars(quality: dict[str, Any], names: dict[str, str]) -> Plot:
    """F1 of each category on both sides."""
    categories = list(dict.fromkeys(name for arm in names for name in quality[f"f1_{arm}"]))
    return {
        "height": 110 + 34 * len(categories),
        "x": {"title": "F1", "range": [0, 1.02]},
        "rows": [{"categories": categories}],
        "traces": [
            _trace("bars", list(quality[f"f1_{arm}"].values()), list(quality[f"f1_{arm}"]), COLOURS[arm], name=name)
            | {"hover": "{y}: {x}"}
            for arm, name in names.items()
        ],
    }


def thin_out(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most ``most`` rows: the slowest tenth of that number, and evenly spaced others, in order of time."""
    if len(rows) <= most:
        return rows
    slowest = rows["latency_scheduled_s"].nlargest(most // 10).index
    others = rows.index.difference(slowest)
    return rows.loc[slowest.union(others[_evenly(len(others), most - len(slowest))])].sort_values("scheduled_s")


def _trace(kind: str, x: Any, y: Any, colour: str, **more: Any) -> dict[str, Any]:
    """``more``: name, row, size, symbol, width, dash, opacity, error ([[low, high], ...]), text, hover."""
    return {"kind": kind, "x": _rounded(x), "y": _rounded(y), "colour": colour, **more}


def _distributions(
    curves: dict[str, tuple[Any, Any]], names: dict[str, str], axis: str, share_axis: str
) -> Plot | None:
    """Curves of (values in ms, shares) by arm."""
    if not curves:
        return None
    return {
        "height": 360,
        "x": {"title": axis, "log": True},
        "rows": [{"title": share_axis, "percent": True, "range": [0, 1]}],
        "traces": [
            _trace("line", points, shares, COLOURS[arm], name=names[arm], hover="{y}: {x} ms")
            for arm, (points, shares) in curves.items()
        ],
    }


def _lines(
    samples: pd.DataFrame, column: str, sources: list[tuple[str, str, str, float]], row: int
) -> list[dict[str, Any]]:
    """Samples of (source, name, colour, scale)."""
    found = []
    for source, name, colour, scale in sources:
        rows = samples[(samples["source"] == source) & samples[column].notna()]
        rows = rows.iloc[_evenly(len(rows), MOST_POINTS // 3)]
        if len(rows) > 1:
            at, values = rows["at_s"].to_numpy(float), rows[column].to_numpy(float) * scale
            hover = f"{name}, {{x}} s: {{y}}"
            found.append(_trace("line", at, values, colour, name=name, row=row, width=1.4, hover=hover))
    return found


def _medians(good: pd.DataFrame) -> tuple[Any, Any]:
    """Median latency (ms) of each of 200 stretches of time."""
    at = good["scheduled_s"].to_numpy(float)
    edges = np.linspace(at.min(), at.max() + 1e-9, 201)
    middles = (edges[:-1] + edges[1:]) / 2
    found = good["latency_scheduled_s"].groupby(np.digitize(at, edges) - 1).median() * 1000
    return middles[found.index.to_numpy(int)], found.to_numpy(float)


def _not_measured(records: pd.DataFrame, lang: Language) -> list[dict[str, Any]]:
    """Stretches of warm-up and probes; those that follow each other are one."""
    runs = records.groupby("run").agg({"phase": "first", "scheduled_s": "min", "end_s": "max"})
    runs = runs.sort_values("scheduled_s")
    stretches: list[dict[str, Any]] = []
    before = "measure"
    for phase, begin, end in zip(runs["phase"], runs["scheduled_s"].tolist(), runs["end_s"].tolist(), strict=True):
        if phase != "measure" and before == "measure":
            stretches.append({"from": begin, "to": end})
        elif phase != "measure":
            stretches[-1]["to"] = end
        before = phase
    if stretches:
        max(stretches, key=lambda each: float(each["to"] - each["from"]))["label"] = say("warm_up", lang)
    return stretches[:20]


def _scale(values: list[float]) -> dict[str, Any]:
    """Of an axis for positive values: logarithmic when they span more than a decade."""
    logarithmic = bool(values) and max(values) >= 10 * max(min(values), 1e-6)
    return {"log": True} if logarithmic else {"zero": True}


def _padded(span: list[float]) -> list[float]:
    """A logarithmic range with a little room on both sides."""
    room = (span[1] / span[0]) ** 0.04
    return [span[0] / room, span[1] * room]


def _load_of(cell: dict[str, Any], unit: str, lang: Language) -> str:
    return say("users_of_cell" if unit == "users" else "rate_of_cell", lang, value=cell.get(unit) or 0)


def _evenly(length: int, most: int) -> Any:
    return np.linspace(0, length - 1, min(length, most)).astype(int)


def _middle(row: dict[str, Any]) -> float:
    return round((float(row["started_s"]) + float(row["ended_s"])) / 2, 2)


def _rounded(values: Any) -> list[Any]:
    return [_round(value) if isinstance(value, float) else value for value in np.asarray(values).tolist()]


def _round(value: float) -> float:
    """To six digits: what a screen shows, in half the bytes."""
    return float(f"{value:.6g}")
