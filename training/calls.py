"""Seeded generator of Chinese complaint calls, and the keywords of the baseline they are measured against.

There is no public set of Chinese complaint calls with categories, so the project makes its own. A call is a
scenario (cause, domain, product, amount, customer), worded by :mod:`training.grammar` and spoken in turns through a
speech recognition channel. Keywords alone must not solve it: a call may raise two matters and say that one is
settled ("contrast"), name the open one only by its place ("ordinal": 先说的那个弄好了, 就剩后面这个), and the agent
may guess wrong. One wording in ten is for the test calls alone, one for the validation calls. Scores on these calls
say whether the machinery learns; they say nothing about real calls.

    python -m training.calls out=data/calls.jsonl count=400 seed=7 [split=test] [difficulty=hard]
    python -m training.calls out=runs/calls splits='{train: 25000, validation: 800, test: 1000}' difficulty=hard

writes JSON lines with the fields of :class:`TrainingData`; with ``splits`` a folder with a file for each. The same
settings give the same bytes everywhere. ``metadata.rationales`` has the passages that tell of each matter.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

import runconfig
from model_server import masking
from model_server.classification import LABELS, clean_call
from training import grammar
from training.records import TrainingData

Split = Literal["train", "validation", "test"]
Kind = Literal["plain", "contrast", "ordinal"]
LETTERS = tuple(LABELS)


Difficulty = Literal["standard", "hard"]
DIFFICULTIES: dict[Difficulty, dict[str, float]] = {
    "standard": {"p_contrast": 0.35, "p_ordinal": 0},
    "hard": {"p_contrast": 0.2, "p_ordinal": 0.35},
}
"""What a difficulty sets where the settings do not say. Character n-grams solve contrasts, not ordinals."""


class CallSettings(runconfig.RunConfig):
    """How hard the calls are."""

    seed: int = 0
    difficulty: Difficulty = "standard"
    p_contrast: float = Field(default=DIFFICULTIES["standard"]["p_contrast"], ge=0, le=1)
    """Share of complaints that also tell of another matter, already settled."""
    p_ordinal: float = Field(default=DIFFICULTIES["standard"]["p_ordinal"], ge=0, le=1)
    """Share of complaints with two matters, where only first/second tells which is open."""
    p_distract: float = Field(default=0.25, ge=0, le=1)
    """Share of calls in which the agent guesses a wrong category."""
    p_asr: float = Field(default=0.25, ge=0, le=1)
    """Share of calls with recognition faults: no punctuation, homophones, fillers, spoken digits."""
    p_colloquial: float = Field(default=0.6, ge=0, le=1)
    """Share of calls with fillers, particles, words said twice and clauses the other way round."""
    p_unseen: float = Field(default=0.1, ge=0, le=1)
    """Share of validation and test calls in wordings that training never shows."""
    p_personal: float = Field(default=0.25, ge=0, le=1)
    """Share of calls with (invented) personal data."""
    label_noise: float = Field(default=0, ge=0, le=1)
    """Share of training calls with a wrong label."""
    zipf: float = Field(default=0.3, ge=0)
    """Categories are drawn with weight 1/rank**zipf; 0 draws them evenly."""

    @model_validator(mode="before")
    @classmethod
    def _what_the_difficulty_sets(cls, raw: object) -> object:
        if not isinstance(raw, dict):
            return raw
        return {**DIFFICULTIES.get(raw.get("difficulty", "standard"), {}), **raw}


# --- what callers say: training/wordings, put together here ------------------------------------------------

WEIGHTS = {"电信": 3, "银行": 2, "电商": 3}
"""How often a cause that happens everywhere is told of a domain; the others weigh 1."""

KEYWORDS: dict[str, tuple[str, ...]] = {
    "A": ("多收", "多扣", "扣费", "收费", "账单", "话费", "费用", "手续费", "扣了", "收了", "多出", "利息", "涨"),
    "B": ("误导", "宣传", "推销", "承诺", "广告", "忽悠", "保证", "答应", "说好", "拍胸脯", "虚假"),
    "C": ("擅自", "私自", "没同意", "开通", "没经过我同意", "没办过", "谁给", "自动", "莫名其妙", "偷偷"),
    "D": ("信号", "网速", "断网", "质量", "坏了", "漏水", "卡顿", "掉线", "做工", "声音", "味"),
    "E": ("态度", "没人理", "没人管", "敷衍", "排队", "窗口", "不耐烦", "挂", "投诉单", "推来推去"),
    "F": ("合约", "解约", "携号转网", "携转", "销户", "注销", "违约金", "不想用", "合同", "没到期", "退保"),
    "G": ("退款", "退货", "换货", "押金", "退钱", "退给", "退了", "不退", "返", "没到账"),
    "H": ("安装", "快递", "物流", "送货", "师傅", "上门", "签收", "送到", "配送", "行李"),
    "I": ("泄露", "骚扰", "个人信息", "电话号码", "隐私", "打电话", "陌生人", "信息", "推销电话"),
    "J": ("被盗", "诈骗", "冻结", "异常登录", "骗子", "盗刷", "转走", "被骗", "账户", "密码"),
    "K": ("系统", "登录", "闪退", "报错", "页面", "小程序", "app", "验证码", "打不开", "机器"),
    "L": ("请问", "咨询", "查一下", "怎么办理", "多少钱", "能不能", "了解一下", "吗", "麻烦"),
}
HOMOPHONES = {
    "话费": "花费",
    "账单": "帐单",
    "合约": "和约",
    "宽带": "款待",
    "退款": "推款",
    "流量": "六量",
    "套餐": "套参",
    "信号": "型号",
    "安装": "按装",
    "投诉": "头诉",
    "账户": "帐户",
    "快递": "块递",
    "师傅": "师父",
    "会员": "汇源",
    "验证码": "验正码",
    "押金": "压金",
    "保险": "保鲜",
    "退货": "推货",
    "违约金": "违约经",
    "登录": "登陆",
}
_SPOKEN = str.maketrans("0123456789", "零幺二三四五六七八九")
_PAUSES = re.compile("[,。?!]")


def part_of_wording(place: int) -> Split:
    """Where a wording is used when it is used in one part only: eight in ten are training's."""
    return {4: "validation", 9: "test"}.get(place % 10, "train")  # type: ignore[return-value]


