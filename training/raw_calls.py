"""Reading raw calls: JSON lines, CSV and Parquet, with a site's own names for fields, speakers and categories.

A record has a conversation id, its turns (``[{speaker, text, start_s?}, ...]``) or its text in one piece, a
category, and perhaps a confidence and metadata. What cannot be used is told with file, line (row), field, what
was got and what is allowed; problems are collected so that one run shows them all, and nothing is guessed.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow
import pyarrow.parquet
from pydantic import Field

import runconfig
from model_server.classification import LABELS, SPEAKERS
from model_server.masking import mask
from training.errors import DataError

Format = Literal["jsonl", "csv", "parquet"]
Encoding = Literal["utf-8", "gb18030", "big5"]
LONGEST_RECORD_BYTES = 16 * 1024**2
"""A call of eight hours has under 1 MB; a longer line is a file of another kind."""


class Source(runconfig.RunConfig):
    """One file of raw calls."""

    path: Path
    format: Format | None = None
    """None goes by the name's ending: .jsonl, .csv, .parquet."""
    encoding: Encoding = "utf-8"
    """Of JSON lines and CSV; GBK and GB2312 are parts of gb18030."""
    part: str | None = None
    """All of its calls are of this part: a split that a site has made already. None draws parts by lot."""

    @property
    def kind(self) -> Format:
        """The format, from the name where the settings leave it open.

        Raises:
            DataError: The name does not tell.
        """
        endings: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
        kind = self.format or endings.get(self.path.suffix.lower())
        if kind is None:
            raise DataError(
                f"{self.path}: the name does not say what it holds; add `format: jsonl`, `csv` or `parquet`"
            )
        return kind

    @property
    def row_word(self) -> str:
        return "row" if self.kind == "parquet" else "line"


class Fields(runconfig.RunConfig):
    """What a site calls its fields. A dot reaches into an object: ``metadata.customer_id``."""

    conversation_id: str = "conversation_id"
    turns: str = "turns"
    """A list of turns, or JSON text of one; read where the record has it."""
    speaker: str = "speaker"
    """Within a turn."""
    turn_text: str = "text"
    """Within a turn."""
    start_s: str = "start_s"
    """Within a turn: seconds from the start of the call; where all turns have it, they are put in this order."""
    text: str = "input_text"
    """The call in one piece, for records without turns."""
    category: str = "complaint_category"
    confidence: str = "confidence_score"
    metadata: str = "metadata"
    """An object, or JSON text of one, that is kept with the call."""
    kept: tuple[str, ...] = ()
    """Further fields to keep in the metadata, under their last name."""
    customer: str = "metadata.customer_id"
    """Calls of one customer stay in one part."""
    template: str = "metadata.template_id"
    """Template of a generated call: can be held out, or kept in one part."""


class Reading(runconfig.RunConfig):
    """How records become calls."""

    fields: Fields = Fields()
    categories: dict[str, str] = Field(default={})
    """A site's category to one of the twelve; these and their letters need no entry."""
    speakers: dict[str, Literal["客户", "客服"]] = Field(default={})
    """A site's name of a speaker to 客户 or 客服, beside the usual ones."""
    default_confidence: float = Field(default=1.0, ge=0, le=1)
    """Of records that say nothing of it."""
    most_problems: int = Field(default=20, ge=1)
    """Reading of a file stops after so many problems."""


