"""Every scenario of the repository can be read, and what cannot run is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import benchmarks
from benchmarks.config import Scenario
from runconfig import ConfigError, load, validate

CONFIGS = Path(benchmarks.__file__).parent / "configs"
NOT_SCENARIOS = {"figures.yml"}
SCENARIOS = sorted(path for path in CONFIGS.rglob("*.yml") if path.name not in NOT_SCENARIOS)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.name)
def test_every_scenario_is_valid_and_says_how_to_run_it(path):
    scenario = load(Scenario, path)

    head = path.read_text(encoding="utf-8").splitlines()[0]
    assert head.startswith("# ")
    assert f"benchmarks/configs/{path.name}" in head or path.name == "demo.yml"
    assert scenario.duration_s or scenario.requests


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"users": None}, "set exactly one of users"),
        ({"rate_per_s": 5}, "set exactly one of users"),
        ({"requests": None}, "a run must end"),
        ({"texts": []}, "set exactly one of calls"),
        ({"calls": "x.jsonl"}, "set exactly one of calls"),
        ({"usres": 5}, "did you mean 'users'"),
        ({"verdict": {"primry": "qps"}}, "verdict.primry"),
        ({"verdict": {"primary": "speed"}}, "verdict.primary"),
        ({"pairs": 1}, "pairs"),
        ({"name": "../up"}, "name"),
    ],
)
def test_a_scenario_that_cannot_run_is_refused_with_its_key(change, said):
    raw = {"texts": ["x"], "users": 1, "requests": 1} | change

    with pytest.raises(ConfigError, match="cannot be used") as caught:
        validate(Scenario, raw, "test.yml")

    assert said in str(caught.value)


def test_a_resolved_scenario_can_be_read_again():
    """The generator gets it as JSON, and the manifest holds it."""
    for path in SCENARIOS:
        scenario = load(Scenario, path)
        assert Scenario.model_validate_json(scenario.model_dump_json()) == scenario
        assert Scenario.model_validate(yaml.safe_load(scenario.model_dump_json())) == scenario
