"""The report stands alone, in both languages, and draws in a browser."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest

from benchmarks.__main__ import main
from benchmarks.candidates import Keeper, Result, Variant, refused
from benchmarks.config import Scenario
from benchmarks.figures.analysis import synthetic
from benchmarks.report import differing, write_report
from benchmarks.results import load
from benchmarks.tune import TuneScenario

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

    assert re.findall(r'(?:src|href)="(?!data:)[^"]+"', text) == []
    assert "@import" not in text
    assert "http://www.w3.org/2000/svg" in text  # a name, not an address
    assert "<b>" not in text
    assert 'name="viewport"' in text
    assert len(text) < 1_000_000


def data_of(text):
    found = re.findall(
        r'<script type="application/json" class="data" data-plot="(\w+)">(.*?)</script>', text, re.DOTALL
    )
    return {name: json.loads(data) for name, data in found}


def test_every_plot_has_a_place_and_data(compared):
    text = write_report(compared, "en").read_text(encoding="utf-8")

    places = re.findall(r'id="plot-(\w+)"', text)
    data = data_of(text)
    assert set(places) == set(data) == {"forest", "metrics_forest", "cdf", "throughput", "timeline", "f1"}
    assert len(places) == len(data)
    assert all(figure["traces"] for figure in data.values())
    assert data["timeline"]["bands"][0]["label"] == "warm-up"
    assert len(data["forest"]["traces"][0]["error"]) == 3
    assert 'class="heat"' in text


def test_the_latency_curves_are_the_records(compared):
    """Read off the curve at one half: the median of the sorted list."""
    data = data_of(write_report(compared, "en").read_text(encoding="utf-8"))
    records = load(compared)

    for arm, trace in zip("ab", data["cdf"]["traces"], strict=True):
        rows = records[(records["arm"] == arm) & (records["phase"] == "measure") & records["ok"]]
        at = min(range(len(trace["y"])), key=lambda i, y=trace["y"]: abs(y[i] - 0.5))
        assert trace["x"][at] == pytest.approx(1000 * rows["latency_scheduled_s"].median(), rel=0.01)


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


def test_a_report_of_a_kind_it_has_never_seen(compared, tmp_path):
    """A verb that comes later: cells, series and reasons are shown without code of their own."""
    folder = tmp_path / "new"
    shutil.copytree(compared, folder)
    summary = json.loads((folder / "summary.json").read_bytes())["a"] | {
        "kind": "brandnew",
        "verdict": "NO VERDICT",
        "reasons": ["because <of> it"],
        "cells": [
            {
                "users": n,
                "qps": 10.0 * n,
                "latency_p50_ms": 5.0 + n,
                "latency_p95_ms": 9.0 + n,
                "error_rate": 0,
                "kept": k,
            }
            for n, k in ((1, True), (2, True), (3, None), (4, False))
        ],
        "series": [
            {"name": "odd_thing", "unit": "s", "at_s": [1, 2, 3], "values": [1.0, None, 3.0], "slope_per_hour": 9.0}
        ],
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")

    text = write_report(folder, "zh").read_text(encoding="utf-8")

    assert "because &lt;of&gt; it" in text
    assert {"load_latency", "series", "cdf", "timeline"} <= set(data_of(text))
    assert re.findall(r'class="kept (\w+)"', text) == ["yes", "yes", "open", "no"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"complete": False}, "was interrupted"),
        ({"journal_whole": False}, "journal of requests was cut off"),
    ],
    ids=str,
)
def test_a_report_says_what_is_missing(compared, tmp_path, change, said):
    folder = tmp_path / "part"
    shutil.copytree(compared, folder)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change), encoding="utf-8")

    assert said in write_report(folder, "en").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A folder of comparisons as ``tune`` leaves it: a winner, one that is worse, one that was refused."""
    folder = tmp_path_factory.mktemp("tuned")
    scenario = TuneScenario.model_validate({"texts": ["t"], "users": 1, "requests": 1, "space": {"kv_cache_bits": [8]}})
    raw = {"optimization_settings": {"max_batch_size": 1, "kv_cache_bits": 16}}
    keeper = Keeper(scenario, Path("environments/<mine>.yml"), raw, "tune", folder)
    many = {"max_batch_size": 16, "kv_cache_bits": 8, "enable_prefix_caching": True}
    keeper.keep(refused(Variant("max_batch_size=5000", {"max_batch_size": 5000}), "Input should be <= 1024"))
    for name, settings, answer, key, gain in (
        ("max_batch_size=16", {"max_batch_size": 16}, "PASS", "candidate_faster", 1.5),
        (",".join(f"{key}={value}" for key, value in many.items()), many, "FAIL", "candidate_worse", 2.25),
        ("kv_cache_bits=8", {"kv_cache_bits": 8}, "NO VERDICT", "candidate_same", 1.01),
    ):
        (folder / "round-1" / name).mkdir(parents=True)
        (folder / "round-1" / name / "report.html").write_text("", encoding="utf-8")
        values = {"name": name, "metric": "qps", "gain": gain, "low": gain - 0.1, "high": gain + 0.1, "pairs": 3}
        values["reason"] = "answers <differ>" if answer == "FAIL" else ""
        keeper.keep(
            Result(
                *(name, settings, answer, key, values, str(folder / "round-1" / name), "qps", gain),
                low=gain - 0.1, high=gain + 0.1, pairs=3, qps=(100.0, 100 * gain), memory_mb=(57.0, 58.0),
                accuracy=(0.9, 0.8), agreement=0.85,
            )
        )  # fmt: skip
    keeper.write(complete=True)
    return folder


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_candidates_are_shown_against_the_reference_with_what_was_refused_and_why(tuned, lang):
    text = write_report(tuned, lang).read_text(encoding="utf-8")

    [forest] = data_of(text).values()
    assert [trace["x"] for trace in forest["traces"]] == [[1.5], [2.25], [1.01]]
    assert forest["traces"][0]["error"] == [[pytest.approx(1.4), pytest.approx(1.6)]]
    assert len({trace["colour"] for trace in forest["traces"]}) == 3
    assert forest["bands"] == [{"from": 1, "to": 1.02}]
    links = re.findall(r'href="(?!data:)([^"]+)"', text)
    assert len(links) == 3
    assert all((tuned / unquote(link)).is_file() for link in links)
    assert "max_batch_size=5000" in text
    assert {"en": "refused", "zh": "被拒绝"}[lang] in text
    assert "answers &lt;differ&gt;" in text
    assert "<strong>16</strong>" in text
    assert "Input should be &lt;= 1024" in text
    assert 'src="' not in text


