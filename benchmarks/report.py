"""``report.html``: one file with everything in it, for a browser that is offline or a phone."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import pandas as pd

from benchmarks.command_line import parser, words_of
from benchmarks.config import Language
from benchmarks.errors import ResultsError, UsageError
from benchmarks.results import load, measured_records, read_manifest
from benchmarks.texts import say, say_finding, say_meaning

if TYPE_CHECKING:
    import plotly.graph_objects as go

_HERE = Path(__file__).parent


def main(words: Sequence[str]) -> int:
    options = parser(
        "report",
        "Write report.html into a results folder again, for example in the other language.",
        "report runs/latest lang=zh",
    )
    options.add_argument("folder", type=Path, help="a results folder")
    options.add_argument("settings", nargs="*", metavar="lang=en|zh")
    found = options.parse_args(words)
    lang = words_of(found.settings, ["lang"]).get("lang", "en")
    if lang not in get_args(Language):
        raise UsageError(f"report takes lang=en or lang=zh, got lang={lang}")
    path = write_report(found.folder, cast("Language", lang))
    if not found.json:
        print(path)
    print(json.dumps({"report": str(path), "exit_code": 0}))
    return 0


def write_report(folder: Path, lang: Language) -> Path:
    """Write ``report.html`` into a results folder, from what is in the folder alone.

    Raises:
        ResultsError: Not a results folder, or one of another version.
    """
    manifest = read_manifest(folder)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        samples = pd.read_parquet(folder / "samples.parquet")
    except (OSError, ValueError) as error:
        raise ResultsError(f"{folder} has no complete results: {error}") from error
    records = load(folder)
    path = folder / "report.html"
    path.write_text(render(manifest, summary, records, samples, lang), encoding="utf-8")
    return path


def render(
    manifest: Mapping[str, Any],
    summary: dict[str, Any],
    records: pd.DataFrame,
    samples: pd.DataFrame,
    lang: Language,
) -> str:
    """The report as HTML."""
    measured = measured_records(records, [run for run in manifest["runs"] if run["set_aside"]])
    figures: dict[str, go.Figure] = {}
    compared = summary["kind"] == "compare"
    body = [
        _head(manifest, summary, lang),
        _figures_table(summary, lang),
        *(_comparison(manifest, summary, measured, samples, figures, lang) if compared else ()),
        *(() if compared else _single(measured, samples, figures, lang)),
        _slowest(measured, lang, sides=compared),
        *((_settings(manifest, lang),) if compared else ()),
        _machine(manifest, lang),
    ]
    return _page(say(f"title_{summary['kind']}", lang), "\n".join(body), figures, lang)


def _head(manifest: Mapping[str, Any], summary: Mapping[str, Any], lang: Language) -> str:
    verdict = summary["verdict"]
    if summary["kind"] == "compare":
        lines = [(finding["answer"], say_finding(finding, lang)) for finding in summary["findings"]]
    else:
        lines = [("FAIL" if verdict == "FAIL" else verdict, reason) for reason in summary["reasons"]]
    findings = "".join(f'<li class="{_css(answer)}">{html.escape(text)}</li>' for answer, text in lines)
    about = f"{manifest['name']} · {say('created', lang, when=manifest['created_at'])}"
    warning = "" if manifest["complete"] else f'<p class="warning">{html.escape(say("unfinished", lang))}</p>'
    return f"""<header>
