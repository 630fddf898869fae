"""JUnit and Markdown say what the verdict says, and stay well-formed whatever a server answers."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from benchmarks.ci import write_junit, write_markdown


def compared(*findings, **more):
    side = {"total_requests": 10, "error_rate": 0.0, "qps": 5.0, "p99_latency_ms": None}
    return {"kind": "compare", "name": "x", "verdict": "FAIL", "findings": findings, "a": side, "b": side} | more


def finding(answer, key="errors_few", **values):
    return {
        "rule": "errors",
        "answer": answer,
        "key": key,
        "values": {"side": "A", "failed": 1, "total": 9, "limit": 0.1},
    }


def test_each_finding_is_a_test_case_with_the_outcome_that_ci_knows(tmp_path):
    path = tmp_path / "junit.xml"

    write_junit(compared(*(finding(answer) for answer in ("PASS", "FAIL", "NO VERDICT", "INVALID"))), path)

    suites = ET.parse(path).getroot()
    assert suites.attrib == {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    outcomes = [[child.tag for child in case] for case in suites.iter("testcase")]
    assert outcomes == [["system-out"], ["failure"], ["skipped"], ["error"]]
    names = [case.attrib["name"] for case in suites.iter("testcase")]
    assert len(set(names)) == 4
    assert "1 of 9 requests" in suites.find(".//failure").attrib["message"]


@pytest.mark.parametrize(
    ("verdict", "tag"), [("PASS", None), ("FAIL", "failure"), ("NO VERDICT", "skipped"), ("INVALID", "error")]
)
def test_reasons_of_a_run_have_its_verdict(tmp_path, verdict, tag):
    path = tmp_path / "junit.xml"

    write_junit({"kind": "run", "name": "x", "verdict": verdict, "reasons": ["it was\x00<slow> & \ud800"]}, path)

    [case] = ET.parse(path).getroot().iter("testcase")
    found = case.find(tag) if tag else case.find("system-out")
    assert found is not None
    assert "<slow> &" in (found.attrib.get("message") or found.text)


def test_a_benchmark_that_was_broken_off_is_a_skipped_test(tmp_path):
    path = tmp_path / "junit.xml"

    write_junit(compared(finding("PASS"), complete=False), path)

    assert [
        case.attrib["name"] for case in ET.parse(path).getroot().iter("testcase") if case.find("skipped") is not None
    ]


def test_markdown_has_the_verdict_the_findings_and_a_table(tmp_path):
    path = tmp_path / "report.md"

    write_markdown(compared(finding("FAIL"), journal_whole=False), path, "en")

    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("## ❌ FAIL")
    assert any(line.startswith("> The journal") for line in lines)
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {4}
    assert any("p99 latency" in line and "too few requests" in line for line in table)


def test_markdown_of_a_reason_with_markup_is_text(tmp_path):
    path = tmp_path / "report.md"

    write_markdown({"kind": "run", "name": "x", "verdict": "FAIL", "reasons": ["<img src=x> | *a*\n# b"]}, path, "zh")

    text = path.read_text(encoding="utf-8")
    assert "\\<img src=x\\> \\| \\*a\\* # b" in text
