"""From raw calls to parts that can be trained on and believed: read, check, clean, mask, group, split.

    python -m training.data training/configs/data_calls.yml [key=value ...]

reads the ``sources`` (JSON lines, CSV, Parquet) with a site's own field and category names, and writes the folder
``out``: a Parquet file a part, ``report.json`` and ``report.md`` (what was dropped and why, class balance), and
``manifest.json`` (hashes of all files and of the sources, settings, versions). One row that cannot be used, an
unknown category or a call with two categories, and nothing is written: all problems are told at once, exit code 4.

No group lies in two parts. A group is what hangs together by the same customer, by nearly the same text (after
masking), and, where ``group_by_template`` says so, by the same template. Where the sources say their part (a site's
own split), calls stay in it, and training gives up those that hang together with a held call.

The calls stream through: memory holds some 350 bytes a call (hashes, not texts), the rest is in a temporary
file beside ``out``.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from pydantic import Field, field_validator, model_validator

import runconfig
from model_server.classification import CATEGORIES, clean_call
from model_server.masking import mask
from training.durable_files import sha256, to_disk
from training.errors import DataError
from training.near_duplicates import BANDS, GRAM, ROWS, Components, band_hashes, join_near_duplicates
from training.prepared import SCHEMA, write_manifest
from training.raw_calls import Problem, Problems, RawCall, Reading, Source, read_calls, read_problems
from training.splits import assign_parts, balance, stable_hash

CATEGORY_NAMES = tuple(category.name for category in CATEGORIES)
BATCH = 1000
"""Calls that are worked on at a time."""
HELD_OUT = "ood"
NOWHERE = -1
NOTHING = 0
"""Hash of a customer or template that is not named."""


class HeldOut(runconfig.RunConfig):
    """Templates that no training call may come from: what they score says how far wording carries."""

    part: str = Field(default=HELD_OUT, pattern="^[a-z][a-z_]*$")
    templates: tuple[str, ...] = ()


class DataSettings(runconfig.RunConfig):
    """One preparation."""

    sources: tuple[Source, ...] = Field(min_length=1)
    out: Path
    """Folder to write."""
    replace: bool = False
    """Whether a folder of this name may be replaced."""
    seed: int = Field(default=0, ge=0)
    reading: Reading = Reading()
    shares: dict[str, float] = Field(default={"train": 0.8, "validation": 0.1, "test": 0.1})
    """Part to its share of the calls."""
    near_duplicate_similarity: float = Field(default=0.8, ge=0.5, le=1)
    """Calls whose 5-grams have a higher Jaccard similarity count as one and stay in one part."""
    group_by_template: bool = False
    """Whether calls of the same template stay in one part. Few templates then make few, large groups."""
    held_out: HeldOut = HeldOut()
    conflicts: Literal["refuse", "drop"] = "refuse"
    """What becomes of calls with the same text, or the same id, that do not agree."""
    least_confidence: float = Field(default=0, ge=0, le=1)
    """Calls that the labeller was less sure of are dropped, and counted."""

    @field_validator("shares")
    @classmethod
    def _are_shares(cls, shares: dict[str, float]) -> dict[str, float]:
        if not {"train", "validation", "test"} <= set(shares):
            raise ValueError(f"train, validation and test are needed, got {', '.join(shares) or 'none'}")
        if min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError(f"each must be above 0 and all must sum up to 1, got {shares}")
        if wrong := [name for name in shares if not name.replace("_", "").isalpha() or not name.isascii()]:
            raise ValueError(f"names of parts are made of small letters and _, got {wrong[0]!r}")
        return shares

    @model_validator(mode="after")
    def _parts_are_named_for_all_or_none(self) -> DataSettings:
        named = [source.part for source in self.sources if source.part is not None]
        if named and len(named) < len(self.sources):
            raise ValueError("some sources have a part and some have none: give it to all of them, or to none")
        if unknown := sorted(set(named) - set(self.shares)):
            raise ValueError(f"a source has part {unknown[0]!r}, allowed are {', '.join(self.shares)} (of shares)")
        return self

    @property
    def has_own_split(self) -> bool:
        """Whether the sources say which part their calls are of."""
        return self.sources[0].part is not None

    @model_validator(mode="after")
    def _parts_differ(self) -> DataSettings:
        if self.held_out.templates and self.held_out.part in self.shares:
            raise ValueError(f"held_out.part and shares both name {self.held_out.part!r}")
        return self


# --- what is kept of each call in memory -------------------------------------------------------------------


@dataclass(slots=True)
class Facts:
    """Arrays over all N calls, in the order of reading."""

    source: np.ndarray
    row: np.ndarray
    id: np.ndarray
    """Hash of the conversation id, uint64; so are the next three."""
    text: np.ndarray
    customer: np.ndarray
    template: np.ndarray
    label: np.ndarray
    """Place of the category among the twelve."""
    held_out: np.ndarray
    bands: np.ndarray
    """(N, BANDS) uint32."""
    offset: np.ndarray
    """Where the text of a call begins in the spool of texts; N + 1 of them."""

    def __len__(self) -> int:
        return len(self.label)


@dataclass(slots=True)
class Spool:
    """Temporary files: the calls as they will be written, and their texts alone, for reading here and there."""

    folder: Path
    texts: IO[bytes]
    calls: pyarrow.RecordBatchFileWriter
    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)
    bytes: int = 0
    offsets: list[np.ndarray] = field(default_factory=list)


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that is gone afterwards, unless it was renamed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.parent / f".{out.name}.{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clean_metadata(metadata: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same without personal data: texts are masked, and an id that is personal data becomes a hash."""

    def clean(name: str, value: Any) -> Any:
        if isinstance(value, str):
            value = value.encode(errors="replace").decode()  # half a character cannot be written
            masked = mask(value)
            return value if masked == value else pseudonym(value, seed) if name.endswith("id") else masked
        if isinstance(value, dict):
            return {str(key): clean(str(key), inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(name, inner) for inner in value]
        if isinstance(value, int) and not isinstance(value, bool) and mask(str(value)) != str(value):
            return pseudonym(str(value), seed)
        return value

    return {str(name): clean(str(name), value) for name, value in metadata.items()}


def pseudonym(value: str, seed: int) -> str:
    """What an id that is a phone number becomes: the same one each time, and no number."""
    return f"id-{stable_hash(value, seed):016x}"


def prepared_text(text: str) -> str:
    """What is written and compared: clean and masked, as a server does before it asks a model."""
    return mask(clean_call(text))


# --- reading ---------------------------------------------------------------------------------------------


def read_all(config: DataSettings, spool: Spool, progress: Progress) -> tuple[Facts, Counter[str]]:
    """Read all sources into the spool and their facts into memory.

    Returns:
        Facts, and the number of calls dropped while reading, by reason.

    Raises:
        DataError: With every problem of every file, up to a bound for each.
    """
    found: list[tuple[Source, Problems]] = []
    dropped: Counter[str] = Counter()
    held_out = frozenset(config.held_out.templates)
    for place, source in enumerate(config.sources):
        problems = Problems(config.reading.most_problems)
        found.append((source, problems))
        batch: list[RawCall] = []
        for call in read_calls(source, config.reading, problems):
            if call.confidence < config.least_confidence:
                dropped["confidence below least_confidence"] += 1
                continue
            batch.append(call)
            if len(batch) == BATCH:
                _spool_batch(batch, place, config, held_out, spool, problems)
                batch = []
                progress.tell(spool.bytes)
        _spool_batch(batch, place, config, held_out, spool, problems)
    if lines := read_problems(found, config.reading.fields.category):
        raise DataError("nothing was written:\n" + "\n".join(f"  {line}" for line in lines))
    if not spool.columns:
        raise DataError(f"nothing was written: no calls in {', '.join(str(one.path) for one in config.sources)}")
    offset = np.concatenate([*spool.offsets, np.array([spool.bytes], dtype=np.uint64)])
    spool.offsets.clear()
    joined = {}
    for name in list(spool.columns):
        joined[name] = np.concatenate(spool.columns.pop(name))
    return Facts(**joined, offset=offset), dropped


def _spool_batch(
    batch: Sequence[RawCall],
    source: int,
    config: DataSettings,
    held_out: frozenset[str],
    spool: Spool,
    problems: Problems,
) -> None:
    texts = [prepared_text(call.text) for call in batch]
    for call, text in zip(batch, texts, strict=True):
        if not text.replace("客户:", "").replace("客服:", "").strip():
            problems.add(_empty(call, config))
    if not batch or problems.found or problems.unknown:
        return  # what is wrong will be told, and nothing is written: only reading goes on
    seed = config.seed
    metadata = [json.dumps(clean_metadata(call.metadata, seed), ensure_ascii=False, default=str) for call in batch]
    ids = [
        call.conversation_id
        if mask(call.conversation_id) == call.conversation_id
        else pseudonym(call.conversation_id, seed)
        for call in batch
    ]
    spool.calls.write_batch(
        pyarrow.record_batch(
            [ids, texts, [call.category for call in batch], [call.confidence for call in batch], metadata],
            schema=SCHEMA,
        )
    )
    encoded = [text.encode() for text in texts]
    spool.texts.write(b"".join(encoded))
    sizes = np.fromiter(map(len, encoded), np.uint64, len(encoded))
    spool.offsets.append(spool.bytes + np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.uint64))
    spool.bytes += int(sizes.sum())

    def hashes(names: Sequence[str | None]) -> np.ndarray:
        return np.array([NOTHING if name is None else stable_hash(name) for name in names], dtype=np.uint64)

    columns: dict[str, np.ndarray] = {
        "source": np.full(len(batch), source, dtype=np.uint16),
        "row": np.array([call.row for call in batch], dtype=np.uint32),
        "id": hashes([call.conversation_id for call in batch]),
        "text": hashes(texts),
        "customer": hashes([call.customer for call in batch]),
        "template": hashes([call.template for call in batch]),
        "label": np.array([CATEGORY_NAMES.index(call.category) for call in batch], dtype=np.uint8),
        "held_out": np.array([call.template in held_out for call in batch], dtype=bool),
        "bands": band_hashes(texts),
    }
    for name, column in columns.items():
        spool.columns.setdefault(name, []).append(column)


