"""A results folder: the journal while a benchmark runs, typed Parquet when it is over.

``benchmarks/README.md`` says what each file and column holds. The journal (``requests.jsonl``) is only ever
appended to, so whatever ends a benchmark leaves everything before that moment readable. ``requests.parquet`` is
made from it in chunks, by columns: the times of a stream's events are most of the bytes and are read only when
they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from benchmarks.errors import ResultsError
from benchmarks.records import COLUMNS, Arm, ErrorClass, Phase, Record, TokenSource

RESULTS_VERSION = 3
CHUNK_BYTES = 16 << 20
ROWS_OF_A_GROUP = 65_536


def _type_of(hint: Any) -> tuple[str, pa.DataType]:
    """The types in pandas and Arrow of an attribute of :class:`Record`.

    int32 for counts that may be missing: ``to_pandas`` tells them by it from int64, which never are.
    """
    may_miss = NoneType in get_args(hint)
    [each] = [one for one in get_args(hint) if one is not NoneType] if may_miss else [hint]
    kind = get_origin(each) or each
    if kind is int:
        return ("Int64", pa.int32()) if may_miss else ("int64", pa.int64())
    if kind is list:
        return "object", pa.list_(pa.float64())
    if kind is Literal or kind is str:
        return "string", pa.string()
    return ("boolean", pa.bool_()) if kind is bool else ("float64", pa.float64())


_HINTS = get_type_hints(Record)
_TYPES = {name: _type_of(_HINTS[name])[0] for name in COLUMNS}
_PANDAS = {pa.int32(): pd.Int64Dtype(), pa.string(): pd.StringDtype(), pa.bool_(): pd.BooleanDtype()}
_NEVER_NULL = [name for name in COLUMNS if NoneType not in get_args(_HINTS[name]) and _TYPES[name] != "object"]
_ALLOWED: dict[str, tuple[str, ...]] = {
    "arm": get_args(Arm),
    "phase": get_args(Phase),
    "error": get_args(ErrorClass),
    "token_source": get_args(TokenSource),
}

JOURNAL = pa.schema([pa.field(name, _type_of(_HINTS[name])[1]) for name in COLUMNS])
GAPS = pa.field("event_gaps_s", pa.list_(pa.float32()))
"""In Parquet, in place of ``event_times_s``: from sending to the first event with text, then from event to event.
Half the bytes, and float32 keeps a gap to 1e-7 of itself where it would keep a time of hours to a millisecond."""
PARQUET = pa.schema([GAPS if field.name == "event_times_s" else field for field in JOURNAL])

OF_COMPARISONS = frozenset({"tune", "optimisations"})
"""Kinds of folders that hold comparisons, each in a results folder of its own, and no runs."""
MANIFEST: dict[str, Any] = {
    **dict.fromkeys(("kind", "name", "created_at"), str),
    **dict.fromkeys(("scenario", "machine", "software"), dict),
    "complete": bool,
    "command": list,
}
MANIFEST_OF_RUNS: dict[str, Any] = {
    **dict.fromkeys(("sides", "workload"), dict),
    **dict.fromkeys(("runs", "broken_off_runs", "resumed_at"), list),
    "created_unix": float,
}
_ADDED = frozenset({"trace_id"})
"""Columns that results of earlier programs lack, where nothing was known of them."""
_NEEDED = (
    *("run", "arm", "phase", "error", "scheduled_s", "sent_s", "end_s", "first_token_s", "last_token_s"),
    *("output_tokens", "tokens_first_event", "events"),
)


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a frame with every column of a record, typed, also when there are no rows."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(_TYPES)


class Journal:
    """Reads ``requests.jsonl`` from where it stopped the last time.

    Attributes:
        offset: Bytes up to the end of the last whole record that was read.
        broken: A line could not be read; nothing after it is.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.broken = path, 0, False

    def tables(self) -> Iterator[pa.Table]:
        """The whole records that were not read yet, in tables of some 16 MB of text each.

        Raises:
            ResultsError: The journal cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                while not self.broken and (data := _whole_lines(file.read(CHUNK_BYTES), file)):
                    table, self.broken = _parse(data)
                    self.offset += _bytes_of(data, len(table)) if self.broken else len(data)
                    yield table
        except OSError as error:
            raise ResultsError(f"cannot read {self.path}: {error.strerror or error}") from error

    @property
    def whole(self) -> bool:
        """Everything in the file was read: no line is broken or cut off."""
        return not self.broken and self.offset == self.path.stat().st_size


def read_journal(path: Path) -> tuple[pd.DataFrame, bool]:
    """The records in ``path`` and whether it is whole; what stands before a break is kept.

    Raises:
        ResultsError: The journal cannot be read.
    """
    journal = Journal(path)
    tables = list(journal.tables())
    return to_frame(pa.concat_tables([JOURNAL.empty_table(), *tables])), journal.whole


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A table of records as a frame, with the types of :func:`frame`."""
    found: pd.DataFrame = table.to_pandas(types_mapper=_PANDAS.get, split_blocks=True, self_destruct=True)
    return found


