"""Replace personal data in a call by typed tokens such as ``<手机号1>``.

General recognisers (presidio and its like) know no Chinese formats, and speech recognition writes numbers
as words (幺三八零零...), in groups, with fillers, and over several turns, so the formats are matched here. Numbers
are read as digits before their check sums are computed. The same value gets the same number within one call, so
that "the card mentioned above" stays readable. What merely looks like it (amounts, order numbers, dates,
王者荣耀) is left alone: training/planted_personal_data.py measures both.

Every pattern looks at a bounded piece of text around one place, so the time is linear in the length.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from model_server.person_names import TITLES, full_names, names
from model_server.street_addresses import Span, addresses

NUMBER_KINDS = ("身份证号", "银行卡号", "手机号", "座机号", "车牌号", "邮箱")
KINDS = (*NUMBER_KINDS, "地址", "姓名")
TOKEN = re.compile(rf"<({'|'.join(KINDS)})([0-9]+)>")

MOST_PASSES = 8
MOST_DIGITS = 40
"""Digits of a piece that are read; longer ones are no number of a person."""
WINDOW = 24
"""Pieces of a number that are looked at together; an identity number has 18 digits."""
MOST_NAMES = 30
"""Names that are looked for in the whole call; each takes a look at all of it."""


# --- numbers ---------------------------------------------------------------------------------------------

# 幺 is how "one" is said in numbers, 洞 拐 勾 are nought, seven and nine where they must not be misheard.
_WORDS = "零〇幺一二三四五六七八九两洞拐勾壹贰叁肆伍陆柒捌玖"
_TO_DIGITS = str.maketrans(
    f"{_WORDS}０１２３４５６７８９叉x", "001123456789" + "2079" + "123456789" + "0123456789" + "XX"
)
_FIGURE = "[0-9０-９]"
_DIGIT = rf"(?:[两三四五六]个)?[0-9０-９{_WORDS}]"
_X = "[Xx](?![A-Za-z])|叉|[艾埃]克斯"
# What callers put between groups of digits: a pause, a filler, and the agent's "yes" while writing down.
_SAID_BETWEEN = (
    "嗯|呃|额|啊|哦|噢|那个|然后|后面|接着|接下来|接下去|之后|最后|中间|前面|下面|再来|再|是|对|杠|横线|空格|号码|电话"
)
_GAP = (
    rf"(?:[ \t.,,、。·•\-–—_~/()()．＋]|{_SAID_BETWEEN}|转(?={_FIGURE})|"
    r"\n(?:客户|客服):(?:(?:嗯+|好的?|对的?|是的?|哦|啊|您说|您讲|请说|请讲|您继续|请继续|继续|然后呢|还有呢|后面呢|记下了|收到|"
    r"没错|明白)[, 。]?){0,3}"
    rf"(?=[\n0-9 ,{_WORDS}Xx叉艾埃是然后嗯]))"
)
# Patterns begin with a set or with plain words, which lets the regular expression engine skip what cannot begin one.
# Seven digits may begin a number. Bounded: an open-ended repeat of a group takes 400 bytes a turn.
_RUN = re.compile(rf"[0-9０-９{_WORDS}](?:{_GAP}{{0,5}}(?:{_DIGIT}|{_X})){{6}}")
_GAPS = re.compile(rf"{_GAP}{{0,5}}")
_PIECE = re.compile(rf"{_FIGURE}+(?:[Xx](?![A-Za-z]))?|(?:(?:[两三四五六]个)?[{_WORDS}])+(?:{_X})?|{_X}")
_REPEATED = re.compile(rf"([两三四五六])个([0-9{_WORDS}])")
_COUNTED = frozenset("次个天块元年月号点分秒遍通位条回直")
_NO_PERSON = re.compile(
    "(?:单号|订单|流水|编号|运单|工单|合同|序列|条码|发票|快递|批次|型号|串码|IMEI|imei|SN)[^\n,。;]{0,6}$"
)
# SF, YT, JD and their like: numbers of parcels and parts. What is said before a phone is none of them.
_LATIN_BEFORE = re.compile(r"(?<![A-Za-z])(?!(?:TEL|PHONE|MOBILE|CELL|NO|ID|QQ|WX|VX)-?$)[A-Z]{1,6}-?$")
_MONEY_AFTER = re.compile(rf"\s?(?:元|块|万(?!.{{0,2}}(?:{TITLES}))|人民币|RMB|%|兆|[GMK]B?(?![A-Za-z])|公里|米)")
_LOCAL_BEFORE = re.compile(
    r"(?:座机|固话|固定电话|宅电|(?:家庭|家里|办公|单位|公司|办公室)?(?:的)?电话)(?:号码?)?[是为::, ]{0,3}$"
)
_ID_BEFORE = re.compile(r"(?:身份证|证件)(?:号码?|的号)?[是为::, ]{0,3}$")
_DATE = re.compile("20[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])")
_EXTENSION = re.compile(r"[ ,]?(?:-|转|分机号?|转分机)[:: ]?[0-9]{2,6}(?![0-9])")


def _is_id(digits: str) -> bool:
    """Check character by ISO 7064 MOD 11-2 (GB 11643), and a birthday that can be."""
    if len(digits) != 18 or "X" in digits[:17]:
        return False
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(digit) * weight for digit, weight in zip(digits[:17], weights, strict=True))
    born = digits[6:8] in {"19", "20"} and "01" <= digits[10:12] <= "12" and "01" <= digits[12:14] <= "31"
    return "10X98765432"[total % 11] == digits[17] and born


def _is_old_id(digits: str) -> bool:
    """Fifteen digits, issued until 1999: a region, a birthday, no check digit."""
    return (
        len(digits) == 15
        and digits.isdigit()
        and digits[0] in "123456"
        and "01" <= digits[8:10] <= "12"
        and "01" <= digits[10:12] <= "31"
    )


def _is_card(digits: str) -> bool:
    """Luhn (ISO/IEC 7812-1); banks' numbers begin with 3 to 6 or 9."""
    if not 16 <= len(digits) <= 19 or digits[0] not in "34569" or "X" in digits:
        return False
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(value // 10 + value % 10 for value in doubled) % 10 == 0


def _mobile(digits: str) -> str | None:
    """The eleven digits, without the country's."""
    for prefix in ("", "86", "0086", "0"):
        if len(digits) == 11 + len(prefix) and digits.startswith(prefix):
            number = digits[len(prefix) :]
            return number if number[0] == "1" and number[1] in "3456789" and number.isdigit() else None
    return None


def _landline(digits: str) -> str | None:
    """Area code and number. Codes are 010, 02x, or 0 and three more; numbers do not begin with 0 or 1."""
    for prefix in ("0086", "86"):
        if digits.startswith(prefix) and len(digits) > 11:
            digits = "0" + digits[len(prefix) :].removeprefix("0")
    if not 10 <= len(digits) <= 12 or digits[0] != "0" or digits[1] == "0" or not digits.isdigit():
        return None
    area = 3 if digits[1] in "12" else 4
    return digits if len(digits) - area in {7, 8} and digits[area] not in "01" else None


def _kind_of(digits: str) -> tuple[str, str] | None:
    """Kind and value of a whole number, by its length and its check."""
    size = len(digits)
    if size < 10:
        return None
    if size == 18 and _is_id(digits):
        return "身份证号", digits
    if _is_card(digits):
        return "银行卡号", digits
    if value := _mobile(digits):
        return "手机号", value
    if value := _landline(digits):
        return "座机号", value
    return None


def _is_list(pieces: Sequence[str]) -> bool:
    """1、3、5、11、13: days or places in growing order, no number in groups."""
    if len(pieces) < 4 or any(len(piece) > 2 for piece in pieces) or all(len(piece) == 1 for piece in pieces):
        return False
    values = [int(piece) for piece in pieces if piece.isdigit()]
    return all(a < b for a, b in itertools.pairwise(values))


_IP = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_RANK = {kind: place for place, kind in enumerate(NUMBER_KINDS)}
Piece = tuple[str, int, int]
"""Digits, start, end."""


def _pieces(text: str, start: int) -> Iterator[Piece]:
    """What the run that begins here is made of: digits without a gap, in one way of writing."""
    held: Piece | None = None
    at = start
    while piece := _PIECE.match(text, at):
        said = piece[0][:MOST_DIGITS]
        if "个" in said:
            said = _REPEATED.sub(lambda each: each[2] * int(each[1].translate(_TO_DIGITS)), said)
        if "克" in said:
            said = said.replace("艾克斯", "X").replace("埃克斯", "X")
        digits = said.translate(_TO_DIGITS)
        # The agent repeats a group while writing down: 138, 好的138, 1234. Whole numbers stay as they are.
        if held and digits == held[0] and len(digits) < 7 and text.count("\n", held[2], piece.start()) == 1:
            held = (digits, held[1], piece.end())
        else:
            if held:
                yield held
            held = (digits, piece.start(), piece.end())
        gaps = _GAPS.match(text, piece.end())
        at = gaps.end() if gaps else piece.end()
    if held:
        yield held


def _ends(text: str, piece: Piece) -> Iterator[tuple[str, int]]:
    """Digits and end of a piece, and without its last word where that may begin the next one: ...零零零一直打不通."""
    digits, start, end = piece
    yield digits, end
    if (end - start > 1 and text[end - 1] in "一两") or (text[end - 1] in _WORDS and text[end : end + 1] in _COUNTED):
        yield digits[:-1], end - 1


def _in_run(text: str, pieces: Sequence[Piece]) -> tuple[int, int, str, str] | None:
    """The number that begins with the first piece: how many pieces it takes, its end, kind and value."""
    for digits, end in _ends(text, pieces[0]):
        if found := _kind_of(digits):
            return 1, end, *found
    joined = pieces[0][0]
    best: tuple[int, int, str, str] | None = None
    for place in range(1, min(20, len(pieces))):
        if len(joined) > 18:
            break
        for digits, end in _ends(text, pieces[place]):
            found = _kind_of(joined + digits)
            # Identity numbers before cards before phones; of cards the longest, as one in ten is valid by chance.
            if found is None or (best and _RANK[best[2]] < _RANK[found[0]]):
                continue
            if best and best[2] == found[0] != "银行卡号":
                continue
            if not _is_list([piece[0] for piece in pieces[: place + 1]]) and not _IP.fullmatch(text, pieces[0][1], end):
                best = (place + 1, end, *found)
                break
        joined += pieces[place][0]
    return best


def _by_context(text: str, pieces: Sequence[Piece]) -> tuple[int, int, str, str] | None:
    """Numbers that only the words before them tell: old identity numbers, landlines without area code."""
    start = pieces[0][1]
    before = text[max(0, start - 14) : start].rpartition(">")[2]
    joined = ""
    local, old_id = _LOCAL_BEFORE.search(before), _ID_BEFORE.search(before)
    if not local and not old_id:
        return None
    for place in range(min(8, len(pieces))):
        joined += pieces[place][0]
        if old_id and _is_old_id(joined):
            return place + 1, pieces[place][2], "身份证号", joined
        if (
            local
            and len(joined) in {7, 8}
            and joined[0] in "2345678"
            and joined.isdigit()
            and not _DATE.fullmatch(joined)
        ):
            following = pieces[place + 1] if place + 1 < len(pieces) else None
            if len(joined) == 7 and following and len(following[0]) == 1 and following[1] == pieces[place][2]:
                continue
            return place + 1, pieces[place][2], "座机号", joined
    return None


def _numbers(text: str) -> Iterator[Span]:
    last = at = 0
    while run := _RUN.search(text, at):
        coming = _pieces(text, run.start())
        pieces = list(islice(coming, WINDOW))
        while pieces:
            start, at = pieces[0][1], pieces[0][2]
            found = None
            if pieces[0][0][0] != "X" and len(pieces[0][0]) <= 20:
                found = _in_run(text, pieces) or _by_context(text, pieces)
            if found is None or _is_no_person(text, start, found[1], found[2], last):
                pieces = [*pieces[1:], *islice(coming, 1)]
                continue
            taken, end, kind, value = found
            # (010)... and (+86)...: the bracket and the plus belong to it.
            if text[start - 1 : start] in {"+", "＋"}:
                start -= 1
            if text[start - 1 : start] == "(" and re.search("[))]", text[start:end]):
                start -= 1
            if kind == "座机号" and (extension := _EXTENSION.match(text, end)):
                end = extension.end()
            yield max(start, last), end, kind, value
            last = at = end
            del pieces[:taken]
            pieces += islice(coming, WINDOW - len(pieces))
            while pieces and pieces[0][1] < end:
                pieces = [*pieces[1:], *islice(coming, 1)]


def _is_no_person(text: str, start: int, end: int, kind: str, last: int) -> bool:
    """An order number, an amount, or the digits of something that begins with letters, after ``last``."""
    before = text[max(last, start - 16) : start].rpartition(">")[2]  # not the words of a token
    if _NO_PERSON.search(before) and "卡号" not in before and "手机" not in before and "电话" not in before:
        return True
    if kind == "身份证号":
        return False
    return _LATIN_BEFORE.search(before) is not None or _MONEY_AFTER.match(text, end) is not None


# --- plates and e-mail -----------------------------------------------------------------------------------

_PLATE_SIGN = f"[A-HJ-NP-Za-hj-np-z0-9{_WORDS}]"
_LETTER = "[A-HJ-NP-Za-hj-np-z]"
_PLATE = re.compile(
    f"[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼](?:牌|牌照)?[ ·・•.-]?{_LETTER}(?:"
    # Six signs are a new-energy plate, which has its letter first or last; five otherwise.
    rf"[ ·・•.,-]?(?:{_LETTER}{_PLATE_SIGN}{{5}}|{_PLATE_SIGN}{{5}}{_LETTER}"
    rf"|{_PLATE_SIGN}{{4}}[学警挂港澳]|{_PLATE_SIGN}{{5}})"
    rf"|(?: {_LETTER}(?: {_PLATE_SIGN}){{5}}|(?: {_PLATE_SIGN}){{5}} {_LETTER}"
    rf"|(?: {_PLATE_SIGN}){{4}} [学警挂港澳]|(?: {_PLATE_SIGN}){{5}})"
    ")(?![A-Za-z0-9])"
)

_AT = re.compile(r"@|＠|艾特|爱特|小老鼠|圈a|圈A|\(at\)|\[at\]|at|At|AT")
_WITHIN_A_WORD = re.compile("[A-Za-z]")
_MAIL_SIGN = rf"(?:[A-Za-z0-9._%+-]|下划线|横杠|中划线|减号|杠|点|[{_WORDS}])"
_MAIL_BEFORE = re.compile(rf"(?:(?<![A-Za-z0-9]){_MAIL_SIGN}(?: {_MAIL_SIGN}(?![A-Za-z0-9]))+|{_MAIL_SIGN}{{1,64}}) ?$")
_DOT = r" ?(?:\.|．|。|点|[\[(]?(?:dot|DOT)[\])]?|丶) ?"
_HOST = (
    rf"(?:[A-Za-z0-9-]|[{_WORDS}]|扣扣|球球)(?:(?: (?=[A-Za-z0-9](?![A-Za-z0-9])))?(?:[A-Za-z0-9-]|[{_WORDS}])){{0,30}}"
)
_ENDINGS = "com|cn|net|org|edu|gov|co|cc|hk|tw|io|me|vip|top|xyz|info|biz"
_MAIL_AFTER = re.compile(
    rf" ?(?:{_HOST}{_DOT}){{1,4}}"
    rf"(?:(?i:{_ENDINGS})(?![A-Za-z0-9])|c ?o ?m(?![A-Za-z0-9])|c ?n(?![A-Za-z0-9])|康[姆母]?|[A-Za-z]{{2,24}})"
)
_MAIL_WORDS = {
    "扣扣": "qq",
    "球球": "qq",
    "下划线": "_",
    "横杠": "-",
    "中划线": "-",
    "减号": "-",
    "杠": "-",
    "点": ".",
    "dot": ".",
    "丶": ".",
}


def _mails(text: str) -> Iterator[Span]:
    last = 0
    for at in _AT.finditer(text):
        if at.start() < last:
            continue
        if at[0] in {"at", "At", "AT"} and (
            _WITHIN_A_WORD.match(text, at.end()) or _WITHIN_A_WORD.match(text[at.start() - 1 : at.start()])
        ):
            continue
        low = max(last, at.start() - 66)
        before = _MAIL_BEFORE.search(text[low : at.start()])
        after = _MAIL_AFTER.match(text, at.end(), at.end() + 140)
        if before is None or after is None:
            continue
        start = low + before.start()
        value = f"{text[start : at.start()]}@{text[at.end() : after.end()]}".replace(" ", "").lower()
        for word, sign in _MAIL_WORDS.items():
            value = value.replace(word, sign)
        last = after.end()
        yield start, last, "邮箱", value.translate(_TO_DIGITS)


def _plates(text: str) -> Iterator[Span]:
    for found in _PLATE.finditer(text):
        signs = re.sub("[ ·・•.,牌照-]", "", found[0]).translate(_TO_DIGITS).upper()
        figures = sum(sign.isdigit() for sign in signs)
        # 新iphone is none; with few figures only where a plate was spoken of.
        if figures >= 2 or (figures and "车" in text[max(0, found.start() - 8) : found.start()]):
            yield found.start(), found.end(), "车牌号", signs


# --- all of it -------------------------------------------------------------------------------------------


_RECOGNISERS: tuple[Callable[[str], Iterator[Span]], ...] = (_mails, _plates, _numbers, addresses, names)


def mask(text: str, kinds: Sequence[str] = KINDS) -> str:
    """The text with personal data replaced. Applied twice, the second time changes nothing.

    Args:
        kinds: What to look for; a model that never saw <姓名1> in training is better asked without.
    """
    numbers: dict[tuple[str, str], int] = {}
    taken = dict.fromkeys(KINDS, 0)
    if "<" in text:
        for token in TOKEN.finditer(text):
            taken[token[1]] = max(taken[token[1]], int(token[2]))

    def token_for(kind: str, value: str) -> str:
        if (kind, value) not in numbers:
            taken[kind] += 1
            numbers[kind, value] = taken[kind]
        return f"<{kind}{numbers[kind, value]}>"

    def replaced(text: str, found: Iterator[Span]) -> str:
        parts, at = [], 0
        for start, end, kind, value in found:
            if kind in kinds:
                parts += [text[at:start], token_for(kind, value)]
                at = end
        return "".join(parts) + text[at:] if parts else text

    def once(text: str) -> tuple[str, bool]:
        """The text after one pass, and whether another may find more."""
        changed = 0
        for spans in _RECOGNISERS:
            before, text = text, replaced(text, spans(text))
            if before != text:
                changed += 1 if spans in (_mails, _numbers) else 2
        if "姓名" in kinds:
            # Who was named once is known from then on.
            for value in [value for kind, value in numbers if kind == "姓名"][:MOST_NAMES]:
                if len(value) > 1:
                    text = text.replace(value, token_for("姓名", value))
                else:
                    text = replaced(text, full_names(text, value))
        return text, changed > 1 or (changed == 1 and bool(_RUN.search(text) or _PLATE.search(text)))

    # What one recogniser left for the words beside it, a number in most cases, may be found once another has made
    # these words a token.
    for _ in range(MOST_PASSES):
        text, again = once(text)
        if not again:
            break
    return text
