"""The plots of a report, as plotly figures. Frames in, figures out; nothing is read or written here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from benchmarks.config import Language
from benchmarks.summary import HIGHER_IS_BETTER
from benchmarks.texts import say

# Told apart with every common colour blindness, and in grey.
COLOURS = {"a": "#2f6db5", "b": "#d9722b"}
INK, GRID, PAPER, SHADE = "#1f2933", "#e4e7eb", "rgba(0,0,0,0)", "rgba(100,116,139,0.10)"
MOST_POINTS = 3000  # drawn as SVG, which needs no graphics card


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
    ticks = _ratio_ticks(low, high)
    _lay_out(figure, 120 + 26 * (len(names) + 2))
    pad = 0.04 * math.log10(high / low)
    figure.update_xaxes(
        type="log",
        range=[math.log10(low) - pad, math.log10(high) + pad],
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
        title=say("forest_axis", lang),
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def latency_cdf(records: pd.DataFrame, names: dict[str, str], lang: Language) -> go.Figure:
    """Share of successful requests that took at most so long; a logarithmic axis when they span a decade."""
    figure = go.Figure()
    every: list[float] = []
    for arm, rows in records[records["ok"]].groupby("arm"):
        values = np.sort(rows["latency_scheduled_s"].to_numpy(float)) * 1000
        shares = np.linspace(0, 1, min(len(values), 400))
        points = np.quantile(values, shares)
        every += [float(points[0]), float(points[-1])]
        figure.add_scatter(
            x=np.round(points, 3),
            y=np.round(shares, 4),
            mode="lines",
            name=names[str(arm)],
            line={"color": COLOURS[str(arm)], "width": 2.5},
            hovertemplate="%{y:.1%}: %{x:.1f} ms<extra></extra>",
        )
    _lay_out(figure, 380)
    figure.update_xaxes(title=say("latency_axis", lang), **_span(every))
    figure.update_yaxes(title=say("share", lang), tickformat=".0%")
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


def timeline(records: pd.DataFrame, samples: pd.DataFrame, names: dict[str, str], lang: Language) -> go.Figure:
    """Latency of each request at the moment it was due, with the machine's CPU use behind."""
    figure = go.Figure()
    cpu = samples[samples["source"] == "machine"]
    figure.add_scatter(
        x=cpu["at_s"].round(2).to_numpy(float),
        y=cpu["cpu_percent"].to_numpy(float),
        yaxis="y2",
        mode="lines",
        name=say("machine_cpu", lang),
        line={"color": "#9aa5b1", "width": 1},
        hovertemplate="%{y:.0f} %<extra></extra>",
    )
    good = records[records["ok"]]
    every: list[float] = []
    for arm, name in names.items():
        rows = thin_out(good[good["arm"] == arm], MOST_POINTS // len(names))
        values = rows["latency_scheduled_s"].to_numpy(float) * 1000
        every += [float(values.min()), float(values.max())] if len(values) else []
        figure.add_scatter(
            x=rows["scheduled_s"].round(3).to_numpy(float),
            y=np.round(values, 3),
            mode="markers",
            name=name,
            marker={"size": 4, "color": COLOURS[arm], "opacity": 0.55},
            hovertemplate="%{x:.2f} s: %{y:.1f} ms<extra></extra>",
        )
    bad = records[~records["ok"]].head(MOST_POINTS)
    if len(bad):
        figure.add_scatter(
            x=bad["scheduled_s"].to_numpy(float),
            y=((bad["end_s"] - bad["scheduled_s"]) * 1000).to_numpy(float),
            mode="markers",
            name=say("failed", lang),
            marker={"size": 8, "color": "#b42318", "symbol": "x"},
            text=bad["error"].astype(str).tolist(),
            hovertemplate="%{text}<extra></extra>",
        )
    _lay_out(figure, 400)
    figure.update_layout(
        yaxis={"title": {"text": say("latency_axis", lang)}, **_span(every)},
        yaxis2={
            "overlaying": "y",
            "side": "right",
            "range": [0, 105],
            "showgrid": False,
            "zeroline": False,
            "tickvals": [0, 50, 100],
            "ticktext": ["0 %", "50 %", "100 %"],
            "automargin": True,
        },
    )
    figure.update_xaxes(title=say("seconds_axis", lang))
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


def event_gaps(records: pd.DataFrame, names: dict[str, str], lang: Language) -> go.Figure | None:
    """Distribution of the time between two events of a stream; None where nothing was streamed."""
    figure = go.Figure()
    for arm, name in names.items():
        streams = records[(records["arm"] == arm) & records["ok"] & (records["events"] > 1)]["event_times_s"]
        if not len(streams):
            continue
        gaps = np.concatenate([np.diff(np.asarray(times, dtype=float)) for times in streams]) * 1000
        counts, edges = np.histogram(np.minimum(gaps, np.quantile(gaps, 0.995)), bins=60)
        figure.add_scatter(
            x=np.round((edges[:-1] + edges[1:]) / 2, 3),
            y=counts,
            mode="lines",
            line={"shape": "hvh", "color": COLOURS[arm], "width": 2},
            fill="tozeroy",
            name=name,
            hovertemplate="%{x:.1f} ms: %{y}<extra></extra>",
        )
    if not figure.data:
        return None
    _lay_out(figure, 340)
    figure.update_xaxes(title=say("gap_axis", lang))
    figure.update_yaxes(title=say("events_axis", lang))
    return figure


def thin_out(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most ``most`` rows: the slowest tenth of that number, and evenly spaced others, in order of time."""
    if len(rows) <= most:
        return rows
    slowest = rows.nlargest(most // 10, "latency_scheduled_s").index
    others = rows.index.difference(slowest)
    chosen = others[np.linspace(0, len(others) - 1, most - len(slowest)).astype(int)]
    return rows.loc[slowest.union(chosen)].sort_values("scheduled_s")


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
