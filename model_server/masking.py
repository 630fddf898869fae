"""Replace personal data in a call by typed tokens such as ``<手机号1>``.

General recognisers (presidio and its like) know no Chinese formats, and speech recognition writes numbers
as words (幺三八零零...), in groups, with fillers, and over several turns, so the formats are matched here. Numbers
are read as digits before their check sums are computed. The same value gets the same number within one call, so
that "the card mentioned above" stays readable. What merely looks like it (amounts, order numbers, dates,
王者荣耀) is left alone: training/planted_personal_data.py measures both.

Every pattern looks at a bounded piece of text around one place, so the time is linear in the length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

NUMBER_KINDS = ("身份证号", "银行卡号", "手机号", "座机号", "车牌号", "邮箱")
KINDS = (*NUMBER_KINDS, "地址", "姓名")
TOKEN = re.compile(rf"<({'|'.join(KINDS)})([0-9]+)>")

Span = tuple[int, int, str]
"""Start, end, value: what is replaced, and what makes two of them the same."""

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
_SAID_BETWEEN = "嗯|呃|额|啊|哦|噢|那个|然后|后面|接着|之后|再来|是|对|杠|横线|空格"
_GAP = (
    rf"(?:[ \t.,,、。·•\-–—_~/()()．＋]|{_SAID_BETWEEN}|转(?={_FIGURE})|"
    r"\n(?:客户|客服):(?:嗯+|好的?|对的?|是的?|哦|啊|您说|请说|继续|请继续|请讲|然后呢|还有呢|记下了|收到)?"
    rf"(?=[\n0-9 ,{_WORDS}是然后嗯]))"
)
_RUN = re.compile(rf"{_DIGIT}(?:{_GAP}{{0,5}}+(?:{_DIGIT}|{_X})){{6,}}+")
_PIECE = re.compile(rf"{_FIGURE}+(?:[Xx](?![A-Za-z]))?|(?:(?:[两三四五六]个)?[{_WORDS}])+(?:{_X})?|{_X}")
_REPEATED = re.compile(rf"([两三四五六])个([0-9{_WORDS}])")
_COUNTED = frozenset("次个天块元年月号点分秒遍通位条回直")
_NO_PERSON = re.compile(
    "(?:单号|订单|流水|编号|运单|工单|合同|序列|条码|发票|快递|批次|型号|串码|IMEI|imei|SN)[^\n,。;]{0,6}$"
)
_LATIN_BEFORE = re.compile(r"(?<![A-Za-z])(?!(?i:tel|phone|mobile|cell|call|no|id|card)\b)[A-Za-z]{1,6}-?$")
_MONEY_AFTER = re.compile(r"\s?(?:元|块|万|人民币|RMB|%|兆|[GMK]B?(?![A-Za-z])|公里|米)")
_LOCAL_BEFORE = re.compile(r"(?:座机|固话|固定电话|宅电|(?:家庭|家里|办公|单位|公司|办公室)(?:的)?电话)(?:号码?)?[是为::, ]{0,3}$")
_ID_BEFORE = re.compile(r"(?:身份证|证件)(?:号码?|的号)?[是为::, ]{0,3}$")
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
    return all(a < b for a, b in zip(values, values[1:], strict=False))


_IP = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_RANK = {kind: place for place, kind in enumerate(NUMBER_KINDS)}
Piece = tuple[str, int, int]
"""Digits, start, end."""


def _pieces(text: str, start: int, end: int) -> list[Piece]:
    """What a run is made of: digits without a gap, in one way of writing."""
    found = []
    for piece in _PIECE.finditer(text, start, end):
        said = piece[0]
        if "个" in said:
            said = _REPEATED.sub(lambda each: each[2] * int(each[1].translate(_TO_DIGITS)), said)
        if "克" in said:
            said = said.replace("艾克斯", "X").replace("埃克斯", "X")
        found.append((said.translate(_TO_DIGITS), piece.start(), piece.end()))
    return found


def _ends(text: str, piece: Piece) -> Iterator[tuple[str, int]]:
    """Digits and end of a piece, and without its last word where that may begin the next one: ...零零零一直打不通."""
    digits, start, end = piece
    yield digits, end
    if end - start > 1 and text[end - 1] in "一两" or text[end - 1] in _WORDS and text[end : end + 1] in _COUNTED:
        yield digits[:-1], end - 1


def _in_run(text: str, pieces: list[Piece], at: int) -> tuple[int, int, str, str] | None:
    """The number that begins with this piece: how many pieces it takes, its end, kind and value."""
    for digits, end in _ends(text, pieces[at]):
        if found := _kind_of(digits):
            return 1, end, *found
    joined = pieces[at][0]
    best: tuple[int, int, str, str] | None = None
    for place in range(at + 1, min(at + 20, len(pieces))):
        if len(joined) > 18:
            break
        for digits, end in _ends(text, pieces[place]):
            found = _kind_of(joined + digits)
            # Identity numbers before cards before phones; of cards the longest, as one in ten is valid by chance.
            if found is None or (best and _RANK[best[2]] < _RANK[found[0]]):
                continue
            if best and best[2] == found[0] != "银行卡号":
                continue
            if not _is_list([piece[0] for piece in pieces[at : place + 1]]) and not _IP.fullmatch(text, pieces[at][1], end):
                best = (place - at + 1, end, *found)
                break
        joined += pieces[place][0]
    return best


def _by_context(text: str, pieces: list[Piece], at: int) -> tuple[int, int, str, str] | None:
    """Numbers that only the words before them tell: old identity numbers, landlines without area code."""
    start = pieces[at][1]
    before = text[max(0, start - 14) : start]
    joined = ""
    local, old_id = _LOCAL_BEFORE.search(before), _ID_BEFORE.search(before)
    if not local and not old_id:
        return None
    for place in range(at, min(at + 8, len(pieces))):
        joined += pieces[place][0]
        if old_id and _is_old_id(joined):
            return place - at + 1, pieces[place][2], "身份证号", joined
        if local and len(joined) in {7, 8} and joined[0] in "2345678" and joined.isdigit():
            following = pieces[place + 1] if place + 1 < len(pieces) else None
            if len(joined) == 7 and following and len(following[0]) == 1 and following[1] == pieces[place][2]:
                continue
            return place - at + 1, pieces[place][2], "座机号", joined
    return None


def _numbers(text: str) -> Iterator[tuple[str, Span]]:
    last = 0
    for run in _RUN.finditer(text):
        pieces = _pieces(text, run.start(), run.end())
        at = 0
        while at < len(pieces):
            first = pieces[at][0][0]
            found = None
            if first != "X" and (len(pieces[at][0]) < 20):
                found = _in_run(text, pieces, at) or _by_context(text, pieces, at)
            if found is None or _is_no_person(text, pieces[at][1], found[1], found[2]):
                at += 1
                continue
            taken, end, kind, value = found
            start = pieces[at][1]
            # (010)... and (+86)...: the bracket and the plus belong to it.
            if text[start - 1 : start] in {"+", "＋"}:
                start -= 1
            if text[start - 1 : start] in {"(", "("} and re.search("[))]", text[start:end]):
                start -= 1
            if kind == "座机号" and (extension := _EXTENSION.match(text, end)):
                end = extension.end()
            yield kind, (max(start, last), end, value)
            last = end
            at += taken
            while at < len(pieces) and pieces[at][1] < end:
                at += 1


def _is_no_person(text: str, start: int, end: int, kind: str) -> bool:
    """An order number, an amount, or the digits of something that begins with letters."""
    before = text[max(0, start - 16) : start]
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
    rf"[ ·・•.-]?(?:{_LETTER}{_PLATE_SIGN}{{5}}|{_PLATE_SIGN}{{5}}{_LETTER}|{_PLATE_SIGN}{{4}}[学警挂港澳]|{_PLATE_SIGN}{{5}})"
    rf"|(?: {_LETTER}(?: {_PLATE_SIGN}){{5}}|(?: {_PLATE_SIGN}){{5}} {_LETTER}|(?: {_PLATE_SIGN}){{4}} [学警挂港澳]|(?: {_PLATE_SIGN}){{5}})"
    ")(?![A-Za-z0-9])"
)

_AT = re.compile("@|＠|[艾爱]特|小老鼠|圈[aA]|(?<![A-Za-z])[aA][tT](?![A-Za-z])")
_MAIL_SIGN = rf"(?:[A-Za-z0-9._%+-]|下划线|横杠|中划线|减号|杠|点|[{_WORDS}])"
_MAIL_BEFORE = re.compile(
    rf"(?:(?<![A-Za-z0-9]){_MAIL_SIGN}(?: {_MAIL_SIGN}(?![A-Za-z0-9]))+|{_MAIL_SIGN}{{1,64}}) ?$"
)
_DOT = r" ?(?:\.|．|点|dot|DOT|丶) ?"
_HOST = rf"(?:[A-Za-z0-9-]|[{_WORDS}])(?:(?: (?=[A-Za-z0-9](?![A-Za-z0-9])))?(?:[A-Za-z0-9-]|[{_WORDS}])){{0,30}}"
_ENDINGS = "com|cn|net|org|edu|gov|co|cc|hk|tw|io|me|vip|top|xyz|info|biz"
_MAIL_AFTER = re.compile(
    rf" ?(?:{_HOST}{_DOT}){{1,4}}(?:(?i:{_ENDINGS})(?![A-Za-z0-9])|c ?o ?m(?![A-Za-z0-9])|c ?n(?![A-Za-z0-9])|康姆?|[A-Za-z]{{2,24}})"
)
_MAIL_WORDS = {"下划线": "_", "横杠": "-", "中划线": "-", "减号": "-", "杠": "-", "点": ".", "dot": ".", "丶": "."}


def _mails(text: str) -> Iterator[Span]:
    last = 0
    for at in _AT.finditer(text):
        if at.start() < last:
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
        yield start, last, value.translate(_TO_DIGITS)


def _plates(text: str) -> Iterator[Span]:
    for found in _PLATE.finditer(text):
        signs = re.sub("[ ·・•.牌照-]", "", found[0]).translate(_TO_DIGITS).upper()
        if sum(sign.isdigit() for sign in signs) >= 2:
            yield found.start(), found.end(), signs


# --- addresses -------------------------------------------------------------------------------------------

_NUMERAL = "(?:[0-9]{1,5}[A-Za-z]?|[零〇一二三四五六七八九十百两幺]{1,6}|[A-Za-z](?![A-Za-z]))"
_NO_PLACE = "(?!线|码|机|卡|店|文|套餐|技师|柜|窗|工|员|晚|早|上午|下午|中午|那天|当天|开始|之前|以前|就|才|来|去|扣|到|没|停|断|坏|打|还)"
_UNIT = f"(?:号楼|号院|号{_NO_PLACE}|支?弄|栋|幢|座(?!机)|单元|室|楼|层|组|队|门|#|号)"
_FIRST_UNIT = f"(?:号楼|号院|号{_NO_PLACE}|支?弄|栋|幢|座(?!机)|单元|室|组|队|#|期)"
_DETAIL = (
    rf"(?:{_NUMERAL} ?{_FIRST_UNIT}|[0-9]{{1,4}}-[0-9]{{1,3}}-[0-9]{{1,5}}|[0-9]{{1,4}}-[0-9]{{3,5}})"
    rf"(?:[ ,]?(?:附|内|第)?{_NUMERAL} ?{_UNIT}|-[0-9]{{1,5}}){{0,6}}"
    rf"(?:(?<=[栋幢座元楼号#院弄]) ?(?:[A-Za-z]?[0-9]{{2,5}}|[零〇一二三四五六七八九两幺]{{3,5}})(?![0-9年月日]))?室?"
)
_SUFFIX = "路街道巷弄村庄屯寨区园苑城厦寓坊府湾庭阁轩居院墅邸郡堡洲场心馆里同桥"
_WITH_DETAIL = re.compile(rf"[{_SUFFIX}](?:[东南西北中]段|辅路)? ?{_DETAIL}")
_BUILDING = re.compile(
    rf"{_NUMERAL} ?(?:号楼|栋|幢|座) ?{_NUMERAL} ?单元 ?(?:[0-9]{{3,4}}|[零〇一二三四五六七八九两幺]{{3,4}})(?![0-9])室?"
)
_REGIONS = re.compile(
    "[一-龥]{1,7}?(?:市|自治州|地区|盟)[一-龥]{1,6}?(?:区|县|旗|市)[一-龥]{1,8}?(?:镇|乡|街道|路|街|大道|小区|花园|新村|村|苑|大厦|广场|公寓|社区)"
)
_NOT_STREETS = re.compile(
    "(?:知|渠|频|报|管|通|味|轨|难|隧|跑|人|赛|厂)道$|(?:线|电|网|思|套|一|半|走|公|铁|这路|那路|条)路$|"
    "(?:这|那|哪|家|心|手|月|卡|店|夜|厅|屋|院|楼|村|城|区|群|包|嘴|眼|盒|箱|袋|年|司|机|店|面|会|公司)里$|"
    "(?:[^一-龥]|^)(?:小区|社区|地区|片区|辖区|景区|园区|商场|市场|广场|中心|农村|一同|合同|相同|不同|市区|郊区)$|"
    "(?:相|不|合|共|陪|连|如|伙|胡不)同$|(?:中|核|放|小|担|热|爱|关|省|耐|分|用|真|安|细|贴)心$|"
    "(?:现|当|立|到|登|入|出|退|专|全|机|操|剧|考|市)场$|(?:医|法|学|电影|剧|住|出)院$|(?:政|官)府$|(?:邻|定|移|旧|新)居$"
)
_PROVINCES = (
    "北京|上海|天津|重庆|广东|广西|浙江|江苏|江西|四川|湖北|湖南|河北|河南|陕西|山西|山东|辽宁|吉林|黑龙江|安徽|福建|"
    "海南|贵州|云南|甘肃|青海|宁夏|新疆|西藏|内蒙古|香港|澳门|台湾|深圳|广州|杭州|南京|苏州|成都|武汉|西安|沈阳|大连|"
    "青岛|济南|长沙|郑州|厦门|福州|宁波|无锡|合肥|昆明|石家庄|哈尔滨|长春|南昌|南宁|贵阳|兰州|太原|海口|东莞|佛山|珠海"
)
_PLACE_NAME = re.compile(_PROVINCES)
_RUN_BEFORE = re.compile(r"(?:[一-龥]| (?=[一-龥])|(?<=[一-龥])[0-9A-Za-z]{1,3}(?=[一-龥]))*$")
_STOPS = re.compile("[在到是住寄送址往给的了我你您这那就去从们叫嗯呃啊把向个吧呢吗]|现在|收货|快递|安装|搬来|搬家|联系")
_LEADING = re.compile("^(?:家里|家住|老家|家|地址|住址|单位|公司|现|搬|装|收货|登记|附近|楼下|和|跟|与|来|也|还有|还|有|一个|个|要|说|及| )+(?=[一-龥]{2})")
_KEEPS = re.compile("^(?:家(?:和|乐|园)|和平|和谐|和睦|和美|来广营|公司路)")


def _addresses(text: str) -> Iterator[Span]:
    last = 0
    found: list[tuple[int, int]] = []
    for detail in _WITH_DETAIL.finditer(text):
        low = max(last, detail.start() - 32)
        head = text[low : detail.start() + 1]
        name = _name_of_place(head)
        if name and not _NOT_STREETS.search(head[-5:]):
            last = detail.end()
            found.append((detail.start() + 1 - len(name), last))
    for pattern in (_BUILDING, _REGIONS):
        for more in pattern.finditer(text):
            start = more.start()
            if pattern is _REGIONS:
                start = more.end() - len(_name_of_place(more[0]) or more[0])
            if all(more.end() <= a or start >= b for a, b in found):
                found.append((start, more.end()))
    for start, end in sorted(found):
        yield start, end, re.sub("[ ,]", "", text[start:end])


def _name_of_place(head: str) -> str | None:
    """The end of ``head`` that names a place, whose last character is a word such as 路 or 苑; None without a name."""
    run = _RUN_BEFORE.search(head)
    name = head[run.start() :] if run else ""
    cuts = [0, *(stop.end() for stop in _STOPS.finditer(name[:-1]))]
    for cut in cuts:  # after a province nothing is cut away any more
        rest = _LEADING.sub("", name[cut:])
        if _PLACE_NAME.match(rest):
            name = rest
            break
    else:
        name = name[cuts[-1] :]
        if not _KEEPS.match(name):
            name = _LEADING.sub("", name)
    name = name.strip()
    return name if len(name) >= 3 or (len(name) == 2 and name[-1] in "路街巷村弄庄屯苑") else None


# --- names -----------------------------------------------------------------------------------------------

_SURNAMES = frozenset(
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪"
    "范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔汤赖施康欧倪樊兰殷洪翟安颜柳温俞章鲁"
    "葛伍申尤毕聂焦柴邢骆岳齐庄涂祁耿牟卜詹关苗凌纪靳盛童甄曲游裴席卫屈鲍霍翁隋甘景单包柏宁柯阮桂闵丛芦邬敖冉温常乔梅庞"
    "左邝符舒蒲阎窦骆管谷文向易车池迟褚邸狄刁封冀姬蓝练娄麦米缪穆聂农区瞿沙佘舒司谈佟危尉巫奚冼辛邢胥晏燕阳叶应雍虞喻郁臧祝卓宗"
)
_COMPOUND = (
    "欧阳|司马|诸葛|上官|皇甫|令狐|东方|慕容|尉迟|夏侯|公孙|端木|独孤|南宫|长孙|宇文|轩辕|呼延|司徒|司空|西门|百里|澹台|申屠"
)
# Surnames that more often end another word: what must not stand before them (话费先生, 明白女士, 十分钟先生).
_NOT_AFTER = {
    "何": "任如为几奈", "于": "由关对属等至位处终过基在急小大", "方": "对官我双甲乙警校资厂店卖买平地多比的贵",
    "周": "上下本一每两这四", "高": "最提很太更", "白": "明空坦表", "谢": "谢感多致答", "钟": "分点秒", "程": "课流工过里进远行全日小",
    "任": "责主信担", "许": "也允或少准不", "金": "现基押佣资奖租定年约黄本奖罚", "钱": "的我退扣收付要花块多少交给赚退点本",
    "安": "平保公治西不", "段": "这那时阶一片路频分", "余": "剩其业多", "顾": "照回主光客不", "付": "支对缴预垫交代应", "史": "历",
    "毛": "一二三四五六七八九十几", "曾": "不未", "万": "一二三四五六七八九十百千几", "常": "非经正平日通异", "易": "容交贸简轻不",
    "范": "规示防", "施": "设措实", "康": "健小", "赖": "依信无", "温": "体气高低", "章": "文公规", "关": "机有相没海无开",
    "单": "简订买账下名工菜签保清", "包": "量红钱面语加书承背餐会员音", "文": "语英中外作", "石": "", "江": "", "车": "打停上下",
    "向": "方一意倾动我", "项": "事款各", "管": "主不保监托尽", "祝": "", "应": "", "司": "公", "区": "", "麦": "", "农": "", "席": "",
    "米": "", "左": "", "封": "", "沙": "", "燕": "", "龙": "", "谈": "", "童": "儿", "宁": "", "游": "旅", "齐": "", "贺": "祝",
}  # fmt: skip
_NEVER_TITLED = frozenset("祝应司区管米左封沙谈阳农席麦池车向燕练文温纪危")
_GIVEN = frozenset(
    "伟芳娜敏静秀英丽强磊军洋勇艳杰娟涛明超兰霞平刚桂玲燕红梅建国华文玉春志永海雪晓婷佳宇浩欣怡梓涵子轩博思雨晨小大"
    "立力东波斌宁福生龙元胜学祥才发武新利清飞彬富顺信健伯宏厚义茂进林有坚和彪诚先敬震振壮会思群豪心邦承乐绍功松善"
    "庆友裕河哲江亮政谦亨奇固之轮翰朗伯言若鸣朋梁栋维启克伦翔旭鹏泽辰士以家致树炎德行时泰盛雄琛钧冠策腾楠榕风航弘"
    "秋珍莉荣爱妹香月媛瑞凡嘉琼勤贞素云莲真环荷琴馨凝瑗叶璧璐娅琦晶妍茜珊莎锦黛青倩婉娴瑾颖露瑶婵雁蓓纨仪丹蓉"
    "眉君薇菁梦岚苑筠柔竹霭凝影韵融园艺咏卿聪澜纯毓悦昭冰爽琬茗羽希飘育滢馥洁丝兴萍俊成康辉达安岩中仁贵光昌世奎"
    "三四五六七修亮懿婧彤萱诗琪雯熙皓睿恒阳凯帆悦淼鑫森焱垚宝玺然可依一凡萌语桐铭骏煜晖昊天宸佑茹菲蕾蕊莹琳璇钰"
)
_NOT_GIVEN = frozenset(
    "我你您他她它的是在想要了啊呢吧吗这那哪不就也都和跟呀嘛么什怎谁没有个两次几块元号电手住身办投反打说话问请给把被让"
    "来去到从退换装宽网信账查看听好对于与及或但因所以今昨前后上下里外先女士师傅老板经理客服们家为何时"
)
_TITLES = (
    "先生|女士|小姐|太太|师傅|老师|经理|阿姨|大爷|大妈|大姐|大哥|叔叔|老板|主任|同志|医生|律师|奶奶|爷爷|夫人|总(?![是算共部公体之数额计台裁店得会])"
)
_ANY_NAME_TITLES = {"先生", "女士", "小姐", "太太"}
_SPELLED = {
    "弓长张": "张", "立早章": "章", "木子李": "李", "耳东陈": "陈", "双木林": "林", "口天吴": "吴", "古月胡": "胡", "走肖赵": "赵",
    "言午许": "许", "草头黄": "黄", "三横王": "王", "三横一竖王": "王", "双人徐": "徐", "口十叶": "叶", "双口吕": "吕", "人可何": "何",
    "干勾于": "于", "卯金刘": "刘", "文刀刘": "刘", "木易杨": "杨", "禾火秋": "秋", "草肃萧": "萧", "大唐唐": "唐", "十八子李": "李",
}  # fmt: skip
_STRONG = (
    "我叫|名字叫|名字是|名字:|名字::|名叫|叫做|姓名|户名|机主|户主|联系人|收件人|收货人|寄件人|开户人|持卡人|投保人|申请人|经办人|"
    "登记人|签收人|订货人|本人"
)
_WEAK = "我是|我就是|您是|你是|请问是|是不是|这里是|这边是|我找|帮我找|联系一下"
_CUE = re.compile(
    rf"(?P<title>{_TITLES})|(?P<surname>姓)(?!名)|(?P<strong>{_STRONG})|(?P<weak>{_WEAK})|(?P<nick>叫我|找|叫)(?=[老小])|"
    rf"(?P<spelled>{'|'.join(_SPELLED)})|(?P<asked>(?:称呼|贵姓|名字|叫什么|哪位|姓什么)[^\n]{{0,12}}\n客户:)"
)
_LINK = re.compile("(?:[::, ]|是|叫|为|的名字|姓名|名字|就是|嗯|呃){0,3}")
_FOREIGN = re.compile("[一-龥]{2,6}[·•・][一-龥]{2,8}")
_COMPOUND_AT = re.compile(_COMPOUND)
_TITLE_AT = re.compile(_TITLES)
_AFTER_WEAK = re.compile(
    r"$|[\s,。!?、;::,!?;)(<]|吗|本人|吧|对吧|对吗|先生|女士|小姐|啊|呀|呢|哈|我|要投诉|想|要|的(?:电话|手机|号|快递|卡|家|名字|爱人|儿子|女儿)|打来|他|她|是吗|是吧|没错"
)
_BEFORE_NAME = frozenset("是叫找给跟和问的位请让我你您那为有替帮与被对名称姓了在把到从,。:;!?、 \n::,!?;(")
_WORDS_LIKE_NAMES = frozenset(
    "高兴 安全 方便 万一 白天 明白 黄金 白金 金华 温州 常州 江山 江南 江北 黄山 唐山 安康 安庆 马上 任何 于是 成都 平安 方正 高明 高中 "
    "金融 金山 石家 张家 江西 江苏 安徽 江阴 常德 金卡 万达 龙华 关于 钱 毛病 高新 高清 文明 时候 应该 向来 易信 包月 包年 单位 单独 "
    "管家 车主 车辆 农行 农民 米家 左右 封号 游戏 宁波 宁夏 安装 安心 顾客 付款 付费 余额 严重 金额 常用 常年 康佳 海信 万家 万家乐 "
    "白云 高安 安阳 安达 安家 英文 武汉 武昌 汤山 龙岩 龙江 龙泉 康德 和平 马云家 石子 方才 何必 何时 施工 沙发 田里 雷军家 宗旨 麦当 童装".split()
)


def _surname(text: str, at: int) -> int:
    """Length of the surname that begins here; 0 where none does."""
    if _COMPOUND_AT.match(text, at):
        return 2
    return int(text[at : at + 1] in _SURNAMES) if at < len(text) else 0


def _full_name(text: str, at: int, *, strict: bool) -> int:
    """Length of the surname and one or two more characters that begin here; 0 where they are no name.

    Args:
        strict: Whether only usual characters of given names count.
    """
    size = _surname(text, at)
    if not size:
        return 0
    end = at + size
    for _ in range(2):
        sign = text[end : end + 1]
        if not "一" <= sign <= "龥" or _TITLE_AT.match(text, end) or sign in _NOT_GIVEN and sign not in "时家":
            break
        if sign not in _GIVEN and (strict or end > at + size and not _AFTER_WEAK.match(text, end + 1)):
            break
        if end > at + size and _begins_a_word(text, end):
            break
        end += 1
    if end == at + size:
        return 0
    return 0 if text[at:end] in _WORDS_LIKE_NAMES or text[at : at + 2] in _WORDS_LIKE_NAMES else end - at


# Characters of given names that as often begin what comes next.
_NEXT_WORDS = re.compile("可以|可能|一直|一下|一个|一共|一月|行不|行吗|有没|有人|有个|会员|先生|以前|以后|心情|大概|小区|东西|信号|新办|中国|先把|和我|清楚|天天|成了|安装|发现|生气|发了|时间|家里|家住|家的|海关|明天|才|光纤|立刻|立即|今天|利息")


def _begins_a_word(text: str, at: int) -> bool:
    return _NEXT_WORDS.match(text, at) is not None


def _before_title(text: str, last: int, at: int, title: str) -> int | None:
    """Where the name before a title begins."""
    if title in _ANY_NAME_TITLES:
        for size in (4, 3, 2):
            start = at - size
            if (
                start >= last
                and (start == 0 or text[start - 1] in _BEFORE_NAME)
                and _full_name(text, start, strict=True) == size
                and not (size == 2 and _COMPOUND_AT.match(text, start))
            ):
                return start
    if at - 2 >= last and _COMPOUND_AT.match(text, at - 2):
        return at - 2
    start = at - 1
    if start < last or text[start] not in _SURNAMES or text[start] in _NEVER_TITLED:
        return None
    return None if start and text[start - 1] in _NOT_AFTER.get(text[start], "") else start


def _names(text: str) -> Iterator[Span]:
    last = 0
    for cue in _CUE.finditer(text):
        at = cue.end()
        kind = cue.lastgroup
        start, end = at, at
        if kind == "title":
            found = _before_title(text, last, cue.start(), cue[0])
            if found is not None:
                start, end = found, cue.start()
        elif kind == "surname":
            link = _LINK.match(text, at)
            start = link.end() if link else at
            end = start + _surname(text, start)
        elif kind == "spelled":
            yield cue.start(), cue.end(), _SPELLED[cue[0]]
            last = cue.end()
            continue
        elif kind == "nick":
            if _surname(text, at + 1) == 1 and not "一" <= text[at + 2 : at + 3] <= "龥" or text[at + 2 : at + 3] in "就吧啊行的":
                start, end = at + 1, at + 1 + _surname(text, at + 1)
        else:
            link = _LINK.match(text, at)
            start = link.end() if link else at
            if foreign := _FOREIGN.match(text, start):
                end = foreign.end()
            else:
                careful = kind == "weak" or cue[0] in {"本人", "机主", "户主", "联系人", "收件人"}
                size = _full_name(text, start, strict=careful)
                end = start + size
                if kind in {"weak", "asked"} and size and not _AFTER_WEAK.match(text, end):
                    end = start
                if kind == "weak" and text[start : start + 1] in "老小" and _surname(text, start + 1):
                    start, end = start + 1, start + 2
                    if not _AFTER_WEAK.match(text, end):
                        end = start
                if kind == "asked" and not size and _surname(text, start) and _AFTER_WEAK.match(text, start + 1):
                    end = start + 1
        if end > start >= last:
            yield start, end, text[start:end]
            last = end


# --- all of it -------------------------------------------------------------------------------------------


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

    def replaced(found: Iterator[tuple[str, Span]]) -> str:
        parts, at = [], 0
        for kind, (start, end, value) in found:
            parts += [text[at:start], token_for(kind, value)]
            at = end
        return "".join(parts) + text[at:] if parts else text

    of_one_kind: tuple[tuple[str, Callable[[str], Iterator[Span]]], ...] = (("邮箱", _mails), ("车牌号", _plates))
    for kind, spans in of_one_kind:
        if kind in kinds:
            text = replaced((kind, span) for span in spans(text))
    text = replaced((kind, span) for kind, span in _numbers(text) if kind in kinds)
    if "地址" in kinds:
        text = replaced(("地址", span) for span in _addresses(text))
    if "姓名" in kinds:
        text = replaced(("姓名", span) for span in _names(text))
        # Who was named once is known from then on.
        for kind, value in list(numbers):
            if kind == "姓名" and len(value) > 1 and value in text:
                text = text.replace(value, token_for(kind, value))
    return text