def _empty(call: RawCall, config: DataSettings) -> Problem:
    return Problem(call.row, config.reading.fields.text, "nothing is left of the text after cleaning, allowed is text")


# --- copies, conflicts, groups -----------------------------------------------------------------------------


def find_copies(facts: Facts, config: DataSettings) -> tuple[np.ndarray, Counter[str]]:
    """Which calls are kept, (N,) bool, and how many are not, by reason.

    The first of several copies is kept. Calls with one text, or one id, that do not agree are a conflict.

    Raises:
        DataError: There are conflicts, and the settings refuse them.
    """
    kept = np.ones(len(facts), dtype=bool)
    dropped: Counter[str] = Counter()
    conflicting = np.zeros(len(facts), dtype=bool)
    told: list[str] = []
    for what, key, others in (
        ("one text with different categories", facts.text, (facts.label,)),
        ("one conversation_id with different texts or categories", facts.id, (facts.label, facts.text)),
    ):
        order = np.argsort(key, kind="stable")
        same = key[order][1:] == key[order][:-1]
        differs = np.zeros(len(same), dtype=bool)
        for other in others:
            differs |= other[order][1:] != other[order][:-1]
        clashing = np.unique(key[order][1:][same & differs])
        conflicting |= np.isin(key, clashing)
        if key is facts.text:
            kept[order[1:][same]] = False
        for each in clashing[: config.reading.most_problems]:
            calls = np.flatnonzero(key == each)[:4]
            places = " and ".join(
                f"{(source := config.sources[facts.source[at]]).path}, {source.row_word} {facts.row[at]} "
                f"({CATEGORY_NAMES[facts.label[at]]})"
                for at in calls
            )
            told.append(f"{what}: {places}")
    if told and config.conflicts == "refuse":
        told = told[: config.reading.most_problems]
        raise DataError(
            f"nothing was written: {int(conflicting.sum())} calls contradict each other:\n"
            + "\n".join(f"  {line}" for line in told)
            + "\nrepair them, or say `conflicts: drop`"
        )
    dropped["copies"] = int((~kept & ~conflicting).sum())
    dropped["conflicting"] = int(conflicting.sum())
    return kept & ~conflicting, dropped


