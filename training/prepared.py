"""A prepared folder: calls in parts, as ``training.data`` leaves them, and what proves that they are unchanged.

``<part>.parquet`` holds the fields of :class:`~training.records.TrainingData` (metadata as JSON text), cleaned and
masked; ``manifest.json``, written last, the sha256 of every file, of the sources, and all settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from training.durable_files import sha256, to_disk
from training.errors import DataError
from training.records import TrainingData

MANIFEST = "manifest.json"
SCHEMA = pyarrow.schema(
    [
        pyarrow.field("conversation_id", pyarrow.string(), nullable=False),
        pyarrow.field("input_text", pyarrow.string(), nullable=False),
        pyarrow.field("complaint_category", pyarrow.string(), nullable=False),
        pyarrow.field("confidence_score", pyarrow.float64(), nullable=False),
        pyarrow.field("metadata", pyarrow.string(), nullable=False),
    ]
)


def write(folder: Path, parts: Mapping[str, Sequence[TrainingData]]) -> None:
    """A folder of calls that need no preparation: they are generated, and their parts are known."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, calls in parts.items():
        rows = [call.model_dump() | {"metadata": json.dumps(call.metadata, ensure_ascii=False)} for call in calls]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), folder / f"{part}.parquet")
    write_manifest(folder, {"calls": {part: len(calls) for part, calls in parts.items()}})


def write_manifest(folder: Path, more: Mapping[str, Any]) -> None:
    """Bring all files of the folder to the disk, then ``manifest.json`` with their hashes, whole or not at all."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    hashes = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files}
    manifest = {"kind": "prepared calls", "files": hashes, **more}
    unfinished = folder / f"{MANIFEST}.unfinished"
    unfinished.write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    for path in (*files, unfinished):
        to_disk(path)
    unfinished.rename(folder / MANIFEST)
    to_disk(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the folder holds.

    Raises:
        DataError: There is none, or it cannot be read: the folder was not finished, or is another kind of folder.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{folder} is not a prepared folder ({path}: {error.strerror}): make one with "
            "`python -m training.data config.yml`"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): prepare the folder again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DataError(f"{path} is no manifest of prepared calls: prepare the folder again")
    return manifest


def load(folder: Path, part: str) -> list[TrainingData]:
    """The calls of one part, in the order of the file.

    Raises:
        DataError: There is no such part, or its file is not the one that was prepared.
    """
    files = read_manifest(folder)["files"]
    name = f"{part}.parquet"
    if name not in files:
        parts = ", ".join(sorted(file.removesuffix(".parquet") for file in files if file.endswith(".parquet")))
        raise DataError(f"{folder} has no part {part!r}, it has {parts}")
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path} is missing: prepare the folder again")
    if (found := sha256(path)) != files[name]["sha256"]:
        raise DataError(
            f"{path} was altered: its sha256 is {found[:12]}..., the manifest says {files[name]['sha256'][:12]}...: "
            "prepare the folder again"
        )
    with pyarrow.parquet.ParquetFile(path) as file:
        return [
            TrainingData(**{**row, "metadata": json.loads(row["metadata"])})
            for batch in file.iter_batches(batch_size=5000)
            for row in batch.to_pylist()
        ]
