"""What training and serving of the complaint classifier must do alike: one home for both.

A call is cleaned, masked, cut to length and set into a prompt whose next token is one of twelve letters;
the log-probabilities of the letters, divided by a temperature, are the answer. A model's own settings travel
with it in ``classification.json``. Nothing here needs torch.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from pydantic import Field, field_validator, model_validator

import runconfig
from model_server import masking
from model_server.engine import Message
from model_server.errors import ModelLoadError

FILE_NAME = "classification.json"


@dataclass(frozen=True, slots=True)
class Category:
    """One of the twelve: the root cause of a call, not its consequence.

    Attributes:
        letter: What the model answers; a single ASCII letter is one token in every vocabulary we know.
        group: Group of the MIIT's quarterly complaint statistics; None for calls that are no complaint.
    """

    letter: str
    name: str
    group: Literal["用户服务", "收费争议", "网络质量"] | None


CATEGORIES = (
    Category("A", "收费争议", "收费争议"),
    Category("B", "营销误导", "用户服务"),
    Category("C", "擅自开通", "收费争议"),
    Category("D", "网络/产品质量", "网络质量"),
    Category("E", "服务态度与时效", "用户服务"),
    Category("F", "合约/解约/携转", "用户服务"),
    Category("G", "退款退换", "用户服务"),
    Category("H", "物流/安装履约", "用户服务"),
    Category("I", "信息泄露与骚扰", "用户服务"),
    Category("J", "账户安全与欺诈", "用户服务"),
    Category("K", "系统渠道故障", "网络质量"),
    Category("L", "非投诉(咨询办理)", None),
)
LABELS = {category.letter: category.name for category in CATEGORIES}

INSTRUCTION = "你是投诉分类员。阅读通话,按客户现在仍未解决的根本原因,从下列类别中选一个,只回答字母。\n" + "\n".join(
    f"{letter} {name}" for letter, name in LABELS.items()
)
"""The system turn, before anything that differs between calls: engines cache its keys and values."""

# Qwen3's chat form with thinking off (enable_thinking=False renders an empty thought).
_SYSTEM = "<|im_start|>system\n"
_USER = "<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def prompt_prefix(instruction: str = INSTRUCTION) -> str:
    """What stands before every call."""
    return f"{_SYSTEM}{instruction}{_USER}"


def prompt_sha256(prefix: str, suffix: str) -> str:
    """Hash of the prompt's two ends, NUL between: template drift is what spoils most served fine-tunes."""
    return hashlib.sha256(f"{prefix}\0{suffix}".encode()).hexdigest()


class CallPreparation(runconfig.RunConfig):
    """What is made of a call before a model reads it. The defaults leave it as it was said."""

    simplified: bool = False
    """Traditional characters become simplified ones."""
    drop_fillers: bool = False
    """嗯, 呃, 啊 and the like go. 那个 and 这个 stay: they may be what tells which matter is meant."""
    figures: bool = False
    """Numbers in words become figures: 一百二十八块 is 128块, 幺零零八六 is 10086."""
    merge_turns: bool = False
    """Lines of one speaker that follow each other become one turn."""
    head_share: float = Field(default=0.5, ge=0.1, le=0.9)
    """Share of a call's start in what is left of a call that is too long; the rest is its end."""


class ExpectedAnswers(runconfig.RunConfig):
    """What the model answered on its test calls: an alert compares what it answers now (drift)."""

    calls: int = Field(gt=0)
    """How many test calls."""
    confidence: float = Field(ge=0, le=1)
    """Mean calibrated probability of the predicted category."""
    categories: dict[str, float]
    """Category to its share of the predictions, 0 to 1; together 1."""

    @field_validator("categories")
    @classmethod
    def _shares(cls, shares: dict[str, float]) -> dict[str, float]:
        if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-3:
            raise ValueError(f"shares of the categories must not be negative and be 1 together, got {shares}")
        return shares


