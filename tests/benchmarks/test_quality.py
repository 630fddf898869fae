"""Were the answers as good: by counts made by hand, and properties of edit distance."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality import answers, judge, similarity, similarity_as_far_as_both_go

TEXT = st.text(alphabet="客服网络故障ab ", max_size=30)


def edit_distance(one: str, other: str) -> int:
    """Wagner and Fischer (1974), row by row."""
    row = list(range(len(other) + 1))
    for i, x in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


@given(TEXT, TEXT)
def test_similarity_is_the_textbook_edit_distance_over_the_longer_length(one, other):
    longest = max(len(one), len(other))

    expected = 1 - edit_distance(one, other) / longest if longest else 1.0

    assert similarity(one, other) == pytest.approx(expected)


@given(TEXT.filter(bool), st.integers(1, 30))
def test_an_answer_that_breaks_off_is_the_same_as_far_as_it_goes(text, length):
    cut = text[:length]

    assert similarity_as_far_as_both_go(text, cut) == similarity_as_far_as_both_go(cut, text) == 1


def test_an_empty_answer_is_like_no_other():
    assert similarity_as_far_as_both_go("好", "") == 0
    assert similarity_as_far_as_both_go("", "") == 1


def records(said, *, label=None, lengths=None):
    """One record per (call, answer); a category where ``label`` is given, else a text."""
    rows = [
        {
            "run": at,
            "number": 0,
            "call": call,
            "ok": answer is not None,
            "category": answer if label else None,
            "output_sha256": None if label else answer,
            "output_text": None if label else answer,
            "label": label(call) if label else None,
            "confidence": 0.9,
            "finish_reason": "stop",
            "output_tokens": lengths[at] if lengths else None,
            "output_characters": None if answer is None or label else len(answer),
        }
        for at, (call, answer) in enumerate(said)
    ]
    return pd.DataFrame(rows).astype({"output_tokens": "Int64", "output_characters": "Int64"})


def test_accuracy_macro_f1_and_agreement_are_those_counted_by_hand():
    """Four calls of x, two of y. A errs on one x; B on two x and one y."""
    true = {"1": "x", "2": "x", "3": "x", "4": "x", "5": "y", "6": "y"}
    a = records([("1", "x"), ("2", "x"), ("3", "x"), ("4", "y"), ("5", "y"), ("6", "y")], label=true.__getitem__)
    b = records([("1", "x"), ("2", "x"), ("3", "y"), ("4", "y"), ("5", "y"), ("6", "x")], label=true.__getitem__)

    found = judge(answers(a), answers(b), 0.05)

    assert found["labelled_calls"] == 6
    assert (found["accuracy_a"], found["accuracy_b"]) == pytest.approx((5 / 6, 3 / 6))
    # F1: A x 6/7, y 4/5; B x 4/7, y 2/5.
    assert found["macro_f1_a"] == pytest.approx((6 / 7 + 4 / 5) / 2)
    assert found["macro_f1_b"] == pytest.approx((4 / 7 + 2 / 5) / 2)
    assert found["macro_f1_drop"] == pytest.approx(found["macro_f1_a"] - found["macro_f1_b"])
    assert (found["only_a_right"], found["only_b_right"]) == (2, 0)
    assert found["agreement"] == pytest.approx(4 / 6)
    assert found["confusion"]["a_b"] == [[2, 1], [1, 2]]
    assert found["length_ratio"] is None
    assert found["similarity_drop"] is None


def test_accuracy_agrees_with_scikit_learns_macro_f1():
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn lives in the training environment")
    true, said = ["x", "y", "y", "z", "z", "z"], ["x", "z", "y", "z", "x", "z"]
    calls = {str(at): label for at, label in enumerate(true)}
    rows = records([(str(at), answer) for at, answer in enumerate(said)], label=calls.__getitem__)

    found = judge(answers(rows), answers(rows), 0.05)

    assert found["macro_f1_a"] == pytest.approx(sklearn.f1_score(true, said, average="macro"))


def test_texts_are_compared_with_what_a_says_when_asked_again():
    a = records([("1", "甲乙丙丁"), ("2", "甲乙丙丁"), ("1", "甲乙丙戊"), ("2", "甲乙丙丁")])
    b = records([("1", "甲乙丙丁"), ("2", "甲乙己庚")])

    found = judge(answers(a), answers(b), 0.05)

    assert found["exact_match"] == 0.5
    assert found["edit_similarity"] == pytest.approx((1 + 0.5) / 2)
    assert found["repeated_calls"] == 2
    assert found["exact_match_self"] == 0.5
    assert found["edit_similarity_self"] == pytest.approx((0.75 + 1) / 2)
    assert found["similarity_drop"] == pytest.approx((0.75 + 1) / 2 - (1 + 0.5) / 2)
    low, high = found["similarity_drop_interval"]
    assert low < found["similarity_drop"] < high
    assert (found["unsteady_a"], found["unsteady_b"]) == (1, 0)


def test_lengths_are_in_tokens_where_both_tell_else_in_characters():
    a = records([("1", "甲" * 10), ("2", "甲" * 30)], lengths=[5, 15])
    b = records([("1", "甲" * 10), ("2", "甲" * 20)], lengths=[5, 5])
    quiet = records([("1", "甲" * 10), ("2", "甲" * 20)])

    in_tokens, in_characters = judge(answers(a), answers(b), 0.05), judge(answers(a), answers(quiet), 0.05)

    assert (in_tokens["length_ratio"], in_tokens["length_unit"]) == (pytest.approx(10 / 20), "tokens")
    assert (in_characters["length_ratio"], in_characters["length_unit"]) == (pytest.approx(30 / 40), "characters")


def test_only_calls_that_both_answered_are_compared():
    a = records([("1", "甲"), ("2", "乙"), ("3", None)])
    b = records([("1", "甲"), ("2", None), ("3", "丙")])

    found = judge(answers(a), answers(b), 0.05)

    assert found["calls"] == 1
    assert found["agreement"] == 1.0


def test_nothing_answered_by_both_is_null_and_not_zero():
    found = judge(answers(records([("1", "甲")])), answers(records([("2", "乙")])), 0.05)

    assert found["calls"] == 0
    assert found["agreement"] is found["length_ratio"] is found["similarity_drop"] is None