def write_parquet(journal: Path, path: Path, without_runs: Collection[int] = ()) -> bool:
    """Write the journal's records to ``path``, a chunk at a time; whether the journal was whole.

    Args:
        without_runs: Runs whose records stay in the journal only: they were broken off and done again.

    Raises:
        ResultsError: The journal cannot be read.
    """
    source = Journal(journal)
    part = path.with_suffix(path.suffix + ".part")
    left_out = pa.array(sorted(without_runs), pa.int64())
    with pq.ParquetWriter(
        part, PARQUET, compression="zstd", use_byte_stream_split=["event_gaps_s.list.element"], use_dictionary=_TEXTS
    ) as writer:
        for table in source.tables():
            kept = table.filter(pc.invert(pc.is_in(table["run"], left_out))) if len(left_out) else table
            writer.write_table(_with_gaps(kept), row_group_size=ROWS_OF_A_GROUP)
    part.replace(path)
    return source.whole


def load(folder: Path, columns: Collection[str] | None = None, *, event_times: bool = False) -> pd.DataFrame:
    """The records of a results folder, checked, with :func:`derive`'s columns.

    Args:
        columns: Only these beside what :func:`derive` and :func:`measured_records` need; None reads all.
        event_times: With ``event_times_s``, which takes most of the memory.

    Raises:
        ResultsError: Not a results folder, one of another version, or one whose records are not as they should be.
    """
    read_manifest(folder)
    path = folder / "requests.parquet"
    wanted = set(PARQUET.names) - {GAPS.name} if columns is None else {*columns, *_NEEDED}
    names = [name for name in PARQUET.names if name in wanted or (event_times and name == GAPS.name)]
    try:
        with pq.ParquetFile(path) as file:
            _check_schema(path, file.schema_arrow)
            present = set(file.schema_arrow.names)
            table = file.read(columns=[name for name in names if name in present])
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(f"cannot read {path}: {error}") from error
    for name in names:
        if name not in present:
            table = table.append_column(PARQUET.field(name), pa.nulls(len(table), PARQUET.field(name).type))
    check(path, table)
    gaps = table[GAPS.name].combine_chunks() if event_times else None
    found = derive(to_frame(table.drop_columns([GAPS.name]) if event_times else table))
    if gaps is not None:
        found["event_times_s"] = _event_times(gaps, found["sent_s"].to_numpy(float))
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """``manifest.json`` of a results folder.

    Raises:
        ResultsError: Not a results folder, one of another version, or one whose manifest is damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{folder} is not a results folder: its manifest.json cannot be read") from error
    version = manifest.get("results_version") if isinstance(manifest, dict) else None
    if version != RESULTS_VERSION:
        raise ResultsError(f"{folder} has results of version {version}; this program reads {RESULTS_VERSION}")
    needed = MANIFEST if manifest.get("kind") in OF_COMPARISONS else MANIFEST | MANIFEST_OF_RUNS
    wrong = [key for key, kind in needed.items() if not isinstance(manifest.get(key), kind)]
    if wrong:
        raise ResultsError(f"{folder / 'manifest.json'} is damaged: {', '.join(wrong)} missing or of another type")
    return manifest


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of a results folder.

    Raises:
        ResultsError: It is not there, because the benchmark was killed, or cannot be read.
    """
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"{folder} has no complete results ({error}): go on with python -m benchmarks resume {folder}"
        ) from error
    if not isinstance(summary, dict) or not {"kind", "verdict"} <= summary.keys():
        raise ResultsError(f"{folder / 'summary.json'} is not a benchmark's summary")
    return summary


def check(path: Path, table: pa.Table) -> None:
    """Values that no client writes.

    Raises:
        ResultsError: Naming the column, the row and the value.
    """

    def refuse(name: str, wrong: pa.ChunkedArray, problem: str) -> None:
        row = pc.index(wrong, True).as_py()
        if row >= 0:
            raise ResultsError(f"{path}: column {name}, row {row}: {problem}, got {table[name][row].as_py()!r}")

    present = set(table.column_names)
    for name in _NEVER_NULL:
        if name in present and table[name].null_count:
            refuse(name, pc.is_null(table[name]), "a value is needed")
    for name, allowed in _ALLOWED.items():
        if name not in present:
            continue
        known = pc.is_in(table[name], pa.array([*allowed, None], pa.string()))
        refuse(name, pc.invert(known), f"must be one of {', '.join(allowed)}")
    for name in present & {"number", "events", "bytes", "output_tokens", "prompt_tokens"}:
        refuse(name, pc.less(table[name], 0), "must not be negative")
    refuse("end_s", pc.less(table["end_s"], table["sent_s"]), "must not be before sent_s")
    for name in present & {"first_byte_s", "first_token_s", "last_token_s"}:
        refuse(name, pc.less(table[name], table["sent_s"]), "must not be before sent_s")