@cache
def _places(letter: str, part: Split, domain: str | None) -> tuple[int, ...]:
    """Of the part's wordings of a category, those of this domain; all of them where there are none."""
    of = [at for at in range(len(grammar.category(letter).wordings)) if part_of_wording(at) == part]
    return tuple(at for at in of if domain in grammar.category(letter).wordings[at].domains) or tuple(of)


def _drawn(places: tuple[int, ...], letter: str, rng: random.Random) -> int:
    """One of the places; a line with many alternatives is drawn more often."""
    return rng.choices(places, cum_weights=_sizes(places, letter))[0]


@cache
def _sizes(places: tuple[int, ...], letter: str) -> list[int]:
    return list(accumulate(grammar.category(letter).wordings[at].alternatives for at in places))


@cache
def _slot(name: str) -> grammar.Pattern:
    return (grammar.common()[name],)


def colloquial(text: str, rng: random.Random) -> str:
    """The text as it comes to mind: fillers, particles, words said twice, clauses the other way round."""
    clauses = text.split(",")
    if len(clauses) > 1 and rng.random() < 0.12:
        at = rng.randrange(len(clauses) - 1)
        clauses[at : at + 2] = clauses[at + 1], clauses[at]
    for at, clause in enumerate(clauses):
        draw = rng.random()
        if draw < 0.16:
            clauses[at] = grammar.say(_slot("filler"), rng.random, "") + (clause if draw < 0.1 else f",{clause}")
        elif draw < 0.28 and clause[-1:] not in "吗呢吧啊了的嘛呀":
            clauses[at] = clause + grammar.say(_slot("particle"), rng.random, "")
        elif draw < 0.32 and len(clause) > 3:
            clauses[at] = clause[:2] + ("," if draw < 0.3 else "不是,") + clause
    return ",".join(clauses)


