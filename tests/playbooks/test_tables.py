"""Results for people to read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location(
    "tables", Path(__file__).parents[2] / "playbooks/filter_plugins/tables.py"
)
assert spec is not None
assert spec.loader is not None
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


def test_columns_are_as_wide_as_their_widest_word():
    rows = [{"instance": "web1-1", "in flight": 12}, {"instance": "a-long-name-1", "in flight": 0}]
    assert tables.table(rows) == ["instance       in flight", "web1-1         12", "a-long-name-1  0"]


def test_nothing_is_a_table_of_nothing():
    assert tables.table([]) == []
