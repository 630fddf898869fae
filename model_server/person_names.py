"""Who speaks or is spoken of in a Chinese call: 我叫王小明, 免贵姓欧阳, 张先生, 机主李娜, 叫我老高就行.

No list of names is complete, so a name is found by the words around it: a surname and one or two more characters
after "my name is", or before a title. Where these words say little (我是...) the characters must be usual ones of
given names, and what follows must end the name. Words that begin like names (高兴, 张家口, 马上) are told apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

TITLES = "先生|女士|小姐|太太|师傅|老师|经理|阿姨|大爷|大妈|大姐|大哥|叔叔|老板|主任|同志|医生|律师|奶奶|爷爷|夫人|总"

_SURNAMES = frozenset(
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈"
    "姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔汤赖"
    "施康欧倪樊兰殷洪翟安颜柳温俞章鲁葛伍申尤毕聂焦柴邢骆岳齐庄涂祁耿牟卜詹关苗凌纪靳盛童甄曲游裴席卫屈鲍"
    "霍翁隋甘景单包柏宁柯阮桂闵丛芦邬敖冉常乔梅庞左邝符舒蒲阎窦管谷文向易车池迟褚邸狄刁封冀姬蓝练娄麦米缪"
    "穆农区瞿沙佘司谈佟危尉巫奚冼辛胥晏燕阳应雍虞喻郁臧祝卓宗茅滕仇栾厉戎祖蔺屠蒙闻贡扶桑濮牛寿扈浦尚艾古"
    "简饶鞠荆竺鄢钦晋楚冷匡寇郜阙蔚隆巢诸萧闾"
)
_COMPOUND = (
    "欧阳|司马|诸葛|上官|皇甫|令狐|东方|慕容|尉迟|夏侯|公孙"
    "|端木|独孤|南宫|长孙|宇文|轩辕|呼延|司徒|司空|西门|百里|澹台|申屠"
)
# Surnames that more often end another word: what must not stand before them (话费先生, 明白女士, 十分钟先生).
_NOT_AFTER = {
    "何": "任如为几奈", "于": "由关对属等至位处终过基在急小大", "方": "对官我双甲乙警校资厂店卖买平地多比的贵",
    "周": "上下本一每两这四", "高": "最提很太更", "白": "明空坦表", "谢": "谢感多致答", "钟": "分点秒",
    "程": "课流工过里进远行全日小", "任": "责主信担", "许": "也允或少准不",
    "金": "现基押佣资奖租定年约黄本奖罚", "钱": "的我退扣收付要花块多少交给赚退点本", "安": "平保公治西不",
    "段": "这那时阶一片路频分", "余": "剩其业多", "顾": "照回主光客不", "付": "支对缴预垫交代应", "史": "历",
    "毛": "一二三四五六七八九十几", "曾": "不未", "万": "一二三四五六七八九十百千几", "常": "非经正平日通异",
    "易": "容交贸简轻不", "范": "规示防", "施": "设措实", "康": "健小", "赖": "依信无", "温": "体气高低",
    "章": "文公规", "关": "机有相没海无开", "单": "简订买账下名工菜签保清", "包": "量红钱面语加书承背餐会员音",
    "文": "语英中外作", "车": "打停上下", "向": "方一意倾动我", "项": "事款各", "管": "主不保监托尽",
    "闻": "新听", "古": "复蒙", "简": "精", "艾": "针", "边": "这那", "司": "公", "童": "儿", "游": "旅", "贺": "祝",
}  # fmt: skip
_NEVER_TITLED = frozenset("祝应司区管米左封沙谈阳农席麦池车向燕练文温纪危")
_GIVEN = frozenset(
    "伟芳娜敏静秀英丽强磊军洋勇艳杰娟涛明超兰霞平刚桂玲燕红梅建国华文玉春志永海雪晓婷佳宇浩欣怡梓涵子轩博"
    "思雨晨小大立力东波斌宁福生龙元胜学祥才发武新利清飞彬富顺信健伯宏厚义茂进林有坚和彪诚先敬震振壮会群豪"
    "心邦承乐绍功松善庆友裕河哲江亮政谦亨奇固之轮翰朗言若鸣朋梁栋维启克伦翔旭鹏泽辰士以家致树炎德行时泰盛"
    "雄琛钧冠策腾楠榕风航弘秋珍莉荣爱妹香月媛瑞凡嘉琼勤贞素云莲真环荷琴馨凝瑗叶璧璐娅琦晶妍茜珊莎锦黛青倩"
    "婉娴瑾颖露瑶婵雁蓓纨仪丹蓉眉君薇菁梦岚苑筠柔竹霭影韵融园艺咏卿聪澜纯毓悦昭冰爽琬茗羽希飘育滢馥洁丝兴"
    "萍俊成康辉达安岩中仁贵光昌世奎三四五六七修懿婧彤萱诗琪雯熙皓睿恒阳凯帆淼鑫森焱垚宝玺然可依一萌语桐铭"
    "骏煜晖昊天宸佑茹菲蕾蕊莹琳璇钰川北南西湖田柏桦杨柳桃杏菊芝芸芬蓝紫朱砚墨书画笔赋舞曲律钢铁铜银锋剑鼓"
    "岭崇峻崎巍峨岱岳峡渊源溪潮浪洲港湾滨汉淮渭洛沛沐沁泳淑渝湘潇灿炜炳煌熠耀炫焕照熊虎豹凤鹤鹰麒麟骥骁驰"
    "山水根柱栓锁喜旺财满仓余粮柴囤祖宗传嗣孝悌廉耻温良恭俭智姗妙妮姣娇娥娘媚嫣嫦巧惠慧念恩慈憬懋戈抒擎攀"
    "敦斐旖旻昂昆昕昱晋晗晟暄曦望朔未本杜枫柯栩桢梧梨楚楷槐樱欢歆毅汐沙浦涯润淳湛溢滔漪澄瀚瀛焘煦牧珂珏珠"
    "球琨瑛瑜璋璞甜畅皎盈硕祎祺禄禹秉科秦程稳穗笑笛筱箐籽绮绣缘罡翎翠耘聆肖胤舒舟艾芊苇苏茵茸荔荻莘菀菡蒙"
    "蔓蔚藩虹蝶衡襄觉誉谊谷豫贝贤赫路轶迅近迪逸遥邈郁采金鉴钊钦铎锐锴键镇长隽隆雷霄霆靖韬顶领颂飒骄魁鲁鸿"
    "黎默齐"
)
_NOT_GIVEN = frozenset(
    "我你您他她它的是在想要了啊呢吧吗这那哪不就也都和跟呀嘛么什怎谁没有个两次几块元号电手住身办投反打说话问请给把被让"
    "来去到从退换装宽网信账查看听好对于与及或但因所以今昨前后上下里外先女士师傅老板经理客服们家为何时"
)
_AFTER_FULL_NAMES = {"先生", "女士", "小姐", "太太"}
_SPELLED = {
    "弓长张": "张", "立早章": "章", "木子李": "李", "耳东陈": "陈", "双木林": "林", "口天吴": "吴",
    "古月胡": "胡", "走肖赵": "赵", "言午许": "许", "草头黄": "黄", "三横王": "王", "三横一竖王": "王",
    "双人徐": "徐", "口十叶": "叶", "双口吕": "吕", "人可何": "何", "干勾于": "于", "卯金刘": "刘",
    "文刀刘": "刘", "木易杨": "杨", "禾火秋": "秋", "草肃萧": "萧", "大唐唐": "唐", "十八子李": "李",
}  # fmt: skip
_STRONG = (
    "我叫|名字叫|名字是|名字:|名字:|名叫|叫做|姓名|户名|机主|户主|联系人|收件人|收货人|寄件人|开户人|持卡人|投保人|申请人|经办人|"
    "登记人|签收人|订货人|登记的是|写的是|实名是|本人"
)
_WEAK = (
    "我是|我就是|您是|你是|请问是|是不是|这里是|这边是|我找|联系一下|叫|老公|老婆|爱人|丈夫|妻子|媳妇|儿子|女儿|父亲|母亲|爸爸|妈妈|"
    "我爸|我妈|朋友|同事|我系|业务员|专员|快递员|店长|销售|主管"
)
_ALSO_OTHER_WORDS = {"本人", "机主", "户主", "联系人", "收件人"}
"""Cues after which other words than a name are as usual: 本人办理, 户主不同意."""
_NICK = "叫我老|叫我小|老|小"
_ASKED = "称呼|贵姓|名字|叫什么|哪位|姓什么"
_CUES = {
    cue: kind
    for kind, cues in (
        ("asked", _ASKED),
        ("surname", "姓"),
        ("title", TITLES),
        ("weak", _WEAK),
        ("strong", _STRONG),
        ("nick", _NICK),
        ("spelled", "|".join(_SPELLED)),
        ("token", "<手机号|<身份证号|<银行卡号|<地址"),
    )
    for cue in cues.split("|")
}
_CUE = re.compile("|".join(sorted(_CUES, key=len, reverse=True)))
_ANSWERED = re.compile(r"[^\n]{0,12}\n客户:")
_ANSWERED_AT_ONCE = re.compile(r"[^\n]{0,4}\n客户:")
_NO_TITLE = re.compile("总[是算共部公体之数额计台裁店得会]")
_LINK = re.compile("(?:[::, ]|是|叫|做|为|的名字|姓名|名字|就是|嗯|呃){0,3}")
_GIVEN_NAMED = re.compile(f"[, ]?(?:单?名|名叫|叫)(?:一个)?(?P<given>[{''.join(sorted(_GIVEN))}]{{1,2}})")
_FOREIGN = re.compile("[一-龥]{2,6}[·•・][一-龥]{2,7}?(?=$|[^一-龥]|[我的要想吗吧呢啊是在]|本人|先生|女士|电话|手机)")
_COMPOUND_AT = re.compile(_COMPOUND)
_TITLE_AT = re.compile(TITLES)
_AFTER_WEAK = re.compile(
    r"$|[\s,。!?、;:,!?;)(]|<(?!姓名)|吗|本人|吧|对吧|对吗|先生|女士|小姐|啊|呀|呢|哈|我|说|给我|跟我|告诉|答应|要投诉|想|要|的(?:电话|手机|号|快递|卡|家|名字|爱人|儿子|女儿|妈妈|爸爸|母亲|父亲|老公|老婆|丈夫|妻子|家属|朋友|同事|哥哥|姐姐|弟弟|妹妹)|打来|他|她|是吗|是吧|没错"
)
_AFTER_NICK = re.compile(r"$|[\s,。!?、;:,!?;)(]|<(?!姓名)|吗|吧|啊|呀|就行|就好|说|的")
_PAUSE = re.compile(r"$|[\s,。!?、;:,!?;)(]|<(?!姓名)")
_NO_NICKNAME = frozenset("程钱万包米龙车区农单文石毛时段席关金白方安常高温练沙游麦童左封向谈易祝应管司余")
_BEFORE_NAME = frozenset("是叫找给跟和问的位请让我你您那为有替帮与被对名称姓了在把到从,。:;!?、 \n::,!?;(")
_WORDS_LIKE_NAMES = {
    "万一", "万家", "万家乐", "万达", "万里", "严重", "于是", "付款", "付费", "任何", "何必", "何时", "余额",
    "关于", "农民", "农行", "冷水", "包年", "包月", "包邮", "单位", "单独", "单程", "古文", "向来", "和平",
    "唐山", "夏天", "宁夏", "宁波", "安全", "安家", "安庆", "安康", "安徽", "安心", "安装", "安达", "安阳",
    "宗旨", "封号", "左右", "左边", "常州", "常年", "常德", "常温", "常用", "常规", "平安", "应该", "康佳",
    "康德", "张家", "成都", "文件", "文明", "文章", "方便", "方向", "方式", "方才", "方正", "方法", "方面",
    "施工", "时候", "明天", "明白", "易信", "桑拿", "武昌", "武汉", "毛病", "水果", "水泥", "水电", "江北",
    "江南", "江山", "江湖", "江苏", "江西", "江阴", "汤山", "沙发", "沙子", "海信", "温州", "温水", "游戏",
    "牛奶", "田地", "田里", "白云", "白天", "白金", "石头", "石子", "石家", "程度", "童装", "简介", "简历",
    "管家", "米家", "艾灸", "英文", "路程", "车主", "车牌", "车辆", "车险", "边上", "金华", "金卡", "金属",
    "金山", "金融", "金钱", "金银", "金额", "钱", "钱财", "雷军家", "顾客", "马上", "马云家", "高中", "高兴",
    "高安", "高山", "高新", "高明", "高清", "高温", "麦当", "黄山", "黄金", "龙华", "龙岩", "龙江", "龙泉",
}  # fmt: skip


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
        if not "一" <= sign <= "龥" or _TITLE_AT.match(text, end) or (sign in _NOT_GIVEN and sign not in "时家"):
            break
        if sign not in _GIVEN and (strict or (end > at + size and not _AFTER_WEAK.match(text, end + 1))):
            break
        if end > at + size and _begins_a_word(text, end):
            break
        end += 1
    if end == at + size:
        return 0
    return 0 if text[at:end] in _WORDS_LIKE_NAMES or text[at : at + 2] in _WORDS_LIKE_NAMES else end - at


# Characters of given names that as often begin what comes next.
_NEXT_WORDS = re.compile(
    "本人|根本|维修|领导|路由|长期|超过|水费|水电|金额|默认|财务|喜欢|满意|铁路|未必|程序|维权|山东|江苏|浙江|河南|河北|湖南|湖北|"
    "可以|可能|一直|一下|一个|一共|一月|行不|行吗|有没|有人|有个|会员|先生|以前|以后|心情|大概|小区|东西|信号|新办|中国|先把|和我|清楚|天天|成了|安装|发现|生气|发了|时间"
    "|家里|家住|家的|海关|明天|才|光纤|立刻|立即|今天|利息"
)


def _begins_a_word(text: str, at: int) -> bool:
    return _NEXT_WORDS.match(text, at) is not None


def _before_title(text: str, last: int, at: int, title: str, *, alone: bool = True) -> int | None:
    """Where the name before a title begins.

    Args:
        alone: Whether a surname alone will do.
    """
    if title in _AFTER_FULL_NAMES:
        for size in (4, 3, 2):
            start = at - size
            if (
                start >= last
                and (start == 0 or text[start - 1] in _BEFORE_NAME)
                and _full_name(text, start, strict=True) == size
                and not (size == 2 and _COMPOUND_AT.match(text, start))
            ):
                return start
    if not alone:
        return None
    if at - 2 >= last and _COMPOUND_AT.match(text, at - 2):
        return at - 2
    start = at - 1
    if start < last or text[start] not in _SURNAMES or text[start] in _NEVER_TITLED:
        return None
    return None if start and text[start - 1] in _NOT_AFTER.get(text[start], "") else start


def full_names(text: str, surname: str) -> Iterator[tuple[int, int, str, str]]:
    """Names that begin with a surname that is known from elsewhere in the call: 我姓钟,钟表的钟,钟秀英."""
    at = text.find(surname)
    while at >= 0:
        size = _full_name(text, at, strict=True)
        if size and (at == 0 or text[at - 1] in _BEFORE_NAME) and _AFTER_WEAK.match(text, at + size):
            yield at, at + size, "姓名", text[at : at + size]
        at = text.find(surname, at + max(1, size))


def names(text: str) -> Iterator[tuple[int, int, str, str]]:
    """Names of people, from left to right, with what makes two of them the same."""
    last = 0
    for cue in _CUE.finditer(text):
        at = cue.end()
        kind = _CUES[cue[0]]
        if cue[0] == "贵姓" and _surname(text, at):
            kind = "surname"
        if kind == "strong" and _ANSWERED_AT_ONCE.match(text, at):  # 请问机主姓名 / 客户:陈志强
            kind = "asked"
        if kind == "asked":
            answered = _ANSWERED.match(text, at)
            if answered is None:
                continue
            at = answered.end()
        start, end = at, at
        if kind == "title":
            if cue[0] == "总" and _NO_TITLE.match(text, cue.start()):
                continue
            found = _before_title(text, last, cue.start(), cue[0])
            if found is not None:
                start, end = found, cue.start()
        elif kind == "token":  # 张伟,<手机号1>
            close = cue.start()
            while close > max(last, cue.start() - 2) and text[close - 1] in " ,:":
                close -= 1
            found = _before_title(text, last, close, "先生", alone=False)
            if found is not None:
                start, end = found, close
        elif cue[0] == "本人" and (found := _before_title(text, last, cue.start(), "先生", alone=False)) is not None:
            start, end = found, cue.start()
        elif kind == "surname":
            link = _LINK.match(text, at)
            start = link.end() if link else at
            end = start + _surname(text, start)
            if end > start >= last and (named := _GIVEN_NAMED.match(text, end)):
                yield start, end, "姓名", text[start:end]
                start, end = named.span("given")
                last = start
        elif kind == "spelled":
            yield cue.start(), cue.end(), "姓名", _SPELLED[cue[0]]
            last = cue.end()
            continue
        elif kind == "nick":
            size = _surname(text, at)
            again = text.find(text[at - 1 : at + size], at + size, at + size + 4) >= 0  # 小程,小程序: a stutter
            known = len(cue[0]) > 1 or (text[at : at + 1] not in _NO_NICKNAME and not again)
            if size and known and _AFTER_NICK.match(text, at + size):
                end = at + size
        else:
            link = _LINK.match(text, at)
            start = link.end() if link else at
            if foreign := _FOREIGN.match(text, start):
                end = foreign.end()
            else:
                size = _full_name(text, start, strict=kind == "weak")
                if cue[0] in _ALSO_OTHER_WORDS and not _PAUSE.match(text, start + size):
                    size = _full_name(text, start, strict=True)
                end = start + size
                if kind in {"weak", "asked"} and size and not _AFTER_WEAK.match(text, end):
                    end = start
                if kind == "weak" and text[start : start + 1] in "老小" and _surname(text, start + 1):
                    start, end = start + 1, start + 2
                    if text[start] in _NO_NICKNAME or not _AFTER_WEAK.match(text, end):
                        end = start
                if kind == "asked" and not size and _surname(text, start) and _AFTER_WEAK.match(text, start + 1):
                    end = start + 1
        if end > start >= last:
            yield start, end, "姓名", text[start:end]
            last = end