class ClassificationSettings(runconfig.RunConfig):
    """``classification.json``: how this model must be asked and how its answer is read."""

    labels: dict[str, str]
    """Letter to category, in the order in which scores are given."""
    label_ids: dict[str, int]
    """Letter to token id."""
    prompt_prefix: str
    """Text before the call, exactly as in training."""
    prompt_suffix: str
    """Text between the call and the letter."""
    prompt_sha256: str
    """Of prefix, NUL, suffix."""
    temperature: float = Field(gt=0)
    """Divides the log-probabilities; fitted on validation calls."""
    review_threshold: float = Field(ge=0, le=1)
    """A person should look where the confidence is lower."""
    max_call_tokens: int = Field(ge=8)
    """A longer call keeps its head and its tail."""
    mask_personal_data: bool = True
    """Whether the model was trained on masked calls."""
    mask_kinds: tuple[str, ...] = masking.NUMBER_KINDS
    """What was masked in training. The default is what files say that do not name it: they are older than names and
    addresses."""
    preparation: CallPreparation = CallPreparation()
    expected: ExpectedAnswers | None = None
    """None: never measured, so drift cannot be seen."""

    @field_validator("mask_kinds")
    @classmethod
    def _are_kinds(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [kind for kind in kinds if kind not in masking.KINDS]:
            raise ValueError(f"got {', '.join(unknown)}, allowed are {', '.join(masking.KINDS)}")
        return kinds

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> ClassificationSettings:
        if not self.labels or list(self.labels) != list(self.label_ids):
            raise ValueError("labels and label_ids must name the same letters in the same order, at least one")
        if len(set(self.label_ids.values())) != len(self.label_ids) or min(self.label_ids.values()) < 0:
            raise ValueError("label_ids must be distinct and not negative")
        if len(set(self.labels.values())) != len(self.labels):
            raise ValueError("two letters have the same category")
        if self.expected is not None and set(self.expected.categories) != set(self.labels.values()):
            raise ValueError("expected.categories must name each category of labels, and no other")
        if self.prompt_sha256 != prompt_sha256(self.prompt_prefix, self.prompt_suffix):
            raise ValueError("prompt_sha256 does not belong to prompt_prefix and prompt_suffix: one was edited")
        return self

    @property
    def instruction(self) -> str:
        """The system turn alone, for engines that apply a chat template themselves."""
        return self.prompt_prefix.removeprefix(_SYSTEM).removesuffix(_USER)


def settings_for(
    encode: Callable[[str], Sequence[int]],
    *,
    temperature: float,
    review_threshold: float,
    max_call_tokens: int,
    instruction: str = INSTRUCTION,
    mask_kinds: Sequence[str] = masking.KINDS,
    preparation: CallPreparation | None = None,
) -> ClassificationSettings:
    """Settings of the twelve categories for one tokeniser.

    Raises:
        ValueError: A letter is not one token after the prompt.
    """
    prefix = prompt_prefix(instruction)
    empty = list(encode(prefix + SUFFIX))
    ids = {letter: list(encode(prefix + SUFFIX + letter))[len(empty) :] for letter in LABELS}
    if wrong := {letter: found for letter, found in ids.items() if len(found) != 1}:
        raise ValueError(f"each label must be one token after the prompt, got {wrong}")
    settings = ClassificationSettings(
        labels=LABELS,
        label_ids={letter: found[0] for letter, found in ids.items()},
        prompt_prefix=prefix,
        prompt_suffix=SUFFIX,
        prompt_sha256=prompt_sha256(prefix, SUFFIX),
        temperature=temperature,
        review_threshold=review_threshold,
        max_call_tokens=max_call_tokens,
        mask_kinds=tuple(mask_kinds),
        preparation=preparation or CallPreparation(),
    )
    check_labels(settings, encode, "this tokeniser")
    return settings


def expected_answers(probabilities: np.ndarray) -> ExpectedAnswers:
    """What a model expects to answer, from its answers to test calls.

    Args:
        probabilities: Calibrated, (calls, categories), in the order of ``LABELS``.
    """
    chosen = np.bincount(probabilities.argmax(1), minlength=len(LABELS)) / len(probabilities)
    return ExpectedAnswers(
        calls=len(probabilities),
        confidence=round(float(probabilities.max(1).mean()), 4),
        categories={name: round(float(share), 4) for name, share in zip(LABELS.values(), chosen, strict=True)},
    )


def load_settings(model_dir: Path) -> ClassificationSettings | None:
    """The settings in a model directory; None where there are none: that model does not classify.

    Raises:
        ModelLoadError: The file is there and cannot be used.
    """
    path = model_dir / FILE_NAME
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_bytes())
        if not isinstance(raw, dict):
            raise ModelLoadError(str(model_dir), f"{FILE_NAME} must hold an object, got a {type(raw).__name__}")
        settings = runconfig.validate(ClassificationSettings, raw, FILE_NAME)
        if settings.preparation.simplified:
            _simplifier()
        return settings
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            str(model_dir), f"{FILE_NAME} wants simplified characters: install {error.name} (`make setup`)"
        ) from error
    except (OSError, ValueError) as error:  # JSON, UTF-8 and ConfigError are all ValueErrors
        raise ModelLoadError(str(model_dir), f"{FILE_NAME}: {error}") from error