def recognised(text: str, rng: random.Random) -> str:
    """What speech recognition makes of it: no punctuation, homophones, fillers."""
    text = _PAUSES.sub(lambda _: rng.choice((" ", "")), text)
    for right, wrong in HOMOPHONES.items():
        if right in text and rng.random() < 0.3:
            text = text.replace(right, wrong)
    if rng.random() < 0.4:
        text = grammar.say(_slot("filler"), rng.random, "") + text
    return text


# --- invented personal data ------------------------------------------------------------------------------


def fake_mobile(rng: random.Random) -> str:
    return f"1{rng.choice('3578')}{rng.randrange(10**9):09d}"


def fake_id(rng: random.Random) -> str:
    """Eighteen characters that pass the check of GB 11643."""
    body = f"{rng.choice(('110101', '310104', '440106', '510107'))}{rng.randint(1950, 2005)}"
    body += f"{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}{rng.randrange(1000):03d}"
    # ISO 7064: weights are powers of two modulo 11; the masker spells its table out, which keeps the two apart.
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(body))
    check = (12 - total) % 11
    return body + ("X" if check == 10 else str(check))


def fake_card(rng: random.Random) -> str:
    """Sixteen to nineteen digits that pass Luhn."""
    body = f"62{rng.randrange(10**13):013d}" + "".join(str(rng.randrange(10)) for _ in range(rng.randint(0, 3)))
    total = sum(sum(divmod(int(digit) * (2 - place % 2), 10)) for place, digit in enumerate(reversed(body)))
    return body + str(-total % 10)


# --- one call --------------------------------------------------------------------------------------------


