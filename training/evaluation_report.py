"""An evaluation for people: Markdown, a page with plots, and the card that travels with the model."""

from __future__ import annotations

import html
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from model_server.classification import LABELS

mpl.use("svg")
# The browser has fonts for Chinese; the machine that evaluates may have none, and says so for each character.
mpl.rcParams["svg.fonttype"] = "none"
warnings.filterwarnings("ignore", message="Glyph .* missing from font")
mpl.rcParams["font.family"] = "sans-serif"
mpl.rcParams["svg.hashsalt"] = "evaluation"

STYLE = """
:root { color-scheme: light dark; --line: #ccc; --soft: #f4f4f6; --text: #1c1c20; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #26262b; --text: #e8e8ea; --paper: #1a1a1d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--paper);
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; background: #fff; border-radius: 6px; overflow-x: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
svg { max-width: 100%; height: auto; }
"""


def markdown(evaluation: Mapping[str, Any]) -> str:
    """Every table of an evaluation."""
    parts = [f"# {evaluation['model_id']}\n"]
    for title, head, rows in tables(evaluation):
        parts += [f"## {title}\n", _markdown_table(head, rows), ""]
    return "\n".join(parts)


def page(evaluation: Mapping[str, Any]) -> str:
    """One HTML file that needs nothing else."""
    test = evaluation["parts"]["test"]
    body = [f"<h1>{html.escape(evaluation['model_id'])}</h1>", f"<p>{html.escape(summary(evaluation))}</p>"]
    figures = [confusion_plot(test), per_class_plot(test), reliability_plot(test), risk_plot(test)]
    body.append(f'<div class="plots">{"".join(f"<figure>{figure}</figure>" for figure in figures)}</div>')
    for title, head, rows in tables(evaluation):
        body += [f"<h2>{html.escape(title)}</h2>", _html_table(head, rows)]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(evaluation['model_id'])}</title><style>{STYLE}</style>{''.join(body)}</html>\n"
    )


def summary(evaluation: Mapping[str, Any]) -> str:
    test, baselines = evaluation["parts"]["test"], evaluation["baselines"]
    low, high = test["macro_f1_interval"]
    beside = ", ".join(f"{name} {row['macro_f1']:.3f}" for name, row in baselines.items())
    review, sent = evaluation["review_threshold"], test["review_share"]
    return (
        f"Macro-F1 {test['macro_f1']:.3f} (95 % {low:.3f} to {high:.3f}) on {test['calls']} test calls; {beside}. "
        f"Calibration error {test['ece_15_uncalibrated']:.3f} before and {test['ece_15']:.3f} after temperature "
        f"{evaluation['temperature']}. At review threshold {review} {sent:.1%} go to a person, and "
        f"{_percent(test['accepted_accuracy'])} of the others are right."
    )


Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """Title, head and rows of each."""
    parts, baselines = evaluation["parts"], evaluation["baselines"]
    test = parts["test"]
    found: list[Table] = [
        (
            "Parts",
            ("part", "calls", "accuracy", "macro-F1", "95 %", "NLL", "ECE", "to a person", "right of the others"),
            [
                (
                    name,
                    str(part["calls"]),
                    f"{part['accuracy']:.3f}",
                    f"{part['macro_f1']:.3f}",
                    "{:.3f} to {:.3f}".format(*part["macro_f1_interval"]),
                    f"{part['nll']:.3f}",
                    f"{part['ece_15']:.3f}",
                    f"{part['review_share']:.1%}",
                    _percent(part["accepted_accuracy"]),
                )
                for name, part in parts.items()
            ],
        )
    ]
    if baselines:
        found.append(
            (
                "Beside simpler classifiers, on the test calls",
                ("classifier", "accuracy", "macro-F1", "the model's lead", "95 %", "McNemar p"),
                [
                    (
                        name,
                        f"{row['accuracy']:.3f}",
                        f"{row['macro_f1']:.3f}",
                        f"{row['macro_f1_lead']:+.3f}",
                        "{:+.3f} to {:+.3f}".format(*row["macro_f1_lead_interval"]),
                        f"{row['mcnemar']['p_value']:.2g}",
                    )
                    for name, row in baselines.items()
                ],
            )
        )
    found += [
        (
            "Categories, on the test calls",
            ("category", "calls", "precision", "recall", "F1"),
            [
                (name, str(row["calls"]), *(_number(row[figure]) for figure in ("precision", "recall", "f1")))
                for name, row in test["per_class"].items()
            ],
        ),
        (
            "Slices of the test calls",
            ("slice", "calls", "accuracy", *baselines),
            [
                (
                    name,
                    str(row["calls"]),
                    f"{row['accuracy']:.3f}",
                    *(f"{other['slices'][name]['accuracy']:.3f}" for other in baselines.values()),
                )
                for name, row in test["slices"].items()
            ],
        ),
    ]
    return found


