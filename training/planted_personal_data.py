"""Planted personal data: what recall and precision of the masking are measured on.

    python -m training.planted_personal_data [items=6000] [seed=0] [show=0]

plants ``items`` values in sentences of calls in formats that the recognisers were tuned on (``seen``), as many
in formats that they were not tuned on (``unseen``: written before the recognisers, never looked at while tuning),
and asks for nothing to be masked in as many sentences that only look like it. Prints recall per kind and
precision with Wilson's 95 % intervals; exit code 1 where a bar is missed. ``show`` prints that many misses and
false alarms of the seen formats.

A value counts as found where the call comes back with exactly it replaced by one token of its kind. A token that
stands for anything else, or has eaten words beside the value, is a false alarm.
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

import runconfig
from model_server.classification import clean_call
from model_server.masking import KINDS, TOKEN, mask
from training.calls import fake_card, fake_id, fake_mobile

Formats = Literal["seen", "unseen"]
BARS = {"seen": 0.99, "unseen": 0.90, "precision": 0.97}


@dataclass(frozen=True, slots=True)
class Planted:
    """A value between two pieces of a call, and which format made it."""

    kind: str
    format: str
    before: str
    value: str
    after: str

    @property
    def text(self) -> str:
        return f"{self.before}{self.value}{self.after}"


# --- values ----------------------------------------------------------------------------------------------

SURNAMES = tuple("王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任")
RARER_SURNAMES = tuple(
    "沈姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤"
)
COMPOUND_SURNAMES = ("欧阳", "司马", "诸葛", "上官", "皇甫", "令狐", "东方", "慕容", "尉迟", "夏侯")
GIVEN = tuple(
    "伟芳娜敏静秀英丽强磊军洋勇艳杰娟涛明超兰霞平刚桂玲燕红梅建国华文玉春志永海雪晓婷佳宇浩欣怡梓涵子轩博思雨晨"
)
PLACES = (
    ("广东省", "深圳市", "南山区"),
    ("广东省", "广州市", "天河区"),
    ("浙江省", "杭州市", "西湖区"),
    ("江苏省", "南京市", "鼓楼区"),
    ("四川省", "成都市", "武侯区"),
    ("湖北省", "武汉市", "洪山区"),
    ("陕西省", "西安市", "雁塔区"),
    ("辽宁省", "沈阳市", "和平区"),
    ("", "北京市", "朝阳区"),
    ("", "北京市", "海淀区"),
    ("", "上海市", "浦东新区"),
    ("", "上海市", "徐汇区"),
    ("", "重庆市", "渝北区"),
    ("河北省", "保定市", "清苑县"),
    ("湖南省", "长沙市", "岳麓区"),
)
ROADS = ("建国路", "中山北路", "解放大道", "人民南路", "科技园路", "学院路", "长江西路", "文一西路", "张杨路", "和平街")
ESTATES = (
    "幸福小区",
    "阳光花园",
    "万科城",
    "翠苑新村",
    "望京花园",
    "金色家园",
    "碧桂园",
    "龙湖公寓",
    "东湖苑",
    "和平里小区",
)
VILLAGES = ("王庄村", "李家村", "东风村", "石桥村", "新民村")
TOWNS = ("城关镇", "望亭镇", "大王乡", "柳林镇", "石门乡")
PLATE_PLACES = tuple("京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼")
PLATE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
MAIL_NAMES = (
    "zhangsan",
    "li.ming",
    "wang_wei",
    "chenjing88",
    "liu-yang",
    "hello2020",
    "xiaoming",
    "zhao.lei66",
    "sunny",
)
MAIL_HOSTS = (("163", "com"), ("qq", "com"), ("126", "com"), ("sina", "cn"), ("gmail", "com"), ("outlook", "com"))
AREA_CODES = ("010", "021", "020", "027", "028", "0755", "0571", "0512", "0312", "0731")


def _spoken(digits: str, one: str = "幺", zero: str = "零") -> str:
    return digits.translate(str.maketrans("0123456789", f"{zero}{one}二三四五六七八九"))


def _grouped(digits: str, sizes: Sequence[int], gap: str) -> str:
    parts, at = [], 0
    for size in sizes:
        parts.append(digits[at : at + size])
        at += size
    return gap.join([*parts, digits[at:]] if at < len(digits) else parts)


def _numeral(number: int) -> str:
    """The number from 1 to 99 as it is spoken."""
    tens, ones = divmod(number, 10)
    words = "零一二三四五六七八九"
    return ("" if tens == 0 else "十" if tens == 1 else f"{words[tens]}十") + (words[ones] if ones else "")


def _landline(rng: random.Random) -> tuple[str, str]:
    area = rng.choice(AREA_CODES)
    return area, str(rng.randint(2, 8)) + "".join(str(rng.randrange(10)) for _ in range(7))


def _short_id(rng: random.Random) -> str:
    """Fifteen digits as issued until 1999: no century, no check digit."""
    born = f"{rng.randint(40, 84)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}"
    return f"{rng.choice((110105, 310104, 440106, 510107))}{born}{rng.randrange(1000):03d}"


def _plate(rng: random.Random, *, new_energy: bool = False) -> str:
    tail = "".join(rng.choice("0123456789" + PLATE_LETTERS * (rng.random() < 0.2)) for _ in range(4))
    tail = rng.choice("DF") + f"{rng.randrange(10)}{tail}" if new_energy else tail + str(rng.randrange(10))
    return rng.choice(PLATE_PLACES) + rng.choice(PLATE_LETTERS) + tail


def _full_name(rng: random.Random, surnames: Sequence[str] = SURNAMES) -> str:
    return rng.choice(surnames) + "".join(rng.choice(GIVEN) for _ in range(rng.choice((1, 2, 2))))


def _place(rng: random.Random) -> str:
    return "".join(rng.choice(PLACES))


# --- contexts --------------------------------------------------------------------------------------------

STARTS = ("客户:", "客户:你好,", "客服:请讲\n客户:", "客户:是这样的,", "客户:嗯 ", "")
ENDS = ("", "。", ",谢谢", "\n客服:好的,我记录一下", "\n客服:收到了,请稍等", ",麻烦快一点")
ABOUT = {
    "手机号": ("我的手机号是", "电话", "号码是", "打", "联系方式:", "请回拨", "留个电话", ""),
    "座机号": ("座机是", "家里电话", "单位电话:", "请打", "固话"),
    "身份证号": ("身份证号", "身份证号码是", "证件号:", "证件", ""),
    "银行卡号": ("卡号", "银行卡号是", "尾号不是,全号是", "退到", "我的卡"),
    "车牌号": ("车牌", "车牌号是", "我的车", "登记的车是", "车牌:"),
    "邮箱": ("邮箱", "发到", "我的邮箱是", "电子邮件:", "发票请寄"),
    "地址": ("我住在", "地址是", "送到", "收货地址:", "寄到", "我家在", "装在"),
}

Draw = Callable[[random.Random], tuple[str, str, str]]
"""What stands before the value, the value, what stands after it."""


def _said(kind: str, value: Callable[[random.Random], str]) -> Draw:
    return lambda rng: (rng.choice(ABOUT[kind]), value(rng), "")


def _spoken_mail(rng: random.Random, at: str, dot: str, *, spell_host: bool = False) -> str:
    name, (host, ending) = rng.choice(MAIL_NAMES), rng.choice(MAIL_HOSTS)
    return f"{name}{at}{_spoken(host) if spell_host else host}{dot}{ending}"


def _room(rng: random.Random) -> str:
    return f"{rng.randint(1, 28)}{rng.randint(1, 4):02d}"


# Each kind, format by format. The recognisers are tuned on SEEN only.
SEEN: dict[str, dict[str, Draw]] = {
    "手机号": {
        "in one piece": _said("手机号", fake_mobile),
        "3-4-4 by spaces": _said("手机号", lambda r: _grouped(fake_mobile(r), (3, 4), " ")),
        "3-4-4 by hyphens": _said("手机号", lambda r: _grouped(fake_mobile(r), (3, 4), "-")),
        "with +86": _said("手机号", lambda r: f"+86 {fake_mobile(r)}"),
        "spoken, 幺": _said("手机号", lambda r: _spoken(fake_mobile(r))),
        "spoken, 一": _said("手机号", lambda r: _spoken(fake_mobile(r), one="一")),
        "spoken 3-4-4": _said("手机号", lambda r: _grouped(_spoken(fake_mobile(r)), (3, 4), " ")),
        "spoken 3-4-4 by commas": _said("手机号", lambda r: _grouped(_spoken(fake_mobile(r)), (3, 4), ",")),
        "digit by digit": _said("手机号", lambda r: " ".join(fake_mobile(r))),
    },
    "座机号": {
        "hyphen": _said("座机号", lambda r: "-".join(_landline(r))),
        "in one piece": _said("座机号", lambda r: "".join(_landline(r))),
        "brackets": _said("座机号", lambda r: "({}){}".format(*_landline(r))),
        "spoken": _said("座机号", lambda r: _spoken("".join(_landline(r)))),
    },
    "身份证号": {
        "in one piece": _said("身份证号", fake_id),
        "6-8-4": _said("身份证号", lambda r: _grouped(fake_id(r), (6, 8), " ")),
        "small x": _said("身份证号", lambda r: fake_id(r).lower()),
        "spoken": _said("身份证号", lambda r: _spoken(fake_id(r)).replace("X", "叉")),
        "spoken 6-8-4": _said("身份证号", lambda r: _grouped(_spoken(fake_id(r)), (6, 8), " ").replace("X", "叉")),
    },
    "银行卡号": {
        "in one piece": _said("银行卡号", fake_card),
        "by fours": _said("银行卡号", lambda r: _grouped(fake_card(r), (4, 4, 4, 4), " ")),
        "spoken": _said("银行卡号", lambda r: _spoken(fake_card(r))),
        "spoken by fours": _said("银行卡号", lambda r: _grouped(_spoken(fake_card(r)), (4, 4, 4, 4), " ")),
    },
    "车牌号": {
        "in one piece": _said("车牌号", _plate),
        "new energy": _said("车牌号", lambda r: _plate(r, new_energy=True)),
        "with a dot": _said("车牌号", lambda r: _grouped(_plate(r, new_energy=r.random() < 0.4), (2,), "·")),
        "with a space": _said("车牌号", lambda r: _grouped(_plate(r), (2,), " ")),
    },
    "邮箱": {
        "written": _said("邮箱", lambda r: _spoken_mail(r, "@", ".")),
        "艾特 and 点": _said("邮箱", lambda r: _spoken_mail(r, "艾特", "点")),
        "艾特 and dot": _said("邮箱", lambda r: _spoken_mail(r, "艾特", ".")),
        "spaces around 艾特": _said("邮箱", lambda r: _spoken_mail(r, " 艾特 ", "点")),
    },
    "地址": {
        "full, room": _said(
            "地址", lambda r: f"{_place(r)}{r.choice(ROADS)}{r.randint(1, 300)}号{r.randint(1, 30)}栋{_room(r)}室"
        ),
        "full, street number": _said("地址", lambda r: f"{_place(r)}{r.choice(ROADS)}{r.randint(1, 300)}号"),
        "district and road": _said("地址", lambda r: f"{r.choice(PLACES)[2]}{r.choice(ROADS)}{r.randint(1, 99)}号"),
        "estate": _said("地址", lambda r: f"{r.choice(ESTATES)}{r.randint(1, 30)}栋{r.randint(1, 4)}单元{_room(r)}"),
        "full, estate": _said("地址", lambda r: f"{_place(r)}{r.choice(ESTATES)}{r.randint(1, 30)}号楼{_room(r)}室"),
        "village": _said("地址", lambda r: f"{_place(r)}{r.choice(TOWNS)}{r.choice(VILLAGES)}{r.randint(1, 99)}号"),
    },
    "姓名": {
        "姓": lambda r: (r.choice(("我姓", "免贵姓", "姓")), r.choice(SURNAMES), ""),
        "先生": lambda r: (r.choice(("", "请问是", "找", "您是")), r.choice(SURNAMES), "先生"),
        "女士": lambda r: (r.choice(("", "请问是", "找", "您是")), r.choice(SURNAMES), "女士"),
        "小姐": lambda r: (r.choice(("", "请找")), r.choice(SURNAMES), "小姐"),
        "我叫": lambda r: ("我叫", _full_name(r), r.choice(("", ",电话没人接", ",要投诉"))),
        "我是": lambda r: ("我是", _full_name(r), r.choice((",", "。", "\n客服:您好"))),
        "name and 先生": lambda r: (r.choice(("请问是", "我找", "")), _full_name(r), r.choice(("先生", "女士"))),
        "姓名": lambda r: (r.choice(("姓名", "姓名:", "姓名是")), _full_name(r), r.choice(("", ",男", "。"))),
        "contact": lambda r: (r.choice(("联系人", "联系人:", "收件人:", "户主")), _full_name(r), ""),
    },
}

MOBILE_FILLERS = (" 嗯 ", "嗯", " 然后 ", "然后是", " 呃 ", "那个", "后面是")
UNSEEN: dict[str, dict[str, Draw]] = {
    "手机号": {
        "by dots": _said("手机号", lambda r: _grouped(fake_mobile(r), (3, 4), ".")),
        "by 顿号": _said("手机号", lambda r: _grouped(fake_mobile(r), (3, 4), "、")),
        "4-3-4": _said("手机号", lambda r: _grouped(fake_mobile(r), (4, 3), " ")),
        "3-3-3-2 spoken": _said("手机号", lambda r: _grouped(_spoken(fake_mobile(r)), (3, 3, 3), " ")),
        "0086": _said("手机号", lambda r: f"0086{fake_mobile(r)}"),
        "(+86)": _said("手机号", lambda r: f"(+86){fake_mobile(r)}"),
        "86-": _said("手机号", lambda r: f"86-{_grouped(fake_mobile(r), (3, 4), '-')}"),
        "full width": _said("手机号", lambda r: "".join(chr(ord(d) + 0xFEE0) for d in fake_mobile(r))),
        "half in words": _said("手机号", lambda r: (n := fake_mobile(r))[:3] + _spoken(n[3:7]) + n[7:]),
        "half in words, spaced": _said("手机号", lambda r: _spoken((n := fake_mobile(r))[:3]) + f" {n[3:7]} {n[7:]}"),
        "fillers": _said("手机号", lambda r: _grouped(fake_mobile(r), (3, 4), r.choice(MOBILE_FILLERS))),
        "spoken with fillers": _said(
            "手机号", lambda r: _grouped(_spoken(fake_mobile(r)), (3, 4), r.choice(MOBILE_FILLERS))
        ),
        "spoken, 一, spaced": _said("手机号", lambda r: " ".join(_spoken(fake_mobile(r), one="一"))),
        "spoken, 洞 and 拐": _said("手机号", lambda r: _spoken(fake_mobile(r), zero="洞").replace("七", "拐")),
        "over turns": _said("手机号", lambda r: _grouped(fake_mobile(r), (3, 4), "\n客服:嗯\n客户:")),
        "spoken over turns": _said("手机号", lambda r: _grouped(_spoken(fake_mobile(r)), (3, 4), "\n客服:好\n客户:")),
    },
    "座机号": {
        "space": _said("座机号", lambda r: " ".join(_landline(r))),
        "split subscriber": _said("座机号", lambda r: f"{(a := _landline(r))[0]}-{a[1][:4]} {a[1][4:]}"),
        "extension": _said("座机号", lambda r: "-".join((*_landline(r), "801"))),
        "转": _said("座机号", lambda r: "{}-{}转{}".format(*_landline(r), r.randint(100, 999))),
        "+86": _said("座机号", lambda r: (a := _landline(r)) and f"+86-{a[0][1:]}-{a[1]}"),
        "spoken with 杠": _said("座机号", lambda r: _spoken("{}杠{}".format(*_landline(r)))),
        "spoken in groups": _said("座机号", lambda r: _spoken(f"{(a := _landline(r))[0]} {a[1][:4]} {a[1][4:]}")),
        "without area code": lambda r: (r.choice(("座机是", "固话", "家里座机")), _landline(r)[1], ""),
    },
    "身份证号": {
        "hyphens": _said("身份证号", lambda r: _grouped(fake_id(r), (6, 8), "-")),
        "by threes": _said("身份证号", lambda r: _grouped(fake_id(r), (3, 3, 4, 4), " ")),
        "dots": _said("身份证号", lambda r: _grouped(fake_id(r), (6, 4, 4), ".")),
        "commas": _said("身份证号", lambda r: _grouped(fake_id(r), (6, 4, 4), ",")),
        "spoken, 一, by threes": _said(
            "身份证号", lambda r: _grouped(_spoken(fake_id(r), one="一"), (3, 3, 4, 4), " ").replace("X", "叉")
        ),
        "half in words": _said("身份证号", lambda r: _spoken((n := fake_id(r))[:6]) + n[6:]),
        "fillers": _said("身份证号", lambda r: _grouped(fake_id(r), (6, 8), r.choice(MOBILE_FILLERS))),
        "艾克斯": _said("身份证号", lambda r: _spoken(_id_with_x(r)).replace("X", "艾克斯")),
        "fifteen digits": lambda r: (r.choice(("身份证号", "老身份证", "证件号码")), _short_id(r), ""),
        "over turns": _said("身份证号", lambda r: _grouped(fake_id(r), (6, 8), "\n客服:嗯\n客户:")),
    },
    "银行卡号": {
        "hyphens": _said("银行卡号", lambda r: _grouped(fake_card(r), (4, 4, 4, 4), "-")),
        "6-6": _said("银行卡号", lambda r: _grouped(fake_card(r), (6, 6), " ")),
        "dots": _said("银行卡号", lambda r: _grouped(fake_card(r), (4, 4, 4, 4), ".")),
        "commas": _said("银行卡号", lambda r: _grouped(fake_card(r), (4, 4, 4, 4), ",")),
        "half in words": _said("银行卡号", lambda r: _spoken((n := fake_card(r))[:8]) + n[8:]),
        "fillers": _said("银行卡号", lambda r: _grouped(fake_card(r), (4, 4, 4, 4), r.choice(MOBILE_FILLERS))),
        "spoken by commas": _said("银行卡号", lambda r: _grouped(_spoken(fake_card(r)), (4, 4, 4, 4), ",")),
        "spoken over turns": _said(
            "银行卡号", lambda r: _grouped(_spoken(fake_card(r)), (4, 4, 4, 4), "\n客服:嗯\n客户:")
        ),
    },
    "车牌号": {
        "small letters": _said("车牌号", lambda r: _plate(r).lower()),
        "hyphen": _said("车牌号", lambda r: _grouped(_plate(r), (2,), "-")),
        "learner": _said("车牌号", lambda r: _plate(r)[:-1] + r.choice("学警挂港澳")),
        "spoken digits": _said("车牌号", lambda r: _spoken(_plate(r))),
        "character by character": _said("车牌号", lambda r: " ".join(_plate(r))),
        "spoken, spaced": _said(
            "车牌号", lambda r: _grouped(_spoken(_plate(r, new_energy=r.random() < 0.4)), (2,), " ")
        ),
        "牌 after the place": _said("车牌号", lambda r: _grouped(_plate(r), (2,), ".")),
    },
    "邮箱": {
        "at and dot": _said("邮箱", lambda r: _spoken_mail(r, " at ", " dot ")),
        "@ and 点": _said("邮箱", lambda r: _spoken_mail(r, "@", "点")),
        "host in words": _said("邮箱", lambda r: _spoken_mail(r, "艾特", "点", spell_host=True)),
        "spaces": _said("邮箱", lambda r: _spoken_mail(r, " @ ", " . ")),
        "圈a": _said("邮箱", lambda r: _spoken_mail(r, "圈a", "点")),
        "spelled": _said(
            "邮箱",
            lambda r: " ".join(r.choice(("zhang", "liming", "sunny"))) + " 艾特 " + r.choice(("qq", "163")) + " 点 com",
        ),
        "下划线": _said(
            "邮箱",
            lambda r: f"{r.choice(('li', 'wang'))}下划线{r.choice(('wei', 'ming'))}艾特{r.choice(('qq', '163'))}点com",
        ),
        "capital letters": _said("邮箱", lambda r: _spoken_mail(r, "@", ".").upper()),
        "digits in words": _said("邮箱", lambda r: _spoken(str(r.randrange(10**7, 10**9))) + "艾特qq点com"),
        "full width @": _said("邮箱", lambda r: _spoken_mail(r, "＠", "．")),
    },
    "地址": {
        "road in words": _said("地址", lambda r: f"{_place(r)}{r.choice(ROADS)}{_numeral(r.randint(1, 99))}号"),
        "estate in words": _said(
            "地址",
            lambda r: (
                f"{r.choice(ESTATES)}{_numeral(r.randint(1, 30))}号楼{_numeral(r.randint(1, 6))}单元"
                + _spoken(_room(r), one="一")
            ),
        ),
        "Shanghai lane": _said(
            "地址", lambda r: f"上海浦东{r.choice(ROADS)}{r.randint(100, 999)}弄{r.randint(1, 60)}号{_room(r)}室"
        ),
        "no 市 and 区": _said("地址", lambda r: f"深圳南山{r.choice(ROADS)}{r.randint(1, 99)}号"),
        "hyphens": _said("地址", lambda r: f"{r.choice(ESTATES)}{r.randint(1, 30)}-{r.randint(1, 4)}-{_room(r)}"),
        "座": _said(
            "地址", lambda r: f"{r.choice(PLACES)[2]}{r.choice(ROADS)}{r.randint(1, 99)}号{r.choice('ABC')}座{_room(r)}"
        ),
        "号院": _said(
            "地址",
            lambda r: f"{r.choice(PLACES)[2]}{r.choice(ROADS)}{r.randint(1, 30)}号院{r.randint(1, 9)}号楼{_room(r)}",
        ),
        "village group": _said(
            "地址",
            lambda r: (
                "".join(r.choice(PLACES)[1:])
                + f"{r.choice(TOWNS)}{r.choice(VILLAGES)}{_numeral(r.randint(1, 9))}组{r.randint(1, 60)}号"
            ),
        ),
        "spaces": _said(
            "地址", lambda r: f"{' '.join(filter(None, r.choice(PLACES)))} {r.choice(ROADS)} {r.randint(1, 99)}号"
        ),
        "street office": _said(
            "地址",
            lambda r: (
                f"{r.choice(PLACES)[2]}{r.choice(('望京街道', '粤海街道', '文新街道'))}"
                f"{r.choice(ESTATES)}{r.randint(1, 30)}幢{_room(r)}"
            ),
        ),
    },
    "姓名": {
        "compound 姓": lambda r: (r.choice(("我姓", "免贵姓")), r.choice(COMPOUND_SURNAMES), ""),
        "rarer 先生": lambda r: (r.choice(("请问是", "找", "")), r.choice(RARER_SURNAMES), r.choice(("先生", "女士"))),
        "compound 女士": lambda r: (r.choice(("请问是", "")), r.choice(COMPOUND_SURNAMES), r.choice(("先生", "女士"))),
        "我的名字叫": lambda r: (r.choice(("我的名字叫", "名字是", "我名字叫")), _full_name(r), ""),
        "本人": lambda r: (
            r.choice(("本人", "机主", "户名", "机主姓名", "开户人")),
            _full_name(r),
            r.choice((",", "。")),
        ),
        "您是...吗": lambda r: (
            r.choice(("您是", "请问是", "请问您是")),
            _full_name(r),
            r.choice(("吗", "本人吗", "对吧")),
        ),
        "师傅": lambda r: (
            r.choice(("", "上门的", "找")),
            r.choice(SURNAMES),
            r.choice(("师傅", "老师", "经理", "阿姨", "大爷")),
        ),
        "老, 小": lambda r: (r.choice(("叫我老", "叫我小")), r.choice(SURNAMES), "就行"),
        "compound 我叫": lambda r: ("我叫", _full_name(r, COMPOUND_SURNAMES), r.choice(("", ",", "。"))),
        "rarer 我叫": lambda r: ("我叫", _full_name(r, RARER_SURNAMES), r.choice(("", ",要投诉", "我要投诉"))),
        "rarer contact": lambda r: (
            r.choice(("收货人", "收件人是", "联系人叫")),
            _full_name(r, RARER_SURNAMES),
            r.choice((",", "")),
        ),
        "我是, no pause": lambda r: ("我是", _full_name(r), r.choice(("我要投诉", "我的号码停了"))),
        "是 at the end": lambda r: ("客服:请问您贵姓\n客户:姓", r.choice(RARER_SURNAMES), ""),
    },
}


def _id_with_x(rng: random.Random) -> str:
    while not (number := fake_id(rng)).endswith("X"):
        pass
    return number


# --- what only looks like it -----------------------------------------------------------------------------


def _looks(rng: random.Random) -> str:
    n = rng.randrange
    return rng.choice(
        (
            f"多扣了我{n(10, 5000)}块钱",
            f"转了{n(10000, 9999999)}元",
            f"一共{n(1, 99)},{n(100, 999)},{n(100, 999)}元",
            f"费用是{n(10, 999)}.{n(10, 99)}",
            f"订单号2026{n(1, 13):02d}{n(1, 29):02d}{n(10**6):06d}",
            f"订单编号{n(10**11, 10**12)}",
            f"工单号{n(2 * 10**9, 3 * 10**9)}",
            f"快递单号SF{n(10**12, 10**13)}",
            f"运单YT{n(10**14, 10**15)}",
            f"流水号{n(10**9, 2 * 10**9 - 1)}",
            f"2026年{n(1, 13)}月{n(1, 29)}日办的",
            f"2026-{n(1, 13):02d}-{n(1, 29):02d} {n(24):02d}:{n(60):02d}:{n(60):02d}扣的",
            f"二零二六年{_numeral(n(1, 13))}月{_numeral(n(1, 29))}号",
            f"{n(1, 13)}月{n(1, 29)}号下午{n(1, 7)}点{n(10, 60)}分",
            f"晚上{_numeral(n(6, 12))}点到{_numeral(n(6, 12))}点",
            f"打10086打了{n(2, 30)}次",
            "打了95588也没用",
            "400-810-1234打不通",
            f"验证码{n(10**5, 10**6)}收不到",
            f"尾号{n(10**3, 10**4)}的卡",
            f"手机尾号{n(10**3, 10**4)}",
            f"等了{_numeral(n(2, 30))}天了",
            f"第{_numeral(n(1, 9))}次打来了",
            f"网速只有{n(1, 99)}点{n(1, 9)}兆",
            f"套餐{n(10, 300)}元{n(1, 99)}G",
            f"型号是HM{n(100, 9999)}",
            f"账单上写着{n(1, 9)}、{n(10, 20)}、{n(20, 30)}号各扣一次",
            f"编号A{n(10**4, 10**5)}",
            f"共{n(1, 9)}个问题",
            f"IP是192.168.{n(256)}.{n(1, 255)}",
            f"排队号{n(1, 300)}号",
            f"{n(1, 9)}楼的营业厅",
            f"坐了{n(1, 300)}路公交车",
            "我是王者荣耀的玩家",
            "王者荣耀充值没到账",
            "马上给我处理",
            "我马上要用",
            "我很高兴",
            "我是高兴不起来",
            "张家口的营业厅不给办",
            "我是张家口的",
            "我在石家庄",
            "江苏移动的客服",
            "我是黄金会员",
            "我是白金卡用户",
            "我是金卡客户",
            "我是安装宽带的",
            "我是成都的",
            "这位先生态度不好",
            "那个女士说能办",
            "有位小姐接的电话",
            "这个师傅没来",
            "你们经理在哪",
            "让你们老师来",
            "何时能处理",
            "任何人都不行",
            "我是方便的时候再打",
            "我是常用这个号的",
            "我叫你们退钱",
            "我叫了三次快递",
            "我叫他来装的",
            "我姓什么不重要",
            "别人叫我办的",
            "这一路都没信号",
            "小区里没信号",
            "小区3天没网了",
            "我们村没有5G",
            "北京的营业厅",
            "去上海出差",
            "广东省内通用吗",
            "楼下那家店",
            "网络路由器坏了",
            "这条路走不通",
            "这个花园不错",
            "大厦里信号差",
            "邮箱收不到发票",
            "艾特我一下",
            "差一点就买了",
            "京东买的",
            "川菜馆",
            "豫剧频道看不了",
            "沪深300基金",
            "新A5手机",
            "京A开头的车都不行",
            "于是我就打电话",
            "关于女士优惠",
            "单身先生",
            "金额不对",
            "钱没退",
            "白天没信号",
            "万一又扣怎么办",
            "我是从来没办过",
            "我是马上要出国",
            "安先生说的那个套餐" if n(50) == 0 else "安装师傅没来",
            "老板不在",
            "小程序打不开",
            "老王八蛋" if n(50) == 0 else "老是掉线",
            "收件人不在",
            "联系人写错了",
            "户主不同意",
            "姓名写错了",
            "姓名不对",
        )
    )


# --- measuring -------------------------------------------------------------------------------------------


def plant(formats: Formats, count: int, seed: int) -> Iterator[Planted]:
    """So many values in sentences, every kind and every format of a kind equally often."""
    rng = random.Random(f"{seed}:{formats}")
    by_kind = SEEN if formats == "seen" else UNSEEN
    for index in range(count):
        kind = list(by_kind)[index % len(by_kind)]
        name = list(by_kind[kind])[index // len(by_kind) % len(by_kind[kind])]
        before, value, after = by_kind[kind][name](rng)
        yield Planted(kind, name, rng.choice(STARTS) + before, value, after + rng.choice(ENDS))


def look_alikes(count: int, seed: int) -> Iterator[str]:
    """So many sentences without personal data."""
    rng = random.Random(f"{seed}:look-alikes")
    for _ in range(count):
        yield rng.choice(STARTS) + _looks(rng) + rng.choice((*ENDS, f",{_looks(rng)}"))


def is_found(item: Planted, masked: str) -> bool:
    """Whether exactly the value has become one token of its kind."""
    whole = (
        rf"{re.escape(clean_call(item.before + '0'))[:-1]}<{item.kind}1>{re.escape(clean_call('0' + item.after))[1:]}"
    )
    return re.fullmatch(whole, masked) is not None


def wilson(hits: int, of: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    if of == 0:
        return 0.0, 1.0
    z, share = 1.959964, hits / of
    middle, spread = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (middle - spread) / (1 + z * z / of), (middle + spread) / (1 + z * z / of)


@dataclass(frozen=True, slots=True)
class Measured:
    """Counts of one run.

    Attributes:
        planted, found: By formats, then by kind.
        misses: Text and what came back, by formats.
        tokens, right: Tokens that masking made in all texts, and those that stand for a planted value.
    """

    planted: dict[str, Counter[str]]
    found: dict[str, Counter[str]]
    misses: dict[str, list[tuple[Planted, str]]]
    false_alarms: list[tuple[str, str]]
    tokens: int
    right: int

    def recall(self, formats: Formats) -> float:
        return self.found[formats].total() / self.planted[formats].total()

    @property
    def precision(self) -> float:
        return self.right / self.tokens


def measure(items: int, seed: int) -> Measured:
    """Mask ``items`` planted values of seen and of unseen formats each, and as many sentences without any."""
    planted: dict[str, Counter[str]] = {"seen": Counter(), "unseen": Counter()}
    found: dict[str, Counter[str]] = {"seen": Counter(), "unseen": Counter()}
    misses: dict[str, list[tuple[Planted, str]]] = {"seen": [], "unseen": []}
    false_alarms: list[tuple[str, str]] = []
    tokens = right = 0
    both: tuple[Formats, Formats] = ("seen", "unseen")
    for formats in both:
        for item in plant(formats, items, seed):
            masked = mask(clean_call(item.text))
            made = len(TOKEN.findall(masked))
            hit = is_found(item, masked)
            planted[formats][item.kind] += 1
            found[formats][item.kind] += hit
            tokens, right = tokens + made, right + hit
            if not hit:
                misses[formats].append((item, masked))
    for text in look_alikes(items, seed):
        masked = mask(clean_call(text))
        if made := len(TOKEN.findall(masked)):
            tokens += made
            false_alarms.append((text, masked))
    return Measured(planted, found, misses, false_alarms, tokens, right)


class Words(runconfig.RunConfig):
    """Words of the command line."""

    items: int = Field(default=6000, ge=100)
    """Planted values of seen formats; as many of unseen ones and as many sentences without any."""
    seed: int = 0
    show: int = Field(default=0, ge=0)
    """Misses of seen formats and false alarms to print."""


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__, file=sys.stderr)
        return 0
    try:
        words = runconfig.load(Words, None, arguments)
    except runconfig.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    result = measure(words.items, words.seed)
    print(f"{'':8}{'seen formats':>32}{'unseen formats':>32}")
    for kind in (*KINDS, "all"):
        cells = []
        for formats in ("seen", "unseen"):
            found, planted = result.found[formats], result.planted[formats]
            hits, of = (found.total(), planted.total()) if kind == "all" else (found[kind], planted[kind])
            low, high = wilson(hits, of)
            cells.append(f"{hits:6d}/{of:<6d} {hits / max(of, 1):.4f} ({low:.3f}-{high:.3f})")
        print(f"{kind:8}" + "".join(f"{cell:>32}" for cell in cells))
    low, high = wilson(result.right, result.tokens)
    print(
        f"precision {result.right}/{result.tokens} {result.precision:.4f} ({low:.3f}-{high:.3f}), of which "
        f"{len(result.false_alarms)} of {words.items} sentences without personal data were touched"
    )
    for item, masked in result.misses["seen"][: words.show]:
        print(f"  missed {item.kind}, {item.format}: {item.text!r} -> {masked!r}")
    for text, masked in result.false_alarms[: words.show]:
        print(f"  false alarm: {text!r} -> {masked!r}")
    figures = {
        "items": words.items,
        "seed": words.seed,
        "recall_seen": result.recall("seen"),
        "recall_unseen": result.recall("unseen"),
        "precision": result.precision,
    }
    print(json.dumps(figures))
    reached = (
        result.recall("seen") >= BARS["seen"]
        and result.recall("unseen") >= BARS["unseen"]
        and result.precision >= BARS["precision"]
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
