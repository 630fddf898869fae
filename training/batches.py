"""Which calls a step sees, and in what form: functions of seed and step alone.

Nothing here keeps state, so a resumed run goes on exactly, and any number of processes sees the same batches.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import Field
from transformers import PreTrainedTokenizerBase

import runconfig
from model_server.classification import ClassificationSettings, clean_call, prepare_call, prompt_text
from training.errors import UnusableDataError
from training.records import TrainingData

Encode = Callable[[str], list[int]]

UNTOLD = -100
"""Mark of a token that no rationale holds; torch leaves it out of a cross-entropy."""


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Calls as token ids.

    Attributes:
        rows: What follows the common prefix of the prompt; the next token is the label.
        truth: Place of the right label.
        rationales: For each token of each row the place of the category that it tells of, or UNTOLD; empty where
            nobody asked for them.
    """

    rows: list[list[int]]
    truth: list[int]
    conversation_ids: list[str]
    rationales: list[list[int]]


class Pair(runconfig.RunConfig):
    """A line of a replay file."""

    prompt: str = Field(min_length=1)
    """As the chat template renders it, up to where the answer begins."""
    answer: str = Field(min_length=1)
    """With the token that ends it."""
    weight: float = Field(default=1, gt=0)
    """How often it is drawn, relative to the others."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Prompts and answers as token ids, and the running sum of their weights."""

    prompts: list[list[int]]
    answers: list[list[int]]
    cumulative_weights: list[float]


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Text to token ids, none added."""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    return encode


def rows_of(
    calls: Sequence[TrainingData],
    settings: ClassificationSettings,
    tokenizer: PreTrainedTokenizerBase,
    part: str,
    *,
    rationales: bool = False,
) -> LabelledRows:
    """Prepare calls as the server does.

    Args:
        rationales: Mark what ``metadata["rationales"]`` of a call (category -> passages of its text, as said) tells of.

    Raises:
        UnusableDataError: There are none, a category is unknown, or the tokeniser reads over the end of the prefix.
    """
    if not calls:
        raise UnusableDataError(f"the {part} part has no calls: prepare data with some in each part")
    names, encode = list(settings.labels.values()), encoder(tokenizer)
    prefix = encode(settings.prompt_prefix)
    rows, marks = [], []
    for call in calls:
        if call.complaint_category not in names:
            raise UnusableDataError(
                f"{part} call {call.conversation_id} has category {call.complaint_category!r}; known are "
                f"{', '.join(names)}: map the site's categories when preparing the data"
            )
        prepared = prepare_call(call.input_text, settings, lambda text: len(encode(text)))
        prompt = prompt_text(prepared, settings)
        found = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=rationales)
        ids = found["input_ids"]
        if ids[: len(prefix)] != prefix:
            raise UnusableDataError(
                f"{part} call {call.conversation_id}: the tokeniser joins the end of the prompt's prefix with the "
                f"call {prepared[:20]!r}, so the prefix cannot be shared: report this tokeniser"
            )
        rows.append(ids[len(prefix) :])
        if rationales:
            ends = [end for _, end in found["offset_mapping"][len(prefix) :]]
            marks.append(_marked(call, prompt, len(settings.prompt_prefix), ends, names))
    truth = [names.index(call.complaint_category) for call in calls]
    return LabelledRows(rows, truth, [call.conversation_id for call in calls], marks)


def _marked(call: TrainingData, prompt: str, begin: int, ends: Sequence[int], names: Sequence[str]) -> list[int]:
    """What each token tells of, given where it ends in the prompt, whose call begins at ``begin``.

    A token may begin before a passage; it never ends after it. A passage that masking or cutting changed is not found,
    and not marked.
    """
    marks = [UNTOLD] * len(ends)
    for category, passages in call.metadata.get("rationales", {}).items():
        if category not in names:
            raise UnusableDataError(
                f"call {call.conversation_id} has a rationale for {category!r}; known are {', '.join(names)}"
            )
        for passage in map(clean_call, passages):
            start = prompt.find(passage, begin) if passage else -1
            if start >= 0:
                told, stop = names.index(category), start + len(passage)
                marks = [told if start < end <= stop else old for end, old in zip(ends, marks, strict=True)]
    return marks


def check_classes(train: LabelledRows, names: Sequence[str]) -> None:
    """Refuse data that a classifier cannot be learned from.

    Raises:
        UnusableDataError: One category only, or fewer calls than categories.
    """
    present = set(train.truth)
    if len(present) == 1:
        raise UnusableDataError(
            f"all {len(train.truth)} training calls are {names[train.truth[0]]!r}: a classifier needs at least two "
            "categories"
        )
    if len(train.truth) < len(names):
        raise UnusableDataError(
            f"there are {len(train.truth)} training calls for {len(names)} categories: label at least one call of each"
        )


def read_pairs(path: Path) -> list[Pair]:
    """Read a replay file, JSON lines of :class:`Pair`.

    Raises:
        ConfigError: It cannot be read, or a line is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise runconfig.ConfigError(f"cannot read {path}: {error}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        try:
            raw = json.loads(line)
        except ValueError as error:
            raise runconfig.ConfigError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise runconfig.ConfigError(f"{path}:{number} must hold an object with prompt and answer")
        pairs.append(runconfig.validate(Pair, raw, f"{path}:{number}"))
    if not pairs:
        raise runconfig.ConfigError(f"{path} is empty: give prompts and answers, or leave replay out")
    return pairs


def encode_pairs(pairs: Sequence[Pair], encode: Encode) -> Pairs:
    return Pairs(
        [encode(pair.prompt) for pair in pairs],
        [encode(pair.answer) for pair in pairs],
        list(itertools.accumulate(pair.weight for pair in pairs)),
    )


BUCKET = 8
"""Tokens by which the rows of a step differ, mostly: filling all up to the longest row would double a step."""


class Order:
    """Which calls a step sees: in every epoch each call once, rows of about one length together.

    Attributes:
        lengths: Of the rows, tokens.
    """

    def __init__(self, seed: int, batch: int, lengths: Sequence[int]) -> None:
        self.seed, self.batch, self.lengths = seed, batch, lengths
        self._epoch = lru_cache(maxsize=2)(self._drawn)

    def calls(self, step: int) -> list[int]:
        """Places of the calls of a step, from 0."""
        count = len(self.lengths)
        places = range(step * self.batch, (step + 1) * self.batch)
        return [self._epoch(place // count)[place % count] for place in places]

    def _drawn(self, epoch: int) -> list[int]:
        count, batch = len(self.lengths), self.batch
        rng = random.Random(f"{self.seed}:order:{epoch}")
        shuffled = rng.sample(range(count), count)
        # The step that the epoch before left unfinished gets any calls; steps of one length begin after it.
        begun = min(count, -epoch * count % batch)
        rest = sorted(shuffled[begun:], key=lambda at: self.lengths[at] // BUCKET)
        steps = [rest[at : at + batch] for at in range(0, len(rest), batch)]
        whole = [step for step in steps if len(step) == batch]
        mixed = [*rng.sample(whole, len(whole)), *steps[len(whole) :]]
        return [*shuffled[:begun], *itertools.chain.from_iterable(mixed)]

    def sha256(self, steps: int, conversation_ids: Sequence[str]) -> str:
        """Hash of the conversation ids in the order in which a run sees them."""
        digest = hashlib.sha256()
        for step in range(steps):
            for place in self.calls(step):
                digest.update(conversation_ids[place].encode() + b"\n")
        return digest.hexdigest()


def pairs_of_step(seed: int, step: int, number: int, pairs: Pairs) -> list[int]:
    """Places of the replayed pairs of a step, drawn by their weights."""
    rng = random.Random(f"{seed}:replay:{step}")
    return rng.choices(range(len(pairs.prompts)), cum_weights=pairs.cumulative_weights, k=number)


def seed_of(*parts: int) -> int:
    """A seed for what is drawn at one place of a run, for example (seed, step, micro-batch); 63 bits."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def corrupt(row: list[int], share: float, keep: int, rng: random.Random, vocabulary: int) -> list[int]:
    """The row with a share of its tokens replaced by any others; the last ``keep`` stay."""
    body = len(row) - keep
    return [rng.randrange(vocabulary) if at < body and rng.random() < share else token for at, token in enumerate(row)]
