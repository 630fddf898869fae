"""What a run reads before it loads a single weight: calls, tokeniser, settings of the classifier, replay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from model_server.classification import ClassificationSettings, settings_for
from model_server.errors import ConfigurationError, ModelLoadError
from model_server.model_source import ModelFiles
from training import base_model, batches, prepared
from training.batches import LabelledRows, Order, Pairs
from training.errors import UnusableDataError
from training.records import TrainingData
from training.settings import FineTuningSettings


@dataclass(frozen=True, slots=True)
class Inputs:
    """
    Attributes:
        prefix: Token ids before every call.
        suffix_tokens: Tokens between call and label.
        class_weights: By label, None where all count alike.
        order: Which calls each step sees.
        steps: Updates of the whole run.
    """

    files: ModelFiles
    path: Path
    tokenizer: PreTrainedTokenizerBase
    settings: ClassificationSettings
    train: LabelledRows
    validation: LabelledRows
    pairs: Pairs | None
    prefix: list[int]
    suffix_tokens: int
    class_weights: list[float] | None
    order: Order
    steps: int

    @property
    def longest_row(self) -> int:
        """Tokens of the longest training row after the prefix."""
        return max(map(len, self.train.rows))

    @property
    def longest_pair(self) -> int:
        """Tokens of the longest replayed prompt with its answer; 0 without replay."""
        if self.pairs is None:
            return 0
        return max(len(p) + len(a) for p, a in zip(self.pairs.prompts, self.pairs.answers, strict=True))


def read(config: FineTuningSettings) -> Inputs:
    """
    Raises:
        ModelLoadError: The base cannot be used.
        UnusableDataError: The calls cannot.
        ConfigError: The replay file cannot.
    """
    files = base_model.find(config.base_model)
    assert files.path is not None
    assert files.shape is not None
    tokenizer = base_model.load_tokenizer(files.path)
    encode = batches.encoder(tokenizer)
    try:
        settings = settings_for(encode, temperature=1.0, review_threshold=0.0, max_call_tokens=config.max_call_tokens)
    except ValueError as error:
        raise ModelLoadError(config.base_model, f"its tokeniser cannot name the categories: {error}") from error
    prefix = encode(settings.prompt_prefix)
    told = config.rationale_weight > 0
    train = batches.rows_of(_calls(config.data, "train"), settings, tokenizer, "train", rationales=told)
    if told and all(mark == batches.UNTOLD for marks in train.rationales for mark in marks):
        raise UnusableDataError(
            f"rationale_weight is {config.rationale_weight}, but no training call has metadata.rationales with a "
            "passage that is found in its text: leave rationale_weight out, or mark passages"
        )
    batches.check_classes(train, list(settings.labels.values()))
    class_weights = _class_weights(config, train, list(settings.labels.values()))
    longest = len(prefix) + max(map(len, train.rows))
    if longest > files.shape.context:
        raise ConfigurationError(
            f"a prompt has {longest} tokens, but {config.base_model} was made for {files.shape.context}: lower "
            "max_call_tokens"
        )
    return Inputs(
        files=files,
        path=files.path,
        tokenizer=tokenizer,
        settings=settings.model_copy(update={"log_class_weights": _logarithms(class_weights, settings)}),
        train=train,
        validation=batches.rows_of(_calls(config.data, "validation"), settings, tokenizer, "validation"),
        pairs=None if config.replay is None else batches.encode_pairs(batches.read_pairs(config.replay.file), encode),
        prefix=prefix,
        suffix_tokens=len(encode(settings.prompt_suffix)),
        class_weights=class_weights,
        order=Order(config.seed, config.batch, [len(row) for row in train.rows]),
        steps=config.total_steps(len(train.rows)),
    )


def _calls(folder: Path, part: str) -> list[TrainingData]:
    if not (folder / f"{part}.parquet").is_file():
        raise UnusableDataError(f"there is no {part}.parquet in {folder}: make it with python -m training.data")
    return prepared.load(folder, part)


def _class_weights(config: FineTuningSettings, train: LabelledRows, names: list[str]) -> list[float] | None:
    if config.class_weights is None:
        return None
    if config.class_weights == "balanced":
        counts = torch.bincount(torch.tensor(train.truth), minlength=len(names)).tolist()
        present = sum(count > 0 for count in counts)
        return [len(train.truth) / (present * count) if count else 0.0 for count in counts]
    if set(config.class_weights) != set(names):
        raise UnusableDataError(
            f"class_weights must give each of the categories a weight; missing or unknown: "
            f"{', '.join(sorted(set(config.class_weights) ^ set(names)))}"
        )
    return [config.class_weights[name] for name in names]


def _logarithms(class_weights: list[float] | None, settings: ClassificationSettings) -> dict[str, float]:
    """By letter; a category that counted nothing was not learned, and no factor brings it back."""
    weights = zip(settings.labels, class_weights or [], strict=class_weights is not None)
    return {letter: math.log(weight) for letter, weight in weights if weight > 0}
