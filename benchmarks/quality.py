"""Were the answers as good? Labels against labels, and A's answers against B's.

Texts have no label that says which is right. Greedy text of the same prompt may also differ on one and the same
server, when other requests share its batch (66.7 % of the answers were alike in a test of ours, see LOG.md). So what
counts is not whether B's texts are A's, but whether they are less like A's first answers than A's own second ones.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.stats import Interval, f1_by_class, macro_f1, macro_f1_drop, paired_shares, t_quantile, wilson


def answers(records: pd.DataFrame) -> pd.DataFrame:
    """The first answer to each call of one side, by call: ``answer`` (category, or hash of the text), ``label``,
    ``confidence``, ``category``, ``text`` and ``finish_reason``; ``answer_again`` and ``text_again`` of the second;
    ``same``, whether it always answered so; ``tokens`` and ``characters``, means over all its answers.
    """
    good = records[records["ok"]].copy()
    good["answer"] = good["category"].fillna(good["output_sha256"])
    good["text"] = good["output_text"]
    good = good.dropna(subset=["answer"]).sort_values(["run", "number"])
    grouped = good.groupby("call", sort=True)
    first = good[grouped.cumcount() == 0].set_index("call").sort_index()
    second = good[grouped.cumcount() == 1].set_index("call")
    found = first[["answer", "label", "confidence", "category", "text", "finish_reason"]].copy()
    found["answer_again"], found["text_again"] = second["answer"], second["text"]
    found["same"] = grouped["answer"].min() == grouped["answer"].max()
    for name in ("tokens", "characters"):
        # A mean over some of a call's answers would be another call's.
        lengths = good[f"output_{name}"].astype("Float64").astype("float64")
        found[name] = lengths.groupby(good["call"]).agg(lambda values: values.mean(skipna=False))
    return found


def judge(a: pd.DataFrame, b: pd.DataFrame, alpha: float) -> dict[str, Any]:
    """Agreement of two sides' :func:`answers`, and against labels where calls have them.

    Differences are A - B, so a positive drop is B's loss. Everything is over the calls that both answered; what
    there is not is None.
    """
    both = a.merge(b, left_index=True, right_index=True, suffixes=("_a", "_b"))
    total = len(both)
    found: dict[str, Any] = {
        "calls": total,
        "agreement": None,
        "agreement_interval": None,
        "unsteady_a": int((~a["same"]).sum()),
        "unsteady_b": int((~b["same"]).sum()),
        "labelled_calls": 0,
        "similarity_drop": None,
        "length_ratio": None,
    }
    if not total:
        return found
    alike = int((both["answer_a"] == both["answer_b"]).sum())
    found["agreement"] = alike / total
    found["agreement_interval"] = _pair(wilson(alike, total, alpha))
    named = both[both["category_a"].notna() & both["category_b"].notna()]
    if len(named) == total:
        found["confusion"] = _confusion(both)
    labelled = named[named["label_a"].notna()]
    if len(labelled):
        found |= _against_labels(labelled, alpha)
    if not len(named):
        found |= _lengths(both)
        found["finish_reasons"] = {
            arm: dict(Counter(both[f"finish_reason_{arm}"].fillna("not told").astype(str))) for arm in ("a", "b")
        }
        if both["text_a"].notna().all() and both["text_b"].notna().all():
            found |= _texts(both, alpha)
    return found


def similarity(one: str, other: str) -> float:
    """1 - edit distance / length of the longer: 1 for equal texts, 0 where nothing is shared."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_similarity(one, other)


def similarity_as_far_as_both_go(one: str, other: str) -> float:
    """:func:`similarity` of the two texts cut to the shorter one's length; an answer that is empty is like no other.

    An answer that breaks off is a matter of lengths, which are judged by themselves; this says whether what is there
    is the same.
    """
    if not one or not other:
        return float(one == other)
    shorter = min(len(one), len(other))
    return similarity(one[:shorter], other[:shorter])


