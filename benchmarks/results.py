"""A results folder: ``manifest.json``, ``requests.jsonl`` (the journal), ``requests.parquet``, ``samples.parquet``,
``summary.json``, ``report.html``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.errors import ResultsError
from benchmarks.records import COLUMNS

RESULTS_VERSION = 2

_TYPES = {
    **dict.fromkeys(("run", "pair", "number", "user", "events", "bytes"), "int64"),
    **dict.fromkeys(("status", "prompt_tokens", "output_tokens", "output_characters"), "Int64"),
    **dict.fromkeys(("scheduled_s", "sent_s", "connected_s", "first_byte_s", "first_token_s"), "float64"),
    **dict.fromkeys(("first_content_s", "tokens_first_event"), "float64"),
    **dict.fromkeys(("last_token_s", "end_s", "wall_start", "confidence"), "float64"),
    **dict.fromkeys(("arm", "phase", "call", "error", "error_detail", "finish_reason"), "string"),
    **dict.fromkeys(("category", "label", "output_sha256", "output_text", "token_source"), "string"),
    "needs_review": "boolean",
    "event_times_s": "object",
}


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a frame with every column of a record, typed, also when there are no rows."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(_TYPES)


def read_journal(path: Path) -> tuple[pd.DataFrame, bool]:
    """The records in ``path`` and whether it is whole; what stands before a break is kept.

    Raises:
        ResultsError: The journal cannot be read.
    """
    rows: list[dict[str, Any]] = []
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror or error}") from error
    for line in data.splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if not isinstance(row, dict):
            return frame(rows), False
        rows.append(row)
    return frame(rows), True


def load(folder: Path) -> pd.DataFrame:
    """The records of a results folder, with :func:`derive`'s columns.

    Raises:
        ResultsError: Not a results folder, or one of another version.
    """
    read_manifest(folder)
    try:
        return derive(pd.read_parquet(folder / "requests.parquet"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot read {folder / 'requests.parquet'}: {error}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """``manifest.json`` of a results folder.

    Raises:
        ResultsError: Not a results folder, or one of another version.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{folder} is not a results folder: its manifest.json cannot be read") from error
    version = manifest.get("results_version")
    if version != RESULTS_VERSION:
        raise ResultsError(f"{folder} has results of version {version}; this program reads {RESULTS_VERSION}")
    return manifest


def measured_records(records: pd.DataFrame, set_aside: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The requests that count: no warm-up, and none of the runs that were set aside."""
    return records[(records["phase"] == "measure") & ~records["run"].isin([run["run"] for run in set_aside])]


def derive(records: pd.DataFrame) -> pd.DataFrame:
    """``records`` with what follows from the times, in seconds; NaN for requests that failed.

    ``tpot_s`` divides the time after the first token by the tokens that arrived in it, ``N - n_first``. Where
    the server does not count per event, ``n_first`` is the mean of tokens per event: with four tokens per event
    ``N - 1`` would be 4.8 % low (64 tokens).
    """
    found = records.copy()
    good = found["error"].isna()
    found["ok"] = good
    found["late_s"] = found["sent_s"] - found["scheduled_s"]
    found["latency_s"] = (found["end_s"] - found["sent_s"]).where(good)
    found["latency_scheduled_s"] = (found["end_s"] - found["scheduled_s"]).where(good)
    found["ttft_s"] = (found["first_token_s"] - found["sent_s"]).where(good)
    found["ttft_scheduled_s"] = (found["first_token_s"] - found["scheduled_s"]).where(good)
    tokens = found["output_tokens"].astype("Float64").astype("float64")
    events = found["events"].where(found["events"] > 0).astype("float64")
    first = found["tokens_first_event"].fillna(tokens / events)
    after = (tokens - first).where(lambda count: count > 0)
    found["tpot_s"] = ((found["last_token_s"] - found["first_token_s"]) / after).where(good)
    return found
