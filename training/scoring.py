"""Load what a run left in ``best`` and score calls with it, as the server would.

Shapes: N calls, K labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_server import classification
from model_server.classification import ClassificationSettings
from model_server.errors import ConfigurationError
from training.export import ADAPTER
from training.label_tokens import score


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, ClassificationSettings]:
    """Model (an adapter is merged into its base), tokeniser and settings.

    Raises:
        ConfigurationError: This is not the ``best`` of a run.
    """
    settings = classification.load_settings(folder)
    if settings is None:
        raise ConfigurationError(f"there is no {classification.FILE_NAME} in {folder}: give the best of a finished run")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if (folder / ADAPTER).is_file():
        from peft import PeftModel

        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval(), tokenizer, settings


def label_logprobs(model: Any, tokenizer: Any, settings: ClassificationSettings, texts: Sequence[str]) -> np.ndarray:
    """Log-probabilities of the labels over the vocabulary for raw calls, (N, K)."""

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return found

    prefix = ids(settings.prompt_prefix)
    rows = []
    for text in texts:
        prepared = classification.prepare_call(text, settings, lambda part: len(ids(part)))
        rows.append(ids(classification.prompt_text(prepared, settings))[len(prefix) :])
    label_ids = torch.tensor(list(settings.label_ids.values()))
    scores: np.ndarray = score(model, prefix, rows, label_ids, tokenizer.pad_token_id).numpy()
    return scores