def write_settings(settings: ClassificationSettings, model_dir: Path) -> None:
    """Write ``classification.json``, readable by people."""
    text = json.dumps(settings.model_dump(mode="json"), ensure_ascii=False, indent=2)
    (model_dir / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def check_labels(settings: ClassificationSettings, encode: Callable[[str], Sequence[int]], source: str) -> None:
    """Assert that this tokeniser reads each letter after the prompt as its one token and as nothing else.

    Args:
        encode: Text to token ids, special tokens in the text recognised, none added.
        source: Names the model in the error.

    Raises:
        ModelLoadError: Tokeniser and settings do not belong together.
    """
    prompt = prompt_text("通话", settings)
    before = list(encode(prompt))
    for letter, token in settings.label_ids.items():
        after = list(encode(prompt + letter))
        if after != [*before, token]:
            raise ModelLoadError(
                source,
                f"{FILE_NAME} says that label {letter!r} is token {token}, but the tokeniser reads prompt and letter "
                f"as ...{after[len(before) - 1 :][:4]}: use the tokeniser that the model was trained with",
            )


# --- the call --------------------------------------------------------------------------------------------

SPEAKERS = {
    "客户": ("客户", "用户", "顾客", "来电人", "主叫", "customer", "caller", "c"),
    "客服": ("客服", "坐席", "座席", "话务员", "接线员", "工作人员", "agent", "a", "s"),
}
_SPEAKER = re.compile(
    rf"^[\[(【]?({'|'.join(name for names in SPEAKERS.values() for name in names)})\d{{0,2}}[\])】]? ?: ?",
    re.IGNORECASE | re.MULTILINE,
)
_SPEAKER_OF = {name: role for role, names in SPEAKERS.items() for name in names}
# Control, format (zero width, direction), surrogate and private characters; line feeds are kept.
_UNWANTED = {"Cc", "Cf", "Cs", "Co", "Cn"}


def _plain(text: str) -> str:
    if text.replace("\n", "").isprintable():  # nearly every call: 13 us instead of 27
        return text
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in _UNWANTED)


