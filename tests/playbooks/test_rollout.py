"""``playbooks/rollout.yml`` and ``rollback.yml`` on real hosts, under streams that are open all the time.

SLOW=1 python -m pytest -s -m slow tests/playbooks/test_rollout.py      prints their tables
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
from collections import Counter
from functools import partial

import httpx2 as httpx
import pytest
from drains import Drains
from hosts import REPOSITORY, changed
from test_planted import FAULTS, GATE, garble
from traffic import KEY, TEXT, Traffic, call, stream, wait_until

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(3600)]

AT_ONCE = 48
"""Twelve at each instance, four of which wait for its eight slots: what it has accepted when it is drained takes
seconds, also where its streams happen to end at one moment."""
TOKENS = (650, 750, 850, 950)
"""Of several lengths, so that an instance's streams do not all end at one moment: seconds on a quarter of a core."""


def versions(site):
    """Of each instance, by its link; and of the hosts."""
    found = []
    for server in site["model_server"]:
        said = server.run("sh", "-c", "cd /opt/qwen3 && readlink instances/1 instances/2 current")
        found += [line.rsplit("/", 1)[1] for line in said.split()]
    return found


def one_version(site):
    [version] = set(versions(site))
    return version


def address(site):
    return site["load_balancer"][0].address


def streams_through(door):
    return Traffic(lambda: stream(door, tokens=random.choice(TOKENS), limit_s=200), AT_ONCE)


def ends(traffic):
    return Counter("whole" if answer.what == "whole" else "cut or refused" for answer in traffic.answers)


def rolled(site, play, *words, **changes):
    """Exit code, what was said, the streams, what each instance was doing when it was drained."""
    with (
        site.environment(**changes),
        Drains(site["load_balancer"][0]) as drains,
        streams_through(address(site)) as streams,
    ):
        wait_until(lambda: len(streams.answers) >= AT_ONCE, "streams")
        code, said = site.play(play, *words)
    return code, said, streams, drains.found


def assert_nobody_noticed(streams, drains):
    found = ends(streams)
    print(f"streams: {found['whole']} whole, {found['cut or refused']} cut or refused")
    print("drained, sessions then and after 2 s:", *(f"{each.instance} {each.sessions} {each.left}" for each in drains))
    assert len(drains) == 4
    assert all(each.left for each in drains), drains
    assert found["cut or refused"] == 0, [each.what for each in streams.answers if each.what != "whole"]


def test_a_new_version_reaches_every_instance_and_no_stream_notices_and_so_back(site):
    before = one_version(site)
    code, said, streams, drains = rolled(site, "rollout", model_version="next")
    assert code == 0, said
    assert_nobody_noticed(streams, drains)
    assert one_version(site).startswith("next-")

    code, said, streams, drains = rolled(site, "rollback")
    assert code == 0, said
    assert_nobody_noticed(streams, drains)
    assert one_version(site) == before


def test_what_runs_already_is_left_alone(site):
    code, said = site.play("rollout")
    assert (code, changed(said)) == (0, 0), said
    assert "nothing to do: every instance runs" in said


@pytest.mark.slow
def test_of_a_thousand_streams_none_is_cut_or_refused(site):
    whole, rollouts, left = 0, 0, []
    while whole < 1000:
        play = "rollback" if rollouts % 2 else "rollout"
        code, said, streams, drains = rolled(site, play, model_version=f"round-{rollouts // 2}")
        assert code == 0, said
        assert_nobody_noticed(streams, drains)
        whole, rollouts = whole + ends(streams)["whole"], rollouts + 1
        left += [each.left for each in drains]
    # Rule of three: what may be true with 0 seen of n, at 95 %.
    print(f"{rollouts} rollouts forward and back: {whole} streams whole, 0 cut or refused (95 % bound {3 / whole:.2%})")
    print(f"{len(left)} instances stopped, each with {min(left)} to {max(left)} streams that had 2 s left")
    if rollouts % 2:
        assert site.play("rollback")[0] == 0


@pytest.mark.slow
def test_without_a_drain_the_same_test_fails(site):
    code, said, streams, drains = rolled(site, "rollout", "-e", "rollout_drain_s=0", model_version="hasty")
    try:
        assert code == 0, said
        with pytest.raises(AssertionError):
            assert_nobody_noticed(streams, drains)
        assert ends(streams)["cut or refused"] > 0
    finally:
        code, said = site.play("rollback")
    assert code == 0, said


# Bad versions ------------------------------------------------------------------------------------------------

