from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.splits import assign_parts, balance, stable_hash

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def drawn(seed, calls, groups, labels):
    rng = np.random.default_rng(seed)
    keys = np.array([stable_hash(str(at), seed) for at in range(calls)], dtype=np.uint64)
    return rng.integers(0, groups, calls), rng.integers(0, labels, calls), keys


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 120), st.integers(1, 60), st.integers(1, 12))
def test_no_group_is_in_two_parts(seed, calls, number_of_groups, number_of_labels):
    groups, labels, keys = drawn(seed, calls, number_of_groups, number_of_labels)
    parts = assign_parts(groups, labels, keys, SHARES)
    assert set(parts.tolist()) <= {0, 1, 2}
    assert all(len(set(parts[groups == group].tolist())) == 1 for group in set(groups.tolist()))


@given(st.integers(0, 10**6))
def test_the_order_of_the_calls_does_not_matter(seed):
    groups, labels, keys = drawn(seed, 200, 80, 5)
    parts = assign_parts(groups, labels, keys, SHARES)
    order = np.random.default_rng(seed + 1).permutation(200)
    assert (assign_parts(groups[order], labels[order], keys[order], SHARES) == parts[order]).all()


def test_every_category_gets_its_share_in_every_part():
    rng = np.random.default_rng(0)
    labels = rng.choice(12, 20_000, p=np.arange(1, 13) / 78)
    groups = rng.integers(0, 12_000, 20_000)
    keys = np.array([stable_hash(str(at)) for at in range(20_000)], dtype=np.uint64)
    parts = assign_parts(groups, labels, keys, SHARES)
    table = balance(labels, parts, list(SHARES), [str(label) for label in range(12)])
    for label in range(12):
        total = (labels == label).sum()
        for part, share in SHARES.items():
            assert abs(table[part][str(label)] - share * total) <= max(3, 0.01 * total)


def test_another_seed_gives_other_parts():
    groups, labels, _ = drawn(1, 300, 1000, 4)
    first, second = (
        assign_parts(groups, labels, np.array([stable_hash(str(at), seed) for at in range(300)], np.uint64), SHARES)
        for seed in (0, 1)
    )
    assert (first != second).any()


def test_balance_counts_what_belongs_somewhere():
    table = balance(np.array([0, 1, 1, 0]), np.array([0, 0, 1, -1]), ["train", "test"], ["a", "b"])
    assert table == {"train": {"a": 1, "b": 1}, "test": {"a": 0, "b": 1}}
