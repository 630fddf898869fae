"""``report.html``: one file with everything in it, for a browser that is offline or a phone."""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import quote

import pandas as pd

from benchmarks import plots
from benchmarks.ci import statements
from benchmarks.command_line import parser, while_read, words_of
from benchmarks.errors import ResultsError, UsageError
from benchmarks.plots import Plot
from benchmarks.results import load, measured_records, read_manifest, read_summary
from benchmarks.side_by_side import side_by_side
from benchmarks.summary import EventGaps, event_gaps, shown_candidates, shown_figures
from benchmarks.texts import TEXTS, Language, say, say_finding, say_meaning

_HERE = Path(__file__).parent
# Lower is better for all tiles but these.
_MORE_IS_BETTER = frozenset({"qps", "tokens_per_s"})
_TILES = (
    ("qps", "rate", "{:,.1f}", ""),
    ("p50_latency_ms", "p50", "{:,.1f}", "ms"),
    ("p95_latency_ms", "p95", "{:,.1f}", "ms"),
    ("ttft_p50_ms", "ttft", "{:,.1f}", "ms"),
    ("error_rate", "error_rate", "{:.2%}", ""),
    ("tokens_per_s", "tokens_per_s", "{:,.1f}", ""),
)


def main(words: Sequence[str]) -> int:
    options = parser(
        "report",
        "One results folder: write its report.html again, for example in the other language. Several, that did the "
        "same work: print their figures side by side, with ratios to the first and what else differs.",
        "report runs/latest lang=zh",
        "report runs/classify-20261123-120000 runs/classify-20261124-120000",
    )
    options.add_argument("words", nargs="+", metavar="FOLDER ... [lang=en|zh]", help="results folders")
    found = options.parse_args(words)
    # Folders of `tune` are named like settings.
    settings = [word for word in found.words if "=" in word and not Path(word).exists()]
    folders = [Path(word) for word in found.words if word not in settings]
    lang = cast("Language", words_of(settings, ["lang"]).get("lang", "en"))
    if lang not in get_args(Language):
        raise UsageError(f"report takes lang=en or lang=zh, got lang={lang}")
    if not folders:
        raise UsageError("report needs a results folder: python -m benchmarks report runs/latest")
    if len(folders) > 1:
        text, document = side_by_side(folders, lang)
    else:
        text = str(write_report(folders[0], lang))
        document = {"report": text, "exit_code": 0}
    with while_read():
        if not found.json:
            print(text)
        if found.json or not sys.stdout.isatty():
            print(json.dumps(document, ensure_ascii=False))
    return 0


@dataclass(frozen=True)
class _Content:
    """All that a report is made from. Frames are None where the kind of benchmark has none."""

    manifest: Mapping[str, Any]
    summary: dict[str, Any]
    lang: Language
    folder: Path
    records: pd.DataFrame | None = None
    samples: pd.DataFrame | None = None
    gaps: dict[str, EventGaps] = field(default_factory=dict)

    @property
    def compared(self) -> bool:
        """Two sides were measured against each other."""
        return isinstance(self.summary.get("a"), Mapping) and isinstance(self.summary.get("b"), Mapping)

    @property
    def names(self) -> dict[str, str]:
        """Of the sides, by arm."""
        if not self.compared:
            return {"a": say("requests", self.lang)}
        return {arm: _side_name(self.manifest, arm) for arm in ("a", "b")}

    @property
    def measured(self) -> pd.DataFrame | None:
        if self.records is None:
            return None
        return measured_records(self.records, [run for run in self.manifest["runs"] if run["set_aside"]])


