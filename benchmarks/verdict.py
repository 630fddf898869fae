"""May the candidate B replace A? PASS, FAIL or NO VERDICT, with every rule's evidence.

How many rules share one level of error:

* PASS needs every rule to be kept. A candidate that breaks one passes only if that rule errs, so each may use all of
  ``alpha`` and the whole errs no more often (intersection-union test: Berger, 1982, Technometrics 24, 295-300).
* FAIL needs one broken rule, and the more rules, the more chances to break one by accident. The primary metric is
  named before and keeps its level; the guards share one: each that is a share of requests takes an equal part
  (Bonferroni), those that are ratios have the rest by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.config import Metric, VerdictRules
from benchmarks.errors import FAIL, INVALID, NO_VERDICT, PASS
from benchmarks.stats import Interval, PairedComparison, holm, minimum_samples, wilson
from benchmarks.summary import HIGHER_IS_BETTER

Answer = Literal["PASS", "FAIL", "NO VERDICT", "INVALID"]
EXIT_CODES: dict[Answer, int] = {"PASS": PASS, "FAIL": FAIL, "NO VERDICT": NO_VERDICT, "INVALID": INVALID}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says. ``rule`` and ``key`` name the sentence; ``values`` fill it."""

    rule: Literal[
        "validity", "speed", "guard", "lengths", "errors", "accuracy", "macro_f1", "agreement", "texts", "completeness"
    ]
    answer: Answer
    key: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ShareLoss:
    """How much worse B's share of good requests is than A's: share(a) - share(b), and its interval."""

    share_a: float
    share_b: float
    interval: Interval
    strict: Interval
    """At this guard's part of the level: decides on FAIL."""


def judge_speed(comparison: PairedComparison | None, rules: VerdictRules, fewest: int = 0) -> Finding:
    """Non-inferiority of the primary metric: is B no more than ``margin`` worse, and is that certain?

    The whole interval must lie on one side of the margin; else more pairs are needed.

    Args:
        fewest: Successful requests of the run that had the fewest, for the sentence.
    """
    if comparison is None:
        return _missing("speed", rules.primary, fewest)
    values = _gain(comparison, rules.primary, rules.margin)
    low, high = values["low"], values["high"]
    answer: Answer = "PASS" if low > 1 - rules.margin else "FAIL" if high < 1 - rules.margin else "NO VERDICT"
    direction = "faster" if low > 1 else "slower" if high < 1 else "same"
    return Finding("speed", answer, f"speed_{direction}", values)


def judge_guards(
    comparisons: Mapping[Metric, PairedComparison | None],
    losses: Mapping[str, ShareLoss | None],
    rules: VerdictRules,
    level: float,
    fewest: int = 0,
) -> list[Finding]:
    """The other metrics that must not get worse, each by its own margin.

    Args:
        comparisons: Of each guarded metric that is compared by ratio; None where a run could not state it.
        losses: Of error_rate and goodput, where they are guarded; None where nothing was sent.
        level: Two-sided, of this look; ``comparisons`` and ``losses`` have their intervals at it.
    """
    ratios = {name: comparison for name, comparison in comparisons.items() if comparison is not None}
    adjusted = holm([_p_worse(found, name, rules) for name, found in ratios.items()])
    part = len(ratios) / guards_that_count(rules) if ratios else 1.0
    worse = {name: min(1.0, p / part) for name, p in zip(ratios, adjusted, strict=True)}
    found = []
    for name, margin in rules.guards.items():
        if name == rules.primary:
            continue
        if name == "error_rate" or name == "goodput":  # noqa: PLR1714  narrows the type
            found.append(_judge_loss(name, losses.get(name), margin))
        elif name not in ratios:
            found.append(_missing("guard", name, fewest))
        else:
            values = _gain(ratios[name], name, margin)
            broken = worse[name] <= level / 2
            answer: Answer = "PASS" if values["low"] > 1 - margin else "FAIL" if broken else "NO VERDICT"
            found.append(Finding("guard", answer, f"guard_{_word(answer)}", values | {"p_worse": worse[name]}))
    return found


def guards_that_count(rules: VerdictRules) -> int:
    """How many share the guards' level."""
    return len(rules.guards.keys() - {rules.primary})


def judge_errors(side: str, failed: int, total: int, rules: VerdictRules, level: float | None = None) -> Finding:
    """An A that fails is no baseline (INVALID); a B that fails is worse."""
    values = {"side": side.upper(), "failed": failed, "total": total, "limit": rules.max_error_rate}
    if total == 0:
        return Finding("errors", "NO VERDICT", "errors_none_sent", values)
    if failed == total:
        return Finding("errors", "INVALID" if side == "a" else "FAIL", "errors_all", values)
    if failed / total <= rules.max_error_rate:
        return Finding("errors", "PASS", "errors_few", values)
    if wilson(failed, total, rules.alpha if level is None else level).low <= rules.max_error_rate:
        return Finding("errors", "NO VERDICT", "errors_unsure", values)
    return Finding("errors", "INVALID" if side == "a" else "FAIL", "errors_many", values)


