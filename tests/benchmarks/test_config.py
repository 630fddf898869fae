"""Every scenario of the repository can be read, and what cannot run is refused."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

import benchmarks
from benchmarks.__main__ import VERBS
from benchmarks.config import Scenario
from runconfig import ConfigError, load, validate

CONFIGS = Path(benchmarks.__file__).parent / "configs"
NOT_SCENARIOS = {"figures.yml"}
SCENARIOS = sorted(path for path in CONFIGS.rglob("*.yml") if path.name not in NOT_SCENARIOS)


def model_of(path):
    """The scenario of the verb that the file's first line names; it may have keys of its own."""
    head = path.read_text(encoding="utf-8").splitlines()[0]
    verb = head.partition("python -m benchmarks ")[2].partition(" ")[0] or "compare"
    function = getattr(importlib.import_module(VERBS[verb][0]), verb, None)
    return get_type_hints(function).get("scenario", Scenario) if function else Scenario


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.name)
def test_every_scenario_is_valid_and_says_how_to_run_it(path):
    scenario = load(model_of(path), path)

    head = path.read_text(encoding="utf-8").splitlines()[0]
    assert head.startswith("# ")
    assert f"benchmarks/configs/{path.name}" in head or path.stem in {"demo", "smoke", "optimisations", "tune"}
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
        model = model_of(path)
        scenario = load(model, path)
        assert model.model_validate_json(scenario.model_dump_json()) == scenario
        assert model.model_validate(yaml.safe_load(scenario.model_dump_json())) == scenario
