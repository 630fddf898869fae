"""More and more load on a server whose slots are known."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import benchmarks
from benchmarks.__main__ import main
from benchmarks.stress import StressScenario, knee, steps

CONFIG = Path(benchmarks.__file__).parent / "configs" / "stress.yml"


def closed_loop(users: int, slots: int, service_s: float) -> dict[str, float]:
    """Mean value analysis of a closed system whose requests all take as long (no variance): what a step would say."""
    busy = min(users, slots)
    return {"users": users, "qps": busy / service_s, "latency_avg_ms": 1000 * users / (busy / service_s)}


@pytest.mark.parametrize("slots", [1, 3, 4, 7, 20])
@pytest.mark.parametrize("growth", [1.3, 1.5, 2.0])
def test_the_knee_is_the_number_of_slots_whatever_steps_were_tried(slots, growth):
    users = [1]
    while users[-1] < 3 * slots + 3:
        users.append(max(users[-1] + 1, round(users[-1] * growth)))

    found = knee([closed_loop(each, slots, 0.2) for each in users], "users")

    if slots == 1:
        assert found["why_not"] == "before"
    else:
        assert found["users"] == pytest.approx(slots)
        assert found["qps"] == pytest.approx(slots / 0.2)


def test_steps_that_never_saturate_have_no_knee():
    found = knee([closed_loop(each, 100, 0.2) for each in (1, 2, 4, 8)], "users")

    assert found == {
        "reached": False, "why_not": "beyond", "users": None, "qps": None, "rate_per_s": None, "latency_ms": None
    }  # fmt: skip


def test_steps_grow_by_a_factor_and_end_at_the_maximum():
    def of(**settings):
        return list(steps(StressScenario.model_validate({"texts": ["a"], "duration_s": 1, **settings})))

    assert of(users=1, growth=1.5, maximum=10) == [1, 2, 3, 4, 6, 9, 10]
    assert of(rate_per_s=2.5, growth=2, maximum=20) == [2.5, 5, 10, 20]
    assert of(users=4, maximum=4) == [4]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, calls_file):
    """Run ``stress`` in an empty folder: exit code, last line as JSON, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(["stress", str(CONFIG), f"calls={calls_file}", "warmup_s=0.2", *map(str, words)])
        out, err = capsys.readouterr()
        lines = out.strip().splitlines()
        last = json.loads(lines[-1]) if lines else None
        if last is not None and "folder" in last:  # the line leaves the long tables out
            last = json.loads((Path(last["folder"]) / "summary.json").read_text(encoding="utf-8")) | last
        return code, last, out, err

    return run


def test_users_go_up_until_the_latency_breaks_and_the_knee_is_the_slots(command, truth_server, tmp_path):
    """With 4 slots of 100 ms, N users wait N * 25 ms: 300 ms are broken above 12 users, whatever is tried."""
    server = truth_server("slots=4", "service_ms=100")

    code, last, text, progress = command(
        f"url={server.url}", "maximum=40", "growth=2", "duration_s=1.5", "objective.max_p95_latency_ms=300", "out=r"
    )

    assert (code, last["verdict"]) == (0, "PASS"), text
    assert [cell["users"] for cell in last["cells"]] == [1, 2, 4, 8, 16]
    assert [cell["kept"] for cell in last["cells"]] == [True, True, True, True, False]
    assert last["broke"]["what"][0]["key"] == "broke_latency"
    assert last["knee"]["users"] == pytest.approx(4, rel=0.15)
    assert "16 users: " in progress
    assert "At 16 users it broke" in text
    assert "It was kept at 8 users" in text
    assert (tmp_path / "r" / "report.html").exists()


