"""Results for people to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Lines of aligned columns, the first one their names; nothing of nothing."""
    if not rows:
        return []
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]


class FilterModule:
    """As Ansible finds filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"table": table}
