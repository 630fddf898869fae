"""What the embedded model learns to say in a chat: a little about itself, and a remark on a call.

A model of one million parameters knows these sentences and nothing else. They are there so that a chat
streams readable Chinese, not so that it informs.

    python -m training.dialogue data=runs/.../data out=runs/.../chat.jsonl

writes them as a replay file of ``training.finetune``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import runconfig
from model_server.classification import SUFFIX
from training import prepared
from training.errors import DataError
from training.records import TrainingData

_QUESTIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("你好,请介绍一下你自己。", "请介绍一下你自己", "你是谁?", "介绍一下自己", "你叫什么名字"),
        (
            "你好!我是一个随项目附带的小模型,只有大约一百万个参数,用来把投诉通话分成十二类。"
            "我也能回答几句简单的话,但知道的不多;需要更好的回答,请换用更大的模型。"
        ),
    ),
    (
        ("请解释一下人工智能的基本概念。", "什么是人工智能?", "解释一下人工智能", "人工智能是什么意思"),
        (
            "人工智能是让计算机完成通常需要人来做的事情的技术,例如看懂图像、听懂语音、理解文字和作出判断。"
            "常见的做法是机器学习:程序从大量例子里找出规律,再用这些规律处理新的情况。"
        ),
    ),
    (
        ("写一个简单的 Python 函数来计算阶乘。", "用 Python 计算阶乘", "写一个阶乘函数", "Python 阶乘怎么写"),
        (
            "可以这样写:\ndef factorial(n):\n    result = 1\n    for i in range(2, n + 1):\n"
            "        result = result * i\n    return result\n例如 factorial(5) 等于 120。"
        ),
    ),
    (
        ("你好", "你好!", "您好", "在吗", "喂,你好"),
        "你好!请把通话内容发给我,我来告诉你它属于哪一类投诉。",
    ),
    (
        ("你能做什么?", "你会什么", "你有什么用", "怎么用你"),
        (
            "我可以阅读一通客服电话的文字,判断客户仍未解决的问题属于十二类中的哪一类,并给出可信程度。"
            "把握不大的时候,我会建议转给人工处理。"
        ),
    ),
    (
        ("有哪些类别?", "投诉分为哪几类", "分类有哪些", "列出所有类别"),
        (
            "一共十二类:收费争议、营销误导、擅自开通、网络或产品质量、服务态度与时效、合约与解约、退款退换、"
            "物流与安装、信息泄露与骚扰、账户安全与欺诈、系统渠道故障,以及不是投诉的咨询办理。"
        ),
    ),
    (
        ("谢谢", "谢谢你", "好的,谢谢", "再见"),
        "不客气,祝您生活愉快,再见!",
    ),
)

_ADVICE = {
    "收费争议": "请计费部门核对账单,确认有误后退回多收的费用",
    "营销误导": "请市场部门核对推销时的说法,按当时的承诺处理",
    "擅自开通": "请立即关闭没有同意的业务,并退回相关费用",
    "网络/产品质量": "请安排技术人员检测,必要时维修或更换",
    "服务态度与时效": "请主管回电致歉,并在承诺的时间内答复",
    "合约/解约/携转": "请核对合约期限,符合条件的尽快办理解除",
    "退款退换": "请查询退款进度,符合条件的尽快退回",
    "物流/安装履约": "请联系物流或安装人员,重新约定上门时间",
    "信息泄露与骚扰": "请登记号码并排查信息泄露的来源",
    "账户安全与欺诈": "请先保护账户安全,再核实可疑的交易",
    "系统渠道故障": "请技术部门排查系统,并告知恢复时间",
    "非投诉(咨询办理)": "按客户的要求说明或办理就可以了",
}


def questions() -> list[tuple[str, str]]:
    """Pairs of question and answer, a few ways to ask each."""
    return [(question, answer) for ways, answer in _QUESTIONS for question in ways]


def about_calls(calls: Sequence[TrainingData], texts: Sequence[str]) -> list[tuple[str, str]]:
    """A remark on each call: its category and what should be done."""
    return [
        (text, f"这通电话属于「{call.complaint_category}」。{_ADVICE[call.complaint_category]}。")
        for call, text in zip(calls, texts, strict=True)
    ]


def rendered(pairs: Iterable[tuple[str, str]], suffix: str) -> Iterator[tuple[str, str]]:
    """Prompt and answer as the chat template renders them with thinking off and no system turn."""
    for question, answer in pairs:
        yield f"<|im_start|>user\n{question}{suffix}", f"{answer}<|im_end|>"


REMARKS = 3_000
"""Of a replay file: more than a small run draws."""


def pairs(calls: Sequence[TrainingData]) -> list[dict[str, Any]]:
    """Lines of a replay file: half of what is drawn are questions, half remarks on the first calls."""
    calls = calls[:REMARKS]
    asked, told = questions(), about_calls(calls, [call.input_text for call in calls])
    weights = [len(told) / len(asked)] * len(asked) + [1.0] * len(told)
    return [
        {"prompt": prompt, "answer": answer, "weight": weight}
        for (prompt, answer), weight in zip(rendered([*asked, *told], SUFFIX), weights, strict=True)
    ]


class OutputSettings(runconfig.RunConfig):
    """Words of the command line."""

    data: Path
    """Prepared folder, whose training calls are remarked on."""
    out: Path
    """JSON lines file to write."""


def main(arguments: Sequence[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__, file=sys.stderr)
        return 0 if arguments else 2
    try:
        wanted = runconfig.load(OutputSettings, None, arguments)
        found = pairs(prepared.load(wanted.data, "train"))
    except (runconfig.ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in found]
    wanted.out.write_text("".join(lines), encoding="utf-8")
    print(json.dumps({"out": str(wanted.out), "pairs": len(lines)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
