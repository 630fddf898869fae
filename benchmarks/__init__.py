"""Measure a server, compare two, decide. ``benchmarks.load(folder)`` gives the requests of a results folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load"]


def load(run: Path | str, columns: Collection[str] | None = None, *, event_times: bool = False) -> pd.DataFrame:
    """One row per request of the results folder ``run``, checked, with derived columns (benchmarks/README.md).

    Raises:
        ResultsError: Not a results folder, one of another version, or one whose records are not as they should be.
    """
    from benchmarks.results import load as read  # pandas and pyarrow take most of a second to import

    return read(Path(run), columns, event_times=event_times)