def split_of(customer: str, settings: CallSettings) -> Split:
    """A customer's calls are all in one part: 70 % train, 10 % validation, 20 % test."""
    digest = hashlib.sha256(f"{settings.seed}:{customer}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.7 else "validation" if share < 0.8 else "test"


@cache
def _weights(zipf: float) -> list[float]:
    return [1 / (rank + 1) ** zipf for rank in range(len(LETTERS))]


def make_call(index: int, settings: CallSettings) -> tuple[TrainingData, Split]:
    """The call with this number. Depends on seed, number and settings only, so parts can be made apart."""
    rng = random.Random(f"{settings.seed}:{index}")  # a str seed is hashed by SHA-512, alike everywhere
    draw = rng.random
    customer = f"cust-{settings.seed}-{rng.randrange(1 + index // 3, 2 + index):06d}"
    split = split_of(customer, settings)
    unseen = split != "train" and draw() < settings.p_unseen
    part: Split = split if unseen else "train"
    letter = rng.choices(LETTERS, _weights(settings.zipf))[0]
    at = _drawn(_places(letter, part, None), letter, rng)
    wording = grammar.category(letter).wordings[at]
    domain = rng.choices(wording.domains, [WEIGHTS.get(each, 1) for each in wording.domains])[0]
    asr, loose = draw() < settings.p_asr, draw() < settings.p_colloquial

    def heard(text: str) -> str:
        return recognised(text, rng) if asr else text

    def said(slot: str, **given: str) -> str:
        return heard(grammar.say(_slot(slot), draw, domain, given))

    def matter(of: grammar.Wording) -> str:
        text = grammar.say(of.pattern, draw, domain)
        return heard(colloquial(text, rng) if loose else text)

    kind = _kind(letter, draw(), settings)
    issue = matter(wording)
    other = rng.choice([one for one in LETTERS if one not in {letter, "L"}])
    enquiry = "_l" if letter == "L" else ""
    greeting = said(f"greeting{enquiry}") if draw() < 0.7 else ""
    detail = said("detail") if draw() < 0.25 else ""
    opening, wide = [one for one in (greeting, detail) if one], draw()
    turns: list[tuple[str, str]] = [("客服", said("opening"))] if draw() < 0.6 else []
    personal = draw() < settings.p_personal
    if personal:
        number = rng.choice((fake_mobile, fake_mobile, fake_id, fake_card))(rng)
        turns += [("客服", said("check")), ("客户", number.translate(_SPOKEN) if asr else number)]
    if opening and wide < 0.3:  # the caller greets, the agent answers, then comes the matter
        turns += [("客户", ",".join(opening)), ("客服", said("acknowledge"))]
        opening = []
    span, settled = issue, ""
    if kind == "plain":
        first, comma, rest = issue.partition(",")
        if comma and draw() < 0.15:  # the matter in two breaths
            turns += [("客户", ",".join([*opening, first])), ("客服", said("acknowledge")), ("客户", rest)]
            span = max(first, rest, key=len)
        else:
            turns.append(("客户", ",".join([*opening, issue])))
    else:
        places = _places(other, part, domain)
        settled = matter(grammar.category(other).wordings[_drawn(places, other, rng)])
        if opening:
            turns.append(("客户", ",".join(opening)))
        if kind == "contrast":
            # The matters are put into their frame after they were heard: the span must stay as it is.
            frame = {"old": settled, "new": issue, "settled": said("settled")}
            turns.append(("客户", grammar.say(_slot("contrast"), draw, domain, frame)))
        else:
            first_open = draw() < 0.5
            both = {"first": issue, "second": settled} if first_open else {"first": settled, "second": issue}
            turns.append(("客户", grammar.say(_slot("two_matters"), draw, domain, both)))
            if draw() < 0.5:
                turns.append(("客服", said("acknowledge")))
            turns.append(("客户", said("first_open" if first_open else "second_open")))
    if draw() < settings.p_distract:
        guess = rng.choice([one for one in LETTERS if one not in {letter, other, "L"}])
        turns += [("客服", said("guess", guessed=rng.choice(KEYWORDS[guess]))), ("客户", said("denial"))]
    _add_the_rest(turns, letter, kind, domain, said, rng, heard)
    if asr and draw() < 0.1:  # diarisation mixes the speakers up now and then
        turns[-1] = ("客服" if turns[-1][0] == "客户" else "客户", turns[-1][1])
    bare = draw() < 0.05  # some sources give no speakers
    text = "\n".join(line if bare else f"{speaker}:{line}" for speaker, line in turns)
    label = letter
    if split == "train" and draw() < settings.label_noise:
        label = rng.choice([one for one in LETTERS if one != letter])
    call = TrainingData(
        conversation_id=f"call-{settings.seed}-{index:06d}",
        input_text=text,
        complaint_category=LABELS[label],
        confidence_score=1.0,
        metadata={
            "customer_id": customer,
            "template_id": f"{letter}{at}",
            "domain": domain,
            "kind": kind,
            "unseen_wording": unseen,
            "asr": asr,
            "personal_data": personal,
            "rationales": {LABELS[letter]: [span], **({LABELS[other]: [settled]} if settled else {})},
        },
    )
    return call, split


def _kind(letter: str, draw: float, settings: CallSettings) -> Kind:
    if letter == "L":  # an enquiry is never one of two complaints, but may come after one
        return "contrast" if draw < settings.p_contrast / 3 else "plain"
    if draw < settings.p_contrast:
        return "contrast"
    return "ordinal" if draw < settings.p_contrast + settings.p_ordinal else "plain"


def _add_the_rest(
    turns: list[tuple[str, str]],
    letter: str,
    kind: Kind,
    domain: str,
    said: Callable[[str], str],
    rng: random.Random,
    heard: Callable[[str], str],
) -> None:
    """What follows the matter: more about it, the agent between, waiting, anger, a wish, the end.

    Two open matters get no more about either of them: the verdict on the two must decide.
    """
    lines: list[str] = []
    more = 0 if kind == "ordinal" else int(rng.random() * 2.6)
    lines += [heard(grammar.say((grammar.category(letter).besides,), rng.random, domain)) for _ in range(more)]
    if letter == "L":
        lines += [said("closing_l")] * (rng.random() < 0.4)
    else:
        lines += [said("slow")] * (letter != "E" and rng.random() < 0.15)
        lines += [said("emotion")] * (rng.random() < 0.25)
        lines += [said("ask")] * (rng.random() < 0.25)
        lines += [said("closing")] * (rng.random() < 0.3)
    for line in lines:
        draw = rng.random()
        if draw < 0.35 and turns[-1][0] == "客户" and kind != "ordinal":
            turns[-1] = ("客户", f"{turns[-1][1]},{line}")
        elif draw < 0.8:
            answer = [("客户", said("reply"))] * (draw < 0.42)
            turns += [("客服", said("acknowledge")), *answer, ("客户", line)]
        else:
            turns.append(("客户", line))


# --- many calls ------------------------------------------------------------------------------------------


_UNTOLD = re.compile(r"[\W\d_]|嗯|呃|那个|就是说|啊")


def fingerprint(text: str) -> str:
    """What is left of a call without numbers, punctuation and fillers: equal ones count as copies."""
    text = masking.mask(clean_call(text))
    return _UNTOLD.sub("", text)


def make_calls(settings: CallSettings) -> Iterator[tuple[TrainingData, Split]]:
    """Calls without end and without copies: a call whose fingerprint came before is left out."""
    seen: set[str] = set()
    index = 0
    while True:
        call, split = make_call(index, settings)
        index += 1
        key = fingerprint(call.input_text)
        if key not in seen:
            seen.add(key)
            yield call, split


def make_splits(settings: CallSettings, counts: dict[Split, int]) -> dict[Split, list[TrainingData]]:
    """The first calls of each part, as many as asked."""
    splits: dict[Split, list[TrainingData]] = {name: [] for name in counts}
    for call, split in make_calls(settings):
        if split in splits and len(splits[split]) < counts[split]:
            splits[split].append(call)
        if all(len(splits[name]) == count for name, count in counts.items()):
            break
    return splits


class OutputSettings(runconfig.RunConfig):
    """Words of the command line."""

    out: Path
    """JSON lines file to write; with ``splits`` the folder of the files."""
    count: int = Field(default=400, ge=1)
    seed: int = 7
    difficulty: Difficulty = "standard"
    split: Split | None = None
    """Only this part; None takes the calls as they come."""
    splits: dict[Split, Annotated[int, Field(ge=1)]] | None = None
    """Calls of each part; in place of ``count`` and ``split``."""


def main(arguments: Sequence[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__, file=sys.stderr)
        return 0 if arguments else 2
    try:
        wanted = runconfig.load(OutputSettings, None, arguments)
    except runconfig.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    settings = CallSettings(seed=wanted.seed, difficulty=wanted.difficulty)
    if wanted.splits is not None:
        found = make_splits(settings, wanted.splits)
        for name, calls in found.items():
            write_lines(calls, wanted.out / f"{name}.jsonl")
        number = sum(map(len, found.values()))
    else:
        drawn = (call for call, split in make_calls(settings) if wanted.split in {None, split})
        number = write_lines(islice(drawn, wanted.count), wanted.out)
    print(json.dumps({"out": str(wanted.out), "calls": number, "seed": wanted.seed}, ensure_ascii=False))
    return 0


def write_lines(calls: Iterable[TrainingData], path: Path) -> int:
    """JSON lines; returns their number."""
    lines = [json.dumps(call.model_dump(), ensure_ascii=False) + "\n" for call in calls]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