def write_report(folder: Path, lang: Language) -> Path:
    """Write ``report.html`` into a results folder, from what is in the folder alone.

    Raises:
        ResultsError: Not a results folder, or one of another version.
    """
    manifest = read_manifest(folder)
    summary = read_summary(folder)
    try:
        samples = pd.read_parquet(folder / "samples.parquet") if (folder / "samples.parquet").exists() else None
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot read {folder / 'samples.parquet'}: {error}") from error
    content = _Content(manifest, summary, lang, folder)
    parquet = folder / "requests.parquet"
    if samples is not None and parquet.exists():
        content = _Content(manifest, summary, lang, folder, load(folder, ["call", "trace_id"]), samples)
        measured = content.measured
        assert measured is not None
        runs = {arm: measured.loc[measured["arm"] == arm, "run"].unique().tolist() for arm in content.names}
        content.gaps.update({arm: event_gaps(parquet, own) for arm, own in runs.items()})
    path = folder / "report.html"
    path.write_text(render(content), encoding="utf-8")
    return path


def render(content: _Content) -> str:
    """The report as HTML. What a summary has is shown, whatever kind of benchmark made it."""
    lang, summary, manifest = content.lang, content.summary, content.manifest
    figures = _figures(content)
    body = [
        _head(content),
        _tiles(content),
        _table_of_figures(content),
        _plots(figures, content),
        _candidates(content),
        _cells(summary, lang),
        _confusion((summary.get("quality") or {}).get("confusion"), lang),
        _slowest(content.measured, lang, sides=content.compared, trace_url=manifest["scenario"].get("trace_url")),
        _settings(manifest, lang) if content.compared else "",
        _machine(manifest, lang),
    ]
    return _page(_title(summary, lang), "\n".join(part for part in body if part), figures, lang)


def _title(summary: Mapping[str, Any], lang: Language) -> str:
    key = f"title_{summary['kind']}"
    return say(key, lang) if key in TEXTS else str(summary["kind"])


def _head(content: _Content) -> str:
    manifest, summary, lang = content.manifest, content.summary, content.lang
    verdict = summary["verdict"]
    findings = "".join(
        f'<li class="{_css(answer)}">{html.escape(text)}</li>'
        for rule, answer, text in statements(summary, lang)
        if rule not in {"verdict", "candidate"}
    )
    about = f"{manifest['name']} · {say('created', lang, when=manifest['created_at'])}"
    broken = [
        say(key, lang)
        for key, wrong in (
            ("unfinished", not manifest["complete"]),
            ("journal_broken", manifest.get("journal_whole") is False),
        )
        if wrong
    ]
    warnings = "".join(f'<p class="warning">{html.escape(text)}</p>' for text in broken)
    return f"""<header>
<p class="eyebrow">{html.escape(about)}</p>
<h1>{html.escape(_title(summary, lang))}</h1>
<div class="verdict {_css(verdict)}"><strong>{html.escape(say(verdict, lang))}</strong>
<span>{html.escape(say_meaning(summary, lang))}</span></div>
{warnings}<ul class="findings">{findings}</ul>
</header>"""


def _tiles(content: _Content) -> str:
    """The few figures that are asked for first; of two sides, B's, and how it differs from A."""
    summary, lang = content.summary, content.lang
    side = summary["b"] if content.compared else summary
    tiles = []
    for key, name, pattern, unit in _TILES:
        if side.get(key) is None:
            continue
        change = _change(summary["a"].get(key), side[key], key) if content.compared else ""
        tiles.append(
            f'<div class="tile"><span class="name">{html.escape(say(name, lang))}</span>'
            f'<span class="value">{pattern.format(side[key])}<small>{unit}</small></span>{change}</div>'
        )
    of = f'<p class="note">{html.escape(say("tiles_note", lang))}</p>' if content.compared else ""
    return f'<section>{of}<div class="tiles">{"".join(tiles)}</div></section>' if tiles else ""


def _change(before: float | None, now: float, key: str) -> str:
    if not before or key == "error_rate":
        return ""
    share = now / before - 1
    better = (share > 0) == (key in _MORE_IS_BETTER)
    return f'<span class="change {"better" if better else "worse"}">{share:+.1%}</span>'


