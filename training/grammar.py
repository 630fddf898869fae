"""The wordings of the generator: what is said, as a grammar in text files under ``training/wordings``.

``(a|b|)`` is a choice, one of them may be empty; ``{name}`` is a slot, filled by one line of the section
``[name]`` of common.txt. ``[name@domain]`` is its form in one domain. In the file of a category each line is one
wording of one cause, its section names the domains in which it happens (``*``: in all), and ``[+]`` holds what
callers with that kind of trouble say besides. An indented line goes on with the one before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, Union

FOLDER = Path(__file__).with_name("wordings")
DOMAINS = (
    "电信",
    "银行",
    "电商",
    "水电",
    "保险",
    "出行",
    "教育",
    "健身",
    "物业",
    "医院",
    "快递",
    "汽车",
    "租房",
    "支付",
    "视频",
    "其他",
)
FILES = {
    "A": "charges",
    "B": "misselling",
    "C": "unordered",
    "D": "quality",
    "E": "service",
    "F": "contract",
    "G": "refund",
    "H": "delivery",
    "I": "privacy",
    "J": "security",
    "K": "channels",
    "L": "enquiries",
}
"""Letter of a category to the file that words it."""

Draw = Callable[[], float]
"""A random number in [0, 1)."""


class Slot(NamedTuple):
    name: str


class Choice(NamedTuple):
    of: tuple[Sequence[Part], ...]


Part = Union[str, Slot, Choice]  # noqa: UP007  a recursive alias must stay lazy in Python 3.11
Pattern = Sequence[Part]


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to tell of one cause."""

    line: Choice
    domains: tuple[str, ...]

    @property
    def pattern(self) -> Pattern:
        return (self.line,)

    @property
    def alternatives(self) -> int:
        return len(self.line.of)


@dataclass(frozen=True, slots=True)
class Category:
    wordings: tuple[Wording, ...]
    besides: Choice


def parse(text: str) -> Choice:
    """The alternatives of a text.

    Raises:
        ValueError: A bracket has no partner.
    """
    stack: list[list[list[Part]]] = [[[]]]
    for piece in re.findall(r"\{\w+\}|[(|)]|[^(|){}]+|[{}]", text):
        if piece == "(":
            stack.append([[]])
        elif piece == "|":
            stack[-1].append([])
        elif piece == ")" and len(stack) > 1:
            alternatives = [*map(tuple, stack.pop())]
            said = [alternative for alternative in alternatives if alternative]
            if len(said) < len(alternatives):  # what may be left out is left out one time in five, or fewer
                alternatives = [*said * max(1, 4 // max(1, len(said))), ()]
            stack[-1][-1].append(Choice(tuple(alternatives)))
        elif piece[0] == "{" and len(piece) > 1:
            stack[-1][-1].append(Slot(piece[1:-1]))
        elif piece in {")", "{", "}"}:
            raise ValueError(f"{piece!r} without its partner in {text!r}")
        else:
            stack[-1][-1].append(piece)
    if len(stack) > 1:
        raise ValueError(f"'(' without its partner in {text!r}")
    return Choice(tuple(map(tuple, stack[0])))


def sections(path: Path) -> dict[str, list[Choice]]:
    """Parsed lines under each ``[header]``.

    Raises:
        ValueError: With file and line.
    """
    found: dict[str, list[str]] = {}
    header = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("#") or not line.strip():
            continue
        if line.startswith("["):
            header = line.strip("[]")
            found.setdefault(header, [])
        elif not header:
            raise ValueError(f"{path}:{number}: a wording before any [section]")
        elif line[0] == " ":
            found[header][-1] += line.strip()
        else:
            found[header].append(line)
    try:
        return {name: [parse(line) for line in lines] for name, lines in found.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@cache
def common() -> Mapping[str, Choice]:
    """Slot to its alternatives; the lines of a section are alternatives too."""
    read = sections(FOLDER / "common.txt")
    return {name: Choice(tuple(pattern for line in lines for pattern in line.of)) for name, lines in read.items()}


@cache
def category(letter: str) -> Category:
    """The wordings of a category, in the order of its file: their places are their names."""
    read = sections(FOLDER / f"{FILES[letter]}.txt")
    wordings = [
        Wording(line, DOMAINS if header == "*" else tuple(header.split(",")))
        for header, lines in read.items()
        if header != "+"
        for line in lines
    ]
    if unknown := {domain for wording in wordings for domain in wording.domains} - {*DOMAINS}:
        raise ValueError(f"{FILES[letter]}.txt names the domains {sorted(unknown)}; known are {', '.join(DOMAINS)}")
    return Category(tuple(wordings), Choice(tuple(pattern for line in read["+"] for pattern in line.of)))


def say(pattern: Pattern, draw: Draw, domain: str, given: Mapping[str, str] = {}) -> str:
    """One text of the pattern.

    Args:
        given: Slots with a text of their own.

    Raises:
        KeyError: A slot is neither given nor in common.txt.
    """
    slots = common()
    out: list[str] = []

    def walk(parts: Pattern) -> None:
        for part in parts:
            if isinstance(part, str):
                out.append(part)
            elif isinstance(part, Choice):
                walk(part.of[int(draw() * len(part.of))])
            elif part.name in given:
                out.append(given[part.name])
            else:
                of = (slots.get(f"{part.name}@{domain}") or slots[part.name]).of
                walk(of[int(draw() * len(of))])

    walk(pattern)
    return "".join(out)