def find_groups(facts: Facts, config: DataSettings, texts: IO[bytes]) -> tuple[np.ndarray, dict[str, int]]:
    """The group of each call, (N,), and counts of what joined them.

    Copies and conflicting calls take part: their customers link groups although they are not written.
    """
    components = Components(len(facts))
    everyone = np.arange(len(facts))
    components.join_equal(facts.text, everyone)
    _, first = np.unique(facts.text, return_index=True)
    unique = np.sort(first)

    def text_of(member: int) -> str:
        start, end = int(facts.offset[member]), int(facts.offset[member + 1])
        return os.pread(texts.fileno(), end - start, start).decode()

    checked = join_near_duplicates(components, facts.bands, unique, text_of, config.near_duplicate_similarity)
    facts.bands = np.empty((0, BANDS), dtype=np.uint32)
    clusters = components.roots()
    sizes = np.bincount(clusters[unique], minlength=len(facts))
    counts = {
        "near_duplicate_clusters": int((sizes > 1).sum()),
        "calls_in_near_duplicate_clusters": int(sizes[sizes > 1].sum()),
        "pairs_checked": checked,
    }
    named = facts.customer != NOTHING
    components.join_equal(facts.customer[named], everyone[named])
    counts["customers"] = len(np.unique(facts.customer[named]))
    if config.group_by_template:
        named = facts.template != NOTHING
        components.join_equal(facts.template[named], everyone[named])
    groups = components.roots()
    return groups, counts