def _texts(both: pd.DataFrame, alpha: float) -> dict[str, Any]:
    """How like A's texts B's are, beside how like they are to A's own when A was asked again."""
    first, candidate = both["text_a"].astype(str).tolist(), both["text_b"].astype(str).tolist()
    again = both["text_again_a"]
    # A side that was asked once cannot be told from a steady one.
    repeated = [one if pd.isna(other) else str(other) for one, other in zip(first, again, strict=True)]
    pairs = list(zip(first, candidate, repeated, strict=True))
    drops = [similarity_as_far_as_both_go(x, z) - similarity_as_far_as_both_go(x, y) for x, y, z in pairs]
    n, known = len(pairs), int(again.notna().sum())
    drop = float(np.mean(drops))
    half = t_quantile(alpha, n - 1) * float(np.std(drops, ddof=1)) / n**0.5 if n > 1 else float("inf")
    return {
        "exact_match": sum(x == y for x, y, _ in pairs) / n,
        "edit_similarity": float(np.mean([similarity(x, y) for x, y, _ in pairs])),
        "repeated_calls": known,
        "exact_match_self": int((both["answer_a"] == both["answer_again_a"]).sum()) / known if known else None,
        "edit_similarity_self": (
            float(np.mean([similarity(x, z) for (x, _, z), told in zip(pairs, again.notna(), strict=True) if told]))
            if known
            else None
        ),
        "similarity_drop": drop,
        "similarity_drop_interval": _pair(Interval(max(-1.0, drop - half), min(1.0, drop + half))),
    }


def _lengths(both: pd.DataFrame) -> dict[str, Any]:
    """Mean length of B's answers against A's: in tokens where both sides tell, else in characters."""
    for unit in ("tokens", "characters"):
        a, b = both[f"{unit}_a"], both[f"{unit}_b"]
        if a.notna().all() and b.notna().all() and a.sum() > 0:
            means = {"mean_length_a": float(a.mean()), "mean_length_b": float(b.mean())}
            return {"length_ratio": float(b.sum() / a.sum()), "length_unit": unit} | means
    return {}


def _against_labels(labelled: pd.DataFrame, alpha: float) -> dict[str, Any]:
    columns = (labelled[name].astype(str) for name in ("label_a", "category_a", "category_b"))
    rows = list(zip(*columns, strict=True))
    right_a = [label == answer for label, answer, _ in rows]
    right_b = [label == answer for label, _, answer in rows]
    only_a = sum(x and not y for x, y in zip(right_a, right_b, strict=True))
    only_b = sum(y and not x for x, y in zip(right_a, right_b, strict=True))
    both = sum(right_a) - only_a
    drop = paired_shares(both, only_a, only_b, len(rows) - both - only_a - only_b, alpha)
    pairs_a, pairs_b = [(row[0], row[1]) for row in rows], [(row[0], row[2]) for row in rows]
    return {
        "labelled_calls": len(rows),
        "accuracy_a": sum(right_a) / len(rows),
        "accuracy_b": sum(right_b) / len(rows),
        "accuracy_drop": (sum(right_a) - sum(right_b)) / len(rows),
        "accuracy_drop_interval": _pair(drop),
        "macro_f1_a": macro_f1(pairs_a),
        "macro_f1_b": macro_f1(pairs_b),
        "macro_f1_drop": macro_f1(pairs_a) - macro_f1(pairs_b),
        "macro_f1_drop_interval": _pair(macro_f1_drop(rows, alpha)),
        "f1_a": f1_by_class(pairs_a),
        "f1_b": f1_by_class(pairs_b),
        "only_a_right": only_a,
        "only_b_right": only_b,
    }


def _confusion(both: pd.DataFrame) -> dict[str, Any]:
    """How often A said the row and B the column; and A and B against the label, where there are labels."""

    def table(rows: str, columns: str) -> list[list[int]]:
        counts = Counter(zip(both[rows], both[columns], strict=True))
        return [[counts[row, column] for column in names] for row in names]

    columns = [both["category_a"], both["category_b"], both["label_a"].dropna()]
    names = sorted({str(value) for column in columns for value in column})
    found: dict[str, Any] = {"categories": names, "a_b": table("category_a", "category_b")}
    if both["label_a"].notna().any():
        found |= {"label_a": table("label_a", "category_a"), "label_b": table("label_a", "category_b")}
    return found


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]
