"""What CI reads of a verdict: JUnit XML, and Markdown for a comment on a change."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.summary import shown_figures
from benchmarks.texts import TEXTS, Language, say, say_finding, say_meaning

# Answer -> the element JUnit has for it. What was not decided did not pass, and CI must see that it did not fail.
ELEMENTS = {"FAIL": "failure", "NO VERDICT": "skipped", "INVALID": "error"}
MARKS = {"PASS": "✅", "FAIL": "❌", "NO VERDICT": "❔", "INVALID": "⚠️"}
# XML 1.0, 2.2: characters that no escaping makes legal.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def statements(summary: Mapping[str, Any], lang: Language) -> list[tuple[str, str, str]]:
    """What a verdict rests on: (rule, answer, sentence) for each finding or reason; the verdict itself where there is
    none.
    """
    found = [
        (finding["rule"], finding["answer"], say_finding(finding, lang)) for finding in summary.get("findings") or ()
    ]
    found += [("reason", summary["verdict"], reason) for reason in summary.get("reasons") or ()]
    return found or [("verdict", summary["verdict"], say_meaning(summary, lang))]


def write_junit(summary: Mapping[str, Any], path: Path) -> None:
    """One test case per finding or reason: FAIL is a failure, NO VERDICT skipped, INVALID an error."""
    rows = statements(summary, "en")
    if summary.get("complete") is False:
        rows.append(("completeness", "NO VERDICT", say("unfinished", "en")))
    counts = {name: sum(ELEMENTS.get(answer) == name for _, answer, _ in rows) for name in ELEMENTS.values()}
    totals = {
        "tests": len(rows),
        "failures": counts["failure"],
        "errors": counts["error"],
        "skipped": counts["skipped"],
    }
    name = f"benchmarks.{summary['kind']}"
    suites = ET.Element("testsuites", {key: str(value) for key, value in totals.items()})
    suite = ET.SubElement(suites, "testsuite", {"name": name, **suites.attrib})
    used: dict[str, int] = {}
    for rule, answer, sentence in rows:
        used[rule] = used.get(rule, 0) + 1
        case = rule if used[rule] == 1 else f"{rule} {used[rule]}"
        element = ET.SubElement(
            suite, "testcase", {"classname": f"{name}.{_clean(summary.get('name', ''))}", "name": case}
        )
        if answer in ELEMENTS:
            ET.SubElement(element, ELEMENTS[answer], {"message": _clean(sentence)})
        else:
            ET.SubElement(element, "system-out").text = _clean(sentence)
    path.write_bytes(ET.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n")


def write_markdown(summary: Mapping[str, Any], path: Path, lang: Language) -> None:
    """The verdict, what it rests on and the figures, for people who read a change."""
    verdict = summary["verdict"]
    title = say(key, lang) if (key := f"title_{summary['kind']}") in TEXTS else summary["kind"]
    lines = [f"## {MARKS[verdict]} {say(verdict, lang)} · {title}", "", _cell(say_meaning(summary, lang)), ""]
    if summary.get("complete") is False:
        lines += [f"> {say('unfinished', lang)}", ""]
    if summary.get("journal_whole") is False:
        lines += [f"> {say('journal_broken', lang)}", ""]
    lines += [f"- {MARKS[answer]} {_cell(sentence)}" for _, answer, sentence in statements(summary, lang)]
    heads, rows = shown_figures(summary, lang)
    lines += ["", *_table(heads or [say("figure", lang), ""], rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[_cell(cell) for cell in row] + [""] * (len(heads) - len(row)) for row in [heads, *rows]]
    ruler = ["---"] + ["---:"] * (len(heads) - 1)
    return ["| " + " | ".join(row) + " |" for row in (cells[0], ruler, *cells[1:])]


def _cell(text: str) -> str:
    """Server and file names must not become Markdown or HTML."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