# --- parts -----------------------------------------------------------------------------------------------


def find_parts(
    facts: Facts, kept: np.ndarray, groups: np.ndarray, config: DataSettings
) -> tuple[np.ndarray, tuple[str, ...], Counter[str]]:
    """The part of each call, (N,), a place among the names, NOWHERE for calls that are not written.

    Raises:
        DataError: What is left cannot be split.
    """
    names = (*config.shares, *((config.held_out.part,) if config.held_out.templates else ()))
    parts = np.full(len(facts), NOWHERE, dtype=np.int8)
    dropped: Counter[str] = Counter()
    held_out = kept & facts.held_out
    if config.held_out.templates and not held_out.any():
        raise DataError(
            f"nothing was written: no call has one of the templates {', '.join(config.held_out.templates)} of "
            f"held_out (the template is read from {config.reading.fields.template})"
        )
    beside = np.isin(groups, groups[facts.held_out])
    parts[held_out] = len(names) - 1
    dropped["beside held-out calls (same customer or nearly the same text)"] = int((kept & beside & ~held_out).sum())
    rest = np.flatnonzero(kept & ~beside)
    present = np.unique(facts.label[rest])
    before = len(facts)
    if before > 1 and kept.sum() == 1:
        raise DataError(f"nothing was written: all {before} calls are copies of one")
    if len(present) == 1:
        raise DataError(
            f"nothing was written: all {len(rest)} calls have the category {CATEGORY_NAMES[present[0]]}, at least two "
            "are needed: a classifier has nothing to tell apart"
        )
    if len(rest) < len(CATEGORY_NAMES):
        raise DataError(
            f"nothing was written: {len(rest)} calls are left of {before}, fewer than the {len(CATEGORY_NAMES)} "
            "categories; at least some dozens of each are needed"
        )
    if config.has_own_split:
        own = np.array([names.index(str(source.part)) for source in config.sources])[facts.source[rest]]
        parts[rest] = keep_apart(groups[rest], own)
        dropped["beside calls of a held part (same customer or nearly the same text)"] = int(
            (parts[rest] == NOWHERE).sum()
        )
        rest = rest[parts[rest] != NOWHERE]
    else:
        keys = np.array([stable_hash(str(key), config.seed) for key in facts.id[rest].tolist()], dtype=np.uint64)
        parts[rest] = assign_parts(groups[rest], facts.label[rest], keys, config.shares)
    sizes = np.bincount(parts[rest], minlength=len(config.shares))
    if sizes.min() == 0:
        largest = int(np.bincount(groups[rest]).max())
        raise DataError(
            f"nothing was written: no call is left for {list(config.shares)[int(sizes.argmin())]}; the largest group "
            f"(same customer or nearly the same text) has {largest} of {len(rest)} calls, and groups stay whole"
        )
    return parts, names, dropped


