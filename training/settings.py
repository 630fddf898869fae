"""Settings of one fine-tuning run: a strict, frozen YAML file, kept resolved in the run directory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

import runconfig

FREE_TO_CHANGE = frozenset({"run_dir", "resume", "keep_checkpoints", "device", "threads"})
"""Keys that a resumed run may have otherwise than the one it goes on with: they do not change what is learned."""


class Lora(runconfig.RunConfig):
    """Shape of the adapter (Hu et al., 2021, arXiv 2106.09685); the update is scaled by alpha / rank."""

    rank: int = Field(default=16, ge=1, le=512)
    alpha: int = Field(default=32, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)


class Replay(runconfig.RunConfig):
    """Prompts and answers learned beside the calls, so that the model still does (or learns) something else."""

    file: Path
    """JSON lines with prompt, answer and, optionally, weight (how often it is drawn)."""
    pairs_per_step: int = Field(default=6, ge=1)
    weight: float = Field(default=0.3, gt=0)
    """Of their loss, beside that of the calls."""


class FineTuningSettings(runconfig.RunConfig):
    """One run."""

    base_model: str
    """Directory, hub id, or hub id @ commit, of a Qwen3."""
    data: Path
    """Prepared folder: train.parquet, validation.parquet."""
    run_dir: Path
    method: Literal["lora", "qlora", "full"] = "lora"
    lora: Lora = Lora()
    """Not used by method full."""
    adapter: Path | None = None
    """Adapter to go on from, best/ of an earlier run on the same base; a new one when empty."""
    seed: int = Field(default=0, ge=0)
    steps: int | None = Field(default=None, ge=1)
    """Updates of the weights; give this or epochs."""
    epochs: float | None = Field(default=None, gt=0)
    """Times that each training call is seen."""
    batch: int = Field(default=16, ge=1)
    """Calls per update, over all processes."""
    micro_batch: int = Field(default=4, ge=1)
    """Calls per forward pass; lower it when memory is short. What is learned stays the same but for rounding."""
    optimiser: Literal["adamw", "muon"] = "adamw"
    """muon moves matrices inside the layers by orthogonalised momentum (Jordan et al., 2024), the rest by AdamW; for
    method full (model of 1 M parameters, macro-F1 after 100 steps: .58, with adamw .32)."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """About ten times that of method full is right for an adapter."""
    learning_rate_floor: float = Field(default=0.02, ge=0, le=1)
    """Share of the learning rate that the cosine ends at."""
    warmup_steps: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    """Longest gradient; a longer one is shortened to it."""
    mass_weight: float = Field(default=0.1, ge=0)
    """Of -log(probability of any label): 1 is cross-entropy over the vocabulary, and learns far slower."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """Weight of a call by its category, or n / (K * n of the category): rare ones are learned better. The model then
    overstates them, so what it is served with takes the weights out again (``log_class_weights`` in
    ``best/classification.json``); delete that key before the evaluation to have rare categories chosen more often than
    they are right."""
    focal_gamma: float = Field(default=0.0, ge=0, le=10)
    """Calls that are right already count less the higher it is; 0 is plain cross-entropy."""
    corruption: float = Field(default=0.0, ge=0, lt=1)
    """Share of a training call's tokens replaced by random ones at the start; it falls to 0 at the end. So no
    single word decides, and which of two matters is open, which hangs on one word, is still learned (model of 1 M
    parameters, 1,000 steps, accuracy on unseen wordings / ordinal calls: .22 / .89 without, .66 / .71 with a
    constant 8 %)."""
    replay: Replay | None = None
    rationale_weight: float = Field(default=0.0, ge=0)
    """Of a second loss, over the tokens of the passages that metadata.rationales marks: which category does each tell
    of? A linear layer reads it off below the last layer and is not kept. The last layer then has only to find the open
    matter among several (model of 1 M parameters, macro-F1 .48 after 150 steps of 32, without .50 after 300 of 48)."""
    max_call_tokens: int = Field(default=512, ge=8)
    """A longer call keeps its head and its tail."""
    evaluate_every: int = Field(default=100, ge=1)
    """Steps between evaluations on the validation calls; each is followed by a checkpoint."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations without a better macro-F1 after which the run ends; never when empty."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between further checkpoints; none when empty."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest ones; that of the best evaluation is kept besides."""
    resume: Literal["auto", "never"] = "auto"
    """auto goes on from the newest undamaged checkpoint in run_dir; never wants an empty run_dir."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the base; auto is bfloat16, and float32 for method full, whose steps vanish in 8 bits. A GPU multiplies
    matrices in bfloat16 in any case."""
    threads: int = Field(default=0, ge=0)
    """Of each process on a CPU; 0 is all that are free to it. The last bit of a sum depends on their number."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> FineTuningSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} must be a multiple of micro_batch {self.micro_batch}")
        if self.adapter is not None and self.method == "full":
            raise ValueError("method full trains the base itself: leave adapter out, or use method lora")
        if self.optimiser == "muon" and self.method != "full":
            raise ValueError(f"optimiser muon is for method full: use adamw for {self.method}")
        if isinstance(self.class_weights, dict) and any(weight < 0 for weight in self.class_weights.values()):
            raise ValueError("class_weights must not be negative")
        return self

    def total_steps(self, calls: int) -> int:
        """
        Args:
            calls: Of the training part.
        """
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * calls / self.batch))
