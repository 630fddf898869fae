"""Labelled calls of a prepared folder: ``train.parquet``, ``validation.parquet``, ``test.parquet``."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet

from training.records import TrainingData


def load(folder: Path, part: str) -> list[TrainingData]:
    table = pyarrow.parquet.read_table(folder / f"{part}.parquet")
    return [TrainingData(**{**row, "metadata": json.loads(row["metadata"])}) for row in table.to_pylist()]