BROKEN = "raise SystemExit('planted: does not start')\n"
ALL_ERRORS = FAULTS.replace("random.random() < 0.02", "True")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Fault -> a project whose server has it; and a model that knows nothing."""
    folder = tmp_path_factory.mktemp("planted")

    def project(name, file, text):
        for part in ("infra", "model_server", "benchmarks", "playbooks", "requirements", "environments", "data"):
            shutil.copytree(REPOSITORY / part, folder / name / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "runconfig.py", folder / name)
        with (folder / name / file).open("a", encoding="utf-8") as target:
            target.write(text)
        return folder / name

    shutil.copytree(REPOSITORY / "models/complaints-tiny", folder / "complaints-other")
    garble(folder / "complaints-other")
    return {
        "does not start": project("broken", "model_server/server.py", BROKEN),
        "answers 500": project("errors", "model_server/app.py", ALL_ERRORS),
        "slower": project("slower", "model_server/app.py", FAULTS),
        "wrong labels": folder / "complaints-other",
    }


@pytest.fixture(scope="module")
def gated(site, tmp_path_factory):
    scenario = tmp_path_factory.mktemp("gate") / "gate.yml"
    scenario.write_text(GATE)
    return {"rollout": {"gate": str(scenario)}}


PLANTS = {
    "does not start": "Start them with it: Unable to restart service qwen3@1",
    "answers 500": "against .*: (INVALID|FAIL)",
    "slower": "against .*: FAIL",
    "wrong labels": "against .*: (INVALID|FAIL)",
}


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[] if fault == "answers 500" else pytest.mark.slow) for fault in PLANTS]
)
def test_a_bad_version_is_stopped_at_the_canary_and_taken_back(site, planted, gated, fault):
    before = one_version(site)
    changes = {"model_version": {"answers 500": "errors", "slower": "slower"}.get(fault, "bad"), **gated}
    words = ["-e", f"model_server_project={planted[fault]}"]
    if fault == "wrong labels":
        words = ["-e", f"model_server_model={planted[fault]}"]
        changes["model_source"] = "/opt/qwen3/models/complaints-other"
    seen = Counter()

    def asked():
        answer = httpx.post(
            f"http://{address(site)}/api/v1/classify",
            json={"text": TEXT},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=30,
        )
        seen[answer.status_code, answer.json()["category"] if answer.status_code == 200 else ""] += 1
        return "whole"

    with site.environment(**changes), Traffic(asked, 2, pause_s=0.05) as calls:
        wait_until(lambda: len(calls.answers) > 20, "calls")
        code, said = site.play("rollout", *words)
    print(fault, dict(seen))
    back = re.search(r"rolled back in ([0-9.]+) s", said)
    assert code != 0, said
    assert back is not None, said
    [failed, *_] = re.findall("What failed: (.*)", said)
    print(f"{fault}: rolled back in {back[1]} s; {failed[:300]}")

    assert re.search(PLANTS[fault], failed), failed
    assert one_version(site) == before
    # Measured before it had any traffic: nobody was exposed.
    assert len(seen) == 1
    assert next(iter(seen))[0] == 200


@pytest.mark.slow
def test_a_good_version_passes_the_gate(site, gated):
    before = one_version(site)
    with site.environment(model_version="good", **gated):
        code, said = site.play("rollout")
    assert code == 0, said
    assert one_version(site).startswith("good-")
    code, said = site.play("rollback")
    assert code == 0, said
    assert one_version(site) == before


@pytest.mark.slow
def test_a_host_that_goes_away_during_a_rollout_ends_it_and_the_others_are_taken_back(site):
    before = one_version(site)
    lost = site["model_server"][1]
    gone = threading.Event()

    def go():
        wait_until(lambda: any(line.startswith("lost-") for line in versions(site)), "the first is updated", 300)
        subprocess.run(["docker", "pause", lost.name], check=True)
        gone.set()

    thread = threading.Thread(target=go)
    thread.start()
    try:
        calling = Traffic(partial(call, address(site), limit_s=130), 2)
        with site.environment(model_version="lost"), calling as calls:
            code, said = site.play("rollout", "-e", "ansible_ssh_timeout=5")
    finally:
        thread.join()
        subprocess.run(["docker", "unpause", lost.name], check=False)
    assert gone.is_set()
    assert code != 0
    assert (
        f"Out of the balancers until they answer again and rollback.yml has run: {lost.name}-1, {lost.name}-2" in said
    ), said
    print(dict(calls.counts()))
    assert calls.counts().keys() <= {"whole", "504 [b'</body></html>']"}  # what was in it when it went
    code, said = site.play("validate")
    assert f"not in service: {lost.name}-1" in said, said
    code, said = site.play("rollback")
    assert code == 0, said
    assert f"every instance runs {before}, and {lost.name}-1 will get requests again" in said
    assert one_version(site) == before
    code, said = site.play("validate")
    assert code == 0, said


@pytest.mark.slow
def test_an_interrupted_rollout_goes_on_or_is_taken_back(site):
    before = one_version(site)
    for play, expected in (("rollout", "halfway-"), ("rollback", before)):
        with site.environment(model_version="halfway"):
            running = site.begin("rollout")
            wait_until(lambda: any(line.startswith("halfway-") for line in versions(site)), "one is updated", 300)
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
            assert len(set(versions(site))) == 2
            code, said = site.play(play)
        assert code == 0, said
        assert one_version(site).startswith(expected)
        assert call(address(site)) == "whole"
        code, said = site.play("rollback") if play == "rollout" else (0, "")
        assert code == 0, said


def test_a_site_of_one_instance_is_refused(site):
    rows = json.loads(json.dumps(site.rows))
    one = [row | {"instances": 1} for row in rows if row["name"] in (rows[0]["name"], rows[2]["name"])]
    site.write_hosts(one)
    try:
        code, said = site.play("rollout")
    finally:
        site.write_hosts(rows)
    assert code != 0
    assert "the site has one instance: nobody would serve while it is updated" in said
