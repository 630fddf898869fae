"""Were the answers as good? Labels against labels, and A's answers against B's."""

from __future__ import annotations

from typing import Any

import pandas as pd

from benchmarks.stats import Interval, bootstrap, f1_by_class, macro_f1, paired_shares, wilson


def answers(records: pd.DataFrame) -> pd.DataFrame:
    """The first answer to each call of one side, by call: ``answer``, ``label``, ``confidence``; and ``same``, whether
    it always answered so.
    """
    good = records[records["ok"]].copy()
    good["answer"] = good["category"].fillna(good["output_sha256"])
    good = good.dropna(subset=["answer"]).sort_values(["run", "number"])
    grouped = good.groupby("call", sort=True)
    found = grouped[["answer", "label", "confidence", "category"]].first()
    found["same"] = grouped["answer"].min() == grouped["answer"].max()
    return found


def judge(a: pd.DataFrame, b: pd.DataFrame, alpha: float) -> dict[str, Any]:
    """Agreement of two sides' :func:`answers`, and against labels where calls have them.

    Differences are A - B, so a positive drop is B's loss. Everything is over the calls that both answered.
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
    }
    if not total:
        return found
    alike = int((both["answer_a"] == both["answer_b"]).sum())
    found["agreement"] = alike / total
    found["agreement_interval"] = _pair(wilson(alike, total, alpha))
    if both["category_a"].notna().all() and both["category_b"].notna().all():
        found["confusion"] = _confusion(both)
    labelled = both[both["label_a"].notna() & both["category_a"].notna() & both["category_b"].notna()]
    if len(labelled):
        found |= _against_labels(labelled, alpha)
    return found


def _against_labels(labelled: pd.DataFrame, alpha: float) -> dict[str, Any]:
    true = [str(value) for value in labelled["label_a"]]
    said_a = [str(value) for value in labelled["category_a"]]
    said_b = [str(value) for value in labelled["category_b"]]
    rows = list(zip(true, said_a, said_b, strict=True))
    right_a = [label == answer for label, answer, _ in rows]
    right_b = [label == answer for label, _, answer in rows]
    only_a = sum(x and not y for x, y in zip(right_a, right_b, strict=True))
    only_b = sum(y and not x for x, y in zip(right_a, right_b, strict=True))
    both = sum(right_a) - only_a
    drop = paired_shares(both, only_a, only_b, len(rows) - both - only_a - only_b, alpha)
    pairs_a, pairs_b = [(row[0], row[1]) for row in rows], [(row[0], row[2]) for row in rows]
    numbers = [float(at) for at in range(len(rows))]

    def f1_drop(sample: Any) -> float:
        at = [int(number) for number in sample]
        return macro_f1([pairs_a[i] for i in at]) - macro_f1([pairs_b[i] for i in at])

    return {
        "labelled_calls": len(rows),
        "accuracy_a": sum(right_a) / len(rows),
        "accuracy_b": sum(right_b) / len(rows),
        "accuracy_drop": (sum(right_a) - sum(right_b)) / len(rows),
        "accuracy_drop_interval": _pair(drop),
        "macro_f1_a": macro_f1(pairs_a),
        "macro_f1_b": macro_f1(pairs_b),
        "macro_f1_drop_interval": _pair(bootstrap(numbers, f1_drop, alpha, resamples=300)),
        "f1_a": f1_by_class(pairs_a),
        "f1_b": f1_by_class(pairs_b),
        "only_a_right": only_a,
        "only_b_right": only_b,
    }


def _confusion(both: pd.DataFrame) -> dict[str, Any]:
    """How often A said the row and B the column; and A and B against the label, where there are labels."""

    def table(rows: str, columns: str) -> list[list[int]]:
        counts = both.groupby([rows, columns]).size()
        return [[int(counts.get((row, column), 0)) for column in names] for row in names]

    columns = [both["category_a"], both["category_b"], both["label_a"].dropna()]
    names = sorted({str(value) for column in columns for value in column})
    found: dict[str, Any] = {"categories": names, "a_b": table("category_a", "category_b")}
    if both["label_a"].notna().any():
        found |= {"label_a": table("label_a", "category_a"), "label_b": table("label_a", "category_b")}
    return found


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]
