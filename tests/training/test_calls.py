from __future__ import annotations

import collections
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model_server.classification import LABELS, clean_call
from model_server.masking import mask
from training import calls, grammar
from training.baselines import keyword_category
from training.calls import CallSettings, make_call, make_splits
from training.metrics import macro_f1

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"train": 3000, "validation": 300, "test": 1000}


@pytest.fixture(scope="module")
def splits():
    return make_splits(CallSettings(difficulty="hard"), COUNTS)


def test_the_same_seed_gives_the_same_bytes_in_every_process(tmp_path):
    """String hashing differs between processes unless it is forbidden: both ways must agree."""
    sums = []
    for hash_seed in ("1", "2"):
        out = tmp_path / f"{hash_seed}.jsonl"
        subprocess.run(
            [sys.executable, "-m", "training.calls", f"out={out}", "count=60", "seed=3"],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        sums.append(hashlib.sha256(out.read_bytes()).hexdigest())
    assert sums[0] == sums[1]


def test_another_seed_gives_other_calls():
    first, second = (make_call(5, CallSettings(seed=seed))[0].input_text for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("difficulty", ["standard", "hard"])
def test_the_keyword_baseline_does_not_solve_the_test_calls(difficulty):
    """The bar of the project: at most 0.68, and clearly better than one in twelve."""
    calls_of = make_splits(CallSettings(difficulty=difficulty), {"test": 600})["test"]
    predicted = [keyword_category(mask(clean_call(call.input_text))) for call in calls_of]
    assert 2 / 12 < macro_f1([call.complaint_category for call in calls_of], predicted) <= 0.68


def test_a_difficulty_sets_what_the_settings_do_not():
    assert CallSettings(difficulty="hard").p_ordinal == 0.35
    assert CallSettings(difficulty="standard").p_ordinal == 0
    assert CallSettings(difficulty="hard", p_ordinal=0.1).p_ordinal == 0.1
    assert CallSettings(**CallSettings(difficulty="hard").model_dump()) == CallSettings(difficulty="hard")


def test_all_that_the_grammar_can_say_is_said_without_a_left_over():
    """Every wording of every category in every domain of its own: no slot unknown, no bracket unbalanced."""
    rng = random.Random(0)
    for letter in LABELS:
        of = grammar.category(letter)
        for wording in of.wordings:
            for domain in wording.domains:
                text = grammar.say(wording.pattern, rng.random, domain)
                assert len(text) > 1
                assert not set("(){}|\n") & set(text)
        assert len({domain for wording in of.wordings for domain in wording.domains}) > 10


def test_the_wording_is_wide():
    """Enough that no list of sentences could be learned by heart: calls hardly share a matter's text."""
    told = [call.metadata["rationales"][call.complaint_category][0] for call in plain_calls(2000)]
    assert len(set(told)) > 1900
    assert len(set("".join(told))) > 1200


def plain_calls(count):
    settings = CallSettings(p_contrast=0, p_ordinal=0, p_asr=0)
    return [make_call(index, settings)[0] for index in range(count)]


@pytest.mark.parametrize(("text", "told"), [("a(b|c", "'('"), ("a|b)", "')'"), ("x{y", "'{'")])
def test_an_unbalanced_wording_is_named(text, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        grammar.parse(text)


def test_what_may_be_left_out_is_mostly_said():
    rng = random.Random(0)
    said = collections.Counter(grammar.say((grammar.parse("我(真的|)走了"),), rng.random, "") for _ in range(2000))
    assert set(said) == {"我真的走了", "我走了"}
    assert said["我走了"] / 2000 == pytest.approx(0.2, abs=0.03)


def test_a_slot_has_its_own_form_in_a_domain():
    rng = random.Random(0)
    bank = {grammar.say((grammar.Slot("product1"),), rng.random, "银行") for _ in range(200)}
    assert "信用卡" in bank
    assert "宽带" not in bank
    with pytest.raises(KeyError, match="no_such_slot"):
        grammar.say((grammar.Slot("no_such_slot"),), rng.random, "银行")


def test_no_customer_and_no_text_is_in_two_parts(splits):
    for field in ("customer_id",):
        parts = [{call.metadata[field] for call in part} for part in splits.values()]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
    texts = [mask(clean_call(call.input_text)) for part in splits.values() for call in part]
    assert len(set(texts)) == len(texts)


def test_customers_call_more_than_once_so_that_grouping_matters(splits):
    customers = collections.Counter(call.metadata["customer_id"] for call in splits["train"])
    assert max(customers.values()) > 1


def test_wordings_held_out_of_training_appear_in_their_own_part_only(splits):
    def places(part):
        return {int(call.metadata["template_id"][1:]) % 10 for call in splits[part]}

    assert not places("train") & {4, 9}
    assert 9 not in places("validation")
    assert 4 not in places("test")
    assert 4 in places("validation")
    assert 9 in places("test")


def test_every_category_and_every_kind_occurs(splits):
    assert {call.complaint_category for call in splits["train"]} == set(LABELS.values())
    assert {call.metadata["kind"] for call in splits["test"]} == {"plain", "contrast", "ordinal"}
    assert all(call.metadata["kind"] != "ordinal" for call in make_splits(CallSettings(), {"test": 300})["test"])


def test_the_passages_that_tell_of_the_matters_are_in_the_call(splits):
    for call in splits["train"][:500]:
        told = call.metadata["rationales"]
        assert next(iter(told)) == call.complaint_category
        assert set(told) <= set(LABELS.values())
        assert len(told) == (1 if call.metadata["kind"] == "plain" else 2)
        assert all(passage and passage in call.input_text and "\n" not in passage for [passage] in told.values())


def test_all_personal_data_in_the_calls_is_masked(splits):
    """Left over would be a run of eleven digits or more; numbers are masked where there are any, and nowhere else."""
    for call in splits["test"]:
        masked = mask(clean_call(call.input_text))
        assert call.metadata["personal_data"] == bool(re.search("<(手机号|身份证号|银行卡号)", masked))
        longest = max(map(len, "".join(c if c.isdigit() or c in "零幺" else " " for c in masked).split()), default=0)
        assert longest < 11


def test_label_noise_changes_training_labels_only():
    noisy, clean = CallSettings(label_noise=0.5), CallSettings()
    changed = collections.Counter()
    for index in range(400):
        (before, split), (after, _) = make_call(index, clean), make_call(index, noisy)
        changed[split] += before.complaint_category != after.complaint_category
    assert changed["train"] > 50
    assert changed["validation"] == changed["test"] == 0


def test_an_ordinal_call_names_its_open_matter_by_its_place():
    """Swapping "first" and "second" in a call would swap its label, so both matters must be there."""
    call = next(
        call
        for call, _ in (make_call(i, CallSettings(p_ordinal=1, p_contrast=0)) for i in range(50))
        if call.metadata["kind"] == "ordinal"
    )
    [passage] = call.metadata["rationales"][call.complaint_category]
    rest = call.input_text.replace(passage, "")
    assert any(word in rest for word in ("先说的", "前一个", "前面", "后面", "后一个", "第一", "第二", "头一个"))


def test_macro_f1_of_a_worked_example():
    """By hand: F1 of A is 2*2/(2*2+1+0) = 0.8, of B 2*1/(2*1+0+1) = 2/3; the other ten do not occur."""
    a, b = list(LABELS.values())[:2]
    assert macro_f1([a, a, b, b], [a, a, a, b]) == pytest.approx((0.8 + 2 / 3) / 2)


def test_invented_ids_pass_the_worked_rule_of_the_standard():
    """ISO 7064 MOD 11-2: the weighted sum of all eighteen characters is 1 modulo 11."""
    rng = random.Random(0)
    for _ in range(200):
        number = calls.fake_id(rng)
        values = [10 if character == "X" else int(character) for character in number]
        assert sum(value * 2 ** (17 - place) for place, value in enumerate(values)) % 11 == 1


def test_the_file_has_the_fields_of_training_data(tmp_path):
    assert calls.main([f"out={tmp_path / 'x.jsonl'}", "count=5", "split=test"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 5
    assert {tuple(row) for row in rows} == {
        ("conversation_id", "input_text", "complaint_category", "confidence_score", "metadata")
    }


@pytest.mark.parametrize(("words", "told"), [(["count=5"], "out: missing"), (["out=x", "cuont=5"], "'count'")])
def test_misuse_is_explained(words, told, capsys):
    assert calls.main(words) == 2
    assert told in capsys.readouterr().err


def test_the_demo_s_calls_are_what_the_generator_makes(tmp_path):
    """data/calls.jsonl is made by this command; whoever changes the generator makes it again."""
    assert calls.main([f"out={tmp_path / 'calls.jsonl'}", "count=400", "seed=7", "split=test"]) == 0
    assert (tmp_path / "calls.jsonl").read_bytes() == (ROOT / "data" / "calls.jsonl").read_bytes()
