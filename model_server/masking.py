"""Replace personal data in a call by typed tokens such as ``<手机号1>``.

General recognisers (presidio and its like) know no Chinese formats, and speech recognition writes numbers
as words (幺三八零零...), so the formats are matched here. Digits in words are read as digits before the
check sums are computed. The same value gets the same number within one call, so that "the card mentioned
above" stays readable. What merely looks like a number (amounts, order numbers) is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable

KINDS = ("身份证号", "银行卡号", "手机号", "座机号", "车牌号", "邮箱")
TOKEN = re.compile(rf"<({'|'.join(KINDS)})([0-9]+)>")

# 幺 is how "one" is said in numbers. "一" may also begin the next word ("...八零零零一直打不通"), so it may
# follow a number without being part of it.
_SPOKEN = str.maketrans("零〇幺一二三四五六七八九叉x", "001123456789XX")
_DIGIT = "[0-9零〇幺一二三四五六七八九]"
_START = re.compile(r"\+?(?:(?<![0-9])[0-9]|(?<![零〇幺一二三四五六七八九])[零〇幺一二三四五六七八九])")
_END = "(?:(?<=[0-9])(?![0-9])|(?<=[零〇幺一二三四五六七八九])(?![零〇幺二三四五六七八九])|(?<=[Xx叉]))"
_PLATE = re.compile(
    "[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼]"
    "[A-HJ-NP-Z][ ·・•]?[A-HJ-NP-Z0-9]{5,6}(?![A-Za-z0-9])"
)
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}")


def _is_id(digits: str) -> bool:
    """Check character by ISO 7064 MOD 11-2 (GB 11643), and a birthday that can be."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(digit) * weight for digit, weight in zip(digits[:17], weights, strict=True))
    born = digits[6:8] in {"19", "20"} and "01" <= digits[10:12] <= "12" and "01" <= digits[12:14] <= "31"
    return "10X98765432"[total % 11] == digits[17] and born


def _is_card(digits: str) -> bool:
    """Luhn (ISO/IEC 7812-1). No card begins with 0."""
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(value // 10 + value % 10 for value in doubled) % 10 == 0 and digits[0] != "0"


def _is_mobile(digits: str) -> bool:
    return digits[-11] == "1" and digits[-10] in "3456789"


def _is_landline(digits: str) -> bool:
    """Area codes are 010, 02x, or 0 and three more; subscriber numbers do not begin with 0 or 1."""
    area = 3 if digits[1] in "12" else 4
    return digits[:2] != "00" and digits[0] == "0" and len(digits) - area in {7, 8} and digits[area] not in "01"


def _patterns(gap: str) -> list[tuple[str, re.Pattern[str], Callable[[str], bool]]]:
    def digits(least: int, most: int) -> str:
        return rf"{_DIGIT}(?:{gap}{_DIGIT}){{{least - 1},{most - 1}}}"

    return [
        ("身份证号", re.compile(rf"({digits(17, 17)}{gap}[0-9零〇幺一二三四五六七八九Xx叉]){_END}"), _is_id),
        ("银行卡号", re.compile(rf"({digits(16, 19)}){_END}"), _is_card),
        ("手机号", re.compile(rf"(?:\+?86{gap})?({digits(11, 11)}){_END}"), _is_mobile),
        ("座机号", re.compile(rf"({digits(10, 12)}){_END}"), _is_landline),
    ]


# Written in one piece first: with gaps allowed, two numbers side by side could read as one long one.
_NUMBERS = _patterns("") + _patterns("[ -]?")


def mask(text: str) -> str:
    """The text with personal data replaced. Applied twice, the second time changes nothing."""
    numbers: dict[tuple[str, str], int] = {}
    taken = dict.fromkeys(KINDS, 0)
    for token in TOKEN.finditer(text):
        taken[token[1]] = max(taken[token[1]], int(token[2]))

    def token_for(kind: str, value: str) -> str:
        if (kind, value) not in numbers:
            taken[kind] += 1
            numbers[kind, value] = taken[kind]
        return f"<{kind}{numbers[kind, value]}>"

    text = _EMAIL.sub(lambda found: token_for("邮箱", found[0].lower()), text)
    text = _PLATE.sub(lambda found: token_for("车牌号", re.sub("[ ·・•]", "", found[0])), text)
    parts, at = [], 0
    while start := _START.search(text, at):
        parts.append(text[at : start.start()])
        for kind, pattern, valid in _NUMBERS:
            found = pattern.match(text, start.start())
            value = "" if found is None else re.sub("[ -]", "", found[1]).translate(_SPOKEN)
            if found is not None and valid(value):
                parts.append(token_for(kind, value))
                at = found.end()
                break
        else:
            parts.append(text[start.start() : start.end()])
            at = start.end()
    return "".join(parts) + text[at:]
