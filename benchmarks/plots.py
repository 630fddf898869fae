"""The plots of a report, as plotly figures. Frames in, figures out; nothing is read or written here.

However many requests there are, a plot holds a few thousand points at most: quantiles of a distribution, and of a
timeline the slowest requests, evenly spaced others, and the median of each moment.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from benchmarks.config import Language
from benchmarks.stats import compare_pairs
from benchmarks.summary import HIGHER_IS_BETTER, EventGaps
from benchmarks.texts import TEXTS, say

# Told apart with every common colour blindness, and in grey.
COLOURS = {"a": "#2f6db5", "b": "#d9722b"}
INK, GRID, PAPER, SHADE = "#1f2933", "#e4e7eb", "rgba(0,0,0,0)", "rgba(100,116,139,0.10)"
GOOD, BAD, UNSURE, MACHINE, CLIENT = "#18794e", "#b42318", "#8a6d1d", "#9aa5b1", "#6b5ca5"
MOST_POINTS = 3000  # drawn as SVG, which needs no graphics card
CURVE = np.unique(np.concatenate([np.linspace(0, 1, 201), 1 - np.geomspace(1e-4, 0.01, 40)]))
"""Shares at which a distribution is drawn: evenly, and more closely in the slowest hundredth."""


def forest(summary: dict[str, Any], margin: float, lang: Language) -> go.Figure:
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
    figure = go.Figure()
    figure.add_scatter(
        x=ratios,
        y=names,
        mode="markers",
        marker={"size": 9, "color": COLOURS["b"], "symbol": "square"},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, ends[1] - ratio) for ends, ratio in zip(ends_of_pairs, ratios, strict=True)],
            "arrayminus": [max(0.0, ratio - ends[0]) for ends, ratio in zip(ends_of_pairs, ratios, strict=True)],
            "thickness": 1.2,
            "width": 0,
            "color": COLOURS["b"],
        },
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    everything = [*ratios, *(end for ends in ends_of_pairs for end in ends)]
    for key, name, symbol in (("t", "overall", "diamond"), ("bootstrap", "overall_bootstrap", "diamond-open")):
        if comparison[key] is None:
            continue
        ends = sorted((turn(comparison[key]["low"]), turn(comparison[key]["high"])))
        middle = turn(comparison["ratio"])
        everything += ends
        figure.add_scatter(
            x=[middle],
            y=[say(name, lang)],
            mode="markers",
            marker={"size": 14, "color": INK, "symbol": symbol},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [ends[1] - middle],
                "arrayminus": [middle - ends[0]],
                "thickness": 3,
                "width": 8,
                "color": INK,
            },
            hovertemplate=f"%{{x:.3f}} ({ends[0]:.3f} - {ends[1]:.3f})<extra></extra>",
        )
    figure.add_vline(x=1, line={"color": INK, "width": 1.5, "dash": "dot"})
    figure.add_vrect(x0=1 - margin, x1=1, fillcolor=SHADE, line_width=0, layer="below")
    low, high = min(*everything, 1 - 1.2 * margin), max(*everything, 1 + 1.2 * margin)
    _lay_out(figure, 120 + 26 * (len(names) + 2))
    _ratio_axis(figure, low, high, lang)
    return figure


def metrics_forest(summary: dict[str, Any], lang: Language) -> go.Figure | None:
    """Gain of B over A by each metric that every run could state, with its interval; None with fewer than two.

    Metrics that the verdict rests on have its colour; others are shown and decide nothing.
    """
    decided = {
        finding["values"]["metric"]: (finding["answer"], finding["values"].get("margin"))
        for finding in summary["findings"]
        if "metric" in finding["values"]
    }
    rows = summary["runs"]
    level = summary.get("level", 0.05)
    found: list[tuple[str, float, float, float]] = []
    for metric in dict.fromkeys([summary["primary"], *decided, "qps", "latency_p50", "latency_avg"]):
        pairs: dict[int, dict[str, float]] = {}
        for row in rows:
            value = row.get("metrics", {}).get(metric, row.get(metric))
            if value:
                pairs.setdefault(row["pair"], {})[row["arm"]] = value
        whole = [both for _, both in sorted(pairs.items()) if len(both) == 2]
        if len(whole) < 2 or 2 * len(whole) < len(rows):
            continue
        compared = compare_pairs([both["a"] for both in whole], [both["b"] for both in whole], level, resamples=0)
        ends = (compared.ratio, compared.t.low, compared.t.high)
        middle, low, high = ends if metric in HIGHER_IS_BETTER else (1 / ends[0], 1 / ends[2], 1 / ends[1])
        found.append((metric, middle, low, high))
    if len(found) < 2:
        return None
    figure = go.Figure()
    for metric, middle, low, high in found:
        answer, margin = decided.get(metric, ("", None))
        decides = metric in decided
        colour = {"PASS": GOOD, "FAIL": BAD, "NO VERDICT": UNSURE}.get(answer, INK)
        figure.add_scatter(
            x=[middle],
            y=[say(metric, lang)],
            mode="markers",
            marker={"size": 11, "color": colour, "symbol": "diamond" if decides else "diamond-open"},
            error_x={"type": "data", "symmetric": False, "array": [high - middle], "arrayminus": [middle - low]}
            | {"thickness": 3 if decides else 1.5, "width": 6, "color": colour},
            hovertemplate=f"%{{y}}: %{{x:.3f}} ({low:.3f} - {high:.3f})<extra></extra>",
        )
        if margin is not None:
            figure.add_scatter(
                x=[1 - margin],
                y=[say(metric, lang)],
                mode="markers",
                marker={"size": 22, "color": BAD, "symbol": "line-ns-open", "line": {"width": 1.5}},
                hovertemplate=f"{1 - margin:.3f}<extra></extra>",
            )
    figure.add_vline(x=1, line={"color": INK, "width": 1.5, "dash": "dot"})
    lows = [low for *_, low, _ in found] + [1 - margin for _, margin in decided.values() if margin is not None]
    _lay_out(figure, 110 + 44 * len(found))
    _ratio_axis(figure, min(*lows, 0.95), max(*(high for *_, high in found), 1.05), lang)
    figure.update_layout(showlegend=False)
    return figure


def cdf(records: pd.DataFrame, column: str, names: dict[str, str], lang: Language) -> go.Figure | None:
    """Share of successful requests for which ``column`` (seconds) was at most so long; None where none has it.

    The axis is logarithmic when the values span a decade.
    """
    curves: dict[str, tuple[Any, Any]] = {}
    for arm, name in names.items():
        values = records.loc[records["ok"] & (records["arm"] == arm), column].dropna().to_numpy(float)
        if len(values):
            shares = CURVE if len(values) > len(CURVE) else np.linspace(0, 1, len(values))
            curves[name] = (np.quantile(values, shares) * 1000, shares)
    return _distributions(curves, list(names.values()), say("latency_axis", lang), say("share", lang))


def gaps_cdf(gaps: dict[str, EventGaps], names: dict[str, str], lang: Language) -> go.Figure | None:
    """Share of the gaps between two events of a stream that were at most so long; None where nothing was streamed."""
    shares = CURVE[1:]
    curves = {
        names[arm]: (np.asarray(found.quantiles_ms(shares.tolist())), shares)
        for arm, found in gaps.items()
        if found.total
    }
    return _distributions(curves, list(names.values()), say("gap_axis", lang), say("share_of_gaps", lang))


def load_against_latency(cells: list[dict[str, Any]], lang: Language) -> go.Figure | None:
    """Latency at each throughput that was tried, in the order of the load; None where cells say nothing of it."""
    rows = [cell for cell in cells if cell.get("qps") is not None and cell.get("latency_p50_ms") is not None]
    if len(rows) < 2:
        return None
    unit = "users" if rows[0].get("users") is not None else "rate_per_s"
    rows.sort(key=lambda cell: cell.get(unit) or 0)
    figure = go.Figure()
    every: list[float] = []
    for key, name, dash in (("latency_p50_ms", "p50", "solid"), ("latency_p95_ms", "p95", "dot")):
        known = [cell for cell in rows if cell.get(key) is not None]
        every += [cell[key] for cell in known]
        figure.add_scatter(
            x=[cell["qps"] for cell in known],
            y=[cell[key] for cell in known],
            mode="lines+markers",
            name=say(name, lang),
            line={"color": COLOURS["a"], "width": 2, "dash": dash},
            marker={
                "size": 10,
                "color": [{True: GOOD, False: BAD}.get(cell.get("kept"), UNSURE) for cell in known],  # type: ignore[arg-type]
                "symbol": [{True: "circle", False: "x"}.get(cell.get("kept"), "circle-open") for cell in known],  # type: ignore[arg-type]
            },
            text=[_load_of(cell, unit, lang) for cell in known],
            hovertemplate="%{text}<br>%{x:.4g}/s, %{y:.1f} ms<extra></extra>",
        )
    _lay_out(figure, 400)
    figure.update_xaxes(title=say("rate", lang), rangemode="tozero")
    figure.update_yaxes(title=say("latency_axis", lang), **_span(every))
    return figure


def series_over_time(series: list[dict[str, Any]], lang: Language) -> go.Figure | None:
    """Figures that were followed over time, one below the other, each with its slope where one was found."""
    from plotly.subplots import make_subplots

    shown = [each for each in series if any(value is not None for value in each["values"])]
    if not shown:
        return None
    titles = [
        (say(key, lang) if (key := f"soak_{each['name']}") in TEXTS else each["name"].replace("_", " "))
        + (f", {each['unit']}" if each.get("unit") else "")
        for each in shown
    ]
    figure = make_subplots(
        rows=len(shown), cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.3 / len(shown)
    )
    for row, each in enumerate(shown, 1):
        colour = {"FAIL": BAD, "PASS": GOOD}.get(each.get("verdict", ""), UNSURE)
        known = [(at, value) for at, value in zip(each["at_s"], each["values"], strict=True) if value is not None]
        times, values = np.array([at for at, _ in known]), np.array([value for _, value in known])
        figure.add_scatter(
            x=times,
            y=values,
            mode="markers",
            marker={"color": COLOURS["a"], "size": 6},
            hovertemplate="%{x:.0f} s: %{y:.4g}<extra></extra>",
            row=row,
            col=1,
        )
        if each.get("slope_per_hour") is not None and len(known) > 1:
            slope = each["slope_per_hour"] / 3600
            ends = times[[0, -1]]
            line = np.median(values - slope * times) + slope * ends
            figure.add_scatter(
                x=ends, y=line, mode="lines", line={"color": colour, "width": 2}, hoverinfo="skip", row=row, col=1
            )
    _lay_out(figure, 90 + 150 * len(shown))
    figure.update_layout(showlegend=False, margin={"t": 36})
    figure.update_annotations(x=0, xanchor="left", font={"size": 13, "color": INK})
    figure.update_xaxes(title=say("seconds_axis", lang), row=len(shown))
    figure.update_yaxes(nticks=4)
    return figure


def runs_in_order(table: list[dict[str, Any]], names: dict[str, str], lang: Language) -> go.Figure:
    """Requests per second of each run at the moment it was done; runs of a pair are joined."""
    figure = go.Figure()
    rows = [row for row in table if row["qps"] is not None]
    for pair in sorted({row["pair"] for row in rows}):
        both = [row for row in rows if row["pair"] == pair]
        figure.add_scatter(
            x=[_middle(row) for row in both],
            y=[row["qps"] for row in both],
            mode="lines",
            line={"color": "#9aa5b1", "width": 1},
            showlegend=False,
            hoverinfo="skip",
        )
    for arm, name in names.items():
        own = [row for row in rows if row["arm"] == arm]
        figure.add_scatter(
            x=[_middle(row) for row in own],
            y=[row["qps"] for row in own],
            mode="markers",
            name=name,
            marker={"size": 11, "color": COLOURS[arm], "symbol": "circle" if arm == "a" else "square"},
            hovertemplate="%{y:.1f}/s<extra></extra>",
        )
    _lay_out(figure, 380)
    figure.update_xaxes(title=say("seconds_axis", lang))
    figure.update_yaxes(title=say("rate", lang), rangemode="tozero")
    return figure


def timeline(
    records: pd.DataFrame, samples: pd.DataFrame, names: dict[str, str], cpus: int | None, lang: Language
) -> go.Figure:
    """Latency of each request at the moment it was due; below it, on the same axis, who used how many CPUs, and the
    servers' memory. Warm-up and probes are grey.

    Args:
        records: Of all phases.
        cpus: Of the machine, whose samples are a share of all of them.
    """
    from plotly.subplots import make_subplots

    cpu, memory = _loads(samples, names, cpus, lang), _memories(samples, names, lang)
    heights = [0.62, *([0.22] if cpu else []), *([0.16] if memory else [])]
    figure = make_subplots(
        rows=len(heights),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.045,
        row_heights=[h / sum(heights) for h in heights],
    )
    measured = records[records["phase"] == "measure"]
    every: list[float] = []
    outside = records[records["phase"] != "measure"]
    groups = [(say("warm_up", lang), MACHINE, outside)] if len(outside) else []
    groups += [(name, COLOURS[arm], measured[measured["arm"] == arm]) for arm, name in names.items()]
    for name, colour, rows in groups:
        good = rows[rows["ok"]]
        shown = thin_out(good, MOST_POINTS // len(groups))
        values = shown["latency_scheduled_s"].to_numpy(float) * 1000
        every += [float(values.min()), float(values.max())] if len(values) else []
        figure.add_scatter(
            x=shown["scheduled_s"].round(3).to_numpy(float),
            y=np.round(values, 3),
            mode="markers",
            name=name,
            marker={"size": 4, "color": colour, "opacity": 0.55},
            hovertemplate="%{x:.2f} s: %{y:.1f} ms<extra></extra>",
            row=1,
            col=1,
        )
        if len(good) > MOST_POINTS:
            at, middle = _medians(good)
            figure.add_scatter(
                x=at,
                y=middle,
                mode="lines",
                line={"color": colour, "width": 2},
                hoverinfo="skip",
                showlegend=False,
                row=1,
                col=1,
            )
    bad = measured[~measured["ok"]]
    if len(bad):
        shown = bad.iloc[np.linspace(0, len(bad) - 1, min(len(bad), MOST_POINTS // 3)).astype(int)]
        values = (shown["end_s"] - shown["scheduled_s"]).to_numpy(float) * 1000
        every += [float(values.min()), float(values.max())]
        figure.add_scatter(
            x=shown["scheduled_s"].round(3).to_numpy(float),
            y=np.round(values, 3),
            mode="markers",
            name=say("failed", lang),
            marker={"size": 8, "color": BAD, "symbol": "x"},
            text=shown["error"].astype(str).tolist(),
            hovertemplate="%{text}<extra></extra>",
            row=1,
            col=1,
        )
    for row, lines in enumerate([lines for lines in (cpu, memory) if lines], 2):
        for name, colour, at, values in lines:
            figure.add_scatter(
                x=at,
                y=values,
                mode="lines",
                name=name,
                line={"color": colour, "width": 1.4},
                showlegend=lines is cpu and name not in names.values(),
                hovertemplate="%{x:.1f} s: %{y:.4g}<extra>" + name + "</extra>",
                row=row,
                col=1,
            )
    _shade_phases(figure, records, lang)
    _lay_out(figure, 300 + 110 * len(heights))
    figure.update_yaxes(title=say("latency_axis", lang), **_span(every), row=1)
    if cpu:
        figure.update_yaxes(title=say("cpus_axis", lang), rangemode="tozero", nticks=4, row=2)
    if memory:
        figure.update_yaxes(title="MiB", nticks=4, row=len(heights))
    figure.update_xaxes(title=say("seconds_axis", lang), row=len(heights))
    return figure


def agreement(confusion: dict[str, Any]) -> go.Figure:
    """How many calls A put into the row's and B into the column's category."""
    names, counts = confusion["categories"], np.array(confusion["a_b"])
    figure = go.Figure()
    # Colour by the square root: one disagreement must show beside a hundred agreements.
    figure.add_heatmap(
        x=names,
        y=names,
        z=np.sqrt(counts),
        text=[[str(value) if value else "" for value in row] for row in counts.tolist()],
        texttemplate="%{text}",
        colorscale=[[0, "#ffffff"], [0.15, "#d5e3f3"], [1, "#2f6db5"]],
        showscale=False,
        xgap=2,
        ygap=2,
        customdata=counts,
        hovertemplate="A %{y}<br>B %{x}: %{customdata}<extra></extra>",
    )
    _lay_out(figure, 130 + 30 * len(names))
    figure.update_xaxes(tickangle=-45, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def f1_bars(quality: dict[str, Any], names: dict[str, str]) -> go.Figure:
    """F1 of each category on both sides."""
    figure = go.Figure()
    for arm, name in names.items():
        scores = quality[f"f1_{arm}"]
        figure.add_bar(
            y=list(scores),
            x=list(scores.values()),
            orientation="h",
            name=name,
            marker={"color": COLOURS[arm]},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    _lay_out(figure, 130 + 30 * len(quality["f1_a"]))
    figure.update_xaxes(range=[0, 1.02], title="F1")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(bargap=0.3)
    return figure


def thin_out(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most ``most`` rows: the slowest tenth of that number, and evenly spaced others, in order of time."""
    if len(rows) <= most:
        return rows
    slowest = rows.nlargest(most // 10, "latency_scheduled_s").index
    others = rows.index.difference(slowest)
    chosen = others[np.linspace(0, len(others) - 1, most - len(slowest)).astype(int)]
    return rows.loc[slowest.union(chosen)].sort_values("scheduled_s")


def _distributions(
    curves: dict[str, tuple[Any, Any]], order: list[str], axis: str, share_axis: str
) -> go.Figure | None:
    """Curves of (values in ms, shares) by name."""
    if not curves:
        return None
    figure = go.Figure()
    every: list[float] = []
    for name, (points, shares) in curves.items():
        every += [float(points[0]), float(points[-1])]
        figure.add_scatter(
            x=np.round(points, 4),
            y=np.round(shares, 6),
            mode="lines",
            name=name,
            line={"color": list(COLOURS.values())[order.index(name)], "width": 2.5},
            hovertemplate="%{y:.1%}: %{x:.4g} ms<extra></extra>",
        )
    _lay_out(figure, 360)
    figure.update_xaxes(title=axis, **_span(every))
    figure.update_yaxes(title=share_axis, tickformat=".0%", range=[-0.02, 1.02])
    return figure


def _loads(
    samples: pd.DataFrame, names: dict[str, str], cpus: int | None, lang: Language
) -> list[tuple[str, str, Any, Any]]:
    """(name, colour, seconds, CPUs in use) of the machine, the servers and the load generator."""
    sources = [("machine", say("machine_cpu", lang), MACHINE, (cpus or 1) / 100)]
    sources += [(f"server_{arm}", name, COLOURS[arm], 0.01) for arm, name in names.items()]
    sources += [("generator", say("generator", lang), CLIENT, 0.01)]
    return _lines(samples, "cpu_percent", sources)


def _memories(samples: pd.DataFrame, names: dict[str, str], _lang: Language) -> list[tuple[str, str, Any, Any]]:
    return _lines(
        samples, "memory_used_mb", [(f"server_{arm}", name, COLOURS[arm], 1.0) for arm, name in names.items()]
    )


def _lines(
    samples: pd.DataFrame, column: str, sources: list[tuple[str, str, str, float]]
) -> list[tuple[str, str, Any, Any]]:
    found = []
    for source, name, colour, scale in sources:
        rows = samples[(samples["source"] == source) & samples[column].notna()]
        rows = rows.iloc[np.linspace(0, len(rows) - 1, min(len(rows), MOST_POINTS // 3)).astype(int)]
        if len(rows) > 1:
            values = np.round(rows[column].to_numpy(float) * scale, 3)
            found.append((name, colour, rows["at_s"].round(2).to_numpy(float), values))
    return found


def _medians(good: pd.DataFrame) -> tuple[Any, Any]:
    """Median latency (ms) of each of 200 stretches of time."""
    at = good["scheduled_s"].to_numpy(float)
    edges = np.linspace(at.min(), at.max() + 1e-9, 201)
    middles = (edges[:-1] + edges[1:]) / 2
    found = good["latency_scheduled_s"].groupby(np.digitize(at, edges) - 1).median() * 1000
    return np.round(middles[found.index.to_numpy(int)], 2), np.round(found.to_numpy(float), 3)


def _shade_phases(figure: go.Figure, records: pd.DataFrame, lang: Language) -> None:
    """Grey behind what was not measured; stretches that follow each other are one."""
    runs = (
        records.groupby("run").agg({"phase": "first", "scheduled_s": "min", "end_s": "max"}).sort_values("scheduled_s")
    )
    stretches: list[list[float]] = []
    before = "measure"
    for phase, begin, end in zip(runs["phase"], runs["scheduled_s"].tolist(), runs["end_s"].tolist(), strict=True):
        if phase != "measure" and before == "measure":
            stretches.append([begin, end])
        elif phase != "measure":
            stretches[-1][1] = end
        before = phase
    for begin, end in stretches[:20]:
        figure.add_vrect(x0=begin, x1=end, fillcolor=SHADE, line_width=0, layer="below", row="all", col=1)
    if stretches:
        begin, end = max(stretches, key=lambda each: each[1] - each[0])
        figure.add_annotation(
            x=(begin + end) / 2, y=1, yref="y domain", yanchor="top", showarrow=False, text=say("warm_up", lang),
            font={"size": 11, "color": "#64748b"},
        )  # fmt: skip


def _load_of(cell: dict[str, Any], unit: str, lang: Language) -> str:
    return say("users_of_cell" if unit == "users" else "rate_of_cell", lang, value=cell.get(unit) or 0)


def _ratio_axis(figure: go.Figure, low: float, high: float, lang: Language) -> None:
    ticks = _ratio_ticks(low, high)
    pad = 0.04 * math.log10(high / low)
    figure.update_xaxes(
        type="log",
        range=[math.log10(low) - pad, math.log10(high) + pad],
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
        title=say("forest_axis", lang),
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)


def _lay_out(figure: go.Figure, height: int) -> None:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 60, "r": 24, "t": 16, "b": 56},
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        font={"family": "system-ui, 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif", "color": INK},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "itemsizing": "constant"},
        hovermode="closest",
        showlegend=len([trace for trace in figure.data if trace.name]) > 1,
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True, title_standoff=12)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True, title_standoff=12)


def _span(values: list[float]) -> dict[str, Any]:
    """An axis for positive values: logarithmic with round ticks when they span more than a decade."""
    if not values or max(values) < 10 * max(min(values), 1e-6):
        return {"rangemode": "tozero"}
    low, high = max(min(values), 1e-6), max(values)
    ticks = [
        digit * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digit in ((1, 2, 5) if high < 1000 * low else (1,))
    ]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _middle(row: dict[str, Any]) -> float:
    return round((float(row["started_s"]) + float(row["ended_s"])) / 2, 2)


def _ratio_ticks(low: float, high: float) -> list[float]:
    """A handful of round ratios between the ends."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 50):
        ticks = [round(tick * step, 2) for tick in range(math.ceil(low / step), math.floor(high / step) + 1)]
        if len(ticks) <= 7:
            return [tick for tick in ticks if tick > 0] or [1]
    return [1]
