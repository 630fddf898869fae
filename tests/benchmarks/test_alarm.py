"""The alarm, in a process of its own: gevent is its loop, and this process has none."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, time
import gevent
from benchmarks.alarm import Alarm

def late(sleep_until):
    found = []
    for number in range(150):
        due = time.perf_counter() + 0.0041 + number * 1e-5
        while time.perf_counter() < due:
            sleep_until(due)
        found.append(time.perf_counter() - due)
    return sorted(found)

ticks = []
def beside():
    while True:
        gevent.sleep(0.02)
        ticks.append(time.perf_counter())

with Alarm() as alarm:
    gevent.spawn(beside)
    exact = late(alarm.sleep_until)
    begin = time.perf_counter()
    alarm.sleep_until(begin - 1)
    past = time.perf_counter() - begin
print(json.dumps({"exact": exact, "rounded": late(lambda due: gevent.sleep(due - time.perf_counter())),
                  "past": past, "ticks": len(ticks)}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's")
def test_the_alarm_wakes_earlier_after_the_moment_than_gevents_timer_and_others_go_on_meanwhile():
    answer = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(answer.stdout)

    assert min(found["exact"]) >= 0
    assert found["exact"][75] < 0.7 * found["rounded"][75]
    assert found["past"] < 0.01
    assert found["ticks"] > 20
