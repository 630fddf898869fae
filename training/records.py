"""What training reads and what it leaves behind, as the original design names the fields."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

import runconfig


class TrainingData(runconfig.RunConfig):
    """One labelled call."""

    conversation_id: str
    input_text: str
    complaint_category: str
    confidence_score: float = Field(ge=0, le=1)
    """How sure the labeller was; 1 for generated calls."""
    metadata: dict[str, Any]


class FineTuningResult(runconfig.RunConfig):
    """One finished run."""

    model_id: str
    base_model: str
    """Hub id or directory that the run began with."""
    training_config: dict[str, Any]
    evaluation_metrics: dict[str, Any]
    """Of the test calls; see training/evaluate.py."""
    model_path: str
    created_at: datetime
    """With its time zone."""