@dataclass(frozen=True, slots=True)
class RawCall:
    """One record that can be used, as it was said: nothing is cleaned or masked yet."""

    row: int
    conversation_id: str
    text: str
    category: str
    confidence: float
    metadata: dict[str, Any]
    customer: str | None
    template: str | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a record cannot be used."""

    row: int
    where: str
    """Field, or what else of the row."""
    told: str

    def text(self, source: Source) -> str:
        return f"{source.path}, {source.row_word} {self.row}, {self.where}: {self.told}"


@dataclass(slots=True)
class Problems:
    """What is wrong with one file. Unknown categories are told once each, with their number of calls."""

    most: int
    found: list[Problem] = field(default_factory=list)
    unknown: dict[str, list[int]] = field(default_factory=dict)
    """Category -> first row, number of calls."""

    def add(self, problem: Problem) -> None:
        self.found.append(problem)

    def add_unknown(self, category: str, row: int) -> None:
        self.unknown.setdefault(category, [row, 0])[1] += 1

    @property
    def is_full(self) -> bool:
        return len(self.found) + len(self.unknown) >= self.most

    def lines(self, source: Source, category_field: str) -> list[str]:
        unknown = [
            Problem(
                row,
                category_field,
                f"got {_shown(category)} ({calls} call{'s' if calls > 1 else ''}), allowed are "
                f"{', '.join(LABELS.values())}, their letters, and what `categories` maps to them",
            )
            for category, (row, calls) in self.unknown.items()
        ]
        return [problem.text(source) for problem in sorted((*self.found, *unknown), key=lambda one: one.row)]


def read_calls(source: Source, reading: Reading, problems: Problems) -> Iterator[RawCall]:
    """The calls of a file that can be used, one by one; what is wrong goes to ``problems``.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    categories = {name: name for name in LABELS.values()} | LABELS | reading.categories
    speakers = {name: role for role, names in SPEAKERS.items() for name in names} | {
        name.lower(): role for name, role in reading.speakers.items()
    }
    for row, record in _records(source):
        if problems.is_full:
            return
        if isinstance(record, Problem):
            problems.add(record)
            continue
        wrong = len(problems.found)
        call = _call(row, record, reading, categories, speakers, problems)
        if call is not None and len(problems.found) == wrong:
            yield call


# --- records ---------------------------------------------------------------------------------------------

Record = Mapping[str, Any]


def _records(source: Source) -> Iterator[tuple[int, Record | Problem]]:
    readers = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}
    if not source.path.is_file():
        raise DataError(f"no file {source.path}")
    try:
        yield from readers[source.kind](source)
    except OSError as error:
        raise DataError(f"cannot read {source.path}: {error.strerror or error}") from error


def _lines(source: Source, file: BinaryIO) -> Iterator[tuple[int, str | Problem]]:
    """Decoded lines. In all three encodings a byte 0x0A is a line feed, whatever stands before it."""
    row = 0
    while raw := file.readline(LONGEST_RECORD_BYTES + 1):
        row += 1
        if len(raw) > LONGEST_RECORD_BYTES:
            raise DataError(f"{source.path}, line {row}: longer than {LONGEST_RECORD_BYTES} bytes; is it JSON lines?")
        if row == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DataError(f"{source.path} is UTF-16, allowed are utf-8, gb18030 and big5: convert the file")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            yield row, raw.decode(source.encoding)
        except UnicodeDecodeError as error:
            yield row, Problem(row, "encoding", _encoding_told(raw, error, source.encoding))


def _encoding_told(raw: bytes, error: UnicodeDecodeError, encoding: Encoding) -> str:
    told = f"byte 0x{raw[error.start]:02x} at place {error.start + 1} is not {encoding}"
    others: tuple[Encoding, ...] = ("utf-8", "gb18030", "big5")
    for other in others:
        try:
            text = raw.decode(other)
        except UnicodeDecodeError:
            continue
        if other != encoding and any("\u4e00" <= character <= "\u9fff" for character in text):
            return f"{told}; it reads as {other}: write `encoding: {other}` beside `path`"
    return f"{told}, and reads as none of utf-8, gb18030, big5: repair the file"