def _figures(content: _Content) -> dict[str, Plot]:
    """Every plot that there is something to show for, in the order of the page."""
    summary, lang, names = content.summary, content.lang, content.names
    quality = summary.get("quality") or {}
    found: dict[str, Plot | None] = {}
    if summary.get("comparison") is not None and summary.get("pair_intervals"):
        found["forest"] = plots.forest(summary, content.manifest["scenario"]["verdict"]["margin"], lang)
        found["metrics_forest"] = plots.metrics_forest(summary, lang)
    cells = [cell for cell in summary.get("cells") or () if isinstance(cell, dict)]
    found["load_latency"] = plots.load_against_latency(cells, lang)
    found["series"] = plots.series_over_time(summary.get("series") or [], lang)
    measured = content.measured
    if measured is not None:
        assert content.records is not None
        assert content.samples is not None
        found["cdf"] = plots.cdf(measured, "latency_scheduled_s", names, lang)
        found["ttft_cdf"] = plots.cdf(measured, "ttft_scheduled_s", names, lang)
        found["gaps"] = plots.gaps_cdf(content.gaps, names, lang)
        if content.compared:
            found["throughput"] = plots.runs_in_order(summary["runs"], names, lang)
        cpus = content.manifest["machine"]["cpus"]
        found["timeline"] = plots.timeline(content.records, content.samples, names, cpus, lang)
    if candidates := summary.get("results"):
        labels = [f"{number} {found['name']}" for number, found in enumerate(candidates, 1)]
        min_gain = content.manifest["scenario"].get("min_gain", 0.0)
        found[f"{summary['kind']}_forest"] = plots.candidates_forest(candidates, labels, min_gain, lang)
    if "f1_a" in quality:
        found["f1"] = plots.f1_bars(quality, names)
    return {name: figure for name, figure in found.items() if figure is not None}


def _plots(figures: Mapping[str, Plot], content: _Content) -> str:
    """Pairs of plots side by side; a plot without a neighbour, or that needs the width, is wide."""
    values: dict[str, dict[str, Any]] = {
        "forest": {"confidence": (content.summary.get("comparison") or {}).get("confidence")},
        "f1": {"calls": (content.summary.get("quality") or {}).get("labelled_calls")},
    }
    parts: list[str] = []
    waiting: str | None = None
    for name, figure in figures.items():
        if name.endswith("forest") or name in {"timeline", "series"}:
            if waiting is not None:
                parts.append(_plot(waiting, figures[waiting], content.lang, wide=True, **values.get(waiting, {})))
                waiting = None
            parts.append(_plot(name, figure, content.lang, wide=True, **values.get(name, {})))
        elif waiting is None:
            waiting = name
        else:
            parts += [_plot(each, figures[each], content.lang, **values.get(each, {})) for each in (waiting, name)]
            waiting = None
    if waiting is not None:
        parts.append(_plot(waiting, figures[waiting], content.lang, wide=True, **values.get(waiting, {})))
    return f'<div class="plots">{"".join(parts)}</div>' if parts else ""


def _plot(name: str, figure: Plot, lang: Language, *, wide: bool = False, **values: Any) -> str:
    title, note = html.escape(say(name, lang)), html.escape(say(f"{name}_note", lang, **values))
    return f"""<section class="card{" wide" if wide else ""}"><h2>{title}</h2><p class="note">{note}</p>
<div class="plot" id="plot-{name}" data-title="{title}" style="height:{figure["height"]}px"></div>
</section>
"""


def _table_of_figures(content: _Content) -> str:
    heads, rows = shown_figures(content.summary, content.lang)
    if not rows:
        return ""
    return _card(say("figures", content.lang), _table(heads, [[html.escape(cell) for cell in row] for row in rows]))