def card(evaluation: Mapping[str, Any]) -> str:
    """The model card. A manifest lists it, so it is written here and not edited by hand."""
    categories = ", ".join(f"{letter} {name}" for letter, name in LABELS.items())
    tables_of = "\n\n".join(f"{title}:\n\n{_markdown_table(head, rows)}" for title, head, rows in tables(evaluation))
    return f"""# {evaluation["model_id"]}

Classifies Chinese complaint calls into twelve categories: {categories}. It answers with one letter; the
log-probabilities of the letters over a temperature give the confidence. Base: {evaluation["base_model"]}, method
{evaluation["method"]}.

{summary(evaluation)}

{tables_of}

Temperature and review threshold were fitted on validation calls alone; the test calls were looked at once. Figures of
generated calls say that the machinery learns, and nothing about real ones.
"""


# --- plots -----------------------------------------------------------------------------------------------


def confusion_plot(part: Mapping[str, Any]) -> str:
    names = [f"{letter} {name}" for letter, name in LABELS.items()]
    _, axes = plt.subplots(figsize=(7, 6))
    rows = part["confusion"]
    shares = [[count / max(1, sum(row)) for count in row] for row in rows]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), list(LABELS))
    axes.set_yticks(range(len(names)), names)
    for true, row in enumerate(rows):
        for taken, count in enumerate(row):
            if count:
                colour = "white" if shares[true][taken] > 0.5 else "black"
                axes.text(taken, true, str(count), ha="center", va="center", color=colour, fontsize=8)
    return _svg(axes, "Taken for", "Is", "Confusion")


def per_class_plot(part: Mapping[str, Any]) -> str:
    rows = {name: row["f1"] or 0 for name, row in part["per_class"].items()}
    _, axes = plt.subplots(figsize=(6, 5))
    bars = axes.barh(list(rows), list(rows.values()), color="#3b6ea5")
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    return _svg(axes, "F1", "", "Categories")


def reliability_plot(part: Mapping[str, Any]) -> str:
    _, axes = plt.subplots(figsize=(5, 4))
    axes.plot([0, 1], [0, 1], color="#999", linestyle="dotted")
    for name, key, colour in (
        ("before", "reliability_uncalibrated", "#c28f2c"),
        ("after the temperature", "reliability", "#3b6ea5"),
    ):
        rows = part[key]
        axes.plot([r["confidence"] for r in rows], [r["accuracy"] for r in rows], marker="o", color=colour, label=name)
    axes.legend()
    return _svg(axes, "Mean confidence", "Accuracy", "Is it as sure as it is right?")


def risk_plot(part: Mapping[str, Any]) -> str:
    coverage, risk = zip(*part["risk_coverage"], strict=True)
    _, axes = plt.subplots(figsize=(5, 4))
    axes.plot(coverage, risk, color="#3b6ea5")
    axes.axvline(1 - part["review_share"], color="#999", linestyle="dotted", label="review threshold")
    axes.set_ylim(bottom=0)
    axes.legend()
    return _svg(axes, "Share answered without a person", "Share wrong of them", "Risk and coverage")


def _svg(axes: Axes, x: str, y: str, title: str) -> str:
    axes.set(xlabel=x, ylabel=y, title=title)
    figure = axes.figure
    written = io.StringIO()
    figure.savefig(written, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = written.getvalue()
    return text[text.index("<svg") :]


# --- tables ----------------------------------------------------------------------------------------------


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
