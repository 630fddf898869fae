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

import runconfig
from model_server.classification import ClassificationSettings, prepare_call, prompt_text
from training.errors import UnusableDataError
from training.records import TrainingData

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Calls as token ids.

    Attributes:
        rows: What follows the common prefix of the prompt; the next token is the label.
        truth: Place of the right label.
    """

    rows: list[list[int]]
    truth: list[int]
    conversation_ids: list[str]


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


def rows_of(calls: Sequence[TrainingData], settings: ClassificationSettings, encode: Encode, part: str) -> LabelledRows:
    """Prepare calls as the server does.

    Raises:
        UnusableDataError: There are none, a category is unknown, or the tokeniser reads over the end of the prefix.
    """
    if not calls:
        raise UnusableDataError(f"the {part} part has no calls: prepare data with some in each part")
    names = list(settings.labels.values())
    prefix = encode(settings.prompt_prefix)
    rows = []
    for call in calls:
        if call.complaint_category not in names:
            raise UnusableDataError(
                f"{part} call {call.conversation_id} has category {call.complaint_category!r}; known are "
                f"{', '.join(names)}: map the site's categories when preparing the data"
            )
        prepared = prepare_call(call.input_text, settings, lambda text: len(encode(text)))
        ids = encode(prompt_text(prepared, settings))
        if ids[: len(prefix)] != prefix:
            raise UnusableDataError(
                f"{part} call {call.conversation_id}: the tokeniser joins the end of the prompt's prefix with the "
                f"call {prepared[:20]!r}, so the prefix cannot be shared: report this tokeniser"
            )
        rows.append(ids[len(prefix) :])
    return LabelledRows(rows, [names.index(c.complaint_category) for c in calls], [c.conversation_id for c in calls])


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


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, count: int) -> list[int]:
    return random.Random(f"{seed}:order:{epoch}").sample(range(count), count)


def calls_of_step(seed: int, step: int, batch: int, count: int) -> list[int]:
    """Places of the calls of a step among ``count``: every epoch in an order of its own, none left out."""
    places = range(step * batch, (step + 1) * batch)
    return [_epoch(seed, place // count, count)[place % count] for place in places]


def pairs_of_step(seed: int, step: int, number: int, pairs: Pairs) -> list[int]:
    """Places of the replayed pairs of a step, drawn by their weights."""
    rng = random.Random(f"{seed}:replay:{step}")
    return rng.choices(range(len(pairs.prompts)), cum_weights=pairs.cumulative_weights, k=number)


def order_sha256(seed: int, steps: int, batch: int, conversation_ids: Sequence[str]) -> str:
    """Hash of the conversation ids in the order in which a run sees them."""
    digest = hashlib.sha256()
    for step in range(steps):
        for place in calls_of_step(seed, step, batch, len(conversation_ids)):
            digest.update(conversation_ids[place].encode() + b"\n")
    return digest.hexdigest()


def seed_of(*parts: int) -> int:
    """A seed for what is drawn at one place of a run, for example (seed, step, micro-batch); 63 bits."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def corrupt(row: list[int], share: float, keep: int, rng: random.Random, vocabulary: int) -> list[int]:
    """The row with a share of its tokens replaced by any others; the last ``keep`` stay."""
    body = len(row) - keep
    return [rng.randrange(vocabulary) if at < body and rng.random() < share else token for at, token in enumerate(row)]
