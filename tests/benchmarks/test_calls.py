"""Calls files, good and broken."""

from __future__ import annotations

import json

import pytest

from benchmarks.calls import calls_of, digest, read_calls
from benchmarks.config import Scenario
from benchmarks.errors import CallsFileError, UsageError


def test_calls_are_read_with_and_without_a_label(tmp_path):
    path = tmp_path / "calls.jsonl"
    path.write_text(
        '{"input_text": "断网了", "complaint_category": "网络故障", "conversation_id": "x", "other": 1}\n\n'
        '{"input_text": "多收钱"}\n',
        encoding="utf-8-sig",
    )

    calls = read_calls(path)

    assert [(call.id, call.text, call.label) for call in calls] == [
        ("x", "断网了", "网络故障"),
        ("line-3", "多收钱", None),
    ]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{", "(line)"),
        ("[1]", "(line)"),
        ("{}", "input_text"),
        ('{"input_text": "  "}', "input_text"),
        ('{"input_text": 5}', "input_text"),
        ('{"input_text": "a", "complaint_category": 5}', "complaint_category"),
        ('{"input_text": "a", "complaint_category": ""}', "complaint_category"),
        ('{"input_text": "a", "conversation_id": 5}', "conversation_id"),
        ('{"input_text": "a", "conversation_id": "line-1"}', "conversation_id"),
        ('{"input_text": "\\ud83d"}', "input_text"),
        ('{"input_text": "a", "complaint_category": "\\udc00"}', "complaint_category"),
        pytest.param("[" * 100_000, "(line)", id="deep"),
        pytest.param('{"input_text": "a", "n": ' + "9" * 5000 + "}", "(line)", id="digits"),
    ],
)
def test_a_broken_line_is_named_by_file_line_and_field(tmp_path, line, field):
    path = tmp_path / "calls.jsonl"
    path.write_text(f'{{"input_text": "a"}}\n{line}\n', encoding="utf-8")

    with pytest.raises(CallsFileError) as caught:
        read_calls(path)

    assert str(caught.value).startswith(f"{path}:2:{field}: ")


def test_a_line_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "calls.jsonl"
    path.write_bytes('{"input_text": "断网"}'.encode("gbk"))

    with pytest.raises(CallsFileError, match=r":1:\(line\): not UTF-8"):
        read_calls(path)


@pytest.mark.parametrize("content", ["", "\n\n", None])
def test_no_calls_are_a_usage_error(tmp_path, content):
    path = tmp_path / "calls.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")

    with pytest.raises(UsageError, match=r"calls\.jsonl"):
        read_calls(path)


def test_a_sample_is_drawn_by_the_seed_and_keeps_the_order(tmp_path):
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps({"input_text": str(n)}) + "\n" for n in range(100)), encoding="utf-8")

    def sample(seed: int) -> list[int]:
        scenario = Scenario(calls=path, max_calls=10, users=1, requests=1, seed=seed)
        return [int(call.text) for call in calls_of(scenario)]

    assert len(sample(1)) == 10
    assert sample(1) == sorted(sample(1)) == sample(1)
    assert sample(1) != sample(2)


def test_the_digest_depends_on_texts_labels_and_order(tmp_path):
    def of(*rows: dict[str, str]) -> str:
        path = tmp_path / "calls.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return digest(read_calls(path))

    plain = of({"input_text": "a"}, {"input_text": "b"})
    assert plain == of({"input_text": "a"}, {"input_text": "b"})
    assert (
        len({plain, of({"input_text": "b"}, {"input_text": "a"}), of({"input_text": "a", "complaint_category": "x"})})
        == 3
    )
