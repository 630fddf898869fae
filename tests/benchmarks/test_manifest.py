"""Two folders may be compared when they did the same work, and only then."""

from __future__ import annotations

import json

import pytest

from benchmarks.calls import calls_of
from benchmarks.config import Scenario
from benchmarks.errors import UsageError
from benchmarks.manifest import require_same_workload, workload
from benchmarks.results import MANIFEST, MANIFEST_OF_RUNS, RESULTS_VERSION


def folder(path, **settings):
    path.mkdir()
    scenario = Scenario.model_validate({"texts": ["a", "b"], "users": 2, "requests": 10} | settings)
    work = workload(scenario, calls_of(scenario))
    manifest = {key: kind() for key, kind in (MANIFEST | MANIFEST_OF_RUNS).items()}
    manifest |= {"results_version": RESULTS_VERSION, "workload": work}
    (path / "manifest.json").write_text(json.dumps(manifest, default=str), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://x"},
        {"url": "http://x", "pid": 3},
        {"verdict": {"margin": 0.2}},
        {"out": "there"},
        {"lang": "zh"},
        {"name": "other"},
        {"workers": 2},
        {"objective": {"min_qps": 3}},
    ],
    ids=str,
)
def test_where_it_went_and_what_was_concluded_is_not_the_work(tmp_path, settings):
    require_same_workload(folder(tmp_path / "a"), folder(tmp_path / "b", **settings))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"texts": ["a", "c"]}, "texts_sha256"),
        ({"dialect": "chat"}, "dialect"),
        ({"max_tokens": 7}, "max_tokens is 128 in a and 7 in b"),
        ({"temperature": 0.5}, "temperature"),
        ({"users": 3}, "users is 2 in a and 3 in b"),
        ({"users": None, "rate_per_s": 5}, "rate_per_s"),
        ({"seed": 9}, "seed"),
        ({"requests": 11}, "requests"),
    ],
    ids=str,
)
def test_other_work_is_refused_and_what_differs_is_named(tmp_path, settings, named):
    with pytest.raises(UsageError, match=named):
        require_same_workload(folder(tmp_path / "a"), folder(tmp_path / "b", **settings))


def test_labels_are_part_of_the_work(tmp_path):
    files = []
    for name, label in (("x.jsonl", "x"), ("y.jsonl", "y")):
        path = tmp_path / name
        path.write_text(json.dumps({"input_text": "t", "complaint_category": label}) + "\n", encoding="utf-8")
        files.append(path)
    a = folder(tmp_path / "a", texts=[], calls=files[0])
    b = folder(tmp_path / "b", texts=[], calls=files[1])

    with pytest.raises(UsageError, match="texts_sha256"):
        require_same_workload(a, b)


def test_a_trace_counts_by_what_is_in_it(tmp_path):
    row = json.dumps({"offset_s": 0.0}) + "\n"
    for name, text in (("one", row), ("same", row), ("other", row + row.replace("0.0", "1.0"))):
        (tmp_path / name).write_text(text, encoding="utf-8")
    made = {
        name: folder(
            tmp_path / f"{name}-r", users=None, requests=None, arrivals={"pattern": "trace", "trace": tmp_path / name}
        )
        for name in ("one", "same", "other")
    }

    require_same_workload(made["one"], made["same"])
    with pytest.raises(UsageError, match="arrivals"):
        require_same_workload(made["one"], made["other"])