def _candidates(content: _Content) -> str:
    """What was measured against the reference, what was refused and why, and which settings each had."""
    summary, lang = content.summary, content.lang
    results: list[dict[str, Any]] = summary.get("results") or []
    if not results:
        return ""
    heads, rows = shown_candidates(results, lang)
    cells = []
    for number, (found, (name, metric, *rest, verdict)) in enumerate(zip(results, rows, strict=True), 1):
        folder = None if found["folder"] is None else Path(found["folder"]).relative_to(summary["folder"])
        stage = "" if folder is None or len(folder.parts) < 2 else f" <small>{html.escape(folder.parts[0])}</small>"
        shown = _link(content, None if folder is None else folder / "report.html", name)
        answer = f'<span class="answer {_css(found["answer"])}">{html.escape(verdict)}</span>'
        named = [f'<span class="tried">{shown}{stage}</span>', f'<span class="metric">{html.escape(metric)}</span>']
        cells.append([str(number), *named, *(html.escape(cell) for cell in rest), answer])
    note = f'<p class="note">{html.escape(say("candidates_note", lang))}</p>'
    reasons = "".join(
        f'<li class="{_css(found["answer"])}">{html.escape(say_finding(found, lang))}</li>'
        for found in results
        if found["values"].get("reason")
    )
    parts = [_card(say("candidates", lang), note + _table(["", *heads], cells))]
    if reasons:
        parts.append(_card(say("candidates_refused", lang), f'<ul class="findings">{reasons}</ul>'))
    return "\n".join([*parts, _settings_tried(content, results)])


def _settings_tried(content: _Content, results: Sequence[Mapping[str, Any]]) -> str:
    """Settings that vary, of the reference and of each candidate; what is as in the reference is grey."""
    reference, lang = content.summary["reference"], content.lang
    tried = {found["name"]: found["settings"] for found in results}
    keys = list(dict.fromkeys(key for settings in tried.values() for key in settings))
    rows = [
        [
            _link(content, Path("reference.yml"), say("reference", lang)),
            *(html.escape(_setting(reference.get(key))) for key in keys),
        ]
    ]
    for name, settings in tried.items():
        cells = [f'<span class="tried">{_link(content, Path("candidates") / f"{name}.yml", name)}</span>']
        for key in keys:
            value = html.escape(_setting(settings.get(key, reference.get(key))))
            same = settings.get(key, reference.get(key)) == reference.get(key)
            cells.append(f'<span class="dim">{value}</span>' if same else f"<strong>{value}</strong>")
        rows.append(cells)
    use = ""
    if content.summary.get("environment_file"):
        text = html.escape(say("environment_to_use", lang))
        use = f'<p class="note">{text} {_link(content, Path("environment.yml"), "environment.yml")}</p>'
    heads = [say("candidate_name", lang), *keys]
    return _card(say("settings_tried", lang), use + _table(heads, rows))


def _link(content: _Content, path: Path | None, name: str) -> str:
    """``name``, which leads to ``path`` where the results folder holds it."""
    text = f"<code>{html.escape(name)}</code>"
    if path is None or not (content.folder / path).exists():
        return text
    return f'<a href="{quote(path.as_posix())}">{text}</a>'


def _cells(summary: Mapping[str, Any], lang: Language) -> str:
    """Loads that were tried, as a table beside the plot; cells of other kinds are in their series."""
    rows = [cell for cell in summary.get("cells") or () if isinstance(cell, dict) and cell.get("qps") is not None]
    if not rows:
        return ""
    columns = (
        ("qps", "rate", "{:,.1f}"),
        ("latency_p50_ms", "p50", "{:,.1f} ms"),
        ("latency_p95_ms", "p95", "{:,.1f} ms"),
        ("ttft_p95_ms", "ttft_p95", "{:,.1f} ms"),
        ("error_rate", "error_rate", "{:.2%}"),
        ("goodput", "goodput", "{:.1%}"),
    )
    shown = [column for column in columns if any(row.get(column[0]) is not None for row in rows)]
    unit = "users" if rows[0].get("users") is not None else "rate_per_s"
    kept = {True: "yes", False: "no", None: "open"}
    cells = [
        [
            html.escape(say(f"{unit.removesuffix('_per_s')}_of_cell", lang, value=row.get(unit) or 0)),
            *(_number(row.get(key), pattern) for key, _, pattern in shown),
            f'<span class="kept {kept[row.get("kept")]}">{html.escape(say(kept[row.get("kept")], lang))}</span>',
        ]
        for row in rows
    ]
    heads = [say("cell_load", lang), *(say(name, lang) for _, name, _ in shown), say("cell_kept", lang)]
    return _card(say("cells", lang), _table(heads, cells))


