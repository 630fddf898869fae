"""The highest rate that keeps an objective: the search against simulated queues, and the verb against a real server."""

from __future__ import annotations

import heapq
import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import benchmarks
from benchmarks.__main__ import main
from benchmarks.capacity import Search, probe_seconds, step_at_most
from benchmarks.goodput import share_interval

CONFIG = Path(benchmarks.__file__).parent / "configs" / "capacity.yml"
BASE = 1.03


def waits(
    rate: float, seconds: float, slots: int, service_s: float, chance: random.Random | None = None
) -> list[float]:
    """How long each request of an open loop waits for one of ``slots``: an event simulation of its own."""
    free = [0.0] * slots
    heapq.heapify(free)
    due, found = 0.0, []
    while due < seconds:
        begin = max(due, heapq.heappop(free))
        heapq.heappush(free, begin + service_s)
        found.append(begin - due)
        due += 1 / rate if chance is None else chance.expovariate(rate)
    return found


def searched(slots: int, service_s: float, guess: float, *, slack_s: float = 0.3, poisson: bool = False) -> list[float]:
    """The rates kept and broken at the end, and the number of probes, of a search on a simulated server."""
    search = Search(BASE, step_at_most(guess, BASE), step_at_most(1 / service_s / 4, BASE))
    probes = 0
    while (step := search.next_step()) is not None:
        rate = BASE**step
        probes += 1
        seconds = probe_seconds(slack_s, BASE - 1, rate, 0.95, 0.0)
        chance = random.Random(f"{step}") if poisson else None
        found = share_interval([wait <= slack_s for wait in waits(rate, seconds, slots, service_s, chance)])
        search.learn(step, kept=found.low >= 0.95)
    assert search.found
    return [search.rate(search.kept), search.rate(search.broken), probes]


@pytest.mark.parametrize(("slots", "service_s"), [(1, 0.05), (4, 0.2), (16, 0.68), (37, 1.3)])
@pytest.mark.parametrize("off", [0.3, 0.93, 1.0, 1.02, 3.0])
def test_the_search_is_within_5_percent_of_slots_over_service_time(slots, service_s, off):
    """However wrong the first guess is; in at most 12 probes where it comes from a saturated server."""
    truth = slots / service_s

    kept, broken, probes = searched(slots, service_s, off * truth)

    assert kept == pytest.approx(truth, rel=0.05)
    assert kept < broken < truth * 1.06
    if 0.9 < off < 1.1:
        assert probes <= 12


def test_independent_callers_need_more_room():
    """Of an M/D/1 queue with slack for many services the capacity is below, but not far below, the service rate."""
    kept, _, _ = searched(1, 0.05, 20.0, slack_s=0.5, poisson=True)

    assert 15 < kept < 20


def test_a_probe_is_long_enough_to_show_the_overload_it_must_show():
    """At 1.03 times the capacity half of the requests are beyond the slack, by simulation."""
    seconds = probe_seconds(0.3, 0.03, 20.6, 0.95, 0.0)

    found = waits(20.6, seconds, 4, 0.2)
    assert sum(wait > 0.3 for wait in found) / len(found) == pytest.approx(0.5, abs=0.05)
    # Half as long as that would let it pass.
    short = waits(20.6, seconds / 2, 4, 0.2)
    assert sum(wait > 0.3 for wait in short) / len(short) < 0.05


def test_one_stall_of_the_machine_does_not_decide():
    """The step that limits the answer was broken once and kept at the second try: the search goes on above it."""
    search = Search(BASE, 100, 50)
    for step, kept in ((100, True), (101, False), (101, True), (102, False), (102, False)):
        assert search.next_step() == step
        search.learn(step, kept=kept)

    assert search.next_step() is None
    assert (search.kept, search.broken, search.confirmed) == (101, 102, True)


def test_a_server_that_keeps_nothing_ends_the_search_at_the_floor():
    search = Search(BASE, 100, 90)
    while (step := search.next_step()) is not None:
        search.learn(step, kept=False)

    assert search.kept is None
    assert search.broken == 90


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run ``capacity`` in an empty folder: exit code, last line as JSON, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(["capacity", str(CONFIG), *map(str, words)])
        out, err = capsys.readouterr()
        lines = out.strip().splitlines()
        last = json.loads(lines[-1]) if lines else None
        if last is not None and "folder" in last:  # the line leaves the long tables out
            last = json.loads((Path(last["folder"]) / "summary.json").read_text(encoding="utf-8")) | last
        return code, last, out, err

    return run


QUICK = ("warmup_s=0.3", "duration_s=1", "users=12")


