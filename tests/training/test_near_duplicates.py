from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from training.near_duplicates import Components, band_hashes, grams, join_near_duplicates, similarity

VOCABULARY = [chr(code) for code in range(0x4E00, 0x4E00 + 2000)]


def sets_of(texts, threshold=0.8):
    components = Components(len(texts))
    join_near_duplicates(components, band_hashes(texts), np.arange(len(texts)), texts.__getitem__, threshold)
    return components.roots()


def changed(text, rng, places):
    letters = list(text)
    for at in rng.sample(range(len(letters)), places):
        letters[at] = rng.choice(VOCABULARY)
    return "".join(letters)


def test_similarity_of_a_worked_example():
    """Abcdefg has abcde, bcdef, cdefg; abcdefh shares two of them: 2 of 4."""
    assert similarity("abcdefg", "abcdefh") == 2 / 4
    assert grams("abc") == {"abc"}
    assert similarity("abc", "abc") == 1


def test_planted_near_duplicates_are_found_and_nothing_else():
    """The truth is the Jaccard similarity of every pair, computed without hashing."""
    rng = random.Random(3)
    texts = []
    for _ in range(150):
        text = "".join(rng.choice(VOCABULARY) for _ in range(rng.randint(60, 200)))
        texts += [text, changed(text, rng, 1), changed(text, rng, rng.randint(2, 12))]
    found = sets_of(texts)
    truth = Components(len(texts))
    exact = [grams(text) for text in texts]
    pairs = 0
    for a in range(len(texts)):
        for b in range(a):
            if len(exact[a] & exact[b]) > 0.8 * len(exact[a] | exact[b]):
                pairs += 1
                truth.join(a, b)
    assert pairs > 150
    assert (found == truth.roots()).mean() > 0.995
    # What was joined is truly similar: no component reaches beyond the exact one.
    assert len({(f, t) for f, t in zip(found.tolist(), truth.roots().tolist(), strict=True)}) == len(
        set(found.tolist())
    )


def test_one_text_that_all_others_resemble_joins_them():
    """Six hundred near-copies in one bucket, which only a few of them are compared with."""
    rng = random.Random(5)
    text = "".join(rng.choice(VOCABULARY) for _ in range(200))
    assert len(set(sets_of([changed(text, rng, 2) for _ in range(600)]).tolist())) == 1


def test_hashes_are_the_same_in_every_process():
    code = "from training.near_duplicates import band_hashes; print(band_hashes(['多扣了我一百块钱'])[0].tolist())"
    here = band_hashes(["多扣了我一百块钱"])[0].tolist()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_components_are_those_of_a_graph(edges):
    """Scipy's connected components are the truth."""
    components = Components(31)
    for a, b in edges:
        components.join(a, b)
    rows, columns = ([a for a, _ in edges], [b for _, b in edges])
    count, labels = connected_components(
        coo_matrix(([1] * len(edges), (rows, columns)), shape=(31, 31)), directed=False
    )
    found = components.roots().tolist()
    assert len(set(found)) == count
    assert len(set(zip(found, labels.tolist(), strict=True))) == count