def measured_records(records: pd.DataFrame, set_aside: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The requests that count: no warm-up, and none of the runs that were set aside."""
    counted = (records["phase"] == "measure").to_numpy(bool)
    counted &= ~records["run"].isin([run["run"] for run in set_aside]).to_numpy(bool)
    return records if counted.all() else records[counted]


def derive(records: pd.DataFrame) -> pd.DataFrame:
    """``records`` with what follows from the times, in seconds; NaN for requests that failed.

    ``tpot_s`` divides the time after the first token by the tokens that arrived in it, ``N - n_first``. Where
    the server does not count per event, ``n_first`` is the mean of tokens per event: with four tokens per event
    ``N - 1`` would be 4.8 % low (64 tokens).
    """
    found = records.copy(deep=False)
    good = found["error"].isna().to_numpy(bool)
    begin = {"": found["sent_s"].to_numpy(float), "scheduled_": found["scheduled_s"].to_numpy(float)}
    first, last, end = (found[name].to_numpy(float) for name in ("first_token_s", "last_token_s", "end_s"))
    found["ok"] = good
    found["late_s"] = begin[""] - begin["scheduled_"]
    for since, at in begin.items():
        found[f"latency_{since}s"] = np.where(good, end - at, np.nan)
        found[f"ttft_{since}s"] = np.where(good, first - at, np.nan)
    tokens = found["output_tokens"].to_numpy(float, na_value=np.nan)
    events = found["events"].to_numpy(float)
    known = found["tokens_first_event"].to_numpy(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        after = tokens - np.where(np.isnan(known), tokens / events, known)
        found["tpot_s"] = np.where(good & (after > 0), (last - first) / after, np.nan)
    return found


_TEXTS = [field.name for field in PARQUET if field.type == pa.string()]


def _whole_lines(data: bytes, file: Any) -> bytes:
    """``data``, to the end of its last line: a line longer than a chunk is read on, half a line at the end is left."""
    end = data.rfind(b"\n") + 1
    if end == 0 and data:
        data += file.readline()
        end = data.rfind(b"\n") + 1
    if end < len(data):
        file.seek(end - len(data), 1)
    return data[:end]


def _parse(data: bytes) -> tuple[pa.Table, bool]:
    """The records in whole lines, up to the first that is none; whether there is such a line."""
    table = _records(data)
    if table is not None:
        return table, False
    lines = data.splitlines(keepends=True)
    good, bad, found = 0, len(lines), JOURNAL.empty_table()
    while bad - good > 1:
        middle = (good + bad) // 2
        table = _records(b"".join(lines[:middle]))
        if table is None:
            bad = middle
        else:
            good, found = middle, table
    return found, True


def _records(data: bytes) -> pa.Table | None:
    """All lines of ``data`` as records; None when one is none."""
    try:
        table = pa.json.read_json(
            pa.BufferReader(data),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pa.json.ParseOptions(explicit_schema=JOURNAL, unexpected_field_behavior="error"),
        )
    except pa.ArrowInvalid:
        return None
    table = table.select(JOURNAL.names)
    whole = len(table) == data.count(b"\n") and not any(table[name].null_count for name in _NEVER_NULL)
    return table if whole else None


def _bytes_of(data: bytes, lines: int) -> int:
    return sum(map(len, data.splitlines(keepends=True)[:lines]))


def _with_gaps(table: pa.Table) -> pa.Table:
    """``event_times_s`` as ``event_gaps_s``, without touching a row in Python."""
    at = table.schema.get_field_index("event_times_s")
    times = pa.concat_arrays([pa.array([], JOURNAL.field(at).type), *table.column(at).chunks])
    offsets = times.offsets.to_numpy()
    flat = times.flatten().to_numpy(zero_copy_only=False)
    offsets = offsets - offsets[0]
    gaps = np.diff(flat, prepend=0.0)
    filled = offsets[:-1] < offsets[1:]
    starts = offsets[:-1][filled]
    gaps[starts] = flat[starts] - table["sent_s"].to_numpy()[filled]
    packed = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(gaps.astype(np.float32)))
    return table.set_column(at, GAPS, packed)


def _event_times(gaps: pa.ListArray, sent_s: np.ndarray[Any, np.dtype[np.float64]]) -> list[Any]:
    return [sent + np.cumsum(row, dtype=float) for row, sent in zip(gaps.to_pandas(), sent_s, strict=True)]


def _check_schema(path: Path, schema: pa.Schema) -> None:
    for field in PARQUET:
        at = schema.get_field_index(field.name)
        if at < 0 and field.name in _ADDED:
            continue
        if at < 0:
            raise ResultsError(f"{path}: the column {field.name} is missing")
        if schema.field(at).type != field.type:
            raise ResultsError(f"{path}: column {field.name} must be {field.type}, is {schema.field(at).type}")
    unknown = [name for name in schema.names if name not in PARQUET.names]
    if unknown:
        raise ResultsError(f"{path}: unknown column {', '.join(unknown)}; there are {', '.join(PARQUET.names)}")