def judge_quality(quality: dict[str, Any], rules: VerdictRules) -> list[Finding]:
    """Accuracy and macro-F1 where calls have labels; for texts, how like A's they are; else agreement. A fast wrong
    answer is no gain.
    """
    if quality["agreement"] is None:
        return [Finding("agreement", "NO VERDICT", "agreement_missing", {})]
    if quality["labelled_calls"]:
        return [
            _judge_drop("accuracy", quality, rules.max_accuracy_drop),
            _judge_drop("macro_f1", quality, rules.max_macro_f1_drop),
        ]
    if quality["similarity_drop"] is not None:
        low, high = quality["similarity_drop_interval"]
        names = ("edit_similarity", "edit_similarity_self", "repeated_calls", "calls", "exact_match", "similarity_drop")
        values = {name: quality[name] for name in names}
        values |= {"low": low, "high": high, "limit": rules.max_similarity_drop}
        answer = _within(low, high, rules.max_similarity_drop)
        return [Finding("texts", answer, f"texts_{_word(answer)}", values)]
    low, high = quality["agreement_interval"]
    values = {"agreement": quality["agreement"], "calls": quality["calls"], "low": low, "high": high}
    values["limit"] = rules.min_agreement
    answer = _within(1 - high, 1 - low, 1 - rules.min_agreement)
    return [Finding("agreement", answer, f"agreement_{_word(answer)}", values)]


def judge_lengths(quality: dict[str, Any], rules: VerdictRules) -> Finding | None:
    """None where answers are alike in length, or have none. Else no speed may be judged: the work was not the same."""
    ratio = quality["length_ratio"]
    if ratio is None or max(ratio, 1 / ratio if ratio else float("inf")) <= 1 + rules.max_length_difference:
        return None
    values = {name: quality[name] for name in ("length_ratio", "length_unit", "mean_length_a", "mean_length_b")}
    return Finding("lengths", "NO VERDICT", "lengths_differ", values | {"limit": rules.max_length_difference})


def decide(findings: Sequence[Finding]) -> Answer:
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


def _gain(comparison: PairedComparison, metric: Metric, margin: float) -> dict[str, Any]:
    """The ratio turned so that above 1 is better, whichever way the metric points."""
    gain, low, high = comparison.ratio, comparison.t.low, comparison.t.high
    if metric not in HIGHER_IS_BETTER:
        gain, low, high = 1 / gain, 1 / high, 1 / low
    return {
        "metric": metric,
        "gain": gain,
        "low": low,
        "high": high,
        "margin": margin,
        "pairs": comparison.pairs,
        "confidence": comparison.confidence,
    }


def _p_worse(comparison: PairedComparison, metric: Metric, rules: VerdictRules) -> float:
    """One-sided p of "B is no more than its margin worse"."""
    bound = 1 - rules.guards[metric]
    return comparison.p_at_least(bound) if metric in HIGHER_IS_BETTER else comparison.p_at_most(1 / bound)


def _judge_loss(name: str, loss: ShareLoss | None, margin: float) -> Finding:
    if loss is None:
        return Finding("guard", "NO VERDICT", "guard_none_sent", {"metric": name})
    low, high = loss.interval.low, loss.interval.high
    shares = (1 - loss.share_a, 1 - loss.share_b) if name == "error_rate" else (loss.share_a, loss.share_b)
    values = {"metric": name, "share_a": shares[0], "share_b": shares[1], "low": low, "high": high}
    answer: Answer = "PASS" if high <= margin else "FAIL" if loss.strict.low > margin else "NO VERDICT"
    return Finding("guard", answer, f"share_{_word(answer)}", values | {"margin": margin})


def _judge_drop(name: Literal["accuracy", "macro_f1"], quality: dict[str, Any], limit: float) -> Finding:
    low, high = quality[f"{name}_drop_interval"]
    values = {key: quality[key] for key in (f"{name}_a", f"{name}_b", f"{name}_drop", "labelled_calls")}
    answer = _within(low, high, limit)
    return Finding(name, answer, f"{name}_{_word(answer)}", values | {"low": low, "high": high, "limit": limit})


def _missing(rule: Literal["speed", "guard"], metric: Metric, fewest: int) -> Finding:
    """Too few requests in a run; where there were enough, fewer than two pairs or answers without this figure."""
    _, _, statistic = metric.partition("_p")
    needed = minimum_samples(float(statistic)) if statistic.isdigit() else 1
    what = "missing" if fewest < needed else "unknown"
    return Finding(rule, "NO VERDICT", f"{rule}_{what}", {"metric": metric, "needed": needed, "fewest": fewest})


def _within(low: float, high: float, limit: float) -> Answer:
    """Is a loss with this interval at most ``limit``?"""
    return "PASS" if high <= limit else "FAIL" if low > limit else "NO VERDICT"


def _word(answer: Answer) -> str:
    return {"PASS": "kept", "FAIL": "broken"}.get(answer, "unsure")