def keep_apart(groups: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The parts, (N,), with NOWHERE for calls whose group reaches into a later part: train gives way to all others."""
    last = np.zeros(int(groups.max()) + 1, dtype=parts.dtype)
    np.maximum.at(last, groups, parts)
    return np.where(parts == last[groups], parts, NOWHERE)


def warnings_for(table: dict[str, dict[str, int]], config: DataSettings) -> list[str]:
    """What a reader of the report should not miss."""
    told = []
    everywhere = Counter[str]()
    for part in config.shares:
        everywhere.update(table[part])
    for category in CATEGORY_NAMES:
        if everywhere[category] == 0:
            told.append(f"no call of {category}: the model will not learn it")
        elif missing := [part for part in config.shares if table[part][category] == 0]:
            told.append(f"{category} has {everywhere[category]} calls, none of them in {', '.join(missing)}")
    total = everywhere.total()
    for part, share in config.shares.items():
        got = sum(table[part].values()) / total
        if abs(got - share) > 0.02 and not config.has_own_split:
            told.append(f"{part} has {got:.1%} of the calls instead of {share:.1%}: groups stay whole")
    return told


# --- writing ---------------------------------------------------------------------------------------------


def write_parts(calls: Path, parts: np.ndarray, names: Sequence[str], folder: Path) -> None:
    """A Parquet file a part, from the spooled calls, in the order of reading."""
    writers = {name: pyarrow.parquet.ParquetWriter(folder / f"{name}.parquet", SCHEMA) for name in names}
    waiting: dict[str, list[pyarrow.RecordBatch]] = {name: [] for name in names}
    rows: Counter[str] = Counter()

    def flush(name: str) -> None:
        if waiting[name]:
            writers[name].write_table(pyarrow.Table.from_batches(waiting[name], SCHEMA))
            waiting[name].clear()
            rows[name] = 0

    with pyarrow.OSFile(str(calls)) as file, pyarrow.ipc.open_file(file) as reader:
        at = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            of_batch = parts[at : at + batch.num_rows]
            at += batch.num_rows
            for place, name in enumerate(names):
                if (chosen := of_batch == place).any():
                    waiting[name].append(batch.filter(pyarrow.array(chosen)))
                    rows[name] += int(chosen.sum())
                    if rows[name] >= 10 * BATCH:
                        flush(name)
    for name in names:
        flush(name)
        writers[name].close()


def write_folder(config: DataSettings, folder: Path, report: dict[str, Any]) -> None:
    """Report and manifest into ``folder``, everything to the disk, then the name ``out``."""
    (folder / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    about = {
        "calls": {part: sum(of.values()) for part, of in report["class_balance"].items()},
        "class_balance": report["class_balance"],
        "sources": [{"path": str(one.path), "sha256": sha256(one.path)} for one in config.sources],
        "seed": config.seed,
        "settings": config.model_dump(mode="json", exclude={"out", "replace"}),
        "near_duplicates": {"gram": GRAM, "bands": BANDS, "rows": ROWS},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "pyarrow", "rensa")},
        },
    }
    write_manifest(folder, about)
    if config.out.exists():
        old = config.out.parent / f".{config.out.name}.{os.getpid()}.old"
        config.out.rename(old)
        folder.rename(config.out)
        shutil.rmtree(old)
    else:
        folder.rename(config.out)
    to_disk(config.out.parent)


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    table = report["class_balance"]
    lines = ["# Prepared calls", "", f"{report['calls_read']} calls read, {report['calls_written']} written.", ""]
    lines += [f"- dropped, {reason}: {count}" for reason, count in report["dropped"].items() if count]
    lines += [f"- {name.replace('_', ' ')}: {count}" for name, count in report["groups"].items()]
    lines += [f"- **{warning}**" for warning in report["warnings"]]
    lines += ["", f"| category | {' | '.join(table)} |", f"|---|{'---:|' * len(table)}"]
    totals = {part: sum(of.values()) for part, of in table.items()}
    for category in CATEGORY_NAMES:
        cells = [f"{of[category]} ({of[category] / max(totals[part], 1):.1%})" for part, of in table.items()]
        lines.append(f"| {category} | {' | '.join(cells)} |")
    lines.append(f"| all | {' | '.join(map(str, totals.values()))} |")
    return "\n".join(lines) + "\n"


# --- the command -----------------------------------------------------------------------------------------


class Progress:
    """A line to stderr every few seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + 5

    def tell(self, spooled_bytes: int) -> None:
        if time.monotonic() >= self._next:
            print(f"{spooled_bytes / 1e6:.0f} MB of text read", file=sys.stderr)
            self._next = time.monotonic() + 5


def prepare(config: DataSettings) -> dict[str, Any]:
    """Do all of it and return the report.

    Raises:
        DataError: The calls cannot be used; nothing was written.
    """
    if config.out.exists() and not config.replace:
        raise DataError(f"{config.out} is already there: name another folder, or say `replace: true`")
    for source in config.sources:
        _ = source.kind  # all names first: reading the others may take long
    with _temporary_folder(config.out) as folder:
        spooled = folder / "calls.arrow"
        prepared = folder / "prepared"
        prepared.mkdir()
        with (folder / "texts").open("w+b") as texts:
            with pyarrow.OSFile(str(spooled), "wb") as file, pyarrow.ipc.new_file(file, SCHEMA) as calls:
                facts, dropped = read_all(config, Spool(folder, texts, calls), Progress())
            texts.flush()
            print(f"looking for copies and near-duplicates among {len(facts)} calls", file=sys.stderr)
            kept, copies = find_copies(facts, config)
            groups, group_counts = find_groups(facts, config, texts)
        parts, names, beside = find_parts(facts, kept, groups, config)
        table = balance(facts.label, parts, names, CATEGORY_NAMES)
        written = parts != NOWHERE
        sizes = np.bincount(groups[written])
        report = {
            "calls_read": len(facts) + dropped.total(),
            "calls_written": int(written.sum()),
            "dropped": dict(dropped + copies + beside),
            "groups": {**group_counts, "groups": int((sizes > 0).sum()), "largest_group": int(sizes.max())},
            "class_balance": table,
            "warnings": warnings_for(table, config),
        }
        print("writing the parts", file=sys.stderr)
        write_parts(spooled, parts, names, prepared)
        write_folder(config, prepared, report)
    return report


def main(arguments: Sequence[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__, file=sys.stderr)
        return 0 if arguments else 2
    try:
        config = runconfig.load(DataSettings, Path(arguments[0]), arguments[1:])
    except runconfig.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    started = time.monotonic()
    try:
        report = prepare(config)
    except DataError as error:
        print(error, file=sys.stderr)
        return 4
    except OSError as error:
        print(f"nothing was written to {config.out}: {error.strerror or error}", file=sys.stderr)
        return 4
    print(markdown(report))
    summary = {"out": str(config.out), "seconds": round(time.monotonic() - started, 2)}
    print(json.dumps(summary | {"calls": {part: sum(of.values()) for part, of in report["class_balance"].items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
