"""Results folders that were measured one after the other, side by side: figures, ratios, and what else differs.

Nothing is decided here. Between two benchmarks the machine changed too, by more than most candidates do; a verdict
takes runs in turns (:mod:`benchmarks.compare`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from benchmarks.manifest import require_same_workload
from benchmarks.results import read_manifest, read_summary
from benchmarks.summary import figures_of, sides_of
from benchmarks.texts import Language, say

COUNTS = ("total_requests", "error_rate")
"""Shown without a ratio: how much was sent follows from the time it took, and most error rates are 0."""
# Of a manifest, what differs always or says nothing about speed.
_LEFT_OUT = {
    "machine": {"cpu_flags", "memory_free_gib"},
    "scenario": {"name", "out", "lang", "url", "a", "b", "pid", "a_pid", "b_pid", "calls", "ollama"},
}
_SEARCHED = {"stress": ("knee", ("users", "qps")), "capacity": ("capacity", ("rate_per_s", "broken_rate_per_s"))}
"""Kinds whose loads follow from the answers: their figures over all requests compare nothing, what they found does."""


@dataclass(frozen=True, slots=True)
class Column:
    """One side of one folder."""

    head: str
    """1, 2, ...; of a comparison 1a and 1b."""
    folder: Path
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    arm: str

    @property
    def side(self) -> Mapping[str, Any]:
        sides = sides_of(self.summary)
        return sides[0] if self.arm == "a" else sides[1]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure in all columns; None where it is not known."""

    key: str
    name: str
    pattern: str
    values: Sequence[float | None]

    @property
    def ratios(self) -> list[float | None]:
        """Each value over the first."""
        first = self.values[0]
        if self.key in COUNTS or not first:
            return [None] * len(self.values)
        return [None if value is None else value / first for value in self.values]


def side_by_side(folders: Sequence[Path], lang: Language) -> tuple[str, dict[str, Any]]:
    """``folders`` as a text for people and as a document.

    Raises:
        UsageError: They did different work; the message names what differs.
        ResultsError: One is not a results folder, has another version, or is not complete.
    """
    for other in folders[1:]:
        require_same_workload(folders[0], other)
    columns = [column for number, folder in enumerate(folders, 1) for column in _columns(number, folder)]
    rows = list(_rows(columns, lang))
    different = dict(_different(columns))
    text = "\n".join(
        [
            *_legend(columns, lang),
            "",
            *_table(columns, rows, lang),
            "",
            *_conditions(columns, different, lang),
            "",
            say("beside_note", lang),
        ]
    )
    return text, {
        "columns": [
            {"column": column.head, "folder": str(column.folder)}
            | {key: column.manifest[key] for key in ("kind", "created_at", "complete")}
            | {"verdict": column.summary["verdict"]}
            for column in columns
        ],
        "figures": {row.key: list(row.values) for row in rows},
        "ratios": {row.key: row.ratios for row in rows},
        "different": different,
        "verdict": None,
        "exit_code": 0,
    }


def _columns(number: int, folder: Path) -> Iterator[Column]:
    manifest, summary = read_manifest(folder), read_summary(folder)
    arms = "ab"[: len(sides_of(summary))]
    for arm in arms:
        yield Column(f"{number}{arm}" if len(arms) > 1 else str(number), folder, manifest, summary, arm)


def _rows(columns: Sequence[Column], lang: Language) -> Iterator[Row]:
    kind = columns[0].summary["kind"]
    if kind not in _SEARCHED:
        for key, name, pattern, values in figures_of([column.side for column in columns], lang):
            yield Row(key, name, pattern, values)
        return
    section, names = _SEARCHED[kind]
    for name in names:
        values = [column.summary[section][name] for column in columns]
        yield Row(f"{section}.{name}", say(f"beside_{section}_{name}", lang), "{:,.4g}", values)
    unit = "users" if kind == "stress" and columns[0].manifest["scenario"]["users"] is not None else "rate_per_s"
    loads = [{cell[unit]: cell for cell in column.summary["cells"] if not cell["ill_health"]} for column in columns]
    for load in sorted(set(loads[0]).intersection(*loads[1:])):
        at = say(f"{unit.removesuffix('_per_s')}_of_cell", lang, value=load)
        for key, name in (("qps", "rate"), ("latency_p50_ms", "p50"), ("latency_p95_ms", "p95")):
            pattern = "{:,.1f} ms" if key.endswith("_ms") else "{:,.1f}"
            values = [cells[load][key] for cells in loads]
            if any(value is not None for value in values):
                yield Row(f"{load:g}.{key}", f"{at}: {say(name, lang)}", pattern, values)


def _legend(columns: Sequence[Column], lang: Language) -> Iterator[str]:
    for column in columns:
        manifest = column.manifest
        broken = "" if manifest["complete"] else f"  {say('beside_unfinished', lang)}"
        what = f"{manifest['kind']}, {manifest['created_at']}, {say(column.summary['verdict'], lang)}{broken}"
        name = f" {manifest['sides'][column.arm]['name']}" if column.head[-1].isalpha() else ""
        yield f"{column.head:<3} {column.folder}{name}  {what}"


def _table(columns: Sequence[Column], rows: Sequence[Row], lang: Language) -> list[str]:
    first, *others = (column.head for column in columns)
    lines = [[say("figure", lang), first, *(cell for head in others for cell in (head, f"{head} / {first}"))]]
    for row in rows:
        cells = [row.name]
        for value, ratio in zip(row.values, row.ratios, strict=True):
            missing = say("too_few", lang) if row.key.startswith("p") else "-"
            cells.append(missing if value is None else row.pattern.format(value))
            cells.append("" if ratio is None else f"{ratio:.3f}")
        del cells[2]  # the first over itself
        lines.append(cells)
    widths = [max(cell_len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return [
        "  ".join(
            cell + " " * (width - cell_len(cell)) if at == 0 else " " * (width - cell_len(cell)) + cell
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _different(columns: Sequence[Column]) -> Iterator[tuple[str, list[Any]]]:
    """Dotted names of what is not the same in all folders beside the figures, with the value in each column."""
    every = []
    for column in columns:
        side = column.manifest["sides"][column.arm]
        parts = {name: column.manifest[name] for name in ("machine", "software", "scenario")}
        known = {
            name: {key: value for key, value in part.items() if key not in _LEFT_OUT.get(name, ())}
            for name, part in parts.items()
        }
        known["server"] = {"url": side["url"], "image": side["image"], "settings": side["settings"]}
        known["server"] |= {"model": side["model"], "says": side["description"]}
        every.append(dict(_leaves(known)))
    for key in sorted({key for leaves in every for key in leaves}):
        values = [leaves.get(key) for leaves in every]
        if any(value != values[0] for value in values):
            yield key, values


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _conditions(columns: Sequence[Column], different: Mapping[str, Sequence[Any]], lang: Language) -> Iterator[str]:
    """Each thing that differs in a line, equal values together."""
    yield say("beside_differs" if different else "beside_same", lang)
    for key, values in different.items():
        heads: dict[str, list[str]] = {}
        for column, value in zip(columns, values, strict=True):
            text = "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            heads.setdefault(text, []).append(column.head)
        yield f"  {key}: " + "; ".join(f"{text} ({', '.join(those)})" for text, those in heads.items())