def _jsonl(source: Source) -> Iterator[tuple[int, Record | Problem]]:
    with source.path.open("rb") as file:
        for row, line in _lines(source, file):
            if isinstance(line, Problem):
                yield row, line
                continue
            if not line.strip():
                continue
            try:
                record = json.loads(line.rstrip())
            except json.JSONDecodeError as error:
                told = f"not JSON at place {error.pos + 1} ({error.msg}), got {_shown(line[error.pos :])}"
                yield row, Problem(row, "record", told)
                continue
            except RecursionError:
                yield row, Problem(row, "record", "nested too deeply")
                continue
            except ValueError as error:  # an integer of more than 4,300 digits
                yield row, Problem(row, "record", f"not JSON ({error})")
                continue
            if not isinstance(record, dict):
                yield row, Problem(row, "record", f"got {_shown(record)}, allowed is an object with named fields")
                continue
            yield row, record


def _csv(source: Source) -> Iterator[tuple[int, Record | Problem]]:
    csv.field_size_limit(LONGEST_RECORD_BYTES)
    bad: list[Problem] = []

    def decoded(file: BinaryIO) -> Iterator[str]:
        for _, line in _lines(source, file):
            if isinstance(line, Problem):
                bad.append(line)
                yield "\n"
            else:
                yield line

    with source.path.open("rb") as file:
        rows = csv.reader(decoded(file), strict=True)
        header: list[str] | None = None
        while True:
            start = rows.line_num + 1
            try:
                cells = next(rows, None)
            except csv.Error as error:
                # After a quote that is never closed nothing can be told apart any more.
                yield start, Problem(start, "record", f"not CSV: {error}; check the quotes from this line on")
                return
            for problem in bad:
                yield problem.row, problem
            bad.clear()
            if cells is None:
                return
            if not any(cells):
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    raise DataError(f"{source.path}, line {start}: two columns have the same name, got {header}")
            elif len(cells) != len(header):
                told = f"got {len(cells)} cells, the header has {len(header)}: put quotes around cells with commas"
                yield start, Problem(start, "record", told)
            else:
                # An empty cell says nothing, which is not the same as an empty text.
                yield start, {name: cell for name, cell in zip(header, cells, strict=True) if cell}


def _parquet(source: Source) -> Iterator[tuple[int, Record | Problem]]:
    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            row = 0
            for batch in file.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    row += 1
                    yield row, {name: value for name, value in record.items() if value is not None}
    except pyarrow.ArrowException as error:
        raise DataError(f"{source.path} is not a Parquet file that can be read: {_first_line(error)}") from error


# --- fields ----------------------------------------------------------------------------------------------


def _call(
    row: int,
    record: Record,
    reading: Reading,
    categories: Mapping[str, str],
    speakers: Mapping[str, str],
    problems: Problems,
) -> RawCall | None:
    names = reading.fields

    def wrong(where: str, told: str) -> None:
        problems.add(Problem(row, where, told))

    conversation_id = _reach(record, names.conversation_id)
    if isinstance(conversation_id, int) and not isinstance(conversation_id, bool):
        conversation_id = str(conversation_id)
    if not isinstance(conversation_id, str) or not conversation_id.strip() or not _is_whole(conversation_id):
        wrong(
            names.conversation_id, f"got {_shown(conversation_id)}, allowed is a name that is not empty{_has(record)}"
        )
    turns = _parsed(_reach(record, names.turns))
    if turns is not None:
        text = _joined(turns, names, speakers, wrong)
    else:
        text = _reach(record, names.text)
        if not isinstance(text, str) or not text.strip():
            wrong(
                names.text,
                f"got {_shown(text)}, allowed is a text that is not empty, or turns in {names.turns}{_has(record)}",
            )
    category = _reach(record, names.category)
    named = isinstance(category, (str, int)) and not isinstance(category, bool)
    known = categories.get(str(category).strip()) if named else None
    if known is None:
        if named and str(category).strip():
            problems.add_unknown(str(category), row)
        else:
            wrong(names.category, f"got {_shown(category)}, allowed is the name of a category{_has(record)}")
    confidence = _number(_reach(record, names.confidence), reading.default_confidence)
    if confidence is None or not 0 <= confidence <= 1:
        wrong(names.confidence, f"got {_shown(_reach(record, names.confidence))}, allowed is a number from 0 to 1")
    given = _reach(record, names.metadata)
    metadata = {} if given is None else _parsed(given)
    if not isinstance(metadata, dict):
        wrong(names.metadata, f"got {_shown(metadata)}, allowed is an object, or JSON text of one")
        metadata = {}
    kept = {name.rpartition(".")[2]: value for name in names.kept if (value := _reach(record, name)) is not None}
    whole = record if given is metadata else {**record, names.metadata: metadata}
    if known is None or confidence is None or not isinstance(text, str):
        return None
    return RawCall(
        row=row,
        conversation_id=str(conversation_id).strip(),
        text=text,
        category=known,
        confidence=confidence,
        metadata=metadata | kept,
        customer=_name(_reach(whole, names.customer)),
        template=_name(_reach(whole, names.template)),
    )