def _confusion(confusion: Mapping[str, Any] | None, lang: Language) -> str:
    """How many calls A put into the row's and B into the column's category."""
    if confusion is None:
        return ""
    names, counts = confusion["categories"], confusion["a_b"]
    most = max((count for row in counts for count in row), default=0) or 1
    heads = "".join(f'<th scope="col"><span>{html.escape(name)}</span></th>' for name in names)
    body = ""
    for name, row in zip(names, counts, strict=True):
        # Shaded by the square root: one disagreement must show beside a hundred agreements.
        cells = "".join(
            f'<td class="{"same" if name == other else "other"}" style="--share:{(count / most) ** 0.5:.3f}" '
            f'title="A {html.escape(name)}, B {html.escape(other)}">{count or ""}</td>'
            for other, count in zip(names, row, strict=True)
        )
        body += f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>'
    table = f'<table class="heat"><thead><tr><th></th>{heads}</tr></thead><tbody>{body}</tbody></table>'
    note = f'<p class="note">{html.escape(say("confusion_note", lang))}</p>'
    return _card(say("confusion", lang), f'{note}<div class="scroll">{table}</div>')


def _slowest(measured: pd.DataFrame | None, lang: Language, *, sides: bool, trace_url: str | None) -> str:
    """The requests that took longest, each with its trace where it has one."""
    if measured is None:
        return ""
    rows = measured[measured["ok"]].nlargest(8, "latency_scheduled_s")
    if not len(rows):
        return ""
    cells = [
        (
            html.escape(str(row["arm"]).upper()),
            html.escape(str(row["call"])),
            f"{row['scheduled_s']:.2f}",
            f"{row['latency_scheduled_s'] * 1000:,.1f}",
            _trace(row["trace_id"], trace_url),
        )
        for _, row in rows.iterrows()
    ]
    heads = [say(name, lang) for name in ("side", "call", "at", "latency_ms", "trace")]
    shown = slice(0 if sides else 1, len(heads) if rows["trace_id"].notna().any() else -1)
    return _card(say("slowest", lang), _table(heads[shown], [row[shown] for row in cells]))


def _trace(trace_id: object, trace_url: str | None) -> str:
    if not isinstance(trace_id, str):
        return "-"
    text = f"<code>{html.escape(trace_id)}</code>"
    if trace_url is None:
        return text
    address = html.escape(trace_url.replace("{trace_id}", quote(trace_id)))
    return f'<a href="{address}" rel="noreferrer">{text}</a>'


def _settings(manifest: Mapping[str, Any], lang: Language) -> str:
    different = differing(*(manifest["sides"][arm]["settings"] for arm in ("a", "b")))
    if not different:
        return _card(say("settings", lang), f"<p>{html.escape(say('settings_none', lang))}</p>")
    cells = [
        (f"<code>{html.escape(key)}</code>", html.escape(_setting(left)), html.escape(_setting(right)))
        for key, left, right in different
    ]
    heads = [say("setting", lang), *(_side_name(manifest, arm) for arm in ("a", "b"))]
    return _card(say("settings", lang), _table(heads, cells))


