"""The order of a rollout."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

FILE = Path(__file__).parents[2] / "playbooks/filter_plugins/waves.py"
spec = importlib.util.spec_from_file_location("waves", FILE)
assert spec is not None
assert spec.loader is not None
filters = importlib.util.module_from_spec(spec)
spec.loader.exec_module(filters)


def site(*sizes):
    return [
        {"name": f"{host}-{number}", "host": str(host)} for host, size in enumerate(sizes) for number in range(size)
    ]


@pytest.mark.parametrize(
    ("sizes", "batch", "expected"),
    [
        ([2], 1, [["0-0"], ["0-1"]]),
        ([2, 2], 1, [["0-0"], ["0-1"], ["1-0"], ["1-1"]]),
        ([2, 2, 1, 2], 2, [["0-0"], ["0-1"], ["1-0", "2-0"], ["1-1"], ["3-0"], ["3-1"]]),
        ([], 3, []),
    ],
)
def test_the_first_host_goes_one_by_one_and_the_others_a_batch_at_a_time(sizes, batch, expected):
    found = filters.waves(site(*sizes), batch)
    assert [[instance["name"] for instance in wave] for wave in found] == expected


@given(st.lists(st.integers(1, 4), min_size=1, max_size=7), st.integers(1, 4))
def test_each_goes_once_and_no_host_has_two_out(sizes, batch):
    found = filters.waves(site(*sizes), batch)
    assert sorted(each["name"] for wave in found for each in wave) == sorted(each["name"] for each in site(*sizes))
    for wave in found:
        assert len({each["host"] for each in wave}) == len(wave) <= batch


def test_those_differ_that_run_another_version_than_their_host_is_to_have():
    instances = site(2, 2)
    running = {"0-0": "new", "0-1": "old", "1-0": "new"}  # the last one does not answer
    found = filters.differing(instances, running, {"0": "old", "1": "old"})
    assert [each["name"] for each in found] == ["0-0", "1-0"]


def test_the_balancer_says_of_each_instance_which_state_it_is_in():
    lines = [
        'haproxy_server_status{proxy="model_servers",server="web1-1",state="DOWN"} 0',
        'haproxy_server_status{proxy="model_servers",server="web1-1",state="UP"} 1',
        'haproxy_server_status{proxy="others",server="web1-2",state="UP"} 1',
        'haproxy_server_status{proxy="model_servers",server="web1-2",state="DRAIN"} 1',
    ]
    assert filters.balancer_states("\n".join(lines)) == {"web1-1": "UP", "web1-2": "DRAIN"}
    assert filters.balancer_states("") == {}