<p class="eyebrow">{html.escape(about)}</p>
<h1>{html.escape(say(f"title_{summary['kind']}", lang))}</h1>
<div class="verdict {_css(verdict)}"><strong>{html.escape(say(verdict, lang))}</strong>
<span>{html.escape(say_meaning(summary, lang))}</span></div>
{warning}<ul class="findings">{findings}</ul>
</header>"""


def _comparison(
    manifest: Mapping[str, Any],
    summary: dict[str, Any],
    measured: pd.DataFrame,
    samples: pd.DataFrame,
    figures: dict[str, go.Figure],
    lang: Language,
) -> list[str]:
    from benchmarks import plots

    names = {arm: _side_name(manifest, arm) for arm in ("a", "b")}
    rules = manifest["scenario"]["verdict"]
    quality = summary["quality"]
    parts = []
    if summary["comparison"] is not None:
        figures["forest"] = plots.forest(summary, rules["margin"], lang)
        parts.append(_plot("forest", lang, wide=True, confidence=1 - rules["alpha"]))
    figures["cdf"] = plots.latency_cdf(measured, names, lang)
    figures["throughput"] = plots.runs_in_order(summary["runs"], names, lang)
    figures["timeline"] = plots.timeline(measured, samples, names, lang)
    parts += [_plot("cdf", lang), _plot("throughput", lang), _plot("timeline", lang, wide=True)]
    if "confusion" in quality:
        figures["confusion"] = plots.agreement(quality["confusion"])
        parts.append(_plot("confusion", lang, wide="f1_a" not in quality))
    if "f1_a" in quality:
        figures["f1"] = plots.f1_bars(quality, names)
        parts.append(_plot("f1", lang, calls=quality["labelled_calls"]))
    gaps = plots.event_gaps(measured, names, lang)
    if gaps is not None:
        figures["gaps"] = gaps
        parts.append(_plot("gaps", lang, wide=True))
    return ['<div class="plots">', *parts, "</div>"]


def _single(measured: pd.DataFrame, samples: pd.DataFrame, figures: dict[str, go.Figure], lang: Language) -> list[str]:
    from benchmarks import plots

    names = {"a": say("requests", lang)}
    figures["cdf"] = plots.latency_cdf(measured, names, lang)
    figures["timeline"] = plots.timeline(measured, samples, names, lang)
    parts = [_plot("cdf", lang), _plot("timeline", lang)]
    gaps = plots.event_gaps(measured, names, lang)
    if gaps is not None:
        figures["gaps"] = gaps
        parts.append(_plot("gaps", lang, wide=True))
    return ['<div class="plots">', *parts, "</div>"]


def _plot(name: str, lang: Language, *, wide: bool = False, **values: Any) -> str:
    note = html.escape(say(f"{name}_note", lang, **values))
    return f"""<section class="card{" wide" if wide else ""}"><h2>{html.escape(say(name, lang))}</h2>