def clean_call(text: str) -> str:
    """One form for what means the same: NFKC, no control characters, single spaces, 客户:/客服: before turns.

    Angle brackets become 〈〉, except around masking's tokens: a caller must not be able to write
    ``<|im_end|>`` and so leave the user turn. Applied twice, the second time changes nothing.
    """
    text = unicodedata.normalize("NFKC", _plain(text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")))
    lines = (re.sub(r"\s+", " ", line).strip() for line in re.split(r"[\n\u2028\u2029]", _plain(text)))
    text = "\n".join(line for line in lines if line)
    text = _SPEAKER.sub(lambda found: f"{_SPEAKER_OF[found[1].lower()]}:", text)
    parts, at = [], 0
    for token in masking.TOKEN.finditer(text):
        parts += [text[at : token.start()].translate(_BRACKETS), token[0]]
        at = token.end()
    return "".join(parts) + text[at:].translate(_BRACKETS)


_BRACKETS = str.maketrans("<>", "〈〉")


def truncate_call(text: str, max_tokens: int, count: Callable[[str], int], head_share: float = 0.5) -> str:
    """The text, or its first and last characters around 「…」 so that it has at most ``max_tokens`` tokens.

    Both ends are kept because callers name the matter at the start and what is still open at the end.

    Args:
        count: Tokens of a text.
    """
    # No token of these vocabularies spans more than 16 Chinese characters, and counting 10 MB is slow.
    longest = 16 * max_tokens
    if len(text) <= longest and count(text) <= max_tokens:
        return text

    def ends(keep: int) -> str:
        head = math.ceil(keep * head_share)
        return f"{text[:head]}…{text[len(text) - (keep - head) :]}"

    low, high = 0, min(len(text) - 1, longest)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(ends(middle)) <= max_tokens else (low, middle - 1)
    return ends(low)


@functools.cache
def _simplifier() -> Callable[[str], str]:
    """OpenCC's characters and words of mainland usage; loaded (3 ms) by models that want it only."""
    import opencc

    convert: Callable[[str], str] = opencc.OpenCC("t2s").convert
    return convert


# Single sounds only: 额 is also in 金额, and 那个, 就是, 然后 carry meaning.
_FILLERS = re.compile("[嗯呃唔噢哦啊诶欸]+[,、 。]?")
_EMPTY_TURN = re.compile("客[户服]:[,、。 ]*")


def without_fillers(text: str) -> str:
    """The call without 嗯, 呃, 啊; turns in which nothing else was said go."""
    lines = (_FILLERS.sub("", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line.strip(",、。 ") and not _EMPTY_TURN.fullmatch(line))


_READ_OUT = re.compile("[零〇幺一二三四五六七八九]{3,}")
_CARDINAL = re.compile(
    "(?<![零〇一二两三四五六七八九十百千万几多数第])[一二两三四五六七八九十百千万零]{1,12}"
    "(?=块|元|毛|角|天|个月|年|次|兆|小时|分钟|月|号|点|条|[GMK])"
)
_READ = str.maketrans("零〇幺一二三四五六七八九两", "0011234567892")
_BELOW_10_000 = re.compile(
    "零?(?:([一二两三四五六七八九])千)?零?(?:([一二两三四五六七八九])百)?零?(?:([一二两三四五六七八九]?)十)?零?([一二三四五六七八九两])?"
)


def _cardinal(words: str) -> int | None:
    """The number that 一千零五十 says; None where the words are no whole number, as 三四十 and 二五.

    一百二 is 120 to some and no number to write down to others: it is none here.
    """
    total = 0
    for place, part in enumerate(words.split("万")):
        found = _BELOW_10_000.fullmatch(part)
        if found is None or place > 1 or (place == 0 and part[:1] in {"", "零"}):
            return None
        thousands, hundreds, tens, ones = found.groups()
        if ones and (part[-2:-1] in {"百", "千"} or (place and part == ones)):
            return None
        digits = (thousands or "零") + (hundreds or "零") + ("零" if tens is None else tens or "一") + (ones or "零")
        total = total * 10_000 + int(digits.translate(_READ))
    return total


def with_figures(text: str) -> str:
    """Numbers that are read out, and amounts and times in words, as figures."""

    def read_out(found: re.Match[str]) -> str:
        said = found[0]
        # ...八零零零一直打不通: the last word may begin the next one.
        rest = (
            "一"
            if said[-1] == "一" and found.string[found.end() : found.end() + 1] in set("直下个定样起次点些")
            else ""
        )
        return (said[: len(said) - len(rest)]).translate(_READ) + rest

    def cardinal(found: re.Match[str]) -> str:
        if found[0] in {"一", "零", "万"}:  # 一点, 一次, 一天到晚
            return found[0]
        number = _cardinal(found[0])
        return found[0] if number is None else str(number)

    return _CARDINAL.sub(cardinal, _READ_OUT.sub(read_out, text))


def merged_turns(text: str) -> str:
    """Lines of one speaker that follow each other as one."""
    lines: list[str] = []
    for line in text.split("\n"):
        speaker = line[:3]
        if lines and speaker in {"客户:", "客服:"} and lines[-1].startswith(speaker):
            pause = "" if lines[-1][-1] in ",。?!、;:" else ","
            lines[-1] += pause + line[3:].lstrip()
        else:
            lines.append(line)
    return "\n".join(lines)


def prepare_call(text: str, settings: ClassificationSettings, count: Callable[[str], int]) -> str:
    """Clean, mask, and what else the model was trained with; then cut: what the model gets to read."""
    wanted = settings.preparation
    if wanted.simplified:
        text = _simplifier()(text)
    text = clean_call(text)
    if wanted.drop_fillers:
        text = clean_call(without_fillers(text))
    if wanted.merge_turns:
        text = merged_turns(text)
    if settings.mask_personal_data:
        text = masking.mask(text, settings.mask_kinds)
    if wanted.figures:
        text = with_figures(text)
        if settings.mask_personal_data:  # a number that only figures make readable
            text = masking.mask(text, settings.mask_kinds)
    return truncate_call(text, settings.max_call_tokens, count, wanted.head_share)


def prompt_text(call: str, settings: ClassificationSettings) -> str:
    """The whole prompt of a prepared call; the next token is the label."""
    return f"{settings.prompt_prefix}{call}{settings.prompt_suffix}"


def prompt_messages(call: str, settings: ClassificationSettings) -> tuple[Message, ...]:
    """The same as turns, for engines that apply the model's template themselves."""
    return (Message("system", settings.instruction), Message("user", call))


# --- the answer ------------------------------------------------------------------------------------------


class Decision(TypedDict):
    """One answer of ``/api/v1/classify``. Engines without log-probabilities leave two fields None."""

    category: str
    confidence: float | None
    probabilities: dict[str, float] | None
    needs_review: bool


def probabilities(label_logprobs: Sequence[float], settings: ClassificationSettings) -> dict[str, float]:
    """Calibrated probability of each category: softmax of the labels' log-probabilities over the temperature.

    The share of the vocabulary outside the labels cancels, so logits give the same as log-probabilities.

    Args:
        label_logprobs: In the order of ``settings.labels``, natural logarithm; -inf means never.

    Raises:
        ValueError: Their number is wrong, one is NaN or +inf, or all are -inf.
    """
    scores = np.asarray(label_logprobs, dtype=np.float64)
    if scores.shape != (len(settings.labels),):
        raise ValueError(f"expected {len(settings.labels)} label scores, got an array of shape {scores.shape}")
    highest = float(scores.max())
    if not math.isfinite(highest) or bool(np.isnan(scores).any()):
        raise ValueError(f"label scores must be numbers with a finite maximum, got {scores.tolist()}")
    weights = np.exp((scores - highest) / settings.temperature)
    return dict(zip(settings.labels.values(), (weights / weights.sum()).tolist(), strict=True))


def decide(label_logprobs: Sequence[float], settings: ClassificationSettings) -> Decision:
    """The most probable category, and whether a person should look. Ties go to the earlier label."""
    by_category = probabilities(label_logprobs, settings)
    category = max(by_category, key=by_category.__getitem__)
    confidence = by_category[category]
    return Decision(
        category=category,
        confidence=confidence,
        probabilities=by_category,
        needs_review=confidence < settings.review_threshold,
    )


def decide_from_text(answer: str, settings: ClassificationSettings) -> Decision:
    """For engines that only generate. A person should look, as nothing says how sure the answer is.

    Raises:
        ValueError: The answer does not begin with one of the letters.
    """
    letter = answer.strip()[:1].upper()
    if letter not in settings.labels:
        raise ValueError(f"the model answered {answer[:40]!r}, which begins with none of {', '.join(settings.labels)}")
    return Decision(category=settings.labels[letter], confidence=None, probabilities=None, needs_review=True)
