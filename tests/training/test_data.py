"""The whole preparation: what is written, what is refused, and that nothing leaks."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runconfig
from model_server.classification import LABELS
from training import data, prepared
from training.errors import DataError
from training.near_duplicates import grams

ROOT = Path(__file__).resolve().parents[2]
NAMES = list(LABELS.values())
HAN = [chr(code) for code in range(0x5000, 0x5000 + 1500)]


def call(number, text, category, **metadata):
    return {
        "conversation_id": f"c{number}",
        "input_text": text,
        "complaint_category": category,
        "metadata": metadata,
    }


def sentence(rng, length=40):
    return "客户:" + "".join(rng.choice(HAN) for _ in range(length))


def many(count=240, seed=0):
    """Calls of all twelve categories, some of one customer, some nearly the same."""
    rng = random.Random(seed)
    calls = []
    for number in range(count):
        text = sentence(rng, 60)
        if calls and rng.random() < 0.15:
            other = rng.choice(calls)
            text = other["input_text"][:-1] + rng.choice(HAN)
            calls.append(call(number, text, other["complaint_category"], customer_id=f"k{rng.randrange(count)}"))
        else:
            calls.append(call(number, text, rng.choice(NAMES), customer_id=f"k{rng.randrange(count)}"))
    return calls


def write(folder, calls, name="calls.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in calls), encoding="utf-8")
    return path


def config_for(folder, calls, **changes):
    raw = {"sources": [{"path": str(write(folder, calls))}], "out": str(folder / "out"), **changes}
    return runconfig.validate(data.DataSettings, raw, "the test")


def parts_of(folder):
    names = [path.stem for path in folder.glob("*.parquet")]
    return {name: prepared.load(folder, name) for name in names}


# --- what is written


def test_a_prepared_folder_holds_what_was_promised(tmp_path):
    calls = many()
    report = data.prepare(config_for(tmp_path, calls, seed=3))
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "train.parquet", "validation.parquet", "test.parquet", "manifest.json", "report.json", "report.md",
    }  # fmt: skip
    assert pyarrow.parquet.read_schema(out / "train.parquet").names == [
        "conversation_id", "input_text", "complaint_category", "confidence_score", "metadata",
    ]  # fmt: skip
    parts = parts_of(out)
    texts = {one["conversation_id"]: one for one in calls}
    found = [one for part in parts.values() for one in part]
    assert sorted(one.conversation_id for one in found) == sorted(texts)
    assert all(one.complaint_category == texts[one.conversation_id]["complaint_category"] for one in found)
    assert all(one.metadata == texts[one.conversation_id]["metadata"] for one in found)
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["calls"] == {name: len(part) for name, part in parts.items()}
    assert manifest["seed"] == 3
    assert report["calls_read"] == report["calls_written"] == 240
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_same_settings_give_the_same_bytes_in_every_process(tmp_path):
    write(tmp_path, many())
    (tmp_path / "data.yml").write_text(f"sources: [{{path: {tmp_path / 'calls.jsonl'}}}]\nout: {tmp_path / 'out'}\n")
    manifests = []
    for hash_seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "training.data", tmp_path / "data.yml", "replace=true"],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
        )
        manifests.append((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_personal_data_is_masked_in_text_and_metadata_and_ids(tmp_path):
    calls = many()
    calls[0] = call(0, "客户:我叫王小明,电话13812345678", NAMES[0], customer_id="13812345678", note="找张先生", age=31)
    calls[0]["conversation_id"] = "13912345678"
    data.prepare(config_for(tmp_path, calls))
    everything = [one for part in parts_of(tmp_path / "out").values() for one in part]
    (masked,) = [one for one in everything if "手机号" in one.input_text]
    assert masked.input_text == "客户:我叫<姓名1>,电话<手机号1>"
    assert masked.metadata["note"] == "找<姓名1>先生"
    assert masked.metadata["age"] == 31
    assert masked.metadata["customer_id"].startswith("id-")
    assert masked.conversation_id.startswith("id-")


def test_half_a_character_in_the_metadata_is_replaced(tmp_path):
    calls = many()
    path = write(tmp_path, calls)
    path.write_text(path.read_text().replace('"k', '"\\ud83dk', 3))
    raw = {"sources": [{"path": str(path)}], "out": str(tmp_path / "out")}
    data.prepare(runconfig.validate(data.DataSettings, raw, "the test"))
    customers = [one.metadata["customer_id"] for part in parts_of(tmp_path / "out").values() for one in part]
    assert sum(customer.startswith("?k") for customer in customers) == 3


# --- no leak


def leaks(parts):
    """Customers and nearly equal texts that two parts share, by comparing every pair."""
    found = []
    names = sorted(parts)
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            customers = [{call.metadata.get("customer_id") for call in parts[name]} - {None} for name in (one, other)]
            found += customers[0] & customers[1]
            theirs = [grams(call.input_text) for call in parts[other]]
            for call in parts[one]:
                own = grams(call.input_text)
                found += [call.conversation_id for each in theirs if len(own & each) > 0.8 * len(own | each)]
    return found


def test_planted_near_duplicates_and_shared_customers_stay_together(tmp_path):
    report = data.prepare(config_for(tmp_path, many(400)))
    assert leaks(parts_of(tmp_path / "out")) == []
    assert report["groups"]["near_duplicate_clusters"] > 20
    assert report["groups"]["groups"] < 400


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.integers(0, 20), st.integers(0, 25), st.integers(0, 3), st.booleans()),
        min_size=30,
        max_size=90,
    ),
    st.integers(0, 1000),
)
def test_no_group_leaks_in_any_set_of_calls(tmp_path_factory, drawn, seed):
    """Sets with many copies, near-copies, shared customers and templates; most can be split, none leaks."""
    folder = tmp_path_factory.mktemp("calls")
    rng = random.Random(seed)
    base = [sentence(rng, 50) for _ in range(26)]
    calls = []
    for number, (label, customer, text, change, known) in enumerate(drawn):
        said = base[text] if change == 0 else base[text][:-change] + "".join(rng.choice(HAN) for _ in range(change))
        metadata = {"customer_id": f"k{customer}"} if known else {}
        calls.append(call(number, said, NAMES[label], **metadata, template_id=f"t{text % 5}"))
    try:
        data.prepare(config_for(folder, calls, conflicts="drop", seed=seed, near_duplicate_similarity=0.8))
    except DataError:
        assert not (folder / "out").exists()
        return
    assert leaks(parts_of(folder / "out")) == []


def test_held_out_templates_are_a_part_of_their_own_beside_which_nothing_leaks(tmp_path):
    calls = many(400)
    for number, one in enumerate(calls):
        one["metadata"]["template_id"] = f"t{number % 20}"
    report = data.prepare(config_for(tmp_path, calls, held_out={"templates": ["t3", "t7"]}))
    parts = parts_of(tmp_path / "out")
    assert {one.metadata["template_id"] for one in parts["ood"]} == {"t3", "t7"}
    assert all(
        one.metadata["template_id"] not in {"t3", "t7"}
        for name in data.DataSettings.model_fields["shares"].default
        for one in parts[name]
    )
    assert leaks(parts) == []
    assert report["dropped"]["beside held-out calls (same customer or nearly the same text)"] > 0


def test_a_site_s_own_split_is_kept_and_training_gives_way(tmp_path):
    """Every held call stays in its part but where a later part has one beside it, and nothing leaks."""
    calls = many(600)
    files = {"train": calls[:400], "validation": calls[400:500], "test": calls[500:]}
    sources = [{"path": str(write(tmp_path, of, f"{part}.jsonl")), "part": part} for part, of in files.items()]
    config = config_for(tmp_path, calls, sources=sources)
    report = data.prepare(config)
    parts = parts_of(tmp_path / "out")
    for part, of in parts.items():
        assert {one.conversation_id for one in of} <= {one["conversation_id"] for one in files[part]}
    assert len(parts["test"]) == 100
    assert leaks(parts) == []
    given_up = report["dropped"]["beside calls of a held part (same customer or nearly the same text)"]
    assert given_up > 20
    assert report["calls_written"] + given_up == 600
    assert report["warnings"] == []


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (("train", None, "test"), "some sources have a part and some have none"),
        (("train", "validation", "prod"), "allowed are train, validation, test"),
        (("train", "train", "test"), "no call is left for validation"),
    ],
)
def test_parts_that_cannot_be_are_refused(tmp_path, parts, told):
    calls = many(90)
    sources = [
        {"path": str(write(tmp_path, calls[at::3], f"{at}.jsonl")), **({"part": part} if part else {})}
        for at, part in enumerate(parts)
    ]
    with pytest.raises((DataError, runconfig.ConfigError), match=told):
        data.prepare(config_for(tmp_path, calls, sources=sources))


def test_templates_stay_together_where_the_settings_say_so(tmp_path):
    calls = many(400)
    for number, one in enumerate(calls):
        one["metadata"] = {"template_id": f"t{number % 40}"}
        one["input_text"] = sentence(random.Random(number))  # near-copies would link templates
    data.prepare(config_for(tmp_path, calls, group_by_template=True))
    parts = parts_of(tmp_path / "out")
    templates = [{one.metadata["template_id"] for one in part} for part in parts.values()]
    assert sum(map(len, templates)) == 40


# --- copies and conflicts


def test_copies_are_dropped_and_counted(tmp_path):
    calls = many()
    copies = [{**one, "conversation_id": f"again-{at}"} for at, one in enumerate(calls[:30])]
    report = data.prepare(config_for(tmp_path, calls + copies))
    assert report["dropped"] == {"copies": 30}
    assert report["calls_written"] == 240


@pytest.mark.parametrize("same", ["text", "id"])
def test_conflicting_labels_are_refused_with_their_places_or_dropped(tmp_path, same):
    calls = many()
    other = NAMES[(NAMES.index(calls[4]["complaint_category"]) + 1) % 12]
    clash = {**calls[4], "complaint_category": other}
    clash |= {"conversation_id": "another"} if same == "text" else {"input_text": "客户:完全不同的一通电话"}
    with pytest.raises(DataError) as raised:
        data.prepare(config_for(tmp_path, [*calls, clash]))
    assert f"calls.jsonl, line 5 ({calls[4]['complaint_category']}) and" in str(raised.value)
    assert f"calls.jsonl, line 241 ({other})" in str(raised.value)
    assert not (tmp_path / "out").exists()
    report = data.prepare(config_for(tmp_path, [*calls, clash], conflicts="drop"))
    assert report["dropped"]["conflicting"] == 2
    assert report["calls_written"] == 239


def test_the_confidence_is_kept_and_can_be_asked_for(tmp_path):
    calls = many()
    for at, one in enumerate(calls):
        one["confidence_score"] = 0.4 if at % 4 == 0 else 0.9
    report = data.prepare(config_for(tmp_path, calls, least_confidence=0.5))
    assert report["dropped"] == {"confidence below least_confidence": 60}
    assert {one.confidence_score for part in parts_of(tmp_path / "out").values() for one in part} == {0.9}


# --- what is refused


def refused(tmp_path, calls, **changes):
    with pytest.raises(DataError) as raised:
        data.prepare(config_for(tmp_path, calls, **changes))
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    return str(raised.value)


def test_one_bad_row_and_nothing_is_written(tmp_path):
    told = refused(tmp_path, [*many(), call("x", "", "不知道")])
    assert told.startswith("nothing was written:\n")
    assert "line 241, input_text: got ''" in told
    assert "line 241, complaint_category: got '不知道'" in told


def test_problems_of_all_files_are_told(tmp_path):
    bad = [{**one, "complaint_category": "?"} for one in many(3)]
    paths = [str(write(tmp_path, bad, f"{name}.jsonl")) for name in "ab"]
    with pytest.raises(DataError) as raised:
        data.prepare(
            runconfig.validate(
                data.DataSettings, {"sources": [{"path": path} for path in paths], "out": str(tmp_path / "out")}, ""
            )
        )
    assert all(path in str(raised.value) for path in paths)


def test_text_of_which_cleaning_leaves_nothing_is_refused(tmp_path):
    assert "line 241, input_text: nothing is left" in refused(tmp_path, [*many(), call("x", "客户:\u200b", "A")])


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        ([], "no calls in"),
        ([call(at, sentence(random.Random(at)), "A") for at in range(50)], "all 50 calls have the category 收费争议"),
        (
            [call(at, sentence(random.Random(at)), NAMES[at]) for at in range(11)],
            "11 calls are left of 11, fewer than the 12",
        ),
        ([call(at, "客户:多扣了我一百块", "A") for at in range(40)], "all 40 calls are copies of one"),
        (
            [call(at, sentence(random.Random(at)), NAMES[at % 12], customer_id="k") for at in range(60)],
            "the largest group (same customer or nearly the same text) has 60 of 60 calls",
        ),
    ],
    ids=["empty", "one class", "fewer than classes", "all copies", "one group"],
)
def test_calls_that_cannot_be_split_are_refused(tmp_path, calls, told):
    assert told in refused(tmp_path, calls)


def test_held_out_templates_that_no_call_has_are_refused(tmp_path):
    assert "no call has one of the templates t9" in refused(tmp_path, many(), held_out={"templates": ["t9"]})


def test_a_folder_that_is_there_is_kept_unless_it_may_be_replaced(tmp_path):
    data.prepare(config_for(tmp_path, many()))
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with pytest.raises(DataError, match="already there"):
        data.prepare(config_for(tmp_path, many(), seed=1))
    with pytest.raises(DataError):
        data.prepare(config_for(tmp_path, [*many(), call("x", "", "A")], seed=1, replace=True))
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    data.prepare(config_for(tmp_path, many(), seed=1, replace=True))
    assert (tmp_path / "out" / "manifest.json").read_bytes() != before


def test_a_category_that_is_missing_somewhere_is_told_in_the_report(tmp_path):
    calls = [one for one in many() if one["complaint_category"] != NAMES[3]]
    calls.append(call("only", sentence(random.Random(9)), NAMES[3]))
    report = data.prepare(config_for(tmp_path, calls))
    assert any(f"{NAMES[3]} has 1 calls, none of them in" in told for told in report["warnings"])


# --- the command


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["shares={train: 0.8, test: 0.2}"], 2, "train, validation and test are needed"),
        (["shares={train: 0.8, validation: 0.1, test: 0.2}"], 2, "sum up to 1"),
        (["shards={}"], 2, "unknown key; did you mean 'shares'"),
        (["sources=[]"], 2, "sources"),
        (["sources=[{path: nowhere.jsonl}]"], 4, "no file nowhere.jsonl"),
        (["sources=[{path: nowhere.txt}]"], 4, "add `format: jsonl`"),
        (["sources=[{path: a.jsonl, encoding: latin-1}]"], 2, "gb18030"),
        (["held_out={part: test, templates: [t]}"], 2, "both name 'test'"),
    ],
)
def test_misuse_is_explained(tmp_path, words, code, told, capsys):
    arguments = [str(ROOT / "training/configs/data_calls.yml"), f"out={tmp_path / 'out'}", *words]
    assert data.main(arguments) == code
    assert told in capsys.readouterr().err


def test_the_command_prints_the_report_and_one_json_line(tmp_path, capsys):
    path = write(tmp_path, many())
    (tmp_path / "data.yml").write_text(f"sources: [{{path: {path}}}]\nout: {tmp_path / 'out'}\n")
    assert data.main([str(tmp_path / "data.yml")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "# Prepared calls"
    assert sum(json.loads(printed[-1])["calls"].values()) == 240


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path):
    """The limit of the size of a file stands for the disk: both end a write with an error of the system."""
    path = write(tmp_path, many())
    (tmp_path / "data.yml").write_text(f"sources: [{{path: {path}}}]\nout: {tmp_path / 'out'}\n")
    command = f"ulimit -f 16; exec {sys.executable} -m training.data {tmp_path / 'data.yml'}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 4
    assert "nothing was written" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls.jsonl", "data.yml"]


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "training/configs").glob("data_*.yml")))
def test_every_committed_config_can_be_read(name):
    assert runconfig.load(data.DataSettings, ROOT / "training/configs" / name).sources


@pytest.mark.computing
def test_time_and_memory_grow_no_faster_than_the_calls(tmp_path):
    """The full measurement is ``python -m training.data_scale``; this one is a twentieth of it."""
    words = ["small=8000", "large=40000", f"folder={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "training.data_scale", *words], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