def _joined(turns: Any, names: Fields, speakers: Mapping[str, str], wrong: Any) -> str | None:
    """Turns as lines of speaker and text; None where something is wrong."""
    if not isinstance(turns, list) or not turns:
        wrong(names.turns, f"got {_shown(turns)}, allowed is a list of turns that is not empty")
        return None
    lines: list[tuple[float | None, str]] = []
    fine = True
    for place, turn in enumerate(turns):
        where = f"{names.turns}[{place}]"
        if not isinstance(turn, dict):
            wrong(where, f"got {_shown(turn)}, allowed is an object with {names.speaker} and {names.turn_text}")
            return None
        speaker, text = _reach(turn, names.speaker), _reach(turn, names.turn_text)
        role = speakers.get(said := str(speaker).strip().lower()) or speakers.get(said.rstrip("0123456789"))
        if role is None:
            wrong(
                f"{where}.{names.speaker}",
                f"got {_shown(speaker)}, allowed are {', '.join(speakers)}; map others under `speakers`",
            )
            return None
        if text is not None and not isinstance(text, str):
            wrong(f"{where}.{names.turn_text}", f"got {_shown(text)}, allowed is text")
            fine = False
            continue
        start = _reach(turn, names.start_s)
        start_s = None if start is None else _number(start, 0)
        if start is not None and (start_s is None or start_s < 0):
            wrong(f"{where}.{names.start_s}", f"got {_shown(start)}, allowed is a number of seconds from 0")
            fine = False
        if text and text.strip():
            # A line feed within a turn would begin a turn without a speaker.
            lines.append((start_s, f"{role}:{' '.join(text.split())}"))
    if fine and not lines:
        wrong(names.turns, "got turns without any text, allowed is at least one with text")
        fine = False
    if not fine:
        return None
    if all(start is not None for start, _ in lines):
        lines.sort(key=lambda line: line[0] or 0.0)
    return "\n".join(line for _, line in lines)


def _reach(record: Record, name: str) -> Any:
    """The value of a field; None where it is not there."""
    if name in record:
        return record[name]
    node: Any = record
    for part in name.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _parsed(value: Any) -> Any:
    """CSV and Parquet carry objects as JSON text."""
    if isinstance(value, str) and value[:1] in {"[", "{"}:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _number(value: Any, default: float) -> float | None:
    """As a float; None where it is none. A share of a hundred is not guessed at."""
    if value is None:
        return default
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_whole(text: str) -> bool:
    """Whether the text can be written: JSON can say half of a character (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _shown(value: Any) -> str:
    """What was got, short, and without personal data: errors end up in logs."""
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = mask(text[:200].encode(errors="replace").decode()).strip()
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _has(record: Record) -> str:
    return f" (the record has {', '.join(map(str, list(record)[:12])) or 'no fields'})"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def read_problems(problems: Iterable[tuple[Source, Problems]], category_field: str) -> list[str]:
    """All problems of all files, one line each."""
    return [
        line
        for source, of_source in problems
        for line in (
            *of_source.lines(source, category_field),
            *([f"{source.path}: more problems may follow; reading stopped here"] if of_source.is_full else []),
        )
    ]