def differing(a: Mapping[str, Any], b: Mapping[str, Any], path: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys at which two nested settings differ, with both values; None where a side has no such key."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*a, *b}):
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differing(left, right, f"{path}{key}.")
        elif left != right:
            found.append((f"{path}{key}", left, right))
    return found


def _machine(manifest: Mapping[str, Any], lang: Language) -> str:
    machine, scenario = manifest["machine"], manifest["scenario"]
    work, runs = manifest.get("workload"), [run for run in manifest.get("runs", ()) if run["phase"] == "measure"]
    rows: list[tuple[str, str]] = []
    if work is not None:
        rows.append(("work", _work(work, scenario, lang)))
    for arm, side in manifest.get("sides", {}).items():
        if side["description"] is not None:
            rows.append((f"server_{arm}" if len(manifest["sides"]) > 1 else "server", _described(side["description"])))
    quota = "" if machine.get("cpu_quota") is None else f" · {say('quota', lang, quota=machine['cpu_quota'])}"
    limit = "" if machine.get("memory_limit_gib") is None else f" · ≤ {machine['memory_limit_gib']} GiB"
    features = ", ".join(machine["cpu_features"]) or "-"
    rows += [
        ("cpu", f"{machine['cpu_model']} · {machine['cpus_allowed'] or machine['cpus']} × · {features}{quota}"),
        ("governor", machine["cpu_governor"] or "-"),
        ("memory", f"{machine['memory_gib']} GiB{limit}"),
        ("system", f"{machine['system']} {machine['architecture']}"),
        ("load_before", " ".join(str(value) for value in machine["load_average"] or ["-"])),
    ]
    lags = [run["loop_lag_p50_s"] for run in runs if run.get("loop_lag_p50_s") is not None]
    shares = [run["client_cpu_share"] for run in runs if run.get("client_cpu_share") is not None]
    if lags and shares:
        rows.append(("generator", say("generator_note", lang, cpu=max(shares), lag=1000 * max(lags))))
    if manifest.get("resumed_at"):
        rows.append(("resumed", ", ".join(manifest["resumed_at"])))
    software = {name: value for name, value in manifest["software"].items() if value is not None}
    rows += [
        ("revision", str(software.pop("git_revision", "-"))),
        ("versions", ", ".join(f"{name} {value}" for name, value in software.items())),
        *([("digest", work["sha256"])] if work is not None else []),
        ("command", " ".join(manifest["command"])),
    ]
    cells = [(html.escape(say(name, lang)), f'<span class="wrap">{html.escape(text)}</span>') for name, text in rows]
    return _card(say("machine", lang), _table([], cells))


def _work(work: Mapping[str, Any], scenario: Mapping[str, Any], lang: Language) -> str:
    kind = "work_closed" if scenario["users"] is not None else "work_open" if scenario["rate_per_s"] else "work_pattern"
    return say(
        kind,
        lang,
        dialect=scenario["dialect"],
        calls=work["calls"],
        labelled=work["labelled"],
        users=scenario["users"],
        rate=scenario["rate_per_s"] or 0,
        pattern=scenario["arrivals"]["pattern"],
    )


def _described(description: Mapping[str, Any]) -> str:
    wanted = ("name", "version", "engine", "weight_bits", "kv_cache_bits", "device", "threads", "source", "digest")
    return " · ".join(f"{key} {description[key]}" for key in wanted if description.get(key) is not None)


def _card(title: str, content: str) -> str:
    return f'<section class="card"><h2>{html.escape(title)}</h2>{content}</section>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; a row that is too short has its last cell spread over the rest."""
    width = len(heads) or max((len(row) for row in rows), default=1)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = ""
    for row in rows:
        span = width - len(row) + 1
        *cells, last = row
        tail = f' colspan="{span}"' if span > 1 else ""
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + f"<td{tail}>{last}</td></tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float | None, pattern: str, missing: str = "-") -> str:
    return missing if value is None else pattern.format(value)


def _setting(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _side_name(manifest: Mapping[str, Any], arm: str) -> str:
    name = manifest["sides"][arm]["name"]
    return arm.upper() if name == arm.upper() else f"{arm.upper()} · {name}"


def _css(answer: str) -> str:
    return answer.lower().replace(" ", "-")


def _page(title: str, body: str, figures: Mapping[str, Plot], lang: Language) -> str:
    # One element for each plot, parsed when it is drawn. "</script" and "<!--" would end or change it.
    data = "".join(
        f'<script type="application/json" class="data" data-plot="{name}">{_escaped(figure)}</script>\n'
        for name, figure in figures.items()
    )
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="{"zh-CN" if lang == "zh" else "en"}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
{data}<script>
{script}</script>
</body>
</html>
"""


def _escaped(plot: Plot) -> str:
    return json.dumps(plot, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
