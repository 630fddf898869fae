"""Where somebody lives, as it is said in Chinese calls: from 广东省深圳市南山区科技园路15号 to 翠湖天地12幢1801.

An address is found by its end: a word such as 路 or 小区 and a number with 号, 栋, 单元. Its beginning is then
looked for to the left, as nothing marks it: after 住在, 送到, 地址是 and their like, or at a province or city.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int, str, str]
"""Start, end, kind, value: what is replaced, and what makes two of them the same."""

_NUMERAL = "(?:[0-9]{1,5}[A-Za-z]?|[零〇一二三四五六七八九十百两幺]{1,6}|[A-Za-z](?![A-Za-z]))"
_NO_PLACE = (
    "(?!线|码|机|卡|店|文|套餐|技师|柜|窗|工|员|晚|早|上午|下午|中午|那天|当天"
    "|开始|之前|以前|就|才|来|去|扣|到|没|停|断|坏|打|还)"
)
_UNIT = f"(?:号?宿舍楼|号厂房|号楼|号院|号{_NO_PLACE}|支?弄|栋|幢|座(?!机)|单元|室|楼|层|组|队|门|#|号)"
_FIRST_UNIT = f"(?:号?宿舍楼|号厂房|号楼|号院|号{_NO_PLACE}|支?弄|栋|幢|座(?!机)|单元|室|组|队|#|期)"
_DETAIL = (
    rf"(?:{_NUMERAL} ?{_FIRST_UNIT}|[0-9]{{1,4}}-[0-9]{{1,3}}-[0-9]{{1,5}}|[0-9]{{1,4}}-[0-9]{{3,5}})"
    rf"(?:[ ,]?(?:附|内|第)?{_NUMERAL} ?{_UNIT}|-[0-9]{{1,5}}){{0,6}}"
    rf"(?:(?<=[栋幢座元楼号#院弄]) ?(?:[A-Za-z]?[0-9]{{2,5}}|[零〇一二三四五六七八九两幺]{{3,5}})(?![0-9年月日]))?室?"
    r"(?: ?[一-龥]{2,8}?(?:大厦|广场|中心|公寓|大楼|产业园|科技园|小区|花园|大学|写字楼|酒店|宾馆)"
    rf"(?: ?{_NUMERAL} ?{_UNIT}){{0,3}})?"
)
_SUFFIX = "路街道巷弄村庄屯寨区园苑城厦寓坊府湾庭阁轩居院墅邸郡堡洲场心馆里同桥"
_WITH_DETAIL = re.compile(rf"[{_SUFFIX}](?:[东南西北中一二三四五六七八九十]段|辅路)? ?{_DETAIL}")
_BUILDING = re.compile(
    rf"{_NUMERAL} ?(?:号?宿舍楼|号楼|栋|幢|座)(?: ?{_NUMERAL} ?单元)? ?"
    r"(?:(?<=[单元栋幢座楼]) ?(?P<room>[A-Za-z]?[0-9]{3,4}|[零〇一二三四五六七八九两幺]{3,4})(?![0-9年])室?|(?<=单元))"
)
_LIVES = re.compile(
    "(?:住在|家住|我住|家在|地址是|地址在|地址:|寄到|送到|送货到)[ :]?"
    "(?P<place>[一-龥]{2,7}?(?:省|市|区|县|镇|乡)[一-龥]{1,9}?"
    "(?:路|街|大道|小区|花园|村|苑|公寓|大厦|家园|新城|山庄|社区|胡同|[园里庄城湾](?![一-龥]))(?!口|[上里]))"
)
_REGIONS = re.compile(
    "市[一-龥]{1,6}?(?:区|县|旗|市)"
    "(?:[一-龥]{1,8}?(?:镇|乡|街道|路|街|大道|小区|花园|新村|村|苑|大厦|广场|公寓|社区)){1,3}"
)
_NOT_STREETS = re.compile(
    "(?:知|渠|频|报|管|通|味|轨|难|隧|跑|人|赛|厂)道$|(?:线|电|网|思|套|一|半|走|公|铁|这路|那路|条)路$|"
    "(?:这|那|哪|家|心|手|月|卡|店|夜|厅|屋|院|楼|村|城|区|群|包|嘴|眼|盒|箱|袋|年|司|机|店|面|会|公司)里$|"
    "(?:[^一-龥]|^)(?:小区|社区|地区|片区|辖区|景区|园区|商场|市场|广场|中心|农村|一同|合同|相同|不同|市区|郊区)$|"
    "(?:相|不|合|共|陪|连|如|伙|胡不)同$|(?:中|核|放|小|担|热|爱|关|省|耐|分|用|真|安|细|贴)心$|"
    "(?:现|当|立|到|登|入|出|退|专|全|机|操|剧|考|市)场$|(?:医|法|学|电影|剧|住|出)院$|(?:政|官)府$|(?:邻|定|移|旧|新)居$"
)
_NO_NAMES = {"小区", "我们小区", "这小区", "村里", "院里", "里面", "前面", "后面", "对面", "旁边", "隔壁"}
_PROVINCES = (
    "北京|上海|天津|重庆|广东|广西|浙江|江苏|江西|四川|湖北|湖南|河北|河南|陕西|山西|山东|辽宁|吉林|黑龙江|安徽|福建|"
    "海南|贵州|云南|甘肃|青海|宁夏|新疆|西藏|内蒙古|香港|澳门|台湾|深圳|广州|杭州|南京|苏州|成都|武汉|西安|沈阳|大连|"
    "青岛|济南|长沙|郑州|厦门|福州|宁波|无锡|合肥|昆明|石家庄|哈尔滨|长春|南昌|南宁|贵阳|兰州|太原|海口|东莞|佛山|珠海"
)
_PLACE_NAME = re.compile(_PROVINCES)
_RUN_BEFORE = re.compile(r"(?:[一-龥]| (?=[一-龥])|(?<=[一-龥])[0-9A-Za-z]{1,3}(?=[一-龥]))*$")
_STOPS = re.compile("[在到是住寄送址往给的了我你您这那就去从们叫嗯呃啊把向个吧呢吗]|现在|收货|快递|安装|搬来|搬家|联系")
_LEADING = re.compile(
    "^(?:家里|家住|老家|家|地址|住址|单位|公司|现|搬|装|收货|登记"
    "|附近|楼下|和|跟|与|来|也|还有|还|有|一个|个|要|说|及| )+(?=[一-龥]{2})"
)
_KEEPS = re.compile("^(?:家(?:和|乐|园)|和平|和谐|和睦|和美|来广营|公司路)")


def addresses(text: str) -> Iterator[Span]:
    last = 0
    found: list[tuple[int, int]] = []
    for detail in _WITH_DETAIL.finditer(text):
        low = max(last, detail.start() - 32)
        head = text[low : detail.start() + 1]
        name = _name_of_place(head)
        if name and not _NOT_STREETS.search(head[-5:]):
            last = detail.end()
            found.append((detail.start() + 1 - len(name), last))
    if any(sign in text for sign in ("栋", "幢", "号楼", "座", "宿舍楼")):
        for building in _BUILDING.finditer(text):
            start = building.start()
            name = _name_of_place(text[max(0, start - 32) : start], least=2) or ""
            if len(name) > 8 or name in _NO_NAMES:
                name = ""
            if not name and not building["room"]:  # 3号楼2单元停电了: nobody's in particular
                continue
            start -= len(name)
            if all(building.end() <= a or start >= b for a, b in found):
                found.append((start, building.end()))
    for place in _LIVES.finditer(text):
        start, end = place.span("place")
        if all(end <= a or start >= b for a, b in found):
            found.append((start, end))
    if "市" in text:
        for region in _REGIONS.finditer(text):
            head = text[max(0, region.start() - 20) : region.end()]
            start = region.end() - len(_name_of_place(head) or region[0])
            if all(region.end() <= a or start >= b for a, b in found):
                found.append((start, region.end()))
    for start, end in sorted(found):
        yield start, end, "地址", re.sub("[ ,]", "", text[start:end])


def _name_of_place(head: str, least: int = 3) -> str | None:
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
    return name if len(name) >= least or (len(name) == 2 and name[-1] in "路街巷村弄庄屯苑") else None
