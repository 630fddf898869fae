"""Labelled calls of a prepared folder: ``train.parquet``, ``validation.parquet``, ``test.parquet`` and more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet

from training.records import TrainingData


def parts(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.parquet"))


def load(folder: Path, part: str) -> list[TrainingData]:
    table = pyarrow.parquet.read_table(folder / f"{part}.parquet")
    return [TrainingData(**{**row, "metadata": json.loads(row["metadata"])}) for row in table.to_pylist()]


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found
