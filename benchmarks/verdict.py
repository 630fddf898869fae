"""May the candidate B replace A? PASS, FAIL or NO VERDICT, with every rule's evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.config import VerdictRules
from benchmarks.errors import FAIL, INVALID, NO_VERDICT, PASS
from benchmarks.stats import PairedComparison, wilson
from benchmarks.summary import HIGHER_IS_BETTER

Answer = Literal["PASS", "FAIL", "NO VERDICT", "INVALID"]
EXIT_CODES: dict[Answer, int] = {"PASS": PASS, "FAIL": FAIL, "NO VERDICT": NO_VERDICT, "INVALID": INVALID}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says. ``rule`` and ``key`` name the sentence; ``values`` fill it."""

    rule: Literal["validity", "speed", "errors", "accuracy", "agreement", "completeness"]
    answer: Answer
    key: str
    values: dict[str, Any]


def judge_speed(comparison: PairedComparison | None, rules: VerdictRules) -> Finding:
    """Non-inferiority of the primary metric: is B no more than ``margin`` worse, and is that certain?

    The whole interval must lie on one side of the margin; else more pairs are needed.
    """
    if comparison is None:
        return Finding("speed", "NO VERDICT", "speed_missing", {"metric": rules.primary})
    higher = rules.primary in HIGHER_IS_BETTER
    # As a gain: above 1 is better, whichever way the metric points.
    gain, low, high = (
        (comparison.ratio, comparison.t.low, comparison.t.high)
        if higher
        else (1 / comparison.ratio, 1 / comparison.t.high, 1 / comparison.t.low)
    )
    answer: Answer = "PASS" if low > 1 - rules.margin else "FAIL" if high < 1 - rules.margin else "NO VERDICT"
    direction = "faster" if low > 1 else "slower" if high < 1 else "same"
    values = {
        "metric": rules.primary,
        "gain": gain,
        "low": low,
        "high": high,
        "margin": rules.margin,
        "pairs": comparison.pairs,
        "confidence": 1 - rules.alpha,
    }
    return Finding("speed", answer, f"speed_{direction}", values)


def judge_errors(side: str, failed: int, total: int, rules: VerdictRules) -> Finding:
    """An A that fails is no baseline (INVALID); a B that fails is worse."""
    values = {"side": side.upper(), "failed": failed, "total": total, "limit": rules.max_error_rate}
    if total == 0:
        return Finding("errors", "NO VERDICT", "errors_none_sent", values)
    if failed == total:
        return Finding("errors", "INVALID" if side == "a" else "FAIL", "errors_all", values)
    if failed / total <= rules.max_error_rate:
        return Finding("errors", "PASS", "errors_few", values)
    if wilson(failed, total, rules.alpha).low <= rules.max_error_rate:
        return Finding("errors", "NO VERDICT", "errors_unsure", values)
    return Finding("errors", "INVALID" if side == "a" else "FAIL", "errors_many", values)


def judge_quality(quality: dict[str, Any], rules: VerdictRules) -> list[Finding]:
    """Accuracy where calls have labels, agreement where they have none; a fast wrong answer is no gain."""
    if quality["agreement"] is None:
        return [Finding("agreement", "NO VERDICT", "agreement_missing", {})]
    if quality["labelled_calls"]:
        low, high = quality["accuracy_drop_interval"]
        values = {key: quality[key] for key in ("accuracy_a", "accuracy_b", "accuracy_drop", "labelled_calls")}
        values |= {"low": low, "high": high, "limit": rules.max_accuracy_drop}
        answer = _within(low, high, rules.max_accuracy_drop)
        return [Finding("accuracy", answer, f"accuracy_{_word(answer)}", values)]
    low, high = quality["agreement_interval"]
    values = {"agreement": quality["agreement"], "calls": quality["calls"], "low": low, "high": high}
    values["limit"] = rules.min_agreement
    answer = _within(1 - high, 1 - low, 1 - rules.min_agreement)
    return [Finding("agreement", answer, f"agreement_{_word(answer)}", values)]


def decide(findings: list[Finding]) -> Answer:
    """The worst finding decides: an invalid run says nothing, one broken rule is enough to fail.

    A comparison that was broken off has no verdict, however it looked by then.
    """
    answers = {finding.answer for finding in findings}
    if any(finding.rule == "completeness" for finding in findings):
        return "NO VERDICT"
    for answer in ("INVALID", "FAIL", "NO VERDICT"):
        if answer in answers:
            return answer
    return "PASS"


def _within(low: float, high: float, limit: float) -> Answer:
    """Is a loss with this interval at most ``limit``?"""
    return "PASS" if high <= limit else "FAIL" if low > limit else "NO VERDICT"


def _word(answer: Answer) -> str:
    return {"PASS": "kept", "FAIL": "broken"}.get(answer, "unsure")