def test_the_capacity_of_a_server_with_slots_is_slots_over_service_time(command, truth_server, calls_file):
    """The bar is 5 %; timers that are late on a busy machine are time the server did not have, so that much is allowed
    on top, as the server's own log says it.
    """
    server = truth_server("slots=4", "service_ms=100")

    code, last, text, progress = command(
        f"url={server.url}", f"calls={calls_file}", *QUICK, "limits.latency_ms=200", "resolution=0.05", "out=r"
    )

    assert (code, last["verdict"]) == (0, "PASS"), text
    capacity = last["capacity"]
    assert capacity["probes"] <= 12
    # What the server itself did at saturation bounds what it can hold.
    assert capacity["rate_per_s"] == pytest.approx(40, rel=0.05 + 0.05 + max(0.0, 1 - capacity["saturated_qps"] / 40))
    assert capacity["rate_per_s"] < capacity["broken_rate_per_s"] <= 1.06 * capacity["rate_per_s"]
    cells = {round(cell["rate_per_s"], 6): cell for cell in last["cells"]}
    assert cells[round(capacity["rate_per_s"], 6)]["goodput"] >= 0.95
    assert cells[round(capacity["broken_rate_per_s"], 6)]["goodput"] < 0.95
    assert "waiting for an empty queue" in progress
    assert "requests per second were kept" in text
    assert (Path("r") / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_capacity_is_within_5_percent_and_the_same_again(command, truth_server, calls_file):
    """The bar in full: 4 slots of 200 ms are 20 requests per second."""
    server = truth_server("slots=4", "service_ms=200")
    found = []
    for attempt in range(2):
        code, last, text, _ = command(
            f"url={server.url}", f"calls={calls_file}", "warmup_s=1", "limits.latency_ms=400", f"out=r{attempt}"
        )
        assert code == 0, text
        assert last["capacity"]["rate_per_s"] == pytest.approx(20, rel=0.05)
        assert last["capacity"]["probes"] <= 12
        found.append(last["capacity"]["rate_per_s"])
    # The same steps are tried; noise may decide between neighbours.
    assert any(found[1] == pytest.approx(found[0] * 1.03**step) for step in (-1, 0, 1))


def test_a_demand_that_is_not_reached_fails_and_one_that_is_passes(command, truth_server, calls_file):
    """With ``rate_per_s`` as the first guess there is no closed loop to guess from."""
    server = truth_server("slots=4", "service_ms=40")
    words = (f"url={server.url}", f"calls={calls_file}", "warmup_s=0", "duration_s=0.5", "users=null")
    words = (*words, "limits.latency_ms=150", "resolution=0.3", "max_probes=3")

    code, last, text, _ = command(*words, "rate_per_s=200", "must_hold=180", "out=high")
    assert (code, last["verdict"]) == (1, "FAIL"), text
    assert last["capacity"]["saturated_qps"] is None

    code, last, text, _ = command(*words, "rate_per_s=60", "must_hold=40", "out=low")
    assert (code, last["verdict"]) == (0, "PASS"), text


def test_limits_that_one_user_alone_breaks_are_said_at_once(command, truth_server, calls_file):
    server = truth_server("service_ms=80")

    code, last, text, _ = command(f"url={server.url}", f"calls={calls_file}", *QUICK, "limits.latency_ms=60")

    assert (code, last["verdict"]) == (1, "FAIL")
    assert last["cells"] == []
    assert "One user alone does not keep latency 60 ms: 0% of its requests do" in text


def test_a_load_generator_that_was_the_limit_makes_no_capacity(command, truth_server, calls_file):
    server = truth_server("slots=4", "service_ms=20")

    code, last, text, _ = command(
        f"url={server.url}", f"calls={calls_file}", *QUICK, "limits.latency_ms=100", "resolution=0.3",
        "client_limits.cpu_share=0.0001",
    )  # fmt: skip

    assert (code, last["verdict"]) == (4, "INVALID")
    assert [cell["kept"] for cell in last["cells"]] == [None, None]
    assert "the load generator was the limit, not the server" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("limits.latency_ms=null",), "set limits.latency_ms or limits.ttft_ms"),
        (("limits.ttft_ms=100",), "need a dialect that streams, not classify"),
        (
            ("arrivals={pattern: burst, burst_size: 5, burst_interval_s: 1}", "users=null"),
            "capacity sets the rate itself",
        ),
        (("limits.latency=100",), "did you mean 'latency_ms'"),
        ((), "capacity needs a server"),
    ],
)
def test_settings_that_cannot_work_are_said_in_one_line(command, calls_file, words, said):
    code, _, _, err = command(f"calls={calls_file}", *words)

    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_a_server_that_is_not_there_is_said_in_one_line(command, calls_file):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]

    code, last, _, err = command(f"calls={calls_file}", f"url=http://127.0.0.1:{port}")

    assert code == 4 == last["exit_code"]
    assert "cannot connect" in err
    assert "Traceback" not in err


def test_an_interrupted_search_keeps_what_it_has_and_says_so(truth_server, calls_file, tmp_path):
    server = truth_server("slots=2", "service_ms=50")
    words = ("capacity", CONFIG, f"url={server.url}", f"calls={calls_file}", *QUICK, "limits.latency_ms=150", "out=r")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *map(str, words)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    journal, end = tmp_path / "r" / "requests.jsonl", time.monotonic() + 60
    while time.monotonic() < end and not (journal.exists() and '"measure"' in journal.read_text()):
        time.sleep(0.1)

    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 3
    assert "interrupted" in said
    assert "Traceback" not in said
    summary = json.loads((tmp_path / "r" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["verdict"], summary["kind"]) == ("NO VERDICT", "capacity")
    assert json.loads((tmp_path / "r" / "manifest.json").read_text(encoding="utf-8"))["complete"] is False