def test_arrivals_go_up_until_too_many_wait(command, truth_server):
    """2 slots of 50 ms hold 40 a second; at 160 the bound on requests in flight ends the step and the test."""
    server = truth_server("slots=2", "service_ms=50")

    code, last, text, _ = command(
        f"url={server.url}", "users=null", "rate_per_s=20", "maximum=640", "growth=2", "duration_s=1.5",
        "max_in_flight=60", "must_hold=160",
    )  # fmt: skip

    cells = last["cells"]
    assert (code, last["verdict"]) == (1, "FAIL"), text
    assert cells[-1]["rate_per_s"] <= 160
    assert last["broke"]["what"][0]["key"] == "broke_queue"
    assert last["knee"]["rate_per_s"] == pytest.approx(40, rel=0.15)
    manifest = json.loads((Path(last["folder"]) / "manifest.json").read_text(encoding="utf-8"))
    assert max(run["peak_in_flight"] for run in manifest["runs"]) <= 60


def test_errors_break_the_objective_and_are_counted_by_class(command, truth_server):
    server = truth_server("service_ms=5", "error_share=0.3")

    code, last, text, _ = command(f"url={server.url}", "maximum=8", "duration_s=1", "users=2")

    assert code == 0, text
    assert len(last["cells"]) == 1
    assert last["cells"][0]["error_rate"] == pytest.approx(0.3, abs=0.15)
    assert last["broke"]["what"][0]["key"] == "broke_errors"
    assert "http_status" in text


def test_a_server_that_answers_nothing_has_no_limit_that_is_known(command):
    """It answers the first request of all, which only asks whether it is there."""
    answers = [b'{"category": "x", "confidence": 1, "probabilities": {"x": 1}, "needs_review": false}']

    class Once(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if answers else 500)
            self.end_headers()
            self.wfile.write(answers.pop() if answers else b"")

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Once) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        code, last, text, _ = command(f"url=http://127.0.0.1:{server.server_port}", "maximum=4", "duration_s=0.5")
        server.shutdown()
        thread.join()

    assert (code, last["verdict"]) == (4, "INVALID")
    assert len(last["cells"]) == 1
    assert f"None of {last['cells'][0]['requests']} requests succeeded." in text


def test_an_objective_that_is_kept_to_the_end_is_said(command, truth_server):
    server = truth_server("service_ms=20")

    code, last, text, _ = command(f"url={server.url}", "maximum=2", "duration_s=0.5", "must_hold=2", "lang=zh")

    assert (code, last["verdict"], last["broke"]) == (0, "PASS", None)
    assert "2 个用户" in text
    assert last["knee"]["reached"] is False


def test_a_load_generator_that_was_the_limit_ends_the_test_as_invalid(command, truth_server):
    server = truth_server("service_ms=20")

    code, last, text, _ = command(f"url={server.url}", "maximum=8", "duration_s=0.5", "client_limits.cpu_share=0.0001")

    assert (code, last["verdict"]) == (4, "INVALID")
    assert [cell["users"] for cell in last["cells"]] == [1, 1]
    assert "the load generator was the limit" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("maximum=0.5",), "maximum=0.5 is below the first step, 1"),
        (("must_hold=100",), "must_hold=100 is above maximum=64"),
        (("objective.min_qps=3",), "objective.min_qps says nothing while the load goes up"),
        (("objective.max_p95_ttft_ms=3",), "needs a dialect that streams, not classify"),
        (("objective.max_p95=3",), "unknown key"),
        ((), "stress needs a server"),
    ],
)
def test_settings_that_cannot_work_are_said_in_one_line(command, words, said):
    code, _, _, err = command(*words)

    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_an_interrupted_test_keeps_its_steps_and_says_so(truth_server, calls_file, tmp_path):
    server = truth_server("service_ms=20")
    words = ("stress", CONFIG, f"url={server.url}", f"calls={calls_file}", "duration_s=0.7", "warmup_s=0", "out=r")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *map(str, words)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    journal, end = tmp_path / "r" / "requests.jsonl", time.monotonic() + 60
    while time.monotonic() < end and not (journal.exists() and '"pair":2' in journal.read_text().replace(" ", "")):
        time.sleep(0.1)

    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 3
    assert "interrupted" in said
    assert "Traceback" not in said
    summary = json.loads((tmp_path / "r" / "summary.json").read_text(encoding="utf-8"))
    assert summary["verdict"] == "NO VERDICT"
    assert len(summary["cells"]) >= 2
