"""What a model scored on labelled calls, kept in one file, so that everything can be measured again without it.

Shapes: N calls, K labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_server.classification import LABELS
from model_server.errors import ConfigurationError
from training.records import TrainingData


@dataclass(frozen=True)
class Scored:
    """Calls of one part and what the model makes of them.

    Attributes:
        logprobs: Of the labels, (N, K), before the temperature; in the file also before class weights are taken out.
    """

    calls: Sequence[TrainingData]
    logprobs: np.ndarray

    @property
    def truth(self) -> np.ndarray:
        """Place of the right label, (N,)."""
        names = list(LABELS.values())
        return np.array([names.index(call.complaint_category) for call in self.calls])


def write_scores(parts: Mapping[str, Scored], path: Path) -> None:
    letters = list(LABELS)
    columns: dict[str, list[Any]] = {"part": [], "conversation_id": [], "truth": [], "metadata": [], "input_text": []}
    for name, scored in parts.items():
        columns["part"] += [name] * len(scored.calls)
        columns["conversation_id"] += [call.conversation_id for call in scored.calls]
        columns["truth"] += [call.complaint_category for call in scored.calls]
        columns["metadata"] += [json.dumps(call.metadata, ensure_ascii=False) for call in scored.calls]
        columns["input_text"] += [call.input_text for call in scored.calls]
    logprobs = np.concatenate([scored.logprobs for scored in parts.values()])
    table = pa.table({**columns, **{f"logprob_{letter}": logprobs[:, at] for at, letter in enumerate(letters)}})
    pq.write_table(table, path)


def read_scores(path: Path) -> dict[str, Scored]:
    """
    Raises:
        ConfigurationError: There are none.
    """
    if not path.exists():
        raise ConfigurationError(f"there is no {path}: evaluate without again=true first, which needs the model")
    table = pq.read_table(path)
    logprobs = np.column_stack([table[f"logprob_{letter}"].to_numpy() for letter in LABELS])
    rows = table.select(["part", "conversation_id", "truth", "metadata", "input_text"]).to_pylist()
    parts = np.array([row["part"] for row in rows])
    return {
        name: Scored(
            [
                TrainingData(
                    conversation_id=row["conversation_id"],
                    input_text=row["input_text"],
                    complaint_category=row["truth"],
                    confidence_score=1,
                    metadata=json.loads(row["metadata"]),
                )
                for row in rows
                if row["part"] == name
            ],
            logprobs[parts == name],
        )
        for name in dict.fromkeys(parts.tolist())
    }
