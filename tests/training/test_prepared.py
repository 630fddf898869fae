from __future__ import annotations

import json
import random

import pytest

import runconfig
from model_server.classification import LABELS
from training import data, prepared
from training.calls import CallSettings, make_splits
from training.durable_files import sha256
from training.errors import DataError


@pytest.fixture
def folder(tmp_path):
    rng = random.Random(0)
    calls = [
        {
            "conversation_id": f"c{number}",
            "input_text": "客户:" + "".join(chr(rng.randint(0x5000, 0x6000)) for _ in range(30)),
            "complaint_category": list(LABELS)[number % 12],
            "confidence_score": 0.5,
            "metadata": {"customer_id": f"k{number}", "nested": {"a": [1, None]}},
        }
        for number in range(120)
    ]
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(call) + "\n" for call in calls))
    raw = {"sources": [{"path": str(path)}], "out": str(tmp_path / "out")}
    data.prepare(runconfig.validate(data.DataSettings, raw, "the test"))
    return tmp_path / "out"


def test_a_part_is_read_as_training_data(folder):
    calls = prepared.load(folder, "test")
    assert len(calls) == 12
    assert {call.complaint_category for call in calls} <= set(LABELS.values())
    assert calls[0].confidence_score == 0.5
    assert calls[0].metadata["nested"] == {"a": [1, None]}


def test_calls_that_were_generated_can_be_written_and_read_back(tmp_path):
    parts = make_splits(CallSettings(), {"train": 20, "test": 5})
    prepared.write(tmp_path / "out", parts)
    assert {part: prepared.load(tmp_path / "out", part) for part in parts} == parts
    assert prepared.read_manifest(tmp_path / "out")["calls"] == {"train": 20, "test": 5}


def test_one_changed_byte_is_noticed(folder):
    path = folder / "train.parquet"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="was altered"):
        prepared.load(folder, "train")
    prepared.load(folder, "test")


@pytest.mark.parametrize(
    ("change", "part", "told"),
    [
        (lambda folder: None, "ood", "no part 'ood', it has test, train, validation"),
        (lambda folder: (folder / "test.parquet").unlink(), "test", "is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "test", "is not a prepared folder"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "test", "is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "test", "no manifest of prepared calls"),
    ],
)
def test_what_is_missing_or_damaged_is_named(folder, change, part, told):
    change(folder)
    with pytest.raises(DataError, match=told):
        prepared.load(folder, part)


def test_the_manifest_has_the_hash_of_every_file_and_source(folder):
    manifest = prepared.read_manifest(folder)
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    for name, of in manifest["files"].items():
        assert of == {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
    assert manifest["sources"][0]["sha256"] == sha256(folder.parent / "calls.jsonl")
    assert set(manifest["versions"]) == {"python", "numpy", "pyarrow", "rensa"}
