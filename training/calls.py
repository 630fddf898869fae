"""Seeded generator of Chinese complaint calls, and the keyword baseline they are measured against.

There is no public set of Chinese complaint calls with categories, so the project makes its own. A call is a
scenario (domain, product, amount, customer) spoken in turns through a speech recognition channel. Keywords
alone must not solve it: a call may raise two matters and say that one is settled ("contrast"), name the open
one only by its place ("ordinal": 先说的那个弄好了, 就剩后面这个), and the agent may guess wrong. Scores on these
calls say whether the machinery learns; they say nothing about real calls.

    python -m training.calls out=data/calls.jsonl count=400 seed=7 [split=test]

writes JSON lines with the fields of :class:`TrainingData`. The same settings give the same bytes everywhere.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

import runconfig
from model_server import masking
from model_server.classification import LABELS, clean_call
from training.records import TrainingData

Split = Literal["train", "validation", "test"]
Kind = Literal["plain", "contrast", "ordinal"]


class CallSettings(runconfig.RunConfig):
    """How hard the calls are."""

    seed: int = 0
    p_keyword: float = Field(default=0.85, ge=0, le=1)
    """Share of matters put in words that name their category."""
    p_contrast: float = Field(default=0.2, ge=0, le=1)
    """Share of complaints that first tell of another matter, already settled."""
    p_ordinal: float = Field(default=0.2, ge=0, le=1)
    """Share of complaints with two matters, where only first/second tells which is open."""
    p_distract: float = Field(default=0.25, ge=0, le=1)
    """Share of calls in which the agent guesses a wrong category."""
    p_asr: float = Field(default=0.25, ge=0, le=1)
    """Share of calls with recognition faults: no punctuation, homophones, fillers, spoken digits."""
    p_unseen: float = Field(default=0.1, ge=0, le=1)
    """Share of validation and test calls in wordings that training never shows."""
    p_personal: float = Field(default=0.4, ge=0, le=1)
    """Share of calls with (invented) personal data."""
    label_noise: float = Field(default=0, ge=0, le=1)
    """Share of training calls with a wrong label."""
    zipf: float = Field(default=0.3, ge=0)
    """Categories are drawn with weight 1/rank**zipf; 0 draws them evenly."""


# --- what callers say ------------------------------------------------------------------------------------
# (a|b) is a choice, {x} a slot. The last two wordings of each category appear in test calls only, the third
# from the end in validation calls only: what is fitted there must have met wordings that training has not.

MATTERS: dict[str, tuple[str, ...]] = {
    "A": (
        "套餐费用突然从{amount}涨了一截,(没人讲过为什么|凭什么)",
        "一笔钱(扣了两遍|收了两次),{amount}块,(给我说清楚|账单也看不明白)",
        "这个月账单(多收了|多扣了){amount}块钱(|,我根本没用那么多)",
        "你们(乱扣费|乱收费),{product}(一下|莫名其妙)扣了我{amount}",
        "{product}的(话费|费用)不对,比说好的(多出|贵了){amount}块",
        "每个月都有一笔{amount}块的收费(说不清楚|不知道是什么)",
        "我的钱(怎么又|又)少了{amount}块,查也查不出是什么项目",
        "(明明|本来)一个月{amount},这次(却要|收了我)双倍",
        "为什么要我出这{amount}块,这笔钱(不该我付|没道理)",
        "对账的时候(发现|看到)多了一项{amount}块的手续费,账单上没写",
        "余额(平白无故|无缘无故)少掉{amount}块",
    ),
    "B": (
        "买{product}前说随时能取消,(结果不能|原来是假的),宣传和实际不符",
        "讲好是(老客户特惠|限时活动),(回头一看|后来才知道)根本没这回事",
        "办{product}的时候(宣传|承诺)的优惠(根本没有|都是假的)",
        "业务员误导我(办了|买了){product},跟说的完全不一样",
        "推销的时候(承诺|保证)每月只要{amount}块,(现在不认了|结果不是)",
        "广告宣传写着(免费|不限量),用了才知道有(条件|限制)",
        "当初说好送的{gift}(一直没给|到现在没影)",
        "(那个小姑娘|打电话那人)把{product}说得天花乱坠,(全是忽悠|跟实际两码事)",
        "卖给我的时候只讲好处,(坏处一句没提|风险一个字没说)",
        "承诺的收益和(合同上|实际)写的对不上,(等于骗我买的|全是话术)",
        "讲的是一套,(到手|用起来)又是另一套,(忽悠人|说得好听)",
    ),
    "C": (
        "(莫名其妙|什么时候)给我开通了{product},我没同意啊",
        "我(没签字|没确认)过,{product}(怎么就有了|就这么上了)",
        "没经过我同意就(擅自|私自)开通了{product}",
        "我(从来没|根本没)办过{product},怎么就开通了",
        "(擅自|偷偷)给我加了一个{product},(我都不知道|没问过我)",
        "手机里(突然|莫名)多了{product},我没同意过",
        "我没点过头,你们就把{product}给我(装上|弄上)了",
        "(谁让你们|凭什么)替我做主上了{product}",
        "我什么都没按,{product}自己就(生效了|挂上了)",
        "没有我的授权就(私自|擅自)订了{product}",
        "谁也没问过我,(名下|账上)就挂了个{product}",
    ),
    "D": (
        "信号(不好|太弱),屋里(没法|不能)打电话",
        "买的{product}(老是死机|一会儿就没电),(没法用|根本不能用)",
        "家里信号(特别差|一格都没有),打电话断断续续",
        "网速(太慢|慢得不行),{days}天了都这样",
        "{product}质量有问题,用了{days}天就坏了",
        "(宽带|网络)老是断网,一天断好几回",
        "东西到手就(开裂|不转)了,做工太差",
        "在{city}这边(打不出去也接不到|老是没声音)",
        "看个视频(转圈|卡)半天,(晚上|白天)根本没法用",
        "这一带信号时有时无,网速也(上不去|很慢)",
        "用了没{days}天就(不转|开裂)了,声音也断断续续",
    ),
    "E": (
        "你们接线员态度(不好|恶劣),(问什么都不耐烦|话没说完就挂)",
        "报上去的事(石沉大海|没了下文),(催了{days}回|等了{days}天)也没个人管",
        "客服态度(太差|恶劣),说两句就挂我电话",
        "我打了{days}次投诉都没人理,(太敷衍|互相推)",
        "上次说{days}天内回复,等了(半个月|一个月)没人管",
        "营业厅的人态度(很差|很凶),(爱理不理|冲我嚷嚷)",
        "(前一个接线的|上回那位)讲话(阴阳怪气|很不耐烦)",
        "排队排了{days}个小时,窗口(就开一个|没人办)",
        "说好给我回电话,(一拖再拖|拖到现在),一个电话也没有",
        "打了{days}次都(推来推去|敷衍),没有一个人给准话",
        "窗口那个人(冲我嚷嚷|爱理不理),等了半天没人理",
    ),
    "F": (
        "销户(跑了{days}趟|拖了{days}天)都不给办,说有合约",
        "我要(转走|离开)你们这家,(左一个|又一个)条件拦着不让",
        "我要(解约|解除合约),你们不让,还要违约金",
        "携号转网(一直|总)办不了,说我有合约",
        "合约(到期了|早就到期)还不给我取消",
        "(想销户|要注销)非让我去{city}的营业厅",
        "想换到别家,(卡着不放|设了一堆门槛)",
        "说我还绑着{days}个月,走不了,(我没签过|没人讲过)",
        "不想用了要退出来,(非要|得)赔{amount}块才让走",
        "携转的时候说我还有{days}个月合约,(不放我走|卡着不让走)",
        "想走走不了,(要么赔钱|要么等{days}个月)才解除",
    ),
    "G": (
        "退款(只退了一半|少退了{amount}块)",
        "钱(该还我的|要退我的)一直拖着,(东西早收回去了|你们说已经打了可没有)",
        "申请退款{days}天了,钱还没到账",
        "退货(寄回去|签收)了,退款一直不给",
        "要求换货,(商家|你们)不给换",
        "说好七天无理由退货,现在(不认|拒绝)",
        "东西都还回去了,{amount}块(迟迟|还)没返给我",
        "想把{product}退掉,你们(就是不受理|左推右推)",
        "(尺寸|型号)不合适想调一个,(死活不肯|一直不批)",
        "退款申请被(驳回|卡住)了,{amount}块退不回来",
        "货还回去{days}天,钱(没返|还没回来),也不给调",
    ),
    "H": (
        "快递(丢了|送错地方了),物流(查不到|没人找)",
        "师傅约了{days}次都(放鸽子|不露面),机器还在箱子里",
        "约好今天上门安装,(师傅没来|没人来)",
        "快递{days}天了还没送到,物流(一直不动|不更新)",
        "送货的把东西(放楼下|扔门口)就走了",
        "安装师傅(乱要价|装一半走了),(墙都打坏了|没装好)",
        "下单{days}天了,东西(影子都没有|还在{city})",
        "说{days}天内来人给接上,(到现在没人上门|又改期)",
        "显示已签收,(可我没拿到|我根本没收到)",
        "预约的安装改了{days}次,(还没上门|没有师傅来)",
        "东西在{city}停了{days}天不动,(没人送|影子都没有)",
    ),
    "I": (
        "(刚留的|我留的)电话马上就有人(推销贷款|骚扰),信息泄露了吧",
        "天天有生人(加我微信|打我手机),(报得出|知道)我在你们这的单号",
        "我的(个人信息|号码)被泄露了,天天有人打电话",
        "一天{days}个骚扰电话,都知道我(名字|在你们这办过业务)",
        "你们把我的资料泄露给(贷款公司|中介)了吧",
        "骚扰短信(没完没了|一天到晚),退订也没用",
        "刚(办完|买完){product},陌生人就(来电|找上门),连我住哪都清楚",
        "不停有人打来卖{product},(我没留过电话|怎么拿到我电话的)",
        "我的住址怎么(外人|别人)都知道了,是不是你们(卖出去|传出去)的",
        "个人信息怎么到了(中介|贷款公司)手里,骚扰不断",
        "陌生人不停(来电|打来),连我叫什么住哪都知道",
    ),
    "J": (
        "卡被冻结{days}天了,(解不开|没人说为什么)",
        "手机一醒来(钱就没了|被转走{amount}),(我根本没操作|密码谁都没告诉)",
        "我的账户被盗了,{amount}块不见了",
        "接到诈骗电话,卡里被转走{amount}",
        "账号异常登录,(密码被改了|有人在{city}登的)",
        "无缘无故冻结我的账户,(工资都取不出|什么都干不了)",
        "有人(冒充我|拿我证件)办了{product}",
        "半夜收到(好几条验证码|消费提醒),不是我弄的,钱没了",
        "我的号(进不去|上不了)了,别人拿去(借了钱|转了账)",
        "卡在{city}被人刷了{amount},被盗(不是我花的|我人在家)",
        "半夜有人拿我的号借了钱,不是我弄的",
    ),
    "K": (
        "系统(提示出错|卡死),单子(提交不了|办不下去)",
        "(网页|公众号)(打不开|一直转圈),想(缴费|办事)都办不成",
        "App(一打开就闪退|登录不上),试了{days}次",
        "你们系统(崩了|老出错),交不了费",
        "网上营业厅登录(不了|报错),验证码收不到",
        "系统一直显示(繁忙|维护),业务办不成",
        "手机上那个页面(点了没反应|一片空白)",
        "自助机(吞了我的卡|没反应),提示(错误|稍后再试)",
        "线上(提交不了|付不出去),一按就(跳回首页|卡住)",
        "小程序系统报错,(一按就跳回首页|点了没反应),试了{days}次",
        "页面一片空白,(提交不了|付不出去),换手机也一样",
    ),
    "L": (
        "请问{product}(能不能|可不可以)改成别的",
        "我想办一个{product},(需要带什么|要什么材料)",
        "请问(怎么|如何)办理{product}",
        "我想咨询一下{product}(多少钱|怎么收费)",
        "请问退款一般(几天|多久)到账,我先了解一下",
        "帮我查一下(账单|合约)什么时候到期",
        "想问问{city}有没有(营业厅|网点)",
        "麻烦帮我把{product}开通一下",
        "我换地址了,想改一下(寄送|安装)的地方",
        "咨询一下{product}(怎么办|有什么优惠),我了解一下",
        "麻烦查一下{city}的网点(几点开门|在哪)",
    ),
}
HELD_OUT: dict[Split, slice] = {"train": slice(0, -3), "validation": slice(-3, -2), "test": slice(-2, None)}

KEYWORDS: dict[str, tuple[str, ...]] = {
    "A": ("多收", "多扣", "扣费", "收费", "账单", "话费", "费用"),
    "B": ("误导", "宣传", "推销", "承诺", "广告"),
    "C": ("擅自", "私自", "没同意", "开通", "没经过我同意"),
    "D": ("信号", "网速", "断网", "质量"),
    "E": ("态度", "没人理", "没人管", "敷衍"),
    "F": ("合约", "解约", "携号转网", "携转", "销户"),
    "G": ("退款", "退货", "换货"),
    "H": ("安装", "快递", "物流", "送货"),
    "I": ("泄露", "骚扰", "个人信息"),
    "J": ("被盗", "诈骗", "冻结", "异常登录"),
    "K": ("系统", "登录", "闪退", "报错"),
    "L": ("请问", "咨询", "查一下"),
}

PRODUCTS = {
    "电信": ("流量包", "宽带", "彩铃", "套餐", "副卡", "来电提醒", "会员包"),
    "银行": ("信用卡", "理财", "分期", "短信提醒", "保险", "贷款"),
    "电商": ("耳机", "电饭煲", "洗衣机", "会员", "空调", "行车记录仪", "延保"),
}
CITIES = ("北京", "上海", "广州", "成都", "武汉", "西安", "沈阳", "昆明", "郑州", "长沙", "厦门", "兰州")
GIFTS = ("话费券", "手机", "米和油", "体检卡", "电饭锅")

OPENINGS = ("您好,请问有什么可以帮您", "您好,很高兴为您服务", "你好,这里是客服中心", "您好,请讲")
GREETINGS = ("你好", "喂,你好", "", "是这样的", "我反映个情况", "我说一下啊", "哎你好,麻烦听我说")
CHECKS = ("请报一下您的手机号码", "麻烦核对一下身份", "请提供一下登记的号码", "请说一下您的证件号")
ACKNOWLEDGEMENTS = ("好的,我记录一下", "明白了,您请继续", "嗯,我在听", "抱歉给您添麻烦了", "理解您的心情")
EMOTIONS = ("真是气死我了", "你们必须给个说法", "我要往上投诉", "我都跑了好几趟了", "太不像话了", "你说这叫什么事")
CLOSINGS = ("请尽快处理", "麻烦快一点", "我等你们回话", "那就这样吧", "什么时候能给我答复", "好,谢谢")
DENIALS = ("不是,不是这个", "跟那个没关系", "你没听明白,不是的", "不是那回事")
CONTRASTS = (
    "之前{old},这个(已经解决了|后来弄好了)。现在是{new}",
    "上回打来是因为{old},那个(处理完了|不用管了),今天是{new}",
    "{old},不过(这事已经给我办妥了|昨天已经好了)。我今天说的是{new}",
    "{new}。至于之前{old},那个(已经办妥了|早就解决了)",
)
TWO_MATTERS = (
    "我有两件事,一个是{first},还有一个是{second}",
    "两个问题,头一个{first},再一个{second}",
    "先说一个,{first}。再说一个,{second}",
)
SECOND_OPEN = (
    "先说的那个(弄好了|解决了),就剩后面这个",
    "第一件(已经处理完了|不用管了),现在麻烦的是第二件",
    "前面那个(好了|办妥了),后面说的还没人管",
)
FIRST_OPEN = (
    "后面那个(弄好了|解决了),就剩先说的",
    "第二件(已经处理完了|不用管了),现在麻烦的是第一件",
    "后面说的(好了|办妥了),前面那个还没人管",
)
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
}
FILLERS = ("嗯", "呃", "那个", "就是说", "啊")
_SPOKEN = str.maketrans("0123456789", "零幺二三四五六七八九")


def _expand(text: str, rng: random.Random, slots: dict[str, str]) -> str:
    """Make the choices of ``(a|b)``, innermost first, and fill the slots."""
    while choice := re.search(r"\(([^()]*\|[^()]*)\)", text):
        text = text[: choice.start()] + rng.choice(choice[1].split("|")) + text[choice.end() :]
    return text.format(**slots)


def _wordings(letter: str, *, keyword: bool, part: Split) -> list[int]:
    """Places in MATTERS of the part's wordings that have, or have not, one of the category's keywords."""
    texts = MATTERS[letter]
    pool = range(len(texts))[HELD_OUT[part]]
    fitting = [at for at in pool if any(word in texts[at] for word in KEYWORDS[letter]) == keyword]
    return fitting or list(pool)


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


def make_call(index: int, settings: CallSettings) -> tuple[TrainingData, Split]:
    """The call with this number. Depends on seed, number and settings only, so parts can be made apart."""
    rng = random.Random(f"{settings.seed}:{index}")  # a str seed is hashed by SHA-512, alike everywhere
    customer = f"cust-{settings.seed}-{rng.randrange(1 + index // 3, 2 + index):06d}"
    split = split_of(customer, settings)
    unseen = split != "train" and rng.random() < settings.p_unseen
    letters = list(MATTERS)
    weights = [1 / (rank + 1) ** settings.zipf for rank in range(len(letters))]
    letter = rng.choices(letters, weights)[0]
    domain = rng.choice(sorted(PRODUCTS))
    city = rng.choice(CITIES)
    asr = rng.random() < settings.p_asr

    def matter(of: str) -> tuple[str, int]:
        at = rng.choice(_wordings(of, keyword=rng.random() < settings.p_keyword, part=split if unseen else "train"))
        slots = {
            "product": rng.choice(PRODUCTS[domain]),
            "amount": str(rng.choice((5, 9, 10, 15, 19, 20, 29, 30, 50, 59, 88, 99, 128, 199, 300, 599, 1200))),
            "days": str(rng.randint(2, 15)),
            "city": city,
            "gift": rng.choice(GIFTS),
        }
        return _expand(MATTERS[of][at], rng, slots), at

    def heard(text: str) -> str:
        return _recognised(text, rng) if asr else text

    kind: Kind = "plain"
    if letter != "L":
        draw = rng.random()
        kind = (
            "contrast"
            if draw < settings.p_contrast
            else "ordinal"
            if draw < settings.p_contrast + settings.p_ordinal
            else "plain"
        )
    issue, at = matter(letter)
    issue = heard(issue)
    other = rng.choice([one for one in letters if one not in {letter, "L"}])
    turns: list[tuple[str, str]] = [("客服", heard(rng.choice(OPENINGS)))]
    greeting = heard(rng.choice(GREETINGS))
    personal = rng.random() < settings.p_personal
    if personal:
        kinds = (fake_mobile, fake_mobile, fake_id, fake_card)
        number = rng.choice(kinds)(rng)
        said = number.translate(_SPOKEN) if asr else number
        turns += [("客服", heard(rng.choice(CHECKS))), ("客户", said)]
    if kind == "plain":
        turns.append(("客户", ",".join(filter(None, (greeting, issue)))))
    else:
        settled = heard(matter(other)[0])
        if kind == "contrast":
            frame = _expand(rng.choice(CONTRASTS), rng, {"old": settled, "new": issue})
            turns.append(("客户", frame))
        else:
            first_open = rng.random() < 0.5
            first, second = (issue, settled) if first_open else (settled, issue)
            frame = rng.choice(TWO_MATTERS).format(first=first, second=second)
            verdict = heard(_expand(rng.choice(FIRST_OPEN if first_open else SECOND_OPEN), rng, {}))
            turns.append(("客户", frame))
            if rng.random() < 0.5:
                turns.append(("客服", heard(rng.choice(ACKNOWLEDGEMENTS))))
            turns.append(("客户", verdict))
    if rng.random() < settings.p_distract:
        guess = rng.choice([one for one in letters if one not in {letter, other, "L"}])
        word = rng.choice(KEYWORDS[guess])
        turns += [("客服", heard(f"您是说{word}的问题吗")), ("客户", heard(rng.choice(DENIALS)))]
    elif rng.random() < 0.5:
        turns.append(("客服", heard(rng.choice(ACKNOWLEDGEMENTS))))
    if letter != "L" and rng.random() < 0.4:
        turns.append(("客户", heard(rng.choice(EMOTIONS))))
    if rng.random() < 0.5:
        turns.append(("客户", heard(rng.choice(CLOSINGS))))
    if asr and rng.random() < 0.1:  # diarisation mixes the speakers up now and then
        turns[-1] = ("客服" if turns[-1][0] == "客户" else "客户", turns[-1][1])
    text = "\n".join(f"{speaker}:{said}" for speaker, said in turns)
    label = letter
    if split == "train" and rng.random() < settings.label_noise:
        label = rng.choice([one for one in letters if one != letter])
    start = text.index(issue)
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
            "gold_span": [start, start + len(issue)],
        },
    )
    return call, split


def _recognised(text: str, rng: random.Random) -> str:
    """What speech recognition makes of it: no punctuation, homophones, fillers."""
    text = re.sub("[,。?!]", lambda _: rng.choice((" ", "")), text)
    for right, wrong in HOMOPHONES.items():
        if right in text and rng.random() < 0.3:
            text = text.replace(right, wrong)
    if rng.random() < 0.4:
        text = rng.choice(FILLERS) + text
    return text


# --- many calls ------------------------------------------------------------------------------------------


def fingerprint(text: str) -> str:
    """What is left of a call without numbers, punctuation and fillers: equal ones count as copies."""
    text = masking.mask(clean_call(text))
    return re.sub(rf"[\W\d_]|{'|'.join(FILLERS)}", "", text)


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
    """JSON lines file to write."""
    count: int = Field(default=400, ge=1)
    seed: int = 7
    split: Split | None = None
    """Only this part; None takes the calls as they come."""


def main(arguments: Sequence[str]) -> int:
    raw = dict(word.partition("=")[::2] for word in arguments)
    try:
        wanted = runconfig.validate(OutputSettings, raw, "python -m training.calls")
    except runconfig.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    settings = CallSettings(seed=wanted.seed)
    lines: list[str] = []
    for call, split in make_calls(settings):
        if wanted.split in {None, split}:
            lines.append(json.dumps(call.model_dump(), ensure_ascii=False) + "\n")
        if len(lines) == wanted.count:
            break
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    wanted.out.write_text("".join(lines), encoding="utf-8")
    print(json.dumps({"out": str(wanted.out), "calls": len(lines), "seed": wanted.seed}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