<p class="note">{note}</p><div class="plot" id="plot-{name}"></div></section>"""


def _figures_table(summary: Mapping[str, Any], lang: Language) -> str:
    compared = summary["kind"] == "compare"
    sides = [summary["a"], summary["b"]] if compared else [summary]
    few = f'<span class="dim">{html.escape(say("too_few", lang))}</span>'
    rows: list[tuple[str, list[str]]] = [
        ("requests", [f"{side['total_requests']:,}" for side in sides]),
        ("error_rate", [_number(side["error_rate"], "{:.2%}") for side in sides]),
        ("rate", [_number(side["qps"], "{:,.1f}") for side in sides]),
        ("avg_latency", [_number(side["avg_latency_ms"], "{:,.1f} ms") for side in sides]),
        ("p50", [_number(side["p50_latency_ms"], "{:,.1f} ms", few) for side in sides]),
        ("p95", [_number(side["p95_latency_ms"], "{:,.1f} ms", few) for side in sides]),
        ("p99", [_number(side["p99_latency_ms"], "{:,.1f} ms", few) for side in sides]),
    ]
    if any(side["ttft_p50_ms"] is not None for side in sides):
        rows += [
            ("ttft", [_number(side["ttft_p50_ms"], "{:,.1f} ms") for side in sides]),
            ("tpot", [_number(side["tpot_p50_ms"], "{:,.2f} ms") for side in sides]),
        ]
    if any(side["tokens_per_s"] is not None for side in sides):
        rows.append(("tokens_per_s", [_number(side["tokens_per_s"], "{:,.1f}") for side in sides]))
    if any(side["server_cpu_s_per_1000_requests"] is not None for side in sides):
        rows += [
            ("server_cpu", [_number(side["server_cpu_s_per_1000_requests"], "{:,.2f} s") for side in sides]),
            ("server_memory", [_number(side["server_peak_memory_mb"], "{:,.0f} MiB") for side in sides]),
        ]
    if compared:
        quality = summary["quality"]
        if quality["labelled_calls"]:
            rows += [
                ("accuracy", [f"{quality[f'accuracy_{arm}']:.1%}" for arm in "ab"]),
                ("macro_f1", [f"{quality[f'macro_f1_{arm}']:.3f}" for arm in "ab"]),
            ]
        if quality["agreement"] is not None:
            rows.append(("agreement", [f"{quality['agreement']:.1%}"]))
    heads = [say("figure", lang), say("running_now", lang), say("candidate", lang)] if compared else []
    return _card(say("figures", lang), _table(heads, [(html.escape(say(name, lang)), *cells) for name, cells in rows]))


def _slowest(measured: pd.DataFrame, lang: Language, *, sides: bool) -> str:
    rows = measured[measured["ok"]].nlargest(8, "latency_scheduled_s")
    if not len(rows):
        return ""
    cells = [
        (
            html.escape(str(row["arm"]).upper()),
            html.escape(str(row["call"])),
            f"{row['scheduled_s']:.2f}",
            f"{row['latency_scheduled_s'] * 1000:,.1f}",
        )
        for _, row in rows.iterrows()
    ]
    heads = [say(name, lang) for name in ("side", "call", "at", "latency_ms")]
    first = 0 if sides else 1
    return _card(say("slowest", lang), _table(heads[first:], [row[first:] for row in cells]))


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
    machine, work, scenario = manifest["machine"], manifest["workload"], manifest["scenario"]
    runs = [run for run in manifest["runs"] if run["phase"] == "measure"]
    versions = ", ".join(f"{name} {value}" for name, value in manifest["software"].items() if value is not None)
    features = ", ".join(machine["cpu_features"]) or "-"
    kind = "work_open" if scenario["rate_per_s"] is not None else "work_closed"
    said = {
        "dialect": scenario["dialect"],
        "calls": work["calls"],
        "labelled": work["labelled"],
        "users": scenario["users"],
        "rate": scenario["rate_per_s"] or 0,
    }
    rows = [
        ("work", say(kind, lang, **said)),
        ("cpu", f"{machine['cpu_model']} · {machine['cpus_allowed'] or machine['cpus']} × · {features}"),
        ("memory", f"{machine['memory_gib']} GiB"),
        ("system", f"{machine['system']} {machine['architecture']}"),
        ("load_before", " ".join(str(value) for value in machine["load_average"] or ["-"])),
    ]
    if runs:
        lag = max((run["loop_lag_p50_s"] or 0.0) for run in runs) * 1000
        cpu = max(run["client_cpu_share"] for run in runs)
        rows.append(("generator", say("generator_note", lang, cpu=cpu, lag=lag)))
    rows += [
        ("versions", versions),
        ("digest", work["sha256"]),
        ("command", " ".join(manifest["command"])),
    ]
    cells = [(html.escape(say(name, lang)), f'<span class="wrap">{html.escape(text)}</span>') for name, text in rows]
    return _card(say("machine", lang), _table([], cells))


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


def _page(title: str, body: str, figures: Mapping[str, go.Figure], lang: Language) -> str:
    data = {name: json.loads(figure.to_json()) for name, figure in figures.items()}
    # "</script" and "<!--" would end or change the script element.
    plots = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
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
<script type="application/json" id="plots" data-missing="{html.escape(say("no_plots", lang))}">{plots}</script>
<script type="text/plain" id="plotly">{_plotly()}</script>
<script>
{script}</script>
</body>
</html>
"""


@cache
def _plotly() -> str:
    """plotly.js, gzip in base64: 1.9 MB in place of 4.8; every browser since 2023 unpacks it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
