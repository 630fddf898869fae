"""The report stands alone, in both languages, and draws in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.config import Scenario
from benchmarks.report import differing, write_report
from benchmarks.results import load

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def compared(truth_server, tmp_path_factory) -> Path:
    """A results folder of a real comparison of two servers, with a name that must be escaped."""
    folder = tmp_path_factory.mktemp("compared")
    calls = folder / "calls.jsonl"
    rows = [{"input_text": f"{n} #<b>{n % 3}</b>", "complaint_category": f"<b>{n % 3}</b>"} for n in range(60)]
    calls.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scenario = Scenario(calls=calls, users=2, duration_s=0.4, pairs=3, cover_calls=True, pause_s=0)
    (folder / "s.yml").write_text(scenario.model_dump_json(), encoding="utf-8")
    a, b = truth_server("service_ms=8"), truth_server("service_ms=4", "wrong_share=0.3", "error_share=0.05")
    out = folder / "results"
    code = main(["compare", str(folder / "s.yml"), f"a={a.url}", f"b={b.url}", f"out={out}", "--quiet"])
    assert code in {1, 3}
    return out


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_report_needs_nothing_but_itself(compared, lang):
    text = write_report(compared, lang).read_text(encoding="utf-8")
    own = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", text, flags=re.DOTALL)

    assert re.findall(r'(?:src|href)="(?!data:)[^"]+"', own) == []
    assert "url(" not in own
    assert "@import" not in own
    assert "<b>" not in own
    assert 'name="viewport"' in own
    assert len(text) < 5_000_000


def test_every_plot_has_a_place_and_data(compared):
    text = write_report(compared, "en").read_text(encoding="utf-8")

    places = set(re.findall(r'id="plot-(\w+)"', text))
    found = re.search(r'id="plots"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert places == set(data) == {"forest", "cdf", "throughput", "timeline", "confusion", "f1"}
    assert all(figure["data"] for figure in data.values())


def test_the_worse_candidate_is_called_worse(compared):
    summary = json.loads((compared / "summary.json").read_text(encoding="utf-8"))

    quality = summary["quality"]
    assert quality["accuracy_a"] == 1.0
    assert quality["accuracy_b"] < 0.9
    assert summary["verdict"] == "FAIL"
    assert len(summary["pair_intervals"]) == 3
    records = load(compared)
    assert summary["a"]["total_requests"] == ((records["arm"] == "a") & (records["phase"] == "measure")).sum()


def test_settings_that_differ_are_found_at_any_depth():
    a = {"x": 1, "same": 2, "deep": {"y": [1], "z": 3}, "only_a": True}
    b = {"x": 2, "same": 2, "deep": {"y": [1], "z": None}}

    assert differing(a, b) == [("deep.z", 3, None), ("only_a", True, None), ("x", 1, 2)]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_draws_and_fits_offline_in_a_browser(compared, width, tmp_path):
    """On a phone nothing may be wider than the screen."""
    from playwright.sync_api import sync_playwright

    report = write_report(compared, "zh")
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(offline=True, viewport={"width": width, "height": 800})
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-drawn=yes]", state="attached", timeout=60_000)
        plots = page.locator(".plot .main-svg").count()
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        browser.close()
    assert errors == []
    assert plots >= 6
    assert wide <= 0
