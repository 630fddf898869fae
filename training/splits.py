"""Parts of a set of calls: whole groups, every category in its share, the same for the same seed.

Shapes: N calls, K categories, P parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np


def stable_hash(text: str, seed: int = 0) -> int:
    """64 bits that are the same in every process."""
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8, salt=seed.to_bytes(16)).digest()
    )


def assign_parts(groups: np.ndarray, labels: np.ndarray, keys: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
    """The part of each call, (N,), a place in ``shares``.

    Groups of several calls go first, the largest ones before the others, each to the part that still lacks most
    of their categories; single calls then fill each category up to its share. The order of the calls does not
    matter, only their keys do.

    Args:
        groups: Calls with the same number stay together, (N,).
        labels: Category of each call from 0, (N,).
        keys: 64 bits of each call that seed and call determine, (N,); they settle ties and draw the lots.
        shares: Part to its share of the calls; they sum up to 1.
    """
    share = np.array(list(shares.values()))
    number_of_labels = int(labels.max()) + 1
    wanted = np.outer(share, np.bincount(labels, minlength=number_of_labels))  # (P, K) calls
    filled = np.zeros_like(wanted)
    parts = np.full(len(groups), -1, dtype=np.int8)

    order = np.lexsort((keys, groups))
    starts = np.flatnonzero(np.concatenate(([True], np.diff(groups[order]) != 0)))
    sizes = np.diff(np.concatenate((starts, [len(order)])))
    several = np.flatnonzero(sizes > 1)
    first_keys = keys[order[starts]]  # the smallest of each group
    for at in several[np.lexsort((first_keys[several], -sizes[several]))].tolist():
        members = order[starts[at] : starts[at] + sizes[at]]
        counts = np.bincount(labels[members], minlength=number_of_labels)
        lacking = (wanted - filled) / np.maximum(wanted, 1e-9)
        part = int(np.argmax(lacking @ counts))
        parts[members] = part
        filled[part] += counts

    single = order[starts[sizes == 1]]
    for label in range(number_of_labels):
        calls = single[labels[single] == label]
        calls = calls[np.argsort(keys[calls], kind="stable")]
        room = np.maximum(wanted[:, label] - filled[:, label], 0)
        if room.sum() == 0:
            room = share.copy()
        ends = np.floor(np.cumsum(room) / room.sum() * len(calls) + 0.5).astype(int)
        for part, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            parts[calls[start:end]] = part
    return parts


def balance(
    labels: np.ndarray, parts: np.ndarray, names: Sequence[str], categories: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Calls of each category in each part; parts with a negative number belong nowhere."""
    table = np.zeros((len(names), len(categories)), dtype=int)
    kept = parts >= 0
    np.add.at(table, (parts[kept], labels[kept]), 1)
    return {name: dict(zip(categories, row.tolist(), strict=True)) for name, row in zip(names, table, strict=True)}
