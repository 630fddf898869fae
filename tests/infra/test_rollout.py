"""A rollout's decisions; and, on a real engine, that it ends as it should after ``kill -9`` at any moment."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from stack_site import KEY, PROGRAM, FolderSite, engine, engine_path

from benchmarks import simulate_rollouts
from benchmarks.gate import GateScenario
from infra import rollout
from infra.rollout_site import Site
from infra.tracks import Rollout, versions
from model_server import deployment
from runconfig import load

REPOSITORY = Path(__file__).parents[2]
CODES = {"PASS": 0, "FAIL": 1, "NO VERDICT": 3, "INVALID": 4}
KILLED = Path(__file__).with_name("killed_rollout.py")


def state(**changes):
    return Rollout(id="1", overrides=("model_version=v2",), stable=2, canary=1, traffic="stable", **changes)


@pytest.fixture
def candidate():
    return deployment.load(REPOSITORY / "environments/production.yml", [], environ={})


@pytest.fixture
def says(monkeypatch):
    """The gate answers these, one after the other."""

    def answer(*words):
        codes = iter([CODES[word] for word in words])
        monkeypatch.setattr(rollout, "ask_gate", lambda *_: next(codes))

    return answer


@pytest.mark.parametrize(
    ("traffic", "words", "goes_on"),
    [
        ("stable", ["PASS"], True),
        ("stable", ["FAIL"], False),
        ("stable", ["NO VERDICT"], False),
        ("stable", ["INVALID", "PASS"], True),
        ("stable", ["INVALID", "INVALID"], False),
        ("both", ["PASS"], True),
        ("both", ["NO VERDICT"], True),
        ("both", ["FAIL"], False),
        ("both", ["INVALID", "NO VERDICT"], True),
        ("both", ["INVALID", "FAIL"], False),
        ("canary", ["INVALID", "INVALID"], False),
    ],
)
def test_before_any_traffic_the_gate_must_pass_and_later_only_evidence_takes_back(
    says, candidate, traffic, words, goes_on
):
    says(*words)

    code = rollout.judge(None, candidate, state().model_copy(update={"traffic": traffic}))

    assert code == (0 if goes_on else CODES[words[-1]])


@pytest.mark.parametrize("first", ["PASS", "FAIL", "NO VERDICT"])
@pytest.mark.parametrize("later", ["PASS", "FAIL", "NO VERDICT"])
def test_the_simulation_takes_back_what_a_rollout_takes_back(says, candidate, monkeypatch, first, later):
    said = iter([first, later])
    monkeypatch.setattr(simulate_rollouts, "ask", lambda *_: simulate_rollouts.Asked(next(said), 5))
    taken_back, _ = simulate_rollouts.roll_out(None, "good", 1, 0)

    says(first, later)
    codes = [rollout.judge(None, candidate, state())]
    if codes == [0]:
        codes.append(rollout.judge(None, candidate, state().model_copy(update={"traffic": "both"})))
    assert any(codes) == taken_back


def test_where_one_track_is_idle_speed_is_not_judged_and_errors_are():
    scenario = REPOSITORY / "benchmarks/configs/rollout_gate.yml"
    usual = load(GateScenario, scenario).verdict
    late = load(GateScenario, scenario, rollout.without_speed(scenario)).verdict

    assert late.margin == 0.99
    assert late.guards == {"error_rate": usual.guards["error_rate"]}
    assert (late.max_error_rate, late.max_accuracy_drop) == (usual.max_error_rate, usual.max_accuracy_drop)


def test_what_runs_on_each_track_follows_from_the_phase():
    before = ("serving.max_queue=9", "model_version=v1")
    after = ("serving.max_queue=9", "model_version=v2")

    assert versions(None, before) == (before, None)
    assert versions(state(before=before), ["ignored=1"]) == (before, after)
    assert versions(state(before=before, phase="promotion"), ["ignored=1"]) == (after, after)
    assert versions(state(before=before, phase="removal"), after) == (after, None)


def test_half_a_line_of_history_hides_no_other(tmp_path, capsys):
    site = Site(None, tmp_path, tmp_path, tmp_path)
    site.note(id="1", event="begun")
    with (tmp_path / "history.jsonl").open("a") as history:
        history.write('{"at": "2026')
    site.note(id="1", event="promoted")

    assert rollout.show_history(tmp_path) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["begun", "promoted"]


# From here on with a real engine.


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Makes the folders that stand for clusters, with what runs there; one of each program."""
    sites = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", engine_path())

        def start(program):
            if program not in sites:
                folder = tmp_path_factory.mktemp("folder")
                sites[program] = FolderSite(folder / "project", engine(folder), program)
                sites[program].up()
            return sites[program]

        yield start


@pytest.fixture
def site(started):
    """The real program's, as it was before any rollout."""
    yield started(None)
    tidy(started(None))


@pytest.fixture
def quick_site(started):
    yield started(PROGRAM)
    tidy(started(PROGRAM))


def tidy(site):
    site.folder.joinpath("verdicts").unlink(missing_ok=True)
    if site.setting("rollout") is not None:
        site.rollout("rollback")
    if site.setting("overrides"):
        site.stack.remove_config("overrides")
        site.up()
    site.lease.unlink(missing_ok=True)