WATCH = """
window.long = [];
new PerformanceObserver((list) => { for (const entry of list.getEntries()) window.long.push(entry.duration); })
  .observe({ type: "longtask", buffered: true });
"""


@contextmanager
def opened(report, width):
    """The page, with every plot drawn, without a network."""
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(offline=True, viewport={"width": width, "height": 800})
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.add_init_script(WATCH)
        page.goto(report.as_uri())
        for place in page.locator(".plot").all():
            place.scroll_into_view_if_needed()
            page.wait_for_selector(f"#{place.get_attribute('id')} svg", state="attached", timeout=30_000)
        yield page, errors
        browser.close()


@pytest.mark.browser
@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(("kind", "plots"), [("compared", 6), ("tuned", 1)])
def test_the_report_draws_and_fits_offline_in_a_browser(request, kind, plots, width, lang):
    """On a phone nothing may be wider than the screen, and no label may stick out of its plot."""
    with opened(write_report(request.getfixturevalue(kind), lang), width) as (page, errors):
        assert page.locator(".plot svg").count() == plots
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        clipped = page.evaluate(
            """[...document.querySelectorAll(".plot svg")].flatMap((svg) => {
              const box = svg.getBoundingClientRect();
              return [...svg.querySelectorAll("text")].filter((text) => {
                const own = text.getBoundingClientRect();
                const beside = own.left < box.left - 1 || own.right > box.right + 1;
                return own.width && (beside || own.bottom > box.bottom + 1);
              }).map((text) => text.textContent);
            })"""
        )
        assert clipped == []
        assert errors == []


@pytest.mark.browser
def test_plots_answer_to_the_pointer(compared):
    with opened(write_report(compared, "en"), 1280) as (page, errors):
        plot = page.locator("#plot-cdf")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        labels = plot.locator("svg > text").all_text_contents()

        for step in range(-10, 11):
            page.mouse.move(middle[0] + 20 * step, middle[1])
            if plot.locator(".tip[visibility=visible]").count():
                break
        assert re.search(r"%: [\d.]+ ms", plot.locator(".tip text").text_content())

        page.mouse.move(middle[0] - 60, middle[1])
        page.mouse.down()
        page.mouse.move(middle[0] + 60, middle[1], steps=4)
        page.mouse.up()
        assert plot.locator("svg > text").all_text_contents() != labels
        page.mouse.dblclick(*middle)
        assert plot.locator("svg > text").all_text_contents() == labels

        lines = plot.locator("svg > g > g").count()
        plot.locator(".legend").first.click()
        assert plot.locator("svg > g > g").count() == lines - 1
        assert errors == []


@pytest.mark.browser
def test_a_report_of_many_requests_is_small_and_opens_without_a_long_task(tmp_path):
    """100,000 requests with 64 events each: at most 5 MB, and no task over a second."""
    report = write_report(synthetic(tmp_path / "many", 100_000, 64), "en")

    assert report.stat().st_size < 5_000_000
    with opened(report, 1280) as (page, errors):
        assert page.locator(".plot svg").count() >= 4
        assert max(page.evaluate("window.long"), default=0) < 1000
        assert errors == []