def settled(site):
    """What is left in the end: objects, configuration, and nothing under way."""
    config = {key: value.value for key, value in site.stack.get_all_config().items()}
    assert "qwen3-stack:rollout" not in config
    assert not site.lease.exists()
    if "ONLY_WRITTEN" not in site.env:
        assert not site.stack.export_stack().deployment.get("pending_operations")
    return site.objects(), {key: json.loads(value) for key, value in config.items() if key.endswith("overrides")}


def moments(site, trace, *words):
    """Those of a rollout that nothing disturbs, and its end."""
    trace.unlink(missing_ok=True)
    code, said = site.rollout(*words, program=(str(KILLED), "none", str(trace)))
    assert trace.exists(), said
    return code, said, trace.read_text().splitlines()


def killed(site, trace, moment, *words):
    code, said = site.rollout(*words, program=(str(KILLED), moment, str(trace)))
    assert code == -signal.SIGKILL, f"{moment} did not come: {said}"
    return said


WORDS = "model_version=two"


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_rollout_on_the_engine_promotes_and_asks_the_gate_at_each_share(site, tmp_path):
    code, said, _ = moments(site, tmp_path / "trace", WORDS)
    assert code == 0, said
    objects, overrides = settled(site)
    assert overrides == {"qwen3-stack:overrides": [WORDS]}
    assert not [name for name in objects if "canary" in name]
    assert version_of(objects) == "two"
    asked = (site.folder / "asked").read_text().splitlines()
    assert len(asked) == 2
    assert all("api_key_env=QWEN3_GATE_API_KEY" in line and KEY not in line for line in asked)
    assert KEY not in said


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "moment",
    [
        "within creation#1",
        "within gate#1",
        "within up#3",
        *(
            pytest.param(moment, marks=pytest.mark.slow)
            for moment in ("before note#1", "within up#4", "before forget#1")
        ),
    ],
)
def test_a_rollout_that_was_killed_goes_on_to_the_same_end(site, tmp_path, moment):
    killed(site, tmp_path / "trace", moment, WORDS)

    code, said = site.rollout("resume")

    assert code == 0, said
    assert "Traceback" not in said
    assert promoted(settled(site))


def version_of(objects):
    server = objects["apps_v1-deployment-qwen3-qwen3-inference.yaml"]
    return server["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/version"]


def promoted(end):
    objects, overrides = end
    return (version_of(objects), overrides) == ("two", {"qwen3-stack:overrides": [WORDS]})


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verdicts", [{}, {"both": 1}], ids=["promoted", "taken back"])
def test_a_rollout_that_was_killed_at_any_moment_goes_on_to_the_same_end(quick_site, tmp_path, verdicts):
    site = quick_site
    (site.folder / "verdicts").write_text(json.dumps(verdicts))
    trace, before = tmp_path / "trace", site.objects()
    code, said, every = moments(site, trace, WORDS)
    assert code == verdicts.get("both", 0), said
    end = settled(site)
    assert (end[0] == before) == bool(code)
    print(f"{len(every)} moments")
    wrong = []

    for moment in every:
        if site.objects() != before:
            site.stack.remove_config("overrides")
            site.up()
        killed(site, trace, moment, WORDS)
        again, said = site.rollout("resume")
        ended_well = "Traceback" not in said
        if "no rollout is under way" in said:  # before its first word was written, or after the last
            again, ended_well = code, ended_well and settled(site)[0] in (before, end[0])
        else:
            ended_well = ended_well and settled(site) == end
        print(f"{moment:<16} exit code {again}, {'the same end' if ended_well else 'ANOTHER END'}", flush=True)
        if (again, ended_well) != (code, True):
            wrong.append(moment)

    assert wrong == []


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_an_engine_that_outlives_its_rollout_is_waited_for(site, tmp_path):
    killed(site, tmp_path / "trace", "alone:within up#1", WORDS)

    code, said = site.rollout("resume")

    assert code == 0, said
    assert promoted(settled(site))


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_what_was_killed_can_be_taken_back(site, tmp_path):
    before = site.objects()
    killed(site, tmp_path / "trace", "within up#3", WORDS)

    code, said = site.rollout("rollback")

    assert code == 0, said
    assert settled(site)[0] == before


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_state_whose_attributes_a_kill_left_empty_is_read_again(quick_site):
    """As seen in one of some fifty kills: zero bytes beside a whole state."""
    [state] = quick_site.folder.parent.glob("state/.pulumi/stacks/*/live.json")
    state.with_name("live.json.attrs").write_bytes(b"")

    code, said = quick_site.rollout("resume")

    assert (code, "no rollout is under way" in said) == (2, True), said
    assert "removing the empty" in said


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_two_at_once_are_refused_in_one_line(site):
    with site.begin(WORDS) as first:
        wait_for(lambda: site.setting("rollout"))
        code, said = site.rollout("model_version=three")
        assert (code, "another rollout of this stack is at work here" in said) == (2, True), said
        first.communicate()
    assert first.returncode == 0


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_another_machine_is_refused_while_a_rollout_lasts_there(site, tmp_path):
    """It has the state of the stack, and neither this folder nor its configuration."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(site.folder, elsewhere, symlinks=True, ignore=shutil.ignore_patterns("runs"))
    with site.begin(WORDS) as first:
        wait_for(site.lease.exists)
        code, said = site.rollout("model_version=three", folder=elsewhere)
        first.communicate()
    assert first.returncode == 0
    assert code == 2, said
    assert "is at work" in said.splitlines()[-1]
    assert promoted(settled(site))


def wait_for(found, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.2)
